use std::time::Duration;

use selvedge_tests::ledger::{Publisher, Sink};
use selvedge_tests::mqtt::Client;
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Place, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(60);

fn place(cloud: u16, devices: u16, type_name: &str, more: &str) -> Place {
    let listener = yaml::devices(devices);
    Place::new(&format!(
        r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: cloud}}
spec:
  type: {type_name}
  version: v1
  metadata: [{{name: url, value: "mqtt://127.0.0.1:{cloud}"}}]
---
{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes:
    - {{from: local, topics: ["sensors/#"], to: [cloud], prefix: "site7/"}}
    - {{from: cloud, topics: ["site7/cmd/#"], to: [local], stripPrefix: "site7/"}}
{more}"#
    ))
}

#[test]
fn nothing_acknowledged_is_lost_over_faults_of_the_link_and_kill_9() {
    for type_name in ["pubsub.mqtt3", "pubsub.mqtt5"] {
        let broker = Mosquitto::start();
        let proxy = Proxy::to(broker.port);
        let devices = free_port();
        let policy =
            "---\napiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {name: escape}\nspec:\n  upstreams: [{component: cloud, stall: 2s}]\n";
        let place = place(proxy.port, devices, type_name, policy);
        let sink = Sink::start(broker.port, "site7/#", "site7/");
        let mut node = place.start();
        let publishers: Vec<Publisher> = ["a", "b", "c"].iter().map(|n| Publisher::start(devices, n, 300)).collect();
        let total = || publishers.iter().map(Publisher::count).sum::<usize>();
        let more = |n: usize| {
            let from = total();
            eventually(LONG, "publishers are served", || total() >= from + n);
        };
        more(300);
        for fault in [Fault::Refuse, Fault::Swallow, Fault::Stall] {
            proxy.set(fault);
            eventually(LONG, "the link is seen to be down", || node.link("cloud") != "up");
            more(300);
            node.kill();
            node = place.start();
            more(300);
            proxy.set(Fault::None);
            proxy.cut();
            eventually(LONG, "the link is up again", || node.link("cloud") == "up");
            more(100);
        }
        // The box dies with a healthy link as well.
        for _ in 0..3 {
            node.kill();
            node = place.start();
            more(100);
        }
        let acknowledged = publishers.into_iter().flat_map(Publisher::finish).collect();
        sink.check(&acknowledged, LONG);
        eventually(LONG, "the ledger closes", || node.ledger("upstream/cloud", "queued") == 0);
        assert!(node.ledger("upstream/cloud", "evicted") == 0);
        assert_eq!(node.terminate(), Some(0));
    }
}

#[test]
fn commands_come_down_and_wait_for_a_device_that_is_away() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = place(broker.port, devices, "pubsub.mqtt5", "");
    let node = place.start();
    let mut device = Client::connect(devices, "pump", false).unwrap();
    device.subscribe("cmd/#").unwrap();
    let mut operator = Client::connect(broker.port, "operator", true).unwrap();
    eventually(LONG, "the inbound route is subscribed", || {
        operator.publish("site7/cmd/pump", b"on").unwrap();
        device.receive(Duration::from_millis(100)).unwrap() == Some(("cmd/pump".into(), b"on".to_vec()))
    });
    while device.receive(Duration::from_millis(200)).unwrap().is_some() {}
    drop(device);
    for n in 0..20 {
        operator.publish("site7/cmd/pump", format!("{n}").as_bytes()).unwrap();
    }
    eventually(LONG, "the commands wait in the store", || node.ledger("session/devices/pump", "queued") == 20);
    node.kill();
    let node = place.start();
    let mut device = Client::connect(devices, "pump", false).unwrap();
    assert!(device.session_present, "the session survived the kill");
    let mut received: Vec<String> = Vec::new();
    while received.len() < 20 {
        let (topic, payload) = device.receive(Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(topic, "cmd/pump");
        // At least once: what was acknowledged in the last second before the kill may come again.
        let text = String::from_utf8(payload).unwrap();
        if text != "on" && !received.contains(&text) {
            received.push(text);
        }
    }
    assert_eq!(received, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    eventually(LONG, "they are done", || {
        let _ = device.receive(Duration::from_millis(50)).unwrap();
        node.ledger("session/devices/pump", "queued") == 0
    });
}

#[test]
fn a_broker_that_is_not_there_refuses_nobody_and_gets_everything_later() {
    let (cloud, devices) = (free_port(), free_port());
    let place = place(cloud, devices, "pubsub.mqtt3", "");
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    for n in 0..100u64 {
        device.publish("sensors/x", format!("{n:0>200}").as_bytes()).unwrap();
    }
    assert_eq!(node.ledger("upstream/cloud", "queued"), 100);
    assert_eq!(node.link("cloud"), "down");
    assert_eq!(node.terminate(), Some(0));
    let node = place.start();
    assert_eq!(node.ledger("upstream/cloud", "queued"), 100, "the backlog survives an orderly restart");
}
