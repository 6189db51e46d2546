//! `durability: passthrough`: a sender is answered when the broker has acknowledged, refused while it cannot, and nothing is stored.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use selvedge_proto::runtime::PublishEventRequest;
use selvedge_proto::runtime::dapr_client::DaprClient;
use selvedge_tests::http::{Message, request};
use selvedge_tests::ledger::{self, Publisher};
use selvedge_tests::mqtt::Client;
use selvedge_tests::mqtt5::{Connect, Properties, Wire, publish_bytes};
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);
/// A refusal that waits for nothing, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// Quota exceeded.
const QUOTA: u8 = 0x97;
/// `answerWithin` of the lane.
const WITHIN: Duration = Duration::from_secs(2);

struct Way {
    broker: Mosquitto,
    proxy: Proxy,
    place: Place,
    devices: u16,
    coap: u16,
}

impl Way {
    fn new() -> Self {
        Self::with("")
    }

    /// With more lines in the broker's configuration.
    fn with(more: &str) -> Self {
        let broker = Mosquitto::with(more);
        let proxy = Proxy::to(broker.port);
        let (devices, coap) = (free_port(), free_port());
        let (upstream, listener) = (yaml::cloud(proxy.port), yaml::devices(devices));
        let place = Place::new(&format!(
            r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: small}}
spec: {{protocol: coap, bind: "127.0.0.1:{coap}"}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["now/#", "later/#"], to: [cloud]}}]
  lanes:
    - {{name: direct, match: ["now/#"], durability: passthrough, answerWithin: 2s}}
"##
        ));
        Self { broker, proxy, place, devices, coap }
    }

    fn start(&self) -> Node {
        let node = self.place.start();
        eventually(LONG, "the link stands", || node.link("cloud") == "up");
        node
    }

    fn port(&self, name: &str) -> u16 {
        self.place.flag(name).parse().unwrap()
    }

    fn sink(&self) -> Sink {
        let mut client = Client::connect(self.broker.port, "sink", false).unwrap();
        client.subscribe("#").unwrap();
        Sink { client, arrived: BTreeMap::new() }
    }

    fn http(&self, pubsub: &str, payload: &str) -> Message {
        let start = format!("POST /v1.0/publish/{pubsub}/now/app?metadata.rawPayload=true");
        request(self.port("dapr-http-port"), &start, &[("content-type", "text/plain")], payload)
    }

    fn grpc(&self, payload: &str) -> Result<(), tonic::Code> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port("dapr-grpc-port"))).unwrap();
            let mut client = DaprClient::new(channel.connect().await.unwrap());
            let event = PublishEventRequest {
                pubsub_name: "local".into(),
                topic: "now/app".into(),
                data: payload.as_bytes().to_vec().into(),
                data_content_type: "text/plain".into(),
                metadata: [("rawPayload".to_owned(), "true".to_owned())].into(),
            };
            client.publish_event(event).await.map(|_| ()).map_err(|s| s.code())
        })
    }

    /// Code and options of the answer to a confirmable POST.
    fn post(&self, id: u8, payload: &str) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let datagram = [&[0x40, 0x02, 0x55, id, 0xb3][..], b"now", &[0x01], b"c", &[0xff], payload.as_bytes()].concat();
        socket.send_to(&datagram, ("127.0.0.1", self.coap)).unwrap();
        let mut answer = [0; 256];
        loop {
            let (size, _) = socket.recv_from(&mut answer).unwrap();
            // An empty acknowledgement says that the answer comes by itself.
            if answer[1] != 0 {
                return answer[1..2].iter().chain(&answer[4..size]).copied().collect();
            }
            assert_eq!(answer[2..4], [0x55, id]);
        }
    }

    fn five(&self, id: &str) -> Wire<std::net::TcpStream> {
        Wire::connect(self.devices, &Connect { id: id.into(), clean: true, ..Connect::default() }).0
    }

    fn refused(&self, reason: &str) -> u64 {
        refused(self.port("metrics-port"), reason)
    }
}

/// Senders of the lane `direct` that were refused for this reason since the start.
fn refused(metrics: u16, reason: &str) -> u64 {
    let start = format!("selvedge_outbox_refused_total{{lane=\"direct\",reason=\"{reason}\"}} ");
    let text = request(metrics, "GET /metrics", &[], "").body;
    text.lines().find_map(|l| l.strip_prefix(&start)).unwrap_or_else(|| panic!("{start}")).parse().unwrap()
}

