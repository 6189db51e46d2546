//! `Listener`, `Forwarding`, `EscapePolicy` and `Logging` of `selvedge/v1alpha1`, read strictly.

use std::path::PathBuf;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::key_source::{keys, lost};
use super::spec::{
    DEFAULT_NOTICES, DedupeSpec, Deliver, DiskFloor, DrainSpec, EscapePolicySpec, ForwardingSpec, LaneSpec, ListenerLimits, ListenerProtocol,
    ListenerSpec, ListenerTls, Origin, RouteSpec, UpstreamRole, UpstreamSpec,
};
use super::strict::{Fields, Findings};
use super::{Resources, Severity, yaml::Node};
use crate::escape::ModeConfig;
use crate::hub::{NOTICES, QUARANTINE, ShardKey, When};
use crate::outbox::{DEFAULT_ANSWER_WITHIN, Durability, MIN_QUOTA_BYTES, Order, WhenFull, Windows};
use crate::telemetry::logs::parse_level;
use crate::topic;
use crate::units;

/// Quota of the lane `default` when nobody says otherwise; a tenth of the free disk if that is less.
pub const DEFAULT_QUOTA_BYTES: u64 = 128 << 20;
const DEFAULT_TTL: Duration = Duration::from_secs(7 * 86_400);
/// How long, and how many, ids are remembered unless said.
const DEFAULT_DEDUPE_WINDOW: Duration = Duration::from_secs(600);
const DEFAULT_DEDUPE_IDS: u64 = 10_000;
/// How old answers from a cache may be unless said.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(14 * 86_400);
const DEFAULT_BATCH: Duration = Duration::from_millis(20);
/// How long records of a memory lane wait in memory unless said.
const DEFAULT_SPILL: Duration = Duration::from_secs(2);
const SHORTEST_SPILL: Duration = Duration::from_millis(100);
const LONGEST_SPILL: Duration = Duration::from_secs(3_600);

pub(super) fn read(document: &Node, kind: &str, name: &str, resources: &mut Resources, findings: &mut Findings<'_>) {
    let mut top = Fields::new(document, "", findings);
    for key in ["apiVersion", "kind"] {
        let _ = top.text(key, findings);
    }
    let mut line_of_name = top.line();
    if let Some(mut metadata) = top.map("metadata", findings) {
        line_of_name = metadata.line_of("name");
        let _ = metadata.text("name", findings);
        let _ = metadata.text("namespace", findings);
        metadata.finish(findings);
    }
    let spec = top.map("spec", findings);
    let line = top.line();
    top.finish(findings);
    let Some(spec) = spec else {
        findings.add(Severity::Error, line, "spec", "is required");
        return;
    };
    match kind {
        "Listener" => {
            if let Some(before) = resources.listeners.iter().find(|l| l.name == name) {
                let text = format!("found {name:?}, which is a Listener already (its address: {}); accepted is a name for each", before.origin);
                findings.add(Severity::Error, line_of_name, "metadata.name", text);
            }
            if let Some(listener) = listener(spec, name, findings) {
                resources.listeners.push(listener);
            }
        }
        "Forwarding" => {
            let first = resources.forwardings.first().map(|f| f.name.clone());
            resources.forwardings.push(forwarding(spec, name, first.as_deref(), findings));
        }
        "Logging" => logging(spec, resources, findings),
        _ => resources.escape_policies.push(escape_policy(spec, name, findings)),
    }
}

/// One for the node: the level is the process's.
fn logging(mut spec: Fields<'_>, resources: &mut Resources, findings: &mut Findings<'_>) {
    if resources.log_level.is_some() {
        findings.add(Severity::Error, spec.line(), spec.path(), "there is a Logging already; accepted is one for all");
    }
    resources.log_level = spec.parsed("level", None, findings, |text| parse_level(text).map(Some));
    spec.finish(findings);
}

