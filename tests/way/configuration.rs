//! Configuration as an application uses it: the mode of the box and a file of keys, over HTTP with calls back, and over gRPC streams.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use selvedge_proto::runtime::dapr_client::DaprClient;
use selvedge_proto::runtime::{GetConfigurationRequest, SubscribeConfigurationRequest, UnsubscribeConfigurationRequest};
use selvedge_tests::http::{App, Message, request};
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Place, eventually, free_port, yaml};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

fn place(cloud: u16, keys: &std::path::Path) -> Place {
    let keys = keys.display();
    let upstream = yaml::cloud(cloud);
    Place::new(&format!(
        r#"{upstream}apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: settings}}
spec: {{type: configuration.file, version: v1, metadata: [{{name: path, value: "{keys}"}}, {{name: pollInterval, value: 50ms}}]}}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud, stall: 2s}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
  budgets: {{diskFree: 1MiB}}
"#
    ))
}

fn json_of(message: &Message) -> Value {
    serde_json::from_str(&message.body).unwrap_or_else(|e| panic!("{e}: {message:?}"))
}

fn mode(http: u16) -> Value {
    json_of(&request(http, "GET /v1.0/configuration/selvedge?key=mode", &[], ""))["mode"]["value"].clone()
}

#[test]
fn an_application_is_called_when_the_mode_of_the_box_changes_until_it_unsubscribes() {
    let broker = Mosquitto::start();
    let proxy = Proxy::to(broker.port);
    let files = tempfile::tempdir().unwrap();
    let keys = files.path().join("keys.yaml");
    std::fs::write(&keys, "rate: 10\n").unwrap();
    let mut place = place(proxy.port, &keys);
    let app_port = free_port();
    place.flags.push(format!("--app-port={app_port}"));
    // It cannot take the first change at first.
    let refusals = AtomicUsize::new(2);
    let app = App::start(app_port, move |r| match r.start.as_str() {
        "POST /configuration/selvedge/mode" if refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() => {
            (500, String::new())
        }
        start if start.starts_with("POST /configuration/") => (200, String::new()),
        _ => (404, String::new()),
    });
    let _node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    eventually(LONG, "the box is in its normal mode", || mode(http) == "normal");
    let all = json_of(&request(http, "GET /v1.0-alpha1/configuration/selvedge", &[], ""));
    assert_eq!((&all["mode"]["value"], &all["upstream.cloud"]["value"]), (&json!("normal"), &json!("up")), "{all}");
    assert!(all["mode.since"]["version"].as_str().unwrap().parse::<u64>().unwrap() > 0 && all.get("mode.cause").is_none(), "{all}");
    let metadata = json_of(&request(http, "GET /v1.0/metadata", &[], ""));
    let components = metadata["components"].as_array().unwrap();
    for (name, kind) in [("selvedge", "configuration.selvedge"), ("settings", "configuration.file")] {
        assert!(components.contains(&json!({"name": name, "type": kind, "version": "v1"})), "{metadata}");
    }

    let subscribed = json_of(&request(http, "GET /v1.0/configuration/selvedge/subscribe?key=mode&key=upstream.cloud", &[], ""));
    let id = subscribed["id"].as_str().unwrap();
    proxy.set(Fault::Refuse);
    let told = |key: &str| app.to(&format!("POST /configuration/selvedge/{key}")).iter().map(json_of).collect::<Vec<_>>();
    let value = |event: &Value, key: &str| event["items"][key]["value"].clone();
    eventually(LONG, "the island is told", || told("mode").len() >= 3);
    let modes = told("mode");
    assert!(modes.iter().all(|e| value(e, "mode") == "island" && e["id"] == id && e["items"].as_object().unwrap().len() == 1), "{modes:?}");
    eventually(LONG, "the link is told", || told("upstream.cloud").iter().any(|e| value(e, "upstream.cloud") == "down"));
    proxy.set(Fault::None);
    eventually(LONG, "the normal mode is told", || told("mode").last().is_some_and(|e| value(e, "mode") == "normal"));

    let unsubscribe = format!("GET /v1.0/configuration/selvedge/{id}/unsubscribe");
    assert_eq!(json_of(&request(http, &unsubscribe, &[], "")), json!({"ok": true}));
    let again = request(http, &unsubscribe, &[], "");
    assert!(again.start == "500" && json_of(&again)["message"].as_str().unwrap().contains(id), "{again:?}");
    let before = told("mode").len();
    proxy.set(Fault::Refuse);
    eventually(LONG, "the box is an island again", || mode(http) == "island");
    assert_eq!(told("mode").len(), before, "silent after the end");

    // A file, edited under the node's eyes.
    assert_eq!(json_of(&request(http, "GET /v1.0/configuration/settings?key=rate&key=none", &[], ""))["rate"]["value"], "10");
    assert_eq!(request(http, "GET /v1.0/configuration/settings?key=none", &[], "").start, "204");
    assert_eq!(request(http, "GET /v1.0/configuration/settings/subscribe", &[], "").start, "200");
    std::fs::write(&keys, "alarm: {limit: 8}\n").unwrap();
    let told = |key: &str| app.to(&format!("POST /configuration/settings/{key}")).first().map(json_of);
    eventually(LONG, "the new key is told", || told("alarm.limit").is_some_and(|e| e["items"]["alarm.limit"]["value"] == "8"));
    eventually(LONG, "the key that is gone is told", || told("rate").is_some_and(|e| e["items"]["rate"] == json!({})));
    std::fs::remove_file(&keys).unwrap();
    let gone = request(http, "GET /v1.0/configuration/settings?key=none", &[], "");
    assert!(gone.start == "500" && json_of(&gone)["errorCode"] == "ERR_CONFIGURATION_GET", "{gone:?}");
    let unknown = request(http, "GET /v1.0/configuration/nowhere", &[], "");
    assert!(unknown.start == "400" && json_of(&unknown)["errorCode"] == "ERR_CONFIGURATION_STORE_NOT_FOUND", "{unknown:?}");
}

