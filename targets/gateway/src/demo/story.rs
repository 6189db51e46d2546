//! The story: steady work, an outage, recovery, a kill, and the books.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use selvedge::time::{Clock, Monotonic, SystemClock};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::books::Books;
use super::cloud::{Cloud, Upstream};
use super::devices::{Devices, Doors};
use super::screen::{Look, Screen};
use crate::control;

const DEVICES: usize = 12;

struct Story {
    clock: Arc<dyn Clock>,
    begun: Monotonic,
    screen: Screen,
    books: Books,
    folder: PathBuf,
    node: Option<Child>,
}

fn free_tcp_port() -> Result<u16, String> {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map(|a| a.port()).map_err(|e| format!("no port on this machine: {e}"))
}

fn free_udp_port() -> Result<u16, String> {
    std::net::UdpSocket::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map(|a| a.port()).map_err(|e| format!("no port on this machine: {e}"))
}

/// A folder of this demo's own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("selvedge-demo-{}", std::process::id()));
        std::fs::create_dir_all(path.join("resources")).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn resources(cloud: u16, doors: Doors, prefix: &str) -> String {
    let coap = doors.coap.map_or(String::new(), |port| {
        format!(
            "---\napiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: coap}}\nspec: {{protocol: coap, bind: \"127.0.0.1:{port}\"}}\n"
        )
    });
    let sensors = if crate::components::ships("bindings.sensors") {
        "---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: box}\nspec:\n  type: bindings.sensors\n  version: v1\n  metadata: [{name: interval, value: 1s}, {name: publishTo, value: local}, {name: publishTopic, value: sensors/box}]\n"
    } else {
        ""
    };
    format!(
        r#"apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: cloud}}
spec:
  type: pubsub.mqtt5
  version: v1
  metadata: [{{name: url, value: "mqtt://127.0.0.1:{cloud}"}}, {{name: consumerID, value: "demo-node-{id}"}}]
---
apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: devices}}
spec: {{protocol: mqtt, bind: "127.0.0.1:{mqtt}"}}
{coap}{sensors}---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud], prefix: "{prefix}"}}]
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: cloud}}]
  modes: {{islandAfter: 1s, normalAfter: 2s}}
"#,
        id = std::process::id(),
        mqtt = doors.mqtt,
    )
}

/// Tells the story; says whether all is well.
pub async fn tell(upstream: Option<Upstream>) -> Result<bool, String> {
    let folder = Folder::make()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let books = Books::default();
    let prefix = format!("selvedge-demo/{}/", std::process::id());
    let real = upstream.is_some();
    let cloud = Cloud::start(upstream, &prefix, &books, &folder.0, &clock).await?;
    let doors = Doors { mqtt: free_tcp_port()?, coap: if crate::components::ships_listener("coap") { Some(free_udp_port()?) } else { None } };
    std::fs::write(folder.0.join("resources/demo.yaml"), resources(cloud.port, doors, &prefix))
        .map_err(|e| format!("cannot write the demo's YAML: {e}"))?;
    let begun = clock.monotonic();
    let mut story = Story { clock, begun, screen: Screen::new(), books, folder: folder.0.clone(), node: None };

    story.screen.line("selvedge demo: devices send to a box, the box forwards to a cloud broker, and things go wrong.");
    story.say(if real {
        "the cloud is the broker you named; the line to it goes through this program, which can cut it"
    } else {
        "the cloud is a broker in this process"
    });
    story.start_node(0).await?;
    story.say("the node is up (its own process); batched lane: acknowledged means on disk, 20 ms at most");
    let devices = Devices::start(DEVICES, doors, &story.books, &story.folder, &story.clock).await?;
    story.say(&format!(
        "{DEVICES} MQTT devices, each sends on when its last message is safe{}{}",
        if doors.coap.is_some() { "; a CoAP device; " } else { "" },
        if crate::components::ships("bindings.sensors") { "the box's own sensors" } else { "" }
    ));
    story.watch(Duration::from_secs(6)).await;

    story.say("the line to the cloud is CUT; devices go on, nobody is refused");
    cloud.cut();
    story.watch(Duration::from_secs(10)).await;
    story.say("the line is mended: one record goes ahead as a probe, then the backlog drains, each topic in order");
    cloud.mend();
    story.watch_until(Duration::from_secs(30), |l| l.link.starts_with("up")).await;
    story.watch(Duration::from_secs(3)).await;

    story.say("the line is cut again, and the node is killed with SIGKILL under full load");
    cloud.cut();
    story.watch(Duration::from_secs(4)).await;
    story.kill_node().await;
    story.watch(Duration::from_millis(1_500)).await;
    story.start_node(1).await?;
    story.say("the node is back on the same data; devices reconnect by themselves");
    story.watch(Duration::from_secs(3)).await;
    cloud.mend();
    story.say("the line is mended");
    story.watch_until(Duration::from_secs(30), |l| l.link.starts_with("up")).await;
    story.watch(Duration::from_secs(3)).await;

    story.say("the devices stop; what is queued may go out");
    devices.stop().await;
    story.watch_until(Duration::from_secs(30), |l| l.queued == 0 && l.acknowledged == l.arrived).await;
    Ok(story.close().await)
}

impl Story {
    fn at(&self) -> Duration {
        self.clock.monotonic().since(self.begun)
    }

