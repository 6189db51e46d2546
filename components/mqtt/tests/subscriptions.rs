//! Subscriptions, direct publishes and the binding against a real broker.
//! Where mosquitto is not installed each test says so in one line and ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{Mosquitto, component, context, until};
use selvedge::component::{
    BindingHandler, BindingReading, Delivery, Fut, HandlerError, InvokeRequest, MessageHandler, Metadata, PubSubError, PublishRequest,
    SubscribeRequest,
};
use selvedge::time::SystemClock;
use selvedge_mqtt::Version;

#[derive(Default)]
struct Seen {
    all: Mutex<Vec<Delivery>>,
    /// Calls that still fail.
    failures: AtomicU32,
    calls: AtomicU32,
}

impl MessageHandler for Seen {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(HandlerError::Retry("not now".into()));
            }
            self.all.lock().unwrap().push(message);
            Ok(())
        })
    }
}

impl Seen {
    fn texts(&self) -> Vec<String> {
        self.all.lock().unwrap().iter().map(|d| String::from_utf8(d.data.to_vec()).unwrap()).collect()
    }
}

fn request(topic: &str) -> SubscribeRequest {
    SubscribeRequest { topic: topic.into(), metadata: Metadata::new() }
}

fn publish(topic: &str, data: impl Into<Bytes>) -> PublishRequest {
    PublishRequest { topic: topic.into(), data: data.into(), ..PublishRequest::default() }
}

