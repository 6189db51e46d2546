//! A TCP proxy that breaks links on demand.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Passes everything.
    None = 0,
    /// Closes every connection at once.
    Refuse = 1,
    /// Accepts, reads and throws away; nothing comes back.
    Swallow = 2,
    /// Accepts and does not read.
    Stall = 3,
    /// Ends every connection with a reset.
    Reset = 4,
    /// Passes everything two seconds later.
    Delay = 5,
    /// Passes 1 KiB a second.
    Throttle = 6,
    /// Passes everything five seconds later.
    LongDelay = 7,
    /// Ends what comes from the peer in an orderly way (FIN), new connections at once; goes on to read, and throws it away.
    Finish = 8,
}

impl Fault {
    fn delay(fault: u8) -> Option<Duration> {
        match fault {
            f if f == Self::Delay as u8 => Some(Duration::from_secs(2)),
            f if f == Self::LongDelay as u8 => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}

/// The two ends of a connection, and whether its peer has vanished.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    abandoned: Arc<AtomicBool>,
}

/// The proxy; ends with the test.
pub struct Proxy {
    /// Its port.
    pub port: u16,
    fault: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<Connection>>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// In front of a port on this machine.
    #[must_use]
    pub fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, open, ended) = (Arc::new(AtomicU8::new(0)), Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (f, o, e) = (fault.clone(), open.clone(), ended.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if e.load(Ordering::Relaxed) {
                    return;
                }
                match f.load(Ordering::Relaxed) {
                    fault if fault == Fault::Refuse as u8 => continue,
                    fault if fault == Fault::Reset as u8 => {
                        reset(&client);
                        continue;
                    }
                    _ => {}
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
                }
                let abandoned = Arc::new(AtomicBool::new(false));
                if f.load(Ordering::Relaxed) == Fault::Finish as u8 {
                    let _ = client.shutdown(Shutdown::Write);
                }
                let (near, far) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                o.lock().unwrap().push(Connection { client: near, server: far, abandoned: abandoned.clone() });
                for (from, to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                    let (fault, abandoned) = (f.clone(), abandoned.clone());
                    std::thread::spawn(move || carry(from, to, &fault, &abandoned));
                }
            }
        });
        Self { port, fault, open, ended }
    }

    /// Sets the fault. `Refuse` also ends what is open.
    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
        match fault {
            Fault::Refuse => self.cut(),
            Fault::Reset => {
                for connection in self.open.lock().unwrap().drain(..) {
                    for stream in [&connection.client, &connection.server] {
                        reset(stream);
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                }
            }
            Fault::Finish => {
                for connection in &*self.open.lock().unwrap() {
                    let _ = connection.client.shutdown(Shutdown::Write);
                }
            }
            _ => {}
        }
    }

    /// Ends every open connection.
    pub fn cut(&self) {
        for connection in self.open.lock().unwrap().drain(..) {
            for stream in [&connection.client, &connection.server] {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// The peers of all open connections vanish: they know nothing of them any more, and nobody is told. New connections work.
    pub fn abandon(&self) {
        for connection in self.open.lock().unwrap().iter() {
            connection.abandoned.store(true, Ordering::Relaxed);
            let _ = connection.server.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Closing the last handle sends a reset instead of an end.
fn reset(stream: &TcpStream) {
    let linger = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    linger.expect("the option is known");
}

fn carry(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8, abandoned: &AtomicBool) {
    let mut buffer = [0; 16 << 10];
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    loop {
        while late.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            if let Some((_, bytes)) = late.pop_front()
                && to.write_all(&bytes).is_err()
            {
                break;
            }
        }
        if fault.load(Ordering::Relaxed) == Fault::Stall as u8 {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let throttled = fault.load(Ordering::Relaxed) == Fault::Throttle as u8;
        if throttled {
            std::thread::sleep(Duration::from_millis(100));
        }
        let most = if throttled { 102 } else { buffer.len() };
        let read = from.read(&mut buffer[..most]);
        if abandoned.load(Ordering::Relaxed) {
            // One side is closed already; the other is left as it is until the box closes it.
            match read {
                Ok(n) if n > 0 => continue,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
                _ => return,
            }
        }
        match read {
            Ok(0) => break,
            Ok(n) => match fault.load(Ordering::Relaxed) {
                fault if fault == Fault::Swallow as u8 || fault == Fault::Finish as u8 => {}
                fault if Fault::delay(fault).is_some() || !late.is_empty() => {
                    let due = Instant::now() + Fault::delay(fault).unwrap_or_default();
                    // In order, also when the delay has just ended.
                    let due = late.back().map_or(due, |(last, _)| due.max(*last));
                    late.push_back((due, buffer[..n].to_vec()));
                }
                _ => {
                    if to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            },
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
