//! The store as a whole, over the simulated file layer, its writer stepped by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::sim::SimStorage;
use super::*;
use crate::time::{ManualClock, Timestamp};

mod compact;
mod damage;
mod hold;
mod newest;
mod passing;
mod power;
mod sealed;

const PAYLOAD: usize = 200;

fn config(durability: Durability, quota: u64, when_full: WhenFull) -> OutboxConfig {
    let lane = |name: &str| LaneConfig { durability, quota_bytes: quota, when_full, ..LaneConfig::new(name) };
    OutboxConfig {
        dir: "/store".into(),
        node: "n1".into(),
        lanes: vec![lane("default")],
        segment_bytes: 64 << 10,
        cursor_interval: Duration::from_secs(1),
        at_rest: AtRest::default(),
    }
}

/// Key `n`.
fn key(n: u8) -> crate::seal::MasterKey {
    crate::seal::MasterKey::new([n; crate::seal::KEY_BYTES])
}

/// Ways to seal that can all read what the others wrote, so that a store may go from one to another at every start.
fn sealing(n: u64) -> AtRest {
    let (keys, seals) = match n % 4 {
        0 => ([1, 2, 3], true),
        1 => ([1, 2, 3], false),
        2 => ([2, 1, 3], true),
        _ => ([3, 2, 1], true),
    };
    AtRest::with_keys(&keys.map(key), seals)
}

fn fsync() -> OutboxConfig {
    config(Durability::Fsync, 64 << 20, WhenFull::Reject)
}

/// A record of the topic `t`, without a lifetime.
fn record<'a>(payload: &'a [u8], destinations: &'a [DestinationId]) -> NewRecord<'a> {
    NewRecord { source: "local", topic: "t", payload, attributes: Attributes::default(), qos: 1, retain: false, ttl_seconds: None, destinations }
}

struct Bench {
    outbox: Outbox,
    writer: Writer,
    clock: Arc<ManualClock>,
    to: DestinationId,
    lane: LaneId,
}

fn open(config: OutboxConfig, storage: &SimStorage) -> (Bench, Recovery) {
    try_open(config, storage).unwrap()
}

#[test]
fn a_newer_store_is_refused_untouched_and_a_damaged_manifest_is_not() {
    use super::storage::Storage as _;
    let storage = SimStorage::default();
    let manifest = Path::new("/store/manifest");
    drop(open(fsync(), &storage));
    storage.replace(manifest, &files::encode(&serde_json::json!({"version": 9, "other": true})), true).unwrap();
    let before = (storage.read(manifest).unwrap(), storage.list(Path::new("/store")).unwrap());
    assert_eq!(try_open(fsync(), &storage).err(), Some(OutboxError::Newer { found: 9, known: 1 }));
    assert_eq!((storage.read(manifest).unwrap(), storage.list(Path::new("/store")).unwrap()), before);
    storage.replace(manifest, b"00000000\n{\"version\": 9}", true).unwrap();
    assert_eq!(open(fsync(), &storage).1.set_aside.len(), 1);
}

fn try_open(config: OutboxConfig, storage: &SimStorage) -> Result<(Bench, Recovery), OutboxError> {
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let (outbox, writer, recovery) = Outbox::open_without_thread(config, Arc::new(storage.clone()), clock.clone())?;
    let to = outbox.destination("upstream/cloud")?;
    let lane = outbox.lane("default").unwrap();
    Ok((Bench { outbox, writer, clock, to, lane }, recovery))
}

impl Bench {
    fn append(&self, n: u64) -> Appended {
        let payload = payload(n);
        self.append_with(&payload, None)
    }

    fn append_with(&self, payload: &[u8], ttl_seconds: Option<u32>) -> Appended {
        let to = [self.to];
        self.outbox.append(self.lane, &[NewRecord { topic: "sensors/a", ttl_seconds, ..record(payload, &to) }])
    }

