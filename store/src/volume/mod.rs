//! A volume, open: all that the crates above see of the store.
//!
//! Promises: namespace and attribute operations are one change each, atomic; data comes back as it was written or as
//! an error; nothing is said durable before it is. Knows nothing of FUSE, handles or permissions.

mod conditional;
mod data;
mod differences;
mod database;
mod follow;
mod fold;
mod exec_rows;
mod format;
mod housekeeper;
mod image;
mod keys;
mod members;
mod moving;
mod open;
mod past;
mod prefetch;
mod quota;
mod probe;
mod rebuild;
mod reclaim;
mod replace;
mod restore;
mod staging;
mod space;
mod state_dir;
mod status;
mod superblocks;
#[cfg(test)]
pub(crate) mod tests;
mod versions;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::time::Instant;

use parking_lot::Mutex;

pub use crate::backing::Hedge;
pub use crate::blocks::Chunk;
pub use crate::commit::{Flusher, GateGuard, NothingDirty};
pub use crate::keyslot::{KdfCost, NewSecret, SlotKind, Unlock};
pub use crate::meta::patch::Patch;
pub use crate::meta::quota::{Quota, QuotaLimits, QuotaRoom, QuotaState};
pub use crate::meta::rows::{
    ACL_ACCESS, ACL_DEFAULT, Attr, DirEntry, EXEC_NAME, FILE_SIZE_MAX, FileChange, FileKind, INLINE_MAX, LINK_MAX,
    NAME_MAX, NewNode, RenameFlags, SetAttr, Unlinked,
};
pub use crate::meta::rows::{COOKIE_MIN, GenerationRow, InodeRow, SnapshotRow};
pub use crate::meta::{NameSpan, PastReader, Who};
pub use crate::seal::Codec;
pub use crate::superblock::DomainPolicy;
pub use data::FileChunks;
pub use differences::{Difference, changes, differences};
pub use exec_rows::{PolicyRow, RecordRow};
pub use follow::{Followed, Follower};
pub use format::{FormatOptions, Formatted, format, format_with};
pub use keys::{AddedKey, NewKey};
pub use open::{OpenOptions, ReportFn};
pub use past::View;
pub use probe::{Probe, ProbeMember, probe};
pub use rebuild::{Rebuilt, rebuild};
pub use reclaim::{GenerationPin, Maintenance};
pub use replace::replace;
pub use restore::{Busy, Destination, Done, Restored};
pub use space::Reservation;
pub use staging::{Base, Discard, Published, Staged, StagedWhat};
pub use state_dir::{check_state_dir, default_state_dir};
pub use status::{StatFs, VolumeStatus};

use crate::backing::BackingSet;
use crate::blocks::Blocks;
use crate::clock::Clock;
use crate::commit::{Commit, Parts};
use crate::commit_log::CommitLog;
use crate::error::{Error, Result};
use crate::fence::FenceWatch;
use crate::gc::Gc;
use crate::geometry::Geometry;
use crate::ids::{Generation, Ino, MemberId, ROOT_INO, Term, VolumeId};
use crate::lock::LocalLock;
use crate::meta::{Meta, Txn};
use crate::retention::Retention;
use crate::seal::{Sealer, VolumeKeys};
use crate::superblock::Superblock;
use housekeeper::Housekeeper;
use prefetch::Prefetcher;
use space::Space;

/// Bytes appended and not synced, a file, that nobody is to wait for: 64 MiB of data at 4+2.
const UNSYNCED_MAX: u64 = 16 << 20;

/// How new blocks are made.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// R: at most this many ciphertexts of equal content in a domain and epoch.
    pub copies: u16,
    /// Who shares salts.
    pub domain: DomainPolicy,
    /// The epoch of new blocks.
    pub epoch: u32,
    /// How they are compressed.
    pub codec: Codec,
}

