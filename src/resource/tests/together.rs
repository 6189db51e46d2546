//! Mistakes that only show when resources are read together, or that a key alone hides.

use super::*;

/// What is wrong, as people see it.
fn said(text: &str) -> Vec<String> {
    load_text(text).problems.iter().map(|p| format!("{:?} {p}", p.severity)).collect()
}

fn only(text: &str, begins: &str) {
    let all = said(text);
    assert!(all.len() == 1 && all[0].starts_with(begins), "{begins}\nin\n{all:#?}");
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: selvedge/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}---\n")
}

fn brokers() -> String {
    ["cloud", "standby"]
        .map(|name| {
            format!("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\nspec: {{type: pubsub.mqtt3, version: v1}}\n---\n")
        })
        .concat()
}

#[test]
fn a_lane_stands_once_in_a_forwarding_and_among_all() {
    let one = |lanes: &str| document("Forwarding", "up", &format!("  lanes:\n{lanes}"));
    only(
        &one("    - {name: a, match: [\"a/#\"], quota: 1MiB}\n    - {name: a, match: [\"b/#\"], quota: 2MiB, onFull: reject}\n"),
        "Error a.yaml:7: spec.lanes[1].name found \"a\", which is a lane already: spec.lanes[0] of the Forwarding up (a.yaml:6); accepted is one lane of a name",
    );
    let other = document("Forwarding", "more", "  lanes: [{name: a, match: [\"b/#\"], durability: memory}]\n");
    only(
        &(one("    - {name: a, match: [\"a/#\"], durability: fsync}\n") + &other),
        "Error a.yaml:12: spec.lanes[0].name found \"a\", which is a lane already: spec.lanes[0] of the Forwarding up (a.yaml:6)",
    );
    let other = document("Forwarding", "more", "  lanes: [{name: b, match: [\"b/#\"]}]\n");
    assert_eq!(said(&(one("    - {name: a, match: [\"a/#\"]}\n") + &other)), [""; 0], "several Forwardings are accepted");
}

#[test]
fn a_lane_that_others_before_it_leave_nothing_to_is_a_warning() {
    let lanes = |lanes: &str| document("Forwarding", "up", &format!("  lanes:\n{lanes}"));
    only(
        &lanes("    - {name: all, match: [\"#\"]}\n    - {name: b, match: [\"b/#\", \"c\"]}\n"),
        "Warning a.yaml:7: spec.lanes[1].match found \"b/#, c\", and nothing is left of that: the first lane that matches takes a message, and before this one stands all (a.yaml:6)",
    );
    only(
        &lanes("    - {name: a, match: [\"a/+\"]}\n    - {name: b, match: [\"b/#\"]}\n    - {name: c, match: [\"b/x\", \"a/x\"]}\n"),
        "Warning a.yaml:8: spec.lanes[2].match found \"b/x, a/x\", and nothing is left of that: the first lane that matches takes a message, and before this one stands b (a.yaml:7), a (a.yaml:6)",
    );
    for left in [
        "    - {name: a, match: [\"a/x\"]}\n    - {name: b, match: [\"a/#\"]}\n",
        "    - {name: a, match: [\"#\"]}\n    - {name: b, match: [\"$SYS/#\"]}\n",
        "    - {name: a, match: [\"a/#\"]}\n    - {name: b, match: [\"a/x\", \"b/x\"]}\n",
        "    - {name: a, match: [\"#\"]}\n    - {name: default, quota: 2MiB}\n",
        "    - {name: a, match: [\"#\"]}\n    - {name: default, match: [\"#\"], quota: 2MiB}\n",
    ] {
        assert_eq!(said(&lanes(left)), [""; 0], "{left}");
    }
}

#[test]
fn a_drain_is_the_first_forwardings() {
    let up = document("Forwarding", "up", "  routes: []\n");
    only(
        &(up + &document("Forwarding", "more", "  drain: {rate: {messages: 10}}\n")),
        "Error a.yaml:11: spec.drain is one for the node and stands in the first Forwarding, which is \"up\"; it has no effect here",
    );
}

