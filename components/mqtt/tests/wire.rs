//! The wire format held against an independent implementation, and against hostile bytes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use mqtt_protocol_core::mqtt::packet::{MessageExpiryInterval, Property, Qos, ReceiveMaximum, ServerKeepAlive, UserProperty, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::{ConnectReasonCode, PubackReasonCode, SubackReasonCode};
use proptest::prelude::*;
use selvedge::component::LinkCause;
use selvedge::message::Attributes;
use selvedge::time::Monotonic;
use selvedge_mqtt::session::{Owner, Session, SessionEvent};
use selvedge_mqtt::wire::{self, Connect, Outgoing, Packet, PeerLimitsSeen};
use selvedge_mqtt::{Settings, Timing, Version};

fn settings(version: Version, qos: u8) -> Settings {
    Settings {
        name: "cloud".into(),
        version,
        host: "h".into(),
        port: 1883,
        tls: None,
        client_id: "c".into(),
        credentials: None,
        qos,
        retain: false,
        clean_session: false,
        meter: Default::default(),
        timing: Timing::default(),
    }
}

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/ äß€😀-]{1,40}"
}

prop_compose! {
    fn attributes()(
        content_type in proptest::option::of(text()),
        response_topic in proptest::option::of(text()),
        correlation in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        utf8 in any::<bool>(),
        user in proptest::collection::vec((text(), text()), 0..5),
    ) -> (Option<String>, Option<String>, Option<Vec<u8>>, bool, Vec<(String, String)>) {
        (content_type, response_topic, correlation, utf8, user)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn publishes_are_read_as_they_were_meant(
        topic in text(), payload in proptest::collection::vec(any::<u8>(), 0..20_000),
        attributes in attributes(), qos in 0u8..=2, retain in any::<bool>(), dup in any::<bool>(),
        expires_seconds in proptest::option::of(any::<u32>()), id in 1u16.., mark in text(),
    ) {
        let (content_type, response_topic, correlation, utf8, user) = attributes;
        let user: Vec<(&str, &str)> = user.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let marks = [("selvedge-id", mark.as_str())];
        let outgoing = Outgoing {
            topic: &topic,
            payload: &payload,
            attributes: Attributes {
                content_type: content_type.as_deref(),
                response_topic: response_topic.as_deref(),
                correlation_data: correlation.as_deref(),
                utf8,
                user: &user,
            },
            marks: &marks,
            expires_seconds,
            qos,
            retain,
            dup,
        };
        for version in [Version::V3, Version::V5] {
            let sizes = wire::publish_bytes(version, &outgoing).unwrap();
            let mut bytes = Vec::new();
            wire::publish(&mut bytes, version, &outgoing, id, sizes);
            prop_assert_eq!(bytes.len(), sizes.0);
            let frame = wire::frame(&bytes, usize::MAX).unwrap().unwrap();
            prop_assert_eq!(frame.bytes, bytes.len());
            let (flags, body): (u8, Arc<[u8]>) = (frame.first & 15, frame.body.into());
            // The other implementation reads it, and writes the same bytes.
            let again = match version {
                Version::V3 => v3_1_1::Publish::parse(flags, body).unwrap().0.to_continuous_buffer(),
                Version::V5 => v5_0::Publish::parse(flags, body).unwrap().0.to_continuous_buffer(),
            };
            prop_assert_eq!(&again, &bytes);
            // And our own reading is the same message.
            let Packet::Publish(read) = wire::parse(version, frame).unwrap() else { panic!("not a publish") };
            prop_assert_eq!((read.topic, read.payload, read.qos, read.retain), (topic.as_str(), payload.as_slice(), qos, retain));
            if version == Version::V5 {
                prop_assert_eq!((read.content_type, read.response_topic, read.correlation_data), (content_type.as_deref(), response_topic.as_deref(), correlation.as_deref()));
                prop_assert_eq!((read.utf8, read.expires_seconds), (utf8, expires_seconds));
                let all: Vec<_> = user.iter().copied().chain(marks).collect();
                prop_assert_eq!(read.user().collect::<Vec<_>>(), all);
            }
        }
    }

    #[test]
    fn connects_are_read_as_they_were_meant(
        client_id in text(), credentials in proptest::option::of((text(), "[a-z]{0,20}")), clean in any::<bool>(), keep_alive_seconds in any::<u16>(),
        session_expiry_seconds in any::<u32>(),
    ) {
        let connect = |version| Connect {
            version,
            client_id: &client_id,
            credentials: credentials.as_ref().map(|(u, p)| (u.as_str(), p.as_str())),
            clean,
            keep_alive_seconds,
            session_expiry_seconds,
            receive_maximum: 64,
            maximum_packet_bytes: 1 << 20,
        };
        let mut bytes = Vec::new();
        wire::connect(&mut bytes, &connect(Version::V3)).unwrap();
        let read = v3_1_1::Connect::parse(wire::frame(&bytes, usize::MAX).unwrap().unwrap().body).unwrap().0;
        prop_assert_eq!((read.client_id(), read.clean_session(), read.keep_alive()), (client_id.as_str(), clean, keep_alive_seconds));
        prop_assert_eq!(read.user_name(), credentials.as_ref().map(|(u, _)| u.as_str()));
        prop_assert_eq!(read.to_continuous_buffer(), bytes);
        let mut bytes = Vec::new();
        wire::connect(&mut bytes, &connect(Version::V5)).unwrap();
        let read = v5_0::Connect::parse(wire::frame(&bytes, usize::MAX).unwrap().unwrap().body).unwrap().0;
        prop_assert_eq!((read.client_id(), read.clean_start()), (client_id.as_str(), clean));
        prop_assert_eq!(read.to_continuous_buffer(), bytes);
    }

    #[test]
    fn subscriptions_are_read_as_they_were_meant(filters in proptest::collection::vec((text(), 0u8..=2), 1..20), id in 1u16..) {
        let filters: Vec<(&str, u8)> = filters.iter().map(|(f, q)| (f.as_str(), *q)).collect();
        for version in [Version::V3, Version::V5] {
            let mut bytes = Vec::new();
            wire::subscribe(&mut bytes, version, id, &filters).unwrap();
            let body = wire::frame(&bytes, usize::MAX).unwrap().unwrap().body;
            let again = match version {
                Version::V3 => v3_1_1::Subscribe::parse(body).unwrap().0.to_continuous_buffer(),
                Version::V5 => v5_0::Subscribe::parse(body).unwrap().0.to_continuous_buffer(),
            };
            prop_assert_eq!(again, bytes);
            let mut bytes = Vec::new();
            wire::unsubscribe(&mut bytes, version, id, filters[0].0).unwrap();
            let body = wire::frame(&bytes, usize::MAX).unwrap().unwrap().body;
            let again = match version {
                Version::V3 => v3_1_1::Unsubscribe::parse(body).unwrap().0.to_continuous_buffer(),
                Version::V5 => v5_0::Unsubscribe::parse(body).unwrap().0.to_continuous_buffer(),
            };
            prop_assert_eq!(again, bytes);
        }
    }

    /// Whatever a peer sends, in whatever pieces: no panic, and a breach is the peer's error.
    #[test]
    fn hostile_bytes_never_panic(
        seed in proptest::collection::vec(peer_packet(), 0..12),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(), v5 in any::<bool>(), noise in proptest::collection::vec(any::<u8>(), 0..40), piece in 1usize..200,
    ) {
        let version = if v5 { Version::V5 } else { Version::V3 };
        let mut bytes: Vec<u8> = seed.concat();
        bytes.extend_from_slice(&noise);
        for (at, value) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        if !bytes.is_empty() {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        let mut session = Session::new(&settings(version, 2), PeerLimitsSeen::default(), Monotonic::default());
        for token in 0..20 {
            session.publish(Owner::Uplink(token), &message("a", 1 + (token % 2) as u8)).unwrap();
        }
        session.subscribe(1, &[("x", 1)]).unwrap();
        let (mut acks, mut events, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            kept.extend_from_slice(piece);
            match session.receive(&kept, Monotonic::default(), &mut acks, &mut events) {
                Ok(used) => drop(kept.drain(..used)),
                Err(failure) => {
                    prop_assert!(!failure.detail.is_empty());
                    break;
                }
            }
        }
        prop_assert!(acks.len() <= 20, "each publish is answered at most once");
    }
}

fn message(topic: &str, qos: u8) -> Outgoing<'_> {
    Outgoing { topic, payload: b"x", attributes: Attributes::default(), marks: &[], expires_seconds: None, qos, retain: false, dup: false }
}

/// Packets that a broker could send, valid for one version or the other.
fn peer_packet() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (1u16..30, any::<u8>()).prop_map(|(id, code)| vec![0x40, 3, (id >> 8) as u8, id as u8, code]),
        (1u16..30, prop_oneof![Just(0x40u8), Just(0x50), Just(0x62), Just(0x70), Just(0xB0)]).prop_map(|(id, first)| vec![
            first,
            2,
            (id >> 8) as u8,
            id as u8
        ]),
        (1u16..30).prop_map(|id| vec![0x90, 3, 0, id as u8, 1]),
        Just(vec![0xD0, 0]),
        Just(vec![0xE0, 0]),
        (text(), 0u8..4, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..30)).prop_map(|(topic, qos, id, payload)| {
            let mut body = vec![0, topic.len() as u8];
            body.extend_from_slice(topic.as_bytes());
            if qos > 0 {
                body.extend_from_slice(&id.to_be_bytes());
            }
            body.push(0);
            body.extend_from_slice(&payload);
            let mut packet = vec![0x30 | qos << 1, (body.len() % 128) as u8 | 0x80, (body.len() / 128) as u8];
            packet.extend_from_slice(&body);
            packet
        }),
    ]
}

