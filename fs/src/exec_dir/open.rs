//! `.brine/open/`: files that a run opened through its credential (X12).
//!
//! A run asks for a path; the daemon opens `.brine/open/TICKET` on its behalf and passes the descriptor. A ticket is good
//! for one open, and stands for an inode number of its own: when the run has ended every request on it fails with ESTALE,
//! wherever the descriptor went. What was read or mapped before stays with its holder.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use brine_exec::RunId;
use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind};
use parking_lot::Mutex;

use crate::control_dir::{Branch, Caching, Family, Opening, VirtualFile, plain_attr, reading_only};
use crate::errno::{Errno, Outcome};
use crate::vfs::{Caller, Outdated, Vfs};

/// What the directory may be done with: searched by name.
const DIRECTORY_PERM: u16 = 0o711;
/// Files one run may open so, in all.
const OPENS_MAX: u64 = 100_000;

/// All files that runs opened, and tickets for those about to be.
pub struct OpenFiles {
    own: Weak<OpenFiles>,
    vfs: Weak<Vfs>,
    /// By their number.
    files: Mutex<HashMap<u64, Arc<Granted>>>,
    next: AtomicU64,
    since_ns: i64,
}

/// The files one run opened.
pub struct Opened {
    of: Arc<OpenFiles>,
    revoked: Arc<AtomicBool>,
    count: AtomicU64,
}

struct Granted {
    ticket: String,
    attr: Attr,
    live: Ino,
    /// A handle of the live file.
    handle: u64,
    vfs: Weak<Vfs>,
    used: AtomicBool,
    revoked: Arc<AtomicBool>,
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(vfs) = self.vfs.upgrade() {
            vfs.close_file(self.handle);
        }
    }
}

impl OpenFiles {
    /// None yet.
    pub fn new(vfs: &Arc<Vfs>, since_ns: i64) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            own: Weak::clone(own),
            vfs: Arc::downgrade(vfs),
            files: Mutex::default(),
            next: AtomicU64::new(1),
            since_ns,
        })
    }

    /// For a run that begins.
    pub fn of_run(self: &Arc<Self>) -> Arc<Opened> {
        Arc::new(Opened { of: Arc::clone(self), revoked: Arc::default(), count: AtomicU64::new(0) })
    }

    fn granted(&self, ino: Ino) -> Outcome<Arc<Granted>> {
        let number = ino.0 & crate::control_dir::LOCAL_MASK;
        let granted = self.files.lock().get(&number).cloned().ok_or(Errno::STALE)?;
        if granted.revoked.load(Ordering::SeqCst) { Err(Errno::STALE) } else { Ok(granted) }
    }

    /// Files that are open, and tickets that are out.
    pub fn len(&self) -> usize {
        self.files.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Opened {
    /// Open a live file, reading only. The mount is asked: not to be called on a thread that answers it.
    ///
    /// # Errors
    /// Why not.
    pub fn open(&self, mountpoint: &Path, attr: &Attr) -> Result<OwnedFd, String> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= OPENS_MAX {
            return Err(format!("a run may open {OPENS_MAX} files so"));
        }
        let vfs = self.of.vfs.upgrade().ok_or("the volume is being unmounted")?;
        let number = self.of.next.fetch_add(1, Ordering::Relaxed);
        let ticket = format!("{number:x}-{}", RunId::random());
        let shown = Attr {
            ino: Family::Open.number(number, false),
            perm: 0o400,
            nlink: 1,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            in_exec: false,
            ..*attr
        };
        let granted = Granted {
            ticket: ticket.clone(),
            attr: shown,
            live: attr.ino,
            handle: vfs.hold(attr.ino),
            vfs: Weak::clone(&self.of.vfs),
            used: AtomicBool::new(false),
            revoked: Arc::clone(&self.revoked),
        };
        self.of.files.lock().insert(number, Arc::new(granted));
        let mut reading = File::options();
        reading.read(true).custom_flags(libc::O_NOFOLLOW);
        let opened = reading.open(mountpoint.join(".brine/open").join(ticket));
        opened.map(OwnedFd::from).map_err(|error| {
            let granted = self.of.files.lock().remove(&number);
            drop(granted);
            error.to_string()
        })
    }

    /// From now on none is of any use.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut gone = Vec::new();
        self.of.files.lock().retain(|number, granted| {
            let own = Arc::ptr_eq(&granted.revoked, &self.revoked);
            if own {
                gone.push((*number, Arc::clone(granted)));
            }
            !own
        });
        let Some(vfs) = self.of.vfs.upgrade() else { return };
        // What the kernel has of them goes as well.
        for (number, _) in &gone {
            vfs.tell_kernel(Outdated::Inode(Family::Open.number(*number, false)));
        }
    }
}

impl Branch for OpenFiles {
    fn family(&self) -> Family {
        Family::Open
    }

    fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if ino == Family::Open.top() {
            return Ok(plain_attr(ino, FileKind::Directory, DIRECTORY_PERM, 0, self.since_ns));
        }
        let granted = self.granted(ino)?;
        // As long as it is.
        let vfs = self.vfs.upgrade().ok_or(Errno::IO)?;
        let size = vfs.attr(granted.live).map_or(granted.attr.size, |live| live.size);
        Ok(Attr { size, ..granted.attr })
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if parent != Family::Open.top() {
            return Err(Errno(libc::ENOTDIR));
        }
        let text = std::str::from_utf8(name).ok();
        let number = text.and_then(|text| u64::from_str_radix(text.split_once('-')?.0, 16).ok());
        let found = number.and_then(|number| self.files.lock().get(&number).cloned());
        let found = found.filter(|granted| granted.ticket.as_bytes() == name && !granted.used.load(Ordering::SeqCst));
        found.map(|granted| granted.attr).ok_or(Errno::NOT_FOUND)
    }

    fn open(&self, _caller: Caller, ino: Ino, flags: i32) -> Outcome<Opening> {
        reading_only(flags)?;
        let granted = self.granted(ino)?;
        if granted.used.swap(true, Ordering::SeqCst) {
            return Err(Errno::STALE);
        }
        let number = ino.0 & crate::control_dir::LOCAL_MASK;
        let file = OpenedFile { of: Weak::clone(&self.own), granted, number };
        Ok(Opening { file: Arc::new(file), caching: Caching::Direct })
    }
}

/// An open one.
struct OpenedFile {
    of: Weak<OpenFiles>,
    granted: Arc<Granted>,
    number: u64,
}

impl VirtualFile for OpenedFile {
    fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        if self.granted.revoked.load(Ordering::SeqCst) {
            return Err(Errno::STALE);
        }
        let vfs = self.granted.vfs.upgrade().ok_or(Errno::IO)?;
        let bytes = vfs.read_now(self.granted.handle, offset, len)?;
        // Revoked while it was read: it is not told.
        if self.granted.revoked.load(Ordering::SeqCst) { Err(Errno::STALE) } else { Ok(bytes.as_slice().to_vec()) }
    }
}

impl Drop for OpenedFile {
    fn drop(&mut self) {
        let granted = self.of.upgrade().and_then(|of| of.files.lock().remove(&self.number));
        drop(granted);
    }
}
