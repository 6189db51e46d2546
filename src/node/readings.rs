//! Input bindings whose readings are published on the box: `publishTo` names the pub/sub, `publishTopic` the topic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::EscapeHandle;
use crate::component::{BindingHandler, BindingReading, Contained, Fut, HandlerError, InputBinding, PubSub, PublishRequest};
use crate::escape::ModeSet;
use crate::hub::Hub;
use crate::message::{Attributes, Inbound};
use crate::supervise::Supervisor;

/// Wait between attempts to attach a source.
const RETRY: Duration = Duration::from_secs(5);

/// Where readings go.
#[derive(Clone)]
pub(super) enum Target {
    /// A name space of topics on this box.
    Hub(Hub, String),
    /// A pub/sub component.
    PubSub(Arc<dyn PubSub>),
}

/// One binding and where its readings go.
pub(super) struct Readings {
    pub name: String,
    pub topic: String,
    pub source: Arc<dyn InputBinding>,
    pub target: Target,
    /// In which modes readings are published.
    pub when: Option<When>,
}

/// `publishWhen`: modes in which readings are published.
#[derive(Clone)]
pub(super) struct When {
    modes: ModeSet,
    escape: EscapeHandle,
}

impl When {
    /// Reads a list of modes.
    ///
    /// # Errors
    /// The word that is no mode.
    pub(super) fn parse(text: &str, escape: &EscapeHandle) -> Result<Self, String> {
        Ok(Self { modes: ModeSet::parse(text)?, escape: escape.clone() })
    }

    fn holds(&self) -> bool {
        self.modes.contains(self.escape.mode())
    }
}

struct Publisher {
    topic: String,
    target: Target,
    when: Option<When>,
}

impl BindingHandler for Publisher {
    fn handle<'a>(&'a self, reading: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
        Box::pin(async move {
            if self.when.as_ref().is_some_and(|when| !when.holds()) {
                return Ok(None);
            }
            let topic = match reading.metadata.get("topic").filter(|t| !t.is_empty()) {
                Some(suffix) => format!("{}/{suffix}", self.topic),
                None => self.topic.clone(),
            };
            match &self.target {
                Target::Hub(hub, pubsub) => {
                    let attributes = Attributes { content_type: reading.content_type.as_deref(), ..Attributes::default() };
                    let message = Inbound { attributes, ..Inbound::new(&topic, &reading.data) };
                    hub.accept_one(pubsub, &message).await.map_err(|e| HandlerError::Retry(e.to_string()))?;
                }
                Target::PubSub(pubsub) => {
                    let request = PublishRequest { topic, data: reading.data, content_type: reading.content_type, ..PublishRequest::default() };
                    pubsub.publish(request).await.map_err(|e| HandlerError::Retry(e.to_string()))?;
                }
            }
            Ok(None)
        })
    }
}

impl Readings {
    /// Its name as a part of the node.
    pub(super) fn part(&self) -> String {
        format!("binding/{}", self.name)
    }

    /// Reads until `stop` resolves.
    ///
    /// # Errors
    /// When reading has ended by itself.
    pub(super) async fn run(&self, supervisor: &Supervisor, mut stop: Fut<'static, ()>) -> Result<(), String> {
        let publisher: Arc<dyn BindingHandler> =
            Arc::new(Publisher { topic: self.topic.clone(), target: self.target.clone(), when: self.when.clone() });
        let handler = Arc::new(Contained::new(publisher, self.part(), supervisor));
        loop {
            match self.source.read(handler.clone()).await {
                Ok(handle) => {
                    let ended = tokio::select! {
                        () = handle.ended() => Err("reading has ended by itself".to_owned()),
                        () = &mut stop => Ok(()),
                    };
                    handle.close().await;
                    return ended;
                }
                Err(error) => {
                    tracing::warn!(binding = %self.name, error = %error, "an input binding could not be read; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = &mut stop => return Ok(()),
                    }
                }
            }
        }
    }
}