    fn row(&self) -> LedgerRow {
        let row = self.outbox.ledger().into_iter().find(|r| r.destination == "upstream/cloud").unwrap();
        assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "{row:?}");
        row
    }

    fn read(&self, reader: &mut Reader) -> Vec<(u64, u64)> {
        let mut run = Run::default();
        let mut all = Vec::new();
        while reader.next_run(50, 8 << 10, &mut run).unwrap() > 0 {
            all.extend(run.iter().map(|r| (r.id.sequence, number(r.payload()))));
        }
        all
    }
}

fn payload(n: u64) -> Vec<u8> {
    let mut p = n.to_le_bytes().to_vec();
    p.resize(PAYLOAD, n as u8);
    p
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

#[test]
fn a_record_is_readable_at_once_and_durable_only_after_its_sync() {
    let storage = SimStorage::default();
    let (mut b, _) = open(config(Durability::Batched(Duration::from_millis(20)), 64 << 20, WhenFull::Reject), &storage);
    let id = b.append(1).last;
    assert_eq!(b.outbox.record_id_text(id), "n1/1000/default/1", "the second of the opening");
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(b.read(&mut reader), [(1, 1)]);
    assert!(b.outbox.write_counts().bytes == 0 && !b.outbox.is_durable(b.lane, 1), "not even written");
    b.writer.step(false);
    assert!(b.read(&mut reader).is_empty(), "handed out once");
    assert!(!b.outbox.is_durable(b.lane, 1), "written is not synced");
    b.clock.advance(Duration::from_millis(20));
    b.writer.step(false);
    assert!(b.outbox.is_durable(b.lane, 1));
    let syncs = b.outbox.write_counts().syncs;
    for n in 2..100 {
        b.append(n);
    }
    b.clock.advance(Duration::from_millis(20));
    b.writer.step(false);
    b.clock.advance(Duration::from_millis(20));
    b.writer.step(false);
    assert_eq!(b.outbox.write_counts().syncs, syncs + 1, "one sync for all of them");
}

#[test]
fn while_flash_is_scarce_batches_last_a_second_and_cursors_half_a_minute() {
    let storage = SimStorage::default();
    let (mut b, _) = open(config(Durability::Batched(Duration::from_millis(20)), 64 << 20, WhenFull::Reject), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut pass = |b: &mut Bench, scarce: bool| {
        b.outbox.spare_flash(scarce);
        let before = b.outbox.write_counts();
        for n in 0..1_200 {
            let id = b.append(n).last;
            b.writer.step(false);
            b.clock.advance(Duration::from_millis(50));
            b.writer.step(false);
            assert!(scarce || b.outbox.is_durable(b.lane, id.sequence));
            let all = b.read(&mut reader);
            reader.acknowledge(&all.iter().map(|(s, _)| *s).collect::<Vec<_>>());
        }
        let after = b.outbox.write_counts();
        (after.syncs - before.syncs, after.flash_bytes - before.flash_bytes)
    };
    let ((syncs, flash), (few, little)) = (pass(&mut b, false), pass(&mut b, true));
    assert!(syncs == 1_200 && (55..=65).contains(&few), "{syncs} and {few} syncs a minute");
    assert!(little < flash / 8, "{little} of {flash}");
    assert!(pass(&mut b, false).0 >= 1_199, "and as before once there is enough of it");
}

#[test]
fn reading_goes_from_file_to_memory_and_back_without_a_gap_or_a_repeat() {
    for seed in 1..200 {
        let storage = SimStorage::default();
        let (mut b, _) = open(OutboxConfig { segment_bytes: 64 << 10, at_rest: sealing(seed), ..fsync() }, &storage);
        let mut random = Random(seed);
        let (mut reader, mut run, mut got, mut sent) = (b.outbox.reader(b.to, b.lane), Run::default(), Vec::new(), 0);
        while got.len() < 600 {
            for _ in 0..random.next() % 12 {
                // A lane that cannot be written takes nothing new.
                sent += b.append(sent).taken as u64;
            }
            match random.next() % 8 {
                0..3 => {
                    b.clock.advance(Duration::from_secs(6));
                    b.writer.step(false);
                }
                // What was written is now in the writer's hand again, before what waits.
                3 => storage.fail_syncs(1),
                _ => {}
            }
            let most = 1 + (random.next() % 9) as usize;
            if reader.next_run(most, 600, &mut run).unwrap() > 0 {
                got.extend(run.iter().map(|r| number(r.payload())));
                let sequences: Vec<u64> = run.iter().map(|r| r.id.sequence).collect();
                reader.acknowledge(&sequences);
            }
        }
        assert!(got.iter().copied().eq(0..got.len() as u64), "seed {seed}: {got:?}");
        assert_eq!(b.row().delivered, got.len() as u64);
    }
}

#[test]
fn acknowledged_records_do_not_come_back_and_the_rest_does_over_a_restart() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    for n in 0..1_000 {
        b.append(n);
        if n % 100 == 0 {
            b.writer.step(false);
        }
    }
    b.writer.step(false);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let all = b.read(&mut reader);
    assert_eq!(all.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..1_000).collect::<Vec<_>>());
    let acked: Vec<u64> = all.iter().map(|(s, _)| *s).filter(|s| *s <= 400 || *s % 2 == 0).collect();
    reader.acknowledge(&acked);
    assert_eq!(b.row().delivered, acked.len() as u64);
    let first_epoch = b.outbox.shared.epoch;
    b.writer.step(true);
    drop((reader, b));

    let (b, recovery) = open(fsync(), &storage);
    let epoch = b.outbox.shared.epoch;
    assert!(epoch > first_epoch, "a new epoch");
    assert_eq!(b.outbox.record_id_text(RecordId { lane: b.lane, epoch, sequence: 1 }), format!("n1/{epoch}/default/1"));
    assert!(recovery.scanned_records < 400, "only the last segment is read: {recovery:?}");
    let mut reader = b.outbox.reader(b.to, b.lane);
    let rest: Vec<u64> = b.read(&mut reader).iter().map(|(s, _)| *s).collect();
    assert_eq!(rest, (401..=1_000).filter(|s| s % 2 == 1).collect::<Vec<_>>());
    let row = b.row();
    assert_eq!((row.accepted, row.delivered, row.queued), (1_000, 700, 300));
}

