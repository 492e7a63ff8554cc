//! What the kernel asks of a filesystem, without the kernel: every operation is a method that takes values and returns
//! values, so that all of it runs and is tested without a mount.
//!
//! The kernel checks permissions (`default_permissions`) and access control lists, the sticky bit, and keeps append
//! offsets and locks. Done here: the umask, group inheritance, clearing of set-id bits, which operation sets which time, files without a name, deferred errors.
//! Methods that may wait for a disk say so; the adapter does not call those on its event thread.
//!
//! Times: a write, truncate or fallocate sets mtime and ctime; chmod, chown, utimes, link, unlink, rename and xattr
//! changes set ctime; entries made or removed set the directory's mtime and ctime (in the store). A read sets atime only
//! if it would not be later than mtime and ctime otherwise, or is a day old; reads answered by the kernel's page cache
//! are not seen.

mod attr;
mod caller;
mod copy;
mod dir;
mod exec;
mod lookup;
mod open;
mod past_root;
mod read;
mod rename;
mod seek;
mod staging;
mod statfs;
mod sync;
mod versions;
mod write;
mod xattr;

use std::io;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::Ino;
use brine_store::volume::{Attr, Flusher, GenerationPin, Volume};
use brine_store::{Error, Result as StoreResult};

pub use attr::{AttrChange, Stamp};
pub use caller::Caller;
pub use copy::FilePlace;
pub use dir::DirItem;
pub use open::{Handle, Opened};
pub use read::{PendingRead, ReadBytes, ReadStart};
pub use versions::{Outdated, TellKernel};
pub use write::Room;

use crate::control_dir::{ControlDir, Family, Views, is_control};
use crate::errno::{Errno, Outcome};
use crate::exec_dir::ExecDir;
use crate::handle::{Handles, OpenDir, OpenFile};
use crate::inode_table::{Gone, InodeTable};
use crate::workers::{Pool, processors};
use crate::write_buffer::{ErrorMark, Report, WriteBuffer};
use read::Scratch;
use sync::Committer;

/// When reading sets the access time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atime {
    /// When it is not later than mtime or ctime, or a day old.
    Relative,
    /// At every read that reaches us: those of the kernel's page cache do not.
    Always,
    /// Never.
    Off,
}

/// How a [`Vfs`] behaves.
#[derive(Clone)]
pub struct VfsOptions {
    /// Most memory for writes not sealed yet, bytes.
    pub dirty_limit_bytes: usize,
    /// Longest time an accepted change stays unsynced.
    pub commit_interval: Duration,
    /// Threads for requests that wait for a disk.
    pub io_threads: usize,
    /// Threads that seal chunks; 0: whoever writes does, so that a write returns with its whole chunks stored.
    pub seal_threads: usize,
    /// Furthest a sequential reader is read ahead, bytes; 0: not at all.
    pub readahead_bytes: u64,
    /// When reading sets the access time.
    pub atime: Atime,
    /// Whether listing sets that of directories, too.
    pub dir_atime: bool,
    /// Where failures are told to the operator.
    pub report: Report,
}

impl Default for VfsOptions {
    fn default() -> Self {
        Self {
            dirty_limit_bytes: 64 << 20,
            commit_interval: Duration::from_secs(1),
            io_threads: (2 * processors()).max(4),
            seal_threads: processors(),
            readahead_bytes: 8 << 20,
            atime: Atime::Relative,
            dir_atime: true,
            report: Arc::new(|line| eprintln!("brine: {line}")),
        }
    }
}

/// Counts for `status`.
#[derive(Clone, Copy, Debug)]
pub struct VfsCounts {
    /// Inodes the kernel knows, or that are dirty.
    pub inodes: usize,
    /// Open files.
    pub open_files: usize,
    /// Files with something to flush.
    pub dirty_files: usize,
    /// Memory of dirty chunks, bytes.
    pub dirty_bytes: usize,
}

/// How long who would be told EDQUOT waits at first, and at most, for what was removed just before.
const LEAVING_PAUSE: Duration = Duration::from_millis(10);
const LEAVING_PATIENCE: Duration = Duration::from_secs(2);

/// Threads that store ahead, at most: each has a job in the queue of each directory, whose commits are to find room there.
const STORERS_MAX: usize = 8;

