//! Power cuts in every operation, and syncs that fail.

use super::*;

/// Appends, steps, reads, acknowledges; gives what was durable and what was acknowledged by the destination.
pub(super) fn workload(b: &mut Bench, from: u64, random: &mut Random, seen_ids: &mut BTreeMap<String, u64>) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut durable, mut delivered) = (BTreeSet::new(), BTreeSet::new());
    let mut waiting: Vec<(u64, u64)> = Vec::new();
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut run = Run::default();
    for n in from..from + 700 {
        let appended = b.append(n);
        if appended.taken == 1 {
            waiting.push((appended.last.sequence, n));
        }
        if random.next().is_multiple_of(4) {
            b.writer.step(false);
            b.clock.advance(Duration::from_millis(300));
        }
        waiting.retain(|(sequence, n)| {
            let safe = b.outbox.is_durable(b.lane, *sequence);
            if safe {
                durable.insert(*n);
            }
            !safe
        });
        if random.next().is_multiple_of(16) && reader.next_run(20, 4096, &mut run).is_ok() {
            let mut acks = Vec::new();
            for record in run.iter() {
                let n = number(record.payload());
                let id = b.outbox.record_id_text(record.id);
                assert_eq!(*seen_ids.entry(id.clone()).or_insert(n), n, "id {id} names two records");
                if !random.next().is_multiple_of(8) {
                    acks.push(record.id.sequence);
                    delivered.insert(n);
                }
            }
            reader.acknowledge(&acks);
            if random.next().is_multiple_of(8) {
                reader.rewind();
            }
        }
    }
    (durable, delivered)
}

#[test]
fn nothing_durable_is_lost_whichever_operation_the_power_cut_falls_into() {
    let clean = SimStorage::default();
    let (mut b, _) = open(fsync(), &clean);
    workload(&mut b, 0, &mut Random(7), &mut BTreeMap::new());
    let operations = clean.operations();
    assert!(operations > 400, "{operations}");
    for crash_at in 1..=operations {
        for seed in [1u64, 2, 3] {
            let storage = SimStorage::default();
            storage.crash_at(crash_at);
            let mut ids = BTreeMap::new();
            let sealed = |n| OutboxConfig { at_rest: if crash_at.is_multiple_of(2) { AtRest::default() } else { sealing(seed + n) }, ..fsync() };
            let (durable, delivered) = match try_open(sealed(0), &storage) {
                Ok((mut b, _)) => workload(&mut b, 0, &mut Random(7), &mut ids),
                Err(_) => Default::default(),
            };
            let mut random = Random(crash_at * 31 + seed);
            let disk = storage.after_power_cut(|| match seed {
                1 => 0,
                2 => 8,
                _ => (random.next() % 9) as u8,
            });
            let (mut b, recovery) = open(sealed(crash_at), &disk);
            assert_eq!(recovery.vanished, [], "cut in operation {crash_at}, seed {seed}: what was never promised is no loss");
            let mut reader = b.outbox.reader(b.to, b.lane);
            let read = b.read(&mut reader);
            let found: BTreeSet<u64> = read.iter().map(|(_, n)| *n).collect();
            let lost: Vec<_> = durable.iter().filter(|n| !found.contains(n) && !delivered.contains(n)).collect();
            assert!(lost.is_empty(), "cut in operation {crash_at}, seed {seed}: lost {lost:?}");
            assert!(read.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1), "order, cut in operation {crash_at}, seed {seed}");
            assert_eq!(b.row().queued, found.len() as u64, "cut in operation {crash_at}, seed {seed}");
            // Life goes on: no id is used for two records, and the store takes and gives again.
            workload(&mut b, 10_000, &mut Random(9), &mut ids);
            b.row();
        }
    }
}

#[test]
fn nothing_is_lost_when_any_one_sync_fails() {
    for at in 0..40u64 {
        let storage = SimStorage::default();
        let (mut b, _) = open(OutboxConfig { at_rest: sealing(at), ..fsync() }, &storage);
        let mut durable = BTreeSet::new();
        for n in 0..400 {
            if n == at * 10 {
                storage.fail_syncs(1 + (at % 3) as u32);
            }
            let appended = b.append(n);
            b.writer.step(false);
            if appended.taken == 1 && b.outbox.is_durable(b.lane, appended.last.sequence) {
                durable.insert(n);
            }
            b.clock.advance(Duration::from_millis(70));
        }
        let disk = storage.after_power_cut(|| 0);
        let (b, _) = open(OutboxConfig { at_rest: sealing(at), ..fsync() }, &disk);
        let mut reader = b.outbox.reader(b.to, b.lane);
        let found: BTreeSet<u64> = b.read(&mut reader).iter().map(|(_, n)| *n).collect();
        assert!(durable.is_subset(&found), "sync failed at {at}: {:?}", durable.difference(&found).collect::<Vec<_>>());
        assert!(durable.len() > 300);
        b.row();
    }
}