/// An open volume.
pub struct Volume {
    id: VolumeId,
    label: String,
    term: Term,
    geometry: Geometry,
    policy: Policy,
    /// Of new blocks; at first that of the policy.
    epoch: AtomicU32,
    chunk_bits: u8,
    state_dir: PathBuf,
    set: Arc<BackingSet>,
    meta: Arc<Meta>,
    blocks: Arc<Blocks>,
    sealer: Arc<Sealer>,
    space: Arc<Space>,
    prefetcher: Prefetcher,
    commit: Commit,
    log: CommitLog,
    last_image: Mutex<image::LastImage>,
    epochs_counted: Mutex<crate::reseal::Counted>,
    /// Generation of the older of two checkpoints that are published in at least m+1 superblocks (R18).
    floor: Mutex<Option<Generation>>,
    gc: Mutex<Gc>,
    /// Writers that wait for space.
    hungry: AtomicUsize,
    /// Collections of the housekeeper's that came to their end, and bytes that they gave back.
    collections: AtomicU64,
    given_back: AtomicU64,
    /// When a writer last waited for nothing, and what had been given back then.
    in_vain: Mutex<Option<(Instant, u64)>>,
    retention: Mutex<Retention>,
    /// Former states that are being read, and by how many.
    pinned: Mutex<BTreeMap<Generation, usize>>,
    /// Held by who sets or counts a quota.
    counting: Mutex<()>,
    /// Held by what looks at every stripe, and by gc while it frees any.
    maintenance: Mutex<()>,
    unread: Mutex<fold::Unread>,
    /// Members that could be written when no vacant slot could be filled.
    fruitless: Mutex<Option<Vec<MemberId>>>,
    clock: Arc<dyn Clock>,
    keys: VolumeKeys,
    superblock: Mutex<Superblock>,
    /// Set when nothing may be written any more, with the reason. Asked for at open, or after a failure.
    read_only: Mutex<Option<String>>,
    asked_read_only: bool,
    /// Looks out for a writer with a higher term.
    fence: FenceWatch,
    /// Members whose local lock another process had when this one took over.
    unlocked: Mutex<Vec<MemberId>>,
    warnings: Mutex<Vec<String>>,
    housekeeper: Mutex<Option<Housekeeper>>,
    watcher: Mutex<Option<watch::Watcher>>,
    /// Released last.
    _lock: LocalLock,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("id", &self.id).field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Volume {
    /// From now on an inode gets no more names than this, and a directory not more subdirectories; at most, and unless
    /// told otherwise, [`LINK_MAX`].
    pub fn limit_links(&self, max: u32) {
        self.meta.limit_links(max);
    }

    /// Identity of the volume.
    pub fn volume_id(&self) -> VolumeId {
        self.id
    }

    /// Its label; may be empty.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where its metadata database lies.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// What a user should know about how it was opened.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// Why nothing can be written, if so.
    pub fn is_read_only(&self) -> Option<String> {
        self.read_only.lock().clone()
    }

    /// Chunk length of new files in a directory that says nothing else, as a power of two.
    pub fn chunk_bits(&self) -> u8 {
        self.chunk_bits
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The clock times of changes come from.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    pub(crate) fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    pub(crate) fn identity(&self) -> crate::blocks::Identity {
        crate::blocks::Identity { volume: self.id, term: self.term }
    }

    /// True if a commit would close a generation.
    pub fn has_changes(&self) -> bool {
        self.meta.has_changes()
    }

    fn writable(&self) -> Result<()> {
        match &*self.read_only.lock() {
            None => Ok(()),
            Some(reason) => Err(Error::ReadOnly(reason.clone())),
        }
    }

    /// One operation that changes the metadata.
    pub(crate) fn change<R>(&self, operation: impl FnOnce(&mut Txn<'_>) -> Result<R>) -> Result<R> {
        self.writable()?;
        self.meta.with(operation)
    }

    /// Attributes of an inode. [`Error::Stale`] if it is gone.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        self.meta.look(|txn| txn.attr(ino))
    }

    /// The inode that `name` in `parent` leads to.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.meta.with(|txn| txn.lookup(parent, name))
    }

    /// Make a file, directory, symbolic link or special file.
    pub fn create(&self, parent: Ino, name: &[u8], node: &NewNode<'_>) -> Result<Attr> {
        self.change(|txn| txn.create(parent, name, node))
    }

    /// [`Self::create`], the bits of `umask` taken from the permissions unless a default access control list rules.
    pub fn create_masked(&self, parent: Ino, name: &[u8], node: &NewNode<'_>, umask: u16) -> Result<Attr> {
        self.change(|txn| txn.create_masked(parent, name, node, umask))
    }

    /// Another name for a file.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.change(|txn| txn.link(ino, parent, name))
    }

