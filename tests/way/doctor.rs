//! `selvedge doctor` against real brokers, real files and a node that runs; `selvedge check` shares its arithmetic.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use selvedge_tests::{Mosquitto, Place, binary, free_port, password_hash};
use serde_json::Value;

/// Exit code and findings as `(level, subject, found)`.
fn examine(place: &Place, more: &[&str]) -> (i32, Vec<(String, String, String)>, Value) {
    let mut command = Command::new(binary());
    command.args(["doctor", "--json", "--resources-path"]).arg(place.resources()).arg("--data-dir").arg(place.data()).args(more);
    let output = command.output().unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)));
    let text = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    let findings = all["findings"].as_array().unwrap().iter().map(|f| (text(f, "level"), text(f, "subject"), text(f, "found"))).collect();
    (output.status.code().unwrap(), findings, all)
}

fn has(findings: &[(String, String, String)], level: &str, subject: &str, found: &str) -> bool {
    findings.iter().any(|(l, s, f)| l == level && s == subject && f.contains(found))
}

fn component(name: &str, kind: &str, properties: &str) -> String {
    format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\nspec: {{type: {kind}, version: v1, metadata: [{properties}]}}\n---\n"
    )
}

fn url(value: &str) -> String {
    format!("{{name: url, value: \"{value}\"}}")
}

fn listener(port: u16, more: &str) -> String {
    format!(
        "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, bind: \"127.0.0.1:{port}\"{more}}}\n---\n"
    )
}

#[test]
fn a_sound_box_is_sound_beside_its_node_and_the_broker_keeps_the_nodes_connection() {
    let broker = Mosquitto::with("max_inflight_messages 5\n");
    let port = free_port();
    let yaml = component("cloud", "pubsub.mqtt5", &url(&format!("mqtt://127.0.0.1:{}", broker.port)))
        + &listener(port, "")
        + "apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {name: up}\nspec:\n  routes: [{from: local, topics: [\"s/#\"], to: [cloud]}]\n  \
           lanes: [{name: hot, match: [\"s/#\"], quota: 8MiB, durability: memory}]\n";
    let place = Place::new(&yaml);
    let node = place.start();
    selvedge_tests::eventually(std::time::Duration::from_secs(20), "the link is up", || node.link("cloud") == "up");
    let (code, findings, all) = examine(&place, &["--rate", "50/s", "--size", "200"]);
    assert_eq!(code, 0, "{findings:#?}");
    for (level, subject, found) in [
        ("good", "node", format!("runs as process {}", node.pid())),
        ("good", "upstream cloud: tcp", format!("127.0.0.1:{}", broker.port)),
        ("good", "upstream cloud: mqtt", "MQTT 5".to_owned()),
        ("warning", "upstream cloud: broker limits", "Receive Maximum is 5".to_owned()),
        ("good", "listener devices", "is the running node's".to_owned()),
        // The flags are the node's own, not those of the doctor.
        ("good", "HTTP API", format!("tcp 0.0.0.0:{} is the running node's", place.flag("dapr-http-port"))),
        ("good", "gRPC API", format!("tcp 0.0.0.0:{} is the running node's", place.flag("dapr-grpc-port"))),
        ("good", "metrics", format!("tcp 0.0.0.0:{} is the running node's", place.flag("metrics-port"))),
        ("note", "HTTP API", "everybody who reaches the box may call it".to_owned()),
        ("good", "disk", "a sync takes".to_owned()),
        ("good", "limits", "of the node".to_owned()),
    ] {
        assert!(has(&findings, level, subject, &found), "{level} {subject} {found}\n{findings:#?}");
    }
    assert_eq!(node.status()["upstreams"][0]["connects"], 1, "the node's own connection was not taken over");
    assert!(std::fs::read_dir(place.data()).unwrap().all(|f| !f.unwrap().file_name().to_string_lossy().starts_with("doctor-")));
    // Of a node that runs the folders are known.
    let alone = Command::new(binary()).args(["doctor", "--data-dir"]).arg(place.data()).output().unwrap();
    let alone = String::from_utf8(alone.stdout).unwrap();
    assert!(
        alone.contains("good     upstream cloud: mqtt: the broker accepts us (MQTT 5, client id box-doctor") && alone.contains("lane hot: "),
        "{alone}"
    );
    let hot = &all["worstCase"][0];
    // 7 MiB (a file less than the quota) of 260 bytes each, 50 a second.
    assert_eq!((hot["lane"].as_str(), hot["coversSeconds"].as_u64()), (Some("hot"), Some((7 << 20) / 260 / 50)));
    assert!(hot["lostByPowerCut"].as_str().unwrap().contains("1600 messages") && hot["traps"].as_array().unwrap().len() == 1);
    assert_eq!(all["worstCase"][1]["lane"], "default");

    let checked = Command::new(binary()).arg("check").arg(place.resources()).args(["--rate", "50/s"]).output().unwrap();
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.contains("lane hot: 8.0 MiB hold about 9 minutes of an outage at 50 messages of 200 bytes a second"), "{checked}");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn each_upstream_is_told_by_the_stage_at_which_it_fails() {
    let passwords = tempfile::tempdir().unwrap();
    let file = passwords.path().join("passwords");
    assert!(
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args(["known", "right"]).stderr(Stdio::null()).status().unwrap().success()
    );
    for path in [passwords.path(), &file] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let guarded = Mosquitto::with(&format!("allow_anonymous false\npassword_file {}\n", file.display()));
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = |port: u16| format!("127.0.0.1:{port}");
    let yaml = component("lost", "pubsub.mqtt5", &url("mqtt://no-such-host.invalid"))
        + &component("shut", "pubsub.mqtt5", &url(&format!("mqtt://{}", at(free_port()))))
        + &component("plain", "pubsub.mqtt5", &url(&format!("mqtts://{}", at(guarded.port))))
        + &component("stranger", "pubsub.mqtt3", &url(&format!("mqtt://known:wrong@{}", at(guarded.port))))
        + &component(
            "risky",
            "pubsub.mqtt3",
            &format!(
                "{}, {{name: qos, value: \"0\"}}, {{name: cleanSession, value: \"true\"}}",
                url(&format!("mqtt://known:right@{}", at(guarded.port)))
            ),
        )
        + &component("mute", "pubsub.mqtt5", &url(&format!("mqtt://{}", at(mute.local_addr().unwrap().port()))));
    let place = Place::new(&yaml);
    let (code, findings, _) = examine(&place, &[]);
    assert_eq!(code, 1);
    for (level, subject, found) in [
        ("problem", "upstream lost: dns", "cannot be looked up"),
        ("problem", "upstream shut: tcp", "refused"),
        ("problem", "upstream plain: tls", ""),
        ("problem", "upstream stranger: mqtt", "(auth)"),
        ("good", "upstream risky: mqtt", "MQTT 3.1.1"),
        ("warning", "upstream risky: settings", "qos is 0"),
        ("warning", "upstream risky: settings", "cleanSession is true"),
        ("problem", "upstream mute: mqtt", "does not answer within 10 s"),
    ] {
        assert!(has(&findings, level, subject, found), "{level} {subject} {found}\n{findings:#?}");
    }
}

