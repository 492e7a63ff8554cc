//! Bringing past states back: what the store did is told to the inode table and to the kernel's caches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use brine_store::Result as StoreResult;
use brine_store::ids::{Generation, Ino, Version};
use brine_store::volume::{Attr, Destination, Restored};

use super::{Caller, Vfs};

/// Something the kernel may have cached that is no longer so.
#[derive(Clone, Copy, Debug)]
pub enum Outdated<'a> {
    /// What a name in a directory stands for.
    Name(Ino, &'a [u8]),
    /// Attributes and content of an inode, or the listing of a directory.
    Inode(Ino),
}

/// Tells the kernel. Must not be called while an answer to the kernel, or a lock such an answer needs, is held up.
pub type TellKernel = Box<dyn Fn(Outdated<'_>) + Send + Sync>;

impl Vfs {
    /// How the kernel is told of changes that did not come through it. The first one given counts.
    pub fn set_kernel(&self, tell: TellKernel) {
        let _ = self.kernel.set(tell);
    }

    /// Tell the kernel of a change that did not come through it.
    pub fn tell_kernel(&self, what: Outdated<'_>) {
        if let Some(tell) = self.kernel.get() {
            tell(what);
        }
    }

    /// Bring a past state back under a name; see [`brine_store::volume::Volume::restore`]. Waits for disks.
    ///
    /// # Errors
    /// Its.
    pub fn restore(
        self: &Arc<Self>,
        generation: Generation,
        source: Ino,
        to: Destination<'_>,
    ) -> StoreResult<Restored> {
        let busy = |ino| self.exec.pins.holds(ino);
        let restored = self.volume.restore(&*self.buffer, generation, source, to, &busy)?;
        self.suspend_policies(&restored);
        self.brought_back(&restored);
        Ok(restored)
    }

    /// Make a directory what it was; see [`brine_store::volume::Volume::rewind`]. Waits for disks.
    ///
    /// # Errors
    /// Its.
    pub fn rewind(
        self: &Arc<Self>,
        generation: Generation,
        source: Ino,
        target: Ino,
        dry_run: bool,
    ) -> StoreResult<Restored> {
        let busy = |ino| self.exec.pins.holds(ino);
        let restored = self.volume.rewind(&*self.buffer, generation, source, target, dry_run, &busy)?;
        if !dry_run {
            self.suspend_policies(&restored);
            self.brought_back(&restored);
        }
        Ok(restored)
    }

    /// Give a file the content of another, which loses its name; see [`brine_store::volume::Volume::take_content`].
    /// Waits for disks.
    ///
    /// # Errors
    /// Its.
    pub fn take_content(
        self: &Arc<Self>,
        target: Ino,
        version: Option<Version>,
        from: (Ino, &[u8]),
    ) -> StoreResult<Attr> {
        let busy = |ino| self.exec.pins.holds(ino);
        let (attr, done) = self.volume.take_content(&*self.buffer, target, version, from, &busy)?;
        self.suspend_policies(&done);
        self.brought_back(&done);
        Ok(attr)
    }

    /// Programs that are not what they were, by the doing of whoever commands this daemon: as when a file is written.
    fn suspend_policies(&self, done: &Restored) {
        let uid = nix::unistd::geteuid().as_raw();
        let caller = Caller { uid, gid: nix::unistd::getegid().as_raw(), pid: std::process::id(), umask: 0 };
        for (directory, name) in self.exec.policies.places() {
            let renamed = done.names.iter().any(|(parent, other)| *parent == directory && *other == name);
            let stands_for = |ino: &Ino| self.volume.lookup(directory, &name).is_ok_and(|found| found.ino == *ino);
            if renamed || done.changed.iter().any(stands_for) {
                self.name_changed(caller, directory, &name);
            }
        }
    }

    pub(super) fn brought_back(self: &Arc<Self>, restored: &Restored) {
        for unlinked in &restored.unlinked {
            self.removed(*unlinked);
        }
        let mut inodes: BTreeSet<Ino> = restored.changed.iter().copied().collect();
        for ino in &inodes {
            if let Some(node) = self.inodes.file(*ino) {
                node.no_xattrs.store(false, Ordering::Relaxed);
            }
        }
        inodes.extend(restored.names.iter().map(|(parent, _)| *parent));
        inodes.extend(restored.unlinked.iter().map(|unlinked| unlinked.ino));
        let Some(tell) = self.kernel.get() else { return };
        restored.names.iter().for_each(|(parent, name)| tell(Outdated::Name(*parent, name)));
        inodes.iter().for_each(|ino| tell(Outdated::Inode(*ino)));
    }
}
