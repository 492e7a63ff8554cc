//! What was found damaged: counted, remembered for `status`, queued for healing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::ids::{BlockId, Ino, SegmentId};

/// Events remembered for `status`.
const RECENT_MAX: usize = 64;
/// Stripes queued for healing at most; scrub finds the others again.
const QUEUE_MAX: usize = 1 << 16;

/// One thing found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageEvent {
    /// The file that was being read, if known.
    pub ino: Option<Ino>,
    /// The block.
    pub block: BlockId,
    /// What was wrong, in words.
    pub what: String,
    /// False if bytes are lost.
    pub recoverable: bool,
}

/// Counts since the volume was opened.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct DamageFigures {
    /// Shards that were missing or wrong when read.
    pub shards_bad: u64,
    /// Shards written anew.
    pub shards_repaired: u64,
    /// Blocks that could not be read.
    pub blocks_lost: u64,
}

/// The record of damage of an open volume.
#[derive(Debug, Default)]
pub struct Damage {
    shards_bad: AtomicU64,
    shards_repaired: AtomicU64,
    blocks_lost: AtomicU64,
    /// Slots found missing or wrong, by stripe, until they are written anew.
    bad: Mutex<HashMap<(SegmentId, u64), u64>>,
    recent: Mutex<VecDeque<DamageEvent>>,
    queue: Mutex<HashSet<(SegmentId, u64)>>,
    lost: Mutex<HashSet<BlockId>>,
}

impl Damage {
    /// The shards in these `slots` of the stripe at (`segment`, `offset`) are missing or wrong: counted once, however
    /// often they are met.
    pub fn bad(&self, slots: u64, segment: SegmentId, offset: u64) {
        let mut bad = self.bad.lock();
        let known = bad.get(&(segment, offset)).copied().unwrap_or(0);
        if slots & !known == 0 || (known == 0 && bad.len() >= QUEUE_MAX) {
            return;
        }
        bad.insert((segment, offset), known | slots);
        self.shards_bad.fetch_add(u64::from((slots & !known).count_ones()), Ordering::Relaxed);
    }

    /// As [`Self::bad`], where a block could be made of the others: the stripe is to be healed.
    pub fn degraded(&self, event: DamageEvent, slots: u64, segment: SegmentId, offset: u64) {
        self.bad(slots, segment, offset);
        let mut queue = self.queue.lock();
        // Told once a stripe: the next readers of it would only repeat it.
        if queue.len() < QUEUE_MAX && queue.insert((segment, offset)) {
            drop(queue);
            self.remember(event);
        }
    }

    /// A block could not be read.
    pub fn lost(&self, event: DamageEvent) {
        if self.lost.lock().insert(event.block) {
            self.blocks_lost.fetch_add(1, Ordering::Relaxed);
        }
        self.remember(event);
    }

    /// True if reads found blocks lost that were not stored again since.
    pub fn has_lost(&self) -> bool {
        !self.lost.lock().is_empty()
    }

    /// A block that was lost is stored again.
    pub fn found(&self, id: &BlockId) {
        if self.lost.lock().remove(id) {
            self.blocks_lost.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The shards in these `slots` of a stripe were written anew.
    pub fn repaired(&self, slots: u64, segment: SegmentId, offset: u64) {
        let mut bad = self.bad.lock();
        if let Some(left) = bad.get_mut(&(segment, offset)) {
            *left &= !slots;
            if *left == 0 {
                bad.remove(&(segment, offset));
            }
        }
        self.shards_repaired.fetch_add(u64::from(slots.count_ones()), Ordering::Relaxed);
    }

    /// Nothing that counts lies in this stripe any more.
    pub fn gone(&self, segment: SegmentId, offset: u64) {
        self.bad.lock().remove(&(segment, offset));
    }

    /// Shards that were found missing or wrong and are not written anew yet.
    pub fn outstanding(&self) -> u64 {
        self.bad.lock().values().map(|slots| u64::from(slots.count_ones())).sum()
    }

    fn remember(&self, event: DamageEvent) {
        let mut recent = self.recent.lock();
        if recent.iter().any(|seen| *seen == event) {
            return;
        }
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(event);
    }

    /// Stripes waiting to be healed, and forget them.
    pub fn take_queue(&self) -> Vec<(SegmentId, u64)> {
        std::mem::take(&mut *self.queue.lock()).into_iter().collect()
    }

    /// Number of stripes waiting to be healed.
    pub fn queued(&self) -> usize {
        self.queue.lock().len()
    }

    /// The last events, oldest first.
    pub fn recent(&self) -> Vec<DamageEvent> {
        self.recent.lock().iter().cloned().collect()
    }

    /// Counts.
    pub fn figures(&self) -> DamageFigures {
        DamageFigures {
            shards_bad: self.shards_bad.load(Ordering::Relaxed),
            shards_repaired: self.shards_repaired.load(Ordering::Relaxed),
            blocks_lost: self.blocks_lost.load(Ordering::Relaxed),
        }
    }
}