#[test]
fn finished_segments_are_removed_and_memory_does_not_grow_with_the_backlog() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    for n in 0..5_000 {
        b.append(n);
        b.writer.step(false);
    }
    let segments = b.outbox.status()[0].segments;
    assert!(segments > 15, "{segments}");
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut run = Run::default();
    while reader.next_run(100, 16 << 10, &mut run).unwrap() > 0 {
        assert!(run.buffer.capacity() <= 64 << 10);
        let sequences: Vec<u64> = run.iter().map(|r| r.id.sequence).collect();
        reader.acknowledge(&sequences);
    }
    b.writer.step(false);
    assert_eq!((b.outbox.status()[0].segments, b.row().queued), (1, 0));
}

#[test]
fn a_bounded_lane_does_at_its_bound_what_it_does_at_its_quota_and_a_shut_one_refuses_until_it_is_opened() {
    for policy in [WhenFull::Reject, WhenFull::DropOldest, WhenFull::DropNewest] {
        let (mut b, _) = open(config(Durability::Fsync, 1 << 20, policy), &SimStorage::default());
        let fill = |b: &mut Bench, records| {
            let taken = (0..records).map(|n| (b.append(n).taken, b.writer.step(false)).0).sum::<usize>();
            (taken, b.outbox.status()[0].disk_bytes)
        };
        b.outbox.bound_lanes(|_, _| Bound::Held);
        let (taken, disk) = fill(&mut b, 2_000);
        assert!(disk <= 1 << 18, "an empty lane may grow to a quarter: {disk}");
        let held = b.outbox.status()[0].refused;
        assert_eq!((taken < 2_000, held[1] > 0), (policy == WhenFull::Reject, policy == WhenFull::Reject), "{policy:?}");
        b.outbox.bound_lanes(|_, _| Bound::Shut);
        assert!(matches!(b.append(1).refused, Some(OutboxError::Shut { .. })));
        assert_eq!(b.outbox.status()[0].refused, [0, held[1], 1, 0, 0, 0, 0, 0, 0]);
        b.outbox.bound_lanes(|_, _| Bound::Quota);
        let (taken, disk) = fill(&mut b, 2_000);
        assert!(taken == 2_000 && disk > 1 << 18, "{policy:?}: {disk}");
        // What it holds by now is no more than it may hold.
        b.outbox.bound_lanes(|_, _| Bound::Held);
        assert!(fill(&mut b, 2_000).1 <= disk);
    }
}

