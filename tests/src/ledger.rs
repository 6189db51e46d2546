//! An independent ledger: what was acknowledged to publishers against what arrived.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::mqtt::Client;

/// Digits of a message's number, at the beginning of its payload.
const DIGITS: usize = 20;

/// Topic and number of a message.
pub type Entry = (String, u64);

/// A set of numbers, kept as ranges: they come almost in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Begin, and one past the end; in order, apart from each other.
    ranges: Vec<(u64, u64)>,
}

impl Numbers {
    /// Adds one; tells whether it is new.
    pub fn insert(&mut self, n: u64) -> bool {
        let at = self.ranges.partition_point(|(_, end)| *end < n);
        let follows = at < self.ranges.len() && self.ranges[at].0 <= n && n < self.ranges[at].1;
        if follows {
            return false;
        }
        let joins_before = self.ranges.get(at).is_some_and(|(_, end)| *end == n);
        let after = at + usize::from(joins_before);
        let joins_after = self.ranges.get(after).is_some_and(|(begin, _)| *begin == n + 1);
        match (joins_before, joins_after) {
            (true, true) => {
                self.ranges[at].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (true, false) => self.ranges[at].1 = n + 1,
            (false, true) => self.ranges[at].0 = n,
            (false, false) => self.ranges.insert(at, (n, n + 1)),
        }
        true
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(begin, end)| end - begin).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, n: u64) -> bool {
        let at = self.ranges.partition_point(|(_, end)| *end <= n);
        self.ranges.get(at).is_some_and(|(begin, _)| *begin <= n)
    }

    /// Those that the other set does not have.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u64> + 'a {
        self.ranges.iter().flat_map(|(begin, end)| *begin..*end).filter(|n| !other.contains(*n))
    }

    fn is_within(&self, other: &Self) -> bool {
        self.ranges.iter().all(|(begin, end)| {
            let at = other.ranges.partition_point(|(_, e)| e <= begin);
            other.ranges.get(at).is_some_and(|(b, e)| b <= begin && end <= e)
        })
    }
}

/// Numbers by topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book(BTreeMap<String, Numbers>);

impl Book {
    /// Adds one; tells whether it is new.
    pub fn insert(&mut self, topic: &str, n: u64) -> bool {
        if !self.0.contains_key(topic) {
            self.0.insert(topic.to_owned(), Numbers::default());
        }
        self.0.get_mut(topic).is_some_and(|numbers| numbers.insert(n))
    }

    /// How many, over all topics.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.values().map(Numbers::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Numbers::is_empty)
    }

    /// Numbers of a topic.
    #[must_use]
    pub fn of(&self, topic: &str) -> Numbers {
        self.0.get(topic).cloned().unwrap_or_default()
    }

    /// Whether the other book has all of it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(topic, numbers)| numbers.is_empty() || other.0.get(topic).is_some_and(|o| numbers.is_within(o)))
    }

    /// What the other book does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Vec<Entry> {
        let nothing = Numbers::default();
        let pairs = self.0.iter().map(|(topic, numbers)| (topic, numbers, other.0.get(topic).unwrap_or(&nothing)));
        pairs.flat_map(|(topic, numbers, others)| numbers.without(others).map(|n| (topic.clone(), n))).collect()
    }

    /// Takes a topic out.
    pub fn remove(&mut self, topic: &str) -> Numbers {
        self.0.remove(topic).unwrap_or_default()
    }
}

impl FromIterator<Entry> for Book {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut book = Self::default();
        for (topic, n) in entries {
            book.insert(&topic, n);
        }
        book
    }
}

impl IntoIterator for Book {
    type Item = Entry;
    type IntoIter = Box<dyn Iterator<Item = Entry>>;

    fn into_iter(self) -> Self::IntoIter {
        let all = self.0.into_iter().flat_map(|(topic, numbers)| numbers.ranges.into_iter().map(move |range| (topic.clone(), range)));
        Box::new(all.flat_map(|(topic, (begin, end))| (begin..end).map(move |n| (topic.clone(), n))))
    }
}

/// What a publisher sends.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Messages a second, at most.
    pub rate: u32,
    /// Bytes of a payload; at least the digits of a number.
    pub bytes: usize,
    /// Sent before the first acknowledgement is awaited.
    pub batch: u64,
}

