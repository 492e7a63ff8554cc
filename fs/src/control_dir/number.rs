//! Inode numbers of what is below `.brine`.
//!
//! The store counts inodes up from 1 and keeps numbers below 2^63, so a number with the top bit set is never a live
//! one's. Below it: 7 bits of the family (which part of the tree), one that says that the inode will never change, and
//! 55 that belong to the part.

use brine_store::ids::Ino;

/// Set in every number of this tree, and in every handle of its files; in no other.
pub const CONTROL_BIT: u64 = 1 << 63;
const FAMILY_SHIFT: u32 = 56;
/// What has it may be cached by the kernel for as long as it likes.
const LASTING_BIT: u64 = 1 << 55;
/// The bits that are a part's own.
pub const LOCAL_MASK: u64 = LASTING_BIT - 1;

/// A part of the tree. Its number is part of inode numbers: never give one anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// `.brine` itself.
    Control = 0,
    /// `.brine/snapshots/`.
    Snapshots = 1,
    /// `.brine/at/`.
    At = 2,
    /// `.brine/file/`.
    File = 3,
    /// `.brine/code/`.
    Code = 16,
    /// `.brine/open/`.
    Open = 17,
    /// `.brine/runs/`.
    Runs = 18,
    /// `.brine/launcher`.
    Launcher = 19,
    /// `.brine/exec.sock`.
    ExecSocket = 20,
    /// `.brine/stage/`.
    Stage = 21,
}

impl Family {
    const ALL: [Self; 10] = [
        Self::Control,
        Self::Snapshots,
        Self::At,
        Self::File,
        Self::Code,
        Self::Open,
        Self::Runs,
        Self::Launcher,
        Self::ExecSocket,
        Self::Stage,
    ];

    /// The name in `.brine`; of `.brine` itself its own.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Control => super::CONTROL_NAME,
            Self::Snapshots => b"snapshots",
            Self::At => b"at",
            Self::File => b"file",
            Self::Code => b"code",
            Self::Open => b"open",
            Self::Runs => b"runs",
            Self::Launcher => b"launcher",
            Self::ExecSocket => b"exec.sock",
            Self::Stage => b"stage",
        }
    }

    /// The number of what stands in `.brine` itself.
    pub fn top(self) -> Ino {
        self.number(0, false)
    }

    /// The number of an inode of this part. `lasting`: neither it nor anything below it ever changes.
    pub fn number(self, local: u64, lasting: bool) -> Ino {
        let lasting = if lasting { LASTING_BIT } else { 0 };
        Ino(CONTROL_BIT | (self as u64) << FAMILY_SHIFT | lasting | local & LOCAL_MASK)
    }

    /// Whose number this is; `None` for a live inode's, and for families there are not.
    pub fn of(ino: Ino) -> Option<Self> {
        let family = (ino.0 >> FAMILY_SHIFT) as u8 & 0x7f;
        Self::ALL.into_iter().find(|known| is_control(ino) && *known as u8 == family)
    }
}

/// Whether this is a number of this tree, not a live inode's.
pub fn is_control(ino: Ino) -> bool {
    ino.0 & CONTROL_BIT != 0
}

/// Whether the kernel must ask again each time: names and attributes of this inode may change without its knowing.
pub fn is_passing(ino: Ino) -> bool {
    is_control(ino) && ino.0 & LASTING_BIT == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_equal_a_live_ones() {
        for family in Family::ALL {
            for local in [0, 1, LOCAL_MASK, u64::MAX] {
                for lasting in [false, true] {
                    let ino = family.number(local, lasting);
                    assert!(ino.0 > i64::MAX as u64, "the store's numbers are positive 64-bit ones");
                    assert_eq!(Family::of(ino), Some(family));
                    assert_eq!(is_passing(ino), !lasting);
                }
            }
        }
        assert_eq!(Family::of(Ino(1)), None);
        assert_eq!(Family::of(Ino(i64::MAX as u64)), None);
        assert!(!is_passing(Ino(1)), "a live inode only changes through the kernel");
    }
}