#[test]
fn quota_policies() {
    for (policy, queued_all) in [(WhenFull::Reject, false), (WhenFull::DropOldest, true), (WhenFull::DropNewest, true)] {
        let storage = SimStorage::default();
        let (mut b, _) = open(config(Durability::Fsync, 1 << 20, policy), &storage);
        let mut refused = 0;
        for n in 0..10_000 {
            let appended = b.append(n);
            refused += u64::from(matches!(appended.refused, Some(OutboxError::Full { .. })));
            b.writer.step(false);
            assert!(b.outbox.status()[0].disk_bytes <= 1 << 20);
            assert!(appended.taken == 0 || b.outbox.is_durable(b.lane, appended.last.sequence), "{policy:?}: the sender of {n} is answered");
        }
        let row = b.row();
        assert_eq!(row.accepted + refused, 10_000, "{policy:?}");
        assert_eq!(refused == 0, queued_all, "{policy:?}");
        let mut reader = b.outbox.reader(b.to, b.lane);
        let left: Vec<u64> = b.read(&mut reader).iter().map(|(_, n)| *n).collect();
        assert_eq!(left.len() as u64, row.queued);
        match policy {
            WhenFull::DropOldest => assert_eq!(left.last(), Some(&9_999)),
            _ => assert_eq!(left[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        }
        assert_eq!(row.evicted > 0, policy != WhenFull::Reject);
        // The books hold after a restart too.
        b.writer.step(true);
        drop((reader, b.outbox, b.writer));
        let (again, _) = open(config(Durability::Fsync, 1 << 20, policy), &storage);
        assert_eq!(again.row(), row, "{policy:?}");
    }
}

#[test]
fn the_sender_of_a_record_that_is_dropped_at_once_waits_for_those_before_it_and_for_nothing_else() {
    let storage = SimStorage::default();
    let (mut b, _) = open(config(Durability::Fsync, 1 << 20, WhenFull::DropNewest), &storage);
    // They wait for the writer, so the last ones find no room.
    let last = (0..10_000).fold(0, |_, n| b.append(n).last.sequence);
    assert!(b.row().evicted > 0 && !b.outbox.is_durable(b.lane, last));
    b.writer.step(false);
    assert!(b.outbox.is_durable(b.lane, last));
    let dropped = b.append(0).last.sequence;
    assert!(dropped > last && b.outbox.is_durable(b.lane, dropped), "nothing has to be written for it");
}

#[test]
fn expired_records_are_left_out_and_counted() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    b.append_with(&payload(1), Some(10));
    b.append_with(&payload(2), None);
    b.writer.step(false);
    b.clock.advance(Duration::from_secs(10));
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(b.read(&mut reader), [(2, 2)]);
    assert_eq!((b.row().expired, b.row().queued), (1, 1));
}

#[test]
fn no_jump_of_the_wall_clock_and_no_start_in_1970_makes_a_record_expire() {
    let hour = Duration::from_secs(3_600);
    let (storage, mut lasting) = (SimStorage::default(), fsync());
    lasting.lanes[0].ttl = Some(2 * hour);
    let (mut b, _) = open(lasting.clone(), &storage);
    b.append_with(&payload(1), Some(3_600));
    b.append(2);
    // Set from nowhere to 2026, back before the beginning, and to 2082.
    for wall in [1_795_000_000_000, 0, 3_500_000_000_000] {
        b.clock.set_wall(Timestamp(wall));
        b.writer.step(false);
        assert_eq!(b.row().queued, 2);
    }
    assert_eq!(
        b.outbox.accepted_at(
            &{
                let mut run = Run::default();
                b.outbox.reader(b.to, b.lane).next_run(1, 1_000, &mut run).unwrap();
                run
            }
            .iter()
            .next()
            .unwrap()
        ),
        Timestamp(3_500_000_000_000),
        "told by the clock as it is now"
    );
    b.clock.advance(hour / 2);
    b.append(3);
    b.writer.step(true);
    drop(b);
    // The next start is in 1970: what the store knows counts.
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let (outbox, writer, _) = Outbox::open_without_thread(lasting, Arc::new(storage.clone()), clock.clone()).unwrap();
    let (to, lane) = (outbox.destination("upstream/cloud").unwrap(), outbox.lane("default").unwrap());
    let b = Bench { outbox, writer, clock, to, lane };
    b.clock.advance(hour);
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(b.read(&mut reader), [(2, 2), (3, 3)], "an hour and a half of its own hour is over, of two hours not");
    assert_eq!(b.row().expired, 1);
    b.clock.advance(hour);
    reader.rewind();
    assert_eq!(b.read(&mut reader), [(3, 3)]);
}

#[test]
fn a_failed_sync_moves_what_was_not_safe_to_a_fresh_segment() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    for n in 0..10 {
        b.append(n);
    }
    b.writer.step(false);
    storage.fail_syncs(1);
    for n in 10..20 {
        b.append(n);
    }
    b.writer.step(false);
    assert!(b.outbox.is_durable(b.lane, 10) && !b.outbox.is_durable(b.lane, 11));
    assert!(matches!(b.append(99).refused, Some(OutboxError::Failed { .. })), "nothing new while the disk refuses");
    b.clock.advance(Duration::from_secs(1));
    b.writer.step(false);
    assert!(b.outbox.is_durable(b.lane, 20));
    assert!(b.append(20).refused.is_none());
    b.writer.step(false);
    let after = storage.after_power_cut(|| 0);
    let (b, _) = open(fsync(), &after);
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(b.read(&mut reader).iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..21).collect::<Vec<_>>());
    b.row();
}

