//! `pubsub.in-memory`: messages reach the subscriptions that are there, and nobody else.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use selvedge::component::{
    ComponentContext, Delivery, Fut, InitError, MessageHandler, PubSub, PubSubError, PubSubFeature, PublishRequest, Published, SubscribeRequest,
    SubscriptionHandle,
};
use tokio::sync::{mpsc, watch};

const FEATURES: [PubSubFeature; 1] = [PubSubFeature::SubscribeWildcards];
/// Messages that may wait for one subscription.
const QUEUE_MESSAGES: usize = 8_192;
/// Bytes of messages that may wait for one subscription; a single larger message is taken when nothing waits.
const QUEUE_BYTES: usize = 32 << 20;

struct Subscriber {
    id: u64,
    /// Topic as subscribed; with a `*` at the end every topic that begins so.
    topic: String,
    queue: mpsc::Sender<Delivery>,
    bytes: Arc<AtomicUsize>,
}

impl Subscriber {
    fn wants(&self, topic: &str) -> bool {
        match self.topic.strip_suffix('*') {
            Some(beginning) => topic.starts_with(beginning),
            None => self.topic == topic,
        }
    }
}

#[derive(Default)]
struct Shared {
    subscribers: Mutex<Vec<Subscriber>>,
    next_id: AtomicU64,
    closed: AtomicBool,
}

impl Shared {
    fn with_subscribers<T>(&self, act: impl FnOnce(&mut Vec<Subscriber>) -> T) -> T {
        act(&mut self.subscribers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Pub/sub in the process's memory. A subscription's handler gets one message at a time, in the order of publishing; a message
/// that it fails on is logged and gone, as is one that nobody has subscribed to. Each subscription has a bounded queue: a publish
/// that finds one of its queues full is refused as a whole.
pub struct MemoryPubSub {
    name: String,
    shared: Arc<Shared>,
    refused: Counter,
}

impl std::fmt::Debug for MemoryPubSub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryPubSub").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Builds a `pubsub.in-memory`. It has no settings.
///
/// # Errors
/// None.
pub async fn pubsub(context: ComponentContext) -> Result<Arc<dyn PubSub>, InitError> {
    let refused = context.metrics.shared(
        "selvedge_pubsub_memory_refused",
        "Messages refused because the queue of a subscription of an in-memory pub/sub was full",
        Family::<Vec<(&'static str, String)>, Counter>::default,
    );
    let refused = Counter::clone(&refused.get_or_create(&vec![("component", context.name.clone())]));
    Ok(Arc::new(MemoryPubSub { name: context.name, shared: Arc::default(), refused }))
}

impl MemoryPubSub {
    fn deliver(&self, request: &PublishRequest) -> Result<(), PubSubError> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(PubSubError::Closed);
        }
        let size = request.data.len();
        self.shared.with_subscribers(|subscribers| {
            let wanted: Vec<&Subscriber> = subscribers.iter().filter(|s| s.wants(&request.topic)).collect();
            // Places first, messages then: a publish is delivered to all or refused.
            let mut places = Vec::with_capacity(wanted.len());
            for subscriber in &wanted {
                let waiting = subscriber.bytes.load(Ordering::Acquire);
                match subscriber.queue.try_reserve() {
                    Ok(place) if waiting == 0 || waiting + size <= QUEUE_BYTES => places.push((place, *subscriber)),
                    Err(mpsc::error::TrySendError::Closed(())) => {} // its task ends just now
                    _ => {
                        self.refused.inc();
                        let topic = &subscriber.topic;
                        return Err(PubSubError::Unavailable(format!(
                            "the queue of the subscription to {topic} is full ({QUEUE_MESSAGES} messages or {} MiB)",
                            QUEUE_BYTES >> 20
                        )));
                    }
                }
            }
            for (place, subscriber) in places {
                subscriber.bytes.fetch_add(size, Ordering::AcqRel);
                place.send(Delivery {
                    // Dapr's rule: what the handler is told is the topic that it subscribed to.
                    topic: subscriber.topic.clone(),
                    data: request.data.clone(),
                    content_type: request.content_type.clone(),
                    metadata: request.metadata.clone(),
                });
            }
            Ok(())
        })
    }
}

impl PubSub for MemoryPubSub {
    fn features(&self) -> &[PubSubFeature] {
        &FEATURES
    }

    /// As Dapr's does: it hands out one message at a time all the same, so each waits its full time.
    fn bulk_waits(&self) -> bool {
        true
    }

    fn publish<'a>(&'a self, request: PublishRequest) -> Fut<'a, Result<Published, PubSubError>> {
        let outcome = self.deliver(&request).map(|()| Published::default());
        Box::pin(std::future::ready(outcome))
    }

