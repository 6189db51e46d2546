//! The listener packet by packet: what MQTT 5 promises beside plain publish and subscribe.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use selvedge_tests::mqtt5::{Connect, Packet, Properties, Wire, publish_bytes};
use selvedge_tests::{Node, Place, eventually, free_port, http};

const EXPIRY: u8 = 0x02;
const SUBSCRIPTION_ID: u8 = 0x0B;
const SESSION_EXPIRY: u8 = 0x11;
const WILL_DELAY: u8 = 0x18;
const RECEIVE_MAXIMUM: u8 = 0x21;
const TOPIC_ALIAS: u8 = 0x23;
const MAXIMUM_PACKET: u8 = 0x27;
const LONG: Duration = Duration::from_secs(20);

struct Rig {
    port: u16,
    place: Place,
    node: Node,
}

fn start() -> Rig {
    start_with("")
}

/// `more`: further keys of the listener's spec, each with a comma before it.
fn start_with(more: &str) -> Rig {
    let port = free_port();
    let place = Place::new(&format!(
        "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, bind: \"127.0.0.1:{port}\"{more}}}\n"
    ));
    let node = place.start();
    Rig { port, place, node }
}

impl Rig {
    fn connect(&self, id: &str, properties: Properties) -> (Wire, bool) {
        Wire::connect(self.port, &Connect { id: id.into(), properties, ..Connect::default() })
    }

    /// A client without a session.
    fn guest(&self, id: &str) -> Wire {
        let (wire, present) = Wire::connect(self.port, &Connect { id: id.into(), clean: true, ..Connect::default() });
        assert!(!present);
        wire
    }

    /// A metric's value; the line is named whole, up to the value.
    fn metric(&self, line: &str) -> f64 {
        let port = self.place.flag("metrics-port").parse().unwrap();
        let page = http::request(port, "GET /metrics", &[], "").body;
        page.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0.0)
    }
}

fn none() -> Properties {
    Properties::new()
}

fn session(seconds: u32) -> Properties {
    none().long(SESSION_EXPIRY, seconds)
}

#[test]
fn subscription_identifiers_come_with_messages_live_and_stored() {
    let b = start();
    let mut publisher = b.guest("publisher");
    let mut live = b.guest("live");
    assert_eq!(live.subscribe("a/#", 1, &none().number(SUBSCRIPTION_ID, 7)), 1);
    assert_eq!(live.subscribe("c/+", 0, &none().number(SUBSCRIPTION_ID, 300_000)), 0);
    publisher.publish(0, "a/b", &none(), "x");
    publisher.publish(0, "c/d", &none(), "y");
    let (first, second) = (live.message(), live.message());
    assert_eq!((first.subscriptions, first.qos), (vec![7], 1));
    assert_eq!((second.subscriptions, second.qos), (vec![300_000], 0));

    let (mut kept, _) = b.connect("kept", session(600));
    kept.subscribe("a/#", 1, &none().number(SUBSCRIPTION_ID, 1));
    kept.subscribe("a/b", 1, &none().number(SUBSCRIPTION_ID, 2));
    drop(kept);
    publisher.publish(0, "a/b", &none(), "while away");
    let (mut kept, present) = b.connect("kept", session(600));
    assert!(present, "the session was kept");
    let message = kept.message();
    assert_eq!((message.payload.as_str(), message.subscriptions), ("while away", vec![1, 2]));
}

