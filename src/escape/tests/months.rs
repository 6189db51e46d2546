//! Links and the box over months of simulated time, with every kind of trouble at random, and the promises that hold at every moment.
//!
//! A failing seed is in the message; `SELVEDGE_SIM_SEED=N cargo test -p selvedge --lib months` runs that one alone, and
//! `SELVEDGE_SIM_SEEDS=N` runs the first N seeds instead of the usual ones.

use super::*;

const SECOND: u64 = 1_000;
const DAY: u64 = 86_400 * SECOND;

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a seed is a number"));
    match (number("SELVEDGE_SIM_SEED"), number("SELVEDGE_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..count,
        (None, None) => 0..usual,
    }
}

/// What the world does to a link for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// The peer takes everything.
    Fine,
    /// It takes everything slowly.
    Slow,
    /// It says "not now" to every record.
    Quota,
    /// No connection is possible.
    Broken(LinkCause),
    /// An operator has closed the link.
    Closed,
}

impl Weather {
    const BROKEN: [LinkCause; 9] = [
        LinkCause::Dns,
        LinkCause::Route,
        LinkCause::Tcp,
        LinkCause::TlsTime,
        LinkCause::TlsTrust,
        LinkCause::Auth,
        LinkCause::Refused,
        LinkCause::Silent,
        LinkCause::PeerError,
    ];

    fn draw(random: &mut SplitMix) -> Self {
        match random.draw() % 10 {
            0..4 => Self::Fine,
            4 => Self::Slow,
            5 => Self::Quota,
            6 => Self::Closed,
            _ => Self::Broken(Self::BROKEN[(random.draw() % 9) as usize]),
        }
    }

    /// From a tenth of a second to some days, short ones as often as long ones.
    fn lasts(random: &mut SplitMix) -> u64 {
        let scale = [SECOND, 20 * SECOND, 300 * SECOND, 7_200 * SECOND, 2 * DAY][(random.draw() % 5) as usize];
        100 + random.draw() % scale
    }
}

/// A link in the world: its machine, and what a forwarder would do with it.
struct Site {
    machine: LinkMachine,
    random: SplitMix,
    weather: Weather,
    until: u64,
    connected: bool,
    /// When the connect that is under way ends.
    connecting: Option<u64>,
    /// When the peer's next answer comes, while something is on its way.
    answer: Option<u64>,
    /// Records that wait.
    queued: u64,
    /// When the last attempt to connect began.
    last_connect: Option<u64>,
    /// When the state or its cause changed, and the weather.
    changed_at: u64,
    since: u64,
    trace: String,
}

impl Site {
    fn new(seed: u64) -> Self {
        let mut site = Self {
            machine: LinkMachine::new(LinkConfig::default(), at(0)),
            random: SplitMix::new(seed),
            weather: Weather::Fine,
            until: 0,
            connected: false,
            connecting: None,
            answer: None,
            queued: 0,
            last_connect: None,
            changed_at: 0,
            since: 0,
            trace: format!("seed {seed}"),
        };
        site.event(0, LinkEvent::Start);
        site
    }

    /// When something happens next, without the weather.
    fn next(&self) -> u64 {
        let due = self.machine.deadline().map(|due| u64::try_from(due.0.as_millis()).unwrap() + 1);
        [due, self.connecting, self.answer].into_iter().flatten().min().unwrap_or(u64::MAX).min(self.until)
    }

