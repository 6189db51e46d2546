//! The bytes of MQTT 3.1.1 and 5 as a server reads and writes them (OASIS MQTT 3.1.1 and 5.0, sections 2 and 3). Reading borrows
//! from the buffer; what breaks the protocol is an error with the reason code that the specification gives it.

mod decode;
mod encode;

pub use decode::{Connect, Filter, NEVER, Packet, Publish, Will, decode};
pub use encode::{ConnAckProperties, Outgoing, acknowledge, codes, connack, disconnect, pingresp, publish_to};

/// Protocol level of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 3.1.1 (and 3.1, which differs in CONNECT only).
    V3,
    /// 5.0.
    V5,
}

/// Reason codes used here (5.0, section 2.4).
pub mod reason {
    #![allow(missing_docs)]
    pub const SUCCESS: u8 = 0x00;
    pub const DISCONNECT_WITH_WILL: u8 = 0x04;
    pub const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub const UNSPECIFIED: u8 = 0x80;
    pub const MALFORMED: u8 = 0x81;
    pub const PROTOCOL_ERROR: u8 = 0x82;
    pub const IMPLEMENTATION: u8 = 0x83;
    pub const UNSUPPORTED_VERSION: u8 = 0x84;
    pub const CLIENT_ID: u8 = 0x85;
    pub const BAD_CREDENTIALS: u8 = 0x86;
    pub const NOT_AUTHORIZED: u8 = 0x87;
    pub const BUSY: u8 = 0x89;
    pub const SHUTTING_DOWN: u8 = 0x8B;
    pub const BAD_AUTH_METHOD: u8 = 0x8C;
    pub const KEEP_ALIVE: u8 = 0x8D;
    pub const TAKEN_OVER: u8 = 0x8E;
    pub const FILTER_INVALID: u8 = 0x8F;
    pub const TOPIC_INVALID: u8 = 0x90;
    pub const RECEIVE_MAXIMUM: u8 = 0x93;
    pub const TOPIC_ALIAS: u8 = 0x94;
    pub const TOO_LARGE: u8 = 0x95;
    pub const QUOTA: u8 = 0x97;
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct WireError {
    /// Reason code for DISCONNECT.
    pub reason: u8,
    /// In words.
    pub what: &'static str,
}

const fn malformed(what: &'static str) -> WireError {
    WireError { reason: reason::MALFORMED, what }
}

const fn violation(what: &'static str) -> WireError {
    WireError { reason: reason::PROTOCOL_ERROR, what }
}

type Read<T> = Result<T, WireError>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use selvedge::message::Attributes;

    use super::*;

    #[test]
    fn a_message_that_is_written_is_read_back_in_both_versions() {
        let user = [("a", "1"), ("a", "2")];
        let attributes =
            Attributes { content_type: Some("t/x"), response_topic: Some("r"), correlation_data: Some(&[0, 1]), utf8: true, user: &user };
        for version in [Version::V3, Version::V5] {
            let mut out = Vec::new();
            let message = Outgoing {
                topic: "a/b",
                payload: &[9; 300],
                attributes,
                qos: 1,
                id: 7,
                dup: true,
                retain: true,
                expiry: Some(5),
                subscriptions: &[],
            };
            assert!(publish_to(&mut out, version, &message, 10_000));
            let (packet, length) = decode(&out, Some(version), 10_000).unwrap().unwrap();
            assert_eq!(length, out.len());
            let Packet::Publish(p) = packet else { panic!("{packet:?}") };
            assert_eq!((p.topic, p.payload, p.qos, p.id, p.dup, p.retain), ("a/b", [9; 300].as_slice(), 1, 7, true, true));
            let expected = if version == Version::V5 { (attributes, Some(5)) } else { (Attributes::default(), None) };
            assert_eq!((p.properties.attributes(), p.properties.expiry), expected);
            assert!(!publish_to(&mut Vec::new(), version, &message, 100), "the client's limit is kept");
        }
    }

    #[test]
    fn what_breaks_the_protocol_has_its_reason() {
        let check = |bytes: &[u8], version, expected| assert_eq!(decode(bytes, version, 1_000).unwrap_err().reason, expected, "{bytes:?}");
        check(&[0x30, 5, 0, 1, b'a', 0, 0], None, reason::PROTOCOL_ERROR);
        check(&[0x32, 5, 0, 1, b'a', 0, 0], Some(Version::V3), reason::PROTOCOL_ERROR); // packet id 0
        check(&[0x36, 5, 0, 1, b'a', 0, 1], Some(Version::V3), reason::MALFORMED); // quality 3
        check(&[0x30, 0xff, 0xff, 0xff, 0xff], Some(Version::V3), reason::MALFORMED);
        check(&[0x30, 0xff, 0x7f], Some(Version::V3), reason::TOO_LARGE);
        check(&[0x10, 8, 0, 4, b'M', b'Q', b'T', b'T', 9, 0], None, reason::UNSUPPORTED_VERSION);
        check(&[0x80, 0], Some(Version::V5), reason::MALFORMED);
        assert_eq!(decode(&[0x30, 5, 0], Some(Version::V3), 1_000), Ok(None));
        assert_eq!(decode(&[0x30, 0xff], Some(Version::V3), 1_000), Ok(None));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 1u8..16, v5 in any::<bool>()) {
            let version = if v5 { Version::V5 } else { Version::V3 };
            let _ = decode(&bytes, Some(version), 1_000);
            let _ = decode(&bytes, None, 1_000);
            // The same with a header that fits, so that the bodies are reached.
            for flags in [0, 2, 4] {
                let mut framed = vec![kind << 4 | flags, bytes.len() as u8 & 0x7f];
                framed.extend_from_slice(&bytes);
                let _ = decode(&framed, Some(version), 1_000);
                let _ = decode(&framed, None, 1_000);
            }
        }
    }
}
