//! Publishes of the client: a batch goes to the hub in one call, and is answered when the store says that it is safe.

use super::*;

impl<S: Stream> Connection<S> {
    /// A batch of publishes goes to the hub in one call; its answers wait for the store.
    pub(super) async fn take(&mut self, batch: &[Publish<'_>]) -> Result<(), End> {
        let topics = self.topics(batch)?;
        let mut at = 0;
        let mut busy_since: Option<Monotonic> = None;
        while at < batch.len() {
            // A run of messages that may be taken, up to the first that is answered without the hub.
            let mut messages: Vec<Inbound<'_>> = Vec::with_capacity(batch.len() - at);
            let mut ids = BTreeSet::new();
            for (p, topic) in batch[at..].iter().zip(&topics[at..]) {
                if (p.qos == 2 && (self.session.received.contains(&p.id) || ids.contains(&p.id))) || !self.may_publish(topic) {
                    break;
                }
                if p.qos == 2 {
                    ids.insert(p.id);
                }
                messages.push(Inbound {
                    topic,
                    payload: p.payload,
                    attributes: p.properties.attributes(),
                    qos: p.qos,
                    retain: p.retain,
                    ttl_seconds: p.properties.expiry,
                });
            }
            if messages.is_empty() {
                let p = &batch[at];
                let known = p.qos == 2 && self.session.received.contains(&p.id);
                if !known {
                    self.broker.metrics.refused("publish-not-authorized");
                    self.broker.tell_denied(&self.client_id, "publish to", &topics[at]);
                }
                // As mosquitto does: a version 3 client is not told, since it could not be.
                self.answer_directly(p, if known { reason::SUCCESS } else { reason::NOT_AUTHORIZED });
                at += 1;
                continue;
            }
            // One call takes all of them, but for those that wait for an upstream: each of these is answered by itself.
            let mut given = 0;
            while given < messages.len() {
                let accepted = publishing_as(self.number, || self.broker.hub.accept(&self.broker.spec.pubsub, &messages[given..]));
                let taken = &batch[at..at + accepted.taken];
                self.broker.metrics.received.inc_by(taken.len() as u64);
                at += accepted.taken;
                given += accepted.taken;
                match taken {
                    [one] if accepted.receipt.is_passing() => self.await_upstream(one, accepted.receipt)?,
                    _ => self.await_store(taken, accepted.receipt)?,
                }
                if let Some(refused) = accepted.refused {
                    let busy = matches!(refused, AcceptError::Outbox(OutboxError::Busy { .. }));
                    if busy {
                        let now = self.broker.clock.monotonic();
                        if now.since(*busy_since.get_or_insert(now)) > BUSY_TIMEOUT {
                            return Err(End::Close { reason: reason::BUSY, why: "disk-too-slow" });
                        }
                        // The store wakes us when it has written something.
                        let lanes = self.broker.hub.outbox().lanes();
                        let writable: Vec<_> = lanes.into_iter().map(|(lane, _)| Box::pin(self.broker.hub.outbox().writable(lane))).collect();
                        let _ = tokio::time::timeout(Duration::from_millis(50), first_of(writable)).await;
                        continue;
                    }
                    self.refuse(&batch[at], &refused).await?;
                    at += 1;
                    given += 1;
                }
            }
        }
        Ok(())
    }

    /// The answers of publishes that were taken wait until they are as safe as their lanes declare.
    fn await_store(&mut self, taken: &[Publish<'_>], receipt: Receipt) -> Result<(), End> {
        let mut answers = Vec::with_capacity(taken.len() * 4);
        let mut publishes = 0;
        let mut quality_2 = false;
        for p in taken {
            if p.qos > 0 {
                publishes += 1;
                wire::acknowledge(&mut answers, self.version, if p.qos == 1 { 4 } else { 5 }, p.id, reason::SUCCESS);
            }
            if p.qos == 2 {
                quality_2 = true;
                self.session.received.insert(p.id);
            }
        }
        if publishes == 0 {
            return Ok(());
        }
        let row = (quality_2 && self.persistent()).then(|| self.broker.save(&self.client_id, &self.session));
        if row.is_none() && self.pending.is_empty() && self.broker.hub.is_settled(&receipt) {
            self.out.extend_from_slice(&answers);
            return Ok(());
        }
        let hub = self.broker.hub.clone();
        let settled = Box::pin(async move {
            hub.settled(receipt).await?;
            match row {
                Some(row) => row.await.map_err(|e| AcceptError::Retained(e.into())),
                None => Ok(()),
            }
        });
        self.wait_for(Pending { settled, answers, publishes, passing: None })
    }

    /// The answer of a publish that nobody stores waits for its upstreams. Until they have it, it may be refused: a second quality 2
    /// publish of the same id must not be taken for one that is known.
    fn await_upstream(&mut self, p: &Publish<'_>, receipt: Receipt) -> Result<(), End> {
        if p.qos == 0 {
            return Ok(());
        }
        let hub = self.broker.hub.clone();
        let settled = Box::pin(async move { hub.settled(receipt).await });
        self.wait_for(Pending { settled, answers: Vec::new(), publishes: 1, passing: Some((p.qos, p.id)) })
    }

    fn wait_for(&mut self, pending: Pending) -> Result<(), End> {
        self.unsettled += pending.publishes;
        // A version 5 client was told how many may be open; one read may hold twice that from a fair client of version 3.
        if self.version == Version::V5 && self.unsettled > usize::from(self.limits.window) {
            return Err(End::Close { reason: reason::RECEIVE_MAXIMUM, why: "receive-maximum" });
        }
        self.pending.push_back(pending);
        Ok(())
    }

    pub(super) fn may_publish(&self, topic_name: &str) -> bool {
        !topic_name.starts_with('$') && self.user.as_ref().is_none_or(|u| u.may_write(topic_name))
    }

    /// Topics with aliases resolved (5.0, section 3.3.2.3.4).
    pub(super) fn topics<'p>(&mut self, batch: &[Publish<'p>]) -> Result<Vec<Cow<'p, str>>, End> {
        let mut topics = Vec::with_capacity(batch.len());
        for p in batch {
            match p.properties.alias {
                None => topics.push(Cow::Borrowed(p.topic)),
                Some(alias) if alias > TOPIC_ALIASES => {
                    return Err(WireError { reason: reason::TOPIC_ALIAS, what: "topic alias beyond the maximum" }.into());
                }
                Some(alias) if p.topic.is_empty() => match self.aliases.get(&alias) {
                    Some(known) => topics.push(Cow::Owned(known.clone())),
                    None => return Err(WireError { reason: reason::PROTOCOL_ERROR, what: "topic alias that was not set" }.into()),
                },
                Some(alias) => {
                    self.aliases.insert(alias, p.topic.to_owned());
                    topics.push(Cow::Borrowed(p.topic));
                }
            }
        }
        Ok(topics)
    }

    /// An answer that waits for nothing, but keeps its turn behind those that wait.
    pub(super) fn answer_directly(&mut self, p: &Publish<'_>, code: u8) {
        if p.qos == 0 {
            return;
        }
        let mut answer = Vec::with_capacity(5);
        wire::acknowledge(&mut answer, self.version, if p.qos == 1 { 4 } else { 5 }, p.id, code);
        match self.pending.back_mut() {
            Some(last) => last.answers.extend_from_slice(&answer),
            None => self.out.extend_from_slice(&answer),
        }
    }

    pub(super) async fn refuse(&mut self, p: &Publish<'_>, why: &AcceptError) -> Result<(), End> {
        let (code, label) = refusal(why);
        self.broker.metrics.refused(label);
        if label == STORE_CLOSED {
            return Err(End::Close { reason: code, why: label });
        }
        if p.qos == 0 {
            self.broker.metrics.dropped(label);
            return Ok(());
        }
        if self.version == Version::V5 {
            self.answer_directly(p, code);
            return Ok(());
        }
        self.refuse_untold(code, label).await
    }

    /// Version 3 has no way to refuse: it gets no acknowledgement, and its connection ends.
    async fn refuse_untold(&mut self, reason: u8, why: &'static str) -> Result<(), End> {
        self.flush().await?;
        tokio::time::sleep(REFUSAL_PAUSE).await;
        Err(End::Close { reason, why })
    }

    /// The front of the line is safe: its answers may go, and those behind it that are safe as well.
    pub(super) async fn answer(&mut self, result: Result<(), AcceptError>) -> Result<(), End> {
        let passing = self.pending.front().and_then(|p| p.passing);
        match (result, passing) {
            (Err(error @ AcceptError::Outbox(OutboxError::NotPassed { .. })), Some((qos, id))) => {
                let (code, label) = refusal(&error);
                self.broker.metrics.refused(label);
                if self.version != Version::V5 {
                    return self.refuse_untold(code, label).await;
                }
                wire::acknowledge(&mut self.out, self.version, if qos == 1 { 4 } else { 5 }, id, code);
                if let Some(front) = self.pending.front_mut() {
                    front.passing = None; // it is answered
                }
            }
            (Err(error), _) => {
                tracing::error!(client_id = %self.client_id, error = %error, "messages are not safe; their sender gets no acknowledgement");
                return Err(End::Close { reason: reason::IMPLEMENTATION, why: LANE_FAILED });
            }
            (Ok(()), Some((2, id))) if self.persistent() => {
                // Its upstreams have it; that its id is known has to be safe before the client is told.
                self.session.received.insert(id);
                let row = self.broker.save(&self.client_id, &self.session);
                if let Some(front) = self.pending.front_mut() {
                    front.take_passing(self.version);
                    front.settled = Box::pin(async move { row.await.map_err(|e| AcceptError::Retained(e.into())) });
                }
                return Ok(());
            }
            (Ok(()), _) => {}
        }
        self.answer_front();
        Ok(())
    }

    /// Sends what the front of the line is owed.
    pub(super) fn answer_front(&mut self) {
        let Some(mut done) = self.pending.pop_front() else { return };
        if let Some((2, id)) = done.passing {
            self.session.received.insert(id);
        }
        done.take_passing(self.version);
        self.out.extend_from_slice(&done.answers);
        self.unsettled -= done.publishes;
    }
}

