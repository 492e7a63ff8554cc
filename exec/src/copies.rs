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
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;

use crate::plan::ProgramId;

/// Programs larger than this are not copied, bytes.
const PROGRAM_BYTES_MAX: u64 = 4 << 20;
/// All copies together, bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Size of the tmpfs, for `mount(2)`: what is in it, and what made way and still runs.
pub(crate) const TMPFS_OPTIONS: &str = "size=96m,nr_inodes=16k,mode=711";
/// Programs at most, those that could not be copied among them.
const PROGRAMS_MAX: usize = 4096;

/// Numbers are not given twice by one daemon: what a sandbox of a former spawner looks for is not there, rather than
/// another program.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The copies a spawner's sandboxes can see.
#[derive(Debug)]
pub(crate) struct Copies {
    directory: OwnedFd,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    programs: HashMap<ProgramId, Program>,
    bytes: u64,
    uses: u64,
}

#[derive(Clone, Copy, Debug)]
enum Program {
    /// Somebody is at it.
    Begun,
    /// It could not be copied; that is not tried again.
    Refused,
    /// By this number, and when it was used last.
    Copied { number: u64, used: u64 },
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
        match kept.programs.get_mut(program)? {
            Program::Copied { number, used } => {
                *used = uses;
                Some(*number)
            }
            _ => None,
        }
    }

    /// True if a program is to be copied, for the one who asks first: [`Self::keep`] or [`Self::leave`] follows.
    pub fn begin(&self, program: &ProgramId) -> bool {
        if !(1..=PROGRAM_BYTES_MAX).contains(&program.bytes) {
            return false;
        }
        let mut kept = self.kept.lock();
        if kept.programs.contains_key(program) {
            return false;
        }
        kept.programs.insert(*program, Program::Begun);
        true
    }

    /// It is not copied now; perhaps another time.
    pub fn leave(&self, program: &ProgramId) {
        self.kept.lock().programs.remove(program);
    }

    /// Copy a program that was begun and which `content` holds. Nobody may start a process meanwhile: it would have the file
    /// open to be written, so that it could not be executed.
    ///
    /// # Errors
    /// No memory, an owner who cannot be given, or the content has another length; it is not begun again then.
    pub fn keep(&self, program: &ProgramId, content: &[u8]) -> io::Result<()> {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let room = room_of(program);
        self.make_room(room);
        let written = self.write(&name(number), program, content);
        let mut kept = self.kept.lock();
        let used = kept.uses;
        let is = if written.is_ok() { Program::Copied { number, used } } else { Program::Refused };
        kept.programs.insert(*program, is);
        if written.is_ok() {
            kept.bytes += room;
        } else {
            self.unlink(number);
        }
        written
    }

    /// Those used longest ago make way. Runs that have them keep them.
    fn make_room(&self, room: u64) {
        let mut kept = self.kept.lock();
        while kept.bytes + room > BYTES_MAX || kept.programs.len() > PROGRAMS_MAX {
            let age = |program: &Program| match program {
                Program::Begun => u64::MAX,
                Program::Refused => 0,
                Program::Copied { used, .. } => *used,
            };
            let oldest =
                kept.programs.iter().min_by_key(|(_, program)| age(program)).map(|(id, program)| (*id, *program));
            let Some((id, program)) = oldest.filter(|(_, program)| !matches!(program, Program::Begun)) else { return };
            kept.programs.remove(&id);
            if let Program::Copied { number, .. } = program {
                kept.bytes -= room_of(&id);
                self.unlink(number);
            }
        }
    }

    fn unlink(&self, number: u64) {
        let _ = unlinkat(&self.directory, name(number).as_c_str(), UnlinkatFlags::NoRemoveDir);
    }

    fn write(&self, name: &CString, program: &ProgramId, content: &[u8]) -> io::Result<()> {
        use nix::fcntl::OFlag;
        if content.len() as u64 != program.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
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
}

/// What a program takes, bytes: whole pages.
fn room_of(program: &ProgramId) -> u64 {
    static PAGE: LazyLock<u64> = LazyLock::new(|| {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        page.and_then(|page| u64::try_from(page).ok()).unwrap_or(64 << 10)
    });
    program.bytes.next_multiple_of(*PAGE)
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
        let keep = |program: &ProgramId, content: &[u8]| copies.begin(program).then(|| copies.keep(program, content));
        let one = program(1, 3);
        assert_eq!(copies.find(&one), None);
        assert!(copies.begin(&one));
        assert!(!copies.begin(&one), "somebody is at it");
        assert_eq!(copies.find(&one), None);
        copies.leave(&one);
        keep(&one, b"abc").unwrap().unwrap();
        let number = copies.find(&one).unwrap();
        let file = path.join(number.to_string());
        assert_eq!(std::fs::read(&file).unwrap(), b"abc");
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.uid()), (0o750, 5, one.uid));
        // Another version, other rights: other programs.
        assert_eq!(copies.find(&ProgramId { version: 2, ..one }), None);
        assert_eq!(copies.find(&ProgramId { mode: 0o100_700, ..one }), None);
        // Nothing is left of what is not whole, which is not tried again; nothing is kept of what is empty or large.
        for (inode, content) in [(2, &b"ab"[..]), (3, b"abcd")] {
            keep(&program(inode, 3), content).unwrap().unwrap_err();
            assert!(keep(&program(inode, 3), b"abc").is_none());
        }
        let large = vec![1; PROGRAM_BYTES_MAX as usize + 1];
        assert!(keep(&program(4, 0), b"").is_none() && keep(&program(5, large.len() as u64), &large).is_none());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
        // As many as there is room for; what was used last stays.
        let count = BYTES_MAX / PROGRAM_BYTES_MAX;
        for inode in 10..10 + count {
            keep(&program(inode, PROGRAM_BYTES_MAX), &large[1..]).unwrap().unwrap();
            copies.find(&one).unwrap();
        }
        assert!(copies.find(&program(10, PROGRAM_BYTES_MAX)).is_none(), "the oldest made room");
        assert!(copies.find(&program(9 + count, PROGRAM_BYTES_MAX)).is_some());
        assert_eq!(std::fs::read_dir(&path).unwrap().count() as u64, count);
        // Another directory has none of these numbers.
        let other = path.join("other");
        std::fs::create_dir(&other).unwrap();
        let others = Copies::new(File::open(&other).unwrap().into());
        assert!(others.begin(&one));
        others.keep(&one, b"abc").unwrap();
        assert_ne!(others.find(&one), copies.find(&one));
        std::fs::remove_dir_all(path).unwrap();
    }
}
