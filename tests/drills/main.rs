//! Drills: what becomes of acknowledged messages while something fails. An independent publisher, sink and proxy keep the books.
//!
//!     drills                   every drill with selvedge; exit code 1 when one does not hold
//!     drills --soak            the same, longer and more often
//!     drills --only NAME       one of them
//!     drills --write           with mosquitto as a bridge beside it; writes docs/drills.md

#![allow(clippy::unwrap_used)] // a failure here is a failed drill

mod subject;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use selvedge_tests::ledger::{Publisher, Sink, Verdict};
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, eventually};
use subject::{Kind, Subject};

/// How long what is missing may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long publishers may take to be served.
const SERVED: Duration = Duration::from_secs(60);
/// Publishers and their rate: 900 messages of 200 bytes a second.
const PUBLISHERS: [&str; 3] = ["a", "b", "c"];
const RATE: u32 = 300;

/// Everything around a box.
struct Scene {
    cloud: Mosquitto,
    accounts: tempfile::TempDir,
    proxy: Proxy,
    subject: Subject,
    publishers: Vec<Publisher>,
    soak: bool,
}

/// One drill: its name, what fails, and how.
struct Drill {
    name: &'static str,
    what: &'static str,
    /// Something that this machine must allow.
    needs: Option<fn() -> bool>,
    /// Messages a second of each publisher.
    rate: u32,
    prepare: fn(&Path),
    run: fn(&mut Scene),
    /// What was set up in the data folder is taken down.
    clean: fn(&Path),
}

impl Drill {
    const fn new(name: &'static str, what: &'static str, run: fn(&mut Scene)) -> Self {
        Self { name, what, needs: None, rate: RATE, prepare: |_| {}, run, clean: |_| {} }
    }
}

fn passwords(folder: &Path, password: &str) {
    let file = folder.join("passwords");
    let made = Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&file).args(["box", password]).output();
    assert!(made.is_ok_and(|m| m.status.success()), "mosquitto_passwd makes a file (Debian package mosquitto)");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
}

impl Scene {
    fn total(&self) -> usize {
        self.publishers.iter().map(Publisher::count).sum()
    }

    /// Waits until that many more messages were acknowledged.
    fn more(&self, n: usize) {
        let from = self.total();
        eventually(SERVED, "publishers are served", || self.total() >= from + n);
    }

    /// The fault for some seconds, then none.
    fn outage(&mut self, fault: Fault, seconds: u64) {
        self.proxy.set(fault);
        self.last(seconds);
        self.proxy.set(Fault::None);
        if fault != Fault::Delay && fault != Fault::Throttle {
            self.proxy.cut();
        }
    }

    /// Lets time pass: the length of a fault is what the drill is about.
    fn last(&self, seconds: u64) {
        std::thread::sleep(Duration::from_secs(if self.soak { seconds * 5 } else { seconds }));
    }

    fn kill(&mut self) {
        self.subject.kill();
        self.subject.up();
    }
}

const DRILLS: &[Drill] = &[
    Drill::new("refuse", "the link is closed, then refused, for 5 s", |s| s.outage(Fault::Refuse, 5)),
    Drill::new("reset", "every connection is reset for 5 s", |s| s.outage(Fault::Reset, 5)),
    Drill::new("black-hole", "the link takes everything and gives nothing for 8 s", |s| s.outage(Fault::Swallow, 8)),
    Drill::new("stall", "the link takes nothing and stays open for 8 s", |s| s.outage(Fault::Stall, 8)),
    Drill::new("frozen-broker", "the broker is stopped (SIGSTOP) for 8 s", |s| {
        s.cloud.signal("STOP");
        s.last(8);
        s.cloud.signal("CONT");
    }),
    Drill::new("delay", "everything takes 2 s longer in each direction, for 8 s", |s| s.outage(Fault::Delay, 8)),
    Drill::new("throttle", "1 KiB/s in each direction for 12 s", |s| s.outage(Fault::Throttle, 12)),
    Drill::new("flap", "the link breaks every 0.3 s, 20 times", |s| {
        for _ in 0..if s.soak { 200 } else { 20 } {
            s.proxy.set(Fault::Refuse);
            std::thread::sleep(Duration::from_millis(150));
            s.proxy.set(Fault::None);
            std::thread::sleep(Duration::from_millis(150));
        }
    }),
    Drill::new("credentials", "the account is revoked for 5 s", |s| {
        passwords(s.accounts.path(), "another");
        s.cloud.reload();
        s.proxy.cut();
        s.last(5);
        passwords(s.accounts.path(), "secret");
        s.cloud.reload();
    }),
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
        rate: 700,
        ..Drill::new("busy-outage", "the link is refused for 20 s at 2,100 messages a second, kill -9 of the box in the middle", |s| {
            s.proxy.set(Fault::Refuse);
            s.last(10);
            s.kill();
            s.last(10);
            s.proxy.set(Fault::None);
        })
    },
    Drill {
        needs: Some(may_mount),
        prepare: |data| assert!(mount(data), "a file system of 24 MiB is mounted"),
        clean: |data| {
            let _ = Command::new("umount").arg("-l").arg(data).status();
        },
        ..Drill::new("disk-full", "the link is down and the file system full (24 MiB tmpfs) for 5 s", |s| {
            s.proxy.set(Fault::Refuse);
            s.more(300);
            let filler = s.subject.data().join("filler");
            let mut file = std::fs::File::create(&filler).unwrap();
            // Until nothing fits any more.
            while std::io::Write::write_all(&mut file, &[0; 64 << 10]).is_ok() {}
            while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
            s.last(5);
            std::fs::remove_file(&filler).unwrap();
            s.proxy.set(Fault::None);
        })
    },
];

