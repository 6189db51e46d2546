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
}

/// The proxy; ends with the test.
pub struct Proxy {
    /// Its port.
    pub port: u16,
    fault: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
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
                o.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (from, to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                    let fault = f.clone();
                    std::thread::spawn(move || carry(from, to, &fault));
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
            Fault::Reset => self.open.lock().unwrap().drain(..).for_each(|stream| {
                reset(&stream);
                let _ = stream.shutdown(Shutdown::Both);
            }),
            _ => {}
        }
    }

    /// Ends every open connection.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
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

fn carry(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8) {
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
        match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(n) => match fault.load(Ordering::Relaxed) {
                fault if fault == Fault::Swallow as u8 => {}
                fault if fault == Fault::Delay as u8 || !late.is_empty() => {
                    late.push_back((Instant::now() + Duration::from_secs(2), buffer[..n].to_vec()));
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
