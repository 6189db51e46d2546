//! Confirmable messages of ours: one in flight per peer, repeated with growing waits (RFC 7252, section 4.2).

use std::net::SocketAddr;
use std::time::Duration;

use selvedge::time::Monotonic;

use super::peers::{InFlight, Outgoing, Purpose};
use super::timers::Timer;
use super::{Action, Endpoint};
use crate::metrics::Dropped;
use crate::settings::{ACK_RANDOM_FACTOR, ACK_TIMEOUT, MAX_QUEUED_PER_PEER, MAX_RETRANSMIT};

impl Endpoint {
    /// Sends a confirmable message, or puts it behind the one in flight. A notification takes the place of an older one to the
    /// same observer (RFC 7641, section 4.5).
    pub(super) fn send_confirmable(&mut self, now: Monotonic, to: SocketAddr, message: Outgoing, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(to) else { return };
        if peer.in_flight.is_none() {
            return self.launch(now, to, message, out);
        }
        if let Purpose::Notification(_) = message.purpose
            && let Some(older) = peer.queue.iter_mut().find(|m| m.purpose == message.purpose)
        {
            *older = message;
            self.metrics.dropped(Dropped::Replaced);
            return;
        }
        if peer.queue.len() >= MAX_QUEUED_PER_PEER {
            peer.queue.pop_front();
            self.metrics.dropped(Dropped::QueueFull);
        }
        if let Some(peer) = self.peers.get_mut(to) {
            peer.queue.push_back(message);
        }
    }

    fn launch(&mut self, now: Monotonic, to: SocketAddr, message: Outgoing, out: &mut Vec<Action>) {
        let share = ((self.random)() >> 11) as f64 / (1u64 << 53) as f64;
        let wait = ACK_TIMEOUT.mul_f64(1.0 + share * (ACK_RANDOM_FACTOR - 1.0));
        let timer = self.timers.set(now.plus(wait), Timer::Retransmit(to));
        out.push(Action::Send(to, message.bytes.clone()));
        if let Some(peer) = self.peers.get_mut(to) {
            peer.in_flight = Some(InFlight { message, repeats: 0, wait, timer });
        }
    }

    fn launch_next(&mut self, now: Monotonic, to: SocketAddr, out: &mut Vec<Action>) {
        if let Some(next) = self.peers.get_mut(to).and_then(|p| p.queue.pop_front()) {
            self.launch(now, to, next, out);
        }
    }

    pub(super) fn retransmit(&mut self, now: Monotonic, to: SocketAddr, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(to) else { return };
        let Some(in_flight) = &mut peer.in_flight else { return };
        if in_flight.repeats < MAX_RETRANSMIT {
            in_flight.repeats += 1;
            in_flight.wait = in_flight.wait.saturating_mul(2).min(Duration::from_secs(600));
            in_flight.timer = self.timers.set(now.plus(in_flight.wait), Timer::Retransmit(to));
            self.metrics.retransmissions.inc();
            out.push(Action::Send(to, in_flight.message.bytes.clone()));
            return;
        }
        self.metrics.dropped(Dropped::TimedOut);
        let was = peer.in_flight.take().map(|f| f.message.purpose);
        peer.proven = false;
        if let Some(Purpose::Notification(_)) = was {
            // Nobody answers there any more, so all its observations end (RFC 7641, section 4.5).
            peer.queue.retain(|m| m.purpose == Purpose::Response);
            out.extend(self.observers.remove_peer(to).into_iter().map(Action::Unwatch));
        }
        self.launch_next(now, to, out);
    }

    /// Ends the message in flight if it has this id; returns what it was.
    fn land(&mut self, from: SocketAddr, message_id: u16) -> Option<Purpose> {
        let peer = self.peers.get_mut(from)?;
        if peer.in_flight.as_ref()?.message.message_id != message_id {
            return None;
        }
        let landed = peer.in_flight.take()?;
        // It knew the id, so it receives what is sent to its address.
        peer.proven = true;
        self.timers.cancel(landed.timer);
        Some(landed.message.purpose)
    }

    pub(super) fn acknowledged(&mut self, now: Monotonic, from: SocketAddr, message_id: u16, out: &mut Vec<Action>) {
        match self.land(from, message_id) {
            Some(_) => self.launch_next(now, from, out),
            None => self.metrics.dropped(Dropped::Stray),
        }
    }

    pub(super) fn was_reset(&mut self, now: Monotonic, from: SocketAddr, message_id: u16, out: &mut Vec<Action>) {
        let landed = self.land(from, message_id);
        let observer = match landed {
            Some(Purpose::Notification(token)) => Some(token),
            Some(Purpose::Response) => None,
            None => self.observers.by_message_id(from, message_id),
        };
        match observer {
            // The peer does not know the observation (RFC 7641, section 3.6).
            Some(token) => {
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.queue.retain(|m| m.purpose != Purpose::Notification(token));
                }
                out.extend(self.observers.remove(from, token).map(Action::Unwatch));
            }
            None if landed.is_none() => self.metrics.dropped(Dropped::Stray),
            None => {}
        }
        if landed.is_some() {
            self.launch_next(now, from, out);
        }
    }
}
