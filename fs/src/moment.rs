//! How people name a past state: a version, a time, or a snapshot.
//!
//! Times without a zone are UTC, as every time brine prints.

use std::fmt;

const SECOND_NS: i64 = 1_000_000_000;

/// A past state as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A version of a file: of the one that has the name, or of an inode that had it.
    Version {
        /// The inode, if it was named.
        ino: Option<u64>,
        /// The version.
        version: u64,
    },
    /// A time, nanoseconds since 1970.
    Time(i64),
    /// A snapshot.
    Snapshot(String),
}

impl Moment {
    /// What `text` names. `7` and `12:7` are versions; `2026-01-31`, `2026-01-31T23:59:59.5+01:00`, `10m` (that long
    /// ago; s, m, h, d, w) and `@1700000000` are times; everything else is a snapshot's name.
    pub fn parse(text: &str, now_ns: i64) -> Self {
        if let Ok(version) = text.parse() {
            return Self::Version { ino: None, version };
        }
        if let Some((ino, version)) = text.split_once(':')
            && let (Ok(ino), Ok(version)) = (ino.parse(), version.parse())
        {
            return Self::Version { ino: Some(ino), version };
        }
        match ago(text).and_then(|ago| now_ns.checked_sub(ago)).or_else(|| parse_time(text)) {
            Some(time_ns) => Self::Time(time_ns),
            None => Self::Snapshot(text.to_owned()),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { ino: None, version } => write!(f, "version {version}"),
            Self::Version { ino: Some(ino), version } => write!(f, "version {version} of inode {ino}"),
            Self::Time(ns) => f.write_str(&crate::telemetry::timestamp_ns(*ns)),
            Self::Snapshot(name) => write!(f, "snapshot \"{name}\""),
        }
    }
}

/// Why a text cannot name a snapshot; `None` if it can.
pub fn bad_snapshot_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.contains('/') {
        return Some("it holds a slash; snapshots are names in one directory, .brine/snapshots");
    }
    if name.len() > brine_store::volume::NAME_MAX {
        return Some("it is longer than 255 bytes");
    }
    if matches!(name, "." | "..") || name.starts_with('-') || name.chars().any(char::is_control) {
        return Some("it is \".\" or \"..\", begins with \"-\", or holds a control character");
    }
    match Moment::parse(name, 0) {
        Moment::Snapshot(_) if name != "now" => None,
        _ => Some("it reads as a version or a time"),
    }
}

/// "10m" and the like as nanoseconds.
fn ago(text: &str) -> Option<i64> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return None,
    };
    let count: i64 = digits(&text[..text.len() - 1])?.try_into().ok()?;
    count.checked_mul(seconds)?.checked_mul(SECOND_NS)
}

/// A number of digits only: `parse` would take a sign.
fn digits(text: &str) -> Option<u64> {
    let only_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if only_digits { text.parse().ok() } else { None }
}

/// A point in time, nanoseconds since 1970: `@SECONDS`, or a date with or without a time and a zone (RFC 3339).
pub fn parse_time(text: &str) -> Option<i64> {
    if let Some(seconds) = text.strip_prefix('@') {
        let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
        return i64::try_from(digits(whole)?).ok()?.checked_mul(SECOND_NS)?.checked_add(fraction_ns(fraction)?);
    }
    let date = text.get(..10)?;
    let mut fields = date.split('-');
    let (year, month, day) = (fields.next()?, fields.next()?, fields.next()?);
    if (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return None;
    }
    let days = days_from_civil(digits(year)? as i64, digits(month)?, digits(day)?)?;
    let seconds = match text.get(10..)? {
        "" => (0, 0),
        rest => time_of_day(rest.strip_prefix(['T', ' ', '_'])?)?,
    };
    // What is beyond 64 bits of nanoseconds (1677 to 2262) becomes the nearest.
    Some((days * 86_400 + seconds.0).saturating_mul(SECOND_NS).saturating_add(seconds.1))
}

