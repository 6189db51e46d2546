//! What is sent, when, in which order, and what comes of the answers.

use super::*;
use crate::escape::Mode;

#[tokio::test(start_paused = true)]
async fn one_record_is_acknowledged_before_the_others_are_sent() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..50);
    let uplink = Scripted::accepting();
    uplink.peer().hold_until = Duration::from_secs(3);
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((uplink.payloads(), status.state()), (numbers(0..1), LinkState::Probing));
    until(|| status.state() == LinkState::Up).await;
    until(|| status.snapshot().acknowledged == 50).await;
    assert_eq!(uplink.payloads(), numbers(0..50));
    let snapshot = status.snapshot();
    assert_eq!((snapshot.sent, snapshot.refused, snapshot.queued, snapshot.connects), (50, 0, 0, 1));
    let metrics = rig.metrics.render();
    for line in [
        "selvedge_link_state{upstream=\"cloud\"} 5",
        "selvedge_forward_acknowledged_total{upstream=\"cloud\"} 50",
        "selvedge_forward_latency_seconds_count{upstream=\"cloud\"} 50",
        "selvedge_link_changes_total{upstream=\"cloud\",cause=\"none\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_is_the_smaller_of_ours_and_the_peers() {
    for (ours, theirs, expected) in [(20, 65_535, 20), (256, 7, 7), (1, 1, 1)] {
        let rig = Rig::new().await;
        rig.accept("cloud", "t", 0..200);
        let uplink = Scripted::accepting();
        uplink.peer().receive_maximum = theirs;
        let (status, _stop, _task) = rig.start(ForwarderConfig { window: ours, ..rig.config() }, &uplink);
        until(|| status.snapshot().acknowledged == 200).await;
        assert_eq!(uplink.peer().most_in_flight, expected);
        assert_eq!(uplink.payloads(), numbers(0..200));
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_data_budget_is_used_up_strict_lanes_alone_are_sent_and_everything_once_there_is_room_again() {
    let rule = LaneRule { lane: "critical".into(), filters: vec!["alarm/#".into()], weight: 1, strict: true };
    let rig = Rig::with(vec![lane("critical")], vec![rule]).await;
    rig.accept("cloud", "t", 0..100);
    let uplink = Scripted::accepting();
    let forwarder =
        Forwarder::new(rig.config(), rig.hub.clone(), Box::new(uplink.clone()), rig.clock.clone(), &ForwardMetrics::register(&rig.metrics));
    let (status, orders) = (forwarder.status(), forwarder.orders());
    orders.send_modify(|o| o.strict_only = true);
    let _task = tokio::spawn(forwarder.run(Box::pin(std::future::pending())));
    until(|| status.state() == LinkState::Up).await;
    for n in 100..110 {
        rig.accept("cloud", "alarm/a", n..n + 1);
        rig.accept("cloud", "t", 1_000 + n..1_001 + n);
        until(|| status.snapshot().acknowledged == u64::from(n - 99)).await;
    }
    assert_eq!(uplink.payloads(), numbers(100..110));
    assert!(status.is_behind() && status.is_paused() && status.state() == LinkState::Up);
    assert_eq!(status.snapshot().queued, 110);
    orders.send_modify(|o| o.strict_only = false);
    until(|| status.snapshot().acknowledged == 120).await;
    assert_eq!(uplink.payloads()[10..110], numbers(0..100));
    until(|| !status.is_behind()).await;
    assert!(status.traffic().sent > 120 * 64 && status.traffic().received == 120 * 64, "estimated, since this uplink does not count");
}

#[tokio::test(start_paused = true)]
async fn a_backlog_leaves_at_the_drains_rate_and_what_comes_after_it_at_once() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..301);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { messages_per_second: Some(100), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, ..rig.config() }, &uplink);
    until(|| status.state() == LinkState::Up).await;
    let took = uplink.peer().sent.last().unwrap().at;
    assert!((Duration::from_millis(2_700)..Duration::from_millis(3_300)).contains(&took), "300 records took {took:?}");
    let before = tokio::time::Instant::now();
    rig.accept("cloud", "t", 301..401);
    until(|| status.snapshot().acknowledged == 401).await;
    assert!(before.elapsed() < Duration::from_millis(500), "live records took {:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_begins_within_its_jitter() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..10);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { jitter: Duration::from_secs(30), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, seed: Some(3), ..rig.config() }, &uplink);
    until(|| status.snapshot().acknowledged == 10).await;
    let sent = uplink.peer().sent.clone();
    let (probe, first) = (sent[0].at, sent[1].at);
    assert!(first - probe > Duration::from_millis(100) && first - probe < Duration::from_secs(31), "{probe:?} {first:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_that_breaks_is_opened_again() {
    let rig = Rig::new().await;
    let uplink = Scripted::accepting();
    uplink.peer().connects.push_back(LinkFailure::new(LinkCause::Dns, "no such name"));
    uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::PeerError, "closed"));
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| uplink.peer().connected_at.len() == 3).await;
    until(|| status.state() == LinkState::Up).await;
    assert_eq!(status.snapshot().connects, 2);
    rig.accept("cloud", "t", 0..1);
    until(|| status.snapshot().acknowledged == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_when_the_link_broke_goes_again_in_order() {
    let rig = Rig::new().await;
    rig.hub.set_mode(Mode::Island);
    rig.accept("cloud", "t", 0..100);
    rig.hub.set_mode(Mode::Normal);
    // The fortieth and all behind it are not answered on the first connection.
    let mut met = 0;
    let uplink = Scripted::new(move |sent| {
        met += usize::from(sent.payload == "39");
        (met != 1).then_some(UplinkOutcome::Accepted)
    });
    uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::Tcp, "reset"));
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.snapshot().acknowledged == 100).await;
    let sent = uplink.peer().sent.clone();
    // As many as the window of a new connection let go, then all that were not answered.
    let first = sent.len() - 61;
    assert!(first > 40);
    assert_eq!(sent.iter().map(|s| s.payload.clone()).collect::<Vec<_>>(), [numbers(0..first as u32), numbers(39..100)].concat());
    assert!(sent.iter().enumerate().all(|(at, s)| s.repeated == (at >= first && at - first < first - 39)));
    let marks: Vec<&str> = sent[first].marks.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(marks, ["selvedge-id", "selvedge-time", "selvedge-delay-ms", "selvedge-mode"]);
    assert_eq!(sent[first].marks[3].1, "island", "the mode is that of its acceptance");
    assert_eq!(sent[39].marks[0], sent[first].marks[0], "a repeat carries the same id");
}

