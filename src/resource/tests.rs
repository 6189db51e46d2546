use std::time::Duration;

use super::*;
use crate::outbox::{Durability, Order, WhenFull, Windows};

mod together;

fn load_text(text: &str) -> Resources {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), text).unwrap();
    let environment = |name: &str| (name == "SITE").then(|| "site7".to_owned());
    let mut found = load(&[dir.path().to_owned()], "app", None, &environment).unwrap();
    for p in &mut found.problems {
        p.file = p.file.rsplit('/').next().unwrap_or_default().to_owned();
    }
    found
}

const EXAMPLE: &str = r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: cloud}
spec:
  type: pubsub.mqtt3
  version: v1
  metadata: [{name: url, value: "mqtt://127.0.0.1:1884"}, {name: qos, value: 1}, {name: key, secretKeyRef: {name: s}}, {name: e, envRef: HOME}]
scopes: [app]
---
apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {name: devices}
spec: {protocol: mqtt, bind: "127.0.0.1:1883", limits: {clients: 10, packetBytes: 64KiB}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {name: up}
spec:
  routes:
    - {from: local, topics: ["sensors/#"], to: [cloud], prefix: "${SITE}/"}
  lanes:
    - {name: critical, match: ["alarm/#"], durability: fsync, quota: 8MiB, onFull: reject, ttl: 30d}
    - {name: telemetry, match: "sensors/#", durability: "batched(20ms)", weight: 4}
  drain: {rate: {messages: 2000}}
"#;

#[test]
fn the_example_is_read_into_types() {
    let r = load_text(EXAMPLE);
    assert_eq!(r.problems, []);
    let c = &r.components[0];
    assert_eq!((c.name.as_str(), c.type_name.as_str()), ("cloud", "pubsub.mqtt3"));
    assert_eq!(c.properties[1].source, PropertySource::Literal("1".into()));
    assert_eq!(c.properties[2].source, PropertySource::Secret { name: "s".into(), key: "s".into() });
    assert_eq!(c.properties[3].source, PropertySource::Environment("HOME".into()));
    assert_eq!((r.listeners[0].limits.clients, r.listeners[0].limits.packet_bytes, r.listeners[0].pubsub.as_str()), (10, 65_536, "local"));
    let f = &r.forwardings[0];
    assert_eq!(f.routes[0].map_topic("sensors/a"), "site7/sensors/a");
    assert_eq!((f.lanes[0].durability, f.lanes[0].when_full, f.lanes[0].quota_bytes), (Durability::Fsync, WhenFull::Reject, 8 << 20));
    assert_eq!((f.lanes[1].weight, f.lanes[1].matches.as_slice()), (4, ["sensors/#".to_owned()].as_slice()));
    assert_eq!(f.drain.messages_per_second, Some(2_000));
    assert!(r.needs_local());
}

#[test]
fn policies_of_full_lanes_are_read_and_wrong_ones_say_what_is_accepted() {
    let read = |policy: &str| {
        load_text(&format!(
            "apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec:\n  lanes:\n    - {{name: x, match: [\"#\"], onFull: \"{policy}\"}}\n"
        ))
    };
    let windows = |seconds: &[u64]| Windows::new(&seconds.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>()).unwrap();
    for (text, policy) in [
        ("drop-newest", WhenFull::DropNewest),
        ("keep-latest-per-key", WhenFull::KeepLatest),
        ("downsample(1m,5m,1h)", WhenFull::Downsample(windows(&[60, 300, 3_600]))),
        ("downsample( 10s )", WhenFull::Downsample(windows(&[10]))),
    ] {
        let r = read(text);
        assert_eq!((r.problems.len(), r.forwardings[0].lanes[0].when_full), (0, policy), "{text}");
    }
    for text in ["downsample", "downsample()", "downsample(5m,1m)", "downsample(1500ms)", "downsample(1s,2s,3s,4s,5s)", "keep-latest"] {
        let r = read(text);
        let problem = r.problems[0].to_string();
        assert!(problem.contains("a.yaml:6: spec.lanes[0].onFull found") && problem.contains("downsample(1m,5m,1h)"), "{problem}");
    }
}

#[test]
fn all_problems_are_shown_at_once_with_file_line_and_key() {
    let r = load_text(
        "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {name: a}\nspec:\n  protocol: amqp\n  bind: here\n  limit: {}\n---\napiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {name: b}\nspec:\n  routes:\n    - {from: local, topics: [\"a/#/b\"], to: [nowhere]}\n  lanes:\n    - name: x\n      match: [\"#\"]\n      quota: lots\n      ttl: ${NOT_SET}\n",
    );
    let text: Vec<String> = r.problems.iter().map(ToString::to_string).collect();
    let all = text.join("\n");
    for part in [
        "a.yaml:5: spec.protocol found \"amqp\"; accepted is mqtt or coap",
        "a.yaml:6: spec.bind found \"here\"; accepted is address:port",
        "a.yaml:7: spec.limit is not a key here; accepted are bind, limits",
        "a.yaml:14: spec.routes[0].topics \"a/#/b\" is no topic filter",
        "a.yaml:18: spec.lanes[0].quota found \"lots\"; accepted is a size",
        "a.yaml:19: spec.lanes[0].ttl environment variable NOT_SET is not set",
        "Forwarding b route names the pub/sub \"nowhere\"",
    ] {
        assert!(all.contains(part), "{part}\nin\n{all}");
    }
}

#[test]
fn daprs_kinds_are_read_leniently() {
    let r = load_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: 123, x: y}\nspec: {TYPE: state.in-memory, surprise: 1, ignoreErrors: \"true\", initTimeout: nonsense}\n---\nnot: [closed\n---\napiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\nspec:\n  pubsubname: p\n  topic: t\n  routes: {rules: [{match: \"event.type == 'a'\", path: /a}], default: /d}\n  bulkSubscribe: {enabled: true, maxMessagesCount: 5}\n---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: other}\nspec: {type: state.sqlite}\nscopes: [another]\n",
    );
    assert_eq!((r.components.len(), r.components[0].name.as_str(), r.components[0].type_name.as_str()), (1, "123", "state.in-memory"));
    assert!(r.components[0].ignore_errors && r.components[0].init_timeout == std::time::Duration::from_secs(5));
    assert_eq!((r.subscriptions[0].default_path.as_str(), r.subscriptions[0].rules.len(), r.subscriptions[0].bulk.max_messages), ("/d", 1, 5));
    assert!(r.problems.iter().all(|p| p.severity != Severity::Error) && r.problems[0].severity == Severity::Unreadable);
}

