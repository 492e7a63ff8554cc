//! Space given back: blocks that nothing names are condemned, ranges of segments that hold nothing alive are punched,
//! segments that are mostly dead are rewritten, empty ones deleted (R17, R18).
//!
//! What is dead stays dead: nothing comes to life again in a closed segment once it is condemned or no row tells of
//! it. So gc goes in two steps. It plans (what of a segment is dead, and as of which generation), and frees what was
//! planned once both kept checkpoints are past that generation and published in m+1 superblocks: no state that any
//! recovery could lead to needs it then. Plans live in memory only; after a kill they are made anew, and whatever was
//! done twice changes nothing.
//!
//! Promises: nothing is freed that a durable state needs; an error while finding out what is alive stops deletion, not
//! the volume. Knows segments and rows, not files.

#[cfg(test)]
mod model;
mod plan;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::Result;
use crate::ids::{Generation, MemberId, SegmentId};
use crate::meta::rows::BlockState;
use crate::volume::Volume;

pub(crate) use plan::Images;
use plan::Plan;

/// Blocks condemned or forgotten in one operation, so that no writer waits long.
const BATCH: usize = 1000;
/// How long a reader or writer that began before may take to finish. Else gc waits for the next round.
const PATIENCE: Duration = Duration::from_secs(2);
/// Extents or blocks looked at in one slice of the audit: two milliseconds or so.
const AUDIT_ROWS: usize = 1000;
/// Background: time spent in the audit in one round of housekeeping.
const AUDIT_ROUND: Duration = Duration::from_millis(500);
/// Background: the least pause between two collections.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Background: however little there is to free, it is looked for after so long.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Background: so long an unreferenced block waits for a duplicate that revives it.
const GRACE: Duration = Duration::from_secs(8);
/// Background: a collection begins early when so many sealed bytes are dead.
const DEAD_BYTES_MIN: u64 = 16 << 20;
/// Background: pause after a collection, in multiples of the time that its planning and its checkpoints took.
const REST: u32 = 10;
/// Background: with more sealed bytes dead than this the pause is the shorter, the more there are.
const REST_BYTES: u64 = 64 << 20;
/// Background: nor is it long after a collection that left a larger part than this of what the volume takes to the next:
/// the log of much that was removed.
const REST_PART: f64 = 0.125;
/// Background: time spent freeing in one round of housekeeping.
const ROUND: Duration = Duration::from_millis(150);

/// On request, and when space is tight: the open segment is closed when so much of each of its files is dead, bytes.
const OPEN_DEAD_MIN: u64 = 64 << 10;
/// The same in the background.
const OPEN_DEAD_BACKGROUND: u64 = 4 << 20;

/// How a collection is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcOptions {
    /// Find out what could be freed, and free nothing.
    pub dry_run: bool,
}

/// What a collection did. Fields are documented in docs/CLI.md and only ever added to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Blocks that were found unreferenced and condemned.
    pub blocks_condemned: u64,
    /// Rows of condemned blocks that were forgotten.
    pub blocks_freed: u64,
    /// Sealed bytes copied out of segments that were mostly dead.
    pub bytes_moved: u64,
    /// Segments that were emptied by that.
    pub segments_rewritten: u64,
    /// Segments whose files were removed.
    pub segments_deleted: u64,
    /// Bytes given back on the devices of all directories.
    pub freed_bytes: u64,
    /// Bytes on all devices that hold nothing alive and are not freed yet.
    pub reclaimable_bytes: u64,
    /// Why deletion was stopped, or what could not be freed.
    pub problems: Vec<String>,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// How far the collection in the background is.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing to do before then.
    Resting { since: Instant },
    /// References are being counted.
    Auditing,
    /// Unreferenced blocks are being condemned.
    Condemning,
    /// Waiting until both checkpoints are past this generation.
    Waiting { past: Generation, asked: Option<Generation> },
    /// Freeing what was planned.
    Freeing,
}

