//! One file as long as it is open, or has something buffered.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use brine_store::ids::{Ino, Version};
use brine_store::volume::{Attr, Reservation};
use parking_lot::{Condvar, Mutex};

use super::file::FileBuffer;
use crate::errno::Errno;

/// First pause before refused data is tried again; doubles each time.
const RETRY_FIRST_NS: i64 = 1_000_000_000;
/// Longest pause between tries.
const RETRY_MAX_NS: i64 = 60_000_000_000;

/// Errors that came after the write was answered, told once to each handle open at the time (R10).
///
/// The upper half counts the errors, the lower has the last errno: a handle that remembers the count knows whether
/// there was one since.
#[derive(Debug, Default)]
pub struct ErrorMark(AtomicU64);

impl ErrorMark {
    /// Remember an error.
    pub fn record(&self, errno: Errno) {
        let next = |mark: u64| Some(((mark >> 32).wrapping_add(1) << 32) | u64::from(errno.0.unsigned_abs()));
        // The closure always gives a value, so this cannot fail.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// The count a handle opened now starts from.
    pub fn position(&self) -> u32 {
        (self.0.load(Ordering::Acquire) >> 32) as u32
    }

    /// The last error since `seen`, which moves on.
    pub fn since(&self, seen: &AtomicU32) -> Option<Errno> {
        let mark = self.0.load(Ordering::Acquire);
        let position = (mark >> 32) as u32;
        (seen.load(Ordering::Relaxed) != position && seen.swap(position, Ordering::AcqRel) != position)
            .then_some(Errno(mark as u32 as i32))
    }
}

/// A file that is open or dirty. Shared by all its handles.
pub struct FileNode {
    /// Its inode number.
    pub ino: Ino,
    /// Set when no name is left: such a file is flushed for want of memory only.
    pub orphan: AtomicBool,
    /// Set while it cannot have extended attributes: made here, none set since.
    pub no_xattrs: AtomicBool,
    /// What went wrong after writes were answered.
    pub errors: ErrorMark,
    /// Version of the inode that the last flush made.
    put_version: AtomicU64,
    retry_at_ns: AtomicI64,
    retry_pause_ns: AtomicI64,
    pub(super) state: Mutex<Option<Box<Dirty>>>,
    /// Signalled when chunks end being sealed.
    pub(super) settled: Condvar,
}

impl FileNode {
    /// A file with nothing buffered.
    pub fn new(ino: Ino) -> Self {
        Self {
            ino,
            orphan: AtomicBool::new(false),
            no_xattrs: AtomicBool::new(false),
            errors: ErrorMark::default(),
            put_version: AtomicU64::new(0),
            retry_at_ns: AtomicI64::new(0),
            retry_pause_ns: AtomicI64::new(RETRY_FIRST_NS),
            state: Mutex::new(None),
            settled: Condvar::new(),
        }
    }

    /// A flush made this version. To be called with the state locked.
    pub(super) fn put(&self, version: Version) {
        self.put_version.store(version.0, Ordering::Release);
    }

    /// Whether a flush made a later version than this.
    pub(super) fn was_put_after(&self, version: Version) -> bool {
        self.put_version.load(Ordering::Acquire) > version.0
    }

    /// Let the next flush try this file, whatever failed before.
    pub fn retry_now(&self) {
        self.retry_at_ns.store(0, Ordering::Relaxed);
    }

    /// Whether nothing of the file is buffered.
    pub fn is_clean(&self) -> bool {
        self.state.lock().is_none()
    }

    /// Whether chunks of the file are being sealed: truncating or dropping it would wait for that.
    pub fn is_sealing(&self) -> bool {
        self.state.lock().as_ref().is_some_and(|dirty| dirty.buffer.is_sealing())
    }

    pub(super) fn is_due(&self, now_ns: i64) -> bool {
        let at = self.retry_at_ns.load(Ordering::Relaxed);
        // A clock set back must not stop retries.
        now_ns >= at || at - now_ns > RETRY_MAX_NS
    }

    pub(super) fn failed(&self, errno: Errno, now_ns: i64) {
        self.errors.record(errno);
        let pause = self.retry_pause_ns.load(Ordering::Relaxed);
        self.retry_at_ns.store(now_ns.saturating_add(pause), Ordering::Relaxed);
        self.retry_pause_ns.store((pause * 2).min(RETRY_MAX_NS), Ordering::Relaxed);
    }

    pub(super) fn succeeded(&self) {
        self.retry_at_ns.store(0, Ordering::Relaxed);
        self.retry_pause_ns.store(RETRY_FIRST_NS, Ordering::Relaxed);
    }
}

/// What is known of a file beyond what the store knows.
pub(super) struct Dirty {
    /// Stored attributes.
    pub(super) base: Attr,
    pub(super) buffer: FileBuffer<Reservation>,
    /// Part of the buffer's memory that the account of all files has, bytes.
    pub(super) accounted: usize,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
    /// Changes accepted, and how many of them the store has.
    pub(super) changes: u64,
    pub(super) put: u64,
    /// Bytes that the file may come to take, if it counts in a quota and was promised something of it.
    pub(super) promised: Option<u64>,
    /// Chunks that may have been stored since `base` was read.
    pub(super) put_since: u64,
    /// Whether the file is on the list of those to flush.
    pub(super) listed: bool,
    /// Whether the store keeps the content inline. Then it must be in the buffer before anything is put.
    pub(super) stored_inline: bool,
}

impl Dirty {
    pub(super) fn new(base: Attr, buffer: FileBuffer<Reservation>, stored_inline: bool) -> Self {
        let (mtime_ns, ctime_ns) = (base.mtime_ns, base.ctime_ns);
        Self {
            base,
            buffer,
            accounted: 0,
            mtime_ns,
            ctime_ns,
            changes: 0,
            put: 0,
            promised: None,
            put_since: 0,
            listed: false,
            stored_inline,
        }
    }

    pub(super) fn touch(&mut self, now_ns: i64) {
        self.mtime_ns = now_ns;
        self.ctime_ns = now_ns;
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_once_to_each_handle() {
        let errors = ErrorMark::default();
        let (early, other) = (AtomicU32::new(errors.position()), AtomicU32::new(errors.position()));
        assert_eq!(errors.since(&early), None);
        errors.record(Errno(libc::EIO));
        let late = AtomicU32::new(errors.position());
        assert_eq!(errors.since(&early), Some(Errno(libc::EIO)));
        assert_eq!(errors.since(&early), None);
        assert_eq!(errors.since(&other), Some(Errno(libc::EIO)));
        assert_eq!(errors.since(&late), None);
        errors.record(Errno(libc::ENOSPC));
        errors.record(Errno(libc::ENOSPC));
        assert_eq!(errors.since(&late), Some(Errno(libc::ENOSPC)));
        assert_eq!(errors.since(&late), None);
    }

    #[test]
    fn refused_data_is_tried_again_later_and_later() {
        let node = FileNode::new(Ino(5));
        assert!(node.is_due(0));
        node.failed(Errno::IO, 0);
        assert!(!node.is_due(RETRY_FIRST_NS - 1));
        assert!(node.is_due(RETRY_FIRST_NS));
        node.failed(Errno::IO, 0);
        assert!(!node.is_due(RETRY_FIRST_NS));
        node.retry_now();
        assert!(node.is_due(0));
        node.failed(Errno::IO, 1 << 62);
        assert!(node.is_due(0), "a clock set back stopped retries");
    }
}