impl Traffic {
    /// Messages of 200 bytes at a rate, ten at a time.
    #[must_use]
    pub fn rate(rate: u32) -> Self {
        Self { rate, bytes: 200, batch: 10 }
    }
}

/// The number that a payload of ours begins with.
#[must_use]
pub fn number_of(payload: &[u8]) -> Option<u64> {
    std::str::from_utf8(payload.get(..DIGITS)?).ok()?.parse().ok()
}

/// A payload of ours.
#[must_use]
pub fn payload_of(n: u64, bytes: usize) -> Vec<u8> {
    let mut payload = format!("{n:0>DIGITS$}").into_bytes();
    payload.resize(bytes.max(DIGITS), b'.');
    payload
}

/// Publishes until stopped, over reconnects; notes what was acknowledged. A number that was not acknowledged is sent again, so each
/// topic's numbers are acknowledged in order.
pub struct Publisher {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Book>>,
    count: Arc<AtomicU64>,
    rate: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Publisher {
    /// Publishes `rate` numbers a second to `sensors/NAME`.
    #[must_use]
    pub fn start(port: u16, name: &str, rate: u32) -> Self {
        Self::with(port, name, Traffic::rate(rate))
    }

    /// The same with other traffic.
    #[must_use]
    pub fn with(port: u16, name: &str, traffic: Traffic) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Book::default())));
        let count = Arc::new(AtomicU64::new(0));
        let rate = Arc::new(AtomicU64::new(u64::from(traffic.rate)));
        let (s, a, c, r, name) = (stop.clone(), acknowledged.clone(), count.clone(), rate.clone(), name.to_owned());
        let thread = std::thread::spawn(move || publish(port, &name, traffic, &r, &s, &a, &c));
        Self { stop, acknowledged, count, rate, thread: Some(thread) }
    }

    /// Publishes so many numbers a second from now on.
    pub fn set_rate(&self, rate: u32) {
        self.rate.store(u64::from(rate), Ordering::Relaxed);
    }

    /// How many were acknowledged.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }

    /// What was acknowledged so far.
    ///
    /// # Panics
    /// When the publishing thread has.
    #[must_use]
    pub fn acknowledged(&self) -> Book {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Stops; gives everything that was acknowledged.
    ///
    /// # Panics
    /// When the publishing thread has.
    #[must_use]
    pub fn finish(mut self) -> Book {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.acknowledged.lock().unwrap())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn publish(port: u16, name: &str, traffic: Traffic, rate: &AtomicU64, stop: &AtomicBool, acknowledged: &Mutex<Book>, count: &AtomicU64) {
    let topic = format!("sensors/{name}");
    let mut next = 0u64;
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::connect(port, name, true) else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let batch: Vec<(&str, Vec<u8>)> = (next..next + traffic.batch).map(|n| (topic.as_str(), payload_of(n, traffic.bytes))).collect();
            let Ok(ids) = client.send(&batch) else { break };
            let mut waiting: BTreeMap<u16, u64> = ids.into_iter().zip(next..).collect();
            while !waiting.is_empty() {
                let Ok(Some(id)) = client.acknowledged(Duration::from_secs(10)) else { break };
                if let Some(n) = waiting.remove(&id)
                    && acknowledged.lock().unwrap().insert(&topic, n)
                {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            if !waiting.is_empty() {
                // Goes on with the first that is not acknowledged.
                next = *waiting.values().min().unwrap();
                std::thread::sleep(Duration::from_millis(5));
                break;
            }
            next += traffic.batch;
            // What was not sent while the box was away is made up for, but not more than a second of it.
            let pause = traffic.batch as f64 / rate.load(Ordering::Relaxed) as f64;
            due = due.max(Instant::now() - Duration::from_secs(1)) + Duration::from_secs_f64(pause);
            while due > Instant::now() && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
            }
        }
    }
}

#[derive(Default)]
struct Arrivals {
    book: Book,
    /// Last first arrival, by sink and topic.
    last: BTreeMap<(usize, String), u64>,
    arrivals: u64,
    disordered: Vec<Entry>,
}