/// What gc remembers of an open volume.
#[derive(Debug)]
pub(crate) struct Gc {
    plans: BTreeMap<SegmentId, Plan>,
    images: Option<Images>,
    /// Members whose filesystem cannot punch holes.
    no_punch: BTreeSet<MemberId>,
    /// Something is wrong with the metadata: nothing is freed any more while the volume is open.
    stopped: Option<String>,
    phase: Phase,
    /// When which generation was the newest, ascending.
    marks: VecDeque<(Instant, Generation)>,
    /// Blocks unreferenced since then or longer may be condemned: a duplicate had time to revive them.
    grace: Generation,
    /// What planning and checkpoints of the running collection took.
    worked: Duration,
    /// Part of what the volume takes in the directories that it left to the next collection.
    left: f64,
    /// The state that the last collection began with: while it is the newest there is nothing to do.
    seen: Option<Generation>,
    audited: bool,
    /// The running collection condemned blocks: what it frees is not the log alone.
    condemned: bool,
    /// Steps until one fails as if the process were killed there.
    #[cfg(test)]
    pub(crate) killed_after: Option<u64>,
}

impl Gc {
    /// Of a volume just opened in the state of `committed`.
    pub fn new(committed: Generation) -> Self {
        let now = Instant::now();
        Self {
            plans: BTreeMap::new(),
            images: None,
            no_punch: BTreeSet::new(),
            stopped: None,
            phase: Phase::Resting { since: now },
            marks: VecDeque::from([(now, committed)]),
            grace: committed,
            worked: Duration::ZERO,
            left: 0.0,
            seen: None,
            audited: false,
            condemned: false,
            #[cfg(test)]
            killed_after: None,
        }
    }

    /// A place where a kill is tried by the tests: between any two steps that leave something behind.
    fn step_done(&mut self) -> Result<()> {
        #[cfg(test)]
        if let Some(left) = &mut self.killed_after {
            if *left == 0 {
                return Err(crate::Error::Refused("killed here".into()));
            }
            *left -= 1;
        }
        Ok(())
    }