/// Waits until so many records of the lane `direct` are.
fn on_their_way(node: &Node, count: u64) {
    eventually(LONG, "they are on their way", || {
        let status = node.status();
        status["lanes"].as_array().unwrap().iter().any(|l| l["name"] == "direct" && l["passing"] == count)
    });
}

/// What came to the broker, and how often.
struct Sink {
    client: Client,
    arrived: BTreeMap<String, usize>,
}

impl Sink {
    fn wait_for(&mut self, payload: &str) {
        while !self.arrived.contains_key(payload) {
            let (_, got) = self.client.receive(LONG).unwrap().unwrap_or_else(|| panic!("{payload} does not arrive: {:?}", self.arrived));
            *self.arrived.entry(String::from_utf8(got).unwrap()).or_default() += 1;
        }
    }
}

/// Publishes with quality 2 and asserts that PUBREC answers; gives its reason code.
fn quality_2(wire: &mut Wire<std::net::TcpStream>, id: u16, payload: &str) -> u8 {
    wire.raw(&publish_bytes(4, "now/two", id, &Properties::new(), payload));
    let answer = wire.packet();
    assert_eq!((answer.first, &answer.body[..2]), (0x50, &id.to_be_bytes()[..]), "{answer:?}");
    answer.body.get(2).copied().unwrap_or(0)
}

fn files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else if entry.file_type().unwrap().is_file() {
            found.push(entry.path());
        }
    }
}

fn no_file_has(way: &Way, text: &str) {
    let mut all = Vec::new();
    files(&way.place.data(), &mut all);
    assert!(all.iter().any(|f| f.ends_with("manifest")), "{all:?}");
    for file in all {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(text.len()).any(|w| w == text.as_bytes()), "{} has it", file.display());
    }
}

