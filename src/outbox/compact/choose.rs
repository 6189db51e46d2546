//! Which segments are compacted next: pure choice, no IO.

use std::ops::Range;

use super::super::WhenFull;
use super::super::lane::Lane;
use super::super::merge::Merge;
use super::UNTOUCHABLE;

/// Most that one pass reads: what a sender may have to wait for in the worst case.
const PASS_BYTES: u64 = 64 << 20;
/// Runs of the node that one segment may hold records of.
const MAX_EPOCHS: usize = 256;

fn clear(lane: &Lane, range: &Range<usize>) -> bool {
    let (Some(first), Some(last)) = (lane.segments.get(range.start), range.end.checked_sub(1)) else { return false };
    let (base, end) = (first.base, lane.segment_end(last));
    lane.places.values().all(|p| !p.cursor.stands_in(base, end))
}

fn eligible(lane: &Lane, at: usize) -> bool {
    let Some(segment) = lane.segments.get(at) else { return false };
    let readable = !segment.corrupt && !segment.cover.is_locked() && segment.level != UNTOUCHABLE;
    at + 1 < lane.segments.len() && readable && clear(lane, &(at..at + 1))
}

/// The run that begins here: as long as `wanted` agrees, no reader stands in it, and it is not too much for one pass.
fn run_from(lane: &Lane, start: usize, mut wanted: impl FnMut(usize) -> bool) -> Range<usize> {
    let (mut end, mut bytes, mut epochs) = (start, 0, 0);
    while eligible(lane, end) && wanted(end) && clear(lane, &(start..end + 1)) {
        bytes += lane.segments[end].disk_bytes;
        epochs += lane.segments[end].epochs.len();
        if end > start && (bytes > PASS_BYTES || epochs > MAX_EPOCHS) {
            break;
        }
        end += 1;
    }
    start..end
}

/// What to compact next. None when nothing is to be gained.
pub(super) fn select(lane: &mut Lane, limit: u64) -> Option<(Range<usize>, Merge)> {
    let sealed = lane.segments.len().saturating_sub(1);
    match lane.config.when_full {
        WhenFull::KeepLatest => loop {
            let from = lane.compaction.from;
            let start = (0..sealed).find(|at| lane.segments[*at].base >= from && eligible(lane, *at));
            if let Some(start) = start {
                let run = run_from(lane, start, |_| true);
                lane.compaction.from = lane.segment_end(run.end - 1);
                return Some((run, Merge::Latest));
            }
            let again = std::mem::take(&mut lane.compaction.gained);
            lane.compaction.from = 0;
            if from == 0 || !again {
                return None;
            }
        },
        WhenFull::Downsample(windows) => {
            let windows = windows.seconds();
            let candidates: Vec<usize> =
                (0..sealed).filter(|at| usize::from(lane.segments[*at].level) < windows.len() && eligible(lane, *at)).collect();
            let held = |level: usize| {
                candidates.iter().map(|at| &lane.segments[*at]).filter(|s| usize::from(s.level) == level).map(|s| s.disk_bytes).sum::<u64>()
            };
            // Of the level that holds most bytes, the older half goes on to the next.
            let level = (0..windows.len()).filter(|l| held(*l) > 0).max_by_key(|l| (held(*l), std::cmp::Reverse(*l)))?;
            let of_level: Vec<usize> = candidates.into_iter().filter(|at| usize::from(lane.segments[*at].level) == level).collect();
            let most = of_level.len().div_ceil(2);
            let start = *of_level.first()?;
            let mut run = run_from(lane, start, |at| at - start < most && usize::from(lane.segments[at].level) == level);
            // What the pass before this one left small is filled up.
            if let Some(before) = run.start.checked_sub(1)
                && eligible(lane, before)
                && usize::from(lane.segments[before].level) == level + 1
                && lane.segments[before].disk_bytes < limit / 2
                && lane.segments[before].epochs.len() < MAX_EPOCHS / 2
                && clear(lane, &(before..run.end))
            {
                run.start = before;
            }
            Some((run, Merge::Window { seconds: windows[level], level: level as u8 + 1 }))
        }
        _ => None,
    }
}
