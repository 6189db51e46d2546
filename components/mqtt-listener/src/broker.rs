//! What the connections of a listener share: who is connected, sessions of those who are away, wills that wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{InitError, ListenerContext, Table};
use selvedge::hub::Hub;
use selvedge::message::{Attributes, Inbound, OwnedAttributes};
use selvedge::outbox::{DestinationId, OutboxError};
use selvedge::resource::{ListenerLimits, ListenerSpec};
use selvedge::time::{Clock, Monotonic};
use tokio::sync::{Notify, watch};

use crate::live::Groups;
use crate::metrics::ListenerMetrics;
use crate::refusals::{Refusals, beginning};
use crate::session::Session;
use crate::tls;
use crate::users::Users;
use crate::wire::{NEVER, Will};

/// How long a connection waits for the one that it takes over.
const TAKEOVER: Duration = Duration::from_secs(5);

/// How a connection is spoken to from outside: it looks why when the bell rings.
#[derive(Debug, Default)]
pub struct Kick {
    /// Rings when another connection takes the client over, and when accounts have changed.
    pub bell: Notify,
    /// Another connection has the client now.
    pub taken_over: AtomicBool,
}

/// What can change while the listener serves.
#[derive(Clone)]
pub struct Rules {
    /// Accounts; none = everyone may do everything.
    pub users: Option<Arc<Users>>,
    /// Bounds of connections that come.
    pub limits: ListenerLimits,
    /// What speaks TLS to those that come.
    pub tls: Option<tls::Acceptor>,
}

impl Rules {
    /// Reads what a resource names.
    ///
    /// # Errors
    /// When the users file or a certificate cannot be read.
    pub fn read(spec: &ListenerSpec) -> Result<Self, InitError> {
        let users = spec.users_file.as_ref().map(|path| Users::load(path).map(Arc::new)).transpose().map_err(InitError::Failed)?;
        Ok(Self { users, limits: spec.limits, tls: spec.tls.as_ref().map(tls::acceptor).transpose()? })
    }
}

/// A client as the listener knows it.
enum Client {
    Online {
        connection: u64,
        kick: Arc<Kick>,
        gone: watch::Receiver<bool>,
    },
    /// Away; forgotten at the time given.
    Away {
        session: Session,
        until: Option<Monotonic>,
    },
}

/// A will, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedWill {
    topic: String,
    payload: Bytes,
    qos: u8,
    retain: bool,
    attributes: OwnedAttributes,
    expiry: Option<u32>,
    /// Seconds between the end of the connection and the will.
    pub delay_seconds: u32,
}

impl From<&Will<'_>> for OwnedWill {
    fn from(w: &Will<'_>) -> Self {
        Self {
            topic: w.topic.to_owned(),
            payload: Bytes::copy_from_slice(w.payload),
            qos: w.qos,
            retain: w.retain,
            attributes: w.properties.attributes().into(),
            expiry: w.properties.expiry,
            delay_seconds: w.properties.will_delay,
        }
    }
}

struct WaitingWill {
    client_id: String,
    due: Monotonic,
    will: OwnedWill,
}

/// A client's place, held while it is connected.
pub struct Claim {
    /// Number of the connection.
    pub connection: u64,
    /// How others speak to the connection.
    pub kick: Arc<Kick>,
    /// Its state.
    pub session: Session,
    /// Whether there was one.
    pub present: bool,
    gone: watch::Sender<bool>,
}

/// Shared by all connections of a listener.
pub struct Broker {
    /// The resource.
    pub spec: ListenerSpec,
    /// Where messages go.
    pub hub: Hub,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counts.
    pub metrics: ListenerMetrics,
    /// Shared subscriptions.
    pub groups: Groups,
    rules: RwLock<Rules>,
    table: Arc<dyn Table>,
    clients: Mutex<HashMap<String, Client>>,
    wills: Mutex<Vec<WaitingWill>>,
    /// Those who were not let in, and those who were and may not do what they want.
    refusals: [Mutex<Refusals>; 2],
    next_connection: AtomicU64,
}

