//! A broker that misbehaves on order. It reads packets with code of its own, and writes down what it got before it answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use selvedge::escape::SplitMix;
use selvedge_mqtt::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// See [`Script::code`].
pub type ReasonCode = dyn Fn(u64, &str, u64) -> u8 + Send + Sync;

/// What the broker does. Numbers of publishes count over all connections, from 1.
#[derive(Clone)]
pub struct Script {
    pub version: Version,
    pub session_present: bool,
    /// Acknowledgements of one batch go out in random order.
    pub shuffle: Option<u64>,
    /// Closes the socket after every n-th publish, before it is answered.
    pub drop_every: Option<u64>,
    /// Never answers the publish with this number.
    pub swallow: Option<u64>,
    /// Reads nothing more on the connection that brought the publish with this number.
    pub stall: Option<u64>,
    /// Answers the first connections with these CONNACK codes.
    pub refuse: Vec<u8>,
    /// Properties of CONNACK (MQTT 5), already encoded.
    pub properties: Vec<u8>,
    /// The most publishes that may be unanswered.
    pub receive_maximum: usize,
    /// The reason code for a publish, by its number, topic and how often this topic and payload came.
    pub code: Arc<ReasonCode>,
    /// Sends these bytes after the publish with this number.
    pub garbage: Option<(u64, Vec<u8>)>,
    /// Closes the connection when a publish to this topic comes.
    pub hates: Option<String>,
    /// Does not take the message when its answer is 0x80 or more.
    pub quiet: bool,
}

impl Script {
    pub fn new(version: Version) -> Self {
        Self {
            version,
            session_present: false,
            shuffle: None,
            drop_every: None,
            swallow: None,
            stall: None,
            refuse: Vec::new(),
            properties: Vec::new(),
            receive_maximum: 65_535,
            code: Arc::new(|_, _, _| 0),
            garbage: None,
            hates: None,
            quiet: false,
        }
    }
}

/// What the broker took.
#[derive(Default)]
pub struct Ledger {
    /// Connection, topic and payload, in the order of arrival; those refused are not in it.
    pub taken: Vec<(u64, String, Vec<u8>)>,
    pub publishes: u64,
    pub connections: u64,
    /// The client id of each connection.
    pub client_ids: Vec<String>,
    /// User properties of the publishes (MQTT 5).
    pub user: Vec<Vec<(String, String)>>,
    pub broken_rules: Vec<String>,
    repeats: HashMap<(String, Vec<u8>), u64>,
}

pub struct Fake {
    pub address: SocketAddr,
    pub ledger: Arc<Mutex<Ledger>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let shared = ledger.clone();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::spawn(serve(socket, script.clone(), shared.clone()));
            }
        });
        Self { address, ledger, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }
}

/// The first whole packet: first byte, body.
fn packet(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let mut length = 0usize;
    for at in 1..5 {
        let byte = *buffer.get(at)?;
        length += usize::from(byte & 127) << (7 * (at - 1));
        if byte & 128 == 0 {
            if buffer.len() < at + 1 + length {
                return None;
            }
            let first = buffer[0];
            let body = buffer[at + 1..at + 1 + length].to_vec();
            buffer.drain(..at + 1 + length);
            return Some((first, body));
        }
    }
    panic!("a remaining length that never ends");
}

fn field(body: &mut &[u8]) -> Vec<u8> {
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let field = body[2..2 + length].to_vec();
    *body = &body[2 + length..];
    field
}

fn text(body: &mut &[u8]) -> String {
    String::from_utf8(field(body)).unwrap()
}

fn user_properties(body: &mut &[u8]) -> Vec<(String, String)> {
    let (mut length, mut at) = (0usize, 0);
    loop {
        length += usize::from(body[at] & 127) << (7 * at);
        at += 1;
        if body[at - 1] & 128 == 0 {
            break;
        }
    }
    let mut properties = &body[at..at + length];
    *body = &body[at + length..];
    let mut user = Vec::new();
    while let Some(id) = properties.first() {
        properties = &properties[1..];
        match id {
            0x01 => properties = &properties[1..],
            0x02 => properties = &properties[4..],
            0x03 | 0x08 | 0x09 => drop(field(&mut properties)),
            0x26 => user.push((text(&mut properties), text(&mut properties))),
            other => panic!("property {other:#x} in a publish"),
        }
    }
    user
}

