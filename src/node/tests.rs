//! Parts that fail alone, on a whole node: components that panic when they are told to.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::*;
use crate::component::{
    Binding, BindingError, BindingHandler, BindingReading, BoundListener, Delivery, InitError, InputBinding, MemoryTables, MessageHandler,
    PubSubError, PubSubFeature, PublishRequest, Published, ReadHandle, SubscribeRequest, SubscriptionHandle,
};
use crate::escape::Mode;
use crate::outbox::storage::{DiskStorage, Space, StoredFile};
use crate::time::SystemClock;

const LONG: Duration = Duration::from_secs(20);

/// How often each part was started, and what it did.
#[derive(Default)]
struct Seen {
    listener: AtomicUsize,
    binding: AtomicUsize,
    pubsub: AtomicUsize,
    handled: Mutex<Vec<Result<(), String>>>,
}

struct Listener(usize);

impl BoundListener for Listener {
    fn address(&self) -> String {
        format!("listener {}", self.0)
    }

    fn serve(self: Box<Self>, stop: Fut<'static, ()>) -> Fut<'static, ()> {
        Box::pin(async move {
            assert!(self.0 > 0, "the first listener has a defect");
            stop.await;
        })
    }
}

struct Reading(bool);

impl ReadHandle for Reading {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async {})
    }

    fn ended<'a>(&'a self) -> Fut<'a, ()> {
        let broken = self.0;
        Box::pin(async move {
            if !broken {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// The first read panics, the second ends by itself, the third gives a reading and goes on.
struct Source(Arc<Seen>);

impl InputBinding for Source {
    fn read<'a>(&'a self, handler: Arc<dyn BindingHandler>) -> Fut<'a, Result<Box<dyn ReadHandle>, BindingError>> {
        Box::pin(async move {
            let start = self.0.binding.fetch_add(1, Ordering::SeqCst);
            assert!(start > 0, "the first read has a defect");
            if start > 1 {
                let reading = BindingReading { data: Bytes::from_static(b"reading"), ..BindingReading::default() };
                handler.handle(reading).await.expect("the reading is taken");
            }
            Ok(Box::new(Reading(start == 1)) as Box<dyn ReadHandle>)
        })
    }
}

struct Subscribed;

impl SubscriptionHandle for Subscribed {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async {})
    }
}

/// The first subscription panics, the second hands a message on.
struct Cloud(Arc<Seen>);

impl PubSub for Cloud {
    fn features(&self) -> &[PubSubFeature] {
        &[]
    }

    fn publish<'a>(&'a self, _: PublishRequest) -> Fut<'a, Result<Published, PubSubError>> {
        Box::pin(async { Err(PubSubError::Closed) })
    }

    fn subscribe<'a>(
        &'a self,
        request: SubscribeRequest,
        handler: Arc<dyn MessageHandler>,
    ) -> Fut<'a, Result<Box<dyn SubscriptionHandle>, PubSubError>> {
        Box::pin(async move {
            assert!(self.0.pubsub.fetch_add(1, Ordering::SeqCst) > 0, "the first subscription has a defect");
            let message = Delivery { topic: request.topic, data: Bytes::from_static(b"command"), ..Delivery::default() };
            let handled = handler.handle(message).await.map_err(|e| e.to_string());
            self.0.handled.lock().unwrap().push(handled);
            Ok(Box::new(Subscribed) as Box<dyn SubscriptionHandle>)
        })
    }
}

/// A file system whose room is asked for in vain once: a panic within the controller of the mode.
struct Disk(DiskStorage, Arc<AtomicUsize>);

impl Storage for Disk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.make_dir(dir)
    }
    fn lock(&self, dir: &Path) -> io::Result<()> {
        self.0.lock(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create(&self, path: &Path, preallocate: u64) -> io::Result<Arc<dyn StoredFile>> {
        self.0.create(path, preallocate)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        self.0.open(path)
    }
    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.0.replace(path, bytes, durable)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<Space> {
        // Armed by the test.
        assert!(self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err(), "the room cannot be asked for");
        self.0.space(dir)
    }
}

const YAML: &str = r#"
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: source}
spec: {type: bindings.test, version: v1, metadata: [{name: publishTo, value: local}, {name: publishTopic, value: readings}]}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: local}
spec: {type: pubsub.local, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: cloud}
spec: {type: pubsub.test, version: v1}
---
apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {name: devices}
spec: {protocol: mqtt}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {name: down}
spec: {routes: [{from: cloud, topics: [commands], to: [local]}]}
"#;

