//! A window of ids on a route that leads in: what has come once within it is acknowledged and not carried again.
//!
//! The order is: the message is safe for its target, its id is noted, the upstream is answered. A box that is killed between the first two is
//! sent the message again and carries it once more: that can happen to those on their way at that moment and to no others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::component::{Delivery, Fut, HandlerError, MessageHandler, Table, Tables};
use crate::hub::Hub;
use crate::resource::{DedupeSpec, RouteSpec};
use crate::telemetry::Metrics;
use crate::time::Timestamp;

/// Longest id, in bytes. A message with a longer one is carried like one without.
const LONGEST_ID: usize = 256;
/// User property of MQTT 5 that names a message.
pub(super) const ID_PROPERTY: &str = "selvedge-id";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

/// What is known of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It has not come within the window: the caller carries it, and says how that went.
    New,
    /// It has come.
    Repeat,
    /// It is being carried at the moment.
    OnItsWay,
}

#[derive(Default)]
struct Seen {
    at: HashMap<String, Timestamp>,
    /// In the order in which they came.
    order: VecDeque<(Timestamp, String)>,
    on_their_way: HashSet<String>,
}

/// The window of one route.
pub(super) struct Dedupe {
    spec: DedupeSpec,
    table: Arc<dyn Table>,
    seen: Mutex<Seen>,
    repeats: Counter,
    given_up: Counter,
}

/// The id of a message: the record id of another box, or that of its CloudEvent.
pub(super) fn id_of(message: &Delivery) -> Option<String> {
    let fits = |id: &String| !id.is_empty() && id.len() <= LONGEST_ID;
    if let Some(id) = message.metadata.get(ID_PROPERTY) {
        return Some(id.clone()).filter(fits);
    }
    let json = message.data.first() == Some(&b'{');
    let event: serde_json::Value = json.then(|| serde_json::from_slice(&message.data).ok()).flatten()?;
    let text = |name: &str| event.get(name)?.as_str().map(str::to_owned);
    // An id is unique per source (CloudEvents 1.0, section 3.1).
    text("specversion")?;
    Some(format!("{} {}", text("source").unwrap_or_default(), text("id")?)).filter(fits)
}

/// The table of a route: the same as long as it leads from there to there for the same topics.
fn table_name(route: &RouteSpec, to: &str) -> String {
    let text = format!("{}\n{to}\n{}", route.from, route.topics.join("\n"));
    format!("dedupe_{:08x}", crc32fast::hash(text.as_bytes()))
}

impl Dedupe {
    /// Reads the ids of before the start.
    ///
    /// # Errors
    /// When the table cannot be opened or read.
    pub(super) async fn open(
        spec: DedupeSpec,
        route: &RouteSpec,
        to: &str,
        tables: &dyn Tables,
        metrics: &Metrics,
        now: Timestamp,
    ) -> Result<Self, String> {
        let table = tables.open(&table_name(route, to)).await.map_err(|e| e.to_string())?;
        let mut rows: Vec<(Timestamp, String)> = Vec::new();
        for (id, at) in table.load().await.map_err(|e| e.to_string())? {
            rows.push((<[u8; 8]>::try_from(at.as_ref()).map(|b| Timestamp(u64::from_le_bytes(b))).unwrap_or_default(), id));
        }
        rows.sort();
        let label = RouteLabel { route: format!("{}/{to}", route.from) };
        let counter = |name, help| metrics.shared(name, help, Family::<RouteLabel, Counter>::default).get_or_create(&label).clone();
        let this = Self {
            spec,
            table,
            seen: Mutex::new(Seen { at: rows.iter().map(|(at, id)| (id.clone(), *at)).collect(), order: rows.into(), on_their_way: HashSet::new() }),
            repeats: counter("selvedge_dedupe_repeats", "Messages that had come before and were not carried again"),
            given_up: counter("selvedge_dedupe_given_up", "Ids that were forgotten before their time because there were too many"),
        };
        let mut seen = this.lock();
        this.shorten(&mut seen, now);
        drop(seen);
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is out of the window, and the oldest beyond the bound.
    fn shorten(&self, seen: &mut Seen, now: Timestamp) {
        while let Some((at, _)) = seen.order.front() {
            let over = now.since(*at) > self.spec.window;
            if !over && seen.order.len() <= self.spec.ids {
                return;
            }
            if !over {
                self.given_up.inc();
            }
            let Some((at, id)) = seen.order.pop_front() else { return };
            // It may have come again since, after its window.
            if seen.at.get(&id) == Some(&at) {
                seen.at.remove(&id);
                // In line; whether it succeeds shows at the next start, when it is forgotten again.
                drop(self.table.delete(&id));
            }
        }
    }

    /// Asks for an id. After [`Claim::New`] one of [`Dedupe::done`] and [`Dedupe::failed`] follows.
    pub(super) fn claim(&self, id: &str, now: Timestamp) -> Claim {
        let mut seen = self.lock();
        if seen.on_their_way.contains(id) {
            return Claim::OnItsWay;
        }
        if seen.at.get(id).is_some_and(|at| now.since(*at) <= self.spec.window) {
            self.repeats.inc();
            return Claim::Repeat;
        }
        seen.on_their_way.insert(id.to_owned());
        Claim::New
    }

    /// The message is safe: its id is noted, durably.
    pub(super) async fn done(&self, id: &str, now: Timestamp) {
        let written = {
            let mut seen = self.lock();
            seen.on_their_way.remove(id);
            seen.at.insert(id.to_owned(), now);
            seen.order.push_back((now, id.to_owned()));
            self.shorten(&mut seen, now);
            self.table.put(id, Bytes::copy_from_slice(&now.0.to_le_bytes()))
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "the id of a message is known until the next start only");
        }
    }

