//! Streaming subscriptions: the application opens a stream, events go down, what became of them comes up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use selvedge_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Up;
use selvedge_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Down;
use selvedge_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1, SubscribeTopicEventsRequestProcessedAlpha1,
    SubscribeTopicEventsResponseAlpha1, SubscribeTopicEventsResponseInitialAlpha1,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
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

/// Events that wait for what the application says of them. There are no more than the pub/sub hands out at a time.
#[derive(Default)]
struct Waiting {
    /// By the event's id; several deliveries may carry the same.
    by_id: Mutex<HashMap<String, VecDeque<oneshot::Sender<Verdict>>>>,
    /// The stream is over: nobody waits any longer.
    over: CancellationToken,
}

impl Waiting {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<String, VecDeque<oneshot::Sender<Verdict>>>) -> T) -> T {
        f(&mut self.by_id.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, id: &str) -> oneshot::Receiver<Verdict> {
        let (answer, answered) = oneshot::channel();
        self.with(|all| all.entry(id.to_owned()).or_default().push_back(answer));
        answered
    }

    /// The one who waits longest for this id gets the verdict; an id that nobody waits for is ignored.
    fn answer(&self, id: &str, verdict: Verdict) {
        self.with(|all| {
            let Some(waiting) = all.get_mut(id) else { return };
            if let Some(first) = waiting.pop_front() {
                // Nobody listens any more when the subscription has ended.
                let _ = first.send(verdict);
            }
            if waiting.is_empty() {
                all.remove(id);
            }
        });
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
            let exchange = async {
                self.answers.send(down(Down::EventMessage(message))).await.ok()?;
                answered.await.ok()
            };
            let verdict = tokio::select! {
                verdict = exchange => verdict,
                () = self.waiting.over.cancelled() => None,
            };
            verdict.unwrap_or_else(|| Verdict::Retry("the stream was closed before the event was answered".to_owned()))
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
    waiting.over.cancel();
    subscription.close().await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_reach_those_who_wait_in_their_order_and_unknown_ids_are_ignored() {
        let waiting = Waiting::default();
        let (mut first, mut second) = (waiting.add("a"), waiting.add("a"));
        waiting.answer("nobody", Verdict::Done);
        waiting.answer("a", Verdict::Drop);
        assert_eq!(first.try_recv(), Ok(Verdict::Drop));
        assert!(second.try_recv().is_err());
        waiting.answer("a", Verdict::Done);
        assert_eq!(second.try_recv(), Ok(Verdict::Done));
        assert!(waiting.with(|all| all.is_empty()));
    }

    #[tokio::test]
    async fn an_event_without_an_answer_is_to_be_retried_when_the_stream_ends() {
        let (answers, mut sent) = mpsc::channel(1);
        let waiting = Arc::new(Waiting::default());
        let outlet = StreamOutlet { answers, waiting: waiting.clone() };
        let event = serde_json::json!({"id": "1", "data": "x", "datacontenttype": "text/plain"});
        let event = event.as_object().unwrap();
        let delivery = outlet.deliver(TopicEvent { pubsub: "p", topic: "t", path: PATH, event });
        let (verdict, ()) = tokio::join!(delivery, async {
            assert!(sent.recv().await.unwrap().is_ok());
            waiting.over.cancel();
        });
        assert!(matches!(verdict, Verdict::Retry(_)), "{verdict:?}");
    }

    #[test]
    fn the_first_request_names_pubsub_and_topic() {
        let check = |pubsub: &str, topic: &str| {
            spec(SubscribeTopicEventsRequestInitialAlpha1 { pubsub_name: pubsub.to_owned(), topic: topic.to_owned(), ..Default::default() })
                .map_err(|s| s.message().to_owned())
        };
        assert_eq!(check("", "t").unwrap_err(), "pubsubName is required");
        assert_eq!(check("p", "").unwrap_err(), "topic is required");
        assert_eq!(check("p", "t").unwrap().rules[0].path, PATH);
    }
}
