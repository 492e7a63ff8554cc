//! Freeing what was planned: holes are punched, files removed.

use std::io;
use std::time::{Duration, Instant};

use super::plan::{Plan, live_stripes};
use super::{BATCH, Gc, GcReport};
use crate::error::Result;
use crate::ids::SegmentId;
use crate::meta::rows::{BlockState, SegmentRow, SegmentState};
use crate::volume::Volume;

impl Gc {
    /// Carry out plans whose time has come, for about `budget`. False if none can be carried out now.
    pub(super) fn sweep(&mut self, volume: &Volume, budget: Duration, report: &mut GcReport) -> Result<bool> {
        let began = Instant::now();
        // Whoever verifies all stripes must not find them gone.
        let Some(_alone) = volume.try_maintenance() else { return Ok(false) };
        // A power cut must not take the local database back to where it needs records that are freed here.
        volume.meta().sync()?;
        while let Some((&segment, plan)) = self.plans.first_key_value() {
            // Another writer may have taken the volume over.
            if volume.is_read_only().is_some() {
                return Ok(false);
            }
            if volume.floor().is_none_or(|floor| floor < plan.noted) {
                return Ok(false);
            }
            let plan = plan.clone();
            // No image is being written meanwhile: its blocks would be told of by nothing.
            let images = volume.hold_images();
            let row = volume.meta().with(|txn| txn.segment(segment))?;
            if self.images.as_ref().is_none_or(|known| !volume.is_of_kept_images(&known.of)) {
                // Another checkpoint came: it shares the blocks of the one before, and lies in later segments else. What
                // was planned is dead all the same, but its places are wanted for the check below.
                self.images = Some(volume.image_stripes(self.images.take())?);
            }
            if let Err(reason) = self.still_dead(volume, segment, &plan)? {
                self.stop(reason, report);
                return Ok(false);
            }
            match row {
                Some(row) if plan.whole => self.delete(volume, &row, report)?,
                Some(row) => self.punch(volume, &row, &plan, report)?,
                None => {}
            }
            drop(images);
            self.plans.remove(&segment);
            if began.elapsed() >= budget {
                break;
            }
        }
        Ok(true)
    }

    /// What was dead must have stayed so: anything else is a defect, and nothing may be freed any more.
    fn still_dead(&self, volume: &Volume, segment: SegmentId, plan: &Plan) -> Result<Result<(), String>> {
        let (mut live, _) = live_stripes(volume, segment)?;
        live.extend(self.images.iter().flat_map(|images| images.stripes.get(&segment)).flatten());
        let met = |&&(offset, len): &&(u64, u64)| {
            plan.whole || plan.dead.iter().any(|&(start, end)| offset < end && start < offset + len)
        };
        Ok(match live.iter().find(met) {
            None => Ok(()),
            Some((offset, _)) => Err(format!(
                "the stripe at {offset} of segment {segment} is in use though it was found dead; run `brine check` and \
                 report this as a defect"
            )),
        })
    }

    fn punch(&mut self, volume: &Volume, row: &SegmentRow, plan: &Plan, report: &mut GcReport) -> Result<()> {
        for id in row.slots.iter().flatten() {
            let Some(member) = volume.members().get(id).filter(|member| member.can_write()) else { continue };
            if self.no_punch.contains(id) {
                continue;
            }
            let before = member.allocated(row.id).unwrap_or(0);
            member.finish_segment(row.id);
            for &(start, end) in &plan.dead {
                match member.punch_segment(row.id, start, end - start) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        log::info!(
                            "{}: holes cannot be punched; segments are rewritten instead",
                            member.path().display()
                        );
                        self.no_punch.insert(*id);
                        break;
                    }
                    Err(error) => {
                        report.problems.push(format!(
                            "{}: punching segment {}: {error}",
                            member.path().display(),
                            row.id
                        ));
                        break;
                    }
                }
            }
            report.freed_bytes += before.saturating_sub(member.allocated(row.id).unwrap_or(before));
            self.step_done()?;
        }
        Ok(())
    }

    /// Rows first, then files, then the segment's own row: cut off anywhere, the next collection goes on.
    fn delete(&mut self, volume: &Volume, row: &SegmentRow, report: &mut GcReport) -> Result<()> {
        let _held = volume.gate();
        loop {
            let left = volume.meta().with(|txn| {
                let page = txn.blocks_of_segment(row.id, 0, BATCH)?;
                for block in page.iter().filter(|block| block.state == BlockState::Condemned) {
                    txn.free_block(&block.id)?;
                }
                report.blocks_freed += page.len() as u64;
                Ok(page.len())
            })?;
            self.step_done()?;
            if left < BATCH {
                break;
            }
        }
        // One that still has a file somewhere is tried again and again, and is not to be news each time.
        if row.state != SegmentState::Condemned {
            volume.meta().with(|txn| txn.put_segment(&SegmentRow { state: SegmentState::Condemned, ..row.clone() }))?;
            self.step_done()?;
        }
        let mut all = true;
        for id in row.slots.iter().flatten() {
            let Some(member) = volume.members().get(id) else { continue };
            if !member.can_write() {
                all = false;
                continue;
            }
            let before = member.allocated(row.id).unwrap_or(0);
            match member.remove_segment(row.id) {
                Ok(()) => report.freed_bytes += before,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    all = false;
                    report.problems.push(format!("{}: removing segment {}: {error}", member.path().display(), row.id));
                }
            }
            self.step_done()?;
        }
        // A directory that is away still has its file: the row stays until that is gone, too.
        if all {
            volume.meta().with(|txn| txn.delete_segment(row.id))?;
            volume.blocks().forget_segment(row.id);
            report.segments_deleted += 1;
        }
        Ok(())
    }
}