    fn event(&mut self, now: u64, event: LinkEvent) {
        let before = self.machine.state();
        let random = self.random.draw();
        let actions = self.machine.step(at(now), event, random);
        let after = self.machine.state();
        let why = || format!("{}, at {now} ms in {:?}: {event:?} in {before:?} gave {actions:?}", self.trace, self.weather);
        for action in &actions {
            match action {
                LinkAction::Connect => {
                    assert!(!self.connected && self.connecting.is_none() && self.weather != Weather::Closed, "connects: {}", why());
                    self.connecting = Some(now + 1 + random % (5 * SECOND));
                    if let Some(last) = self.last_connect.replace(now)
                        && event == LinkEvent::Tick
                    {
                        // The shortest delay is half the first one.
                        assert!(now - last >= 100, "attempts {} ms apart: {}", now - last, why());
                    }
                }
                LinkAction::Probe | LinkAction::Drain => {
                    assert!(self.connected, "sends without a connection: {}", why());
                    self.answer.get_or_insert(now + 1 + random % SECOND);
                }
                LinkAction::Disconnect => {
                    self.connected = false;
                    (self.connecting, self.answer) = (None, None);
                }
                LinkAction::Changed { from, to, .. } => {
                    assert_eq!((*from, *to), (before, after), "{}", why());
                    let allowed = match (from, to) {
                        (LinkState::Down | LinkState::Fenced, LinkState::Draining | LinkState::Degraded) | (LinkState::Up, LinkState::Draining) => {
                            false
                        }
                        (LinkState::Probing, LinkState::Up) => event == LinkEvent::Empty,
                        (LinkState::Draining | LinkState::Degraded | LinkState::Up, LinkState::Probing) => event == LinkEvent::Busy,
                        _ => true,
                    };
                    assert!(allowed, "{}", why());
                    self.changed_at = now;
                }
            }
        }
        // What holds in every state.
        assert_eq!(self.connected, after.is_connected(), "{}", why());
        assert!(!matches!(after, LinkState::Up | LinkState::Draining) || self.machine.cause().is_none(), "{}", why());
        match (self.machine.cause(), after) {
            (Some(cause), LinkState::Fenced) => assert!(fences(cause), "{}", why()),
            (Some(cause), LinkState::Down) => assert!(!fences(cause), "{}", why()),
            (None, LinkState::Fenced | LinkState::Degraded) => panic!("no cause: {}", why()),
            _ => {}
        }
        let longest = match after {
            LinkState::Fenced => 60 * SECOND,
            LinkState::Down | LinkState::Probing => 30 * SECOND,
            _ => 15 * SECOND,
        };
        match self.machine.deadline() {
            Some(due) => assert!(due.since(at(now)) <= Duration::from_millis(longest), "waits too long: {}", why()),
            None => {
                let waits = matches!(after, LinkState::Down | LinkState::Fenced | LinkState::Degraded);
                assert!(!waits || self.connecting.is_some() || self.weather == Weather::Closed, "stuck: {}", why());
            }
        }
    }

    /// Lets the time come.
    fn advance(&mut self, now: u64) {
        self.queued += self.random.draw() % 3;
        if now >= self.until {
            self.change_weather(now);
        }
        if self.connecting.is_some_and(|at| at <= now) {
            self.connecting = None;
            if let Weather::Broken(cause) = self.weather {
                self.event(now, LinkEvent::Lost(cause));
            } else {
                self.connected = true;
                let backlog = self.queued > 0;
                self.event(now, LinkEvent::Connected { backlog });
            }
        }
        if self.answer.is_some_and(|at| at <= now) {
            self.answer = None;
            self.answered(now);
        }
        self.event(now, LinkEvent::Tick);
    }

    fn answered(&mut self, now: u64) {
        match self.weather {
            Weather::Quota => self.event(now, LinkEvent::Busy),
            Weather::Fine | Weather::Slow => {
                self.queued = self.queued.saturating_sub(1 + self.random.draw() % 20);
                self.event(now, LinkEvent::Acknowledged);
                if self.weather == Weather::Slow {
                    self.event(now, LinkEvent::Slow);
                }
                if self.queued == 0 {
                    self.event(now, LinkEvent::Empty);
                } else if self.random.draw().is_multiple_of(4) {
                    self.event(now, LinkEvent::CaughtUp);
                }
            }
            Weather::Broken(_) | Weather::Closed => {}
        }
        if self.connected && !self.machine.is_paused() {
            // Days of a link on which nothing happens are not worth a step each second.
            let pause = match self.machine.state() {
                LinkState::Up => 600 * SECOND,
                LinkState::Degraded => 10 * SECOND,
                _ => SECOND,
            };
            self.answer = Some(now + pause);
        }
    }

    fn change_weather(&mut self, now: u64) {
        let was = self.weather;
        assert!(now - self.since < 200 * SECOND || self.settled(), "{}: {:?} for {} ms left {:?}", self.trace, was, now - self.since, self.machine);
        self.since = now;
        self.weather = Weather::draw(&mut self.random);
        self.until = now + Weather::lasts(&mut self.random);
        if was == Weather::Closed && self.weather != Weather::Closed {
            self.event(now, LinkEvent::Start);
        }
        match self.weather {
            Weather::Closed if was != Weather::Closed => self.event(now, LinkEvent::Close),
            Weather::Broken(cause) if self.connected => self.event(now, LinkEvent::Lost(cause)),
            Weather::Quota | Weather::Slow | Weather::Fine if self.connected && !self.machine.is_paused() => self.answer = Some(now + SECOND),
            _ => {}
        }
    }

    /// The link is in the state that this weather leads to: so it must be once the weather has lasted for the longest back-off, the
    /// attempt after it, and the time in which a link proves itself.
    fn settled(&self) -> bool {
        let state = self.machine.state();
        match self.weather {
            Weather::Fine => state == LinkState::Up || (state == LinkState::Draining && self.queued > 0),
            Weather::Slow => state == LinkState::Degraded,
            Weather::Quota => state == LinkState::Probing,
            Weather::Broken(cause) => state == if fences(cause) { LinkState::Fenced } else { LinkState::Down },
            Weather::Closed => state == LinkState::Fenced,
        }
    }
}