fn mosquitto_pub(broker: &Mosquitto, args: &[&str]) {
    let status = Command::new("mosquitto_pub").args(["-h", "127.0.0.1", "-p", &broker.port.to_string()]).args(args).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn what_one_component_publishes_another_gets_in_order_with_its_topic() {
    let Some(broker) = Mosquitto::start("").await else { return };
    for version in [Version::V3, Version::V5] {
        let (from, to) = (component(version, &[("url", &broker.url())]).await, component(version, &[("url", &broker.url())]).await);
        let seen = Arc::new(Seen::default());
        let subscription = to.subscribe(request("s/+/x"), seen.clone()).await.unwrap();
        for n in 0..50 {
            from.publish(publish("s/1/x", n.to_string())).await.unwrap();
        }
        until("all are there", || seen.texts().len() == 50).await;
        assert_eq!(seen.texts(), (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(seen.all.lock().unwrap().iter().all(|d| d.topic == "s/1/x" && d.metadata["retained"] == "false"));
        subscription.close().await;
        to.close().await;
        assert!(matches!(to.publish(publish("a", "x")).await, Err(PubSubError::Closed)));
    }
}

#[tokio::test]
async fn quality_2_arrives_once_both_ways() {
    let Some(broker) = Mosquitto::start("").await else { return };
    for version in [Version::V3, Version::V5] {
        let url = broker.url();
        let properties = [("url", url.as_str()), ("qos", "2")];
        let (from, to) = (component(version, &properties).await, component(version, &properties).await);
        let seen = Arc::new(Seen::default());
        let _subscription = to.subscribe(request("two"), seen.clone()).await.unwrap();
        for n in 0..20 {
            from.publish(publish("two", n.to_string())).await.unwrap();
        }
        until("all are there", || seen.texts().len() >= 20).await;
        assert_eq!(seen.texts(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_failed_message_comes_again_without_a_reconnect_and_holds_its_topic_only() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let to = component(Version::V3, &[("url", &broker.url())]).await;
    let (slow, quick) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    slow.failures.store(3, Ordering::SeqCst);
    let _one = to.subscribe(request("slow"), slow.clone()).await.unwrap();
    let _two = to.subscribe(request("quick"), quick.clone()).await.unwrap();
    for n in ["1", "2"] {
        mosquitto_pub(&broker, &["-q", "1", "-t", "slow", "-m", n]);
        mosquitto_pub(&broker, &["-q", "1", "-t", "quick", "-m", n]);
    }
    until("the quick ones are there", || quick.texts().len() == 2).await;
    until("the slow ones are there", || slow.texts().len() == 2).await;
    assert_eq!((slow.texts(), slow.calls.load(Ordering::SeqCst)), (vec!["1".to_owned(), "2".to_owned()], 5));
}

#[tokio::test]
async fn after_a_broker_that_forgets_everything_subscriptions_stand_again() {
    let Some(mut broker) = Mosquitto::start("").await else { return };
    for version in [Version::V3, Version::V5] {
        let to = component(version, &[("url", &broker.url())]).await;
        let seen = Arc::new(Seen::default());
        let _subscription = to.subscribe(request("again/#"), seen.clone()).await.unwrap();
        broker.kill();
        broker.start_again().await;
        // The broker has no session: what is published before the subscription stands again is lost there.
        until("a message comes through", || {
            mosquitto_pub(&broker, &["-q", "1", "-t", "again/x", "-m", "hello"]);
            !seen.texts().is_empty()
        })
        .await;
    }
}

#[tokio::test]
async fn messages_of_a_session_that_come_before_the_subscription_wait_for_it() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let url = broker.url();
    let properties = [("url", url.as_str()), ("consumerID", "keeper")];
    let seen = Arc::new(Seen::default());
    let first = component(Version::V3, &properties).await;
    first.subscribe(request("kept"), seen.clone()).await.unwrap().close().await;
    first.close().await;
    for n in ["1", "2", "3"] {
        mosquitto_pub(&broker, &["-q", "1", "-t", "kept", "-m", n]);
    }
    let second = component(Version::V3, &properties).await;
    second.publish(publish("other", "connects")).await.unwrap();
    let _subscription = second.subscribe(request("kept"), seen.clone()).await.unwrap();
    until("all are there", || seen.texts().len() >= 3).await;
    assert_eq!(seen.texts(), ["1", "2", "3"]);
}

/// Takes one message and then nothing, until it may.
#[derive(Default)]
struct Held {
    seen: Seen,
    may: tokio::sync::Notify,
}

impl MessageHandler for Held {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            self.seen.handle(message).await?;
            self.may.notified().await;
            Ok(())
        })
    }
}

#[tokio::test]
async fn what_waits_when_a_subscription_ends_is_not_acknowledged_and_goes_to_the_next_one() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let url = broker.url();
    for (version, restarts) in [(Version::V3, true), (Version::V5, true), (Version::V3, false), (Version::V5, false)] {
        let name = format!("leaves-{version:?}-{restarts}");
        let properties = [("url", url.as_str()), ("consumerID", name.as_str())];
        let (held, seen) = (Arc::new(Held::default()), Arc::new(Seen::default()));
        let mut to = component(version, &properties).await;
        let subscription = to.subscribe(request("left"), held.clone()).await.unwrap();
        let all: Vec<String> = (0..150).map(|n| n.to_string()).collect();
        let from = component(version, &[("url", &url)]).await;
        for n in &all {
            from.publish(publish("left", n.clone())).await.unwrap();
        }
        until("the first one is being handled", || held.seen.texts().len() == 1).await;
        // The call that runs is waited for; those behind it have not begun.
        let ((), ()) = tokio::join!(subscription.close(), async {
            tokio::task::yield_now().await;
            held.may.notify_one();
        });
        if restarts {
            to.close().await;
            to = component(version, &properties).await;
        }
        let _next = to.subscribe(request("left"), seen.clone()).await.unwrap();
        until("the others come", || seen.texts().last() == all.last()).await;
        assert_eq!(held.seen.texts(), all[..1], "{name}");
        let others = seen.texts();
        assert!(others == all[1..] || restarts && others == all, "{name}: {others:?}");
    }
}

#[tokio::test]
async fn retained_user_properties_and_shared_subscriptions() {
    let Some(broker) = Mosquitto::start("").await else { return };
    mosquitto_pub(&broker, &["-r", "-q", "1", "-t", "kept", "-m", "old"]);
    let to = component(Version::V5, &[("url", &broker.url())]).await;
    let (seen, shared) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    let _one = to.subscribe(request("kept"), seen.clone()).await.unwrap();
    let _two = to.subscribe(request("$share/group/work/+"), shared.clone()).await.unwrap();
    until("the retained one is there", || seen.texts() == ["old"]).await;
    assert_eq!(seen.all.lock().unwrap()[0].metadata["retained"], "true");
    mosquitto_pub(
        &broker,
        &[
            "-V",
            "5",
            "-q",
            "1",
            "-t",
            "work/1",
            "-m",
            "job",
            "-D",
            "publish",
            "user-property",
            "colour",
            "red",
            "-D",
            "publish",
            "content-type",
            "text/plain",
        ],
    );
    until("the job is there", || shared.texts() == ["job"]).await;
    let all = shared.all.lock().unwrap().clone();
    assert_eq!((all[0].metadata["colour"].as_str(), all[0].content_type.as_deref()), ("red", Some("text/plain")));
}

#[tokio::test]
async fn a_publish_waits_for_a_broker_that_comes_late_and_bad_requests_do_not() {
    let Some(mut broker) = Mosquitto::start("").await else { return };
    broker.stop();
    let from = component(Version::V3, &[("url", &broker.url())]).await;
    let waiting = tokio::spawn({
        let from = from.clone();
        async move { from.publish(publish("late", "x")).await }
    });
    assert!(matches!(from.publish(publish("bad/#", "x")).await, Err(PubSubError::Invalid(_))));
    let odd = PublishRequest { metadata: [("retain".to_owned(), "perhaps".to_owned())].into(), ..publish("a", "x") };
    assert!(matches!(from.publish(odd).await, Err(PubSubError::Invalid(_))));
    assert!(matches!(from.subscribe(request("a/#/b"), Arc::new(Seen::default())).await, Err(PubSubError::Invalid(_))));
    broker.start_again().await;
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_subscription_to_a_broker_that_is_away_counts_as_made_and_stands_later() {
    let Some(mut broker) = Mosquitto::start("").await else { return };
    broker.stop();
    let to = component(Version::V5, &[("url", &broker.url())]).await;
    let seen = Arc::new(Seen::default());
    let _subscription = tokio::time::timeout(Duration::from_secs(5), to.subscribe(request("x"), seen.clone())).await.unwrap().unwrap();
    broker.start_again().await;
    until("a message comes through", || {
        mosquitto_pub(&broker, &["-q", "1", "-t", "x", "-m", "hello"]);
        !seen.texts().is_empty()
    })
    .await;
}

struct Events(Mutex<Vec<BindingReading>>);

impl BindingHandler for Events {
    fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
        self.0.lock().unwrap().push(reading);
        Box::pin(async { Ok(None) })
    }
}

#[tokio::test]
async fn the_binding_reads_its_topic_and_creates_on_it() {
    let Some(broker) = Mosquitto::start("").await else { return };
    let properties = [("url", broker.url()), ("topic", "bound".to_owned()), ("consumerID", "me".to_owned())];
    let properties: Vec<_> = properties.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let binding = selvedge_mqtt::binding(context(&properties, Arc::new(SystemClock::new())).await).await.unwrap();
    let (input, output) = (binding.input.unwrap(), binding.output.unwrap());
    let events = Arc::new(Events(Mutex::default()));
    let reading = input.read(events.clone()).await.unwrap();
    let create = |metadata: &[(&str, &str)]| InvokeRequest {
        operation: "create".into(),
        data: Bytes::from_static(b"{\"a\":1}"),
        metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    output.invoke(create(&[("topic", "elsewhere")])).await.unwrap();
    output.invoke(create(&[])).await.unwrap();
    until("the event is there", || !events.0.lock().unwrap().is_empty()).await;
    reading.close().await;
    let seen = events.0.lock().unwrap().clone();
    assert_eq!((seen.len(), seen[0].metadata["topic"].as_str(), seen[0].data.as_ref()), (1, "bound", &b"{\"a\":1}"[..]));
    assert!(selvedge_mqtt::binding(context(&[("url", "mqtt://h")], Arc::new(SystemClock::new())).await).await.is_err(), "topic is required");
}
