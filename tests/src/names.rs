//! A name server for tests: answers every question for an IPv4 address with 127.0.0.1, says that it failed, or says nothing.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With 127.0.0.1.
    Address = 0,
    /// Not at all.
    Nothing = 1,
    /// That it failed (SERVFAIL).
    Failure = 2,
}

/// The server; ends with the test.
pub struct NameServer {
    /// Its address; the port is 53, which is all that `/etc/resolv.conf` can say.
    pub address: String,
    answer: Arc<AtomicU8>,
    asked: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl NameServer {
    /// On an address of this machine that nobody else uses.
    ///
    /// # Errors
    /// When port 53 may not be bound.
    pub fn start() -> std::io::Result<Self> {
        let mut socket = Err(std::io::ErrorKind::AddrInUse.into());
        let mut address = String::new();
        for n in 1..250 {
            address = format!("127.53.{}.{n}", std::process::id() % 250);
            socket = UdpSocket::bind((address.as_str(), 53));
            if !matches!(&socket, Err(e) if e.kind() == std::io::ErrorKind::AddrInUse) {
                break;
            }
        }
        let socket = socket?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let this = Self { address, answer: Arc::default(), asked: Arc::default(), ended: Arc::default() };
        let (answer, asked, ended) = (this.answer.clone(), this.asked.clone(), this.ended.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !ended.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                asked.fetch_add(1, Ordering::Relaxed);
                if let Some(reply) = reply(&buffer[..n], answer.load(Ordering::Relaxed)) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Ok(this)
    }

    /// Sets how it answers.
    pub fn set(&self, answer: Answer) {
        self.answer.store(answer as u8, Ordering::Relaxed);
    }

    /// Questions so far.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The answer to a question (RFC 1035, section 4.1).
fn reply(question: &[u8], answer: u8) -> Option<Vec<u8>> {
    if answer == Answer::Nothing as u8 {
        return None;
    }
    // The name ends with an empty label; type and class follow.
    let mut end = 12;
    while *question.get(end)? > 0 {
        end += 1 + usize::from(question[end]);
    }
    let kind = question.get(end + 1..end + 3)?;
    let question = question.get(..end + 5)?;
    let failed = answer == Answer::Failure as u8;
    let has_address = !failed && kind == [0, 1];
    let mut out = question.to_vec();
    out[2] |= 0x80; // an answer
    out[3] = 0x80 | if failed { 2 } else { 0 };
    out[6..12].copy_from_slice(&[0, u8::from(has_address), 0, 0, 0, 0]);
    if has_address {
        // The name of the question, an address, Internet, no time to live.
        out.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    Some(out)
}
