//! The node's folder: its id, its store, its tables.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::components::is_mode_store;
use super::{Host, NodeConfig, NodeError, version};
use crate::component::Tables;
use crate::hub::{Hub, LaneRule, NOTICES, QUARANTINE, QUARANTINE_BYTES};
use crate::outbox::{AtRest, LaneConfig, Locked, MIN_QUOTA_BYTES, Outbox, OutboxConfig, Vanished, WhenFull};
use crate::resource::{DEFAULT_QUOTA_BYTES, LaneSpec, Resources, read_keys};

/// The lane that every node has.
const DEFAULT_LANE: &str = "default";
const SEGMENT_BYTES: u64 = 4 << 20;
/// How long the node's own notices are worth telling.
const NOTICES_TTL: Duration = Duration::from_secs(30 * 86_400);

/// Whether a text may be a node's id. It stands in topics, in record ids and in properties, so one that a broker would not take keeps the
/// box from sending anything.
fn may_be_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c))
}

/// The node's id: kept in its folder, made once from the host's name and random letters. A file that holds no such thing is set aside
/// (`node-id.corrupt`, noted in `set_aside`) and made anew with the id that `known` gives, what the store says.
///
/// # Errors
/// When the file cannot be read or written.
pub fn node_id(data_dir: &Path, known: impl FnOnce() -> Option<String>, set_aside: &mut Vec<PathBuf>) -> std::io::Result<String> {
    let path = data_dir.join("node-id");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let id = std::str::from_utf8(&bytes).unwrap_or_default().trim();
            if may_be_id(id) {
                return Ok(id.to_owned());
            }
            let kept_as = path.with_extension("corrupt");
            std::fs::rename(&path, &kept_as)?;
            tracing::error!(
                path = %path.display(), kept_as = %kept_as.display(),
                "it holds no node id (1 to 64 letters, digits and -_.:); a damaged file is set aside"
            );
            set_aside.push(kept_as);
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let id = match known().filter(|id| may_be_id(id)) {
        Some(id) => id,
        None => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect();
            let mut random = [0u8; 4];
            getrandom::fill(&mut random).map_err(|e| std::io::Error::other(e.to_string()))?;
            format!("{}-{:08x}", if host.is_empty() { "node" } else { &host }, u32::from_le_bytes(random))
        }
    };
    std::fs::write(&path, format!("{id}\n"))?;
    Ok(id)
}

/// Whether anything here stores messages. A node that is configured as a plain Dapr sidecar keeps no folder.
fn needs_store(resources: &Resources) -> bool {
    let upstream = |t: &str| ["pubsub.mqtt", "pubsub.mqtt3", "pubsub.mqtt5", "pubsub.local"].contains(&t.to_ascii_lowercase().as_str());
    !resources.listeners.is_empty()
        || !resources.forwardings.is_empty()
        || resources.components.iter().any(|c| upstream(&c.type_name) || c.publishes_to_local() || is_mode_store(c))
        // What a durable state store commits is told of after a restart too.
        || resources.components.iter().any(|c| c.has_outbox() && !c.type_name.eq_ignore_ascii_case("state.in-memory"))
}

/// A lane as the store keeps it.
pub(super) fn lane(spec: &LaneSpec) -> LaneConfig {
    LaneConfig {
        name: spec.name.clone(),
        durability: spec.durability,
        quota_bytes: spec.quota_bytes,
        ttl: spec.ttl,
        when_full: spec.when_full,
        floor_bytes: spec.floor_bytes,
        spill_after: spec.spill_after,
        order: spec.order,
        answer_within: spec.answer_within,
    }
}

/// Which topics belong to which lane.
pub(super) fn lane_rules(resources: &Resources) -> Vec<LaneRule> {
    let rule = |spec: &LaneSpec| LaneRule { lane: spec.name.clone(), filters: spec.matches.clone(), weight: spec.weight, strict: spec.strict };
    let mut rules: Vec<LaneRule> = resources.forwardings.iter().flat_map(|f| &f.lanes).map(rule).collect();
    if resources.notices().is_some() {
        rules.push(LaneRule { lane: NOTICES.to_owned(), filters: Vec::new(), weight: 1, strict: true });
    }
    rules
}

/// Lanes in the order of the rules, the default one last, and the rules.
fn lanes(resources: &Resources, default_quota: u64) -> (Vec<LaneConfig>, Vec<LaneRule>) {
    let mut lanes: Vec<LaneConfig> = Vec::new();
    for spec in resources.forwardings.iter().flat_map(|f| &f.lanes) {
        if lanes.iter().all(|l| l.name != spec.name) {
            lanes.push(lane(spec));
        }
    }
    lanes.push(LaneConfig { quota_bytes: QUARANTINE_BYTES, when_full: WhenFull::DropOldest, ..LaneConfig::new(QUARANTINE) });
    if resources.notices().is_some() {
        lanes.push(LaneConfig {
            quota_bytes: MIN_QUOTA_BYTES,
            ttl: Some(NOTICES_TTL),
            when_full: WhenFull::DropOldest,
            floor_bytes: MIN_QUOTA_BYTES,
            ..LaneConfig::new(NOTICES)
        });
    }
    if lanes.iter().all(|l| l.name != DEFAULT_LANE) {
        lanes.push(LaneConfig {
            quota_bytes: default_quota,
            ttl: Some(Duration::from_secs(7 * 86_400)),
            when_full: WhenFull::DropOldest,
            ..LaneConfig::new(DEFAULT_LANE)
        });
    }
    (lanes, lane_rules(resources))
}

