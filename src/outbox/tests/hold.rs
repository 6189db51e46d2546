//! Lanes that keep their records in memory for as long as that is safe and cheap.

use super::*;

fn holding() -> OutboxConfig {
    let mut config = config(Durability::Memory, 64 << 20, WhenFull::Reject);
    config.lanes[0].spill_after = Duration::from_secs(2);
    config
}

/// Lets time pass with the writer at work, as its thread does it.
fn pass(b: &mut Bench, time: Duration) {
    let step = Duration::from_millis(250);
    for _ in 0..time.as_millis().div_ceil(step.as_millis()) {
        b.clock.advance(step);
        b.writer.step(false);
    }
}

fn segments_of(storage: &SimStorage) -> usize {
    storage.paths().iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).count()
}

#[test]
fn what_its_destinations_take_in_time_never_touches_the_disk() {
    let storage = SimStorage::default();
    let (mut b, _) = open(holding(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let opened = b.outbox.write_counts();
    for n in 0..3_000 {
        assert!(b.append(n).refused.is_none());
        let read = b.read(&mut reader);
        assert_eq!(read, [(n + 1, n)]);
        reader.acknowledge(&[n + 1]);
        pass(&mut b, Duration::from_millis(250));
    }
    let written = b.outbox.write_counts();
    assert_eq!(segments_of(&storage), 0);
    // 750 s: cursors are written once in five minutes.
    assert!(written.flash_bytes - opened.flash_bytes <= 4 * 16_384, "{written:?}");
    let status = &b.outbox.status()[0];
    assert_eq!(status.spilled_bytes, 0);
    assert!(status.spared_bytes > 2_900 * PAYLOAD as u64 && status.held_bytes < 10 * 300, "{status:?}");
    assert_eq!((b.row().delivered, b.row().queued), (3_000, 0));
    b.writer.step(true);
    let row = b.row();
    drop((reader, b));
    let (b, _) = open(holding(), &storage);
    assert_eq!(b.row(), row, "the books outlive a restart without a single segment");
    assert_eq!(b.append(1).last.sequence, 3_001);
}

#[test]
fn what_is_not_taken_in_time_or_is_too_much_is_written_and_read_from_the_file() {
    let storage = SimStorage::default();
    let (mut b, _) = open(holding(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    b.append(0);
    pass(&mut b, Duration::from_millis(1_750));
    assert_eq!(segments_of(&storage), 0);
    pass(&mut b, Duration::from_millis(500));
    assert_eq!(segments_of(&storage), 1);
    assert_eq!(b.read(&mut reader), [(1, 0)]);
    // More than may wait is written at once, the oldest first.
    for n in 1..8_000 {
        b.append(n);
        b.writer.step(false);
        assert!(b.outbox.status()[0].held_bytes <= (1 << 20) + (64 << 10));
    }
    assert!(b.outbox.status()[0].spilled_bytes > 500 << 10);
    assert_eq!(b.read(&mut reader).len(), 7_999);
    reader.rewind();
    let all = b.read(&mut reader);
    assert_eq!(all.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..8_000).collect::<Vec<_>>());
    // Delivered now: what waits is not written, and the files go.
    let spilled = b.outbox.status()[0].spilled_bytes;
    reader.acknowledge(&all.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    pass(&mut b, Duration::from_secs(3));
    assert_eq!((segments_of(&storage), b.outbox.status()[0].spilled_bytes), (0, spilled));
    // A clean stop writes what waits.
    b.append(8_000);
    b.writer.step(true);
    drop((reader, b));
    let (b, _) = open(holding(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(b.read(&mut reader), [(8_001, 8_000)]);
    assert_eq!((b.row().accepted, b.row().delivered, b.row().queued), (8_001, 8_000, 1));
}

#[test]
fn a_disk_that_is_short_or_dead_does_not_stop_what_need_not_be_written() {
    let storage = SimStorage::default();
    let mut config = holding();
    config.lanes[0].when_full = WhenFull::DropOldest;
    let (mut b, _) = open(config, &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    b.outbox.bound_lanes(|_, _| Bound::Short);
    storage.set_capacity(Some(0));
    let mut taken = 0;
    for n in 0..20 {
        taken += b.append(n).taken;
        pass(&mut b, Duration::from_millis(250));
    }
    assert!(b.outbox.status()[0].failure.is_some(), "nobody takes them, and they cannot be written");
    let read = b.read(&mut reader);
    reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    pass(&mut b, Duration::from_secs(6));
    let left = b.read(&mut reader);
    reader.acknowledge(&left.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    pass(&mut b, Duration::from_secs(1));
    assert_eq!(b.outbox.status()[0].failure, None);
    assert_eq!((read.len() + left.len(), b.row().queued), (taken, 0));
    assert!(b.append(99).refused.is_none());
}

#[test]
fn a_lane_that_must_be_durable_from_now_on_writes_what_it_held_before_what_comes() {
    let storage = SimStorage::default();
    let (mut b, _) = open(holding(), &storage);
    for n in 0..700 {
        b.append(n);
        b.writer.step(false);
    }
    assert!(b.outbox.reconfigure(LaneConfig { durability: Durability::Fsync, spill_after: Duration::ZERO, ..holding().lanes[0].clone() }));
    let last = b.append(700).last.sequence;
    b.writer.step(false);
    assert!(b.outbox.is_durable(b.lane, last));
    let (b, _) = open(fsync(), &storage.after_power_cut(|| 0));
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(b.read(&mut reader).iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..=700).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_record_that_has_to_stand_in_a_file_is_written_at_once() {
    let (outbox, _) = Outbox::open(holding(), Arc::new(SimStorage::default()), Arc::new(crate::time::SystemClock::new())).unwrap();
    let (to, lane) = (outbox.destination("a").unwrap(), outbox.lane("default").unwrap());
    let id = outbox.append(lane, &[record(b"refused", &[to])]).last;
    tokio::time::timeout(Duration::from_secs(1), outbox.written(lane, id.sequence)).await.expect("at once").unwrap();
    let run = outbox.peeker(lane).get(id.sequence).unwrap();
    assert_eq!(run.iter().next().map(|r| r.payload().to_vec()), Some(b"refused".to_vec()));
    outbox.close();
}

/// Two destinations, a link that comes and goes, restarts and kills in random order: nothing is lost but what a kill may take, nothing
/// that was acknowledged before a clean stop comes again, ids name one record, and the books balance at every moment.
#[test]
fn held_back_records_survive_everything_but_a_kill_and_the_books_balance_throughout() {
    for seed in 1..13u64 {
        let mut random = Random(seed * 7_919);
        let mut storage = SimStorage::default();
        let (mut b, _) = open(holding(), &storage);
        let other = b.outbox.destination("app/x").unwrap();
        let mut ids: BTreeMap<String, u64> = BTreeMap::new();
        let (mut n, mut kills, mut acknowledged) = (0u64, 0u32, [BTreeSet::new(), BTreeSet::new()]);
        let mut seen_again_allowed: BTreeSet<u64> = BTreeSet::new();
        let mut expected: [BTreeSet<u64>; 2] = Default::default();
        for _ in 0..24 {
            let mut readers = [b.outbox.reader(b.to, b.lane), b.outbox.reader(other, b.lane)];
            for _ in 0..random.next() % 60 {
                match random.next() % 10 {
                    0..5 => {
                        for _ in 0..1 + random.next() % 40 {
                            let (p, both) = (payload(n), [b.to, other]);
                            let destinations = if n.is_multiple_of(3) { &both[..] } else { &both[..1] };
                            let record = record(&p, destinations);
                            assert_eq!(b.outbox.append(b.lane, &[record]).taken, 1);
                            for of_destination in expected.iter_mut().take(destinations.len()) {
                                of_destination.insert(n);
                            }
                            n += 1;
                        }
                    }
                    5..8 => {
                        let at = (random.next() % 2) as usize;
                        let mut run = Run::default();
                        let most = 1 + (random.next() % 200) as usize;
                        readers[at].next_run(most, 16 << 10, &mut run).unwrap();
                        let mut acks = Vec::new();
                        for record in run.iter() {
                            let number = number(record.payload());
                            let id = b.outbox.record_id_text(record.id);
                            assert_eq!(*ids.entry(id.clone()).or_insert(number), number, "seed {seed}: id {id} names two records");
                            assert!(
                                !acknowledged[at].contains(&number) || seen_again_allowed.contains(&number),
                                "seed {seed}: {number} came again to {at} after it was acknowledged"
                            );
                            if !random.next().is_multiple_of(8) {
                                acks.push(record.id.sequence);
                                acknowledged[at].insert(number);
                            }
                        }
                        readers[at].acknowledge(&acks);
                    }
                    8 => readers[(random.next() % 2) as usize].rewind(),
                    _ => {}
                }
                let steps = random.next() % 6;
                pass(&mut b, Duration::from_millis(250 * steps));
                for row in b.outbox.ledger() {
                    assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "seed {seed}: {row:?}");
                }
            }
            let kill = random.next().is_multiple_of(2);
            let rows = b.outbox.ledger();
            if kill {
                kills += 1;
                // What was acknowledged since the last cursors may come again, what waited in memory is gone.
                seen_again_allowed.extend(acknowledged.iter().flatten().copied());
                // At a power cut cursors may be as old as the last clean stop.
                storage = if random.next().is_multiple_of(2) { storage.after_kill() } else { storage.after_power_cut(|| 8) };
            } else {
                b.writer.step(true);
            }
            drop((readers, b));
            let (again, _) = open(holding(), &storage);
            b = again;
            assert_eq!(b.outbox.destination("app/x").unwrap(), other);
            for row in b.outbox.ledger() {
                assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "seed {seed}: {row:?}");
            }
            if kill {
                // What is there from now on: what is read.
                for (at, to) in [b.to, other].into_iter().enumerate() {
                    let mut reader = b.outbox.reader(to, b.lane);
                    let left: BTreeSet<u64> = b.read(&mut reader).iter().map(|(_, n)| *n).collect();
                    let row = b.outbox.ledger_of(to).remove(0);
                    assert_eq!(row.queued, left.len() as u64, "seed {seed}: {row:?}");
                    expected[at].retain(|n| acknowledged[at].contains(n) || left.contains(n));
                }
            } else {
                assert_eq!(b.outbox.ledger(), rows, "seed {seed}: a clean restart changes no book");
            }
        }
        assert!(kills > 2);
        // The end: everything that was not lost in a kill arrives.
        for (at, to) in [b.to, other].into_iter().enumerate() {
            let mut reader = b.outbox.reader(to, b.lane);
            for (sequence, number) in b.read(&mut reader) {
                acknowledged[at].insert(number);
                reader.acknowledge(&[sequence]);
            }
            assert_eq!(acknowledged[at], expected[at], "seed {seed}, destination {at}");
            assert_eq!(b.outbox.ledger_of(to)[0].queued, 0, "seed {seed}");
        }
        pass(&mut b, Duration::from_secs(5));
        assert!(segments_of(&storage) <= 1, "seed {seed}");
    }
}
