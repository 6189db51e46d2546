//! What a connection is made from: Dapr's keys of `pubsub.mqtt3`, `pubsub.mqtt5` and `bindings.mqtt3`, parsed once.

use std::sync::Arc;
use std::time::Duration;

use selvedge::component::{ComponentContext, InitError, PropertyError};

use crate::tcp::Meter;
use crate::tls::{self, Tls};

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V3,
    /// MQTT 5.0, protocol level 5.
    V5,
}

/// What is accepted as the URL of a broker.
pub const URL: &str = "mqtt://[USER[:PASSWORD]@]HOST[:PORT], or with one of the schemes tcp, ssl, tls, mqtts, tcps";
/// Name, address and identity of a connection.
#[derive(Clone)]
pub struct Settings {
    /// Component name, for messages.
    pub name: String,
    /// Protocol version.
    pub version: Version,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS, where the scheme asks for it.
    pub tls: Option<Arc<Tls>>,
    /// MQTT client id.
    pub client_id: String,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// Quality of service of publishes and subscriptions, 0 to 2.
    pub qos: u8,
    /// Retain what is published.
    pub retain: bool,
    /// Start without, and leave no, session at the broker.
    pub clean_session: bool,
    /// Limits and intervals that no key changes.
    pub timing: Timing,
    /// Counts what the component's connections send and receive.
    pub meter: Arc<Meter>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).field("version", &self.version).field("peer", &self.peer()).finish_non_exhaustive()
    }
}

/// Intervals of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the first lookup to CONNACK.
    pub connect: Duration,
    /// MQTT keep-alive; after one and a half of it without a byte from the peer the link is dead.
    pub keep_alive: Duration,
    /// How long a publish or subscribe waits for the broker.
    pub answer: Duration,
    /// How long a message that no subscription wants is kept for one that comes later, before it is acknowledged and dropped.
    pub park: Duration,
}

impl Default for Timing {
    /// 10 s to connect, keep-alive 30 s (Dapr's), 20 s for answers (Dapr's), 60 s for messages without a subscription.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), keep_alive: Duration::from_secs(30), answer: Duration::from_secs(20), park: Duration::from_secs(60) }
    }
}

/// A broker's URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The scheme asks for TLS.
    pub tls: bool,
    /// Host name or address, an IPv6 address without brackets.
    pub host: String,
    /// TCP port: what is said, else 8883 with TLS and 1883 without.
    pub port: u16,
    /// User name and password, decoded; an empty password where none is said.
    pub credentials: Option<(String, String)>,
}

impl Settings {
    /// Reads the settings of a component.
    ///
    /// # Errors
    /// Names the key, what was found and what is accepted.
    pub fn read(context: &ComponentContext, version: Version) -> Result<Self, InitError> {
        let properties = &context.properties;
        let url = properties.require("url", URL)?;
        let url = Url::parse(url).ok_or_else(|| PropertyError::invalid("url", redact(url), URL))?;
        let client_id = properties.first_of(&["consumerID"]).unwrap_or(&context.app_id).to_owned();
        let qos = properties.integer("qos", 1)?;
        // Dapr's reading: what fits three bits passes; the protocol knows 0 to 2.
        let qos = u8::try_from(qos).ok().filter(|q| *q <= 7).ok_or_else(|| PropertyError::invalid("qos", qos.to_string(), "0, 1 or 2"))?.min(2);
        let tls = if url.tls { Some(Arc::new(tls_settings(context)?)) } else { None };
        Ok(Self {
            name: context.name.clone(),
            version,
            host: url.host,
            port: url.port,
            tls,
            client_id,
            credentials: url.credentials,
            qos,
            retain: properties.boolean("retain", false),
            clean_session: properties.boolean("cleanSession", false),
            timing: Timing::default(),
            meter: Arc::default(),
        })
    }

    /// The peer as shown to people.
    #[must_use]
    pub fn peer(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

fn tls_settings(context: &ComponentContext) -> Result<Tls, InitError> {
    // These three are strict about case, as they are in Dapr.
    let pem = |name| context.properties.get_exact(name).filter(|v| !v.is_empty());
    tls::Tls::from_pem(pem("caCert"), pem("clientCert"), pem("clientKey"), context.clock.clone()).map_err(|e| InitError::Property(e.into_property()))
}

/// The URL without what may be a secret.
#[must_use]
pub fn redact(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

impl Url {
    /// Takes a URL apart; nothing when it is none of [`URL`].
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.trim().split_once("://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "tcp" | "mqtt" => false,
            "ssl" | "tls" | "mqtts" | "tcps" => true,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, authority),
        };
        let default_port = if tls { 8883 } else { 1883 };
        let (host, port) = if let Some(v6) = address.strip_prefix('[') {
            let (host, after) = v6.split_once(']')?;
            match after.strip_prefix(':') {
                Some(port) => (host, port.parse().ok()?),
                None if after.is_empty() => (host, default_port),
                None => return None,
            }
        } else {
            match address.split_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (address, default_port),
            }
        };
        if host.is_empty() || port == 0 || host.contains(char::is_whitespace) {
            return None;
        }
        let credentials = match user_info {
            None => None,
            Some(info) => {
                let (user, password) = info.split_once(':').unwrap_or((info, ""));
                Some((percent_decode(user)?, percent_decode(password)?))
            }
        };
        Some(Self { tls, host: host.to_owned(), port, credentials })
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_as_dapr_takes_them() {
        let plain = |host: &str, port| Some(Url { tls: false, host: host.into(), port, credentials: None });
        assert_eq!(Url::parse("mqtt://broker"), plain("broker", 1883));
        assert_eq!(Url::parse("tcp://10.0.0.1:1884/ignored"), plain("10.0.0.1", 1884));
        assert_eq!(Url::parse("TCP://[::1]:5"), plain("::1", 5));
        assert_eq!(Url::parse("mqtt://[::1]"), plain("::1", 1883));
        for scheme in ["ssl", "tls", "mqtts", "tcps"] {
            assert_eq!(
                Url::parse(&format!("{scheme}://us%40er:p%3Ass@h")),
                Some(Url { tls: true, host: "h".into(), port: 8883, credentials: Some(("us@er".into(), "p:ss".into())) })
            );
        }
        for bad in ["", "broker:1883", "ws://h", "http://h", "mqtt://", "mqtt://h:0", "mqtt://h:99999", "mqtt://[::1", "mqtt://u%zz@h", "mqtt://a b"]
        {
            assert_eq!(Url::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bad_url_is_shown_without_its_password() {
        assert_eq!(redact("mqtt://me:secret@host:99999"), "mqtt://***@host:99999");
        assert_eq!(redact("nonsense"), "nonsense");
    }
}
