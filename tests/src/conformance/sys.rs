//! System calls as they are, with every argument a program can give and every error the kernel answers.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// What a system call answers.
pub type Answer<T = ()> = Result<T, Errno>;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("paths hold no NUL")
}

fn value(result: i64) -> Answer<i64> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn done(result: libc::c_int) -> Answer {
    value(result.into()).map(drop)
}

macro_rules! on_path {
    ($($doc:literal $name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        #[doc = $doc]
        pub fn $name(path: &Path $(, $arg: $kind)*) -> Answer {
            let path = c(path);
            // SAFETY: the string ends with a zero byte and lives through the call; all else are integers.
            done(unsafe { libc::$name(path.as_ptr() $(, $arg)*) })
        }
    )*};
}

on_path! {
    "mkdir(2)." mkdir(mode: u32);
    "rmdir(2)." rmdir();
    "unlink(2)." unlink();
    "mknod(2)." mknod(mode: u32, device: u64);
    "chmod(2)." chmod(mode: u32);
    "chown(2)." chown(uid: u32, gid: u32);
    "lchown(2)." lchown(uid: u32, gid: u32);
    "truncate(2)." truncate(size: i64);
    "access(2)." access(mode: i32);
}

macro_rules! on_file {
    ($($doc:literal $name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        #[doc = $doc]
        pub fn $name(file: RawFd $(, $arg: $kind)*) -> Answer {
            // SAFETY: only integers are passed; the kernel checks the descriptor.
            done(unsafe { libc::$name(file $(, $arg)*) })
        }
    )*};
}

on_file! {
    "fchmod(2)." fchmod(mode: u32);
    "fchown(2)." fchown(uid: u32, gid: u32);
    "ftruncate(2)." ftruncate(size: i64);
    "fsync(2)." fsync();
    "fdatasync(2)." fdatasync();
    "fallocate(2)." fallocate(mode: i32, offset: i64, len: i64);
    "flock(2)." flock(operation: i32);
}

macro_rules! on_two_paths {
    ($($doc:literal $name:ident;)*) => {$(
        #[doc = $doc]
        pub fn $name(one: &Path, two: &Path) -> Answer {
            let (one, two) = (c(one), c(two));
            // SAFETY: both strings end with a zero byte and live through the call.
            done(unsafe { libc::$name(one.as_ptr(), two.as_ptr()) })
        }
    )*};
}

on_two_paths! {
    "link(2)." link;
    "symlink(2): the first is the target." symlink;
    "rename(2)." rename;
}

/// renameat2(2) of two paths.
pub fn rename2(one: &Path, two: &Path, flags: u32) -> Answer {
    let (one, two) = (c(one), c(two));
    // SAFETY: both strings end with a zero byte and live through the call.
    done(unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, two.as_ptr(), flags) })
}

/// open(2).
pub fn open(path: &Path, flags: i32, mode: u32) -> Answer<OwnedFd> {
    let path = c(path);
    // SAFETY: the string ends with a zero byte and lives through the call.
    let file = value(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into())?;
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(file as RawFd) })
}

/// openat(2) with a path relative to an open directory.
pub fn openat(directory: RawFd, path: &Path, flags: i32, mode: u32) -> Answer<OwnedFd> {
    let path = c(path);
    // SAFETY: the string ends with a zero byte and lives through the call.
    let file = value(unsafe { libc::openat(directory, path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into())?;
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(file as RawFd) })
}

/// readlink(2) into a buffer of `room` bytes.
pub fn readlink(path: &Path, room: usize) -> Answer<Vec<u8>> {
    let path = c(path);
    let mut target = vec![0u8; room.max(1)];
    // SAFETY: the string ends with a zero byte; the kernel writes at most `room` bytes, which the buffer has.
    let len = value(unsafe { libc::readlink(path.as_ptr(), target.as_mut_ptr().cast(), room) } as i64)?;
    target.truncate(len as usize);
    Ok(target)
}

fn stat_with(call: impl FnOnce(*mut libc::stat) -> libc::c_int) -> Answer<libc::stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    done(call(stat.as_mut_ptr()))?;
    // SAFETY: zeroed memory is a valid `stat`, and the call filled it.
    Ok(unsafe { stat.assume_init() })
}

/// stat(2).
pub fn stat(path: &Path) -> Answer<libc::stat> {
    let path = c(path);
    // SAFETY: the string ends with a zero byte, the buffer is one `stat`; both live through the call.
    stat_with(|stat| unsafe { libc::stat(path.as_ptr(), stat) })
}

