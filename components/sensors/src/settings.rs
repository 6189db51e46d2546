//! Settings of the binding.

use std::path::PathBuf;
use std::time::Duration;

use selvedge::component::{Properties, PropertyError};

use crate::reading::Group;

/// Time between samples unless said.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest time between samples: below it the sampling itself is what is measured.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// How a reading is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// An object with value, unit and time.
    Json,
    /// The bare number.
    Text,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub interval: Duration,
    pub groups: Vec<Group>,
    pub format: Format,
    pub root: PathBuf,
}

fn groups(properties: &Properties, name: &'static str) -> Result<Vec<Group>, PropertyError> {
    let text = properties.get(name).unwrap_or_default();
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let group = Group::ALL.into_iter().find(|g| g.as_str().eq_ignore_ascii_case(word));
            group.ok_or_else(|| PropertyError::invalid(name, word, Group::ALL.map(Group::as_str).join(", ")))
        })
        .collect()
}

impl Settings {
    pub(crate) fn from_properties(properties: &Properties) -> Result<Self, PropertyError> {
        let interval = properties.duration("interval", DEFAULT_INTERVAL)?;
        if interval < MIN_INTERVAL {
            return Err(PropertyError::invalid("interval", properties.get("interval").unwrap_or_default(), "at least 100ms"));
        }
        let include = groups(properties, "include")?;
        let exclude = groups(properties, "exclude")?;
        let groups: Vec<Group> = Group::ALL.into_iter().filter(|g| (include.is_empty() || include.contains(g)) && !exclude.contains(g)).collect();
        if groups.is_empty() {
            return Err(PropertyError::invalid("exclude", properties.get("exclude").unwrap_or_default(), "fewer groups: nothing is left to sample"));
        }
        let format = match properties.get("format").unwrap_or_default() {
            "" => Format::Json,
            word if word.eq_ignore_ascii_case("json") => Format::Json,
            word if word.eq_ignore_ascii_case("text") => Format::Text,
            other => return Err(PropertyError::invalid("format", other, "json or text")),
        };
        let root = properties.get("rootPath").filter(|path| !path.is_empty()).unwrap_or("/");
        Ok(Self { interval, groups, format, root: PathBuf::from(root) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_properties(&pairs.iter().copied().collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_sample_everything_every_ten_seconds() {
        let s = settings(&[]).unwrap();
        assert_eq!((s.interval, s.format, s.groups.len(), s.root), (Duration::from_secs(10), Format::Json, Group::ALL.len(), PathBuf::from("/")));
    }

    #[test]
    fn groups_are_chosen_and_left_out() {
        assert_eq!(settings(&[("include", "Load, cpu")]).unwrap().groups, [Group::Load, Group::Cpu]);
        assert_eq!(settings(&[("include", "load,cpu"), ("exclude", "cpu")]).unwrap().groups, [Group::Load]);
        assert!(!settings(&[("exclude", "network")]).unwrap().groups.contains(&Group::Network));
    }

    #[test]
    fn what_has_no_meaning_is_named() {
        for (pairs, word) in [
            (&[("interval", "50ms")][..], "100ms"),
            (&[("interval", "soon")], "interval"),
            (&[("include", "humidity")], "temperature, fan"),
            (&[("format", "xml")], "json or text"),
            (&[("include", "load"), ("exclude", "load")], "nothing is left"),
        ] {
            let error = settings(pairs).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(settings(&[("interval", "2")]).unwrap().interval, Duration::from_secs(2), "whole seconds, as Dapr reads them");
    }
}
