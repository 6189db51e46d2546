//! The listener over real UDP on the loopback interface.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use selvedge::component::{BoundListener, InheritedSocket, InheritedSockets, ListenerContext, MemoryTables, Tables as _};
use selvedge::hub::{Hub, LaneRun};
use selvedge::outbox::sim::SimStorage;
use selvedge::outbox::{AtRest, Durability, LaneConfig, MIN_QUOTA_BYTES, Outbox, OutboxConfig};
use selvedge::resource::{ListenerLimits, ListenerProtocol, ListenerSpec, Origin};
use selvedge::telemetry::Metrics;
use selvedge::time::SystemClock;
use selvedge_coap::{Client, Code};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

struct Node {
    hub: Hub,
    metrics: Metrics,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

fn spec() -> ListenerSpec {
    ListenerSpec {
        origin: Origin::default(),
        name: "devices".into(),
        protocol: ListenerProtocol::Coap,
        bind: "127.0.0.1:0".into(),
        pubsub: "local".into(),
        tls: None,
        users_file: None,
        limits: ListenerLimits { clients: 100, packet_bytes: 100_000, window: 64 },
    }
}

async fn context(spec: ListenerSpec) -> ListenerContext {
    context_on(spec, Arc::new(SimStorage::default())).await
}

async fn context_on(spec: ListenerSpec, storage: Arc<SimStorage>) -> ListenerContext {
    let clock = Arc::new(SystemClock::new());
    let tables = Arc::new(MemoryTables::default());
    let lane = LaneConfig { durability: Durability::Fsync, quota_bytes: MIN_QUOTA_BYTES, ..LaneConfig::new("default") };
    let config = OutboxConfig {
        dir: "/outbox".into(),
        node: "test".into(),
        lanes: vec![lane],
        segment_bytes: 256 << 10,
        cursor_interval: Duration::from_secs(1),
        at_rest: AtRest::default(),
    };
    let (outbox, _) = Outbox::open(config, storage, clock.clone()).unwrap();
    let hub = Hub::new(outbox, Vec::new(), tables.open("retained").await.unwrap(), clock.clone()).await.unwrap();
    ListenerContext { name: spec.name.clone(), spec, hub, tables, clock, metrics: Metrics::new(), sockets: InheritedSockets::default() }
}

async fn start() -> Node {
    start_on(Arc::new(SimStorage::default())).await
}

async fn start_on(storage: Arc<SimStorage>) -> Node {
    let context = context_on(spec(), storage).await;
    let (hub, metrics) = (context.hub.clone(), context.metrics.clone());
    let listener: Box<dyn BoundListener> = selvedge_coap::bind(context).await.unwrap();
    let address = listener.address().parse().unwrap();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(listener.serve(Box::pin(async move {
        let _ = stopped.await;
    })));
    Node { hub, metrics, address, stop, served }
}

impl Node {
    async fn client(&self) -> Client {
        Client::connect(self.address, 100).await.unwrap()
    }

