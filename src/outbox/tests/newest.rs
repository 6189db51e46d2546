//! Lanes that are replayed newest first.

use super::*;

fn newest_first(when_full: WhenFull, quota: u64) -> OutboxConfig {
    let mut config = config(Durability::Fsync, quota, when_full);
    config.lanes[0].order = Order::Newest;
    config
}

fn newest() -> OutboxConfig {
    newest_first(WhenFull::Reject, 64 << 20)
}

/// Fills the lane; gives the number of the first record of each segment.
fn fill(b: &mut Bench, numbers: std::ops::Range<u64>) -> Vec<u64> {
    for n in numbers {
        b.append(n);
        b.writer.step(false);
    }
    b.outbox.shared.lanes[0].lock().segments.iter().map(|s| s.base - 1).collect()
}

/// Reads once, at most so many records; gives their numbers.
fn take(reader: &mut Reader, most: usize) -> Vec<(u64, u64)> {
    let mut run = Run::default();
    reader.next_run(most, 8 << 10, &mut run).unwrap();
    run.iter().map(|r| (r.id.sequence, number(r.payload()))).collect()
}

fn acknowledge(reader: &Reader, read: &[(u64, u64)]) {
    reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
}

/// Reads and acknowledges everything, with the writer at work; gives the numbers in order.
fn drain(b: &mut Bench, reader: &mut Reader) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let read = take(reader, 50);
        if read.is_empty() {
            return all;
        }
        acknowledge(reader, &read);
        all.extend(read.iter().map(|(_, n)| *n));
        b.writer.step(false);
    }
}

/// The numbers of 0..end in the order in which they leave: the newest segment first, each of them forward.
fn segments_backwards(firsts: &[u64], end: u64) -> Vec<u64> {
    let bounds: Vec<u64> = firsts.iter().copied().chain([end]).collect();
    bounds.windows(2).rev().flat_map(|w| w[0]..w[1]).collect()
}

#[test]
fn the_newest_segment_leaves_first_and_each_one_forward() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    let firsts = fill(&mut b, 0..2_000);
    assert!(firsts.len() > 6, "{firsts:?}");
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!(drain(&mut b, &mut reader), segments_backwards(&firsts, 2_000));
    assert_eq!((b.row().delivered, b.row().queued, b.outbox.status()[0].segments), (2_000, 0, 1));
    // From here on it is a lane like any other: what was accepted is read at once, from memory.
    b.append(2_000);
    assert_eq!(b.read(&mut reader), [(2_001, 2_000)]);
}

#[test]
fn live_records_go_ahead_of_the_backlog_and_get_their_share_of_the_bytes_while_it_waits() {
    for share in [70, 50, 0, 100] {
        let storage = SimStorage::default();
        let (mut b, _) = open(newest(), &storage);
        fill(&mut b, 0..3_000);
        let mut reader = b.outbox.reader(b.to, b.lane);
        reader.set_live_share(share as u8);
        let (mut live, mut all) = (0, 0);
        let mut n = 100_000;
        for turn in 0..200 {
            // There is always as much live as is read, and it never falls behind.
            while n < 100_000 + live as u64 + 50 {
                b.append(n);
                n += 1;
            }
            b.writer.step(false);
            let read = take(&mut reader, 10);
            assert!((1..=10).contains(&read.len()));
            all += read.len();
            live += read.iter().filter(|(_, n)| *n >= 100_000).count();
            acknowledge(&reader, &read);
            if turn == 0 && share > 0 {
                assert_eq!(read[0].1, 100_000, "what came since goes first");
            }
        }
        assert!(all > 1_900 && (all * share / 100).abs_diff(live) <= 12, "{share} %: {live} of {all} were live");
        b.row();
    }
}

#[test]
fn a_backlog_gets_the_whole_link_while_nothing_is_live_and_live_records_are_not_made_to_wait_for_that() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    fill(&mut b, 0..3_000);
    let mut reader = b.outbox.reader(b.to, b.lane);
    for n in 0..40 {
        let old = take(&mut reader, 40);
        assert!(!old.is_empty() && old.iter().all(|(_, n)| *n < 100_000));
        acknowledge(&reader, &old);
        b.append(100_000 + n);
        b.writer.step(false);
        let new = take(&mut reader, 10);
        assert_eq!(new.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [100_000 + n]);
        acknowledge(&reader, &new);
    }
}

