//! Newtypes for every number and byte string that could be swapped for another.
//!
//! Promises: nothing here allocates, and `Debug` of key material prints no key.

use std::fmt;

pub use brine_kernels::geometry::ShardIndex;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);
        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;
            /// From a slice of exactly [`Self::LEN`] bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(bytes.try_into().ok()?))
            }
            /// From lower- or upper-case hexadecimal digits, two a byte.
            pub fn from_hex(text: &str) -> Option<Self> {
                let digits = text.as_bytes();
                if digits.len() != 2 * $len {
                    return None;
                }
                let mut out = [0u8; $len];
                for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
                    let high = (pair[0] as char).to_digit(16)?;
                    let low = (pair[1] as char).to_digit(16)?;
                    *byte = (high * 16 + low) as u8;
                }
                Some(Self(out))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

number!(
    /// Inode number. 1 is the root.
    Ino(u64)
);
number!(
    /// What a file's extents belong to; an inode points to one. 0 means none.
    DataId(u64)
);
number!(
    /// Compare token of one inode; grows by one with every accepted change.
    Version(u64)
);
number!(
    /// Number of one committed state of the whole volume.
    Generation(u64)
);
number!(
    /// Number of one writer's ownership of the volume; a higher one fences the lower.
    Term(u64)
);
number!(
    /// Number of a segment; never reused.
    SegmentId(u64)
);
number!(
    /// Number of a chunk within a file: its byte offset divided by the file's chunk size.
    ChunkNo(u64)
);
bytes!(
    /// Random identity of a volume.
    VolumeId,
    16
);
bytes!(
    /// Random identity of a member of the backing set.
    MemberId,
    16
);
bytes!(
    /// Random number of one segment's life, in each of its records.
    Incarnation,
    16
);
bytes!(
    /// Public name of a sealed block, derived from its key.
    BlockId,
    16
);
bytes!(
    /// Keyed digest of a chunk's plaintext; equal for equal chunks of one volume.
    ContentDigest,
    32
);

/// Key of one sealed block. Reading the block needs nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey(pub [u8; 32]);

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockKey(..)")
    }
}

/// The inode number of the root directory.
pub const ROOT_INO: Ino = Ino(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_round_trip_and_refusals() {
        let id = VolumeId([0xa5; 16]);
        assert_eq!(VolumeId::from_hex(&id.to_string()), Some(id));
        assert_eq!(VolumeId::from_hex("a5"), None);
        assert_eq!(VolumeId::from_hex(&"g".repeat(32)), None);
        assert_eq!(format!("{:?}", BlockKey([7; 32])), "BlockKey(..)");
    }
}
