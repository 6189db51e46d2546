//! What a drill is, and how one is run: three publishers, a box, a broker, a sink, and between them what fails.

use std::path::Path;
use std::time::{Duration, Instant};

use selvedge_tests::interposer::Interposer;
use selvedge_tests::ledger::{Book, Publisher, Sink, Traffic, Verdict};
use selvedge_tests::names::NameServer;
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Node, eventually, free_port};

use crate::around::{Apart, Certificates, Disk, Need, Shim, WallClock, open_folder, passwords, with_name_server};
use crate::subject::{Kind, Subject, World};

/// How long what is missing may take to arrive.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long publishers may take to be served.
const SERVED: Duration = Duration::from_secs(60);
/// Publishers; together 900 messages of 200 bytes a second.
const PUBLISHERS: [&str; 3] = ["a", "b", "c"];
/// The most memory of its own that selvedge may have had resident, in KiB.
const MOST_RESIDENT: u64 = 8 << 10;

/// How the box reaches the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through a proxy that breaks links.
    Proxy,
    /// Through a proxy, encrypted.
    Tls,
    /// Through a proxy and somebody who answers in the broker's place.
    Interposer,
    /// The broker is in a network of its own, at the end of a cable.
    Cable,
    /// Through a proxy, by a host's name.
    Name,
}

/// Where the box keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// As everything else.
    Plain,
    /// A file system in memory of so many MiB.
    Tmpfs(u32),
    /// ext4 in an image of so many MiB.
    Ext4(u32),
}

/// One drill: its name, what fails, and how.
pub struct Drill {
    pub name: &'static str,
    pub what: &'static str,
    /// Something that this machine must have or allow.
    pub needs: &'static [Need],
    /// Why the peer is left out, when it is.
    pub no_peer: Option<&'static str>,
    /// Messages a second of each publisher, and bytes of each.
    pub rate: u32,
    pub bytes: usize,
    /// Sent before the first acknowledgement is awaited.
    pub batch: u64,
    /// How long what is missing may take to arrive.
    pub patience: Duration,
    pub way: Way,
    pub store: Store,
    /// Its disk can be told to refuse.
    pub shim: bool,
    /// It has a wall clock of its own.
    pub own_clock: bool,
    pub world: fn(&mut World),
    /// Topics of which messages may be given up, as `sensors/NAME`; each has a publisher too.
    pub shed: &'static [&'static str],
    /// Faults begin only when messages have come through the box.
    pub link_first: bool,
    pub run: fn(&mut Scene),
}

impl Drill {
    pub const fn new(name: &'static str, what: &'static str, run: fn(&mut Scene)) -> Self {
        Self {
            name,
            what,
            needs: &[],
            no_peer: None,
            rate: 300,
            bytes: 200,
            batch: 10,
            patience: PATIENCE,
            way: Way::Proxy,
            store: Store::Plain,
            shim: false,
            own_clock: false,
            world: |_| {},
            shed: &[],
            link_first: true,
            run,
        }
    }

    /// What keeps it from running here.
    pub fn hindrance(&self) -> Option<String> {
        self.needs.iter().find_map(|need| need().err())
    }
}

/// Everything around a box.
pub struct Scene {
    pub kind: Kind,
    pub soak: bool,
    pub cloud: Mosquitto,
    pub folder: tempfile::TempDir,
    pub proxy: Proxy,
    pub interposer: Option<Interposer>,
    pub cable: Option<Apart>,
    pub certificates: Option<Certificates>,
    pub names: Option<NameServer>,
    pub disk: Option<Disk>,
    pub shim: Option<Shim>,
    pub clock: Option<WallClock>,
    /// Another broker, which takes over; see [`World::standby`].
    pub standby: Option<(Mosquitto, Proxy)>,
    pub subject: Subject,
    pub sink: Option<Sink>,
    pub publishers: Vec<Publisher>,
    traffic: Traffic,
    patience: Duration,
    shed: &'static [&'static str],
    /// What was seen, for the reader of the table.
    pub notes: Vec<String>,
    /// What does not hold.
    pub problems: Vec<String>,
    /// What may be missing: the peer has acknowledged and forgotten it.
    pub excused: Book,
    pub random: Random,
}