async fn serve(mut socket: TcpStream, script: Script, ledger: Arc<Mutex<Ledger>>) {
    let v5 = script.version == Version::V5;
    let mut random = SplitMix::new(script.shuffle.unwrap_or(0));
    let mut buffer = Vec::new();
    let mut number = 0;
    let mut unanswered = 0usize;
    loop {
        let mut out = Vec::new();
        let mut acks: Vec<Vec<u8>> = Vec::new();
        let (mut close, mut stall) = (false, false);
        while let Some((first, body)) = packet(&mut buffer) {
            let mut body = body.as_slice();
            let mut ledger = ledger.lock().unwrap();
            match first & 0xF0 {
                0x10 => {
                    assert_eq!(text(&mut body), "MQTT");
                    assert_eq!(body[0], if v5 { 5 } else { 4 });
                    body = &body[4..];
                    if v5 {
                        let length = usize::from(body[0]);
                        body = &body[1 + length..];
                    }
                    ledger.client_ids.push(text(&mut body));
                    ledger.connections += 1;
                    number = ledger.connections;
                    let code = script.refuse.get(usize::try_from(number).unwrap() - 1).copied().unwrap_or(0);
                    let mut connack = vec![u8::from(script.session_present && code == 0), code];
                    if v5 {
                        connack.push(u8::try_from(script.properties.len()).unwrap());
                        connack.extend_from_slice(&script.properties);
                    }
                    out.push(0x20);
                    out.push(u8::try_from(connack.len()).unwrap());
                    out.extend_from_slice(&connack);
                    close = code != 0;
                }
                0x30 => {
                    let topic = text(&mut body);
                    let id = [body[0], body[1]];
                    body = &body[2..];
                    let user = if v5 { user_properties(&mut body) } else { Vec::new() };
                    if first & 0x06 != 0x02 {
                        ledger.broken_rules.push(format!("publish with first byte {first:#x}"));
                    }
                    if script.hates.as_ref() == Some(&topic) {
                        close = true;
                        break;
                    }
                    ledger.publishes += 1;
                    unanswered += 1;
                    if unanswered > script.receive_maximum {
                        ledger.broken_rules.push(format!("{unanswered} publishes are unanswered"));
                    }
                    let n = ledger.publishes;
                    let seen = ledger.repeats.entry((topic.clone(), body.to_vec())).or_default();
                    *seen += 1;
                    let code = (script.code)(n, &topic, *seen);
                    if code < 0x80 {
                        ledger.taken.push((number, topic, body.to_vec()));
                        ledger.user.push(user);
                    }
                    if script.drop_every.is_some_and(|every| n.is_multiple_of(every)) {
                        close = true;
                        break;
                    }
                    if script.stall == Some(n) {
                        stall = true;
                        break;
                    }
                    if script.swallow != Some(n) {
                        let mut ack = vec![0x40, 2, id[0], id[1]];
                        if code != 0 {
                            ack = vec![0x40, 3, id[0], id[1], code];
                        }
                        acks.push(ack);
                    }
                    if let Some((at, bytes)) = &script.garbage
                        && *at == n
                    {
                        out.extend_from_slice(bytes);
                    }
                }
                0xC0 => out.extend_from_slice(&[0xD0, 0]),
                0xE0 => close = true,
                other => ledger.broken_rules.push(format!("packet {other:#x}")),
            }
        }
        if script.shuffle.is_some() {
            for at in (1..acks.len()).rev() {
                acks.swap(at, usize::try_from(random.draw() % (at as u64 + 1)).unwrap());
            }
        }
        unanswered -= acks.len();
        // A broker that drops the link has answered some of what it took.
        let keep = if close { acks.len() / 2 } else { acks.len() };
        for ack in &acks[..keep] {
            out.extend_from_slice(ack);
        }
        if socket.write_all(&out).await.is_err() || close {
            return;
        }
        if stall {
            std::future::pending::<()>().await;
        }
        match socket.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
