//! What each kind means: finished values, no maybe-defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::key_source::KeySource;
use crate::escape::ModeConfig;
use crate::hub::ShardKey;
use crate::outbox::storage::Space;
use crate::outbox::{Durability, Order, WhenFull};

/// Where a property's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertySource {
    /// Written in the resource.
    Literal(String),
    /// `secretKeyRef`: secret name, key (equal to the name when not written).
    Secret {
        /// Name of the secret.
        name: String,
        /// Key within it.
        key: String,
    },
    /// `envRef`.
    Environment(String),
}

/// One entry of `spec.metadata`.
#[derive(Clone, PartialEq, Eq)]
pub struct PropertyValue {
    /// Name as written.
    pub name: String,
    /// Source of the value.
    pub source: PropertySource,
}

impl std::fmt::Debug for PropertyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// `kind: Component` of `dapr.io/v1alpha1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentSpec {
    /// `metadata.name`.
    pub name: String,
    /// `spec.type`, as written.
    pub type_name: String,
    /// `spec.version`, as written; may be empty.
    pub version: String,
    /// `spec.ignoreErrors`.
    pub ignore_errors: bool,
    /// `spec.initTimeout`; 5 s when absent or unparsable.
    pub init_timeout: Duration,
    /// `spec.metadata`.
    pub properties: Vec<PropertyValue>,
    /// `auth.secretStore`.
    pub secret_store: Option<String>,
    /// `scopes`: applications that see it; empty = all.
    pub scopes: Vec<String>,
    /// `file:line` of the document, for messages.
    pub origin: String,
}

impl ComponentSpec {
    /// Whether its state transactions are told of as events (Dapr's transactional outbox).
    #[must_use]
    pub fn has_outbox(&self) -> bool {
        self.properties.iter().any(|p| p.name == "outboxPublishPubsub")
    }

    /// Whether it is an input binding whose readings go to the `local` pub/sub.
    #[must_use]
    pub fn publishes_to_local(&self) -> bool {
        self.properties.iter().any(|p| p.name.eq_ignore_ascii_case("publishTo") && p.source == PropertySource::Literal("local".to_owned()))
    }
}

/// One rule of a subscription's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRule {
    /// CEL expression over `event`; empty = always.
    pub matches: String,
    /// Path at the application.
    pub path: String,
}

/// `bulkSubscribe` of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BulkSubscribe {
    /// On.
    pub enabled: bool,
    /// Most messages of a batch; 0 = 100.
    pub max_messages: u32,
    /// Longest wait from the first message, in milliseconds; 0 = 1,000.
    pub max_await_ms: u32,
}

/// `kind: Subscription`, v1alpha1 and v2alpha1 in one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionSpec {
    /// `metadata.name`.
    pub name: String,
    /// `spec.pubsubname`.
    pub pubsub: String,
    /// `spec.topic`.
    pub topic: String,
    /// Rules in order (v2alpha1); empty for v1alpha1.
    pub rules: Vec<RouteRule>,
    /// Default path (`routes.default`, or `route` of v1alpha1).
    pub default_path: String,
    /// `spec.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// `spec.deadLetterTopic`, empty = none.
    pub dead_letter_topic: String,
    /// `spec.bulkSubscribe`.
    pub bulk: BulkSubscribe,
    /// `scopes`.
    pub scopes: Vec<String>,
}

/// Protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// MQTT 3.1.1 and 5 over TCP or TLS.
    Mqtt,
    /// CoAP over UDP.
    Coap,
}

impl ListenerProtocol {
    /// As written in the resource.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Coap => "coap",
        }
    }
}

/// `spec.tls` of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM chain.
    pub cert_file: PathBuf,
    /// PEM key.
    pub key_file: PathBuf,
    /// PEM roots that client certificates must chain to; without it none is asked for.
    pub client_ca_file: Option<PathBuf>,
}

/// `spec.limits` of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Most clients at a time.
    pub clients: usize,
    /// Largest packet, in bytes.
    pub packet_bytes: u32,
    /// Most messages in flight in each direction of one client.
    pub window: u16,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self { clients: 1_000, packet_bytes: 1 << 20, window: 64 }
    }
}

/// `kind: Listener` of `selvedge/v1alpha1`: who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    /// Where its address stands.
    pub origin: Origin,
    /// `metadata.name`.
    pub name: String,
    /// `spec.protocol`.
    pub protocol: ListenerProtocol,
    /// `spec.bind`: `address:port` or `systemd:NAME`.
    pub bind: String,
    /// `spec.pubsub`: the pub/sub that topics belong to; `local` unless said.
    pub pubsub: String,
    /// `spec.tls`.
    pub tls: Option<ListenerTls>,
    /// `spec.users.file`: accounts and access rules; without it everyone may do everything.
    pub users_file: Option<PathBuf>,
    /// `spec.limits`.
    pub limits: ListenerLimits,
}

