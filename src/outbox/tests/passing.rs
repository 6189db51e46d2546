//! A lane that stores nothing: every sender is answered once, the books say what was acknowledged, and no file knows of it.

use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::escape::SplitMix;

const QUOTA: u64 = 1 << 20;
const WITHIN: Duration = Duration::from_secs(10);

fn passthrough() -> OutboxConfig {
    config(Durability::Passthrough, QUOTA, WhenFull::Reject)
}

/// What the sender has been told so far.
fn told(ticket: &mut Ticket) -> Option<Result<(), Unpassed>> {
    match ticket.answer.try_recv() {
        Ok(answer) => Some(answer),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Closed) => panic!("a sender is told nothing"),
    }
}

fn why(result: Result<Ticket, OutboxError>) -> Unpassed {
    match result {
        Err(OutboxError::NotPassed { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

fn read(reader: &mut Reader) -> Vec<u64> {
    let mut run = Run::default();
    let mut all = Vec::new();
    while reader.next_run(50, 8 << 10, &mut run).unwrap() > 0 {
        all.extend(run.iter().map(|r| r.id.sequence));
    }
    all
}

fn refused(b: &Bench, reason: Refusal) -> u64 {
    b.outbox.status()[0].refused[reason as usize]
}

#[test]
fn a_sender_is_answered_when_all_upstreams_have_the_record_and_refused_at_once_while_one_is_not_there() {
    let (b, _) = open(passthrough(), &SimStorage::default());
    let other = b.outbox.destination("upstream/other").unwrap();
    let both = [b.to, other];
    let (mut one, mut two) = (b.outbox.reader(b.to, b.lane), b.outbox.reader(other, b.lane));
    one.flow(&Flow::Open);
    assert_eq!(why(b.outbox.pass(b.lane, &record(b"x", &both))), Unpassed::Link);
    two.flow(&Flow::Open);
    let mut ticket = b.outbox.pass(b.lane, &record(b"x", &both)).unwrap();
    assert_eq!((read(&mut one), read(&mut two)), (vec![ticket.id.sequence], vec![ticket.id.sequence]));
    one.acknowledge(&[ticket.id.sequence]);
    one.acknowledge(&[ticket.id.sequence]);
    assert_eq!((told(&mut ticket), b.row().accepted, two.queued()), (None, 0, 1));
    two.acknowledge(&[ticket.id.sequence]);
    assert_eq!((told(&mut ticket), b.row().accepted, b.row().delivered), (Some(Ok(())), 1, 1));
    // Refused for good by one of them: so is the sender.
    let mut ticket = b.outbox.pass(b.lane, &record(b"x", &both)).unwrap();
    read(&mut one);
    read(&mut two);
    two.reject(ticket.id.sequence, "not authorised");
    one.acknowledge(&[ticket.id.sequence]);
    assert_eq!(told(&mut ticket), Some(Err(Unpassed::Refused("not authorised".into()))));
    assert_eq!((b.row().accepted, refused(&b, Refusal::Peer), refused(&b, Refusal::Link)), (1, 1, 1));
}

#[test]
fn what_was_withdrawn_is_never_handed_out_again() {
    let (b, _) = open(passthrough(), &SimStorage::default());
    let mut reader = b.outbox.reader(b.to, b.lane);
    let to = [b.to];
    reader.flow(&Flow::Open);
    let mut tickets: Vec<Ticket> = (0..4).map(|_| b.outbox.pass(b.lane, &record(b"x", &to)).unwrap()).collect();
    let mut run = Run::default();
    assert_eq!(reader.next_run(2, 1 << 10, &mut run).unwrap(), 2);
    // No more is taken: what has been sent may be answered, what has not is withdrawn.
    reader.flow(&Flow::Closing(Unpassed::Link));
    assert_eq!(tickets.iter_mut().map(told).collect::<Vec<_>>(), [None, None, Some(Err(Unpassed::Link)), Some(Err(Unpassed::Link))]);
    reader.acknowledge(&[tickets[0].id.sequence]);
    assert_eq!(told(&mut tickets[0]), Some(Ok(())));
    reader.rewind();
    assert_eq!(told(&mut tickets[1]), Some(Err(Unpassed::Broken)));
    reader.flow(&Flow::Open);
    let later = b.outbox.pass(b.lane, &record(b"y", &to)).unwrap();
    assert_eq!(read(&mut reader), [later.id.sequence]);
    // An answer from before changes nothing.
    reader.acknowledge(&[tickets[1].id.sequence]);
    assert_eq!((b.row().accepted, refused(&b, Refusal::Withdrawn), refused(&b, Refusal::Link)), (1, 1, 2));
    drop(reader);
    assert_eq!(why(b.outbox.pass(b.lane, &record(b"x", &to))), Unpassed::Link, "nobody reads");
}

#[test]
fn the_quota_bounds_what_is_on_its_way_and_time_does_too() {
    let (b, _) = open(passthrough(), &SimStorage::default());
    let mut reader = b.outbox.reader(b.to, b.lane);
    let to = [b.to];
    reader.flow(&Flow::Open);
    assert!(matches!(b.outbox.pass(b.lane, &record(&vec![0; 600 << 10], &to)), Err(OutboxError::TooLarge { .. })));
    let mut tickets = Vec::new();
    let full = loop {
        match b.outbox.pass(b.lane, &record(b"x", &to)) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, OutboxError::NotPassed { why: Unpassed::Full { .. }, .. }), "{full}");
    assert!((2_000..4_096).contains(&tickets.len()), "small ones count for more than their bytes: {}", tickets.len());
    let status = &b.outbox.status()[0];
    assert!(status.held_bytes <= QUOTA && status.passing == tickets.len() as u64 && status.passthrough && status.disk_bytes == 0);
    b.clock.advance(WITHIN + Duration::from_millis(1));
    let mut late = b.outbox.pass(b.lane, &record(b"x", &to)).unwrap();
    assert!(tickets.iter_mut().all(|t| told(t) == Some(Err(Unpassed::Late(WITHIN)))));
    assert_eq!((read(&mut reader), told(&mut late)), (vec![late.id.sequence], None));
    assert_eq!((refused(&b, Refusal::Late), refused(&b, Refusal::Full), refused(&b, Refusal::TooLarge)), (tickets.len() as u64, 1, 1));
}

#[test]
fn what_a_lane_stored_before_it_stored_nothing_goes_first_and_its_books_go_on() {
    let storage = SimStorage::default();
    let (mut b, _) = open(fsync(), &storage);
    (0..10).for_each(|n| assert_eq!(b.append(n).taken, 1));
    b.writer.step(true);
    drop(b);
    let (mut b, _) = open(passthrough(), &storage);
    let (mut reader, to) = (b.outbox.reader(b.to, b.lane), [b.to]);
    reader.flow(&Flow::Open);
    assert!(b.append(11).refused.is_some(), "nothing is stored any more");
    assert_eq!(why(b.outbox.pass(b.lane, &record(b"x", &to))), Unpassed::Behind);
    let stored = read(&mut reader);
    assert_eq!(stored.len(), 10);
    reader.acknowledge(&stored);
    let mut ticket = b.outbox.pass(b.lane, &record(b"x", &to)).unwrap();
    assert!(ticket.id.sequence > stored[9]);
    let passing = read(&mut reader);
    reader.acknowledge(&passing);
    assert_eq!((told(&mut ticket), b.row().accepted, b.row().delivered), (Some(Ok(())), 11, 11));
    b.writer.step(true);
    assert_eq!(b.outbox.status()[0].segments, 0);
    drop(reader);
    drop(b);
    let (b, _) = open(fsync(), &storage);
    assert_eq!((b.row().accepted, b.row().delivered, b.row().queued), (11, 11, 0));
    assert_eq!(b.append(12).taken, 1);
    assert_eq!((b.row().accepted, b.row().queued), (12, 1));
}

#[test]
fn passing_on_writes_nothing_for_minutes_and_a_kill_forgets_counts_on_both_sides() {
    let storage = SimStorage::default();
    let (mut b, _) = open(passthrough(), &storage);
    b.writer.step(false);
    b.clock.advance(Duration::from_secs(2));
    b.writer.step(false);
    let before = b.outbox.write_counts();
    let (mut reader, to) = (b.outbox.reader(b.to, b.lane), [b.to]);
    reader.flow(&Flow::Open);
    for _ in 0..200 {
        let _ticket = b.outbox.pass(b.lane, &record(b"x", &to)).unwrap();
        let passing = read(&mut reader);
        reader.acknowledge(&passing);
        b.clock.advance(Duration::from_secs(1));
        b.writer.step(false);
    }
    assert_eq!((b.row().delivered, b.outbox.write_counts()), (200, before));
    b.clock.advance(Duration::from_secs(300));
    b.writer.step(false);
    assert!(b.outbox.write_counts().bytes > before.bytes, "the counts are kept now and then");
    let _ticket = b.outbox.pass(b.lane, &record(b"x", &to)).unwrap();
    let passing = read(&mut reader);
    reader.acknowledge(&passing);
    assert_eq!(b.row().delivered, 201);
    drop(reader);
    drop(b);
    let (b, _) = open(passthrough(), &storage);
    assert_eq!((b.row().accepted, b.row().delivered), (200, 200));
}

/// Two upstreams, links that open and break, answers in any order or never, time that passes: whatever happens, each sender is told once,
/// and the books count those who were told yes.
#[test]
fn whatever_happens_each_sender_is_told_once_and_the_books_count_who_was_told_yes() {
    for seed in 0..200 {
        let mut random = SplitMix::new(seed);
        let storage = SimStorage::default();
        let (mut b, _) = open(passthrough(), &storage);
        let to = [b.to, b.outbox.destination("upstream/other").unwrap()];
        let mut readers = to.map(|d| b.outbox.reader(d, b.lane));
        let mut out: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
        let mut last = [0, 0];
        let mut open_tickets: Vec<(Ticket, Vec<usize>)> = Vec::new();
        let (mut yes, mut no, mut at_once) = ([0u64; 2], 0u64, 0u64);
        for _ in 0..400 {
            let draw = |random: &mut SplitMix, n: u64| (random.draw() >> 33) % n;
            let at = draw(&mut random, 2) as usize;
            match draw(&mut random, 12) {
                0..=4 => {
                    let whose: Vec<usize> = [vec![0], vec![1], vec![0, 1]][draw(&mut random, 3) as usize].clone();
                    let destinations: Vec<DestinationId> = whose.iter().map(|w| to[*w]).collect();
                    match b.outbox.pass(b.lane, &record(b"0123456789", &destinations)) {
                        Ok(ticket) => open_tickets.push((ticket, whose)),
                        Err(_) => at_once += 1,
                    }
                }
                5 => readers[at].flow(&Flow::Open),
                6..=8 => {
                    let new = read(&mut readers[at]);
                    assert!(new.iter().all(|s| std::mem::replace(&mut last[at], *s) < *s), "in order, none twice");
                    out[at].extend(new);
                }
                9 if !out[at].is_empty() => {
                    let which = draw(&mut random, out[at].len() as u64) as usize;
                    let sequence = out[at].swap_remove(which);
                    if draw(&mut random, 8) == 0 { readers[at].reject(sequence, "no") } else { readers[at].acknowledge(&[sequence]) }
                }
                10 if draw(&mut random, 4) == 0 => {
                    readers[at].flow(&if draw(&mut random, 2) == 0 { Flow::Shut(Unpassed::Broken) } else { Flow::Closing(Unpassed::Busy) });
                }
                _ => {
                    b.clock.advance(Duration::from_millis(draw(&mut random, 3_000)));
                    b.writer.step(false);
                }
            }
            open_tickets.retain_mut(|(ticket, whose)| match told(ticket) {
                None => true,
                Some(Ok(())) => {
                    whose.iter().for_each(|w| yes[*w] += 1);
                    false
                }
                Some(Err(_)) => {
                    no += 1;
                    false
                }
            });
            for (at, row) in b.outbox.ledger().iter().enumerate() {
                assert_eq!((row.accepted, row.delivered, row.queued), (yes[at], yes[at], 0), "seed {seed}: {row:?}");
            }
            for (at, reader) in readers.iter().enumerate() {
                assert!(reader.queued() <= open_tickets.iter().filter(|(_, whose)| whose.contains(&at)).count() as u64, "seed {seed}");
                assert!(!open_tickets.is_empty() || reader.queued() == 0, "seed {seed}");
            }
            let status = &b.outbox.status()[0];
            assert_eq!((status.refused.iter().sum::<u64>(), status.passing), (no + at_once, open_tickets.len() as u64), "seed {seed}");
            assert!(status.held_bytes <= QUOTA && (status.held_bytes == 0) == open_tickets.is_empty() && status.disk_bytes == 0);
        }
        drop(readers);
        b.writer.step(true);
        drop(b);
        let (b, _) = open(passthrough(), &storage);
        for (at, row) in b.outbox.ledger().iter().enumerate() {
            assert_eq!((row.accepted, row.delivered, row.queued), (yes[at], yes[at], 0), "after a stop");
        }
    }
}
