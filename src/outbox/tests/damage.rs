//! Files that are damaged between two runs: what arrives is in order all the same, and the books know what does not.

use super::super::storage::Storage as _;
use super::*;

/// One change to a file, of the kinds that cards and power cuts make.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = bytes.len() as u64;
    if length == 0 {
        return;
    }
    match random.next() % 4 {
        0 => bytes.truncate((random.next() % length) as usize),
        1 => {
            let from = (random.next() % length / 512 * 512) as usize;
            let to = (from + 512).min(bytes.len());
            bytes[from..to].fill(0);
        }
        2 => bytes.extend((0..random.next() % 4_096).map(|n| (n ^ length) as u8)),
        _ => {
            for _ in 0..=random.next() % 8 {
                let at = (random.next() % length) as usize;
                bytes[at] ^= 1 << (random.next() % 8);
            }
        }
    }
}

#[test]
fn over_kills_and_damage_what_arrives_arrives_in_order() {
    for seed in 1..400 {
        let mut random = Random(seed);
        let mut storage = SimStorage::default();
        let (mut sent, mut arrived, mut late) = (0u64, std::collections::BTreeSet::new(), Vec::new());
        let mut harmed = false;
        for round in 0..12 {
            let (mut b, recovery) =
                open(OutboxConfig { at_rest: if seed % 2 == 0 { AtRest::default() } else { sealing(seed + round) }, ..fsync() }, &storage);
            assert!(harmed || recovery.vanished.is_empty(), "seed {seed}: {recovery:?}");
            let mut reader = b.outbox.reader(b.to, b.lane);
            for _ in 0..random.next() % 5 {
                for _ in 0..random.next() % 80 {
                    sent += b.append(sent).taken as u64;
                }
                b.writer.step(false);
                b.clock.advance(Duration::from_secs(random.next() % 2));
                if random.next().is_multiple_of(3) {
                    let mut run = Run::default();
                    let most = 1 + (random.next() % 60) as usize;
                    let _ = reader.next_run(most, 8 << 10, &mut run).unwrap();
                    let got: Vec<(u64, u64)> = run.iter().map(|r| (r.id.sequence, number(r.payload()))).collect();
                    for (_, n) in &got {
                        let newest = arrived.last().copied();
                        if arrived.insert(*n) && newest.is_some_and(|newest| *n < newest) {
                            late.push((round, *n));
                        }
                    }
                    // The peer has taken some of them when the link breaks.
                    let taken = got.len() - (random.next() as usize % (got.len() + 1));
                    reader.acknowledge(&got[..taken].iter().map(|(s, _)| *s).collect::<Vec<_>>());
                    if taken < got.len() || random.next().is_multiple_of(4) {
                        reader.rewind();
                    }
                }
                b.writer.step(false);
                b.row();
            }
            drop((reader, b));
            storage = storage.after_kill();
            let segments: Vec<_> = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
            if !segments.is_empty() && random.next().is_multiple_of(2) {
                let at = (random.next() % segments.len() as u64) as usize;
                harmed = true;
                if random.next().is_multiple_of(5) {
                    storage.remove(&segments[at]).unwrap();
                } else {
                    storage.damage(&segments[at], |bytes| change(bytes, &mut random));
                }
            }
        }
        assert!(late.is_empty(), "seed {seed}: came after later ones (round, number): {late:?}");
    }
}

