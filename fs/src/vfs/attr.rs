//! Attributes: reading and setting them.

use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind, SetAttr};

use super::{Atime, Caller, Vfs};
use crate::control_dir::is_control;
use crate::errno::{Errno, Outcome};
use crate::write_buffer::without_set_id;

/// Relative access times are refreshed after this long, ns: a day, as Linux does.
const ATIME_AGE_NS: i64 = 24 * 60 * 60 * 1_000_000_000;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// The time of the request.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

impl Stamp {
    fn ns(self, now_ns: i64) -> i64 {
        match self {
            Self::Now => now_ns,
            Self::At(ns) => ns,
        }
    }
}

/// What setattr sets.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttrChange {
    /// Permission bits, 0o7777.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size, bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Stamp>,
    /// Modification time.
    pub mtime: Option<Stamp>,
}

impl AttrChange {
    /// Whether anything is left to set once the size is: truncating sets mtime to now by itself.
    fn is_more_than_size(&self) -> bool {
        let mtime_done = self.size.is_some() && self.mtime == Some(Stamp::Now);
        self.perm.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.atime.is_some()
            || (self.mtime.is_some() && !mtime_done)
    }
}

impl Vfs {
    /// An inode's attributes, with what is buffered.
    pub fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if is_control(ino) {
            return self.control.attr(ino);
        }
        let mut attr = self.volume.attr(ino).map_err(|error| self.fail("getattr of", ino, &error))?;
        if let Some(node) = self.inodes.file(ino) {
            self.buffer.overlay(&node, &mut attr);
        }
        Ok(attr)
    }

    /// Whether [`Self::set_attr`] may have to wait for chunks being sealed.
    pub fn set_attr_waits(&self, ino: Ino, change: &AttrChange) -> bool {
        change.size.is_some() && self.inodes.file(ino).is_some_and(|node| node.is_sealing())
    }

    /// Set attributes. May wait for chunks being sealed if the size is among them.
    pub fn set_attr(&self, caller: Caller, ino: Ino, change: &AttrChange) -> Outcome<Attr> {
        self.check_live(ino)?;
        let now_ns = self.now_ns();
        if let Some(size) = change.size {
            self.truncate(caller, ino, size)?;
        }
        if change.is_more_than_size() {
            self.set_stored(ino, change, now_ns)?;
        }
        self.attr(ino)
    }

    /// Give a file a new size. The kernel tells no daemon of ours whether the caller has CAP_FSETID here, so only root
    /// is taken to have it. May wait for chunks being sealed.
    pub(super) fn truncate(&self, caller: Caller, ino: Ino, size: u64) -> Outcome<()> {
        self.check_writable()?;
        self.before_change(caller, ino)?;
        let node = self.inodes.file_or_new(ino);
        self.buffer
            .truncate(&node, size, self.now_ns(), caller.uid != 0)
            .map_err(|error| self.fail("truncate of", ino, &error))
    }

    fn set_stored(&self, ino: Ino, change: &AttrChange, now_ns: i64) -> Outcome<()> {
        let _gate = self.buffer.change();
        let node = self.inodes.file(ino);
        let mtime_ns = change.mtime.map(|stamp| stamp.ns(now_ns));
        let atime_ns = change.atime.map(|stamp| stamp.ns(now_ns));
        let only_times = change.perm.is_none() && change.uid.is_none() && change.gid.is_none();
        // A copy sets the times right after the content: both go to the store as one change.
        if only_times
            && let Some(node) = &node
            && self.check_writable().is_ok()
            && self.buffer.set_times(node, mtime_ns, now_ns)
        {
            if let Some(atime_ns) = atime_ns {
                self.volume.touch_atime(ino, atime_ns);
            }
            return Ok(());
        }
        let fail = |error| self.fail("setattr of", ino, &error);
        let mut perm = change.perm;
        if (change.uid.is_some() || change.gid.is_some()) && perm.is_none() {
            // Linux clears them for everyone, root included, except on directories.
            let attr = self.volume.attr(ino).map_err(fail)?;
            if attr.kind != FileKind::Directory {
                perm = without_set_id(attr.perm);
            }
        }
        let (uid, gid) = (change.uid, change.gid);
        let set = SetAttr { perm, uid, gid, atime_ns, mtime_ns, ctime_ns: Some(now_ns) };
        let attr = self.volume.set_attr(ino, &set).map_err(fail)?;
        if let Some(node) = &node {
            self.buffer.note_attr(node, &attr, mtime_ns);
        }
        Ok(())
    }

    /// Something was read. Cheap: in memory, and at most once until the next change or day.
    pub(super) fn touch_atime(&self, attr: &Attr) {
        if self.options.atime == Atime::Off || attr.kind == FileKind::Directory && !self.options.dir_atime {
            return;
        }
        let now_ns = self.now_ns();
        let stale = self.options.atime == Atime::Always
            || attr.atime_ns <= attr.mtime_ns
            || attr.atime_ns <= attr.ctime_ns
            || now_ns.saturating_sub(attr.atime_ns) >= ATIME_AGE_NS;
        if stale && self.check_writable().is_ok() {
            self.volume.touch_atime(attr.ino, now_ns);
        }
    }

    /// What a new inode's owner and mode are in a directory: one with set-group-id gives its group on.
    pub(super) fn inherit(&self, caller: Caller, parent: Ino, kind: FileKind, perm: u16) -> Outcome<(u16, u32)> {
        let directory = self.volume.attr(parent).map_err(|error| self.fail("getattr of", parent, &error))?;
        if directory.kind != FileKind::Directory {
            return Err(Errno(libc::ENOTDIR));
        }
        if directory.perm & 0o2000 == 0 {
            return Ok((perm, caller.gid));
        }
        let inherited = if kind == FileKind::Directory { 0o2000 } else { 0 };
        Ok((perm | inherited, directory.gid))
    }
}