#[test]
fn a_full_disk_refuses_and_recovers_without_losing_what_was_acknowledged() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    storage.set_capacity(Some(200 << 10));
    let mut durable = Vec::new();
    for n in 0..2_000 {
        let appended = b.append(n);
        b.writer.step(false);
        if appended.taken == 1 && b.outbox.is_durable(b.lane, appended.last.sequence) {
            durable.push(n);
        }
    }
    assert!(durable.len() > 300 && durable.len() < 2_000);
    assert!(b.outbox.status()[0].failure.is_some());
    storage.set_capacity(None);
    b.clock.advance(Duration::from_secs(10));
    b.writer.step(false);
    assert!(b.append(5_000).refused.is_none());
    b.writer.step(false);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let all: BTreeSet<u64> = b.read(&mut reader).iter().map(|(_, n)| *n).collect();
    assert!(durable.iter().all(|n| all.contains(n)) && all.contains(&5_000));
}

#[test]
fn damage_is_skipped_counted_and_set_aside() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    for n in 0..1_000 {
        b.append(n);
        b.writer.step(false);
    }
    b.writer.step(true);
    drop(b);
    let segments: Vec<_> = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    storage.damage(&segments[1], |bytes| bytes[20_000] ^= 1);
    storage.damage(&segments[2], |bytes| bytes[3] ^= 1); // its header
    storage.damage(Path::new("/store/manifest"), |bytes| bytes.truncate(5));
    let (mut b, recovery) = open(fsync(), &storage);
    assert_eq!(recovery.set_aside.len(), 2);
    assert_eq!(b.to, DestinationId(0), "the name is found again in the segments");
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read = b.read(&mut reader);
    let row = b.row();
    assert!(row.evicted > 0 && row.queued == read.len() as u64 && row.accepted == 1_000, "{row:?}");
    reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    b.append(7);
    b.writer.step(false);
    assert!(storage.paths().iter().filter(|p| p.extension().is_some_and(|e| e == "corrupt")).count() >= 2);
    assert_eq!(b.row().queued, 1);
}