fn listener(mut spec: Fields<'_>, name: &str, findings: &mut Findings<'_>) -> Option<ListenerSpec> {
    let protocol = match spec.require("protocol", "mqtt or coap", findings) {
        Some((text, line)) => match text.as_str() {
            "mqtt" => Some(ListenerProtocol::Mqtt),
            "coap" => Some(ListenerProtocol::Coap),
            _ => {
                findings.add(Severity::Error, line, &spec.key("protocol"), format!("found {text:?}; accepted is mqtt or coap"));
                None
            }
        },
        None => None,
    };
    let default_bind = if protocol == Some(ListenerProtocol::Coap) { "0.0.0.0:5683" } else { "0.0.0.0:1883" };
    let origin = Origin { file: findings.file.clone(), line: spec.line_of("bind"), key: spec.key("bind") };
    let bind = spec.parsed("bind", default_bind.to_owned(), findings, |t| {
        let address = t.parse::<std::net::SocketAddr>().is_ok() || t.strip_prefix("systemd:").is_some_and(|n| !n.is_empty());
        if address { Ok(t.to_owned()) } else { Err("address:port, for example 0.0.0.0:1883 or [::]:1883, or systemd:NAME".to_owned()) }
    });
    let pubsub = spec.text("pubsub", findings).map_or_else(|| "local".to_owned(), |(t, _)| t);
    let tls = spec.map("tls", findings).and_then(|mut tls| {
        let cert = tls.require("certFile", "a PEM file with the certificate chain", findings);
        let key = tls.require("keyFile", "a PEM file with the private key", findings);
        let client_ca = tls.text("clientCaFile", findings);
        tls.finish(findings);
        Some(ListenerTls {
            cert_file: PathBuf::from(cert?.0),
            key_file: PathBuf::from(key?.0),
            client_ca_file: client_ca.map(|(t, _)| PathBuf::from(t)),
        })
    });
    let users_file = spec.map("users", findings).and_then(|mut users| {
        let file = users.require("file", "a YAML file of users", findings);
        users.finish(findings);
        Some(PathBuf::from(file?.0))
    });
    let mut limits = ListenerLimits::default();
    if let Some(mut l) = spec.map("limits", findings) {
        limits.clients = l.number("clients", limits.clients as u64, 1..=100_000, findings) as usize;
        limits.packet_bytes = l.size("packetBytes", u64::from(limits.packet_bytes), 128..=(16 << 20), findings) as u32;
        limits.window = l.number("window", u64::from(limits.window), 1..=10_000, findings) as u16;
        l.finish(findings);
    }
    spec.finish(findings);
    Some(ListenerSpec { origin, name: name.to_owned(), protocol: protocol?, bind, pubsub, tls, users_file, limits })
}

fn filters(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings<'_>) -> Vec<String> {
    let mut valid = Vec::new();
    for (filter, line) in fields.texts(name, findings) {
        match topic::check_filter(&filter) {
            Ok(()) => valid.push(filter),
            Err(error) => findings.add(Severity::Error, line, &fields.key(name), format!("{filter:?} is no topic filter: {error}")),
        }
    }
    valid
}

pub(crate) fn parse_durability(text: &str) -> Result<Durability, String> {
    let accepted = || "memory, fsync, batched(TIME) such as batched(20ms), or passthrough".to_owned();
    match text {
        "memory" => Ok(Durability::Memory),
        "passthrough" => Ok(Durability::Passthrough),
        "fsync" => Ok(Durability::Fsync),
        _ => {
            let inside = text.strip_prefix("batched(").and_then(|t| t.strip_suffix(')')).ok_or_else(accepted)?;
            let time = units::parse_duration(inside).map_err(|_| accepted())?;
            if time > Duration::from_secs(60) { Err("batched(TIME) with at most 60s".to_owned()) } else { Ok(Durability::Batched(time)) }
        }
    }
}