impl Arrivals {
    fn note(&mut self, source: usize, topic: &str, n: u64) {
        self.arrivals += 1;
        if self.book.insert(topic, n)
            && let Some(before) = self.last.insert((source, topic.to_owned()), n)
            && before >= n
        {
            self.disordered.push((topic.to_owned(), n));
        }
    }
}

/// Collects everything that arrives at one broker or more.
pub struct Sink {
    stop: Arc<AtomicBool>,
    arrived: Arc<Mutex<Arrivals>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Sink {
    /// Subscribes; `prefix` is taken off topics.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    #[must_use]
    pub fn start(port: u16, filter: &str, prefix: &str) -> Self {
        Self::at(([127, 0, 0, 1], port).into(), filter, prefix)
    }

    /// The same at another address.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    #[must_use]
    pub fn at(broker: std::net::SocketAddr, filter: &str, prefix: &str) -> Self {
        let mut sink = Self { stop: Arc::default(), arrived: Arc::default(), threads: Vec::new() };
        sink.also(broker, filter, prefix);
        sink
    }

    /// Collects from another broker as well; order is looked at for each by itself.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    pub fn also(&mut self, broker: std::net::SocketAddr, filter: &str, prefix: &str) {
        let mut client = Client::connect_to(broker, "sink", true).unwrap();
        client.subscribe(filter).unwrap();
        let (stop, arrived, prefix, source) = (self.stop.clone(), self.arrived.clone(), prefix.to_owned(), self.threads.len());
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Some((topic, payload)) = client.receive(Duration::from_millis(50)).expect("the sink stays connected") {
                    let n = number_of(&payload).expect("a payload of ours");
                    arrived.lock().unwrap().note(source, topic.strip_prefix(&prefix).unwrap_or(&topic), n);
                }
            }
        }));
    }

    /// What has arrived so far.
    ///
    /// # Panics
    /// When the collecting thread has.
    #[must_use]
    pub fn arrived(&self) -> Book {
        self.arrived.lock().unwrap().book.clone()
    }

    /// How many different messages have arrived so far.
    ///
    /// # Panics
    /// When the collecting thread has.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.arrived.lock().unwrap().book.len()
    }

    /// Whether all of it has arrived.
    ///
    /// # Panics
    /// When the collecting thread has.
    #[must_use]
    pub fn has(&self, book: &Book) -> bool {
        book.is_within(&self.arrived.lock().unwrap().book)
    }

    /// Waits until everything acknowledged has arrived, at most this long, and closes the books.
    ///
    /// # Panics
    /// When the collecting thread has.
    #[must_use]
    pub fn close(mut self, acknowledged: &Book, within: Duration) -> Verdict {
        let end = Instant::now() + within;
        while !self.has(acknowledged) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let arrivals = std::mem::take(&mut *self.arrived.lock().unwrap());
        Verdict {
            acknowledged: acknowledged.len(),
            arrived: arrivals.book.len(),
            repeated: arrivals.arrivals - arrivals.book.len(),
            missing: acknowledged.without(&arrivals.book),
            disordered: arrivals.disordered,
            book: arrivals.book,
        }
    }

    /// Checks the books: nothing acknowledged is missing, and the first arrivals of each topic are in order.
    ///
    /// # Panics
    /// When they do not hold.
    pub fn check(self, acknowledged: &Book, within: Duration) {
        let verdict = self.close(acknowledged, within);
        assert!(
            verdict.missing.is_empty(),
            "acknowledged and missing: {:?} of {} (arrived {})",
            &verdict.missing[..verdict.missing.len().min(10)],
            verdict.acknowledged,
            verdict.arrived
        );
        assert!(verdict.disordered.is_empty(), "came after a later one: {:?}", verdict.disordered);
        println!("{} acknowledged, {} arrived, {} of them repeated", verdict.acknowledged, verdict.arrived, verdict.repeated);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the books say.
#[derive(Debug)]
pub struct Verdict {
    /// Messages that were acknowledged to their publishers.
    pub acknowledged: u64,
    /// Different messages that arrived.
    pub arrived: u64,
    /// Arrivals of messages that had arrived before.
    pub repeated: u64,
    /// Acknowledged and not arrived.
    pub missing: Vec<Entry>,
    /// Whose first arrival came after that of a later one of its topic.
    pub disordered: Vec<Entry>,
    /// Everything that arrived.
    pub book: Book,
}