#[test]
fn segments_in_the_middle_are_freed_as_they_are_finished_and_stay_finished_over_a_power_cut() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    let firsts = fill(&mut b, 0..2_000);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut got = Vec::new();
    while got.len() < 1_000 {
        let read = take(&mut reader, 50);
        acknowledge(&reader, &read);
        got.extend(read.iter().map(|(_, n)| *n));
    }
    let before: Vec<_> = storage.paths();
    b.writer.step(false);
    let segments = b.outbox.status()[0].segments;
    assert!(segments <= firsts.len() - 3, "{segments} of {}", firsts.len());
    let one = take(&mut reader, 1);
    acknowledge(&reader, &one);
    got.push(one[0].1);
    for _ in 0..2 {
        b.clock.advance(Duration::from_secs(2));
        b.writer.step(false);
    }
    let cursors = b.outbox.shared.lanes[0].lock().places[&b.to].cursor.sides.len();
    assert!(cursors <= 3, "what is finished in a row is one number: {cursors}");
    // The removal, too, may be undone by the cut: then the file is there again.
    for undone in [false, true] {
        let disk = storage.after_power_cut(|| 0);
        if undone {
            use super::storage::Storage as _;
            let gone: Vec<_> = before.iter().filter(|p| !storage.paths().contains(p)).collect();
            assert!(gone.len() >= 3);
            // A file like it: the same records, by an earlier run of the same appends.
            let twin = SimStorage::default();
            let (mut t, _) = open(newest(), &twin);
            fill(&mut t, 0..2_000);
            for path in gone {
                disk.replace(path, &twin.read(path).unwrap(), true).unwrap();
            }
        }
        let (mut again, _) = open(newest(), &disk);
        assert_eq!(again.row(), b.row());
        let mut reader = again.outbox.reader(again.to, again.lane);
        let rest = drain(&mut again, &mut reader);
        let (got, rest): (BTreeSet<u64>, BTreeSet<u64>) = (got.iter().copied().collect(), rest.into_iter().collect());
        assert!(got.is_disjoint(&rest) && got.len() + rest.len() == 2_000, "undone: {undone}");
        assert_eq!((again.row().delivered, again.row().queued, again.outbox.status()[0].segments), (2_000, 0, 1));
    }
}

#[test]
fn no_segment_is_removed_from_between_others_before_the_cursor_file_says_so_durably() {
    let segments = |s: &SimStorage| s.paths().iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).count();
    let mut removed = 0;
    for after in 1..10 {
        let storage = SimStorage::default();
        let (mut b, _) = open(newest(), &storage);
        fill(&mut b, 0..2_000);
        let mut reader = b.outbox.reader(b.to, b.lane);
        let mut got = BTreeSet::new();
        for _ in 0..20 {
            let read = take(&mut reader, 50);
            acknowledge(&reader, &read);
            got.extend(read.iter().map(|(_, n)| *n));
        }
        let had = segments(&storage);
        storage.crash_at(storage.operations() + after);
        b.writer.step(false);
        removed += had - segments(&storage);
        let (mut again, _) = open(newest(), &storage.after_power_cut(|| 0));
        let mut reader = again.outbox.reader(again.to, again.lane);
        got.extend(drain(&mut again, &mut reader));
        let row = again.row();
        assert_eq!((got.len(), row.delivered, row.evicted), (2_000, 2_000, 0), "cut in operation {after}: {row:?}");
    }
    assert!(removed > 6, "{removed}");
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_rewind_and_nothing_else_does() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    fill(&mut b, 0..1_500);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let (mut done, mut turn) = (BTreeSet::new(), 0);
    while b.row().queued > 0 {
        turn += 1;
        for _ in 0..turn % 7 {
            let read = take(&mut reader, 30);
            let kept: Vec<(u64, u64)> = read.into_iter().filter(|(s, _)| (s + turn) % 5 != 0).collect();
            assert!(kept.iter().all(|(_, n)| done.insert(*n)), "an acknowledged record came again");
            acknowledge(&reader, &kept);
        }
        reader.rewind();
        b.writer.step(false);
        assert_eq!(b.row().delivered, done.len() as u64);
        assert!(turn < 5_000);
    }
    assert_eq!((done.len(), b.outbox.status()[0].segments), (1_500, 1));
}

