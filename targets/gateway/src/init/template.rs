//! The text of the folder: the file that the packages bring, with what was asked for opened and filled in.

use std::net::SocketAddr;

use super::plan::{Broker, Plan};

/// What the packages put into /etc/selvedge/resources. One text, so that the two never say different things.
pub const TEMPLATE: &str = include_str!("../../../../packaging/etc/gateway.yaml");

// What is filled in. Each stands in the template exactly once, which a test holds, but for those of the last lines.
const REMARK: &str =
    r#"  # This box alone. For devices on your network: "0.0.0.0:1883", best together with `users`; see `Devices with passwords` in the book."#;
const BIND: &str = r#"bind: "127.0.0.1:1883""#;
const USERS: &str = "  # users: {file: /etc/selvedge/users.yaml}";
const SENSORS: &str = "---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: host}\n";
const CLOUD: &str = "# A broker in the cloud.";
const URL: &str = r#"    - {name: url, value: "mqtts://USER:PASSWORD@broker.example:8883"}"#;
const CONSUMER: &str = r#"    # - {name: consumerID, value: "site7-box1"}"#;
const SPEC_END: &str = "the box's name at the broker; unless said, the host's name\n";
const QUOTA: &str = "quota: 128MiB";
const COAP: &str = "# Devices over CoAP";
const COAP_BIND: &str = r#"bind: "0.0.0.0:5683""#;
const TYPE: &str = "pubsub.mqtt5 ";
const PREFIX: &str = "site7/";
const FOLDER: &str = "/etc/selvedge";
const DATA: &str = "/var/lib/selvedge";

/// The secret that holds the broker's url, where it has a password.
pub const SECRET: &str = "broker-url";

/// A text in YAML's double quotes, which are JSON's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Opens the paragraph that begins so: from `# ---` to the blank line behind it. The sentence before that stays a comment.
fn open(text: &str, beginning: &str) -> String {
    let (mut out, mut here, mut opened) = (String::with_capacity(text.len()), false, false);
    for line in text.split_inclusive('\n') {
        here = (here || line.starts_with(beginning)) && line != "\n";
        opened = here && (opened || line == "# ---\n");
        out.push_str(if opened { line.strip_prefix("# ").unwrap_or(line) } else { line });
    }
    out
}

/// Shuts the paragraph that begins so, up to the blank line behind it.
fn shut(text: &str, beginning: &str) -> String {
    let Some(start) = text.find(beginning) else { return text.to_owned() };
    let end = text[start..].find("\n\n").map_or(text.len(), |n| start + n);
    format!("{}# {}{}", &text[..start], text[start..end].replace('\n', "\n# "), &text[end..])
}

/// `gateway.yaml`, for a broker that speaks MQTT 5, or 3.1.1 alone.
pub fn gateway(plan: &Plan, mqtt3: bool) -> String {
    // A smaller gateway may be built without them.
    let mut text = if cfg!(feature = "sensors") { TEMPLATE.to_owned() } else { shut(TEMPLATE, SENSORS) };
    if plan.listen.to_string() != "127.0.0.1:1883" || plan.users {
        let remark = match (plan.users, plan.listen.ip().is_loopback()) {
            (true, _) => "  # Devices show a name and a password; who may come in, and do what, stands in the file of `users`.",
            (false, true) => "  # This box alone.",
            (false, false) => "  # Everyone who reaches this address may do everything: best together with `users`.",
        };
        text = text.replace(REMARK, remark).replace(BIND, &bind(plan.listen));
    }
    if plan.users {
        text = text.replace(USERS, &USERS.replace("# ", ""));
    }
    if let Some(address) = plan.coap {
        text = open(&text, COAP).replace(COAP_BIND, &bind(address));
    }
    if let Some(broker) = &plan.broker {
        text = upstream(&open(&text, CLOUD), plan, broker, mqtt3);
    }
    // Each once: what is filled in for one may be the other.
    text.replace(DATA, "\0").replace(FOLDER, &plan.folder).replace('\0', &plan.data)
}

