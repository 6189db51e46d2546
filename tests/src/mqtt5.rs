//! MQTT 5 packet by packet, for tests of the wire: nothing is answered by itself. Independent of the product's own code.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Time for an answer.
const SOON: Duration = Duration::from_secs(10);

/// Properties as they are written (5.0, section 2.2.2).
#[derive(Debug, Clone, Default)]
pub struct Properties(Vec<u8>);

impl Properties {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A property of one byte.
    #[must_use]
    pub fn byte(mut self, id: u8, value: u8) -> Self {
        self.0.extend_from_slice(&[id, value]);
        self
    }

    /// A property of two bytes.
    #[must_use]
    pub fn short(mut self, id: u8, value: u16) -> Self {
        self.0.push(id);
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A property of four bytes.
    #[must_use]
    pub fn long(mut self, id: u8, value: u32) -> Self {
        self.0.push(id);
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A property of variable length: the subscription identifier.
    #[must_use]
    pub fn number(mut self, id: u8, value: u32) -> Self {
        self.0.push(id);
        variable(&mut self.0, value as usize);
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        variable(out, self.0.len());
        out.extend_from_slice(&self.0);
    }
}

/// What CONNECT says.
#[derive(Debug, Clone, Default)]
pub struct Connect {
    /// Client identifier.
    pub id: String,
    /// Clean start.
    pub clean: bool,
    /// Seconds; 0 = none.
    pub keep_alive: u16,
    /// Properties.
    pub properties: Properties,
    /// Topic, payload and properties of a will of quality 1.
    pub will: Option<(String, Vec<u8>, Properties)>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// A packet as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Type and flags.
    pub first: u8,
    /// All behind the length.
    pub body: Vec<u8>,
}

/// A PUBLISH taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Topic.
    pub topic: String,
    /// Payload as text.
    pub payload: String,
    /// Quality.
    pub qos: u8,
    /// Packet identifier; 0 with quality 0.
    pub id: u16,
    /// Flags.
    pub retain: bool,
    /// Flags.
    pub dup: bool,
    /// Subscription identifiers.
    pub subscriptions: Vec<u32>,
    /// Message expiry in seconds.
    pub expiry: Option<u32>,
    /// User properties.
    pub user: Vec<(String, String)>,
}

/// A connection over any stream.
pub struct Wire<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
}

fn variable(out: &mut Vec<u8>, mut n: usize) {
    loop {
        let byte = (n % 128) as u8;
        n /= 128;
        out.push(if n > 0 { byte | 128 } else { byte });
        if n == 0 {
            return;
        }
    }
}

fn read_variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut n = 0usize;
    for (i, byte) in bytes.iter().take(4).enumerate() {
        n |= usize::from(byte & 127) << (7 * i);
        if byte & 128 == 0 {
            return Some((n, i + 1));
        }
    }
    None
}

fn text(out: &mut Vec<u8>, s: &[u8]) {
    out.extend_from_slice(&(s.len() as u16).to_be_bytes());
    out.extend_from_slice(s);
}

/// Bytes of a PUBLISH; `flags`: 1 retain, 2 and 4 quality, 8 duplicate.
#[must_use]
pub fn publish_bytes(flags: u8, topic: &str, id: u16, properties: &Properties, payload: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic.as_bytes());
    if flags & 6 != 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    properties.write(&mut body);
    body.extend_from_slice(payload.as_bytes());
    let mut out = vec![0x30 | flags];
    variable(&mut out, body.len());
    out.extend(body);
    out
}

impl Wire<TcpStream> {
    /// Opens a connection, says nothing.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self::over(stream)
    }

    /// Connects and asserts that it is welcome; gives whether the server had a session.
    #[must_use]
    pub fn connect(port: u16, connect: &Connect) -> (Self, bool) {
        let mut wire = Self::open(port);
        let answer = wire.hello(connect);
        assert_eq!((answer.first, answer.body[1]), (0x20, 0), "{answer:?}");
        (wire, answer.body[0] & 1 == 1)
    }
}

impl<S: Read + Write> Wire<S> {
    /// Over a stream that has a read timeout.
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends CONNECT; gives the answer.
    pub fn hello(&mut self, connect: &Connect) -> Packet {
        let mut body = Vec::new();
        text(&mut body, b"MQTT");
        let will = connect.will.as_ref().map_or(0, |_| 0x0C);
        let user = connect.user.as_ref().map_or(0, |_| 0xC0);
        body.extend_from_slice(&[5, u8::from(connect.clean) << 1 | will | user]);
        body.extend_from_slice(&connect.keep_alive.to_be_bytes());
        connect.properties.write(&mut body);
        text(&mut body, connect.id.as_bytes());
        if let Some((topic, payload, properties)) = &connect.will {
            properties.write(&mut body);
            text(&mut body, topic.as_bytes());
            text(&mut body, payload);
        }
        if let Some((name, password)) = &connect.user {
            text(&mut body, name.as_bytes());
            text(&mut body, password.as_bytes());
        }
        self.send(0x10, &body);
        self.packet()
    }