impl Broker {
    /// Loads the sessions; their subscriptions are bound before anyone connects, so nothing is missed.
    ///
    /// # Errors
    /// When the table, the users file or a certificate cannot be read.
    pub async fn load(context: ListenerContext) -> Result<Self, InitError> {
        let rules = RwLock::new(Rules::read(&context.spec)?);
        let table_name: String = context.name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
        let table =
            context.tables.open(&format!("mqtt_sessions_{table_name}")).await.map_err(|e| InitError::failed("cannot open the sessions", e))?;
        let rows = table.load().await.map_err(|e| InitError::failed("cannot read the sessions", e))?;
        let broker = Self {
            metrics: ListenerMetrics::register(&context.metrics, &context.name),
            spec: context.spec,
            hub: context.hub,
            clock: context.clock,
            rules,
            groups: Groups::default(),
            table,
            clients: Mutex::default(),
            wills: Mutex::default(),
            refusals: Default::default(),
            next_connection: AtomicU64::new(1),
        };
        let now = broker.clock.monotonic();
        for (client_id, row) in rows {
            let Some(session) = Session::from_row(&row) else {
                tracing::warn!(client_id, "a session is left out: its row cannot be read");
                continue;
            };
            for s in session.subscriptions.values().filter(|s| s.is_durable(true)) {
                let bound = broker.destination(&client_id).map(|d| broker.hub.bind(d, &broker.spec.pubsub, &s.filter));
                if let Err(error) = bound {
                    return Err(InitError::failed("cannot restore a session", error));
                }
            }
            let until = broker.expiry(&session, now);
            broker.lock().insert(client_id, Client::Away { session, until });
        }
        broker.count_away();
        Ok(broker)
    }

    /// What holds for connections that come now.
    pub fn rules(&self) -> Rules {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other rules in place. Connections that are open keep their bounds; those whose account is gone or has another password are
    /// closed, the others get their account's new rights.
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        for client in self.lock().values() {
            if let Client::Online { kick, .. } = client {
                kick.bell.notify_one();
            }
        }
    }

    /// Says that somebody was not let in.
    pub fn tell_stranger(&self, client_id: &str, user: Option<&str>) {
        if let Some(untold) = self.told(0) {
            let (listener, client_id, user) = (&self.spec.name, beginning(client_id), beginning(user.unwrap_or_default()));
            tracing::warn!(listener, client_id, user, untold, "a client is refused: no account of the users file has this name and password");
        }
    }

    /// Says that a client may not do what it wants (`publish to` or `subscribe to`); a client of MQTT 3.1.1 hears nothing of it.
    pub fn tell_denied(&self, client_id: &str, what: &'static str, topic: &str) {
        if let Some(untold) = self.told(1) {
            let (listener, client_id, topic) = (&self.spec.name, beginning(client_id), beginning(topic));
            let why = if topic.starts_with('$') {
                "topics that begin with $ are the node's own"
            } else {
                "no rule of its account in the users file says so"
            };
            tracing::warn!(listener, client_id, mqtt.topic = topic, untold, "a client may not {what} this topic: {why}");
        }
    }

