//! A TCP proxy that breaks links on demand.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
                if f.load(Ordering::Relaxed) == Fault::Refuse as u8 {
                    continue;
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
        if fault == Fault::Refuse {
            self.cut();
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

fn carry(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8) {
    let mut buffer = [0; 16 << 10];
    loop {
        if fault.load(Ordering::Relaxed) == Fault::Stall as u8 {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if fault.load(Ordering::Relaxed) != Fault::Swallow as u8 && to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