#[tokio::test(start_paused = true)]
async fn silence_breaks_the_link_after_the_stall_time() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..1);
    let mut seen = 0;
    let uplink = Scripted::new(move |_| {
        seen += 1;
        (seen > 1).then_some(UplinkOutcome::Accepted)
    });
    let (mut status, _stop, _task) = rig.start(rig.config(), &uplink);
    while status.snapshot().cause != Some(LinkCause::Silent) {
        assert!(status.changed().await);
    }
    let stalled = tokio::time::Instant::now() - uplink.peer().start;
    assert!((Duration::from_secs(20)..Duration::from_millis(20_500)).contains(&stalled), "{stalled:?}");
    assert!(status.snapshot().detail.contains("1 publishes are unanswered"), "{:?}", status.snapshot());
    until(|| status.snapshot().acknowledged == 1).await;
}

#[tokio::test(start_paused = true)]
async fn not_now_is_probed_with_back_off_on_the_same_connection() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..20);
    let mut refusals = 5;
    let uplink = Scripted::new(move |sent| {
        if sent.payload == "7" && refusals > 0 {
            refusals -= 1;
            return Some(UplinkOutcome::TryLater("quota exceeded".into()));
        }
        Some(UplinkOutcome::Accepted)
    });
    let (status, _stop, _task) = rig.start(ForwarderConfig { window: 1, ..rig.config() }, &uplink);
    until(|| status.snapshot().cause == Some(LinkCause::Quota)).await;
    assert_eq!(status.state(), LinkState::Probing);
    until(|| status.snapshot().acknowledged == 20).await;
    let expected = [numbers(0..7), vec!["7".to_owned(); 5], numbers(7..20)].concat();
    assert_eq!((uplink.payloads(), uplink.peer().connected_at.len()), (expected, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_record_is_set_aside_and_comes_again_only_when_it_is_released() {
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..10);
    let refusing = Arc::new(AtomicBool::new(true));
    let still = refusing.clone();
    let uplink = Scripted::new(move |sent| {
        let refused = sent.payload == "4" && still.load(Ordering::Relaxed);
        Some(if refused { UplinkOutcome::Refused("not authorized".into()) } else { UplinkOutcome::Accepted })
    });
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!((status.snapshot().acknowledged, status.snapshot().refused), (9, 1));
    assert_eq!(uplink.payloads(), numbers(0..10));
    let aside = rig.hub.quarantined(0, 10).await.unwrap();
    let facts = ["upstream", "reason", "topic", "payload", "lane", "recordId"].map(|key| aside[0][key].as_str().unwrap());
    assert_eq!(facts, ["cloud", "not authorized", "t", "4", "default", "test/1764000000/default/5"]);
    assert_eq!(aside.len(), 1);
    // Tried too early it is set aside again; then it goes through, and carries nothing of its stay.
    assert_eq!(rig.hub.release(None, Release::Retry).await, Ok(1));
    until(|| status.snapshot().refused == 2).await;
    refusing.store(false, Ordering::Relaxed);
    let again = rig.hub.quarantined(0, 10).await.unwrap();
    assert_eq!(rig.hub.release(Some(&[again[0]["number"].as_u64().unwrap()]), Release::Retry).await, Ok(1));
    until(|| status.snapshot().acknowledged == 10).await;
    assert!(rig.hub.quarantined(0, 10).await.unwrap().is_empty());
    assert!(uplink.peer().sent.iter().all(|s| s.user.is_empty()));
    for row in rig.hub.outbox().ledger() {
        assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "{row:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_breaks_the_link_again_and_again_is_set_aside_and_the_others_arrive() {
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..10);
    let uplink = Scripted::accepting();
    uplink.peer().poison = Some("4");
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!(status.snapshot().refused, 1);
    let aside = rig.hub.quarantined(0, 10).await.unwrap();
    assert_eq!((aside.len(), aside[0]["payload"].as_str()), (1, Some("4")));
    assert!(aside[0]["reason"].as_str().unwrap().contains("broke"), "{aside:?}");
    let mut arrived: Vec<String> = uplink.payloads();
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived, numbers(0..10));
    // A peer that breaks on everything condemns nobody.
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..3);
    let uplink = Scripted::new(|_| None);
    uplink.peer().breaks = (0..10).map(|_| LinkFailure::new(LinkCause::PeerError, "no")).collect();
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| uplink.peer().breaks.is_empty()).await;
    assert_eq!((status.snapshot().refused, status.snapshot().queued), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_defect_opens_the_link_anew_and_nothing_is_lost() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..10);
    let mut panics = 3;
    let uplink = Scripted::new(move |sent| {
        if sent.payload == "4" && panics > 0 {
            panics -= 1;
            panic!("a defect, as the test wants it");
        }
        Some(UplinkOutcome::Accepted)
    });
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!((status.snapshot().acknowledged, status.snapshot().refused, status.snapshot().connects), (10, 0, 4));
    assert!(rig.metrics.render_text().contains("selvedge_forward_defects_total{upstream=\"cloud\"} 3"), "{}", rig.metrics.render_text());
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_opens_the_window_little_by_little() {
    let rig = Rig::new().await;
    rig.accept("cloud", "t", 0..2_000);
    let uplink = Scripted::accepting();
    let drain = DrainSpec { slow_start: Duration::from_secs(1), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, ..rig.config() }, &uplink);
    until(|| status.snapshot().acknowledged == 2_000).await;
    // A round trip is a millisecond: without a limit all would have left in a few of them.
    let sent: Vec<Duration> = uplink.peer().sent.iter().map(|s| s.at).collect();
    let within = |ms: u64| sent.iter().filter(|at| at.as_millis() <= u128::from(ms) + 5).count();
    assert!(within(10) < 80 && within(20) < 250, "{} after 10 ms, {} after 20 ms", within(10), within(20));
    assert!(uplink.peer().most_in_flight > 20);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_everything_is_asked_once_a_minute_and_keeps_the_rest_stored() {
    let rig = Rig::new().await;
    rig.keep_writing();
    rig.accept("cloud", "t", 0..500);
    let refusing = Arc::new(AtomicBool::new(true));
    let still = refusing.clone();
    let uplink = Scripted::new(move |_| {
        Some(if still.load(Ordering::Relaxed) { UplinkOutcome::Refused("not authorized".into()) } else { UplinkOutcome::Accepted })
    });
    let config = || ForwarderConfig { poison_bytes: 10 * 130, ..rig.config() };
    let (status, stop, task) = rig.start(config(), &uplink);
    until(|| status.state() == LinkState::Fenced).await;
    assert_eq!((status.snapshot().cause, status.snapshot().refused), (Some(LinkCause::Refused), 10));
    tokio::time::sleep(Duration::from_secs(500)).await;
    let refused = status.snapshot().refused;
    assert!((15..60).contains(&refused), "one for each attempt: {refused}");
    stop.send(()).unwrap();
    task.await.unwrap();
    // Another start is no reason to give it ten more.
    let (status, _stop, _task) = rig.start(config(), &uplink);
    until(|| status.state() == LinkState::Fenced).await;
    assert_eq!((status.snapshot().cause, status.snapshot().refused), (Some(LinkCause::Refused), 1));
    let refused = refused + 1;
    refusing.store(false, Ordering::Relaxed);
    until(|| status.state() == LinkState::Up && status.snapshot().queued == 0).await;
    assert_eq!(status.snapshot().acknowledged, 500 - refused);
}