    /// The message was not taken: it may come again.
    pub(super) fn failed(&self, id: &str) {
        self.lock().on_their_way.remove(id);
    }
}

/// A handler behind the window of its route.
pub(super) struct Deduped {
    pub handler: Arc<dyn MessageHandler>,
    pub dedupe: Arc<Dedupe>,
    pub hub: Hub,
}

/// A claim that is given back unless the message was taken, whatever ends the attempt.
struct Claimed<'a> {
    dedupe: &'a Dedupe,
    id: &'a str,
    taken: bool,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.dedupe.failed(self.id);
        }
    }
}

impl MessageHandler for Deduped {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            let Some(id) = id_of(&message) else { return self.handler.handle(message).await };
            let now = || self.hub.outbox().now();
            match self.dedupe.claim(&id, now()) {
                Claim::Repeat => return Ok(()),
                Claim::OnItsWay => return Err(HandlerError::Retry(format!("a message with the id {id} is on its way"))),
                Claim::New => {}
            }
            let mut claimed = Claimed { dedupe: &self.dedupe, id: &id, taken: false };
            self.handler.handle(message).await?;
            claimed.taken = true;
            self.dedupe.done(&id, now()).await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::component::{MemoryTables, Metadata};

    fn route() -> RouteSpec {
        RouteSpec { from: "cloud".into(), topics: vec!["#".into()], to: vec!["local".into()], ..RouteSpec::default() }
    }

    async fn open(tables: &MemoryTables, ids: usize, now: u64) -> Dedupe {
        let spec = DedupeSpec { window: Duration::from_secs(10), ids };
        Dedupe::open(spec, &route(), "local", tables, &Metrics::new(), Timestamp(now)).await.unwrap()
    }

    async fn rows(tables: &MemoryTables) -> usize {
        tables.open(&table_name(&route(), "local")).await.unwrap().load().await.unwrap().len()
    }

    #[tokio::test]
    async fn an_id_counts_once_within_its_window_over_restarts_and_again_after_it() {
        let tables = MemoryTables::default();
        let dedupe = open(&tables, 100, 0).await;
        assert_eq!(dedupe.claim("a", Timestamp(0)), Claim::New);
        assert_eq!(dedupe.claim("a", Timestamp(0)), Claim::OnItsWay, "two at a time are carried once");
        dedupe.failed("a");
        assert_eq!(dedupe.claim("a", Timestamp(1)), Claim::New, "what was not taken may come again");
        dedupe.done("a", Timestamp(1)).await;
        assert_eq!(dedupe.claim("a", Timestamp(10_001)), Claim::Repeat);
        let dedupe = open(&tables, 100, 5_000).await;
        assert_eq!(dedupe.claim("a", Timestamp(10_001)), Claim::Repeat, "known after a restart");
        assert_eq!(dedupe.claim("a", Timestamp(10_002)), Claim::New, "the window is over");
        dedupe.done("a", Timestamp(10_002)).await;
        assert_eq!(dedupe.claim("a", Timestamp(20_000)), Claim::Repeat);
        assert_eq!(rows(&tables).await, 1);
        let _ = open(&tables, 100, 30_000).await;
        assert_eq!(rows(&tables).await, 0);
    }

    #[tokio::test]
    async fn at_the_bound_the_oldest_is_given_up() {
        let tables = MemoryTables::default();
        let dedupe = open(&tables, 3, 0).await;
        for n in 0..5 {
            assert_eq!(dedupe.claim(&n.to_string(), Timestamp(n)), Claim::New);
            dedupe.done(&n.to_string(), Timestamp(n)).await;
        }
        assert_eq!((dedupe.given_up.get(), rows(&tables).await), (2, 3));
        assert_eq!((dedupe.claim("0", Timestamp(5)), dedupe.claim("4", Timestamp(5))), (Claim::New, Claim::Repeat));
        assert_eq!(dedupe.repeats.get(), 1);
    }

    #[test]
    fn an_id_is_the_record_id_or_that_of_a_cloud_event() {
        let id = |metadata: &[(&str, &str)], data: &str| {
            let metadata: Metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            id_of(&Delivery { data: Bytes::copy_from_slice(data.as_bytes()), metadata, ..Delivery::default() })
        };
        let event = r#"{"specversion": "1.0", "source": "s", "id": "7", "data": 1}"#;
        assert_eq!(id(&[("selvedge-id", "n/1/l/5")], event).as_deref(), Some("n/1/l/5"));
        assert_eq!(id(&[], event).as_deref(), Some("s 7"));
        for data in ["", "7", r#"{"id": "7"}"#, "{not json", r#"{"specversion": "1.0", "id": 7}"#] {
            assert_eq!(id(&[], data), None, "{data}");
        }
        assert_eq!(id(&[("selvedge-id", &"x".repeat(257))], ""), None);
    }
}