#[test]
fn on_a_healthy_link_every_sender_is_answered_when_the_broker_has_it_and_no_file_ever_does() {
    let way = Way::new();
    let mut sink = way.sink();
    let node = way.start();
    // A device with a session that is away, and one that is there.
    let mut away = Client::connect(way.devices, "away", false).unwrap();
    away.subscribe("later/#").unwrap();
    let mut live = Client::connect(way.devices, "live", true).unwrap();
    live.subscribe("now/#").unwrap();
    let answer = way.http("local", "passed-http");
    assert_eq!((answer.start.as_str(), answer.header("selvedge-queued")), ("204", Some("false")), "{answer:?}");
    assert!(answer.header("selvedge-record-id").unwrap().contains("/direct/"), "{answer:?}");
    assert_eq!(way.http("cloud", "passed-upstream").start, "204");
    assert_eq!(way.grpc("passed-grpc"), Ok(()));
    let mut three = Client::connect(way.devices, "three", true).unwrap();
    three.publish("now/three", b"passed-three").unwrap();
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "passed-five"), 0);
    assert_eq!(quality_2(&mut five, 9, "passed-two"), 0);
    // The same id again, as after a lost answer: it is known.
    assert_eq!(quality_2(&mut five, 9, "passed-two"), 0);
    assert_eq!(way.post(1, "passed-coap")[0], 0x44);
    five.raw(&publish_bytes(0, "now/none", 0, &Properties::new(), "passed-none"));
    let all = ["http", "upstream", "grpc", "three", "five", "two", "coap", "none"];
    for name in all {
        sink.wait_for(&format!("passed-{name}"));
    }
    assert!(sink.arrived.values().all(|n| *n == 1), "{:?}", sink.arrived);
    eventually(LONG, "the books count them", || node.ledger("upstream/cloud", "accepted") == all.len() as u64);
    assert_eq!((node.ledger("upstream/cloud", "delivered"), node.ledger("upstream/cloud", "queued")), (all.len() as u64, 0));
    for _ in 0..all.len() - 1 {
        let (_, payload) = live.receive(LONG).unwrap().expect("who is there gets it at once");
        assert!(payload.starts_with(b"passed-"));
    }
    // Many on their way at once, in order for each topic.
    let many: Vec<(&str, Vec<u8>)> = (0..500).map(|n| ("now/many", format!("many-{n:03}").into_bytes())).collect();
    let ids = three.send(&many).unwrap();
    let answered: Vec<u16> = (0..many.len()).map(|_| three.acknowledged(LONG).unwrap().unwrap()).collect();
    assert_eq!(answered, ids);
    for n in 0..many.len() {
        let (topic, payload) = sink.client.receive(LONG).unwrap().unwrap();
        assert_eq!((topic.as_str(), String::from_utf8(payload).unwrap()), ("now/many", format!("many-{n:03}")));
    }
    let bulk: Vec<Value> =
        (0..20).map(|n| serde_json::json!({"entryId": n.to_string(), "event": format!("bulk-{n}"), "contentType": "text/plain"})).collect();
    let start = "POST /v1.0/publish/bulk/cloud/now/bulk?metadata.rawPayload=true";
    let json = [("content-type", "application/json")];
    let answer = request(way.port("dapr-http-port"), start, &json, &Value::from(bulk).to_string());
    assert_eq!(answer.start, "204", "{answer:?}");
    (0..20).for_each(|n| sink.wait_for(&format!("bulk-{n}")));
    no_file_has(&way, "passed-");
    assert_eq!(node.terminate(), Some(0));
    no_file_has(&way, "passed-");
    let node = way.start();
    assert_eq!(node.ledger("upstream/cloud", "delivered"), 528, "the books go on");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn while_the_broker_is_away_every_sender_is_refused_at_once_and_nothing_of_it_comes_later() {
    let way = Way::new();
    let mut sink = way.sink();
    let node = way.start();
    way.proxy.set(Fault::Refuse);
    eventually(LONG, "the link is down", || node.link("cloud") == "down");
    let begun = Instant::now();
    for pubsub in ["cloud", "local"] {
        let answer = way.http(pubsub, "refused-http");
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(answer.start == "500" && body["errorCode"] == "ERR_PUBSUB_PUBLISH_MESSAGE", "{answer:?}");
        assert!(body["message"].as_str().unwrap().contains("lane direct stores nothing, and the link of an upstream is not up"), "{body}");
    }
    assert_eq!(way.grpc("refused-grpc"), Err(tonic::Code::Internal));
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "refused-five"), QUOTA);
    assert_eq!(quality_2(&mut five, 9, "refused-two"), QUOTA);
    let answer = way.post(1, "refused-coap");
    // 5.03; the first option is Max-Age (14), of one byte.
    assert_eq!((answer[0], &answer[1..4]), (0xa3, &[0xd1, 1, 5][..]), "{answer:x?}");
    let mut three = Client::connect(way.devices, "three", true).unwrap();
    let lost = three.publish("now/three", b"refused-three").unwrap_err();
    assert_ne!(lost.kind(), std::io::ErrorKind::TimedOut, "no acknowledgement, and the connection ends");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let entries = r#"[{"entryId": "1", "event": "refused-bulk", "contentType": "text/plain"}, {"entryId": "2", "event": "refused-bulk", "contentType": "text/plain"}]"#;
    let answer = request(way.port("dapr-http-port"), "POST /v1.0/publish/bulk/local/now/bulk", &[("content-type", "application/json")], entries);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.start.as_str(), body["failedEntries"].as_array().unwrap().len()), ("500", 2), "{answer:?}");
    assert_eq!((way.refused("link"), way.refused("withdrawn"), way.refused("late")), (9, 0, 0));
    assert_eq!((node.ledger("upstream/cloud", "accepted"), node.ledger("upstream/cloud", "evicted")), (0, 0));
    // What the box stores is stored as ever.
    five = way.five("five");
    assert_eq!(five.publish(0, "later/five", &Properties::new(), "stored"), 0);

    way.proxy.set(Fault::None);
    sink.wait_for("stored");
    eventually(LONG, "it is passed on again", || five.publish(0, "now/five", &Properties::new(), "passed") == 0);
    // The id that was refused is not known: the second try is a first one.
    assert_eq!(quality_2(&mut five, 9, "passed-two"), 0);
    sink.wait_for("passed-two");
    assert_eq!(sink.arrived.keys().map(String::as_str).collect::<Vec<_>>(), ["passed", "passed-two", "stored"]);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn who_waits_when_the_link_breaks_or_gives_no_answer_is_refused_and_what_was_acknowledged_is_there() {
    let way = Way::new();
    let mut sink = way.sink();
    let node = way.start();
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "first"), 0);
    // A black hole: it takes everything and gives nothing.
    way.proxy.set(Fault::Swallow);
    let begun = Instant::now();
    for id in 1..=20 {
        five.raw(&publish_bytes(2, "now/five", id, &Properties::new(), &format!("hole-{id}")));
    }
    let answer = way.http("cloud", "hole-http");
    assert!(answer.start == "500" && answer.body.contains("has not answered within 2 s"), "{answer:?}");
    for id in 1..=20u16 {
        let answer = five.packet();
        assert_eq!((answer.first, &answer.body[..3]), (0x40, &[0, id as u8, QUOTA][..]), "{answer:?}");
    }
    let took = begun.elapsed();
    assert!(took >= WITHIN && took < WITHIN + AT_ONCE, "all of them by one time: {took:?}");
    assert_eq!((way.refused("late"), node.link("cloud").as_str()), (21, "degraded"), "the link is not given up by then");
    // It breaks with records on their way.
    let begun = Instant::now();
    for id in 1..=20 {
        five.raw(&publish_bytes(2, "now/five", id, &Properties::new(), &format!("broken-{id}")));
    }
    on_their_way(&node, 20);
    way.proxy.set(Fault::Reset);
    for id in 1..=20u16 {
        let answer = five.packet();
        assert_eq!((answer.first, &answer.body[..3]), (0x40, &[0, id as u8, QUOTA][..]), "{answer:?}");
    }
    assert!(begun.elapsed() < WITHIN, "{:?}", begun.elapsed());
    assert_eq!(way.refused("withdrawn"), 20);
    way.proxy.set(Fault::None);
    eventually(LONG, "it is passed on again", || five.publish(0, "now/five", &Properties::new(), "last") == 0);
    sink.wait_for("last");
    assert_eq!(sink.arrived.keys().map(String::as_str).collect::<Vec<_>>(), ["first", "last"]);
    eventually(LONG, "the books count what was acknowledged", || node.ledger("upstream/cloud", "delivered") == 2);
    assert_eq!(node.ledger("upstream/cloud", "accepted"), 2);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_kill_with_records_on_their_way_leaves_nothing_behind() {
    let way = Way::new();
    let mut sink = way.sink();
    let node = way.start();
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "first"), 0);
    way.proxy.set(Fault::Swallow);
    for id in 1..=20 {
        five.raw(&publish_bytes(2, "now/five", id, &Properties::new(), &format!("killed-{id}")));
    }
    on_their_way(&node, 20);
    node.kill();
    no_file_has(&way, "killed-");
    way.proxy.set(Fault::None);
    let node = way.start();
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "second"), 0);
    sink.wait_for("second");
    assert_eq!(sink.arrived.keys().map(String::as_str).collect::<Vec<_>>(), ["first", "second"]);
    // The count of the first may be forgotten, on both sides.
    assert!(node.ledger("upstream/cloud", "accepted") <= 2 && node.ledger("upstream/cloud", "queued") == 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn what_the_broker_refuses_for_good_is_told_to_its_sender_and_not_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let acl = folder.path().join("acl");
    std::fs::write(&acl, "topic read #\ntopic write now/ok\n").unwrap();
    let way = Way::with(&format!("acl_file {}\n", acl.display()));
    let node = way.start();
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/ok", &Properties::new(), "x"), 0);
    // This broker closes the connection as well.
    let stands = || eventually(LONG, "the link stands", || node.link("cloud") == "up");
    let mut denied = |answer: u8| {
        stands();
        eventually(LONG, "it is refused by the broker", || {
            let code = five.publish(0, "now/denied", &Properties::new(), "x");
            assert!(code == answer || code == QUOTA, "{code:#x}");
            code == answer
        });
    };
    denied(0x83);
    eventually(LONG, "an application is told why", || {
        let answer = way.http("cloud", "x");
        assert_eq!(answer.start, "500");
        answer.body.contains("an upstream refuses it: ")
    });
    let mut id = 0;
    eventually(LONG, "and so is a small device", || {
        id += 1;
        way.post(id, "x")[0] == 0xa2
    });
    assert_eq!((way.refused("peer"), node.ledger("upstream/cloud", "accepted"), node.ledger("quarantine", "accepted")), (3, 1, 0));
    eventually(LONG, "traffic goes on", || five.publish(0, "now/ok", &Properties::new(), "y") == 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn subscribers_on_the_box_have_their_own_copy_which_is_stored_for_those_who_are_away() {
    let way = Way::new();
    let node = way.start();
    let mut away = Client::connect(way.devices, "away", false).unwrap();
    away.subscribe("now/#").unwrap();
    drop(away);
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "passed"), 0, "who is away holds nothing up");
    way.proxy.set(Fault::Refuse);
    eventually(LONG, "the link is down", || node.link("cloud") == "down");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "refused"), QUOTA);
    node.kill();
    way.proxy.set(Fault::None);
    let node = way.start();
    let mut away = Client::connect(way.devices, "away", false).unwrap();
    assert_eq!(away.receive(LONG).unwrap(), Some(("now/five".to_owned(), b"passed".to_vec())));
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "again"), 0);
    assert_eq!(away.receive(LONG).unwrap(), Some(("now/five".to_owned(), b"again".to_vec())), "what was refused reached nobody");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_route_to_two_upstreams_is_answered_when_both_have_it_and_refused_while_one_is_away() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let (proxy, devices) = (Proxy::to(one.port), free_port());
    let (upstreams, listener) = (yaml::upstream("one", proxy.port) + &yaml::upstream("two", two.port), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstreams}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["now/#"], to: [one, two]}}]
  lanes: [{{name: direct, match: ["now/#"], durability: passthrough}}]
