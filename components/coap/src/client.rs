//! A small client: one request at a time over UDP, as a device does it. Serves the demonstration and tests.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use coap_lite::{CoapOption, MessageType, Packet};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::block::Block;
use crate::packet::{self, Code};
use crate::settings::{ACK_TIMEOUT, MAX_DATAGRAM_BYTES, MAX_RETRANSMIT, MAX_SZX};

/// Bodies beyond this size go in blocks.
const BLOCK_BYTES: usize = 1 << (MAX_SZX + 4);
/// Longest wait for an answer that was promised by an empty acknowledgement.
const SEPARATE_WAIT: Duration = Duration::from_secs(60);
/// Largest body that is put together from blocks.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed.
    #[error("coap socket")]
    Socket(#[from] std::io::Error),
    /// Nobody answered.
    #[error("no answer from {0}")]
    TimedOut(SocketAddr),
    /// The server does not know what the message is.
    #[error("{0} reset the exchange")]
    Reset(SocketAddr),
    /// The answer's body is larger than 1 MiB.
    #[error("the answer's body is too large")]
    TooLarge,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Code.
    pub code: Code,
    /// Body, put together from its blocks.
    pub payload: Bytes,
    /// Content-Format.
    pub content_format: Option<u16>,
    /// Max-Age in seconds.
    pub max_age_seconds: Option<u32>,
    /// It came after an empty acknowledgement.
    pub separate: bool,
}

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    next: u16,
    buffer: Vec<u8>,
}

impl Client {
    /// A client with a socket of its own. `seed` chooses the first message id.
    ///
    /// # Errors
    /// When no socket can be had.
    pub async fn connect(server: SocketAddr, seed: u16) -> Result<Self, ClientError> {
        let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(local).await?;
        socket.connect(server).await?;
        Ok(Self { socket, server, next: seed, buffer: vec![0; MAX_DATAGRAM_BYTES] })
    }

    /// The address that the server sees.
    ///
    /// # Errors
    /// When the socket does not tell.
    pub fn local_address(&self) -> Result<SocketAddr, ClientError> {
        Ok(self.socket.local_addr()?)
    }

    /// POST: publishes to the topic, confirmably.
    ///
    /// # Errors
    /// When there was no answer; whether the message was taken is then unknown.
    pub async fn post(&mut self, topic: &str, content_format: Option<u16>, payload: &[u8]) -> Result<Response, ClientError> {
        self.upload(2, topic, content_format, payload).await
    }

    /// PUT: the same.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub async fn put(&mut self, topic: &str, content_format: Option<u16>, payload: &[u8]) -> Result<Response, ClientError> {
        self.upload(3, topic, content_format, payload).await
    }

    async fn upload(&mut self, method: u8, path: &str, content_format: Option<u16>, payload: &[u8]) -> Result<Response, ClientError> {
        let blocks = payload.len().div_ceil(BLOCK_BYTES).max(1);
        for (number, chunk) in payload.chunks(BLOCK_BYTES).chain(payload.is_empty().then_some(&[][..])).enumerate() {
            let mut request = self.request(method, path);
            if let Some(format) = content_format {
                packet::add_uint(&mut request, CoapOption::ContentFormat, u32::from(format));
            }
            let more = number + 1 < blocks;
            if blocks > 1 {
                packet::add_uint(&mut request, CoapOption::Block1, Block { number: number as u32, more, szx: MAX_SZX }.value());
            }
            request.payload = chunk.to_vec();
            let response = self.exchange(&request).await?;
            if !more || response.0.code != Code::CONTINUE {
                return Ok(response.0);
            }
        }
        Err(ClientError::TimedOut(self.server)) // not reached: the last block returns
    }

    /// GET: what is retained, put together from its blocks.
    ///
    /// # Errors
    /// When there was no answer, or its body passes 1 MiB.
    pub async fn get(&mut self, path: &str) -> Result<Response, ClientError> {
        let mut body = Vec::new();
        let mut block: Option<Block> = None;
        loop {
            let mut request = self.request(1, path);
            if let Some(block) = block {
                packet::add_uint(&mut request, CoapOption::Block2, Block { number: block.number + 1, more: false, szx: block.szx }.value());
            }
            let (mut response, got) = self.exchange(&request).await?;
            body.extend_from_slice(&response.payload);
            if body.len() > MAX_BODY_BYTES {
                return Err(ClientError::TooLarge);
            }
            match got.filter(|b| b.more && response.code == Code::CONTENT) {
                Some(more) => block = Some(more),
                None => {
                    response.payload = Bytes::from(body);
                    return Ok(response);
                }
            }
        }
    }

    fn request(&mut self, method: u8, path: &str) -> Packet {
        self.next = self.next.wrapping_add(1);
        let mut request = packet::message(MessageType::Confirmable, self.next, Code(method), &self.next.to_be_bytes());
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        for segment in path.split('/') {
            request.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
        }
        for part in query.split('&').filter(|part| !part.is_empty()) {
            request.add_option(CoapOption::UriQuery, part.as_bytes().to_vec());
        }
        request
    }

    /// Sends until acknowledged (RFC 7252, section 4.2) and waits for the answer.
    async fn exchange(&mut self, request: &Packet) -> Result<(Response, Option<Block>), ClientError> {
        let id = request.header.message_id;
        let bytes = packet::encode(request);
        let mut wait = ACK_TIMEOUT;
        let mut separate = false;
        let mut repeats = 0;
        self.send(&bytes).await;
        let mut deadline = Instant::now() + wait;
        loop {
            let received = timeout_at(deadline, self.socket.recv(&mut self.buffer)).await;
            let length = match received {
                Ok(Ok(length)) => length,
                // Nobody listens there now, which the system tells a connected socket: it may be restarting.
                Ok(Err(_)) => continue,
                Err(_) if separate || repeats == MAX_RETRANSMIT => return Err(ClientError::TimedOut(self.server)),
                Err(_) => {
                    repeats += 1;
                    wait *= 2;
                    deadline = Instant::now() + wait;
                    self.send(&bytes).await;
                    continue;
                }
            };
            let Ok(packet) = packet::decode(&self.buffer[..length]) else { continue };
            let kind = packet.header.get_type();
            let of_request = packet.header.message_id == id;
            if kind == MessageType::Reset && of_request {
                return Err(ClientError::Reset(self.server));
            }
            if kind == MessageType::Acknowledgement && of_request && u8::from(packet.header.code) == 0 {
                separate = true;
                deadline = Instant::now() + SEPARATE_WAIT;
                continue;
            }
            if kind == MessageType::Confirmable {
                let message_id = packet.header.message_id;
                self.send(&packet::empty_ack(message_id)).await;
            }
            if packet.get_token() == request.get_token() && u8::from(packet.header.code) >> 5 >= 2 {
                return Ok((response(&packet, separate), packet.get_first_option(CoapOption::Block2).and_then(|v| Block::from_value(v))));
            }
        }
    }

    /// What cannot be sent now is sent again.
    async fn send(&self, bytes: &[u8]) {
        if let Err(error) = self.socket.send(bytes).await {
            tracing::debug!(server = %self.server, %error, "coap datagram not sent");
        }
    }
}

fn response(packet: &Packet, separate: bool) -> Response {
    let uint = |option| packet.get_first_option(option).and_then(|v| packet::uint(v));
    Response {
        code: Code(packet.header.code.into()),
        payload: Bytes::copy_from_slice(&packet.payload),
        content_format: uint(CoapOption::ContentFormat).and_then(|n| u16::try_from(n).ok()),
        max_age_seconds: uint(CoapOption::MaxAge),
        separate,
    }
}