#[test]
fn a_full_lane_gives_up_its_oldest_unfinished_segment_and_none_while_finished_ones_make_room() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest_first(WhenFull::DropOldest, 1 << 20), &storage);
    fill(&mut b, 0..3_600);
    assert_eq!(b.row().evicted, 0);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut next = 3_600;
    // The backlog leaves as fast as it is filled: the middle makes the room.
    for _ in 0..60 {
        let read: Vec<_> = (0..2).flat_map(|_| take(&mut reader, 40)).collect();
        acknowledge(&reader, &read);
        fill(&mut b, next..next + 40);
        next += 40;
    }
    assert_eq!(b.row().evicted, 0);
    // Nothing is taken any more: the oldest goes.
    fill(&mut b, next..next + 4_000);
    let row = b.row();
    assert!(row.evicted > 500, "{row:?}");
    reader.rewind();
    let left = drain(&mut b, &mut reader);
    assert_eq!((left.len() as u64, left.contains(&(next + 3_999)), b.row().queued), (row.queued, true, 0));
}

#[test]
fn records_that_expire_in_the_backlog_are_counted_once() {
    let storage = SimStorage::default();
    let mut config = newest();
    config.lanes[0].ttl = Some(Duration::from_secs(100));
    let (mut b, _) = open(config, &storage);
    fill(&mut b, 0..1_000);
    b.clock.advance(Duration::from_secs(90));
    fill(&mut b, 1_000..1_500);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let some = take(&mut reader, 50);
    acknowledge(&reader, &some);
    b.clock.advance(Duration::from_secs(20));
    b.writer.step(false);
    let rest = drain(&mut b, &mut reader);
    let row = b.row();
    assert_eq!((row.delivered, row.expired, row.queued), (50 + rest.len() as u64, 1_000, 0), "{row:?}");
    assert!(rest.iter().all(|n| *n >= 1_000));
}

#[test]
fn what_is_locked_in_the_backlog_is_read_around_and_sent_once_its_key_is_there() {
    let keys = |numbers: &[u8]| OutboxConfig { at_rest: AtRest::with_keys(&numbers.iter().map(|n| key(*n)).collect::<Vec<_>>(), true), ..newest() };
    let storage = SimStorage::default();
    for (of, numbers) in [(1, 0..10), (2, 10..20), (1, 20..30), (2, 30..40)] {
        let (mut b, _) = open(keys(&[of]), &storage);
        fill(&mut b, numbers);
        b.writer.step(true);
    }
    let numbers = |read: &[(u64, u64)]| read.iter().map(|(_, n)| *n).collect::<Vec<_>>();
    let (mut b, _) = open(keys(&[2]), &storage);
    assert_eq!(b.outbox.status()[0].locked_segments, 2);
    let mut reader = b.outbox.reader(b.to, b.lane);
    assert_eq!((reader.queued(), reader.sendable()), (40, 20));
    let read = b.read(&mut reader);
    assert_eq!(numbers(&read), (30..40).chain(10..20).collect::<Vec<_>>());
    acknowledge(&reader, &read);
    // The present goes on.
    fill(&mut b, 40..45);
    let read = b.read(&mut reader);
    assert_eq!(numbers(&read), (40..45).collect::<Vec<_>>());
    acknowledge(&reader, &read);
    assert_eq!((reader.queued(), reader.sendable(), b.row().evicted), (20, 0, 0));
    b.writer.step(true);
    drop((reader, b));
    let lost = u32::from_str_radix(&AtRest::with_keys(&[key(1)], true).key_ids()[0], 16).unwrap();
    let given_up = storage.after_kill();
    let (mut b, _) = open(keys(&[2, 1]), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read = b.read(&mut reader);
    assert_eq!(numbers(&read), (20..30).chain(0..10).collect::<Vec<_>>());
    acknowledge(&reader, &read);
    b.writer.step(false);
    assert_eq!((b.row().delivered, b.row().queued), (45, 0));
    // Or it is lost for good.
    let config = OutboxConfig { at_rest: AtRest::with_keys(&[key(2)], true).without(&[lost]), ..newest() };
    let (b, _) = open(config, &given_up);
    assert!(b.read(&mut b.outbox.reader(b.to, b.lane)).is_empty());
    assert_eq!((b.row().delivered, b.row().evicted, b.row().queued), (25, 20, 0));
}

#[test]
fn damage_in_the_backlog_costs_what_is_damaged_and_is_counted_exactly() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    fill(&mut b, 0..1_500);
    b.writer.step(true);
    drop(b);
    let segments: Vec<_> = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    storage.damage(&segments[1], |bytes| bytes[20_000] ^= 1);
    storage.damage(&segments[2], |bytes| bytes[3] ^= 1); // its header
    storage.damage(&segments[3], |bytes| bytes[40_000..].fill(0xff));
    let (mut b, recovery) = open(newest(), &storage);
    assert_eq!(recovery.set_aside.len(), 1);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read = drain(&mut b, &mut reader);
    let row = b.row();
    assert_eq!((row.accepted, row.delivered + row.evicted, row.queued), (1_500, 1_500, 0), "{row:?}");
    assert!(read.len() as u64 == row.delivered && row.evicted > 300 && row.evicted < 500, "{row:?}");
    assert!(storage.paths().iter().filter(|p| p.extension().is_some_and(|e| e == "corrupt")).count() == 3);
}

