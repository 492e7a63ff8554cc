//! Bytes of row changes: what commit records and checkpoints hold. docs/FORMAT.md owns them.
//!
//! A sequence is a 2-byte version and then changes: tag (1 byte), fields in the order of the structs, little-endian,
//! fixed width; byte strings carry a length of 1, 2 or 4 bytes, fixed for the field. Nothing is allocated before the
//! bytes that would fill it are there, and every limit of [`super::rows`] is checked.

mod decode;
mod encode;

pub use decode::decode_changes;
pub use encode::{begin_changes, encode_change, encode_changes};

/// Version of the row types.
pub const CHANGES_VERSION: u16 = 1;

/// Length of what [`begin_changes`] writes, bytes.
pub const CHANGES_HEADER_LEN: usize = 2;

/// Longest value of a shelf row, bytes.
pub const SHELF_VALUE_MAX: usize = 16 << 20;
/// Longest key of a shelf row, bytes.
pub const SHELF_KEY_MAX: usize = 4096;
/// Longest patch, bytes: a chunk.
pub const PATCH_MAX: usize = 1 << 20;

// Tags are never reused.
const PUT_INODE: u8 = 1;
const DEL_INODE: u8 = 2;
const PUT_DENTRY: u8 = 3;
const DEL_DENTRY: u8 = 4;
const PUT_EXTENT: u8 = 5;
const DEL_EXTENTS: u8 = 6;
const PUT_XATTR: u8 = 7;
const DEL_XATTR: u8 = 8;
const PUT_BLOCK: u8 = 9;
const SET_REFS: u8 = 10;
const DEL_BLOCK: u8 = 11;
const PUT_SEGMENT: u8 = 12;
const DEL_SEGMENT: u8 = 13;
const PUT_PATCH: u8 = 14;
const DEL_PATCHES: u8 = 15;
const PUT_LINK: u8 = 16;
const DEL_LINK: u8 = 17;
const PUT_CUT: u8 = 18;
const DEL_CUT: u8 = 19;
const PUT_GENERATION: u8 = 20;
const DEL_GENERATION: u8 = 21;
const PUT_SNAPSHOT: u8 = 22;
const DEL_SNAPSHOT: u8 = 23;
const PUT_SHELF: u8 = 24;
const DEL_SHELF: u8 = 25;
const PUT_PAST_INODE: u8 = 26;
const PUT_PAST_DENTRY: u8 = 27;
const PUT_PAST_EXTENT: u8 = 28;
const PUT_PAST_XATTR: u8 = 29;
const DEL_PAST_INODE: u8 = 30;
const DEL_PAST_DENTRY: u8 = 31;
const DEL_PAST_EXTENT: u8 = 32;
const DEL_PAST_XATTR: u8 = 33;
const PUT_PAST_PATCH: u8 = 34;
const DEL_PAST_PATCH: u8 = 35;

/// No inline content: a length no inline content has.
const NO_INLINE: u16 = u16::MAX;
