//! Which former states are kept, and for how long. Rules are pure; applying them is at the end.
//!
//! A state is kept while its generation has a row. Rules thin those rows out: every one at first, then the last of each
//! minute, hour, day and so on. Former rows that were true in no generation that is left are forgotten, and so are the
//! references they hold. Never touched: the newest state, what a snapshot names, what is being read. A directory may have
//! rules that keep more than those above it ([`directory`]).

mod apply;
pub mod directory;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::meta::Txn;
use crate::meta::rows::{GenerationRow, Shelf};
use crate::volume::Volume;

pub(crate) use apply::{Retention, Shed};

/// Settings key of the rules.
const RULES_KEY: &[u8] = b"retention";
const SECOND_NS: i64 = 1_000_000_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const MONTH: u64 = 30 * DAY;

/// How long former states are kept, seconds of age; 0: not by this rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Every state.
    pub all_s: u64,
    /// The last of each minute.
    pub minutely_s: u64,
    /// The last of each hour.
    pub hourly_s: u64,
    /// The last of each day (UTC).
    pub daily_s: u64,
    /// The last of each week.
    pub weekly_s: u64,
    /// The last of each 30 days.
    pub monthly_s: u64,
    /// The newest states, so many whatever their age.
    pub last: u64,
    /// History beyond this share of the usable space is given up, the oldest first. Percent.
    pub budget_percent: u8,
    /// Snapshots made by rule.
    pub snapshots: Vec<SnapshotRule>,
}

/// Snapshots made every so often, the last few of them kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRule {
    /// How often.
    pub every: Period,
    /// How many are kept.
    pub keep: u32,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// Every hour.
    Hourly,
    /// Every day.
    Daily,
    /// Every week.
    Weekly,
    /// Every 30 days.
    Monthly,
}

impl Period {
    /// Seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Hourly => HOUR,
            Self::Daily => DAY,
            Self::Weekly => WEEK,
            Self::Monthly => MONTH,
        }
    }

    /// "hourly", "daily", "weekly", "monthly".
    pub fn name(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// The period of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly].into_iter().find(|period| period.name() == name)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            all_s: 10 * MINUTE,
            minutely_s: HOUR,
            hourly_s: DAY,
            daily_s: 0,
            weekly_s: 0,
            monthly_s: 0,
            last: 0,
            budget_percent: 20,
            snapshots: Vec::new(),
        }
    }
}