/// Where in a folder of YAML something stands. That is no part of what it is: two of them are always equal.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Key, such as `spec.routes[0]`.
    pub key: String,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.rsplit('/').next().unwrap_or_default(), self.line)
    }
}

/// Stands between the names of the upstreams in the name of their set.
pub const SET_SEPARATOR: &str = "|";

/// One route of a forwarding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteSpec {
    /// Where it stands.
    pub origin: Origin,
    /// Pub/sub that messages come from.
    pub from: String,
    /// Topic filters; a message that any of them covers takes the route.
    pub topics: Vec<String>,
    /// Pub/subs that they go to.
    pub to: Vec<String>,
    /// Put before the topic.
    pub prefix: String,
    /// Cut from the topic first; topics without it are left as they are.
    pub strip_prefix: String,
    /// In which modes, or for which messages, it is taken: what [`crate::hub::When`] reads; empty = always.
    pub when: String,
    /// What its upstreams get of the messages.
    pub deliver: Deliver,
    /// Of a route that leads in: what has come once is not carried again.
    pub dedupe: Option<DedupeSpec>,
}

/// `deliver` of a route: what each of its upstreams gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Deliver {
    /// Everything.
    #[default]
    Both,
    /// Each message goes to one of them, by this.
    Shard(ShardKey),
    /// Each message is done when the first of them has it.
    FirstAck,
}

/// `dedupe` of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupeSpec {
    /// How long an id is remembered.
    pub window: Duration,
    /// Most ids that are.
    pub ids: usize,
}

impl RouteSpec {
    /// The name of the set that its upstreams are, the same in whatever order they stand; none when each is on its own.
    #[must_use]
    pub fn set(&self) -> Option<String> {
        let mut names: Vec<&str> = self.to.iter().map(String::as_str).collect();
        names.sort_unstable();
        (self.deliver == Deliver::FirstAck).then(|| names.join(SET_SEPARATOR))
    }

    /// The topic at the destination.
    #[must_use]
    pub fn map_topic(&self, topic: &str) -> String {
        let stripped = topic.strip_prefix(self.strip_prefix.as_str()).unwrap_or(topic);
        let mut mapped = String::with_capacity(self.prefix.len() + stripped.len());
        mapped.push_str(&self.prefix);
        mapped.push_str(stripped);
        mapped
    }
}

/// One lane of a forwarding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSpec {
    /// Where it stands.
    pub origin: Origin,
    /// Name, `[a-z0-9-]+`.
    pub name: String,
    /// Topic filters; the first lane that matches takes the record. The lane `default` matches all.
    pub matches: Vec<String>,
    /// How safe a record is when its sender is answered.
    pub durability: Durability,
    /// Bytes on disk, overhead included; of a passthrough lane bytes in memory.
    pub quota_bytes: u64,
    /// Longest life.
    pub ttl: Option<Duration>,
    /// What happens at the quota.
    pub when_full: WhenFull,
    /// Share of the link relative to other lanes, 1 to 100.
    pub weight: u32,
    /// It goes before all lanes that are not strict.
    pub strict: bool,
    /// Bytes that it may use while the disk is short.
    pub floor_bytes: u64,
    /// Of a memory lane: how long a record waits in memory for its destinations before it is written; zero = not at all.
    pub spill_after: Duration,
    /// What is sent first of what waits.
    pub order: Order,
    /// Of a passthrough lane: how long a sender waits for its upstreams' answers.
    pub answer_within: Duration,
}

/// `spec.drain` of a forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainSpec {
    /// Messages per second while draining; `None` = no limit.
    pub messages_per_second: Option<u32>,
    /// Bytes per second while draining; `None` = no limit.
    pub bytes_per_second: Option<u64>,
    /// Longest random wait before a drain begins.
    pub jitter: Duration,
    /// How long a drain takes to come to its full window.
    pub slow_start: Duration,
    /// Percent of what a lane with `order: newest` sends that is kept for live records while its backlog waits; `None` =
    /// [`DEFAULT_LIVE_SHARE`](crate::outbox::DEFAULT_LIVE_SHARE).
    pub live_share: Option<u8>,
}

/// `kind: Forwarding`: what goes where, how safe, for how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForwardingSpec {
    /// `metadata.name`.
    pub name: String,
    /// `spec.routes`.
    pub routes: Vec<RouteSpec>,
    /// `spec.lanes`.
    pub lanes: Vec<LaneSpec>,
    /// `spec.drain`.
    pub drain: DrainSpec,
}

