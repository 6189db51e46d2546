//! Support for whole-node tests: the real binary, a real mosquitto, a small MQTT client of its own, a proxy that breaks links.
//! Everything is started by the test and ends with it.

#![allow(clippy::unwrap_used)] // test support: a failure here is a failed test

pub mod http;
pub mod interposer;
pub mod ledger;
pub mod mqtt;
pub mod mqtt5;
pub mod names;
pub mod proxy;
pub mod yaml;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A port that nobody uses at the moment, below those that the system gives to outgoing connections: none of these may take it before
/// it is bound.
///
/// # Panics
/// When there is none from 20000 to 29999.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 100) as u16 * 100;
    let mut ports = (0..10_000).map(|_| 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("no free port from 20000 to 29999")
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within the time.
pub fn eventually(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether something accepts connections at the port.
#[must_use]
pub fn accepts(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Where mosquitto is.
///
/// # Panics
/// When there is none on this machine.
#[must_use]
pub fn mosquitto_binary() -> &'static str {
    let binary = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"].into_iter().find(|p| Path::new(p).exists());
    binary.expect("mosquitto is installed (tests/run does that)")
}

/// A program as it is started by a wrapping command, which takes it and its arguments and replaces itself by it.
#[must_use]
pub fn wrapped(wrapper: &[String], program: &Path) -> Command {
    match wrapper.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// A number of `/proc/PID/status` in KiB: `VmRSS` (resident), `VmHWM` (the most that it was). 0 when there is no such process.
#[must_use]
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

/// Sends a signal to a process.
///
/// # Panics
/// When it cannot be sent.
pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

/// A process that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real mosquitto.
pub struct Mosquitto {
    /// Its port.
    pub port: u16,
    process: Guard,
    _folder: tempfile::TempDir,
}

impl Mosquitto {
    /// Starts one that takes everybody.
    ///
    /// # Panics
    /// When there is no mosquitto on this machine.
    #[must_use]
    pub fn start() -> Self {
        Self::with("")
    }

    /// Starts one with more lines in its configuration.
    ///
    /// # Panics
    /// When there is no mosquitto on this machine.
    #[must_use]
    pub fn with(more: &str) -> Self {
        Self::run(more, &[], Ipv4Addr::LOCALHOST)
    }

    /// The same by a wrapping command, which leads to another place of the network: there it listens at this address.
    ///
    /// # Panics
    /// When there is no mosquitto on this machine.
    #[must_use]
    pub fn run(more: &str, wrapper: &[String], address: Ipv4Addr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = folder.path().join("mosquitto.conf");
        let bind = if wrapper.is_empty() { "127.0.0.1" } else { "0.0.0.0" };
        let settings = format!("listener {port} {bind}\nallow_anonymous true\nmax_queued_messages 0\nset_tcp_nodelay true\n{more}");
        std::fs::write(&config, settings).unwrap();
        let process =
            wrapped(wrapper, Path::new(mosquitto_binary())).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let this = Self { port, process: Guard(process), _folder: folder };
        eventually(Duration::from_secs(10), "mosquitto accepts", || TcpStream::connect((address, port)).is_ok());
        this
    }

    /// Has it read its files again.
    ///
    /// # Panics
    /// When it cannot be told.
    pub fn reload(&self) {
        self.signal("HUP");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        signal(self.process.0.id(), name);
    }
}

/// Where a node's resources and data are.
pub struct Place {
    folder: tempfile::TempDir,
    /// Flags beside the folders.
    pub flags: Vec<String>,
    /// Environment variables beside those of the test.
    pub environment: Vec<(String, String)>,
    /// A command that starts the node, with its arguments; most often none.
    pub wrapper: Vec<String>,
}

impl Place {
    /// A folder with one YAML file.
    #[must_use]
    pub fn new(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("resources")).unwrap();
        std::fs::write(folder.path().join("resources/node.yaml"), yaml).unwrap();
        let mut flags = Vec::new();
        for name in ["dapr-http-port", "dapr-grpc-port", "metrics-port"] {
            flags.push(format!("--{name}={}", free_port()));
        }
        Self { folder, flags, environment: Vec::new(), wrapper: Vec::new() }
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of YAML.
    #[must_use]
    pub fn resources(&self) -> PathBuf {
        self.folder.path().join("resources")
    }

    /// Writes the YAML anew.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn rewrite(&self, yaml: &str) {
        std::fs::write(self.resources().join("node.yaml"), yaml).unwrap();
    }

    /// Value of a flag given in [`flags`](Self::flags).
    #[must_use]
    pub fn flag(&self, name: &str) -> &str {
        let start = format!("--{name}=");
        self.flags.iter().find_map(|f| f.strip_prefix(&start)).expect("the flag is set")
    }

    /// Starts the node and waits until it is ready.
    #[must_use]
    pub fn start(&self) -> Node {
        Node::start(self)
    }

    /// Starts the node with sockets handed over as systemd does (`NAME=tcp:PORT`, `NAME=udp:PORT`), by a process that holds them and
    /// starts the node again whenever it ends.
    ///
    /// # Panics
    /// When there is no Python.
    #[must_use]
    pub fn activate(&self, sockets: &[String]) -> Node {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("activate.py")]).args(sockets).arg("--").arg(binary());
        Node::launch(self, command)
    }
}

