//! The change from HTTP/1.1 to HTTP/2 on one connection (`Upgrade: h2c`, RFC 7540 section 3.2; RFC 9113 keeps prior knowledge alone, but
//! `curl --http2` and older HTTP/2 clients ask this way, and daprd answers them).
//!
//! The request that asks is stream 1 of the HTTP/2 connection. It has been read already, so it is written as a HEADERS frame between the
//! client's SETTINGS and what follows them, and the connection goes back to the listener, which serves it as any other HTTP/2 one.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head: length (24 bits), type, flags, stream (RFC 9113, section 4.1).
const FRAME_HEAD: usize = 9;
/// Largest frame before anything else is agreed (RFC 9113, section 4.2).
const MAX_FRAME: usize = 16_384;
const FRAME_HEADERS: u8 = 1;
const FRAME_SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Time for the client's preface after the switch.
const PREFACE_TIME: Duration = Duration::from_secs(10);
/// Connections that have switched and wait to be served.
const SWITCHED: usize = 16;
/// Header fields that belong to the HTTP/1.1 connection (RFC 9113, section 8.2.2) and `host`, which becomes `:authority`.
const CONNECTION_FIELDS: [&str; 9] =
    ["connection", "upgrade", "http2-settings", "keep-alive", "proxy-connection", "transfer-encoding", "te", "host", "content-length"];

