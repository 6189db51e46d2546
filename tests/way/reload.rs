//! Reading the resources again while devices are connected: SIGHUP and `selvedge reload`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::mqtt5::{Connect, Properties, Wire};
use selvedge_tests::{Mosquitto, Place, binary, eventually, free_port, password_hash, yaml};

const LONG: Duration = Duration::from_secs(30);

fn yaml(cloud: u16, devices: u16, users: &Path, routes: &str, lanes: &str, more: &str) -> String {
    let upstream = yaml::cloud(cloud);
    format!(
        r##"{upstream}apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: devices}}
spec: {{protocol: mqtt, bind: "127.0.0.1:{devices}", users: {{file: "{}"}}}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{routes}]
  lanes: [{lanes}]
{more}"##,
        users.display()
    )
}

fn user(name: &str, filter: &str) -> String {
    format!("- name: {name}\n  password: \"{}\"\n  acl: [{{topics: [\"{filter}\", \"cmd/#\"], read: true, write: true}}]\n", password_hash(name))
}

fn device(port: u16, name: &str) -> Wire {
    let connect = Connect { id: name.to_owned(), clean: true, user: Some((name.to_owned(), name.to_owned())), ..Connect::default() };
    Wire::connect(port, &connect).0
}

/// `selvedge reload`: whether it went well, and what it prints.
fn reload(place: &Place) -> (bool, String) {
    let output = Command::new(binary()).args(["reload", "--data-dir"]).arg(place.data()).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn users_routes_and_lanes_change_live_and_connected_devices_stay() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let place = Place::new("");
    let users = place.resources().parent().unwrap().join("users");
    std::fs::write(&users, user("a", "sensors/#") + &user("b", "sensors/#") + &user("c", "sensors/#")).unwrap();
    let up = r#"{from: local, topics: ["sensors/#"], to: [cloud], prefix: "one/"}"#;
    let lane = r#"{name: telemetry, match: ["sensors/#"], quota: 4MiB}"#;
    place.rewrite(&yaml(broker.port, devices, &users, up, lane, ""));
    let node = place.start();
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    let (mut a, mut b, mut c) = (device(devices, "a"), device(devices, "b"), device(devices, "c"));
    a.subscribe("cmd/#", 1, &Properties::new());
    a.publish(2, "sensors/x", &Properties::new(), "1");
    assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("one/sensors/x".to_owned(), b"1".to_vec()));
    assert_eq!(reload(&place), (true, "nothing has changed\n".to_owned()));

    // b is gone, c has another password, a has other rights; another prefix, a route that leads in, other values of the lane; and what
    // cannot change live.
    let new_password = user("c", "sensors/#").replace(&password_hash("c"), &password_hash("other"));
    std::fs::write(&users, user("a", "extra/#") + &new_password).unwrap();
    let up = r#"{from: local, topics: ["sensors/#", "extra/#"], to: [cloud], prefix: "two/"}, {from: cloud, topics: ["cmd/#"], to: [local]}"#;
    let lane = r#"{name: telemetry, match: ["extra/#"], quota: 8MiB, ttl: 1h}, {name: added, match: ["z"]}"#;
    let policy =
        "---\napiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {name: escape}\nspec: {upstreams: [{component: cloud, stall: 7s}]}\n";
    place.rewrite(&yaml(broker.port, free_port(), &users, up, lane, policy));
    let (well, said) = reload(&place);
    assert!(well, "{said}");
    for line in [
        "reloaded: listener devices: users: 2 accounts",
        "reloaded: lane telemetry: quota, ttl",
        "reloaded: routes: 2 new, 1 gone",
        "needs a restart: listener devices: bind",
        "needs a restart: lane added is new",
        "needs a restart: lane telemetry: match",
        "needs a restart: escape policy escape is new",
    ] {
        assert!(said.lines().any(|l| l == line), "{line}\n{said}");
        eventually(LONG, line, || node.has_logged(line));
    }
    b.closed_with(0x87);
    c.closed_with(0x87);
    a.publish(2, "extra/x", &Properties::new(), "2");
    assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("two/extra/x".to_owned(), b"2".to_vec()));
    assert_eq!(a.publish(2, "sensors/x", &Properties::new(), "3"), 0x87, "not any more");
    // The device that stayed gets what the new route brings.
    let publish = ["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-q", "1", "-r", "-t", "cmd/pump", "-m", "on"];
    assert!(Command::new("mosquitto_pub").args(publish).status().unwrap().success());
    let command = a.message();
    assert_eq!((command.topic.as_str(), command.payload.as_str()), ("cmd/pump", "on"));
    let status = node.status();
    let lane = status["lanes"].as_array().unwrap().iter().find(|l| l["name"] == "telemetry").cloned().unwrap();
    assert_eq!(lane["quotaBytes"], 8 << 20);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn mistakes_are_all_said_and_the_node_goes_on_as_it_was() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let mut place = Place::new("");
    let users = place.resources().parent().unwrap().join("users");
    std::fs::write(&users, user("a", "sensors/#")).unwrap();
    let up = r#"{from: local, topics: ["sensors/#"], to: [cloud]}"#;
    place.rewrite(&yaml(broker.port, devices, &users, up, "", ""));
    let socket = place.resources().parent().unwrap().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(LONG)).unwrap();
    place.environment.push(("NOTIFY_SOCKET".to_owned(), socket.display().to_string()));
    let told = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let node = place.start();
    assert_eq!(told(), "READY=1\n");
    let mut a = device(devices, "a");
    let lanes = r#"{name: "NOT A NAME", match: ["sensors/#"]}, {name: x, match: ["x"], quota: lots}"#;
    place.rewrite(&yaml(broker.port, devices, &users, up, lanes, ""));
    node.signal("HUP");
    let reloading = told();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(), "READY=1\n");
    let refused = || node.log().into_iter().filter(|l| l.contains("not reloaded")).collect::<Vec<String>>();
    eventually(LONG, "both mistakes are in the log, which is read apart", || refused().len() >= 2);
    let refused = refused();
    assert!(refused.len() == 2 && refused[0].contains("lanes[0].name") && refused[1].contains("lanes[1].quota"), "{refused:?}");
    // A users file that cannot be read changes nothing either, though the rest is well.
    std::fs::write(&users, "- name: a\n  password: plain\n").unwrap();
    place.rewrite(&yaml(broker.port, devices, &users, r#"{from: local, topics: ["other/#"], to: [cloud]}"#, "", ""));
    let (well, said) = reload(&place);
    assert!(!well && said.contains("not reloaded: listener devices:") && said.contains("users[0].password is no hash"), "{said}");
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("#").unwrap();
    a.publish(2, "sensors/x", &Properties::new(), "1");
    assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("sensors/x".to_owned(), b"1".to_vec()));
    assert_eq!(node.terminate(), Some(0));
}