"##
    ));
    let node = place.start();
    let sink = |port| {
        let mut client = Client::connect(port, "sink", true).unwrap();
        client.subscribe("now/#").unwrap();
        Sink { client, arrived: BTreeMap::new() }
    };
    let mut sinks = [sink(one.port), sink(two.port)];
    for name in ["one", "two"] {
        eventually(LONG, "the links stand", || node.link(name) == "up");
    }
    let mut five = Wire::connect(devices, &Connect { id: "five".into(), clean: true, ..Connect::default() }).0;
    assert_eq!(five.publish(0, "now/a", &Properties::new(), "first"), 0);
    sinks.iter_mut().for_each(|s| s.wait_for("first"));
    proxy.set(Fault::Refuse);
    eventually(LONG, "one is away", || node.link("one") == "down");
    assert_eq!(five.publish(0, "now/a", &Properties::new(), "refused"), QUOTA);
    proxy.set(Fault::None);
    eventually(LONG, "it is passed on again", || five.publish(0, "now/a", &Properties::new(), "last") == 0);
    sinks.iter_mut().for_each(|s| s.wait_for("last"));
    for sink in &sinks {
        assert_eq!(sink.arrived.keys().map(String::as_str).collect::<Vec<_>>(), ["first", "last"]);
    }
    for destination in ["upstream/one", "upstream/two"] {
        assert_eq!((node.ledger(destination, "accepted"), node.ledger(destination, "delivered")), (2, 2));
    }
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_secondary_takes_such_a_lane_over_and_what_was_acknowledged_is_at_one_of_the_two() {
    let (first, second) = (Mosquitto::start(), Mosquitto::start());
    let (proxy, devices) = (Proxy::to(first.port), free_port());
    let (upstreams, listener) = (yaml::cloud(proxy.port) + &yaml::upstream("standby", second.port), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstreams}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["now/#"], to: [cloud], prefix: "site/"}}]
  lanes: [{{name: direct, match: ["now/#"], durability: passthrough, answerWithin: 1s}}]
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud}}, {{component: standby, role: secondary, failbackAfter: 1s}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
"##
    ));
    let node = place.start();
    let sink = |port| {
        let mut client = Client::connect(port, "sink", true).unwrap();
        client.subscribe("site/now/#").unwrap();
        client
    };
    let mut sinks = [sink(first.port), sink(second.port)];
    let mut five = Wire::connect(devices, &Connect { id: "five".into(), clean: true, ..Connect::default() }).0;
    let (mut n, mut acknowledged) = (0, Vec::new());
    let mut publish = |count: usize| {
        let mut yes = 0;
        for _ in 0..count {
            n += 1;
            if five.publish(0, "now/a", &Properties::new(), &n.to_string()) == 0 {
                acknowledged.push(n.to_string());
                yes += 1;
            }
        }
        yes
    };
    for round in 0..2 {
        eventually(LONG, "the primary has it", || {
            let status = node.status();
            let lent = status["upstreams"].as_array().unwrap().iter().any(|u| u["lent"] == true || u["standsIn"] == true);
            !lent && status["mode"]["mode"] == "normal" && publish(1) == 1
        });
        assert_eq!(publish(50), 50);
        proxy.set(if round == 0 { Fault::Refuse } else { Fault::Reset });
        eventually(LONG, "it goes away", || publish(1) == 0);
        eventually(LONG, "the secondary takes it over", || publish(1) == 1);
        assert_eq!((publish(50), node.status()["mode"]["mode"].as_str()), (50, Some("failover")));
        proxy.set(Fault::None);
    }
    eventually(LONG, "and hands it back", || {
        publish(5);
        node.status()["mode"]["mode"] == "normal"
    });
    let mut arrived = std::collections::BTreeSet::new();
    for (at, sink) in sinks.iter_mut().enumerate() {
        let mut last = 0;
        while let Some((_, payload)) = sink.receive(Duration::from_millis(500)).unwrap() {
            let text = String::from_utf8(payload).unwrap();
            let number: usize = text.parse().unwrap();
            assert!(std::mem::replace(&mut last, number) < number, "in order at {at}, none twice");
            assert!(arrived.insert(text), "at one of the two");
        }
    }
    assert!(acknowledged.iter().all(|n| arrived.contains(n)), "nothing that was acknowledged is missing");
    assert_eq!(node.ledger("upstream/cloud", "accepted"), acknowledged.len() as u64);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn events_of_transactions_and_what_routes_on_the_box_carry_wait_until_the_upstream_has_them() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    proxy.set(Fault::Refuse);
    let files = tempfile::tempdir().unwrap();
    let (devices, db) = (free_port(), files.path().join("s.db"));
    let (upstream, listener) = (yaml::cloud(proxy.port), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: store}}
