//! The boxes that are drilled: selvedge, and mosquitto as a bridge.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use selvedge_tests::{Node, Place, accepts, eventually, free_port, mosquitto_binary};

/// Which box.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Selvedge,
    /// mosquitto that keeps what it has and saves every change.
    Bridge,
}

enum Running {
    Selvedge(Place, Option<Node>),
    Bridge { folder: tempfile::TempDir, child: Option<Child> },
}

/// A box at the edge.
pub struct Subject {
    /// Where devices connect.
    pub devices: u16,
    running: Running,
}

impl Subject {
    /// Starts a box whose upstream is at a port of this machine. `prepare` gets its data folder before it starts.
    pub fn start(kind: Kind, cloud: u16, prepare: impl FnOnce(&Path)) -> Self {
        let devices = free_port();
        let mut subject = match kind {
            Kind::Selvedge => {
                let place = Place::new(&format!(
                    r##"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: cloud}}
spec: {{type: pubsub.mqtt5, version: v1, metadata: [{{name: url, value: "mqtt://box:secret@127.0.0.1:{cloud}"}}]}}
---
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
  lanes: [{{name: all, match: ["#"], quota: 512MiB, onFull: reject}}]
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec: {{upstreams: [{{component: cloud, stall: 3s}}], budgets: {{diskFree: 64KiB}}}}
"##
                ));
                std::fs::create_dir_all(place.data()).unwrap();
                Self { devices, running: Running::Selvedge(place, None) }
            }
            Kind::Bridge => {
                let folder = tempfile::tempdir().unwrap();
                std::fs::create_dir(folder.path().join("data")).unwrap();
                let config = format!(
                    "user root\nlistener {devices} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n\
                     persistence true\npersistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n\
                     connection cloud\naddress 127.0.0.1:{cloud}\nremote_username box\nremote_password secret\ntopic sensors/# out 1\nremote_clientid box\n\
                     cleansession false\nnotifications false\ntry_private false\nrestart_timeout 1\nkeepalive_interval 5\n",
                    folder.path().join("data").display()
                );
                std::fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
                Self { devices, running: Running::Bridge { folder, child: None } }
            }
        };
        prepare(&subject.data());
        subject.up();
        subject
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
                node.get_or_insert_with(|| place.start());
            }
            Running::Bridge { folder, child } => {
                child.get_or_insert_with(|| {
                    let config = folder.path().join("mosquitto.conf");
                    Command::new(mosquitto_binary()).arg("-c").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
                });
                eventually(Duration::from_secs(20), "the bridge accepts", || accepts(self.devices));
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
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

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let pid = match &self.running {
            Running::Selvedge(_, node) => node.as_ref().map(Node::pid),
            Running::Bridge { child, .. } => child.as_ref().map(Child::id),
        };
        let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }

    /// For selvedge: that every line of its books balances.
    pub fn check_books(&self) {
        if let Running::Selvedge(_, Some(node)) = &self.running {
            let _ = node.ledger("upstream/cloud", "queued");
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.kill();
    }
}
