//! Transmission parameters and bounds.

use std::time::Duration;

use selvedge::resource::ListenerLimits;

/// First wait for an acknowledgement; the real one is up to [`ACK_RANDOM_FACTOR`] as long (RFC 7252, section 4.8).
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Spread of the first wait (RFC 7252, section 4.8).
pub(crate) const ACK_RANDOM_FACTOR: f64 = 1.5;
/// Repeats of a confirmable message (RFC 7252, section 4.8).
pub(crate) const MAX_RETRANSMIT: u32 = 4;
/// How long a message id belongs to one exchange (RFC 7252, section 4.8.2, with the parameters above).
pub(crate) const EXCHANGE_LIFETIME: Duration = Duration::from_secs(247);
/// A request that is not answered by then is acknowledged empty and answered apart. Below ACK_TIMEOUT, so that the peer
/// need not repeat it (RFC 7252, section 5.2.2).
pub(crate) const PROCESSING_DELAY: Duration = Duration::from_secs(1);
/// How often peers that have been silent for EXCHANGE_LIFETIME are looked for.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Largest block exponent: 1,024 bytes (RFC 7959, section 2.2).
pub(crate) const MAX_SZX: u8 = 6;
/// Largest block exponent towards a peer whose address is not proven.
pub(crate) const UNPROVEN_SZX: u8 = 3;
/// Most payload bytes of an answer to a peer that may not be where its datagrams say (RFC 7252, section 11.3).
pub const UNPROVEN_BLOCK_BYTES: usize = 1 << (UNPROVEN_SZX + 4);
/// Largest datagram that is read whole; larger ones must come block by block.
pub(crate) const MAX_DATAGRAM_BYTES: usize = 8_192;
/// Every so many notifications one is confirmable, so that an observer that is gone is noticed (RFC 7641, section 4.5).
pub(crate) const CONFIRM_EVERY: u32 = 8;
/// Most topics that one peer may observe at a time.
pub(crate) const MAX_OBSERVED_PER_PEER: usize = 32;
/// Most confirmable messages that wait for a peer behind the one in flight.
pub(crate) const MAX_QUEUED_PER_PEER: usize = 32;
/// Most uploads under way, of all peers and of one.
pub(crate) const MAX_UPLOADS: usize = 64;
/// Most uploads of one peer.
pub(crate) const MAX_UPLOADS_PER_PEER: usize = 4;
/// An upload that has had no block for this long may be given up for another.
pub(crate) const UPLOAD_IDLE: Duration = Duration::from_secs(5);

/// Bounds of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most peers whose state is kept. The one idle for longest gives way; if none is idle the newcomer gets 5.03.
    pub peers: usize,
    /// Largest body in bytes, in one datagram or in blocks. Larger ones get 4.13.
    pub body_bytes: usize,
    /// Most requests of one peer that wait for their answer. More get 5.03.
    pub window: usize,
    /// Most requests of all peers that wait for their answer. More get 5.03.
    pub pending: usize,
    /// Most exchanges remembered against duplicates. The oldest of the peer that has most is forgotten.
    pub exchanges: usize,
    /// Most bytes of answers kept for repeated requests. The same is forgotten.
    pub exchange_bytes: usize,
    /// Most observers. More are answered without being registered.
    pub observers: usize,
    /// Most bytes of uploads under way. More get 5.03.
    pub upload_bytes: usize,
    /// Most bytes of notified messages kept so that observers can fetch their later blocks. Beyond it they cannot.
    pub latest_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(ListenerLimits::default())
    }
}

impl From<ListenerLimits> for Settings {
    fn from(limits: ListenerLimits) -> Self {
        let body_bytes = limits.packet_bytes as usize;
        Self {
            peers: limits.clients.max(1),
            body_bytes,
            window: usize::from(limits.window.max(1)),
            pending: 1_024,
            exchanges: 16_384,
            exchange_bytes: 1 << 20,
            observers: limits.clients.max(1),
            upload_bytes: body_bytes.max(8 << 20),
            latest_bytes: 1 << 20,
        }
    }
}
