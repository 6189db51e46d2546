//! The measurements: what is started, what is sent, what is read off.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::load::{self, Load, Plan};
use crate::peer::{Cloud, Edge, Peer};
use crate::process;
use crate::sink::Sink;
use crate::{gate, peer};

/// Payload, in bytes.
pub const SIZE: usize = 200;
/// Messages that wait while the cloud is away.
pub const QUEUED: u64 = 100_000;
/// Messages per second where delays are measured.
pub const CALM: u32 = 2_000;

/// A part of the run that can be asked for alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// As fast as it goes at 1, 10 and 100 connections.
    Throughput,
    /// Delays at a calm rate.
    Latency,
    /// The cloud is away, then comes back.
    Queue,
    /// From exec to the first CONNACK.
    Start,
    /// Doing nothing; and the program's size.
    Idle,
}

impl Part {
    /// All, in the order of the rows.
    pub const ALL: [Self; 5] = [Self::Throughput, Self::Latency, Self::Queue, Self::Start, Self::Idle];

    /// On the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Queue => "queue",
            Self::Start => "start",
            Self::Idle => "idle",
        }
    }
}

/// One measured quantity: every reading of every peer.
#[derive(Debug, Clone)]
pub struct Row {
    /// What and in which unit.
    pub what: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// Readings, one per round.
    pub readings: BTreeMap<Peer, Vec<f64>>,
}

/// The run.
pub struct Bench {
    data: PathBuf,
    selvedge: PathBuf,
    peers: Vec<Peer>,
    quick: bool,
    epoch: Instant,
    runs: u32,
    rows: Vec<Row>,
}

impl Bench {
    /// `data`: a folder on the disk that is meant; `selvedge`: the program.
    pub fn new(data: PathBuf, selvedge: PathBuf, peers: Vec<Peer>, quick: bool) -> Self {
        Self { data, selvedge, peers, quick, epoch: Instant::now(), runs: 0, rows: Vec::new() }
    }

    /// What was read off so far.
    pub fn rows(self) -> Vec<Row> {
        self.rows
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { 5 }
    }

