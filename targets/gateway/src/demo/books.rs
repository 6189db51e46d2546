//! The books of both sides: what devices were told is safe, and what the receiver has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Pages {
    acknowledged: BTreeMap<String, BTreeSet<u64>>,
    arrived: BTreeMap<String, Vec<u64>>,
    others: u64,
}

/// Shared by devices and receiver.
#[derive(Debug, Clone, Default)]
pub struct Books(Arc<Mutex<Pages>>);

/// What the comparison says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Messages acknowledged to devices.
    pub acknowledged: usize,
    /// Of these, arrived.
    pub arrived: usize,
    /// Arrivals beyond the first of a message.
    pub repeated: usize,
    /// Messages whose first arrival came after a later one of their topic.
    pub out_of_order: usize,
    /// Other messages that arrived: the box's own sensors.
    pub readings: u64,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device was told that this message is safe.
    pub fn acknowledged(&self, topic: &str, number: u64) {
        self.lock().acknowledged.entry(topic.to_owned()).or_default().insert(number);
    }

    /// A message came to the receiver. Numbered ones begin with `#`.
    pub fn arrived(&self, topic: &str, payload: &[u8]) {
        let mut pages = self.lock();
        let number =
            std::str::from_utf8(payload).ok().and_then(|t| t.strip_prefix('#')).and_then(|t| t.split(' ').next()).and_then(|n| n.parse().ok());
        match number {
            Some(n) => pages.arrived.entry(topic.to_owned()).or_default().push(n),
            None => pages.others += 1,
        }
    }

    /// Compares the two sides.
    pub fn compare(&self) -> Comparison {
        let pages = self.lock();
        let mut c = Comparison { readings: pages.others, ..Comparison::default() };
        for (topic, numbers) in &pages.acknowledged {
            c.acknowledged += numbers.len();
            let arrivals = pages.arrived.get(topic).map(Vec::as_slice).unwrap_or_default();
            let mut seen = BTreeSet::new();
            for n in arrivals {
                if !seen.contains(n) && seen.last().is_some_and(|last| last > n) {
                    c.out_of_order += 1;
                }
                c.repeated += usize::from(!seen.insert(*n));
            }
            c.arrived += numbers.intersection(&seen).count();
        }
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_a_repeat_and_a_wrong_order_are_seen() {
        let books = Books::default();
        for n in 0..5 {
            books.acknowledged("t", n);
        }
        for text in ["#0 x", "#2 x", "#1 x", "#2 x", "21.5"] {
            books.arrived("t", text.as_bytes());
        }
        let expected = Comparison { acknowledged: 5, arrived: 3, repeated: 1, out_of_order: 1, readings: 1 };
        assert_eq!(books.compare(), expected);
    }
}
