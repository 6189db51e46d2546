//! The policies that merge, against a model that keeps everything.

use std::collections::{BTreeMap, BTreeSet};

use super::super::aggregate::{AGGREGATED, FROM, TO};
use super::*;
use crate::time::{ManualClock, Timestamp};

fn windows(seconds: &[u64]) -> WhenFull {
    let lengths: Vec<Duration> = seconds.iter().map(|s| Duration::from_secs(*s)).collect();
    WhenFull::Downsample(Windows::new(&lengths).unwrap())
}

fn config(quota: u64, when_full: WhenFull) -> OutboxConfig {
    let lane = LaneConfig { durability: Durability::Fsync, quota_bytes: quota, when_full, ..LaneConfig::new("default") };
    OutboxConfig {
        dir: "/store".into(),
        node: "n1".into(),
        lanes: vec![lane],
        segment_bytes: 64 << 10,
        cursor_interval: Duration::from_secs(1),
        at_rest: AtRest::default(),
    }
}

/// What was appended: by sequence. Never forgets.
#[derive(Default)]
struct Model {
    records: BTreeMap<u64, (String, f64, Vec<DestinationId>, u32)>,
    durable: BTreeSet<u64>,
    /// Acknowledged, over all restarts.
    delivered: BTreeMap<DestinationId, BTreeSet<u64>>,
}

struct Store {
    outbox: Outbox,
    writer: Writer,
    clock: Arc<ManualClock>,
    lane: LaneId,
    to: Vec<DestinationId>,
    readers: Vec<Reader>,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    sequence: u64,
    epoch: u32,
    topic: String,
    payload: Vec<u8>,
    count: u64,
    span: Option<(String, String)>,
}

impl Seen {
    fn stats(&self) -> (f64, f64, f64, f64) {
        let value: serde_json::Value = serde_json::from_slice(&self.payload).unwrap();
        match &value["v"] {
            serde_json::Value::Number(n) => (n.as_f64().unwrap(), n.as_f64().unwrap(), n.as_f64().unwrap(), n.as_f64().unwrap()),
            v => {
                assert_eq!(v["count"].as_u64(), Some(self.count));
                let field = |name: &str| v[name].as_f64().unwrap();
                (field("min"), field("max"), field("mean"), field("last"))
            }
        }
    }
}

fn see(run: &Run) -> Vec<Seen> {
    run.iter()
        .map(|r| {
            let property = |name: &str| r.with_attributes(|a| a.user.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()));
            Seen {
                sequence: r.id.sequence,
                epoch: r.id.epoch,
                topic: r.topic().to_owned(),
                payload: r.payload().to_vec(),
                count: property(AGGREGATED).map_or(1, |n| n.parse().unwrap()),
                span: property(FROM).zip(property(TO)),
            }
        })
        .collect()
}

fn payload(value: f64) -> Vec<u8> {
    format!(r#"{{"v":{value},"note":"{}"}}"#, "x".repeat(150)).into_bytes()
}

impl Store {
    fn open(config: OutboxConfig, storage: &SimStorage, at: Timestamp, destinations: usize) -> Result<Self, OutboxError> {
        let clock = Arc::new(ManualClock::at(at));
        let (outbox, writer, _) = Outbox::open_without_thread(config, Arc::new(storage.clone()), clock.clone())?;
        let lane = outbox.lane("default").unwrap();
        let to = (0..destinations).map(|n| outbox.destination(&format!("upstream/{n}"))).collect::<Result<Vec<_>, _>>()?;
        let readers = to.iter().map(|d| outbox.reader(*d, lane)).collect();
        Ok(Self { outbox, writer, clock, lane, to, readers })
    }

    /// Appends, stepping the writer while the lane is busy; None when it was refused otherwise.
    fn append(&mut self, topic: &str, payload: &[u8], destinations: &[DestinationId]) -> Option<u64> {
        let record = NewRecord { topic, ..record(payload, destinations) };
        for _ in 0..10_000 {
            let appended = self.outbox.append(self.lane, &[record]);
            match appended.refused {
                None => return Some(appended.last.sequence),
                Some(OutboxError::Busy { .. }) => {
                    self.writer.step(false);
                }
                Some(_) => return None,
            }
        }
        panic!("the lane stays busy");
    }

    fn check_books(&self) {
        for row in self.outbox.ledger() {
            assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "{row:?}");
        }
    }

    fn row(&self, n: usize) -> LedgerRow {
        self.outbox.ledger().into_iter().find(|r| r.destination == format!("upstream/{n}")).unwrap()
    }

    /// Everything that waits for a destination.
    fn all(&mut self, n: usize) -> Vec<Seen> {
        let mut all = Vec::new();
        let mut run = Run::default();
        self.readers[n].rewind();
        while self.readers[n].next_run(500, 64 << 10, &mut run).unwrap() > 0 {
            all.extend(see(&run));
        }
        self.readers[n].rewind();
        all
    }

    fn settle(&mut self) {
        for _ in 0..2_000 {
            if self.writer.step(false) != Some(Duration::ZERO) {
                return;
            }
        }
        panic!("compaction never ends");
    }
}

