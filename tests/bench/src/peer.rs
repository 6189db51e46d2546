//! What is compared, and how each is set up: a listener for devices, everything carried on to one broker in the cloud.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::process::{Process, free_port};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Selvedge as it is without lanes: acknowledged once on disk, at most 20 ms later.
    Durable,
    /// Selvedge with a lane that acknowledges before the disk.
    Memory,
    /// mosquitto as a bridge, storing nothing.
    Mosquitto,
    /// The same with persistence, saved every second.
    MosquittoSaved,
}

impl Peer {
    /// All, in the order of the columns.
    pub const ALL: [Self; 4] = [Self::Durable, Self::Memory, Self::Mosquitto, Self::MosquittoSaved];

    /// On the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Memory => "memory",
            Self::Mosquitto => "mosquitto",
            Self::MosquittoSaved => "mosquitto-saved",
        }
    }

    /// Over the column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Durable => "selvedge",
            Self::Memory => "selvedge, memory lane",
            Self::Mosquitto => "mosquitto",
            Self::MosquittoSaved => "mosquitto, saved every second",
        }
    }
}

/// mosquitto's program.
pub fn mosquitto() -> io::Result<&'static Path> {
    let places = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/bin/mosquitto"];
    places.into_iter().map(Path::new).find(|p| p.exists()).ok_or_else(|| io::Error::other("mosquitto is not installed"))
}

/// No limit on what waits, more in flight than the default 20, no delay by the kernel: the same for the cloud and for the bridge.
const MOSQUITTO: &str = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\nlog_type error\n";

fn start_mosquitto(folder: &Path, config: &str) -> io::Result<Process> {
    std::fs::create_dir_all(folder)?;
    let file = folder.join("mosquitto.conf");
    // Started as root it would become a user who may not write here.
    std::fs::write(&file, format!("user root\n{config}"))?;
    let mut command = Command::new(mosquitto()?);
    command.arg("-c").arg(file);
    Process::start(command, &folder.join("log.txt"))
}

/// The broker in the cloud.
pub struct Cloud {
    /// Where it listens.
    pub port: u16,
    _process: Process,
}

impl Cloud {
    /// Starts it and waits until it accepts.
    pub fn start(folder: &Path) -> io::Result<Self> {
        let port = free_port()?;
        let process = start_mosquitto(folder, &format!("listener {port} 127.0.0.1\n{MOSQUITTO}persistence false\n"))?;
        crate::load::open(port, "probe", Instant::now() + std::time::Duration::from_secs(10))?;
        Ok(Self { port, _process: process })
    }
}

/// A box at the edge: what is measured.
pub struct Edge {
    /// Where devices connect.
    pub port: u16,
    /// What the kernel says about it.
    pub process: Process,
    /// What it stores.
    pub data: PathBuf,
}

impl Edge {
    /// Starts it, toward a cloud at a port where someone may listen or not. Does not wait.
    pub fn start(peer: Peer, selvedge: &Path, folder: &Path, cloud: u16) -> io::Result<Self> {
        let (port, data) = (free_port()?, folder.join("data"));
        std::fs::create_dir_all(&data)?;
        let process = match peer {
            Peer::Durable | Peer::Memory => start_selvedge(peer, selvedge, folder, port, cloud)?,
            Peer::Mosquitto | Peer::MosquittoSaved => {
                let stored = match peer {
                    Peer::MosquittoSaved => format!("persistence true\npersistence_location {}/\nautosave_interval 1\n", data.display()),
                    _ => "persistence false\n".to_owned(),
                };
                let bridge = format!(
                    "connection cloud\naddress 127.0.0.1:{cloud}\ntopic # out 1\nremote_clientid box\ncleansession false\nnotifications false\n\
                     try_private false\nrestart_timeout 1\n"
                );
                start_mosquitto(folder, &format!("listener {port} 127.0.0.1\n{MOSQUITTO}{stored}{bridge}"))?
            }
        };
        Ok(Self { port, process, data })
    }
}

fn start_selvedge(peer: Peer, selvedge: &Path, folder: &Path, port: u16, cloud: u16) -> io::Result<Process> {
    let resources = folder.join("resources");
    std::fs::create_dir_all(&resources)?;
    let lanes = if peer == Peer::Memory { "  lanes:\n    - {name: quick, match: [\"#\"], durability: memory}\n" } else { "" };
    let yaml = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: cloud}}\nspec:\n  type: pubsub.mqtt5\n  version: v1\n  \
         metadata: [{{name: url, value: \"mqtt://127.0.0.1:{cloud}\"}}]\n---\n\
         apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, bind: \"127.0.0.1:{port}\"}}\n---\n\
         apiVersion: selvedge/v1alpha1\nkind: Forwarding\nmetadata: {{name: up}}\nspec:\n  \
         routes:\n    - {{from: local, topics: [\"#\"], to: [cloud]}}\n{lanes}"
    );
    std::fs::write(resources.join("node.yaml"), yaml)?;
    let mut command = Command::new(selvedge);
    command.args(["--app-id", "box", "--resources-path"]).arg(resources).arg("--data-dir").arg(folder.join("data"));
    for name in ["dapr-http-port", "dapr-grpc-port", "metrics-port"] {
        command.arg(format!("--{name}={}", free_port()?));
    }
    Process::start(command, &folder.join("log.txt"))
}
