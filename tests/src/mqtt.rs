//! A small MQTT 3.1.1 client for tests, independent of the product's own code: blocking, one thread.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    next_id: u16,
    /// Whether the server had a session.
    pub session_present: bool,
    /// Messages that came while something else was awaited.
    pub inbox: Vec<(String, Vec<u8>)>,
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u16).to_be_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut n = body.len();
    loop {
        let byte = (n % 128) as u8;
        n /= 128;
        out.push(if n > 0 { byte | 128 } else { byte });
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub fn connect(port: u16, client_id: &str, clean: bool) -> io::Result<Self> {
        Self::connect_to(([127, 0, 0, 1], port).into(), client_id, clean)
    }

    /// Connects to another address.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub fn connect_to(server: SocketAddr, client_id: &str, clean: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        let mut body = Vec::new();
        text(&mut body, "MQTT");
        body.extend_from_slice(&[4, if clean { 2 } else { 0 }, 0, 60]);
        text(&mut body, client_id);
        let mut client = Self { stream, buffer: Vec::new(), next_id: 0, session_present: false, inbox: Vec::new() };
        client.stream.write_all(&packet(0x10, &body))?;
        let (kind, body) = client.read(Duration::from_secs(10))?.ok_or(io::ErrorKind::TimedOut)?;
        if kind != 0x20 || body.len() < 2 || body[1] != 0 {
            return Err(io::Error::other(format!("refused: {kind:#x} {body:?}")));
        }
        client.session_present = body[0] & 1 == 1;
        Ok(client)
    }

    /// Sends publishes of quality 1 without waiting; gives their ids.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn send(&mut self, messages: &[(&str, Vec<u8>)]) -> io::Result<Vec<u16>> {
        let mut out = Vec::new();
        let mut ids = Vec::new();
        for (topic, payload) in messages {
            self.next_id = self.next_id % 60_000 + 1;
            ids.push(self.next_id);
            let mut body = Vec::new();
            text(&mut body, topic);
            body.extend_from_slice(&self.next_id.to_be_bytes());
            body.extend_from_slice(payload);
            out.extend(packet(0x32, &body));
        }
        self.stream.write_all(&out)?;
        Ok(ids)
    }

    /// The next PUBACK's id, if one comes in time.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn acknowledged(&mut self, within: Duration) -> io::Result<Option<u16>> {
        let end = Instant::now() + within;
        loop {
            match self.read(end.saturating_duration_since(Instant::now()))? {
                Some((0x40, body)) => return Ok(Some(u16::from_be_bytes([body[0], body[1]]))),
                Some((kind, body)) if kind >> 4 == 3 => self.take(kind, &body)?,
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Publishes with quality 1 and waits for the acknowledgement.
    ///
    /// # Errors
    /// When the connection is lost or nothing comes within 10 s.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> io::Result<()> {
        let id = self.send(&[(topic, payload.to_vec())])?[0];
        while self.acknowledged(Duration::from_secs(10))?.ok_or(io::ErrorKind::TimedOut)? != id {}
        Ok(())
    }

    /// Subscribes with quality 1.
    ///
    /// # Errors
    /// When the connection is lost or the server refuses.
    pub fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        let mut body = vec![0xEA, 0x61];
        text(&mut body, filter);
        body.push(1);
        self.stream.write_all(&packet(0x82, &body))?;
        loop {
            match self.read(Duration::from_secs(10))?.ok_or(io::ErrorKind::TimedOut)? {
                (0x90, body) if body.last().is_some_and(|c| *c < 0x80) => return Ok(()),
                (0x90, _) => return Err(io::Error::other("subscription refused")),
                (kind, body) if kind >> 4 == 3 => self.take(kind, &body)?,
                _ => {}
            }
        }
    }

    /// The next message, if one comes in time.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn receive(&mut self, within: Duration) -> io::Result<Option<(String, Vec<u8>)>> {
        let end = Instant::now() + within;
        loop {
            if !self.inbox.is_empty() {
                return Ok(Some(self.inbox.remove(0)));
            }
            match self.read(end.saturating_duration_since(Instant::now()))? {
                Some((kind, body)) if kind >> 4 == 3 => self.take(kind, &body)?,
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn take(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let n = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8_lossy(&body[2..2 + n]).into_owned();
        let qos = (kind >> 1) & 3;
        let mut payload = &body[2 + n..];
        if qos > 0 {
            self.stream.write_all(&[0x40, 2, payload[0], payload[1]])?;
            payload = &payload[2..];
        }
        self.inbox.push((topic, payload.to_vec()));
        Ok(())
    }

    fn whole(&self) -> Option<(usize, usize)> {
        let mut n = 0usize;
        for (i, byte) in self.buffer.iter().skip(1).take(4).enumerate() {
            n |= usize::from(byte & 127) << (7 * i);
            if byte & 128 == 0 {
                return (self.buffer.len() >= 2 + i + n).then_some((2 + i, n));
            }
        }
        None
    }

    fn read(&mut self, within: Duration) -> io::Result<Option<(u8, Vec<u8>)>> {
        let end = Instant::now() + within;
        loop {
            if let Some((start, n)) = self.whole() {
                let kind = self.buffer[0];
                let body = self.buffer[start..start + n].to_vec();
                self.buffer.drain(..start + n);
                return Ok(Some((kind, body)));
            }
            let left = end.saturating_duration_since(Instant::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if left.is_zero() {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}
