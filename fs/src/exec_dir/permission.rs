//! Whether an identity may do something with an inode, as the kernel would say it.
//!
//! The kernel checks everything that a run does by itself. This is for what the daemon looks up on a caller's behalf.

use brine_exec::Identity;
use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind, Who};

use crate::vfs::Vfs;

/// Read permission, a bit of a mode.
pub const READ: u16 = 4;
/// Write permission, a bit of a mode.
pub const WRITE: u16 = 2;
/// Execute or search permission, a bit of a mode.
pub const EXECUTE: u16 = 1;

/// Whether `who` has all of `wanted` (bits of one digit of a mode) on a living inode, by its mode and access control list.
/// Of what is gone or cannot be read nobody has anything.
pub fn permits(vfs: &Vfs, who: &Identity, ino: Ino, wanted: u16) -> bool {
    let who = Who { uid: who.uid, gid: who.gid, groups: &who.groups };
    vfs.volume().permits(ino, who, wanted).unwrap_or(false)
}

/// What the mode alone says, without access control lists: for directories whose outputs are published, whose attributes
/// come from inside an operation of the store. [`permits`] is for all else. Root reads and searches everything, and executes
/// what anybody may.
pub fn may(who: &Identity, attr: &Attr, wanted: u16) -> bool {
    if who.uid == 0 {
        let executes = attr.kind == FileKind::Directory || attr.perm & 0o111 != 0;
        return wanted & EXECUTE == 0 || executes;
    }
    let shift = if attr.uid == who.uid {
        6
    } else if attr.gid == who.gid || who.groups.contains(&attr.gid) {
        3
    } else {
        0
    };
    (attr.perm >> shift) & wanted == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use brine_store::ids::{DataId, Ino, Version};

    fn attr(perm: u16) -> Attr {
        Attr {
            ino: Ino(5),
            version: Version(1),
            kind: FileKind::File,
            perm,
            nlink: 1,
            uid: 10,
            gid: 20,
            rdev: 0,
            size: 1,
            allocated: 512,
            chunk_bits: 17,
            data: DataId(1),
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: 0,
            ino_generation: 1,
            in_exec: true,
            quota: 0,
            chunk_bytes: 0,
        }
    }

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        assert!(may(&who(10, 1, &[]), &attr(0o500), READ | EXECUTE));
        assert!(!may(&who(10, 20, &[]), &attr(0o077), READ), "the owner's digit, though the group's would do");
        assert!(may(&who(11, 20, &[]), &attr(0o010), EXECUTE));
        assert!(may(&who(11, 1, &[3, 20]), &attr(0o040), READ));
        assert!(!may(&who(11, 1, &[3]), &attr(0o770), READ));
        assert!(may(&who(11, 1, &[]), &attr(0o004), READ));
        assert!(may(&who(0, 0, &[]), &attr(0o000), READ) && !may(&who(0, 0, &[]), &attr(0o644), EXECUTE));
        assert!(may(&who(0, 0, &[]), &attr(0o010), EXECUTE));
    }
}