#[test]
fn certificates_files_and_ports_that_will_not_do_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |command: String| {
        assert!(
            Command::new("openssl").args(command.split_whitespace()).current_dir(dir.path()).stderr(Stdio::null()).status().unwrap().success(),
            "{command}"
        );
    };
    openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key -out cert -days 7 -subj /CN=box".into());
    std::fs::set_permissions(dir.path().join("key"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(dir.path().join("users"), format!("- name: a\n  password: \"{}\"\n", password_hash("a"))).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let at = dir.path().display();
    let yaml = component("cloud", "pubsub.mqtt5", &url("mqtt://me:secret@127.0.0.1:1"))
        + &listener(port, &format!(", users: {{file: \"{at}/users\"}}, tls: {{certFile: \"{at}/cert\", keyFile: \"{at}/key\"}}"));
    let place = Place::new(&yaml);
    let (code, findings, _) =
        examine(&place, &["--dapr-http-port", &port.to_string(), "--dapr-listen-addresses", "127.0.0.1", "--dapr-grpc-port", "0"]);
    assert_eq!(code, 1);
    assert!(!findings.iter().any(|(level, subject, _)| subject == "gRPC API" || (level == "note" && subject == "HTTP API")), "{findings:#?}");
    for (level, subject, found) in [
        ("problem", "HTTP API", &*format!("127.0.0.1:{port} is taken by process {}", std::process::id())),
        ("warning", "listener devices: certFile", "6 days from now"),
        ("warning", "listener devices: keyFile", "take the private key"),
        ("good", "listener devices", "1 accounts"),
        ("problem", "listener devices", &format!("is taken by process {}", std::process::id())),
        ("warning", "component cloud", "a password stands in it"),
        ("note", "node", "none answers"),
    ] {
        assert!(has(&findings, level, subject, found), "{level} {subject} {found}\n{findings:#?}");
    }
    // For people: the level first, the remedy below.
    let text =
        Command::new(binary()).args(["doctor", "--resources-path"]).arg(place.resources()).arg("--data-dir").arg(place.data()).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("problem  listener devices: tcp 127.0.0.1:") && text.contains("\n         -> stop that program"), "{text}");
    assert!(text.lines().last().unwrap().ends_with("warnings"), "{text}");
    let usage = Command::new(binary()).args(["doctor", "--rate", "fast"]).output().unwrap();
    assert!(usage.status.code() == Some(2) && String::from_utf8_lossy(&usage.stderr).contains("such as 50/s"));
}
