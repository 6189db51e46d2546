//! `pubsub.mqtt3` and `pubsub.mqtt5`.

use std::sync::{Arc, Mutex, PoisonError};

use selvedge::component::{
    ComponentContext, Delivery, Finding, Fut, InitError, MessageHandler, Metadata, Properties, PubSub, PubSubError, PubSubFeature, PublishRequest,
    Published, SubscribeRequest, SubscriptionHandle, Uplink,
};
use selvedge::time::Timestamp;
use selvedge::topic;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::connection::{Connection, Phase};
use crate::inbound::{Handler, Inbound, plain_filter};
use crate::session::Message;
use crate::settings::{Settings, Version};
use crate::supervise::supervise;
use crate::uplink::MqttUplink;

/// A pub/sub over one MQTT connection.
///
/// The connection is opened by the forwarder that has taken the [uplink](PubSub::uplink), or, when there is none, with the first
/// publish or subscription. A broker that is away is no error at start: the box boots on an island too.
#[derive(Debug)]
pub struct MqttPubSub {
    connection: Arc<Connection>,
    keeper: Mutex<Keeper>,
    features: &'static [PubSubFeature],
}

/// Who keeps the connection open.
#[derive(Debug)]
enum Keeper {
    Nobody,
    Task(JoinHandle<()>),
    Forwarder,
}

impl MqttPubSub {
    /// Makes it; connects nothing.
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn selvedge::time::Clock>) -> Self {
        let features: &[_] = match settings.version {
            Version::V3 => &[PubSubFeature::SubscribeWildcards],
            Version::V5 => &[PubSubFeature::MessageTtl, PubSubFeature::SubscribeWildcards],
        };
        Self { connection: connection(settings, clock), keeper: Mutex::new(Keeper::Nobody), features }
    }

    /// Sees to it that someone opens the connection.
    fn keep(&self) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*keeper, Keeper::Nobody) {
            // Those who come next must find that it is on its way.
            self.connection.set_phase(Phase::Connecting);
            *keeper = Keeper::Task(tokio::spawn(supervise(self.connection.clone())));
        }
    }

    fn end(&self) {
        let keeper = std::mem::replace(&mut *self.keeper.lock().unwrap_or_else(PoisonError::into_inner), Keeper::Forwarder);
        if let Keeper::Task(task) = keeper {
            task.abort();
        }
    }
}

/// A connection with its receiving side.
pub(crate) fn connection(settings: Settings, clock: Arc<dyn selvedge::time::Clock>) -> Arc<Connection> {
    let inbound = Inbound::new(&settings.name, settings.timing.park);
    let connection = Connection::new(settings, clock, inbound);
    connection.core().inbound.attach(&connection);
    connection
}

impl Drop for MqttPubSub {
    fn drop(&mut self) {
        self.end();
        self.connection.close();
    }
}

/// Dapr's rule for the metadata `retain`: a boolean, anything else is a mistake of the caller.
fn retain(metadata: &Metadata, default: bool) -> Result<bool, PubSubError> {
    match metadata.get("retain").map(String::as_str) {
        None => Ok(default),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(PubSubError::Invalid(format!("metadata retain has value {other:?}; accepted is true or false"))),
    }
}

impl PubSub for MqttPubSub {
    fn features(&self) -> &[PubSubFeature] {
        self.features
    }

    fn publish<'a>(&'a self, request: PublishRequest) -> Fut<'a, Result<Published, PubSubError>> {
        Box::pin(async move {
            if request.topic.is_empty() {
                return Err(PubSubError::Invalid("topic name is empty".into()));
            }
            topic::check_name(&request.topic).map_err(|e| PubSubError::Invalid(format!("topic {:?}: {e}", request.topic)))?;
            let retain = retain(&request.metadata, self.connection.settings.retain)?;
            let ttl = request.metadata.get("ttlInSeconds").and_then(|t| t.parse().ok());
            self.keep();
            self.connection.publish(request, retain, ttl).await?;
            Ok(Published::default())
        })
    }

    fn subscribe<'a>(
        &'a self,
        request: SubscribeRequest,
        handler: Arc<dyn MessageHandler>,
    ) -> Fut<'a, Result<Box<dyn SubscriptionHandle>, PubSubError>> {
        Box::pin(async move {
            let filter = request.topic;
            topic::check_filter(plain_filter(&filter)).map_err(|e| PubSubError::Invalid(format!("topic {filter:?}: {e}")))?;
            let default = self.connection.settings.qos;
            let qos = match request.metadata.get("qos") {
                None => default,
                Some(text) => text
                    .parse()
                    .ok()
                    .filter(|q| *q <= 2u8)
                    .ok_or_else(|| PubSubError::Invalid(format!("metadata qos has value {text:?}; accepted is 0, 1 or 2")))?,
            };
            let tell = self.connection.settings.clean_session || request.metadata.iter().collect::<Properties>().boolean("unsubscribeOnClose", false);
            self.keep();
            let handler: Handler = Arc::new(move |message| {
                let handler = handler.clone();
                Box::pin(async move { handler.handle(delivery(&message)).await })
            });
            let subscription = subscribe(&self.connection, &filter, qos, tell, handler).await?;
            Ok(Box::new(subscription) as Box<dyn SubscriptionHandle>)
        })
    }

    fn diagnose<'a>(&'a self, now: Timestamp) -> Fut<'a, Vec<Finding>> {
        Box::pin(crate::probe::examine(&self.connection.settings, now))
    }

    fn uplink(&self) -> Option<Box<dyn Uplink>> {
        self.end();
        Some(Box::new(MqttUplink::new(self.connection.clone())))
    }

    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(async move {
            self.end();
            self.connection.disconnect().await;
            self.connection.close();
        })
    }
}