/// A password's hash as the users file has it, made by another implementation.
///
/// # Panics
/// When there is no Python.
#[must_use]
pub fn password_hash(password: &str) -> String {
    let program =
        "import sys,hashlib,base64;print(base64.b64encode(hashlib.pbkdf2_hmac('sha256',sys.argv[1].encode(),b'saltsaltsaltsalt',1000)).decode())";
    let output = Command::new("python3").args(["-c", program, password]).output().unwrap();
    format!("pbkdf2-sha256$1000$c2FsdHNhbHRzYWx0c2FsdA==${}", String::from_utf8(output.stdout).unwrap().trim())
}

/// The gateway's binary, built by `tests/run` before these tests.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn binary() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let path = std::env::var_os("SELVEDGE_BINARY").map_or_else(|| target.join("debug/selvedge"), PathBuf::from);
    assert!(path.exists(), "{} is not there: run `cargo build -p selvedge-gateway` first", path.display());
    path
}

/// A running node.
pub struct Node {
    process: Guard,
    log: Arc<Mutex<Vec<String>>>,
    data: PathBuf,
}

impl Node {
    fn start(place: &Place) -> Self {
        Self::launch(place, wrapped(&place.wrapper, &binary()))
    }

    /// `command` is the binary, or what starts it with the arguments that follow.
    fn launch(place: &Place, mut command: Command) -> Self {
        let mut process = command
            .args(["--app-id", "box", "--resources-path"])
            .arg(place.resources())
            .arg("--data-dir")
            .arg(place.data())
            .args(&place.flags)
            .envs(place.environment.iter().cloned())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (output, lines) = (process.stdout.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let node = Self { process: Guard(process), log, data: place.data() };
        eventually(Duration::from_secs(20), "the node is ready", || {
            assert!(!node.has_logged("Fatal error"), "{}", node.log().join("\n"));
            node.has_logged("dapr initialized")
        });
        node
    }

    /// All lines so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Whether a line holds the text.
    #[must_use]
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|l| l.contains(text))
    }

    /// Asks over the control socket.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let mut stream = std::os::unix::net::UnixStream::connect(self.data.join("control.sock")).unwrap();
        stream.write_all(b"status\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Sum of a column of the ledger for a destination, over all lanes. Checks that every line balances.
    #[must_use]
    pub fn ledger(&self, destination: &str, column: &str) -> u64 {
        let status = self.status();
        let mut sum = 0;
        for row in status["ledger"].as_array().unwrap() {
            let n = |c: &str| row[c].as_u64().unwrap();
            assert_eq!(n("accepted"), n("delivered") + n("expired") + n("evicted") + n("aggregated") + n("queued"), "{row}");
            if row["destination"] == destination {
                sum += n(column);
            }
        }
        sum
    }

    /// State of an upstream's link.
    #[must_use]
    pub fn link(&self, upstream: &str) -> String {
        let status = self.status();
        let found = status["upstreams"].as_array().unwrap().iter().find(|u| u["name"] == upstream).cloned();
        found.map(|u| u["state"].as_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// The mode of the box.
    #[must_use]
    pub fn mode(&self) -> String {
        self.status()["mode"]["mode"].as_str().unwrap_or_default().to_owned()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// The processes of a node that was [activated](Place::activate), the last one being the one that runs.
    #[must_use]
    pub fn starts(&self) -> Vec<u32> {
        self.log().iter().filter_map(|l| l.strip_prefix("activate: pid ")?.parse().ok()).collect()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// SIGTERM; gives the exit code.
    ///
    /// # Panics
    /// When it does not end within 15 s.
    #[must_use]
    pub fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        let mut code = None;
        eventually(Duration::from_secs(15), "the node ends", || match self.process.0.try_wait().unwrap() {
            Some(status) => {
                code = status.code();
                true
            }
            None => false,
        });
        code
    }
}