#[test]
fn a_component_that_stands_twice_is_named_as_daprd_names_it() {
    let one = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: foo}\nspec: {type: state.in-memory, version: v1}\n";
    let r = load_text(&format!("{one}---\n{one}"));
    assert_eq!(
        r.duplicate_components.as_deref(),
        Some("duplicate definition of Component name foo (state.in-memory/v1) with existing foo (state.in-memory/v1)")
    );
}

#[test]
fn an_escape_policy_names_the_keys_that_seal_and_how_old_cached_answers_may_be() {
    let policy = |spec: &str| load_text(&format!("apiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {{name: e}}\nspec: {spec}\n"));
    let r = policy("{modes: {secretsMaxAge: 2d}, atRest: {keys: [{credential: box-key}, {file: /etc/old}, {env: \"${SITE}\"}]}}");
    assert!(r.escape_policies[0].seal_messages && !policy("{atRest: {messages: false}}").escape_policies[0].seal_messages);
    assert_eq!(r.problems, []);
    let (p, day) = (&r.escape_policies[0], std::time::Duration::from_secs(86_400));
    assert_eq!((p.secrets_max_age, p.config_max_age), (2 * day, 14 * day));
    let keys = [KeySource::Credential("box-key".into()), KeySource::File("/etc/old".into()), KeySource::Environment("site7".into())];
    assert_eq!(r.escape_policies[0].at_rest, keys);
    assert_eq!(policy("{atRest: {lostKeys: [0a1B2c3d, 12345678]}}").escape_policies[0].lost_keys, [0x0a1b_2c3d, 0x1234_5678]);
    let problems = policy("{atRest: {lostKeys: [box-key]}}").problems;
    assert!(problems[0].to_string().contains("a.yaml:4: spec.atRest.lostKeys found \"box-key\"; accepted is the id of a key"), "{problems:?}");
    for (keys, problem) in [
        ("[{}]", "a.yaml:4: spec.atRest.keys[0] accepted is one of file, credential, env"),
        ("[{file: a, env: B}]", "a.yaml:4: spec.atRest.keys[0] accepted is one of file, credential, env"),
        ("[{credential: ../a}]", "a.yaml:4: spec.atRest.keys[0].credential found \"../a\"; accepted is the name of a credential"),
        ("[{key: abc}]", "a.yaml:4: spec.atRest.keys[0].key is not a key here; accepted are credential, env, file"),
    ] {
        let r = policy(&format!("{{atRest: {{keys: {keys}}}}}"));
        assert!(r.problems.iter().any(|p| p.to_string() == problem), "{problem}\nin\n{:?}", r.problems);
    }
}

fn lanes(text: &str) -> Resources {
    load_text(&format!("apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec:\n  lanes:\n{text}"))
}

