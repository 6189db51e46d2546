//! A set of readers over the simulated file layer, its writer stepped by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::super::routing::LaneShare;
use super::*;
use crate::message::Attributes;
use crate::outbox::sim::SimStorage;
use crate::outbox::{AtRest, DestinationId, Durability, LaneConfig, LedgerRow, NewRecord, Order, Outbox, OutboxConfig, WhenFull, Windows};
use crate::seal::{KEY_BYTES, MasterKey};
use crate::time::{ManualClock, Timestamp};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Bench {
    outbox: Outbox,
    write: Box<dyn FnMut(bool)>,
    clock: Arc<ManualClock>,
    to: DestinationId,
    set: Set,
}

const STORED: &str = "upstream/a|b";

fn lane(name: &str) -> LaneConfig {
    LaneConfig { durability: Durability::Fsync, quota_bytes: 64 << 20, when_full: WhenFull::Reject, ..LaneConfig::new(name) }
}

fn open(lanes: Vec<LaneConfig>, at_rest: AtRest, storage: &SimStorage, members: usize, now: Timestamp) -> Bench {
    let clock = Arc::new(ManualClock::at(now));
    let config =
        OutboxConfig { dir: "/store".into(), node: "n1".into(), lanes, segment_bytes: 64 << 10, cursor_interval: Duration::from_secs(1), at_rest };
    let (outbox, mut writer, _) = Outbox::open_without_thread(config, Arc::new(storage.clone()), clock.clone()).unwrap();
    let to = outbox.destination(STORED).unwrap();
    let share = |(lane, name): (LaneId, String)| LaneShare { lane, weight: Arc::new(AtomicU32::new(1)), strict: name == "critical" };
    let consumer = Consumer::new(&outbox, outbox.lanes().into_iter().map(share), to);
    let write: Box<dyn FnMut(bool)> = Box::new(move |last| {
        writer.step(last);
    });
    let set = Set::new(consumer, members, outbox.clone());
    Bench { outbox, write, clock, to, set }
}

fn bench(members: usize) -> Bench {
    open(vec![lane("default")], AtRest::default(), &SimStorage::default(), members, Timestamp(1_000_000))
}

fn payload(n: u64) -> Vec<u8> {
    let mut p = n.to_le_bytes().to_vec();
    p.resize(200, n as u8);
    p
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

impl Bench {
    fn append(&self, lane: &str, n: u64, ttl_seconds: Option<u32>) -> Option<u64> {
        let (payload, to) = (payload(n), [self.to]);
        let attributes = Attributes::default();
        let topic = ["a", "b", "c"][(n % 3) as usize];
        let record = NewRecord { source: "local", topic, payload: &payload, attributes, qos: 1, retain: false, ttl_seconds, destinations: &to };
        let appended = self.outbox.append(self.outbox.lane(lane).unwrap(), &[record]);
        (appended.taken == 1).then_some(appended.last.sequence)
    }

    fn fill(&mut self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            self.append("default", n, None).unwrap();
            if n % 500 == 499 {
                (self.write)(false);
            }
        }
        (self.write)(false);
    }

    /// The books of the set, all lanes together. They balance, always.
    fn row(&self) -> LedgerRow {
        let rows = self.outbox.ledger_of(self.to);
        let sum = |of: fn(&LedgerRow) -> u64| rows.iter().map(of).sum();
        let row = LedgerRow {
            accepted: sum(|r| r.accepted),
            delivered: sum(|r| r.delivered),
            expired: sum(|r| r.expired),
            evicted: sum(|r| r.evicted),
            aggregated: sum(|r| r.aggregated),
            queued: sum(|r| r.queued),
            ..LedgerRow::default()
        };
        for row in &rows {
            assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "{row:?}");
        }
        row
    }
}

/// What a member is given: lane, sequence and number of each record.
fn take(member: &mut SetConsumer, most: usize) -> Vec<(LaneId, u64, u64)> {
    let mut run = LaneRun::default();
    let mut read = member.next_strict_run(most, 16 << 10, &mut run).unwrap();
    if read == 0 {
        read = member.next_shared_run(most, 16 << 10, &mut run).unwrap();
    }
    let taken: Vec<_> = run.run.iter().filter(|_| read > 0).map(|r| (r.id.lane, r.id.sequence, number(r.payload()))).collect();
    assert_eq!(taken.len(), read);
    taken
}