spec:
  type: state.sqlite
  version: v1
  metadata: [{{name: outboxPublishPubsub, value: cloud}}, {{name: outboxPublishTopic, value: now/told}}, {{name: connectionString, value: "{}"}}]
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes:
    - {{from: local, topics: ["raw/#"], to: [local], stripPrefix: "raw/", prefix: "now/"}}
    - {{from: local, topics: ["now/#"], to: [cloud]}}
  lanes: [{{name: direct, match: ["now/#"], durability: passthrough}}]
"##,
        db.display()
    ));
    let mut sink = Client::connect(broker.port, "sink", false).unwrap();
    sink.subscribe("#").unwrap();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    let node = place.start();
    for key in 0..3 {
        let body = format!(r#"{{"operations":[{{"operation":"upsert","request":{{"key":"k{key}","value":"told-{key}"}}}}]}}"#);
        assert_eq!(request(http, "POST /v1.0/state/store/transaction", &[], &body).start, "204");
    }
    let mut device = Client::connect(devices, "d", true).unwrap();
    for n in 0..3 {
        device.publish("raw/a", format!("raw-{n}").as_bytes()).unwrap();
    }
    node.kill();
    let node = place.start();
    assert_eq!(node.ledger("upstream/cloud", "accepted"), 0);
    proxy.set(Fault::None);
    let mut arrived: Vec<String> = Vec::new();
    let has = |arrived: &[String], text: &str| arrived.iter().any(|a| a.contains(text));
    let wanted = ["told-0", "told-1", "told-2", "raw-0", "raw-1", "raw-2"];
    while !wanted.iter().all(|w| has(&arrived, w)) {
        let (topic, payload) = sink.receive(LONG).unwrap().unwrap_or_else(|| panic!("{arrived:?}"));
        assert!(topic == "now/told" || topic == "now/a", "{topic}");
        arrived.push(String::from_utf8(payload).unwrap());
    }
    let order: Vec<usize> = wanted.iter().map(|w| arrived.iter().position(|a| a.contains(w)).unwrap()).collect();
    assert!(order[..3].is_sorted() && order[3..].is_sorted(), "each topic in order: {arrived:?}");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn whatever_fails_meanwhile_nothing_that_was_acknowledged_is_missing_at_the_broker() {
    let broker = Mosquitto::start();
    let (proxy, devices) = (Proxy::to(broker.port), free_port());
    let (upstream, listener) = (yaml::cloud(proxy.port), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud]}}]
  lanes: [{{name: direct, match: ["sensors/#"], durability: passthrough, answerWithin: 1s}}]
