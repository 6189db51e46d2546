//! The subscriptions that there are, for metadata.

use std::sync::{Arc, Mutex, PoisonError};

use crate::resource::SubscriptionSpec;

/// Where a subscription came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubscriptionKind {
    /// A resource.
    Declarative,
    /// The application's list.
    Programmatic,
    /// A stream.
    Streaming,
}

impl SubscriptionKind {
    /// Dapr's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Declarative => "DECLARATIVE",
            Self::Programmatic => "PROGRAMMATIC",
            Self::Streaming => "STREAMING",
        }
    }
}

#[derive(Default)]
struct List {
    next_id: u64,
    entries: Vec<(u64, SubscriptionKind, SubscriptionSpec)>,
}

/// The list. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ActiveSubscriptions {
    list: Arc<Mutex<List>>,
}

/// Takes its subscription off the list when it goes.
pub(crate) struct Listed {
    id: u64,
    list: ActiveSubscriptions,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.list.with(|l| l.entries.retain(|(id, _, _)| *id != self.id));
    }
}

impl ActiveSubscriptions {
    fn with<T>(&self, f: impl FnOnce(&mut List) -> T) -> T {
        f(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts one on the list for as long as the result lives.
    pub fn add(&self, kind: SubscriptionKind, spec: SubscriptionSpec) -> Listed {
        let id = self.with(|l| {
            l.next_id += 1;
            l.entries.push((l.next_id, kind, spec));
            l.next_id
        });
        Listed { id, list: self.clone() }
    }

    /// The application's subscriptions are known now: they stand for what was on the list of these kinds before.
    pub fn replace_app(&self, wanted: &[(SubscriptionKind, SubscriptionSpec)]) {
        self.with(|l| {
            l.entries.retain(|(_, kind, _)| *kind == SubscriptionKind::Streaming);
            for (kind, spec) in wanted {
                l.next_id += 1;
                l.entries.push((l.next_id, *kind, spec.clone()));
            }
        });
    }

    /// All of them.
    pub fn all(&self) -> Vec<(SubscriptionKind, SubscriptionSpec)> {
        self.with(|l| l.entries.iter().map(|(_, kind, spec)| (*kind, spec.clone())).collect())
    }
}
