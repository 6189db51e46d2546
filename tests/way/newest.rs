//! Lanes that are replayed newest first: after an outage the present comes at once, and history behind it.

use std::collections::BTreeSet;
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Place, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(60);
const OLD: std::ops::Range<u64> = 0..1_500;
const NEW: std::ops::Range<u64> = 1_500..2_000;

fn place(cloud: u16, devices: u16, drain: &str) -> Place {
    let (upstream, listener) = (yaml::cloud(cloud), yaml::devices(devices));
    Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud]}}]
  lanes: [{{name: telemetry, match: ["sensors/#"], quota: 1MiB, order: newest, onFull: reject}}]
  drain: {{{drain}}}
"##
    ))
}

/// Publishes these numbers, 50 at a time, each of them acknowledged.
fn publish(device: &mut Client, numbers: std::ops::Range<u64>) {
    for from in numbers.clone().step_by(50) {
        let batch: Vec<(&str, Vec<u8>)> = (from..(from + 50).min(numbers.end)).map(|n| ("sensors/a", format!("{n:0>300}").into_bytes())).collect();
        let sent = device.send(&batch).unwrap();
        for _ in sent {
            assert!(device.acknowledged(Duration::from_secs(10)).unwrap().is_some());
        }
    }
}

fn receive(cloud: &mut Client, within: Duration) -> Option<u64> {
    let (_, payload) = cloud.receive(within).unwrap()?;
    Some(String::from_utf8(payload).unwrap().parse().unwrap())
}

