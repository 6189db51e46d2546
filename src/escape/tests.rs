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
fn a_peer_that_takes_records_and_closes_over_those_that_it_refuses_is_asked_again_at_once() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    let delays = |link: &mut LinkMachine, proves: bool, refuses: bool| -> Vec<u128> {
        let mut now = 1_000_000;
        let mut one = || {
            link.step(at(now), LinkEvent::Connected { backlog: true }, RANDOM);
            if proves {
                link.step(at(now), LinkEvent::Acknowledged, RANDOM);
            }
            if refuses {
                link.step(at(now), LinkEvent::Refused, RANDOM);
            }
            link.step(at(now), LinkEvent::Lost(LinkCause::PeerError), RANDOM);
            let due = link.deadline().unwrap();
            let delay = due.since(at(now)).as_millis();
            now = u64::try_from(due.0.as_millis()).unwrap();
            link.step(due, LinkEvent::Tick, RANDOM);
            delay
        };
        (0..5).map(|_| one()).collect()
    };
    assert_eq!(delays(&mut link, true, true), [200; 5]);
    assert_eq!(delays(&mut link, false, true), [600, 1_800, 5_400, 16_200, 30_000], "a peer that takes nothing is left in peace");
    assert_eq!(delays(&mut link, true, true)[1..], [200; 4]);
    assert_eq!(delays(&mut link, true, false)[..2], [600, 1_800]);
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
    assert_eq!((link.state(), link.cause()), (LinkState::Degraded, Some(LinkCause::Quota)), "it shows first that it has recovered");
    link.step(at(300), LinkEvent::CaughtUp, RANDOM);
    link.step(at(15_210), LinkEvent::Tick, RANDOM);
    assert_eq!((link.state(), link.cause()), (LinkState::Up, None));
}

#[test]
fn slow_answers_degrade_a_link_until_none_has_been_slow_for_a_while() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    link.step(at(1), LinkEvent::Connected { backlog: true }, RANDOM);
    assert!(link.step(at(2), LinkEvent::Slow, RANDOM).is_empty(), "nothing is proven yet");
    link.step(at(3), LinkEvent::Acknowledged, RANDOM);
    let actions = link.step(at(4), LinkEvent::Slow, RANDOM);
    let changed = LinkAction::Changed { from: LinkState::Draining, to: LinkState::Degraded, cause: Some(LinkCause::Slow) };
    assert_eq!((actions.as_slice(), link.is_behind()), ([changed].as_slice(), true));
    for s in 1..100 {
        assert!(link.step(at(s * 10_000), LinkEvent::Slow, RANDOM).is_empty(), "told once");
        assert!(link.step(at(s * 10_000), LinkEvent::Tick, RANDOM).is_empty());
    }
    assert_eq!(link.step(at(1_005_000), LinkEvent::Tick, RANDOM).len(), 1);
    assert_eq!((link.state(), link.cause()), (LinkState::Draining, None), "the backlog has not gone");
    link.step(at(1_005_001), LinkEvent::Slow, RANDOM);
    link.step(at(1_005_002), LinkEvent::CaughtUp, RANDOM);
    assert_eq!((link.state(), link.is_behind()), (LinkState::Degraded, false));
    link.step(at(1_020_001), LinkEvent::Tick, RANDOM);
    assert_eq!(link.state(), LinkState::Up);
}

#[test]
fn what_waiting_alone_does_not_mend_fences_the_link_and_is_tried_slowly() {
    for cause in [LinkCause::Auth, LinkCause::TlsTime, LinkCause::TlsTrust, LinkCause::Refused] {
        let mut link = link();
        let mut now = 0;
        link.step(at(0), LinkEvent::Start, RANDOM);
        let mut delays = Vec::new();
        for _ in 0..6 {
            link.step(at(now), LinkEvent::Lost(cause), RANDOM);
            assert_eq!((link.state(), link.cause()), (LinkState::Fenced, Some(cause)));
            let due = link.deadline().unwrap();
            delays.push(due.since(at(now)).as_secs());
            now = u64::try_from(due.0.as_millis()).unwrap();
            assert_eq!(link.step(due, LinkEvent::Tick, RANDOM).as_slice(), [LinkAction::Connect]);
        }
        assert_eq!(delays, [1, 3, 9, 27, 30, 30]);
        link.step(at(now), LinkEvent::Lost(LinkCause::Tcp), RANDOM);
        assert_eq!(link.state(), LinkState::Down, "nobody is there who could refuse");
        now += 30_000;
        link.step(at(now), LinkEvent::Tick, RANDOM);
        link.step(at(now), LinkEvent::Connected { backlog: false }, RANDOM);
        assert_eq!((link.state(), link.cause()), (LinkState::Up, None));
    }
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
fn an_operator_closes_a_link_and_opens_it_again() {
    let mut link = link();
    link.step(at(0), LinkEvent::Start, RANDOM);
    link.step(at(1), LinkEvent::Connected { backlog: true }, RANDOM);
    let actions = link.step(at(2), LinkEvent::Close, RANDOM);
    assert_eq!(actions[0], LinkAction::Disconnect);
    assert_eq!((link.state(), link.cause(), link.deadline()), (LinkState::Fenced, Some(LinkCause::Operator), None));
    assert!(link.step(at(3), LinkEvent::Tick, RANDOM).is_empty());
    assert_eq!(link.step(at(4), LinkEvent::Start, RANDOM).as_slice(), [LinkAction::Connect]);
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

mod months;
