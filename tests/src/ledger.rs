//! An independent ledger: what was acknowledged to publishers against what arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::mqtt::Client;

/// Topic and number of a message.
pub type Entry = (String, u64);

/// Publishes until stopped, over reconnects; notes what was acknowledged. A number that was not acknowledged is sent again, so each
/// topic's numbers are acknowledged in order.
pub struct Publisher {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<Entry>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Publisher {
    /// Publishes `rate` numbers a second, ten at a time, to `sensors/NAME`.
    #[must_use]
    pub fn start(port: u16, name: &str, rate: u32) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let (s, a, name) = (stop.clone(), acknowledged.clone(), name.to_owned());
        let thread = std::thread::spawn(move || publish(port, &name, rate, &s, &a));
        Self { stop, acknowledged, thread: Some(thread) }
    }

    /// How many were acknowledged.
    ///
    /// # Panics
    /// When the publishing thread has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// What was acknowledged so far.
    ///
    /// # Panics
    /// When the publishing thread has.
    #[must_use]
    pub fn acknowledged(&self) -> BTreeSet<Entry> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Stops; gives everything that was acknowledged.
    ///
    /// # Panics
    /// When the publishing thread has.
    #[must_use]
    pub fn finish(mut self) -> BTreeSet<Entry> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.acknowledged.lock().unwrap())
    }
}

fn publish(port: u16, name: &str, rate: u32, stop: &AtomicBool, acknowledged: &Mutex<BTreeSet<Entry>>) {
    const BATCH: u64 = 10;
    let topic = format!("sensors/{name}");
    let mut next = 0u64;
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::connect(port, name, true) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let batch: Vec<(&str, Vec<u8>)> = (next..next + BATCH).map(|n| (topic.as_str(), format!("{n:0>200}").into_bytes())).collect();
            let Ok(ids) = client.send(&batch) else { break };
            let mut waiting: BTreeMap<u16, u64> = ids.into_iter().zip(next..).collect();
            while !waiting.is_empty() {
                let Ok(Some(id)) = client.acknowledged(Duration::from_secs(10)) else { break };
                if let Some(n) = waiting.remove(&id) {
                    acknowledged.lock().unwrap().insert((topic.clone(), n));
                }
            }
            if !waiting.is_empty() {
                // Goes on with the first that is not acknowledged.
                next = *waiting.values().min().unwrap();
                break;
            }
            next += BATCH;
            let due = begun + Duration::from_secs_f64(next as f64 / f64::from(rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_millis(200)));
        }
    }
}

/// Collects everything that arrives at the broker.
pub struct Sink {
    stop: Arc<AtomicBool>,
    arrived: Arc<Mutex<Vec<Entry>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sink {
    /// Subscribes; `prefix` is taken off topics.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    #[must_use]
    pub fn start(port: u16, filter: &str, prefix: &str) -> Self {
        let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut client = Client::connect(port, "sink", true).unwrap();
        client.subscribe(filter).unwrap();
        let (s, a, prefix) = (stop.clone(), arrived.clone(), prefix.to_owned());
        let thread = std::thread::spawn(move || {
            while !s.load(Ordering::Relaxed) {
                if let Some((topic, payload)) = client.receive(Duration::from_millis(50)).unwrap() {
                    let n = String::from_utf8(payload).unwrap().parse().unwrap();
                    a.lock().unwrap().push((topic.strip_prefix(&prefix).unwrap_or(&topic).to_owned(), n));
                }
            }
        });
        Self { stop, arrived, thread: Some(thread) }
    }

    /// What has arrived so far.
    ///
    /// # Panics
    /// When the collecting thread has.
    #[must_use]
    pub fn arrived(&self) -> BTreeSet<Entry> {
        self.arrived.lock().unwrap().iter().cloned().collect()
    }

    /// Waits until everything acknowledged has arrived, at most this long, and closes the books.
    ///
    /// # Panics
    /// When the collecting thread has.
    #[must_use]
    pub fn close(mut self, acknowledged: &BTreeSet<Entry>, within: Duration) -> Verdict {
        let end = Instant::now() + within;
        while !acknowledged.is_subset(&self.arrived()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let arrived = self.arrived.lock().unwrap().clone();
        let all: BTreeSet<Entry> = arrived.iter().cloned().collect();
        let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
        let mut known: BTreeSet<&Entry> = BTreeSet::new();
        let mut disordered = Vec::new();
        for entry in &arrived {
            if known.insert(entry)
                && let Some(before) = seen.insert(&entry.0, entry.1)
                && before >= entry.1
            {
                disordered.push(entry.clone());
            }
        }
        Verdict {
            acknowledged: acknowledged.len(),
            arrived: all.len(),
            repeated: arrived.len() - all.len(),
            missing: acknowledged.difference(&all).cloned().collect(),
            disordered,
        }
    }

    /// Checks the books: nothing acknowledged is missing, and the first arrivals of each topic are in order.
    ///
    /// # Panics
    /// When they do not hold.
    pub fn check(self, acknowledged: &BTreeSet<Entry>, within: Duration) {
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

/// What the books say.
#[derive(Debug)]
pub struct Verdict {
    /// Messages that were acknowledged to their publishers.
    pub acknowledged: usize,
    /// Different messages that arrived.
    pub arrived: usize,
    /// Arrivals of messages that had arrived before.
    pub repeated: usize,
    /// Acknowledged and not arrived.
    pub missing: Vec<Entry>,
    /// Whose first arrival came after that of a later one of its topic.
    pub disordered: Vec<Entry>,
}