fn take_all(member: &mut SetConsumer) -> Vec<(LaneId, u64, u64)> {
    let mut all = Vec::new();
    loop {
        let taken = take(member, 50);
        if taken.is_empty() {
            return all;
        }
        all.extend(taken);
    }
}

fn numbers(taken: &[(LaneId, u64, u64)]) -> Vec<u64> {
    taken.iter().map(|(_, _, n)| *n).collect()
}

fn acknowledge(member: &SetConsumer, taken: &[(LaneId, u64, u64)]) -> u64 {
    taken.iter().map(|(lane, sequence, _)| member.acknowledge(*lane, &[*sequence])).sum()
}

#[test]
fn each_member_is_given_everything_and_what_one_has_is_done_for_all() {
    let mut b = bench(2);
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    b.fill(0..40);
    let first = take(&mut one, 20);
    assert_eq!(numbers(&first), (0..20).collect::<Vec<_>>());
    let second = take(&mut two, 10);
    assert_eq!(numbers(&second), (0..10).collect::<Vec<_>>(), "what the other one has on its way");
    assert_eq!((acknowledge(&one, &first), b.row().delivered), (20, 20));
    assert_eq!((acknowledge(&two, &second), b.row().delivered), (0, 20), "done is done once");
    assert_eq!(numbers(&take_all(&mut two)), (20..40).collect::<Vec<_>>(), "what has been done meanwhile is passed over");
    assert_eq!((b.set.counts().kept, b.row().queued), (20, 20));
}

#[test]
fn a_member_that_is_away_costs_nothing_and_has_no_backlog_when_it_is_back() {
    let mut b = bench(2);
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    b.fill(0..5);
    let out = take(&mut two, 5);
    two.rewind();
    for from in (0..20_000).step_by(500) {
        b.fill(from + 5..from + 505);
        let taken = take_all(&mut one);
        assert!(b.set.counts().kept <= 505);
        acknowledge(&one, &taken);
        assert_eq!(b.set.counts(), SetCounts::default());
    }
    (b.write)(false);
    assert!(b.outbox.status()[0].segments <= 1, "nothing is kept for the one that is away");
    assert_eq!((take(&mut two, 50), two.queued(), acknowledge(&two, &out)), (Vec::new(), 0, 0));
}

#[test]
fn a_member_whose_link_breaks_begins_with_the_first_record_that_is_not_done() {
    let mut b = bench(2);
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    b.fill(0..30);
    let first = take(&mut one, 30);
    let second = take(&mut two, 12);
    acknowledge(&two, &second[..5]);
    acknowledge(&one, &first[7..9]);
    one.rewind();
    let again: Vec<u64> = (5..30).filter(|n| ![7, 8].contains(n)).collect();
    assert_eq!(numbers(&take_all(&mut one)), again);
    assert_eq!(numbers(&take_all(&mut two)), (12..30).collect::<Vec<_>>(), "the other one is where it was");
    // Both are gone: the store is asked anew.
    one.rewind();
    two.rewind();
    assert_eq!(b.set.counts().kept, 0);
    assert_eq!(numbers(&take_all(&mut two)), again);
}

#[test]
fn a_member_that_has_read_everything_is_woken_by_what_another_one_reads_and_leaves() {
    let mut b = bench(2);
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    assert!(take(&mut two, 5).is_empty());
    assert!(two.readable(false).now_or_never().is_none());
    b.fill(0..3);
    let first = take(&mut one, 5);
    assert_eq!(first.len(), 3);
    assert!(one.readable(false).now_or_never().is_none(), "its own reading is no news to it");
    // The store says nothing any more: the other one has read there.
    assert!(two.readable(false).now_or_never().is_some());
    one.rewind();
    assert_eq!(numbers(&take_all(&mut two)), [0, 1, 2]);
}

fn unwanted(member: &SetConsumer) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    member.unwanted(&mut found);
    found.into_iter().map(|(_, sequence, reason)| (sequence, reason)).collect()
}