/// Seconds of "23:59", "23:59:59", "23:59:59.5", with "Z" or "+01:00" behind, and nanoseconds beyond them.
fn time_of_day(text: &str) -> Option<(i64, i64)> {
    let (clock, offset) = match text.find(['Z', '+', '-']) {
        None => (text, 0),
        Some(at) if &text[at..] == "Z" => (&text[..at], 0),
        Some(at) => {
            let sign = if text.as_bytes()[at] == b'-' { -1 } else { 1 };
            let (hours, minutes) = text[at + 1..].split_once(':')?;
            (&text[..at], sign * (below(hours, 24)? * 3600 + below(minutes, 60)? * 60))
        }
    };
    let mut fields = clock.splitn(3, ':');
    let (hours, minutes) = (below(fields.next()?, 24)?, below(fields.next()?, 60)?);
    let (seconds, ns) = match fields.next() {
        None => (0, 0),
        Some(text) => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            (below(whole, 60)?, fraction_ns(fraction)?)
        }
    };
    Some((hours * 3600 + minutes * 60 + seconds - offset, ns))
}

/// Two digits below a bound.
fn below(text: &str, bound: u64) -> Option<i64> {
    digits(text).filter(|number| text.len() == 2 && *number < bound).map(|number| number as i64)
}

/// Nanoseconds of what follows a decimal point, up to nine digits: the end of what it stands for, since times are printed
/// cut off.
fn fraction_ns(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let number = digits(text).filter(|_| text.len() <= 9)? as i64;
    let unit = 10i64.pow(9 - text.len() as u32);
    Some(number * unit + unit - 1)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar. The inverse of what `telemetry::timestamp` does.
fn days_from_civil(year: i64, month: u64, day: u64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=longest).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month as i64 + 9) % 12) + 2) / 5 + day as i64 - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::timestamp_ns;

    #[test]
    fn times_come_back_as_they_are_printed() {
        for ns in [0, 1_700_000_000_123_000_000, 951_782_400_000_000_000, 4_102_444_799_999_000_000] {
            assert_eq!(parse_time(&timestamp_ns(ns)), Some(ns + 999_999), "{}", timestamp_ns(ns));
        }
        let at = parse_time("2026-11-25T23:05:07Z");
        assert_eq!(parse_time("2026-11-25 23:05:07"), at);
        assert_eq!(parse_time("2026-11-26T00:05:07+01:00"), at);
        assert_eq!(parse_time("2026-11-25T18:35:07-04:30"), at);
        assert_eq!(parse_time("2026-11-25T23:05:07.25Z"), at.map(|ns| ns + 259_999_999));
        assert_eq!(parse_time("1970-01-02"), Some(86_400 * SECOND_NS));
        assert_eq!(parse_time("2999-01-01"), Some(i64::MAX));
        assert_eq!(parse_time("@12.5"), Some(12 * SECOND_NS + 599_999_999));
        for text in
            ["2026-02-29", "2026-13-01", "2026-1-01", "2026-11-25T24:00", "2026-11-25T1:00", "@", "@-1", "x", ""]
        {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn versions_times_and_names_are_told_apart() {
        let parse = |text: &str| Moment::parse(text, 1_000 * SECOND_NS);
        assert_eq!(parse("7"), Moment::Version { ino: None, version: 7 });
        assert_eq!(parse("12:7"), Moment::Version { ino: Some(12), version: 7 });
        assert_eq!(parse("10m"), Moment::Time(400 * SECOND_NS));
        assert_eq!(parse("2026-01-31"), Moment::Time(parse_time("2026-01-31").unwrap()));
        assert_eq!(parse("monday"), Moment::Snapshot("monday".into()));
        assert_eq!(parse("m"), Moment::Snapshot("m".into()), "a unit without a number");
    }

    #[test]
    fn snapshot_names_read_as_nothing_else() {
        for name in ["before-upgrade", "monday", "v1.2", "ünïcode", "a b", "m"] {
            assert_eq!(bad_snapshot_name(name), None, "{name}");
        }
        let long = "x".repeat(256);
        for name in ["", "a/b", "..", "-f", "7", "1:2", "10m", "2026-01-31", "@5", "now", "a\nb", &long] {
            assert!(bad_snapshot_name(name).is_some(), "{name}");
        }
    }
}
