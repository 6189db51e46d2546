//! The boxes that are drilled: selvedge, and mosquitto as a bridge.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use selvedge_tests::{Node, Place, accepts, eventually, free_port, memory, mosquitto_binary, wrapped};

/// Which box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Selvedge,
    /// mosquitto that keeps what it has and saves every change.
    Bridge,
}

/// What a box is told about the world.
#[derive(Debug, Clone)]
pub struct World {
    /// Where its upstream is.
    pub host: String,
    pub port: u16,
    /// Who has signed the upstream's certificate; plain without it.
    pub ca: Option<PathBuf>,
    /// Another upstream, which stands in when the first one is down. Only selvedge has that.
    pub standby: Option<u16>,
    pub lanes: &'static str,
    pub stall: &'static str,
    /// `modes` of the policy.
    pub modes: &'static str,
    /// `drain` of the forwarding.
    pub drain: &'static str,
}

impl World {
    /// An upstream at a port of this machine.
    pub fn at(port: u16) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port,
            ca: None,
            standby: None,
            lanes: r##"[{name: all, match: ["#"], quota: 512MiB, onFull: reject}]"##,
            stall: "3s",
            modes: "{}",
            drain: "{}",
        }
    }

    fn component(&self, name: &str, port: u16) -> String {
        let (scheme, ca) = match &self.ca {
            None => ("mqtt", String::new()),
            Some(path) => ("mqtts", format!(", {{name: caCert, value: {:?}}}", std::fs::read_to_string(path).unwrap())),
        };
        let url = format!("{scheme}://box:secret@{}:{port}", self.host);
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}}}\n\
             spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: \"{url}\"}}{ca}]}}\n---\n"
        )
    }

    fn selvedge(&self, devices: u16) -> String {
        let Self { lanes, stall, modes, drain, .. } = self;
        let standby = self.standby.map_or_else(String::new, |port| self.component("standby", port));
        let second = self.standby.map_or("", |_| ", {component: standby, role: secondary, failbackAfter: 1s, stall: 3s}");
        format!(
            r##"{standby}{}
apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: devices}}
spec: {{protocol: mqtt, bind: "127.0.0.1:{devices}"}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud]}}]
  lanes: {lanes}
  drain: {drain}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud, stall: {stall}}}{second}]
  modes: {modes}
  budgets: {{diskFree: 64KiB}}
"##,
            self.component("cloud", self.port)
        )
    }

    fn bridge(&self, devices: u16, data: &Path) -> String {
        let tls = self.ca.as_ref().map_or_else(String::new, |ca| format!("bridge_cafile {}\n", ca.display()));
        format!(
            "user root\nlistener {devices} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n\
             persistence true\npersistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n\
             connection cloud\naddress {}:{}\nremote_username box\nremote_password secret\ntopic sensors/# out 1\nremote_clientid box\n\
             cleansession false\nnotifications false\ntry_private false\nrestart_timeout 1\nkeepalive_interval 5\n{tls}",
            data.display(),
            self.host,
            self.port,
        )
    }
}

enum Running {
    Selvedge(Place, Option<Node>),
    Bridge { folder: tempfile::TempDir, child: Option<Child> },
}

/// A box at the edge.
pub struct Subject {
    /// Where devices connect.
    pub devices: u16,
    /// Environment variables of its process.
    pub environment: Vec<(String, String)>,
    /// The command that starts it; most often none.
    pub wrapper: Vec<String>,
    running: Running,
    /// The most that ended processes have had resident, in KiB.
    peak: u64,
}

impl Subject {
    /// A box that does not run yet.
    pub fn new(kind: Kind, world: &World) -> Self {
        let devices = free_port();
        let running = match kind {
            Kind::Selvedge => {
                let place = Place::new(&world.selvedge(devices));
                std::fs::create_dir_all(place.data()).unwrap();
                Running::Selvedge(place, None)
            }
            Kind::Bridge => {
                let folder = tempfile::tempdir().unwrap();
                std::fs::create_dir(folder.path().join("data")).unwrap();
                std::fs::write(folder.path().join("mosquitto.conf"), world.bridge(devices, &folder.path().join("data"))).unwrap();
                Running::Bridge { folder, child: None }
            }
        };
        Self { devices, environment: Vec::new(), wrapper: Vec::new(), running, peak: 0 }
    }

    /// Where it keeps what it stores.
    pub fn data(&self) -> PathBuf {
        match &self.running {
            Running::Selvedge(place, _) => place.data(),
            Running::Bridge { folder, .. } => folder.path().join("data"),
        }
    }

    /// Starts the process, if it does not run, and waits until devices can connect.
    pub fn up(&mut self) {
        match &mut self.running {
            Running::Selvedge(place, node) => {
                place.environment.clone_from(&self.environment);
                place.wrapper.clone_from(&self.wrapper);
                node.get_or_insert_with(|| place.start());
            }
            Running::Bridge { folder, child } => {
                child.get_or_insert_with(|| {
                    let config = folder.path().join("mosquitto.conf");
                    wrapped(&self.wrapper, Path::new(mosquitto_binary()))
                        .arg("-c")
                        .arg(config)
                        .envs(self.environment.iter().cloned())
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap()
                });
                eventually(Duration::from_secs(20), "the bridge accepts", || accepts(self.devices));
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.peak = self.peak();
        match &mut self.running {
            Running::Selvedge(_, node) => {
                if let Some(node) = node.take() {
                    node.kill();
                }
            }
            Running::Bridge { child, .. } => {
                if let Some(mut child) = child.take() {
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            }
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Selvedge(_, node) => node.as_ref().map(Node::pid),
            Running::Bridge { child, .. } => child.as_ref().map(Child::id),
        }
    }

    /// Resident memory of its own in KiB: without the pages of the program and its libraries, which are several times as large when it
    /// is built for debugging.
    pub fn resident(&self) -> u64 {
        self.pid().map_or(0, |pid| memory(pid, "RssAnon"))
    }

    /// The most of that so far, of all its processes.
    pub fn peak(&self) -> u64 {
        self.peak.max(self.pid().map_or(0, |pid| memory(pid, "VmHWM").saturating_sub(memory(pid, "RssFile"))))
    }

    /// The running node, when it is one of selvedge.
    pub fn node(&self) -> Option<&Node> {
        match &self.running {
            Running::Selvedge(_, node) => node.as_ref(),
            Running::Bridge { .. } => None,
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(node) = self.node()
        {
            let log = node.log();
            println!("The box's last words:\n{}", log[log.len().saturating_sub(40)..].join("\n"));
        }
        self.kill();
    }
}