fn mount(at: &Path) -> bool {
    Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(at).output().is_ok_and(|o| o.status.success())
}

fn may_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let may = mount(folder.path());
    let _ = Command::new("umount").arg(folder.path()).output();
    may
}

struct Outcome {
    verdict: Verdict,
    /// From the end of the fault to the arrival of what had been acknowledged until then.
    recovery: Option<Duration>,
    resident: u64,
}

impl Outcome {
    fn holds(&self) -> bool {
        self.verdict.missing.is_empty() && self.verdict.disordered.is_empty()
    }
}

fn run(drill: &Drill, kind: Kind, soak: bool) -> Outcome {
    let accounts = tempfile::tempdir().unwrap();
    // mosquitto reads it as its own user when it is started by root.
    std::fs::set_permissions(accounts.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    passwords(accounts.path(), "secret");
    let cloud = Mosquitto::with(&format!("password_file {}\n", accounts.path().join("passwords").display()));
    let proxy = Proxy::to(cloud.port);
    let sink = Sink::start(cloud.port, "sensors/#", "");
    let subject = Subject::start(kind, proxy.port, drill.prepare);
    let data = subject.data();
    let publishers = PUBLISHERS.iter().map(|name| Publisher::start(subject.devices, name, drill.rate)).collect();
    let mut scene = Scene { cloud, accounts, proxy, subject, publishers, soak };
    scene.more(300);
    eventually(SERVED, "the link works before it fails", || sink.arrived().len() >= 300);
    (drill.run)(&mut scene);
    let ended = Instant::now();
    let until_then: BTreeSet<_> = scene.publishers.iter().flat_map(Publisher::acknowledged).collect();
    let mut recovery = None;
    while recovery.is_none() && ended.elapsed() < PATIENCE {
        if until_then.is_subset(&sink.arrived()) {
            recovery = Some(ended.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // Traffic goes on after it, too.
    scene.more(300);
    let resident = scene.subject.resident();
    let acknowledged = std::mem::take(&mut scene.publishers).into_iter().flat_map(Publisher::finish).collect();
    let verdict = sink.close(&acknowledged, if recovery.is_some() { PATIENCE } else { Duration::from_secs(5) });
    scene.subject.check_books();
    drop(scene);
    (drill.clean)(&data);
    Outcome { verdict, recovery, resident }
}

fn cell(outcome: &Outcome) -> String {
    let v = &outcome.verdict;
    let recovery = outcome.recovery.map_or_else(|| "never".to_owned(), |r| format!("{:.1} s", r.as_secs_f64()));
    format!(
        "{} | {} | {} | {} | {recovery} | {:.1}",
        v.acknowledged,
        v.missing.len(),
        v.disordered.len(),
        v.repeated,
        outcome.resident as f64 / 1024.0
    )
}

fn document(rows: &[(&Drill, Outcome, Option<Outcome>)]) -> String {
    let mut text = "# Drills\n\nMade by `cargo run -p selvedge-tests --bin drills -- --write`; `tests/run drills` runs the same with selvedge alone and fails when a message that was acknowledged is missing or \
         comes after a later one of its topic, or a line of the books does not balance. Three devices publish 900 messages of 200 bytes a second (where nothing else is said) with QoS 1 through the box; a sink at a real mosquitto counts \
         what arrives. The peer is mosquitto as a bridge, persistent, saving on every change. Recovery: from the end of the fault until everything that had been acknowledged by then has arrived.\n"
        .to_owned();
    for (title, pick) in [("selvedge", 0), ("mosquitto bridge", 1)] {
        let _ = write!(
            text,
            "\n## {title}\n\n| drill | what fails | acknowledged | missing | out of order | repeated | recovery | MiB resident |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        );
        for (drill, ours, theirs) in rows {
            let outcome = if pick == 0 { Some(ours) } else { theirs.as_ref() };
            let cells = outcome.map_or_else(|| "not run | | | | |".to_owned(), cell);
            let _ = writeln!(text, "| {} | {} | {cells} |", drill.name, drill.what);
        }
    }
    text
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let only = arguments.iter().position(|a| a == "--only").and_then(|at| arguments.get(at + 1));
    let chosen: Vec<&Drill> = DRILLS.iter().filter(|d| only.is_none_or(|o| o == d.name)).collect();
    if chosen.is_empty() {
        eprintln!("drills: no such drill; there are {}", DRILLS.iter().map(|d| d.name).collect::<Vec<_>>().join(", "));
        return ExitCode::from(2);
    }
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for drill in chosen {
        if drill.needs.is_some_and(|needs| !needs()) {
            println!("{:<16} left out: this machine does not let us mount a file system", drill.name);
            continue;
        }
        let ours = run(drill, Kind::Selvedge, has("--soak"));
        println!("{:<16} {}", drill.name, cell(&ours));
        if !ours.holds() || ours.recovery.is_none() {
            let v = &ours.verdict;
            println!("  missing {:?}\n  out of order {:?}", &v.missing[..v.missing.len().min(5)], &v.disordered[..v.disordered.len().min(5)]);
            failed.push(drill.name);
        }
        let theirs = has("--write").then(|| run(drill, Kind::Bridge, has("--soak")));
        if let Some(theirs) = &theirs {
            println!("{:<16} {}   (mosquitto bridge)", "", cell(theirs));
        }
        rows.push((drill, ours, theirs));
    }
    if has("--write") {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/drills.md");
        std::fs::write(&path, document(&rows)).unwrap();
        println!("written: {}", path.display());
    }
    println!("{} drills, {} do not hold {}", rows.len(), failed.len(), failed.join(", "));
    if failed.is_empty() && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
