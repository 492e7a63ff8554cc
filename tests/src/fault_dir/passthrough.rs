//! The filesystem behind [`super::FaultDir`]: every request becomes the same call on a real directory, or a fault.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::{FallocateFlags, fallocate};

use super::undo::UndoLog;
use super::{Control, Fault, HANG_MAX};

/// Nothing is cached: the next request sees what the test did meanwhile.
const TTL: Duration = Duration::ZERO;

/// What a request wants, for deciding whether it fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Names,
    Read,
    Write,
    Sync,
}

struct Handle {
    file: Arc<File>,
    ino: u64,
}

pub(super) struct Passthrough {
    root: PathBuf,
    control: Arc<Control>,
    paths: Mutex<HashMap<u64, PathBuf>>,
    handles: Mutex<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
}

impl Passthrough {
    pub(super) fn new(root: PathBuf, control: Arc<Control>) -> Self {
        let paths = Mutex::new(HashMap::from([(INodeNo::ROOT.0, root.clone())]));
        Self { root, control, paths, handles: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    /// Waits while hanging; fails as the fault of the moment says.
    fn gate(&self, wants: Wants) -> Result<(), Errno> {
        let mut fault = self.control.fault.lock().expect("fault lock");
        while *fault == Fault::Hang {
            let (changed, waited) = self.control.changed.wait_timeout(fault, HANG_MAX).expect("fault lock");
            fault = changed;
            if waited.timed_out() {
                *fault = Fault::None;
            }
        }
        match (*fault, wants) {
            (Fault::SlowReads(delay), Wants::Read) => {
                drop(fault);
                std::thread::sleep(delay);
                Ok(())
            }
            (Fault::NoSpace, Wants::Write) => Err(Errno::ENOSPC),
            (Fault::AllErrors, _)
            | (Fault::ReadErrors, Wants::Read)
            | (Fault::WriteErrors, Wants::Write)
            | (Fault::SyncErrors, Wants::Sync) => Err(Errno::EIO),
            _ => Ok(()),
        }
    }

    fn paths(&self) -> MutexGuard<'_, HashMap<u64, PathBuf>> {
        self.paths.lock().expect("paths lock")
    }

    fn path(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        self.paths().get(&ino.0).cloned().ok_or(Errno::ESTALE)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    fn handle(&self, fh: FileHandle) -> Result<(Arc<File>, u64), Errno> {
        let handles = self.handles.lock().expect("handles lock");
        handles.get(&fh.0).map(|handle| (handle.file.clone(), handle.ino)).ok_or(Errno::EBADF)
    }

    fn open_handle(&self, file: File, ino: u64) -> FileHandle {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().expect("handles lock").insert(fh, Handle { file: Arc::new(file), ino });
        FileHandle(fh)
    }

    fn attr(&self, path: &Path, meta: &Metadata) -> FileAttr {
        let ino = if path == self.root { INodeNo::ROOT.0 } else { meta.ino() };
        let time = |seconds: i64, nanos: i64| UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanos as u32);
        FileAttr {
            ino: INodeNo(ino),
            size: meta.len(),
            blocks: meta.blocks(),
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            crtime: UNIX_EPOCH,
            kind: FileType::from_std(meta.file_type()).unwrap_or(FileType::RegularFile),
            perm: (meta.mode() & 0o7777) as u16,
            nlink: meta.nlink() as u32,
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: meta.rdev() as u32,
            blksize: 4096,
            flags: 0,
        }
    }

    fn entry(&self, path: &Path) -> Result<FileAttr, Errno> {
        let attr = self.attr(path, &fs::symlink_metadata(path)?);
        self.paths().insert(attr.ino.0, path.to_path_buf());
        Ok(attr)
    }

    /// By path, else (removed, still open) by any handle.
    fn attr_of(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let path = self.path(ino)?;
        if let Ok(meta) = fs::symlink_metadata(&path) {
            let attr = self.attr(&path, &meta);
            if attr.ino == ino {
                return Ok(attr);
            }
        }
        let handles = self.handles.lock().expect("handles lock");
        let open = handles.values().find(|handle| handle.ino == ino.0).ok_or(Errno::ESTALE)?;
        Ok(self.attr(&path, &open.file.metadata()?))
    }

    /// Tells the undo log that something is on disk, unless the disk lies.
    fn synced(&self, note: impl FnOnce(&mut UndoLog)) -> Result<(), Errno> {
        self.gate(Wants::Sync)?;
        if *self.control.fault.lock().expect("fault lock") == Fault::LyingSyncs {
            return Ok(());
        }
        self.log(|log| {
            note(log);
            Ok(())
        })
    }

    /// Tells the undo log, if there is one.
    fn log(&self, note: impl FnOnce(&mut UndoLog) -> io::Result<()>) -> Result<(), Errno> {
        match &mut *self.control.undo() {
            Some(log) => Ok(note(log)?),
            None => Ok(()),
        }
    }

    fn created(&self, path: &Path) -> Result<(), Errno> {
        self.log(|log| {
            log.created(path);
            Ok(())
        })
    }

    fn set_attr(
        &self,
        ino: INodeNo,
        fh: Option<FileHandle>,
        size: Option<u64>,
        mode: Option<u32>,
    ) -> Result<FileAttr, Errno> {
        let path = self.path(ino)?;
        if let Some(size) = size {
            self.gate(Wants::Write)?;
            let file = match fh {
                Some(fh) => self.handle(fh)?.0,
                None => Arc::new(OpenOptions::new().read(true).write(true).open(&path)?),
            };
            let len = file.metadata()?.len();
            self.log(|log| log.will_change(ino.0, &file, size.min(len), size.abs_diff(len)))?;
            file.set_len(size)?;
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
        }
        self.attr_of(ino)
    }

    fn write_file(&self, fh: FileHandle, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        self.gate(Wants::Write)?;
        let (file, ino) = self.handle(fh)?;
        self.log(|log| log.will_change(ino, &file, offset, data.len() as u64))?;
        file.write_all_at(data, offset)?;
        Ok(data.len() as u32)
    }

    fn rename_path(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
        self.log(|log| log.will_rename(from, to))?;
        let here = nix::fcntl::AT_FDCWD;
        let flags = nix::fcntl::RenameFlags::from_bits_truncate(flags.bits());
        nix::fcntl::renameat2(here, from, here, to, flags).map_err(|errno| Errno::from_i32(errno as i32))?;
        for path in self.paths().values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
            }
        }
        Ok(())
    }

    fn list(&self, ino: INodeNo) -> Result<Vec<(u64, FileType, std::ffi::OsString)>, Errno> {
        let dir = self.path(ino)?;
        let mut entries = vec![(ino.0, FileType::Directory, ".".into()), (ino.0, FileType::Directory, "..".into())];
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((std::os::unix::fs::DirEntryExt::ino(&entry), kind, entry.file_name()));
        }
        Ok(entries)
    }
}