#[test]
fn a_node_that_is_a_plain_sidecar_has_no_configuration_store_of_its_own() {
    let place = Place::new("");
    let _node = place.start();
    let http: u16 = place.flag("dapr-http-port").parse().unwrap();
    let none = request(http, "GET /v1.0/configuration/selvedge", &[], "");
    assert!(none.start == "500" && json_of(&none)["errorCode"] == "ERR_CONFIGURATION_STORE_NOT_CONFIGURED", "{none:?}");
    assert!(json_of(&request(http, "GET /v1.0/metadata", &[], "")).get("components").is_none());
}

#[test]
fn a_stream_is_told_of_changes_and_ends_when_it_is_unsubscribed() {
    let files = tempfile::tempdir().unwrap();
    let keys = files.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let write = |name: &str, value: &str| {
        std::fs::write(files.path().join("new"), value).unwrap();
        std::fs::rename(files.path().join("new"), keys.join(name)).unwrap();
    };
    write("rate", "10");
    let place = place(free_port(), &keys);
    let _node = place.start();
    let (http, grpc): (u16, u16) = (place.flag("dapr-http-port").parse().unwrap(), place.flag("dapr-grpc-port").parse().unwrap());
    let no_app = request(http, "GET /v1.0/configuration/settings/subscribe", &[], "");
    assert!(no_app.start == "500" && json_of(&no_app)["errorCode"] == "ERR_APP_CHANNEL_NIL", "{no_app:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{grpc}")).unwrap().connect().await.unwrap();
        let mut client = DaprClient::new(channel);
        let get = |store: &str| GetConfigurationRequest { store_name: store.into(), ..GetConfigurationRequest::default() };
        let found = client.get_configuration(get("settings")).await.unwrap().into_inner().items;
        assert_eq!((found.len(), found["rate"].value.as_str()), (1, "10"));
        assert_eq!(client.get_configuration_alpha1(get("selvedge")).await.unwrap().into_inner().items["mode"].value, "bootstrap");
        let unknown = client.get_configuration(get("nowhere")).await.unwrap_err();
        assert_eq!((unknown.code(), unknown.message()), (tonic::Code::InvalidArgument, "configuration store nowhere not found"));

        let subscribe = |key: &str| SubscribeConfigurationRequest {
            store_name: "settings".into(),
            keys: vec![key.into()],
            ..SubscribeConfigurationRequest::default()
        };
        let mut changes = client.subscribe_configuration(subscribe("rate")).await.unwrap().into_inner();
        let mut other = client.subscribe_configuration_alpha1(subscribe("other")).await.unwrap().into_inner();
        let next = async |changes: &mut tonic::Streaming<_>| tokio::time::timeout(LONG, changes.message()).await.expect("something comes").unwrap();
        let first: selvedge_proto::runtime::SubscribeConfigurationResponse = next(&mut changes).await.unwrap();
        assert!(!first.id.is_empty() && first.items.is_empty(), "the id goes first: {first:?}");
        assert!(next(&mut other).await.is_some_and(|o| o.id != first.id));
        write("rate", "20");
        let change = next(&mut changes).await.unwrap();
        assert_eq!((&change.id, change.items["rate"].value.as_str()), (&first.id, "20"));
        let end = |id: &str| UnsubscribeConfigurationRequest { store_name: "settings".into(), id: id.into() };
        assert!(client.unsubscribe_configuration(end(&first.id)).await.unwrap().into_inner().ok);
        assert!(next(&mut changes).await.is_none(), "the stream ends");
        let again = client.unsubscribe_configuration_alpha1(end(&first.id)).await.unwrap().into_inner();
        assert!(!again.ok && again.message.contains(&first.id), "{again:?}");
        write("other", "1");
        assert_eq!(next(&mut other).await.unwrap().items["other"].value, "1", "the other stream goes on");
    });
}
