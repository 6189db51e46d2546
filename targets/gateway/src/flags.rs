//! The command line: daprd's flags as Go's parser reads them (`-x` = `--x`, `--x=v` or `--x v`), and our own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use selvedge::outlook::Load;
use selvedge::units;

/// How a flag takes its value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Switch,
    Integer,
    /// May be given several times, commas split.
    List,
}

/// A flag: name, kind, whether it is served.
type Flag = (&'static str, Kind, bool);

/// daprd 1.18's flags, then ours. What is not served is accepted and said at start.
const FLAGS: &[Flag] = &[
    ("app-id", Kind::Text, true),
    ("app-port", Kind::Integer, true),
    ("app-protocol", Kind::Text, true),
    ("app-channel-address", Kind::Text, true),
    ("app-max-concurrency", Kind::Integer, true),
    ("app-ssl", Kind::Switch, false),
    ("app-health-check-path", Kind::Text, true),
    ("app-health-probe-interval", Kind::Integer, true),
    ("app-health-probe-timeout", Kind::Integer, true),
    ("app-health-threshold", Kind::Integer, true),
    ("enable-app-health-check", Kind::Switch, true),
    ("dapr-http-port", Kind::Integer, true),
    ("dapr-grpc-port", Kind::Integer, true),
    ("dapr-internal-grpc-port", Kind::Integer, false),
    ("dapr-internal-grpc-listen-address", Kind::Text, false),
    ("dapr-listen-addresses", Kind::Text, true),
    ("dapr-public-port", Kind::Integer, true),
    ("dapr-public-listen-address", Kind::Text, true),
    ("dapr-http-max-request-size", Kind::Integer, false),
    ("dapr-http-read-buffer-size", Kind::Integer, false),
    ("dapr-graceful-shutdown-seconds", Kind::Integer, true),
    ("dapr-block-shutdown-duration", Kind::Text, false),
    ("metrics-port", Kind::Integer, true),
    ("metrics-listen-address", Kind::Text, true),
    ("enable-metrics", Kind::Switch, true),
    ("profile-port", Kind::Integer, false),
    ("enable-profiling", Kind::Switch, false),
    ("unix-domain-socket", Kind::Text, false),
    ("resources-path", Kind::List, true),
    ("components-path", Kind::List, true),
    ("config", Kind::List, true),
    ("max-body-size", Kind::Text, true),
    ("read-buffer-size", Kind::Text, true),
    ("allowed-origins", Kind::Text, true),
    ("enable-api-logging", Kind::Switch, true),
    ("disable-init-endpoints", Kind::Text, true),
    ("placement-host-address", Kind::Text, false),
    ("actors-service", Kind::Text, false),
    ("actors-disseminate-timeout", Kind::Text, false),
    ("reminders-service", Kind::Text, false),
    ("scheduler-host-address", Kind::List, false),
    ("scheduler-job-streams", Kind::Integer, false),
    ("enable-mtls", Kind::Switch, false),
    ("sentry-address", Kind::Text, false),
    ("sentry-request-jwt-audiences", Kind::List, false),
    ("control-plane-address", Kind::Text, false),
    ("control-plane-trust-domain", Kind::Text, false),
    ("control-plane-namespace", Kind::Text, false),
    ("mode", Kind::Text, true),
    ("log-level", Kind::Text, true),
    ("log-as-json", Kind::Switch, true),
    ("log-file", Kind::Text, false),
    ("disable-builtin-k8s-secret-store", Kind::Switch, false),
    ("version", Kind::Switch, true),
    ("build-info", Kind::Switch, true),
    ("wait", Kind::Switch, false),
    // Ours.
    ("data-dir", Kind::Text, true),
    ("threads", Kind::Integer, true),
    ("upstream", Kind::Text, true),
    ("for", Kind::Text, true),
    ("json", Kind::Switch, true),
    ("rate", Kind::Text, true),
    ("size", Kind::Text, true),
    ("user", Kind::Text, true),
    ("password-file", Kind::Text, true),
    ("ca-file", Kind::Text, true),
    ("prefix", Kind::Text, true),
    ("devices", Kind::List, true),
    ("listen", Kind::List, true),
    ("force", Kind::Switch, true),
    ("help", Kind::Switch, true),
];

/// Flags whose default asks for nothing: they are passed by tools as a matter of course and change nothing here.
const HARMLESS: &[(&str, &str)] = &[
    ("enable-profiling", "false"),
    ("enable-mtls", "false"),
    ("app-ssl", "false"),
    ("placement-host-address", ""),
    ("scheduler-host-address", ""),
    ("unix-domain-socket", ""),
];

/// A command line that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// What the command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    values: BTreeMap<&'static str, Vec<String>>,
    /// What is not a flag.
    pub rest: Vec<String>,
    /// After `--`: a program to start beside the node.
    pub command: Vec<String>,
}

