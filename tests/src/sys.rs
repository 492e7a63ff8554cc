//! The few system calls that need `unsafe`: shared mappings, extended attributes, directory positions, aligned memory,
//! descriptors that were received.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// A writable shared mapping of a file.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<libc::c_void>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which is open for reading and writing and at least that long.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a null hint lets the kernel choose the address, so that no existing mapping is replaced; the
        // descriptor is open for the duration of the call, and the mapping needs it no longer.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: NonNull::new(start).ok_or(io::ErrorKind::InvalidInput)?, len })
    }

    /// Copies `bytes` into the mapping.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "write beyond the mapping");
        // SAFETY: offset + bytes.len() <= len was just checked, the mapping lives as long as self, and `bytes` is
        // ordinary memory, hence no part of it. Other processes may see the bytes change: plain copies, no references.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().cast::<u8>().add(offset), bytes.len())
        }
    }

    /// Copies `len` bytes out of the mapping.
    ///
    /// # Panics
    /// If they are not all within it.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "read beyond the mapping");
        let mut bytes = vec![0; len];
        // SAFETY: as in write, with source and destination exchanged.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().cast::<u8>().add(offset), bytes.as_mut_ptr(), len) }
        bytes
    }

    /// msync(MS_SYNC) of all of it.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: start and len are those of a live mapping.
        check(unsafe { libc::msync(self.start.as_ptr(), self.len, libc::MS_SYNC) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and len are those of the mapping made in new, which nobody refers to any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.len) };
    }
}

/// Memory for O_DIRECT: starts at a multiple of 4096.
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes of zero.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    /// A copy of `bytes`.
    pub fn from(bytes: &[u8]) -> Self {
        let mut aligned = Self::new(bytes.len());
        aligned.bytes_mut().copy_from_slice(bytes);
        aligned
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// lsetxattr(2); `flags` are 0, `XATTR_CREATE` or `XATTR_REPLACE`.
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: both strings end with a zero byte, value is valid for value.len() bytes; all live through the call.
    check(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

/// lgetxattr(2); values up to 64 KiB.
pub fn get_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    let mut value = vec![0u8; 65536];
    // SAFETY: both strings end with a zero byte; the kernel writes at most value.len() bytes into value.
    let len = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// llistxattr(2), sorted.
pub fn list_xattrs(path: &Path) -> io::Result<Vec<String>> {
    let path = c_path(path)?;
    let mut list = vec![0u8; 65536];
    // SAFETY: the string ends with a zero byte; the kernel writes at most list.len() bytes into list.
    let len = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// lremovexattr(2).
pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: both strings end with a zero byte and live through the call.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
}

/// copy_file_range(2) of at most `len` bytes; both positions move on. 0 at the end of `from`.
pub fn copy_file_range(from: &File, from_at: &mut i64, to: &File, to_at: &mut i64, len: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are open, both positions are valid for reading and writing through the call.
    let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), from_at, to.as_raw_fd(), to_at, len, 0) };
    usize::try_from(copied).map_err(|_| io::Error::last_os_error())
}

/// opendir(3) with positions that can be returned to.
#[derive(Debug)]
pub struct Directory(NonNull<libc::DIR>);

impl Directory {
    /// opendir(3).
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = c_path(path)?;
        // SAFETY: the string ends with a zero byte.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        NonNull::new(stream).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// The next entry's name, with the dot entries; `None` at the end.
    pub fn next_name(&mut self) -> io::Result<Option<Vec<u8>>> {
        nix::errno::Errno::clear();
        // SAFETY: the stream is open until self is dropped, and &mut self keeps other calls away.
        let entry = unsafe { libc::readdir(self.0.as_ptr()) };
        if entry.is_null() {
            let error = nix::errno::Errno::last_raw();
            return if error == 0 { Ok(None) } else { Err(io::Error::from_raw_os_error(error)) };
        }
        // SAFETY: a non-null entry is valid until the next call on the stream; its name ends with a zero byte.
        Ok(Some(unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) }.to_bytes().to_vec()))
    }

    /// telldir(3).
    pub fn tell(&self) -> i64 {
        // SAFETY: the stream is open until self is dropped.
        unsafe { libc::telldir(self.0.as_ptr()) }
    }

    /// seekdir(3), to what [`Self::tell`] gave.
    pub fn seek(&mut self, position: i64) {
        // SAFETY: the stream is open until self is dropped.
        unsafe { libc::seekdir(self.0.as_ptr(), position) };
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: the stream was opened by open and is not used afterwards.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

/// Watches a directory: inotify(7).
#[derive(Debug)]
pub struct Watch(File);

impl Watch {
    /// Of all that happens in `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = c_path(path)?;
        // SAFETY: only an integer is passed.
        let instance = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if instance < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        let file = unsafe { File::from_raw_fd(instance) };
        // SAFETY: the descriptor is open, the string ends with a zero byte.
        let watch = unsafe { libc::inotify_add_watch(instance, path.as_ptr(), libc::IN_ALL_EVENTS) };
        if watch < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(file)) }
    }

    /// What has happened: masks and names.
    pub fn events(&mut self) -> io::Result<Vec<(u32, Vec<u8>)>> {
        const HEAD: usize = 16;
        let mut bytes = vec![0u8; 64 << 10];
        let len = std::io::Read::read(&mut self.0, &mut bytes)?;
        let (mut rest, mut events) = (&bytes[..len], Vec::new());
        while rest.len() >= HEAD {
            let number = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let (mask, end) = (number(4), HEAD + number(12) as usize);
            let name = rest[HEAD..end].iter().copied().take_while(|byte| *byte != 0).collect();
            events.push((mask, name));
            rest = &rest[end..];
        }
        Ok(events)
    }
}

/// Take ownership of a descriptor that a control message brought.
pub fn own(fd: std::os::fd::RawFd) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: callers pass what the kernel made for this process a moment ago; nothing else knows it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

/// What an NFS server knows a file by: name_to_handle_at(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle(Vec<u32>);

impl Handle {
    const BYTES_MAX: u32 = 128;

    /// Of what is at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = c_path(path)?;
        // Length, type, bytes.
        let mut words = vec![0u32; 2 + Self::BYTES_MAX as usize / 4];
        words[0] = Self::BYTES_MAX;
        let mut mount = 0;
        // SAFETY: the string ends with a zero byte; the kernel writes at most as many bytes of handle as the first word
        // says, which follow it, and the number of the mount.
        check(unsafe {
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), words.as_mut_ptr().cast(), &mut mount, 0)
        })?;
        Ok(Self(words))
    }

    /// open_by_handle_at(2), for reading; `mount` is anything open on the same mount.
    pub fn open(&mut self, mount: &File) -> io::Result<File> {
        // SAFETY: the handle is as the kernel made it; the descriptor is open.
        let file = unsafe {
            libc::open_by_handle_at(mount.as_raw_fd(), self.0.as_mut_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC)
        };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        Ok(unsafe { File::from_raw_fd(file) })
    }
}

/// Tries to make a second mount of what is at `path` with the ids of a user namespace, as `mount -o X-mount.idmap` does.
/// The mount, which is attached nowhere, goes away with the answer.
pub fn map_ids(path: &Path, users: &File) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the string ends with a zero byte; all else are integers.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    let tree = unsafe { File::from_raw_fd(tree as i32) };
    // struct mount_attr: set, clear, propagation, user namespace.
    let attributes = [MOUNT_ATTR_IDMAP, 0, 0, users.as_raw_fd() as u64];
    // SAFETY: the empty path names the descriptor itself; the structure is as long as told; both live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    } as i32)
}