#[tokio::test(start_paused = true)]
async fn slow_and_overdue_answers_degrade_the_link_and_what_is_new_still_counts_as_live() {
    let rig = Rig::new().await;
    let uplink = Scripted::accepting();
    let (status, _stop, _task) = rig.start(rig.config(), &uplink);
    until(|| status.state() == LinkState::Up).await;
    // A quick answer first: without one the link might be far away instead of slow.
    rig.accept("cloud", "t", 0..1);
    until(|| status.snapshot().acknowledged == 1).await;
    let start = uplink.peer().start;
    uplink.peer().hold_until = start.elapsed() + Duration::from_secs(4);
    rig.accept("cloud", "t", 1..2);
    until(|| status.state() == LinkState::Degraded).await;
    assert_eq!((status.snapshot().cause, status.snapshot().acknowledged, status.is_behind()), (Some(LinkCause::Slow), 1, false), "before it comes");
    let overdue = start.elapsed();
    assert!(overdue < Duration::from_secs(2), "{overdue:?}");
    until(|| status.state() == LinkState::Up).await;
    let healed = start.elapsed();
    assert!((Duration::from_secs(19)..Duration::from_millis(19_100)).contains(&healed), "15 s after the slow answer: {healed:?}");
}

#[tokio::test(start_paused = true)]
async fn routes_give_the_topic_and_own_publishes_keep_theirs() {
    let rig = Rig::new().await;
    rig.accept("cloud", "own/topic", 0..1);
    rig.accept("local", "sensors/a", 1..2);
    let route = RouteSpec {
        from: "local".into(),
        topics: vec!["sensors/#".into()],
        to: vec!["cloud".into()],
        prefix: "site7/".into(),
        ..RouteSpec::default()
    };
    let uplink = Scripted::accepting();
    let (status, _stop, _task) = rig.start(ForwarderConfig { routes: vec![route], ..rig.config() }, &uplink);
    until(|| status.snapshot().acknowledged == 2).await;
    let topics: Vec<_> = uplink.peer().sent.iter().map(|s| s.topic.clone()).collect();
    assert_eq!(topics, ["own/topic", "site7/sensors/a"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_answers_two_seconds_at_most() {
    for answered in [true, false] {
        let rig = Rig::new().await;
        let uplink = Scripted::new(move |_| answered.then_some(UplinkOutcome::Accepted));
        let (status, stop, task) = rig.start(rig.config(), &uplink);
        until(|| status.state() == LinkState::Up).await;
        let start = uplink.peer().start;
        uplink.peer().hold_until = start.elapsed() + Duration::from_secs(1);
        rig.accept("cloud", "t", 0..5);
        until(|| status.snapshot().sent == 5).await;
        let begin = tokio::time::Instant::now();
        stop.send(()).unwrap();
        task.await.unwrap();
        let snapshot = status.snapshot();
        if answered {
            assert_eq!((snapshot.acknowledged, snapshot.queued), (5, 0));
            assert!(begin.elapsed() < Duration::from_millis(1_500));
        } else {
            assert_eq!((snapshot.acknowledged, snapshot.queued), (0, 5));
            assert!((Duration::from_secs(2)..Duration::from_millis(2_500)).contains(&begin.elapsed()));
        }
        assert_eq!((snapshot.state, snapshot.cause, uplink.peer().disconnects), (LinkState::Down, Some(LinkCause::Operator), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_connect_and_a_wait_at_once() {
    let rig = Rig::new().await;
    let uplink = Scripted::accepting();
    uplink.peer().connects.extend((0..50).map(|_| LinkFailure::new(LinkCause::Tcp, "refused")));
    let (status, stop, task) = rig.start(rig.config(), &uplink);
    until(|| uplink.peer().connected_at.len() > 5).await;
    let begin = tokio::time::Instant::now();
    stop.send(()).unwrap();
    task.await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(10));
    assert_eq!(status.snapshot().connects, 0);
}

/// A lane that is sent newest first, in segments of about 3,000 records.
async fn newest_first() -> Rig {
    let lane = LaneConfig { order: Order::Newest, quota_bytes: 1 << 20, ..lane("telemetry") };
    let rule = LaneRule { lane: "telemetry".into(), filters: vec!["t".into()], weight: 1, strict: false };
    Rig::with(vec![lane], vec![rule]).await
}

fn accept_all(rig: &Rig, numbers: std::ops::Range<u32>) {
    numbers.clone().step_by(500).for_each(|from| rig.accept("cloud", "t", from..(from + 500).min(numbers.end)));
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_live_records_and_the_newest_leave_first_and_only_what_was_on_its_way_is_marked_as_repeated() {
    let rig = newest_first().await;
    accept_all(&rig, 0..6_000);
    // The hundredth publish and all behind it are not answered on the first connection.
    let (mut met, mut healed) = (0, false);
    let uplink = Scripted::new(move |sent| {
        met += 1;
        healed |= sent.repeated;
        (met < 100 || healed).then_some(UplinkOutcome::Accepted)
    });
    uplink.peer().breaks.push_back(LinkFailure::new(LinkCause::Tcp, "reset"));
    let config = ForwarderConfig { window: 300, drain: DrainSpec { live_share: Some(80), ..DrainSpec::default() }, ..rig.config() };
    let (status, _stop, _task) = rig.start(config, &uplink);
    until(|| uplink.peer().connected_at.len() == 2).await;
    accept_all(&rig, 6_000..6_010);
    until(|| status.snapshot().queued == 0).await;
    let sent: Vec<(u32, bool)> = uplink.peer().sent.iter().map(|s| (s.payload.parse().unwrap(), s.repeated)).collect();
    let first = sent.iter().position(|(_, repeated)| *repeated).unwrap();
    assert!((100..1_000).contains(&first), "{first}");
    // Before the outage: the newest segment, forward.
    assert!((2_500..5_000).contains(&sent[0].0) && sent[..first].windows(2).all(|w| w[1].0 == w[0].0 + 1), "{:?}", &sent[..5]);
    // After it: each of those that were not answered, marked, and none else is; what is live before the oldest.
    let lost: Vec<u32> = sent[99..first].iter().map(|(n, _)| *n).collect();
    let repeated: Vec<u32> = sent.iter().filter(|(_, repeated)| *repeated).map(|(n, _)| *n).collect();
    let mut again = repeated.clone();
    again.sort_unstable();
    assert_eq!(again, lost);
    let at = |n: u32| sent.iter().position(|(m, _)| *m == n).unwrap();
    assert!((6_000..6_010).all(|n| at(n) < first + 400) && at(0) > at(5_999), "{} {}", at(0), at(5_999));
    let all: std::collections::BTreeSet<u32> = sent.iter().map(|(n, _)| *n).collect();
    assert_eq!((all.len(), sent.len()), (6_010, 6_010 + lost.len()));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_breaks_the_link_is_found_among_newer_ones_and_set_aside() {
    let rig = newest_first().await;
    rig.keep_writing();
    accept_all(&rig, 0..5_000);
    let uplink = Scripted::accepting();
    uplink.peer().poison = Some("3300");
    // So slowly that newer ones have come, and gone through, before the link comes to it.
    let drain = DrainSpec { messages_per_second: Some(1_000), ..DrainSpec::default() };
    let (status, _stop, _task) = rig.start(ForwarderConfig { drain, ..rig.config() }, &uplink);
    // There is always something newer that could be tried instead.
    let (mut next, mut polls) = (5_000, 0);
    until(|| {
        polls += 1;
        if polls % 10 == 0 {
            accept_all(&rig, next..next + 1);
            next += 1;
        }
        status.snapshot().refused == 1
    })
    .await;
    until(|| status.snapshot().queued == 0).await;
    assert_eq!((status.snapshot().refused, status.snapshot().acknowledged), (1, u64::from(next) - 1));
    let aside = rig.hub.outbox().ledger().into_iter().find(|r| r.lane == QUARANTINE).map(|r| r.queued);
    assert_eq!(aside, Some(1));
}