    fn subscribe<'a>(
        &'a self,
        request: SubscribeRequest,
        handler: Arc<dyn MessageHandler>,
    ) -> Fut<'a, Result<Box<dyn SubscriptionHandle>, PubSubError>> {
        Box::pin(async move {
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(PubSubError::Closed);
            }
            let (queue, messages) = mpsc::channel(QUEUE_MESSAGES);
            let (stop, stopped) = watch::channel(());
            let (running, done) = watch::channel(());
            let bytes = Arc::new(AtomicUsize::new(0));
            let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
            let topic = request.topic;
            tokio::spawn(serve(topic.clone(), messages, bytes.clone(), handler, stopped, running));
            self.shared.with_subscribers(|subscribers| subscribers.push(Subscriber { id, topic, queue, bytes }));
            Ok(Box::new(Subscription { id, shared: self.shared.clone(), stop: Mutex::new(Some(stop)), done }) as Box<dyn SubscriptionHandle>)
        })
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        self.shared.closed.store(true, Ordering::Release);
        // Without a sender each task ends once it has handled what it has; the handles wait for that.
        self.shared.with_subscribers(Vec::clear);
        Box::pin(async {})
    }
}

/// Hands messages to the handler until the subscription is stopped or the component closed.
async fn serve(
    topic: String,
    mut messages: mpsc::Receiver<Delivery>,
    bytes: Arc<AtomicUsize>,
    handler: Arc<dyn MessageHandler>,
    mut stopped: watch::Receiver<()>,
    running: watch::Sender<()>,
) {
    loop {
        let message = tokio::select! {
            biased;
            _ = stopped.changed() => break,
            message = messages.recv() => message,
        };
        let Some(message) = message else { break };
        bytes.fetch_sub(message.data.len(), Ordering::AcqRel);
        if let Err(error) = handler.handle(message).await {
            tracing::error!(%topic, %error, "a message of the in-memory pub/sub was not handled; it is not delivered again");
        }
    }
    drop(running); // closes the channel that the handle waits at
}

struct Subscription {
    id: u64,
    shared: Arc<Shared>,
    /// Dropped to stop.
    stop: Mutex<Option<watch::Sender<()>>>,
    done: watch::Receiver<()>,
}

impl Subscription {
    fn stop(&self) {
        self.shared.with_subscribers(|subscribers| subscribers.retain(|s| s.id != self.id));
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl SubscriptionHandle for Subscription {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        self.stop();
        let mut done = self.done.clone();
        // Nothing is ever sent: the wait ends when the task does.
        Box::pin(async move { while done.changed().await.is_ok() {} })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use selvedge_conformance::{Bench, PubSubTraits};

    use super::*;

    struct Held {
        open: watch::Receiver<bool>,
        handled: AtomicUsize,
    }

    impl MessageHandler for Held {
        fn handle<'a>(&'a self, _: Delivery) -> Fut<'a, Result<(), selvedge::component::HandlerError>> {
            Box::pin(async move {
                let _ = self.open.clone().wait_for(|open| *open).await;
                self.handled.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        }
    }

    fn message(topic: &str, data: Vec<u8>) -> PublishRequest {
        PublishRequest { topic: topic.into(), data: data.into(), ..PublishRequest::default() }
    }

    fn to(topic: &str) -> SubscribeRequest {
        SubscribeRequest { topic: topic.into(), ..SubscribeRequest::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_passes_the_shared_suite() {
        let bench = Bench::new().await;
        let pubsub = pubsub(bench.context("pubsub.in-memory", &[])).await.unwrap();
        let traits =
            PubSubTraits { redelivers: false, keeps_order: true, wildcard: Some(("suite/w/*", "suite/w/1/x")), tells_subscribed_topic: true };
        selvedge_conformance::pubsub(pubsub, &traits).await;
    }

    #[tokio::test]
    async fn full_queues_refuse_and_the_handle_waits_for_the_handler() {
        let bench = Bench::new().await;
        let pubsub = pubsub(bench.context("pubsub.in-memory", &[])).await.unwrap();
        let (open, opened) = watch::channel(false);
        let handler = Arc::new(Held { open: opened, handled: AtomicUsize::new(0) });
        let handle = pubsub.subscribe(to("t"), handler.clone()).await.unwrap();
        let large = || message("t", vec![0; QUEUE_BYTES / 2]);
        pubsub.publish(large()).await.unwrap();
        tokio::task::yield_now().await; // the handler holds this one
        pubsub.publish(large()).await.unwrap();
        pubsub.publish(large()).await.unwrap();
        assert!(matches!(pubsub.publish(large()).await, Err(PubSubError::Unavailable(_))), "bytes");
        for _ in 2..QUEUE_MESSAGES {
            pubsub.publish(message("t", Vec::new())).await.unwrap();
        }
        assert!(matches!(pubsub.publish(message("t", Vec::new())).await, Err(PubSubError::Unavailable(_))), "messages");

        let mut closing = handle.close();
        assert!(futures_poll(&mut closing).await, "a handler runs still");
        open.send(true).unwrap();
        closing.await;
        assert_eq!(handler.handled.load(Ordering::Relaxed), 1, "nothing new after the close");
        pubsub.publish(message("t", Vec::new())).await.unwrap();
    }

    /// Whether the future is not done yet.
    async fn futures_poll(future: &mut Fut<'_, ()>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn a_closed_component_says_so() {
        let bench = Bench::new().await;
        let pubsub = pubsub(bench.context("pubsub.in-memory", &[])).await.unwrap();
        pubsub.close().await;
        assert_eq!(pubsub.publish(message("t", Vec::new())).await, Err(PubSubError::Closed));
    }
}
