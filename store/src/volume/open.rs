//! Opening a volume: keys, members, locks, term and database, in this order, and the first acts of a writer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::time::Duration;

use parking_lot::Mutex;

use super::database::database;
use super::image::LastImage;
use super::members::{Members, lock_members, members, unlock};
use super::probe::{Discovery, discover};
use super::space::Space;
use super::state_dir::{make_state_dir, state_dir_of};
use super::superblocks::{Superblocks, host_name};
use super::{DomainPolicy, Housekeeper, Policy, Prefetcher, Volume};
use crate::backing::{BackingSet, Directories, Hedge, RealDirectories, Wait};
use crate::blocks::{Blocks, BlocksConfig};
use crate::clock::{Clock, Entropy, OsEntropy, SystemClock};
use crate::commit::Commit;
use crate::commit_log::CommitLog;
use crate::error::{Error, Result};
use crate::fence::{self, Claimant, FenceWatch};
use crate::gc::Gc;
use crate::ids::{Generation, SegmentId};
use crate::keyslot::Unlock;
use crate::lock::LocalLock;
use crate::meta::rows::{SegmentRow, SegmentState, Shelf};
use crate::meta::{Meta, Setup};
use crate::recover::{self, Again, Reader, Recovered};
use crate::seal::{Codec, Sealer, VolumeKeys};
use crate::segment::{Segments, Writer};
use crate::stripes::Stripes;
use crate::superblock::Superblock;

/// How a volume is opened.
#[derive(Debug)]
pub struct OpenOptions {
    /// Any of its backing directories.
    pub sources: Vec<PathBuf>,
    /// What opens it.
    pub unlock: Unlock,
    /// Where its metadata database lies, if not where it was last.
    pub state_dir: Option<PathBuf>,
    /// Change nothing.
    pub read_only: bool,
    /// When parity is asked for.
    pub hedge: Hedge,
    /// Never acknowledge with fewer synced slots than this.
    pub min_ack: Option<usize>,
    /// Limit of the cache of decoded blocks, bytes.
    pub cache_bytes: u64,
    /// R for new blocks, if not the volume's.
    pub copies: Option<u16>,
    /// Epoch of new blocks, if not the volume's.
    pub epoch: Option<u32>,
    /// Who shares salts, if not as the volume says.
    pub domain: Option<DomainPolicy>,
    /// How new blocks are compressed, if not as the volume says.
    pub codec: Option<Codec>,
    /// The true one of directories that claim to be the same member.
    pub use_member: Vec<PathBuf>,
    /// Take the volume from whoever has it: locks of other processes do not count, and missing directories that could
    /// serve a writer of their own do not matter.
    pub take_over: bool,
    /// Go on from an older state where generations that were acknowledged are gone, or two writers went apart.
    pub accept_rollback: bool,
    /// Told how far recovery is: what is being done, how much of how much.
    pub report: Option<ReportFn>,
}

impl OpenOptions {
    /// A writer to whom nothing else matters, with a cache of 16 MiB: as the volume says, where it was last, nothing taken
    /// over and nothing given up.
    pub fn new(sources: Vec<PathBuf>, unlock: Unlock) -> Self {
        Self {
            sources,
            unlock,
            state_dir: None,
            read_only: false,
            hedge: Hedge::Adaptive,
            min_ack: None,
            cache_bytes: 16 << 20,
            copies: None,
            epoch: None,
            domain: None,
            codec: None,
            use_member: Vec::new(),
            take_over: false,
            accept_rollback: false,
            report: None,
        }
    }
}

/// What is being done, and how much of how much is done.
type Told = dyn Fn(&str, u64, u64) + Send + Sync;

/// Told what is being done, and how much of how much is done.
pub struct ReportFn(pub Box<Told>);

impl std::fmt::Debug for ReportFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReportFn")
    }
}

/// Segments that may be closed in one generation: they hold 2 GiB of data at the least.
const CLOSED_TOGETHER_MAX: u64 = 64;
/// Setting that tells of the last rollback that was accepted.
const ROLLBACK_KEY: &[u8] = b"rollback";

/// How long the sync of what was left may take in one directory.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);