impl Rules {
    /// Age up to which, and length of the runs of which the last state is kept, seconds; the finest first.
    fn classes(&self) -> [(&'static str, u64, u64); 6] {
        [
            ("all", self.all_s, 0),
            ("minutely", self.minutely_s, MINUTE),
            ("hourly", self.hourly_s, HOUR),
            ("daily", self.daily_s, DAY),
            ("weekly", self.weekly_s, WEEK),
            ("monthly", self.monthly_s, MONTH),
        ]
    }

    /// Refuse rules that contradict each other or could never do anything.
    ///
    /// # Errors
    /// [`Error::Refused`], saying which and what would do.
    pub fn check(&self) -> Result<()> {
        let mut finer: Option<(&str, u64)> = None;
        for (name, age, run) in self.classes() {
            if age == 0 {
                continue;
            }
            if age < run {
                return Err(Error::Refused(format!(
                    "--{name} {} keeps nothing: it is shorter than the {} of which it keeps the last state",
                    words(age),
                    words(run)
                )));
            }
            if age > 1000 * 366 * DAY {
                return Err(Error::Refused(format!("--{name} {}: at most a thousand years", words(age))));
            }
            if let Some((other, longer)) = finer
                && age <= longer
            {
                return Err(Error::Refused(format!(
                    "--{name} {} contradicts --{other} {}: the finer rule keeps all of that already; give --{name} a longer \
                     time, --{other} a shorter one, or 0 to one of them",
                    words(age),
                    words(longer)
                )));
            }
            finer = Some((name, age));
        }
        if !(1..=90).contains(&self.budget_percent) {
            return Err(Error::Refused(format!(
                "--budget {}%: 1 to 90 percent of the usable space",
                self.budget_percent
            )));
        }
        for (n, rule) in self.snapshots.iter().enumerate() {
            if rule.keep == 0 || rule.keep > 10_000 {
                return Err(Error::Refused(format!(
                    "--snapshots {}={}: keep 1 to 10000",
                    rule.every.name(),
                    rule.keep
                )));
            }
            if self.snapshots[..n].iter().any(|other| other.every == rule.every) {
                return Err(Error::Refused(format!("--snapshots {} is given twice", rule.every.name())));
            }
        }
        Ok(())
    }

    /// Whether the rules keep a generation: `next` is the one after it that is still kept (`None`: it is the newest).
    fn keep(&self, now_ns: i64, row: &GenerationRow, next: Option<&GenerationRow>) -> bool {
        let Some(next) = next else { return true };
        let age = u64::try_from((now_ns - row.time_ns) / SECOND_NS).unwrap_or(0);
        let Some((_, _, run)) = self.classes().into_iter().find(|(_, longest, _)| age < *longest) else { return false };
        if run == 0 {
            return true;
        }
        // The last of its run: what follows belongs to another.
        let number = |time_ns: i64| time_ns.div_euclid(SECOND_NS).div_euclid(run as i64);
        number(row.time_ns) != number(next.time_ns)
    }
}

/// A time in seconds as people write it.
pub fn words(seconds: u64) -> String {
    for (length, letter) in [(WEEK, 'w'), (DAY, 'd'), (HOUR, 'h'), (MINUTE, 'm')] {
        if seconds >= length && seconds.is_multiple_of(length) {
            return format!("{}{letter}", seconds / length);
        }
    }
    format!("{seconds}s")
}

/// Seconds from what people write: a number with s, m, h, d, w or y; 0 alone.
pub fn seconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (number, unit) = text.split_at(text.len().checked_sub(1)?);
    let unit = match unit {
        "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        "w" => WEEK,
        "y" => 365 * DAY,
        _ => return None,
    };
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Names of snapshots made by rule begin so.
const AUTO: &str = "auto-";

/// Make the snapshots that are due by rule, and give up those beyond the number kept. True if anything was done.
///
/// # Errors
/// [`Error::Database`].
pub(crate) fn scheduled_snapshots(volume: &Volume, rules: &Rules) -> Result<bool> {
    if rules.snapshots.is_empty() {
        return Ok(false);
    }
    let now_ns = volume.clock().now_ns();
    let _held = volume.gate();
    volume.meta().with(|txn| {
        let mut changed = false;
        let all = txn.snapshots()?;
        for rule in &rules.snapshots {
            let prefix = format!("{AUTO}{}-", rule.every.name());
            let is_own = |name: &[u8]| name.strip_prefix(prefix.as_bytes()).is_some_and(is_stamp);
            let mut own: Vec<_> = all.iter().filter(|row| is_own(&row.name)).collect();
            own.sort_by_key(|row| std::cmp::Reverse(row.generation));
            let number = |time_ns: i64| time_ns.div_euclid(SECOND_NS).div_euclid(rule.every.seconds() as i64);
            let mut keep = rule.keep as usize;
            if own.first().is_none_or(|last| number(last.time_ns) != number(now_ns)) {
                let name = format!("{prefix}{}", stamp(now_ns));
                if !all.iter().any(|row| *row.name == *name.as_bytes()) {
                    txn.create_snapshot(name.as_bytes())?;
                    changed = true;
                    keep -= 1;
                }
            }
            for old in own.iter().skip(keep) {
                txn.delete_snapshot(&old.name)?;
                changed = true;
            }
        }
        Ok(changed)
    })
}

/// UTC, as it stands in a name: 2026-11-25T22.55.
fn stamp(time_ns: i64) -> String {
    let minutes = time_ns.div_euclid(60 * SECOND_NS);
    let (days, minute) = (minutes.div_euclid(1440), minutes.rem_euclid(1440));
    // From days to a date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}.{:02}", minute / 60, minute % 60)
}

/// True if a name was made by [`stamp`]: others that begin alike are somebody's own.
fn is_stamp(text: &[u8]) -> bool {
    let form = b"0000-00-00T00.00";
    let fits = |(at, form): (&u8, &u8)| if *form == b'0' { at.is_ascii_digit() } else { at == form };
    text.len() == form.len() && text.iter().zip(form).all(fits)
}

/// The rules of the volume.
fn stored(txn: &mut Txn<'_>) -> Result<Rules> {
    match txn.shelf(Shelf::Settings, RULES_KEY)? {
        None => Ok(Rules::default()),
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            Error::format("retention rules", format!("{error}; set them anew with `brine retention set`"))
        }),
    }
}

impl Volume {
    /// The rules of this volume.
    ///
    /// # Errors
    /// [`Error::Format`] if what is stored are no rules: nothing is forgotten then.
    pub fn retention_rules(&self) -> Result<Rules> {
        self.meta().with(stored)
    }

