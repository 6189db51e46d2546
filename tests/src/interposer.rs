//! A broker's bad manners: stands before a real broker, passes MQTT packet by packet, and answers publishes itself when told to.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::ledger::{Book, number_of};

/// What becomes of publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// They reach the broker.
    Honest = 0,
    /// Each is refused with "quota exceeded" (0x97), which MQTT 5 has and 3.1.1 has not.
    Quota = 1,
    /// Each is acknowledged and forgotten.
    Forgetful = 2,
}

/// Stands before a broker; ends with the test.
pub struct Interposer {
    /// Its port.
    pub port: u16,
    manner: Arc<AtomicU8>,
    ended: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    forgotten: Arc<Mutex<Book>>,
    refused: Arc<Mutex<u64>>,
}

impl Interposer {
    /// In front of a broker on this machine.
    #[must_use]
    pub fn to(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            port: listener.local_addr().unwrap().port(),
            manner: Arc::default(),
            ended: Arc::default(),
            open: Arc::default(),
            forgotten: Arc::default(),
            refused: Arc::default(),
        };
        let (manner, ended, open, forgotten, refused) =
            (this.manner.clone(), this.ended.clone(), this.open.clone(), this.forgotten.clone(), this.refused.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                    open.lock().unwrap().push(stream.try_clone().unwrap());
                }
                let answers = Arc::new(Mutex::new(client.try_clone().unwrap()));
                let (a, s) = (answers.clone(), server.try_clone().unwrap());
                // Answers of the broker go by whole packets, so that ours never stand in the middle of one.
                std::thread::spawn(move || packets(s, |packet| a.lock().unwrap().write_all(packet).is_ok()));
                let (manner, forgotten, refused) = (manner.clone(), forgotten.clone(), refused.clone());
                std::thread::spawn(move || {
                    let (mut server, mut version) = (server, 4);
                    packets(client, |packet| {
                        if packet[0] >> 4 == 1 {
                            version = body(packet).get(6).copied().unwrap_or(4);
                        }
                        let manner = manner.load(Ordering::Relaxed);
                        if packet[0] >> 4 != 3 || manner == Manner::Honest as u8 {
                            return server.write_all(packet).is_ok();
                        }
                        let Some((id, entry)) = publish(packet, version) else { return server.write_all(packet).is_ok() };
                        let [high, low] = id.to_be_bytes();
                        let answer = if manner == Manner::Quota as u8 && version == 5 {
                            *refused.lock().unwrap() += 1;
                            vec![0x40, 3, high, low, 0x97]
                        } else {
                            // Before the answer: who has it may ask at once.
                            if let Some((topic, n)) = entry {
                                forgotten.lock().unwrap().insert(&topic, n);
                            }
                            vec![0x40, 2, high, low]
                        };
                        answers.lock().unwrap().write_all(&answer).is_ok()
                    });
                });
            }
        });
        this
    }

    /// Sets the manner.
    pub fn set(&self, manner: Manner) {
        self.manner.store(manner as u8, Ordering::Relaxed);
    }

    /// Ends every connection.
    ///
    /// # Panics
    /// When one of the threads has.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// What was acknowledged and forgotten.
    ///
    /// # Panics
    /// When one of the threads has.
    #[must_use]
    pub fn forgotten(&self) -> Book {
        self.forgotten.lock().unwrap().clone()
    }

    /// How many publishes were refused.
    ///
    /// # Panics
    /// When one of the threads has.
    #[must_use]
    pub fn refused(&self) -> u64 {
        *self.refused.lock().unwrap()
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Length of the first whole packet, and where its body begins.
fn whole(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut n = 0usize;
    for (i, byte) in bytes.iter().skip(1).take(4).enumerate() {
        n |= usize::from(byte & 127) << (7 * i);
        if byte & 128 == 0 {
            return (bytes.len() >= 2 + i + n).then_some((2 + i + n, 2 + i));
        }
    }
    None
}

fn body(packet: &[u8]) -> &[u8] {
    whole(packet).map_or(&[], |(end, start)| &packet[start..end])
}

/// Packet id of a PUBLISH with quality 1, and the topic and number that it carries.
fn publish(packet: &[u8], version: u8) -> Option<(u16, Option<(String, u64)>)> {
    if packet[0] & 6 != 2 {
        return None;
    }
    let body = body(packet);
    let length = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let topic = std::str::from_utf8(body.get(2..2 + length)?).ok()?;
    let id = u16::from_be_bytes([*body.get(2 + length)?, *body.get(3 + length)?]);
    let mut payload = body.get(4 + length..)?;
    if version == 5 {
        // The properties' length, a variable number like that of a packet.
        let (mut n, mut at) = (0usize, 0);
        while let Some(byte) = payload.get(at) {
            n |= usize::from(byte & 127) << (7 * at);
            at += 1;
            if byte & 128 == 0 || at == 4 {
                break;
            }
        }
        payload = payload.get(at + n..)?;
    }
    Some((id, number_of(payload).map(|n| (topic.to_owned(), n))))
}

/// Calls `each` for every packet until it says no or the stream ends; then ends both directions of the stream.
fn packets(mut from: TcpStream, mut each: impl FnMut(&[u8]) -> bool) {
    let (mut buffer, mut chunk) = (Vec::new(), [0; 16 << 10]);
    'reading: while let Ok(n @ 1..) = from.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..n]);
        let mut at = 0;
        while let Some((end, _)) = whole(&buffer[at..]) {
            if !each(&buffer[at..at + end]) {
                break 'reading;
            }
            at += end;
        }
        buffer.drain(..at);
    }
    let _ = from.shutdown(Shutdown::Both);
}