impl Volume {
    /// Open a volume. Errors name the object and the next step; nothing is written before everything was checked.
    pub fn open(options: OpenOptions) -> Result<Arc<Self>> {
        Self::open_in(options, &RealDirectories)
    }

    /// [`Volume::open`], over what `directories` has at the paths. The state directory is a real one all the same.
    pub fn open_in(options: OpenOptions, directories: &dyn Directories) -> Result<Arc<Self>> {
        let discovery = discover(&options.sources, directories)?;
        let keys = unlock(discovery.newest_unverified(), &options.unlock)?;
        Self::open_unlocked(options, discovery, directories, keys)
    }

    /// The rest of opening, once there are keys.
    pub(super) fn open_unlocked(
        options: OpenOptions,
        discovery: Discovery,
        directories: &dyn Directories,
        keys: VolumeKeys,
    ) -> Result<Arc<Self>> {
        let Members { set, superblock, mut warnings } = members(discovery, &keys, &options.use_member, directories)?;
        let geometry = superblock.geometry;
        let background = directories.pace().background;
        let state_dir = state_dir_of(options.state_dir.as_deref(), &superblock);
        let state_dir = make_state_dir(&state_dir, superblock.volume)?;
        let lock = LocalLock::take(&state_dir)?;
        let unlocked = lock_members(&set, options.take_over && !options.read_only, &mut warnings)?;
        let present = set.members().iter().filter(|member| member.can_read()).count();
        let mut read_only = options.read_only;
        if !read_only && present + geometry.parity() < set.members().len() {
            warnings.push(format!(
                "{} of {} directories are missing, more than the {} that may be; the volume is read-only",
                set.members().len() - present,
                set.members().len(),
                geometry.parity()
            ));
            read_only = true;
        }
        let min_slots = options.min_ack.or(superblock.min_ack.map(usize::from)).unwrap_or(geometry.min_ack());
        if min_slots < geometry.data() || min_slots > geometry.total() {
            return Err(Error::Refused(format!(
                "min_ack={min_slots} is impossible with {geometry} shards; choose {} to {}",
                geometry.data(),
                geometry.total()
            )));
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
        // Before the log is read: what a former writer makes durable from now on it does not answer any more (R16).
        let term = if read_only {
            superblock.term
        } else {
            let claimant = Claimant {
                volume: superblock.volume,
                fence_mac: keys.fence_mac(),
                host: host_name(),
                state_dir: state_dir.as_os_str().as_bytes().to_vec(),
                parity: geometry.parity(),
                take_over: options.take_over,
                known: superblock.term,
                last_writer: (superblock.host.clone(), superblock.state_dir.clone()),
                clock: clock.as_ref(),
                entropy: entropy.as_ref(),
            };
            fence::claim(&set, &claimant)?
        };
        let writes = (!read_only).then_some(term);
        let fence = FenceWatch::new(set.clone(), superblock.volume, *keys.fence_mac(), writes, geometry.parity());
        let setup = Setup {
            volume: superblock.volume,
            name_key: *keys.name_key(),
            clock: clock.clone(),
            block_id: Sealer::block_id,
        };
        let sealer = Arc::new(Sealer::new(&keys));
        let stripes = Stripes::new(set.clone(), superblock.volume, *keys.header_mac());
        let superblocks = Superblocks::read(&set, &keys, superblock)?;
        let (meta, recovered) = {
            let report: recover::Report<'_> = match &options.report {
                Some(report) => report.0.as_ref(),
                None => &|_, _, _| {},
            };
            let overrides = &superblocks.newest.ack_overrides;
            let reader = Reader { stripes: &stripes, keys: &keys, sealer: &sealer, overrides, report };
            database(&state_dir, &setup, &reader, &superblocks, options.accept_rollback, &mut warnings)?
        };
        let superblock = superblocks.newest;
        let Recovered { head, again, .. } = recovered;

        let next = next_segment(&set, &meta, &superblock)?;
        let log = CommitLog::new(superblock.volume, term, *keys.log_key(), entropy.clone(), head);
        let writer = Writer { volume: superblock.volume, term, header_mac: *keys.header_mac() };
        let fixed_min_ack = options.min_ack.is_some();
        let segments = Segments::new(set.clone(), geometry, writer, entropy, (min_slots, fixed_min_ack), next);
        superblock.behind.iter().for_each(|(segment, slots)| segments.note_lacking(*segment, *slots));
        let policy = Policy {
            copies: options.copies.unwrap_or(superblock.copies).max(1),
            domain: options.domain.unwrap_or(superblock.domain),
            epoch: options.epoch.unwrap_or(superblock.epoch),
            codec: options.codec.unwrap_or(superblock.codec),
        };
        let config = BlocksConfig {
            codec: policy.codec,
            hedge: options.hedge,
            geometry,
            cache_bytes: options.cache_bytes,
            header_mac: *keys.header_mac(),
            volume: superblock.volume,
        };
        let gc = Gc::new(meta.committed());
        let blocks = Arc::new(Blocks::new(segments, sealer.clone(), meta.clone(), config));
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
        let prefetcher = Prefetcher::new(blocks.clone(), threads)
            .map_err(|source| Error::io("starting the read-ahead threads", source))?;
        let volume = Arc::new(Self {
            id: superblock.volume,
            label: superblock.label.clone(),
            term,
            geometry,
            policy,
            epoch: AtomicU32::new(policy.epoch),
            chunk_bits: superblock.chunk_bits,
            state_dir: state_dir.clone(),
            space: Space::new(set.clone(), geometry),
            set,
            meta,
            blocks,
            sealer,
            prefetcher,
            commit: Commit::default(),
            log,
            last_image: Mutex::new(LastImage::published(superblock.checkpoints.first())),
            epochs_counted: Mutex::default(),
            floor: Mutex::default(),
            gc: Mutex::new(gc),
            hungry: AtomicUsize::new(0),
            collections: AtomicU64::new(0),
            given_back: AtomicU64::new(0),
            in_vain: Mutex::default(),
            retention: Mutex::default(),
            pinned: Mutex::default(),
            counting: Mutex::default(),
            maintenance: Mutex::default(),
            unread: Mutex::default(),
            fruitless: Mutex::default(),
            clock,
            keys,
            superblock: Mutex::new(superblock),
            read_only: Mutex::new(read_only.then(|| "it was opened read-only".to_owned())),
            asked_read_only: read_only,
            fence,
            unlocked: Mutex::new(unlocked),
            warnings: Mutex::new(warnings),
            housekeeper: Mutex::new(None),
            watcher: Mutex::new(None),
            _lock: lock,
        });
        if !read_only {
            volume.begin(again, options.accept_rollback, background)?;
        }
        if background {
            *volume.watcher.lock() = Some(super::watch::Watcher::start(volume.set.clone())?);
        }
        Ok(volume)
    }

