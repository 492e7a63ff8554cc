//! The FUSE adapter: unpacks a request, calls one [`Vfs`] method, packs the answer. Nothing is decided here but on which
//! thread a request runs: what may wait for a disk goes to a worker, with its reply.
//!
//! The kernel may cache everything for long: all changes come through it, as the daemon is the volume's only writer.

mod answer;
mod busy;
mod convert;
mod session;
mod write;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind};
use fuser::{
    AccessFlags, BsdFileFlags, Errno as Code, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::control_dir::{is_control, is_passing};
use crate::errno::{Errno, Outcome};
use crate::vfs::{AttrChange, Caller, FilePlace, ReadBytes, ReadStart, Room, Vfs};
use answer::code;
use busy::Device;
use convert::{attr_ttl, file_attr, file_type, kind_of_mode, negative_entry, rename_flags, stamp};
pub use session::{FuseConfig, Unmounter, serve, serve_with};
use write::Write;

/// Largest write request, bytes: what the kernel allows by default.
const WRITE_MAX: u32 = 1 << 20;
/// Reads of at least this many bytes are taken for read-ahead, writes for part of a stream.
const READ_AHEAD_MIN: u32 = 64 << 10;
/// Background requests (read-ahead, release) the kernel may have in flight.
const BACKGROUND_MAX: u16 = 64;
/// How long the kernel may believe a name, and attributes.
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// What we use of what the kernel offers; what it does not offer is done without.
///
/// Not ATOMIC_O_TRUNC: with it O_RDONLY | O_TRUNC reaches us before the kernel has seen that the file is a program that
/// runs, and empties it.
/// HANDLE_KILLPRIV_V2: we clear set-id bits on write, truncate and chown. It also lets the kernel remember that a file
/// has no capabilities; without it, every write would first ask for `security.capability`. The kernel does not forget
/// the mode it has cached when a write makes us clear bits: see [`convert::attr_ttl`].
/// EXPORT_SUPPORT: file handles (NFS) outlive what the kernel has cached; they ask for "." and "..".
/// POSIX_ACL: the kernel enforces access control lists; DONT_MASK: it leaves the umask to us, which a default list
/// overrides.
/// EXPLICIT_INVAL_DATA: pages are never dropped because attributes changed; our own changes all came through the kernel.
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// Serves the kernel's requests from a [`Vfs`].
struct Adapter {
    vfs: Arc<Vfs>,
    /// Where requests come from.
    device: Device,
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask: 0 }
}

/// The caller of a request that makes something.
fn maker(request: &Request, umask: u32) -> Caller {
    Caller { umask: (umask & 0o777) as u16, ..caller(request) }
}

impl Adapter {
    fn ino(&self, number: INodeNo) -> Ino {
        self.vfs.meant(Ino(number.0))
    }

    /// Answer with `outcome`. If that is EDQUOT, do once more what `again` gives, which owns what the request lent, when
    /// what was removed just before has been given back; out of the way of other requests, which may give it back.
    fn answer_within_quota<T, A: FnOnce(&Arc<Vfs>) -> Outcome<T> + Send + 'static>(
        &self,
        outcome: Outcome<T>,
        again: impl FnOnce() -> A,
        answer: impl FnOnce(Outcome<T>) + Send + 'static,
    ) {
        if !matches!(outcome, Err(Errno::QUOTA)) {
            return answer(outcome);
        }
        let (vfs, again) = (Arc::clone(&self.vfs), again());
        self.vfs.io().run(move || {
            vfs.await_given_back();
            answer(again(&vfs));
        });
    }

    #[allow(clippy::too_many_arguments)] // the request's fields
    fn make(
        &self,
        maker: Caller,
        parent: INodeNo,
        name: &OsStr,
        kind: FileKind,
        perm: u16,
        rdev: u32,
        target: Option<&[u8]>,
        reply: ReplyEntry,
    ) {
        let (parent, name) = (self.ino(parent), name.as_bytes());
        let outcome = self.vfs.make(maker, parent, name, kind, perm, rdev, target);
        let again = || {
            let (name, target) = (name.to_vec(), target.map(<[u8]>::to_vec));
            move |vfs: &Arc<Vfs>| vfs.make(maker, parent, &name, kind, perm, rdev, target.as_deref())
        };
        self.answer_within_quota(outcome, again, move |outcome| answer::entry(outcome, reply));
    }
}

