//! The component's connection as the forwarder uses it.

use std::sync::Arc;

use selvedge::component::{Fut, LinkFailure, PeerLimits, Traffic, Uplink, UplinkAck, UplinkOutcome, UplinkPublish};

use crate::connection::Connection;
use crate::session::Owner;
use crate::settings::Version;
use crate::wire::Outgoing;

/// Publishes that are left to callers that wait, out of a small receive maximum.
const RESERVE: u16 = 8;

/// The uplink of an MQTT pub/sub.
#[derive(Debug)]
pub struct MqttUplink {
    connection: Arc<Connection>,
}

impl MqttUplink {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Uplink for MqttUplink {
    fn connect<'a>(&'a mut self) -> Fut<'a, Result<PeerLimits, LinkFailure>> {
        Box::pin(async move {
            let limits = self.connection.open().await?;
            let maximum = limits.receive_maximum;
            let silence = self.connection.core().session().map(|s| s.silence()).unwrap_or_default();
            Ok(PeerLimits {
                receive_maximum: maximum - RESERVE.min(maximum / 4),
                maximum_packet_bytes: limits.maximum_packet_bytes,
                silence,
                carries_marks: self.connection.settings.version == Version::V5,
            })
        })
    }

    fn enqueue(&mut self, publish: &UplinkPublish<'_>) -> Result<(), UplinkOutcome> {
        let outgoing = Outgoing {
            topic: publish.topic,
            payload: publish.payload,
            attributes: publish.attributes,
            marks: publish.marks,
            expires_seconds: publish.expires_seconds,
            qos: 1, // the connection sets its own
            retain: publish.retain,
            // A record that is sent again goes under a new packet id, so for the protocol it is no duplicate.
            dup: false,
        };
        self.connection.enqueue(Owner::Uplink(publish.token), &outgoing)
    }

    fn drive<'a>(&'a mut self, acks: &'a mut Vec<UplinkAck>, until_written: bool) -> Fut<'a, Result<(), LinkFailure>> {
        let connection = self.connection.clone();
        Box::pin(std::future::poll_fn(move |cx| connection.poll_uplink(cx, acks, until_written)))
    }

    fn traffic(&self) -> Option<Traffic> {
        Some(self.connection.settings.meter.traffic())
    }

    fn disconnect<'a>(&'a mut self) -> Fut<'a, ()> {
        Box::pin(self.connection.disconnect())
    }
}
