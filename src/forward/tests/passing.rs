//! Lanes that store nothing, from the sender to the peer and back.

use std::collections::BTreeSet;

use super::*;
use crate::escape::SplitMix;
use crate::hub::AcceptError;
use crate::outbox::{OutboxError, Refusal, Unpassed};

const WITHIN: Duration = Duration::from_secs(4);

async fn rig() -> Rig {
    let direct = LaneConfig { durability: Durability::Passthrough, answer_within: WITHIN, quota_bytes: 1 << 20, ..LaneConfig::new("direct") };
    let rule = LaneRule { lane: "direct".into(), filters: vec!["now/#".into()], weight: 1, strict: false };
    let rig = Rig::with(vec![direct], vec![rule]).await;
    rig.hub.add_link(rig.destination);
    rig
}

/// Publishes and says what its sender is told, and after how long.
async fn publish(hub: Hub, payload: String) -> (String, Result<(), Unpassed>, Duration) {
    let begun = tokio::time::Instant::now();
    let result = hub.accept_one("local", &Inbound::new("now/a", payload.as_bytes())).await;
    let result = match result {
        Ok(_) => Ok(()),
        Err(AcceptError::Outbox(OutboxError::NotPassed { why, .. })) => Err(why),
        Err(error) => panic!("{error}"),
    };
    (payload, result, begun.elapsed())
}