fn spill_after(fields: &mut Fields<'_>, durability: Durability, order: Order, findings: &mut Findings<'_>) -> Duration {
    let key = fields.key("spillAfter");
    let Some((text, line)) = fields.text("spillAfter", findings) else {
        return if durability == Durability::Memory && order == Order::Oldest { DEFAULT_SPILL } else { Duration::ZERO };
    };
    let time = units::parse_duration(&text).ok().filter(|t| t.is_zero() || (SHORTEST_SPILL..=LONGEST_SPILL).contains(t));
    if time.is_none() {
        findings.add(Severity::Error, line, &key, format!("found {text:?}; accepted is 0, or a time from 100ms to 1h"));
    }
    if durability != Durability::Memory {
        findings.add(Severity::Error, line, &key, "is for durability: memory: records of other lanes are written before their sender is answered");
    }
    if order == Order::Newest && time.is_some_and(|t| !t.is_zero()) {
        findings.add(Severity::Error, line, &key, format!("found {text:?}; accepted is 0 with order: newest, which reads from the files"));
    }
    time.unwrap_or(DEFAULT_SPILL)
}

/// What may be on its way of a lane that stores nothing: unless said, and at most. It is in memory.
const DEFAULT_PASSING_BYTES: u64 = 1 << 20;
const MOST_PASSING_BYTES: u64 = 64 << 20;
const ANSWER_WITHIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

/// `answerWithin` of a lane.
fn answer_within(fields: &mut Fields<'_>, durability: Durability, findings: &mut Findings<'_>) -> Duration {
    let key = fields.key("answerWithin");
    let Some((text, line)) = fields.text("answerWithin", findings) else { return DEFAULT_ANSWER_WITHIN };
    let time = units::parse_duration(&text).ok().filter(|t| ANSWER_WITHIN.contains(t));
    if time.is_none() {
        findings.add(Severity::Error, line, &key, format!("found {text:?}; accepted is a time from 100ms to 5m"));
    }
    if durability != Durability::Passthrough {
        findings.add(Severity::Error, line, &key, "is for durability: passthrough: senders of other lanes do not wait for their upstreams");
    }
    time.unwrap_or(DEFAULT_ANSWER_WITHIN)
}

/// What says how a lane stores makes no sense for one that does not.
fn only_of_lanes_that_store(fields: &mut Fields<'_>, name: Option<&str>, findings: &mut Findings<'_>) {
    for (key, why) in [
        ("onFull", "a lane that stores nothing has nothing to give up: its senders are refused"),
        ("ttl", "a record waits for answerWithin at most"),
        ("order", "nothing waits for the link"),
        ("floor", "nothing of it is on the disk"),
    ] {
        if let Some((text, line)) = fields.text(key, findings)
            && (key, text.as_str()) != ("onFull", "reject")
            && (key, text.as_str()) != ("order", "oldest")
        {
            findings.add(Severity::Error, line, &fields.key(key), format!("found {text:?}; not accepted with durability: passthrough: {why}"));
        }
    }
    if name == Some("default") {
        let text = "passthrough is not accepted for the lane default, which keeps what applications and devices on the box are to get; \
                    declare one with match: [\"#\"] before it";
        findings.add(Severity::Error, fields.line(), &fields.key("durability"), text);
    }
}

fn parse_when_full(text: &str) -> Result<WhenFull, String> {
    match text {
        "reject" => Ok(WhenFull::Reject),
        "drop-oldest" => Ok(WhenFull::DropOldest),
        "drop-newest" => Ok(WhenFull::DropNewest),
        "keep-latest-per-key" => Ok(WhenFull::KeepLatest),
        _ => match text.strip_prefix("downsample(").and_then(|t| t.strip_suffix(')')) {
            None => Err("reject, drop-oldest, drop-newest, keep-latest-per-key or downsample(WINDOWS) such as downsample(1m,5m,1h)".to_owned()),
            Some(list) => {
                let lengths: Option<Vec<Duration>> = list.split(',').map(|t| units::parse_duration(t.trim()).ok()).collect();
                let windows = lengths.and_then(|l| Windows::new(&l));
                windows.map(WhenFull::Downsample).ok_or_else(|| {
                    "downsample with one to four windows of whole seconds, 1s to 366d, each longer than the one before, such as downsample(1m,5m,1h)".to_owned()
                })
            }
        },
    }
}

