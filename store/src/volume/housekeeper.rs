//! The housekeeper: the thread that does what nobody waits for, round after round, and the order it does it in.
//!
//! Promises: it ends when the volume is dropped or told to; a round that fails is logged, and the next begins as usual.
//! Knows nothing of when a thing is due: each says so itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Volume;
use crate::error::{Error, Result};

/// The thread that does what nobody waits for: retiring extents, healing queued stripes, folding the database's log.
#[derive(Debug)]
pub(super) struct Housekeeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

/// Pause between rounds of housekeeping.
const ROUND: Duration = Duration::from_millis(500);

impl Housekeeper {
    pub(super) fn start(volume: &Arc<Volume>) -> Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let weak = Arc::downgrade(volume);
        let signal = stop.clone();
        let thread = std::thread::Builder::new()
            .name("housekeeper".into())
            .spawn(move || {
                loop {
                    {
                        let mut stopped = signal.0.lock();
                        if !*stopped {
                            signal.1.wait_for(&mut stopped, ROUND);
                        }
                        if *stopped {
                            return;
                        }
                    }
                    let Some(volume) = weak.upgrade() else { return };
                    if let Err(error) = volume.housekeeping() {
                        log::warn!("housekeeping: {error}");
                    }
                }
            })
            .map_err(|source| Error::io("starting the housekeeping thread", source))?;
        Ok(Self { stop, thread })
    }

    /// Begin the next round now.
    pub(super) fn wake(&self) {
        self.stop.1.notify_all();
    }

    pub(super) fn stop(self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        // The thread itself may hold the last reference to the volume.
        if self.thread.thread().id() != std::thread::current().id() {
            let _ = self.thread.join();
        }
    }
}

impl Volume {
    fn housekeeping(&self) -> Result<()> {
        self.meta.checkpoint_wal()?;
        if self.writable().is_err() {
            return Ok(());
        }
        let looked = self.fence.check_if_due();
        if self.fenced().is_some() {
            return Ok(());
        }
        looked?;
        self.move_what_missed_a_sync()?;
        self.unlocked.lock().retain(|id| self.set.get(id).is_some_and(|member| member.lock().is_err()));
        self.checkpoint_if_due()?;
        match self.fold_due(false) {
            // What follows may make some.
            Err(Error::NoSpace) => log::debug!("no room to fold small writes"),
            folded => folded?,
        }
        self.blocks.segments().widen();
        self.catch_up()?;
        while self.retire_some()? {}
        self.count_quotas()?;
        self.heal_queued()?;
        self.retention_round()?;
        self.gc_round()
    }

    /// Write the shards anew that readers found missing or wrong, where their directories can take them.
    fn heal_queued(&self) -> Result<()> {
        let queue = self.blocks.damage().take_queue();
        let mut unsynced = BTreeSet::new();
        for (segment, offset) in queue {
            let Some(row) = self.meta.with(|txn| txn.blocks_of_stripe(segment, offset))?.into_iter().next() else {
                self.blocks.damage().gone(segment, offset);
                continue;
            };
            self.blocks.heal_stripe(crate::blocks::place_of(&row), Some(self.identity()), &mut unsynced)?;
        }
        self.blocks.sync_healed(&mut unsynced)
    }
}
