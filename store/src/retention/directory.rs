//! Rules of single directories: for what is in one and below it they keep states beyond those of the rules above it.
//!
//! A directory's rules only ever add: what the volume's rules keep is whole, so that a state of the whole tree can be read
//! and gone back to. Rules that would keep less than those above them contradict these and are refused.

use super::{Rules, words};
use crate::error::{Error, Result};
use crate::ids::{Ino, ROOT_INO};
use crate::meta::Txn;
use crate::meta::rows::FileKind;
use crate::volume::Volume;

/// A directory and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryRules {
    /// Its path in the volume; `None` if it was removed. Its states are kept by the rules all the same.
    pub path: Option<Vec<u8>>,
    /// The directory.
    pub dir: Ino,
    /// Its rules.
    pub rules: Rules,
}

impl Rules {
    /// Length of the runs of which the last state is kept at an age, seconds; `None`: nothing is.
    fn run_at(&self, age: u64) -> Option<u64> {
        self.classes().into_iter().find(|(_, longest, _)| age < *longest).map(|(_, _, run)| run)
    }

    /// Refuse rules of a directory that do not add to those `above` it.
    fn check_adds_to(&self, above: &Self, whose: &str) -> Result<()> {
        let mut ages: Vec<u64> =
            [self, above].iter().flat_map(|rules| rules.classes().map(|(_, age, _)| age)).collect();
        ages.push(0);
        ages.sort_unstable();
        ages.dedup();
        let mut more = self.last > above.last;
        for age in ages {
            match (self.run_at(age), above.run_at(age)) {
                (own, Some(theirs)) if own.is_none_or(|own| own > theirs) => {
                    return Err(Error::Refused(format!(
                        "this keeps less than the rules of {whose} do of states {} old; a directory's rules add to those \
                         above it: give longer times here, or shorter ones there",
                        words(age)
                    )));
                }
                (own, theirs) => more |= own != theirs,
            }
        }
        if self.last < above.last {
            let text = format!("--last {} is less than the {} of {whose}, which hold here, too", self.last, above.last);
            return Err(Error::Refused(text));
        }
        if !more {
            return Err(Error::Refused(format!("this keeps nothing that the rules of {whose} do not keep already")));
        }
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<Rules> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::format("retention rules of a directory", format!("{error}; set them anew, or --clear them"))
    })
}

/// Directories with rules, and these.
pub(super) fn all(txn: &mut Txn<'_>) -> Result<Vec<(Ino, Rules)>> {
    txn.rules_of_directories()?.into_iter().map(|(dir, bytes)| Ok((dir, parse(&bytes)?))).collect()
}

/// Refuse what is set if any directory's rules do not add to those above it. `whole`: rules of the volume to be set.
pub(super) fn check_all(txn: &mut Txn<'_>, whole: Option<&Rules>) -> Result<()> {
    let stored = super::stored(txn)?;
    let whole = whole.unwrap_or(&stored);
    let all = all(txn)?;
    for (dir, rules) in &all {
        // A directory that was removed is below nothing.
        let line = txn.directories_above(*dir).unwrap_or_default();
        let above = line.iter().find_map(|above| all.iter().find(|(dir, _)| dir == above));
        let checked = match above {
            Some((above, theirs)) => rules.check_adds_to(theirs, &format!("directory {above} above it")),
            None => rules.check_adds_to(whole, "the volume"),
        };
        checked.map_err(|error| match error {
            Error::Refused(text) => Error::Refused(format!("directory {dir}: {text}")),
            error => error,
        })?;
    }
    Ok(())
}

impl Volume {
    /// Directories that have rules of their own.
    ///
    /// # Errors
    /// [`Error::Format`] if what is stored are no rules.
    pub fn directory_rules(&self) -> Result<Vec<DirectoryRules>> {
        let all = self.meta().with(all)?;
        let path = |dir| self.meta().with(|txn| path_of(txn, dir));
        all.into_iter().map(|(dir, rules)| Ok(DirectoryRules { path: path(dir)?, dir, rules })).collect()
    }

    /// Give a directory rules of its own, or take them away: then what only they kept goes in the background.
    ///
    /// # Errors
    /// [`Error::Refused`] if they contradict each other, or do not add to those above them; [`Error::NotADirectory`];
    /// [`Error::Stale`]; [`Error::NotFound`] if there are none to take away; [`Error::ReadOnly`].
    pub fn set_directory_rules(&self, dir: Ino, rules: Option<&Rules>) -> Result<()> {
        if let Some(rules) = rules {
            rules.check()?;
            if !rules.snapshots.is_empty() || rules.budget_percent != Rules::default().budget_percent {
                return Err(Error::Refused(
                    "snapshots and the budget are the whole volume's, not a directory's".into(),
                ));
            }
            if dir == ROOT_INO {
                return Err(Error::Refused("the root has the volume's rules; set those".into()));
            }
        }
        let bytes = rules.map(serde_json::to_vec).transpose();
        let bytes = bytes.map_err(|error| Error::format("retention rules", error.to_string()))?;
        let _held = self.gate();
        self.change(|txn| {
            if rules.is_none() && !txn.rules_of_directories()?.iter().any(|(known, _)| *known == dir) {
                return Err(Error::NotFound);
            }
            if rules.is_some() && txn.inode(dir)?.kind != FileKind::Directory {
                return Err(Error::NotADirectory);
            }
            txn.set_rules_of_directory(dir, bytes.as_deref())?;
            check_all(txn, None)
        })
    }
}

/// The path of a directory; `None` if it was removed.
fn path_of(txn: &mut Txn<'_>, dir: Ino) -> Result<Option<Vec<u8>>> {
    match txn.inode(dir) {
        Ok(attr) if attr.nlink > 0 => txn.path_of_directory(dir).map(Some),
        Ok(_) | Err(Error::Stale(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DAY, HOUR, MINUTE, WEEK};
    use super::*;

    fn refusal(rules: Rules) -> String {
        rules.check_adds_to(&Rules::default(), "the volume").unwrap_err().to_string()
    }

    #[test]
    fn rules_of_a_directory_add_to_those_above() {
        let default = Rules::default();
        for more in [
            Rules { daily_s: 4 * WEEK, ..default.clone() },
            Rules { all_s: 2 * DAY, minutely_s: 0, hourly_s: 0, ..default.clone() },
            Rules { last: 3, ..default.clone() },
            Rules { all_s: HOUR, minutely_s: 0, hourly_s: 2 * DAY, ..default.clone() },
        ] {
            more.check().unwrap();
            more.check_adds_to(&default, "the volume").unwrap();
        }
        assert!(refusal(default.clone()).contains("nothing that the rules of the volume"));
        let text = refusal(Rules { all_s: MINUTE, minutely_s: HOUR, daily_s: WEEK, ..default.clone() });
        assert!(text.contains("keeps less than the rules of the volume do of states 1m old"), "{text}");
        // Once a day where the volume keeps once an hour.
        assert!(refusal(Rules { hourly_s: 0, daily_s: WEEK, ..default.clone() }).contains("1h old"));
        let above = Rules { last: 5, ..default.clone() };
        let text = Rules { daily_s: WEEK, ..default }.check_adds_to(&above, "the volume").unwrap_err().to_string();
        assert!(text.contains("--last 0 is less than the 5"), "{text}");
    }
}
