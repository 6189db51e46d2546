//! What a session subscribes to: bound in the hub, remembered with the session.

use super::*;

impl<S: Stream> Connection<S> {
    /// The session's subscriptions come to life again.
    pub(super) async fn restore(&mut self) -> Result<(), End> {
        let all: Vec<(String, Subscription)> = self.session.subscriptions.iter().map(|(k, s)| (k.clone(), s.clone())).collect();
        for (text, subscription) in all {
            self.attach(&text, subscription)?;
        }
        if self.persistent() {
            self.saved().await?;
        }
        Ok(())
    }

    pub(super) async fn saved(&mut self) -> Result<(), End> {
        if let Err(error) = self.broker.save(&self.client_id, &self.session).await {
            tracing::error!(client_id = %self.client_id, error = %error, "a session cannot be kept");
            return Err(End::Close { reason: reason::IMPLEMENTATION, why: "store-failed" });
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, text: &str, subscription: Subscription) -> Result<(), End> {
        self.detach(text);
        let refused = |_| End::Close { reason: reason::QUOTA, why: "store-failed" };
        let pubsub = self.broker.spec.pubsub.clone();
        if subscription.is_durable(self.persistent()) {
            let destination = self.broker.destination(&self.client_id).map_err(refused)?;
            // The filter was checked before it came here.
            let _ = self.broker.hub.bind(destination, &pubsub, &subscription.filter);
            if self.consumer.is_none() {
                self.consumer = Some(self.broker.hub.consumer(destination));
                self.readable = Some(Box::pin(std::future::ready(())));
            }
            return Ok(());
        }
        self.next_token += 1;
        let token = self.next_token;
        self.inbox.set_no_local(token, subscription.no_local);
        let live = match &subscription.group {
            Some(group) => {
                self.broker.groups.join(&self.broker.hub, &pubsub, group, &subscription.filter, &self.inbox, token);
                None
            }
            None => self.broker.hub.subscribe(&pubsub, &subscription.filter, token, self.inbox.clone()).ok(),
        };
        self.live
            .insert(text.to_owned(), Live { token, group: subscription.group.clone(), filter: subscription.filter.clone(), _subscription: live });
        self.subscriptions.insert(token, subscription);
        Ok(())
    }

    pub(super) fn detach(&mut self, text: &str) {
        if let Some(live) = self.live.remove(text) {
            self.inbox.set_no_local(live.token, false);
            self.subscriptions.remove(&live.token);
            if let Some(group) = &live.group {
                self.broker.groups.leave(group, &live.filter, &self.inbox);
            }
        }
    }

    pub(super) async fn subscribe(&mut self, id: u16, identifier: Option<u32>, filters: &[Filter<'_>]) -> Result<(), End> {
        let mut codes = Vec::with_capacity(filters.len());
        for f in filters {
            let parts = session::split_share(f.filter).filter(|(_, filter)| topic::check_filter(filter).is_ok());
            let Some((group, filter)) = parts else {
                codes.push(if self.version == Version::V5 { reason::FILTER_INVALID } else { reason::UNSPECIFIED });
                continue;
            };
            if self.user.as_ref().is_some_and(|u| !u.may_subscribe(filter)) {
                self.broker.metrics.refused("subscribe-not-authorized");
                self.broker.tell_denied(&self.client_id, "subscribe to", filter);
                codes.push(if self.version == Version::V5 { reason::NOT_AUTHORIZED } else { reason::UNSPECIFIED });
                continue;
            }
            let known = self.session.subscriptions.contains_key(f.filter);
            if !known && self.session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
                self.broker.metrics.refused("too-many-subscriptions");
                codes.push(if self.version == Version::V5 { reason::QUOTA } else { reason::UNSPECIFIED });
                continue;
            }
            let subscription = Subscription {
                filter: filter.to_owned(),
                group: group.map(str::to_owned),
                qos: f.qos,
                no_local: f.no_local,
                retain_as_published: f.retain_as_published,
                id: identifier,
            };
            let durable = subscription.is_durable(self.persistent());
            if known && !durable {
                self.unbind(f.filter);
            }
            self.session.subscriptions.insert(f.filter.to_owned(), subscription.clone());
            self.attach(f.filter, subscription.clone())?;
            if group.is_none() && (f.retain_handling == 0 || (f.retain_handling == 1 && !known)) {
                let token = self.retained_token(f.filter, &subscription);
                let kept = self.broker.hub.retained(&self.broker.spec.pubsub, filter);
                self.retained.extend(kept.into_iter().map(|message| Waiting { token, message, retained: true }));
            }
            codes.push(f.qos);
        }
        if self.persistent() {
            self.saved().await?;
        }
        wire::codes(&mut self.out, self.version, 9, id, &codes);
        Ok(())
    }

    /// Retained messages of a durable subscription are sent live, so they need a token as well.
    pub(super) fn retained_token(&mut self, text: &str, subscription: &Subscription) -> u64 {
        if let Some(live) = self.live.get(text) {
            return live.token;
        }
        self.next_token += 1;
        self.subscriptions.insert(self.next_token, subscription.clone());
        self.live.insert(text.to_owned(), Live { token: self.next_token, group: None, filter: subscription.filter.clone(), _subscription: None });
        self.next_token
    }

    pub(super) fn unbind(&mut self, text: &str) {
        if let Some(old) = self.session.subscriptions.get(text)
            && old.is_durable(self.persistent())
            && let Ok(destination) = self.broker.destination(&self.client_id)
        {
            self.broker.hub.unbind(destination, &self.broker.spec.pubsub, &old.filter);
        }
    }

    pub(super) async fn unsubscribe(&mut self, id: u16, filters: &[&str]) -> Result<(), End> {
        let mut codes = Vec::with_capacity(filters.len());
        for text in filters {
            self.unbind(text);
            self.detach(text);
            let known = self.session.subscriptions.remove(*text).is_some();
            codes.push(if known { reason::SUCCESS } else { reason::NO_SUBSCRIPTION_EXISTED });
        }
        if self.persistent() {
            self.saved().await?;
        }
        wire::codes(&mut self.out, self.version, 11, id, &codes);
        Ok(())
    }
}
