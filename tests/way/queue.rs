//! What upstreams refuse: set aside with its reason, shown, tried again, dropped, over `kill -9`.

use std::process::Command;
use std::time::{Duration, Instant};

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);

/// `selvedge queue WORDS`: its exit code and what it prints.
fn queue(place: &Place, words: &[&str]) -> (bool, String) {
    let output = Command::new(binary()).args(["queue", "--data-dir"]).arg(place.data()).args(words).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn refused(node: &Node, n: u64) {
    let end = Instant::now() + LONG;
    while node.status()["upstreams"][0]["refused"] != n {
        assert!(Instant::now() < end, "{n} records are refused: {:#}\n{}", node.status(), node.log().join("\n"));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_a_broker_refuses_is_set_aside_and_goes_through_once_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let acl = folder.path().join("acl");
    std::fs::write(&acl, "topic readwrite open/#\n").unwrap();
    // mosquitto reads it as its own user when it is started by root.
    for path in [folder.path(), &acl] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let broker = Mosquitto::with(&format!("acl_file {}\n", acl.display()));
    let devices = free_port();
    let upstream = yaml::cloud(broker.port);
    let listener = yaml::devices(devices);
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [cloud]}}]
"##
    ));
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("open/#").unwrap();
    for n in 0..3 {
        device.publish("secret/a", format!("s{n}").as_bytes()).unwrap();
        device.publish("open/a", format!("o{n}").as_bytes()).unwrap();
    }
    for n in 0..3 {
        assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("open/a".to_owned(), format!("o{n}").into_bytes()), "traffic goes on");
    }
    refused(&node, 3);
    node.kill();
    let node = place.start();
    // Up to a second's refusals come again after the kill; they are not set aside twice.
    eventually(LONG, "all is answered again", || node.link("cloud") == "up" && node.ledger("upstream/cloud", "queued") == 0);
    let (well, text) = queue(&place, &["show"]);
    assert!(well && text.lines().count() == 3 && text.lines().all(|l| l.contains("secret/a") && l.contains("(2 bytes)")), "{text}");
    let (_, exported) = queue(&place, &["export"]);
    let records: Vec<Value> = exported.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let facts: Vec<_> = records.iter().map(|r| (r["payload"].as_str().unwrap(), r["upstream"].as_str().unwrap())).collect();
    assert_eq!(facts, [("s0", "cloud"), ("s1", "cloud"), ("s2", "cloud")]);
    assert!(records[0]["reason"].as_str().unwrap().to_lowercase().contains("not authorized"), "{exported}");
    let numbers: Vec<String> = records.iter().map(|r| r["number"].to_string()).collect();
    let (_, one) = queue(&place, &["show", &numbers[1]]);
    assert_eq!(serde_json::from_str::<Value>(&one).unwrap(), records[1]);

    let (well, text) = queue(&place, &["purge", &numbers[0]]);
    assert!(well && text.starts_with("1 records dropped"), "{text}");
    std::fs::write(&acl, "topic readwrite #\n").unwrap();
    broker.reload();
    cloud.subscribe("secret/#").unwrap();
    let mut probe = Client::connect(broker.port, "probe", true).unwrap();
    eventually(LONG, "the broker has read its rules again", || {
        probe.publish("secret/probe", b"").unwrap();
        cloud.receive(Duration::from_millis(100)).unwrap().is_some_and(|(topic, _)| topic == "secret/probe")
    });
    let (well, text) = queue(&place, &["retry", "all"]);
    assert!(well && text.starts_with("2 records stored"), "{text}");
    for n in [1, 2] {
        // What was delivered just before the kill may come again.
        let next = std::iter::from_fn(|| cloud.receive(LONG).unwrap()).find(|(topic, _)| topic == "secret/a");
        assert_eq!(next, Some(("secret/a".to_owned(), format!("s{n}").into_bytes())));
    }
    eventually(LONG, "the books close", || node.ledger("upstream/cloud", "queued") == 0 && node.ledger("quarantine", "queued") == 0);
    assert_eq!((node.ledger("quarantine", "delivered"), node.ledger("quarantine", "evicted")), (2, 1));
    assert_eq!(queue(&place, &["show"]), (true, "nothing is set aside\n".to_owned()));
    let (well, text) = queue(&place, &[]);
    assert!(well && text.starts_with("lane ") && text.contains("upstream/cloud"), "{text}");
    for (words, part) in [(&["purge", "x"][..], "accepted is a number"), (&["eat"], "accepted are ls"), (&["show", "999"], "no record 999")] {
        let (well, text) = queue(&place, words);
        assert!(!well && text.contains(part), "{words:?}: {text}");
    }
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn what_waits_for_an_upstream_that_was_taken_away_is_told_comes_back_with_its_name_and_can_be_dropped() {
    let broker = Mosquitto::start();
    let (dead, devices) = (free_port(), free_port());
    let yaml = |name: &str, port: u16| {
        let (upstream, listener) = (yaml::upstream(name, port), yaml::devices(devices));
        format!(
            r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [{name}]}}]
"##
        )
    };
    let place = Place::new(&yaml("old", dead));
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    for n in 0..5 {
        device.publish("sensors/a", format!("{n}").as_bytes()).unwrap();
    }
    let (sound, said) = queue(&place, &["drop", "upstream/old"]);
    assert!(!sound && said.contains("accepted is nothing"), "what has an upstream is not dropped: {said}");
    node.kill();

    place.rewrite(&yaml("new", broker.port));
    let node = place.start();
    assert!(node.has_logged("records wait for an upstream that there is not"), "{:?}", node.log());
    let (_, said) = queue(&place, &[]);
    assert!(said.contains("upstream/old: 5 records wait for an upstream that there is not"), "{said}");
    let doctor = Command::new(binary()).args(["doctor", "--data-dir"]).arg(place.data()).output().unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(doctor.contains("5 records wait for an upstream that there is not"), "{doctor}");
    node.kill();

    // The name is there again: they leave.
    place.rewrite(&yaml("old", broker.port));
    let node = place.start();
    eventually(LONG, "they have left", || node.ledger("upstream/old", "delivered") == 5);
    assert_eq!(node.status()["orphans"], serde_json::json!([]));
    assert_eq!(node.terminate(), Some(0));

    place.rewrite(&yaml("old", dead));
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.publish("sensors/a", b"for nobody").unwrap();
    node.kill();
    place.rewrite(&yaml("new", broker.port));
    let node = place.start();
    let (sound, said) = queue(&place, &["drop", "upstream/old"]);
    assert!(sound && said.starts_with("1 records of upstream/old dropped"), "{said}");
    assert_eq!((&node.status()["orphans"], node.ledger("upstream/old", "queued")), (&serde_json::json!([]), 0));
    node.kill();
    let node = place.start();
    assert!(!node.has_logged("records wait for an upstream"), "{:?}", node.log());
    assert_eq!(node.terminate(), Some(0));
}