/// A mounted volume's operations.
pub struct Vfs {
    volume: Arc<Volume>,
    options: VfsOptions,
    inodes: InodeTable,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
    control: ControlDir,
    exec: ExecDir,
    buffer: Arc<WriteBuffer>,
    /// For requests that wait for a disk.
    io: Pool,
    /// One thread, for writes that wait for room: first come, first served.
    writers: Pool,
    /// Writes that are being stored before they are accepted, or wait for it, and the threads that do it: of their own, since
    /// reads wait for those of `io`.
    ahead: AtomicUsize,
    storers: Pool,
    /// Removed files whose space is about to be given back, once they are sealed no more; and one thread that does it, of
    /// its own, since threads of `io` may be waiting for that.
    leaving: AtomicUsize,
    leavers: Pool,
    committer: Committer,
    /// Commits that failed after the writes they held were answered.
    commit_errors: ErrorMark,
    scratch: Arc<Scratch>,
    kernel: OnceLock<TellKernel>,
    /// Root of the past tree that is shown in place of the live one.
    past_root: OnceLock<Ino>,
    /// When somebody last looked for something, ns.
    used_ns: AtomicI64,
}

impl Vfs {
    /// Operations on `volume`; starts the threads. [`Self::close`] ends them.
    ///
    /// # Errors
    /// What the system says when it cannot start a thread.
    pub fn new(volume: Arc<Volume>, options: VfsOptions) -> io::Result<Arc<Self>> {
        let buffer = WriteBuffer::new(
            Arc::clone(&volume),
            options.dirty_limit_bytes,
            options.seal_threads,
            Arc::clone(&options.report),
        )?;
        let control = ControlDir::new(SystemClock.now_ns());
        for family in [Family::Snapshots, Family::At, Family::File] {
            control.add(Arc::new(Views::new(Arc::clone(&volume), family)));
        }
        let vfs = Arc::new(Self {
            volume,
            inodes: InodeTable::new(),
            files: Handles::default(),
            dirs: Handles::default(),
            control,
            exec: ExecDir::default(),
            buffer: Arc::new(buffer),
            io: Pool::new("brine-io", options.io_threads)?,
            writers: Pool::new("brine-write", 1)?,
            ahead: AtomicUsize::new(0),
            storers: Pool::new("brine-ahead", options.seal_threads.min(STORERS_MAX))?,
            leaving: AtomicUsize::new(0),
            leavers: Pool::new("brine-leave", 1)?,
            committer: Committer::default(),
            commit_errors: ErrorMark::default(),
            scratch: Arc::new(Scratch::default()),
            kernel: OnceLock::new(),
            past_root: OnceLock::new(),
            used_ns: AtomicI64::new(SystemClock.now_ns()),
            options,
        });
        sync::start(&vfs)?;
        Ok(vfs)
    }

    /// The volume under it.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Keep what is there now readable while the result is held, what is buffered with it. `None`: the database fails.
    pub fn pin_present(&self) -> Option<GenerationPin> {
        self.volume.pin_present(&*self.buffer).ok()
    }

    /// How it behaves.
    pub fn options(&self) -> &VfsOptions {
        &self.options
    }

    /// The threads for requests that wait for a disk.
    pub fn io(&self) -> &Pool {
        &self.io
    }

    /// The thread for writes that wait for room.
    pub fn writers(&self) -> &Pool {
        &self.writers
    }

    /// The threads for writes that are stored before they are accepted.
    pub fn storers(&self) -> &Pool {
        &self.storers
    }

    /// `.brine` of this mount.
    pub fn control(&self) -> &ControlDir {
        &self.control
    }

    /// Counts for `status`.
    pub fn counts(&self) -> VfsCounts {
        VfsCounts {
            inodes: self.inodes.len(),
            open_files: self.files.len(),
            dirty_files: self.buffer.dirty_files(),
            dirty_bytes: self.buffer.held(),
        }
    }

