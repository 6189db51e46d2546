//! What `conserve` and `survive` change by themselves, and what each kind of sender is told whose message a lane does not take.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use selvedge_proto::runtime::PublishEventRequest;
use selvedge_proto::runtime::dapr_client::DaprClient;
use selvedge_tests::http::{Message, request};
use selvedge_tests::mqtt::Client;
use selvedge_tests::mqtt5::{Connect, Properties, Wire};
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);
/// Quota exceeded.
const QUOTA: u8 = 0x97;

fn place(cloud: u16, devices: u16, coap: u16) -> Place {
    let (upstream, listener) = (yaml::cloud(cloud), yaml::devices(devices));
    Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: small}}
spec: {{protocol: coap, bind: "127.0.0.1:{coap}"}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["alarm/#", "kept/#", "orders/#", "sensors/#"], to: [cloud]}}]
  lanes:
    - {{name: critical, match: ["alarm/#"], durability: fsync, quota: 1MiB, strict: true, onFull: reject}}
    - {{name: kept, match: ["kept/#"], durability: fsync, quota: 1MiB, floor: 512KiB, onFull: reject}}
    - {{name: orders, match: ["orders/#"], durability: fsync, quota: 1MiB, onFull: reject}}
    - {{name: telemetry, match: ["sensors/#"], durability: fsync, quota: 1MiB, onFull: drop-oldest}}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
  budgets: {{diskFree: 1MiB}}
"##
    ))
}

