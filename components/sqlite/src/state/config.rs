//! The settings of `state.sqlite`, by Dapr's names.

use std::time::Duration;

use selvedge::component::{Properties, PropertyError};

use crate::connect::{Journal, Location};

/// Settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StateConfig {
    pub location: Location,
    /// Longest wait for an answer; at least a second.
    pub timeout: Duration,
    /// Longest wait for another process's lock; zero = none.
    pub busy: Duration,
    pub journal: Journal,
    pub table: String,
    pub metadata_table: String,
    /// How often expired rows are deleted; `None` = never.
    pub cleanup: Option<Duration>,
}

const SECOND: Duration = Duration::from_secs(1);

impl StateConfig {
    pub fn read(properties: &Properties) -> Result<Self, PropertyError> {
        let text = properties
            .first_of(&["connectionString", "url"])
            .ok_or(PropertyError::Missing { name: "connectionString", accepted: "a path, a file: URI or :memory:" })?;
        let location = Location::parse(text).map_err(|why| PropertyError::invalid("connectionString", text, why))?;
        let timeout = duration(properties, "timeout", &["timeout", "timeoutInSeconds"], Duration::from_secs(20))?;
        if timeout < SECOND {
            let found = properties.first_of(&["timeout", "timeoutInSeconds"]).unwrap_or_default();
            return Err(PropertyError::invalid("timeout", found, "at least one second"));
        }
        let busy = match properties.get("busyTimeout") {
            Some(negative) if negative.trim().starts_with('-') => Duration::ZERO,
            _ => duration(properties, "busyTimeout", &["busyTimeout"], Duration::from_secs(2))?,
        };
        let cleanup = match properties.first_of(&["cleanupInterval", "cleanupIntervalInSeconds"]) {
            Some(negative) if negative.trim().starts_with('-') => Duration::ZERO,
            _ => duration(properties, "cleanupInterval", &["cleanupInterval", "cleanupIntervalInSeconds"], Duration::ZERO)?,
        };
        let journal = match &location {
            Location { path: None, .. } => Journal::Memory,
            Location { read_only: true, .. } => Journal::Delete,
            _ if properties.boolean("disableWAL", false) => Journal::Delete,
            _ => Journal::Wal,
        };
        Ok(Self {
            timeout,
            busy,
            journal,
            table: table_name(properties, "tableName", "state")?,
            metadata_table: table_name(properties, "metadataTableName", "metadata")?,
            cleanup: (!cleanup.is_zero()).then_some(cleanup),
            location,
        })
    }
}

fn duration(properties: &Properties, name: &'static str, names: &[&str], default: Duration) -> Result<Duration, PropertyError> {
    match properties.first_of(names) {
        None => Ok(default),
        Some(text) => selvedge::units::parse_dapr_duration(text).map_err(|e| PropertyError::invalid(name, e.found, e.accepted)),
    }
}

fn table_name(properties: &Properties, name: &'static str, default: &str) -> Result<String, PropertyError> {
    let text = properties.get(name).filter(|t| !t.is_empty()).unwrap_or(default);
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        Ok(text.to_owned())
    } else {
        Err(PropertyError::invalid(name, text, "letters, digits and underscores"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[(&str, &str)]) -> Result<StateConfig, PropertyError> {
        StateConfig::read(&settings.iter().copied().collect())
    }

    #[test]
    fn defaults_are_dapr_s() {
        let config = read(&[("connectionString", "data.db")]).unwrap();
        assert_eq!((config.timeout, config.busy), (Duration::from_secs(20), Duration::from_secs(2)));
        assert_eq!((config.journal, config.cleanup), (Journal::Wal, None));
        assert_eq!((config.table.as_str(), config.metadata_table.as_str()), ("state", "metadata"));
    }

    #[test]
    fn settings_by_their_names_and_aliases() {
        let config =
            read(&[("URL", ":memory:"), ("timeoutInSeconds", "5"), ("busyTimeout", "-1"), ("tableName", "t_1"), ("cleanupInterval", "1h")]).unwrap();
        assert_eq!((config.timeout, config.busy, config.cleanup), (Duration::from_secs(5), Duration::ZERO, Some(Duration::from_secs(3600))));
        assert_eq!((config.journal, config.table.as_str()), (Journal::Memory, "t_1"));
        let journal = |settings| read(settings).unwrap().journal;
        assert_eq!(journal(&[("connectionString", "x.db"), ("disableWAL", "true")]), Journal::Delete);
        assert_eq!(journal(&[("connectionString", "x.db?mode=ro")]), Journal::Delete);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(matches!(read(&[]), Err(PropertyError::Missing { name: "connectionString", .. })));
        for (name, value) in [("timeout", "500ms"), ("tableName", "a b"), ("metadataTableName", "x;y"), ("cleanupInterval", "soon")] {
            let error = read(&[("connectionString", "x.db"), (name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
