//! Opening a function to run it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind};

use super::{Caller, Vfs};
use crate::control_dir::{Caching, Opening, is_control};
use crate::errno::{Errno, Outcome};
use crate::exec_dir::pin::Pin;
use crate::exec_dir::policies::Place;
use crate::exec_dir::policy::FunctionPolicy;
use crate::exec_dir::{ExecDir, FMODE_EXEC};

/// Rounds of putting what is buffered of a file that is about to be run; a writer that keeps it busy gets ETXTBSY from
/// the kernel right after.
const SETTLE_ROUNDS: usize = 3;

/// That a file was closed is told by the kernel after close(2) returned: within this time, even if there is much to do.
const CLOSE_WAIT: Duration = Duration::from_millis(500);
const CLOSE_TICK: Duration = Duration::from_millis(2);

impl Vfs {
    /// The exec directory's state.
    pub fn exec(&self) -> &ExecDir {
        &self.exec
    }

    /// Make the exec directory, if it is not there. `None` if something else has its name.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn make_exec_directory(&self) -> brine_store::Result<Option<Attr>> {
        let _gate = self.buffer.change();
        self.volume.exec_directory()
    }

    /// Write a record of a run.
    ///
    /// # Errors
    /// The store's.
    pub fn put_run_record(&self, key: &[u8], row: &[u8]) -> brine_store::Result<()> {
        let _gate = self.buffer.change();
        self.volume.put_run_record(key, row)
    }

    /// Forget records of runs.
    ///
    /// # Errors
    /// The store's.
    pub fn forget_run_records(&self, keys: &[Vec<u8>]) -> brine_store::Result<()> {
        let _gate = self.buffer.change();
        self.volume.forget_run_records(keys)
    }

    /// Give a name a policy, or take it away.
    ///
    /// # Errors
    /// The store's.
    pub fn put_policy(&self, directory: Ino, name: &[u8], row: Option<&[u8]>) -> brine_store::Result<()> {
        let _gate = self.buffer.change();
        self.volume.put_policy(directory, name, row)
    }

    /// Whether the kernel opens a function here to run it: [`Self::open_to_run`] answers that.
    pub fn runs(&self, ino: Ino, flags: i32) -> bool {
        flags & FMODE_EXEC != 0
            && !is_control(ino)
            && self.volume.attr(ino).is_ok_and(|attr| attr.in_exec && attr.kind == FileKind::File)
    }

    /// Answer an open of a function to run it (X1): with a handle that reads one interpreter line. What was written to
    /// the file is put first, so that its version says what it holds; that may wait for a disk.
    ///
    /// # Errors
    /// EACCES while nothing can be run.
    pub fn open_to_run(self: &Arc<Self>, caller: Caller, ino: Ino) -> Outcome<(u64, Caching)> {
        let mut line = self.exec.line_start().ok_or(Errno(libc::EACCES))?;
        let pin = self.pin(ino);
        let attr = self.settled(ino)?;
        let ticket = self.exec.tickets.issue(ino, attr.version, caller.uid, pin, Instant::now());
        line.extend_from_slice(ticket.to_string().as_bytes());
        line.push(b'\n');
        let file: Arc<[u8]> = line.into();
        Ok(self.control.keep(Opening { file: Arc::new(file), caching: Caching::Direct }))
    }

    /// A file's content is about to be changed.
    ///
    /// # Errors
    /// ETXTBSY while it runs.
    pub(super) fn before_change(&self, caller: Caller, ino: Ino) -> Outcome<()> {
        if self.exec.pins.holds(ino) {
            return Err(Errno(libc::ETXTBSY));
        }
        if !self.exec.policies.is_empty() && self.volume.attr(ino).is_ok_and(|attr| attr.in_exec) {
            for (directory, name) in self.exec.policies.places() {
                if self.volume.lookup(directory, &name).is_ok_and(|found| found.ino == ino) {
                    self.name_changed(caller, directory, &name);
                }
            }
        }
        Ok(())
    }

    /// A name stands for something else, or for something changed, by the doing of `caller`: its policy is suspended
    /// unless that is who set it, or root.
    pub(super) fn name_changed(&self, caller: Caller, directory: Ino, name: &[u8]) {
        if self.exec.policies.is_empty() {
            return;
        }
        let Some(policy) = self.exec.policies.changed(&(directory, name.to_vec()), caller.uid) else { return };
        if let Err(error) = self.put_policy(directory, name, Some(&policy.encode())) {
            self.fail("suspending the policy of a function in", directory, &error);
        }
    }

    /// The policy of a file, by any of its names that has one.
    pub(super) fn policy_of(&self, ino: Ino) -> Option<FunctionPolicy> {
        let stands =
            |(directory, name): &Place| self.volume.lookup(*directory, name).is_ok_and(|found| found.ino == ino);
        self.exec.policies.places().into_iter().filter(stands).find_map(|place| self.exec.policies.get(&place).ok()?)
    }

    /// Keep a file as it is.
    pub fn pin(self: &Arc<Self>, ino: Ino) -> Arc<Pin> {
        let handle = self.hold(ino);
        Pin::new(self, ino, handle)
    }

    /// Wait until nobody has a file, which is pinned, open to be written: whoever closed it is known of a moment later.
    ///
    /// # Errors
    /// ETXTBSY if somebody keeps it so.
    pub fn await_writers(&self, ino: Ino) -> Outcome<()> {
        let deadline = Instant::now() + CLOSE_WAIT;
        while self.exec.pins.is_written(ino) {
            if Instant::now() >= deadline {
                return Err(Errno(libc::ETXTBSY));
            }
            std::thread::sleep(CLOSE_TICK);
        }
        Ok(())
    }

    /// Attributes of a file of which nothing is buffered.
    ///
    /// # Errors
    /// ETXTBSY if it is being written; the store's.
    pub fn settled(&self, ino: Ino) -> Outcome<Attr> {
        for _ in 0..SETTLE_ROUNDS {
            match self.inodes.file(ino) {
                Some(node) if !node.is_clean() => self.buffer.flush_one(&node),
                _ => return self.attr(ino),
            }
        }
        Err(Errno(libc::ETXTBSY))
    }
}
