//! Opening the byte stream: lookup, TCP, TLS, CONNECT; each failure with its class.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use selvedge::component::{LinkCause, LinkFailure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::session::{self, MAX_INCOMING_BYTES, RECEIVE_MAXIMUM, SESSION_EXPIRY_SECONDS};
use crate::settings::Settings;
use crate::tcp::Tcp;
use crate::tls::{self, Tls};
use crate::wire::{self, Connect, Packet, PeerLimitsSeen};

/// Addresses of a name that are tried.
const MOST_ADDRESSES: usize = 4;

/// The byte stream of a connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Tcp(Tcp),
    /// Encrypted.
    Tls(Box<TlsStream<Tcp>>),
}

impl Stream {
    /// The stream below encryption.
    pub fn tcp(&mut self) -> &mut Tcp {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.get_mut().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// A connection that the broker has accepted.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// Bytes that came after CONNACK.
    pub rest: Vec<u8>,
    /// The broker still has our session.
    pub session_present: bool,
    /// Its limits.
    pub limits: PeerLimitsSeen,
}

/// The class of an error on an open stream.
#[must_use]
pub fn classify(error: &io::Error) -> LinkCause {
    if let Some(cause) = tls::classify(error) {
        return cause;
    }
    match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkDown | io::ErrorKind::AddrNotAvailable => {
            LinkCause::Route
        }
        _ => LinkCause::Tcp,
    }
}

/// Opens a connection.
///
/// # Errors
/// The class of what failed, with the peer's name. Takes at most [`crate::settings::Timing::connect`].
pub async fn open(settings: &Settings) -> Result<Opened, LinkFailure> {
    let mut step = "looking up";
    let opening = async {
        let tcp = tcp(settings, &mut step).await?;
        let mut stream = match &settings.tls {
            None => Stream::Tcp(Tcp::new(tcp, settings.meter.clone())),
            Some(tls) => {
                step = "the TLS handshake with";
                Stream::Tls(Box::new(encrypt(settings, tls, tcp).await?))
            }
        };
        step = "the MQTT connect to";
        greet(settings, &mut stream).await.map(|(rest, session_present, limits)| Opened { stream, rest, session_present, limits })
    };
    let timed = tokio::time::timeout(settings.timing.connect, opening).await;
    match timed {
        Ok(result) => result,
        Err(_) => {
            let cause = if step == "looking up" { LinkCause::Dns } else { LinkCause::Tcp };
            Err(LinkFailure::new(cause, format!("{step} {} took longer than {} s", settings.peer(), settings.timing.connect.as_secs_f32())))
        }
    }
}

pub(crate) async fn tcp(settings: &Settings, step: &mut &str) -> Result<TcpStream, LinkFailure> {
    let found = tokio::net::lookup_host((settings.host.as_str(), settings.port)).await;
    let addresses: Vec<_> = match found {
        Ok(addresses) => addresses.take(MOST_ADDRESSES).collect(),
        Err(e) => return Err(LinkFailure::new(LinkCause::Dns, format!("{} cannot be looked up: {e}", settings.host))),
    };
    *step = "connecting to";
    let mut failure = LinkFailure::new(LinkCause::Dns, format!("{} has no address", settings.host));
    // Several addresses share the time, so that one that swallows packets does not hide the others.
    let share = settings.timing.connect / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    for address in addresses {
        let error = match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small packets must not wait for each other's acknowledgements.
                if let Err(e) = stream.set_nodelay(true) {
                    return Err(LinkFailure::new(LinkCause::Tcp, format!("{address}: {e}")));
                }
                return Ok(stream);
            }
            Ok(Err(e)) => e,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        failure = LinkFailure::new(classify(&error), format!("{address}: {error}"));
    }
    Err(failure)
}

pub(crate) async fn encrypt(settings: &Settings, tls: &Tls, tcp: TcpStream) -> Result<TlsStream<Tcp>, LinkFailure> {
    let fail = |e: io::Error| LinkFailure::new(tls::classify(&e).unwrap_or(LinkCause::TlsTrust), format!("TLS with {}: {e}", settings.peer()));
    let name = Tls::server_name(&settings.host).map_err(fail)?;
    TlsConnector::from(tls.config.clone()).connect(name, Tcp::new(tcp, settings.meter.clone())).await.map_err(fail)
}

/// CONNECT and CONNACK.
pub(crate) async fn greet(settings: &Settings, stream: &mut Stream) -> Result<(Vec<u8>, bool, PeerLimitsSeen), LinkFailure> {
    let io = |e: io::Error| LinkFailure::new(classify(&e), format!("{}: {e}", settings.peer()));
    let mut packet = Vec::with_capacity(128);
    let seconds = |d: Duration| u16::try_from(d.as_secs().max(1)).unwrap_or(u16::MAX);
    wire::connect(
        &mut packet,
        &Connect {
            version: settings.version,
            client_id: &settings.client_id,
            credentials: settings.credentials.as_ref().map(|(user, password)| (user.as_str(), password.as_str())),
            clean: settings.clean_session,
            keep_alive_seconds: seconds(settings.timing.keep_alive),
            session_expiry_seconds: if settings.clean_session { 0 } else { SESSION_EXPIRY_SECONDS },
            receive_maximum: RECEIVE_MAXIMUM,
            maximum_packet_bytes: u32::try_from(MAX_INCOMING_BYTES).unwrap_or(u32::MAX),
        },
    )
    .map_err(|e| LinkFailure::new(LinkCause::Auth, e.to_string()))?;
    stream.write_all(&packet).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut input = Vec::with_capacity(4_096);
    loop {
        let broken = |e: wire::Malformed| LinkFailure::new(LinkCause::PeerError, format!("{} is no MQTT broker: {e}", settings.peer()));
        // No CONNACK is larger than this.
        if let Some(frame) = wire::frame(&input, 64 << 10).map_err(broken)? {
            return match wire::parse(settings.version, frame).map_err(broken)? {
                Packet::ConnAck { session_present, code: 0, limits, .. } => Ok((input[frame.bytes..].to_vec(), session_present, limits)),
                Packet::ConnAck { code, reason, .. } => Err(session::refused(settings.version, code, reason)),
                _ => Err(LinkFailure::new(LinkCause::PeerError, format!("{} sent something else before CONNACK", settings.peer()))),
            };
        }
        if stream.read_buf(&mut input).await.map_err(io)? == 0 {
            return Err(LinkFailure::new(LinkCause::PeerError, format!("{} closed the connection before CONNACK", settings.peer())));
        }
    }
}