/// Runs a closure, so that `?` works within it.
fn attempt<T>(call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    call()
}

/// Answers with the value or the error.
macro_rules! answer {
    ($result:expr, $reply:ident, |$value:pat_param| $good:expr) => {
        match attempt(|| $result) {
            Ok($value) => $good,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for Passthrough {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(self.gate(Wants::Names).and_then(|()| self.entry(&self.child(parent, name)?)), reply, |attr| reply
            .entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self.gate(Wants::Names).and_then(|()| self.attr_of(ino)), reply, |attr| reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(self.gate(Wants::Names).and_then(|()| self.set_attr(ino, fh, size, mode)), reply, |attr| reply
            .attr(&TTL, &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        use std::os::unix::ffi::OsStrExt;
        answer!(Ok(fs::read_link(self.path(ino)?)?), reply, |target| reply.data(target.as_os_str().as_bytes()));
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        answer!(
            {
                self.gate(Wants::Write)?;
                let path = self.child(parent, name)?;
                fs::create_dir(&path)?;
                self.created(&path)?;
                fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
                self.entry(&path)
            },
            reply,
            |attr| reply.entry(&TTL, &attr, Generation(0))
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(
            {
                self.gate(Wants::Names)?;
                let path = self.child(parent, name)?;
                self.log(|log| log.will_remove(&path))?;
                Ok(fs::remove_file(&path)?)
            },
            reply,
            |()| reply.ok()
        );
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(
            {
                self.gate(Wants::Names)?;
                Ok(fs::remove_dir(self.child(parent, name)?)?)
            },
            reply,
            |()| reply.ok()
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(
            {
                self.gate(Wants::Write)?;
                self.rename_path(&self.child(parent, name)?, &self.child(newparent, newname)?, flags)
            },
            reply,
            |()| reply.ok()
        );
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        answer!(
            {
                self.gate(Wants::Write)?;
                let to = self.child(newparent, newname)?;
                fs::hard_link(self.path(ino)?, &to)?;
                self.created(&to)?;
                self.entry(&to)
            },
            reply,
            |attr| reply.entry(&TTL, &attr, Generation(0))
        );
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer!(
            {
                self.gate(Wants::Names)?;
                let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
                let file = OpenOptions::new().read(true).write(writes).open(self.path(ino)?)?;
                Ok(self.open_handle(file, ino.0))
            },
            reply,
            |fh| reply.opened(fh, FopenFlags::FOPEN_DIRECT_IO)
        );
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        answer!(
            {
                self.gate(Wants::Write)?;
                let path = self.child(parent, name)?;
                let existed = path.exists();
                let exclusive = flags & libc::O_EXCL;
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false).mode(mode & 0o7777).custom_flags(exclusive);
                let file = options.open(&path)?;
                if !existed {
                    self.created(&path)?;
                }
                let attr = self.entry(&path)?;
                Ok((attr, self.open_handle(file, attr.ino.0)))
            },
            reply,
            |(attr, fh)| reply.created(&TTL, &attr, Generation(0), fh, FopenFlags::FOPEN_DIRECT_IO)
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(
            {
                self.gate(Wants::Read)?;
                let (file, _) = self.handle(fh)?;
                let (mut bytes, mut len) = (vec![0; size as usize], 0);
                while len < bytes.len() {
                    match file.read_at(&mut bytes[len..], offset + len as u64)? {
                        0 => break,
                        more => len += more,
                    }
                }
                bytes.truncate(len);
                Ok(bytes)
            },
            reply,
            |bytes| reply.data(&bytes)
        );
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(self.write_file(fh, offset, data), reply, |len| reply.written(len));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.lock().expect("handles lock").remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(self.synced(|log| log.file_synced(ino.0)), reply, |()| reply.ok());
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(self.path(ino).and_then(|path| self.synced(|log| log.dir_synced(&path))), reply, |()| reply.ok());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answer!(self.gate(Wants::Names).and_then(|()| self.list(ino)), reply, |entries| {
            for (at, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer!(
            {
                self.gate(Wants::Names)?;
                nix::sys::statvfs::statvfs(&self.root).map_err(|errno| Errno::from_i32(errno as i32))
            },
            reply,
            |s| reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                255,
                s.fragment_size() as u32
            )
        );
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer!(
            {
                self.gate(Wants::Write)?;
                let (file, _) = self.handle(fh)?;
                let flags = FallocateFlags::from_bits_truncate(mode);
                let punches = flags.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE);
                let keeps = flags.contains(FallocateFlags::FALLOC_FL_KEEP_SIZE);
                // Space asked for without a change of length or content loses nothing in a power cut.
                if punches || !keeps {
                    let len = file.metadata()?.len();
                    let (at, len) =
                        if punches { (offset, length) } else { (len, (offset + length).saturating_sub(len)) };
                    self.log(|log| log.will_change(ino.0, &file, at, len))?;
                }
                fallocate(&*file, flags, offset as i64, length as i64).map_err(|errno| Errno::from_i32(errno as i32))
            },
            reply,
            |()| reply.ok()
        );
    }
}
