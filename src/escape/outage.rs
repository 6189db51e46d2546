//! One outage, one report: when, why, in which modes, and what became of the records meanwhile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Mode;
use crate::component::LinkCause;
use crate::outbox::LedgerRow;
use crate::time::Timestamp;

/// Causes and modes that a report lists; what comes after is counted.
const LISTED: usize = 64;

/// A change of a link's cause during the outage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CauseSeen {
    at: u64,
    upstream: String,
    cause: String,
    detail: String,
}

/// A line of the books as it stood when the outage began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BookLine {
    lane: String,
    destination: String,
    counts: [u64; 5],
}

impl BookLine {
    fn of(row: &LedgerRow) -> Self {
        Self {
            lane: row.lane.clone(),
            destination: row.destination.clone(),
            counts: [row.accepted, row.delivered, row.expired, row.evicted, row.aggregated],
        }
    }
}

/// An outage that goes on. Saved with the mode, so that a restart does not make two of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    number: u64,
    started: u64,
    causes: Vec<CauseSeen>,
    /// The last cause of each upstream, listed or not.
    latest: BTreeMap<String, String>,
    modes: Vec<(u64, Mode)>,
    not_listed: u64,
    restarts: u64,
    books: Vec<BookLine>,
}

impl Outage {
    /// It began. `number` counts the node's outages from 1; `books` are the lines of the upstreams.
    #[must_use]
    pub fn began<'b>(number: u64, started: Timestamp, books: impl IntoIterator<Item = &'b LedgerRow>) -> Self {
        let books = books.into_iter().map(BookLine::of).collect();
        Self { number, started: started.0, causes: Vec::new(), latest: BTreeMap::new(), modes: Vec::new(), not_listed: 0, restarts: 0, books }
    }

    /// It is one, and not a moment without links: which one, and since when.
    pub fn confirm(&mut self, number: u64, started: Timestamp) {
        (self.number, self.started) = (number, started.0);
    }

    /// All causes so far are listed.
    #[must_use]
    pub fn lists_all(&self) -> bool {
        self.not_listed == 0
    }

    /// Which one it is.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The node was started again during it.
    pub fn restarted(&mut self) {
        self.restarts += 1;
    }

    /// A link is down for this reason. Says whether that was new.
    pub fn cause(&mut self, at: Timestamp, upstream: &str, cause: LinkCause, detail: &str) -> bool {
        if self.latest.get(upstream).is_some_and(|last| last == cause.as_str()) {
            return false;
        }
        self.latest.insert(upstream.to_owned(), cause.as_str().to_owned());
        if self.causes.len() < LISTED {
            self.causes.push(CauseSeen { at: at.0, upstream: upstream.to_owned(), cause: cause.as_str().to_owned(), detail: detail.to_owned() });
        } else {
            self.not_listed += 1;
        }
        true
    }

    /// The mode changed.
    pub fn mode(&mut self, at: Timestamp, mode: Mode) {
        if self.modes.len() < LISTED {
            self.modes.push((at.0, mode));
        } else {
            self.not_listed += 1;
        }
    }

    /// The report. `books` are the same lines now: the report says what was added to each, and what waits.
    #[must_use]
    pub fn report<'b>(&self, node: &str, ended: Timestamp, books: impl IntoIterator<Item = &'b LedgerRow>) -> Value {
        let lanes: Vec<Value> = books
            .into_iter()
            .map(|now| {
                let before = self.books.iter().find(|l| l.lane == now.lane && l.destination == now.destination).map_or([0; 5], |l| l.counts);
                let now_counts = BookLine::of(now).counts;
                let [accepted, delivered, expired, evicted, aggregated] = std::array::from_fn(|i| now_counts[i].saturating_sub(before[i]));
                json!({
                    "lane": now.lane, "destination": now.destination, "accepted": accepted, "delivered": delivered, "expired": expired,
                    "evicted": evicted, "aggregated": aggregated, "queued": now.queued,
                })
            })
            .collect();
        let time = |at: u64| Timestamp(at).to_rfc3339();
        let causes: Vec<Value> =
            self.causes.iter().map(|c| json!({"at": time(c.at), "upstream": c.upstream, "cause": c.cause, "detail": c.detail})).collect();
        let modes: Vec<Value> = self.modes.iter().map(|(at, mode)| json!({"at": time(*at), "mode": mode})).collect();
        json!({
            "kind": "outage", "node": node, "number": self.number, "started": time(self.started), "ended": ended.to_rfc3339(),
            "seconds": ended.since(Timestamp(self.started)).as_secs(), "causes": causes, "modes": modes, "notListed": self.not_listed,
            "restarts": self.restarts, "lanes": lanes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(accepted: u64, delivered: u64, evicted: u64) -> LedgerRow {
        let (lane, destination) = ("default".to_owned(), "upstream/cloud".to_owned());
        LedgerRow { lane, destination, accepted, delivered, evicted, queued: accepted - delivered - evicted, ..LedgerRow::default() }
    }

    #[test]
    fn a_report_says_what_the_outage_added_and_stays_small() {
        let mut outage = Outage::began(3, Timestamp(1_000), [&row(10, 10, 0)]);
        assert!(outage.cause(Timestamp(1_000), "cloud", LinkCause::Tcp, "refused"));
        assert!(!outage.cause(Timestamp(2_000), "cloud", LinkCause::Tcp, "refused again"));
        for n in 0..200 {
            outage.cause(Timestamp(n), "cloud", if n % 2 == 0 { LinkCause::Dns } else { LinkCause::Route }, "");
        }
        outage.mode(Timestamp(6_000), Mode::Island);
        outage.restarted();
        let outage: Outage = serde_json::from_str(&serde_json::to_string(&outage).unwrap()).unwrap();
        let report = outage.report("box-1", Timestamp(61_500), [&row(110, 11, 4)]);
        assert_eq!((&report["number"], &report["seconds"], &report["restarts"]), (&json!(3), &json!(60), &json!(1)));
        assert_eq!((report["causes"].as_array().unwrap().len(), &report["notListed"]), (LISTED, &json!(137)));
        assert_eq!(report["modes"][0], json!({"at": "1970-01-01T00:00:06.000Z", "mode": "island"}));
        let lane = &report["lanes"][0];
        assert_eq!((&lane["accepted"], &lane["delivered"], &lane["evicted"], &lane["queued"]), (&json!(100), &json!(1), &json!(4), &json!(95)));
    }
}
