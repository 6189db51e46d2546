//! What belongs to a client and not to its connection: subscriptions, what is in flight. Plain state, no IO.

use std::collections::{BTreeMap, BTreeSet};

use selvedge::outbox::LaneId;
use selvedge::topic;
use serde::{Deserialize, Serialize};

/// Most subscriptions of one client.
pub const MAX_SUBSCRIPTIONS: usize = 1_024;

/// One subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Filter without `$share/GROUP/`.
    pub filter: String,
    /// Group of a shared subscription.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Granted quality.
    pub qos: u8,
    /// Not what the client publishes itself.
    #[serde(default)]
    pub no_local: bool,
    /// Keep the retain flag.
    #[serde(default)]
    pub retain_as_published: bool,
    /// Subscription identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

impl Subscription {
    /// Stored for the client while it is away: quality 1 or 2, not shared. Everything else is live only.
    #[must_use]
    pub fn is_durable(&self, persistent: bool) -> bool {
        persistent && self.qos > 0 && self.group.is_none()
    }
}

/// What a publish in flight to the client is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A stored record: acknowledged to the store when the client has it.
    Record(LaneId, u64),
    /// A live message, kept nowhere else.
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// PUBLISH sent, PUBACK or PUBREC awaited.
    Sent(Origin),
    /// PUBREL sent, PUBCOMP awaited.
    Released,
}

/// A client's state between and during connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// By the text of the whole filter, `$share/` included.
    pub subscriptions: BTreeMap<String, Subscription>,
    /// Quality 2 messages taken and not yet released by the client.
    pub received: BTreeSet<u16>,
    in_flight: BTreeMap<u16, Stage>,
    /// Of these, stored messages that were sent on an earlier connection and not again on this one: they keep their ids and take no room.
    stale: BTreeSet<u16>,
    last_id: u16,
    /// Seconds that it lives after the connection; 0 = ends with it.
    pub expiry_seconds: u32,
}

/// The row of a session in the table.
#[derive(Serialize, Deserialize)]
struct Row {
    subscriptions: Vec<Subscription>,
    received: Vec<u16>,
    expiry_seconds: u32,
}

/// The parts of a filter text: group, filter.
#[must_use]
pub fn split_share(text: &str) -> Option<(Option<&str>, &str)> {
    match text.strip_prefix("$share/") {
        None => Some((None, text)),
        Some(rest) => {
            let (group, filter) = rest.split_once('/')?;
            (!group.is_empty() && !group.contains(['+', '#'])).then_some((Some(group), filter))
        }
    }
}

impl Session {
    /// A free packet id, or none when all are taken.
    fn free_id(&mut self) -> Option<u16> {
        for _ in 0..=u16::MAX {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.in_flight.contains_key(&self.last_id) {
                return Some(self.last_id);
            }
        }
        None
    }

    /// Takes a packet id for a publish to the client. A record that was sent before keeps its id (3.1.1, section 4.4); says whether it was.
    pub fn send(&mut self, origin: Origin) -> Option<(u16, bool)> {
        if let Origin::Record(..) = origin
            && let Some(id) = self.in_flight.iter().find(|(_, stage)| **stage == Stage::Sent(origin)).map(|(id, _)| *id)
        {
            self.stale.remove(&id);
            return Some((id, true));
        }
        let id = self.free_id()?;
        self.in_flight.insert(id, Stage::Sent(origin));
        Some((id, false))
    }

    /// PUBACK, or a PUBREC that refuses: what it was about.
    pub fn acknowledged(&mut self, id: u16) -> Option<Origin> {
        self.stale.remove(&id);
        match self.in_flight.get(&id) {
            Some(Stage::Sent(origin)) => {
                let origin = *origin;
                self.in_flight.remove(&id);
                Some(origin)
            }
            _ => None,
        }
    }

    /// PUBREC: the client has it; PUBREL is due. Says what it was about, the first time.
    pub fn received_by_client(&mut self, id: u16) -> Option<Origin> {
        self.stale.remove(&id);
        match self.in_flight.insert(id, Stage::Released) {
            Some(Stage::Sent(origin)) => Some(origin),
            Some(Stage::Released) => None,
            None => {
                self.in_flight.remove(&id);
                None
            }
        }
    }

    /// PUBCOMP.
    pub fn completed(&mut self, id: u16) {
        if self.in_flight.get(&id) == Some(&Stage::Released) {
            self.in_flight.remove(&id);
        }
    }

