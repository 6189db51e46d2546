//! Segments that are sealed: what stands on the disk, keys that change, keys that are not there, and bytes that were changed.

use super::super::storage::Storage as _;
use super::*;

fn with(keys: &[u8]) -> OutboxConfig {
    OutboxConfig { at_rest: AtRest::with_keys(&keys.iter().map(|n| key(*n)).collect::<Vec<_>>(), true), ..fsync() }
}

fn segments(storage: &SimStorage) -> Vec<std::path::PathBuf> {
    storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).collect()
}

fn header(storage: &SimStorage, path: &Path) -> codec::Header {
    codec::decode_header(&storage.read(path).unwrap()).unwrap().0
}

/// Stores records with these numbers and closes the store.
fn store(config: OutboxConfig, storage: &SimStorage, numbers: std::ops::Range<u64>) {
    let (mut b, _) = open(config, storage);
    for n in numbers {
        assert_eq!(b.append(n).taken, 1);
        b.writer.step(false);
    }
    b.writer.step(true);
}

fn numbers(b: &Bench) -> Vec<u64> {
    b.read(&mut b.outbox.reader(b.to, b.lane)).into_iter().map(|(_, n)| n).collect()
}

#[test]
fn nothing_of_a_message_stands_on_the_disk_and_a_plain_store_has_no_byte_more_than_before() {
    let (topic, payload) = ("plant/secret-topic", b"the secret payload".as_slice());
    let user = [("secret-key", "secret-value")];
    let stored = |config: OutboxConfig| {
        let storage = SimStorage::default();
        let (mut b, _) = open(config, &storage);
        let attributes = Attributes { user: &user, content_type: Some("secret/type"), ..Attributes::default() };
        let record =
            NewRecord { source: "secret-source", topic, payload, attributes, qos: 1, retain: true, ttl_seconds: Some(77), destinations: &[b.to] };
        for _ in 0..300 {
            assert_eq!(b.outbox.append(b.lane, &[record; 3]).taken, 3);
            b.writer.step(false);
        }
        b.writer.step(true);
        drop(b);
        let bytes: Vec<Vec<u8>> = storage.paths().iter().map(|p| storage.read(p).unwrap()).collect();
        let size = segments(&storage).iter().map(|p| storage.read(p).unwrap().len()).sum::<usize>();
        let found = |text: &[u8]| bytes.iter().any(|b| b.windows(text.len()).any(|w| w == text));
        let any = [topic.as_bytes(), payload, b"secret"].iter().any(|text| found(text));
        (storage.clone(), size, any)
    };
    let (_, plain_size, any) = stored(fsync());
    assert!(any, "the search finds what is there");
    let (storage, size, any) = stored(with(&[1]));
    assert!(!any);
    let header_bytes: usize = segments(&storage).iter().map(|p| header(&storage, p).sealed.map_or(0, |_| 43)).sum();
    let more_segments = segments(&storage).len() - 1;
    assert!(size - plain_size <= 900 * crate::outbox::sealed::OVERHEAD_BYTES + header_bytes + 200 * more_segments, "{size} for {plain_size}");
    // It comes back as it was.
    let (b, _) = open(with(&[1]), &storage);
    let mut run = Run::default();
    let mut reader = b.outbox.reader(b.to, b.lane);
    let mut read = 0;
    while reader.next_run(50, 8 << 10, &mut run).unwrap() > 0 {
        for r in run.iter() {
            assert_eq!((r.source(), r.topic(), r.payload(), r.qos(), r.retain()), ("secret-source", topic, payload, 1, true));
            r.with_attributes(|a| assert_eq!((a.user, a.content_type), (&user[..], Some("secret/type"))));
            read += 1;
        }
    }
    assert_eq!(read, 900);
    let mut peeker = b.outbox.peeker(b.lane);
    for sequence in [1, 450, 900] {
        let run = peeker.get(sequence).unwrap();
        assert_eq!(run.iter().map(|r| (r.id.sequence, r.payload().to_vec())).collect::<Vec<_>>(), [(sequence, payload.to_vec())]);
    }
}

#[test]
fn keys_are_put_in_front_and_taken_away_and_sealing_is_switched_on_and_off_with_a_backlog() {
    let storage = SimStorage::default();
    store(fsync(), &storage, 0..10);
    store(with(&[1]), &storage, 10..20);
    store(with(&[2, 1]), &storage, 20..30);
    store(OutboxConfig { at_rest: AtRest::with_keys(&[key(2), key(1)], false), ..fsync() }, &storage, 30..40);
    let keys: Vec<bool> = segments(&storage).iter().map(|p| header(&storage, p).sealed.is_some()).collect();
    assert_eq!(keys, [false, true, true, false]);
    let (b, recovery) = open(with(&[2, 1]), &storage);
    assert_eq!((recovery.locked, recovery.set_aside), (vec![], vec![]));
    assert_eq!(numbers(&b), (0..40).collect::<Vec<_>>());
}

