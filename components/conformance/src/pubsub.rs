use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{
    BulkEntry, Delivery, Fut, HandlerError, MessageHandler, PubSub, PubSubFeature, PublishRequest, SubscribeRequest, SubscriptionHandle,
};
use tokio::sync::watch;

/// What a pub/sub promises beyond the contract.
#[derive(Debug, Clone, Copy)]
pub struct PubSubTraits {
    /// A message whose handler failed comes again.
    pub redelivers: bool,
    /// Messages of a topic come in the order of publishing while no handler fails.
    pub keeps_order: bool,
    /// A wildcard subscription and a topic that it covers.
    pub wildcard: Option<(&'static str, &'static str)>,
    /// The delivery of a wildcard subscription names the subscription instead of the topic.
    pub tells_subscribed_topic: bool,
}

/// Messages are awaited at most this long (of the runtime's time, which tests may pause).
const PATIENCE: Duration = Duration::from_secs(60);

/// Decides on each message with its number among all calls, from 1.
type Verdict = Box<dyn Fn(u64, &Delivery) -> Result<(), HandlerError> + Send + Sync>;

/// Collects deliveries.
struct Inbox {
    verdict: Verdict,
    calls: Mutex<u64>,
    taken: Mutex<Vec<Delivery>>,
    count: watch::Sender<usize>,
}

impl Inbox {
    fn new(verdict: impl Fn(u64, &Delivery) -> Result<(), HandlerError> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { verdict: Box::new(verdict), calls: Mutex::default(), taken: Mutex::default(), count: watch::channel(0).0 })
    }

    fn all() -> Arc<Self> {
        Self::new(|_, _| Ok(()))
    }

    /// Texts of what was taken, once there are `count`.
    async fn texts(&self, count: usize) -> Vec<String> {
        let mut counted = self.count.subscribe();
        let waited = tokio::time::timeout(PATIENCE, counted.wait_for(|n| *n >= count)).await;
        let texts: Vec<String> = self.taken.lock().unwrap().iter().map(|d| String::from_utf8_lossy(&d.data).into_owned()).collect();
        assert!(waited.is_ok(), "{count} messages in time, got {texts:?}");
        texts
    }
}

impl MessageHandler for Inbox {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        let call = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        let verdict = (self.verdict)(call, &message);
        if verdict.is_ok() {
            let mut taken = self.taken.lock().unwrap();
            taken.push(message);
            self.count.send_replace(taken.len());
        }
        Box::pin(std::future::ready(verdict))
    }
}

async fn subscribe(pubsub: &dyn PubSub, topic: &str, handler: &Arc<Inbox>) -> Box<dyn SubscriptionHandle> {
    pubsub.subscribe(SubscribeRequest { topic: topic.into(), ..SubscribeRequest::default() }, handler.clone()).await.unwrap()
}

