//! Keeps a connection open that no forwarder looks after: one of a binding, or of a pub/sub that passes publishes through.

use std::sync::Arc;

use selvedge::component::LinkCause;
use selvedge::escape::{Backoff, BackoffConfig, LinkAction, LinkConfig, LinkEvent, LinkMachine, SplitMix};
use selvedge::supervise::contained;

use crate::connection::{Connection, Phase};

/// Opens the connection, and again whenever it breaks, until the component is closed. A defect in here begins anew like any loss of the link.
pub(crate) async fn supervise(connection: Arc<Connection>) {
    let mut random = SplitMix::from_system();
    let mut backoff = Backoff::new(BackoffConfig::default());
    while let Err(cause) = contained(keep_open(connection.clone())).await {
        tracing::error!(component.name = %connection.settings.name, cause, "the keeper of a connection met a defect; it begins anew");
        tokio::time::sleep(backoff.next(random.draw())).await;
    }
}

async fn keep_open(connection: Arc<Connection>) {
    let mut random = SplitMix::from_system();
    let mut link = LinkMachine::new(LinkConfig::default(), connection.now());
    let mut phase = connection.phase();
    let mut event = LinkEvent::Start;
    loop {
        let mut connect = false;
        let mut detail = None;
        if let LinkEvent::Lost(_) = event
            && let Phase::Down(failure) = &*phase.borrow()
        {
            detail = Some(failure.detail.clone());
        }
        for action in link.step(connection.now(), event, random.draw()) {
            match action {
                LinkAction::Connect => connect = true,
                LinkAction::Changed { to, cause, .. } => {
                    let (name, state, cause) = (&connection.settings.name, to.as_str(), cause.map_or("none", LinkCause::as_str));
                    tracing::info!(component.name = %name, link.state = state, link.cause = cause, error = detail.as_deref(), "link changed");
                }
                LinkAction::Probe | LinkAction::Drain | LinkAction::Disconnect => {}
            }
        }
        event = if connect {
            match connection.open().await {
                Ok(_) => LinkEvent::Connected { backlog: false },
                Err(failure) => LinkEvent::Lost(failure.cause),
            }
        } else if let Some(due) = link.deadline() {
            tokio::time::sleep(due.since(connection.now())).await;
            LinkEvent::Tick
        } else {
            let ended = phase.wait_for(|p| !matches!(p, Phase::Up)).await;
            match ended.as_deref() {
                Ok(Phase::Down(failure)) => LinkEvent::Lost(failure.cause),
                _ => return,
            }
        };
        if *phase.borrow() == Phase::Closed {
            return;
        }
    }
}