/// Random numbers that can be had again.
pub struct Random(pub u64);

impl Random {
    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}

impl Scene {
    fn new(drill: &Drill, kind: Kind, soak: bool, seed: u64) -> Self {
        let folder = open_folder();
        passwords(folder.path(), "secret");
        let certificates = (drill.way == Way::Tls).then(|| Certificates::new(folder.path()));
        let cable = (drill.way == Way::Cable).then(|| Apart::new().unwrap());
        let tls_port = free_port();
        let accounts = format!("password_file {}\n", folder.path().join("passwords").display());
        let tls = certificates.as_ref().map(|c| c.listener(tls_port)).unwrap_or_default();
        let cloud = match &cable {
            None => Mosquitto::with(&format!("{accounts}{tls}")),
            Some(cable) => Mosquitto::run(&accounts, &cable.wrapper(), cable.clean()),
        };
        let interposer = (drill.way == Way::Interposer).then(|| Interposer::to(cloud.port));
        let proxy = Proxy::to(match (&interposer, &certificates) {
            (Some(interposer), _) => interposer.port,
            (_, Some(_)) => tls_port,
            _ => cloud.port,
        });
        let mut world = World::at(proxy.port);
        world.ca = certificates.as_ref().map(Certificates::ca_path);
        if let Some(cable) = &cable {
            (world.host, world.port) = (cable.lossy().to_string(), cloud.port);
        }
        let names = (drill.way == Way::Name).then(|| NameServer::start().unwrap());
        (drill.world)(&mut world);
        let standby = world.standby.map(|_| {
            let broker = Mosquitto::start();
            let proxy = Proxy::to(broker.port);
            (broker, proxy)
        });
        world.standby = standby.as_ref().map(|(_, proxy)| proxy.port);
        let mut sink = match &cable {
            None => Sink::start(cloud.port, "sensors/#", ""),
            Some(cable) => Sink::at((cable.clean(), cloud.port).into(), "sensors/#", ""),
        };
        if let Some((broker, _)) = &standby {
            sink.also(([127, 0, 0, 1], broker.port).into(), "sensors/#", "");
        }
        if names.is_some() {
            "cloud.drill".clone_into(&mut world.host);
        }
        let mut subject = Subject::new(kind, &world);
        if let Some(names) = &names {
            subject.wrapper = with_name_server(folder.path(), &names.address);
        }
        let disk = match drill.store {
            Store::Plain => None,
            Store::Tmpfs(mib) => Some(Disk::tmpfs(&subject.data(), mib).unwrap()),
            Store::Ext4(mib) => Some(Disk::ext4(folder.path(), &subject.data(), mib).unwrap()),
        };
        let shim = drill.shim.then(|| Shim::new(folder.path()));
        let clock = drill.own_clock.then(|| WallClock::new(folder.path()));
        subject.environment.extend(shim.as_ref().map(|s| s.environment(&subject.data())).unwrap_or_default());
        subject.environment.extend(clock.as_ref().map(WallClock::environment).unwrap_or_default());
        Self {
            kind,
            soak,
            cloud,
            folder,
            proxy,
            interposer,
            cable,
            certificates,
            names,
            disk,
            shim,
            clock,
            standby,
            subject,
            sink: Some(sink),
            publishers: Vec::new(),
            traffic: Traffic { rate: drill.rate, bytes: drill.bytes, batch: drill.batch },
            patience: drill.patience,
            shed: drill.shed,
            notes: Vec::new(),
            problems: Vec::new(),
            excused: Book::default(),
            random: Random(seed),
        }
    }

    /// Starts the box, and what is published through it.
    pub fn begin(&mut self) {
        self.subject.up();
        let names = PUBLISHERS.iter().chain(self.shed);
        self.publishers = names.map(|name| Publisher::with(self.subject.devices, name, self.traffic)).collect();
    }

    /// From now on publishers send a tenth of what is usual.
    pub fn slow_down(&self) {
        self.publishers.iter().for_each(|publisher| publisher.set_rate(30));
    }

