//! Stored messages on a disk that somebody takes out: nothing can be read without the key, and nothing is lost for want of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

/// The files below a folder in which a text stands.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if path.is_file() && std::fs::read(&path).unwrap().windows(text.len()).any(|w| w == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn lane(node: &Node, name: &str, key: &str) -> u64 {
    let status = node.status();
    let lane = status["lanes"].as_array().unwrap().iter().find(|l| l["name"] == name).unwrap_or_else(|| panic!("{name} in {status:#}")).clone();
    lane[key].as_u64().unwrap_or_else(|| panic!("{key} in {lane}"))
}

#[test]
fn no_message_can_be_read_from_the_disk_and_all_of_them_arrive_once_the_key_is_there() {
    let broker = Mosquitto::start();
    let (dead, devices) = (free_port(), free_port());
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::write(&old, "0a".repeat(32)).unwrap();
    std::fs::write(&new, "0b".repeat(32)).unwrap();
    let resources = |cloud: u16, keys: &[&Path]| {
        let keys: Vec<String> = keys.iter().map(|k| format!("{{file: {}}}", k.display())).collect();
        let at_rest = if keys.is_empty() { String::new() } else { format!("atRest: {{keys: [{}]}}, ", keys.join(", ")) };
        format!(
            "{}{}apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec: {{routes: [{{from: local, topics: [\"#\"], to: [cloud]}}]}}\n---\n\
             apiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {{name: escape}}\nspec: {{{at_rest}budgets: {{diskFree: 1MiB}}}}\n",
            yaml::cloud(cloud),
            yaml::devices(devices)
        )
    };
    let publish = |numbers: std::ops::Range<u64>| {
        let mut device = Client::connect(devices, "d", true).unwrap();
        for n in numbers {
            device.publish("hidden-topic/x", format!("hidden-payload {n}").as_bytes()).unwrap();
        }
    };
    let plain = Place::new(&resources(dead, &[]));
    let node = plain.start();
    publish(0..3);
    node.kill();
    assert!(!files_with(&plain.data(), "hidden-payload 2").is_empty(), "the search finds what can be read");

    // A backlog in the clear from before, then one that is sealed.
    let place = Place::new(&resources(dead, &[&old]));
    let node = place.start();
    publish(0..300);
    node.kill();
    for text in ["hidden-topic", "hidden-payload"] {
        assert_eq!(files_with(&place.data(), text), Vec::<String>::new(), "{text}");
    }

    // The key is not there: what is stored is kept, what comes is taken, and everybody is told.
    place.rewrite(&resources(broker.port, &[&new]));
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    let node = place.start();
    assert!(node.has_logged("sealed with a key that is not among spec.atRest.keys"), "{}", node.log().join("\n"));
    publish(300..310);
    let alarm = std::iter::from_fn(|| cloud.receive(LONG).unwrap()).find(|(topic, _)| topic.ends_with("/alarm"));
    let alarm = alarm.unwrap_or_else(|| panic!("no alarm: {:#}\n{}", node.status(), node.log().join("\n")));
    let alarm: serde_json::Value = serde_json::from_slice(&alarm.1).unwrap();
    assert_eq!((&alarm["alarm"], &alarm["locked"][0]["lane"]), (&"store-locked".into(), &"default".into()), "{alarm}");
    assert_eq!((lane(&node, "default", "lockedSegments"), node.ledger("upstream/cloud", "evicted")), (1, 0));
    assert_eq!(node.ledger("upstream/cloud", "queued"), 310);
    let queue = Command::new(binary()).args(["queue", "--data-dir"]).arg(place.data()).output().unwrap();
    assert!(String::from_utf8_lossy(&queue.stdout).contains("1 of its 2 segments are sealed with a key"), "{queue:?}");
    node.kill();

    // A key that cannot be read: nothing is written in the clear instead, and no sender is told that it was stored.
    let missing = folder.path().join("missing");
    place.rewrite(&resources(broker.port, &[&missing]));
    let node = place.start();
    assert!(node.has_logged("the key from file"), "{}", node.log().join("\n"));
    let mut device = Client::connect(devices, "e", true).unwrap();
    device.send(&[("hidden-topic/y", b"hidden-payload lost".to_vec())]).unwrap();
    assert!(!matches!(device.acknowledged(Duration::from_secs(1)), Ok(Some(_))), "it cannot be stored");
    node.kill();
    assert_eq!(files_with(&place.data(), "hidden-payload"), Vec::<String>::new());

    let doctor = |keys: &[&Path]| {
        place.rewrite(&resources(broker.port, keys));
        let output = Command::new(binary()).args(["doctor", "--resources-path"]).arg(place.resources()).arg("--data-dir").arg(place.data()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let told = doctor(&[&missing]);
    assert!(told.contains("atRest: file") && told.contains("No such file"), "{told}");
    // By the same id as in the alarm.
    let told = doctor(&[&new, &old]);
    assert!(told.contains(&format!("key {} seals and opens", alarm["locked"][0]["key"].as_str().unwrap())), "{told}");

    // Both keys: all of it, in order.
    place.rewrite(&resources(broker.port, &[&new, &old]));
    let node = place.start();
    for n in 0..310 {
        let next = std::iter::from_fn(|| cloud.receive(LONG).unwrap()).find(|(topic, _)| topic.starts_with("hidden-topic/x")).unwrap();
        assert_eq!(String::from_utf8(next.1).unwrap(), format!("hidden-payload {n}"));
    }
    eventually(LONG, "the books close", || node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!((node.ledger("upstream/cloud", "evicted"), lane(&node, "default", "lockedSegments")), (0, 0));
    assert_eq!(node.terminate(), Some(0));
}