    fn told(&self, kind: usize) -> Option<u64> {
        self.refusals[kind].lock().unwrap_or_else(PoisonError::into_inner).one(self.clock.monotonic())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_away(&self) {
        let away = self.lock().values().filter(|c| matches!(c, Client::Away { .. })).count();
        self.metrics.sessions.set(away as i64);
    }

    fn expiry(&self, session: &Session, now: Monotonic) -> Option<Monotonic> {
        (session.expiry_seconds != NEVER).then(|| now.plus(Duration::from_secs(u64::from(session.expiry_seconds))))
    }

    /// Where the client's stored messages stand.
    ///
    /// # Errors
    /// When the store has no room for another destination.
    pub fn destination(&self, client_id: &str) -> Result<DestinationId, OutboxError> {
        self.hub.destination(&format!("session/{}/{client_id}", self.spec.name))
    }

    /// Takes the client's place: ends a connection that has it, waits for that, and gives its session, or a fresh one when `clean`.
    /// Nothing when all places are taken.
    pub async fn claim(&self, client_id: &str, clean: bool) -> Option<Claim> {
        loop {
            let (kick, mut gone) = {
                let mut clients = self.lock();
                let known = clients.len();
                match clients.remove(client_id) {
                    Some(Client::Online { connection, kick, gone }) => {
                        clients.insert(client_id.to_owned(), Client::Online { connection, kick: kick.clone(), gone: gone.clone() });
                        (kick, gone)
                    }
                    other => {
                        if other.is_none() && known >= self.rules().limits.clients {
                            return None;
                        }
                        let (sender, receiver) = watch::channel(false);
                        let (connection, kick) = (self.next_connection.fetch_add(1, Ordering::Relaxed), Arc::new(Kick::default()));
                        clients.insert(client_id.to_owned(), Client::Online { connection, kick: kick.clone(), gone: receiver });
                        drop(clients);
                        self.wills.lock().unwrap_or_else(PoisonError::into_inner).retain(|w| w.client_id != client_id);
                        let mut session = None;
                        if let Some(Client::Away { session: old, .. }) = other {
                            if clean {
                                self.discard(client_id, &old);
                            } else {
                                session = Some(old);
                            }
                        }
                        self.count_away();
                        return Some(Claim { connection, kick, present: session.is_some(), session: session.unwrap_or_default(), gone: sender });
                    }
                }
            };
            kick.taken_over.store(true, Ordering::Relaxed);
            kick.bell.notify_one();
            if tokio::time::timeout(TAKEOVER, gone.wait_for(|g| *g)).await.is_err() {
                tracing::warn!(client_id, "the older connection does not end; the newer one is refused");
                return None;
            }
        }
    }

    /// The connection has ended: keeps the session or forgets it, and sees to the will.
    pub fn release(&self, client_id: &str, connection: u64, session: Session, will: Option<OwnedWill>, gone: &watch::Sender<bool>) {
        let now = self.clock.monotonic();
        {
            let mut clients = self.lock();
            let ours = matches!(clients.get(client_id), Some(Client::Online { connection: c, .. }) if *c == connection);
            if ours {
                clients.remove(client_id);
                if session.expiry_seconds == 0 {
                    drop(clients);
                    self.discard(client_id, &session);
                } else {
                    let until = self.expiry(&session, now);
                    clients.insert(client_id.to_owned(), Client::Away { session: session.clone(), until });
                }
            }
        }
        if let Some(will) = will {
            // A will is sent when its delay is over or when the session ends, whichever is first (5.0, section 3.1.3.2.2).
            let delay = will.delay_seconds.min(session.expiry_seconds);
            let waiting = WaitingWill { client_id: client_id.to_owned(), due: now.plus(Duration::from_secs(u64::from(delay))), will };
            self.wills.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
            if delay == 0 {
                self.tick();
            }
        }
        self.count_away();
        gone.send_replace(true);
    }

    fn discard(&self, client_id: &str, session: &Session) {
        if session.subscriptions.values().any(|s| s.is_durable(true)) || session.expiry_seconds > 0 {
            match self.destination(client_id).and_then(|d| self.hub.forget(d)) {
                Ok(()) => {}
                Err(error) => tracing::warn!(client_id, error = %error, "the end of a session could not be noted"),
            }
            // Its place in line is taken now; nobody waits for a deletion.
            tokio::spawn(self.table.delete(client_id));
        }
    }

    /// Writes the session's row; the future resolves when it is durable.
    pub fn save(&self, client_id: &str, session: &Session) -> selvedge::component::Fut<'static, Result<(), selvedge::component::TableError>> {
        self.table.put(client_id, session.to_row().into())
    }

    /// Ends sessions and sends wills that are due.
    pub fn tick(&self) {
        let now = self.clock.monotonic();
        let mut ended = Vec::new();
        self.lock().retain(|id, client| match client {
            Client::Away { session, until: Some(until) } if *until <= now => {
                ended.push((id.clone(), std::mem::take(session)));
                false
            }
            _ => true,
        });
        for (client_id, session) in ended {
            self.discard(&client_id, &session);
        }
        self.count_away();
        let due: Vec<WaitingWill> = {
            let mut wills = self.wills.lock().unwrap_or_else(PoisonError::into_inner);
            let (due, rest) = std::mem::take(&mut *wills).into_iter().partition(|w| w.due <= now);
            *wills = rest;
            due
        };
        for WaitingWill { client_id, will, .. } in due {
            let user: Vec<(&str, &str)> = will.attributes.user.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let message = Inbound {
                topic: &will.topic,
                payload: &will.payload,
                attributes: Attributes {
                    content_type: will.attributes.content_type.as_deref(),
                    response_topic: will.attributes.response_topic.as_deref(),
                    correlation_data: will.attributes.correlation_data.as_deref(),
                    utf8: will.attributes.utf8,
                    user: &user,
                },
                qos: will.qos,
                retain: will.retain,
                ttl_seconds: will.expiry,
            };
            let accepted = self.hub.accept(&self.spec.pubsub, &[message]);
            if let Some(error) = accepted.refused {
                self.metrics.dropped("will-refused");
                tracing::warn!(client_id, error = %error, "a will was not taken");
            }
            let (hub, metrics) = (self.hub.clone(), self.metrics.clone());
            tokio::spawn(async move {
                if let Err(error) = hub.settled(accepted.receipt).await {
                    metrics.dropped("will-not-safe");
                    tracing::warn!(error = %error, "a will may not be safe");
                }
            });
        }
    }
}

impl Claim {
    /// Parts that the connection keeps.
    #[must_use]
    pub fn split(self) -> (u64, Arc<Kick>, Session, bool, watch::Sender<bool>) {
        (self.connection, self.kick, self.session, self.present, self.gone)
    }
}