fn bind(address: SocketAddr) -> String {
    format!("bind: \"{address}\"")
}

fn upstream(text: &str, plan: &Plan, broker: &Broker, mqtt3: bool) -> String {
    let url = match broker.secret {
        // The url stands in a file of its own, which only root and the node need read.
        Some(_) => format!("    - {{name: url, secretKeyRef: {{name: {SECRET}, key: {SECRET}}}}}   # in secrets.json: it has a password"),
        None => format!("    - {{name: url, value: {}}}", quoted(&broker.url)),
    };
    let mut end = SPEC_END.to_owned();
    if let Some(pem) = &broker.ca {
        end.push_str("    - name: caCert                     # what the broker's certificate must lead to\n      value: |\n");
        pem.lines().for_each(|line| end.push_str(&format!("        {line}\n")));
    }
    if broker.secret.is_some() {
        end.push_str(&format!(
            "auth: {{secretStore: secrets}}\n---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: secrets}}\nspec:\n  \
             type: secretstores.local.file\n  version: v1\n  metadata: [{{name: secretsFile, value: {FOLDER}/secrets.json}}]\n"
        ));
    }
    let consumer = plan.named.as_ref().map_or_else(|| CONSUMER.to_owned(), |name| format!("    - {{name: consumerID, value: {}}}", quoted(name)));
    // First, so that it finds the template's own alone.
    let text = text.replace(PREFIX, &plan.prefix);
    let text = text.replace(URL, &url).replace(CONSUMER, &consumer).replace(SPEC_END, &end).replace(QUOTA, &format!("quota: {}MiB", plan.quota_mib));
    if mqtt3 { text.replace(TYPE, "pubsub.mqtt3 ") } else { text }
}

/// `users.yaml`: name and hash of each device.
pub fn users<'a>(devices: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text =
        "# Who may come in, and do what: name, hash of the password, rules. What no rule allows is denied. `selvedge reload` takes a change over.\n"
            .to_owned();
    for (name, hash) in devices {
        text.push_str(&format!(
            "- name: {name}\n  password: \"{hash}\"\n  acl:\n    - {{topics: [\"sensors/{name}/#\", \"alarm/{name}/#\"], write: true}}\n    \
             - {{topics: [\"cmd/{name}/#\"], read: true}}\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_below_the_packages_data_and_data_below_its_folder_stay_what_they_are() {
        let words = ["init", "/var/lib/selvedge/box", "--data-dir", "/etc/selvedge/data", "--devices", "attic"];
        let flags = crate::flags::Flags::parse(words.map(str::to_owned)).unwrap();
        let text = gateway(&super::super::plan::plan(&flags).unwrap(), false);
        assert!(text.contains("{file: /var/lib/selvedge/box/users.yaml}") && text.contains("/etc/selvedge/data/state.db"), "{text}");
    }

    #[test]
    fn all_that_is_filled_in_stands_in_the_template() {
        for once in [REMARK, BIND, USERS, SENSORS, CLOUD, URL, CONSUMER, SPEC_END, QUOTA, COAP, COAP_BIND, TYPE] {
            assert_eq!(TEMPLATE.matches(once).count(), 1, "{once}");
        }
        let shut = shut(TEMPLATE, SENSORS);
        let changed: Vec<&str> = shut.lines().zip(TEMPLATE.lines()).filter(|(a, b)| a != b).map(|(a, _)| a).collect();
        assert!(
            changed.len() == 11 && changed.iter().all(|line| line.starts_with("# ")) && shut.lines().count() == TEMPLATE.lines().count(),
            "{shut}"
        );
        assert!(TEMPLATE.matches(PREFIX).count() >= 3 && TEMPLATE.contains(FOLDER) && TEMPLATE.contains(DATA));
    }
}
