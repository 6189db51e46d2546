//! Settings that contradict each other: the real binary says so at a check, at a start and at a reload, and goes by none of them.

use std::process::Command;
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Place, accepts, binary, free_port, yaml};

const LONG: Duration = Duration::from_secs(30);

fn forwarding(name: &str, spec: &str) -> String {
    format!("apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: {name}}}\nspec:\n{spec}---\n")
}

/// A command of the binary: whether it ends well, and what it prints.
fn says(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_contradiction_is_said_by_check_refused_at_a_start_and_changes_nothing_at_a_reload() {
    let (broker, devices) = (Mosquitto::start(), free_port());
    let base = yaml::cloud(broker.port) + &yaml::devices(devices);
    let route = "  routes: [{from: local, topics: [\"#\"], to: [cloud]}]\n";
    let lane = |settings: &str| format!("  lanes: [{{name: a, match: [\"a/#\"]{settings}}}]\n");
    let well = base.clone() + &forwarding("up", &(route.to_owned() + &lane("")));
    let place = Place::new(&well);
    let node = place.start();
    let mut cloud = Client::connect(broker.port, "cloud", true).unwrap();
    cloud.subscribe("a/#").unwrap();

    let policy = |name: &str, upstreams: &str| {
        format!("apiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {{name: {name}}}\nspec: {{upstreams: [{upstreams}]}}\n---\n")
    };
    let primary = "{component: cloud}";
    let mistakes = [
        (
            well.clone() + &forwarding("more", &lane(", durability: memory")),
            "node.yaml:22: spec.lanes[0].name found \"a\", which is a lane already: spec.lanes[0] of the Forwarding up (node.yaml:16)",
        ),
        (well.clone() + &yaml::devices(devices).replace("name: devices", "name: two"), "node.yaml:21: spec.bind found \"127.0.0.1:"),
        (well.clone() + &policy("p", primary) + &policy("q", primary), "there is an EscapePolicy already, \"p\" at "),
        (well.clone() + &policy("p", "{component: cloud, role: secondary}"), "found the secondary \"cloud\" and no primary"),
        (base.clone() + &forwarding("up", &(route.to_owned() + &lane(", ttl: 0s"))), "spec.lanes[0].ttl found \"0s\"; accepted is a time above 0"),
        (
            base.clone() + &forwarding("up", &route.replace("to:", "when: \"1 + 1\", to:")),
            "spec.routes[0].when found \"1 + 1\", which gives a value of type int",
        ),
        (
            well.replace("apiVersion: selvedge/v1alpha1", "apiVersion: selvedge/v1alpha2"),
            "node.yaml:6: apiVersion found \"selvedge/v1alpha2\" of a \"Listener\"; accepted",
        ),
    ];
    for (number, (yaml, problem)) in mistakes.iter().enumerate() {
        place.rewrite(yaml);
        let (well, said) = says(Command::new(binary()).arg("check").arg(place.resources()));
        let file = format!("error: {}:", place.resources().join("node.yaml").display());
        assert!(!well && said.contains(&file) && said.contains(problem), "{problem}\nin\n{said}");
        let (well, said) = says(Command::new(binary()).args(["reload", "--data-dir"]).arg(place.data()));
        assert!(!well && said.contains("not reloaded: ") && said.contains(problem), "{problem}\nin\n{said}");
        let elsewhere = place.resources().parent().unwrap().join("elsewhere");
        let start = ["--app-id", "other", "--dapr-http-port=0", "--dapr-grpc-port=0", "--metrics-port=0"];
        let (well, said) = says(Command::new(binary()).args(start).arg("--resources-path").arg(place.resources()).arg("--data-dir").arg(elsewhere));
        // The log puts quotes of its own around.
        let said = said.replace("\\\"", "\"");
        assert!(!well && said.contains(problem), "{problem}\nin\n{said}");
        let mut device = Client::connect(devices, "device", true).unwrap();
        device.publish("a/x", number.to_string().as_bytes()).unwrap();
        assert_eq!(cloud.receive(LONG).unwrap().unwrap(), ("a/x".to_owned(), number.to_string().into_bytes()), "the node goes on as it was");
    }
    assert_eq!(node.terminate(), Some(0));
    assert!(!accepts(devices));
}

#[test]
fn a_lane_that_another_one_leaves_nothing_to_is_a_warning_and_the_node_starts() {
    let (broker, devices) = (Mosquitto::start(), free_port());
    let spec =
        "  routes: [{from: local, topics: [\"#\"], to: [cloud]}]\n  lanes:\n    - {name: all, match: [\"#\"]}\n    - {name: b, match: [\"b/#\"]}\n";
    let place = Place::new(&(yaml::cloud(broker.port) + &yaml::devices(devices) + &forwarding("up", spec)));
    let (well, said) = says(Command::new(binary()).arg("check").arg(place.resources()));
    let warning = "node.yaml:18: spec.lanes[1].match found \"b/#\", and nothing is left of that: the first lane that matches takes a message, and before this one stands all (node.yaml:17)";
    assert!(well && said.contains("warning: ") && said.contains(warning) && said.contains("all well"), "{said}");
    let node = place.start();
    assert_eq!(node.terminate(), Some(0));
}