/// What stored messages are sealed with. A key that cannot be read does not keep the node from starting: what it would have opened is kept,
/// and nothing is stored in the clear instead.
fn at_rest(config: &NodeConfig) -> AtRest {
    let Some(policy) = config.resources.escape_policies.first() else { return AtRest::default() };
    let environment = |name: &str| config.environment.get(name).cloned();
    let known = match read_keys(&policy.at_rest, &environment) {
        Ok(keys) => AtRest::with_keys(&keys, policy.seal_messages),
        Err(error) => {
            tracing::error!("{error}; stored messages cannot be opened and new ones cannot be stored until it can be read at a start");
            AtRest::missing(error)
        }
    };
    known.without(&policy.lost_keys)
}

/// An open store.
pub(super) struct Store {
    pub hub: Hub,
    pub tables: Arc<dyn Tables>,
    /// Files that were damaged, by their new names.
    pub set_aside: Vec<PathBuf>,
    /// What cannot be opened for want of a key.
    pub locked: Vec<Locked>,
    /// What was stored and stands in no file any more.
    pub vanished: Vec<Vanished>,
}

/// Opens the store if anything needs it.
pub(super) async fn open(config: &NodeConfig, host: &Host) -> Result<Option<Store>, NodeError> {
    if !needs_store(&config.resources) {
        return Ok(None);
    }
    let dir = &config.data_dir;
    let fail = |detail: String| NodeError::DataDir { path: dir.clone(), detail };
    // Before anything is made or locked: a folder of a newer version is left as it is.
    let version =
        version::check(&*host.storage, dir).map_err(|e| fail(format!("store-version cannot be read: {e}")))?.map_err(|e| fail(e.to_string()))?;
    host.storage.make_dir(dir).map_err(|e| fail(e.to_string()))?;
    let mut set_aside = Vec::new();
    let known = || Outbox::known_node(&dir.join("outbox"), host.storage.as_ref());
    let node = node_id(dir, known, &mut set_aside).map_err(|e| fail(e.to_string()))?;
    let free = host.storage.space(dir).map_or(DEFAULT_QUOTA_BYTES * 10, |s| s.available);
    let (lanes, rules) = lanes(&config.resources, DEFAULT_QUOTA_BYTES.min(free / 10).max(MIN_QUOTA_BYTES));
    let at_rest = at_rest(config);
    let outbox_config = OutboxConfig {
        dir: dir.join("outbox"),
        node,
        lanes,
        segment_bytes: SEGMENT_BYTES,
        cursor_interval: Duration::from_secs(1),
        at_rest: at_rest.clone(),
    };
    let (outbox, recovery) = Outbox::open(outbox_config, host.storage.clone(), host.clock.clone()).map_err(|e| fail(e.to_string()))?;
    outbox.register_metrics(&host.metrics);
    for locked in &recovery.locked {
        tracing::error!(
            key = %locked.key, lane = %locked.lane, segments = locked.segments, keys = ?at_rest.key_ids(),
            "messages are sealed with a key that is not among spec.atRest.keys: they are kept, and sent once it is there at a start (if it is lost for good: spec.atRest.lostKeys)"
        );
    }
    for Vanished { lane, sequences: (first, last), records } in &recovery.vanished {
        tracing::error!(
            lane = %lane, first, last, records,
            "messages that were stored stand in no file any more: a segment has vanished or lost its end; they are counted as lost"
        );
    }
    version::bring_forward(&*host.storage, dir, version).map_err(|e| fail(e.to_string()))?;
    tracing::info!(
        segments = recovery.segments,
        scanned_records = recovery.scanned_records,
        torn_tails = recovery.torn_tails,
        set_aside = recovery.set_aside.len(),
        "the outbox is open"
    );
    let tables = (host.open_tables)(dir.clone(), host.metrics.clone()).await.map_err(fail)?;
    let retained = tables.open("retained").await.map_err(|e| fail(e.to_string()))?;
    let hub = Hub::new(outbox, rules, retained, host.clock.clone()).await.map_err(|e| fail(e.to_string()))?;
    set_aside.extend(recovery.set_aside);
    set_aside.extend(tables.set_aside());
    Ok(Some(Store { hub, tables, set_aside, locked: recovery.locked, vanished: recovery.vanished }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_id_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut set_aside = Vec::new();
        let id = node_id(dir.path(), || None, &mut set_aside).unwrap();
        assert_eq!(node_id(dir.path(), || None, &mut set_aside).unwrap(), id);
        assert!(may_be_id(&id) && set_aside.is_empty());
    }

    #[test]
    fn a_damaged_node_id_is_set_aside_and_the_store_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-id");
        for broken in [&b"\xff\xfe"[..], b"", b"site/7", b"site+", b"si\x07te", &[b'x'; 65]] {
            std::fs::write(&path, broken).unwrap();
            let mut set_aside = Vec::new();
            assert_eq!(node_id(dir.path(), || Some("site7".to_owned()), &mut set_aside).unwrap(), "site7", "{broken:?}");
            assert_eq!(set_aside, [dir.path().join("node-id.corrupt")]);
            assert_eq!(node_id(dir.path(), || None, &mut set_aside).unwrap(), "site7", "kept");
        }
        std::fs::write(&path, b"#").unwrap();
        let id = node_id(dir.path(), || Some("#".to_owned()), &mut Vec::new()).unwrap();
        assert!(may_be_id(&id), "{id}");
    }

    #[test]
    fn a_plain_sidecar_keeps_no_folder_and_every_other_node_has_a_default_lane_and_a_quarantine() {
        assert!(!needs_store(&Resources::default()));
        let (lanes, rules) = lanes(&Resources::default(), 5 << 20);
        assert_eq!((lanes.len(), lanes[1].name.as_str(), lanes[1].quota_bytes, rules.len()), (2, "default", 5 << 20, 0));
    }
}
