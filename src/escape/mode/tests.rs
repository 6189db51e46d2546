use proptest::prelude::*;

use super::*;

fn link(state: LinkState) -> LinkSight {
    LinkSight { secondary: false, state, behind: !matches!(state, LinkState::Up | LinkState::Degraded), cause: None }
}

/// A machine and its time, which moves a second per look.
struct Box {
    machine: ModeMachine,
    now: Monotonic,
    actions: Vec<ModeAction>,
}

impl Box {
    fn new() -> Self {
        Self { machine: ModeMachine::new(ModeConfig::default(), None, Monotonic::default()), now: Monotonic::default(), actions: Vec::new() }
    }

    fn event(&mut self, event: ModeEvent<'_>) {
        self.actions.extend(self.machine.step(self.now, event));
    }

    fn look(&mut self, seconds: u64, links: &[LinkSight], fill_percent: u8, disk_short: bool) -> Mode {
        self.sees(seconds, &Situation { links, fill_percent, disk_short, lane_fails: false })
    }

    fn sees(&mut self, seconds: u64, situation: &Situation<'_>) -> Mode {
        for _ in 0..seconds {
            self.now = self.now.plus(Duration::from_secs(1));
            self.event(ModeEvent::Look(situation));
        }
        self.machine.mode()
    }

    fn see(&mut self, seconds: u64, state: LinkState) -> Mode {
        self.look(seconds, &[link(state)], 0, false)
    }
}

#[test]
fn an_outage_from_its_first_second_to_its_last() {
    let mut b = Box::new();
    assert_eq!(b.see(100, LinkState::Down), Mode::Bootstrap, "never reached: no outage, however long");
    assert_eq!(b.see(1, LinkState::Up), Mode::Normal);
    assert_eq!(b.see(5, LinkState::Down), Mode::Normal);
    assert_eq!(b.see(1, LinkState::Down), Mode::Island);
    assert_eq!(b.see(10, LinkState::Probing), Mode::Island, "connected is not yet proved");
    assert_eq!(b.see(1, LinkState::Draining), Mode::Recover);
    assert_eq!(b.see(10, LinkState::Up), Mode::Recover);
    assert_eq!(b.see(1, LinkState::Up), Mode::Normal);
    let began = Monotonic(Duration::from_secs(102));
    let outage: Vec<ModeAction> = b.actions.iter().copied().filter(|a| !matches!(a, ModeAction::Changed { .. })).collect();
    assert_eq!(outage, [ModeAction::OutageBegan(began), ModeAction::OutageEnded]);
}

#[test]
fn a_lane_that_cannot_be_written_for_some_seconds_is_a_matter_of_survival_whatever_the_links_do() {
    let mut b = Box::new();
    b.see(1, LinkState::Up);
    let links = [link(LinkState::Up)];
    let fails = |lane_fails| Situation { links: &links, fill_percent: 1, disk_short: false, lane_fails };
    assert_eq!(b.sees(4, &fails(true)), Mode::Normal, "one sync that failed is not the end");
    assert_eq!(b.sees(1, &fails(false)), Mode::Normal);
    assert_eq!(b.sees(6, &fails(true)), Mode::Survive);
    assert_eq!((b.sees(30, &fails(true)), b.machine.in_outage()), (Mode::Survive, false), "the link stands");
    assert_eq!(b.sees(30, &fails(false)), Mode::Normal);
}

#[test]
fn an_island_saves_after_hours_or_when_much_is_stored_and_survives_when_nearly_full_or_the_disk_is_short() {
    let mut b = Box::new();
    b.see(1, LinkState::Up);
    let down = [link(LinkState::Down)];
    assert_eq!(b.look(6, &down, 0, false), Mode::Island);
    assert_eq!(b.look(6, &down, 70, false), Mode::Conserve);
    assert_eq!(b.look(6, &down, 90, false), Mode::Survive);
    assert_eq!(b.look(10, &down, 10, false), Mode::Survive, "the way back takes longer");
    assert_eq!(b.look(1, &down, 10, false), Mode::Island);
    assert_eq!(b.look(6 * 3_600, &down, 10, false), Mode::Conserve);
    assert_eq!(b.look(1, &down, 10, true), Mode::Survive, "a disk without room does not wait");
    assert_eq!(b.look(1, &[link(LinkState::Up)], 10, true), Mode::Survive, "with a link too");
    assert_eq!(b.look(1, &[link(LinkState::Up)], 10, false), Mode::Recover);
}

