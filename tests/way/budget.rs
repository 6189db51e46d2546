//! What a link and a card may cost: budgets, and lanes that write only what is not taken in time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};

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

/// What a command about the running node prints.
fn selvedge(place: &Place, words: &[&str]) -> String {
    let output = Command::new(binary()).args(words).arg("--data-dir").arg(place.data()).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
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
    let said = selvedge(&place, &["escape"]);
    assert!(said.contains("budget data: ") && said.contains(": only strict lanes are sent"), "{said}");
    // A larger plan, while the node runs.
    place.rewrite(&yaml(broker.port, devices, "data: 100MB/month"));
    assert_eq!(selvedge(&place, &["reload"]), "reloaded: escape policy escape: budgets.data\n");
    eventually(LONG, "everything goes", || node.ledger("upstream/cloud", "queued") == 0);
    let said = selvedge(&place, &["escape"]);
    assert!(said.contains(" used this month, well since ") && !said.contains("strict"), "{said}");
    assert!(budget(&node, "data").1 > used / 2, "what was used counts on");
    // None at all, and one that is new: what was used before it came is not its own.
    place.rewrite(&yaml(broker.port, devices, "flash: 1GB/day"));
    assert_eq!(selvedge(&place, &["reload"]), "reloaded: escape policy escape: budgets.flash, budgets.data\n");
    let said = selvedge(&place, &["escape"]);
    assert!(said.contains("budget flash: ") && !said.contains("budget data"), "{said}");
    place.rewrite(&yaml(broker.port, devices, "data: 100MB/month"));
    assert_eq!(selvedge(&place, &["reload"]), "reloaded: escape policy escape: budgets.flash, budgets.data\n");
    assert!(budget(&node, "data").1 < used / 2, "begun anew");
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

#[test]
fn databases_that_had_to_be_set_aside_are_told_upstream_and_the_box_is_degraded_until_the_next_start() {
    let broker = Mosquitto::start();
    let place = Place::new("");
    let state = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: things}}\nspec:\n  type: state.sqlite\n  version: v1\n  \
         metadata: [{{name: connectionString, value: \"{}\"}}]\n---\n",
        place.data().join("things.db").display()
    );
    place.rewrite(&format!("{state}{}", yaml(broker.port, free_port(), "diskFree: 1MiB")));
    let node = place.start();
    assert_eq!(node.status()["degraded"], serde_json::json!([]));
    assert_eq!(node.terminate(), Some(0));
    let databases: Vec<_> = files(&place.data()).into_iter().filter(|p| p.extension().is_some_and(|e| e == "db")).collect();
    assert_eq!(databases.len(), 2, "{databases:?}");
    for path in &databases {
        std::fs::write(path, b"no database at all ".repeat(100)).unwrap();
        // What the write-ahead log still has would mend it.
        let log = path.with_extension("db-wal");
        if log.exists() {
            std::fs::remove_file(log).unwrap();
        }
    }
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("selvedge/+/alarm").unwrap();
    let node = place.start();
    let (_, payload) = cloud.receive(LONG).unwrap().expect("an alarm");
    let alarm: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    let told: Vec<&str> = alarm["setAside"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
    assert_eq!(alarm["alarm"], "store-damaged");
    for path in &databases {
        assert!(told.iter().any(|f| *f == format!("{}.corrupt-1", path.display())), "{alarm}");
    }
    let parts: Vec<String> = node.status()["degraded"].as_array().unwrap().iter().map(|d| d["part"].as_str().unwrap().to_owned()).collect();
    assert_eq!(parts, ["component/things", "store"]);
    assert_eq!(node.terminate(), Some(0));
    let node = place.start();
    assert_eq!(node.status()["degraded"], serde_json::json!([]));
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn messages_whose_file_vanishes_while_the_box_is_down_are_counted_as_lost_and_told() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = Place::new(&yaml(free_port(), devices, "diskFree: 1MiB"));
    let node = place.start();
    let mut device = Client::connect(devices, "device", true).unwrap();
    let messages: Vec<_> = (0..50).map(|n| ("alarm/a", format!("{n}").into_bytes())).collect();
    device.send(&messages).unwrap();
    for _ in &messages {
        assert!(device.acknowledged(LONG).unwrap().is_some());
    }
    let outbox = place.data().join("outbox");
    let saved = |name: &str| std::fs::read_to_string(outbox.join(name)).is_ok_and(|page| page.contains(r#""lane":"critical","through":51"#));
    eventually(LONG, "the cursors are saved", || saved("cursors-a") || saved("cursors-b"));
    node.kill();
    let segments: Vec<_> = files(&outbox.join("critical")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    std::fs::remove_file(&segments[0]).unwrap();

    place.rewrite(&yaml(broker.port, devices, "diskFree: 1MiB"));
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    let node = place.start();
    assert_eq!(node.status()["degraded"][0]["part"], "store");
    assert!(node.has_logged("stand in no file any more"), "{}", node.log().join("\n"));
    let (mut alarm, mut stone) = (None, None);
    while alarm.is_none() || stone.is_none() {
        let (topic, payload) = cloud.receive(LONG).unwrap().expect("an alarm and a tombstone");
        assert!(!topic.starts_with("alarm/"), "{topic}");
        let notice: serde_json::Value = serde_json::from_slice(&payload).unwrap_or_default();
        match notice["kind"].as_str() {
            Some("alarm") => alarm = Some(notice),
            Some("tombstone") => stone = Some(notice),
            _ => {}
        }
    }
    let (alarm, stone) = (alarm.unwrap(), stone.unwrap());
    assert_eq!(alarm["alarm"], "store-vanished");
    assert_eq!(alarm["vanished"], serde_json::json!([{"lane": "critical", "sequences": [1, 50], "count": 50}]));
    assert_eq!((&stone["lane"], &stone["reason"], &stone["count"]), (&"critical".into(), &"damaged".into(), &50.into()), "{stone}");
    assert_eq!(stone["sequences"], serde_json::json!([1, 50]));
    assert_eq!(node.ledger("upstream/cloud", "evicted"), 50);
    assert_eq!(node.terminate(), Some(0));
    let node = place.start();
    assert_eq!((&node.status()["degraded"], node.ledger("upstream/cloud", "evicted")), (&serde_json::json!([]), 50), "told and counted once");
    assert_eq!(node.terminate(), Some(0));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.flat_map(|e| if e.path().is_dir() { files(&e.path()) } else { vec![e.path()] }).collect()
}
