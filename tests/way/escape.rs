//! The mode of the box over an outage, as everyone sees it: device, application, operator, and the cloud that gets the report.

use std::process::Command;
use std::time::Duration;

use selvedge_tests::http::request;
use selvedge_tests::mqtt::Client;
use selvedge_tests::mqtt5::{Connect, Properties, Wire};
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);

fn place(cloud: u16, devices: u16) -> Place {
    let upstream = yaml::cloud(cloud);
    let listener = yaml::devices(devices);
    Place::new(&format!(
        r#"{upstream}apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: slow-clock}}
spec:
  type: bindings.cron
  version: v1
  metadata: [{{name: schedule, value: "@every 100ms"}}, {{name: publishTo, value: local}}, {{name: publishTopic, value: beat}}, {{name: publishWhen, value: island}}]
---
{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud]}}]
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud, stall: 2s}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
  budgets: {{diskFree: 1MiB}}
"#
    ))
}

/// `selvedge escape WORDS`: its exit code and what it prints.
fn escape(place: &Place, words: &[&str]) -> (bool, String) {
    let output = Command::new(binary()).args(["escape", "--data-dir"]).arg(place.data()).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn mode_is(node: &Node, mode: &str) {
    eventually(LONG, mode, || node.status()["mode"]["mode"] == mode);
}

/// The modes that a device is told, until the wanted one comes.
fn told(device: &mut Client, wanted: &str) -> Vec<String> {
    let mut modes = Vec::new();
    while modes.last().is_none_or(|m| m != wanted) {
        let (topic, payload) = device.receive(LONG).unwrap().unwrap_or_else(|| panic!("the mode {wanted} is told; so far {modes:?}"));
        if topic == "$selvedge/mode" {
            let said: Value = serde_json::from_slice(&payload).unwrap();
            modes.push(said["mode"].as_str().unwrap().to_owned());
        }
    }
    modes
}

#[test]
fn an_outage_is_seen_by_all_and_reported_before_the_backlog_even_over_a_kill() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let devices = free_port();
    let place = place(proxy.port, devices);
    let node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    mode_is(&node, "normal");
    let publish = || request(http, "POST /v1.0/publish/cloud/sensors/app", &[("content-type", "application/json")], "1");
    assert_eq!(publish().header("selvedge-mode"), Some("normal"));
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.subscribe("$selvedge/mode").unwrap();
    device.subscribe("beat").unwrap();
    assert_eq!(told(&mut device, "normal"), ["normal"], "retained");

    proxy.set(Fault::Refuse);
    assert_eq!(told(&mut device, "island"), ["island"]);
    assert_eq!((publish().header("selvedge-mode"), publish().header("selvedge-queued")), (Some("island"), Some("true")));
    let metadata: Value = serde_json::from_str(&request(http, "GET /v1.0/metadata", &[], "").body).unwrap();
    let status: Value = serde_json::from_str(metadata["extended"]["selvedge"].as_str().unwrap()).unwrap();
    assert_eq!(status["mode"]["mode"], "island");
    assert_eq!(request(http, "GET /v1.0/healthz", &[], "").start, "204", "ready on the island");
    let (_, said) = escape(&place, &[]);
    assert!(said.contains("mode island since") && said.contains("a link is not up:"), "{said}");
    while device.receive(LONG).unwrap().expect("readings for the island are published").0 != "beat" {}
    for n in 0..50 {
        device.publish(&format!("sensors/{n}"), b"x").unwrap();
    }
    drop(device);
    node.kill();

    // The same outage goes on.
    let node = place.start();
    mode_is(&node, "island");
    let (_, said) = escape(&place, &["report"]);
    assert!(said.starts_with("outage 1:") && said.contains("it goes on"), "{said}");
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    proxy.set(Fault::None);
    let (topic, payload) = cloud.receive(LONG).unwrap().unwrap();
    // The record that tries the link is the oldest that waits; the report goes before all others.
    let (topic, payload) = if topic.ends_with("/outage") { (topic, payload) } else { cloud.receive(LONG).unwrap().unwrap() };
    let report: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(topic, format!("selvedge/{}/outage", report["node"].as_str().unwrap()));
    assert_eq!((&report["number"], &report["restarts"], &report["causes"][0]["upstream"]), (&1.into(), &1.into(), &"cloud".into()));
    let lane = report["lanes"].as_array().unwrap().iter().find(|l| l["lane"] == "default").unwrap();
    assert!(lane["accepted"] == 52 && lane["queued"].as_u64().is_some_and(|n| n >= 51), "{report:#}");
    mode_is(&node, "normal");
    let (_, said) = escape(&place, &["report"]);
    assert!(!said.contains("goes on") && said.contains("mode island"), "{said}");
    eventually(LONG, "all has left", || node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_record_that_waited_says_in_which_mode_it_was_taken_even_over_a_kill() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let devices = free_port();
    let place = place(proxy.port, devices);
    let node = place.start();
    mode_is(&node, "normal");
    let connect = Connect { id: "cloud".into(), clean: true, ..Connect::default() };
    let (mut cloud, _) = Wire::connect(broker.port, &connect);
    assert!(cloud.subscribe("sensors/#", 1, &Properties::new()) < 0x80);
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.publish("sensors/a", b"at once").unwrap();
    let came = |cloud: &mut Wire| {
        let message = cloud.message();
        cloud.acknowledge(message.id);
        let mode = message.user.iter().find(|(name, _)| name == "selvedge-mode").map(|(_, mode)| mode.clone());
        (message.payload, mode)
    };
    assert_eq!(came(&mut cloud), ("at once".into(), None), "what did not wait says nothing of it");

    proxy.set(Fault::Refuse);
    mode_is(&node, "island");
    device.publish("sensors/a", b"alone").unwrap();
    node.kill();
    let node = place.start();
    mode_is(&node, "island");
    assert!(escape(&place, &["pin", "conserve", "--for", "1h"]).0);
    mode_is(&node, "conserve");
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.publish("sensors/a", b"sparing").unwrap();
    proxy.set(Fault::None);
    assert_eq!(came(&mut cloud), ("alone".into(), Some("island".into())));
    assert_eq!(came(&mut cloud), ("sparing".into(), Some("conserve".into())));
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn an_operator_closes_and_opens_the_links_and_pins_the_mode() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = place(broker.port, devices);
    let node = place.start();
    mode_is(&node, "normal");
    let (well, said) = escape(&place, &["enter"]);
    assert!(well && said.contains("closed by an operator"), "{said}");
    mode_is(&node, "island");
    eventually(LONG, "the link is closed", || node.link("cloud") == "fenced");
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.publish("sensors/a", b"x").unwrap();
    assert_eq!(node.ledger("upstream/cloud", "delivered"), 0);
    // An operator's word outlives the process.
    node.kill();
    let node = place.start();
    mode_is(&node, "island");
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("sensors/#").unwrap();
    assert!(escape(&place, &["leave"]).0);
    assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("sensors/a".to_owned(), b"x".to_vec()));
    mode_is(&node, "normal");
    let (well, said) = escape(&place, &["pin", "conserve", "--for", "2h"]);
    assert!(well && said.contains("mode conserve") && said.contains("pinned by an operator for 7"), "{said}");
    assert!(escape(&place, &["leave"]).0);
    mode_is(&node, "normal");
    for (words, part) in
        [(&["pin", "conserve"][..], "--for"), (&["pin", "party", "--for", "2h"], "accepted are normal"), (&["hide"], "accepted are status")]
    {
        let (well, said) = escape(&place, words);
        assert!(!well && said.contains(part), "{words:?}: {said}");
    }
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn what_is_lost_leaves_tombstones_that_add_up_with_what_arrives_even_over_a_kill() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let devices = free_port();
    let upstream = yaml::cloud(proxy.port);
    let listener = yaml::devices(devices);
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [cloud]}}]
  lanes:
    - {{name: short, match: ["short/#"], ttl: 1s}}
    - {{name: small, match: ["small/#"], quota: 1MiB, onFull: drop-oldest}}
