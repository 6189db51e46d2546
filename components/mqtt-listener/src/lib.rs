//! MQTT 3.1.1 and 5 listener for devices, with acknowledgements after the durable write.
//!
//! One task per connection. A read from the socket is a batch: it is parsed in place, its publishes go to the hub in one call, and
//! their acknowledgements wait together until the store says that they are safe. Subscriptions of quality 1 and 2 of a
//! persistent session are destinations of the outbox, read by cursor whether the client is there or not; all others
//! are live. Sessions are restored and bound before the listener serves.
//!
//! Not there: enhanced authentication (AUTH), request/response information, `no local` and shared subscriptions for stored
//! messages (shared subscriptions are live only), WebSocket.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod broker;
mod connection;
mod live;
mod metrics;
mod prompt;
mod refusals;
mod reload;
mod session;
mod tls;
pub mod users;
mod wire;

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use broker::Broker;
use selvedge::component::{BoundListener, Fut, InitError, ListenerContext, ListenerReload, Registry, addresses};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long connections have to say goodbye.
const DRAIN: Duration = Duration::from_secs(5);
/// How often sessions and wills are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Registers the listener for the protocol `mqtt`.
pub fn register(registry: &mut Registry) {
    registry.add_listener("mqtt", bind);
}

struct Bound {
    broker: Arc<Broker>,
    sockets: Vec<TcpListener>,
}

/// Binds the socket and restores the sessions.
///
/// # Errors
/// What cannot be bound or read, and the way out.
pub async fn bind(context: ListenerContext) -> Result<Box<dyn BoundListener>, InitError> {
    let sockets = context.sockets.listen(&context.spec.bind).await?;
    let broker = Arc::new(Broker::load(context).await?);
    Ok(Box::new(Bound { broker, sockets }))
}

impl BoundListener for Bound {
    fn address(&self) -> String {
        addresses(self.sockets.iter().map(TcpListener::local_addr))
    }

    fn reload(&self) -> Option<Arc<dyn ListenerReload>> {
        Some(Arc::new(reload::Hold(self.broker.clone())))
    }

    fn serve(self: Box<Self>, stop: Fut<'static, ()>) -> Fut<'static, ()> {
        Box::pin(run(*self, stop))
    }
}

async fn run(bound: Bound, stop: Fut<'static, ()>) {
    let Bound { broker, sockets } = bound;
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = tick.tick() => broker.tick(),
            Some(ended) = connections.join_next(), if !connections.is_empty() => report(ended),
            accepted = accept(&sockets) => match accepted {
                // Connections that have not said who they are count too: twice the clients is the bound for sockets.
                Ok(stream) => {
                    let rules = broker.rules();
                    if connections.len() < rules.limits.clients * 2 {
                        connections.spawn(open(broker.clone(), stream, rules.tls, stopped.clone()));
                    } else {
                        broker.metrics.refused("too-many-connections");
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: those in use go on.
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    // Where the service manager keeps a copy, connections wait in its queue from here on.
    drop(sockets);
    stopping.send_replace(true);
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// The next connection of any of the sockets.
async fn accept(sockets: &[TcpListener]) -> std::io::Result<TcpStream> {
    std::future::poll_fn(|cx| {
        for socket in sockets {
            if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, _)| stream));
            }
        }
        Poll::Pending
    })
    .await
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection ended by a defect; the others go on");
    }
}

async fn open(broker: Arc<Broker>, stream: TcpStream, tls: Option<tls::Acceptor>, stop: watch::Receiver<bool>) {
    let stream = prompt::Prompt::new(stream);
    match tls {
        None => connection::serve(broker, stream, None, stop).await,
        Some(tls) => match tokio::time::timeout(Duration::from_secs(10), tls.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let subject = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(|c| tls::common_name(c.as_ref()));
                connection::serve(broker, stream, subject, stop).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "a TLS handshake failed");
                broker.metrics.refused("tls-handshake");
            }
            Err(_) => broker.metrics.refused("tls-timeout"),
        },
    }
}