#[test]
fn windows_are_one_to_four_whole_seconds_and_increase() {
    let s = Duration::from_secs;
    assert!(Windows::new(&[s(60), s(300), s(3_600)]).is_some() && Windows::new(&[s(1)]).is_some());
    for bad in [&[][..], &[s(60), s(60)], &[s(0)], &[s(1), s(2), s(3), s(4), s(5)], &[Duration::from_millis(1_500)], &[s(367 * 86_400)]] {
        assert_eq!(Windows::new(bad), None, "{bad:?}");
    }
}

#[test]
fn a_full_lane_keeps_the_newest_of_each_topic() {
    let storage = SimStorage::default();
    let mut s = Store::open(config(1 << 20, WhenFull::KeepLatest), &storage, Timestamp(1_000_000), 1).unwrap();
    let to = s.to.clone();
    // 40 topics; one that changes once per segment or so must be reduced as well, and one that never changes again must stay.
    let mut newest = BTreeMap::new();
    for n in 0..40_000u64 {
        let topic = match n {
            0 => "once".to_owned(),
            _ if n % 400 == 0 => "rare".to_owned(),
            _ => format!("t/{}", n % 40),
        };
        let sequence = s.append(&topic, &payload(n as f64), &to).unwrap();
        newest.insert(topic, sequence);
        s.writer.step(false);
        assert!(s.outbox.status()[0].disk_bytes <= 1 << 20);
    }
    s.check_books();
    let row = s.row(0);
    assert!(row.accepted == 40_000 && row.evicted == 0 && row.aggregated > 30_000, "{row:?}");
    let all = s.all(0);
    assert_eq!(all.len() as u64, row.queued);
    let mut last = BTreeMap::new();
    for seen in &all {
        last.insert(seen.topic.clone(), seen.sequence);
    }
    assert_eq!(last, newest);
    let rare = all.iter().filter(|seen| seen.topic == "rare").count();
    assert!(rare <= 12, "{rare} of 100 are left");
    let (compactions, saved, aggregated) = s.outbox.compaction_counts();
    assert!(compactions > 5 && saved > 5 << 20 && aggregated == row.aggregated);
    assert!(s.outbox.status()[0].segments <= 20);
    assert!(s.outbox.write_counts().bytes < 12 << 20, "what is written for it stays in proportion: {}", s.outbox.write_counts().bytes);
}

#[test]
fn what_cannot_be_merged_is_given_up_oldest_first_without_reading_the_lane_over_and_over() {
    for policy in [WhenFull::KeepLatest, windows(&[60, 300])] {
        let storage = SimStorage::default();
        let mut s = Store::open(config(1 << 20, policy), &storage, Timestamp(1_000_000), 1).unwrap();
        let to = s.to.clone();
        for n in 0..20_000u64 {
            // Every topic comes once, and the payload is no JSON.
            s.append(&format!("t/{n}"), &[b'x'; 200], &to).unwrap();
            s.writer.step(false);
        }
        s.check_books();
        let row = s.row(0);
        assert!(row.evicted > 10_000 && row.aggregated == 0, "{row:?}");
        assert_eq!(s.all(0).last().unwrap().topic, "t/19999");
        let (_, read) = storage.reads();
        assert!(read < 120 << 20, "{policy:?}: {read} bytes read");
        assert_eq!(s.outbox.compaction_counts().0, 0);
        assert!(s.outbox.write_counts().bytes < 7 << 20, "{}", s.outbox.write_counts().bytes);
    }
}

