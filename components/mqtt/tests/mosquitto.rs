//! The whole way out against a real broker: hub, forwarder, uplink, mosquitto.
//! Where mosquitto is not installed each test says so in one line and ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use common::{Mosquitto, Rig, Witness};
use selvedge::escape::LinkState;
use selvedge_mqtt::Version;

async fn all_arrive(version: Version) {
    let Some(broker) = Mosquitto::start("").await else { return };
    let witness = Witness::subscribe(&broker, "#").await;
    let rig = Rig::new(version, &broker.url()).await;
    let forwarder = rig.forward();
    rig.accept("a/", 4, 2_000);
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    witness.wait_for(2_000).await;
    witness.verify(&rig, true);
    forwarder.stop().await;
    assert_eq!(rig.status().connects, 1);
    assert_eq!(rig.status().state, LinkState::Down);
}

#[tokio::test]
async fn over_3_1_1_all_arrive_once_and_in_order() {
    all_arrive(Version::V3).await;
}

#[tokio::test]
async fn over_5_all_arrive_once_and_in_order() {
    all_arrive(Version::V5).await;
}

async fn broker_restarts(version: Version) {
    let Some(mut broker) = Mosquitto::start("persistence true\nautosave_interval 1\n").await else { return };
    let rig = Rig::new(version, &broker.url()).await;
    let witness = Witness::subscribe(&broker, "#").await;
    let forwarder = rig.forward();
    for round in 0..3 {
        rig.accept("a/", 4, 3_000);
        if round == 1 {
            rig.wait(|s| s.queued == 0).await;
        }
        broker.restart().await;
        rig.accept("a/", 4, 1_000);
    }
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    witness.wait_for_distinct(12_000).await;
    witness.verify(&rig, false);
    forwarder.stop().await;
}

#[tokio::test]
async fn over_3_1_1_a_broker_that_restarts_loses_nothing_it_was_sent() {
    broker_restarts(Version::V3).await;
}

#[tokio::test]
async fn over_5_a_broker_that_restarts_loses_nothing_it_was_sent() {
    broker_restarts(Version::V5).await;
}

#[tokio::test]
async fn a_broker_that_comes_late_gets_the_backlog() {
    let Some(mut broker) = Mosquitto::start("").await else { return };
    let rig = Rig::new(Version::V5, &broker.url()).await;
    broker.stop();
    let forwarder = rig.forward();
    rig.accept("late/", 2, 500);
    rig.wait(|s| s.state == LinkState::Down && s.cause.is_some() && s.queued == 500).await;
    broker.start_again().await;
    let witness = Witness::subscribe(&broker, "#").await;
    rig.wait(|s| s.state == LinkState::Up && s.queued == 0).await;
    let _ = witness;
    forwarder.stop().await;
    assert_eq!(rig.delivered(), 500);
    tokio::time::timeout(Duration::from_secs(1), async {}).await.unwrap();
}
