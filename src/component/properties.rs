//! A component's settings, read by Dapr's rules.

use std::time::Duration;

use crate::units;

/// `spec.metadata` of a component: names to texts. Names are found whatever their case (Dapr's rule); the first of two
/// equal names wins. Values are never shown by `Debug`, since they may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(Vec<(String, String)>);

impl std::fmt::Debug for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        Self(items.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// A setting that is missing or has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// A required setting is not there or is empty.
    #[error("metadata property '{name}' is required: {accepted}")]
    Missing {
        /// Its name.
        name: &'static str,
        /// What it should hold.
        accepted: &'static str,
    },
    /// The value cannot be understood.
    #[error("metadata property '{name}' has value {found:?}; accepted is {accepted}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// The value as it stood.
        found: String,
        /// What would have been accepted.
        accepted: String,
    },
}

impl PropertyError {
    /// An [`PropertyError::Invalid`].
    pub fn invalid(name: &'static str, found: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self::Invalid { name, found: found.into(), accepted: accepted.into() }
    }
}

impl Properties {
    /// The value under `name`, whatever its case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The value under exactly this name, case included (a few of Dapr's keys are strict).
    #[must_use]
    pub fn get_exact(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// The first non-empty value under one of `names` (the real key before its aliases).
    #[must_use]
    pub fn first_of(&self, names: &[&str]) -> Option<&str> {
        names.iter().filter_map(|n| self.get(n)).find(|v| !v.is_empty())
    }

    /// Names and values as written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A required, non-empty text.
    ///
    /// # Errors
    /// `Missing` when there is none.
    pub fn require(&self, name: &'static str, accepted: &'static str) -> Result<&str, PropertyError> {
        self.get(name).filter(|v| !v.is_empty()).ok_or(PropertyError::Missing { name, accepted })
    }

    /// A boolean by Dapr's rule: `y yes true t on 1` are true, everything else is false, absence is `default`.
    #[must_use]
    pub fn boolean(&self, name: &str, default: bool) -> bool {
        self.get(name).map_or(default, is_truthy)
    }

    /// A duration by Dapr's rule: Go duration or whole seconds.
    ///
    /// # Errors
    /// `Invalid` when the text is neither.
    pub fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, PropertyError> {
        match self.get(name).filter(|v| !v.is_empty()) {
            None => Ok(default),
            Some(text) => units::parse_dapr_duration(text).map_err(|e| PropertyError::invalid(name, e.found, e.accepted)),
        }
    }

    /// A size in bytes.
    ///
    /// # Errors
    /// `Invalid` when the text is no size.
    pub fn size(&self, name: &'static str, default: u64) -> Result<u64, PropertyError> {
        match self.get(name).filter(|v| !v.is_empty()) {
            None => Ok(default),
            Some(text) => units::parse_size(text).map_err(|e| PropertyError::invalid(name, e.found, e.accepted)),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// `Invalid` when the text is none.
    pub fn integer(&self, name: &'static str, default: i64) -> Result<i64, PropertyError> {
        match self.get(name).filter(|v| !v.is_empty()) {
            None => Ok(default),
            Some(text) => text.trim().parse().map_err(|_| PropertyError::invalid(name, text, "a whole number")),
        }
    }
}

/// Dapr's reading of a boolean text.
#[must_use]
pub fn is_truthy(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "y" | "yes" | "true" | "t" | "on" | "1")
}