#[test]
fn the_order_can_be_changed_either_way_while_a_backlog_is_half_sent() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    let firsts = fill(&mut b, 0..2_000);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut got: Vec<u64> = Vec::new();
    for _ in 0..20 {
        let read = take(&mut reader, 40);
        acknowledge(&reader, &read);
        got.extend(read.iter().map(|(_, n)| *n));
    }
    b.writer.step(true);
    drop((reader, b));
    let (mut b, _) = open(fsync(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read = take(&mut reader, 40);
    assert_eq!(read[0].1, 0, "oldest first from here on");
    acknowledge(&reader, &read);
    got.extend(read.iter().map(|(_, n)| *n));
    fill(&mut b, 2_000..2_100);
    assert!(b.outbox.reconfigure(newest().lanes[0].clone()));
    reader.rewind();
    let read = take(&mut reader, 40);
    assert!(read[0].1 >= 2_000, "and newest first again: {read:?} {firsts:?}");
    acknowledge(&reader, &read);
    got.extend(read.iter().map(|(_, n)| *n));
    got.extend(drain(&mut b, &mut reader));
    got.sort_unstable();
    assert_eq!(got, (0..2_100).collect::<Vec<_>>());
    assert_eq!((b.row().queued, b.outbox.status()[0].segments), (0, 1));
}

#[test]
fn a_reader_that_falls_behind_on_a_link_that_stands_gets_the_present_first_too() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    fill(&mut b, 0..10);
    let out = take(&mut reader, 5);
    fill(&mut b, 10..2_000);
    let first = take(&mut reader, 5);
    assert!(first[0].1 > 1_500, "{first:?}");
    acknowledge(&reader, &first);
    acknowledge(&reader, &out);
    let rest = drain(&mut b, &mut reader);
    assert_eq!(rest.len(), 1_990);
    assert_eq!((b.row().queued, b.outbox.status()[0].segments), (0, 1));
}

