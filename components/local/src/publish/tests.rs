use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use selvedge::component::{Delivery, HandlerError};
use selvedge_conformance::{Bench, PubSubTraits};
use tokio::sync::watch;

use super::*;

fn open(bench: &Bench) -> Arc<dyn PubSub> {
    let options = LocalOptions { retry_first: Duration::from_millis(5), ..LocalOptions::default() };
    crate::local("local", "app", bench.hub.clone(), &bench.metrics, options)
}

/// Collects what comes; refuses while `refuse` is set.
struct Inbox {
    refuse: AtomicBool,
    taken: Mutex<Vec<Delivery>>,
    calls: watch::Sender<usize>,
}

impl Inbox {
    fn new() -> Arc<Self> {
        Arc::new(Self { refuse: AtomicBool::new(false), taken: Mutex::default(), calls: watch::channel(0).0 })
    }

    async fn calls(&self, count: usize) {
        let mut calls = self.calls.subscribe();
        tokio::time::timeout(Duration::from_secs(20), calls.wait_for(|n| *n >= count)).await.expect("calls in time").unwrap();
    }

    fn texts(&self) -> Vec<String> {
        self.taken.lock().unwrap().iter().map(|d| String::from_utf8(d.data.to_vec()).unwrap()).collect()
    }
}

impl MessageHandler for Inbox {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        let refused = self.refuse.load(Ordering::Relaxed);
        if !refused {
            self.taken.lock().unwrap().push(message);
        }
        self.calls.send_modify(|n| *n += 1);
        Box::pin(std::future::ready(if refused { Err(HandlerError::Retry("not now".into())) } else { Ok(()) }))
    }
}

fn to(topic: &str) -> SubscribeRequest {
    SubscribeRequest { topic: topic.into(), ..SubscribeRequest::default() }
}

fn message(topic: &str, text: &'static str) -> PublishRequest {
    PublishRequest { topic: topic.into(), data: text.into(), ..PublishRequest::default() }
}

fn with(request: PublishRequest, metadata: &[(&str, &str)]) -> PublishRequest {
    PublishRequest { metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), ..request }
}

fn queued(bench: &Bench, destination: &str) -> u64 {
    bench.hub.outbox().ledger().iter().filter(|row| row.destination == destination).map(|row| row.queued).sum()
}

#[tokio::test]
async fn it_passes_the_shared_suite() {
    let bench = Bench::new().await;
    let pubsub = crate::pubsub(bench.context("pubsub.local", &[])).await.unwrap();
    let traits = PubSubTraits { redelivers: true, keeps_order: true, wildcard: Some(("suite/w/+/#", "suite/w/1/x")), tells_subscribed_topic: false };
    selvedge_conformance::pubsub(pubsub, &traits).await;
}

#[tokio::test]
async fn what_comes_while_the_application_is_away_waits_for_it() {
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let inbox = Inbox::new();
    let handle = pubsub.subscribe(to("a/+"), inbox.clone()).await.unwrap();
    pubsub.publish(message("a/1", "1")).await.unwrap();
    inbox.calls(1).await;
    handle.close().await;
    let published = pubsub.publish(message("a/1", "2")).await.unwrap();
    assert!(published.queued && published.record_id.is_some_and(|id| id.starts_with("test/")));
    assert_eq!(queued(&bench, "app/app/local/a/+"), 1);

    let _handle = pubsub.subscribe(to("a/+"), inbox.clone()).await.unwrap();
    inbox.calls(2).await;
    assert_eq!(inbox.texts(), ["1", "2"]);
}

#[tokio::test]
async fn a_component_that_is_built_again_collects_before_the_application_is_back() {
    let bench = Bench::new().await;
    let first = open(&bench);
    first.subscribe(to("a/#"), Inbox::new()).await.unwrap().close().await;
    first.close().await;
    assert_eq!(first.publish(message("a", "0")).await, Err(PubSubError::Closed));
    assert!(matches!(first.subscribe(to("a"), Inbox::new()).await, Err(PubSubError::Closed)));
    // The bindings of a real restart are gone with the process.
    let destination = bench.hub.destination("app/app/local/a/#").unwrap();
    bench.hub.unbind(destination, "local", "a/#");

    let second = open(&bench);
    second.publish(message("a/b", "1")).await.unwrap();
    let inbox = Inbox::new();
    let _handle = second.subscribe(to("a/#"), inbox.clone()).await.unwrap();
    inbox.calls(1).await;
    assert_eq!(inbox.texts(), ["1"]);
}

#[tokio::test]
async fn a_message_that_nobody_wants_is_not_stored() {
    let bench = Bench::new().await;
    let published = open(&bench).publish(message("nobody", "1")).await.unwrap();
    assert_eq!(published, Published { record_id: None, queued: false });
}

