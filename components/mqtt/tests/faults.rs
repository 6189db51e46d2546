//! The way out against a broker that misbehaves on order, held against what that broker wrote down.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::fake::{Fake, Script};
use common::{Rig, check_order};
use selvedge::component::LinkCause;
use selvedge::escape::LinkState;
use selvedge::message::Inbound;
use selvedge_mqtt::Version;

/// Nothing is missing, each topic is in order, a repeat comes only on a later connection, no rule of the protocol was broken.
fn verify(fake: &Fake, rig: &Rig) {
    let ledger = fake.ledger.lock().unwrap();
    assert_eq!(ledger.broken_rules, Vec::<String>::new());
    let mut arrived: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut first_seen = BTreeMap::new();
    for (connection, topic, payload) in &ledger.taken {
        let number: u64 = std::str::from_utf8(payload).unwrap().trim_end_matches('x').parse().unwrap();
        arrived.entry(topic).or_default().push(number);
        if let Some(first) = first_seen.insert((topic, number), *connection) {
            assert!(first < *connection, "{topic} {number} came twice on connection {connection}");
        }
    }
    for (topic, count) in rig.accepted.lock().unwrap().iter() {
        check_order(topic, *count, &arrived.remove(topic.as_str()).unwrap_or_default(), false);
    }
    assert!(arrived.is_empty(), "strange topics: {:?}", arrived.keys());
}

async fn all_arrive(script: Script, count: u64) -> (Fake, Rig) {
    let version = script.version;
    let fake = Fake::start(script).await;
    let rig = Rig::new(version, &fake.url()).await;
    let mut config = rig.config();
    config.stall = Duration::from_millis(400);
    config.link.backoff.first = Duration::from_millis(5);
    config.link.backoff.cap = Duration::from_millis(20);
    let forwarder = rig.forward_with(config);
    rig.accept("t/", 5, count);
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    forwarder.stop().await;
    verify(&fake, &rig);
    assert_eq!(rig.delivered(), count);
    (fake, rig)
}

#[tokio::test]
async fn a_broker_that_drops_the_link_again_and_again_gets_every_message() {
    for version in [Version::V3, Version::V5] {
        for (session_present, shuffle) in [(false, None), (true, None), (false, Some(1)), (true, Some(2))] {
            let script = Script { session_present, shuffle, drop_every: Some(701), ..Script::new(version) };
            let (_, rig) = all_arrive(script, 5_000).await;
            assert!(rig.status().connects >= 7, "{:?}", rig.status());
        }
    }
}

#[tokio::test]
async fn acknowledgements_in_any_order_are_taken() {
    let (_, rig) = all_arrive(Script { shuffle: Some(3), ..Script::new(Version::V5) }, 5_000).await;
    assert_eq!((rig.status().connects, rig.status().sent), (1, 5_000));
}

#[tokio::test]
async fn an_acknowledgement_that_never_comes_breaks_the_link_and_the_message_goes_again() {
    let (fake, rig) = all_arrive(Script { swallow: Some(500), ..Script::new(Version::V3) }, 1_000).await;
    assert_eq!(rig.status().connects, 2);
    assert!(fake.ledger.lock().unwrap().publishes > 1_000);
}

#[tokio::test]
async fn a_broker_that_stops_reading_is_left() {
    let (_, rig) = all_arrive(Script { stall: Some(300), ..Script::new(Version::V5) }, 2_000).await;
    assert_eq!(rig.status().connects, 2);
}

#[tokio::test]
async fn a_small_receive_maximum_is_kept() {
    for maximum in [1u8, 3, 10] {
        let script = Script { receive_maximum: usize::from(maximum), properties: vec![0x21, 0, maximum], ..Script::new(Version::V5) };
        all_arrive(script, 300).await;
    }
}