#[test]
fn a_secondary_takes_over_and_hands_back_when_the_primary_holds() {
    let (up, down) = (LinkState::Up, LinkState::Down);
    let both = |primary, secondary| [link(primary), LinkSight { secondary: true, ..link(secondary) }];
    let mut b = Box::new();
    assert_eq!(b.look(1, &both(up, up), 0, false), Mode::Normal);
    assert_eq!(b.look(6, &both(down, up), 0, false), Mode::Failover);
    assert_eq!(b.look(10, &both(up, up), 0, false), Mode::Failover);
    assert_eq!(b.look(1, &both(up, up), 0, false), Mode::Normal);
    assert_eq!(b.look(6, &both(down, down), 0, false), Mode::Island);
    assert_eq!(b.look(1, &both(down, up), 0, false), Mode::Failover, "from an island at once");
    assert!(!b.machine.in_outage());
}

#[test]
fn an_operator_closes_the_links_pins_a_mode_and_leaves() {
    let mut b = Box::new();
    b.see(1, LinkState::Up);
    b.event(ModeEvent::Enter);
    assert_eq!(b.actions.last(), Some(&ModeAction::Fence(true)));
    assert_eq!(b.see(1, LinkState::Down), Mode::Island, "at once");
    b.event(ModeEvent::Leave);
    assert_eq!(b.actions.last(), Some(&ModeAction::Fence(false)));
    assert_eq!(b.see(1, LinkState::Up), Mode::Recover);
    b.event(ModeEvent::Pin { mode: Mode::Conserve, lasting: Duration::from_secs(60) });
    assert_eq!(b.see(59, LinkState::Up), Mode::Conserve);
    assert_eq!(b.see(1, LinkState::Up), Mode::Recover);
    assert_eq!(b.see(20, LinkState::Up), Mode::Normal);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut b = Box::new();
    b.see(1, LinkState::Up);
    b.see(5 * 3_600, LinkState::Down);
    b.event(ModeEvent::Enter);
    let saved: SavedMode = serde_json::from_str(&serde_json::to_string(&b.machine.saved(b.now)).unwrap()).unwrap();
    let mut b =
        Box { machine: ModeMachine::new(ModeConfig::default(), Some(saved), Monotonic::default()), now: Monotonic::default(), actions: vec![] };
    assert_eq!((b.machine.mode(), b.machine.in_outage(), b.machine.is_fenced()), (Mode::Island, true, true));
    assert_eq!(b.see(3_602, LinkState::Down), Mode::Conserve, "five hours and one");
    assert!(!b.actions.iter().any(|a| matches!(a, ModeAction::OutageBegan(_))), "the same outage: {:?}", b.actions);
}

#[test]
fn a_link_that_does_not_hold_is_believed_later_each_time_and_at_once_when_it_has_held() {
    let mut b = Box::new();
    b.see(1, LinkState::Up);
    let mut waited = Vec::new();
    for _ in 0..7 {
        b.see(30, LinkState::Down);
        assert_eq!(b.machine.mode(), Mode::Island);
        let mut seconds = 0;
        while b.machine.mode().is_island() {
            b.see(1, LinkState::Up);
            seconds += 1;
        }
        waited.push(seconds - 1);
    }
    assert_eq!(waited, [0, 5, 15, 35, 60, 60, 60]);
    b.see(700, LinkState::Up);
    b.see(30, LinkState::Down);
    assert_eq!(b.see(1, LinkState::Up), Mode::Recover);
}

proptest! {
    /// Whatever the links do, for simulated days: modes change no faster than their holds allow, outages begin and end in turn, and
    /// the mode never says "island" long after a link stands, nor "normal" long after the last one fell.
    #[test]
    fn no_sequence_makes_the_box_flap(steps in proptest::collection::vec((1u64..600, 0u8..6, 0u8..6, 0u8..100, 0u8..20), 1..200)) {
        let states = LinkState::ALL;
        let mut b = Box::new();
        let mut in_outage = false;
        for (seconds, first, second, fill, short) in steps {
            let links = [link(states[usize::from(first)]), LinkSight { secondary: true, ..link(states[usize::from(second)]) }];
            let disk_short = short == 0;
            b.look(seconds, &links, fill, disk_short);
            let stands = links.iter().any(LinkSight::stands);
            // The longest doubt is a minute.
            if seconds > 71 && !disk_short {
                prop_assert_eq!(b.machine.mode().is_island(), !stands && b.machine.ever_connected, "{:?} {:?}", links, b.machine);
                prop_assert_eq!(b.machine.in_outage(), !stands && b.machine.ever_connected);
            }
            if seconds > 142 && !disk_short && links[0].stands() && !links[0].behind {
                prop_assert_eq!(b.machine.mode(), Mode::Normal);
            }
        }
        let mut changes = 0;
        for action in &b.actions {
            match action {
                ModeAction::OutageBegan(_) => { prop_assert!(!in_outage); in_outage = true; }
                ModeAction::OutageEnded => { prop_assert!(in_outage); in_outage = false; }
                ModeAction::Changed { from, to } => { prop_assert_ne!(from, to); changes += 1; }
                ModeAction::Fence(_) => prop_assert!(false, "nobody asked"),
            }
        }
        prop_assert!(changes <= b.now.0.as_secs(), "at most one change a second");
    }
}
