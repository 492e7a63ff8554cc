//! Finding commit records in segment files, and opening them, on all processors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Reader;
use crate::ids::{Generation, SegmentId};
use crate::record::{ChainHash, CommitRecord};
use crate::shard::CommitHeader;
use crate::stripes::{SegmentInfo, StripePlace};

/// Row changes kept in memory between reading the log and replaying it, bytes; what is beyond is read twice.
pub(super) const KEPT_BYTES_MAX: usize = 192 << 20;

/// One part of a commit record, where it was found.
#[derive(Clone)]
pub(super) struct FoundPart {
    pub(super) header: CommitHeader,
    /// Tells records of one term and generation apart: the second was written after the first failed.
    pub(super) tag: [u8; 32],
    pub(super) place: StripePlace,
    pub(super) info: Arc<SegmentInfo>,
}

/// Where a scan begins in each segment, bytes.
pub type Starts = BTreeMap<SegmentId, u64>;

/// What a scan found.
pub(super) struct Scan {
    /// Parts of records of the generations wanted.
    pub(super) parts: Vec<FoundPart>,
}

impl Reader<'_> {
    /// All segments present in any directory.
    pub(super) fn segments(&self) -> BTreeSet<SegmentId> {
        let members = self.stripes.set().members().iter().filter(|member| member.can_read());
        members.filter_map(|member| member.list_segments().ok()).flatten().map(|(id, _)| id).collect()
    }

    /// Commit records of `from` and later generations.
    pub(super) fn scan(&self, from: Generation, starts: &Starts) -> Scan {
        let starts: Vec<(SegmentId, u64)> = starts.iter().map(|(id, at)| (*id, *at)).collect();
        let done = AtomicUsize::new(0);
        let parts = on_threads(&starts, |&(segment, offset)| {
            (self.report)("reading the commit log", done.load(Ordering::Relaxed) as u64, starts.len() as u64);
            // An announced segment without records proves nothing.
            let mut found = Vec::new();
            for info in self.stripes.segment_infos(segment).into_iter().map(Arc::new) {
                for (place, header) in self.stripes.records(segment, offset, &info) {
                    let Some(commit) = header.commit.filter(|commit| commit.generation >= from) else { continue };
                    found.push(FoundPart { header: commit, tag: header.stripe_tag, place, info: info.clone() });
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
            found
        });
        Scan { parts: parts.into_iter().flatten().collect() }
    }

    /// A part, opened, with its chain hash. `None` if its shards do not give it back.
    pub(super) fn open_part(&self, part: &FoundPart) -> Option<(CommitRecord, ChainHash)> {
        let (_, mut message) = self.stripes.message(part.place, &part.info)?;
        CommitRecord::open(self.keys.log_key(), self.keys.volume(), &part.header, &mut message).ok()
    }

    /// A part's message as it lies on the log.
    pub(super) fn message(&self, part: &FoundPart) -> Option<Vec<u8>> {
        self.stripes.message(part.place, &part.info).map(|(_, message)| message)
    }
}

/// `work` on each item, on as many threads as there are processors; results in the order of the items.
pub(super) fn on_threads<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8).min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new((0..items.len()).map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    results.lock()[at] = Some(result);
                }
            });
        }
    });
    results.into_inner().into_iter().flatten().collect()
}