#[test]
fn in_the_segment_that_was_written_last_damage_loses_itself_alone_and_is_counted() {
    for (what, from, length, expected) in [("a bit", 5_000, 1, 1..=1), ("a block", 8_192, 4_096, 15..=20), ("nothing", 0, 0, 0..=0)] {
        let storage = SimStorage::default();
        let (mut b, _) = open(fsync(), &storage);
        for n in 0..400 {
            b.append(n);
            b.writer.step(false);
        }
        drop(b);
        let storage = storage.after_kill();
        let last = storage.paths().into_iter().rfind(|p| p.extension().is_some_and(|e| e == "seg")).unwrap();
        storage.damage(&last, |bytes| bytes[from..from + length].iter_mut().for_each(|b| *b = !*b));
        let (mut b, recovery) = open(fsync(), &storage);
        assert_eq!(recovery.torn_tails, 0, "{what}");
        for n in 400..450 {
            b.append(n);
        }
        let mut reader = b.outbox.reader(b.to, b.lane);
        let read = b.read(&mut reader);
        assert!(read.windows(2).all(|w| w[0].0 < w[1].0) && read.iter().all(|(s, n)| *s == n + 1), "{what}");
        assert!(read.ends_with(&[(449, 448), (450, 449)]), "{what}");
        let row = b.row();
        assert_eq!((row.accepted, row.evicted), (450, 450 - read.len() as u64), "{what}");
        assert!(expected.contains(&row.evicted), "{what}: {row:?}");
        reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
        b.writer.step(true);
        assert_eq!(b.row().queued, 0);
        assert_eq!(storage.paths().iter().any(|p| p.extension().is_some_and(|e| e == "corrupt")), row.evicted > 0, "{what}: the file is kept");
    }
}

/// A store of 700 records in three segments, of which as many as `delivered` were, as a kill leaves it, and its segments with
/// their first sequences.
fn killed(config: &OutboxConfig, delivered: usize) -> (SimStorage, Vec<(std::path::PathBuf, u64)>, BTreeSet<u64>) {
    let storage = SimStorage::default();
    let (mut b, _) = open(config.clone(), &storage);
    let mut reader = b.outbox.reader(b.to, b.lane);
    for n in 0..700 {
        b.append(n);
        b.writer.step(false);
        b.clock.advance(Duration::from_millis(5));
    }
    let read = b.read(&mut reader);
    let done: BTreeSet<u64> = read.iter().map(|(s, _)| *s).take(delivered).collect();
    reader.acknowledge(&done.iter().copied().collect::<Vec<_>>());
    // The cursors are saved within a second.
    for _ in 0..3 {
        b.clock.advance(Duration::from_secs(1));
        b.writer.step(false);
    }
    drop((reader, b));
    let storage = storage.after_kill();
    let base = |p: &Path| p.file_name().unwrap().to_str().unwrap()[..20].parse().unwrap();
    let segments = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).map(|p| (p.clone(), base(&p))).collect();
    (storage, segments, done)
}

