//! Applying the rules: which generations are given up, and forgetting what was true in them only.

use std::collections::{BTreeMap, BTreeSet};

use super::{MINUTE, Rules, SECOND_NS, directory, scheduled_snapshots};
use crate::error::Result;
use crate::ids::{Generation, Ino};
use crate::meta::rows::GenerationRow;
use crate::meta::{Gap, KeptBelow, Txn};
use crate::volume::Volume;

/// Rows looked at in one operation, so that no writer waits long.
const BATCH: usize = 1000;
/// Generations looked at in one round.
const ROUND_GENERATIONS: usize = 20_000;
/// Operations of one round of the housekeeper.
const ROUND_OPERATIONS: usize = 50;

/// A run of generations to be given up: those between two that stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The generation before it that stays; 0 if none does.
    pub after: Generation,
    /// The one behind it.
    pub until: Generation,
    pub rows: Vec<Generation>,
}

/// What the rules give up of `rows` (ascending). `pinned` stay whatever the rules say, and so does the newest;
/// generations before `cutoff` that nothing pins go whatever the rules say.
pub(super) fn gaps(
    rules: &Rules,
    now_ns: i64,
    rows: &[GenerationRow],
    pinned: &[Generation],
    cutoff: Generation,
) -> Vec<Run> {
    let newest_kept = rows.len().saturating_sub(rules.last as usize);
    let mut out = Vec::new();
    let mut gap = Run { after: Generation(0), until: Generation(0), rows: Vec::new() };
    for (n, row) in rows.iter().enumerate() {
        let is_pinned = pinned.binary_search(&row.generation).is_ok();
        let by_rule = row.generation >= cutoff && (n >= newest_kept || rules.keep(now_ns, row, rows.get(n + 1)));
        if is_pinned || by_rule || n + 1 == rows.len() {
            if !gap.rows.is_empty() {
                out.push(Run {
                    until: row.generation,
                    ..std::mem::replace(&mut gap, Run { after: row.generation, until: Generation(0), rows: Vec::new() })
                });
            }
            gap.after = row.generation;
        } else {
            gap.rows.push(row.generation);
        }
    }
    out
}

/// What goes whatever the rules say, unless something pins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    Nothing,
    /// The older half.
    Half,
    /// All but the newest state.
    All,
}

/// What is remembered between rounds.
#[derive(Debug, Default)]
pub(crate) struct Retention {
    /// All gaps were looked at once since the volume was opened: a kill may have left one half forgotten.
    swept: bool,
    /// Gaps that are not wholly forgotten.
    pending: Vec<Gap>,
    last_round_ns: i64,
    /// When history was last counted.
    counted_ns: i64,
}

/// Pause between two looks at the rules, nanoseconds.
const PAUSE_NS: i64 = 5 * SECOND_NS;

impl Retention {
    /// Apply the rules, a bounded part of them: from the housekeeper.
    ///
    /// # Errors
    /// [`Error::Database`]; rules that cannot be read forget nothing.
    pub(crate) fn round(&mut self, volume: &Volume) -> Result<()> {
        let now_ns = volume.clock().now_ns();
        if self.pending.is_empty() {
            let early = now_ns >= self.last_round_ns && now_ns - self.last_round_ns < PAUSE_NS;
            if early && !volume.is_hungry() {
                return Ok(());
            }
            self.last_round_ns = now_ns;
            let rules = volume.retention_rules()?;
            scheduled_snapshots(volume, &rules)?;
            let shed = if volume.is_hungry() {
                Shed::All
            } else if volume.is_tight() || self.is_over_budget(volume, &rules, now_ns)? {
                Shed::Half
            } else {
                Shed::Nothing
            };
            self.choose(volume, &rules, now_ns, shed)?;
        }
        self.forget(volume, ROUND_OPERATIONS)
    }

    /// Apply the rules to the end.
    pub(crate) fn apply(&mut self, volume: &Volume, shed: Shed) -> Result<()> {
        let rules = volume.retention_rules()?;
        self.choose(volume, &rules, volume.clock().now_ns(), shed)?;
        self.forget(volume, usize::MAX)
    }

    fn forget(&mut self, volume: &Volume, operations: usize) -> Result<()> {
        for _ in 0..operations {
            let Some(gap) = self.pending.last_mut() else { return Ok(()) };
            let _held = volume.gate();
            if volume.meta().with(|txn| txn.forget_gap(gap, BATCH))? {
                self.pending.pop();
            }
        }
        Ok(())
    }

    /// True if history takes more than its share. Found by marking, and not more often than once a minute.
    fn is_over_budget(&mut self, volume: &Volume, rules: &Rules, now_ns: i64) -> Result<bool> {
        let budget = volume.usable_total() / 100 * u64::from(rules.budget_percent);
        // All that is stored, history among it, takes no more than history may: nothing to count.
        if volume.meta().counters().stored_bytes <= budget || now_ns - self.counted_ns < MINUTE as i64 * SECOND_NS {
            return Ok(false);
        }
        self.counted_ns = now_ns;
        let state = volume.meta().reader()?;
        let (history, _) = state.only_in_history()?;
        Ok(state.sealed_bytes(&history)? > budget)
    }

