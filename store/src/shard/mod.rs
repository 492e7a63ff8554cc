//! The bytes around every shard: record headers, the head of a segment file, its footer.
//!
//! Promises: what decodes is bounded and consistent with itself; checksums can be verified without a key, MACs with the
//! header key alone. Pure. It does not know what a message holds, nor which shards are good.
//! FORMAT.md section 5 owns the bytes.

mod footer;
mod record;
mod segment;
#[cfg(test)]
mod tests;

use crate::ids::SegmentId;

pub use footer::{FOOTER_ENTRIES_MAX, Footer, FooterEntry};
pub use record::{
    BLOCKS_PER_STRIPE_MAX, BlockEntry, CommitHeader, HEADER_LEN_MAX, MESSAGE_LEN_MAX, PARTS_MAX, RECORD_ALIGN,
    RecordHeader, RecordKind, UnverifiedHeader, looks_like_record, payload_checksum, quick_check, record_len,
    stripe_tag,
};
pub use segment::{SEGMENT_CAPACITY_MAX, SEGMENT_HEADER_LEN, SegmentHeader, UnverifiedSegmentHeader};

/// Where a sealed block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// Offset of the stripe's record in each of the segment's files, bytes.
    pub stripe: u64,
    /// Offset of the sealed block in the stripe's message, bytes.
    pub offset: u32,
    /// Length of the sealed block, bytes.
    pub len: u32,
}

/// Why a header does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// All zero: never written, a hole of a whole-copy record, punched, or lost.
    #[error("nothing written here")]
    Empty,
    /// The bytes end before the header does.
    #[error("{have} bytes, the header needs {need}")]
    Short {
        /// Bytes given.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Other bytes than a header's.
    #[error("no header here")]
    Magic,
    /// Written by a newer version.
    #[error("format {0} is not known to this version; use a newer one")]
    Version(u16),
    /// The checksum does not hold.
    #[error("the checksum does not hold")]
    Checksum,
    /// A sound checksum over fields that contradict each other: a defect of the writer, or forged.
    #[error("inconsistent field: {0}")]
    Field(&'static str),
    /// Not made with this volume's key.
    #[error("the MAC does not hold")]
    Mac,
}

impl From<crate::wire::Short> for HeaderError {
    fn from(_: crate::wire::Short) -> Self {
        Self::Field("the fields do not fit into the length")
    }
}

/// Format number of record headers, segment headers and footers.
const FORMAT: u16 = 1;

/// Looks at the first bytes of a header: is there one of this kind and format?
fn check_head(bytes: &[u8], magic: &[u8; 8], len_min: usize) -> Result<(), HeaderError> {
    let head = bytes.get(..len_min).ok_or(HeaderError::Short { have: bytes.len(), need: len_min })?;
    if !head.starts_with(magic) {
        let empty = head.iter().all(|&byte| byte == 0);
        return Err(if empty { HeaderError::Empty } else { HeaderError::Magic });
    }
    Ok(())
}
