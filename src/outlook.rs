//! What settings mean in the worst case: how long an outage a lane covers, and what a kill, a power cut and a full quota can cost. Pure
//! arithmetic, for `selvedge check` and `selvedge doctor`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::outbox::{DEFAULT_ANSWER_WITHIN, Durability, Order, WhenFull};
use crate::resource::{DEFAULT_QUOTA_BYTES, LaneSpec, Origin, Resources};

/// What a record costs on disk beside its payload: frame, source, topic (20 letters), one destination, its share of preallocation
/// (decision record 0001: 200 bytes of payload cost about 260).
const RECORD_OVERHEAD_BYTES: u64 = 60;
/// Files are given up as a whole, so as much of a quota may be missing: a segment, 4 MiB or an eighth of the quota if that is less.
const SEGMENT_BYTES: u64 = 4 << 20;

/// How long Linux keeps written pages in memory at most (vm.dirty_expire_centisecs).
const WRITE_BACK_SECONDS: f64 = 30.0;

/// What comes in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Messages a second, more than 0.
    pub per_second: f64,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

impl Default for Load {
    /// 10 messages of 200 bytes a second.
    fn default() -> Self {
        Self { per_second: 10.0, payload_bytes: 200 }
    }
}

/// A lane in the worst case.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneOutlook {
    /// Name.
    pub lane: String,
    /// Whether it stores anything at all.
    pub keeps: bool,
    /// Bytes on disk at most; in memory, of a lane that stores nothing.
    pub quota_bytes: u64,
    /// Records that fit.
    pub records: u64,
    /// How long an outage may last, all of the load going to this lane, before something is lost or refused.
    pub covers: Duration,
    /// Whether it is the lifetime that ends it, not the quota.
    pub ends_by_ttl: bool,
    /// What `kill -9` of the node can cost of what was acknowledged.
    pub kill: String,
    /// What a power cut can cost of what was acknowledged.
    pub power: String,
    /// What happens when the quota is used up.
    pub full: String,
    /// What may surprise.
    pub traps: Vec<String>,
}