#[tokio::test]
async fn a_failing_topic_does_not_hold_up_another_and_keeps_its_order() {
    struct Picky(Arc<Inbox>);
    impl MessageHandler for Picky {
        fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
            if message.topic == "t/bad" && self.0.refuse.load(Ordering::Relaxed) {
                self.0.calls.send_modify(|n| *n += 1);
                return Box::pin(std::future::ready(Err(HandlerError::Retry("not now".into()))));
            }
            self.0.taken.lock().unwrap().push(message);
            self.0.calls.send_modify(|n| *n += 1);
            Box::pin(std::future::ready(Ok(())))
        }
    }
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let inbox = Inbox::new();
    inbox.refuse.store(true, Ordering::Relaxed);
    let handle = pubsub.subscribe(to("t/+"), Arc::new(Picky(inbox.clone()))).await.unwrap();
    for (topic, text) in [("t/bad", "b1"), ("t/bad", "b2"), ("t/good", "g1"), ("t/bad", "b3"), ("t/good", "g2")] {
        pubsub.publish(message(topic, text)).await.unwrap();
    }
    inbox.calls(5).await; // g1, g2 and some attempts at b1
    let texts = inbox.texts();
    assert_eq!(texts, ["g1", "g2"]);
    inbox.refuse.store(false, Ordering::Relaxed);
    let mut calls = inbox.calls.subscribe();
    let all = tokio::time::timeout(Duration::from_secs(20), calls.wait_for(|_| inbox.taken.lock().unwrap().len() == 5)).await;
    assert!(all.is_ok(), "{:?}", inbox.texts());
    assert_eq!(inbox.texts(), ["g1", "g2", "b1", "b2", "b3"]);
    handle.close().await;
    assert_eq!(queued(&bench, "app/app/local/t/+"), 0);
    assert!(bench.metrics.render().contains("selvedge_local_handler_failures_total{pubsub=\"local\"}"));
}

#[tokio::test]
async fn a_handler_that_panics_is_a_failed_attempt() {
    struct Panics(Arc<Inbox>);
    impl MessageHandler for Panics {
        fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
            assert!(self.0.calls.send_if_modified(|n| std::mem::replace(n, *n + 1) > 0), "the first call panics");
            self.0.handle(message)
        }
    }
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let inbox = Inbox::new();
    let _handle = pubsub.subscribe(to("t"), Arc::new(Panics(inbox.clone()))).await.unwrap();
    pubsub.publish(message("t", "1")).await.unwrap();
    inbox.calls(3).await;
    assert_eq!(inbox.texts(), ["1"]);
}

#[tokio::test]
async fn of_two_holders_one_gets_each_message_and_the_other_takes_over() {
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let [a, b] = [Inbox::new(), Inbox::new()];
    let first = pubsub.subscribe(to("t"), a.clone()).await.unwrap();
    pubsub.publish(message("t", "1")).await.unwrap();
    a.calls(1).await;
    let second = pubsub.subscribe(to("t"), b.clone()).await.unwrap();
    pubsub.publish(message("t", "2")).await.unwrap();
    a.calls(2).await;
    first.close().await;
    pubsub.publish(message("t", "3")).await.unwrap();
    b.calls(1).await;
    second.close().await;
    assert_eq!((a.texts(), b.texts()), (vec!["1".into(), "2".into()], vec!["3".into()]));
}

#[tokio::test]
async fn request_metadata_asks_for_retention_and_a_lifetime() {
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    pubsub.publish(with(message("r/1", "kept"), &[("retain", "true"), ("ttlInSeconds", "60")])).await.unwrap();
    let retained = bench.hub.retained("local", "r/#");
    assert_eq!((retained.len(), retained[0].ttl_seconds), (1, Some(60)));

    let inbox = Inbox::new();
    let handle = pubsub.subscribe(to("r/#"), inbox.clone()).await.unwrap();
    inbox.calls(1).await;
    assert_eq!(inbox.taken.lock().unwrap()[0].metadata.get("retained").map(String::as_str), Some("true"), "whoever subscribes first is given it");
    handle.close().await;
    pubsub.publish(with(message("r/2", "short"), &[("ttl", "5")])).await.unwrap();
    pubsub.publish(with(message("r/2", "long"), &[("ttlInSeconds", "-1")])).await.unwrap();
    bench.clock.advance(Duration::from_secs(6));
    let _handle = pubsub.subscribe(to("r/#"), inbox.clone()).await.unwrap();
    inbox.calls(2).await;
    assert_eq!(inbox.texts(), ["kept", "long"]);

    for bad in [("retain", "perhaps"), ("ttlInSeconds", "soon"), ("ttlInSeconds", "0")] {
        assert!(matches!(pubsub.publish(with(message("r/1", "x"), &[bad])).await, Err(PubSubError::Invalid(_))), "{bad:?}");
    }
    for bad in ["", "a/#", "+"] {
        assert!(matches!(pubsub.publish(message(bad, "x")).await, Err(PubSubError::Invalid(_))), "{bad:?}");
    }
    assert!(matches!(pubsub.subscribe(to("a/#/b"), inbox).await, Err(PubSubError::Invalid(_))));
}