    fn say(&mut self, text: &str) {
        let at = self.at();
        self.screen.say(at, text);
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    async fn start_node(&mut self, run: u32) -> Result<(), String> {
        let log = std::fs::File::create(self.folder.join(format!("node-{run}.log"))).map_err(|e| format!("cannot write the node's log: {e}"))?;
        let binary = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut command = Command::new(binary);
        command.args(["--app-id", "demo", "--dapr-http-port", &free_tcp_port()?.to_string(), "--dapr-grpc-port", &free_tcp_port()?.to_string()]);
        command.args(["--enable-metrics=false", "--resources-path"]).arg(self.folder.join("resources")).arg("--data-dir").arg(self.data());
        command.stdout(log).stderr(Stdio::null()).stdin(Stdio::null()).kill_on_drop(true);
        self.node = Some(command.spawn().map_err(|e| format!("the node cannot be started: {e}"))?);
        let path = self.data();
        let up = async {
            while ask(&path).await.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(15), up).await.is_err() {
            let log = std::fs::read_to_string(self.folder.join(format!("node-{run}.log"))).unwrap_or_default();
            return Err(format!("the node did not start; its log:\n{log}"));
        }
        Ok(())
    }

    async fn kill_node(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill().await;
        }
    }

    async fn look(&self) -> Look {
        let status = ask(&self.data()).await;
        let books = self.books.compare();
        let mut look = Look {
            at: self.at(),
            alive: status.is_some(),
            acknowledged: books.acknowledged,
            arrived: books.arrived,
            readings: books.readings,
            ..Look::default()
        };
        if let Some(status) = status {
            let link = &status["upstreams"][0];
            look.link = link["state"].as_str().unwrap_or_default().to_owned();
            if let Some(cause) = link["cause"].as_str() {
                look.link += &format!(" ({cause})");
            }
            look.mode = status["mode"]["mode"].as_str().unwrap_or_default().to_owned();
            look.queued = rows(&status).map(|r| r["queued"].as_u64().unwrap_or(0)).sum();
            look.disk_bytes = status["lanes"].as_array().into_iter().flatten().map(|l| l["diskBytes"].as_u64().unwrap_or(0)).sum();
        }
        if let Some(pid) = self.node.as_ref().and_then(Child::id) {
            look.memory_kib = resident_kib(pid);
        }
        look
    }

    async fn watch(&mut self, time: Duration) {
        self.watch_until(time, |_| false).await;
    }

    async fn watch_until(&mut self, longest: Duration, done: impl Fn(&Look) -> bool) {
        let end = self.at() + longest;
        loop {
            let look = self.look().await;
            self.screen.show(&look);
            if done(&look) || look.at >= end {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The ledger of the node and the comparison of both sides.
    async fn close(&mut self) -> bool {
        let status = ask(&self.data()).await.unwrap_or_default();
        let books = self.books.compare();
        self.screen.line("\nthe node's ledger, by lane and destination (accepted = delivered + expired + evicted + aggregated + queued):");
        self.screen.line(&format!(
            "  {:<10} {:<18} {:>9} {:>9} {:>8} {:>8} {:>10} {:>7}",
            "lane", "destination", "accepted", "delivered", "expired", "evicted", "aggregated", "queued"
        ));
        let mut balanced = rows(&status).next().is_some();
        // Lanes that never had anything for a destination say nothing.
        for row in rows(&status).filter(|r| r["accepted"] != 0) {
            let n = |c: &str| row[c].as_u64().unwrap_or(0);
            let well = n("accepted") == n("delivered") + n("expired") + n("evicted") + n("aggregated") + n("queued");
            balanced &= well;
            self.screen.line(&format!(
                "  {:<10} {:<18} {:>9} {:>9} {:>8} {:>8} {:>10} {:>7}{}",
                row["lane"].as_str().unwrap_or_default(),
                row["destination"].as_str().unwrap_or_default(),
                n("accepted"),
                n("delivered"),
                n("expired"),
                n("evicted"),
                n("aggregated"),
                n("queued"),
                if well { "" } else { "   DOES NOT BALANCE" }
            ));
        }
        self.screen.line(&format!(
            "\nthe receiver's count: {} messages acknowledged to devices, {} of them arrived, {} repeated, {} out of order; {} sensor readings",
            books.acknowledged, books.arrived, books.repeated, books.out_of_order, books.readings
        ));
        let well = balanced && books.acknowledged > 0 && books.arrived == books.acknowledged && books.out_of_order == 0;
        let text = if well {
            "every acknowledged message arrived, in order; the ledger balances".to_owned()
        } else {
            format!(
                "{} acknowledged messages did not arrive; ledger {}",
                books.acknowledged - books.arrived,
                if balanced { "balances" } else { "does not balance" }
            )
        };
        self.screen.verdict(well, &text);
        if let Some(mut node) = self.node.take()
            && let Some(pid) = node.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = tokio::time::timeout(Duration::from_secs(10), node.wait()).await;
        }
        well
    }
}

fn rows(status: &Value) -> impl Iterator<Item = &Value> {
    status["ledger"].as_array().into_iter().flatten()
}

async fn ask(data: &Path) -> Option<Value> {
    let data = data.to_owned();
    tokio::task::spawn_blocking(move || control::ask(&data, "status").ok()).await.ok().flatten()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
