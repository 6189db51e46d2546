//! Commands from the cloud: acknowledged upstream only when they are safe for their target, however often the box dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selvedge_tests::http::request;
use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Place, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

fn place(cloud: u16, devices: u16, route: &str) -> Place {
    let listener = yaml::devices(devices);
    Place::new(&format!(
        r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: cloud}}
spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: "mqtt://127.0.0.1:{cloud}"}}, {{name: consumerID, value: box}}]}}
---
{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: way}}
spec:
  routes:
    - {{from: cloud, topics: ["site7/cmd/#", "site7/conf/#"], to: [local], stripPrefix: "site7/"{route}}}
"#
    ))
}

/// Everything that waits for a device, as numbers, until nothing comes for a while.
fn collect(device: &mut Client, wanted: usize) -> Vec<(String, u64)> {
    let mut got = Vec::new();
    let mut seen = BTreeSet::new();
    let end = Instant::now() + LONG;
    while seen.len() < wanted && Instant::now() < end {
        let Some((topic, payload)) = device.receive(Duration::from_secs(5)).unwrap() else { continue };
        let number: u64 = String::from_utf8(payload).unwrap().parse().unwrap();
        seen.insert(number);
        got.push((topic, number));
    }
    got
}

#[test]
fn commands_published_while_the_box_is_down_or_dying_all_reach_a_device_that_is_away() {
    // As many on their way at a time as the box takes: the broker's own default of 20 would hide a bound of ours.
    let broker = Mosquitto::with("max_inflight_messages 0\n");
    let devices = free_port();
    let place = place(broker.port, devices, "");
    let node = place.start();
    let mut device = Client::connect(devices, "valve", false).unwrap();
    device.subscribe("cmd/#").unwrap();
    device.subscribe("conf/#").unwrap();
    drop(device);
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    let mut number = 0usize;
    // Over many topics, as commands are; each keeps its order. Gives how many there are.
    let mut command = |kind: &str| {
        cloud.publish(&format!("site7/{kind}/{}", number % 20), number.to_string().as_bytes()).unwrap();
        number += 1;
        number
    };
    // The routes stand once the first command has arrived.
    eventually(LONG, "the broker knows what the box wants", || {
        command("cmd");
        waits(&node) > 0
    });
    node.kill();
    // While it is down: more than any bound for messages that nobody wants yet.
    for _ in 0..300 {
        command("cmd");
        command("conf");
    }
    // While it dies, again and again, and while it stops in an orderly way.
    for round in 1..=10 {
        let node = place.start();
        for _ in 0..round * 20 {
            command("cmd");
        }
        if round % 2 == 0 {
            assert_eq!(node.terminate(), Some(0));
        } else {
            node.kill();
        }
    }
    let node = place.start();
    let sent = command("cmd");
    let mut device = Client::connect(devices, "valve", false).unwrap();
    assert!(device.session_present);
    let got = collect(&mut device, sent);
    let numbers: BTreeSet<u64> = got.iter().map(|(_, n)| *n).collect();
    // The first ones may have been published before the box had subscribed for the first time.
    let first = numbers.first().copied().unwrap();
    let missing: Vec<u64> = (first..sent as u64).filter(|n| !numbers.contains(n)).collect();
    let lost = missing.len();
    assert!(lost == 0 && first < 100, "{} of {sent} came, the first is {first}; {lost} are missing from {:?} on", numbers.len(), missing.first());
    // In their order per topic, but for what was on its way when the box died, which comes again.
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut repeats = 0;
    for (topic, n) in &got {
        let before = highest.entry(topic).or_default();
        repeats += usize::from(n < before);
        *before = (*before).max(*n);
    }
    assert!(repeats < sent / 2, "{repeats} repeats");
    drop(node);
}

#[test]
fn a_command_that_comes_again_within_the_window_is_carried_once_over_kill_9() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = place(broker.port, devices, ", dedupe: {window: 10m, by: id}");
    let metrics: u16 = place.flag("metrics-port").parse().unwrap();
    let node = place.start();
    let mut device = Client::connect(devices, "valve", false).unwrap();
    device.subscribe("cmd/#").unwrap();
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    let mut event = |id: &str| {
        let event = format!(r#"{{"specversion": "1.0", "source": "cloud", "id": "{id}", "type": "open", "data": 1}}"#);
        cloud.publish("site7/cmd/valve", event.as_bytes()).unwrap();
    };
    let next = |device: &mut Client| {
        let (_, payload) = device.receive(LONG).unwrap().expect("a command comes");
        let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        event["id"].as_str().unwrap().to_owned()
    };
    // The route stands once a command has come through.
    let mut tries = 0;
    let first = loop {
        tries += 1;
        event(&format!("try-{tries}"));
        if let Some((_, payload)) = device.receive(Duration::from_millis(200)).unwrap() {
            break String::from_utf8(payload).unwrap();
        }
        assert!(tries < 100, "no command comes");
    };
    assert!(first.contains("try-"), "{first}");
    for id in ["1", "1", "2", "1"] {
        event(id);
    }
    let repeats =
        |n: u32| request(metrics, "GET /metrics", &[], "").body.contains(&format!("selvedge_dedupe_repeats_total{{route=\"cloud/local\"}} {n}\n"));
    eventually(LONG, "two repeats are counted", || repeats(2));
    node.kill();
    let _node = place.start();
    for id in ["1", "2", "3"] {
        event(id);
    }
    let mut device = Client::connect(devices, "valve", false).unwrap();
    let mut ids = Vec::new();
    while ids.last().is_none_or(|id| id != "3") {
        ids.push(next(&mut device));
    }
    // The device has acknowledged none of them on its first connection: all that is stored for it comes now, once.
    assert_eq!(ids.iter().filter(|id| !id.starts_with("try-")).collect::<Vec<_>>(), ["1", "2", "3"]);
    eventually(LONG, "the repeats of after the restart are counted", || repeats(2));
}

/// Records that wait for anyone.
fn waits(node: &selvedge_tests::Node) -> u64 {
    node.status()["ledger"].as_array().unwrap().iter().map(|row| row["queued"].as_u64().unwrap()).sum()
}
