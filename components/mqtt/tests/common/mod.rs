//! A real broker, an independent witness behind it, and the node's side of the way out.
#![allow(dead_code)] // each test binary uses its part

pub mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use selvedge::component::{ComponentContext, MemoryTables, Properties, PubSub, Tables as _};
use selvedge::forward::{ForwardMetrics, Forwarder, ForwarderConfig, ForwarderSnapshot, ForwarderStatus};
use selvedge::hub::Hub;
use selvedge::message::Inbound;
use selvedge::outbox::Outbox;
use selvedge::supervise::Supervisor;
use selvedge::telemetry::Metrics;
use selvedge::time::{Clock, SystemClock};
use selvedge_mqtt::Version;
use tokio::sync::oneshot;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A mosquitto of its own.
pub struct Mosquitto {
    program: PathBuf,
    child: Option<Child>,
    pub dir: tempfile::TempDir,
    pub port: u16,
}

impl Mosquitto {
    fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]).map(|d| d.join("mosquitto")).find(|p| p.is_file());
        if found.is_none() {
            println!("SKIPPED: mosquitto is not installed");
        }
        found
    }

    /// Starts one with these lines in its configuration; `None` where mosquitto is not installed, after saying so.
    pub async fn start(lines: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, "listener PORT 127.0.0.1\nallow_anonymous true", lines).await
    }

    pub async fn start_in(dir: tempfile::TempDir, listener: &str, lines: &str) -> Option<Self> {
        let program = Self::program()?;
        let port = free_port();
        let listener = listener.replace("PORT", &port.to_string());
        let path = dir.path().display().to_string();
        // Started by root, mosquitto would give up the rights to its own folder.
        let config = format!(
            "{listener}\nuser root\npersistence_location {path}/\nmax_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\nlog_dest none\n{lines}"
        );
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Self { program, child: None, dir, port };
        broker.start_again().await;
        Some(broker)
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub async fn start_again(&mut self) {
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                let mut said = String::new();
                self.child.as_mut().unwrap().stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("mosquitto ended with {status}: {said}");
            }
            assert!(start.elapsed() < PATIENCE, "mosquitto does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it in good order: it saves its sessions.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            child.wait().unwrap();
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub async fn restart(&mut self) {
        self.stop();
        self.start_again().await;
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An independent subscriber with a persistent session: `mosquitto_sub`.
pub struct Witness {
    child: Child,
    /// Topic and payload in the order of arrival.
    pub seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Witness {
    pub async fn subscribe(broker: &Mosquitto, filter: &str) -> Self {
        // A retained message shows that the subscription stands: the client writes only messages without delay.
        let port = broker.port.to_string();
        let marked = Command::new("mosquitto_pub").args(["-h", "127.0.0.1", "-p", &port, "-r", "-q", "1", "-t", "witness", "-m", "ready"]).status();
        assert!(marked.unwrap().success());
        let mut child = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-p", &port, "-i", "witness", "-c", "-q", "1", "-t", filter, "-t", "witness", "-F", "%t %p"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ready = Arc::new(Mutex::new(false));
        let (sink, subscribed) = (seen.clone(), ready.clone());
        let output = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match line.split_once(' ').unwrap() {
                    ("witness", _) => *subscribed.lock().unwrap() = true,
                    (topic, payload) => sink.lock().unwrap().push((topic.to_owned(), payload.to_owned())),
                }
            }
        });
        until("the witness is subscribed", || *ready.lock().unwrap()).await;
        Self { child, seen }
    }

    pub async fn wait_for(&self, count: usize) {
        until(&format!("{count} messages are there"), || self.seen.lock().unwrap().len() >= count).await;
    }

    pub async fn wait_for_distinct(&self, count: usize) {
        until(&format!("{count} different messages are there, of {:?}", self.distinct()), || self.distinct() >= count).await;
    }

    fn distinct(&self) -> usize {
        self.seen.lock().unwrap().iter().collect::<BTreeSet<_>>().len()
    }

    /// Holds what arrived against what was accepted: nothing is missing, nothing is strange, each topic is in order. After an outage a
    /// topic may go back to an earlier message, but from there all come again in order; without one (`exactly`) there is no repeat.
    pub fn verify(&self, rig: &Rig, exactly: bool) {
        let mut arrived: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (topic, payload) in self.seen.lock().unwrap().iter() {
            arrived.entry(topic.clone()).or_default().push(payload.trim_end_matches('x').parse().unwrap());
        }
        for (topic, count) in rig.accepted.lock().unwrap().iter() {
            let numbers = arrived.remove(topic).unwrap_or_default();
            check_order(topic, *count, &numbers, exactly);
        }
        assert!(arrived.is_empty(), "topics that nobody published to: {:?}", arrived.keys());
    }
}

/// Whether the numbers 0..count all came, each for the first time in order.
pub fn check_order(topic: &str, count: u64, numbers: &[u64], exactly: bool) {
    let mut next = 0;
    let mut previous = None;
    for n in numbers {
        if *n == next {
            next += 1;
        } else {
            assert!(*n < next, "{topic}: {n} came before {next}");
            assert!(!exactly, "{topic}: {n} came twice");
        }
        // Within a repeat the order holds as well.
        if previous.is_some_and(|p| *n > p + 1) {
            assert!(*n <= next, "{topic}: {n} after {previous:?}");
        }
        previous = Some(*n);
    }
    assert_eq!(next, count, "{topic}: messages are missing");
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node's side: hub, component, forwarder.
pub struct Rig {
    pub hub: Hub,
    pub component: Arc<dyn PubSub>,
    pub accepted: Mutex<BTreeMap<String, u64>>,
    pub metrics: Metrics,
    status: Mutex<Option<ForwarderStatus>>,
    destination: selvedge::outbox::DestinationId,
    clock: Arc<dyn Clock>,
}

pub struct Running {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        let _ = self.stop.send(());
        tokio::time::timeout(Duration::from_secs(5), self.task).await.expect("the forwarder stops within its grace").unwrap();
    }

    /// Ends it as a crash does.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub async fn context(properties: &[(&str, &str)], clock: Arc<dyn Clock>) -> ComponentContext {
    let outbox = Outbox::simulated(&["default"], clock.clone());
    let hub = Hub::new(outbox, Vec::new(), MemoryTables::default().open("retained").await.unwrap(), clock.clone()).await.unwrap();
    ComponentContext {
        name: "cloud".into(),
        type_name: "pubsub.mqtt3".into(),
        version: String::new(),
        app_id: format!("box-{}", free_port()),
        namespace: None,
        properties: properties.iter().copied().collect::<Properties>(),
        data_dir: PathBuf::new(),
        supervisor: Supervisor::new(clock.clone(), &Metrics::new()),
        clock,
        metrics: Metrics::new(),
        hub: Some(hub),
    }
}

pub async fn component(version: Version, properties: &[(&str, &str)]) -> Arc<dyn PubSub> {
    let context = context(properties, Arc::new(SystemClock::new())).await;
    match version {
        Version::V3 => selvedge_mqtt::pubsub_v3(context).await.unwrap(),
        Version::V5 => selvedge_mqtt::pubsub_v5(context).await.unwrap(),
    }
}

impl Rig {
    pub async fn new(version: Version, url: &str) -> Self {
        Self::with(version, &[("url", url)]).await
    }

    pub async fn with(version: Version, properties: &[(&str, &str)]) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let context = context(properties, clock.clone()).await;
        let (hub, metrics) = (context.hub.clone().unwrap(), context.metrics.clone());
        let component = match version {
            Version::V3 => selvedge_mqtt::pubsub_v3(context).await.unwrap(),
            Version::V5 => selvedge_mqtt::pubsub_v5(context).await.unwrap(),
        };
        let destination = hub.destination("upstream/cloud").unwrap();
        hub.bind(destination, "cloud", "#").unwrap();
        Self { hub, component, accepted: Mutex::default(), metrics, status: Mutex::new(None), destination, clock }
    }

    pub fn config(&self) -> ForwarderConfig {
        let mut config = ForwarderConfig::new("cloud", self.destination);
        config.link.backoff.cap = Duration::from_millis(500);
        config
    }

    pub fn forward(&self) -> Running {
        self.forward_with(self.config())
    }

    pub fn forward_with(&self, config: ForwarderConfig) -> Running {
        let uplink = self.component.uplink().unwrap();
        let forwarder = Forwarder::new(config, self.hub.clone(), uplink, self.clock.clone(), &ForwardMetrics::register(&self.metrics));
        *self.status.lock().unwrap() = Some(forwarder.status());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(forwarder.run(Box::pin(async move {
            let _ = stopped.await;
        })));
        Running { stop, task }
    }

    /// Accepts `count` messages, spread over `topics` topics; the payload is the number within the topic, padded to 200 bytes.
    pub fn accept(&self, prefix: &str, topics: u64, count: u64) {
        let mut accepted = self.accepted.lock().unwrap();
        for n in 0..count {
            let topic = format!("{prefix}{}", n % topics);
            let next = accepted.entry(topic.clone()).or_default();
            let payload = format!("{next:x<200}");
            *next += 1;
            // The store says "busy" to one who is faster than its disk.
            while self.hub.accept("cloud", &[Inbound::new(&topic, payload.as_bytes())]).taken == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub fn status(&self) -> ForwarderSnapshot {
        self.status.lock().unwrap().as_ref().unwrap().snapshot()
    }

    pub async fn wait(&self, holds: impl Fn(&ForwarderSnapshot) -> bool) {
        let start = Instant::now();
        while !holds(&self.status()) {
            assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?}; status is {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Delivered according to the outbox.
    pub fn delivered(&self) -> u64 {
        self.hub.outbox().ledger().iter().map(|row| row.delivered).sum()
    }
}
