//! Between our types and those of the FUSE crate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use brine_store::volume::{Attr, FileKind, RenameFlags};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use super::TTL;
use crate::control_dir::{Family, is_passing};
use crate::vfs::Stamp;

/// Longest name, bytes.
pub(super) const NAME_MAX: u32 = 255;
/// Unit of st_blocks, bytes.
const BLOCK: u64 = 512;
/// Largest st_blksize, bytes: programs take it for a good size of one read or write.
const IO_SIZE_MAX: u32 = 1 << 20;

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind of inode that mknod(2) with this mode makes.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        // No type at all means a file.
        0 | libc::S_IFREG => FileKind::File,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

pub(super) fn rename_flags(flags: fuser::RenameFlags) -> RenameFlags {
    RenameFlags {
        no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
        exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
        owner: (0, 0),
    }
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// A time as the request has it. Times outside what 64 bits of nanoseconds hold (1677 to 2262) become the nearest.
pub(super) fn stamp(time: TimeOrNow) -> Stamp {
    let TimeOrNow::SpecificTime(time) = time else { return Stamp::Now };
    let ns = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => {
            // fuser 0.18 subtracts the nanoseconds of a time before 1970 where the kernel means them to be added.
            let distance = before.duration();
            i128::from(distance.subsec_nanos()) - i128::from(distance.as_secs()) * 1_000_000_000
        }
    };
    Stamp::At(ns.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated.div_ceil(BLOCK),
        atime: system_time(attr.atime_ns),
        mtime: system_time(attr.mtime_ns),
        ctime: system_time(attr.ctime_ns),
        crtime: system_time(attr.btime_ns),
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: (1u32 << attr.chunk_bits.min(31)).min(IO_SIZE_MAX),
        flags: 0,
    }
}

/// About what passes until something buffered is stored.
const TTL_OF_GUESS: Duration = Duration::from_secs(1);

/// How long the kernel may believe an inode's attributes.
///
/// Not at all for files with set-id bits: when a write makes us clear them, nothing tells the kernel that the mode it
/// has cached is old, and it would run the changed file with the rights of its owner. With no time to live it asks
/// before every exec and open. Not for long while a part is a guess: no more tells the kernel what it came to.
pub(super) fn attr_ttl(attr: &Attr) -> Duration {
    if attr.kind == FileKind::File && attr.perm & 0o6000 != 0 {
        Duration::ZERO
    } else if attr.guessed {
        TTL_OF_GUESS
    } else {
        name_ttl(attr)
    }
}

/// How long the kernel may believe a name of this inode: names below `.brine` come and go without its knowing, but for
/// the two directories on the way of every run, which are always there and never change.
pub(super) fn name_ttl(attr: &Attr) -> Duration {
    let always = attr.ino == Family::Control.top() || attr.ino == Family::Code.top();
    if is_passing(attr.ino) && !always { Duration::ZERO } else { TTL }
}

/// The answer to a lookup that the kernel may remember as "there is no such name": an entry with inode 0.
pub(super) fn negative_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_the_crate() {
        // What fuser makes of seconds -2 and nanoseconds 800,000,000, that is, 1.2 s before 1970.
        let broken = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(stamp(TimeOrNow::SpecificTime(broken)), Stamp::At(-1_200_000_000));
        assert_eq!(stamp(TimeOrNow::SpecificTime(UNIX_EPOCH - Duration::new(3, 0))), Stamp::At(-3_000_000_000));
        assert_eq!(system_time(-1_200_000_000), UNIX_EPOCH - Duration::new(1, 200_000_000));
        let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(stamp(TimeOrNow::SpecificTime(far)), Stamp::At(i64::MAX));
        assert_eq!(stamp(TimeOrNow::Now), Stamp::Now);
    }

    #[test]
    fn modes_name_kinds() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::File));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFDIR), None);
        assert_eq!(kind_of_mode(libc::S_IFLNK), None);
    }
}
