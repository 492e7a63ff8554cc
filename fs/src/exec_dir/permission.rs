//! Whether an identity may do something with an inode, as the kernel would say it.
//!
//! The kernel checks everything that a run does by itself. This is for what the daemon looks up on a caller's behalf.

use brine_exec::Identity;
use brine_store::ids::Ino;
use brine_store::volume::Who;

use crate::vfs::Vfs;

/// Read permission, a bit of a mode.
pub const READ: u16 = 4;
/// Write permission, a bit of a mode.
pub const WRITE: u16 = 2;
/// Execute or search permission, a bit of a mode.
pub const EXECUTE: u16 = 1;

/// An identity, as the store knows it.
pub fn who(identity: &Identity) -> Who<'_> {
    Who { uid: identity.uid, gid: identity.gid, groups: &identity.groups }
}

/// Whether `who` has all of `wanted` (bits of one digit of a mode) on a living inode, by its mode and access control list.
/// Of what is gone or cannot be read nobody has anything.
pub fn permits(vfs: &Vfs, who: &Identity, ino: Ino, wanted: u16) -> bool {
    vfs.volume().permits(ino, self::who(who), wanted).unwrap_or(false)
}