/// lstat(2).
pub fn lstat(path: &Path) -> Answer<libc::stat> {
    let path = c(path);
    // SAFETY: as for stat.
    stat_with(|stat| unsafe { libc::lstat(path.as_ptr(), stat) })
}

/// fstat(2).
pub fn fstat(file: RawFd) -> Answer<libc::stat> {
    // SAFETY: the buffer is one `stat` and lives through the call; the kernel checks the descriptor.
    stat_with(|stat| unsafe { libc::fstat(file, stat) })
}

/// statvfs(3).
pub fn statvfs(path: &Path) -> Answer<libc::statvfs> {
    let path = c(path);
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the string ends with a zero byte, the buffer is one `statvfs`; both live through the call.
    done(unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) })?;
    // SAFETY: zeroed memory is a valid `statvfs`, and the call filled it.
    Ok(unsafe { stat.assume_init() })
}

/// fstatvfs(3).
pub fn fstatvfs(file: RawFd) -> Answer<libc::statvfs> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the buffer is one `statvfs` and lives through the call; the kernel checks the descriptor.
    done(unsafe { libc::fstatvfs(file, stat.as_mut_ptr()) })?;
    // SAFETY: zeroed memory is a valid `statvfs`, and the call filled it.
    Ok(unsafe { stat.assume_init() })
}

/// utimensat(2): (seconds, nanoseconds) of access and modification.
pub fn utimens(path: &Path, atime: (i64, i64), mtime: (i64, i64), flags: i32) -> Answer {
    let path = c(path);
    let times = [atime, mtime].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    // SAFETY: the string ends with a zero byte, `times` has the two elements asked for; both live through the call.
    done(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) })
}

/// utimensat(2) without times: both become now.
pub fn utimens_now(path: &Path) -> Answer {
    let path = c(path);
    // SAFETY: the string ends with a zero byte; a null pointer for the times is allowed.
    done(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), std::ptr::null(), 0) })
}

/// pread(2), or read(2) without an offset.
pub fn read(file: RawFd, len: usize, offset: Option<i64>) -> Answer<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    let place = bytes.as_mut_ptr().cast();
    let got = match offset {
        // SAFETY: the kernel writes at most `len` bytes, which the buffer has.
        Some(offset) => unsafe { libc::pread(file, place, len, offset) },
        // SAFETY: the same.
        None => unsafe { libc::read(file, place, len) },
    };
    bytes.truncate(value(got as i64)? as usize);
    Ok(bytes)
}

/// pwrite(2), or write(2) without an offset.
pub fn write(file: RawFd, bytes: &[u8], offset: Option<i64>) -> Answer<usize> {
    let place = bytes.as_ptr().cast();
    let put = match offset {
        // SAFETY: the kernel reads at most as many bytes as the slice has.
        Some(offset) => unsafe { libc::pwrite(file, place, bytes.len(), offset) },
        // SAFETY: the same.
        None => unsafe { libc::write(file, place, bytes.len()) },
    };
    value(put as i64).map(|put| put as usize)
}

/// read(2) into memory that is not there.
pub fn read_into_nowhere(file: RawFd) -> Answer<i64> {
    // SAFETY: the kernel checks the address and answers EFAULT; nothing is written.
    value(unsafe { libc::read(file, std::ptr::without_provenance_mut(1), 4096) } as i64)
}

/// write(2) from memory that is not there.
pub fn write_from_nowhere(file: RawFd) -> Answer<i64> {
    // SAFETY: the kernel checks the address and answers EFAULT; nothing is read.
    value(unsafe { libc::write(file, std::ptr::without_provenance(1), 4096) } as i64)
}

/// stat(2) of a name that is not there in memory.
pub fn stat_nowhere() -> Answer<libc::stat> {
    // SAFETY: the kernel checks the address of the name and answers EFAULT.
    stat_with(|stat| unsafe { libc::stat(std::ptr::without_provenance(1), stat) })
}

/// lseek(2).
pub fn lseek(file: RawFd, offset: i64, whence: i32) -> Answer<i64> {
    // SAFETY: only integers are passed.
    value(unsafe { libc::lseek(file, offset, whence) })
}

