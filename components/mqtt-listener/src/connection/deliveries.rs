//! Messages to the client: live ones, and stored ones by cursor, as its window allows.

use super::*;

impl<S: Stream> Connection<S> {
    pub(super) fn acknowledge_records(&mut self) {
        let Some(consumer) = &self.consumer else { return };
        self.acks.sort_unstable();
        let mut rest = self.acks.as_slice();
        while let Some((lane, _)) = rest.first() {
            let n = rest.iter().take_while(|(l, _)| l == lane).count();
            let sequences: Vec<u64> = rest[..n].iter().map(|(_, s)| *s).collect();
            consumer.acknowledge(*lane, &sequences);
            rest = &rest[n..];
        }
        self.acks.clear();
    }

    /// Sends what the client's window has room for: retained, then live, then stored messages.
    pub(super) async fn send_what_is_due(&mut self) -> Result<(), End> {
        loop {
            let before = self.out.len();
            while self.out.len() < OUT_BYTES && self.session.in_flight() < self.window {
                let Some(waiting) = self.retained.pop_front().or_else(|| self.inbox.pop()) else { break };
                self.send_live(&waiting);
            }
            self.send_records()?;
            let stuck = self.out.len() == before;
            if self.out.is_empty() {
                return Ok(());
            }
            self.flush().await?;
            if stuck {
                return Ok(());
            }
        }
    }

    pub(super) fn send_live(&mut self, waiting: &Waiting) {
        let Some(subscription) = self.subscriptions.get(&waiting.token) else { return };
        let m = &waiting.message;
        if self.user.as_ref().is_some_and(|u| !u.may_read(&m.topic)) {
            return;
        }
        let qos = m.qos.min(subscription.qos);
        let id = if qos > 0 {
            match self.session.send(Origin::Live) {
                Some((id, _)) => id,
                None => return self.inbox.put_back(waiting.clone()),
            }
        } else {
            0
        };
        let user: Vec<(&str, &str)> = m.attributes.user.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let subscriptions: Vec<u32> = subscription.id.into_iter().collect();
        let message = Outgoing {
            topic: &m.topic,
            payload: &m.payload,
            attributes: Attributes {
                content_type: m.attributes.content_type.as_deref(),
                response_topic: m.attributes.response_topic.as_deref(),
                correlation_data: m.attributes.correlation_data.as_deref(),
                utf8: m.attributes.utf8,
                user: &user,
            },
            qos,
            id,
            dup: false,
            retain: waiting.retained || (m.retain && subscription.retain_as_published),
            expiry: m.ttl_seconds,
            subscriptions: &subscriptions,
        };
        if wire::publish_to(&mut self.out, self.version, &message, self.largest) {
            self.broker.metrics.sent.inc();
        } else {
            self.session.acknowledged(id);
            self.broker.metrics.dropped("larger-than-client-takes");
        }
    }

    pub(super) fn send_records(&mut self) -> Result<(), End> {
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let now = self.broker.hub.outbox().now();
        loop {
            if self.run_at >= self.run.run.len() {
                let room = self.window.saturating_sub(self.session.in_flight());
                if room == 0 || self.out.len() >= OUT_BYTES || self.readable.is_some() {
                    return Ok(());
                }
                self.run_at = 0;
                match consumer.next_run(room, 32 << 10, &mut self.run) {
                    Ok(0) => {
                        // Caught up: an idle client holds no buffer.
                        self.run = LaneRun::default();
                        self.readable = Some(Box::pin(consumer.readable()));
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(client_id = %self.client_id, error = %error, "stored messages cannot be read");
                        return Err(End::Close { reason: reason::IMPLEMENTATION, why: "lane-failed" });
                    }
                }
            }
            let Some(lane) = self.run.lane() else { return Ok(()) };
            let mut done: Vec<u64> = Vec::new();
            for record in self.run.run.iter().skip(self.run_at) {
                if self.session.in_flight() >= self.window {
                    break;
                }
                self.run_at += 1;
                let sequence = record.id.sequence;
                let readable = self.user.as_ref().is_none_or(|u| u.may_read(record.topic()));
                // A record of a subscription that has ended meanwhile is done.
                let Some((granted, subscriptions, as_published)) = self.session.match_record(record.topic()).filter(|_| readable) else {
                    done.push(sequence);
                    continue;
                };
                let qos = record.qos().min(granted);
                let (id, dup) = if qos > 0 {
                    match self.session.send(Origin::Record(lane, sequence)) {
                        Some(sent) => sent,
                        None => {
                            self.run_at -= 1;
                            break;
                        }
                    }
                } else {
                    (0, false)
                };
                let written = record.with_attributes(|attributes| {
                    let message = Outgoing {
                        topic: record.topic(),
                        payload: record.payload(),
                        attributes,
                        qos,
                        id,
                        dup,
                        retain: record.retain() && as_published,
                        expiry: record.remaining_seconds(now),
                        subscriptions: &subscriptions,
                    };
                    wire::publish_to(&mut self.out, self.version, &message, self.largest)
                });
                if written {
                    self.broker.metrics.sent.inc();
                } else {
                    self.session.acknowledged(id);
                    self.broker.metrics.dropped("larger-than-client-takes");
                }
                if qos == 0 || !written {
                    done.push(sequence);
                }
            }
            if !done.is_empty() {
                consumer.acknowledge(lane, &done);
            }
            if self.session.in_flight() >= self.window {
                return Ok(());
            }
        }
    }
}
