//! Opening, making and closing files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind};
use parking_lot::Mutex;

use super::{Caller, Vfs};
use crate::control_dir::{CONTROL_BIT, Caching, Family, is_control};
use crate::errno::{Errno, Outcome};
use crate::exec_dir::FMODE_EXEC;
use crate::handle::OpenFile;
use crate::readahead::Readahead;
use crate::write_buffer::FileNode;

/// A file that was made or found, and opened.
pub struct Opened {
    /// Its attributes.
    pub attr: Attr,
    /// The handle.
    pub handle: u64,
}

/// A file that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Handle {
    /// The number the kernel carries for us.
    pub number: u64,
    /// What the kernel may keep of the content.
    pub caching: Caching,
}

/// Whether an open with these flags may change the content.
fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

/// Below `.brine` but opened without asking anybody: what every run opens.
fn opens_at_once(ino: Ino) -> bool {
    matches!(Family::of(ino), Some(Family::Launcher | Family::Code))
}

impl Vfs {
    /// Whether [`Self::open`] may have to wait for chunks being sealed.
    pub fn open_waits(&self, ino: Ino, flags: i32) -> bool {
        is_control(ino) && !opens_at_once(ino)
            || flags & libc::O_TRUNC != 0 && self.inodes.file(ino).is_some_and(|node| node.is_sealing())
            || flags & FMODE_EXEC != 0 && self.inodes.file(ino).is_some_and(|node| !node.is_clean())
    }

    /// Open a file; with O_TRUNC empty it, which may wait for chunks being sealed. What the kernel is about to run is
    /// answered by [`Self::open_to_run`].
    pub fn open(self: &Arc<Self>, caller: Caller, ino: Ino, flags: i32) -> Outcome<Handle> {
        if is_control(ino) {
            let (number, caching) = self.control.open(caller, ino, flags)?;
            return Ok(Handle { number, caching });
        }
        if self.runs(ino, flags) {
            let (number, caching) = self.open_to_run(caller, ino)?;
            return Ok(Handle { number, caching });
        }
        let writer = writes(flags);
        if writer {
            self.before_change(caller, ino)?;
            if !self.exec.pins.begin_writing(ino) {
                return Err(Errno(libc::ETXTBSY));
            }
        }
        let number = self.handle_for(self.inodes.open(ino, false), writer);
        if flags & libc::O_TRUNC != 0
            && let Err(errno) = self.truncate(caller, ino, 0)
        {
            self.close_file(number);
            return Err(errno);
        }
        Ok(Handle { number, caching: Caching::Keep })
    }

    /// Make a file, unless it is there by now and O_EXCL was not asked for, and open it.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        perm: u16,
        flags: i32,
    ) -> Outcome<Opened> {
        let made = {
            let _gate = self.buffer.change();
            self.make_under_gate(caller, parent, name, FileKind::File, perm, 0, None)
        };
        match made {
            Ok(attr) => {
                self.name_changed(caller, parent, name);
                let node = self.inodes.open(attr.ino, true);
                node.no_xattrs.store(true, Ordering::Relaxed);
                // Nobody can have pinned what is new.
                let writer = writes(flags) && self.exec.pins.begin_writing(attr.ino);
                Ok(Opened { attr, handle: self.handle_for(node, writer) })
            }
            Err(Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {
                let attr = self.volume.lookup(parent, name).map_err(|error| self.fail("lookup in", parent, &error))?;
                let handle = self.open(caller, attr.ino, flags)?.number;
                let mut attr = self.attr(attr.ino)?;
                if let Some(node) = self.inodes.remember(attr.ino) {
                    self.buffer.overlay(&node, &mut attr);
                }
                Ok(Opened { attr, handle })
            }
            Err(errno) => Err(errno),
        }
    }

    /// Keep a file open without the kernel; [`Self::close_file`] lets it go.
    pub fn hold(&self, ino: Ino) -> u64 {
        self.handle_for(self.inodes.open(ino, false), false)
    }

    /// `writer`: it was counted as one.
    fn handle_for(&self, node: Arc<FileNode>, writer: bool) -> u64 {
        let (seen, seen_commit) = (node.errors.position(), self.commit_errors.position());
        self.files.insert(OpenFile {
            node,
            readahead: Mutex::new(Readahead::default()),
            seen: AtomicU32::new(seen),
            seen_commit: AtomicU32::new(seen_commit),
            wrote: AtomicBool::new(false),
            writer,
        })
    }

    pub(super) fn file(&self, handle: u64) -> Outcome<Arc<OpenFile>> {
        self.files.get(handle).ok_or(Errno::BAD_HANDLE)
    }

    /// An error of an earlier write through this handle, told once (R10).
    pub(super) fn deferred_error(&self, file: &OpenFile) -> Outcome<()> {
        if let Some(errno) = file.node.errors.since(&file.seen) {
            return Err(errno);
        }
        if file.wrote.load(Ordering::Relaxed)
            && let Some(errno) = self.commit_errors.since(&file.seen_commit)
        {
            return Err(errno);
        }
        Ok(())
    }

    /// A descriptor is closed: the last chance to tell of an error. Nothing is written; the commit timer does that.
    pub fn flush(&self, handle: u64) -> Outcome<()> {
        if let Some(file) = self.control.file(handle) {
            return file.map(|_| ());
        }
        self.deferred_error(&*self.file(handle)?)
    }

    /// Whether a handle is a virtual file's.
    pub fn is_virtual(&self, handle: u64) -> bool {
        handle & CONTROL_BIT != 0
    }

    /// The last descriptor is closed.
    pub fn close_file(self: &Arc<Self>, handle: u64) {
        if self.control.close(handle) {
            return;
        }
        if let Some(file) = self.files.remove(handle) {
            if file.writer {
                self.exec.pins.end_writing(file.node.ino);
            }
            let gone = self.inodes.close(file.node.ino);
            self.release(gone);
        }
    }
}
