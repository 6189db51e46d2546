//! Messages of lanes that store nothing (`durability: passthrough`, decision record 0018).

use super::routing::{Destinations, Route};
use super::{AcceptError, Accepted, Hub};
use crate::message::Inbound;
use crate::outbox::{DestinationId, NewRecord};

impl Hub {
    /// Takes one message of such a lane: its upstreams get it, or its sender is refused. Who is to get it on the box gets it from the lane
    /// `default`, which stores. What is refused at once reaches nobody.
    pub(super) fn accept_passing(&self, pubsub: &str, message: &Inbound<'_>, route: &Route, done: &mut Accepted) -> Option<AcceptError> {
        let links = route.links.as_deref().unwrap_or_default();
        let (passing, stored): (Destinations, Destinations) = route.destinations.iter().copied().partition(|d| links.contains(d));
        let (outbox, default) = (&self.shared.outbox, self.shared.default);
        let ticket = match passing.as_slice() {
            [] => None,
            some => match outbox.pass(route.lane, &record(pubsub, message, some)) {
                Ok(ticket) => Some(ticket),
                Err(error) => return Some(error.into()),
            },
        };
        if !stored.is_empty() {
            let appended = outbox.append(default, &[record(pubsub, message, &stored)]);
            if let Some(error) = appended.refused {
                // It may be on the link already; the sender repeats it, as after a link that broke.
                if let Some(ticket) = &ticket {
                    outbox.take_back(ticket);
                }
                return Some(error.into());
            }
            done.receipt.mark(default, appended.last.sequence);
            done.last = Some(appended.last);
        }
        if let Some(ticket) = ticket {
            done.last = Some(ticket.id);
            done.receipt.passing.push(ticket);
        }
        self.hand_on(pubsub, message, route, done).err()
    }
}

/// The message as a record for these destinations.
pub(super) fn record<'a>(source: &'a str, message: &Inbound<'a>, destinations: &'a [DestinationId]) -> NewRecord<'a> {
    NewRecord {
        source,
        topic: message.topic,
        payload: message.payload,
        attributes: message.attributes,
        qos: message.qos,
        retain: message.retain,
        ttl_seconds: message.ttl_seconds,
        destinations,
    }
}