    async fn raw(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(SOON, self.served).await.unwrap().unwrap();
    }
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 2_000];
    let length = timeout(SOON, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    buffer.truncate(length);
    buffer
}

#[tokio::test]
async fn what_is_answered_with_2_04_is_stored_unchanged_and_in_order() {
    let node = start().await;
    let up = node.hub.destination("upstream/cloud").unwrap();
    node.hub.bind(up, "local", "#").unwrap();
    let mut client = node.client().await;
    let large: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
    assert_eq!(client.post("sensors/a", Some(50), br#"{"t":1}"#).await.unwrap().code, Code::CHANGED);
    assert_eq!(client.put("sensors/a", Some(65_000), b"\x00\xFF").await.unwrap().code, Code::CHANGED);
    assert_eq!(client.post("sensors/a", None, b"").await.unwrap().code, Code::CHANGED);
    assert_eq!(client.post("sensors/a", None, &large).await.unwrap().code, Code::CHANGED);
    let mut consumer = node.hub.consumer(up);
    assert_eq!(consumer.queued(), 4);
    let mut seen = Vec::new();
    let mut run = LaneRun::default();
    while seen.len() < 4 {
        if consumer.next_run(10, 1 << 20, &mut run).unwrap() == 0 {
            timeout(SOON, consumer.readable()).await.unwrap();
            continue;
        }
        for record in run.run.iter() {
            record.with_attributes(|attributes| {
                let user: Vec<(String, String)> = attributes.user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                seen.push((record.payload().to_vec(), attributes.content_type.map(str::to_owned), user));
            });
        }
    }
    assert_eq!(seen[0], (br#"{"t":1}"#.to_vec(), Some("application/json".into()), vec![]));
    assert_eq!(seen[1], (vec![0, 255], None, vec![("coap-content-format".into(), "65000".into())]));
    assert_eq!(seen[2], (vec![], None, vec![]));
    assert_eq!(seen[3].0, large);
    assert!(node.metrics.render().contains("selvedge_coap_requests_total{listener=\"devices\",method=\"post\",code=\"2.04\"} 3"));
    node.stop().await;
}

#[tokio::test]
async fn retained_topics_are_read_listed_and_observed() {
    let node = start().await;
    let mut client = node.client().await;
    assert_eq!(client.get("sensors/a").await.unwrap().code, Code::NOT_FOUND);
    let body = vec![b'x'; 1_500];
    assert_eq!(client.put("sensors/a?retain", Some(0), &body).await.unwrap().code, Code::CHANGED);
    let got = client.get("sensors/a").await.unwrap();
    assert_eq!((got.code, got.payload.as_ref(), got.content_format), (Code::CONTENT, &body[..], Some(0)));
    let links = client.get(".well-known/core").await.unwrap();
    assert_eq!((links.code, links.content_format), (Code::CONTENT, Some(40)));
    assert_eq!(links.payload.as_ref(), b"</.well-known/core>;ct=40,</sensors/a>;obs;ct=0");

    // GET with Observe 0 and token 9 on topic `b`, by hand.
    let observer = node.raw().await;
    observer.send(&[0x41, 1, 0, 1, 9, 0x60, 0x51, b'b']).await.unwrap();
    let first = receive(&observer).await;
    assert_eq!(first[..5], [0x61, 0x45, 0, 1, 9]);
    client.post("b", None, b"hello").await.unwrap();
    let notification = receive(&observer).await;
    assert_eq!((notification[0], notification[1], notification[4]), (0x41, 0x45, 9), "confirmable, content, the token");
    assert!(notification.ends_with(b"\xFFhello"));
    observer.send(&[0x70, 0, notification[2], notification[3]]).await.unwrap();
    // The reset has ended it: a ping is answered, a message is not.
    client.post("b", None, b"again").await.unwrap();
    observer.send(&[0x40, 0, 0, 2]).await.unwrap();
    assert_eq!(receive(&observer).await, [0x70, 0, 0, 2]);
    node.stop().await;
}

#[tokio::test]
async fn a_repeated_request_is_taken_once() {
    let node = start().await;
    let up = node.hub.destination("upstream/cloud").unwrap();
    node.hub.bind(up, "local", "#").unwrap();
    let device = node.raw().await;
    let request = [0x41, 2, 0, 1, 9, 0xB1, b'a', 0xFF, b'x'];
    device.send(&request).await.unwrap();
    let first = receive(&device).await;
    assert_eq!(first, [0x61, 0x44, 0, 1, 9]);
    for _ in 0..5 {
        device.send(&request).await.unwrap();
        assert_eq!(receive(&device).await, first);
    }
    assert_eq!(node.hub.consumer(up).queued(), 1);
    node.stop().await;
}

#[tokio::test]
async fn what_is_not_safe_is_never_answered_with_2_04() {
    let storage = Arc::new(SimStorage::default());
    let node = start_on(storage.clone()).await;
    let up = node.hub.destination("upstream/cloud").unwrap();
    node.hub.bind(up, "local", "#").unwrap();
    let mut client = node.client().await;
    let mut full = None;
    for _ in 0..80 {
        let answer = client.post("a", None, &[7; 30_000]).await.unwrap();
        if answer.code != Code::CHANGED {
            full = Some(answer);
            break;
        }
    }
    let full = full.expect("a lane of 1 MiB holds no 80 times 30 kB");
    assert_eq!((full.code, full.max_age_seconds.is_some()), (Code::UNAVAILABLE, true), "{full:?}");
    node.stop().await;

    let storage = Arc::new(SimStorage::default());
    let node = start_on(storage.clone()).await;
    let up = node.hub.destination("upstream/cloud").unwrap();
    node.hub.bind(up, "local", "#").unwrap();
    storage.fail_syncs(u32::MAX);
    let answer = node.client().await.post("a", None, b"x").await.unwrap();
    assert_eq!((answer.code, answer.max_age_seconds), (Code::UNAVAILABLE, Some(30)), "{answer:?}");
    node.stop().await;
}

#[tokio::test]
async fn broken_datagrams_do_not_stop_the_service() {
    let node = start().await;
    let attacker = node.raw().await;
    let mut seed = 7u64;
    for _ in 0..500 {
        let bytes: Vec<u8> = (0..seed % 60)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        seed = seed.wrapping_add(1);
        attacker.send(&bytes).await.unwrap();
    }
    attacker.send(&vec![0x40; 20_000]).await.unwrap();
    let mut client = node.client().await;
    assert_eq!(client.post("a", None, b"x").await.unwrap().code, Code::CHANGED);
    assert_eq!(client.post("a/+", None, b"x").await.unwrap().code, Code::BAD_REQUEST);
    assert_eq!(client.post("$SYS/a", None, b"x").await.unwrap().code, Code::FORBIDDEN);
    assert_eq!(client.post("a", None, &vec![0; 100_001]).await.unwrap().code, Code::TOO_LARGE);
    node.stop().await;
}

#[tokio::test]
async fn a_listener_that_cannot_do_what_it_is_asked_says_so() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let tls = selvedge::resource::ListenerTls { cert_file: "c".into(), key_file: "k".into(), client_ca_file: None };
    for (spec, word) in [
        (ListenerSpec { tls: Some(tls), ..spec() }, "DTLS"),
        (ListenerSpec { users_file: Some("users.yaml".into()), ..spec() }, "users"),
        (ListenerSpec { bind: "systemd:coap".into(), ..spec() }, "no inherited socket has the name \"coap\""),
        (ListenerSpec { bind: address.clone(), ..spec() }, address.as_str()),
    ] {
        let error = selvedge_coap::bind(context(spec).await).await.err().expect("refused").to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn every_inherited_socket_of_the_name_is_served() {
    let handed = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (one, two) = (handed(), handed());
    let ports = [one.local_addr().unwrap(), two.local_addr().unwrap()];
    let mut context = context(ListenerSpec { bind: "systemd:coap".into(), ..spec() }).await;
    context.sockets = InheritedSockets::new([one, two].map(|socket| ("coap".to_owned(), InheritedSocket::Udp(socket))));
    let bound = selvedge_coap::bind(context).await.unwrap();
    assert_eq!(bound.address(), ports.map(|p| p.to_string()).join(", "));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(bound.serve(Box::pin(async move {
        let _ = stopped.await;
    })));
    for port in ports {
        let mut client = Client::connect(port, 100).await.unwrap();
        assert_eq!(client.post("a", None, b"1").await.unwrap().code, Code::CHANGED);
    }
    stop.send(()).unwrap();
    served.await.unwrap();
}