#[test]
fn without_the_key_messages_wait_for_it_unharmed_and_new_ones_are_taken() {
    for config in [with(&[9]), fsync()] {
        let storage = SimStorage::default();
        store(with(&[9]), &storage, 0..10);
        store(with(&[1]), &storage, 10..20);
        let id = AtRest::with_keys(&[key(1)], true).key_ids().remove(0);
        let (mut b, recovery) = open(OutboxConfig { at_rest: AtRest::with_keys(&[key(9), key(7)], true), ..config }, &storage);
        assert_eq!(recovery.locked, [Locked { key: id, lane: "default".into(), segments: 1 }]);
        assert_eq!(b.outbox.status()[0].locked_segments, 1);
        let mut reader = b.outbox.reader(b.to, b.lane);
        assert_eq!((reader.queued(), reader.sendable()), (20, 10));
        let read = b.read(&mut reader);
        assert_eq!(read.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
        assert_eq!(b.append(20).taken, 1);
        b.writer.step(false);
        assert!(b.read(&mut reader).is_empty(), "in their order, so behind what is locked");
        assert_eq!((reader.queued(), reader.sendable()), (11, 0));
        let row = b.row();
        assert_eq!((row.accepted, row.delivered, row.evicted, row.queued), (21, 10, 0, 11));
        b.writer.step(true);
        drop((reader, b));
        assert!(storage.paths().iter().all(|p| p.extension().is_none_or(|e| e != "corrupt")));
        let (b, recovery) = open(with(&[9, 7, 1]), &storage);
        assert_eq!((recovery.locked, b.outbox.status()[0].locked_segments), (vec![], 0));
        assert_eq!(numbers(&b), (10..21).collect::<Vec<_>>());
    }
}

#[test]
fn what_a_lost_key_has_sealed_is_given_up_only_when_an_operator_says_so_and_is_counted() {
    let storage = SimStorage::default();
    store(with(&[1]), &storage, 0..10);
    store(with(&[2]), &storage, 10..20);
    let first = segments(&storage)[0].clone();
    let lost = u32::from_str_radix(&AtRest::with_keys(&[key(1)], true).key_ids()[0], 16).unwrap();
    let config = OutboxConfig { at_rest: AtRest::with_keys(&[key(2)], true).without(&[lost]), ..fsync() };
    let (mut b, recovery) = open(config, &storage);
    assert_eq!(recovery.locked, []);
    let mut reader = b.outbox.reader(b.to, b.lane);
    let read = b.read(&mut reader);
    assert_eq!(read.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
    let row = b.row();
    assert_eq!((row.accepted, row.evicted, row.queued), (20, 10, 10));
    reader.acknowledge(&read.iter().map(|(s, _)| *s).collect::<Vec<_>>());
    b.writer.step(false);
    assert!(storage.paths().contains(&first.with_extension("corrupt")), "the file is kept all the same");
    // One whose key is there is no victim of a wrong list.
    let storage = SimStorage::default();
    store(with(&[1]), &storage, 0..10);
    let config = OutboxConfig { at_rest: AtRest::with_keys(&[key(2), key(1)], true).without(&[lost]), ..fsync() };
    assert_eq!(numbers(&open(config, &storage).0), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_key_that_cannot_be_read_never_lets_a_message_be_written_in_the_clear() {
    let storage = SimStorage::default();
    store(with(&[1]), &storage, 0..10);
    let before = segments(&storage);
    let missing = AtRest::missing("the key from file /k: it is not there");
    let (mut b, recovery) = open(OutboxConfig { at_rest: missing.clone(), ..fsync() }, &storage);
    assert_eq!(recovery.locked.len(), 1);
    let refused = b.append(10).refused.unwrap().to_string();
    assert!(refused.contains("spec.atRest") && refused.contains("file /k"), "{refused}");
    assert!(b.outbox.status()[0].failure.as_ref().is_some_and(|f| f.contains("file /k")));
    b.writer.step(true);
    drop(b);
    // A lane that holds records back hands them on, and does not write what is not taken in time.
    let spill_after = Duration::from_secs(2);
    let lane = LaneConfig { durability: Durability::Memory, spill_after, ..LaneConfig::new("default") };
    let (mut b, _) = open(OutboxConfig { at_rest: missing, lanes: vec![lane], ..fsync() }, &storage);
    assert_eq!(b.append(11).taken, 1);
    for _ in 0..10 {
        b.clock.advance(Duration::from_secs(1));
        b.writer.step(false);
    }
    drop(b);
    assert_eq!(segments(&storage), before);
    assert_eq!(numbers(&open(with(&[1]), &storage).0), (0..10).collect::<Vec<_>>());
}

/// Calls `change` with the body of record `n` of a segment, and makes its checksum right again.
fn forge(bytes: &mut [u8], n: usize, change: impl FnOnce(&mut [u8])) {
    let mut at = codec::decode_header(bytes).unwrap().1;
    let length = |bytes: &[u8], at: usize| codec::decode_record(&bytes[at..], 1 << 20).unwrap().1;
    (0..n).for_each(|_| at += length(bytes, at));
    let end = at + length(bytes, at);
    change(&mut bytes[at + codec::FRAME_BYTES..end]);
    codec::frame(&mut bytes[..end], at);
}

#[test]
fn a_record_that_was_changed_is_lost_alone_counted_once_and_its_file_is_kept() {
    type Change = fn(&mut [u8]);
    let changes: [Change; 4] = [
        |body| body[60] ^= 1,
        // Of the clear part: when it was accepted.
        |body| body[8] ^= 1,
        // The tag, and the number that makes the nonce.
        |body| *body.last_mut().unwrap() ^= 0x80,
        |body| body[21] ^= 1,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let storage = SimStorage::default();
        store(with(&[1]), &storage, 0..600);
        let first = segments(&storage)[0].clone();
        storage.damage(&first, |bytes| forge(bytes, 7, change));
        let (mut b, _) = open(with(&[1]), &storage);
        let mut reader = b.outbox.reader(b.to, b.lane);
        for _ in 0..2 {
            reader.rewind();
            let read: Vec<u64> = b.read(&mut reader).into_iter().map(|(_, n)| n).collect();
            assert_eq!(read, (0..600).filter(|n| *n != 7).collect::<Vec<_>>(), "change {n}");
            let row = b.row();
            assert_eq!((row.accepted, row.evicted, row.queued), (600, 1, 599), "change {n}");
            assert_eq!(b.outbox.status()[0].corrupt_records, 1);
        }
        assert!(b.outbox.peeker(b.lane).get(8).unwrap().is_empty() && b.outbox.peeker(b.lane).get(9).unwrap().len() == 1);
        reader.rewind();
        let all = b.read(&mut reader);
        reader.acknowledge(&all.iter().map(|(s, _)| *s).collect::<Vec<_>>());
        b.writer.step(false);
        assert_eq!(b.row().queued, 0);
        assert!(storage.paths().contains(&first.with_extension("corrupt")), "change {n}");
    }
}

#[test]
fn a_record_or_a_segment_from_another_place_does_not_open() {
    let storage = SimStorage::default();
    store(with(&[1]), &storage, 0..10);
    store(with(&[1]), &storage, 10..20);
    let (plain, other) = (SimStorage::default(), SimStorage::default());
    store(fsync(), &plain, 0..10);
    store(with(&[1]), &other, 0..10);
    let paths = segments(&storage);
    let read = |storage: &SimStorage| storage.read(&segments(storage)[0]).unwrap();
    let (first, plain, other) = (read(&storage), read(&plain), read(&other));
    let start = |bytes: &[u8]| codec::decode_header(bytes).unwrap().1;
    // Plain records behind a sealed header, and records that the same key has sealed in another file.
    for records in [&plain[start(&plain)..], &other[start(&other)..]] {
        storage.damage(&paths[0], |bytes| *bytes = [&first[..start(&first)], records].concat());
        let (b, _) = open(with(&[1]), &storage.after_kill());
        assert_eq!(numbers(&b), (10..20).collect::<Vec<_>>());
        assert_eq!((b.row().accepted, b.row().evicted), (20, 10));
    }
    // The segment under the name and with the base of another one.
    let moved = codec::Header { base: 5, ..codec::decode_header(&first).unwrap().0 };
    storage.damage(&paths[0], |bytes| *bytes = [codec::encode_header(&moved), first[start(&first)..].to_vec()].concat());
    assert_eq!(numbers(&open(with(&[1]), &storage.after_kill()).0), (10..20).collect::<Vec<_>>());
}

#[test]
fn no_file_has_the_salt_of_another_and_no_nonce_comes_twice_in_one() {
    let storage = SimStorage::default();
    let mut salts = BTreeSet::new();
    let (mut seen, mut n) = (BTreeMap::new(), 0);
    for round in 0..30u64 {
        let (mut b, _) = open(with(&[1]), &storage);
        for step in 0..40 {
            n += b.append(n).taken as u64;
            if step % 10 == 9 {
                storage.fail_syncs(1);
            }
            b.clock.advance(Duration::from_secs(6));
            b.writer.step(false);
            // Whatever ever stood on the disk, also what was written again later.
            for path in segments(&storage) {
                let bytes = storage.read(&path).unwrap();
                // A file whose first sync failed may be empty.
                let Ok((header, mut at)) = codec::decode_header(&bytes) else { continue };
                let salt = header.sealed.unwrap().salt;
                salts.insert((salt, path.clone()));
                while let Ok((record, length)) = codec::decode_record(&bytes[at..], 1 << 20) {
                    let text = record.payload.to_vec();
                    let count = u32::from_le_bytes(text[..4].try_into().unwrap());
                    assert_eq!(seen.entry((salt, count)).or_insert_with(|| text.clone()), &text, "round {round}");
                    at += length;
                }
            }
        }
        drop(b);
    }
    let different: BTreeSet<_> = salts.iter().map(|(salt, _)| salt).collect();
    assert!(different.len() == salts.len() && salts.len() > 30, "{} of {}", different.len(), salts.len());
    assert!(seen.len() > 1_000);
}