#[tokio::test]
async fn a_burst_that_the_disk_cannot_follow_waits_instead_of_failing() {
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let inbox = Inbox::new();
    let _handle = pubsub.subscribe(to("burst"), inbox.clone()).await.unwrap();
    let entries = (0..48).map(|n| BulkEntry { entry_id: n.to_string(), data: vec![0; 400 << 10].into(), ..BulkEntry::default() }).collect();
    let failures = pubsub.bulk_publish("burst".into(), entries, Metadata::new()).await;
    assert!(failures.is_empty(), "{failures:?}");
    inbox.calls(48).await;
}

#[tokio::test]
async fn a_device_s_properties_come_as_metadata() {
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let inbox = Inbox::new();
    let _handle = pubsub.subscribe(to("d"), inbox.clone()).await.unwrap();
    let attributes = Attributes {
        content_type: Some("text/plain"),
        response_topic: Some("answers"),
        correlation_data: Some(&[1, 2, 255]),
        utf8: true,
        user: &[("unit", "C"), ("unit", "F")],
    };
    bench.hub.accept_one("local", &Inbound { attributes, qos: 2, ..Inbound::new("d", b"21.5") }).await.unwrap();
    inbox.calls(1).await;
    let delivery = inbox.taken.lock().unwrap()[0].clone();
    assert_eq!(delivery.content_type.as_deref(), Some("text/plain"));
    let told = |name: &str| delivery.metadata.get(name).map(String::as_str);
    assert_eq!((told("unit"), told("responseTopic"), told("correlationData"), told("qos")), (Some("C"), Some("answers"), Some("AQL/"), Some("2")));
    assert!(told("recordId").is_some());
}

#[tokio::test]
async fn in_a_bulk_only_the_bad_entries_fail() {
    let bench = Bench::new().await;
    let pubsub = open(&bench);
    let inbox = Inbox::new();
    let _handle = pubsub.subscribe(to("b"), inbox.clone()).await.unwrap();
    let entry = |id: &str, metadata: &[(&str, &str)], text: &'static str| BulkEntry {
        entry_id: id.into(),
        data: text.into(),
        metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..BulkEntry::default()
    };
    let entries = vec![entry("1", &[], "one"), entry("2", &[("ttlInSeconds", "x")], "two"), entry("3", &[], "three")];
    let failures = pubsub.bulk_publish("b".into(), entries, Metadata::new()).await;
    assert_eq!(failures.iter().map(|f| f.entry_id.as_str()).collect::<Vec<_>>(), ["2"]);
    inbox.calls(2).await;
    assert_eq!(inbox.texts(), ["one", "three"]);
    let failures = pubsub.bulk_publish("b/#".into(), vec![entry("1", &[], ""), entry("2", &[], "")], Metadata::new()).await;
    assert_eq!(failures.len(), 2);
    assert!(pubsub.bulk_publish("b".into(), Vec::new(), Metadata::new()).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_nobody_holds_is_forgotten_in_the_end() {
    let bench = Bench::new().await;
    let options = LocalOptions { forget_after: Duration::from_secs(3600), ..LocalOptions::default() };
    let pubsub = crate::local("local", "app", bench.hub.clone(), &bench.metrics, options);
    pubsub.subscribe(to("f"), Inbox::new()).await.unwrap().close().await;
    tokio::time::sleep(Duration::from_secs(3000)).await;
    pubsub.subscribe(to("f"), Inbox::new()).await.unwrap().close().await;
    tokio::time::sleep(Duration::from_secs(3000)).await;
    // The exchange is asked directly, since waiting for the disk would let the paused time run.
    assert!(bench.hub.accept("local", &[Inbound::new("f", b"1")]).last.is_some(), "held meanwhile, so it stands");
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert!(bench.hub.accept("local", &[Inbound::new("f", b"2")]).last.is_none());
    assert_eq!(queued(&bench, "app/app/local/f"), 0);
}

#[tokio::test]
async fn settings_are_checked() {
    let bench = Bench::new().await;
    for bad in [("concurrency", "0"), ("concurrency", "1000"), ("forgetAfter", "never"), ("retryMaxInterval", "x")] {
        assert!(crate::pubsub(bench.context("pubsub.local", &[bad])).await.is_err(), "{bad:?}");
    }
}