fn feed(session: &mut Session, bytes: &[u8]) -> (Vec<(u64, bool)>, Vec<SessionEvent>) {
    let (mut acks, mut events) = (Vec::new(), Vec::new());
    let used = session.receive(bytes, Monotonic::default(), &mut acks, &mut events).unwrap();
    assert_eq!(used, bytes.len());
    let accepted = |o: &selvedge::component::UplinkOutcome| *o == selvedge::component::UplinkOutcome::Accepted;
    (acks.iter().map(|a| (a.token, accepted(&a.outcome))).collect(), events)
}

#[test]
fn answers_of_another_implementation_are_understood() {
    let connack = v5_0::Connack::builder()
        .session_present(true)
        .reason_code(ConnectReasonCode::Success)
        .props(vec![
            Property::ReceiveMaximum(ReceiveMaximum::new(10).unwrap()),
            Property::ServerKeepAlive(ServerKeepAlive::new(7).unwrap()),
            Property::UserProperty(UserProperty::new("a", "b").unwrap()),
        ])
        .build()
        .unwrap()
        .to_continuous_buffer();
    let frame = wire::frame(&connack, 1_000).unwrap().unwrap();
    let Packet::ConnAck { session_present, code, limits, .. } = wire::parse(Version::V5, frame).unwrap() else { panic!("not a CONNACK") };
    assert_eq!((session_present, code, limits.receive_maximum, limits.keep_alive_seconds), (true, 0, 10, Some(7)));

    let mut session = Session::new(&settings(Version::V5, 1), limits, Monotonic::default());
    session.publish(Owner::Uplink(7), &message("a", 1)).unwrap();
    session.publish(Owner::Uplink(8), &message("a", 1)).unwrap();
    session.subscribe(3, &[("x", 1), ("y", 1)]).unwrap();
    let refused = v5_0::Puback::builder().packet_id(2).reason_code(PubackReasonCode::NotAuthorized).build().unwrap().to_continuous_buffer();
    assert_eq!(feed(&mut session, &refused).0, [(8, false)]);
    let plain = v5_0::Puback::builder().packet_id(1).build().unwrap().to_continuous_buffer();
    assert_eq!(feed(&mut session, &plain).0, [(7, true)]);
    assert!(feed(&mut session, &plain).0.is_empty(), "a second answer means nothing");
    let granted = v5_0::Suback::builder()
        .packet_id(3)
        .reason_codes(vec![SubackReasonCode::GrantedQos1, SubackReasonCode::NotAuthorized])
        .build()
        .unwrap()
        .to_continuous_buffer();
    let (_, events) = feed(&mut session, &granted);
    assert!(matches!(&events[..], [SessionEvent::Subscribed { key: 3, granted }] if granted.as_slice() == [Some(1), None]));
    let publish = v5_0::Publish::builder()
        .topic_name("t")
        .unwrap()
        .qos(Qos::AtLeastOnce)
        .packet_id(9)
        .payload("hello")
        .props(vec![Property::MessageExpiryInterval(MessageExpiryInterval::new(5).unwrap())])
        .build()
        .unwrap()
        .to_continuous_buffer();
    let (_, events) = feed(&mut session, &publish);
    assert!(matches!(&events[..], [SessionEvent::Message(m)] if m.topic == "t" && m.payload.as_ref() == b"hello" && m.id == 9));
}

