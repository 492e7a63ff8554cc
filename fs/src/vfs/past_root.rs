//! A past tree in place of the live one: what a mount with `-o at=` shows.
//!
//! The kernel calls the root 1, whatever it is. All else of a past tree has the numbers it has below `.brine/file/`, so
//! that nothing here knows more of it than that: only the root's number is exchanged, on the way in and on the way out.

use brine_store::ids::{Generation, Ino, ROOT_INO};

use super::Vfs;
use crate::control_dir::{Family, is_reserved};
use crate::errno::Outcome;

impl Vfs {
    /// Whether a past state is shown in place of the live one.
    pub fn shows_past(&self) -> bool {
        self.past_root.get().is_some()
    }

    /// Show the tree of a generation as the root from now on. Its generation stays pinned until the volume is closed.
    ///
    /// # Errors
    /// ENOENT if that generation is not kept.
    pub fn show_past(&self, generation: Generation) -> Outcome<()> {
        let name = format!("{}.{}", ROOT_INO.0, generation.0);
        // Never forgotten, so the tree lives as long as this does.
        let root = self.control.lookup(Family::File.top(), name.as_bytes())?;
        let _ = self.past_root.set(root.ino);
        Ok(())
    }

    /// The inode that the kernel means by a number.
    pub fn meant(&self, number: Ino) -> Ino {
        self.past_root.get().copied().filter(|_| number == ROOT_INO).unwrap_or(number)
    }

    /// The directory that the kernel means when it looks up `name` there: `.brine` is never of a past tree.
    pub fn meant_by(&self, parent: Ino, name: &[u8]) -> Ino {
        if is_reserved(parent, name) { parent } else { self.meant(parent) }
    }

    /// The number by which the kernel knows an inode.
    pub fn shown(&self, ino: Ino) -> Ino {
        match self.past_root.get() {
            // What is above the root is the root.
            Some(root) if ino == *root || ino == Family::File.top() => ROOT_INO,
            _ => ino,
        }
    }
}