    /// First acts of a writer: what a crash left open is closed for good, orphans go, the superblocks tell who writes.
    fn begin(self: &Arc<Self>, again: Vec<Again>, rolled_back: bool, background: bool) -> Result<()> {
        self.sync_what_was_left()?;
        self.adopt_segments()?;
        self.write_again(again)?;
        self.meta.with(|txn| {
            let open: Vec<_> = txn.segments()?.into_iter().filter(|row| row.state == SegmentState::Open).collect();
            for row in open {
                crate::blocks::close_segment(txn, row.id, row.tail)?;
            }
            for ino in txn.orphans()? {
                txn.release_orphan(ino)?;
            }
            Ok(())
        })?;
        let (term, state_dir) = (self.term, self.state_dir.clone());
        let generation = self.meta.committed();
        let paths: HashMap<_, _> =
            self.set.members().iter().map(|member| (member.id, member.path().to_path_buf())).collect();
        self.write_superblocks(|superblock| {
            superblock.term = term;
            // What was given up is not durable any more.
            superblock.generation = if rolled_back { generation } else { superblock.generation.max(generation) };
            superblock.host = host_name();
            superblock.state_dir = state_dir.into_os_string().into_vec();
            for member in &mut superblock.members {
                if let Some(path) = paths.get(&member.id) {
                    member.path = path.as_os_str().as_bytes().to_vec();
                }
            }
        })?;
        fence::prune(&self.set, self.term);
        if rolled_back {
            self.note_rollback(generation)?;
        }
        if background {
            *self.housekeeper.lock() = Some(Housekeeper::start(self)?);
        }
        Ok(())
    }