fn lane(mut fields: Fields<'_>, findings: &mut Findings<'_>) -> Option<LaneSpec> {
    let name = fields.require("name", "letters, digits and dashes", findings).and_then(|(text, line)| {
        let valid = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !valid {
            findings.add(Severity::Error, line, &fields.key("name"), format!("found {text:?}; accepted are a-z, 0-9 and '-', at most 64"));
        }
        if text == NOTICES || text == QUARANTINE {
            findings.add(Severity::Error, line, &fields.key("name"), format!("{text:?} is a lane of the node itself; choose another name"));
        }
        valid.then_some(text)
    });
    let matches = filters(&mut fields, "match", findings);
    if matches.is_empty() && name.as_deref() != Some("default") {
        findings.add(Severity::Error, fields.line(), &fields.key("match"), "is required: topic filters that put a message into this lane");
    }
    let durability = fields.parsed("durability", Durability::Batched(DEFAULT_BATCH), findings, parse_durability);
    let answer_within = answer_within(&mut fields, durability, findings);
    let passes = durability == Durability::Passthrough;
    let (quota, most) = if passes { (DEFAULT_PASSING_BYTES, MOST_PASSING_BYTES) } else { (DEFAULT_QUOTA_BYTES, 1 << 50) };
    let quota_bytes = fields.size("quota", quota, MIN_QUOTA_BYTES..=most, findings);
    if passes {
        only_of_lanes_that_store(&mut fields, name.as_deref(), findings);
    }
    let ttl = Some(fields.duration_above_zero("ttl", DEFAULT_TTL, findings)).filter(|_| !passes);
    let default = if passes { WhenFull::Reject } else { WhenFull::DropOldest };
    let when_full = fields.parsed("onFull", default, findings, parse_when_full);
    let weight = fields.number("weight", 1, 1..=100, findings) as u32;
    let order = fields.parsed("order", Order::Oldest, findings, |t| match t {
        "oldest" => Ok(Order::Oldest),
        "newest" => Ok(Order::Newest),
        _ => Err("oldest or newest".to_owned()),
    });
    if order == Order::Newest && matches!(when_full, WhenFull::KeepLatest | WhenFull::Downsample(_)) {
        let (key, line) = (fields.key("order"), fields.line());
        let text = "newest does not go with onFull: keep-latest-per-key or downsample, which merge what is read in order; accepted with newest are reject, drop-oldest and drop-newest";
        findings.add(Severity::Error, line, &key, text);
    }
    let strict = fields.flag("strict", false, findings);
    let floor_bytes = fields.size("floor", 0, 0..=quota_bytes, findings);
    let spill_after = spill_after(&mut fields, durability, order, findings);
    if !spill_after.is_zero() && matches!(when_full, WhenFull::KeepLatest | WhenFull::Downsample(_)) {
        let key = fields.key("onFull");
        findings.add(Severity::Warning, fields.line(), &key, "merges nothing while spillAfter is not 0: the lane gives its oldest up instead");
    }
    let origin = fields.origin(findings);
    fields.finish(findings);
    Some(LaneSpec {
        origin,
        name: name?,
        matches,
        durability,
        quota_bytes,
        ttl,
        when_full,
        weight,
        strict,
        floor_bytes,
        spill_after,
        order,
        answer_within,
    })
}

