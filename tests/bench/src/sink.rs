//! The subscriber at the cloud: counts what arrives, finds what is missing or repeated, and measures delays.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::{self, Stamp};

/// No arrival for so long, with some still missing, ends a measurement as failed.
const STALL: Duration = Duration::from_secs(30);

/// What has arrived of one run.
#[derive(Debug, Default, Clone)]
pub struct Arrived {
    run: u32,
    keep_delays: bool,
    seen: Vec<Vec<u64>>,
    /// Different messages.
    pub distinct: u64,
    /// Messages that came before.
    pub repeated: u64,
    /// The first one, in nanoseconds since the tool started.
    pub first_ns: u64,
    /// The last new one, likewise.
    pub last_ns: u64,
    /// From the stamp to the arrival, in nanoseconds, if asked for.
    pub delays_ns: Vec<u64>,
}

impl Arrived {
    /// Books one message.
    fn book(&mut self, stamp: Stamp, now_ns: u64) {
        if stamp.run != self.run {
            return;
        }
        let (connection, word, bit) = (stamp.connection as usize, stamp.number as usize / 64, 1u64 << (stamp.number % 64));
        if self.seen.len() <= connection {
            self.seen.resize(connection + 1, Vec::new());
        }
        let seen = &mut self.seen[connection];
        if seen.len() <= word {
            seen.resize(word + 1, 0);
        }
        if seen[word] & bit != 0 {
            self.repeated += 1;
            return;
        }
        seen[word] |= bit;
        if self.distinct == 0 {
            self.first_ns = now_ns;
        }
        self.distinct += 1;
        self.last_ns = now_ns;
        if self.keep_delays {
            self.delays_ns.push(now_ns.saturating_sub(stamp.sent_ns));
        }
    }

    /// How many of the first `sent` messages of each connection are not here.
    pub fn missing(&self, sent: &[u32]) -> u64 {
        let mut missing = 0;
        for (connection, count) in sent.iter().enumerate() {
            let seen = self.seen.get(connection).map_or(&[][..], Vec::as_slice);
            let here: u64 = seen.iter().map(|word| u64::from(word.count_ones())).sum();
            missing += u64::from(*count).saturating_sub(here);
        }
        missing
    }
}

struct Shared {
    arrived: Mutex<Arrived>,
    /// Answers at once rather than a millisecond's arrivals together.
    prompt: AtomicBool,
    stop: AtomicBool,
}

/// A subscription at the cloud, on a thread of its own.
pub struct Sink {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sink {
    /// Subscribes to everything the load sends.
    pub fn start(port: u16, epoch: Instant) -> io::Result<Self> {
        let mut stream = crate::load::open(port, "sink", Instant::now() + Duration::from_secs(10))?;
        let mut hello = Vec::new();
        wire::subscribe(&mut hello, "bench/#");
        stream.write_all(&hello)?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        if answer[0] != 0x90 || answer[4] > 2 {
            return Err(io::Error::other("the cloud refuses the subscription"));
        }
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let shared = Arc::new(Shared { arrived: Mutex::default(), prompt: AtomicBool::new(true), stop: AtomicBool::new(false) });
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || receive(stream, &theirs, epoch));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Counts this run from now on.
    pub fn begin(&self, run: u32, keep_delays: bool) {
        self.shared.prompt.store(keep_delays, Ordering::Relaxed);
        *self.lock() = Arrived { run, keep_delays, ..Arrived::default() };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arrived> {
        self.shared.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that was sent is here.
    ///
    /// # Errors
    /// When messages are missing and none has come for 30 s.
    pub fn wait(&self, sent: &[u32]) -> io::Result<Arrived> {
        let total: u64 = sent.iter().map(|n| u64::from(*n)).sum();
        let (mut before, mut since) = (0, Instant::now());
        loop {
            {
                let arrived = self.lock();
                if arrived.distinct >= total && arrived.missing(sent) == 0 {
                    return Ok(arrived.clone());
                }
                if arrived.distinct != before {
                    (before, since) = (arrived.distinct, Instant::now());
                } else if since.elapsed() > STALL {
                    return Err(io::Error::other(format!("{} of {total} messages have not arrived", arrived.missing(sent))));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(mut stream: TcpStream, shared: &Shared, epoch: Instant) {
    let mut buffer = vec![0; 256 << 10];
    let mut filled = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return,
            Ok(n) => filled += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => continue,
            Err(_) => return,
        }
        let now_ns = epoch.elapsed().as_nanos() as u64;
        let mut at = 0;
        {
            let mut arrived = shared.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some((first, body, taken)) = wire::packet(&buffer[at..filled]) {
                at += taken;
                if let Some(stamp) = (first >> 4 == 3).then(|| wire::stamp(first, body)).flatten() {
                    arrived.book(stamp, now_ns);
                }
            }
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        if !shared.prompt.load(Ordering::Relaxed) {
            // Where delays are not measured, a millisecond's arrivals at a time leave the processors to what is measured.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(run: u32, connection: u32, number: u32) -> Stamp {
        Stamp { run, connection, number, sent_ns: 10 }
    }

    #[test]
    fn repeats_do_not_hide_what_is_missing() {
        let mut arrived = Arrived { run: 1, keep_delays: true, ..Arrived::default() };
        for (connection, number) in [(0, 0), (0, 2), (0, 2), (1, 70)] {
            arrived.book(stamp(1, connection, number), 15);
        }
        assert_eq!((arrived.distinct, arrived.repeated, arrived.missing(&[3, 71, 5])), (3, 1, 1 + 70 + 5));
        assert_eq!(arrived.delays_ns, [5, 5, 5]);
    }

    #[test]
    fn another_runs_messages_do_not_count() {
        let mut arrived = Arrived { run: 2, ..Arrived::default() };
        arrived.book(stamp(1, 0, 0), 15);
        assert_eq!((arrived.distinct, arrived.missing(&[1])), (0, 1));
    }
}
