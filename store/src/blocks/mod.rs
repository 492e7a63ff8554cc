//! Put and get of sealed blocks: deduplication, packing into stripes, cache, degraded reads, healing of stripes.
//!
//! Promises: equal content under one salt is stored once, however many threads store it at once; a read returns the
//! right bytes or an error that names the block, never wrong bytes; what was found bad is counted and queued for
//! healing. Knows blocks and their rows, not files.

mod cache;
mod damage;
mod get;
mod heal;
mod log;
mod pack;
mod pins;
mod put;
mod relocate;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

pub use cache::{Cache, CacheFigures};
pub use damage::{Damage, DamageEvent, DamageFigures};
pub(crate) use get::place_of;
pub use heal::{Identity, Need, StripeHealth};
pub use log::AppendedCommit;
pub use pins::{Pin, Pins};
pub(crate) use put::close_segment;
pub use put::{Put, Stored};

use crate::backing::{BackingSet, DIRECT_ALIGN, Hedge};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ids::{BlockId, SegmentId, VolumeId};
use crate::meta::Meta;
use crate::meta::rows::SegmentRow;
use crate::seal::{Codec, Sealer};
use crate::segment::Segments;
use crate::stripes::{SegmentInfo, Stripes};

/// One chunk's plaintext, read or about to be.
#[derive(Debug)]
pub struct Chunk {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Chunk {
    /// The whole of `buffer`.
    pub fn whole(buffer: Vec<u8>) -> Self {
        let len = buffer.len();
        Self { buffer, start: 0, len }
    }