#[test]
fn memory_lanes_hold_records_back_for_a_time_that_can_be_set() {
    let r = lanes(concat!(
        "    - {name: a, match: [a], durability: memory}\n",
        "    - {name: b, match: [b], durability: memory, spillAfter: 500ms}\n",
        "    - {name: c, match: [c], durability: memory, spillAfter: 0}\n",
        "    - {name: d, match: [d]}\n",
    ));
    assert_eq!(r.problems, []);
    let times: Vec<u128> = r.forwardings[0].lanes.iter().map(|l| l.spill_after.as_millis()).collect();
    assert_eq!(times, [2_000, 500, 0, 0]);
    let r = lanes("    - {name: a, match: [a], durability: memory, spillAfter: 5ms}\n    - {name: b, match: [b], spillAfter: 2s}\n");
    let all: Vec<String> = r.problems.iter().map(ToString::to_string).collect();
    assert!(all[0].contains("a.yaml:6: spec.lanes[0].spillAfter found \"5ms\"; accepted is 0, or a time from 100ms to 1h"), "{all:?}");
    assert!(all[1].contains("a.yaml:7: spec.lanes[1].spillAfter is for durability: memory"), "{all:?}");
}

#[test]
fn a_lane_that_stores_nothing_takes_no_setting_that_says_how_to_store() {
    let r = lanes(concat!(
        "    - {name: a, match: [a], durability: passthrough}\n",
        "    - {name: b, match: [b], durability: passthrough, answerWithin: 3s, quota: 2MiB, onFull: reject, order: oldest, weight: 3, strict: true}\n",
    ));
    assert_eq!(r.problems, []);
    let all: Vec<_> = r.forwardings[0].lanes.iter().map(|l| (l.quota_bytes, l.answer_within.as_secs(), l.ttl, l.when_full)).collect();
    assert_eq!(all, [(1 << 20, 10, None, WhenFull::Reject), (2 << 20, 3, None, WhenFull::Reject)]);
    assert!(r.forwardings[0].lanes.iter().all(|l| l.durability == Durability::Passthrough));
    let name = "name: a, match: [a], durability: passthrough";
    for (lane, problem) in [
        (
            format!("{name}, onFull: drop-oldest"),
            "onFull found \"drop-oldest\"; not accepted with durability: passthrough: a lane that stores nothing has",
        ),
        (format!("{name}, ttl: 1h"), "ttl found \"1h\"; not accepted with durability: passthrough: a record waits for answerWithin at most"),
        (format!("{name}, order: newest"), "order found \"newest\"; not accepted with durability: passthrough"),
        (format!("{name}, floor: 1MiB"), "floor found \"1MiB\"; not accepted with durability: passthrough"),
        (format!("{name}, spillAfter: 1s"), "spillAfter is for durability: memory"),
        (format!("{name}, quota: 1GiB"), "quota found \"1GiB\"; accepted is a size from 1MiB to 64MiB"),
        (format!("{name}, answerWithin: 1h"), "answerWithin found \"1h\"; accepted is a time from 100ms to 5m"),
        ("name: a, match: [a], answerWithin: 1s".to_owned(), "answerWithin is for durability: passthrough"),
        ("name: default, durability: passthrough".to_owned(), "durability passthrough is not accepted for the lane default"),
        (
            "name: a, match: [a], durability: none".to_owned(),
            "durability found \"none\"; accepted is memory, fsync, batched(TIME) such as batched(20ms), or passthrough",
        ),
    ] {
        let r = lanes(&format!("    - {{{lane}}}\n"));
        let all: Vec<String> = r.problems.iter().map(ToString::to_string).collect();
        assert!(all.len() == 1 && all[0].contains(&format!("a.yaml:6: spec.lanes[0].{problem}")), "{problem}\nin\n{all:?}");
    }
}

#[test]
fn a_set_of_upstreams_takes_no_topics_of_lanes_that_store_nothing() {
    let of = |topics: &str| {
        let r = load_text(&format!(
            "apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec:\n  routes: [{{from: local, topics: [{topics}], to: [a, b], \
             deliver: first-ack}}]\n  lanes: [{{name: now, match: [now/#], durability: passthrough}}]\n"
        ));
        r.problems.iter().filter(|p| p.text.contains("stores nothing")).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of("later/#"), [""; 0]);
    let all = of("+/a");
    assert!(all.len() == 1 && all[0].contains("a.yaml:5: spec.routes[0] says deliver: first-ack for topics that the lane now may take"), "{all:?}");
}