#[tokio::test]
async fn a_broker_over_its_quota_is_asked_again_on_the_same_connection() {
    // Every hundredth publish is put off, each message at most once.
    let code = Arc::new(|n: u64, _: &str, seen: u64| if n.is_multiple_of(100) && seen == 1 { 0x97 } else { 0 });
    let fake = Fake::start(Script { code, ..Script::new(Version::V5) }).await;
    let rig = Rig::new(Version::V5, &fake.url()).await;
    let mut config = rig.config();
    config.link.backoff.first = Duration::from_millis(2);
    config.link.backoff.cap = Duration::from_millis(5);
    let forwarder = rig.forward_with(config);
    rig.accept("t/", 1, 1_000);
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    forwarder.stop().await;
    assert_eq!((rig.status().connects, rig.status().refused, rig.delivered()), (1, 0, 1_000), "the connection stays");
    // What was sent behind the one put off has arrived before it; nothing is missing.
    let ledger = fake.ledger.lock().unwrap();
    let distinct: std::collections::BTreeSet<_> = ledger.taken.iter().map(|(_, _, payload)| payload).collect();
    assert_eq!(distinct.len(), 1_000);
}

#[tokio::test]
async fn a_message_that_is_refused_for_good_is_counted_and_the_rest_goes_on() {
    for reason in [0x87, 0x90, 0x99] {
        let code = Arc::new(move |_: u64, topic: &str, _: u64| if topic == "t/3" { reason } else { 0 });
        let fake = Fake::start(Script { code, ..Script::new(Version::V5) }).await;
        let rig = Rig::new(Version::V5, &fake.url()).await;
        let forwarder = rig.forward();
        rig.accept("t/", 5, 500);
        rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
        forwarder.stop().await;
        let status = rig.status();
        assert_eq!((status.refused, status.acknowledged, status.connects), (100, 400, 1), "reason {reason:#x}");
        rig.accepted.lock().unwrap().remove("t/3");
        verify(&fake, &rig);
    }
}

#[tokio::test]
async fn a_message_larger_than_the_peer_takes_is_refused_here() {
    let fake = Fake::start(Script { properties: vec![0x27, 0, 0, 2, 0], ..Script::new(Version::V5) }).await;
    let rig = Rig::new(Version::V5, &fake.url()).await;
    let forwarder = rig.forward();
    rig.accept("t/", 2, 100);
    let large = rig.hub.accept("cloud", &[Inbound::new("t/0", &[0; 600])]);
    assert_eq!(large.taken, 1);
    rig.accept("t/", 2, 100);
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    forwarder.stop().await;
    assert_eq!((rig.status().refused, rig.status().acknowledged), (1, 200));
    verify(&fake, &rig);
}

#[tokio::test]
async fn a_refused_connect_says_why_and_is_tried_again() {
    for (version, code, cause) in [
        (Version::V3, 5, LinkCause::Auth),
        (Version::V3, 3, LinkCause::Quota),
        (Version::V5, 0x86, LinkCause::Auth),
        (Version::V5, 0x97, LinkCause::Quota),
        (Version::V5, 0x84, LinkCause::PeerError),
    ] {
        let fake = Fake::start(Script { refuse: vec![code; 2], ..Script::new(version) }).await;
        let rig = Rig::new(version, &fake.url()).await;
        let forwarder = rig.forward();
        rig.accept("t/", 1, 10);
        rig.wait(|s| s.cause == Some(cause)).await;
        rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
        forwarder.stop().await;
        verify(&fake, &rig);
    }
}

#[tokio::test]
async fn garbage_ends_the_link_with_a_cause_and_nothing_is_lost() {
    for garbage in [vec![0xFF; 40], vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF], vec![0x40, 2, 0, 0], vec![0x20, 2, 0, 0], vec![0x10, 0]] {
        let script = Script { garbage: Some((50, garbage)), ..Script::new(Version::V5) };
        let fake = Fake::start(script).await;
        let rig = Rig::new(Version::V5, &fake.url()).await;
        let forwarder = rig.forward();
        rig.accept("t/", 3, 200);
        rig.wait(|s| s.cause == Some(LinkCause::PeerError)).await;
        rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
        forwarder.stop().await;
        verify(&fake, &rig);
    }
}

