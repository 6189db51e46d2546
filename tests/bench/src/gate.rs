//! The way to the cloud that opens when it is told to: until then connections are refused.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

/// Lets everyone who connects at `port` through to the broker at `cloud`. The threads end with the process or the connections.
pub fn open(port: u16, cloud: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(("127.0.0.1", cloud)) else { continue };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            if let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) {
                std::thread::spawn(move || carry(near, far));
                std::thread::spawn(move || carry(far2, near2));
            }
        }
    });
    Ok(())
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