fn delivery(message: &Message) -> Delivery {
    let mut metadata: Metadata = message.user.iter().cloned().collect();
    if let Some(topic) = &message.response_topic {
        metadata.insert("responseTopic".into(), topic.clone());
    }
    metadata.insert("retained".into(), message.retain.to_string());
    Delivery { topic: message.topic.clone(), data: message.payload.clone(), content_type: message.content_type.clone(), metadata }
}

/// Subscribes. While the connection is being opened or stands, waits for the broker's answer; while it is down, the subscription is
/// asked for with the next connection and counts as made.
pub(crate) async fn subscribe(
    connection: &Arc<Connection>,
    filter: &str,
    qos: u8,
    tell: bool,
    handler: Handler,
) -> Result<MqttSubscription, PubSubError> {
    let (mut answer, subscription) = {
        let mut core = connection.core();
        let key = core.next_key();
        let (answer, running) = core.subscribe(key, filter, qos, handler);
        core.wake_driver();
        (answer, MqttSubscription { connection: connection.clone(), key, tell, running })
    };
    let mut phase = connection.phase();
    let down = phase.wait_for(|p| matches!(p, Phase::Down(_) | Phase::Closed | Phase::Idle));
    let answered = async {
        tokio::select! {
            biased;
            answered = &mut answer => Some(answered),
            _ = down => None,
        }
    };
    match tokio::time::timeout(connection.settings.timing.answer, answered).await {
        Ok(Some(Ok(Err(refused)))) => Err(PubSubError::Refused(refused)),
        Ok(Some(Err(_))) => Err(PubSubError::Closed),
        Ok(Some(Ok(Ok(()))) | None) => Ok(subscription),
        Err(_) => Err(PubSubError::Unavailable(format!("{} did not answer the subscription to {filter}", connection.settings.peer()))),
    }
}

/// A subscription of a connection.
#[derive(Debug)]
pub(crate) struct MqttSubscription {
    connection: Arc<Connection>,
    key: u64,
    tell: bool,
    running: watch::Receiver<usize>,
}

impl MqttSubscription {
    fn end(&self) {
        let mut core = self.connection.core();
        core.unsubscribe(self.key, self.tell);
        core.wake_driver();
    }

    /// Stops, and waits for the handler calls that run.
    pub(crate) async fn stop(&self) {
        self.end();
        // An error means that nobody can call the handler any more.
        let _ = self.running.clone().wait_for(|n| *n == 0).await;
    }
}

impl Drop for MqttSubscription {
    fn drop(&mut self) {
        self.end();
    }
}

impl SubscriptionHandle for MqttSubscription {
    fn close<'a>(&'a self) -> Fut<'a, ()> {
        Box::pin(self.stop())
    }
}

/// Factory of `pubsub.mqtt3`. Checks the settings; the broker need not be there.
///
/// # Errors
/// The setting that is missing or wrong.
pub async fn pubsub_v3(context: ComponentContext) -> Result<Arc<dyn PubSub>, InitError> {
    Ok(Arc::new(MqttPubSub::new(Settings::read(&context, Version::V3)?, context.clock)))
}

/// Factory of `pubsub.mqtt5`: the same keys over MQTT 5.
///
/// # Errors
/// The setting that is missing or wrong.
pub async fn pubsub_v5(context: ComponentContext) -> Result<Arc<dyn PubSub>, InitError> {
    Ok(Arc::new(MqttPubSub::new(Settings::read(&context, Version::V5)?, context.clock)))
}