#[test]
fn lanes_are_replayed_newest_first_where_that_has_a_meaning_and_the_live_share_says_where_it_acts() {
    let of = |text: &str| {
        let r = load_text(&format!("apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec:\n{text}"));
        let problems: Vec<String> = r.problems.iter().map(|p| format!("{:?} {p}", p.severity)).collect();
        (r, problems)
    };
    let (r, problems) = of("  lanes:\n    - {name: a, match: [a], order: newest}\n    - {name: b, match: [b], order: newest, durability: memory}\n");
    assert!(problems.is_empty(), "{problems:?}");
    let lanes = &r.forwardings[0].lanes;
    assert_eq!((lanes[0].order, lanes[1].spill_after, r.forwardings[0].drain.live_share), (Order::Newest, Duration::ZERO, None));
    for (share, percent) in [("0.7", 70), ("70%", 70), ("70", 70), ("1", 100), ("0", 0), ("0.05", 5)] {
        let (r, problems) = of(&format!("  lanes: [{{name: a, match: [a], order: newest}}]\n  drain: {{liveShare: {share}}}\n"));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(r.forwardings[0].drain.live_share, Some(percent));
    }
    for (text, problem) in [
        ("  drain: {liveShare: 1.5}\n", "Error a.yaml:5: spec.drain.liveShare found \"1.5\"; accepted is a fraction from 0 to 1 such as 0.7"),
        ("  drain: {liveShare: 120%}\n", "Error a.yaml:5: spec.drain.liveShare found \"120%\"; accepted is a fraction"),
        (
            "  drain: {liveShare: 0.7}\n",
            "Warning a.yaml:5: spec.drain.liveShare has no effect on lanes with order: oldest, which keep order (default)",
        ),
        (
            "  lanes: [{name: a, match: [a], order: newest}, {name: b, match: [b]}]\n  drain: {liveShare: 0.7}\n",
            "Warning a.yaml:6: spec.drain.liveShare has no effect on lanes with order: oldest, which keep order (b)",
        ),
        ("  lanes: [{name: a, match: [a], order: latest}]\n", "Error a.yaml:5: spec.lanes[0].order found \"latest\"; accepted is oldest or newest"),
        (
            "  lanes: [{name: a, match: [a], order: newest, onFull: keep-latest-per-key}]\n",
            "Error a.yaml:5: spec.lanes[0].order newest does not go with onFull: keep-latest-per-key or downsample",
        ),
        (
            "  lanes: [{name: a, match: [a], order: newest, durability: memory, spillAfter: 1s}]\n",
            "Error a.yaml:5: spec.lanes[0].spillAfter found \"1s\"; accepted is 0 with order: newest",
        ),
    ] {
        let (_, problems) = of(text);
        assert!(problems.iter().any(|p| p.starts_with(problem)), "{problem}\nin\n{problems:?}");
    }
}

#[test]
fn budgets_are_sizes_per_day_and_month() {
    let policy = |spec: &str| load_text(&format!("apiVersion: selvedge/v1alpha1\nkind: EscapePolicy\nmetadata: {{name: e}}\nspec: {spec}\n"));
    let r = policy("{budgets: {flash: 500MB/day, data: 300MB/month}, upstreams: [{component: cloud, data: 20 MiB/month}]}");
    let p = &r.escape_policies[0];
    assert_eq!((p.flash_per_day, p.data_per_month, p.upstreams[0].data_per_month), (Some(500_000_000), Some(300_000_000), Some(20 << 20)));
    for (spec, problem) in [
        (
            "{budgets: {flash: 500MB}}",
            "a.yaml:4: spec.budgets.flash found \"500MB\"; accepted is a size of at least 1MB with /day, such as 500MB/day",
        ),
        ("{budgets: {data: 1KB/month}}", "a.yaml:4: spec.budgets.data found \"1KB/month\"; accepted is a size of at least 1MB with /month"),
    ] {
        let r = policy(spec);
        assert!(r.problems.iter().any(|p| p.to_string().contains(problem)), "{problem}\nin\n{:?}", r.problems);
    }
}

#[test]
fn the_level_of_the_log_is_read_and_stands_once() {
    let logging = |level: &str| format!("apiVersion: selvedge/v1alpha1\nkind: Logging\nmetadata: {{name: log}}\nspec: {{level: {level}}}\n");
    assert_eq!(load_text(&logging("debug")).log_level, Some(tracing::Level::DEBUG));
    let said = |text: &str| load_text(text).problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(
        said(&logging("loud")).contains("a.yaml:4: spec.level found \"loud\"; accepted is debug, info, warn, error or fatal"),
        "{}",
        said(&logging("loud"))
    );
    let twice = format!("{}---\n{}", logging("info"), logging("warn"));
    assert!(said(&twice).contains("there is a Logging already"), "{}", said(&twice));
}