    /// Sends a packet.
    ///
    /// # Panics
    /// When the connection is lost.
    pub fn send(&mut self, first: u8, body: &[u8]) {
        let mut out = vec![first];
        variable(&mut out, body.len());
        out.extend_from_slice(body);
        self.stream.write_all(&out).unwrap();
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When the connection is lost.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Publishes with quality 1 and asserts the acknowledgement; gives its reason code.
    pub fn publish(&mut self, flags: u8, topic: &str, properties: &Properties, payload: &str) -> u8 {
        self.raw(&publish_bytes(flags | 2, topic, 77, properties, payload));
        let answer = self.packet();
        assert_eq!((answer.first, &answer.body[..2]), (0x40, &[0, 77][..]), "{answer:?}");
        answer.body.get(2).copied().unwrap_or(0)
    }

    /// Subscribes to one filter; gives the reason code. `options`: quality, 4 no local, 8 retain as published, 16 and 32 retain handling.
    pub fn subscribe(&mut self, filter: &str, options: u8, properties: &Properties) -> u8 {
        let mut body = vec![0x11, 0x22];
        properties.write(&mut body);
        text(&mut body, filter.as_bytes());
        body.push(options);
        self.send(0x82, &body);
        let answer = self.packet();
        assert_eq!((answer.first, &answer.body[..2]), (0x90, &[0x11, 0x22][..]), "{answer:?}");
        *answer.body.last().unwrap()
    }

    /// The next packet.
    ///
    /// # Panics
    /// When none comes within 10 s, or the connection ends.
    pub fn packet(&mut self) -> Packet {
        self.try_packet().unwrap_or_else(|e| panic!("no packet: {e}"))
    }

    /// The next packet, or why there is none.
    ///
    /// # Errors
    /// The stream's; `UnexpectedEof` at its end.
    pub fn try_packet(&mut self) -> io::Result<Packet> {
        let end = Instant::now() + SOON;
        loop {
            if let Some((n, head)) = self.buffer.get(1..).and_then(read_variable)
                && self.buffer.len() > head + n
            {
                let packet = Packet { first: self.buffer[0], body: self.buffer[1 + head..1 + head + n].to_vec() };
                self.buffer.drain(..1 + head + n);
                return Ok(packet);
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// The next packet, which is a PUBLISH.
    ///
    /// # Panics
    /// When it is something else.
    pub fn message(&mut self) -> Publish {
        let packet = self.packet();
        assert_eq!(packet.first >> 4, 3, "{packet:?}");
        taken_apart(&packet)
    }

    /// Acknowledges with PUBACK.
    pub fn acknowledge(&mut self, id: u16) {
        self.send(0x40, &id.to_be_bytes());
    }

    /// Asserts that nothing was sent before the answer to a ping: the fence behind which "nothing came" is certain.
    pub fn nothing_came(&mut self) {
        self.send(0xC0, &[]);
        assert_eq!(self.packet(), Packet { first: 0xD0, body: Vec::new() });
    }

    /// Asserts that the server says DISCONNECT with this reason and closes.
    pub fn closed_with(&mut self, reason: u8) {
        let packet = self.packet();
        assert_eq!((packet.first, packet.body.first()), (0xE0, Some(&reason)), "{packet:?}");
        assert!(self.try_packet().is_err(), "the connection is closed");
    }
}

fn taken_apart(packet: &Packet) -> Publish {
    let body = &packet.body;
    let n = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let mut at = 2 + n;
    let qos = (packet.first >> 1) & 3;
    let id = if qos > 0 { u16::from_be_bytes([body[at], body[at + 1]]) } else { 0 };
    at += if qos > 0 { 2 } else { 0 };
    let (length, head) = read_variable(&body[at..]).unwrap();
    let (mut p, payload) = (&body[at + head..at + head + length], &body[at + head + length..]);
    let (mut subscriptions, mut expiry, mut user) = (Vec::new(), None, Vec::new());
    while let Some(kind) = p.first() {
        let size = match kind {
            0x0B => {
                let (n, size) = read_variable(&p[1..]).unwrap();
                subscriptions.push(n as u32);
                size
            }
            0x02 => {
                expiry = Some(u32::from_be_bytes(p[1..5].try_into().unwrap()));
                4
            }
            0x01 => 1,
            0x23 => 2,
            0x26 => {
                let name = 2 + usize::from(u16::from_be_bytes([p[1], p[2]]));
                let size = name + 2 + usize::from(u16::from_be_bytes([p[1 + name], p[2 + name]]));
                user.push((String::from_utf8_lossy(&p[3..1 + name]).into_owned(), String::from_utf8_lossy(&p[3 + name..1 + size]).into_owned()));
                size
            }
            _ => 2 + usize::from(u16::from_be_bytes([p[1], p[2]])),
        };
        p = &p[1 + size..];
    }
    Publish {
        topic: String::from_utf8_lossy(&body[2..2 + n]).into_owned(),
        payload: String::from_utf8_lossy(payload).into_owned(),
        qos,
        id,
        retain: packet.first & 1 == 1,
        dup: packet.first & 8 == 8,
        subscriptions,
        expiry,
        user,
    }
}
