//! A box whose secret store and configuration are gone: it starts and answers with what they said last.

use std::time::Duration;

use selvedge_tests::http::{Message, request};
use selvedge_tests::{Place, eventually, free_port, yaml};
use serde_json::{Value, json};

fn yaml(folder: &std::path::Path, devices: u16) -> String {
    let folder = folder.display();
    let listener = yaml::devices(devices);
    format!(
        r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: vault}}
spec: {{type: secretstores.local.file, version: v1, metadata: [{{name: secretsFile, value: "{folder}/secrets.json"}}]}}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: settings}}
spec: {{type: configuration.file, version: v1, metadata: [{{name: path, value: "{folder}/keys.yaml"}}]}}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: store}}
spec:
  type: state.sqlite
  version: v1
  metadata: [{{name: connectionString, value: "{folder}/s.db"}}, {{name: primaryEncryptionKey, secretKeyRef: {{name: state-key, key: state-key}}}}]
auth: {{secretStore: vault}}
---
{listener}apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  modes: {{secretsMaxAge: 14d, configMaxAge: 14d}}
  atRest: {{keys: [{{credential: box-key}}]}}
  budgets: {{diskFree: 1MiB}}
"#
    )
}

fn json_of(message: &Message) -> Value {
    serde_json::from_str(&message.body).unwrap_or_else(|e| panic!("{e}: {message:?}"))
}

#[test]
fn a_box_starts_and_answers_without_its_secret_store_and_its_configuration() {
    let files = tempfile::tempdir().unwrap();
    let (secrets, keys) = (files.path().join("secrets.json"), files.path().join("keys.yaml"));
    std::fs::write(&secrets, format!(r#"{{"state-key": "{}", "db": "correct horse", "unread": "x"}}"#, "1f".repeat(32))).unwrap();
    std::fs::write(&keys, "rate: 10\n").unwrap();
    // As systemd hands a credential over.
    let credentials = files.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("box-key"), "ab".repeat(32)).unwrap();
    let mut place = Place::new(&yaml(files.path(), free_port()));
    place.environment.push(("CREDENTIALS_DIRECTORY".into(), credentials.display().to_string()));
    let (http, metrics): (u16, u16) = (place.flag("dapr-http-port").parse().unwrap(), place.flag("metrics-port").parse().unwrap());
    let secret = || request(http, "GET /v1.0/secrets/vault/db", &[], "");
    let configuration = || request(http, "GET /v1.0/configuration/settings?key=rate", &[], "");

    let node = place.start();
    assert_eq!(request(http, "POST /v1.0/state/store", &[], r#"[{"key":"k","value":{"sealed":"too"}}]"#).start, "204");
    let found = secret();
    assert_eq!((json_of(&found), found.header("selvedge-cache-age")), (json!({"db": "correct horse"}), None));
    assert_eq!(configuration().header("selvedge-cache-age"), None);
    node.kill();
    let database = ["node.db", "node.db-wal"].map(|name| std::fs::read(place.data().join(name)).unwrap_or_default()).concat();
    for plain in ["correct horse", "Y29ycmVjdCBob3JzZ"] {
        assert!(!database.windows(plain.len()).any(|w| w == plain.as_bytes()), "a secret lies on the disk as {plain}");
    }

    std::fs::remove_file(&secrets).unwrap();
    std::fs::remove_file(&keys).unwrap();
    let node = place.start();
    let value = request(http, "GET /v1.0/state/store/k", &[], "");
    assert_eq!((value.start.as_str(), value.body.as_str()), ("200", r#"{"sealed":"too"}"#), "the store has its key from the cache");
    let found = secret();
    assert_eq!(json_of(&found), json!({"db": "correct horse"}));
    assert!(found.header("selvedge-cache-age").is_some_and(|age| age.parse::<u64>().is_ok()), "{found:?}");
    let found = configuration();
    assert_eq!(json_of(&found)["rate"]["value"], "10");
    assert!(found.header("selvedge-cache-age").is_some(), "{found:?}");
    let all = request(http, "GET /v1.0/secrets/vault/bulk", &[], "");
    assert!(json_of(&all).get("db").is_some() && json_of(&all).get("unread").is_none(), "what was read once: {all:?}");
    assert_eq!(request(http, "GET /v1.0/secrets/vault/unread", &[], "").start, "500");
    assert!(node.has_logged("answered from the cache"), "{}", node.log().join("\n"));
    let counted = |name: &str| request(metrics, "GET /metrics", &[], "").body.contains(name);
    assert!(counted("selvedge_cache_answers_total{cache=\"secrets\",store=\"vault\"}"));
    // The configuration comes back.
    std::fs::write(&keys, "rate: 20\n").unwrap();
    eventually(Duration::from_secs(10), "the source counts again", || {
        let found = configuration();
        json_of(&found)["rate"]["value"] == "20" && found.header("selvedge-cache-age").is_none()
    });
}