#[test]
fn packet_ids_wrap_without_meeting_one_that_is_out() {
    let mut session = Session::new(&settings(Version::V3, 1), PeerLimitsSeen::default(), Monotonic::default());
    let mut out = Vec::new();
    session.publish(Owner::Uplink(u64::MAX), &message("stuck", 1)).unwrap();
    let mut taken = 0u64;
    for token in 0..200_000u64 {
        if session.publish(Owner::Uplink(token), &message("a", 1)).is_err() {
            break;
        }
        taken += 1;
        out.clear();
        session.take_out(&mut out, Monotonic::default());
        let id = [out[out.len() - 3], out[out.len() - 2]];
        assert_eq!(feed(&mut session, &[0x40, 2, id[0], id[1]]).0, [(token, true)]);
    }
    assert_eq!(taken, 65_534, "the id that is out is never given again");
    assert_eq!(feed(&mut session, &[0x40, 2, 0, 1]).0, [(u64::MAX, true)]);
    session.publish(Owner::Uplink(1), &message("a", 1)).unwrap();
}

#[test]
fn a_silent_peer_is_given_up_after_one_and_a_half_intervals() {
    let at = |s: u64| Monotonic(Duration::from_secs(s));
    let mut session = Session::new(&settings(Version::V3, 1), PeerLimitsSeen::default(), at(0));
    let mut out = Vec::new();
    assert_eq!(session.tick(at(1)).unwrap(), Some(at(30)));
    assert_eq!(session.tick(at(30)).unwrap(), Some(at(45)));
    session.take_out(&mut out, at(30));
    assert_eq!(out, [0xC0, 0]);
    feed_at(&mut session, &[0xD0, 0], at(31));
    assert_eq!(session.tick(at(45)).unwrap(), Some(at(60)), "sent at 30, so the next ping goes at 60");
    assert_eq!(session.tick(at(60)).unwrap(), Some(at(75)));
    assert_eq!(session.tick(at(75)).unwrap_err().cause, LinkCause::Silent);
}

