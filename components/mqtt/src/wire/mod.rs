//! The client's half of the MQTT 3.1.1 and 5 wire formats, without IO and without allocation on the publish path.
//!
//! Every byte of the peer is taken for hostile: what breaks a rule that a client can check is a [`Malformed`], and the
//! link ends. Section numbers are those of OASIS MQTT 5.0 unless said otherwise.

mod decode;
mod encode;

pub use decode::{Frame, Incoming, Malformed, Packet, PeerLimitsSeen, frame, parse};
pub use encode::{Connect, EncodeError, Outgoing, connect, disconnect, ping, publish, publish_bytes, respond, subscribe, unsubscribe};

/// Control packet types, first byte without flags (section 2.1.2).
pub mod kind {
    /// CONNECT
    pub const CONNECT: u8 = 0x10;
    /// CONNACK
    pub const CONNACK: u8 = 0x20;
    /// PUBLISH
    pub const PUBLISH: u8 = 0x30;
    /// PUBACK
    pub const PUBACK: u8 = 0x40;
    /// PUBREC
    pub const PUBREC: u8 = 0x50;
    /// PUBREL, with its fixed flags
    pub const PUBREL: u8 = 0x62;
    /// PUBCOMP
    pub const PUBCOMP: u8 = 0x70;
    /// SUBSCRIBE, with its fixed flags
    pub const SUBSCRIBE: u8 = 0x82;
    /// SUBACK
    pub const SUBACK: u8 = 0x90;
    /// UNSUBSCRIBE, with its fixed flags
    pub const UNSUBSCRIBE: u8 = 0xA2;
    /// UNSUBACK
    pub const UNSUBACK: u8 = 0xB0;
    /// PINGREQ
    pub const PINGREQ: u8 = 0xC0;
    /// PINGRESP
    pub const PINGRESP: u8 = 0xD0;
    /// DISCONNECT
    pub const DISCONNECT: u8 = 0xE0;
}

/// Property identifiers (section 2.2.2.2).
pub(crate) mod property {
    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0B;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTH_METHOD: u8 = 0x15;
    pub const AUTH_DATA: u8 = 0x16;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub const SHARED_AVAILABLE: u8 = 0x2A;
}