#[test]
fn behind_a_damaged_record_all_that_checks_out_is_read_and_what_is_lost_is_counted_exactly() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, std::ops::RangeInclusive<u64>); 5] = [
        // A length that leads over the next two records, to one that is well.
        (
            |b| {
                let mut at = codec::decode_header(b).unwrap().1;
                let length = |b: &[u8], at: usize| codec::decode_record(&b[at..], 1 << 20).unwrap().1;
                (0..10).for_each(|_| at += length(b, at));
                let three = (0..3).fold(at, |end, _| end + length(b, end)) - at;
                b[at..at + 4].copy_from_slice(&((three - codec::FRAME_BYTES) as u32).to_le_bytes());
            },
            1..=1,
        ),
        (|b| b[20_000] ^= 1, 1..=1),
        // Bits anywhere, lengths and checksums among them, at three places.
        (|b| [9_000usize, 30_000, 50_000].into_iter().for_each(|at| (at..at + 8).for_each(|i| b[i] ^= 0x55)), 3..=6),
        // A block of the medium, and all to the end.
        (|b| b[12_288..16_384].fill(0), 15..=20),
        (|b| b[40_000..].fill(0xff), 60..=130),
    ];
    for (n, (damage, expected)) in damages.into_iter().enumerate() {
        let storage = SimStorage::default();
        let (mut b, _) = open(fsync(), &storage);
        for n in 0..1_000 {
            b.append(n);
            b.writer.step(false);
        }
        b.writer.step(true);
        drop(b);
        let segments: Vec<_> = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
        storage.damage(&segments[1], damage);
        let (mut b, _) = open(fsync(), &storage);
        let mut reader = b.outbox.reader(b.to, b.lane);
        for _ in 0..2 {
            // A rewind meets the damage again and counts it no second time.
            reader.rewind();
            let read = b.read(&mut reader);
            assert!(read.windows(2).all(|w| w[0].0 < w[1].0) && read.iter().all(|(s, n)| *s == n + 1));
            let row = b.row();
            assert_eq!((row.accepted, row.evicted + read.len() as u64, row.queued), (1_000, 1_000, read.len() as u64), "damage {n}");
            assert!(expected.contains(&row.evicted), "damage {n}: {row:?}");
        }
        reader.rewind();
        let read = b.read(&mut reader);
        reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
        b.writer.step(false);
        assert!(storage.paths().iter().any(|p| p.extension().is_some_and(|e| e == "corrupt")), "the file is kept");
        assert_eq!(b.row().queued, 0);
    }
}

#[test]
fn two_destinations_share_one_copy_and_a_segment_waits_for_the_slower() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    let other = b.outbox.destination("app/x").unwrap();
    for n in 0..2_000u64 {
        let p = payload(n);
        let both = [b.to, other];
        let destinations = if n % 2 == 0 { &both[..] } else { &both[..1] };
        let record = record(&p, destinations);
        b.outbox.append(b.lane, &[record]);
        b.writer.step(false);
    }
    let mut fast = b.outbox.reader(b.to, b.lane);
    let all = b.read(&mut fast);
    fast.acknowledge(&all.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    b.writer.step(false);
    assert!(b.outbox.status()[0].segments > 5);
    let mut slow = b.outbox.reader(other, b.lane);
    let half = b.read(&mut slow);
    assert_eq!(half.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..2_000).step_by(2).collect::<Vec<_>>());
    slow.acknowledge(&half.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    b.writer.step(false);
    assert_eq!(b.outbox.status()[0].segments, 1);
    b.outbox.forget_destination(other).unwrap();
    assert_eq!(b.outbox.ledger().len(), 1);
}