"##
    ));
    let node = place.start();
    eventually(LONG, "the link is up", || node.link("cloud") == "up");
    proxy.set(Fault::Refuse);
    eventually(LONG, "the link is down", || node.link("cloud") == "down");
    let mut device = Client::connect(devices, "d", true).unwrap();
    let payload = vec![b'x'; 2_000];
    let batches = |device: &mut Client, n: usize| {
        for batch in 0..n {
            let messages: Vec<(&str, Vec<u8>)> = (0..20).map(|i| (if i == 0 { "short/a" } else { "small/a" }, payload.clone())).collect();
            let ids = device.send(&messages).unwrap();
            for _ in &ids {
                device.acknowledged(LONG).unwrap().unwrap_or_else(|| panic!("batch {batch} is acknowledged"));
            }
        }
    };
    batches(&mut device, 40);
    assert!(node.ledger("upstream/cloud", "evicted") > 0);
    // The process dies: the ranges are forgotten, their number is not.
    drop(device);
    node.kill();
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    batches(&mut device, 40);
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    // All of `short` has outlived its second by now.
    proxy.set(Fault::None);
    let (mut stones, mut arrived, mut before_stone) = (Vec::<Value>::new(), 0, 0);
    let told = |stones: &[Value], key: &str| stones.iter().map(|s| s["totals"][key].as_u64().unwrap()).max().unwrap_or_default();
    loop {
        let Some((topic, payload)) = cloud.receive(Duration::from_millis(500)).unwrap() else {
            let all_told = ["expired", "evicted"].iter().all(|key| told(&stones, key) == node.ledger("upstream/cloud", key));
            if node.ledger("upstream/cloud", "queued") == 0 && all_told {
                break;
            }
            continue;
        };
        if topic.ends_with("/tombstone") {
            stones.push(serde_json::from_slice(&payload).unwrap());
        } else if topic == "small/a" || topic == "short/a" {
            arrived += 1;
            before_stone += u64::from(stones.is_empty());
        }
    }
    assert!(before_stone <= 1, "{before_stone} records came before the first tombstone");
    let count = |lane: &str| stones.iter().filter(|s| s["lane"] == lane).map(|s| s["count"].as_u64().unwrap()).sum::<u64>();
    let lost = count("small") + count("short");
    assert_eq!(lost + arrived, 1_600, "accepted = arrived + lost: {stones:#?}");
    assert_eq!(lost, node.ledger("upstream/cloud", "evicted") + node.ledger("upstream/cloud", "expired"));
    assert!(stones.iter().any(|s| s["reason"] == "quota" && s["sequences"][1].as_u64() > s["sequences"][0].as_u64()), "{stones:#?}");
    assert!(stones.iter().any(|s| s["reason"] == "expired" && s["lane"] == "short"), "{stones:#?}");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn full_lanes_that_merge_keep_the_newest_of_each_state_and_every_reading_in_an_aggregate_over_a_kill() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let devices = free_port();
    let upstream = yaml::cloud(proxy.port);
    let listener = yaml::devices(devices);
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [cloud]}}]
  lanes:
    - {{name: plant, match: ["plant/#"], quota: 1MiB, onFull: "downsample(1s,10s)"}}
    - {{name: state, match: ["state/#"], quota: 1MiB, onFull: keep-latest-per-key}}
