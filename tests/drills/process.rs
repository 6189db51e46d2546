//! The box itself fails.

use std::time::{Duration, Instant};

use selvedge_tests::Node;
use selvedge_tests::proxy::Fault;

use crate::drill::{Drill, PATIENCE, Scene};

/// Small lanes: segments of 128 KiB, so that files begin, end and are removed all the time.
const SMALL: &str = r##"[
    {name: shed, match: ["sensors/shed"], quota: 1MiB, onFull: drop-oldest},
    {name: safe, match: ["sensors/b"], quota: 1MiB, durability: fsync, onFull: reject},
    {name: all, match: ["#"], quota: 1MiB, onFull: reject}]"##;

/// A pause of a random length, at most so many milliseconds.
fn random_pause(s: &mut Scene, most: u64) {
    let ms = s.random.below(most);
    std::thread::sleep(Duration::from_millis(ms));
}

fn random_kills(s: &mut Scene) {
    let rounds = if s.soak { 1_000 } else { 200 };
    for round in 0..rounds {
        // Thirty rounds with a link, thirty without one, thirty with one that drains what came meanwhile.
        s.proxy.set(if round / 30 % 3 == 1 { Fault::Refuse } else { Fault::None });
        random_pause(s, 60);
        s.kill();
        if round % 10 == 9 {
            s.more(60);
        }
    }
    s.proxy.set(Fault::None);
    s.notes.push(format!("{rounds} kills"));
}

/// A backlog grows, and memory does not.
fn backlog(s: &mut Scene) {
    let mib = |s: &Scene| (s.total() as u64 * 4_096) >> 20;
    let most = if s.soak { 1_024 } else { 200 };
    s.proxy.set(Fault::Refuse);
    let mut seen = Vec::new();
    for wanted in [100, most] {
        let end = Instant::now() + Duration::from_secs(300);
        while mib(s) < wanted {
            assert!(Instant::now() < end, "only {} MiB were accepted", mib(s));
            std::thread::sleep(Duration::from_millis(20));
        }
        seen.push(s.subject.resident());
        s.notes.push(format!("{:.1} MiB resident with {wanted} MiB waiting", s.subject.resident() as f64 / 1024.0));
    }
    s.must(seen[1] <= seen[0] + 1_024, || format!("{seen:?} KiB resident: it grows with the backlog"));
    // No more of it: what follows is about a start, and about leaving.
    s.slow_down();
    s.subject.kill();
    let begun = Instant::now();
    s.subject.up();
    s.notes.push(format!("started with it within {} ms", begun.elapsed().as_millis()));
    s.proxy.set(Fault::None);
    s.await_node("the backlog leaves", |node| node.ledger("upstream/cloud", "queued") < 1_000);
}

/// The mode is this one, and `kill -9` does not change that.
fn dies_in(s: &mut Scene, mode: &'static str) {
    let end = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != mode) {
        assert!(Instant::now() < end, "the mode becomes {mode}: after {:?} it was {seen:?}", s.notes);
        let now = s.subject.node().map(Node::mode).unwrap_or_default();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    s.kill();
    let begins_in = s.subject.node().map(Node::mode).unwrap_or_default();
    s.must(begins_in == mode, || format!("killed in {mode}, begun anew in {begins_in}"));
    // In `survive` the lane is full or nearly so: its senders may be refused until there is a link.
    if mode != "survive" {
        s.more(20);
    }
    s.notes.push(mode.to_owned());
}

fn modes(s: &mut Scene) {
    s.proxy.set(Fault::Refuse);
    let (broker, standby) = s.standby.take().expect("the drill asked for a standby");
    standby.set(Fault::Refuse);
    s.begin();
    s.more(20);
    dies_in(s, "bootstrap");
    s.proxy.set(Fault::None);
    dies_in(s, "normal");
    s.proxy.set(Fault::Refuse);
    standby.set(Fault::None);
    dies_in(s, "failover");
    standby.set(Fault::Refuse);
    dies_in(s, "island");
    dies_in(s, "conserve");
    // The lane fills, and its senders wait.
    dies_in(s, "survive");
    s.proxy.set(Fault::None);
    dies_in(s, "recover");
    dies_in(s, "normal");
    standby.set(Fault::None);
    s.standby = Some((broker, standby));
}

pub const DRILLS: &[Drill] = &[
    Drill::new("kill", "kill -9 of the box with a healthy link, 10 times", |s| {
        for n in 0..if s.soak { 200 } else { 10 } {
            s.more(30 + n % 7 * 10);
            s.kill();
        }
    }),
    Drill::new("kill-in-outage", "kill -9 of the box during an outage, 5 times", |s| {
        s.proxy.set(Fault::Refuse);
        for n in 0..if s.soak { 100 } else { 5 } {
            s.more(50 + n % 5 * 20);
            s.kill();
        }
        s.proxy.set(Fault::None);
    }),
    Drill {
        world: |world| world.lanes = SMALL,
        shed: &["shed"],
        rate: 800,
        bytes: 2_000,
        no_peer: Some("it has no lanes; see kill-in-outage"),
        ..Drill::new(
            "kill-anywhere",
            "kill -9 at 200 random moments, with and without a link, lanes of 1 MiB in segments of 128 KiB, 3,200 messages of 2,000 bytes a second",
            random_kills,
        )
    },
    Drill {
        world: |world| {
            world.standby = Some(0);
            world.lanes = r##"[{name: default, match: ["#"], quota: 4MiB, onFull: reject}]"##;
            world.modes = "{islandAfter: 500ms, normalAfter: 500ms, conserveAfter: 4s, highWater: 75%, criticalWater: 90%}";
            world.drain = "{rate: {messages: 1000}}";
        },
        link_first: false,
        rate: 100,
        bytes: 1_000,
        no_peer: Some("it has no modes"),
        ..Drill::new("kill-in-each-mode", "kill -9 in each mode of the box: bootstrap, normal, failover, island, conserve, survive, recover", modes)
    },
    Drill {
        world: |world| world.lanes = r##"[{name: all, match: ["#"], quota: 2GiB, onFull: reject}]"##,
        rate: 100_000,
        bytes: 4_096,
        batch: 100,
        patience: Duration::from_secs(300),
        no_peer: Some("not tried: it keeps what waits in memory"),
        ..Drill::new(
            "backlog",
            "the link is refused until 200 MiB wait (with --soak 1 GiB), in messages of 4 KiB; kill -9; all of it leaves",
            backlog,
        )
    },
    Drill {
        rate: 700,
        ..Drill::new("busy-outage", "the link is refused for 20 s at 2,100 messages a second, kill -9 of the box in the middle", |s| {
            s.proxy.set(Fault::Refuse);
            s.last(10);
            s.kill();
            s.last(10);
            s.proxy.set(Fault::None);
        })
    },
];