    /// Other rules. What they no longer keep goes in the background.
    ///
    /// # Errors
    /// [`Error::Refused`] if they contradict each other, or a directory's rules would no longer keep more than they do;
    /// [`Error::ReadOnly`].
    pub fn set_retention_rules(&self, rules: &Rules) -> Result<()> {
        rules.check()?;
        let bytes = serde_json::to_vec(rules).map_err(|error| Error::format("retention rules", error.to_string()))?;
        let _held = self.gate();
        self.change(|txn| {
            directory::check_all(txn, Some(rules))?;
            txn.put_shelf(Shelf::Settings, RULES_KEY, &bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::apply::gaps;
    use super::*;
    use crate::ids::Generation;

    fn row(generation: u64, age_s: i64) -> GenerationRow {
        GenerationRow { generation: Generation(generation), time_ns: NOW - age_s * SECOND_NS }
    }

    /// Noon of a day.
    const NOW: i64 = 20_000 * DAY as i64 * SECOND_NS + 12 * HOUR as i64 * SECOND_NS;

    /// Generations that are left, applying the rules once.
    fn left(rules: &Rules, rows: &[GenerationRow], pinned: &[Generation], cutoff: u64) -> Vec<u64> {
        let gone: Vec<Generation> =
            gaps(rules, NOW, rows, pinned, Generation(cutoff)).into_iter().flat_map(|gap| gap.rows).collect();
        rows.iter().map(|row| row.generation).filter(|it| !gone.contains(it)).map(|it| it.0).collect()
    }

    #[test]
    fn all_then_one_a_minute_then_one_an_hour() {
        // One generation every ten seconds for two days.
        let rows: Vec<_> = (0..17_280).map(|n| row(n + 1, (17_279 - n as i64) * 10)).collect();
        let left = left(&Rules::default(), &rows, &[], 0);
        let of = |from: i64, to: i64| {
            rows.iter()
                .filter(|row| left.contains(&row.generation.0))
                .filter(|row| (from..to).contains(&((NOW - row.time_ns) / SECOND_NS)))
                .count()
        };
        assert_eq!(of(0, 600), 60);
        assert_eq!(of(600, 3600), 50);
        assert_eq!(of(3600, 86_400), 23);
        assert_eq!(of(86_400, i64::MAX), 0);
        // Applied again, nothing more goes.
        let rows: Vec<_> = rows.into_iter().filter(|row| left.contains(&row.generation.0)).collect();
        assert!(gaps(&Rules::default(), NOW, &rows, &[], Generation(0)).is_empty());
    }

    #[test]
    fn pins_the_newest_and_the_last_few_stay() {
        let rows: Vec<_> = (1..=10).map(|n| row(n, 1_000_000 - n as i64)).collect();
        assert_eq!(left(&Rules::default(), &rows, &[], 0), [10]);
        assert_eq!(left(&Rules::default(), &rows, &[Generation(3), Generation(5)], 0), [3, 5, 10]);
        assert_eq!(left(&Rules { last: 4, ..Rules::default() }, &rows, &[], 0), [7, 8, 9, 10]);
        let gaps = gaps(&Rules::default(), NOW, &rows, &[Generation(3)], Generation(0));
        let ends: Vec<(u64, u64)> = gaps.iter().map(|gap| (gap.after.0, gap.until.0)).collect();
        assert_eq!(ends, [(0, 3), (3, 10)]);
        // Shed: young ones go, too, pinned ones do not.
        let young: Vec<_> = (1..=10).map(|n| row(n, 20 - n as i64)).collect();
        assert_eq!(left(&Rules::default(), &young, &[Generation(2)], 6), [2, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn contradictions_are_refused_with_what_would_do() {
        let refused = |rules: Rules| rules.check().unwrap_err().to_string();
        assert!(Rules::default().check().is_ok());
        let text = refused(Rules { hourly_s: 30 * MINUTE, ..Rules::default() });
        assert!(text.contains("--hourly 30m keeps nothing"), "{text}");
        let text = refused(Rules { minutely_s: 5 * MINUTE, ..Rules::default() });
        assert!(text.contains("--minutely 5m contradicts --all 10m"), "{text}");
        assert!(refused(Rules { daily_s: DAY, ..Rules::default() }).contains("--daily 1d contradicts --hourly 1d"));
        assert!(Rules { minutely_s: 0, hourly_s: 0, all_s: 0, daily_s: WEEK, ..Rules::default() }.check().is_ok());
        assert!(refused(Rules { budget_percent: 0, ..Rules::default() }).contains("--budget"));
        let twice =
            vec![SnapshotRule { every: Period::Daily, keep: 2 }, SnapshotRule { every: Period::Daily, keep: 3 }];
        assert!(refused(Rules { snapshots: twice, ..Rules::default() }).contains("given twice"));
    }

    #[test]
    fn times_are_read_and_written_as_people_do() {
        for (text, value) in [("0", 0), ("90s", 90), ("10m", 600), ("1h", 3600), ("2d", 172_800), ("3w", 1_814_400)] {
            assert_eq!(seconds(text), Some(value));
            assert_eq!(seconds(&words(value)), Some(value));
        }
        for text in ["", "m", "10", "-1h", "1.5h", "1x", "99999999999999999999s", "9999999999999999w"] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert_eq!(stamp(1_795_647_300 * SECOND_NS), "2026-11-25T22.55");
        assert_eq!(stamp(951_782_400 * SECOND_NS), "2000-02-29T00.00");
    }
}
