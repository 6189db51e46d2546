use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(1) };

/// A log and its reader, with the outbox's rules: an acknowledgement counts only for what was handed out since the last rewind.
struct Log {
    lane: LaneId,
    topics: Vec<u8>,
    next: usize,
    out: BTreeSet<usize>,
    done: BTreeSet<usize>,
}

impl Log {
    fn new(topics: Vec<u8>) -> Self {
        // Only the outbox makes lane ids; one of a simulated store serves.
        let outbox = selvedge::outbox::Outbox::simulated(&["default"], std::sync::Arc::new(selvedge::time::ManualClock::default()));
        Self { lane: outbox.lane("default").unwrap(), topics, next: 0, out: BTreeSet::new(), done: BTreeSet::new() }
    }

    fn rewind(&mut self) {
        self.out.clear();
        self.next = (0..self.topics.len()).find(|n| !self.done.contains(n)).unwrap_or(self.topics.len());
    }

    fn acknowledge(&mut self, number: usize) {
        if self.out.contains(&number) {
            assert!(self.done.insert(number), "{number} acknowledged twice");
        }
    }

    fn read_into(&mut self, dispatcher: &mut Dispatcher) {
        if dispatcher.take_rewind() {
            self.rewind();
        }
        while dispatcher.wants_more() && self.next < self.topics.len() {
            let number = self.next;
            self.next += 1;
            if self.done.contains(&number) {
                continue;
            }
            self.out.insert(number);
            let delivery = Delivery { topic: self.topics[number].to_string(), data: vec![0; 10].into(), ..Delivery::default() };
            if dispatcher.offer(Origin::Stored(self.lane, number as u64), delivery, None) == Offer::Done {
                self.acknowledge(number);
            }
        }
    }
}

fn number(origin: Origin) -> usize {
    match origin {
        Origin::Stored(_, sequence) => usize::try_from(sequence).unwrap(),
        Origin::Retained(_) => panic!("none here"),
    }
}

fn at(ms: u64) -> Monotonic {
    Monotonic(Duration::from_millis(ms))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_message_is_handled_in_its_topic_s_order_whatever_fails(
        topics in prop::collection::vec(0u8..6, 1..400),
        verdicts in prop::collection::vec((any::<bool>(), 0usize..4), 0..300),
        concurrency in 1usize..5,
    ) {
        let mut log = Log::new(topics);
        let mut dispatcher = Dispatcher::new(concurrency, BACKOFF);
        let mut running: Vec<Job> = Vec::new();
        let mut handled: HashMap<String, Vec<usize>> = HashMap::new();
        let mut verdicts = verdicts.into_iter();
        let mut now = 0;
        for _ in 0..20_000 {
            log.read_into(&mut dispatcher);
            while let Some(job) = dispatcher.start(at(now), Timestamp(0)) {
                prop_assert!(running.iter().all(|j| j.delivery.topic != job.delivery.topic), "two of one topic at once");
                running.push(job);
            }
            prop_assert!(running.len() <= concurrency && dispatcher.known.len() <= HELD_MESSAGES);
            if running.is_empty() {
                match dispatcher.next_due() {
                    Some(due) => now = u64::try_from(due.0.as_millis()).unwrap(),
                    None if dispatcher.rewind => {}
                    None if log.next == log.topics.len() => break,
                    None => {}
                }
                continue;
            }
            let (good, which) = verdicts.next().unwrap_or((true, 0));
            let job = running.swap_remove(which % running.len());
            if good {
                handled.entry(job.delivery.topic.clone()).or_default().push(number(job.origin));
            }
            if dispatcher.finished(&job.delivery.topic, job.origin, good, at(now)) {
                log.acknowledge(number(job.origin));
            }
        }
        prop_assert_eq!(log.done.len(), log.topics.len(), "all are done in the end");
        for (topic, numbers) in handled {
            let expected: Vec<usize> = (0..log.topics.len()).filter(|n| log.topics[*n].to_string() == topic).collect();
            prop_assert_eq!(numbers, expected, "each once, in order: topic {}", topic);
        }
        prop_assert_eq!((dispatcher.bytes, dispatcher.known.len(), dispatcher.topics.len(), dispatcher.done_early.len()), (0, 0, 0, 0));
    }
}

fn start(dispatcher: &mut Dispatcher, ms: u64) -> Option<usize> {
    dispatcher.start(at(ms), Timestamp(0)).map(|job| number(job.origin))
}

#[test]
fn a_stuck_topic_waits_longer_each_time_and_lets_others_pass() {
    let mut log = Log::new([0; 2000].into_iter().chain([1; 5]).chain([0; 3]).collect());
    let mut dispatcher = Dispatcher::new(4, BACKOFF);
    log.read_into(&mut dispatcher);
    assert!(!dispatcher.wants_more(), "full of topic 0");
    assert_eq!(start(&mut dispatcher, 0), Some(0));
    assert_eq!(start(&mut dispatcher, 0), None, "one of a topic at a time");
    dispatcher.finished("0", Origin::Stored(log.lane, 0), false, at(0));
    log.read_into(&mut dispatcher);
    for n in 2000..2005 {
        assert_eq!(start(&mut dispatcher, 0), Some(n), "topic 1 goes on");
        assert!(dispatcher.finished("1", Origin::Stored(log.lane, n as u64), true, at(0)));
    }
    let mut now = 0;
    for pause in [100, 200, 400, 800, 1000, 1000] {
        assert_eq!(start(&mut dispatcher, now + pause - 1), None);
        now += pause;
        assert_eq!(dispatcher.next_due(), Some(at(now)));
        assert_eq!(start(&mut dispatcher, now), Some(0));
        dispatcher.finished("0", Origin::Stored(log.lane, 0), false, at(now));
    }
    assert_eq!(start(&mut dispatcher, now + 1000), Some(0));
    assert!(dispatcher.finished("0", Origin::Stored(log.lane, 0), true, at(now)));
    log.acknowledge(0);
    log.read_into(&mut dispatcher);
    assert_eq!(start(&mut dispatcher, now), Some(1), "what was passed over comes, in order");
}

#[test]
fn a_message_that_expired_while_it_waited_is_left_to_the_outbox() {
    let mut dispatcher = Dispatcher::new(4, BACKOFF);
    let log = Log::new(Vec::new());
    let origin = Origin::Stored(log.lane, 1);
    let message = || Delivery { topic: "t".into(), ..Delivery::default() };
    dispatcher.offer(origin, message(), Some(Timestamp(1000)));
    dispatcher.start(at(0), Timestamp(0)).unwrap();
    dispatcher.finished("t", origin, false, at(0));
    assert!(dispatcher.start(at(100), Timestamp(1000)).is_none());
    assert!(dispatcher.take_rewind(), "it is read again, which is where it is counted as expired");
    assert_eq!(dispatcher.offer(origin, message(), None), Offer::Taken);
}

#[test]
fn nothing_is_read_far_beyond_a_message_that_is_stuck() {
    let mut log = Log::new([0].into_iter().chain([1; 20_000]).collect());
    let mut dispatcher = Dispatcher::new(4, BACKOFF);
    log.read_into(&mut dispatcher);
    assert_eq!(start(&mut dispatcher, 0), Some(0));
    dispatcher.finished("0", Origin::Stored(log.lane, 0), false, at(0));
    while let Some(n) = start(&mut dispatcher, 0) {
        assert!(dispatcher.finished("1", Origin::Stored(log.lane, n as u64), true, at(0)));
        log.acknowledge(n);
        log.read_into(&mut dispatcher);
    }
    assert!(log.done.len() as u64 <= READ_AHEAD, "{}", log.done.len());
}
