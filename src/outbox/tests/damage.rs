//! Files that are damaged between two runs: what arrives is in order all the same, and the books know what does not.

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
        for round in 0..12 {
            let (mut b, _) =
                open(OutboxConfig { at_rest: if seed % 2 == 0 { AtRest::default() } else { sealing(seed + round) }, ..fsync() }, &storage);
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
                storage.damage(&segments[at], |bytes| change(bytes, &mut random));
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