fn openssl(dir: &Path, command: &str) -> String {
    let output = Command::new("openssl").args(command.split_whitespace()).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "openssl {command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_new_certificate_is_shown_to_those_who_come_and_those_who_are_there_stay() {
    let dir = tempfile::tempdir().unwrap();
    let make = |serial: u32| {
        openssl(
            dir.path(),
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key -out cert -days 30 -subj /CN=box -set_serial {serial}"
            ),
        );
    };
    make(17);
    let port = free_port();
    let at = dir.path().display();
    let place = Place::new(&format!(
        "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, bind: \"127.0.0.1:{port}\", tls: {{certFile: \"{at}/cert\", keyFile: \"{at}/key\"}}}}\n"
    ));
    let node = place.start();
    let serial = || {
        let shown = openssl(dir.path(), &format!("s_client -connect 127.0.0.1:{port}"));
        std::fs::write(dir.path().join("shown"), shown).unwrap();
        openssl(dir.path(), "x509 -in shown -noout -serial").trim().to_owned()
    };
    assert_eq!(serial(), "serial=11");
    // Somebody who is there: its subscription gets a message that comes after the change.
    let mut there = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--cafile"])
        .arg(dir.path().join("cert"))
        .args(["--insecure", "-i", "there", "-q", "1", "-t", "late", "-C", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics_port = place.flag("metrics-port").parse().unwrap();
    eventually(LONG, "it is there", || {
        let metrics = selvedge_tests::http::request(metrics_port, "GET /", &[], "").body;
        metrics.lines().any(|l| l.starts_with("selvedge_mqtt_listener_connections") && l.ends_with(" 1"))
    });
    make(18);
    assert_eq!(reload(&place), (true, "reloaded: listener devices: tls: certificates for connections that come\n".to_owned()));
    assert_eq!(serial(), "serial=12");
    // Half a pair is refused and changes nothing.
    std::fs::write(dir.path().join("key"), "no key").unwrap();
    let (well, said) = reload(&place);
    assert!(!well && said.contains("cannot read a private key"), "{said}");
    assert_eq!(serial(), "serial=12");
    eventually(LONG, "the one who was there gets a message", || {
        let published = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--cafile"])
            .arg(dir.path().join("cert"))
            .args(["--insecure", "-q", "1", "-t", "late", "-m", "x"])
            .status()
            .unwrap();
        published.success() && there.try_wait().unwrap().is_some_and(|s| s.success())
    });
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn the_level_of_the_log_changes_live_by_word_or_by_yaml() {
    let port = free_port();
    let place = Place::new(&yaml::devices(port));
    let node = place.start();
    let garbage = || Wire::open(port).raw(&[0; 64]);
    let by_word = |level: &str| {
        let output = Command::new(binary()).args(["reload", "--data-dir"]).arg(place.data()).args(["--log-level", level]).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let debug_lines = || node.log().iter().filter(|l| l.contains("level=debug msg=\"a client broke the protocol")).count();
    assert_eq!(by_word("debug"), (Some(0), "reloaded: log level: debug (was info)\n".to_owned()));
    garbage();
    eventually(LONG, "details are logged", || debug_lines() == 1);
    // A reload without a word goes back to what the flag of the start said; in the YAML it is the level of the box.
    assert_eq!(reload(&place), (true, "reloaded: log level: info (was debug)\n".to_owned()));
    place.rewrite(&format!("{}apiVersion: selvedge/v1alpha1\nkind: Logging\nmetadata: {{name: log}}\nspec: {{level: debug}}\n", yaml::devices(port)));
    node.signal("HUP");
    let changes = || node.log().iter().filter(|l| l.contains("reloaded: log level: debug (was info)")).count();
    eventually(LONG, "the YAML's level holds", || changes() == 2);
    garbage();
    eventually(LONG, "details are logged again", || debug_lines() == 2);
    assert_eq!(reload(&place), (true, "nothing has changed\n".to_owned()));
    let (code, said) = by_word("loud");
    assert!(code == Some(2) && said.contains("--log-level: found \"loud\"; accepted are debug, info, warn, error or fatal"), "{said}");
    assert_eq!(node.terminate(), Some(0));
    // At the start too.
    let node = place.start();
    garbage();
    eventually(LONG, "details are logged from the start", || node.has_logged("level=debug msg=\"a client broke the protocol"));
    assert_eq!(node.terminate(), Some(0));
}
