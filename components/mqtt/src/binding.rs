//! `bindings.mqtt3`: a topic as a source of events and as a target of calls.

use std::sync::Arc;
use std::time::Duration;

use selvedge::component::{
    Binding, BindingError, BindingHandler, BindingReading, ComponentContext, Fut, InitError, InputBinding, InvokeRequest, InvokeResponse, Metadata,
    OutputBinding, PubSubError, PublishRequest, ReadHandle,
};
use selvedge::topic;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::connection::{Connection, Phase};
use crate::inbound::{Handler, plain_filter};
use crate::pubsub::{MqttSubscription, connection, subscribe};
use crate::session::Message;
use crate::settings::{Settings, Timing, Version};
use crate::supervise::supervise;

/// Attempts of a call after the first, the pause between them, and how long each waits: Dapr's.
const RETRIES: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
const ATTEMPT: Duration = Duration::from_secs(10);

/// A connection that is opened with its first use and kept open.
#[derive(Debug)]
struct Kept {
    connection: Arc<Connection>,
    task: JoinHandle<()>,
}

impl Kept {
    fn open(settings: Settings, clock: Arc<dyn selvedge::time::Clock>) -> Self {
        let connection = connection(settings, clock);
        connection.set_phase(Phase::Connecting);
        let task = tokio::spawn(supervise(connection.clone()));
        Self { connection, task }
    }

    async fn close(&self) {
        self.task.abort();
        self.connection.disconnect().await;
        self.connection.close();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
        self.connection.close();
    }
}

/// Both directions of the binding. Each has a connection and a client id of its own, `<consumerID>-producer` and `-consumer`.
pub struct MqttBinding {
    settings: Settings,
    topic: String,
    clock: Arc<dyn selvedge::time::Clock>,
    producer: OnceCell<Kept>,
    consumer: OnceCell<Kept>,
}

impl MqttBinding {
    async fn kept<'a>(&self, cell: &'a OnceCell<Kept>, suffix: &str) -> &'a Kept {
        cell.get_or_init(|| async {
            let client_id = format!("{}-{suffix}", self.settings.client_id);
            Kept::open(Settings { client_id, ..self.settings.clone() }, self.clock.clone())
        })
        .await
    }
}

impl OutputBinding for MqttBinding {
    fn operations(&self) -> &[&'static str] {
        &["create"]
    }

    fn invoke<'a>(&'a self, request: InvokeRequest) -> Fut<'a, Result<InvokeResponse, BindingError>> {
        Box::pin(async move {
            let topic = request.metadata.get("topic").filter(|t| !t.is_empty()).unwrap_or(&self.topic);
            topic::check_name(topic).map_err(|e| BindingError::Invalid(format!("topic {topic:?}: {e}")))?;
            let connection = &self.kept(&self.producer, "producer").await.connection;
            let publish = PublishRequest { topic: topic.clone(), data: request.data, ..PublishRequest::default() };
            let mut attempt = 0;
            loop {
                match connection.publish(publish.clone(), self.settings.retain, None).await {
                    Ok(()) => return Ok(InvokeResponse::default()),
                    Err(PubSubError::Unavailable(_)) if attempt < RETRIES => {
                        attempt += 1;
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    Err(PubSubError::Unavailable(reason) | PubSubError::Full { text: reason, .. }) => return Err(BindingError::Unavailable(reason)),
                    Err(PubSubError::Closed) => return Err(BindingError::Unavailable("the binding is closed".into())),
                    Err(PubSubError::Invalid(reason)) => return Err(BindingError::Invalid(reason)),
                    Err(PubSubError::Refused(message)) => return Err(BindingError::Rejected { message, response: Box::default() }),
                }
            }
        })
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async move {
            if let Some(producer) = self.producer.get() {
                producer.close().await;
            }
        })
    }
}

struct Reading {
    subscription: MqttSubscription,
}

impl ReadHandle for Reading {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(self.subscription.stop())
    }
}

fn reading(message: &Message) -> BindingReading {
    let mut metadata = Metadata::new();
    metadata.insert("topic".into(), message.topic.clone());
    BindingReading { data: message.payload.clone(), metadata, content_type: message.content_type.clone() }
}

impl InputBinding for MqttBinding {
    fn read<'a>(&'a self, handler: Arc<dyn BindingHandler>) -> Fut<'a, Result<Box<dyn ReadHandle>, BindingError>> {
        Box::pin(async move {
            let connection = &self.kept(&self.consumer, "consumer").await.connection;
            let handler: Handler = Arc::new(move |message| {
                let handler = handler.clone();
                Box::pin(async move { handler.handle(reading(&message)).await.map(|_| ()) })
            });
            let subscribed = subscribe(connection, &self.topic, 1, self.settings.clean_session, handler).await;
            let subscription = subscribed.map_err(|e| match e {
                PubSubError::Invalid(reason) => BindingError::Invalid(reason),
                PubSubError::Refused(message) => BindingError::Rejected { message, response: Box::default() },
                other => BindingError::Unavailable(other.to_string()),
            })?;
            Ok(Box::new(Reading { subscription }) as Box<dyn ReadHandle>)
        })
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async move {
            if let Some(consumer) = self.consumer.get() {
                consumer.close().await;
            }
        })
    }
}

/// Factory of `bindings.mqtt3`. Checks the settings; the broker need not be there. A message whose handler fails is offered again with
/// back-off until it is taken, so `backOffMaxRetries` is read and checked, and limits nothing.
///
/// # Errors
/// The setting that is missing or wrong.
pub async fn binding(context: ComponentContext) -> Result<Binding, InitError> {
    let properties = &context.properties;
    let topic = properties.require("topic", "the topic to read from and to publish to")?.to_owned();
    topic::check_filter(plain_filter(&topic)).map_err(|e| InitError::failed(format!("topic {topic:?}"), e))?;
    properties.require("consumerID", "the MQTT client id, without -producer and -consumer")?;
    properties.integer("backOffMaxRetries", 0)?;
    let settings = Settings::read(&context, Version::V3)?;
    let settings = Settings { qos: 1, timing: Timing { answer: ATTEMPT, ..settings.timing }, ..settings };
    let binding = Arc::new(MqttBinding { settings, topic, clock: context.clock.clone(), producer: OnceCell::new(), consumer: OnceCell::new() });
    Ok(Binding { input: Some(binding.clone()), output: Some(binding) })
}

impl std::fmt::Debug for MqttBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MqttBinding").field("settings", &self.settings).field("topic", &self.topic).finish_non_exhaustive()
    }
}