"##
    ));
    let node = place.start();
    eventually(LONG, "the link is up", || node.link("cloud") == "up");
    proxy.set(Fault::Refuse);
    eventually(LONG, "the link is down", || node.link("cloud") == "down");
    let pad = "x".repeat(400);
    let send = |device: &mut Client, numbers: std::ops::Range<u64>| {
        for first in numbers.step_by(20) {
            let messages: Vec<(String, Vec<u8>)> = (first..first + 20)
                .flat_map(|n| {
                    let body = format!(r#"{{"t":{n},"pad":"{pad}"}}"#).into_bytes();
                    [(format!("plant/{}", n % 3), body.clone()), (format!("state/{}", n % 7), body)]
                })
                .collect();
            let ids = device.send(&messages.iter().map(|(t, p)| (t.as_str(), p.clone())).collect::<Vec<_>>()).unwrap();
            for _ in &ids {
                device.acknowledged(LONG).unwrap().unwrap_or_else(|| panic!("what begins with {first} is acknowledged"));
            }
        }
    };
    let mut device = Client::connect(devices, "d", true).unwrap();
    send(&mut device, 0..5_000);
    assert!(node.ledger("upstream/cloud", "aggregated") > 0);
    drop(device);
    node.kill();
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    send(&mut device, 5_000..8_000);
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    proxy.set(Fault::None);
    let (mut readings, mut sum, mut newest, mut told) = (0u64, 0f64, std::collections::BTreeMap::new(), 0u64);
    loop {
        let Some((topic, payload)) = cloud.receive(Duration::from_millis(500)).unwrap() else {
            if node.ledger("upstream/cloud", "queued") == 0 && told == node.ledger("upstream/cloud", "aggregated") {
                break;
            }
            continue;
        };
        let value: Value = serde_json::from_slice(&payload).unwrap();
        if topic.ends_with("/tombstone") {
            assert_eq!(value["reason"], "aggregated", "{value}");
            told += value["count"].as_u64().unwrap();
        } else if topic.starts_with("plant/") {
            let (count, mean) =
                value["t"].as_u64().map_or_else(|| (value["t"]["count"].as_u64().unwrap(), value["t"]["mean"].as_f64().unwrap()), |n| (1, n as f64));
            readings += count;
            sum += mean * count as f64;
        } else if topic.starts_with("state/") {
            newest.insert(topic, value["t"].as_u64().unwrap());
        }
    }
    assert_eq!((readings, node.ledger("upstream/cloud", "evicted")), (8_000, 0));
    assert!((sum - (0..8_000u64).sum::<u64>() as f64).abs() < 1.0, "{sum}");
    assert_eq!(
        newest.into_iter().collect::<Vec<_>>(),
        (0..7u64).map(|n| (format!("state/{n}"), (0..8_000).rfind(|v| v % 7 == n).unwrap())).collect::<Vec<_>>()
    );
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_secondary_upstream_carries_the_lanes_of_a_primary_that_is_down_and_hands_them_back() {
    let (first, second) = (Mosquitto::start(), Mosquitto::start());
    let proxy = Proxy::to(first.port);
    let devices = free_port();
    let place = Place::new(&format!(
        r##"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: cloud}}
spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: "mqtt://127.0.0.1:{}"}}]}}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: standby}}
spec: {{type: pubsub.mqtt3, version: v1, metadata: [{{name: url, value: "mqtt://127.0.0.1:{}"}}]}}
---
apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: devices}}
spec: {{protocol: mqtt, bind: "127.0.0.1:{devices}"}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [cloud], prefix: "site7/"}}]
  lanes: [{{name: critical, match: ["alarm/#"], durability: fsync, onFull: reject}}]
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams:
    - {{component: cloud, stall: 2s}}
    - {{component: standby, role: secondary, lanes: [critical], failbackAfter: 2s}}
  modes: {{islandAfter: 1s, normalAfter: 1s}}
