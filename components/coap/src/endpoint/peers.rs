//! What is kept about peers: exchanges against duplicates, message ids, confirmable messages on their way.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use selvedge::time::Monotonic;

use super::timers::TimerKey;
use crate::packet::Token;
use crate::settings::{EXCHANGE_LIFETIME, Settings};

/// Where an exchange that a peer began stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exchange {
    /// Its request waits for an answer; acknowledged means that the empty acknowledgement went out.
    Working { acknowledged: bool },
    /// Answered. A repeated request gets these bytes, if any.
    Done(Option<Bytes>),
}

/// Whose message a confirmable one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A separate response.
    Response,
    /// A notification to the observer with this token.
    Notification(Token),
}

/// A confirmable message.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub message_id: u16,
    pub bytes: Bytes,
    pub purpose: Purpose,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub message: Outgoing,
    /// Repeats so far.
    pub repeats: u32,
    pub wait: std::time::Duration,
    pub timer: TimerKey,
}

/// One peer, by its address.
#[derive(Debug)]
pub(super) struct Peer {
    last_seen: Monotonic,
    /// It has shown that it receives at its address.
    pub proven: bool,
    next_message_id: u16,
    exchanges: HashMap<u16, Exchange>,
    order: VecDeque<(Monotonic, u16)>,
    /// Requests that wait for an answer.
    pub pending: usize,
    /// At most one at a time (NSTART, RFC 7252, section 4.7).
    pub in_flight: Option<InFlight>,
    pub queue: VecDeque<Outgoing>,
}

impl Peer {
    fn new(now: Monotonic, first_message_id: u16) -> Self {
        Self {
            last_seen: now,
            proven: false,
            next_message_id: first_message_id,
            exchanges: HashMap::new(),
            order: VecDeque::new(),
            pending: 0,
            in_flight: None,
            queue: VecDeque::new(),
        }
    }

    /// The next message id towards this peer. Not used again within EXCHANGE_LIFETIME unless 65,536 are.
    pub fn message_id(&mut self) -> u16 {
        self.next_message_id = self.next_message_id.wrapping_add(1);
        self.next_message_id
    }

    pub fn exchange(&self, message_id: u16) -> Option<&Exchange> {
        self.exchanges.get(&message_id)
    }

    fn is_busy(&self) -> bool {
        self.pending > 0 || self.in_flight.is_some() || !self.queue.is_empty()
    }
}

fn kept_bytes(exchange: &Exchange) -> usize {
    match exchange {
        Exchange::Done(Some(bytes)) => bytes.len(),
        _ => 0,
    }
}

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    by_address: HashMap<SocketAddr, Peer>,
    /// Those seen longest ago first.
    recency: BTreeSet<(Monotonic, SocketAddr)>,
    exchanges: usize,
    bytes: usize,
    settings: Settings,
}

impl Peers {
    pub fn new(settings: Settings) -> Self {
        Self { by_address: HashMap::new(), recency: BTreeSet::new(), exchanges: 0, bytes: 0, settings }
    }

    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    pub fn get(&self, address: SocketAddr) -> Option<&Peer> {
        self.by_address.get(&address)
    }

    pub fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Peer> {
        self.by_address.get_mut(&address)
    }

    /// A datagram came from this peer, if it is known: its old exchanges are forgotten.
    pub fn touch(&mut self, now: Monotonic, address: SocketAddr) {
        let Some(peer) = self.by_address.get_mut(&address) else { return };
        self.recency.remove(&(peer.last_seen, address));
        self.recency.insert((now, address));
        peer.last_seen = now;
        while let Some((begun, message_id)) = peer.order.front().copied() {
            // One that still waits for its answer stays, and those behind it, until it is answered: they are few.
            if now.since(begun) < EXCHANGE_LIFETIME || matches!(peer.exchanges.get(&message_id), Some(Exchange::Working { .. })) {
                break;
            }
            peer.order.pop_front();
            if let Some(gone) = peer.exchanges.remove(&message_id) {
                self.exchanges -= 1;
                self.bytes -= kept_bytes(&gone);
            }
        }
    }

