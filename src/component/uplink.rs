//! The seam between the outbox and a network pub/sub: records in, acknowledged ones out.
//!
//! The forwarder owns order, window, retries and link state; an uplink owns one connection and its protocol. Nothing
//! here costs a future, a channel or an allocation per message: publishes are encoded into the connection's buffer, one
//! [`Uplink::drive`] writes and reads until at least one acknowledgement is in.

use std::time::Duration;

use super::Fut;
use crate::message::Attributes;

/// One publish, borrowed from the run of records that was read.
#[derive(Debug, Clone, Copy)]
pub struct UplinkPublish<'a> {
    /// The forwarder's number for this publish, given back with its acknowledgement. Unique among those unacknowledged.
    pub token: u64,
    /// Topic at the peer (prefixes applied).
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Properties of the message itself.
    pub attributes: Attributes<'a>,
    /// Properties that the node adds (record id, original time, delay); sent where the protocol has room for them.
    pub marks: &'a [(&'a str, &'a str)],
    /// Retain at the peer.
    pub retain: bool,
    /// Remaining lifetime in seconds; goes as message expiry where the protocol has it.
    pub expires_seconds: Option<u32>,
    /// This record was sent before on another connection and may have arrived.
    pub repeated: bool,
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkOutcome {
    /// The peer took responsibility.
    Accepted,
    /// The peer refuses this message for good (not authorised, invalid topic, too large).
    Refused(String),
    /// The peer cannot take it now (quota, busy): the same message may be tried again later.
    TryLater(String),
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkAck {
    /// Token of the publish.
    pub token: u64,
    /// Its outcome.
    pub outcome: UplinkOutcome,
}

/// Why a link is not up. Peers fold these into "reconnecting"; the remedy differs for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkCause {
    /// The name does not resolve.
    Dns,
    /// No route to the host or network.
    Route,
    /// The connection was refused or reset, or timed out while opening.
    Tcp,
    /// A certificate is not yet valid or has expired.
    TlsTime,
    /// A certificate is not trusted, or the handshake failed otherwise.
    TlsTrust,
    /// The peer refused our identity.
    Auth,
    /// The peer takes our identity and refuses everything that is sent.
    Refused,
    /// The peer has no room for us now.
    Quota,
    /// Acknowledgements come too slowly.
    Slow,
    /// Nothing comes at all: keep-alive passed or an acknowledgement is overdue.
    Silent,
    /// The peer broke the protocol, closed the connection or gave an error.
    PeerError,
    /// Someone ordered it.
    Operator,
}

impl LinkCause {
    /// The word used in metrics, logs and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Route => "route",
            Self::Tcp => "tcp",
            Self::TlsTime => "tls-time",
            Self::TlsTrust => "tls-trust",
            Self::Auth => "auth",
            Self::Refused => "refused",
            Self::Quota => "quota",
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::PeerError => "peer-error",
            Self::Operator => "operator",
        }
    }
}

/// A link that broke or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} ({})", .detail, .cause.as_str())]
pub struct LinkFailure {
    /// Class of the cause.
    pub cause: LinkCause,
    /// What happened, for people: the peer's name and its words.
    pub detail: String,
}

impl LinkFailure {
    /// A failure of this class.
    pub fn new(cause: LinkCause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into() }
    }
}

/// Bytes on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

/// What the peer allows, known after connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Most unacknowledged publishes (MQTT 5 Receive Maximum; 65,535 when not said).
    pub receive_maximum: u16,
    /// Largest packet in bytes; `None` = not limited.
    pub maximum_packet_bytes: Option<u32>,
    /// Largest interval after which silence means a dead link.
    pub silence: Duration,
    /// Whether [`UplinkPublish::marks`] reach the peer; where they do not, the forwarder saves the work of making them.
    pub carries_marks: bool,
}

/// One connection to an upstream, as the forwarder uses it. After a failure the forwarder calls `connect` again; everything
/// that was enqueued and not acknowledged before is forgotten by the uplink then.
pub trait Uplink: Send {
    /// Opens the connection and waits until the peer has accepted it. Drop the future to give up.
    fn connect<'a>(&'a mut self) -> Fut<'a, Result<PeerLimits, LinkFailure>>;

    /// Encodes a publish into the connection's send buffer. Does no IO. The forwarder keeps to the window, so this fails only
    /// for a message that cannot be sent at all (larger than the peer's limit, topic not allowed by the protocol).
    ///
    /// # Errors
    /// The outcome for this message, as if the peer had said it.
    fn enqueue(&mut self, publish: &UplinkPublish<'_>) -> Result<(), UplinkOutcome>;

    /// Writes what is buffered and reads until at least one acknowledgement is there (appended to `acks`), or until all is
    /// written when `until_written`. Also keeps the link alive and detects its silence. Cancel-safe: dropping the future loses nothing.
    fn drive<'a>(&'a mut self, acks: &'a mut Vec<UplinkAck>, until_written: bool) -> Fut<'a, Result<(), LinkFailure>>;

    /// What its connections have sent and received since the component was made, with all that the protocols add. None when the component
    /// does not count: it is estimated then.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// Says goodbye if connected and closes. Bounded by a second.
    fn disconnect<'a>(&'a mut self) -> Fut<'a, ()>;
}
