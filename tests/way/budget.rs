//! What a link and a card may cost: budgets, and lanes that write only what is not taken in time.

use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Node, Place, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(60);

fn yaml(cloud: u16, devices: u16, budgets: &str) -> String {
    let upstream = yaml::cloud(cloud);
    let listener = yaml::devices(devices);
    format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [cloud]}}]
  lanes:
    - {{name: critical, match: ["alarm/#"], durability: fsync, strict: true}}
    - {{name: fast, match: ["fast/#"], durability: memory}}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud}}]
  budgets: {{{budgets}}}
"##
    )
}

fn budget(node: &Node, kind: &str) -> (String, u64) {
    let status = node.status();
    let all = status["budgets"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|b| b["kind"] == kind).unwrap_or_default();
    (found["level"].as_str().unwrap_or_default().to_owned(), found["usedBytes"].as_u64().unwrap_or(0))
}

fn delivered(node: &Node, lane: &str) -> u64 {
    let rows = node.status()["ledger"].as_array().cloned().unwrap_or_default();
    rows.iter().filter(|r| r["lane"] == lane && r["destination"] == "upstream/cloud").filter_map(|r| r["delivered"].as_u64()).sum()
}

#[test]
fn a_data_plan_that_runs_out_is_kept_for_alarms_over_a_kill_and_a_larger_one_lets_everything_go() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = Place::new(&yaml(broker.port, devices, "data: 1MB/month"));
    let node = place.start();
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("selvedge/+/alarm").unwrap();
    let mut device = Client::connect(devices, "d", true).unwrap();
    eventually(LONG, "the link is up", || node.link("cloud") == "up");
    let mut published = 0;
    eventually(LONG, "the plan runs out", || {
        for _ in 0..50 {
            device.publish("sensors/a", &[7; 1_000]).unwrap();
            published += 1;
        }
        budget(&node, "data").0 == "spent" || budget(&node, "data").0 == "scarce"
    });
    // The first one says that it is nearly used up, the next one that it is.
    let mut levels = Vec::new();
    while let Some((_, payload)) = cloud.receive(Duration::from_secs(5)).unwrap() {
        let alarm: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((&alarm["alarm"], &alarm["budget"]["kind"]), (&"budget".into(), &"data".into()));
        levels.push(alarm["budget"]["level"].as_str().unwrap().to_owned());
    }
    assert!(levels.iter().any(|l| l == "scarce" || l == "spent"), "{levels:?}");
    for _ in 0..50 {
        device.publish("sensors/a", &[7; 1_000]).unwrap();
    }
    published += 50;
    let sent = delivered(&node, "default");
    assert!(sent < published, "{sent} of {published}");
    device.publish("alarm/fire", b"!").unwrap();
    eventually(LONG, "the alarm is delivered", || delivered(&node, "critical") == 1);
    assert_eq!(delivered(&node, "default"), sent, "and nothing else");
    let used = budget(&node, "data").1;
    drop(device);
    node.kill();
    let node = place.start();
    eventually(LONG, "the link is up again", || node.link("cloud") == "up");
    assert!(budget(&node, "data").1 + 20_000 > used, "what was used is known after a kill");
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.publish("alarm/fire", b"!!").unwrap();
    eventually(LONG, "the alarm is delivered", || delivered(&node, "critical") >= 2);
    assert!(node.ledger("upstream/cloud", "queued") > 0);
    assert_eq!(node.terminate(), Some(0));
    place.rewrite(&yaml(broker.port, devices, "data: 100MB/month"));
    let node = place.start();
    eventually(LONG, "everything goes", || node.ledger("upstream/cloud", "queued") == 0);
    assert!(delivered(&node, "default") >= published);
    assert_eq!(budget(&node, "data").0, "well");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_healthy_link_costs_a_memory_lane_no_flash_and_a_spent_flash_budget_makes_batches_longer() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = Place::new(&yaml(broker.port, devices, "flash: 1MB/day"));
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    eventually(LONG, "the link is up", || node.link("cloud") == "up");
    let flash = |node: &Node| node.status()["flash"]["flashBytes"].as_u64().unwrap();
    let before = flash(&node);
    for _ in 0..3_000 {
        device.publish("fast/a", &[7; 200]).unwrap();
    }
    eventually(LONG, "all of it is delivered", || delivered(&node, "fast") == 3_000);
    assert!(flash(&node) - before < 100_000, "{} bytes for 600,000", flash(&node) - before);
    // One sync per message: a block each.
    eventually(LONG, "the budget is spent", || {
        for _ in 0..20 {
            device.publish("alarm/a", b"x").unwrap();
        }
        budget(&node, "flash").0 == "spent"
    });
    // A batch of a second is open when an alarm comes, which does not wait for it.
    let patient = std::thread::spawn(move || {
        let mut other = Client::connect(devices, "other", true).unwrap();
        other.publish("sensors/a", b"x").unwrap();
    });
    eventually(LONG, "the batched one is there", || delivered(&node, "default") == 1);
    device.publish("alarm/a", b"x").unwrap();
    assert!(!patient.is_finished(), "it is answered once it is on the disk, and that is put off");
    patient.join().unwrap();
    assert!(node.has_logged("a budget runs out"));
    assert_eq!(node.terminate(), Some(0));
    let node = place.start();
    eventually(LONG, "it is known after a restart", || budget(&node, "flash").0 == "spent");
    assert_eq!(node.terminate(), Some(0));
}