    fn choose(&mut self, volume: &Volume, rules: &Rules, now_ns: i64, shed: Shed) -> Result<()> {
        let swept = self.swept;
        let _held = volume.gate();
        let pending = volume.meta().with(|txn| {
            let rows = txn.generation_rows(ROUND_GENERATIONS)?;
            let below = txn.kept_below()?;
            let named: Vec<Generation> = txn.snapshots()?.iter().map(|row| row.generation).collect();
            let mut pinned = named.clone();
            pinned.extend(volume.pinned_generations());
            pinned.sort_unstable();
            pinned.dedup();
            let all: BTreeSet<Generation> =
                rows.iter().map(|row| row.generation).chain(below.iter().map(|state| state.generation)).collect();
            let loose: Vec<Generation> = all.into_iter().filter(|it| pinned.binary_search(it).is_err()).collect();
            let cutoff = match shed {
                Shed::Nothing => None,
                Shed::Half => loose.get(loose.len().div_ceil(2)).copied(),
                Shed::All => loose.last().copied(),
            };
            let cutoff = cutoff.unwrap_or_default();
            let runs = gaps(rules, now_ns, &rows, &pinned, cutoff);
            let gone: BTreeSet<Generation> = runs.iter().flat_map(|run| run.rows.iter().copied()).collect();
            let given_up = keep_for_directories(txn, now_ns, &rows, &gone, &below, &pinned, cutoff)?;
            for generation in &gone {
                // No longer readable from here on; the rows follow, in this operation and the next ones.
                txn.forget_generation(*generation)?;
            }
            let stays = rows.iter().map(|row| row.generation).filter(|it| !gone.contains(it));
            let mut left: Vec<Generation> = stays.chain(named).collect();
            left.sort_unstable();
            left.dedup();
            if !swept {
                let bounds = std::iter::once(Generation(0)).chain(left.iter().copied());
                return Ok(bounds.zip(left.iter().copied()).map(|(after, until)| Gap::new(after, until)).collect());
            }
            let mut found: BTreeSet<(Generation, Generation)> = runs.iter().map(|run| (run.after, run.until)).collect();
            // What was kept for a directory until now lies between two that are kept whole.
            left.insert(0, Generation(0));
            for generation in given_up {
                let behind = left.partition_point(|it| *it < generation);
                if let (Some(after), Some(until)) = (left.get(behind.wrapping_sub(1)), left.get(behind)) {
                    found.insert((*after, *until));
                }
            }
            Ok(found.into_iter().map(|(after, until)| Gap::new(after, until)).collect())
        })?;
        self.swept = true;
        self.pending = pending;
        Ok(())
    }
}

/// Keep for directories what their rules want of the generations in `gone`, and give up what they no longer want of
/// those `below`. Returns the latter.
fn keep_for_directories(
    txn: &mut Txn<'_>,
    now_ns: i64,
    rows: &[GenerationRow],
    gone: &BTreeSet<Generation>,
    below: &[KeptBelow],
    pinned: &[Generation],
    cutoff: Generation,
) -> Result<Vec<Generation>> {
    let mut of: BTreeMap<Ino, Vec<&KeptBelow>> = BTreeMap::new();
    below.iter().for_each(|state| of.entry(state.dir).or_default().push(state));
    let mut given_up = Vec::new();
    for (dir, rules) in directory::all(txn)? {
        let own = of.remove(&dir).unwrap_or_default();
        let mut states = rows.to_vec();
        states.extend(own.iter().map(|state| GenerationRow { generation: state.generation, time_ns: state.time_ns }));
        states.sort_unstable_by_key(|row| row.generation);
        states.dedup_by_key(|row| row.generation);
        let runs = gaps(&rules, now_ns, &states, pinned, cutoff);
        let unwanted: BTreeSet<Generation> = runs.into_iter().flat_map(|run| run.rows).collect();
        for row in rows.iter().filter(|row| gone.contains(&row.generation) && !unwanted.contains(&row.generation)) {
            // Before it was made there is nothing to keep.
            if txn.inode_at(dir, row.generation)?.is_some() {
                txn.keep_below(KeptBelow { dir, generation: row.generation, time_ns: row.time_ns })?;
            }
        }
        for state in own.into_iter().filter(|state| unwanted.contains(&state.generation)) {
            txn.give_up_below(*state)?;
            given_up.push(state.generation);
        }
    }
    // Those of directories that have no rules any more.
    let pinned = |state: &&KeptBelow| pinned.binary_search(&state.generation).is_ok();
    for state in of.into_values().flatten().filter(|state| !pinned(state)) {
        txn.give_up_below(*state)?;
        given_up.push(state.generation);
    }
    Ok(given_up)
}