    /// `len` bytes of `buffer` from `start`.
    pub(crate) fn part(buffer: Vec<u8>, start: usize, len: usize) -> Self {
        debug_assert!(start + len <= buffer.len());
        Self { buffer, start, len }
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

/// Counters since the volume was opened.
#[derive(Debug, Default)]
pub struct BlockFigures {
    /// Chunks that were stored already.
    pub dedup_hits: AtomicU64,
    /// Chunks that were not.
    pub dedup_misses: AtomicU64,
    /// Blocks that were stored before they were written.
    pub stored_ahead: AtomicU64,
    /// Blocks that were read with parity because a data shard was missing, late or wrong.
    pub degraded_reads: AtomicU64,
}

/// The store of sealed blocks of one volume.
pub struct Blocks {
    set: Arc<BackingSet>,
    segments: Segments,
    sealer: Arc<Sealer>,
    header_mac: [u8; 32],
    volume: VolumeId,
    meta: Arc<Meta>,
    codec: Codec,
    hedge: Hedge,
    geometry: Geometry,
    stripes: Stripes,
    infos: RwLock<HashMap<SegmentId, Arc<SegmentInfo>>>,
    /// Segments that could not be caught up, and as of when.
    stuck: Mutex<HashMap<SegmentId, heal::Stuck>>,
    claimed: Mutex<HashSet<BlockId>>,
    unclaimed: Condvar,
    /// Stored ahead, and not put yet.
    ahead: Mutex<HashSet<BlockId>>,
    cache: Cache,
    damage: Damage,
    figures: BlockFigures,
    pins: Pins,
    arenas: Mutex<Vec<Vec<u8>>>,
    /// What records are padded with.
    zeroes: Arc<Vec<u8>>,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

/// Arenas kept for reuse: fresh pages are dearer than what is done with them.
const ARENAS_KEPT: usize = 8;

/// What [`Blocks::new`] needs besides the parts below it.
#[derive(Clone, Debug)]
pub struct BlocksConfig {
    /// How new blocks are compressed.
    pub codec: Codec,
    /// When parity is asked for.
    pub hedge: Hedge,
    /// Shards of new stripes.
    pub geometry: Geometry,
    /// Limit of the cache of decoded blocks, bytes.
    pub cache_bytes: u64,
    /// Key of header MACs.
    pub header_mac: [u8; 32],
    /// The volume, for record headers.
    pub volume: VolumeId,
}

impl Blocks {
    /// Over open segments and the metadata database.
    pub fn new(segments: Segments, sealer: Arc<Sealer>, meta: Arc<Meta>, config: BlocksConfig) -> Self {
        let stripes = Stripes::new(segments.set().clone(), config.volume, config.header_mac);
        Self {
            set: segments.set().clone(),
            segments,
            sealer,
            header_mac: config.header_mac,
            volume: config.volume,
            meta,
            codec: config.codec,
            hedge: config.hedge,
            geometry: config.geometry,
            stripes,
            infos: RwLock::default(),
            stuck: Mutex::default(),
            claimed: Mutex::default(),
            unclaimed: Condvar::new(),
            ahead: Mutex::default(),
            cache: Cache::new(config.cache_bytes),
            damage: Damage::default(),
            figures: BlockFigures::default(),
            pins: Pins::default(),
            arenas: Mutex::default(),
            zeroes: Arc::new(vec![0; DIRECT_ALIGN as usize]),
        }
    }

    /// The segments blocks are appended to.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The cache of decoded blocks.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What was found damaged.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Who uses blocks right now.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whole stripes.
    pub fn stripes(&self) -> &Stripes {
        &self.stripes
    }

    /// Counters.
    pub fn figures(&self) -> &BlockFigures {
        &self.figures
    }

    /// What a reader must know of `segment`; its row is read once. A slot that the row says is vacant may be taken:
    /// [`Self::placement`] knows.
    pub fn segment_info(&self, segment: SegmentId) -> Result<Arc<SegmentInfo>> {
        self.find_segment(segment)?.ok_or_else(|| {
            Error::format(
                format!("segment {segment}"),
                "neither the metadata nor a file of it tells what it is; run `brine check` on the volume",
            )
        })
    }

    /// [`Self::segment_info`]; `None` if there is neither a row nor a file that can be read.
    fn find_segment(&self, segment: SegmentId) -> Result<Option<Arc<SegmentInfo>>> {
        if let Some(info) = self.infos.read().get(&segment) {
            return Ok(Some(info.clone()));
        }
        let info = match self.meta.with(|txn| txn.segment(segment))? {
            Some(row) => info_of(row)?,
            // Opened for a record or a checkpoint by a writer that was cut off. Its own files tell.
            None => match self.stripes.segment_info(segment) {
                Some(info) => info,
                None => return Ok(None),
            },
        };
        let info = Arc::new(info);
        self.infos.write().insert(segment, info.clone());
        Ok(Some(info))
    }

    /// [`Self::segment_info`], with the slots that were given to a directory by a generation that a crash took back: the
    /// files of healthy directories tell of them. For who heals or counts, and for readers only where a block is lost
    /// otherwise: it asks the directories.
    pub fn placement(&self, segment: SegmentId) -> Result<Arc<SegmentInfo>> {
        Ok(self.with_files(segment, self.segment_info(segment)?))
    }

    fn with_files(&self, segment: SegmentId, info: Arc<SegmentInfo>) -> Arc<SegmentInfo> {
        if !info.slots.contains(&None) {
            return info;
        }
        let (told, all) = self.stripes.placement(segment, info.incarnation);
        let mut merged = SegmentInfo::clone(&info);
        merged.slots.iter_mut().zip(told).for_each(|(slot, other)| *slot = slot.or(other));
        let merged = Arc::new(merged);
        // A row that was replaced meanwhile knows better, and what not all of them told is asked again.
        if all && let Some(known) = self.infos.write().get_mut(&segment).filter(|known| Arc::ptr_eq(known, &info)) {
            *known = merged.clone();
        }
        merged
    }

    /// Forget what was known of a segment whose row changed.
    pub fn forget_segment(&self, segment: SegmentId) {
        self.infos.write().remove(&segment);
    }

    fn know_segment(&self, segment: SegmentId, info: SegmentInfo) {
        self.infos.write().insert(segment, Arc::new(info));
    }

    fn arena(&self) -> Vec<u8> {
        self.arenas.lock().pop().unwrap_or_default()
    }

    fn give_back(&self, mut arena: Vec<u8>) {
        arena.clear();
        let mut arenas = self.arenas.lock();
        if arenas.len() < ARENAS_KEPT {
            arenas.push(arena);
        }
    }

    /// As [`Self::give_back`], unless a directory that does not answer still has it.
    fn give_back_shared(&self, arena: Arc<Vec<u8>>) {
        if let Some(arena) = Arc::into_inner(arena) {
            self.give_back(arena);
        }
    }

    fn count(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }
}

fn info_of(row: SegmentRow) -> Result<SegmentInfo> {
    let geometry = Geometry::new(row.data, row.parity).filter(|g| g.total() == row.slots.len()).ok_or_else(|| {
        Error::format(
            format!("segment {}", row.id),
            format!("its row says {}+{} shards in {} slots", row.data, row.parity, row.slots.len()),
        )
    })?;
    Ok(SegmentInfo { incarnation: row.incarnation, geometry, slots: row.slots, capacity: row.capacity })
}
