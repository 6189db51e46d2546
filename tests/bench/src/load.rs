//! The devices: many connections on one thread, each with a window of publishes in flight.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::wire;

/// Publishes of a connection that may wait for their acknowledgement. Selvedge's listener takes 64 by default.
pub const WINDOW: u32 = 50;
/// No acknowledgement for so long ends a measurement as failed.
const STALL: Duration = Duration::from_secs(30);

/// How much is sent, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Marks the payloads.
    pub run: u32,
    /// Payload, in bytes.
    pub size: usize,
    /// Stop after so many messages.
    pub count: u64,
    /// Stop after this time.
    pub time: Duration,
    /// Messages per second over all connections; as fast as the windows allow without.
    pub rate: Option<u32>,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Messages of each connection; all are acknowledged.
    pub each: Vec<u32>,
    /// Start and the last acknowledgement, in nanoseconds since the tool started.
    pub span_ns: (u64, u64),
}

impl Sent {
    /// Over all connections.
    pub fn total(&self) -> u64 {
        self.each.iter().map(|n| u64::from(*n)).sum()
    }
}

struct Device {
    stream: TcpStream,
    topic: String,
    out: Vec<u8>,
    input: Vec<u8>,
    in_flight: u32,
    sent: u32,
}

/// Connections that are open.
pub struct Load {
    devices: Vec<Device>,
    epoch: Instant,
}

/// Connects, says CONNECT and waits for CONNACK. Tries until `until`, as the server may still be starting.
pub fn open(port: u16, client: &str, until: Instant) -> io::Result<TcpStream> {
    let mut hello = Vec::new();
    wire::connect(&mut hello, client);
    loop {
        let attempt = (|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(&hello)?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            if answer[0] != 0x20 || answer[3] != 0 {
                return Err(io::Error::other(format!("refused: {answer:?}")));
            }
            Ok(stream)
        })();
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() >= until => return Err(io::Error::other(format!("no CONNACK from port {port}: {e}"))),
            Err(_) => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

impl Load {
    /// Opens `connections`. Times are counted from `epoch`.
    pub fn connect(port: u16, connections: u32, epoch: Instant) -> io::Result<Self> {
        let until = Instant::now() + Duration::from_secs(10);
        let devices = (0..connections).map(|n| {
            let stream = open(port, &format!("device{n}"), until)?;
            stream.set_nonblocking(true)?;
            Ok(Device { stream, topic: format!("bench/{n}"), out: Vec::new(), input: Vec::new(), in_flight: 0, sent: 0 })
        });
        Ok(Self { devices: devices.collect::<io::Result<_>>()?, epoch })
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Sends as planned and waits until everything is acknowledged.
    ///
    /// # Errors
    /// When a connection is lost or nothing is acknowledged for 30 s.
    pub fn run(&mut self, plan: Plan) -> io::Result<Sent> {
        for device in &mut self.devices {
            device.sent = 0;
        }
        let (start, mut last_ack) = (Instant::now(), Instant::now());
        let start_ns = self.now_ns();
        let mut total = 0u64;
        loop {
            let done = total >= plan.count || start.elapsed() >= plan.time;
            if done && self.devices.iter().all(|d| d.in_flight == 0) {
                return Ok(Sent { each: self.devices.iter().map(|d| d.sent).collect(), span_ns: (start_ns, self.now_ns()) });
            }
            let mut next_due = None;
            if !done {
                match plan.rate {
                    None => total += self.fill(&plan, plan.count - total),
                    Some(rate) => (total, next_due) = self.pace(&plan, total, start, rate),
                }
            }
            for device in self.devices.iter_mut().filter(|d| !d.out.is_empty()) {
                device.flush()?;
            }
            let wait = next_due.unwrap_or(Duration::from_millis(100));
            if self.wait(wait)? {
                last_ack = Instant::now();
            } else if last_ack.elapsed() > STALL && self.devices.iter().any(|d| d.in_flight > 0) {
                return Err(io::Error::other(format!("no acknowledgement for {STALL:?} ({total} sent)")));
            }
        }
    }

    /// Fills every window; gives how many messages that took.
    fn fill(&mut self, plan: &Plan, most: u64) -> u64 {
        let now = self.now_ns();
        let mut made = 0;
        for (n, device) in self.devices.iter_mut().enumerate() {
            while device.in_flight < WINDOW && made < most {
                device.make(plan, n as u32, now);
                made += 1;
            }
        }
        made
    }

    /// Makes what is due; gives the new total and the time to the next. A message that is late by more than a millisecond, because a
    /// window was full or this thread did not run, carries the time at which it was due: waiting is part of the delay.
    fn pace(&mut self, plan: &Plan, mut total: u64, start: Instant, rate: u32) -> (u64, Option<Duration>) {
        let start_ns = start.duration_since(self.epoch).as_nanos() as u64;
        let count = self.devices.len() as u64;
        loop {
            let due = start_ns + total * 1_000_000_000 / u64::from(rate);
            let now = self.now_ns();
            if due > now {
                return (total, Some(Duration::from_nanos(due - now)));
            }
            let n = (total % count) as usize;
            if total >= plan.count || self.devices[n].in_flight >= WINDOW {
                return (total, None);
            }
            self.devices[n].make(plan, n as u32, if now - due > 1_000_000 { due } else { now });
            total += 1;
        }
    }

    /// Waits for sockets and takes acknowledgements; whether there were any.
    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let ready: Vec<PollFlags> = {
            let wanted = |d: &Device| if d.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut polled: Vec<PollFd<'_>> = self.devices.iter().map(|d| PollFd::new(&d.stream, wanted(d))).collect();
            let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
            poll(&mut polled, Some(&limit))?;
            polled.iter().map(PollFd::revents).collect()
        };
        let mut any = false;
        for (device, ready) in self.devices.iter_mut().zip(ready) {
            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                any |= device.take()?;
            }
        }
        Ok(any)
    }
}

impl Device {
    fn make(&mut self, plan: &Plan, connection: u32, now_ns: u64) {
        let stamp = wire::Stamp { run: plan.run, connection, number: self.sent, sent_ns: now_ns };
        wire::publish(&mut self.out, &self.topic, (self.sent % 60_000) as u16 + 1, stamp, plan.size);
        self.sent += 1;
        self.in_flight += 1;
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.stream.write(&self.out) {
            Ok(n) => {
                self.out.drain(..n);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn take(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let n = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::other("a device's connection was closed")),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        };
        self.input.extend_from_slice(&chunk[..n]);
        let (mut at, before) = (0, self.in_flight);
        while let Some((first, _, taken)) = wire::packet(&self.input[at..]) {
            at += taken;
            if first == 0x40 {
                self.in_flight = self.in_flight.saturating_sub(1);
            }
        }
        self.input.drain(..at);
        Ok(self.in_flight < before)
    }
}