/// The bound on pieces: a link that comes and goes while next to nothing leaves it.
#[test]
fn a_link_that_flaps_for_ever_makes_no_more_pieces_than_the_bound_and_loses_nothing() {
    let storage = SimStorage::default();
    let (mut b, _) = open(newest(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let (mut n, mut got) = (0, BTreeSet::new());
    for _ in 0..1_600 {
        fill(&mut b, n..n + 3);
        n += 3;
        reader.rewind();
        fill(&mut b, n..n + 3);
        n += 3;
        let read = take(&mut reader, 2);
        acknowledge(&reader, &read);
        got.extend(read.iter().map(|(_, n)| *n));
        let pieces = b.outbox.shared.lanes[0].lock().places[&b.to].cursor.sides.len();
        assert!(pieces <= super::super::sides::MAX_PIECES, "{pieces}");
    }
    got.extend(drain(&mut b, &mut reader));
    assert_eq!((got.len() as u64, b.row().delivered, b.row().queued), (n, n, 0));
}

/// What a run of random operations needs to know.
struct Model {
    /// Numbers accepted for each destination, and those acknowledged by it.
    accepted: [BTreeSet<u64>; 2],
    acknowledged: [BTreeSet<u64>; 2],
    refused: [u64; 2],
    ids: BTreeMap<String, u64>,
    /// Acknowledged before a kill or a power cut: may come again.
    again: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    waiting: Vec<(u64, u64)>,
}

fn balance(b: &Bench, seed: u64) {
    for row in b.outbox.ledger() {
        assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "seed {seed}: {row:?}");
    }
}

/// Two destinations, links that come and go, restarts, kills, power cuts and failed syncs in random order: every record that was durable
/// arrives at least once, none that was acknowledged comes again without a crash, ids name one record, the books balance and agree with
/// what was done, and the files go.
#[test]
fn whatever_happens_every_durable_record_arrives_and_the_books_balance() {
    for seed in 1..16u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut storage = SimStorage::default();
        let durability = if seed.is_multiple_of(3) { Durability::Batched(Duration::from_millis(300)) } else { Durability::Fsync };
        let mut config = newest();
        config.lanes[0].durability = durability;
        let (mut b, _) = open(OutboxConfig { at_rest: sealing(seed), ..config.clone() }, &storage);
        let other = b.outbox.destination("app/x").unwrap();
        let mut m = Model {
            accepted: Default::default(),
            acknowledged: Default::default(),
            refused: [0; 2],
            ids: BTreeMap::new(),
            again: BTreeSet::new(),
            durable: BTreeSet::new(),
            waiting: Vec::new(),
        };
        let mut n = 0u64;
        let mut crashes = 0;
        for _ in 0..14 {
            let mut readers = [b.outbox.reader(b.to, b.lane), b.outbox.reader(other, b.lane)];
            let slow = (random.next() % 3) as usize;
            for _ in 0..random.next() % 120 {
                match random.next() % 16 {
                    0..6 => {
                        for _ in 0..1 + random.next() % 60 {
                            let (p, both) = (payload(n), [b.to, other]);
                            let destinations = if n.is_multiple_of(3) { &both[..] } else { &both[..1] };
                            let record = record(&p, destinations);
                            let appended = b.outbox.append(b.lane, &[record]);
                            if appended.taken == 1 {
                                m.waiting.push((appended.last.sequence, n));
                                m.accepted.iter_mut().take(destinations.len()).for_each(|of| assert!(of.insert(n)));
                            }
                            n += 1;
                        }
                    }
                    6..13 => {
                        let at = (random.next() % 2) as usize;
                        if at == slow {
                            continue;
                        }
                        let mut run = Run::default();
                        let most = 1 + (random.next() % 90) as usize;
                        readers[at].next_run(most, 16 << 10, &mut run).unwrap();
                        let mut acks = Vec::new();
                        for record in run.iter() {
                            let number = number(record.payload());
                            let id = b.outbox.record_id_text(record.id);
                            assert_eq!(*m.ids.entry(id.clone()).or_insert(number), number, "seed {seed}: id {id} names two records");
                            assert!(
                                !m.acknowledged[at].contains(&number) || m.again.contains(&number),
                                "seed {seed}: {number} came again to {at} after it was acknowledged"
                            );
                            if random.next().is_multiple_of(64) {
                                readers[at].reject(record.id.sequence, "no");
                                m.refused[at] += 1;
                                m.acknowledged[at].insert(number);
                            } else if !random.next().is_multiple_of(8) {
                                acks.push(record.id.sequence);
                                m.acknowledged[at].insert(number);
                            }
                        }
                        readers[at].acknowledge(&acks);
                    }
                    13 => readers[(random.next() % 2) as usize].rewind(),
                    14 if random.next().is_multiple_of(4) => storage.fail_syncs(1),
                    _ => {}
                }
                if !random.next().is_multiple_of(3) {
                    b.writer.step(false);
                    b.clock.advance(Duration::from_millis(150 * (random.next() % 4)));
                }
                let Model { waiting, durable, .. } = &mut m;
                waiting.retain(|(sequence, n)| {
                    let safe = b.outbox.is_durable(b.lane, *sequence);
                    if safe {
                        durable.insert(*n);
                    }
                    !safe
                });
                balance(&b, seed);
                if crashes == 0 {
                    for (at, to) in [b.to, other].into_iter().enumerate() {
                        let row = b.outbox.ledger_of(to).remove(0);
                        let (accepted, done) = (m.accepted[at].len() as u64, m.acknowledged[at].len() as u64);
                        assert_eq!((row.accepted, row.queued, row.evicted), (accepted, accepted - done, m.refused[at]), "seed {seed}: {row:?}");
                    }
                }
            }
            for _ in 0..3 {
                b.clock.advance(Duration::from_secs(6));
                b.writer.step(false);
            }
            let crash = random.next() % 3;
            let rows = b.outbox.ledger();
            if crash > 0 {
                crashes += 1;
                m.again.extend(m.acknowledged.iter().flatten().copied());
                storage = if crash == 1 { storage.after_kill() } else { storage.after_power_cut(|| (random.next() % 9) as u8) };
            } else {
                b.writer.step(true);
            }
            m.waiting.clear();
            drop((readers, b));
            (b, _) = open(OutboxConfig { at_rest: sealing(random.next()), ..config.clone() }, &storage);
            assert_eq!(b.outbox.destination("app/x").unwrap(), other);
            balance(&b, seed);
            if crash == 0 {
                assert_eq!(b.outbox.ledger(), rows, "seed {seed}: a clean restart changes no book");
            } else {
                // What the books say is there is what is read.
                for (at, to) in [b.to, other].into_iter().enumerate() {
                    let mut reader = b.outbox.reader(to, b.lane);
                    let left: BTreeSet<u64> = b.read(&mut reader).iter().map(|(_, n)| *n).collect();
                    let row = b.outbox.ledger_of(to).remove(0);
                    assert_eq!(row.queued, left.len() as u64, "seed {seed}: {row:?}");
                    let lost: Vec<u64> = m.accepted[at]
                        .iter()
                        .filter(|n| m.durable.contains(n) && !m.acknowledged[at].contains(n) && !left.contains(n))
                        .copied()
                        .collect();
                    assert!(lost.is_empty(), "seed {seed}, destination {at}: lost {lost:?}");
                    m.accepted[at].retain(|n| m.acknowledged[at].contains(n) || left.contains(n));
                }
            }
        }
        for (at, to) in [b.to, other].into_iter().enumerate() {
            let mut reader = b.outbox.reader(to, b.lane);
            m.acknowledged[at].extend(drain(&mut b, &mut reader));
            assert_eq!(m.acknowledged[at], m.accepted[at], "seed {seed}, destination {at}");
            assert_eq!(b.outbox.ledger_of(to)[0].queued, 0, "seed {seed}");
        }
        b.writer.step(false);
        assert!(b.outbox.status()[0].segments <= 1, "seed {seed}");
    }
}