#[test]
fn what_one_member_refuses_another_may_take_and_what_all_refuse_is_unwanted() {
    let mut b = bench(2);
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    b.fill(0..4);
    let first = take(&mut one, 4);
    let lane = first[0].0;
    for (_, sequence, _) in &first[..2] {
        one.refuse(lane, *sequence, "one will not");
    }
    acknowledge(&one, &first[2..]);
    assert!(unwanted(&one).is_empty(), "the one that is away has not been asked");
    assert_eq!((b.set.counts(), b.row().queued, one.sendable(false), two.sendable(false)), (SetCounts { kept: 2, refused: 2 }, 2, 0, 2));
    one.rewind();
    assert!(take(&mut one, 9).is_empty(), "it is not asked again");
    let second = take(&mut two, 9);
    assert_eq!(numbers(&second), [0, 1]);
    assert_eq!(acknowledge(&two, &second[..1]), 1);
    two.refuse(lane, second[1].1, "two will not");
    // Whoever looks first has it, until it begins anew.
    assert_eq!(unwanted(&one), [(second[1].1, "refused by each of its set, the last one said: two will not".to_owned())]);
    assert!(unwanted(&two).is_empty());
    one.rewind();
    assert_eq!(unwanted(&two).len(), 1);
    two.reject(lane, second[1].1, "nobody");
    let row = b.row();
    assert_eq!((row.delivered, row.evicted, row.queued, b.set.counts()), (3, 1, 0, SetCounts::default()));
    assert!(unwanted(&two).is_empty());
}

#[test]
fn what_a_member_has_refused_waits_for_one_that_is_away_within_bounds() {
    let mut b = bench(2);
    let mut one = b.set.member(0);
    b.fill(0..1);
    let lane = take(&mut one, 1)[0].0;
    one.refuse(lane, 1, "too large");
    let mut n = 1;
    while unwanted(&one).is_empty() {
        assert!(n < MOST_BEHIND + 200, "as many as the cursor may remember, and no more");
        b.fill(n..n + 100);
        n += 100;
        let taken = take_all(&mut one);
        assert_eq!(acknowledge(&one, &taken), 100);
    }
    assert!(n > MOST_BEHIND);
    one.reject(lane, 1, "set aside");
    // Too many of them: the oldest go.
    b.fill(n..n + MOST_REFUSED as u64 + 10);
    for (lane, sequence, _) in take_all(&mut one) {
        one.refuse(lane, sequence, "not authorised");
    }
    let gone: Vec<u64> = unwanted(&one).into_iter().map(|(sequence, _)| sequence).collect();
    assert_eq!(gone, (n + 1..n + 11).collect::<Vec<_>>());
    assert!(unwanted(&one).is_empty());
    gone.iter().for_each(|sequence| one.reject(lane, *sequence, "set aside"));
    assert_eq!((b.set.counts().refused, b.row().queued), (MOST_REFUSED, MOST_REFUSED as u64));
}

#[test]
fn what_was_kept_for_a_member_and_has_outlived_its_time_or_lost_its_place_is_not_given_to_it() {
    let mut b = bench(2);
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    let lane = b.outbox.lane("default").unwrap();
    b.append("default", 0, Some(5));
    b.append("default", 1, None);
    (b.write)(false);
    assert_eq!(take(&mut one, 5).len(), 2);
    one.refuse(lane, 1, "no");
    one.refuse(lane, 2, "no");
    b.clock.advance(Duration::from_secs(6));
    assert_eq!(numbers(&take_all(&mut two)), [1]);
    assert_eq!((b.row().expired, b.row().queued, b.set.counts()), (1, 1, SetCounts { kept: 1, refused: 1 }));
    // Its lane is full and gives it up, while nobody can be asked.
    two.rewind();
    let full = LaneConfig { quota_bytes: 1 << 20, when_full: WhenFull::DropOldest, ..self::lane("default") };
    assert!(b.outbox.reconfigure(full));
    b.fill(2..10_000);
    assert!(b.row().evicted > 4_000);
    one.refuse(lane, 2, "again");
    assert!(unwanted(&one).is_empty(), "what is gone is nobody's to set aside");
    let rest = take_all(&mut two);
    assert!(rest[0].2 > 4_000 && rest.last().unwrap().2 == 9_999);
    assert_eq!((acknowledge(&two, &rest), b.row().queued), (rest.len() as u64, 0));
}

#[test]
fn strict_lanes_go_first_at_each_member_and_alone_when_that_is_wanted() {
    let mut b = open(vec![lane("default"), lane("critical")], AtRest::default(), &SimStorage::default(), 2, Timestamp(1_000_000));
    let (mut one, mut two) = (b.set.member(0), b.set.member(1));
    b.fill(0..3);
    assert_eq!(numbers(&take(&mut one, 2)), [0, 1]);
    b.append("critical", 9, None);
    assert_eq!((numbers(&take(&mut one, 5)), numbers(&take(&mut one, 5))), (vec![9], vec![2]));
    let mut run = LaneRun::default();
    assert_eq!((two.next_strict_run(9, 1 << 10, &mut run).unwrap(), two.sendable(true), two.sendable(false)), (1, 1, 4));
    assert_eq!(two.next_strict_run(9, 1 << 10, &mut run).unwrap(), 0);
    assert_eq!(numbers(&take_all(&mut two)), [0, 1, 2]);
}