    /// A new connection: live messages in flight are gone, PUBRELs that are owed are sent again.
    pub fn reconnect(&mut self) -> Vec<u16> {
        self.in_flight.retain(|_, stage| *stage != Stage::Sent(Origin::Live));
        self.stale = self.in_flight.iter().filter(|(_, stage)| matches!(stage, Stage::Sent(_))).map(|(id, _)| *id).collect();
        self.in_flight.iter().filter(|(_, stage)| **stage == Stage::Released).map(|(id, _)| *id).collect()
    }

    /// Publishes in flight to the client on this connection.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.stale.len()
    }

    /// For a stored record: best granted quality and the identifiers of the durable subscriptions that match.
    #[must_use]
    pub fn match_record(&self, topic_name: &str) -> Option<(u8, Vec<u32>, bool)> {
        let mut best: Option<(u8, Vec<u32>, bool)> = None;
        for s in self.subscriptions.values().filter(|s| s.is_durable(true) && topic::matches(&s.filter, topic_name)) {
            let entry = best.get_or_insert((0, Vec::new(), false));
            entry.0 = entry.0.max(s.qos);
            entry.1.extend(s.id);
            entry.2 |= s.retain_as_published;
        }
        best
    }

    /// The session as a row.
    #[must_use]
    pub fn to_row(&self) -> Vec<u8> {
        let row = Row {
            subscriptions: self.subscriptions.values().cloned().collect(),
            received: self.received.iter().copied().collect(),
            expiry_seconds: self.expiry_seconds,
        };
        serde_json::to_vec(&row).unwrap_or_default()
    }

    /// A session from its row; none when it cannot be read.
    #[must_use]
    pub fn from_row(bytes: &[u8]) -> Option<Self> {
        let row: Row = serde_json::from_slice(bytes).ok()?;
        let mut session = Self { expiry_seconds: row.expiry_seconds, received: row.received.into_iter().collect(), ..Self::default() };
        for s in row.subscriptions.into_iter().take(MAX_SUBSCRIPTIONS) {
            topic::check_filter(&s.filter).ok()?;
            let text = s.group.as_ref().map_or_else(|| s.filter.clone(), |g| format!("$share/{g}/{}", s.filter));
            session.subscriptions.insert(text, s);
        }
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(filter: &str, qos: u8, id: Option<u32>) -> Subscription {
        Subscription { filter: filter.into(), group: None, qos, no_local: false, retain_as_published: false, id }
    }

    #[test]
    fn a_quality_2_delivery_goes_through_its_steps_once() {
        let mut s = Session::default();
        let (id, again) = s.send(Origin::Live).unwrap();
        assert!(!again && s.in_flight() == 1);
        assert_eq!(s.received_by_client(id), Some(Origin::Live));
        assert_eq!((s.received_by_client(id), s.acknowledged(id)), (None, None));
        assert_eq!(s.reconnect(), [id], "the release is owed over a reconnect");
        s.completed(id);
        assert_eq!((s.in_flight(), s.received_by_client(99)), (0, None));
    }

    #[test]
    fn packet_ids_in_flight_are_not_given_twice() {
        let mut s = Session { last_id: u16::MAX - 1, ..Session::default() };
        let ids: Vec<u16> = (0..4).map(|_| s.send(Origin::Live).unwrap().0).collect();
        assert_eq!(ids, [u16::MAX, 1, 2, 3]);
        s.last_id = 0;
        assert_eq!(s.send(Origin::Live).unwrap().0, 4);
    }

    #[test]
    fn a_row_brings_back_subscriptions_and_received_ids() {
        let mut s = Session { expiry_seconds: 60, ..Session::default() };
        s.subscriptions.insert("a/#".into(), subscription("a/#", 1, Some(4)));
        s.subscriptions.insert("a/b".into(), subscription("a/b", 2, Some(5)));
        s.received.insert(9);
        let back = Session::from_row(&s.to_row()).unwrap();
        assert_eq!((back.subscriptions.len(), back.received.contains(&9), back.expiry_seconds), (2, true, 60));
        assert_eq!(back.match_record("a/b"), Some((2, vec![4, 5], false)));
        assert_eq!(back.match_record("x"), None);
        assert_eq!(Session::from_row(b"{"), None);
    }
}
