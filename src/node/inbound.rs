//! Routes that lead in: an upstream's messages become local ones, acknowledged to the upstream once they are safe here.

use std::sync::Arc;
use std::time::Duration;

use crate::component::{Delivery, Fut, HandlerError, MessageHandler, PubSub, SubscribeRequest, is_truthy};
use crate::hub::Hub;
use crate::message::{Attributes, Inbound};
use crate::resource::RouteSpec;

/// Wait between attempts to subscribe.
const RETRY: Duration = Duration::from_secs(5);

/// One route.
pub(super) struct InboundRoute {
    route: RouteSpec,
    to: String,
    from: Arc<dyn PubSub>,
    hub: Hub,
}

struct Carrier {
    route: RouteSpec,
    to: String,
    hub: Hub,
}

impl MessageHandler for Carrier {
    fn handle<'a>(&'a self, message: Delivery) -> Fut<'a, Result<(), HandlerError>> {
        Box::pin(async move {
            let topic = self.route.map_topic(&message.topic);
            let user: Vec<(&str, &str)> =
                message.metadata.iter().filter(|(k, _)| k.as_str() != "retained").map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let inbound = Inbound {
                attributes: Attributes { content_type: message.content_type.as_deref(), user: &user, ..Attributes::default() },
                retain: message.metadata.get("retained").is_some_and(|r| is_truthy(r)),
                ..Inbound::new(&topic, &message.data)
            };
            self.hub.accept_one(&self.to, &inbound).await.map(|_| ()).map_err(|e| HandlerError::Retry(e.to_string()))
        })
    }
}

impl InboundRoute {
    pub(super) fn new(route: RouteSpec, to: String, from: Arc<dyn PubSub>, hub: Hub) -> Self {
        Self { route, to, from, hub }
    }

    /// Subscribes, and stays subscribed until `stop` resolves.
    pub(super) async fn run(self, stop: Fut<'static, ()>) {
        tokio::pin!(stop);
        let mut handles = Vec::new();
        for topic in &self.route.topics {
            let handler = Arc::new(Carrier { route: self.route.clone(), to: self.to.clone(), hub: self.hub.clone() });
            loop {
                let request = SubscribeRequest { topic: topic.clone(), ..SubscribeRequest::default() };
                let subscribed = tokio::select! {
                    subscribed = self.from.subscribe(request, handler.clone()) => subscribed,
                    () = &mut stop => return,
                };
                match subscribed {
                    Ok(handle) => {
                        handles.push(handle);
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(from = %self.route.from, topic, error = %error, "an inbound route could not subscribe; trying again");
                        tokio::select! {
                            () = tokio::time::sleep(RETRY) => {}
                            () = &mut stop => return,
                        }
                    }
                }
            }
        }
        stop.await;
        for handle in handles {
            handle.close().await;
        }
    }
}