/// copy_file_range(2) with explicit offsets.
pub fn copy_range(from: RawFd, mut at: i64, to: RawFd, mut into: i64, len: usize, flags: u32) -> Answer<usize> {
    // SAFETY: both offsets live through the call; the kernel checks the descriptors.
    value(unsafe { libc::copy_file_range(from, &mut at, to, &mut into, len, flags) } as i64).map(|len| len as usize)
}

/// setxattr(2); of a symbolic link itself with `follow` false.
pub fn setxattr(path: &Path, name: &str, bytes: &[u8], flags: i32, follow: bool) -> Answer {
    let (path, name) = (c(path), CString::new(name).expect("names hold no NUL"));
    let call = if follow { libc::setxattr } else { libc::lsetxattr };
    // SAFETY: both strings end with a zero byte, the value is as long as told; all live through the call.
    done(unsafe { call(path.as_ptr(), name.as_ptr(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// lgetxattr(2) into a buffer of `room` bytes; with none, the length as that many zeros.
pub fn getxattr(path: &Path, name: &str, room: usize) -> Answer<Vec<u8>> {
    let (path, name) = (c(path), CString::new(name).expect("names hold no NUL"));
    let mut bytes = vec![0u8; room];
    // SAFETY: both strings end with a zero byte; the kernel writes at most `room` bytes, which the buffer has.
    let len = value(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), bytes.as_mut_ptr().cast(), room) } as i64)?;
    bytes.resize(len as usize, 0);
    Ok(bytes)
}

/// llistxattr(2) into a buffer of `room` bytes.
pub fn listxattr(path: &Path, room: usize) -> Answer<Vec<String>> {
    let path = c(path);
    let mut list = vec![0u8; room.max(1)];
    // SAFETY: the string ends with a zero byte; the kernel writes at most `room` bytes, which the buffer has.
    let len = value(unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), room) } as i64)?;
    list.truncate(if room == 0 { 0 } else { len as usize });
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// removexattr(2) without following a symbolic link.
pub fn removexattr(path: &Path, name: &str) -> Answer {
    let (path, name) = (c(path), CString::new(name).expect("names hold no NUL"));
    // SAFETY: both strings end with a zero byte and live through the call.
    done(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
}

/// fcntl(2) on a record lock: the command, the kind, and `start..start + len` from the beginning of the file. Returns
/// the kind found, of which F_GETLK and its like tell.
pub fn record_lock(file: RawFd, command: i32, kind: i32, start: i64, len: i64) -> Answer<i32> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the structure is the one these commands take and lives through the call.
    value(unsafe { libc::fcntl(file, command, &mut lock) }.into())?;
    Ok(lock.l_type.into())
}

/// fcntl(2) with an integer.
pub fn fcntl(file: RawFd, command: i32, argument: i32) -> Answer<i32> {
    // SAFETY: the commands given take an integer.
    value(unsafe { libc::fcntl(file, command, argument) }.into()).map(|answer| answer as i32)
}

/// close(2) of a number that may be no descriptor.
pub fn close(file: RawFd) -> Answer {
    // SAFETY: the caller passes numbers that nothing owns.
    done(unsafe { libc::close(file) })
}

/// mmap(2), shared, readable and perhaps writable, of `len` bytes; unmapped again.
pub fn can_map(file: &OwnedFd, len: usize, write: bool) -> Answer {
    let protection = if write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    // SAFETY: a null hint replaces no mapping; the descriptor is open.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the mapping was just made and nobody refers to it.
    done(unsafe { libc::munmap(start, len) })
}

/// Run as another user: in a thread of its own, with its own working directory and umask.
///
/// # Panics
/// If `work` does, or the identity cannot be taken.
pub fn as_user<T: Send>(uid: u32, gid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            // SAFETY: raw calls change the identity of this thread alone (the C library would change the process's);
            // the list of groups is as long as told.
            let taken = unsafe {
                libc::unshare(libc::CLONE_FS) == 0
                    && libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
                    && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                    && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
            };
            assert!(taken, "cannot become user {uid}: {}", Errno::last());
            work()
        });
        match user.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Run with another umask, in a thread of its own.
pub fn with_umask<T: Send>(mask: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only integers are passed; the thread has left the others' umask by then.
            let parted = unsafe { libc::unshare(libc::CLONE_FS) } == 0;
            assert!(parted, "unshare: {}", Errno::last());
            // SAFETY: the same.
            unsafe { libc::umask(mask) };
            work()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