#[tokio::test]
async fn a_record_that_breaks_the_link_each_time_does_not_hold_up_the_others() {
    let fake = Fake::start(Script { hates: Some("t/poison".into()), ..Script::new(Version::V3) }).await;
    let rig = Rig::new(Version::V3, &fake.url()).await;
    let mut config = rig.config();
    config.link.backoff.first = Duration::from_millis(5);
    config.link.backoff.cap = Duration::from_millis(20);
    let forwarder = rig.forward_with(config);
    rig.accept("t/", 2, 100);
    let poison = rig.hub.accept("cloud", &[Inbound::new("t/poison", b"x")]);
    assert_eq!(poison.taken, 1);
    rig.accept("t/", 2, 100);
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    forwarder.stop().await;
    assert_eq!((rig.status().refused, rig.delivered()), (1, 200));
    verify(&fake, &rig);
}

#[tokio::test]
async fn a_broker_that_closes_on_everything_condemns_no_record() {
    let fake = Fake::start(Script { drop_every: Some(1), ..Script::new(Version::V3) }).await;
    let rig = Rig::new(Version::V3, &fake.url()).await;
    let mut config = rig.config();
    config.link.backoff.first = Duration::from_millis(1);
    config.link.backoff.cap = Duration::from_millis(2);
    let forwarder = rig.forward_with(config);
    rig.accept("t/", 1, 20);
    rig.wait(|s| s.connects >= 60).await;
    forwarder.stop().await;
    assert_eq!((rig.status().refused, rig.status().queued), (0, 20));
}

#[tokio::test]
async fn a_forwarder_that_dies_in_the_middle_loses_nothing() {
    let fake = Fake::start(Script::new(Version::V5)).await;
    let rig = Rig::new(Version::V5, &fake.url()).await;
    rig.accept("t/", 4, 20_000);
    for _ in 0..5 {
        let before = fake.ledger.lock().unwrap().publishes;
        let forwarder = rig.forward();
        common::until("some have arrived", || fake.ledger.lock().unwrap().publishes > before + 500).await;
        forwarder.kill().await;
    }
    let forwarder = rig.forward();
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    forwarder.stop().await;
    verify(&fake, &rig);
}

#[tokio::test]
async fn marks_travel_with_mqtt_5() {
    let fake = Fake::start(Script::new(Version::V5)).await;
    let rig = Rig::new(Version::V5, &fake.url()).await;
    rig.accept("t/", 1, 3);
    let forwarder = rig.forward();
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    forwarder.stop().await;
    let ledger = fake.ledger.lock().unwrap();
    for (n, user) in ledger.user.iter().enumerate() {
        let value = |name: &str| user.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()).unwrap();
        assert!(value("selvedge-id").ends_with(&format!("/{n}")) || value("selvedge-id").ends_with(&format!("/{}", n + 1)), "{user:?}");
        assert_eq!(value("selvedge-time").len(), "2026-11-24T02:43:02.123Z".len());
        assert!(value("selvedge-delay-ms").parse::<u64>().unwrap() < 30_000, "a record that waited for the link says how long");
    }
}

#[tokio::test]
async fn a_peer_that_is_not_there_has_a_cause() {
    let port = common::free_port();
    for (url, cause) in [(format!("mqtt://127.0.0.1:{port}"), LinkCause::Tcp), ("mqtt://no-such-host.invalid".to_owned(), LinkCause::Dns)] {
        let rig = Rig::new(Version::V3, &url).await;
        let forwarder = rig.forward();
        rig.accept("t/", 1, 1);
        rig.wait(|s| s.cause == Some(cause) && !s.detail.is_empty() && s.queued == 1).await;
        forwarder.stop().await;
    }
}
