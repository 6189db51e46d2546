//! Documents that most nodes of the tests begin with, each with the line that parts it from the next one.

/// The upstream `cloud`, over MQTT 5 at this port.
#[must_use]
pub fn cloud(port: u16) -> String {
    upstream("cloud", port)
}

/// An upstream of this name, over MQTT 5 at this port.
#[must_use]
pub fn upstream(name: &str, port: u16) -> String {
    format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\n\
         spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: \"mqtt://127.0.0.1:{port}\"}}]}}\n---\n"
    )
}

/// The MQTT listener `devices` at this port, open to everyone on the machine.
#[must_use]
pub fn devices(port: u16) -> String {
    format!("apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, bind: \"127.0.0.1:{port}\"}}\n---\n")
}