/// The lane that takes what no other one does, as it is when nobody declares it.
fn default_lane(free_bytes: Option<u64>) -> LaneSpec {
    LaneSpec {
        origin: Origin::default(),
        name: "default".to_owned(),
        matches: Vec::new(),
        durability: Durability::Batched(Duration::from_millis(20)),
        quota_bytes: free_bytes.map_or(DEFAULT_QUOTA_BYTES, |free| DEFAULT_QUOTA_BYTES.min(free / 10).max(crate::outbox::MIN_QUOTA_BYTES)),
        ttl: Some(Duration::from_secs(7 * 86_400)),
        when_full: WhenFull::DropOldest,
        weight: 1,
        strict: false,
        floor_bytes: 0,
        spill_after: Duration::ZERO,
        order: Order::Oldest,
        answer_within: DEFAULT_ANSWER_WITHIN,
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A lane that stores nothing holds no outage at all.
fn passthrough(spec: &LaneSpec) -> LaneOutlook {
    let nothing = "nothing: it is with the upstream when its sender is told so".to_owned();
    LaneOutlook {
        lane: spec.name.clone(),
        keeps: false,
        quota_bytes: spec.quota_bytes,
        records: 0,
        covers: Duration::ZERO,
        ends_by_ttl: false,
        kill: nothing.clone(),
        power: nothing,
        full: "nothing: senders are refused while that much is on its way".to_owned(),
        traps: vec![format!(
            "durability passthrough: who is refused because the link broke, or did not answer within {} s, repeats what may have arrived",
            spec.answer_within.as_secs_f64()
        )],
    }
}

fn lane(spec: &LaneSpec, declared: bool, load: Load) -> LaneOutlook {
    if spec.durability == Durability::Passthrough {
        return passthrough(spec);
    }
    let record = load.payload_bytes + RECORD_OVERHEAD_BYTES;
    let segment = SEGMENT_BYTES.min(spec.quota_bytes / 8);
    let records = spec.quota_bytes.saturating_sub(segment) / record;
    let by_quota = Duration::from_secs_f64((records as f64 / load.per_second).min(1e9));
    let ends_by_ttl = spec.ttl.is_some_and(|ttl| ttl < by_quota);
    let nothing = || "nothing".to_owned();
    let (kill, power) = match spec.durability {
        Durability::Memory => {
            // Written after `spillAfter` (2 ms at least), or as soon as 1 MiB waits (decision record 0011).
            let spill = spec.spill_after.as_secs_f64().max(0.002);
            let waiting = (load.per_second * spill).min(f64::from(1 << 20) / record as f64).ceil();
            let unwritten = load.per_second * (spill + WRITE_BACK_SECONDS);
            (
                format!("what came in the last {spill} s and is not delivered: about {waiting:.0} messages"),
                format!(
                    "that, and what the system has not written yet ({WRITE_BACK_SECONDS} s): about {unwritten:.0} messages that are not delivered"
                ),
            )
        }
        Durability::Batched(_) | Durability::Fsync | Durability::Passthrough => (nothing(), nothing()),
    };
    let oldest = format!("the oldest records, {} ({} records) at a time", mib(segment), segment / record);
    let full = match spec.when_full {
        WhenFull::Reject => "nothing that was acknowledged: senders are refused".to_owned(),
        WhenFull::DropOldest => oldest,
        // What is done with in memory never reaches a file, and files are what is merged (decision record 0011).
        WhenFull::KeepLatest | WhenFull::Downsample(_) if spec.durability == Durability::Memory && !spec.spill_after.is_zero() => oldest,
        WhenFull::KeepLatest => format!("from three quarters of it on all but the newest of each topic; when that is not enough {oldest}"),
        WhenFull::Downsample(_) => format!("from three quarters of it on single readings, reduced to windows; when that is not enough {oldest}"),
        WhenFull::DropNewest => "every new record: acknowledged and dropped".to_owned(),
    };
    let mut traps = Vec::new();
    if spec.order == Order::Newest {
        traps.push(format!(
            "order newest: after an outage what is live and what came last goes first; topics are in order within {} ({} records) and not beyond",
            mib(segment),
            segment / record
        ));
    }
    if spec.durability == Durability::Memory {
        traps.push("durability memory: senders are answered before anything is on the disk".to_owned());
    }
    if spec.when_full == WhenFull::DropNewest {
        traps.push("onFull drop-newest: senders are told that their messages are safe, and they are not".to_owned());
    }
    if !declared {
        traps.push(
            "nobody declares this lane: what no other lane matches lands here and is dropped, oldest first, after 7 days or at the quota".to_owned(),
        );
    }
    LaneOutlook {
        lane: spec.name.clone(),
        keeps: true,
        quota_bytes: spec.quota_bytes,
        records,
        covers: spec.ttl.map_or(by_quota, |ttl| ttl.min(by_quota)),
        ends_by_ttl,
        kill,
        power,
        full,
        traps,
    }
}

/// All lanes in the order of their rules; `free_bytes` is the room on the disk, if it is known.
#[must_use]
pub fn lanes(resources: &Resources, load: Load, free_bytes: Option<u64>) -> Vec<LaneOutlook> {
    let declared = || resources.forwardings.iter().flat_map(|f| &f.lanes);
    let mut all: Vec<LaneOutlook> = declared().map(|spec| lane(spec, true, load)).collect();
    if !resources.forwardings.is_empty() && declared().all(|l| l.name != "default") {
        all.push(lane(&default_lane(free_bytes), false, load));
    }
    all
}

/// What the sets of upstreams mean, a line each.
#[must_use]
pub fn sets(resources: &Resources) -> Vec<String> {
    let routes = resources.forwardings.iter().flat_map(|f| &f.routes);
    let all: BTreeMap<String, usize> = routes.filter_map(|r| Some((r.set()?, r.to.len()))).collect();
    let line = |(name, members): (&String, &usize)| {
        format!(
            "set {name}: stored once; it waits only while none of them stands; while all stand, each is sent everything: {members} times the bytes of one link"
        )
    };
    all.iter().map(line).collect()
}

/// A time for people: the largest unit that is at least 2.
#[must_use]
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s >= 2.0 * 86_400.0 => format!("{:.0} days", s / 86_400.0),
        s if s >= 2.0 * 3_600.0 => format!("{:.0} hours", s / 3_600.0),
        s if s >= 120.0 => format!("{:.0} minutes", s / 60.0),
        s => format!("{s:.0} seconds"),
    }
}

