//! The cloud: a broker, embedded or real, behind a line that can be cut, and the receiver at it.

use std::path::Path;
use std::sync::Arc;

use selvedge::component::{
    ComponentContext, Delivery, Fut, HandlerError, InheritedSockets, ListenerContext, MemoryTables, MessageHandler, PubSub, SubscribeRequest,
    SubscriptionHandle, Tables as _,
};
use selvedge::hub::Hub;
use selvedge::outbox::storage::DiskStorage;
use selvedge::outbox::{AtRest, Durability, LaneConfig, Outbox, OutboxConfig, WhenFull};
use selvedge::resource::{ListenerLimits, ListenerProtocol, ListenerSpec, Origin};
use selvedge::supervise::Supervisor;
use selvedge::telemetry::Metrics;
use selvedge::time::Clock;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::books::Books;

/// A real broker to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// `host:port`.
    address: String,
}

impl Upstream {
    /// Reads `mqtt://HOST[:PORT]`.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong = || format!("--upstream: found {url:?}; accepted is mqtt://HOST or mqtt://HOST:PORT");
        let rest = url.strip_prefix("mqtt://").or_else(|| url.strip_prefix("tcp://")).ok_or_else(wrong)?;
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.contains(['/', '@']) {
            return Err(wrong());
        }
        let address =
            if rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) { rest.to_owned() } else { format!("{rest}:1883") };
        Ok(Self { address })
    }
}

/// The broker, the line to it, and the receiver.
pub struct Cloud {
    /// Where the node finds the broker: the near end of the line.
    pub port: u16,
    line: watch::Sender<bool>,
    _receiver: Box<dyn SubscriptionHandle>,
    _component: Arc<dyn PubSub>,
    _tasks: JoinSet<()>,
}

struct Receiver {
    books: Books,
    prefix: String,
}

impl MessageHandler for Receiver {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        self.books.arrived(message.topic.strip_prefix(&self.prefix).unwrap_or(&message.topic), &message.data);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// An MQTT component of this process.
pub async fn component(name: &str, port_or_address: &str, data_dir: &Path, clock: &Arc<dyn Clock>) -> Result<Arc<dyn PubSub>, String> {
    let context = ComponentContext {
        name: name.to_owned(),
        type_name: "pubsub.mqtt3".to_owned(),
        version: "v1".to_owned(),
        app_id: name.to_owned(),
        namespace: None,
        properties: [
            ("url", format!("mqtt://{port_or_address}")),
            ("consumerID", format!("{name}-{}", std::process::id())),
            ("cleanSession", "true".to_owned()),
        ]
        .into_iter()
        .collect(),
        data_dir: data_dir.to_owned(),
        clock: clock.clone(),
        metrics: Metrics::new(),
        supervisor: Supervisor::new(clock.clone(), &Metrics::new()),
        hub: None,
    };
    selvedge_mqtt::pubsub_v3(context).await.map_err(|e| e.to_string())
}

/// A broker in this process: the product's own listener over a small store.
async fn embedded(data_dir: &Path, clock: &Arc<dyn Clock>, tasks: &mut JoinSet<()>) -> Result<String, String> {
    let lane = LaneConfig { durability: Durability::Memory, quota_bytes: 64 << 20, when_full: WhenFull::DropOldest, ..LaneConfig::new("default") };
    let config = OutboxConfig {
        dir: data_dir.join("cloud"),
        node: "cloud".to_owned(),
        lanes: vec![lane],
        segment_bytes: 4 << 20,
        cursor_interval: std::time::Duration::from_secs(1),
        at_rest: AtRest::default(),
    };
    let (outbox, _) = Outbox::open(config, Arc::new(DiskStorage::default()), clock.clone()).map_err(|e| e.to_string())?;
    let tables = Arc::new(MemoryTables::default());
    let retained = tables.open("retained").await.map_err(|e| e.to_string())?;
    let hub = Hub::new(outbox, Vec::new(), retained, clock.clone()).await.map_err(|e| e.to_string())?;
    let spec = ListenerSpec {
        origin: Origin::default(),
        name: "cloud".to_owned(),
        protocol: ListenerProtocol::Mqtt,
        bind: "127.0.0.1:0".to_owned(),
        pubsub: "cloud".to_owned(),
        tls: None,
        users_file: None,
        limits: ListenerLimits { window: 1_000, ..ListenerLimits::default() },
    };
    let context = ListenerContext {
        name: "cloud".to_owned(),
        spec,
        hub,
        tables,
        clock: clock.clone(),
        metrics: Metrics::new(),
        sockets: InheritedSockets::default(),
    };
    let bound = selvedge_mqtt_listener::bind(context).await.map_err(|e| e.to_string())?;
    let address = bound.address();
    tasks.spawn(bound.serve(Box::pin(std::future::pending())));
    Ok(address)
}

impl Cloud {
    /// Starts the broker (or uses a real one), the line and the receiver.
    pub async fn start(upstream: Option<Upstream>, prefix: &str, books: &Books, data_dir: &Path, clock: &Arc<dyn Clock>) -> Result<Self, String> {
        let mut tasks = JoinSet::new();
        let address = match upstream {
            Some(upstream) => upstream.address,
            None => embedded(data_dir, clock, &mut tasks).await?,
        };
        let component = component("demo-receiver", &address, data_dir, clock).await?;
        let receiver = Arc::new(Receiver { books: books.clone(), prefix: prefix.to_owned() });
        let request = SubscribeRequest { topic: format!("{prefix}#"), ..SubscribeRequest::default() };
        let receiver = component.subscribe(request, receiver).await.map_err(|e| format!("the broker at {address} cannot be used: {e}"))?;
        let near = TcpListener::bind("127.0.0.1:0").await.map_err(|e| format!("no port on this machine: {e}"))?;
        let port = near.local_addr().map_err(|e| e.to_string())?.port();
        let (line, state) = watch::channel(true);
        tasks.spawn(carry_all(near, address, state));
        Ok(Self { port, line, _receiver: receiver, _component: component, _tasks: tasks })
    }

    /// Cuts the line: open connections end, new ones are closed at once.
    pub fn cut(&self) {
        self.line.send_replace(false);
    }

    /// Mends it.
    pub fn mend(&self) {
        self.line.send_replace(true);
    }
}

async fn carry_all(near: TcpListener, address: String, state: watch::Receiver<bool>) {
    let mut open = JoinSet::new();
    while let Ok((client, _)) = near.accept().await {
        while open.try_join_next().is_some() {}
        if !*state.borrow() {
            continue;
        }
        let (address, mut state) = (address.clone(), state.clone());
        open.spawn(async move {
            let mut client = client;
            let Ok(mut server) = TcpStream::connect(&address).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = state.wait_for(|up| !*up) => {}
            }
            let _ = client.shutdown().await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_real_brokers() {
        for (url, address) in [("mqtt://h", "h:1883"), ("mqtt://h:99/", "h:99"), ("tcp://10.0.0.1:1884", "10.0.0.1:1884")] {
            assert_eq!(Upstream::parse(url).map(|u| u.address), Ok(address.to_owned()));
        }
        for bad in ["h", "mqtt://", "mqtts://h", "mqtt://u@h", "mqtt://h/x"] {
            assert!(Upstream::parse(bad).is_err(), "{bad}");
        }
    }
}