#[test]
fn after_an_outage_the_present_comes_first_history_behind_it_and_kill_9_in_the_middle_loses_nothing() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    proxy.set(Fault::Refuse);
    let devices = free_port();
    // History gets 40 % of 400 messages a second: seconds in which a kill falls into the middle.
    let place = place(proxy.port, devices, "rate: {messages: 400}, liveShare: 60%");
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("sensors/#").unwrap();
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, OLD);
    publish(&mut device, NEW);
    assert_eq!(node.ledger("upstream/cloud", "queued"), NEW.end);
    proxy.set(Fault::None);
    let mut order: Vec<u64> = vec![receive(&mut cloud, LONG).expect("the link stands again")];
    // The link stands: what is published now is live.
    let (mut live, mut arrived) = (NEW.end, BTreeSet::from([order[0]]));
    let mut waited_for_live = 0;
    while arrived.len() < 900 {
        publish(&mut device, live..live + 1);
        live += 1;
        let mut before = 0;
        loop {
            let n = receive(&mut cloud, Duration::from_secs(10)).expect("both come");
            order.push(n);
            arrived.insert(n);
            if n == live - 1 {
                break;
            }
            before += 1;
        }
        waited_for_live = waited_for_live.max(before);
    }
    assert!(waited_for_live < 200, "a live record waits for what is on its way, not for {waited_for_live} of the backlog");
    // The newest segments have come, the oldest one has not begun.
    let (new, old) = (NEW.filter(|n| arrived.contains(n)).count(), (0..300).filter(|n| arrived.contains(n)).count());
    assert!(new == 500 && old == 0, "{new} of the newest, {old} of the oldest");
    let queued = node.ledger("upstream/cloud", "queued");
    assert!(queued > 500, "{queued}");
    drop(device);
    node.kill();

    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, live..live + 10);
    live += 10;
    let repeats = order.len();
    while let Some(n) = receive(&mut cloud, if arrived.len() < live as usize { LONG } else { Duration::from_millis(200) }) {
        order.push(n);
        arrived.insert(n);
    }
    assert_eq!(arrived, (0..live).collect(), "nothing is lost");
    let again = order.len() - arrived.len();
    assert!(again < 700, "what was acknowledged in the last second before the kill may come again: {again}, after {repeats}");
    let at = |n: u64| order.iter().position(|m| *m == n).unwrap();
    assert!(at(0) > at(600) && at(0) > at(live - 1), "the oldest are the last");
    eventually(LONG, "the ledger closes", || node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!(node.ledger("upstream/cloud", "evicted"), 0);
    let segments = || std::fs::read_dir(place.data().join("outbox/telemetry")).unwrap().count();
    eventually(LONG, "the files go", || segments() <= 1);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_lane_that_refuses_takes_records_again_as_soon_as_the_newest_have_made_room() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    proxy.set(Fault::Refuse);
    let devices = free_port();
    let place = place(proxy.port, devices, "rate: {messages: 300}");
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    let mut n = 0;
    eventually(LONG, "the lane is full", || {
        let batch: Vec<(&str, Vec<u8>)> = (n..n + 50).map(|n| ("sensors/a", format!("{n:0>300}").into_bytes())).collect();
        n += device.send(&batch).unwrap().len() as u64;
        (0..50).any(|_| device.acknowledged(Duration::from_millis(300)).unwrap().is_none())
    });
    let stored = node.ledger("upstream/cloud", "accepted");
    assert!(stored > 2_000 && stored < 3_500, "{stored}");
    proxy.set(Fault::None);
    drop(device);
    let mut tries = 0;
    eventually(LONG, "there is room though the oldest still wait", || {
        tries += 1;
        let Ok(mut device) = Client::connect(devices, &format!("d{tries}"), true) else { return false };
        let sent = device.send(&[("sensors/a", vec![b'0'; 300])]);
        sent.is_ok() && matches!(device.acknowledged(Duration::from_millis(200)), Ok(Some(_)))
    });
    assert!(node.ledger("upstream/cloud", "accepted") > stored);
    let queued = node.ledger("upstream/cloud", "queued");
    assert!(queued > stored / 2, "{queued} of {stored} still wait");
    assert_eq!(node.ledger("upstream/cloud", "evicted"), 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_secondary_upstream_goes_on_in_the_middle_of_the_backlog_and_hands_the_lane_back() {
    let (first, second) = (Mosquitto::start(), Mosquitto::start());
    let (proxy, other) = (Proxy::to(first.port), Proxy::to(second.port));
    let devices = free_port();
    let (upstream, standby, listener) = (yaml::cloud(proxy.port), yaml::upstream("standby", other.port), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstream}{standby}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud]}}]
  lanes: [{{name: telemetry, match: ["sensors/#"], quota: 1MiB, order: newest, onFull: reject}}]
  drain: {{rate: {{messages: 300}}}}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud, stall: 2s}}, {{component: standby, role: secondary, failbackAfter: 1s}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
  notices: {{topic: ""}}
"##
    ));
    proxy.set(Fault::Refuse);
    let mut sinks = [&first, &second].map(|broker| {
        let mut sink = Client::connect(broker.port, "sink", true).unwrap();
        sink.subscribe("sensors/#").unwrap();
        sink
    });
    // No notices, which would wait for the primary. Both are gone while the backlog grows; the primary comes back alone and gets a part of it.
    other.set(Fault::Refuse);
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, 0..2_000);
    proxy.set(Fault::None);
    let mut arrived = [BTreeSet::new(), BTreeSet::new()];
    while arrived[0].len() < 300 {
        arrived[0].insert(receive(&mut sinks[0], LONG).expect("the primary comes first"));
    }
    proxy.set(Fault::Refuse);
    other.set(Fault::None);
    publish(&mut device, 2_000..2_100);
    eventually(LONG, "the secondary carries the rest", || node.ledger("upstream/cloud", "queued") == 0);
    proxy.set(Fault::None);
    eventually(LONG, "the lane is handed back", || {
        node.link("cloud") == "up" && node.status()["upstreams"].as_array().unwrap().iter().all(|u| u["lent"] == false)
    });
    publish(&mut device, 2_100..2_200);
    eventually(LONG, "all is delivered", || node.ledger("upstream/cloud", "queued") == 0);
    for (sink, arrived) in sinks.iter_mut().zip(&mut arrived) {
        while let Some(n) = receive(sink, Duration::from_millis(500)) {
            arrived.insert(n);
        }
    }
    let all: BTreeSet<u64> = arrived[0].union(&arrived[1]).copied().collect();
    assert_eq!(all, (0..2_200).collect());
    assert!((2_100..2_200).all(|n| arrived[0].contains(&n)), "the primary has its lane again");
    let both = arrived[0].intersection(&arrived[1]).count();
    assert!(both < 512, "what was on its way when the link broke can arrive on both: {both}");
    assert_eq!(node.ledger("upstream/cloud", "evicted"), 0);
    assert_eq!(node.terminate(), Some(0));
}