#[test]
fn a_topic_alias_stands_for_its_topic_on_its_own_connection_only() {
    let b = start();
    let mut watcher = b.guest("watcher");
    watcher.subscribe("#", 0, &none());
    let mut device = b.guest("device");
    let alias = |n| none().short(TOPIC_ALIAS, n);
    assert_eq!(device.publish(0, "long/topic", &alias(3), "1"), 0);
    assert_eq!(device.publish(0, "", &alias(3), "2"), 0);
    assert_eq!(device.publish(0, "other", &alias(3), "3"), 0);
    assert_eq!(device.publish(0, "", &alias(3), "4"), 0);
    let got: Vec<(String, String)> = (0..4).map(|_| watcher.message()).map(|m| (m.topic, m.payload)).collect();
    let expected = [("long/topic", "1"), ("long/topic", "2"), ("other", "3"), ("other", "4")];
    assert_eq!(got, expected.map(|(t, p)| (t.to_owned(), p.to_owned())));

    for (number, reason) in [(5, 0x82), (0, 0x94), (17, 0x94)] {
        let mut other = b.guest("other");
        other.raw(&publish_bytes(2, "", 1, &alias(number), "lost"));
        other.closed_with(reason);
    }
    watcher.nothing_came();
}

#[test]
fn a_will_waits_for_its_delay_and_is_taken_back_when_its_client_returns() {
    let b = start();
    let mut watcher = b.guest("watcher");
    watcher.subscribe("wills/#", 1, &none());
    let with_will = |topic: &str, session_seconds: u32, delay: u32| Connect {
        id: "device".into(),
        properties: session(session_seconds),
        will: Some((topic.into(), b"gone".to_vec(), none().long(WILL_DELAY, delay))),
        ..Connect::default()
    };
    // Lost and back before the delay is over: no will. The one of the second loss has no delay and comes first.
    let (lost, _) = Wire::connect(b.port, &with_will("wills/taken-back", 600, 600));
    drop(lost);
    let (lost, present) = Wire::connect(b.port, &with_will("wills/at-once", 600, 0));
    assert!(present);
    drop(lost);
    let will = watcher.message();
    assert_eq!((will.topic.as_str(), will.payload.as_str(), will.qos), ("wills/at-once", "gone", 1));
    watcher.acknowledge(will.id);
    // The end of the session ends the delay (5.0, section 3.1.3.2.2).
    let (lost, _) = Wire::connect(b.port, &with_will("wills/session-over", 1, 600));
    drop(lost);
    assert_eq!(watcher.message().topic, "wills/session-over");
    // A goodbye takes it back, unless it asks for it.
    for (reason, topic) in [(0x00, "wills/never"), (0x04, "wills/asked-for")] {
        let (mut leaving, _) = Wire::connect(b.port, &with_will(topic, 0, 0));
        leaving.send(0xE0, &[reason]);
        assert!(leaving.try_packet().is_err());
    }
    assert_eq!(watcher.message().topic, "wills/asked-for");
    watcher.nothing_came();
}

