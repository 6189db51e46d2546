//! A listener that is bound anew when it fails, as it was changed meanwhile.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::phase;
use crate::component::{BoundListener, BuildError, InitError, ListenerContext, ListenerReload, PreparedReload, Registry};
use crate::resource::ListenerSpec;
use crate::supervise::Supervisor;

/// What the listener is now: its resource, and the hold on the one that serves.
struct Now {
    spec: ListenerSpec,
    hold: Arc<dyn ListenerReload>,
}

/// A hold that stays good over restarts of the listener.
struct Hold(Arc<Mutex<Now>>);

impl ListenerReload for Hold {
    fn prepare(&self, spec: &ListenerSpec) -> Result<PreparedReload, InitError> {
        let hold = self.0.lock().unwrap_or_else(PoisonError::into_inner).hold.clone();
        let (prepared, now, spec) = (hold.prepare(spec)?, self.0.clone(), spec.clone());
        Ok(Box::new(move || {
            now.lock().unwrap_or_else(PoisonError::into_inner).spec = spec;
            prepared()
        }))
    }
}

/// A listener of the node.
pub(super) struct KeptListener {
    context: ListenerContext,
    bound: Box<dyn BoundListener>,
    now: Option<Arc<Mutex<Now>>>,
}

impl KeptListener {
    /// Binds it.
    ///
    /// # Errors
    /// As the listener says.
    pub(super) async fn bind(registry: &Registry, context: ListenerContext) -> Result<Self, BuildError> {
        let bound = registry.bind_listener(context.clone()).await?;
        let now = bound.reload().map(|hold| Arc::new(Mutex::new(Now { spec: context.spec.clone(), hold })));
        Ok(Self { context, bound, now })
    }

    pub(super) fn name(&self) -> &str {
        &self.context.name
    }

    pub(super) fn address(&self) -> String {
        self.bound.address()
    }

    /// Its hold on what can change while it serves.
    pub(super) fn reload(&self) -> Option<Arc<dyn ListenerReload>> {
        self.now.clone().map(|now| Arc::new(Hold(now)) as Arc<dyn ListenerReload>)
    }

    /// Serves until the drain begins; after a failure it is bound anew. Its clients come again, and find their sessions.
    pub(super) async fn run(self, supervisor: Supervisor, registry: Registry, stopped: watch::Receiver<u8>) {
        let Self { context, bound, now } = self;
        let mut first = Some(bound);
        supervisor
            .keep(format!("listener/{}", context.name), phase(&stopped, 1), || {
                let bound = first.take();
                let spec = now.as_ref().map_or_else(|| context.spec.clone(), |n| n.lock().unwrap_or_else(PoisonError::into_inner).spec.clone());
                let context = ListenerContext { sockets: context.sockets.again(), spec, ..context.clone() };
                let (registry, stopped, now) = (&registry, &stopped, &now);
                async move {
                    let bound = match bound {
                        Some(bound) => bound,
                        None => registry.bind_listener(context).await.map_err(|e| e.to_string())?,
                    };
                    if let (Some(now), Some(hold)) = (now, bound.reload()) {
                        now.lock().unwrap_or_else(PoisonError::into_inner).hold = hold;
                    }
                    bound.serve(phase(stopped, 1)).await;
                    if *stopped.borrow() < 1 { Err("it has stopped serving".to_owned()) } else { Ok(()) }
                }
            })
            .await;
    }
}
