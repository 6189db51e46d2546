//! Routes with conditions, and routes that stay on the box: what changes by itself when the box becomes an island.

use std::process::Command;
use std::time::Duration;

use selvedge_tests::http::request;
use selvedge_tests::mqtt::Client;
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

fn place(cloud: u16, devices: u16) -> Place {
    let upstream = yaml::cloud(cloud);
    let listener = yaml::devices(devices);
    Place::new(&format!(
        r##"{upstream}apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: quick}}
spec:
  type: bindings.cron
  version: v1
  metadata: [{{name: schedule, value: "@every 50ms"}}, {{name: publishTo, value: local}}, {{name: publishTopic, value: beat/quick}}, {{name: publishWhen, value: "normal, recover"}}]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: calm}}
spec:
  type: bindings.cron
  version: v1
  metadata: [{{name: schedule, value: "@every 300ms"}}, {{name: publishTo, value: local}}, {{name: publishTopic, value: beat/calm}}, {{name: publishWhen, value: island}}]
---
{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes:
    - {{from: local, topics: ["sensors/#"], to: [cloud]}}
    - {{from: local, topics: ["log/#"], to: [cloud], when: island}}
    - {{from: local, topics: ["sensors/#"], to: [local], stripPrefix: "sensors/", prefix: "alarm/", when: 'mode == "island" && payload.temp > 80'}}
    - {{from: local, topics: ["alarm/#"], to: [local, cloud], prefix: "handled/"}}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud, stall: 2s}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
  budgets: {{diskFree: 1MiB}}
"##
    ))
}

fn mode_is(node: &Node, mode: &str) {
    eventually(LONG, mode, || node.status()["mode"]["mode"] == mode);
}

/// The next message of a topic that begins so; others are passed over.
fn next(client: &mut Client, begins: &str) -> (String, String) {
    loop {
        let (topic, payload) = client.receive(LONG).unwrap().unwrap_or_else(|| panic!("a message of {begins} comes"));
        if topic.starts_with(begins) {
            return (topic, String::from_utf8(payload).unwrap());
        }
    }
}