async fn publish(pubsub: &dyn PubSub, topic: &str, text: &str) {
    let data = Bytes::copy_from_slice(text.as_bytes());
    pubsub.publish(PublishRequest { topic: topic.into(), data, ..PublishRequest::default() }).await.unwrap();
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// A pub/sub delivers what is published to those who subscribed, and to nobody else.
pub async fn pubsub(pubsub: Arc<dyn PubSub>, traits: &PubSubTraits) {
    let pubsub = &*pubsub;
    assert!(pubsub.features().is_sorted(), "features are declared in the order that Dapr shows them");
    assert_eq!(pubsub.features().contains(&PubSubFeature::SubscribeWildcards), traits.wildcard.is_some());
    contents(pubsub).await;
    order(pubsub, traits).await;
    failures(pubsub, traits).await;
    topics(pubsub).await;
    if let Some((filter, topic)) = traits.wildcard {
        let inbox = Inbox::all();
        let handle = subscribe(pubsub, filter, &inbox).await;
        publish(pubsub, "suite/other", "no").await;
        publish(pubsub, topic, "yes").await;
        assert_eq!(inbox.texts(1).await, ["yes"]);
        let told = inbox.taken.lock().unwrap()[0].topic.clone();
        assert_eq!(told, if traits.tells_subscribed_topic { filter } else { topic });
        handle.close().await;
    }
    if pubsub.features().contains(&PubSubFeature::BulkPublish) {
        bulk(pubsub, traits).await;
    } else {
        let failures = pubsub.bulk_publish("suite/bulk".into(), vec![Default::default()], Default::default()).await;
        assert_eq!(failures.len(), 1, "what is not declared fails");
    }
}

async fn contents(pubsub: &dyn PubSub) {
    let inbox = Inbox::all();
    let handle = subscribe(pubsub, "suite/contents", &inbox).await;
    let payloads: [&[u8]; 4] = [b"{\"json\":1}", b"", &[0, 255, 10, 13], &[b'x'; 200_000]];
    for data in payloads {
        let content_type = Some("application/x-suite".to_owned());
        let request = PublishRequest { topic: "suite/contents".into(), data: data.into(), content_type, ..PublishRequest::default() };
        pubsub.publish(request).await.unwrap();
    }
    inbox.texts(payloads.len()).await;
    let taken = inbox.taken.lock().unwrap().clone();
    for data in payloads {
        let delivery = taken.iter().find(|d| d.data == data).expect("each payload comes as it was");
        assert_eq!(delivery.topic, "suite/contents");
        assert!(delivery.content_type.as_deref().is_none_or(|t| t == "application/x-suite"), "a media type that comes, comes unchanged");
    }
    handle.close().await;
}

async fn order(pubsub: &dyn PubSub, traits: &PubSubTraits) {
    let inbox = Inbox::all();
    let handle = subscribe(pubsub, "suite/order", &inbox).await;
    for n in numbers(0..100) {
        publish(pubsub, "suite/order", &n).await;
    }
    let mut texts = inbox.texts(100).await;
    if !traits.keeps_order {
        texts.sort_by_key(|t| t.parse::<u32>().unwrap());
    }
    assert_eq!(texts, numbers(0..100));
    handle.close().await;
}

async fn failures(pubsub: &dyn PubSub, traits: &PubSubTraits) {
    // The handler fails the first two calls and then every fifth.
    let inbox =
        Inbox::new(|call, _| if call <= 2 || call.is_multiple_of(5) { Err(HandlerError::Retry(format!("call {call} fails"))) } else { Ok(()) });
    let handle = subscribe(pubsub, "suite/failures", &inbox).await;
    for n in numbers(0..10) {
        publish(pubsub, "suite/failures", &n).await;
    }
    if traits.redelivers {
        let texts: HashSet<String> = inbox.texts(10).await.into_iter().collect();
        assert_eq!(texts, numbers(0..10).into_iter().collect(), "what failed comes again");
    } else {
        // Calls 1, 2, 5 and 10 fail.
        assert_eq!(inbox.texts(6).await, ["2", "3", "5", "6", "7", "8"]);
    }
    handle.close().await;
}

async fn bulk(pubsub: &dyn PubSub, traits: &PubSubTraits) {
    let inbox = Inbox::all();
    let handle = subscribe(pubsub, "suite/bulk", &inbox).await;
    for batch in 0..3 {
        let entry = |n: u32| BulkEntry { entry_id: format!("entry {n}"), data: (batch * 5 + n).to_string().into(), ..BulkEntry::default() };
        let failures = pubsub.bulk_publish("suite/bulk".into(), (0..5).map(entry).collect(), Default::default()).await;
        assert!(failures.is_empty(), "{failures:?}");
    }
    let mut texts = inbox.texts(15).await;
    if !traits.keeps_order {
        texts.sort_by_key(|t| t.parse::<u32>().unwrap());
    }
    assert_eq!(texts, numbers(0..15));
    handle.close().await;
}

async fn topics(pubsub: &dyn PubSub) {
    let [a, b, also_a] = [Inbox::all(), Inbox::all(), Inbox::all()];
    let handle_a = subscribe(pubsub, "suite/a", &a).await;
    let handle_b = subscribe(pubsub, "suite/b", &b).await;
    publish(pubsub, "suite/a", "1").await;
    publish(pubsub, "suite/b", "2").await;
    publish(pubsub, "suite/nobody", "3").await;
    assert_eq!((a.texts(1).await, b.texts(1).await), (vec!["1".to_owned()], vec!["2".to_owned()]), "topics are apart");
    handle_a.close().await;
    publish(pubsub, "suite/b", "4").await;
    assert_eq!(b.texts(2).await, ["2", "4"], "ending one spares the other");
    assert_eq!(a.texts(1).await, ["1"]);
    drop(handle_b);
    let handle = subscribe(pubsub, "suite/c", &also_a).await;
    publish(pubsub, "suite/c", "5").await;
    assert_eq!(also_a.texts(1).await, ["5"]);
    assert_eq!(b.texts(2).await.len(), 2, "a dropped handle ends the delivery");
    handle.close().await;
}