/// What a run of random operations needs to know.
#[derive(Default)]
struct Model {
    accepted: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    waiting: Vec<(&'static str, u64, u64)>,
    /// Had by one of the members, or refused by all of them.
    done: BTreeSet<u64>,
    /// Done before a kill or a power cut: may come again.
    again: BTreeSet<u64>,
    numbers: BTreeMap<(LaneId, u64), u64>,
    rejected: u64,
    /// By member, since the last crash.
    refused: Vec<BTreeSet<u64>>,
    on_its_way: Vec<Vec<(LaneId, u64, u64)>>,
    /// The last sequence that each member was given of each lane since it began anew.
    last: Vec<BTreeMap<LaneId, u64>>,
    first: u64,
}

const WINDOW: usize = 60;

/// Members that come and go, are slow and refuse, restarts, kills and power cuts in random order, in lanes of all kinds: every record that was
/// durable reaches a member or is refused by all of them, none is given to anybody once it is done, each member has each lane in order, the
/// books balance and agree with what was done, and what is in memory stays within the windows.
#[test]
fn whatever_happens_every_durable_record_reaches_one_of_the_set_and_the_books_balance() {
    let mut seen = [0; 5];
    for seed in 1..17u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let members = 2 + (seed % 2) as usize;
        let newest = seed.is_multiple_of(4);
        let (durability, spill_after) = match seed % 3 {
            0 => (Durability::Batched(Duration::from_millis(300)), Duration::ZERO),
            1 if !newest => (Durability::Memory, Duration::from_secs(2)),
            _ => (Durability::Fsync, Duration::ZERO),
        };
        let order = if newest { Order::Newest } else { Order::Oldest };
        let lossy = seed.is_multiple_of(5);
        let when_full = match seed % 3 {
            _ if !lossy => WhenFull::Reject,
            0 if !newest => WhenFull::KeepLatest,
            2 if !newest => WhenFull::Downsample(Windows::new(&[Duration::from_secs(1)]).unwrap()),
            _ => WhenFull::DropOldest,
        };
        let quota_bytes = if lossy { 1 << 20 } else { 64 << 20 };
        let lanes = vec![LaneConfig { durability, spill_after, order, when_full, quota_bytes, ..lane("default") }, lane("critical")];
        let mut storage = SimStorage::default();
        let mut now = Timestamp(1_000_000);
        let sealed = || if seed.is_multiple_of(2) { AtRest::with_keys(&[MasterKey::new([7; KEY_BYTES])], true) } else { AtRest::default() };
        let mut b = open(lanes.clone(), sealed(), &storage, members, now);
        let mut m = Model::default();
        let (mut n, mut crashed) = (0u64, false);
        for _ in 0..10 {
            let mut readers: Vec<SetConsumer> = (0..members).map(|at| b.set.member(at)).collect();
            m.refused = vec![BTreeSet::new(); members];
            m.on_its_way = vec![Vec::new(); members];
            m.last = vec![BTreeMap::new(); members];
            // One of them is away for the whole time, most often.
            let away = random.below(members as u64 + 1) as usize;
            for _ in 0..random.below(300) {
                let at = random.below(members as u64) as usize;
                match random.below(16) {
                    0..5 => {
                        let name = if random.below(5) == 0 { "critical" } else { "default" };
                        for _ in 0..1 + random.below(if lossy { 400 } else { 60 }) {
                            let brief = n.is_multiple_of(29).then_some(2);
                            if let Some(sequence) = b.append(name, n, brief) {
                                m.accepted.insert(n);
                                m.numbers.insert((b.outbox.lane(name).unwrap(), sequence), n);
                                m.waiting.push((name, sequence, n));
                            }
                            n += 1;
                        }
                    }
                    5..10 if at != away => {
                        let room = WINDOW - m.on_its_way[at].len().min(WINDOW);
                        if room == 0 {
                            continue;
                        }
                        for (lane, sequence, number) in take(&mut readers[at], 1 + random.below(room as u64) as usize) {
                            assert!(!m.done.contains(&number) || m.again.contains(&number), "seed {seed}: {number} is done, and {at} is given it");
                            assert!(!m.refused[at].contains(&number), "seed {seed}: {at} has refused {number}");
                            let last = m.last[at].insert(lane, sequence);
                            assert!(newest || last.is_none_or(|last| last < sequence), "seed {seed}: {sequence} after {last:?}");
                            m.on_its_way[at].push((lane, sequence, number));
                        }
                    }
                    10..14 => {
                        for _ in 0..random.below(40) {
                            if m.on_its_way[at].is_empty() {
                                break;
                            }
                            // Most answers come in order.
                            let place = if random.below(8) == 0 { random.below(m.on_its_way[at].len() as u64) as usize } else { 0 };
                            let (lane, sequence, number) = m.on_its_way[at].remove(place);
                            if random.below(40) == 0 || number.is_multiple_of(50) {
                                readers[at].refuse(lane, sequence, "no");
                                m.refused[at].insert(number);
                            } else {
                                m.first += readers[at].acknowledge(lane, &[sequence]);
                                m.done.insert(number);
                            }
                        }
                        let mut found = Vec::new();
                        readers[at].unwanted(&mut found);
                        for (lane, sequence, reason) in found {
                            assert!(reason.contains("each of its set"), "seed {seed}: {reason}");
                            readers[at].reject(lane, sequence, &reason);
                            m.rejected += 1;
                            m.done.insert(m.numbers[&(lane, sequence)]);
                        }
                    }
                    14 => {
                        readers[at].rewind();
                        m.on_its_way[at].clear();
                        m.last[at].clear();
                    }
                    _ => {}
                }
                if random.below(3) > 0 {
                    (b.write)(false);
                    b.clock.advance(Duration::from_millis(150 * random.below(4)));
                }
                let Model { waiting, durable, .. } = &mut m;
                waiting.retain(|(lane, sequence, n)| {
                    let safe = durability != Durability::Memory && b.outbox.is_durable(b.outbox.lane(lane).unwrap(), *sequence);
                    if safe && !n.is_multiple_of(29) {
                        durable.insert(*n);
                    }
                    !safe
                });
                let (row, counts) = (b.row(), b.set.counts());
                assert!(counts.kept <= 2 * members * WINDOW + counts.refused, "seed {seed}: {counts:?}");
                if !crashed && !lossy {
                    assert_eq!((row.accepted, row.delivered, row.evicted), (m.accepted.len() as u64, m.first, m.rejected), "seed {seed}");
                }
            }
            drop(readers);
            let rows = b.outbox.ledger();
            let crash = random.below(3);
            if crash > 0 {
                crashed = true;
                m.again.extend(&m.done);
                storage = if crash == 1 { storage.after_kill() } else { storage.after_power_cut(|| random.below(9) as u8) };
            } else {
                (b.write)(true);
            }
            m.waiting.clear();
            now = b.outbox.now();
            drop(b);
            b = open(lanes.clone(), sealed(), &storage, members, now);
            b.row();
            if crash == 0 && !lossy {
                assert_eq!(b.outbox.ledger(), rows, "seed {seed}: a clean restart changes no book");
            }
        }
        // One of them stays, and takes everything.
        let mut reader = b.set.member((seed as usize) % members);
        for _ in 0..200 {
            (b.write)(true);
            b.clock.advance(Duration::from_secs(3));
            let taken = take_all(&mut reader);
            acknowledge(&reader, &taken);
            m.done.extend(numbers(&taken));
        }
        let row = b.row();
        assert_eq!((row.queued, b.set.counts()), (0, SetCounts::default()), "seed {seed}: {row:?}");
        if !lossy {
            let lost: Vec<u64> = m.durable.difference(&m.done).copied().collect();
            assert!(lost.is_empty(), "seed {seed}: lost {lost:?}");
        }
        seen = [
            seen[0] + m.rejected,
            seen[1] + m.again.len() as u64,
            seen[2] + row.expired,
            seen[3] + row.aggregated,
            seen[4] + row.evicted - m.rejected.min(row.evicted),
        ];
        (b.write)(false);
        assert!(b.outbox.status()[0].segments <= 1, "seed {seed}");
    }
    assert!(seen.iter().all(|n| *n > 50), "all of it happens: {seen:?}");
}
