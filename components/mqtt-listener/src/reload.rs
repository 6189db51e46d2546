//! Users, certificates and limits that are read again while the listener serves.

use std::sync::Arc;

use selvedge::component::{InitError, ListenerReload, PreparedReload};
use selvedge::resource::ListenerSpec;

use crate::broker::{Broker, Rules};

/// The hold on a listener that serves.
pub struct Hold(pub Arc<Broker>);

impl ListenerReload for Hold {
    fn prepare(&self, spec: &ListenerSpec) -> Result<PreparedReload, InitError> {
        let broker = self.0.clone();
        let mut next = Rules::read(spec)?;
        Ok(Box::new(move || {
            let before = broker.rules();
            let mut said = Vec::new();
            if before.users != next.users {
                let accounts = next.users.as_ref().map_or_else(|| "everyone may do everything".to_owned(), |u| format!("{} accounts", u.count()));
                said.push(format!("users: {accounts}"));
            }
            if before.limits != next.limits {
                said.push("limits: for connections that come".to_owned());
            }
            match (&before.tls, &next.tls) {
                // The old one goes on, and with it the sessions that clients may resume.
                (Some(old), Some(new)) if old.files == new.files => next.tls = before.tls.clone(),
                (None, None) => {}
                _ => said.push("tls: certificates for connections that come".to_owned()),
            }
            if !said.is_empty() {
                broker.set_rules(next);
            }
            said
        }))
    }
}