#[test]
fn seven_days_stay_covered_in_a_small_lane_and_every_aggregate_is_what_its_records_give() {
    // As 10 Hz in 5 MiB, scaled by 40 in rate: a reading every 4 s in 1 MiB is more than 30 times what fits.
    let storage = SimStorage::default();
    let begin = Timestamp(1_800_000_000_000);
    let mut s = Store::open(config(1 << 20, windows(&[60, 300, 3_600])), &storage, begin, 1).unwrap();
    let to = s.to.clone();
    let mut random = Random(5);
    let mut values: Vec<(u64, f64)> = Vec::new();
    let total = 7 * 86_400 / 4;
    for n in 0..total {
        let value = (n as f64 / 900.0).sin() * 20.0 + (random.next() % 1_000) as f64 / 1_000.0;
        values.push((begin.0 + n * 4_000, value));
        s.append("plant/t", &payload(value), &to).unwrap();
        if n % 4 == 0 {
            s.writer.step(false);
        }
        s.clock.advance(Duration::from_secs(4));
    }
    s.settle();
    s.check_books();
    let row = s.row(0);
    assert_eq!((row.accepted, row.evicted), (total, 0));
    assert!(s.outbox.status()[0].disk_bytes <= 1 << 20);
    let mut next = 0;
    let (mut fine, mut coarse) = (0, 0);
    for seen in s.all(0) {
        let part = &values[next..next + seen.count as usize];
        next += part.len();
        if let Some((from, until)) = &seen.span {
            assert_eq!((from, until), (&Timestamp(part[0].0).to_rfc3339(), &Timestamp(part[part.len() - 1].0).to_rfc3339()));
        }
        let (min, max, mean, last) = seen.stats();
        assert_eq!(min, part.iter().map(|p| p.1).fold(f64::MAX, f64::min));
        assert_eq!(max, part.iter().map(|p| p.1).fold(f64::MIN, f64::max));
        assert_eq!(last, part[part.len() - 1].1);
        assert!((mean - part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64).abs() < 1e-9);
        // The newest are not reduced further than they have to be.
        if seen.count == 1 {
            fine += 1;
        } else if seen.count > 75 {
            coarse += 1;
        }
    }
    assert_eq!(next as u64, total, "every reading is in one record, in order");
    assert!(fine > 100 && coarse > 0, "{fine} as they came, {coarse} of an hour");
    assert!(s.outbox.write_counts().bytes < 90 << 20, "{}", s.outbox.write_counts().bytes);
}

/// Random appends, acknowledgements, rewinds, expiry and pressure for a while. Stops when the disk is gone.
fn drive(s: &mut Store, model: &mut Model, random: &mut Random, appends: u64, acknowledges: bool, storage: &SimStorage) {
    let mut waiting: Vec<u64> = Vec::new();
    let mut run = Run::default();
    for _ in 0..appends {
        let topic = format!("t/{}", random.next() % 6);
        let value = (random.next() % 10_000) as f64 / 8.0;
        let both = s.to.clone();
        let destinations = if random.next().is_multiple_of(5) { &both[..1] } else { &both[..] };
        if let Some(sequence) = s.append(&topic, &payload(value), destinations) {
            model.records.insert(sequence, (topic, value, destinations.to_vec(), s.outbox.shared.epoch));
            waiting.push(sequence);
        }
        if random.next().is_multiple_of(3) {
            s.writer.step(false);
            s.clock.advance(Duration::from_millis(random.next() % 3_000));
        }
        waiting.retain(|sequence| {
            let safe = s.outbox.is_durable(s.lane, *sequence);
            if safe {
                model.durable.insert(*sequence);
            }
            !safe
        });
        if acknowledges && random.next().is_multiple_of(40) {
            let n = (random.next() % s.readers.len() as u64) as usize;
            if s.readers[n].next_run(30, 8 << 10, &mut run).is_ok() {
                let seen: Vec<u64> = run.iter().map(|r| r.id.sequence).filter(|_| !random.next().is_multiple_of(7)).collect();
                s.readers[n].acknowledge(&seen);
                model.delivered.entry(s.to[n]).or_default().extend(seen);
                if random.next().is_multiple_of(5) {
                    s.readers[n].rewind();
                }
                if random.next().is_multiple_of(60)
                    && let Some(first) = run.iter().next()
                {
                    s.readers[n].reject(first.id.sequence, "no");
                }
            }
        }
        s.check_books();
        if storage.is_cut() {
            return;
        }
    }
}

