//! Streaming subscriptions: the application opens a stream, events go down, what became of them comes up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use selvedge_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Up;
use selvedge_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Down;
use selvedge_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1, SubscribeTopicEventsRequestProcessedAlpha1,
    SubscribeTopicEventsResponseAlpha1, SubscribeTopicEventsResponseInitialAlpha1,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::app::{TopicEvent, Verdict, status_verdict, topic_event};
use crate::block::{Blocks, Outlet};
use crate::component::Fut;
use crate::resource::{BulkSubscribe, RouteRule, SubscriptionSpec};

/// Events on their way to one stream beyond what HTTP/2's own window holds.
const BUFFERED: usize = 16;
/// Path that a stream's events carry.
const PATH: &str = "/";

type Answer = Result<SubscribeTopicEventsResponseAlpha1, Status>;
/// What the transport sends.
pub(super) type Answers = ReceiverStream<Answer>;

fn down(message: Down) -> Answer {
    Ok(SubscribeTopicEventsResponseAlpha1 { subscribe_topic_events_response_type: Some(message) })
}

/// Events that wait for what the application says of them, by id.
#[derive(Default)]
struct Waiting {
    /// Number and the one who waits; several deliveries may carry the same id.
    by_id: Mutex<HashMap<String, Vec<oneshot::Sender<Verdict>>>>,
}

impl Waiting {
    fn add(&self, id: &str) -> oneshot::Receiver<Verdict> {
        let (answer, answered) = oneshot::channel();
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default().push(answer);
        answered
    }

    /// An id that nobody waits for is ignored.
    fn answer(&self, id: &str, verdict: Verdict) {
        let mut all = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = all.get_mut(id) {
            if !waiting.is_empty() {
                // Nobody listens any more when the subscription has ended.
                let _ = waiting.remove(0).send(verdict);
            }
            if waiting.is_empty() {
                all.remove(id);
            }
        }
    }

    /// The stream is over: whoever waits is told by the drop of its sender.
    fn end(&self) {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

struct StreamOutlet {
    answers: mpsc::Sender<Answer>,
    waiting: Arc<Waiting>,
}

impl Outlet for StreamOutlet {
    fn deliver<'a>(&'a self, event: TopicEvent<'a>) -> Fut<'a, Verdict> {
        Box::pin(async move {
            let message = match topic_event(event) {
                Ok(message) => message,
                Err(cause) => return Verdict::Retry(cause),
            };
            let answered = self.waiting.add(&message.id);
            if self.answers.send(down(Down::EventMessage(message))).await.is_err() {
                self.waiting.end();
                return Verdict::Retry("the stream is closed".to_owned());
            }
            answered.await.unwrap_or_else(|_| Verdict::Retry("the stream was closed before the event was answered".to_owned()))
        })
    }
}

fn spec(request: SubscribeTopicEventsRequestInitialAlpha1) -> Result<SubscriptionSpec, Status> {
    if request.pubsub_name.is_empty() {
        return Err(Status::invalid_argument("pubsubName is required"));
    }
    if request.topic.is_empty() {
        return Err(Status::invalid_argument("topic is required"));
    }
    Ok(SubscriptionSpec {
        name: String::new(),
        pubsub: request.pubsub_name,
        topic: request.topic,
        rules: vec![RouteRule { matches: String::new(), path: PATH.to_owned() }],
        default_path: String::new(),
        metadata: request.metadata.into_iter().collect(),
        dead_letter_topic: request.dead_letter_topic.unwrap_or_default(),
        bulk: BulkSubscribe::default(),
        scopes: Vec::new(),
    })
}

/// Serves one stream until the application or the API ends it.
pub(super) fn serve(blocks: Blocks, requests: Streaming<SubscribeTopicEventsRequestAlpha1>, stop: watch::Receiver<bool>) -> Answers {
    let (answers, stream) = mpsc::channel(BUFFERED);
    tokio::spawn(async move {
        if let Err(status) = converse(&blocks, requests, &answers, stop).await {
            // The application may have gone.
            let _ = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn converse(
    blocks: &Blocks,
    mut requests: Streaming<SubscribeTopicEventsRequestAlpha1>,
    answers: &mpsc::Sender<Answer>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Status> {
    let first = tokio::select! {
        first = requests.message() => first?,
        _ = stop.wait_for(|s| *s) => return Ok(()),
    };
    let Some(first) = first else { return Ok(()) };
    let Some(Up::InitialRequest(initial)) = first.subscribe_topic_events_request_type else {
        return Err(Status::invalid_argument("initial request is required"));
    };
    let waiting = Arc::new(Waiting::default());
    let spec = spec(initial)?;
    let outlet = Arc::new(StreamOutlet { answers: answers.clone(), waiting: waiting.clone() });
    // The first answer stands before the first event.
    let place = answers.clone().reserve_owned().await.map_err(|_| Status::cancelled("the stream is closed"))?;
    let subscription = blocks.subscribe_stream(spec, outlet).await?;
    place.send(down(Down::InitialResponse(SubscribeTopicEventsResponseInitialAlpha1 {})));
    let outcome = loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = answers.closed() => break Ok(()),
            _ = stop.wait_for(|s| *s) => break Ok(()),
        };
        match request {
            Ok(Some(SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(Up::EventProcessed(processed)) })) => {
                let SubscribeTopicEventsRequestProcessedAlpha1 { id, status } = processed;
                waiting.answer(&id, status_verdict(status.map_or(0, |s| s.status)));
            }
            Ok(Some(SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(Up::InitialRequest(_)) })) => {
                break Err(Status::invalid_argument("duplicate initial request received"));
            }
            Ok(Some(_)) => break Err(Status::invalid_argument("a request without content")),
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    waiting.end();
    // What is on its way ends now: nobody answers it any more.
    tokio::select! {
        () = subscription.close() => {}
        () = drained(&waiting) => {}
    }
    outcome
}

/// Never resolves; keeps telling those who came late that the stream is over.
async fn drained(waiting: &Waiting) {
    loop {
        waiting.end();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