fn answer_lookup(vfs: &Vfs, parent: Ino, name: &[u8], reply: ReplyEntry) {
    match vfs.lookup(parent, name) {
        // What is not there now may be soon, without the kernel's doing.
        Err(Errno::NOT_FOUND) if !is_passing(parent) => {
            reply.entry_with_ttls(&Duration::ZERO, &TTL, &negative_entry(), Generation(0));
        }
        outcome => answer::entry(outcome.map(|attr| Attr { ino: vfs.shown(attr.ino), ..attr }), reply),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            // What an older kernel lacks costs speed, or is done by it.
            let _ = config.add_capabilities(capability);
        }
        // Both are within the bounds fuser checks.
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.vfs.note_use();
        let _turn = self.device.turn();
        let parent = self.vfs.meant_by(Ino(parent.0), name.as_bytes());
        if is_control(parent) {
            let (vfs, name) = (Arc::clone(&self.vfs), name.as_bytes().to_vec());
            self.vfs.io().run(move || answer_lookup(&vfs, parent, &name, reply));
        } else {
            answer_lookup(&self.vfs, parent, name.as_bytes(), reply);
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        // The root is there as long as the mount is, whichever tree's it is.
        self.vfs.forget(Ino(node.0), count);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let _turn = self.device.turn();
        let outcome = self.vfs.attr(self.ino(node));
        answer::attr(outcome.map(|attr| Attr { ino: self.vfs.shown(attr.ino), ..attr }), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _turn = self.device.turn();
        self.vfs.note_use();
        let perm = mode.map(|mode| (mode & 0o7777) as u16);
        let change = AttrChange { perm, uid, gid, size, atime: atime.map(stamp), mtime: mtime.map(stamp) };
        let (caller, node) = (caller(request), self.ino(node));
        if self.vfs.set_attr_waits(node, &change) {
            let vfs = Arc::clone(&self.vfs);
            self.vfs.io().run(move || {
                answer::attr(vfs.within_quota(|| vfs.set_attr(caller, node, &change)), reply);
            });
        } else {
            let outcome = self.vfs.set_attr(caller, node, &change);
            let again = || move |vfs: &Arc<Vfs>| vfs.set_attr(caller, node, &change);
            self.answer_within_quota(outcome, again, move |outcome| answer::attr(outcome, reply));
        }
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        let _turn = self.device.turn();
        answer::data(self.vfs.read_link(self.ino(node)).map(ReadBytes::Owned), reply);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _turn = self.device.turn();
        let Some(kind) = kind_of_mode(mode) else { return reply.error(code(Errno::INVALID)) };
        let perm = (mode & 0o7777) as u16;
        self.make(maker(request, umask), parent, name, kind, perm, rdev, None, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _turn = self.device.turn();
        let (kind, perm) = (FileKind::Directory, (mode & 0o7777) as u16);
        self.make(maker(request, umask), parent, name, kind, perm, 0, None, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.device.turn();
        answer::empty(self.vfs.unlink(self.ino(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.device.turn();
        answer::empty(self.vfs.rmdir(self.ino(parent), name.as_bytes()), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _turn = self.device.turn();
        let target = Some(target.as_os_str().as_bytes());
        self.make(caller(request), parent, name, FileKind::Symlink, 0o777, 0, target, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _turn = self.device.turn();
        let (parent, new_parent, flags) = (self.ino(parent), self.ino(new_parent), rename_flags(flags));
        let (caller, name, new_name) = (caller(request), name.as_bytes(), new_name.as_bytes());
        let outcome = self.vfs.rename(caller, parent, name, new_parent, new_name, flags);
        // A whiteout left behind is an inode more.
        let again = || {
            let (name, new_name) = (name.to_vec(), new_name.to_vec());
            move |vfs: &Arc<Vfs>| vfs.rename(caller, parent, &name, new_parent, &new_name, flags)
        };
        self.answer_within_quota(outcome, again, move |outcome| answer::empty(outcome, reply));
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = self.device.turn();
        answer::entry(self.vfs.link(caller(request), self.ino(node), self.ino(parent), name.as_bytes()), reply);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.vfs.note_use();
        let (caller, node, flags) = (caller(request), self.ino(node), flags.0);
        // The kernel reads the interpreter line next.
        let (runs, waits) = (self.vfs.runs(node, flags), self.vfs.open_waits(node, flags));
        let _turn = if runs && !waits { self.device.followed_turn() } else { self.device.turn() };
        if waits {
            let vfs = Arc::clone(&self.vfs);
            self.vfs.io().run(move || answer::open(vfs.open(caller, node, flags), flags, reply));
        } else {
            answer::open(self.vfs.open(caller, node, flags), flags, reply);
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.vfs.note_use();
        let _turn = self.device.turn();
        let perm = (mode & 0o7777) as u16;
        let (maker, parent) = (maker(request, umask), self.ino(parent));
        let outcome = self.vfs.create(maker, parent, name.as_bytes(), perm, flags);
        let again = || {
            let name = name.as_bytes().to_vec();
            move |vfs: &Arc<Vfs>| vfs.create(maker, parent, &name, perm, flags)
        };
        self.answer_within_quota(outcome, again, move |outcome| answer::created(outcome, flags, reply));
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Larger reads are read-ahead, which works best beside its reader.
        let _turn = (size < READ_AHEAD_MIN).then(|| self.device.turn());
        match self.vfs.read(handle.0, offset, size as usize) {
            Ok(ReadStart::Done(bytes)) => answer::data(Ok(bytes), reply),
            Ok(ReadStart::Waits(pending)) => {
                let vfs = Arc::clone(&self.vfs);
                self.vfs.io().run(move || answer::data(pending.finish(&vfs), reply));
            }
            Ok(ReadStart::Control(file)) => self.vfs.io().run(move || {
                answer::data(file.read(offset, size as usize).map(ReadBytes::Owned), reply);
            }),
            Err(errno) => answer::data(Err(errno), reply),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _turn = (data.len() < READ_AHEAD_MIN as usize).then(|| self.device.turn());
        let drop_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.vfs.room_for(data.len()) {
            Room::Now => {
                if let Some(turn) = self.vfs.turn_ahead(handle.0, data.len()) {
                    let (vfs, write) = (Arc::clone(&self.vfs), Write::new(handle, offset, data, drop_set_id, reply));
                    return self.vfs.storers().run(move || {
                        vfs.store_ahead(write.handle, write.offset, &write.data);
                        drop(turn);
                        match vfs.room_for(write.data.len()) {
                            Room::Now => {
                                let outcome = write.carry_out(&vfs);
                                write.answer(&vfs, outcome);
                            }
                            Room::Later => Arc::clone(&vfs).writers().run(move || write.when_room(&vfs)),
                        }
                    });
                }
                let outcome = self.vfs.write(handle.0, offset, data, drop_set_id);
                let again = || {
                    let data = data.to_vec();
                    move |vfs: &Arc<Vfs>| vfs.write(handle.0, offset, &data, drop_set_id)
                };
                self.answer_within_quota(outcome, again, move |outcome| answer::written(outcome, reply));
            }
            Room::Later => {
                let (vfs, write) = (Arc::clone(&self.vfs), Write::new(handle, offset, data, drop_set_id, reply));
                self.vfs.writers().run(move || write.when_room(&vfs));
            }
        }
    }

    fn flush(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let _turn = self.device.turn();
        answer::empty(self.vfs.flush(handle.0), reply);
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Of an interpreter line or a code node: its process has something else to do than to ask, and needs the processor.
        let _turn = (!self.vfs.is_virtual(handle.0)).then(|| self.device.turn());
        self.vfs.close_file(handle.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.vfs.sync_file(handle.0, move |outcome| answer::empty(outcome, reply));
    }

    fn fsyncdir(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.vfs.sync_all(move |outcome| answer::empty(outcome, reply));
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.device.turn();
        self.vfs.note_use();
        let handle = FileHandle(self.vfs.open_dir(self.ino(node)));
        let keep = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(handle, if is_passing(self.ino(node)) { FopenFlags::empty() } else { keep });
    }

    fn readdir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let vfs = Arc::clone(&self.vfs);
        let job = move || {
            let outcome = vfs.read_dir(handle.0, offset, false, &mut |item| {
                reply.add(
                    INodeNo(vfs.shown(item.ino).0),
                    item.offset,
                    file_type(item.kind),
                    OsStr::from_bytes(item.name),
                )
            });
            match outcome {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(code(errno)),
            }
        };
        if self.vfs.read_dir_waits(handle.0, offset) { self.vfs.io().run(job) } else { job() }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let vfs = Arc::clone(&self.vfs);
        let job = move || {
            let outcome = vfs.read_dir(handle.0, offset, true, &mut |item| {
                let Some(attr) = item.attr else { return false };
                let (name, generation) = (OsStr::from_bytes(item.name), Generation(attr.ino_generation.into()));
                // fuser takes one lifetime for both; names that may change are those whose attributes may.
                reply.add(
                    INodeNo(vfs.shown(item.ino).0),
                    item.offset,
                    name,
                    &attr_ttl(attr),
                    &file_attr(attr),
                    generation,
                )
            });
            match outcome {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(code(errno)),
            }
        };
        if self.vfs.read_dir_waits(handle.0, offset) { self.vfs.io().run(job) } else { job() }
    }

    fn releasedir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _turn = self.device.turn();
        self.vfs.close_dir(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, node: INodeNo, reply: ReplyStatfs) {
        match self.vfs.stat_fs(self.ino(node)) {
            Ok(stat) => reply.statfs(
                stat.blocks,
                stat.free,
                stat.available,
                stat.files,
                stat.files_free,
                stat.block_size,
                convert::NAME_MAX,
                stat.block_size,
            ),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _turn = self.device.turn();
        answer::empty(self.vfs.set_xattr(caller(request), self.ino(node), name.as_bytes(), value, flags), reply);
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _turn = self.device.turn();
        answer::xattr(self.vfs.get_xattr(self.ino(node), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        answer::xattr(self.vfs.list_xattrs(caller(request), self.ino(node)), size, reply);
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer::empty(self.vfs.remove_xattr(caller(request), self.ino(node), name.as_bytes()), reply);
    }

    /// Asked only without `default_permissions`; the kernel takes ENOSYS for yes, and asks no more.
    fn access(&self, _request: &Request, _node: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Code::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (vfs, caller) = (Arc::clone(&self.vfs), caller(request));
        self.vfs.io().run(move || {
            answer::empty(vfs.within_quota(|| vfs.allocate(caller, handle.0, offset, length, mode)), reply);
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.vfs.seek(handle.0, offset, whence) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (vfs, caller) = (Arc::clone(&self.vfs), caller(request));
        let from = FilePlace { handle: handle_in.0, offset: offset_in };
        let to = FilePlace { handle: handle_out.0, offset: offset_out };
        self.vfs.io().run(move || {
            answer::written(vfs.within_quota(|| vfs.copy_range(caller, from, to, len)), reply);
        });
    }

    /// No device answers here: what tells terminals and the like from files.
    fn ioctl(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _flags: fuser::IoctlFlags,
        _command: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Code::ENOTTY);
    }
}