/// `selvedge escape WORDS`: what it prints.
fn escape(place: &Place, words: &[&str]) -> String {
    let output = Command::new(binary()).args(["escape", "--data-dir"]).arg(place.data()).args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn port(place: &Place, name: &str) -> u16 {
    place.flag(name).parse().unwrap()
}

fn refused(place: &Place, lane: &str, reason: &str) -> u64 {
    let start = format!("selvedge_outbox_refused_total{{lane=\"{lane}\",reason=\"{reason}\"}} ");
    let text = request(port(place, "metrics-port"), "GET /metrics", &[], "").body;
    text.lines().find_map(|l| l.strip_prefix(&start)).unwrap_or_else(|| panic!("{start}")).parse().unwrap()
}

fn publish(place: &Place, pubsub: &str, topic: &str) -> Message {
    request(port(place, "dapr-http-port"), &format!("POST /v1.0/publish/{pubsub}/{topic}"), &[("content-type", "application/json")], "1")
}

/// Code and options of the answer to a confirmable POST of one byte to a path of two parts.
fn post(coap: u16, id: u8, path: [&str; 2]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let length = |part: &str, delta: u8| delta << 4 | u8::try_from(part.len()).unwrap();
    let head = [0x40, 0x02, 0x55, id, length(path[0], 11)];
    let datagram = [&head[..], path[0].as_bytes(), &[length(path[1], 0)], path[1].as_bytes(), &[0xff, b'1']].concat();
    socket.send_to(&datagram, ("127.0.0.1", coap)).unwrap();
    let mut answer = [0; 256];
    let (size, _) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(answer[2..4], [0x55, id]);
    answer[1..2].iter().chain(&answer[4..size]).copied().collect()
}

fn mode_is(node: &Node, mode: &str) {
    eventually(LONG, mode, || node.status()["mode"]["mode"] == mode);
}

#[test]
fn to_survive_only_strict_lanes_and_those_with_a_floor_take_anything_and_every_sender_is_told_to_try_again() {
    let broker = Mosquitto::start();
    let (devices, coap) = (free_port(), free_port());
    let place = place(broker.port, devices, coap);
    let node = place.start();
    mode_is(&node, "normal");
    // A subscriber whose messages are stored for it, in a lane that will take nothing: it is told of the mode all the same.
    let mut away = Client::connect(devices, "away", false).unwrap();
    away.subscribe("$selvedge/mode").unwrap();
    let said = escape(&place, &["pin", "survive", "--for", "2h"]);
    let shut = said.lines().find_map(|l| l.strip_prefix("lanes that take nothing: ")).unwrap_or_default().split(", ").collect::<Vec<_>>();
    assert!(shut.contains(&"telemetry") && shut.contains(&"orders") && shut.contains(&"default"), "{said}");
    assert!(!shut.contains(&"critical") && !shut.contains(&"kept") && said.contains("batched lanes are synced once a second"), "{said}");
    let mut modes = Vec::new();
    while modes.last().is_none_or(|m| m != "survive") {
        let (_, payload) = away.receive(LONG).unwrap().expect("the mode is told");
        modes.push(serde_json::from_slice::<Value>(&payload).unwrap()["mode"].as_str().unwrap().to_owned());
    }

    let (mut five, _) = Wire::connect(devices, &Connect { id: "five".into(), clean: true, ..Connect::default() });
    assert_eq!(five.publish(0, "sensors/a", &Properties::new(), "x"), QUOTA);
    assert_eq!(five.publish(0, "alarm/a", &Properties::new(), "x"), 0, "strict");
    assert_eq!(five.publish(0, "kept/a", &Properties::new(), "x"), 0, "with a floor");
    assert_eq!(refused(&place, "telemetry", "shut"), 1);
    let mut three = Client::connect(devices, "three", true).unwrap();
    three.publish("alarm/a", b"x").unwrap();
    let lost = three.publish("sensors/a", b"x").unwrap_err();
    assert_ne!(lost.kind(), std::io::ErrorKind::TimedOut, "no acknowledgement, and the connection ends");

    let answer = post(coap, 1, ["sensors", "c"]);
    // 5.03; the first option is Max-Age (14), of one byte.
    assert_eq!((answer[0], &answer[1..4]), (0xa3, &[0xd1, 1, 60][..]), "{answer:x?}");
    assert_eq!(post(coap, 2, ["alarm", "c"])[0], 0x44);

    for pubsub in ["cloud", "local"] {
        let answer = publish(&place, pubsub, "sensors/app");
        assert_eq!((answer.start.as_str(), answer.header("retry-after")), ("429", Some("60")), "{answer:?}");
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(body["errorCode"] == "ERR_PUBSUB_PUBLISH_MESSAGE" && body["message"].as_str().unwrap().contains("lane telemetry"), "{body}");
        assert_eq!(publish(&place, pubsub, "alarm/app").start, "204");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", port(&place, "dapr-grpc-port"))).unwrap();
        let mut client = DaprClient::new(channel.connect().await.unwrap());
        let event = |topic: &str| PublishEventRequest { pubsub_name: "local".into(), topic: topic.into(), ..PublishEventRequest::default() };
        assert_eq!(client.publish_event(event("sensors/app")).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
        client.publish_event(event("alarm/app")).await.unwrap();
    });
    assert_eq!((refused(&place, "telemetry", "shut"), refused(&place, "critical", "shut")), (6, 0));

    // What is for those who are there now needs no room in the store.
    let mut live = Client::connect(devices, "live", true).unwrap();
    live.subscribe("lamp/#").unwrap();
    assert_eq!(five.publish(0, "lamp/a", &Properties::new(), "on") & 0x80, 0);
    assert_eq!(live.receive(LONG).unwrap().unwrap().0, "lamp/a");

    node.kill();
    let node = place.start();
    mode_is(&node, "survive");
    eventually(LONG, "they take nothing after a kill either", || publish(&place, "local", "sensors/app").start == "429");
    let left = escape(&place, &["leave"]);
    assert!(!left.contains("take nothing") && left.ends_with("the mode follows the links and the disk\n"), "{left}");
    mode_is(&node, "normal");
    assert_eq!(publish(&place, "local", "sensors/app").start, "204");
    eventually(LONG, "all has left", || node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn to_save_lanes_without_protection_stop_growing_by_their_own_policy_and_batches_are_longer() {
    let broker = Mosquitto::start();
    let (devices, coap) = (free_port(), free_port());
    let place = place(broker.port, devices, coap);
    let node = place.start();
    mode_is(&node, "normal");
    escape(&place, &["enter"]);
    mode_is(&node, "island");
    let said = escape(&place, &["pin", "conserve", "--for", "2h"]);
    assert!(said.contains("lanes that grow no more: ") && said.contains("telemetry") && !said.contains("take nothing"), "{said}");
    assert_eq!(node.status()["mode"]["batchesLonger"], true);
    let (mut device, _) = Wire::connect(devices, &Connect { id: "five".into(), clean: true, ..Connect::default() });
    let payload = "x".repeat(8_000);
    let mut fill = |topic: &str, most: usize| (0..most).take_while(|_| device.publish(0, topic, &Properties::new(), &payload) == 0).count();
    // A quarter of 1 MiB, or what it held if that was more.
    let orders = fill("orders/a", 100);
    assert!((10..60).contains(&orders), "{orders} of 8 KB");
    assert_eq!((refused(&place, "orders", "held"), refused(&place, "orders", "full")), (1, 0));
    assert_eq!(fill("alarm/a", 80), 80, "a strict lane has its quota");
    assert_eq!(fill("kept/a", 80), 80, "and so has one with a floor");
    assert_eq!(fill("sensors/a", 80), 80, "the oldest make room");
    assert!(node.ledger("upstream/cloud", "evicted") > 0);
    escape(&place, &["leave"]);
    mode_is(&node, "normal");
    assert_eq!(fill("orders/a", 20), 20);
    eventually(LONG, "all has left", || node.ledger("upstream/cloud", "queued") == 0);
    eventually(LONG, "nothing is changed any more", || {
        let mode = node.status()["mode"].clone();
        mode["batchesLonger"] == false && mode["heldLanes"] == serde_json::json!([])
    });
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_lane_that_fills_in_an_outage_does_what_it_declares_to_its_quota_in_every_mode_that_the_node_finds_itself() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let (devices, coap) = (free_port(), free_port());
    let place = place(proxy.port, devices, coap);
    let node = place.start();
    mode_is(&node, "normal");
    proxy.set(Fault::Refuse);
    let (mut device, _) = Wire::connect(devices, &Connect { id: "five".into(), clean: true, ..Connect::default() });
    let payload = "x".repeat(8_000);
    let mut fill = |most: usize| (0..most).take_while(|_| device.publish(0, "sensors/a", &Properties::new(), &payload) == 0).count();
    assert_eq!(fill(200), 200, "the oldest make room");
    mode_is(&node, "survive");
    let mode = node.status()["mode"].clone();
    assert!(mode["batchesLonger"] == false && mode["heldLanes"] == serde_json::json!([]) && mode["shutLanes"] == serde_json::json!([]), "{mode}");
    let before = node.ledger("upstream/cloud", "evicted");
    assert_eq!(fill(100), 100, "they still do");
    assert!(before > 0 && node.ledger("upstream/cloud", "evicted") > before);
    assert!(node.ledger("upstream/cloud", "queued") > 60, "most of the quota is in use");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn devices_whose_messages_a_full_lane_drops_are_answered_and_go_on_with_other_lanes() {
    let devices = free_port();
    let (upstream, listener) = (yaml::cloud(free_port()), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["#"], to: [cloud]}}]
  lanes: [{{name: first, match: ["first/#"], durability: fsync, quota: 1MiB, onFull: drop-newest}}]
"##
    ));
    let node = place.start();
    let payload = [b'x'; 1_000];
    let mut device = Client::connect(devices, "d", true).unwrap();
    for n in 0..1_500 {
        device.publish("first/a", &payload).unwrap_or_else(|e| panic!("message {n} is answered: {e}"));
    }
    device.publish("other/a", b"stored").unwrap();
    let (mut wire, _) = Wire::connect(devices, &Connect { id: "five".into(), clean: true, ..Connect::default() });
    assert_eq!(wire.publish(0, "first/a", &Properties::new(), "x"), 0);
    let rows = node.status()["ledger"].as_array().unwrap().clone();
    let of = |lane: &str, column: &str| {
        let row = rows.iter().find(|r| r["lane"] == lane && r["destination"] == "upstream/cloud").unwrap();
        row[column].as_u64().unwrap()
    };
    assert_eq!((of("first", "accepted"), of("default", "queued")), (1_501, 1));
    assert!(of("first", "evicted") > 100 && of("first", "evicted") + of("first", "queued") == 1_501);
    node.kill();
}