#[test]
fn on_the_island_sampling_slows_down_a_local_alarm_route_starts_and_both_end_with_it() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let devices = free_port();
    let place = place(proxy.port, devices);
    let node = place.start();
    mode_is(&node, "normal");
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("log/#").unwrap();
    cloud.subscribe("handled/#").unwrap();
    let mut handler = Client::connect(devices, "handler", false).unwrap();
    handler.subscribe("alarm/#").unwrap();
    handler.subscribe("handled/#").unwrap();
    let mut watcher = Client::connect(devices, "watcher", true).unwrap();
    watcher.subscribe("beat/#").unwrap();
    let mut sensor = Client::connect(devices, "sensor", true).unwrap();
    sensor.publish("sensors/boiler", br#"{"temp": 90, "said": "normal"}"#).unwrap();
    sensor.publish("log/a", b"normal").unwrap();
    next(&mut watcher, "beat/quick");

    proxy.set(Fault::Refuse);
    mode_is(&node, "island");
    for payload in [r#"{"temp": 20}"#, "{}", "no JSON", r#"{"temp": 91, "said": "island"}"#] {
        sensor.publish("sensors/boiler", payload.as_bytes()).unwrap();
    }
    sensor.publish("log/a", b"island").unwrap();
    // What was said in normal times or is not warm raised no alarm.
    assert_eq!(next(&mut handler, "alarm/"), ("alarm/boiler".to_owned(), r#"{"temp": 91, "said": "island"}"#.to_owned()));
    assert_eq!(next(&mut handler, "handled/").0, "handled/alarm/boiler", "a route may follow another one");
    next(&mut watcher, "beat/calm");
    let metrics = request(place.flag("metrics-port").parse().unwrap(), "GET /metrics", &[], "").body;
    let undecided: Vec<&str> = metrics.lines().filter(|l| l.starts_with("selvedge_route_undecided_total{route=\"node.yaml:")).collect();
    assert!(undecided.iter().any(|l| l.ends_with(" 2")), "{undecided:?}");

    // The handler is away and the box is killed: the alarm waits for it.
    drop(handler);
    sensor.publish("sensors/boiler", br#"{"temp": 92}"#).unwrap();
    node.kill();
    let node = place.start();
    let mut handler = Client::connect(devices, "handler", false).unwrap();
    while next(&mut handler, "alarm/").1 != r#"{"temp": 92}"# {}

    proxy.set(Fault::None);
    mode_is(&node, "normal");
    let mut sensor = Client::connect(devices, "sensor", true).unwrap();
    sensor.publish("sensors/boiler", br#"{"temp": 93}"#).unwrap();
    sensor.publish("alarm/by-hand", b"1").unwrap();
    // Alarms of before the kill may come again; new ones do not.
    let mut alarms = Vec::new();
    while alarms.last().is_none_or(|(topic, _)| topic != "alarm/by-hand") {
        alarms.push(next(&mut handler, "alarm/"));
    }
    assert!(alarms.iter().all(|(_, payload)| !payload.contains("93")), "{alarms:?}");
    assert_eq!(next(&mut cloud, "log/").1, "island", "what was said in normal times was not stored for the cloud");
    while next(&mut cloud, "handled/").0 != "handled/alarm/by-hand" {}
    eventually(LONG, "the books close", || {
        let status = node.status();
        let rows: Vec<_> = status["ledger"].as_array().unwrap().iter().filter(|r| r["destination"].as_str().unwrap().starts_with("route/")).collect();
        !rows.is_empty() && rows.iter().all(|r| r["queued"] == 0 && r["accepted"] == r["delivered"])
    });
}

#[test]
fn check_names_routes_that_feed_themselves_and_conditions_that_are_none() {
    let place = Place::new(
        r##"
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {name: up}
spec:
  routes:
    - {from: local, topics: ["a/#"], to: [local], stripPrefix: "a/", prefix: "b/"}
    - {from: local, topics: ["b/#"], to: [local], stripPrefix: "b/", prefix: "a/"}
    - {from: local, topics: ["#"], to: [local], prefix: "copy/"}
    - {from: local, topics: ["c"], to: [local], prefix: "d/", when: islnd}
    - {from: local, topics: ["c"], to: [local], prefix: "e/", when: "temperature > 3"}
    - {from: local, topics: ["c"], to: [local], prefix: "f/", when: "payload.n >"}
    - {from: local, topics: ["c"], to: [local], prefix: "g/", deliver: shard}
    - {from: local, topics: ["c"], to: [local], prefix: "h/", deliver: shard, shardBy: header}
"##,
    );
    let output = Command::new(binary()).arg("check").arg(place.resources()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success());
    for part in [
        "node.yaml:7: spec.routes[0] feeds itself (local a/# -> b/...; local b/# -> a/...)",
        "node.yaml:8: spec.routes[1] feeds itself",
        "node.yaml:9: spec.routes[2] feeds itself (local # -> copy/...)",
        "node.yaml:10: spec.routes[3].when found \"islnd\"; accepted is a list of normal",
        "node.yaml:11: spec.routes[4].when found the name \"temperature\"",
        "node.yaml:12: spec.routes[5].when found \"payload.n >\"",
        "node.yaml:13: spec.routes[6] says deliver: shard; accepted is that with at least two upstreams",
        "node.yaml:14: spec.routes[7].shardBy found \"header\"; accepted is topic, property:NAME",
    ] {
        assert!(said.contains(part), "{part}\nin\n{said}");
    }
}

/// What a broker has for its subscriber, until there are so many.
fn all(client: &mut Client, count: usize) -> Vec<(String, String)> {
    (0..count).map(|_| next(client, "")).collect()
}

#[test]
fn two_upstreams_share_a_route_and_one_that_is_away_gets_its_share_when_it_is_back() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let proxy = Proxy::to(two.port);
    let devices = free_port();
    let listener = yaml::devices(devices);
    let place = Place::new(&format!(
        r#"{}{}
{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes:
    - {{from: local, topics: ["sensors/#"], to: [site-a, site-b], deliver: shard}}
    - {{from: local, topics: ["orders/#"], to: [site-a, site-b], deliver: shard, shardBy: "payload:customer"}}
"#,
        yaml::upstream("site-a", one.port),
        yaml::upstream("site-b", proxy.port)
    ));
    let node = place.start();
    let mut sites = [Client::connect(one.port, "s", true).unwrap(), Client::connect(two.port, "s", true).unwrap()];
    for site in &mut sites {
        site.subscribe("#").unwrap();
    }
    eventually(LONG, "both links are up", || node.link("site-a") == "up" && node.link("site-b") == "up");
    let mut device = Client::connect(devices, "d", true).unwrap();
    let accepted = |node: &Node| [node.ledger("upstream/site-a", "accepted") as usize, node.ledger("upstream/site-b", "accepted") as usize];
    proxy.set(Fault::Refuse);
    eventually(LONG, "one is away", || node.link("site-b") != "up");
    for n in 0..200 {
        device.publish(&format!("sensors/{}", n % 40), format!("{n}").as_bytes()).unwrap();
        device.publish(&format!("orders/{n}"), format!(r#"{{"customer":"c{}","n":{n}}}"#, n % 20).as_bytes()).unwrap();
    }
    let shares = accepted(&node);
    assert_eq!(shares[0] + shares[1], 400, "each at one of them: {shares:?}");
    assert!(shares.iter().all(|n| *n > 80), "{shares:?}");
    eventually(LONG, "the one that is there has its share", || node.ledger("upstream/site-a", "queued") == 0);
    assert_eq!(node.ledger("upstream/site-b", "delivered"), 0, "the share of the other one waits for it");
    proxy.set(Fault::None);
    eventually(LONG, "the other one has its share", || node.ledger("upstream/site-b", "queued") == 0);
    let [mut at_one, mut at_two] = sites;
    let seen = [all(&mut at_one, shares[0]), all(&mut at_two, shares[1])];
    for key in ["sensors/", "customer"] {
        // A topic, or a customer, is at one site alone.
        let of = |site: &[(String, String)]| {
            let name = |(topic, payload): &(String, String)| match key {
                "sensors/" => topic.starts_with(key).then(|| topic.clone()),
                _ => payload.split('"').nth(3).map(str::to_owned),
            };
            site.iter().filter_map(name).collect::<std::collections::BTreeSet<_>>()
        };
        let (a, b) = (of(&seen[0]), of(&seen[1]));
        assert!(!a.is_empty() && !b.is_empty() && a.is_disjoint(&b), "{key}: {a:?} and {b:?}");
    }
    let mut union: Vec<&(String, String)> = seen.iter().flatten().collect();
    union.sort();
    union.dedup();
    assert_eq!(union.len(), 400, "together they have everything");
}

/// Payloads of a topic in the order in which they come, up to the last one.
fn until_last(client: &mut Client, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|p| p != last) {
        all.push(next(client, "both/").1);
    }
    all
}

#[test]
fn routes_in_both_directions_over_the_same_topics_give_nothing_back_to_where_it_came_from() {
    let broker = Mosquitto::start();
    let devices = free_port();
    let (upstream, listener) = (yaml::cloud(broker.port), yaml::devices(devices));
    let place = Place::new(&format!(
        r##"{upstream}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes:
    - {{from: local, topics: ["#"], to: [cloud], prefix: "site/"}}
    - {{from: cloud, topics: ["site/both/#"], to: [local], stripPrefix: "site/"}}
"##
    ));
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.subscribe("both/#").unwrap();
    let mut cloud = Client::connect(broker.port, "c", true).unwrap();
    cloud.subscribe("site/both/#").unwrap();
    // Subscribed, when something of the cloud's comes through.
    eventually(LONG, "the route leads in", || {
        cloud.publish("site/both/first", b"begin").unwrap();
        device.receive(Duration::from_millis(100)).unwrap().is_some()
    });
    for n in 0..20 {
        device.publish("both/up", format!("up {n}").as_bytes()).unwrap();
        cloud.publish("site/both/down", format!("down {n}").as_bytes()).unwrap();
    }
    // Behind these nothing of the others can come any more.
    eventually(LONG, "all has left", || node.ledger("upstream/cloud", "queued") == 0);
    cloud.publish("site/both/down", b"end").unwrap();
    let once = |all: Vec<String>, begins: &str| {
        let all: Vec<String> = all.into_iter().filter(|p| p.starts_with(begins)).collect();
        assert_eq!(all, (0..20).map(|n| format!("{begins} {n}")).collect::<Vec<_>>());
    };
    let at_device = until_last(&mut device, "end");
    once(at_device.clone(), "up");
    once(at_device, "down");
    let mut at_cloud = Vec::new();
    while at_cloud.last().is_none_or(|p| p != "end") {
        let (topic, payload) = cloud.receive(LONG).unwrap().unwrap();
        assert!(topic.starts_with("site/both/"), "{topic}");
        at_cloud.push(String::from_utf8(payload).unwrap());
    }
    once(at_cloud.clone(), "up");
    once(at_cloud, "down");
    assert_eq!(node.ledger("upstream/cloud", "accepted"), 20, "what came from there was not stored for it");
    let metrics = request(place.flag("metrics-port").parse().unwrap(), "GET /metrics", &[], "").body;
    let own = metrics.lines().find(|l| l.starts_with("selvedge_route_own_total{")).unwrap();
    assert!(own.ends_with(" 20"), "{own}");
    assert_eq!(node.terminate(), Some(0));
}