/// Role of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamRole {
    /// Gets everything that is routed to it.
    Primary,
    /// Stands by.
    Secondary,
}

/// One upstream of an escape policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSpec {
    /// Where it stands.
    pub origin: Origin,
    /// Name of the pub/sub component.
    pub component: String,
    /// Role.
    pub role: UpstreamRole,
    /// Acknowledgement latency above which the link counts as slow.
    pub slow: Duration,
    /// An unacknowledged publish older than this breaks the link.
    pub stall: Duration,
    /// How long a link must be well before it counts as healed.
    pub heal: Duration,
    /// Of a secondary: the lanes of the primaries that it takes over; empty = all.
    pub lanes: Vec<String>,
    /// Of a secondary: how long a primary must stand before it gets its lanes back.
    pub failback_after: Duration,
    /// Bytes that it may send and receive in a month.
    pub data_per_month: Option<u64>,
}

impl UpstreamSpec {
    /// `slow` unless said, and of an upstream that no policy names.
    pub const SLOW: Duration = Duration::from_millis(1_500);
    /// The same of `stall`.
    pub const STALL: Duration = Duration::from_secs(20);
    /// The same of `heal`.
    pub const HEAL: Duration = Duration::from_secs(15);
    /// The same of `failbackAfter`.
    pub const FAILBACK_AFTER: Duration = Duration::from_secs(300);
}

/// `kind: EscapePolicy`: what to do when upstreams fail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EscapePolicySpec {
    /// Where it stands.
    pub origin: Origin,
    /// `metadata.name`.
    pub name: String,
    /// `spec.upstreams`.
    pub upstreams: Vec<UpstreamSpec>,
    /// `spec.modes`.
    pub modes: ModeConfig,
    /// `spec.budgets.diskFree`.
    pub disk_free: DiskFloor,
    /// `spec.modes.secretsMaxAge`: how old a secret may be that is answered while its store is gone; zero = none is kept.
    pub secrets_max_age: Duration,
    /// `spec.modes.configMaxAge`: the same of configuration.
    pub config_max_age: Duration,
    /// `spec.budgets.flash`: bytes that the store may write in a day.
    pub flash_per_day: Option<u64>,
    /// `spec.budgets.data`: bytes that all upstreams together may send and receive in a month.
    pub data_per_month: Option<u64>,
    /// `spec.atRest.keys`: what seals data on the disk, the one that seals first.
    pub at_rest: Vec<KeySource>,
    /// `spec.atRest.messages`: whether they seal stored messages, too.
    pub seal_messages: bool,
    /// `spec.atRest.lostKeys`: ids of keys that will not come back.
    pub lost_keys: Vec<u32>,
    /// `spec.notices.topic`: where the node's own notices go upstream, `{node}` stands for its id; empty = nowhere.
    pub notices: String,
}

/// Least room on the file system of the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskFloor {
    /// 64 MiB, or a fiftieth of its size if that is less.
    #[default]
    Little,
    /// Of its size.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl DiskFloor {
    /// Whether a file system has less room than that.
    #[must_use]
    pub fn is_passed(self, space: Space) -> bool {
        match self {
            Self::Little => space.available < (space.total / 50).min(64 << 20),
            Self::Percent(percent) => u128::from(space.available) * 100 < u128::from(space.total) * u128::from(percent),
            Self::Bytes(bytes) => space.available < bytes,
        }
    }
}

/// Where notices go unless said: a topic without `$`, which brokers keep for themselves.
pub const DEFAULT_NOTICES: &str = "selvedge/{node}";

/// Which secrets of a store an application may read (`spec.secrets.scopes`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretScope {
    /// Store.
    pub store: String,
    /// Secrets that no list names.
    pub default_allow: bool,
    /// If not empty, only these.
    pub allowed: Vec<String>,
    /// Never these.
    pub denied: Vec<String>,
}

impl SecretScope {
    /// Whether this secret may be read.
    #[must_use]
    pub fn allows(&self, secret: &str) -> bool {
        if !self.allowed.is_empty() {
            return self.allowed.iter().any(|s| s == secret);
        }
        !self.denied.iter().any(|s| s == secret) && self.default_allow
    }
}

/// `kind: Configuration` as given by `--config`, as far as it is served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigurationSpec {
    /// `spec.secrets.scopes`.
    pub secret_scopes: Vec<SecretScope>,
    /// `spec.logging.apiLogging.enabled`.
    pub api_logging: Option<bool>,
    /// `spec.metric(s).recordErrorCodes`.
    pub record_error_codes: bool,
    /// `spec.features` that are on.
    pub features: Vec<String>,
}