#[test]
fn listeners_share_no_socket_and_no_name() {
    let both = |one: (&str, &str), other: (&str, &str)| {
        document("Listener", "one", &format!("  protocol: {}\n  bind: \"{}\"\n", one.0, one.1))
            + &document("Listener", "two", &format!("  protocol: {}\n  bind: \"{}\"\n", other.0, other.1))
    };
    for (one, other) in [
        (("mqtt", "127.0.0.1:1883"), ("mqtt", "127.0.0.1:1883")),
        (("mqtt", "0.0.0.0:1883"), ("mqtt", "127.0.0.1:1883")),
        (("coap", "[::1]:5683"), ("coap", "[::]:5683")),
        (("mqtt", "systemd:doors"), ("coap", "systemd:doors")),
    ] {
        let begins = format!(
            "Error a.yaml:13: spec.bind found {:?}, and the Listener one has {:?} already (a.yaml:6); accepted is an address",
            other.1, one.1
        );
        only(&both(one, other), &begins);
    }
    for (one, other) in [
        (("mqtt", "127.0.0.1:1883"), ("coap", "127.0.0.1:1883")),
        (("mqtt", "127.0.0.1:1883"), ("mqtt", "127.0.0.2:1883")),
        (("mqtt", "127.0.0.1:1883"), ("mqtt", "127.0.0.1:1884")),
        (("mqtt", "127.0.0.1:0"), ("mqtt", "127.0.0.1:0")),
        (("mqtt", "systemd:mqtt"), ("mqtt", "systemd:more")),
    ] {
        assert_eq!(said(&both(one, other)), [""; 0], "{one:?} {other:?}");
    }
    only(
        &(document("Listener", "one", "  protocol: mqtt\n") + &document("Listener", "two", "  protocol: mqtt\n")),
        "Error a.yaml:11: spec.bind found \"0.0.0.0:1883\", and the Listener one has \"0.0.0.0:1883\" already",
    );
    only(
        &(document("Listener", "one", "  {protocol: mqtt, bind: \"0.0.0.0:1\"}\n")
            + &document("Listener", "one", "  {protocol: mqtt, bind: \"0.0.0.0:2\"}\n")),
        "Error a.yaml:9: metadata.name found \"one\", which is a Listener already (its address: a.yaml:5); accepted is a name for each",
    );
}

#[test]
fn a_node_has_one_escape_policy_whose_secondary_has_a_primary() {
    let policy = |name: &str, upstreams: &str| document("EscapePolicy", name, &format!("  upstreams:\n{upstreams}"));
    let fine = "    - {component: cloud}\n    - {component: standby, role: secondary}\n";
    assert_eq!(said(&(brokers() + &policy("p", fine))), [""; 0]);
    let twice = brokers() + &policy("p", "    - {component: cloud}\n") + &policy("q", "    - {component: cloud}\n");
    only(&twice, "Error a.yaml:22: spec there is an EscapePolicy already, \"p\" at a.yaml:15; accepted is one for the node");
    only(
        &(brokers() + &policy("p", "    - {component: cloud, role: secondary}\n")),
        "Error a.yaml:15: spec.upstreams found the secondary \"cloud\" and no primary; accepted is a secondary beside the primaries",
    );
    only(
        &(brokers() + &policy("p", "    - {component: cloud}\n    - {component: cloud, role: secondary}\n")),
        "Error a.yaml:17: spec.upstreams[1].component found \"cloud\", which is spec.upstreams[0] already; accepted is each component once",
    );
    let lanes = document("Forwarding", "up", "  lanes: [{name: a, match: [\"a/#\"]}]\n");
    let of = |names: &str| format!("    - {{component: cloud}}\n    - {{component: standby, role: secondary, lanes: [{names}]}}\n");
    assert_eq!(said(&(brokers() + &lanes + &policy("p", &of("a, default")))), [""; 0]);
    only(
        &(brokers() + &lanes + &policy("p", &of("a, b"))),
        "Error a.yaml:23: spec.upstreams[1].lanes found \"b\", and no Forwarding has a lane of that name; accepted are default, a",
    );
}

#[test]
fn a_life_of_no_time_is_refused() {
    let up = |spec: &str| document("Forwarding", "up", spec);
    for zero in ["0s", "0", "0ms"] {
        let begins = format!("Error a.yaml:5: spec.lanes[0].ttl found \"{zero}\"; accepted is a time above 0, such as 7d");
        only(&up(&format!("  lanes: [{{name: a, match: [a], ttl: {zero}}}]\n")), &begins);
    }
}

#[cfg(feature = "api")]
#[test]
fn a_condition_that_is_none_is_refused() {
    only(
        &(brokers() + &document("Forwarding", "up", "  routes: [{from: local, topics: [a], to: [cloud], when: \"1 + 1\"}]\n")),
        "Error a.yaml:15: spec.routes[0].when found \"1 + 1\", which gives a value of type int and so never gives true or false; accepted is a list of modes",
    );
}

#[test]
fn what_is_ours_in_another_version_is_an_error_and_what_is_nobodys_a_warning() {
    let listener = |version: &str, kind: &str| format!("{version}kind: {kind}\nmetadata: {{name: a}}\nspec: {{protocol: mqtt}}\n");
    for (version, found) in [
        ("apiVersion: selvedge/v1alpha2\n", "selvedge/v1alpha2"),
        ("apiVersion: selvedge\n", "selvedge"),
        ("apiVersion: Selvedge/v1alpha1\n", "Selvedge/v1alpha1"),
        ("apiVersion: dapr.io/v1alpha1\n", "dapr.io/v1alpha1"),
        ("", ""),
    ] {
        let begins = format!(
            "Error a.yaml:1: apiVersion found {found:?} of a \"Listener\"; accepted for Listener, Forwarding, EscapePolicy, Logging is selvedge/v1alpha1"
        );
        only(&listener(version, "Listener"), &begins);
    }
    only(&listener("apiVersion: apps/v1\n", "Deployment"), "Warning a.yaml:1: kind \"apps/v1\" \"Deployment\" is left out");
    only(&listener("apiVersion: gateway.networking.k8s.io/v1\n", "Listener"), "Warning a.yaml:1: kind");
}