/// What waits is right: each record is what was appended, or stands for what was; nothing durable is missing.
fn check(s: &mut Store, model: &Model, policy: WhenFull, acknowledges: bool, context: &str) {
    s.check_books();
    for n in 0..s.to.len() {
        let d = s.to[n];
        let all = s.all(n);
        let row = s.row(n);
        assert_eq!(all.len() as u64, row.queued, "{context}: {row:?}");
        assert!(all.windows(2).all(|w| w[0].sequence < w[1].sequence), "{context}: order");
        let mut stood_for = 0;
        for seen in &all {
            stood_for += seen.count;
            let Some((topic, value, destinations, epoch)) = model.records.get(&seen.sequence) else {
                panic!("{context}: {seen:?} was never appended")
            };
            assert!(*topic == seen.topic && destinations.contains(&d) && *epoch == seen.epoch, "{context}: {seen:?} {epoch}");
            let (min, max, mean, last) = seen.stats();
            assert!(last == *value && min <= mean && mean <= max, "{context}: {seen:?}");
            if seen.count == 1 {
                assert_eq!(seen.payload, payload(*value), "{context}");
            }
        }
        let delivered = model.delivered.get(&d).cloned().unwrap_or_default();
        match policy {
            WhenFull::KeepLatest => {
                for topic in (0..6).map(|t| format!("t/{t}")) {
                    let newest = model.durable.iter().rev().find(|s| model.records[s].0 == topic && model.records[s].2.contains(&d));
                    if let Some(newest) = newest {
                        let there = all.iter().any(|seen| seen.sequence >= *newest && seen.topic == topic);
                        let rejected = row.evicted > 0;
                        assert!(there || rejected || delivered.contains(newest), "{context}: {newest} of {topic} is lost");
                    }
                }
            }
            // While all that is delivered came before anything was merged, every record is one of those, or stands behind one that waits.
            _ if !acknowledges => assert_eq!(stood_for + row.evicted + row.delivered, row.accepted, "{context}: {row:?}"),
            _ => assert!(stood_for <= row.accepted),
        }
    }
}

#[test]
fn books_and_contents_hold_over_random_work_restarts_and_power_cuts() {
    let mut compactions = 0;
    for seed in 1..=18u64 {
        let policy = if seed % 2 == 0 { WhenFull::KeepLatest } else { windows(&[30, 300]) };
        let acknowledges = seed % 3 != 0;
        let mut random = Random(seed * 0x9e37_79b9);
        let (mut storage, mut model) = (SimStorage::default(), Model::default());
        let mut time = Timestamp(1_800_000_000_000);
        for round in 0..4 {
            let context = format!("seed {seed}, round {round}");
            let at_rest = if seed % 4 < 2 { AtRest::default() } else { sealing(seed + round) };
            let Ok(mut s) = Store::open(OutboxConfig { at_rest, ..config(512 << 10, policy) }, &storage, time, 2) else {
                panic!("{context}: cannot be opened")
            };
            check(&mut s, &model, policy, acknowledges, &format!("{context} after opening"));
            if round % 2 == 1 {
                storage.crash_at(storage.operations() + random.next() % 4_000);
            }
            drive(&mut s, &mut model, &mut random, 2_500, acknowledges, &storage);
            if !storage.is_cut() {
                s.settle();
                check(&mut s, &model, policy, acknowledges, &context);
            }
            compactions += s.outbox.compaction_counts().0;
            time = s.clock.now();
            match (storage.is_cut(), random.next() % 3) {
                (false, 0) => {
                    s.writer.step(true);
                    drop(s);
                }
                (_, how) => {
                    drop(s);
                    // A process that was killed leaves all it wrote; a power cut what was synced, or any part of the rest.
                    storage = storage.after_power_cut(|| match how {
                        0 => 8,
                        1 => 0,
                        _ => (random.next() % 9) as u8,
                    });
                }
            }
            // What was not durable may or may not be there; numbers are not used twice in one epoch, so the model can tell.
        }
    }
    assert!(compactions > 25, "{compactions}");
}