impl LaneOutlook {
    /// Lines for people, the first one with the lane's name.
    #[must_use]
    pub fn lines(&self, load: Load) -> Vec<String> {
        let by = if self.ends_by_ttl { "then its ttl ends" } else { "then its quota is used up" };
        let first = if self.keeps {
            format!(
                "lane {}: {} hold about {} of an outage at {} messages of {} bytes a second ({by})",
                self.lane,
                mib(self.quota_bytes),
                human(self.covers),
                load.per_second,
                load.payload_bytes
            )
        } else {
            format!(
                "lane {}: nothing is kept; senders are refused while the link is down (at most {} are on their way)",
                self.lane,
                mib(self.quota_bytes)
            )
        };
        let mut lines = vec![first, format!("  can be lost by kill -9: {}; by a power cut: {}; when full: {}", self.kill, self.power, self.full)];
        lines.extend(self.traps.iter().map(|trap| format!("  mind: {trap}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ForwardingSpec;

    fn resources(lanes: Vec<LaneSpec>) -> Resources {
        Resources { forwardings: vec![ForwardingSpec { lanes, ..ForwardingSpec::default() }], ..Resources::default() }
    }

    #[test]
    fn a_lane_covers_what_fits_or_lives_long_enough_whichever_is_less() {
        let spec = |quota_bytes, ttl| LaneSpec { name: "a".into(), quota_bytes, ttl: Some(ttl), ..default_lane(None) };
        let load = Load { per_second: 100.0, payload_bytes: 200 };
        let day = Duration::from_secs(86_400);
        let all = lanes(&resources(vec![spec(100 << 20, day), spec(1 << 40, day)]), load, None);
        // 96 MiB of 260 bytes each, 100 a second.
        assert_eq!((all[0].records, all[0].covers.as_secs(), all[0].ends_by_ttl), ((96 << 20) / 260, (96 << 20) / 26_000, false));
        assert_eq!((all[1].covers, all[1].ends_by_ttl), (day, true));
        assert_eq!((all[2].lane.as_str(), all[2].traps.len()), ("default", 1), "the one that nobody declares is shown too");
        assert!(lanes(&Resources::default(), load, None).is_empty(), "without a Forwarding there is nothing to say");
    }

    #[test]
    fn only_memory_lanes_and_policies_that_drop_lose_what_was_acknowledged() {
        let spec = |durability, when_full| LaneSpec { name: "a".into(), durability, when_full, ..default_lane(None) };
        let safe = lane(&spec(Durability::Fsync, WhenFull::Reject), true, Load::default());
        assert_eq!((safe.kill.as_str(), safe.power.as_str(), safe.traps.len()), ("nothing", "nothing", 0));
        let risky = lane(&spec(Durability::Memory, WhenFull::DropNewest), true, Load { per_second: 50.0, payload_bytes: 200 });
        assert!(risky.kill.contains("about 1 messages") && risky.power.contains("1500 messages") && risky.traps.len() == 2, "{risky:?}");
        let backwards = LaneSpec { order: Order::Newest, ..spec(Durability::Fsync, WhenFull::Reject) };
        assert!(lane(&backwards, true, Load::default()).traps[0].contains("topics are in order within 4.0 MiB (16131 records)"));
        let through = lane(&spec(Durability::Passthrough, WhenFull::Reject), true, Load::default());
        let lines = through.lines(Load::default()).join("\n");
        assert!(lines.starts_with("lane a: nothing is kept; senders are refused while the link is down"), "{lines}");
        assert!(through.kill.starts_with("nothing") && through.power.starts_with("nothing") && through.covers.is_zero());
        let spilling = LaneSpec { spill_after: Duration::from_secs(2), ..spec(Durability::Memory, WhenFull::Reject) };
        assert!(lane(&spilling, true, Load::default()).kill.contains("last 2 s and is not delivered: about 20 messages"));
        assert_eq!(
            [human(Duration::from_secs(90)), human(Duration::from_secs(7_200)), human(Duration::from_secs(400_000))],
            ["90 seconds", "2 hours", "5 days"]
        );
    }
}