fn node_config(dir: &Path) -> NodeConfig {
    let folder = dir.join("resources");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("node.yaml"), YAML).unwrap();
    let resources = crate::resource::load(&[folder], "app", None, &|_| None).unwrap();
    NodeConfig {
        app_id: "app".into(),
        namespace: None,
        data_dir: dir.join("data"),
        resources,
        configuration: ConfigurationSpec::default(),
        environment: BTreeMap::new(),
    }
}

fn host(seen: &Arc<Seen>, panics: &Arc<AtomicUsize>) -> Host {
    let mut registry = Registry::new();
    let of = seen.clone();
    registry.add_listener("mqtt", move |_| {
        let listener = Listener(of.listener.fetch_add(1, Ordering::SeqCst));
        async move { Ok::<_, InitError>(Box::new(listener) as Box<dyn BoundListener>) }
    });
    let of = seen.clone();
    registry.add_binding(&["bindings.test"], "v1", move |_| {
        let source: Arc<dyn InputBinding> = Arc::new(Source(of.clone()));
        async move { Ok(Binding { input: Some(source), output: None }) }
    });
    let of = seen.clone();
    registry.add_pubsub(&["pubsub.test", "pubsub.local"], "v1", move |_| {
        let cloud: Arc<dyn PubSub> = Arc::new(Cloud(of.clone()));
        async move { Ok(cloud) }
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    Host {
        registry,
        open_tables: Arc::new(|_, _| Box::pin(async { Ok(Arc::new(MemoryTables::default()) as Arc<dyn Tables>) })),
        make_local: Arc::new(|_, _, _, _| unreachable!("`local` is declared")),
        storage: Arc::new(Disk(DiskStorage::default(), panics.clone())),
        clock,
        metrics: Metrics::new(),
        sockets: Default::default(),
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not within {LONG:?}"));
}

#[tokio::test]
async fn parts_that_panic_or_end_are_started_again_alone_and_shown_until_they_are_well() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, panics) = (Arc::new(Seen::default()), Arc::new(AtomicUsize::new(0)));
    let node = Node::build(node_config(dir.path()), host(&seen, &panics)).await.unwrap();
    let (status, metrics) = (node.status(), node.metrics().clone());
    let (stop, mut stopped) = watch::channel(false);
    let running = tokio::spawn(node.run(
        Box::pin(async move {
            let _ = stopped.wait_for(|s| *s).await;
        }),
        Duration::from_secs(5),
    ));
    eventually("each part is started again", || {
        let starts = [&seen.listener, &seen.binding, &seen.pubsub].map(|n| n.load(Ordering::SeqCst));
        starts == [2, 3, 2]
    })
    .await;
    assert_eq!(*seen.handled.lock().unwrap(), [Ok(())], "the command was taken");
    let text = metrics.render_text();
    for (part, failures) in [("listener/devices", 1), ("binding/source", 2), ("route/cloud/local", 1)] {
        assert!(text.contains(&format!("selvedge_part_failures_total{{part=\"{part}\"}} {failures}")), "{text}");
        let degraded = status.to_json()["degraded"].as_array().unwrap().clone();
        assert!(degraded.iter().any(|d| d["part"] == part), "it must prove itself first: {degraded:?}");
    }

    // The controller of the mode: what an operator has ordered outlives a defect.
    let escape = status.escape().unwrap().clone();
    escape.order(EscapeOrder::Pin(Mode::Conserve, Duration::from_secs(60))).await.unwrap();
    panics.store(1, Ordering::SeqCst);
    eventually("the controller meets a defect", || status.to_json()["degraded"].as_array().unwrap().iter().any(|d| d["part"] == "escape")).await;
    assert_eq!(panics.load(Ordering::SeqCst), 0);
    let after = escape.order(EscapeOrder::Pin(Mode::Survive, Duration::from_secs(60))).await.unwrap();
    assert_eq!(after["mode"], "survive", "it takes orders again");
    escape.order(EscapeOrder::Pin(Mode::Conserve, Duration::from_secs(60))).await.unwrap();
    panics.store(1, Ordering::SeqCst);
    eventually("it meets another one", || panics.load(Ordering::SeqCst) == 0).await;
    let reports = escape.order(EscapeOrder::Reports).await.unwrap();
    assert!(reports.is_array() && escape.mode() == Mode::Conserve, "the pin stands: {}", escape.to_json());
    stop.send_replace(true);
    assert_eq!(running.await.unwrap(), Vec::<String>::new(), "all parts end in time");
}