fn usage(text: impl Into<String>) -> UsageError {
    UsageError(text.into())
}

/// The flag that is one or two letters away (inserted, left out or exchanged), or of which this is the beginning.
fn meant(name: &str) -> Option<&'static str> {
    let distance = |other: &str| {
        let mut row: Vec<usize> = (0..=other.len()).collect();
        for (i, a) in name.bytes().enumerate() {
            let mut before = std::mem::replace(&mut row[0], i + 1);
            for (j, b) in other.bytes().enumerate() {
                let changed = before + usize::from(a != b);
                before = row[j + 1];
                row[j + 1] = changed.min(row[j] + 1).min(before + 1);
            }
        }
        row[other.len()]
    };
    let begun = FLAGS.iter().map(|(flag, _, _)| *flag).find(|flag| name.len() > 2 && flag.starts_with(name));
    let near = FLAGS.iter().map(|(flag, _, _)| (distance(flag), *flag)).filter(|(d, _)| *d <= 2 && *d * 2 < name.len()).min();
    begun.or(near.map(|(_, flag)| flag))
}

impl Flags {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, UsageError> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                flags.command = arguments.collect();
                break;
            }
            let Some(stripped) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).filter(|s| !s.is_empty()) else {
                flags.rest.push(argument);
                continue;
            };
            let (name, inline) = stripped.split_once('=').map_or((stripped, None), |(n, v)| (n, Some(v.to_owned())));
            let name = if name == "h" { "help" } else { name };
            let Some((name, kind, _)) = FLAGS.iter().find(|(n, _, _)| *n == name) else {
                let meant = meant(name).map_or_else(|| "`selvedge help` lists them".to_owned(), |flag| format!("is --{flag} meant?"));
                return Err(usage(format!("unknown flag: --{name}; {meant}")));
            };
            let value = match (kind, inline) {
                (Kind::Switch, None) => "true".to_owned(),
                (Kind::Switch, Some(v)) => match v.to_ascii_lowercase().as_str() {
                    "1" | "t" | "true" => "true".to_owned(),
                    "0" | "f" | "false" => "false".to_owned(),
                    _ => return Err(usage(format!("--{name}: found {v:?}; accepted is true or false"))),
                },
                (_, Some(v)) => v,
                (_, None) => arguments.next().ok_or_else(|| usage(format!("--{name} needs a value")))?,
            };
            if *kind == Kind::Integer && !value.is_empty() && value.parse::<i64>().is_err() {
                return Err(usage(format!("--{name}: found {value:?}; accepted is a whole number")));
            }
            let values = flags.values.entry(name).or_default();
            match kind {
                Kind::List => values.extend(value.split(',').filter(|v| !v.is_empty()).map(str::to_owned)),
                _ => *values = vec![value],
            }
        }
        Ok(flags)
    }

    /// A flag's text, if it was given and is not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.last()).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Whether a switch is on.
    pub fn switch(&self, name: &str, default: bool) -> bool {
        self.values.get(name).and_then(|v| v.last()).map_or(default, |v| v == "true")
    }

    /// A list flag's values.
    pub fn list(&self, name: &str) -> Vec<PathBuf> {
        self.values.get(name).map(|v| v.iter().map(PathBuf::from).collect()).unwrap_or_default()
    }

    fn integer(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|v| v.parse().ok())
    }

    /// A port; nothing for 0 and below when `zero` is not accepted.
    pub fn port(&self, name: &str, default: Option<u16>) -> Result<Option<u16>, UsageError> {
        match self.integer(name) {
            None => Ok(default),
            Some(n) if n <= 0 => Ok(None),
            Some(n) => u16::try_from(n).map(Some).map_err(|_| usage(format!("--{name}: found {n}; accepted is a port from 1 to 65535"))),
        }
    }

    /// What comes in, for the arithmetic of the worst case: `--rate` in messages a second (`50` or `50/s`), `--size` in bytes of payload.
    pub fn load(&self) -> Result<Load, UsageError> {
        let default = Load::default();
        let per_second = match self.text("rate") {
            None => default.per_second,
            Some(text) => {
                let number = text.strip_suffix("/s").unwrap_or(text).parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0 && *n <= 1e7);
                number.ok_or_else(|| usage(format!("--rate: found {text:?}; accepted are messages a second, such as 50/s or 0.1/s")))?
            }
        };
        Ok(Load { per_second, payload_bytes: self.size("size", default.payload_bytes)? })
    }

    /// A size in bytes.
    #[cfg_attr(not(feature = "api"), allow(dead_code, reason = "asked by the API alone"))]
    pub fn size(&self, name: &str, default: u64) -> Result<u64, UsageError> {
        self.text(name).map_or(Ok(default), |t| units::parse_size(t).map_err(|e| usage(format!("--{name}: {e}"))))
    }

    /// A number above 0; anything else is the default (daprd's rule for the health check).
    #[cfg_attr(not(feature = "api"), allow(dead_code, reason = "asked by the API alone"))]
    pub fn positive(&self, name: &str, default: u64) -> u64 {
        self.integer(name).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
    }

    /// The grace period: 5 s; 0 waits for ever, less than 0 is the default (daprd's rule).
    pub fn grace(&self) -> Duration {
        match self.integer("dapr-graceful-shutdown-seconds") {
            Some(0) => Duration::from_secs(u64::from(u32::MAX)),
            Some(n) if n > 0 => Duration::from_secs(n.unsigned_abs()),
            _ => Duration::from_secs(5),
        }
    }

    /// Worker threads of the runtime; 1 unless said.
    pub fn threads(&self) -> Result<usize, UsageError> {
        match self.integer("threads") {
            None => Ok(1),
            Some(n) if (1..=64).contains(&n) => Ok(n as usize),
            Some(n) => Err(usage(format!("--threads: found {n}; accepted is 1 to 64"))),
        }
    }

    /// Flags that were given, want something, and are not served.
    pub fn not_served(&self) -> Vec<&'static str> {
        FLAGS
            .iter()
            .filter(|(name, _, served)| !served && self.values.contains_key(name))
            .filter(|(name, _, _)| {
                let value = self.values[name].join(",");
                !HARMLESS.iter().any(|(n, v)| n == name && *v == value.trim_matches([' ', ',']))
            })
            .map(|(name, _, _)| *name)
            .collect()
    }

    /// All flags, for `selvedge help`.
    pub fn names() -> impl Iterator<Item = (&'static str, bool)> {
        FLAGS.iter().map(|(name, _, served)| (*name, *served))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Flags, UsageError> {
        Flags::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_as_go_reads_them() {
        let f = parse("-app-id=a --dapr-http-port 3501 --enable-metrics=false --resources-path x,y --resources-path z run -- prog -v").unwrap();
        assert_eq!((f.text("app-id"), f.port("dapr-http-port", None)), (Some("a"), Ok(Some(3501))));
        assert!(!f.switch("enable-metrics", true) && !f.switch("log-as-json", false));
        assert_eq!(f.list("resources-path"), [PathBuf::from("x"), "y".into(), "z".into()]);
        assert_eq!((f.rest.as_slice(), f.command.as_slice()), (["run".to_owned()].as_slice(), ["prog".to_owned(), "-v".into()].as_slice()));
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (line, part) in
            [("--nope", "--nope"), ("--app-port x", "whole number"), ("--app-id", "needs a value"), ("--enable-metrics=maybe", "true or false")]
        {
            assert!(parse(line).unwrap_err().0.contains(part), "{line}");
        }
    }

    #[test]
    fn a_flag_that_is_nearly_one_is_named() {
        for (line, part) in
            [("--resource-path x", "is --resources-path meant?"), ("--data x", "is --data-dir meant?"), ("--zzz", "`selvedge help` lists them")]
        {
            assert!(parse(line).unwrap_err().0.ends_with(part), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn only_flags_that_ask_for_something_are_named_as_not_served() {
        let f = parse("--enable-mtls=false --placement-host-address= --sentry-address x --app-id a").unwrap();
        assert_eq!(f.not_served(), ["sentry-address"]);
    }
}