    fn book(&mut self, what: &'static str, digits: usize, peer: Peer, value: f64) {
        let at = self.rows.iter().position(|r| r.what == what).unwrap_or_else(|| {
            self.rows.push(Row { what, digits, readings: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[at].readings.entry(peer).or_default().push(value);
        println!("{:<48} {:<16} {value:.digits$}", what, peer.name());
    }

    /// A folder that nobody has used.
    fn folder(&mut self) -> PathBuf {
        self.runs += 1;
        self.data.join(self.runs.to_string())
    }

    /// Measures one part, its rounds with the peers in turn.
    ///
    /// # Errors
    /// What keeps a measurement from being made: a peer that does not start, messages that do not arrive.
    pub fn part(&mut self, part: Part) -> io::Result<()> {
        for _ in 0..self.rounds() {
            for peer in self.peers.clone() {
                match part {
                    Part::Throughput => {
                        for (connections, rate, cpu) in [
                            (1, "throughput, 1 connection (1/s)", "processor time, 1 connection (s per 100k)"),
                            (10, "throughput, 10 connections (1/s)", "processor time, 10 connections (s per 100k)"),
                            (100, "throughput, 100 connections (1/s)", "processor time, 100 connections (s per 100k)"),
                        ] {
                            self.throughput(peer, connections, rate, cpu)?;
                        }
                    }
                    Part::Latency => self.latency(peer)?,
                    Part::Queue => self.queue(peer)?,
                    Part::Start => self.start(peer)?,
                    Part::Idle => self.idle(peer)?,
                }
            }
        }
        Ok(())
    }

    fn plan(&mut self) -> Plan {
        self.runs += 1;
        Plan { run: self.runs, size: SIZE, count: u64::MAX, time: Duration::from_secs(3600), rate: None }
    }

    fn throughput(&mut self, peer: Peer, connections: u32, rate: &'static str, cpu: &'static str) -> io::Result<()> {
        let folder = self.folder();
        let cloud = Cloud::start(&folder.join("cloud"))?;
        let edge = Edge::start(peer, &self.selvedge, &folder.join("edge"), cloud.port)?;
        let sink = Sink::start(cloud.port, self.epoch)?;
        let mut load = Load::connect(edge.port, connections, self.epoch)?;
        let warm = Plan { count: 2_000, ..self.plan() };
        sink.begin(warm.run, false);
        sink.wait(&load.run(warm)?.each)?;

        let plan = Plan { time: Duration::from_secs(if self.quick { 1 } else { 4 }), ..self.plan() };
        sink.begin(plan.run, false);
        let before = edge.process.cpu()?;
        let sent = load.run(plan)?;
        let arrived = sink.wait(&sent.each)?;
        let used = edge.process.cpu()? - before;
        let seconds = (arrived.last_ns.max(sent.span_ns.1) - sent.span_ns.0) as f64 / 1e9;
        self.book(rate, 0, peer, sent.total() as f64 / seconds);
        self.book(cpu, 2, peer, used / sent.total() as f64 * 1e5);
        Ok(())
    }

    fn latency(&mut self, peer: Peer) -> io::Result<()> {
        let folder = self.folder();
        let cloud = Cloud::start(&folder.join("cloud"))?;
        let edge = Edge::start(peer, &self.selvedge, &folder.join("edge"), cloud.port)?;
        let sink = Sink::start(cloud.port, self.epoch)?;
        let mut load = Load::connect(edge.port, 10, self.epoch)?;
        let warm = Plan { time: Duration::from_secs(1), rate: Some(CALM), ..self.plan() };
        sink.begin(warm.run, true);
        sink.wait(&load.run(warm)?.each)?;

        let plan = Plan { time: Duration::from_secs(if self.quick { 1 } else { 6 }), rate: Some(CALM), ..self.plan() };
        sink.begin(plan.run, true);
        let before = edge.process.cpu()?;
        let sent = load.run(plan)?;
        let mut delays = sink.wait(&sent.each)?.delays_ns;
        let used = edge.process.cpu()? - before;
        delays.sort_unstable();
        let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize] as f64 / 1e6;
        self.book("end to end at 2,000/s, p50 (ms)", 3, peer, at(0.5));
        self.book("end to end at 2,000/s, p99 (ms)", 3, peer, at(0.99));
        self.book("processor time at 2,000/s (s per 100k)", 2, peer, used / sent.total() as f64 * 1e5);
        Ok(())
    }

    fn queue(&mut self, peer: Peer) -> io::Result<()> {
        let folder = self.folder();
        let away = process::free_port()?;
        let edge = Edge::start(peer, &self.selvedge, &folder.join("edge"), away)?;
        let mut load = Load::connect(edge.port, 10, self.epoch)?;
        let (_, idle) = edge.process.resident()?;
        let written = edge.process.written()?;
        let plan = Plan { count: if self.quick { QUEUED / 10 } else { QUEUED }, ..self.plan() };
        let sent = load.run(plan)?;
        // A saver by the second has had its turn.
        if peer == Peer::MosquittoSaved {
            let until = Instant::now() + Duration::from_secs(20);
            while process::disk(&edge.data)? < (sent.total() * SIZE as u64) as f64 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let per = |bytes: f64| bytes / sent.total() as f64;
        let (resident, anonymous) = edge.process.resident()?;
        self.book("resident, 100k queued (MB)", 1, peer, resident / 1e6);
        self.book("memory per queued message (B)", 0, peer, per((anonymous - idle).max(0.0)));
        self.book("on disk per queued message (B)", 0, peer, per(process::disk(&edge.data)?));
        self.book("written per queued message (B)", 0, peer, per(edge.process.written()? - written));

        let cloud = Cloud::start(&folder.join("cloud"))?;
        let sink = Sink::start(cloud.port, self.epoch)?;
        sink.begin(plan.run, false);
        gate::open(away, cloud.port)?;
        let arrived = sink.wait(&sent.each)?;
        let seconds = (arrived.last_ns - arrived.first_ns) as f64 / 1e9;
        self.book("drain after the outage (1/s)", 0, peer, sent.total() as f64 / seconds);
        Ok(())
    }

    fn start(&mut self, peer: Peer) -> io::Result<()> {
        let cloud = Cloud::start(&self.folder().join("cloud"))?;
        for _ in 0..5 {
            let folder = self.folder();
            let begun = Instant::now();
            let edge = Edge::start(peer, &self.selvedge, &folder, cloud.port)?;
            load::open(edge.port, "first", begun + Duration::from_secs(10))?;
            self.book("exec to the first CONNACK (ms)", 1, peer, begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(())
    }

    fn idle(&mut self, peer: Peer) -> io::Result<()> {
        let folder = self.folder();
        let cloud = Cloud::start(&folder.join("cloud"))?;
        let sink = Sink::start(cloud.port, self.epoch)?;
        let edge = Edge::start(peer, &self.selvedge, &folder.join("edge"), cloud.port)?;
        // Up to the cloud and through: everything that an idle box has in memory is there.
        let mut load = Load::connect(edge.port, 1, self.epoch)?;
        let plan = Plan { count: 1, ..self.plan() };
        sink.begin(plan.run, false);
        sink.wait(&load.run(plan)?.each)?;
        drop(load);
        let (resident, anonymous) = edge.process.resident()?;
        self.book("resident, idle (MB)", 2, peer, resident / 1e6);
        self.book("of it not backed by a file (MB)", 2, peer, anonymous / 1e6);
        let program = match peer {
            Peer::Durable | Peer::Memory => self.selvedge.as_path(),
            Peer::Mosquitto | Peer::MosquittoSaved => peer::mosquitto()?,
        };
        self.book("program, libraries not counted (MB)", 2, peer, std::fs::metadata(program)?.len() as f64 / 1e6);
        Ok(())
    }
}