    pub fn sink(&self) -> &Sink {
        self.sink.as_ref().expect("it is closed at the end only")
    }

    pub fn total(&self) -> usize {
        self.publishers.iter().map(Publisher::count).sum()
    }

    /// Waits until that many more messages were acknowledged.
    pub fn more(&self, n: usize) {
        let from = self.total();
        eventually(SERVED, "publishers are served", || self.total() >= from + n);
    }

    /// Waits until that many more messages have arrived.
    pub fn arrive(&self, n: u64) {
        let from = self.sink().count();
        eventually(PATIENCE, "messages arrive", || self.sink().count() >= from + n);
    }

    /// The fault for some seconds, then none.
    pub fn outage(&mut self, fault: Fault, seconds: u64) {
        self.proxy.set(fault);
        self.last(seconds);
        self.proxy.set(Fault::None);
        if !matches!(fault, Fault::Delay | Fault::LongDelay | Fault::Throttle) {
            self.proxy.cut();
        }
    }

    /// Lets time pass: the length of a fault is what the drill is about.
    pub fn last(&self, seconds: u64) {
        self.last_ms(seconds * 1000);
    }

    /// The same in milliseconds.
    pub fn last_ms(&self, ms: u64) {
        std::thread::sleep(Duration::from_millis(if self.soak { ms * 5 } else { ms }));
    }

    pub fn kill(&mut self) {
        self.subject.kill();
        self.subject.up();
    }

