//! What an application does with the node: publish, state, subscriptions, over Dapr's HTTP API.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use selvedge_tests::http::{App, request, try_request};
use selvedge_tests::mqtt::Client;
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Place, eventually, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

fn yaml(cloud: u16, devices: u16, folder: &str) -> String {
    let upstream = yaml::cloud(cloud);
    format!(
        r#"{upstream}apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: store}}
spec: {{type: state.sqlite, version: v1, metadata: [{{name: connectionString, value: "{folder}"}}]}}
---
apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: devices}}
spec: {{protocol: mqtt, bind: "127.0.0.1:{devices}"}}
"#
    )
}

#[test]
fn an_application_publishes_with_the_broker_down_and_the_event_arrives_later() {
    let (cloud, devices) = (free_port(), free_port());
    let files = tempfile::tempdir().unwrap();
    let place = Place::new(&yaml(cloud, devices, files.path().join("s.db").to_str().unwrap()));
    let node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    assert_eq!(request(http, "GET /v1.0/healthz", &[], "").start, "204");
    let upstream = request(http, "GET /v1.0/healthz/upstream", &[], "");
    assert!(upstream.start == "503" && upstream.body.contains("\"state\":\"down\""), "{upstream:?}");
    for n in 0..10 {
        let answer = request(http, "POST /v1.0/publish/cloud/orders", &[("content-type", "application/json")], &format!("{{\"n\":{n}}}"));
        assert_eq!((answer.start.as_str(), answer.header("selvedge-queued")), ("204", Some("true")), "{answer:?}");
        assert!(answer.header("selvedge-record-id").unwrap().ends_with(&format!("/default/{}", n + 1)));
    }
    assert_eq!(node.ledger("upstream/cloud", "queued"), 10);
    // State works on the island, and survives a kill.
    assert_eq!(request(http, "POST /v1.0/state/store", &[], r#"[{"key":"k","value":{"a":1}}]"#).start, "204");
    node.kill();
    let node = place.start();
    let value = request(http, "GET /v1.0/state/store/k", &[], "");
    assert_eq!((value.start.as_str(), value.body.as_str(), value.header("etag").is_some()), ("200", r#"{"a":1}"#, true));
    let stale = request(http, "DELETE /v1.0/state/store/k", &[("if-match", "no-such-etag")], "");
    assert_eq!(stale.start, "409");
    assert_eq!(node.ledger("upstream/cloud", "queued"), 10, "{:?}", node.status());
}

#[test]
fn an_application_is_called_back_in_order_and_what_it_misses_waits_for_it() {
    let broker = Mosquitto::start();
    let (devices, app_port) = (free_port(), free_port());
    let files = tempfile::tempdir().unwrap();
    let mut place = Place::new(&yaml(broker.port, devices, files.path().join("s.db").to_str().unwrap()));
    place.flags.push(format!("--app-port={app_port}"));
    let refusals = AtomicUsize::new(2);
    let app = App::start(app_port, move |r| {
        match r.start.as_str() {
        "GET /dapr/subscribe" => (
            200,
            r#"[{"pubsubname":"local","topic":"orders","route":"/orders"},{"pubsubname":"local","topic":"sensors/+","route":"/raw","metadata":{"rawPayload":"true"}}]"#
                .to_owned(),
        ),
        // The first deliveries fail: they come again, and what stands behind them waits.
        "POST /orders" if refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() => (500, String::new()),
        "POST /orders" | "POST /raw" => (200, r#"{"status":"SUCCESS"}"#.to_owned()),
        _ => (404, String::new()),
    }
    });
    let node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    eventually(LONG, "the application is subscribed", || node.has_logged("topics: [sensors/+]"));
    for n in 0..5 {
        let answer = request(http, "POST /v1.0/publish/local/orders", &[("content-type", "application/json")], &format!("{n}"));
        assert_eq!(answer.start, "204", "{answer:?}");
    }
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.publish("sensors/a", b"\x00\x01plain").unwrap();
    eventually(LONG, "all orders are delivered", || app.to("POST /orders").len() >= 7);
    let orders: Vec<i64> = app
        .to("POST /orders")
        .iter()
        .map(|r| {
            assert_eq!(r.header("content-type"), Some("application/cloudevents+json"));
            let event: serde_json::Value = serde_json::from_str(&r.body).unwrap();
            assert_eq!((&event["topic"], &event["pubsubname"], &event["specversion"]), (&"orders".into(), &"local".into(), &"1.0".into()));
            event["data"].as_i64().unwrap()
        })
        .collect();
    assert_eq!(orders, [0, 0, 0, 1, 2, 3, 4], "in order, the refused one again");
    eventually(LONG, "the device's message is delivered", || !app.to("POST /raw").is_empty());
    let event: serde_json::Value = serde_json::from_str(&app.to("POST /raw")[0].body).unwrap();
    assert_eq!(event["data_base64"], "AAFwbGFpbg==");
    eventually(LONG, "the books close", || node.ledger("app/box/local/orders", "queued") == 0);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn the_own_application_is_invoked_as_it_is_while_it_is_well() {
    use std::sync::atomic::AtomicBool;
    let app_port = free_port();
    let files = tempfile::tempdir().unwrap();
    let mut place = Place::new(&yaml(free_port(), free_port(), files.path().join("s.db").to_str().unwrap()));
    for flag in [format!("--app-port={app_port}"), "--enable-app-health-check=true".into(), "--app-health-probe-interval=1".into()] {
        place.flags.push(flag);
    }
    place.flags.extend(["--app-health-threshold=1".into(), "--dapr-graceful-shutdown-seconds=60".into()]);
    let well = std::sync::Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let app = App::start(app_port, move |r| match r.start.as_str() {
        "GET /healthz" if is_well.load(Ordering::SeqCst) => (200, String::new()),
        "POST /a/b%20c?x=1&y=%2F" => (201, format!("{}:{}", r.header("my-header").unwrap_or("none"), r.body)),
        _ => (404, "not here".to_owned()),
    });
    let node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    let call = |path: &str| {
        request(http, &format!("POST /v1.0/invoke/{path}"), &[("my-header", "h"), ("connection", "close, my-hop"), ("my-hop", "1")], "body")
    };
    eventually(LONG, "the application is asked", || !app.to("GET /healthz").is_empty());
    let refused = call("box/method/a");
    assert!(refused.start == "500" && refused.body.contains("app is not in a healthy state"), "{refused:?}");
    well.store(true, Ordering::SeqCst);
    eventually(LONG, "it is well", || call("box/method/a/b%20c?x=1&y=%2F").start == "201");
    let answer = call("box/method/a/b%20c?x=1&y=%2F");
    assert_eq!((answer.start.as_str(), answer.body.as_str()), ("201", "h:body"));
    assert!(app.to("POST /a/b%20c?x=1&y=%2F").iter().all(|r| r.header("my-hop").is_none()), "headers of one connection stay there");
    let missing = call("box/method/other");
    assert_eq!((missing.start.as_str(), missing.body.as_str()), ("404", "not here"), "its own refusals pass");
    let other = call("another/method/a");
    assert!(other.start == "500" && other.body.contains("ERR_DIRECT_INVOKE"), "{other:?}");
    // Nobody who asks for its health holds up the end, or it would take the whole grace period.
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_transaction_and_its_event_happen_together_with_the_broker_away_and_over_kill_9() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    proxy.set(Fault::Refuse);
    let files = tempfile::tempdir().unwrap();
    let (store, db) = ("spec: {type: state.sqlite, version: v1, metadata: [{name: connectionString,", files.path().join("s.db"));
    let told = "spec: {type: state.sqlite, version: v1, metadata: [{name: outboxPublishPubsub, value: cloud}, {name: outboxPublishTopic, value: told}, \
                {name: connectionString,";
    let place = Place::new(&yaml(proxy.port, free_port(), db.to_str().unwrap()).replace(store, told));
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    let mut sink = Client::connect(broker.port, "sink", true).unwrap();
    sink.subscribe("told").unwrap();
    let transaction = |key: usize, etag: &str| {
        let request = format!(r#"{{"key":"k{key}","value":"{key}"{etag}}}"#);
        try_request(http, "POST /v1.0/state/store/transaction", &[], &format!(r#"{{"operations":[{{"operation":"upsert","request":{request}}}]}}"#))
    };

    let mut next = 0;
    for round in 1..=4 {
        let node = place.start();
        // One that is refused: nobody is told of it.
        let refused = transaction(999_999, r#","etag":"12345","options":{"concurrency":"first-write"}"#).unwrap();
        assert_eq!(refused.start, "500", "{refused:?}");
        let done = AtomicUsize::new(0);
        next = std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                for key in next.. {
                    match transaction(key, "") {
                        Ok(answer) => assert_eq!(answer.start, "204", "{answer:?}"),
                        // Nobody knows of this one.
                        Err(_) => return key + 1,
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
                unreachable!()
            });
            eventually(LONG, "transactions are committed with the broker away", || done.load(Ordering::SeqCst) >= 20 * round);
            node.kill();
            caller.join().unwrap()
        });
    }

    let node = place.start();
    proxy.set(Fault::None);
    let committed: Vec<usize> = (0..next).filter(|key| request(http, &format!("GET /v1.0/state/store/k{key}"), &[], "").start == "200").collect();
    assert!(committed.len() >= 200 && next - committed.len() <= 4, "{} of {next}", committed.len());
    let mut events = std::collections::BTreeMap::new();
    let mut take = |within| {
        let (_, payload) = sink.receive(within).unwrap()?;
        let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        Some((event["data"].as_str().unwrap().parse::<usize>().unwrap(), event["id"].as_str().unwrap().to_owned()))
    };
    while events.len() < committed.len() {
        let (key, id) = take(LONG).unwrap_or_else(|| panic!("{} of {} events came", events.len(), committed.len()));
        assert_eq!(*events.entry(key).or_insert(id.clone()), id, "one event for a key, though it may come twice");
    }
    assert!(events.keys().eq(&committed), "what was committed and nothing else");
    // Nothing is left behind.
    eventually(LONG, "the books close", || node.ledger("upstream/cloud", "queued") == 0);
    let metrics = place.flag("metrics-port").parse().unwrap();
    eventually(LONG, "all are told of", || {
        request(metrics, "GET /metrics", &[], "").body.contains("selvedge_state_outbox_waiting{store=\"store\"} 0\n")
    });
    while let Some((key, id)) = take(Duration::from_millis(100)) {
        assert_eq!(events.get(&key), Some(&id));
    }
    drop(node);
}

#[test]
fn events_that_cannot_be_stored_make_transactions_wait_over_restarts_too_and_all_are_told_of_in_order() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    proxy.set(Fault::Refuse);
    let files = tempfile::tempdir().unwrap();
    let (upstream, db) = (selvedge_tests::yaml::cloud(proxy.port), files.path().join("s.db"));
    let place = Place::new(&format!(
        r##"{upstream}apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: store}}
spec:
  type: state.sqlite
  version: v1
  metadata: [{{name: outboxPublishPubsub, value: cloud}}, {{name: outboxPublishTopic, value: told}}, {{name: connectionString, value: "{}"}}]
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  lanes: [{{name: small, match: ["#"], durability: fsync, quota: 1MiB, onFull: reject}}]
"##,
        db.display()
    ));
    let node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    let metrics: u16 = place.flag("metrics-port").parse().unwrap();
    let waiting =
        |n: usize| request(metrics, "GET /metrics", &[], "").body.contains(&format!("selvedge_state_outbox_waiting{{store=\"store\"}} {n}\n"));
    let full = "x".repeat(10_000);
    eventually(LONG, "the lane is full", || {
        request(http, "POST /v1.0/publish/cloud/other?metadata.rawPayload=true", &[("content-type", "text/plain")], &full).start == "429"
    });
    let keys = |first: usize, count: usize| {
        let each = |key| format!(r#"{{"operation":"upsert","request":{{"key":"{key:05}","value":"{key:05}{}"}}}}"#, "y".repeat(10_000));
        format!(r#"{{"operations":[{}]}}"#, (first..first + count).map(each).collect::<Vec<_>>().join(","))
    };
    let transact =
        move |first: usize, count: usize| try_request(http, "POST /v1.0/state/store/transaction", &[], &keys(first, count)).map(|a| a.start);
    for at in 0..10 {
        assert_eq!(transact(at * 100, 100).unwrap(), "204");
    }
    assert!(waiting(1_000));
    // The next one waits, and has changed nothing when the node dies.
    let blocked = std::thread::spawn(move || transact(1_000, 1));
    eventually(LONG, "the node has it", || node.status()["id"].is_string());
    node.kill();
    assert!(blocked.join().unwrap().is_err());
    let node = place.start();
    eventually(LONG, "they still wait", || waiting(1_000));
    let blocked = std::thread::spawn(move || transact(1_000, 1));
    let mut sink = Client::connect(broker.port, "sink", true).unwrap();
    sink.subscribe("told").unwrap();
    assert!(!blocked.is_finished() && waiting(1_000), "there is no room for another one");
    proxy.set(Fault::None);
    assert_eq!(blocked.join().unwrap().unwrap(), "204");
    // The order is that of the commits; one that was on its way when the node died may come twice.
    let (mut next, mut ids) = (0, std::collections::BTreeSet::new());
    while next < 1_001 {
        let (_, payload) = sink.receive(LONG).unwrap().unwrap_or_else(|| panic!("{next} events came"));
        let event: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        if ids.insert(event["id"].as_str().unwrap().to_owned()) {
            assert_eq!(event["data"].as_str().unwrap()[..5].parse(), Ok(next));
            next += 1;
        }
    }
    eventually(LONG, "all are told of", || waiting(0));
    assert_eq!(node.terminate(), Some(0));
}