#[test]
fn no_operation_that_a_power_cut_falls_into_counts_a_record_twice_or_not_at_all() {
    for (policy, at_rest) in [WhenFull::KeepLatest, windows(&[30, 300])].into_iter().flat_map(|p| [(p, AtRest::default()), (p, sealing(0))]) {
        let config = || OutboxConfig { at_rest: at_rest.clone(), ..config(512 << 10, policy) };
        // Up to where compaction begins, then every operation of it.
        let prepare = |storage: &SimStorage| {
            let mut s = Store::open(config(), storage, Timestamp(1_800_000_000_000), 2).unwrap();
            let mut model = Model::default();
            while !s.outbox.shared.lanes[0].lock().wants_compaction(64 << 10) {
                let n = model.records.len() as u64;
                let topic = format!("t/{}", n % 6);
                let to = s.to.clone();
                let sequence = s.append(&topic, &payload(n as f64), &to).unwrap();
                model.records.insert(sequence, (topic, n as f64, to, s.outbox.shared.epoch));
                model.durable.insert(sequence);
                if n.is_multiple_of(20) {
                    let active = s.outbox.shared.lanes[0].lock().wants_compaction(64 << 10);
                    if !active {
                        s.writer.step(false);
                    }
                    s.clock.advance(Duration::from_millis(500));
                }
            }
            // One has finished two thirds and forgets it in the crash, the other one stands at the front.
            let mut run = Run::default();
            for _ in 0..12 {
                s.readers[1].next_run(100, 32 << 10, &mut run).unwrap();
                s.readers[1].acknowledge(&run.iter().map(|r| r.id.sequence).collect::<Vec<_>>());
            }
            (s, model)
        };
        let clean = SimStorage::default();
        let (mut s, _) = prepare(&clean);
        let before = clean.operations();
        s.settle();
        assert!(s.outbox.compaction_counts().0 > 0);
        let operations = clean.operations() - before;
        assert!(operations > 8, "{operations}");
        for at in 1..=operations + 1 {
            for how in 0..4u64 {
                let storage = SimStorage::default();
                let (mut s, mut model) = prepare(&storage);
                storage.crash_at(storage.operations() + at);
                for _ in 0..400 {
                    s.writer.step(false);
                }
                let mut random = Random(at * 7 + how + 1);
                drop(s);
                let disk = storage.after_power_cut(|| match how {
                    0 => 0,
                    1 => 8,
                    _ => (random.next() % 9) as u8,
                });
                let context = format!("{policy:?}, operation {at}, way {how}");
                let mut s = Store::open(config(), &disk, Timestamp(1_800_001_000_000), 2).unwrap();
                // What had not been written is gone with the process and is in no book.
                let written = s.outbox.last_sequence(s.lane);
                model.durable.retain(|sequence| *sequence <= written);
                check(&mut s, &model, policy, false, &context);
                s.settle();
                check(&mut s, &model, policy, false, &context);
            }
        }
    }
}

#[test]
fn a_segment_with_a_reader_in_it_and_a_damaged_one_are_left_alone() {
    let storage = SimStorage::default();
    let mut s = Store::open(config(1 << 20, WhenFull::KeepLatest), &storage, Timestamp(1_000_000), 1).unwrap();
    let to = s.to.clone();
    for n in 0..400u64 {
        s.append("a", &payload(n as f64), &to).unwrap();
        s.writer.step(false);
    }
    // Half of the first segment is out and one of it is acknowledged.
    let mut run = Run::default();
    s.readers[0].next_run(50, 8 << 10, &mut run).unwrap();
    s.readers[0].acknowledge(&[5]);
    let second = storage.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "seg")).nth(1).unwrap();
    storage.damage(&second, |bytes| bytes[30_000] ^= 1);
    for n in 400..8_000u64 {
        s.append("a", &payload(n as f64), &to).unwrap();
        s.writer.step(false);
    }
    s.settle();
    s.check_books();
    let all = s.all(0);
    assert_eq!(all[..4].iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(all.last().unwrap().sequence, 8_000);
    let row = s.row(0);
    assert!(row.aggregated > 3_000 && row.queued == all.len() as u64 && row.delivered == 1, "{row:?}");
}
