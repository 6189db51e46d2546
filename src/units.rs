//! Durations and sizes as people write them.

use std::time::Duration;

/// A text that is no quantity of the wanted kind; says what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {accepted}")]
pub struct UnitError {
    /// The text as it stood.
    pub found: String,
    /// What would have been accepted, with an example.
    pub accepted: &'static str,
}

const DURATION: &str = "a duration such as 300ms, 20s, 1h30m or 7d";
const SIZE: &str = "a size in bytes such as 65536, 512KiB, 8MiB or 500MB";

/// Parses a sum of `number unit` pairs, units `ns us µs ms s m h` as Go's `time.ParseDuration` has them, and `d` for 24 hours.
/// Fractions are accepted (`1.5h`). No sign, no bare number except `0`.
///
/// # Errors
/// When the text has another form or the sum passes 584 years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let fail = || UnitError { found: text.to_owned(), accepted: DURATION };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(fail());
    }
    let mut total = 0u128; // nanoseconds
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_len);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(fail()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 || whole.len() > 18 {
            return Err(fail());
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| fail())? };
        total += whole * scale;
        if !fraction.is_empty() {
            let tenths: u128 = fraction.parse().map_err(|_| fail())?;
            total += tenths * scale / 10u128.pow(u32::try_from(fraction.len()).unwrap_or(18));
        }
        rest = next;
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| fail())
}

/// Parses a duration as Dapr's component metadata has it: a Go duration, or a whole number of seconds; empty is zero.
///
/// # Errors
/// When the text is neither.
pub fn parse_dapr_duration(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => parse_duration(text).map_err(|e| UnitError { accepted: "a duration such as 5s or 1m30s, or a whole number of seconds", ..e }),
    }
}

/// Parses a size in bytes: a whole number, or a number with `K M G T` (thousands, as Kubernetes quantities have them, also
/// `KB MB GB TB`) or `Ki Mi Gi Ti` (1,024s, also `KiB MiB GiB TiB`).
///
/// # Errors
/// When the text has another form or passes 2^63.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let fail = || UnitError { found: text.to_owned(), accepted: SIZE };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "k" | "K" | "kB" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        "Ti" | "TiB" => 1 << 40,
        _ => return Err(fail()),
    };
    let bytes = match number.split_once('.') {
        None => number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)),
        Some(_) if scale > 1 => number.parse::<f64>().ok().map(|n| n * scale as f64).filter(|n| n.is_finite() && *n < 9.2e18).map(|n| n as u64),
        Some(_) => None,
    };
    bytes.filter(|b| i64::try_from(*b).is_ok()).ok_or_else(fail)
}

/// A size as [`parse_size`] reads it, in the largest unit that it is a whole number of.
#[must_use]
pub fn size(bytes: u64) -> String {
    match (1..=4).rev().find(|n| bytes > 0 && bytes.is_multiple_of(1 << (10 * n))) {
        Some(n) => format!("{}{}iB", bytes >> (10 * n), ["K", "M", "G", "T"][n - 1]),
        None => format!("{bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them_and_days() {
        for (text, ms) in [("300ms", 300), ("20s", 20_000), ("1h30m", 5_400_000), ("1.5h", 5_400_000), ("7d", 604_800_000), ("0", 0), (".5s", 500)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "1x", "-3s", "1..2s", "99999999999999999999s", "1h 30m"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_dapr_duration("20"), Ok(Duration::from_secs(20)));
        assert_eq!(parse_dapr_duration(""), Ok(Duration::ZERO));
    }

    #[test]
    fn sizes_in_both_families_of_units() {
        for (text, bytes) in [("65536", 65_536), ("512KiB", 524_288), ("8Mi", 8 << 20), ("500MB", 500_000_000), ("4Mi", 4 << 20), ("1.5K", 1_500)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(parse_size(&size(bytes)), Ok(bytes), "{}", size(bytes));
        }
        for bad in ["", "x", "-1", "1.5", "10 parsecs", "9999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