#[test]
fn a_segment_that_vanishes_or_loses_its_end_while_the_box_is_down_is_counted_as_lost_with_its_range() {
    for order in [Order::Oldest, Order::Newest] {
        for (place, how) in ["first", "middle", "last", "all"].iter().flat_map(|p| ["removed", "emptied", "cut"].map(|how| (*p, how))) {
            for delivered in [0, 100] {
                let mut config = fsync();
                config.lanes[0].order = order;
                let (storage, segments, done) = killed(&config, delivered);
                assert_eq!(segments.len(), 3);
                let what = format!("{order:?}, {place} {how}, {delivered} delivered");
                let harmed = match place {
                    "first" => 0..1,
                    "middle" => 1..2,
                    "last" => 2..3,
                    _ => 0..3,
                };
                for (path, _) in &segments[harmed.clone()] {
                    match how {
                        "removed" => storage.remove(path).unwrap(),
                        "emptied" => storage.damage(path, Vec::clear),
                        _ => storage.damage(path, |bytes| bytes.truncate(bytes.len() / 4)),
                    }
                }
                let (mut b, recovery) = open(config.clone(), &storage);
                let opened = b.row();
                assert_eq!((opened.accepted, opened.delivered), (700, done.len() as u64), "{what}");
                let mut losses = b.outbox.take_losses(b.to);
                b.outbox.watch_losses(b.to);
                // A kill before anything is saved finds the same, and counts it once.
                drop(b);
                let storage = storage.after_kill();
                let (again, found_again) = open(config.clone(), &storage);
                assert_eq!((again.row(), &found_again.vanished), (opened.clone(), &recovery.vanished), "{what}");
                drop(again);
                let (again, _) = open(config.clone(), &storage);
                b = again;
                b.outbox.watch_losses(b.to);
                let _ = b.outbox.take_losses(b.to);
                // Life goes on: new ones come, what is left arrives, and the books close.
                assert_eq!(b.append(700).last.sequence, 701, "{what}");
                b.writer.step(false);
                let mut reader = b.outbox.reader(b.to, b.lane);
                let mut read = Vec::new();
                loop {
                    let more = b.read(&mut reader);
                    if more.is_empty() {
                        break;
                    }
                    reader.acknowledge(&more.iter().map(|(s, _)| *s).collect::<Vec<_>>());
                    read.extend(more);
                }
                losses.extend(b.outbox.take_losses(b.to));
                b.writer.step(true);
                let row = b.row();
                let arrived: BTreeSet<u64> = read.iter().map(|(s, _)| *s).collect();
                let missing: Vec<u64> = (1..=701).filter(|s| !arrived.contains(s) && !done.contains(s)).collect();
                // What was finished out of order on both sides of a cut is sent again up to it, and counted with it (`move_behind`).
                let again = read.iter().filter(|(s, _)| done.contains(s)).count() as u64;
                assert!(again == 0 || (order == Order::Newest && how == "cut"), "{what}");
                assert_eq!((row.accepted, row.queued, row.evicted + again), (701, 0, missing.len() as u64), "{what}: {row:?}");
                assert_eq!(row.delivered, (done.len() + read.len()) as u64, "{what}");
                assert!(!missing.is_empty(), "{what}");
                // Ends are known at the opening, with the exact range; what is missing between others when it is read.
                let told: u64 = losses
                    .iter()
                    .map(|(_, reason, loss)| {
                        assert_eq!(*reason, LossReason::Damaged);
                        loss.count
                    })
                    .sum();
                assert_eq!(told, row.evicted, "{what}: {losses:?}");
                let range = losses.iter().fold((u64::MAX, 0), |r, (_, _, l)| (r.0.min(l.sequences.0), r.1.max(l.sequences.1)));
                assert!(range.0 <= missing[0] && range.1 >= *missing.last().unwrap(), "{what}: {losses:?}");
                // Of a segment that is torn before its end, and of one between others that are read out of order, less is known.
                if order == Order::Oldest && (place == "last" || how != "cut") {
                    assert_eq!(range, (missing[0], *missing.last().unwrap()), "{what}: {losses:?}");
                }
                if place == "last" || place == "first" && how != "cut" {
                    assert_eq!(recovery.vanished, [Vanished { lane: "default".into(), sequences: range, records: row.evicted }], "{what}");
                }
                drop((reader, b));
                let (b, recovery) = open(config, &storage.after_kill());
                assert_eq!((b.row(), recovery.vanished), (row, vec![]), "{what}: counted once");
            }
        }
    }
}

#[test]
fn a_page_that_may_not_be_the_latest_takes_nothing_for_lost() {
    let (storage, segments, _) = killed(&fsync(), 0);
    storage.remove(&segments[0].0).unwrap();
    let newest = recover::CURSORS
        .iter()
        .map(|name| Path::new("/store").join(name))
        .max_by_key(|path| files::decode::<files::CursorPage>(&storage.read(path).unwrap()).unwrap().generation);
    storage.damage(&newest.unwrap(), |bytes| bytes[20] ^= 1);
    let (b, recovery) = open(fsync(), &storage);
    assert_eq!((recovery.vanished, recovery.set_aside.len()), (vec![], 1));
    let row = b.row();
    assert_eq!((row.evicted, row.delivered), (0, segments[1].1 - 1), "{row:?}");
}
