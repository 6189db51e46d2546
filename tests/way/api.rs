//! What an application does with the node: publish, state, subscriptions, over Dapr's HTTP API.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use selvedge_tests::http::{App, request};
use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Place, eventually, free_port};

const LONG: Duration = Duration::from_secs(30);

fn yaml(cloud: u16, devices: u16, folder: &str) -> String {
    format!(
        r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: cloud}}
spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: "mqtt://127.0.0.1:{cloud}"}}]}}
---
apiVersion: dapr.io/v1alpha1
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
