//! A TCP stream that can be taken off the reactor for a while.
//!
//! A broker that writes every acknowledgement by itself wakes an event loop for each of them, whether it reads or not: edge-triggered
//! readiness is reported per arrival. While the stream is parked, arrivals gather in the kernel and cost nothing; writes go on.
//!
//! What is read is acknowledged at once: a broker that leaves Nagle's algorithm on (mosquitto does, unless told) sends the rest of its
//! answers only after that, and the system would wait up to 40 ms for something to send along.

use std::io::{self, Read as _, Write as _};
use std::os::linux::net::TcpStreamExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use selvedge::component::Traffic;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Headers of a segment over IPv4, with the timestamps that Linux asks for.
const HEADERS: u64 = 52;
/// Payload of a full segment over Ethernet.
const SEGMENT: u64 = 1_448;
/// Opening and closing: three and two segments of ours, two and two of the peer's, the first ones with 8 bytes of options more.
const HANDSHAKE: (u64, u64) = (5 * HEADERS + 8, 4 * HEADERS + 8);

/// Counts what passes, as IP sees it: the stream's bytes, and the headers of the segments that they are expected to take. What is sent
/// again by TCP is not in it.
#[derive(Debug, Default)]
pub struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    fn count(&self, sent: u64, received: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
    }

    fn opened(&self) {
        self.count(HANDSHAKE.0, HANDSHAKE.1);
    }

    fn wrote(&self, bytes: usize) {
        let segments = (bytes as u64).div_ceil(SEGMENT);
        // The peer acknowledges every other segment by itself, and the last one with its answer.
        self.count(bytes as u64 + HEADERS * segments, HEADERS * (segments / 2));
    }

    fn read(&self, bytes: usize) {
        let segments = (bytes as u64).div_ceil(SEGMENT);
        // What is read is acknowledged at once.
        self.count(HEADERS * segments.div_ceil(2), bytes as u64 + HEADERS * segments);
    }

    /// All so far.
    pub fn traffic(&self) -> Traffic {
        Traffic { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}

/// The stream, watched by the reactor or not.
#[derive(Debug)]
pub struct Tcp(State, Arc<Meter>);

#[derive(Debug)]
enum State {
    Watched(TcpStream),
    Parked(std::net::TcpStream),
    /// Changing over failed: the stream is closed.
    Gone(io::ErrorKind),
}

impl Tcp {
    /// A connection that has just been opened.
    pub fn new(stream: TcpStream, meter: Arc<Meter>) -> Self {
        meter.opened();
        Self(State::Watched(stream), meter)
    }

    /// Takes the stream off the reactor.
    pub fn park(&mut self) {
        self.0 = match std::mem::replace(&mut self.0, State::Gone(io::ErrorKind::NotConnected)) {
            State::Watched(stream) => match stream.into_std() {
                Ok(stream) => State::Parked(stream),
                Err(e) => State::Gone(e.kind()),
            },
            other => other,
        };
    }

    /// Puts it back; what has arrived meanwhile is reported.
    pub fn watch(&mut self) {
        self.0 = match std::mem::replace(&mut self.0, State::Gone(io::ErrorKind::NotConnected)) {
            State::Parked(stream) => match TcpStream::from_std(stream) {
                Ok(stream) => State::Watched(stream),
                Err(e) => State::Gone(e.kind()),
            },
            other => other,
        };
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let State::Parked(stream) = &mut this.0 {
            match stream.read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    this.1.read(n);
                    let _ = stream.set_quickack(true); // a hint
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => this.watch(),
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        match &mut this.0 {
            State::Watched(stream) => {
                let before = buf.filled().len();
                let read = Pin::new(&mut *stream).poll_read(cx, buf);
                if matches!(read, Poll::Ready(Ok(()))) {
                    this.1.read(buf.filled().len() - before);
                    let _ = stream.set_quickack(true); // a hint
                }
                read
            }
            State::Parked(_) => Poll::Pending, // unreachable after `watch`
            State::Gone(kind) => Poll::Ready(Err((*kind).into())),
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let State::Parked(stream) = &mut this.0 {
            match stream.write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => this.watch(),
                result => {
                    this.1.wrote(result.as_ref().copied().unwrap_or(0));
                    return Poll::Ready(result);
                }
            }
        }
        match &mut this.0 {
            State::Watched(stream) => {
                let wrote = Pin::new(stream).poll_write(cx, buf);
                if let Poll::Ready(Ok(n)) = wrote {
                    this.1.wrote(n);
                }
                wrote
            }
            State::Parked(_) => Poll::Pending, // unreachable after `watch`
            State::Gone(kind) => Poll::Ready(Err((*kind).into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch();
        match &mut this.0 {
            State::Watched(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Parked(_) | State::Gone(_) => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn pair() -> (Tcp, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Tcp::new(near.unwrap(), Arc::default()), far.unwrap().0)
    }

    #[tokio::test]
    async fn what_arrives_while_parked_is_read_after_it() {
        let (mut near, mut far) = pair().await;
        near.park();
        far.write_all(b"one").await.unwrap();
        near.write_all(b"two").await.unwrap();
        let mut buffer = [0; 3];
        far.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"two");
        near.watch();
        near.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"one");
    }

    #[tokio::test]
    async fn reading_and_writing_more_than_fits_puts_it_back() {
        let (mut near, mut far) = pair().await;
        near.park();
        let large = vec![7; 8 << 20];
        let all = large.clone();
        let reader = tokio::spawn(async move {
            let mut got = vec![0; all.len()];
            far.read_exact(&mut got).await.unwrap();
            assert_eq!(got, all);
            far
        });
        near.write_all(&large).await.unwrap();
        let mut far = reader.await.unwrap();
        near.park();
        let writer = tokio::spawn(async move { far.write_all(b"x").await });
        let mut buffer = [0; 1];
        near.read_exact(&mut buffer).await.unwrap();
        writer.await.unwrap().unwrap();
        near.park();
        assert_eq!(near.read(&mut buffer).await.unwrap(), 0, "the end is seen as well");
    }
}