#[test]
fn a_segment_that_was_finished_out_of_order_is_passed_over_and_stays_finished_over_a_restart() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    for n in 0..1_000 {
        b.append(n);
        b.writer.step(false);
    }
    let (base, end) = {
        let mut lane = b.outbox.shared.lanes[0].lock();
        let (base, end, count) = (lane.segments[2].base, lane.segment_end(2), lane.unfinished_in(2, b.to));
        assert_eq!(count, end - base);
        lane.places.get_mut(&b.to).unwrap().cursor.finish_in(base, count, End::Delivered);
        assert_eq!((lane.unfinished_in(1, b.to) > 0, lane.unfinished_in(2, b.to), lane.unfinished_in(3, b.to) > 0), (true, 0, true));
        (base, end)
    };
    let rest: Vec<u64> = (1..=1_000).filter(|s| !(base..end).contains(s)).collect();
    assert_eq!((b.row().delivered, b.row().queued), (end - base, rest.len() as u64));
    b.writer.step(true);
    drop(b);
    let (mut b, _) = open(fsync(), &storage);
    assert_eq!((b.row().delivered, b.row().queued), (end - base, rest.len() as u64));
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read: Vec<u64> = b.read(&mut reader).iter().map(|(s, _)| *s).collect();
    assert_eq!(read, rest);
    reader.acknowledge(&read);
    b.writer.step(false);
    assert_eq!((b.row().delivered, b.row().queued, b.row().evicted), (1_000, 0, 0));
    assert_eq!((b.outbox.status()[0].segments, b.outbox.shared.lanes[0].lock().places[&b.to].cursor.in_segments()), (1, vec![]));
}

#[test]
fn a_segment_that_vanished_is_counted_when_the_reader_comes_past_its_place() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    for n in 0..1_000 {
        b.append(n);
        b.writer.step(false);
    }
    b.writer.step(true);
    drop(b);
    let segments: Vec<_> = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    storage.damage(&segments[1], |bytes| bytes[3] ^= 1); // its header
    let (b, recovery) = open(fsync(), &storage);
    assert_eq!(recovery.set_aside.len(), 1);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read = b.read(&mut reader);
    let row = b.row();
    assert!(row.evicted > 100 && row.accepted == 1_000 && row.queued == read.len() as u64, "{row:?}");
}

/// A small generator with a seed that a failure prints.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[tokio::test]
async fn the_thread_makes_records_durable_on_a_real_disk_and_a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = OutboxConfig { dir: dir.path().join("store"), ..fsync() };
    let clock: Arc<dyn Clock> = Arc::new(crate::time::SystemClock::new());
    let (outbox, _) = Outbox::open(config.clone(), Arc::new(storage::DiskStorage::default()), clock.clone()).unwrap();
    let second = Outbox::open(config.clone(), Arc::new(storage::DiskStorage::default()), clock.clone());
    assert!(second.unwrap_err().to_string().contains("another process"));
    let (to, lane) = (outbox.destination("upstream/cloud").unwrap(), outbox.lane("default").unwrap());
    let mut reader = outbox.reader(to, lane);
    for n in 0..2_000u64 {
        let p = payload(n);
        let appended = outbox.append(lane, &[record(&p, &[to])]);
        assert!(appended.refused.is_none());
        if n % 100 == 99 {
            outbox.durable(lane, appended.last.sequence).await.unwrap();
        }
    }
    let mut run = Run::default();
    let mut got = 0;
    while got < 1_500 {
        reader.next_run(1_000, 64 << 10, &mut run).unwrap();
        let sequences: Vec<u64> = run.iter().map(|r| r.id.sequence).collect();
        got += sequences.len();
        reader.acknowledge(&sequences);
    }
    outbox.close();
    drop((reader, outbox));
    let (outbox, _) = Outbox::open(config, Arc::new(storage::DiskStorage::default()), clock).unwrap();
    let row = &outbox.ledger()[0];
    assert_eq!((row.accepted, row.delivered as usize, row.queued as usize), (2_000, got, 2_000 - got));
    outbox.close();
}