fn feed_at(session: &mut Session, bytes: &[u8], now: Monotonic) {
    session.receive(bytes, now, &mut Vec::new(), &mut Vec::new()).unwrap();
}

#[test]
fn quality_2_releases_its_ids_and_a_repeat_is_no_second_message() {
    let mut session = Session::new(&settings(Version::V3, 2), PeerLimitsSeen::default(), Monotonic::default());
    session.publish(Owner::Direct(5), &message("a", 2)).unwrap();
    let mut out = Vec::new();
    session.take_out(&mut out, Monotonic::default());
    out.clear();
    let (_, events) = feed(&mut session, &[0x50, 2, 0, 1]);
    assert!(matches!(&events[..], [SessionEvent::Published { key: 5, .. }]));
    session.take_out(&mut out, Monotonic::default());
    assert_eq!(out, [0x62, 2, 0, 1]);
    assert!(feed(&mut session, &[0x70, 2, 0, 1]).1.is_empty());
    let publish = [0x34, 6, 0, 1, b't', 0, 9, b'x'];
    assert_eq!(feed(&mut session, &publish).1.len(), 1);
    assert_eq!(feed(&mut session, &publish).1.len(), 0, "it is with us");
    feed(&mut session, &[0x62, 2, 0, 9]);
    assert_eq!(feed(&mut session, &publish).1.len(), 1, "it was released: the id means another message");
}