    /// Why nothing is freed any more.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    fn stop(&mut self, reason: String, report: &mut GcReport) {
        log::error!("gc is stopped: {reason}");
        report.problems.push(reason.clone());
        self.plans.clear();
        self.stopped = Some(reason);
    }

    /// Check by marking that every block has as many references as it says, once while the volume is open; for about
    /// `budget`. True when that is done. `hungry`: writers wait for it.
    fn audit(&mut self, volume: &Volume, budget: Duration, hungry: bool, report: &mut GcReport) -> Result<bool> {
        let began = Instant::now();
        while !self.audited && self.stopped.is_none() {
            let slice = Instant::now();
            if let Some(findings) = volume.meta().audit(AUDIT_ROWS)? {
                self.audited = true;
                if let Some(first) = findings.first() {
                    self.stop(format!("references do not add up ({first}); run `brine check`"), report);
                }
                break;
            }
            if began.elapsed() >= budget {
                return Ok(false);
            }
            // Operations get their turn.
            if !hungry {
                std::thread::sleep(slice.elapsed());
            }
        }
        Ok(true)
    }

    /// Condemn up to `max` blocks that have been unreferenced since `since` or longer. Returns how many.
    fn condemn(&mut self, volume: &Volume, since: Generation, max: usize, report: &mut GcReport) -> Result<usize> {
        let mut done = 0;
        while done < max {
            let _held = volume.gate();
            let (found, condemned) = volume.meta().with(|txn| {
                let dead = txn.dead_blocks(BlockState::Zero, since, BATCH)?;
                let mut condemned = 0;
                for block in &dead {
                    condemned += u64::from(txn.condemn_block(&block.id)?);
                }
                Ok((dead.len(), condemned))
            })?;
            report.blocks_condemned += condemned;
            self.step_done()?;
            done += found;
            if found < BATCH || condemned == 0 {
                break;
            }
        }
        Ok(done)
    }

    /// Forget the rows of blocks condemned in a generation that both checkpoints are past: what no row tells of is as
    /// dead as what is condemned.
    fn forget(&mut self, volume: &Volume, floor: Generation, report: &mut GcReport) -> Result<()> {
        loop {
            let _held = volume.gate();
            let forgotten = volume.meta().with(|txn| {
                let dead = txn.dead_blocks(BlockState::Condemned, floor, BATCH)?;
                for block in &dead {
                    txn.free_block(&block.id)?;
                }
                Ok(dead.len())
            })?;
            report.blocks_freed += forgotten as u64;
            self.step_done()?;
            if forgotten < BATCH {
                return Ok(());
            }
        }
    }

    /// One collection, from beginning to end. `commit` closes a generation and makes it durable.
    pub fn collect(
        &mut self,
        volume: &Volume,
        options: GcOptions,
        commit: &dyn Fn() -> Result<Generation>,
        step: &dyn Fn(&str, u64, u64) -> bool,
    ) -> Result<GcReport> {
        let mut report = GcReport { dry_run: options.dry_run, ..GcReport::default() };
        if options.dry_run {
            report.reclaimable_bytes = volume.taken()?.reclaimable_bytes;
            return Ok(report);
        }
        commit()?;
        step("references", 0, 0);
        self.audit(volume, Duration::MAX, false, &mut report)?;
        // What is rewritten in one pass is freed in the next, and so is the log of this one.
        for pass in 0..PASSES_MAX {
            if self.stopped.is_some() {
                break;
            }
            self.condemn(volume, volume.meta().committed(), usize::MAX, &mut report)?;
            volume.close_wasteful_segment(OPEN_DEAD_MIN)?;
            commit()?;
            let moved = self.rewrite_all(volume, u64::MAX, &mut report)?;
            let planned = self.plan_all(volume, true, &mut report)?;
            if planned == 0 && moved == 0 && pass > 0 {
                break;
            }
            let past = self.plans.values().map(|plan| plan.noted).max().unwrap_or(volume.meta().committed());
            for _ in 0..CHECKPOINTS_TRIED {
                if volume.floor().is_some_and(|floor| floor >= past) {
                    break;
                }
                step("checkpoint", 0, 0);
                volume.note_collection()?;
                commit()?;
                self.step_done()?;
                volume.checkpoint()?;
                self.step_done()?;
            }
            let total = self.plans.len() as u64;
            while !self.plans.is_empty() {
                let done = total - self.plans.len() as u64;
                if !step("freeing", done, total) || !self.sweep(volume, ROUND, &mut report)? {
                    break;
                }
            }
            if let Some(floor) = volume.floor()
                && self.stopped.is_none()
            {
                self.forget(volume, floor, &mut report)?;
            }
            commit()?;
        }
        self.plans.clear();
        report.reclaimable_bytes = volume.taken()?.reclaimable_bytes;
        if let Some(reason) = &self.stopped
            && !report.problems.contains(reason)
        {
            report.problems.push(reason.clone());
        }
        Ok(report)
    }

    /// A little of a collection, from the housekeeper. Generations are closed by whoever else closes them.
    /// `pressed`: space is tight; `hungry`: writers wait for it.
    pub fn round(&mut self, volume: &Volume, pressed: bool, hungry: bool) -> Result<()> {
        let pressed = pressed || hungry;
        self.mark(volume.meta().committed());
        if self.stopped.is_some() {
            return Ok(());
        }
        let mut report = GcReport::default();
        match self.phase {
            Phase::Resting { since } => {
                let now = Instant::now();
                let counters = volume.meta().counters();
                let worth = pressed || counters.dead_bytes >= DEAD_BYTES_MIN;
                let committed = volume.meta().committed();
                let changed = self.seen != Some(committed) || counters.dead_blocks > 0;
                let until = since + pause(self.worked, counters.dead_bytes, self.left);
                // Who waits for space is told that there is none once a collection found none.
                if (hungry || changed && now >= until) && (worth || now >= since + PAUSE_MAX) {
                    self.seen = Some(committed);
                    self.worked = Duration::ZERO;
                    self.condemned = false;
                    self.phase = Phase::Auditing;
                }
            }
            Phase::Auditing => {
                if self.audit(volume, AUDIT_ROUND, hungry, &mut report)? {
                    self.phase = Phase::Condemning;
                }
            }
            Phase::Condemning => {
                // Who waits for space now does not wait for duplicates that might come.
                let since = if hungry { volume.meta().committed() } else { self.grace };
                let condemned = self.condemn(volume, since, 20 * BATCH, &mut report)?;
                self.condemned |= condemned > 0;
                if condemned >= 20 * BATCH {
                    return Ok(());
                }
                let began = Instant::now();
                volume.close_wasteful_segment(if pressed { OPEN_DEAD_MIN } else { OPEN_DEAD_BACKGROUND })?;
                let moved = self.rewrite_all(volume, 16 << 20, &mut report)?;
                let planned = self.plan_all(volume, pressed, &mut report)?;
                self.worked += began.elapsed();
                let past = self.plans.values().map(|plan| plan.noted).max();
                self.phase = match past {
                    Some(past) => Phase::Waiting { past, asked: None },
                    None => {
                        self.left = 0.0;
                        volume.note_collected();
                        Phase::Resting { since: Instant::now() }
                    }
                };
                log::debug!("gc: {planned} bytes to free, {moved} moved");
            }
            Phase::Waiting { past, asked } => {
                if volume.floor().is_some_and(|floor| floor >= past) {
                    self.phase = Phase::Freeing;
                    return Ok(());
                }
                let committed = volume.meta().committed();
                let newest = volume.newest_checkpoint();
                if committed >= past && newest.is_none_or(|newest| newest < committed) {
                    let began = Instant::now();
                    volume.checkpoint()?;
                    self.worked += began.elapsed();
                } else if asked != Some(committed) {
                    // A generation closes only if something changed.
                    volume.note_collection()?;
                    self.phase = Phase::Waiting { past, asked: Some(committed) };
                }
            }
            Phase::Freeing => {
                let going = self.sweep(volume, ROUND, &mut report)?;
                volume.space_was_freed();
                if self.condemned {
                    volume.note_given_back(report.freed_bytes);
                }
                if self.plans.is_empty() || !going {
                    if let Some(floor) = volume.floor()
                        && self.stopped.is_none()
                    {
                        self.forget(volume, floor, &mut report)?;
                    }
                    self.plans.clear();
                    volume.space_was_freed();
                    volume.note_collected();
                    let began = Instant::now();
                    let taken = volume.taken()?;
                    self.left = taken.reclaimable_bytes as f64 / taken.bytes.max(1) as f64;
                    self.worked += began.elapsed();
                    self.phase = Phase::Resting { since: Instant::now() };
                }
            }
        }
        if report != GcReport::default() {
            log::debug!("gc: {report:?}");
        }
        Ok(())
    }

    /// Note the newest generation, and what was the newest a while ago.
    fn mark(&mut self, committed: Generation) {
        let now = Instant::now();
        if self.marks.back().is_none_or(|(_, newest)| *newest < committed) {
            self.marks.push_back((now, committed));
        }
        while let Some((at, generation)) = self.marks.front()
            && now.duration_since(*at) >= GRACE
        {
            self.grace = *generation;
            self.marks.pop_front();
        }
    }
}

/// How long to rest after `worked`, with `dead` sealed bytes to free and the part `left` of what the volume takes: however
/// large it is, all this takes a tenth of one processor at most, but for what it gives back.
fn pause(worked: Duration, dead: u64, left: f64) -> Duration {
    let share = REST_BYTES as f64 / dead.max(REST_BYTES) as f64;
    let share = share.min(REST_PART / left.max(REST_PART));
    (worked * REST).mul_f64(share).max(PAUSE_MIN)
}

/// Passes of one collection at most.
const PASSES_MAX: usize = 4;
/// Checkpoints asked for at most, until both are past what was planned.
const CHECKPOINTS_TRIED: usize = 4;
