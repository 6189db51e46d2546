//! The configuration store `configuration.selvedge`: the mode of the box and the state of its links, for applications that want to be told.

use std::sync::Arc;

use futures_util::future::select_all;
use tokio::sync::watch;

use super::{EscapeHandle, ModeView};
use crate::component::{
    ConfigurationError, ConfigurationHandle, ConfigurationHandler, ConfigurationItem, ConfigurationItems, ConfigurationSource, ConfigurationStore,
    Fut, LinkCause, Metadata, follow, pick,
};
use crate::forward::ForwarderStatus;
use crate::time::Timestamp;

/// Type of the store.
pub const MODE_STORE_TYPE: &str = "configuration.selvedge";
/// Its name when no component gives it another.
pub(super) const MODE_STORE: &str = "selvedge";

/// Keys `mode`, `mode.since`, `mode.cause`, and `upstream.NAME`, `upstream.NAME.cause` for each link; a cause is there while something is wrong.
/// The version of an item is the time of its last change, in milliseconds since 1970.
#[derive(Clone)]
pub(super) struct ModeStore {
    view: watch::Receiver<ModeView>,
    upstreams: Vec<ForwarderStatus>,
}

fn item(value: impl Into<String>, changed: Timestamp) -> ConfigurationItem {
    ConfigurationItem { value: value.into(), version: changed.0.to_string(), metadata: Metadata::new() }
}

impl ModeStore {
    pub(super) fn new(escape: &EscapeHandle, upstreams: Vec<ForwarderStatus>) -> Self {
        Self { view: escape.watch(), upstreams }
    }

    fn items(&self) -> ConfigurationItems {
        let view = self.view.borrow().clone();
        let mut items = ConfigurationItems::new();
        items.insert("mode".to_owned(), item(view.mode.as_str(), view.since));
        items.insert("mode.since".to_owned(), item(view.since.to_rfc3339(), view.since));
        if let Some(cause) = view.cause {
            items.insert("mode.cause".to_owned(), item(cause.as_str(), view.since));
        }
        for upstream in &self.upstreams {
            let link = upstream.snapshot();
            items.insert(format!("upstream.{}", link.upstream), item(link.state.as_str(), link.since));
            if let Some(cause) = link.cause.map(LinkCause::as_str) {
                items.insert(format!("upstream.{}.cause", link.upstream), item(cause, link.since));
            }
        }
        items
    }
}

impl ConfigurationSource for ModeStore {
    fn now<'a>(&'a mut self) -> Fut<'a, Option<ConfigurationItems>> {
        Box::pin(std::future::ready(Some(self.items())))
    }

    fn moved<'a>(&'a mut self) -> Fut<'a, ()> {
        let mode = async {
            if self.view.changed().await.is_err() {
                // The controller has ended; so will the node.
                std::future::pending::<()>().await;
            }
        };
        let links = self.upstreams.iter_mut().map(|u| {
            Box::pin(async {
                if !u.changed().await {
                    std::future::pending::<()>().await;
                }
            })
        });
        let links: Vec<_> = links.collect();
        Box::pin(async move {
            if links.is_empty() {
                return mode.await;
            }
            tokio::select! {
                () = mode => {}
                _ = select_all(links) => {}
            }
        })
    }
}

impl ConfigurationStore for ModeStore {
    fn get<'a>(&'a self, keys: &'a [String], _metadata: &'a Metadata) -> Fut<'a, Result<ConfigurationItems, ConfigurationError>> {
        Box::pin(std::future::ready(Ok(pick(self.items(), keys))))
    }

    fn subscribe<'a>(
        &'a self,
        keys: Vec<String>,
        _metadata: &'a Metadata,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> Fut<'a, Result<Box<dyn ConfigurationHandle>, ConfigurationError>> {
        let source = self.clone();
        let told = pick(source.items(), &keys);
        Box::pin(std::future::ready(Ok(follow(Box::new(source), keys, told, handler))))
    }
}
