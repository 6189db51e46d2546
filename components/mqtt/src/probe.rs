//! The way to the broker, stage by stage: name, TCP, TLS, MQTT; and what of the settings may surprise.

use selvedge::certificate;
use selvedge::component::{Finding, LinkCause, LinkFailure};
use selvedge::time::Timestamp;

use crate::settings::{Settings, Version};
use crate::transport::{self, Stream};
use crate::wire::PeerLimitsSeen;

/// A window below this keeps a link with a long way slow.
const SMALL_WINDOW: u16 = 16;
/// A packet below this refuses messages that devices may send.
const SMALL_PACKET: u32 = 64 << 10;

/// Connects as the component does, but with a client id of its own and without a session: a node that runs is not disturbed.
pub async fn examine(settings: &Settings, now: Timestamp) -> Vec<Finding> {
    let mut own = settings.clone();
    own.client_id = format!("{}-doctor", settings.client_id);
    own.clean_session = true;
    let mut findings = traps(settings);
    let reached = tokio::time::timeout(settings.timing.connect, stages(&own, now, &mut findings)).await;
    if reached.is_err() {
        let found = format!("{} does not answer within {} s", settings.peer(), settings.timing.connect.as_secs());
        findings.push(Finding::problem(subject(settings, "mqtt"), found, remedy(LinkCause::Silent)));
    }
    findings
}

fn subject(settings: &Settings, stage: &str) -> String {
    format!("upstream {}: {stage}", settings.name)
}

/// What to do about a cause.
fn remedy(cause: LinkCause) -> &'static str {
    match cause {
        LinkCause::Dns => "check the name in `url` and the box's resolver (/etc/resolv.conf)",
        LinkCause::Route => "the box has no way to that network: check its interface, address and default route",
        LinkCause::Refused => "the broker refuses what it is sent: ask its operator what this client may do",
        LinkCause::Tcp => "nothing listens there, or a firewall is between: check the port in `url` and the broker",
        LinkCause::TlsTime => "check the box's clock first, then the broker's certificate",
        LinkCause::TlsTrust => {
            "give the broker's CA in `caCert`, and use the name that its certificate carries in `url`; a certificate that is an authority's (CaUsedAsEndEntity) cannot be the broker's own: have it sign one"
        }
        LinkCause::Auth => "check user name and password in `url`, or clientCert and clientKey, and what the broker allows this client",
        LinkCause::Quota => "the broker has no room now: ask its operator",
        LinkCause::Silent | LinkCause::Slow => {
            "something accepts connections and does not answer: is it an MQTT broker, and is TLS asked for on both sides?"
        }
        LinkCause::PeerError | LinkCause::Operator => "is it an MQTT broker of this version (mqtt3 or mqtt5), and is TLS asked for on both sides?",
    }
}

fn failed(settings: &Settings, stage: &str, failure: &LinkFailure) -> Finding {
    Finding::problem(subject(settings, stage), failure.to_string(), remedy(failure.cause))
}

async fn stages(settings: &Settings, now: Timestamp, findings: &mut Vec<Finding>) {
    let mut step = "looking up";
    let tcp = match transport::tcp(settings, &mut step).await {
        Ok(tcp) => tcp,
        Err(failure) => {
            let stage = if failure.cause == LinkCause::Dns { "dns" } else { "tcp" };
            findings.push(failed(settings, stage, &failure));
            return;
        }
    };
    let address = tcp.peer_addr().map_or_else(|_| settings.peer(), |a| a.to_string());
    findings.push(Finding::good(subject(settings, "tcp"), format!("{} answers at {address}", settings.host)));
    let mut stream = match &settings.tls {
        None => {
            let found = "the connection is not encrypted: passwords and messages can be read on the way";
            findings.push(Finding::note(subject(settings, "tls"), found, "use mqtts:// if the way leaves the site"));
            Stream::Tcp(crate::tcp::Tcp::new(tcp, settings.meter.clone()))
        }
        Some(tls) => match transport::encrypt(settings, tls, tcp).await {
            Ok(stream) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                for (at, one) in chain.iter().enumerate() {
                    let whose = if at == 0 { "broker".to_owned() } else { format!("issuer {at}") };
                    findings.push(certificate::examine(&subject(settings, &format!("tls: {whose}")), one.as_ref(), now));
                }
                Stream::Tls(Box::new(stream))
            }
            Err(failure) => {
                findings.push(failed(settings, "tls", &failure));
                return;
            }
        },
    };
    match transport::greet(settings, &mut stream).await {
        Ok((_, _, limits)) => {
            let version = if settings.version == Version::V5 { "MQTT 5" } else { "MQTT 3.1.1" };
            findings.push(Finding::good(
                subject(settings, "mqtt"),
                format!("the broker accepts us ({version}, client id {} beside the node's)", settings.client_id),
            ));
            findings.extend(limited(settings, &limits));
        }
        Err(failure) => findings.push(failed(settings, "mqtt", &failure)),
    }
}

/// What the broker's limits mean.
fn limited(settings: &Settings, limits: &PeerLimitsSeen) -> Vec<Finding> {
    let subject = || subject(settings, "broker limits");
    let mut findings = Vec::new();
    if limits.receive_maximum < SMALL_WINDOW {
        let found = format!("Receive Maximum is {}: that many publishes may be on their way, a slow link stays slow", limits.receive_maximum);
        findings.push(Finding::warning(subject(), found, "have it raised (mosquitto: max_inflight_messages)"));
    }
    if let Some(bytes) = limits.maximum_packet_bytes.filter(|b| *b < SMALL_PACKET) {
        let found = format!("Maximum Packet Size is {bytes} bytes: larger messages are set aside in the lane `quarantine`");
        findings.push(Finding::warning(subject(), found, "have it raised (mosquitto: max_packet_size), or limit devices with limits.packetBytes"));
    }
    if limits.maximum_qos == 0 {
        findings.push(Finding::problem(
            subject(),
            "Maximum QoS is 0: nothing is acknowledged, what is on its way when the link breaks is lost",
            "have it raised",
        ));
    }
    if !limits.retain_available {
        findings.push(Finding::note(subject(), "the broker keeps no retained messages", "do not rely on `retain` for what goes up"));
    }
    if let Some(seconds) = limits.keep_alive_seconds {
        findings.push(Finding::note(subject(), format!("the broker sets the keep-alive to {seconds} s"), ""));
    }
    findings
}

/// What of the settings loses messages.
fn traps(settings: &Settings) -> Vec<Finding> {
    let subject = || subject(settings, "settings");
    let mut findings = Vec::new();
    if settings.qos == 0 {
        let found = "qos is 0: subscriptions get each message at most once, and none while the link is down";
        findings.push(Finding::warning(subject(), found, "leave `qos` at 1"));
    }
    if settings.clean_session {
        let found = "cleanSession is true (session expiry 0): what the broker has for this box while the link is down is dropped";
        findings.push(Finding::warning(subject(), found, "leave `cleanSession` at false"));
    }
    findings
}
