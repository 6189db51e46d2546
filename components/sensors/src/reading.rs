//! What a sensor says.

use selvedge::time::Timestamp;

use crate::settings::Format;

/// A kind of sensor, chosen in the settings and first level of its topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Group {
    Temperature,
    Fan,
    Voltage,
    Power,
    Load,
    Cpu,
    Memory,
    Disk,
    Network,
}

impl Group {
    pub(crate) const ALL: [Self; 9] =
        [Self::Temperature, Self::Fan, Self::Voltage, Self::Power, Self::Load, Self::Cpu, Self::Memory, Self::Disk, Self::Network];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::Fan => "fan",
            Self::Voltage => "voltage",
            Self::Power => "power",
            Self::Load => "load",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
        }
    }
}

/// A number as the sensor gives it: counters and sizes are whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Whole(u64),
    /// Finite.
    Real(f64),
}

impl Value {
    /// A value that the kernel gives in thousandths (or another fraction).
    pub(crate) fn scaled(raw: i64, scale: f64) -> Self {
        Self::Real(raw as f64 / scale)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(n) => n.fmt(f),
            Self::Real(x) => x.fmt(f),
        }
    }
}

/// One reading.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    pub group: Group,
    /// Topic suffix; begins with the group.
    pub topic: String,
    pub value: Value,
    pub unit: &'static str,
}

impl Reading {
    /// A reading under the given levels, each of which is made fit for a topic.
    pub(crate) fn new(group: Group, levels: &[&str], value: Value, unit: &'static str) -> Self {
        let mut topic = String::from(group.as_str());
        for level in levels {
            topic.push('/');
            topic.push_str(&level_name(level));
        }
        Self { group, topic, value, unit }
    }

    /// The reading as it is published, and its media type.
    pub(crate) fn encode(&self, at: Timestamp, format: Format) -> (String, &'static str) {
        match format {
            Format::Json => {
                let value = match self.value {
                    Value::Whole(n) => serde_json::Value::from(n),
                    Value::Real(x) => serde_json::Value::from(x),
                };
                let unit = self.unit;
                (format!(r#"{{"value":{value},"unit":"{unit}","time":"{}"}}"#, at.to_rfc3339()), "application/json")
            }
            Format::Text => (self.value.to_string(), "text/plain; charset=utf-8"),
        }
    }
}

/// Longest topic level made of a sensor's name, in characters.
const MAX_LEVEL_CHARS: usize = 64;

/// A name as a topic level: letters (made small), digits and dots stay, every run of anything else becomes one `-`.
pub(crate) fn level_name(name: &str) -> String {
    let mut level = String::with_capacity(name.len());
    for c in name.trim().chars().take(MAX_LEVEL_CHARS) {
        if c.is_alphanumeric() || c == '.' {
            level.extend(c.to_lowercase());
        } else if !level.is_empty() && !level.ends_with('-') {
            level.push('-');
        }
    }
    let kept = level.trim_end_matches('-').len();
    level.truncate(kept);
    if level.is_empty() { "unnamed".to_owned() } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_topic_levels() {
        for (name, level) in [
            ("cpu_thermal", "cpu-thermal"),
            ("Package id 0", "package-id-0"),
            ("+3.3V", "3.3v"),
            ("a/b#c+d\0e", "a-b-c-d-e"),
            ("  ", "unnamed"),
            ("Übertemp", "übertemp"),
        ] {
            assert_eq!(level_name(name), level);
            assert!(selvedge::topic::check_name(&level_name(name)).is_ok());
        }
        assert!(level_name(&"x".repeat(500)).len() <= MAX_LEVEL_CHARS);
    }

    #[test]
    fn readings_are_written_as_json_or_as_a_bare_number() {
        let warm = Reading::new(Group::Temperature, &["cpu_thermal"], Value::scaled(45_125, 1_000.0), "celsius");
        assert_eq!(warm.topic, "temperature/cpu-thermal");
        let (json, media_type) = warm.encode(Timestamp(1_500), Format::Json);
        assert_eq!((json.as_str(), media_type), (r#"{"value":45.125,"unit":"celsius","time":"1970-01-01T00:00:01.500Z"}"#, "application/json"));
        assert_eq!(warm.encode(Timestamp(0), Format::Text).0, "45.125");
        let whole = Reading::new(Group::Memory, &["total"], Value::Whole(u64::MAX), "bytes");
        assert_eq!(whole.encode(Timestamp(0), Format::Text).0, "18446744073709551615");
        let parsed: serde_json::Value = serde_json::from_str(&whole.encode(Timestamp(0), Format::Json).0).unwrap();
        assert_eq!(parsed["value"], u64::MAX);
    }
}