/// Whatever happens, for months: never two connects at a time, delays within their bounds, and each state ends with its reason.
#[test]
fn through_months_of_any_weather_a_link_keeps_its_promises() {
    for seed in seeds(24) {
        let mut site = Site::new(seed);
        let mut now = 0;
        while now < 60 * DAY {
            now = site.next().max(now);
            site.advance(now);
        }
    }
}

/// The box over its links: it is an island when none stands and never long after one does, and outages begin and end in turn.
#[test]
fn through_months_of_any_weather_the_mode_follows_the_links() {
    for seed in seeds(16) {
        let mut sites: Vec<Site> = (0..1 + seed % 3).map(|n| Site::new(seed.wrapping_mul(31).wrapping_add(n))).collect();
        let mut machine = ModeMachine::new(ModeConfig::default(), None, at(0));
        let (mut now, mut look) = (0, 0);
        // Since when the links say the same about the box.
        let (mut said, mut since) = ((false, false), 0);
        let (mut ever, mut in_outage, mut changes, mut episodes) = (false, false, 0u64, 1u64);
        while now < 40 * DAY {
            now = sites.iter().map(Site::next).min().unwrap_or(look).min(look).max(now);
            for site in &mut sites {
                if site.next() <= now {
                    site.advance(now);
                }
            }
            let links: Vec<LinkSight> = sites
                .iter()
                .enumerate()
                .map(|(n, s)| LinkSight { secondary: n == 2, state: s.machine.state(), behind: s.machine.is_behind(), cause: s.machine.cause() })
                .collect();
            let stands = links.iter().any(|l| l.state.stands());
            let normal = links.iter().any(|l| l.state.stands() && !l.behind && !l.secondary);
            ever |= stands;
            if said != (stands, normal) {
                (said, since) = ((stands, normal), now);
                episodes += 1;
            }
            let actions = machine.step(at(now), ModeEvent::Look(&Situation { links: &links, fill_percent: 0, disk_short: false, lane_fails: false }));
            let why = || format!("seed {seed}, at {now} ms: {links:?} {machine:?}");
            for action in &actions {
                match action {
                    ModeAction::OutageBegan(_) => assert!(!std::mem::replace(&mut in_outage, true), "{}", why()),
                    ModeAction::OutageEnded => assert!(std::mem::replace(&mut in_outage, false), "{}", why()),
                    ModeAction::Changed { .. } => changes += 1,
                    ModeAction::Fence(_) => panic!("nobody asked: {}", why()),
                }
            }
            let held = now - since;
            if held > 140 * SECOND && ever {
                assert_eq!(machine.mode().is_island(), !stands, "{}", why());
                assert_eq!(in_outage, !stands, "{}", why());
                assert!(!normal || machine.mode() == Mode::Normal, "{}", why());
            }
            assert!(!stands || !in_outage, "{}", why());
            let lately = sites.iter().map(|s| s.changed_at).max().unwrap_or(0);
            look = now + if now - lately < 200 * SECOND { SECOND } else { 60 * SECOND };
        }
        // Island, conserve, recover, normal: no situation makes more of them.
        assert!(changes <= 4 * episodes, "seed {seed}: {changes} changes in {episodes} situations");
    }
}

/// A link that comes and goes every half minute, for a day: the box stays an island after a few times, and recovers once the link holds.
#[test]
fn a_link_that_flaps_for_a_day_does_not_make_the_box_flap() {
    for (up, down) in [(30, 30), (15, 15), (20, 10), (8, 52), (52, 8), (3, 3)] {
        let mut machine = ModeMachine::new(ModeConfig::default(), None, at(0));
        let mut changes = 0;
        let mut second = 0;
        let mut see = |second: u64, state: LinkState| {
            let links = [LinkSight { secondary: false, state, behind: !state.stands(), cause: None }];
            let actions = machine
                .step(at(second * SECOND), ModeEvent::Look(&Situation { links: &links, fill_percent: 0, disk_short: false, lane_fails: false }));
            changes += actions.iter().filter(|a| matches!(a, ModeAction::Changed { .. })).count();
            (machine.mode(), changes)
        };
        while second < 86_400 {
            see(second, if second % (up + down) < up { LinkState::Up } else { LinkState::Down });
            second += 1;
        }
        let (_, changes) = see(second, LinkState::Up);
        assert!(changes <= 20, "{up} s up, {down} s down: {changes} changes in a day");
        let last = (1..=140).map(|n| see(second + n, LinkState::Up).0).last();
        assert_eq!(last, Some(Mode::Normal), "{up} s up, {down} s down");
    }
}
