//! Copies of programs in memory, for the runs to come.
//!
//! To execute a file of the volume asks its daemon, and to let go of it again, while the caller waits. A copy in a tmpfs asks
//! nobody. It is made of a program that has run once, by who owns the volume's content anyway; sandboxes see the one file
//! they run, read-only, and have lost the directory before the program starts. What is there belongs to one spawner and goes
//! with it.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;

use crate::plan::ProgramId;

/// Programs larger than this are not copied, bytes.
const PROGRAM_BYTES_MAX: u64 = 4 << 20;
/// All copies together, bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Size of the tmpfs, for `mount(2)`: what is in it, and its directory.
pub(crate) const TMPFS_OPTIONS: &str = "size=68m,nr_inodes=16k,mode=711";
/// Programs at most.
const COPIES_MAX: usize = 4096;

/// The copies a spawner's sandboxes can see.
#[derive(Debug)]
pub(crate) struct Copies {
    directory: OwnedFd,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    copies: HashMap<ProgramId, Copied>,
    bytes: u64,
    /// Numbers given, and uses there were.
    made: u64,
    uses: u64,
}

#[derive(Debug)]
struct Copied {
    number: u64,
    used: u64,
}

impl Copies {
    /// In this empty directory.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory, kept: Mutex::default() }
    }

    /// The number of a program's copy, if there is one: [`name`] of it is what it is called.
    pub fn find(&self, program: &ProgramId) -> Option<u64> {
        let mut kept = self.kept.lock();
        kept.uses += 1;
        let uses = kept.uses;
        let copy = kept.copies.get_mut(program)?;
        copy.used = uses;
        Some(copy.number)
    }

    /// Whether [`Self::keep`] would copy a program.
    pub fn wants(&self, program: &ProgramId) -> bool {
        (1..=PROGRAM_BYTES_MAX).contains(&program.bytes) && !self.kept.lock().copies.contains_key(program)
    }

    /// Copy a program, which `content` holds, unless it is there. Nobody may start a process meanwhile: it would have the
    /// file open to be written, so that it could not be executed.
    ///
    /// # Errors
    /// No memory, or the content has another length; there is no copy then.
    pub fn keep(&self, program: &ProgramId, content: &[u8]) -> io::Result<()> {
        if !self.wants(program) {
            return Ok(());
        }
        if content.len() as u64 != program.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let number = {
            let mut kept = self.kept.lock();
            while kept.bytes + program.bytes > BYTES_MAX || kept.copies.len() >= COPIES_MAX {
                let Some(oldest) = kept.copies.iter().min_by_key(|(_, copy)| copy.used).map(|(id, _)| *id) else {
                    break;
                };
                self.forget(&mut kept, &oldest);
            }
            kept.made += 1;
            kept.made
        };
        let name = name(number);
        if let Err(error) = self.write(&name, program, content) {
            let _ = unlinkat(&self.directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
            return Err(error);
        }
        let mut kept = self.kept.lock();
        kept.bytes += program.bytes;
        let used = kept.uses;
        kept.copies.insert(*program, Copied { number, used });
        Ok(())
    }

    fn write(&self, name: &CString, program: &ProgramId, content: &[u8]) -> io::Result<()> {
        use nix::fcntl::OFlag;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(&self.directory, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut file = File::from(file);
        file.write_all(content)?;
        // Who may execute it is who may execute the program.
        nix::unistd::fchown(&file, Some(program.uid.into()), Some(program.gid.into()))?;
        file.set_permissions(Permissions::from_mode(program.mode & 0o777))?;
        let since = u64::try_from(program.modified_ns)
            .map_or(SystemTime::UNIX_EPOCH, |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns));
        file.set_modified(since)
    }

    /// Runs that have it keep it.
    fn forget(&self, kept: &mut Kept, program: &ProgramId) {
        if let Some(copy) = kept.copies.remove(program) {
            kept.bytes -= program.bytes;
            let _ = unlinkat(&self.directory, name(copy.number).as_c_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// What a copy is called in the directory.
pub(crate) fn name(number: u64) -> CString {
    CString::new(number.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn program(inode: u64, bytes: u64) -> ProgramId {
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        ProgramId {
            inode,
            generation: 0,
            version: 1,
            bytes,
            mode: 0o100_750,
            uid: own.0,
            gid: own.1,
            modified_ns: 5_000_000_000,
        }
    }

    #[test]
    fn programs_are_kept_with_who_may_run_them_and_the_oldest_go() {
        let path = std::env::temp_dir().join(format!("brine-copies-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let copies = Copies::new(File::open(&path).unwrap().into());
        let one = program(1, 3);
        assert_eq!(copies.find(&one), None);
        copies.keep(&one, b"abc").unwrap();
        let number = copies.find(&one).unwrap();
        let file = path.join(number.to_string());
        assert_eq!(std::fs::read(&file).unwrap(), b"abc");
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.uid()), (0o750, 5, one.uid));
        // Another version, other rights: other programs.
        assert_eq!(copies.find(&ProgramId { version: 2, ..one }), None);
        assert_eq!(copies.find(&ProgramId { mode: 0o100_700, ..one }), None);
        // Nothing is left of what is not whole, and nothing is kept of what is empty or large.
        for content in [&b"ab"[..], b"abcd"] {
            copies.keep(&program(2, 3), content).unwrap_err();
        }
        copies.keep(&program(3, 0), b"").unwrap();
        let large = vec![1; PROGRAM_BYTES_MAX as usize + 1];
        copies.keep(&program(4, PROGRAM_BYTES_MAX + 1), &large).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
        // As many as there is room for; what was used last stays.
        let count = BYTES_MAX / PROGRAM_BYTES_MAX;
        for inode in 10..10 + count {
            copies.keep(&program(inode, PROGRAM_BYTES_MAX), &large[1..]).unwrap();
            copies.find(&one).unwrap();
        }
        assert!(copies.find(&program(10, PROGRAM_BYTES_MAX)).is_none(), "the oldest made room");
        assert!(copies.find(&program(9 + count, PROGRAM_BYTES_MAX)).is_some());
        assert_eq!(std::fs::read_dir(&path).unwrap().count() as u64, count);
        std::fs::remove_dir_all(path).unwrap();
    }
}