#[test]
fn nothing_durable_is_lost_whichever_operation_the_power_cut_falls_into() {
    let backlog = |storage: &SimStorage| -> Option<Bench> {
        let (mut b, _) = try_open(OutboxConfig { at_rest: sealing(0), ..newest() }, storage).ok()?;
        fill(&mut b, 0..1_100);
        Some(b)
    };
    let clean = SimStorage::default();
    let mut b = backlog(&clean).unwrap();
    let filled = clean.operations();
    super::power::workload(&mut b, 10_000, &mut Random(7), &mut BTreeMap::new());
    let operations = clean.operations();
    assert!(operations > filled + 200, "{operations}");
    for crash_at in (filled + 1..=operations).step_by(11) {
        for seed in [1u64, 2, 3] {
            let storage = SimStorage::default();
            storage.crash_at(crash_at);
            let mut ids = BTreeMap::new();
            let mut b = backlog(&storage).unwrap();
            let (durable, delivered) = super::power::workload(&mut b, 10_000, &mut Random(7), &mut ids);
            let durable: BTreeSet<u64> = durable.into_iter().chain(0..1_100).collect();
            let mut random = Random(crash_at * 31 + seed);
            let disk = storage.after_power_cut(|| match seed {
                1 => 0,
                2 => 8,
                _ => (random.next() % 9) as u8,
            });
            let (mut b, _) = open(OutboxConfig { at_rest: sealing(1), ..newest() }, &disk);
            let mut reader = b.outbox.reader(b.to, b.lane);
            let found: BTreeSet<u64> = b.read(&mut reader).iter().map(|(_, n)| *n).collect();
            let lost: Vec<_> = durable.iter().filter(|n| !found.contains(n) && !delivered.contains(n)).collect();
            assert!(lost.is_empty(), "cut in operation {crash_at}, seed {seed}: lost {lost:?}");
            assert_eq!(b.row().queued, found.len() as u64, "cut in operation {crash_at}, seed {seed}");
            super::power::workload(&mut b, 20_000, &mut Random(9), &mut ids);
            b.row();
            reader.rewind();
            drain(&mut b, &mut reader);
            assert_eq!((b.row().queued, b.outbox.status()[0].segments), (0, 1), "cut in operation {crash_at}, seed {seed}");
        }
    }
}

