//! Tombstones: what became of records that never arrive. The ledger says how many there are, and what has been told of it is kept; ranges
//! and reasons are added as far as they are known, since a crash forgets them. Each tombstone carries the totals, so that one that is
//! repeated after a crash does no harm.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::hub::NOTICES;
use crate::outbox::{DestinationId, LedgerRow, Loss, LossReason, Outbox};

/// What has been told of each line of the books (`LANE DESTINATION`): expired, evicted, aggregated.
pub(super) type Told = BTreeMap<String, [u64; 3]>;

/// Ranges that are noted and not told.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<(DestinationId, String, LossReason), Loss>);

fn line(row: &LedgerRow) -> String {
    format!("{} {}", row.lane, row.destination)
}

fn totals(row: &LedgerRow) -> [u64; 3] {
    [row.expired, row.evicted, row.aggregated]
}

/// Whether the line has losses that have not been told. The node's own notices are not worth notices.
pub(super) fn is_untold(told: &Told, row: &LedgerRow) -> bool {
    row.lane != NOTICES && told.get(&line(row)).copied().unwrap_or_default() != totals(row)
}

/// The line has been told of as it is.
pub(super) fn tell(told: &mut Told, row: &LedgerRow) {
    told.insert(line(row), totals(row));
}

impl Ranges {
    /// Takes over what the store has noted for a destination.
    pub(super) fn gather(&mut self, outbox: &Outbox, destination: DestinationId) {
        for (lane, reason, loss) in outbox.take_losses(destination) {
            self.0.entry((destination, lane, reason)).and_modify(|all| all.merge(loss)).or_insert(loss);
        }
    }

    /// The tombstones of a line; its ranges are used up.
    pub(super) fn tombstones(&mut self, told: &Told, node: &str, destination: DestinationId, row: &LedgerRow) -> Vec<Value> {
        let before = told.get(&line(row)).copied().unwrap_or_default();
        let now = totals(row);
        let mut missing: [u64; 3] = std::array::from_fn(|i| now[i].saturating_sub(before[i]));
        let stone = |reason: &str, count: u64, range: Option<Loss>| {
            let mut stone = json!({
                "kind": "tombstone", "node": node, "lane": row.lane, "destination": row.destination, "reason": reason, "count": count,
                "totals": {"expired": row.expired, "evicted": row.evicted, "aggregated": row.aggregated},
            });
            if let Some(loss) = range {
                stone["sequences"] = json!([loss.sequences.0, loss.sequences.1]);
                stone["times"] = json!([loss.times.0.to_rfc3339(), loss.times.1.to_rfc3339()]);
            }
            stone
        };
        let mut stones = Vec::new();
        self.0.retain(|(d, lane, reason), loss| {
            if *d != destination || *lane != row.lane {
                return true;
            }
            let column = match reason {
                LossReason::Expired => 0,
                LossReason::Aggregated => 2,
                _ => 1,
            };
            // What the ledger does not know yet waits for it.
            if loss.count > missing[column] {
                return true;
            }
            missing[column] -= loss.count;
            stones.push(stone(reason.as_str(), loss.count, Some(*loss)));
            false
        });
        for (column, count) in ["expired", "evicted", "aggregated"].into_iter().zip(missing) {
            if count > 0 {
                stones.push(stone(column, count, None));
            }
        }
        stones
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn tombstones_add_up_to_what_the_books_have_lost_with_ranges_as_far_as_they_are_known() {
        let outbox = Outbox::simulated(&["default"], std::sync::Arc::new(crate::time::ManualClock::default()));
        let cloud = outbox.destination("upstream/cloud").unwrap();
        let row =
            |expired, evicted| LedgerRow { lane: "default".into(), destination: "upstream/cloud".into(), expired, evicted, ..LedgerRow::default() };
        let (mut told, mut ranges) = (Told::new(), Ranges::default());
        assert!(!is_untold(&told, &row(0, 0)) && is_untold(&told, &row(1, 0)));
        let loss = Loss { count: 5, sequences: (10, 19), times: (Timestamp(0), Timestamp(1_000)) };
        ranges.0.insert((cloud, "default".into(), LossReason::Quota), loss);
        // Three more were evicted before a crash, which knows nothing but their number.
        let stones = ranges.tombstones(&told, "box", cloud, &row(2, 8));
        let facts: Vec<_> = stones.iter().map(|s| (s["reason"].as_str().unwrap(), s["count"].as_u64().unwrap(), s["sequences"].clone())).collect();
        assert_eq!(facts, [("quota", 5, json!([10, 19])), ("expired", 2, Value::Null), ("evicted", 3, Value::Null)]);
        assert_eq!(stones[0]["totals"], json!({"expired": 2, "evicted": 8, "aggregated": 0}));
        tell(&mut told, &row(2, 8));
        assert!(!is_untold(&told, &row(2, 8)));
        assert!(ranges.tombstones(&told, "box", cloud, &row(2, 8)).is_empty());
    }
}