#[test]
fn a_shared_subscription_gives_each_message_to_one_member() {
    let b = start();
    let mut members: Vec<Wire> = ["m1", "m2"].map(|id| b.guest(id)).into();
    for m in &mut members {
        assert_eq!(m.subscribe("$share/g/jobs/#", 0, &none()), 0);
    }
    let mut alone = b.guest("alone");
    alone.subscribe("jobs/#", 0, &none());
    let mut publisher = b.guest("publisher");
    for n in 0..10 {
        publisher.publish(0, "jobs/x", &none(), &n.to_string());
    }
    let mut got: Vec<String> = Vec::new();
    for m in &mut members {
        let each: Vec<String> = (0..5).map(|_| m.message().payload).collect();
        m.nothing_came();
        got.extend(each);
    }
    got.sort();
    let all: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!(got, all, "every message once, half of them each");
    assert_eq!((0..10).map(|_| alone.message().payload).collect::<Vec<_>>(), all, "others are not in the group");
    // Who leaves is not given anything any more.
    members.pop().unwrap().send(0xE0, &[0]);
    eventually(LONG, "the member has left", || b.metric("selvedge_mqtt_listener_connections{listener=\"devices\"}") == 3.0);
    for n in 0..4 {
        publisher.publish(0, "jobs/x", &none(), &n.to_string());
    }
    assert_eq!((0..4).map(|_| members[0].message().payload).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    // No group name, a wildcard in it: refused by reason code, the connection goes on.
    assert_eq!([members[0].subscribe("$share//jobs", 0, &none()), members[0].subscribe("$share/+/jobs", 0, &none())], [0x8F, 0x8F]);
}

#[test]
fn a_second_connection_takes_the_client_over_with_all_it_had() {
    let b = start();
    let (mut older, _) = b.connect("same", session(600));
    older.subscribe("x/#", 1, &none());
    b.guest("publisher").publish(0, "x/1", &none(), "unacknowledged");
    let first = older.message();
    let (mut newer, present) = b.connect("same", session(600));
    older.closed_with(0x8E);
    assert!(present);
    let again = newer.message();
    assert_eq!((again.payload.as_str(), again.dup, again.id), ("unacknowledged", true, first.id));
    newer.acknowledge(again.id);
    newer.nothing_came();
}

/// In either order of replay: what was on its way when the client went is what it gets again, though it fills the window.
#[test]
fn a_client_that_went_with_a_full_window_gets_all_of_it_again() {
    for order in ["oldest", "newest"] {
        let b = start_with(&format!(
            "}}\n---\napiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec: {{lanes: [{{name: all, match: [\"#\"], order: {order}}}]"
        ));
        let window = || session(600).short(RECEIVE_MAXIMUM, 3);
        let (mut client, _) = b.connect("c", window());
        client.subscribe("x", 1, &none());
        let mut publisher = b.guest("publisher");
        for n in 0..5 {
            publisher.publish(0, "x", &none(), &n.to_string());
        }
        let first: Vec<_> = (0..3).map(|_| client.message()).map(|m| (m.payload, m.id)).collect();
        client.nothing_came();
        drop(client);
        let (mut client, present) = b.connect("c", window());
        assert!(present);
        let mut all = std::collections::BTreeMap::new();
        for _ in 0..5 {
            let message = client.message();
            assert_eq!(message.dup, first.contains(&(message.payload.clone(), message.id)), "{order}: {message:?}");
            client.acknowledge(message.id);
            all.insert(message.payload, message.dup);
        }
        assert_eq!(all.into_values().collect::<Vec<_>>(), [true, true, true, false, false], "{order}");
        client.nothing_came();
    }
}

#[test]
fn a_session_ends_with_its_expiry_and_a_clean_start() {
    let b = start();
    let sessions = |n: f64| {
        eventually(LONG, "sessions of clients that are away", || b.metric("selvedge_mqtt_listener_sessions{listener=\"devices\"}") == n);
    };
    let mut publisher = b.guest("publisher");
    let (mut short, _) = b.connect("short", session(1));
    short.subscribe("x", 1, &none());
    drop(short);
    sessions(1.0);
    sessions(0.0);
    publisher.publish(0, "x", &none(), "for nobody");
    let (mut short, present) = b.connect("short", session(600));
    assert!(!present, "the session is over");
    short.nothing_came();
    // DISCONNECT may change the time (5.0, section 3.14.2.2.2), but not make a session of none.
    short.subscribe("x", 1, &none());
    let mut goodbye = vec![0, 5, SESSION_EXPIRY];
    goodbye.extend_from_slice(&0u32.to_be_bytes());
    short.send(0xE0, &goodbye);
    assert!(short.try_packet().is_err());
    assert!(!b.connect("short", none()).1);
    let (mut none_before, _) = b.connect("none-before", none());
    goodbye[6] = 9;
    none_before.send(0xE0, &goodbye);
    none_before.closed_with(0x82);
    // A clean start throws away what was kept.
    let (mut kept, _) = b.connect("kept", session(600));
    kept.subscribe("x", 1, &none());
    drop(kept);
    sessions(1.0);
    publisher.publish(0, "x", &none(), "thrown away");
    let (mut kept, present) = Wire::connect(b.port, &Connect { id: "kept".into(), clean: true, properties: session(600), ..Connect::default() });
    assert!(!present);
    kept.nothing_came();
}

#[test]
fn windows_are_kept_in_both_directions() {
    let b = start();
    let (mut slow, _) = b.connect("slow", session(600).short(RECEIVE_MAXIMUM, 2));
    slow.subscribe("x", 1, &none());
    let mut publisher = b.guest("publisher");
    for n in 0..5 {
        publisher.publish(0, "x", &none(), &n.to_string());
    }
    let (first, second) = (slow.message(), slow.message());
    slow.nothing_came();
    slow.acknowledge(first.id);
    let third = slow.message();
    assert_eq!([first.payload, second.payload, third.payload], ["0", "1", "2"]);
    slow.nothing_came();
    // Stored messages of another quality wait behind them in order.
    slow.acknowledge(second.id);
    slow.acknowledge(third.id);
    assert_eq!([slow.message().payload, slow.message().payload], ["3", "4"]);
    // More than the listener said it takes at once.
    let mut greedy = b.guest("greedy");
    let burst: Vec<u8> = (1..=400u16).flat_map(|id| publish_bytes(2, "x", id, &none(), "z")).collect();
    greedy.raw(&burst);
    let end = loop {
        let packet = greedy.packet();
        if packet.first != 0x40 {
            break packet;
        }
    };
    assert_eq!((end.first, end.body[0]), (0xE0, 0x93), "receive maximum exceeded");
}

#[test]
fn options_of_a_subscription_are_kept() {
    let b = start();
    let mut publisher = b.guest("publisher");
    publisher.publish(1, "r/kept", &none(), "retained");
    let mut client = b.guest("client");
    // Retain handling: always, only when new, never (5.0, section 3.8.3.1).
    client.subscribe("r/#", 0, &none());
    let message = client.message();
    assert_eq!((message.payload.as_str(), message.retain), ("retained", true));
    client.subscribe("r/#", 16, &none());
    client.nothing_came();
    client.subscribe("r/+", 16, &none());
    assert_eq!(client.message().payload, "retained");
    client.send(0xA2, &[0, 1, 0, 0, 3, b'r', b'/', b'+']);
    assert_eq!(client.packet(), Packet { first: 0xB0, body: vec![0, 1, 0, 0] });
    client.subscribe("r/+", 32, &none());
    client.nothing_came();
    // Retain as published.
    client.send(0xA2, &[0, 2, 0, 0, 3, b'r', b'/', b'+', 0, 3, b'r', b'/', b'#']);
    assert_eq!(client.packet().body, [0, 2, 0, 0, 0]);
    client.subscribe("r/a", 8, &none());
    client.subscribe("r/b", 0, &none());
    publisher.publish(1, "r/a", &none(), "flag stays");
    publisher.publish(1, "r/b", &none(), "flag goes");
    assert_eq!([client.message().retain, client.message().retain], [true, false]);
    // No local.
    client.subscribe("own", 4, &none());
    client.subscribe("own/2", 0, &none());
    client.raw(&publish_bytes(0, "own", 0, &none(), "mine"));
    client.raw(&publish_bytes(0, "own/2", 0, &none(), "mine too"));
    assert_eq!(client.message().topic, "own/2");
    publisher.publish(0, "own", &none(), "another's");
    assert_eq!(client.message().payload, "another's");
    // An empty retained message takes the old one away.
    publisher.publish(1, "r/kept", &none(), "");
    let mut late = b.guest("late");
    late.subscribe("r/kept", 0, &none());
    late.nothing_came();
}

#[test]
fn quality_2_is_taken_once_even_over_a_lost_connection() {
    let b = start();
    let mut watcher = b.guest("watcher");
    watcher.subscribe("once", 0, &none());
    let (mut device, _) = b.connect("device", session(600));
    let publish = |flags| publish_bytes(flags, "once", 9, &none(), "x");
    device.raw(&publish(4));
    assert_eq!((device.packet().first, watcher.message().payload.as_str()), (0x50, "x"));
    drop(device);
    let (mut device, present) = b.connect("device", session(600));
    assert!(present);
    device.raw(&publish(4 | 8));
    assert_eq!(device.packet().first, 0x50, "the repeat is acknowledged");
    device.send(0x62, &[0, 9]);
    assert_eq!(device.packet().first, 0x70);
    watcher.nothing_came();
    // Twice in one read, as one that resends too eagerly does.
    device.raw(&[publish_bytes(4, "once", 10, &none(), "y"), publish_bytes(4 | 8, "once", 10, &none(), "y")].concat());
    assert_eq!([device.packet().first, device.packet().first], [0x50, 0x50]);
    assert_eq!(watcher.message().payload, "y");
    watcher.nothing_came();
    // Released: the same identifier is a new message.
    device.raw(&publish(4));
    assert_eq!((device.packet().first, watcher.message().payload.as_str()), (0x50, "x"));
    // To a client: PUBREC moves it on, and after a lost connection PUBREL is sent again instead of the message.
    let (mut taker, _) = b.connect("taker", session(600));
    taker.subscribe("deep", 2, &none());
    b.guest("publisher").raw(&[0x34, 12, 0, 4, b'd', b'e', b'e', b'p', 0, 1, 0, b'a', b'b', b'c']);
    let message = taker.message();
    assert_eq!((message.qos, message.payload.as_str()), (2, "abc"));
    taker.send(0x50, &message.id.to_be_bytes());
    assert_eq!(taker.packet(), Packet { first: 0x62, body: message.id.to_be_bytes().to_vec() });
    drop(taker);
    let (mut taker, _) = b.connect("taker", session(600));
    assert_eq!(taker.packet(), Packet { first: 0x62, body: message.id.to_be_bytes().to_vec() });
    taker.send(0x70, &message.id.to_be_bytes());
    taker.nothing_came();
}

#[test]
fn what_is_too_large_or_too_old_for_a_client_is_left_out_and_the_next_comes() {
    let b = start();
    let (mut small, _) = b.connect("small", session(600).long(MAXIMUM_PACKET, 64));
    small.subscribe("x", 1, &none());
    let mut publisher = b.guest("publisher");
    publisher.publish(0, "x", &none(), &"L".repeat(100));
    publisher.publish(0, "x", &none().long(EXPIRY, 600), "fits");
    let message = small.message();
    assert_eq!(message.payload, "fits");
    assert!(message.expiry.is_some_and(|e| (590..=600).contains(&e)), "{:?}", message.expiry);
    small.acknowledge(message.id);
    drop(small);
    let dropped = b.metric("selvedge_mqtt_listener_dropped_total{listener=\"devices\",reason=\"larger-than-client-takes\"}");
    assert_eq!(dropped, 1.0);
    publisher.publish(0, "x", &none().long(EXPIRY, 1), "too late");
    publisher.publish(0, "x", &none(), "in time");
    // When a retained message of the same age is gone, the first one is too old as well.
    publisher.publish(1, "clock", &none().long(EXPIRY, 1), "tick");
    eventually(LONG, "the second has passed", || {
        let mut reader = b.guest("reader");
        reader.subscribe("clock", 0, &none());
        reader.send(0xC0, &[]);
        reader.packet().first == 0xD0
    });
    let (mut small, _) = b.connect("small", session(600));
    assert_eq!(small.message().payload, "in time");
    eventually(LONG, "the loss is in the books", || b.node.ledger("session/devices/small", "expired") == 1);
}

#[test]
fn silence_beyond_the_keep_alive_ends_a_connection() {
    let b = start();
    let (mut quiet, _) = Wire::connect(b.port, &Connect { id: "quiet".into(), clean: true, keep_alive: 1, ..Connect::default() });
    quiet.closed_with(0x8D);
    // What is no CONNECT, and a second one.
    let mut stranger = Wire::open(b.port);
    stranger.send(0xC0, &[]);
    assert!(stranger.try_packet().is_err());
    let mut twice = b.guest("twice");
    twice.send(0x10, &[0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 1, b'x']);
    twice.closed_with(0x82);
}

fn openssl(folder: &std::path::Path, arguments: &[&str]) {
    let done = Command::new("openssl")
        .current_dir(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed (tests/run does that)");
    assert!(done.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A root, a server's certificate for 127.0.0.1 and a client's for `dev1`, in PEM files.
fn certificates(folder: &std::path::Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    openssl(folder, &[&["req", "-x509", "-subj", "/CN=root", "-keyout", "ca.key", "-out", "ca.pem"], &key[..]].concat());
    for (name, subject, extension) in [("server", "/CN=box", "subjectAltName=IP:127.0.0.1"), ("client", "/CN=dev1", "extendedKeyUsage=clientAuth")] {
        let (keyfile, pem) = (format!("{name}.key"), format!("{name}.pem"));
        let signed = [
            "req",
            "-x509",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-subj",
            subject,
            "-addext",
            extension,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        openssl(folder, &[&signed[..], &["-keyout", &keyfile, "-out", &pem], &key[..]].concat());
    }
}

#[test]
fn accounts_and_client_certificates_decide_who_may_do_what() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    certificates(folder.path());
    // The password is `secret`: 1,000 rounds, to be quick.
    let users = format!(
        "- name: a\n  password: {}\n  acl:\n    - {{topics: [\"s/#\"], write: true}}\n    - {{topics: [\"c/#\"], read: true}}\n\
         - name: dev1\n  acl: [{{topics: [\"#\"], read: true, write: true}}]\n",
        "pbkdf2-sha256$1000$c2FsdHNhbHRzYWx0c2FsdA==$HASH"
    );
    let hash = Command::new("python3")
        .args(["-c", "import hashlib,base64;print(base64.b64encode(hashlib.pbkdf2_hmac('sha256',b'secret',b'saltsaltsaltsalt',1000)).decode())"])
        .output()
        .unwrap();
    let users = users.replace("HASH", String::from_utf8_lossy(&hash.stdout).trim());
    std::fs::File::create(path("users.yaml")).unwrap().write_all(users.as_bytes()).unwrap();

    let plain = start_with(&format!(", users: {{file: {:?}}}", path("users.yaml")));
    let connect = |password: &str| Connect { id: "d".into(), clean: true, user: Some(("a".into(), password.into())), ..Connect::default() };
    assert_eq!(Wire::open(plain.port).hello(&connect("wrong")).body[1], 0x86, "bad user name or password");
    assert_eq!(Wire::open(plain.port).hello(&Connect { id: "d".into(), ..Connect::default() }).body[1], 0x86);
    let (mut a, _) = Wire::connect(plain.port, &connect("secret"));
    assert_eq!([a.publish(0, "s/1", &none(), "x"), a.publish(0, "c/1", &none(), "x")], [0x00, 0x87], "not authorized");
    assert_eq!([a.subscribe("c/+", 1, &none()), a.subscribe("s/#", 1, &none())], [1, 0x87]);

    let tls = format!(
        ", users: {{file: {:?}}}, tls: {{certFile: {:?}, keyFile: {:?}, clientCaFile: {:?}}}",
        path("users.yaml"),
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let safe = start_with(&tls);
    let port = safe.port.to_string();
    let mosquitto_pub = |more: &[&str]| {
        let common = ["-h", "127.0.0.1", "-p", &port, "-V", "5", "-q", "1", "-t", "any/topic", "-m", "x"];
        Command::new("mosquitto_pub").args(common).args(more).stderr(Stdio::null()).status().unwrap().success()
    };
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    assert!(mosquitto_pub(&["--cafile", &ca, "--cert", &cert, "--key", &key]), "the certificate's name is an account");
    assert!(!mosquitto_pub(&["--cafile", &ca]), "no certificate");
    assert!(!mosquitto_pub(&[]), "no TLS");
    assert!(mosquitto_pub(&["--cafile", &ca, "--cert", &cert, "--key", &key]), "the listener is well after that");
}