    /// That acknowledged generations may have been given up is noted in the volume, and a checkpoint made beyond the
    /// place where histories part.
    fn note_rollback(&self, generation: Generation) -> Result<()> {
        let text = format!("term {} went on from generation {generation}", self.term);
        self.meta.with(|txn| txn.put_shelf(Shelf::Settings, ROLLBACK_KEY, text.as_bytes()))?;
        self.commit(&super::NothingDirty)?;
        self.checkpoint()
    }

    /// Segments that have files but no row get one: a writer was cut off after it opened them, or a directory was away
    /// when they were deleted. gc then sees to them as to all others.
    fn adopt_segments(&self) -> Result<()> {
        let known: HashSet<SegmentId> = self.meta.with(|txn| txn.segments())?.iter().map(|row| row.id).collect();
        let mut found: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for member in self.set.members().iter().filter(|member| member.can_read()) {
            for (id, len) in member.list_segments().unwrap_or_default() {
                let longest = found.entry(id).or_default();
                *longest = len.max(*longest);
            }
        }
        for (id, tail) in found.into_iter().filter(|(id, _)| !known.contains(id)) {
            // Without an authentic header in any file nothing was ever written there.
            let Some(info) = self.blocks.stripes().segment_info(id) else { continue };
            let row = SegmentRow {
                id,
                incarnation: info.incarnation,
                data: info.geometry.data() as u8,
                parity: info.geometry.parity() as u8,
                slots: info.slots,
                capacity: info.capacity.max(tail),
                tail,
                state: SegmentState::Closed,
                since: self.meta.committed(),
            };
            self.meta.with(|txn| txn.put_segment(&row))?;
        }
        Ok(())
    }

    /// What a killed writer appended last was read back from memory, perhaps, and stands on no disk: before anything is
    /// built on it, it is synced (R15): segments that are open, and those that may have been closed in its last
    /// generation. To sync a file that is synced already costs next to nothing.
    fn sync_what_was_left(&self) -> Result<()> {
        let rows = self.meta.with(|txn| txn.segments())?;
        let last = rows.iter().map(|row| row.id.0).max().unwrap_or(0);
        let is_old = |id: SegmentId| id.0 + CLOSED_TOGETHER_MAX < last;
        let closed: HashSet<SegmentId> =
            rows.iter().filter(|row| row.state != SegmentState::Open && is_old(row.id)).map(|row| row.id).collect();
        let mut files = Vec::new();
        for member in self.set.members().iter().filter(|member| member.can_write()) {
            let listed = member.list_segments().unwrap_or_default();
            files.extend(listed.into_iter().filter(|(id, _)| !closed.contains(id)).map(|(id, _)| (member.id, id)));
        }
        for (member, segment, outcome) in self.set.sync_all(&files, &Wait::all(SYNC_PATIENCE)) {
            if let Err(error) = outcome {
                self.set.report_write_error(&member, &format!("sync segment {segment}"), &error);
            }
        }
        let healthy = self.set.members().iter().filter(|member| member.can_write()).count();
        let needed = self.blocks.segments().min_ack();
        if healthy < needed { Err(Error::TooFewMembers { healthy, needed }) } else { Ok(()) }
    }
}

/// A number that no segment ever had: above all the metadata, the superblock and the directories know of.
fn next_segment(set: &BackingSet, meta: &Meta, superblock: &Superblock) -> Result<SegmentId> {
    let mut next = superblock.next_segment.0.max(meta.counters().next_segment);
    for member in set.members().iter().filter(|member| member.can_read()) {
        match member.list_segments() {
            Ok(listed) => next = next.max(listed.last().map_or(0, |(id, _)| id.0 + 1)),
            Err(error) => {
                log::error!("{}: listing segments: {error}; it counts as failed", member.path().display());
                member.mark_failed(format!("listing segments: {error}"));
            }
        }
    }
    Ok(SegmentId(next))
}