    /// For selvedge: what must hold.
    pub fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.kind == Kind::Selvedge {
            self.problems.push(what());
        }
    }

    /// For selvedge: waits until the condition holds.
    pub fn await_node(&self, what: &str, mut condition: impl FnMut(&Node) -> bool) {
        if let Some(node) = self.subject.node() {
            eventually(self.patience, what, || condition(node));
        }
    }

    /// For selvedge: the cause that the link's status names is this one, in time.
    pub fn await_cause(&self, cause: &str) {
        let mut seen = String::new();
        let is = |node: &Node| {
            let status = node.status();
            let cloud = status["upstreams"].as_array().and_then(|all| all.iter().find(|u| u["name"] == "cloud"));
            seen = format!("{:?}", cloud.map(|u| (&u["state"], &u["cause"], &u["detail"])));
            cloud.is_some_and(|u| u["cause"] == cause)
        };
        if let Some(node) = self.subject.node() {
            let end = Instant::now() + PATIENCE;
            let mut is = is;
            while !is(node) {
                assert!(Instant::now() < end, "the link is down with the cause {cause}: {seen}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the drill asked for a disk")
    }

    pub fn shim(&self) -> &Shim {
        self.shim.as_ref().expect("the drill asked for a disk that refuses")
    }

    pub fn clock(&self) -> &WallClock {
        self.clock.as_ref().expect("the drill asked for a clock")
    }

    pub fn cable(&self) -> &Apart {
        self.cable.as_ref().expect("the drill asked for a cable")
    }

    pub fn interposer(&self) -> &Interposer {
        self.interposer.as_ref().expect("the drill asked for an interposer")
    }

    pub fn names(&self) -> &NameServer {
        self.names.as_ref().expect("the drill asked for a name server")
    }

    /// The certificate that the broker shows from now on.
    pub fn certificate(&self, valid: crate::around::Valid) {
        self.certificates.as_ref().expect("the drill asked for certificates").issue(valid);
        self.cloud.reload();
        self.proxy.cut();
    }

    /// For selvedge: every line of its books balances.
    fn check_books(&mut self) {
        let Some(node) = self.subject.node() else { return };
        let status = node.status();
        let mut wrong = Vec::new();
        for row in status["ledger"].as_array().into_iter().flatten() {
            let n = |column: &str| row[column].as_u64().unwrap_or_default();
            if n("accepted") != n("delivered") + n("expired") + n("evicted") + n("aggregated") + n("queued") {
                wrong.push(format!("the books do not balance: {row}"));
            }
        }
        self.problems.append(&mut wrong);
    }

    /// For selvedge: how many messages the books say are given up.
    pub fn given_up(&self) -> u64 {
        self.subject.node().map_or(0, |node| node.ledger("upstream/cloud", "evicted") + node.ledger("upstream/cloud", "expired"))
    }
}

/// What came of a drill.
pub struct Outcome {
    pub verdict: Verdict,
    pub recovery: Option<Duration>,
    /// KiB of its own, at the end and at the most.
    pub resident: u64,
    pub peak: u64,
    pub notes: Vec<String>,
    pub problems: Vec<String>,
}

impl Outcome {
    /// Whether everything that must hold does.
    pub fn holds(&self) -> bool {
        self.verdict.missing.is_empty() && self.verdict.disordered.is_empty() && self.problems.is_empty() && self.recovery.is_some()
    }
}

/// Runs a drill with a box.
pub fn run(drill: &Drill, kind: Kind, soak: bool, seed: u64) -> Outcome {
    let mut scene = Scene::new(drill, kind, soak, seed);
    if drill.link_first {
        scene.begin();
        scene.more(300);
        eventually(SERVED, "the link works before it fails", || scene.sink().count() >= 300);
    }
    (drill.run)(&mut scene);
    let ended = Instant::now();
    let wanted = |book: Book, scene: &Scene| {
        let mut book = book;
        for topic in drill.shed {
            book.remove(&format!("sensors/{topic}"));
        }
        let excused: Book = scene.excused.clone();
        (book, excused)
    };
    let until_then: Book = scene.publishers.iter().flat_map(Publisher::acknowledged).collect();
    let (until_then, excused) = wanted(until_then, &scene);
    let mut recovery = None;
    while recovery.is_none() && ended.elapsed() < drill.patience {
        let there = if excused.is_empty() {
            scene.sink().has(&until_then)
        } else {
            until_then.without(&scene.sink().arrived()).iter().all(|(topic, n)| excused.of(topic).contains(*n))
        };
        if there {
            recovery = Some(ended.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // Traffic goes on after it, too.
    scene.more(300);
    let acknowledged: Book = std::mem::take(&mut scene.publishers).into_iter().flat_map(Publisher::finish).collect();
    let (kept, excused) = wanted(acknowledged.clone(), &scene);
    let sink = scene.sink.take().expect("it is open until now");
    if recovery.is_some() {
        let end = Instant::now() + drill.patience;
        let is_there = |sink: &Sink| kept.without(&sink.arrived()).iter().all(|(topic, n)| excused.of(topic).contains(*n));
        while !is_there(&sink) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        scene.await_node("the books close", |node| node.ledger("upstream/cloud", "queued") == 0);
    }
    let resident = scene.subject.resident();
    let mut verdict = sink.close(&Book::default(), Duration::ZERO);
    let arrived = std::mem::take(&mut verdict.book);
    verdict.acknowledged = acknowledged.len();
    let (mut missing, mut shed) = (Vec::new(), 0);
    for (topic, n) in acknowledged.without(&arrived) {
        if drill.shed.iter().any(|s| topic == format!("sensors/{s}")) {
            shed += 1;
        } else if !excused.of(&topic).contains(n) {
            missing.push((topic, n));
        }
    }
    verdict.missing = missing;
    // Where the first copy of a message was lost before its sender had an answer, the sender's repeat comes behind what was sent with it.
    let late = verdict.disordered.len();
    verdict.disordered.retain(|(topic, n)| !excused.of(topic).contains(*n));
    let late = late - verdict.disordered.len();
    if late > 0 {
        scene.notes.push(format!("{late} messages came with their senders' repeats, after later ones"));
    }
    if shed > 0 {
        let told = scene.given_up();
        scene.must(shed <= told, || format!("{shed} messages were given up, the books tell of {told}"));
        scene.notes.push(format!("{shed} given up as configured, the books tell of {told}"));
    }
    scene.check_books();
    let peak = scene.subject.peak();
    scene.must(peak <= MOST_RESIDENT, || format!("{peak} KiB of its own were resident, at most {MOST_RESIDENT} may be"));
    Outcome { verdict, recovery, resident, peak, notes: std::mem::take(&mut scene.notes), problems: std::mem::take(&mut scene.problems) }
}

/// Where the repository is.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in a folder of it")
}