"##
    ));
    let metrics: u16 = place.flag("metrics-port").parse().unwrap();
    let sink = ledger::Sink::start(broker.port, "sensors/#", "");
    let mut node = place.start();
    let publishers = ["a", "b"].map(|name| Publisher::start(devices, name, 300));
    let more = |what: &str| {
        let before: Vec<usize> = publishers.iter().map(Publisher::count).collect();
        eventually(LONG, what, || publishers.iter().zip(&before).all(|(p, n)| p.count() > n + 50));
    };
    more("on a healthy link");
    for (round, fault) in [Fault::Reset, Fault::Swallow, Fault::Refuse, Fault::Stall, Fault::Finish].into_iter().enumerate() {
        proxy.set(fault);
        let reason = if [Fault::Swallow, Fault::Stall].contains(&fault) { "late" } else { "link" };
        let before = refused(metrics, reason);
        eventually(LONG, "senders are refused", || refused(metrics, reason) > before);
        assert_eq!(node.ledger("upstream/cloud", "queued"), 0);
        if round % 2 == 1 {
            node.kill();
            node = place.start();
        }
        proxy.set(Fault::None);
        more("after a fault");
    }
    node.kill();
    let node = place.start();
    more("after a kill");
    let mut acknowledged = ledger::Book::default();
    for publisher in publishers {
        publisher.finish().into_iter().for_each(|(topic, n)| {
            acknowledged.insert(&topic, n);
        });
    }
    sink.check(&acknowledged, LONG);
    assert_eq!(node.ledger("upstream/cloud", "queued"), 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_quality_2_publish_that_a_kill_left_unanswered_is_taken_when_it_is_repeated() {
    let way = Way::new();
    let mut sink = way.sink();
    let node = way.start();
    let session = || Connect { id: "kept".into(), clean: false, properties: Properties::new().long(0x11, 3_600), ..Connect::default() };
    let (mut five, present) = Wire::connect(way.devices, &session());
    assert!(!present);
    assert_eq!(quality_2(&mut five, 4, "two-answered"), 0);
    way.proxy.set(Fault::Swallow);
    five.raw(&publish_bytes(4, "now/two", 5, &Properties::new(), "two-unanswered"));
    on_their_way(&node, 1);
    node.kill();
    way.proxy.set(Fault::None);
    let node = way.start();
    let (mut five, present) = Wire::connect(way.devices, &session());
    assert!(present);
    // Both again, as a client does that has had no PUBREC and no PUBCOMP.
    for (id, payload) in [(4, "two-answered"), (5, "two-unanswered")] {
        five.raw(&publish_bytes(4 | 8, "now/two", id, &Properties::new(), payload));
        let answer = five.packet();
        assert_eq!((answer.first, answer.body.get(2).copied().unwrap_or(0)), (0x50, 0), "{answer:?}");
    }
    sink.wait_for("two-unanswered");
    assert_eq!(sink.arrived.values().copied().collect::<Vec<_>>(), [1, 1], "{:?}", sink.arrived);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn check_and_queue_say_that_nothing_is_kept_and_settings_that_make_no_sense_are_refused() {
    let way = Way::new();
    let command = |words: &[&str]| {
        let output = std::process::Command::new(binary()).args(words).output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (resources, data) = (way.place.resources(), way.place.data());
    let (well, said) = command(&["check", resources.to_str().unwrap()]);
    assert!(well && said.contains("lane direct: nothing is kept; senders are refused while the link is down"), "{said}");
    let node = way.start();
    let mut five = way.five("five");
    assert_eq!(five.publish(0, "now/five", &Properties::new(), "x"), 0);
    let (_, said) = command(&["queue", "--data-dir", data.to_str().unwrap()]);
    assert!(said.contains("lane direct: stores nothing (passthrough); 0 records are on their way"), "{said}");
    let metadata = request(way.port("dapr-http-port"), "GET /v1.0/metadata", &[], "").body;
    assert!(metadata.contains("passthrough"), "{metadata}");
    assert_eq!(node.terminate(), Some(0));
    let yaml = std::fs::read_to_string(resources.join("node.yaml")).unwrap();
    way.place.rewrite(&yaml.replace("answerWithin: 2s", "ttl: 1h, onFull: drop-oldest"));
    let (well, said) = command(&["check", resources.to_str().unwrap()]);
    assert!(!well && said.contains("spec.lanes[0].ttl found \"1h\"; not accepted with durability: passthrough"), "{said}");
    assert!(said.contains("spec.lanes[0].onFull found \"drop-oldest\"; not accepted with durability: passthrough"), "{said}");
}
