//! The socket of an API server outlives a server that fails.

use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::component::Fut;
use crate::supervise::Supervisor;

/// Another descriptor of the same socket, for the event loop.
fn again(listener: &TcpListener) -> std::io::Result<TcpListener> {
    TcpListener::from_std(std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?))
}

/// Serves a socket until `stop` says so; `serve` is called anew with the same socket when it fails. Once `stop` says so no descriptor is left
/// here: the port closes when the server lets go of it.
pub(super) async fn keep<F>(
    supervisor: &Supervisor,
    part: &str,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
    serve: impl Fn(TcpListener, Fut<'static, ()>) -> F,
) where
    F: Future<Output = Result<(), String>>,
{
    let kept = Mutex::new(Some(listener));
    let stopped = || {
        let mut stop = stop.clone();
        async move {
            let _ = stop.wait_for(|s| *s).await;
        }
    };
    let serving = supervisor.keep(part, stopped(), || {
        let listener = kept.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(again);
        let server = listener.map(|l| l.map(|l| serve(l, Box::pin(stopped()))).map_err(|e| e.to_string()));
        async move {
            match server {
                Some(server) => server?.await,
                // It is over already.
                None => Ok(()),
            }
        }
    });
    let letting_go = async {
        stopped().await;
        kept.lock().unwrap_or_else(PoisonError::into_inner).take();
    };
    tokio::join!(serving, letting_go);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Metrics;
    use crate::time::SystemClock;

    #[tokio::test]
    async fn a_server_that_panics_serves_its_port_again_and_the_port_closes_at_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let supervisor = Supervisor::new(Arc::new(SystemClock::new()), &Metrics::new());
        let (stop, stopped) = watch::channel(false);
        let served = Arc::new(AtomicUsize::new(0));
        let count = served.clone();
        let serving = tokio::spawn(async move {
            keep(&supervisor, "api/test", listener, stopped, |listener, stop| {
                let count = count.clone();
                async move {
                    tokio::select! {
                        accepted = listener.accept() => drop(accepted),
                        () = stop => return Ok(()),
                    }
                    assert!(count.fetch_add(1, Ordering::SeqCst) > 1, "a defect");
                    Err("another one".to_owned())
                }
            })
            .await;
        });
        tokio::time::timeout(Duration::from_secs(20), async {
            while served.load(Ordering::SeqCst) < 4 {
                tokio::net::TcpStream::connect(address).await.expect("the port is open all the time");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("it serves again");
        stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(20), serving).await.expect("it ends").unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "closed");
    }
}