"##,
        proxy.port, second.port
    ));
    let node = place.start();
    mode_is(&node, "normal");
    let mut device = Client::connect(devices, "d", true).unwrap();
    let mut at_first = Client::connect(first.port, "sink", true).unwrap();
    let mut at_second = Client::connect(second.port, "sink", true).unwrap();
    at_first.subscribe("site7/#").unwrap();
    at_second.subscribe("site7/#").unwrap();
    let mut sent = 0;
    let mut publish = |device: &mut Client, n: u32| {
        for _ in 0..n {
            for topic in ["alarm/a", "sensors/a"] {
                device.publish(topic, format!("{sent}").as_bytes()).unwrap();
            }
            sent += 1;
        }
        sent
    };
    // Numbers of a topic, repeats (which have the same record id) left out.
    let upto = |sink: &mut Client, topic: &str, last: i32| {
        let mut numbers: Vec<i32> = Vec::new();
        while numbers.last().is_none_or(|n| *n < last) {
            let (at, payload) = sink.receive(LONG).unwrap().unwrap_or_else(|| panic!("{topic} up to {last}; so far {numbers:?}"));
            let number = String::from_utf8(payload).unwrap().parse().unwrap();
            if at == topic && numbers.last().is_none_or(|n| *n < number) {
                numbers.push(number);
            }
        }
        numbers
    };
    let last = publish(&mut device, 5);
    assert_eq!(upto(&mut at_first, "site7/alarm/a", last - 1), (0..last).collect::<Vec<_>>());

    proxy.set(Fault::Refuse);
    let from = last;
    let last = publish(&mut device, 20);
    assert_eq!(upto(&mut at_second, "site7/alarm/a", last - 1), (from..last).collect::<Vec<_>>(), "alarms go the other way");
    mode_is(&node, "failover");
    let status = node.status();
    let standby = status["upstreams"].as_array().unwrap().iter().find(|u| u["name"] == "standby").unwrap();
    assert_eq!(standby["standsIn"], true);
    assert!(node.ledger("upstream/cloud", "queued") >= 20, "the other lane waits for its upstream");

    proxy.set(Fault::None);
    mode_is(&node, "normal");
    eventually(LONG, "the lanes are handed back", || {
        let status = node.status();
        status["upstreams"].as_array().unwrap().iter().all(|u| u["standsIn"] == false && u["lent"] == false)
    });
    assert_eq!(upto(&mut at_first, "site7/sensors/a", last - 1).last(), Some(&(last - 1)));
    let from = last;
    let last = publish(&mut device, 5);
    assert_eq!(upto(&mut at_first, "site7/alarm/a", last - 1), (from..last).collect::<Vec<_>>(), "alarms go the old way");
    eventually(LONG, "all is delivered", || node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!(node.ledger("upstream/cloud", "evicted"), 0);
    assert_eq!(node.terminate(), Some(0));
}

/// What a service manager would receive: readiness, then life signs as long as the event loop goes on, whatever the link does.
#[test]
fn the_watchdog_is_fed_by_progress_and_not_by_links() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LONG)).unwrap();
    // Nobody listens at the upstream.
    let mut place = place(free_port(), free_port());
    place.environment = vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string()), ("WATCHDOG_USEC".to_owned(), "300000".to_owned())];
    let node = place.start();
    let hear = |wanted: &str| {
        let mut buffer = [0; 512];
        loop {
            let n = manager.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted}: {e}"));
            if std::str::from_utf8(&buffer[..n]).unwrap().lines().any(|l| l == wanted) {
                return;
            }
        }
    };
    hear("READY=1");
    for _ in 0..5 {
        hear("WATCHDOG=1");
    }
    // A process that stands still says nothing; one that goes on says so again.
    node.signal("STOP");
    manager.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    let mut buffer = [0; 512];
    let last = std::iter::from_fn(|| manager.recv(&mut buffer).ok()).take(10).count();
    assert!(last < 10, "silence while it stands still");
    node.signal("CONT");
    manager.set_read_timeout(Some(LONG)).unwrap();
    hear("WATCHDOG=1");
    assert_eq!(node.terminate(), Some(0));
}