    /// Makes a peer, giving up the one that is idle for longest when there is no room. False when none is idle.
    pub fn admit(
        &mut self,
        now: Monotonic,
        address: SocketAddr,
        first_message_id: impl FnOnce() -> u16,
        observes: impl Fn(SocketAddr) -> bool,
    ) -> bool {
        if self.by_address.contains_key(&address) {
            return true;
        }
        if self.by_address.len() >= self.settings.peers {
            let idle = self.recency.iter().map(|(_, a)| *a).find(|a| self.by_address.get(a).is_some_and(|p| !p.is_busy()) && !observes(*a));
            let Some(idle) = idle else { return false };
            self.remove(idle);
        }
        self.by_address.insert(address, Peer::new(now, first_message_id()));
        self.recency.insert((now, address));
        true
    }

    /// Forgets peers that have been silent for EXCHANGE_LIFETIME and are owed nothing.
    pub fn sweep(&mut self, now: Monotonic, observes: impl Fn(SocketAddr) -> bool) {
        let silent: Vec<SocketAddr> =
            self.recency.iter().take_while(|(seen, _)| now.since(*seen) >= EXCHANGE_LIFETIME).map(|(_, address)| *address).collect();
        for address in silent {
            if self.by_address.get(&address).is_some_and(|p| !p.is_busy()) && !observes(address) {
                self.remove(address);
            }
        }
    }

    fn remove(&mut self, address: SocketAddr) {
        if let Some(gone) = self.by_address.remove(&address) {
            self.recency.remove(&(gone.last_seen, address));
            self.exchanges -= gone.exchanges.len();
            self.bytes -= gone.exchanges.values().map(kept_bytes).sum::<usize>();
        }
    }

    /// Remembers a new exchange of a known peer. Returns how many others were forgotten to make room.
    pub fn begin(&mut self, now: Monotonic, address: SocketAddr, message_id: u16) -> usize {
        let mut forgotten = 0;
        while self.exchanges >= self.settings.exchanges && self.forget_one(address) {
            forgotten += 1;
        }
        if let Some(peer) = self.by_address.get_mut(&address) {
            if peer.exchanges.insert(message_id, Exchange::Working { acknowledged: false }).is_none() {
                self.exchanges += 1;
            }
            peer.order.push_back((now, message_id));
        }
        forgotten
    }

    /// Notes where an exchange stands. Returns how many answers were forgotten to make room.
    pub fn note(&mut self, address: SocketAddr, message_id: u16, state: Exchange) -> usize {
        let Some(exchange) = self.by_address.get_mut(&address).and_then(|p| p.exchanges.get_mut(&message_id)) else { return 0 };
        self.bytes += kept_bytes(&state);
        self.bytes -= kept_bytes(exchange);
        *exchange = state;
        let mut forgotten = 0;
        while self.bytes > self.settings.exchange_bytes && self.forget_one(address) {
            forgotten += 1;
        }
        forgotten
    }

    /// Forgets the oldest answered exchange of the peer that has most of them; of `asking` itself, when it has its share.
    fn forget_one(&mut self, asking: SocketAddr) -> bool {
        let share = self.exchanges / self.by_address.len().max(1);
        let over = self.by_address.get(&asking).is_some_and(|p| p.exchanges.len() > share);
        let victim = if over { Some(asking) } else { self.by_address.iter().max_by_key(|(_, p)| p.exchanges.len() - p.pending).map(|(a, _)| *a) };
        let Some(peer) = victim.and_then(|a| self.by_address.get_mut(&a)) else { return false };
        let Some(at) = peer.order.iter().position(|(_, id)| matches!(peer.exchanges.get(id), Some(Exchange::Done(_)))) else { return false };
        let Some((_, message_id)) = peer.order.remove(at) else { return false };
        if let Some(gone) = peer.exchanges.remove(&message_id) {
            self.exchanges -= 1;
            self.bytes -= kept_bytes(&gone);
        }
        true
    }

    #[cfg(test)]
    pub fn held(&self) -> (usize, usize, usize) {
        let exchanges: usize = self.by_address.values().map(|p| p.exchanges.len()).sum();
        let bytes: usize = self.by_address.values().flat_map(|p| p.exchanges.values()).map(kept_bytes).sum();
        assert_eq!((exchanges, bytes), (self.exchanges, self.bytes), "the sums are kept right");
        assert_eq!(self.recency.len(), self.by_address.len());
        (self.by_address.len(), exchanges, bytes)
    }
}