/// A connection, with bytes that are read before its own.
pub(super) struct Connection {
    before: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let n = self.before.len().min(buffer.remaining());
        buffer.put_slice(&self.before[..n]);
        self.before.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A socket's connections: new ones, and those that come back as HTTP/2.
pub(super) struct Connections {
    socket: TcpListener,
    switched: mpsc::Receiver<Connection>,
}

impl Connections {
    pub fn new(socket: TcpListener) -> (Self, Switch) {
        let (back, switched) = mpsc::channel(SWITCHED);
        (Self { socket, switched }, Switch { back })
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            tokio::select! {
                (stream, peer) = Listener::accept(&mut self.socket) => {
                    // Answers are small and complete: none may wait for the acknowledgement of the one before (40 ms on Linux).
                    let _ = stream.set_nodelay(true);
                    return (Connection { before: Bytes::new(), stream }, peer);
                }
                Some(connection) = self.switched.recv() => {
                    // Gone already if it has no peer.
                    if let Ok(peer) = connection.stream.peer_addr() {
                        return (connection, peer);
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Where connections that become HTTP/2 are given back.
#[derive(Clone)]
pub(super) struct Switch {
    back: mpsc::Sender<Connection>,
}

impl Switch {
    /// The 101 answer if the request asks for HTTP/2 and can be taken over: a request with a body, or one whose header fields do not fit
    /// into a frame, is served as HTTP/1.1, which a server is free to do.
    pub fn take(&self, request: &mut Request) -> Option<Response> {
        let stream_one = stream_one(request)?;
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(switch(upgrade, stream_one, self.back.clone()));
        let fields = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "h2c")];
        Some((StatusCode::SWITCHING_PROTOCOLS, fields).into_response())
    }
}

async fn switch(upgrade: OnUpgrade, stream_one: Bytes, back: mpsc::Sender<Connection>) {
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(parts) = downcast::<TokioIo<Connection>>(upgraded) else { return };
    let Connection { before, stream } = parts.io.into_inner();
    let mut connection = Connection { before: [before, parts.read_buf].concat().into(), stream };
    match tokio::time::timeout(PREFACE_TIME, client_preface(&mut connection)).await {
        Ok(Ok(mut read)) => {
            read.put(stream_one);
            read.put(std::mem::take(&mut connection.before));
            connection.before = read.freeze();
            // Nobody takes it when the API stops.
            let _ = back.send(connection).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a client that asked for HTTP/2 does not speak it"),
        Err(_) => tracing::debug!("a client that asked for HTTP/2 said nothing more"),
    }
}

/// Reads the client's preface and the SETTINGS that must follow it.
async fn client_preface(connection: &mut Connection) -> io::Result<BytesMut> {
    let mut read = BytesMut::zeroed(PREFACE.len() + FRAME_HEAD);
    connection.read_exact(&mut read).await?;
    let (preface, head) = read.split_at(PREFACE.len());
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if preface != PREFACE || head[3] != FRAME_SETTINGS || length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no HTTP/2 preface"));
    }
    let begun = read.len();
    read.resize(begun + length, 0);
    connection.read_exact(&mut read[begun..]).await?;
    Ok(read)
}

/// The HEADERS frame of a request that asks for HTTP/2.
fn stream_one(request: &Request) -> Option<Bytes> {
    let headers = request.headers();
    let bodiless = !headers.contains_key(header::TRANSFER_ENCODING) && headers.get(header::CONTENT_LENGTH).is_none_or(|n| n == "0");
    if request.version() != Version::HTTP_11 || !bodiless || !names(headers, header::UPGRADE, "h2c") {
        return None;
    }
    if !names(headers, header::CONNECTION, "upgrade") || !names(headers, header::CONNECTION, "http2-settings") {
        return None;
    }
    // Exactly one, and it must be a list of settings: six bytes each. The client's SETTINGS frame says them again.
    let mut settings = headers.get_all("http2-settings").iter();
    let (settings, None) = (settings.next()?, settings.next()) else { return None };
    let settings = URL_SAFE_NO_PAD.decode(settings.to_str().ok()?.trim_end_matches('=')).ok()?;
    if settings.len() % 6 != 0 {
        return None;
    }
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let mut block = BytesMut::new();
    field(&mut block, ":method", request.method().as_str().as_bytes());
    field(&mut block, ":scheme", b"http");
    field(&mut block, ":path", path.as_bytes());
    if let Some(host) = headers.get(header::HOST) {
        field(&mut block, ":authority", host.as_bytes());
    }
    for (name, value) in headers {
        if !CONNECTION_FIELDS.contains(&name.as_str()) {
            field(&mut block, name.as_str(), value.as_bytes());
        }
    }
    let length = u32::try_from(block.len()).ok().filter(|_| block.len() <= MAX_FRAME)?;
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + block.len());
    frame.put_slice(&length.to_be_bytes()[1..]);
    frame.put_u8(FRAME_HEADERS);
    frame.put_u8(END_STREAM | END_HEADERS);
    frame.put_u32(1);
    frame.put(block);
    Some(frame.freeze())
}

fn names(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// A literal header field without indexing, name and value as they are (RFC 7541, section 6.2.2): leaves the peer's table as it is.
fn field(block: &mut BytesMut, name: &str, value: &[u8]) {
    block.put_u8(0);
    for text in [name.as_bytes(), value] {
        length(block, text.len());
        block.put_slice(text);
    }
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(block: &mut BytesMut, n: usize) {
    const PREFIX: usize = 127;
    if n < PREFIX {
        block.put_u8(n.to_le_bytes()[0]);
        return;
    }
    block.put_u8(127);
    let mut rest = n - PREFIX;
    while rest >= 128 {
        block.put_u8((rest % 128).to_le_bytes()[0] | 0x80);
        rest /= 128;
    }
    block.put_u8(rest.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_the_standard_shows_them() {
        // RFC 7541, appendix C.1.2 has 1337 with a prefix of five bits; with seven it is 127 + 1210.
        for (n, bytes) in [(10, vec![10]), (126, vec![126]), (127, vec![127, 0]), (1337, vec![127, 0x80 | 58, 9])] {
            let mut block = BytesMut::new();
            length(&mut block, n);
            assert_eq!(block, bytes, "{n}");
        }
    }

    fn asks(change: impl FnOnce(&mut Request)) -> Option<Bytes> {
        let mut request = Request::new(axum::body::Body::empty());
        *request.uri_mut() = "/v1.0/healthz?appid=a".parse().unwrap();
        for (name, value) in [("host", "box:3500"), ("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("accept", "*/*")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request.headers_mut().insert("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA".parse().unwrap());
        change(&mut request);
        stream_one(&request)
    }

    #[test]
    fn a_request_that_asks_becomes_stream_one() {
        let frame = asks(|_| {}).unwrap();
        assert_eq!(frame[3..FRAME_HEAD], [FRAME_HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, 1]);
        let block = String::from_utf8_lossy(&frame[FRAME_HEAD..]).into_owned();
        assert_eq!(
            block,
            "\0\u{7}:method\u{3}GET\0\u{7}:scheme\u{4}http\0\u{5}:path\u{15}/v1.0/healthz?appid=a\0\u{a}:authority\u{8}box:3500\0\u{6}accept\u{3}*/*"
        );
    }

    #[test]
    fn what_cannot_be_taken_over_stays_http_1() {
        assert!(asks(|r| *r.version_mut() = Version::HTTP_10).is_none());
        assert!(asks(|r| drop(r.headers_mut().remove("upgrade"))).is_none());
        assert!(asks(|r| drop(r.headers_mut().insert("connection", "Upgrade".parse().unwrap()))).is_none());
        assert!(asks(|r| drop(r.headers_mut().insert("content-length", "3".parse().unwrap()))).is_none());
        assert!(asks(|r| drop(r.headers_mut().insert("http2-settings", "AAMA".parse().unwrap()))).is_none());
        assert!(asks(|r| assert!(r.headers_mut().append("http2-settings", "AAMAAABk".parse().unwrap()))).is_none());
        assert!(asks(|r| drop(r.headers_mut().insert("x", "y".repeat(MAX_FRAME).parse().unwrap()))).is_none());
    }
}