/// Why a connection ends whose publishes cannot be made safe.
const LANE_FAILED: &str = "lane-failed";
const STORE_CLOSED: &str = "store-closed";

/// What a refusal is called: the reason code, and the metric's label.
fn refusal(why: &AcceptError) -> (u8, &'static str) {
    match why {
        AcceptError::Topic { .. } => (reason::TOPIC_INVALID, "topic-invalid"),
        AcceptError::Outbox(OutboxError::Full { .. }) | AcceptError::Retained(_) => (reason::QUOTA, "lane-full"),
        AcceptError::Outbox(OutboxError::Shut { .. }) => (reason::QUOTA, "lane-shut"),
        AcceptError::Outbox(OutboxError::TooLarge { .. }) => (reason::TOO_LARGE, "record-too-large"),
        AcceptError::Outbox(OutboxError::NotPassed { why, .. }) if why.may_be_repeated() => (reason::QUOTA, "not-passed"),
        AcceptError::Outbox(OutboxError::NotPassed { .. }) => (reason::IMPLEMENTATION, "upstream-refused"),
        // Nothing of it is stored: a disk that is full or broken is one more reason to try again later.
        AcceptError::Outbox(OutboxError::Failed { .. }) => (reason::QUOTA, LANE_FAILED),
        AcceptError::Outbox(_) => (reason::IMPLEMENTATION, STORE_CLOSED),
    }
}