/// The same with everything that ends records without a reader: quotas, lifetimes, lanes in memory whose last records a power cut takes.
/// The books balance, what they say is there is what is read, and all of it goes in the end.
#[test]
fn quotas_lifetimes_and_lost_memory_leave_books_that_say_what_is_there() {
    for seed in 1..25u64 {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let when_full = [WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Reject][(seed % 3) as usize];
        let mut config = newest_first(when_full, 1 << 20);
        config.lanes[0].durability = if seed.is_multiple_of(2) { Durability::Memory } else { Durability::Batched(Duration::from_millis(200)) };
        config.lanes[0].ttl = seed.is_multiple_of(4).then_some(Duration::from_secs(240));
        let mut storage = SimStorage::default();
        let (mut b, _) = open(OutboxConfig { at_rest: sealing(seed), ..config.clone() }, &storage);
        let other = b.outbox.destination("app/x").unwrap();
        let mut n = 0u64;
        for _ in 0..10 {
            let mut readers = [b.outbox.reader(b.to, b.lane), b.outbox.reader(other, b.lane)];
            let slow = (random.next() % 3) as usize;
            for _ in 0..random.next() % 100 {
                match random.next() % 12 {
                    0..5 => {
                        for _ in 0..1 + random.next() % 120 {
                            let (p, both) = (payload(n), [b.to, other]);
                            let destinations = if n.is_multiple_of(3) { &both[..] } else { &both[..1] };
                            let record = NewRecord { ttl_seconds: n.is_multiple_of(50).then_some(5), ..record(&p, destinations) };
                            b.outbox.append(b.lane, &[record]);
                            n += 1;
                        }
                    }
                    5..10 => {
                        let at = (random.next() % 2) as usize;
                        if at != slow {
                            let read = take(&mut readers[at], 1 + (random.next() % 90) as usize);
                            let acks: Vec<u64> = read.iter().map(|(s, _)| *s).filter(|_| !random.next().is_multiple_of(8)).collect();
                            readers[at].acknowledge(&acks);
                        }
                    }
                    10 => readers[(random.next() % 2) as usize].rewind(),
                    _ => b.clock.advance(Duration::from_millis(random.next() % 4_000)),
                }
                if !random.next().is_multiple_of(3) {
                    b.writer.step(false);
                    b.clock.advance(Duration::from_millis(150 * (random.next() % 4)));
                }
                balance(&b, seed);
            }
            let now = b.clock.now();
            storage = match random.next() % 3 {
                0 => {
                    b.writer.step(true);
                    storage
                }
                1 => storage.after_kill(),
                _ => storage.after_power_cut(|| (random.next() % 9) as u8),
            };
            drop((readers, b));
            (b, _) = open(OutboxConfig { at_rest: sealing(random.next()), ..config.clone() }, &storage);
            b.clock.set_wall(now);
            balance(&b, seed);
            for to in [b.to, other] {
                let mut reader = b.outbox.reader(to, b.lane);
                let left = b.read(&mut reader).len() as u64;
                let row = b.outbox.ledger_of(to).remove(0);
                // A power cut may have taken the end of any file of a memory lane: that is counted when the segment is done with.
                let torn = config.lanes[0].durability == Durability::Memory;
                assert!(row.queued == left || torn && row.queued > left, "seed {seed}: {left} of {row:?}");
            }
        }
        for to in [b.to, other] {
            let mut reader = b.outbox.reader(to, b.lane);
            drain(&mut b, &mut reader);
            assert_eq!(b.outbox.ledger_of(to)[0].queued, 0, "seed {seed}");
        }
        b.writer.step(false);
        assert!(b.outbox.status()[0].segments <= 1, "seed {seed}");
    }
}