/// `first` is the name of the Forwarding that was read before all others, if there is one.
fn forwarding(mut spec: Fields<'_>, name: &str, first: Option<&str>, findings: &mut Findings<'_>) -> ForwardingSpec {
    let mut routes = Vec::new();
    for mut fields in spec.maps("routes", findings) {
        let from = fields.require("from", "the pub/sub that messages come from", findings);
        let topics = filters(&mut fields, "topics", findings);
        let to: Vec<String> = fields.texts("to", findings).into_iter().map(|(t, _)| t).collect();
        if topics.is_empty() {
            findings.add(Severity::Error, fields.line(), &fields.key("topics"), "is required: at least one topic filter");
        }
        if to.is_empty() {
            findings.add(Severity::Error, fields.line(), &fields.key("to"), "is required: at least one pub/sub");
        }
        let prefix = fields.text("prefix", findings).map(|(t, _)| t).unwrap_or_default();
        let strip_prefix = fields.text("stripPrefix", findings).map(|(t, _)| t).unwrap_or_default();
        let when = fields.text("when", findings);
        if let Some((text, line)) = &when
            && let Err(error) = When::parse(text, Counter::default())
        {
            findings.add(Severity::Error, *line, &fields.key("when"), error);
        }
        let when = when.map(|(t, _)| t).unwrap_or_default();
        let mut deliver = fields.parsed("deliver", Deliver::Both, findings, |t| match t {
            "both" => Ok(Deliver::Both),
            "shard" => Ok(Deliver::Shard(ShardKey::Topic)),
            "first-ack" => Ok(Deliver::FirstAck),
            _ => Err("both (each upstream gets everything), shard, or first-ack (done when one of them has it)".to_owned()),
        });
        let key = fields.text("shardBy", findings);
        if let (Some((_, line)), Deliver::Both | Deliver::FirstAck) = (&key, &deliver) {
            findings.add(Severity::Error, *line, &fields.key("shardBy"), "is for deliver: shard");
        }
        if let Some((text, line)) = key {
            match (ShardKey::parse(&text), &mut deliver) {
                (Ok(key), Deliver::Shard(by)) => *by = key,
                (Ok(_), _) => {}
                (Err(accepted), _) => {
                    findings.add(Severity::Error, line, &fields.key("shardBy"), format!("found {text:?}; accepted is {accepted}"));
                }
            }
        }
        let dedupe = fields.map("dedupe", findings).map(|mut fields| {
            let window = fields.duration("window", DEFAULT_DEDUPE_WINDOW, findings);
            let ids = fields.number("ids", DEFAULT_DEDUPE_IDS, 1..=100_000, findings) as usize;
            let () = fields.parsed("by", (), findings, |t| if t == "id" { Ok(()) } else { Err("id".to_owned()) });
            fields.finish(findings);
            DedupeSpec { window, ids }
        });
        let origin = fields.origin(findings);
        fields.finish(findings);
        if let Some((from, _)) = from {
            routes.push(RouteSpec { origin, from, topics, to, prefix, strip_prefix, when, deliver, dedupe });
        }
    }
    let mut lanes = Vec::new();
    for fields in spec.maps("lanes", findings) {
        lanes.extend(lane(fields, findings));
    }
    let mut drain = DrainSpec::default();
    if let Some(mut fields) = spec.map("drain", findings) {
        if let Some(first) = first {
            let text = format!("is one for the node and stands in the first Forwarding, which is {first:?}; it has no effect here");
            findings.add(Severity::Error, fields.line(), fields.path(), text);
        }
        if let Some(mut rate) = fields.map("rate", findings) {
            drain.messages_per_second = Some(rate.number("messages", 0, 1..=10_000_000, findings) as u32).filter(|n| *n > 0);
            drain.bytes_per_second = Some(rate.size("bytes", 0, 1_024..=(1 << 40), findings)).filter(|n| *n > 0);
            rate.finish(findings);
        }
        drain.jitter = fields.duration("jitter", Duration::ZERO, findings);
        drain.live_share = fields.parsed("liveShare", None, findings, |t| parse_share(t).map(Some));
        // Order is what the others promise, so there is nothing to divide in them.
        let in_order: Vec<&str> = lanes.iter().filter(|l: &&LaneSpec| l.order == Order::Oldest).map(|l| l.name.as_str()).collect();
        if drain.live_share.is_some() && (!in_order.is_empty() || lanes.is_empty()) {
            let of = if in_order.is_empty() { "default".to_owned() } else { in_order.join(", ") };
            let text = format!("has no effect on lanes with order: oldest, which keep order ({of}); it divides lanes with order: newest alone");
            findings.add(Severity::Warning, fields.line(), &fields.key("liveShare"), text);
        }
        drain.slow_start = fields.duration("slowStart", Duration::ZERO, findings);
        fields.finish(findings);
    }
    spec.finish(findings);
    ForwardingSpec { name: name.to_owned(), routes, lanes, drain }
}