impl Rig {
    fn direct(&self) -> crate::outbox::LaneStatus {
        self.hub.outbox().status().into_iter().find(|l| l.lane == "direct").unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn senders_are_refused_at_once_until_the_link_stands_and_again_when_it_is_closed() {
    let rig = rig().await;
    let (_, told, took) = publish(rig.hub.clone(), "0".into()).await;
    assert_eq!((told, took), (Err(Unpassed::Link), Duration::ZERO));
    let uplink = Scripted::accepting();
    let metrics = ForwardMetrics::register(&rig.metrics);
    let forwarder = Forwarder::new(rig.config(), rig.hub.clone(), Box::new(uplink.clone()), rig.clock.clone(), &metrics);
    let (status, orders) = (forwarder.status(), forwarder.orders());
    let _task = tokio::spawn(forwarder.run(Box::pin(std::future::pending())));
    until(|| status.state() == LinkState::Up).await;
    assert_eq!(publish(rig.hub.clone(), "1".into()).await.1, Ok(()));
    // Only strict lanes are sent: this one is none.
    orders.send_modify(|o| o.strict_only = true);
    until(|| status.is_paused()).await;
    assert_eq!(publish(rig.hub.clone(), "2".into()).await.1, Err(Unpassed::Link));
    orders.send_modify(|o| o.strict_only = false);
    until(|| !status.is_paused()).await;
    assert_eq!(publish(rig.hub.clone(), "3".into()).await.1, Ok(()));
    orders.send_modify(|o| o.closed = true);
    until(|| status.state() == LinkState::Fenced).await;
    assert_eq!(publish(rig.hub.clone(), "4".into()).await.1, Err(Unpassed::Link));
    assert_eq!(uplink.payloads(), ["1", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_not_now_is_told_to_senders_at_once_and_a_stop_waits_for_answers() {
    let rig = rig().await;
    let mut first = true;
    let uplink =
        Scripted::new(move |_| Some(if std::mem::take(&mut first) { UplinkOutcome::TryLater("over quota".into()) } else { UplinkOutcome::Accepted }));
    let (status, stop, task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up).await;
    let (_, told, took) = publish(rig.hub.clone(), "0".into()).await;
    assert!(told == Err(Unpassed::Busy) && took < Duration::from_millis(100), "{told:?} {took:?}");
    assert_eq!(publish(rig.hub.clone(), "1".into()).await.1, Err(Unpassed::Link), "it has not been asked again");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(publish(rig.hub.clone(), "2".into()).await.1, Ok(()), "the next one asks it");
    until(|| status.state() == LinkState::Degraded).await;
    let now = uplink.peer().start.elapsed();
    uplink.peer().hold_until = now + Duration::from_secs(1);
    let on_its_way = tokio::spawn(publish(rig.hub.clone(), "3".into()));
    until(|| uplink.payloads().len() == 3).await;
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(publish(rig.hub.clone(), "4".into()).await.1, Err(Unpassed::Link));
    assert_eq!(on_its_way.await.unwrap().1, Ok(()));
    task.await.unwrap();
    assert_eq!(uplink.payloads(), ["0", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn before_a_drain_begins_senders_are_refused_at_once_and_then_share_it() {
    let rig = rig().await;
    rig.accept("local", "stored", 1_000..1_100);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { jitter: Duration::from_secs(30), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, seed: Some(3), ..rig.config() }, &uplink);
    until(|| status.state() == LinkState::Draining).await;
    let (_, told, took) = publish(rig.hub.clone(), "0".into()).await;
    assert!(told == Err(Unpassed::Link) && took < Duration::from_millis(100), "{told:?} {took:?}");
    until(|| uplink.payloads().len() > 1).await;
    assert_eq!(publish(rig.hub.clone(), "1".into()).await.1, Ok(()));
    assert!(!uplink.payloads().contains(&"0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_everything_of_such_a_lane_is_not_shut_off_and_nothing_is_set_aside() {
    let rig = rig().await;
    let uplink = Scripted::new(|_| Some(UplinkOutcome::Refused("no".into())));
    let (status, _stop, _task) = rig.start(ForwarderConfig { poison_bytes: 1_000, ..rig.config() }, &uplink);
    until(|| status.state() == LinkState::Up).await;
    for n in 0..20 {
        assert_eq!(publish(rig.hub.clone(), n.to_string()).await.1, Err(Unpassed::Refused("no".into())));
    }
    assert_eq!((status.state(), status.snapshot().refused, status.snapshot().connects), (LinkState::Up, 20, 1));
    assert_eq!((rig.direct().refused[Refusal::Peer as usize], rig.direct().passing), (20, 0));
    assert!(rig.hub.outbox().ledger().iter().all(|r| r.accepted == 0));
}

/// Senders come and go, the peer takes, refuses, says "not now" or nothing, links break: each sender is told once and in time, who is told
/// yes is known to the peer, nothing is sent twice, and the books count those who were told yes.
#[tokio::test(start_paused = true)]
async fn whatever_the_link_does_each_sender_is_told_in_time_and_nothing_is_sent_twice() {
    let mut all = (0, 0);
    for seed in 0..12 {
        let rig = rig().await;
        let mut random = SplitMix::new(seed);
        let mut answers = SplitMix::new(seed + 1_000);
        let taken = Arc::new(Mutex::new(BTreeSet::new()));
        let known = taken.clone();
        let uplink = Scripted::new(move |sent| match if sent.topic == "stored" { 7 } else { (answers.draw() >> 33) % 400 } {
            0 => None,
            1..=3 => Some(UplinkOutcome::Refused("no".into())),
            4..=6 => Some(UplinkOutcome::TryLater("later".into())),
            _ => {
                known.lock().unwrap().insert(sent.payload.clone());
                Some(UplinkOutcome::Accepted)
            }
        });
        let (status, stop, task) = rig.start(ForwarderConfig { stall: Duration::from_secs(3), window: 16, ..rig.config() }, &uplink);
        let mut senders = tokio::task::JoinSet::new();
        for n in 0..600 {
            let draw = (random.draw() >> 33) % 100;
            senders.spawn(publish(rig.hub.clone(), format!("{n:03}")));
            if n % 7 == 0 {
                // Another lane shares the link.
                rig.accept("local", "stored", 1_000 + n..1_001 + n);
            }
            if draw < 3 {
                uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::Tcp, "reset"));
            }
            tokio::time::sleep(Duration::from_millis(if draw < 5 { 700 } else { draw / 4 })).await;
        }
        let (mut yes, mut no) = (0, 0);
        while let Some(told) = senders.join_next().await {
            let (payload, result, took) = told.unwrap();
            assert!(took <= WITHIN + Duration::from_millis(50), "seed {seed}: {payload} after {took:?}");
            match result {
                Ok(()) => {
                    assert!(taken.lock().unwrap().contains(&payload), "seed {seed}: {payload} is not there");
                    yes += 1;
                }
                Err(_) => no += 1,
            }
        }
        assert_eq!(yes + no, 600, "seed {seed}");
        all = (all.0 + yes, all.1 + no);
        let rows = || rig.hub.outbox().ledger().into_iter().filter(|r| r.lane == "direct" && r.destination == "upstream/cloud");
        let direct = rows().next().unwrap();
        assert_eq!((direct.accepted, direct.delivered, direct.queued), (yes, yes, 0), "seed {seed}");
        let lane = rig.direct();
        assert_eq!((lane.refused.iter().sum::<u64>(), lane.passing, lane.held_bytes, lane.disk_bytes), (no, 0, 0, 0), "seed {seed}");
        let sent: Vec<String> = uplink.payloads().into_iter().filter(|p| p.len() == 3).collect();
        assert!(sent.windows(2).all(|pair| pair[0] < pair[1]), "seed {seed}: in order, none again");
        until(|| status.snapshot().queued == 0).await;
        stop.send(()).unwrap();
        task.await.unwrap();
    }
    assert!(all.0 > 1_500 && all.1 > 500, "both happen often: {all:?}");
}
