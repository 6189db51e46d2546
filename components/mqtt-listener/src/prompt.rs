//! A device's socket that acknowledges at once what it has read.
//!
//! A client that leaves Nagle's algorithm on (mosquitto_pub does) sends its second small message only when the first is acknowledged by
//! TCP. Our answer to the first waits for the disk, and the system would hold its acknowledgement back for up to 40 ms for something to
//! send along.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A read of at least this many bytes is a client's that does not wait: the system acknowledges it soon enough, and a segment less is
/// cheaper.
const SMALL: usize = 512;

/// The socket.
#[derive(Debug)]
pub struct Prompt(TcpStream);

impl Prompt {
    /// Our own answers, too, are sent as they come.
    pub fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self(stream)
    }
}

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        if matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() - before < SMALL {
            let _ = self.0.set_quickack(true); // a hint
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