    /// Somebody looked for something.
    pub fn note_use(&self) {
        self.used_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    /// Whether nothing is open, and nobody has looked for anything for this long. What the kernel answers by itself is
    /// not seen.
    pub fn is_idle(&self, time: Duration) -> bool {
        let since = self.now_ns().saturating_sub(self.used_ns.load(Ordering::Relaxed));
        self.files.is_empty() && self.dirs.is_empty() && since >= time.as_nanos().min(i64::MAX as u128) as i64
    }

    /// After the last request: finish what was begun, give files without a name back, make everything durable, close
    /// the volume.
    ///
    /// # Errors
    /// What kept the last changes from becoming durable.
    pub fn close(&self) -> StoreResult<()> {
        self.exec.stop();
        self.storers.finish();
        self.writers.finish();
        self.io.finish();
        self.leavers.finish();
        self.committer.stop();
        for gone in self.inodes.drain_orphans() {
            self.give_back(&gone);
        }
        self.buffer.finish();
        self.buffer.retry_all();
        Arc::clone(&self.volume).close(&*self.buffer)?;
        match self.buffer.dirty_files() {
            0 => Ok(()),
            files => Err(Error::Refused(format!(
                "{files} files could not be stored and their last writes are lost; the reasons were reported above"
            ))),
        }
    }

    fn now_ns(&self) -> i64 {
        SystemClock.now_ns()
    }

    /// The answer to an error of the store; failures are reported, here and only here.
    fn fail(&self, doing: &str, ino: Ino, error: &Error) -> Errno {
        let errno = Errno::from(error);
        if errno.is_failure() {
            (self.options.report)(&format!("{doing} inode {ino}: {error}"));
        }
        errno
    }

    /// Refuse changes while the volume is read-only; the store's own operations refuse by themselves.
    fn check_writable(&self) -> Outcome<()> {
        if self.volume.is_read_only().is_some() { Err(Errno(libc::EROFS)) } else { Ok(()) }
    }

    /// Refuse changes of what is below `.brine`.
    fn check_live(&self, ino: Ino) -> Outcome<()> {
        if is_control(ino) { Err(Errno::READ_ONLY) } else { Ok(()) }
    }

    /// An inode as the kernel is told of it: counted, and with what is buffered.
    fn entry(&self, mut attr: Attr) -> Attr {
        if let Some(node) = self.inodes.remember(attr.ino) {
            self.buffer.overlay(&node, &mut attr);
        }
        attr
    }

    /// Give an inode without a name back to the store; on a worker, if that would wait for sealing.
    fn release(self: &Arc<Self>, gone: Option<Gone>) {
        let Some(gone) = gone else { return };
        if gone.file.as_ref().is_some_and(|file| file.is_sealing()) {
            let vfs = Arc::clone(self);
            self.leaving.fetch_add(1, Ordering::AcqRel);
            self.leavers.run(move || {
                vfs.give_back(&gone);
                vfs.leaving.fetch_sub(1, Ordering::AcqRel);
            });
        } else {
            self.give_back(&gone);
        }
    }

    /// Wait, for a moment, until what was removed just before counts in no quota any more: the kernel tells of it behind
    /// its removal, and what is being sealed goes when that is done. And let writers be promised no more than they need.
    /// For who is told EDQUOT else.
    pub fn await_given_back(&self) {
        let since = Instant::now();
        thread::sleep(LEAVING_PAUSE);
        while self.leaving.load(Ordering::Acquire) > 0 && since.elapsed() < LEAVING_PATIENCE {
            thread::sleep(LEAVING_PAUSE);
        }
        if let Err(error) = self.buffer.promise_exactly() {
            (self.options.report)(&format!("looking up what buffered writes are to take: {error}"));
        }
    }

    /// Do what may be refused for a quota's sake; if it is, once more after [`Self::await_given_back`].
    pub fn within_quota<T>(&self, run: impl Fn() -> Outcome<T>) -> Outcome<T> {
        match run() {
            Err(Errno::QUOTA) => {
                self.await_given_back();
                run()
            }
            outcome => outcome,
        }
    }

    fn give_back(&self, gone: &Gone) {
        let _gate = self.buffer.change();
        if let Some(file) = &gone.file {
            self.buffer.discard(file);
        }
        if let Err(error) = self.volume.release_orphan(gone.ino) {
            self.fail("giving back", gone.ino, &error);
        }
    }
}

impl Flusher for WriteBuffer {
    /// Never fails as a whole: what the store refuses of one file stays dirty and is told to that file's handles, and
    /// must not keep the others from becoming durable.
    fn flush(&self, exclusive: bool) -> StoreResult<()> {
        Self::flush(self, exclusive);
        Ok(())
    }

    fn has_dirty(&self) -> bool {
        Self::has_dirty(self)
    }
}
