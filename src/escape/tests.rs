use std::time::Duration;

use super::*;
use crate::component::LinkCause;
use crate::time::Monotonic;

const RANDOM: u64 = u64::MAX; // the longest delay of each draw

fn at(ms: u64) -> Monotonic {
    Monotonic(Duration::from_millis(ms))
}

fn link() -> LinkMachine {
    LinkMachine::new(LinkConfig::default(), at(0))
}

#[test]
fn a_link_with_a_backlog_is_probed_drained_and_up() {
    let mut link = link();
    assert_eq!(link.step(at(0), LinkEvent::Start, RANDOM).as_slice(), [LinkAction::Connect]);
    let actions = link.step(at(10), LinkEvent::Connected { backlog: true }, RANDOM);
    assert_eq!(actions.as_slice(), [LinkAction::Changed { from: LinkState::Down, to: LinkState::Probing, cause: None }, LinkAction::Probe]);
    assert!(link.step(at(11), LinkEvent::CaughtUp, RANDOM).is_empty(), "nothing is proven yet");
    let actions = link.step(at(20), LinkEvent::Acknowledged, RANDOM);
    assert_eq!(actions.as_slice(), [LinkAction::Changed { from: LinkState::Probing, to: LinkState::Draining, cause: None }, LinkAction::Drain]);
    link.step(at(30), LinkEvent::CaughtUp, RANDOM);
    assert_eq!((link.state(), link.since(), link.cause()), (LinkState::Up, at(30), None));
}

#[test]
fn a_link_with_nothing_to_send_is_up_when_the_peer_accepts() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    link.step(at(1), LinkEvent::Connected { backlog: false }, RANDOM);
    assert_eq!(link.state(), LinkState::Up);
}

#[test]
fn delays_grow_to_the_cap_and_start_anew_only_after_a_stable_link() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    let mut now = 0;
    let mut delays = Vec::new();
    for _ in 0..6 {
        link.step(at(now), LinkEvent::Lost(LinkCause::Tcp), RANDOM);
        let due = link.deadline().unwrap();
        delays.push(due.since(at(now)).as_millis());
        assert!(link.step(at(now), LinkEvent::Tick, RANDOM).is_empty(), "not before its time");
        assert_eq!(link.step(due, LinkEvent::Tick, RANDOM).as_slice(), [LinkAction::Connect]);
        now = u64::try_from(due.0.as_millis()).unwrap();
    }
    assert_eq!(delays, [200, 600, 1_800, 5_400, 16_200, 30_000]);

    link.step(at(now), LinkEvent::Connected { backlog: false }, RANDOM);
    link.step(at(now + 14_999), LinkEvent::Lost(LinkCause::PeerError), RANDOM);
    assert_eq!(link.deadline().unwrap().since(at(now + 14_999)), Duration::from_secs(30), "a link that flaps keeps its delay");
    now += 60_000;
    link.step(at(now), LinkEvent::Tick, RANDOM);
    link.step(at(now), LinkEvent::Connected { backlog: false }, RANDOM);
    link.step(at(now + 15_000), LinkEvent::Lost(LinkCause::PeerError), RANDOM);
    assert_eq!(link.deadline().unwrap().since(at(now + 15_000)), Duration::from_millis(200));
}

#[test]
fn a_busy_peer_is_probed_again_on_the_same_connection() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    link.step(at(1), LinkEvent::Connected { backlog: false }, RANDOM);
    let actions = link.step(at(2), LinkEvent::Busy, RANDOM);
    assert_eq!(actions.as_slice(), [LinkAction::Changed { from: LinkState::Up, to: LinkState::Probing, cause: Some(LinkCause::Quota) }]);
    assert!(link.step(at(3), LinkEvent::Acknowledged, RANDOM).is_empty(), "an answer to what was sent before proves nothing");
    assert_eq!(link.step(at(202), LinkEvent::Tick, RANDOM).as_slice(), [LinkAction::Probe]);
    link.step(at(210), LinkEvent::Acknowledged, RANDOM);
    assert_eq!((link.state(), link.cause()), (LinkState::Draining, None));
}

#[test]
fn a_new_cause_of_being_down_is_told_the_same_one_is_not() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    let changed = |a: LinkActions| a.iter().filter(|a| matches!(a, LinkAction::Changed { .. })).count();
    assert_eq!(changed(link.step(at(0), LinkEvent::Lost(LinkCause::Dns), RANDOM)), 1);
    link.step(at(1_000), LinkEvent::Tick, RANDOM);
    assert_eq!(changed(link.step(at(1_000), LinkEvent::Lost(LinkCause::Dns), RANDOM)), 0);
    link.step(at(9_000), LinkEvent::Tick, RANDOM);
    assert_eq!(changed(link.step(at(9_000), LinkEvent::Lost(LinkCause::Auth), RANDOM)), 1);
}

