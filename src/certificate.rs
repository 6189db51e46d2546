//! The dates of an X.509 certificate, for people. Trust is rustls's business; this only reads (RFC 5280, section 4.1).

use crate::component::Finding;
use crate::time::Timestamp;

/// A certificate that ends within this many days is worth a warning.
const SOON_DAYS: u64 = 21;
const DAY_MS: u64 = 86_400_000;

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

/// One element of DER: tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, first) = (*bytes.first()?, *bytes.get(1)?);
    let (length, head) = match first {
        0..=0x7F => (usize::from(first), 2),
        0x81..=0x84 => {
            let n = usize::from(first & 0x7F);
            let digits = bytes.get(2..2 + n)?;
            (digits.iter().fold(0usize, |length, d| length << 8 | usize::from(*d)), 2 + n)
        }
        _ => return None,
    };
    let end = head.checked_add(length)?;
    Some((tag, bytes.get(head..end)?, bytes.get(end..)?))
}

/// UTCTime `YYMMDDHHMMSSZ` (years from 1950 to 2049) or GeneralizedTime `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, content: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        0x17 => {
            let year: i16 = text.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        0x18 => (text.get(..4)?.parse().ok()?, text.get(4..)?),
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let civil = jiff::civil::DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    let seconds = civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_millisecond();
    Some(Timestamp(u64::try_from(seconds).unwrap_or(0)))
}

/// The validity of a certificate in DER; nothing when it cannot be read.
#[must_use]
pub fn validity(der: &[u8]) -> Option<Validity> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    // Version is optional; then serial number, signature algorithm and issuer stand before the validity.
    if rest.first() == Some(&0xA0) {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, dates, _) = element(rest)?;
    let (tag, begin, after) = element(dates)?;
    let (end_tag, end, _) = element(after)?;
    Some(Validity { not_before: time(tag, begin)?, not_after: time(end_tag, end)? })
}

/// What a certificate's dates mean now.
#[must_use]
pub fn examine(subject: &str, der: &[u8], now: Timestamp) -> Finding {
    let Some(Validity { not_before, not_after }) = validity(der) else {
        return Finding::warning(subject, "the certificate's dates cannot be read", "look at it with `openssl x509 -text`");
    };
    let days = |from: Timestamp, to: Timestamp| to.0.saturating_sub(from.0) / DAY_MS;
    if now < not_before {
        let found = format!("the certificate is not valid before {}, and it is {} here", not_before.to_rfc3339(), now.to_rfc3339());
        return Finding::problem(subject, found, "set the clock (`timedatectl set-ntp true`), or have the certificate made anew");
    }
    if now > not_after {
        let found = format!("the certificate has expired at {}, {} days ago", not_after.to_rfc3339(), days(not_after, now));
        return Finding::problem(subject, found, "put a new one in its place; a listener takes it with `selvedge reload`");
    }
    let left = days(now, not_after);
    let found = format!("the certificate is valid until {}, {left} days from now", not_after.to_rfc3339());
    if left < SOON_DAYS { Finding::warning(subject, found, "have it renewed") } else { Finding::good(subject, found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::FindingLevel;

    /// The beginning of a certificate with these dates: enough for what is read.
    fn certificate(begin: (u8, &str), end: (u8, &str)) -> Vec<u8> {
        let tagged = |tag: u8, content: &[u8]| {
            let mut out = vec![tag, 0x82];
            out.extend((content.len() as u16).to_be_bytes());
            out.extend_from_slice(content);
            out
        };
        let dates = [tagged(begin.0, begin.1.as_bytes()), tagged(end.0, end.1.as_bytes())].concat();
        let body = [tagged(0xA0, &[2, 1, 2]), tagged(2, &[1]), tagged(0x30, &[]), tagged(0x30, &[]), tagged(0x30, &dates)].concat();
        tagged(0x30, &tagged(0x30, &body))
    }

    #[test]
    fn dates_in_both_forms_are_read_and_judged() {
        let der = certificate((0x17, "200101000000Z"), (0x18, "20500101000000Z"));
        let at = |text: &str| Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64);
        assert_eq!(validity(&der), Some(Validity { not_before: at("2020-01-01T00:00:00Z"), not_after: at("2050-01-01T00:00:00Z") }));
        let der = certificate((0x17, "250101000000Z"), (0x17, "260101000000Z"));
        for (now, level) in [
            ("2024-12-31T00:00:00Z", FindingLevel::Problem),
            ("2025-06-01T00:00:00Z", FindingLevel::Good),
            ("2025-12-30T00:00:00Z", FindingLevel::Warning),
            ("2026-01-02T00:00:00Z", FindingLevel::Problem),
        ] {
            assert_eq!(examine("x", &der, at(now)).level, level, "{now}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_are_no_panic() {
        let der = certificate((0x17, "200101000000Z"), (0x17, "210101000000Z"));
        for cut in 0..der.len() {
            assert_eq!(validity(&der[..cut]), None, "{cut}");
        }
        for bad in ["2001010000Z", "xx0101000000Z", "209901000000Z", "200101000000"] {
            assert_eq!(validity(&certificate((0x17, bad), (0x17, bad))), None, "{bad}");
        }
        assert_eq!(validity(&[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF]), None);
    }
}