fn escape_policy(mut spec: Fields<'_>, name: &str, findings: &mut Findings<'_>) -> EscapePolicySpec {
    let mut upstreams = Vec::new();
    for mut fields in spec.maps("upstreams", findings) {
        let component = fields.require("component", "the name of a pub/sub component", findings);
        let role = fields.parsed("role", UpstreamRole::Primary, findings, |t| match t {
            "primary" => Ok(UpstreamRole::Primary),
            "secondary" => Ok(UpstreamRole::Secondary),
            _ => Err("primary or secondary".to_owned()),
        });
        let slow = fields.duration("slow", UpstreamSpec::SLOW, findings);
        let stall = fields.duration("stall", UpstreamSpec::STALL, findings);
        let heal = fields.duration("heal", UpstreamSpec::HEAL, findings);
        let lanes: Vec<String> = fields.texts("lanes", findings).into_iter().map(|(t, _)| t).collect();
        let failback_after = fields.duration("failbackAfter", UpstreamSpec::FAILBACK_AFTER, findings);
        let data_per_month = budget(&mut fields, "data", "/month", findings);
        if role == UpstreamRole::Primary && !lanes.is_empty() {
            findings.add(Severity::Error, fields.line(), &fields.key("lanes"), "is for role: secondary: the lanes that it takes over");
        }
        let (key, origin) = (fields.key("component"), fields.origin(findings));
        fields.finish(findings);
        if let Some((component, line)) = component {
            if let Some(before) = upstreams.iter().position(|u: &UpstreamSpec| u.component == component) {
                let text = format!("found {component:?}, which is spec.upstreams[{before}] already; accepted is each component once");
                findings.add(Severity::Error, line, &key, text);
            }
            let secondaries = upstreams.iter().filter(|u: &&UpstreamSpec| u.role == UpstreamRole::Secondary).count();
            if role == UpstreamRole::Secondary && secondaries > 0 {
                findings.add(
                    Severity::Error,
                    line,
                    "spec.upstreams.role",
                    "found a second secondary; accepted is one, which stands in for every primary",
                );
            }
            upstreams.push(UpstreamSpec { origin, component, role, slow, stall, heal, lanes, failback_after, data_per_month });
        }
    }
    if let Some(alone) = upstreams.iter().find(|u| u.role == UpstreamRole::Secondary)
        && upstreams.iter().all(|u| u.role == UpstreamRole::Secondary)
    {
        let text = format!(
            "found the secondary {:?} and no primary; accepted is a secondary beside the primaries that it stands in for, each listed with its component",
            alone.component
        );
        findings.add(Severity::Error, spec.line_of("upstreams"), &spec.key("upstreams"), text);
    }
    let mut modes = ModeConfig::default();
    let (mut secrets_max_age, mut config_max_age) = (DEFAULT_MAX_AGE, DEFAULT_MAX_AGE);
    if let Some(mut fields) = spec.map("modes", findings) {
        modes.settle = fields.duration("islandAfter", modes.settle, findings);
        modes.heal = fields.duration("normalAfter", modes.heal, findings);
        modes.conserve_after = fields.duration("conserveAfter", modes.conserve_after, findings);
        modes.high_water = fields.parsed("highWater", modes.high_water, findings, parse_percent);
        modes.critical_water = fields.parsed("criticalWater", modes.critical_water, findings, parse_percent);
        secrets_max_age = fields.duration("secretsMaxAge", DEFAULT_MAX_AGE, findings);
        config_max_age = fields.duration("configMaxAge", DEFAULT_MAX_AGE, findings);
        if modes.critical_water < modes.high_water {
            findings.add(Severity::Error, fields.line(), &fields.key("criticalWater"), "is below highWater");
        }
        fields.finish(findings);
    }
    let (mut disk_free, mut flash_per_day, mut data_per_month) = (DiskFloor::default(), None, None);
    if let Some(mut fields) = spec.map("budgets", findings) {
        disk_free = fields.parsed("diskFree", disk_free, findings, |t| {
            parse_percent(t)
                .map(DiskFloor::Percent)
                .or_else(|accepted| units::parse_size(t).map(DiskFloor::Bytes).map_err(|_| format!("{accepted}, or a size such as 64MiB")))
        });
        flash_per_day = budget(&mut fields, "flash", "/day", findings);
        data_per_month = budget(&mut fields, "data", "/month", findings);
        fields.finish(findings);
    }
    let (mut at_rest, mut seal_messages, mut lost_keys) = (Vec::new(), true, Vec::new());
    if let Some(mut fields) = spec.map("atRest", findings) {
        at_rest = keys(&mut fields, findings);
        seal_messages = fields.flag("messages", seal_messages, findings);
        lost_keys = lost(&mut fields, findings);
        fields.finish(findings);
    }
    let mut notices = DEFAULT_NOTICES.to_owned();
    if let Some(mut fields) = spec.map("notices", findings) {
        notices = fields.parsed("topic", notices, findings, |t| {
            let valid = t.is_empty() || topic::check_name(t).is_ok();
            if valid { Ok(t.to_owned()) } else { Err("a topic without wildcards; {node} stands for the node's id; empty for none".to_owned()) }
        });
        fields.finish(findings);
    }
    let origin = spec.origin(findings);
    spec.finish(findings);
    EscapePolicySpec {
        origin,
        name: name.to_owned(),
        upstreams,
        modes,
        disk_free,
        flash_per_day,
        data_per_month,
        secrets_max_age,
        config_max_age,
        at_rest,
        seal_messages,
        lost_keys,
        notices,
    }
}

