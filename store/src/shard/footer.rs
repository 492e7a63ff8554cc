//! The payload of a footer record: the index of a closed segment.
//!
//! It lets scrub find every record without walking the file, and tell a hole that was punched from one that never held
//! a record. It is an aid: a segment without footer is walked header by header.

use super::{FORMAT, HeaderError, RECORD_ALIGN, RecordKind, SEGMENT_CAPACITY_MAX, SEGMENT_HEADER_LEN};
use crate::wire::{Put, Reader};

/// Most records a footer can list; so many of the shortest records fill 256 MiB.
pub const FOOTER_ENTRIES_MAX: usize = 1 << 19;

const HEAD_LEN: usize = 8;
const ENTRY_LEN: usize = 24;

/// One record of the segment, as it lies in each of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// Offset of the record, bytes.
    pub offset: u64,
    /// Its length, bytes; equal in all files.
    pub record_len: u32,
    /// Its kind.
    pub kind: RecordKind,
    /// The first eight bytes of its stripe tag.
    pub tag_prefix: [u8; 8],
}

/// The index of a closed segment, the same in each of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// Every record before the footer, in the order of their offsets.
    pub entries: Vec<FooterEntry>,
}

impl Footer {
    /// The payload of the footer record. Its stripe tag and its payload checksum are both the BLAKE3 of these bytes.
    ///
    /// # Panics
    /// If the entries overlap, are out of order, or are more than [`FOOTER_ENTRIES_MAX`]; decoding would refuse the same.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(error) = self.check() {
            panic!("refusing to write a footer that could not be read: {error}");
        }
        let mut out = Vec::with_capacity(HEAD_LEN + ENTRY_LEN * self.entries.len());
        out.put_u16(FORMAT);
        out.put_u16(0);
        out.put_u32(self.entries.len() as u32);
        for entry in &self.entries {
            out.put_u64(entry.offset);
            out.put_u32(entry.record_len);
            out.put_u8(entry.kind as u8);
            out.put(&[0; 3]);
            out.put(&entry.tag_prefix);
        }
        out
    }

    /// Reads the payload of a footer record, whose checksum the caller has verified.
    pub fn decode(payload: &[u8]) -> Result<Self, HeaderError> {
        let mut reader = Reader::new(payload);
        let format = reader.u16()?;
        if format != FORMAT {
            return Err(HeaderError::Version(format));
        }
        if reader.u16()? != 0 {
            return Err(HeaderError::Field("reserved bytes"));
        }
        let count = reader.u32()? as usize;
        if count > FOOTER_ENTRIES_MAX || reader.rest().len() != count * ENTRY_LEN {
            return Err(HeaderError::Field("number of entries"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (offset, record_len) = (reader.u64()?, reader.u32()?);
            let kind = RecordKind::from_u8(reader.u8()?).ok_or(HeaderError::Field("kind"))?;
            if reader.array()? != [0; 3] {
                return Err(HeaderError::Field("reserved bytes"));
            }
            entries.push(FooterEntry { offset, record_len, kind, tag_prefix: reader.array()? });
        }
        let footer = Self { entries };
        footer.check()?;
        Ok(footer)
    }

    /// What must hold between the entries, before writing and after reading.
    fn check(&self) -> Result<(), HeaderError> {
        if self.entries.len() > FOOTER_ENTRIES_MAX {
            return Err(HeaderError::Field("number of entries"));
        }
        let mut end = SEGMENT_HEADER_LEN as u64;
        for entry in &self.entries {
            let aligned =
                entry.offset.is_multiple_of(RECORD_ALIGN) && u64::from(entry.record_len).is_multiple_of(RECORD_ALIGN);
            if !aligned || entry.record_len == 0 || entry.offset < end || entry.offset > SEGMENT_CAPACITY_MAX {
                return Err(HeaderError::Field("entry position"));
            }
            end = entry.offset + u64::from(entry.record_len);
        }
        Ok(())
    }
}