#[test]
fn stop_ends_and_start_begins_again() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    link.step(at(1), LinkEvent::Connected { backlog: true }, RANDOM);
    let actions = link.step(at(2), LinkEvent::Stop, RANDOM);
    assert_eq!(actions[0], LinkAction::Disconnect);
    assert_eq!((link.state(), link.cause(), link.deadline()), (LinkState::Down, Some(LinkCause::Operator), None));
    assert!(link.step(at(3), LinkEvent::Tick, RANDOM).is_empty());
    assert_eq!(link.step(at(4), LinkEvent::Start, RANDOM).as_slice(), [LinkAction::Connect]);
}

/// Random events in simulated time. A failing seed is in the message: put it into `seeds` to replay.
#[test]
fn under_any_events_the_link_keeps_its_promises() {
    let seeds: Vec<u64> = (0..2_000).collect();
    for seed in seeds {
        let mut random = SplitMix::new(seed);
        let mut link = link();
        let mut now = Monotonic::default();
        let (mut connected, mut connecting, mut stopped) = (false, false, true);
        for turn in 0..200 {
            now = now.plus(Duration::from_millis(random.draw() % 20_000));
            let event = match random.draw() % 10 {
                0 => LinkEvent::Start,
                1 => LinkEvent::Connected { backlog: random.draw().is_multiple_of(2) },
                2 => LinkEvent::Lost(LinkCause::Tcp),
                3 => LinkEvent::Lost(LinkCause::PeerError),
                4 => LinkEvent::Acknowledged,
                5 => LinkEvent::Busy,
                6 => LinkEvent::CaughtUp,
                8 => LinkEvent::Empty,
                7 if random.draw().is_multiple_of(8) => LinkEvent::Stop,
                _ => LinkEvent::Tick,
            };
            let before = link.state();
            let actions = link.step(now, event, random.draw());
            let why = format!("seed {seed}, turn {turn}, {event:?} in {before:?} gave {actions:?}");
            match event {
                LinkEvent::Start => stopped = false,
                LinkEvent::Stop => stopped = true,
                _ => {}
            }
            if matches!(event, LinkEvent::Connected { .. }) && connecting {
                (connected, connecting) = (true, false);
            }
            if matches!(event, LinkEvent::Lost(_) | LinkEvent::Stop) {
                (connected, connecting) = (false, false);
            }
            for action in &actions {
                match action {
                    LinkAction::Connect => {
                        assert!(!connected && !connecting && !stopped, "connects twice: {why}");
                        connecting = true;
                    }
                    LinkAction::Probe | LinkAction::Drain => assert!(connected, "sends without a connection: {why}"),
                    LinkAction::Disconnect => {}
                    LinkAction::Changed { from, to, cause } => {
                        assert_eq!((*from, *to), (before, link.state()), "{why}");
                        assert!(*to != LinkState::Down || cause.is_some(), "down without a cause: {why}");
                        let allowed = match (from, to) {
                            (LinkState::Down, LinkState::Draining) => false,
                            (LinkState::Probing, LinkState::Up) => event == LinkEvent::Empty,
                            (LinkState::Up, LinkState::Draining) => false,
                            _ => true,
                        };
                        assert!(allowed, "{why}");
                    }
                }
            }
            assert_eq!(connected, link.state() != LinkState::Down, "{why}");
            assert!(stopped || connected || connecting || link.deadline().is_some(), "stuck: {why}");
            if let Some(due) = link.deadline() {
                assert!(due.since(now) <= Duration::from_secs(30), "{why}");
            }
            assert!(link.cause().is_none() || matches!(link.state(), LinkState::Down | LinkState::Probing), "{why}");
        }
    }
}

#[test]
fn delays_stay_within_their_bounds_for_any_random_numbers() {
    for seed in 0..1_000 {
        let mut random = SplitMix::new(seed);
        let mut backoff = Backoff::new(BackoffConfig::default());
        let mut previous = Duration::from_millis(200);
        for n in 0..50 {
            let delay = backoff.next(random.draw());
            let low = if n == 0 { Duration::from_millis(100) } else { Duration::from_millis(200) };
            let high = if n == 0 { previous } else { (previous * 3).min(Duration::from_secs(30)) };
            assert!((low..=high).contains(&delay), "seed {seed}, delay {n} is {delay:?}, not in {low:?}..={high:?}");
            previous = delay.max(Duration::from_millis(200));
        }
    }
}