/// Smallest budget: below it the node's own overhead alone would use it up.
const SMALLEST_BUDGET: u64 = 1_000_000;

fn budget(fields: &mut Fields<'_>, name: &'static str, per: &'static str, findings: &mut Findings<'_>) -> Option<u64> {
    fields.parsed(name, None, findings, |t| {
        let size = t.strip_suffix(per).and_then(|size| units::parse_size(size.trim_end()).ok());
        size.filter(|size| *size >= SMALLEST_BUDGET).map(Some).ok_or_else(|| format!("a size of at least 1MB with {per}, such as 500MB{per}"))
    })
}

/// A part of the whole, in percent: a fraction or a percentage.
fn parse_share(text: &str) -> Result<u8, String> {
    let fraction = || text.parse::<f64>().ok().filter(|n| (0.0..=1.0).contains(n)).map(|n| (n * 100.0).round() as u8);
    let percent = || text.strip_suffix('%').unwrap_or(text).trim_end().parse::<u8>().ok().filter(|n| *n <= 100);
    if text.ends_with('%') { percent() } else { fraction().or_else(percent) }
        .ok_or_else(|| "a fraction from 0 to 1 such as 0.7, or a percentage such as 70%".to_owned())
}

fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|n| n.trim().parse().ok());
    number.filter(|n| (1..=100).contains(n)).ok_or_else(|| "a percentage such as 70%".to_owned())
}