    /// Remove a name of anything but a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<Unlinked> {
        self.change(|txn| txn.unlink(parent, name))
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<Unlinked> {
        self.change(|txn| txn.rmdir(parent, name))
    }

    /// Rename; tells what was replaced.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<Option<Unlinked>> {
        self.change(|txn| txn.rename(parent, name, new_parent, new_name, flags))
    }

    /// Target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.meta.with(|txn| txn.read_link(ino))
    }

    /// Change attributes: one change.
    pub fn set_attr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.change(|txn| txn.set_attr(ino, change))
    }

    /// Note an access. No version, written lazily; errors do not matter.
    pub fn touch_atime(&self, ino: Ino, atime_ns: i64) {
        if self.writable().is_ok() {
            let _ = self.meta.with(|txn| {
                txn.touch_atime(ino, atime_ns);
                Ok(())
            });
        }
    }

    /// Entries after `cookie` (0: from the start), at most `max`, without "." and "..", with attributes if `plus`.
    pub fn read_dir(&self, ino: Ino, cookie: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        self.meta.with(|txn| txn.read_dir(ino, cookie, max, plus))
    }

    /// The directory that holds a directory; the root holds itself.
    pub fn parent_of(&self, dir: Ino) -> Result<Ino> {
        self.meta.with(|txn| txn.parent_of(dir))
    }

    /// A path of an inode from the root, for messages.
    pub fn path_of(&self, ino: Ino) -> Result<String> {
        const PAGE: usize = 1000;
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT_INO {
            let parent = self.meta.with(|txn| txn.inode(at))?.parent;
            let mut cookie = 0;
            let name = loop {
                let page = self.read_dir(parent, cookie, PAGE, false)?;
                let Some(last) = page.last() else { return Ok(format!("inode {ino} (no longer linked)")) };
                cookie = last.cookie;
                if let Some(entry) = page.iter().find(|entry| entry.ino == at) {
                    break String::from_utf8_lossy(&entry.name).into_owned();
                }
            };
            names.push(name);
            at = parent;
        }
        names.reverse();
        Ok(format!("/{}", names.join("/")))
    }

    /// Value of an extended attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.meta.with(|txn| txn.get_xattr(ino, name))
    }

    /// Names of the extended attributes.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.meta.with(|txn| txn.list_xattrs(ino))
    }

    /// Set an extended attribute: one change.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], create: bool, replace: bool) -> Result<()> {
        self.change(|txn| txn.set_xattr(ino, name, value, create, replace))
    }

    /// Remove an extended attribute: one change.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.change(|txn| txn.remove_xattr(ino, name))
    }

    /// Set ([`ACL_ACCESS`], [`ACL_DEFAULT`]) or, without entries, remove an access control list: one change.
    pub fn set_acl(&self, ino: Ino, name: &[u8], list: &[u8], clear_set_gid: bool) -> Result<()> {
        self.change(|txn| txn.set_acl(ino, name, list, clear_set_gid))
    }

    /// Whether `who` has all of `wanted` (bits of one digit of a mode) on an inode, by its mode and access list.
    ///
    /// # Errors
    /// [`Error::Stale`], and of the database.
    pub fn permits(&self, ino: Ino, who: Who<'_>, wanted: u16) -> Result<bool> {
        self.meta.with(|txn| txn.permits(ino, who, wanted))
    }

    /// The last reference to an unlinked inode is gone: forget it and retire its extents behind.
    pub fn release_orphan(&self, ino: Ino) -> Result<()> {
        self.change(|txn| txn.release_orphan(ino))
    }

    /// Promise worst-case space for `bytes` of new data (R10). Given back when dropped.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation> {
        self.writable()?;
        self.space.reserve(bytes)
    }

    /// Hold off commits while a change is made.
    pub fn gate(&self) -> GateGuard<'_> {
        self.commit.gate()
    }

    /// To be called now and then by who appends much, without the gate: syncs what was appended if it is a lot, so that
    /// no commit has to wait for more.
    pub fn bound_unsynced(&self) {
        if self.blocks.segments().unsynced_bytes() > UNSYNCED_MAX
            && let Err(error) = self.blocks.segments().sync()
        {
            // Still due, so the next commit fails by it.
            log::error!("syncing the directories: {error}");
        }
    }

    /// Make everything accepted so far durable.
    pub fn commit(&self, flusher: &dyn Flusher) -> Result<Generation> {
        self.commit_followed(flusher, false)
    }

    /// As [`Self::commit`]; `followed` if the next commit is about to come: then the database is written for several of them
    /// together, at [`Self::settle_database`] at the latest.
    pub fn commit_followed(&self, flusher: &dyn Flusher, followed: bool) -> Result<Generation> {
        if self.asked_read_only {
            return Ok(self.meta.committed());
        }
        self.writable()?;
        let outcome = self.commit.run(&self.parts(), flusher, followed && !self.space.is_tight());
        let outcome = self.committed_or_read_only(outcome);
        if !self.blocks.segments().missed().is_empty()
            && let Some(housekeeper) = self.housekeeper.try_lock()
        {
            housekeeper.as_ref().inspect(|housekeeper| housekeeper.wake());
        }
        outcome
    }

    /// No commit has followed after all: have the database written.
    pub fn settle_database(&self) {
        if let Err(error) = self.meta.settle() {
            // Whoever needs it next is told.
            log::error!("{error}");
        }
    }

    /// What a commit came to; after a failure nothing may be written any more.
    fn committed_or_read_only(&self, outcome: Result<Generation>) -> Result<Generation> {
        if let Some(fenced) = self.fenced() {
            return Err(fenced);
        }
        if let Err(error) = &outcome
            && !matches!(error, Error::NoSpace)
        {
            // After a failed sync the kernel may have dropped what it still reads back: going on would build on it.
            let reason = format!("a commit failed: {error}");
            log::error!("{}: {reason}; the volume is read-only now", self.id);
            self.read_only.lock().get_or_insert(reason);
        }
        outcome
    }

    fn parts(&self) -> Parts<'_> {
        Parts { blocks: &self.blocks, meta: &self.meta, log: &self.log, overrides: self, fence: &self.fence }
    }

    /// The error for everybody who wants to write once another writer has the volume. From then on it is read-only.
    fn fenced(&self) -> Option<Error> {
        let other = self.fence.taken_over()?;
        let reason = format!("{other}; this writer (term {}) has stopped, unmount it", self.term);
        self.read_only.lock().get_or_insert_with(|| reason.clone());
        Some(Error::ReadOnly(reason))
    }

    /// Commit, record a clean end, and let go of everything.
    pub fn close(self: Arc<Self>, flusher: &dyn Flusher) -> Result<()> {
        let outcome = if self.asked_read_only { Ok(()) } else { self.commit(flusher).map(|_| ()) };
        if let Some(housekeeper) = self.housekeeper.lock().take() {
            housekeeper.stop();
        }
        drop(self.watcher.lock().take());
        outcome?;
        if !self.asked_read_only {
            match self.checkpoint_at_end() {
                // The log has it all; only a rebuild of the database would take longer.
                Err(Error::NoSpace) => log::warn!("there is no room for a checkpoint"),
                outcome => outcome?,
            }
            self.meta.note_durable(self.log.durable());
            self.blocks.segments().finish();
            self.write_superblocks(|superblock| superblock.generation = self.meta.committed())?;
        }
        self.meta.close()
    }
}
