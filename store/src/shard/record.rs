//! Record headers.

use std::ops::Range;

use super::{FORMAT, HeaderError, check_head};
use crate::geometry::{Geometry, SLOTS_MAX};
use crate::ids::{BlockId, Generation, Incarnation, SegmentId, ShardIndex, Term, VolumeId};
use crate::seal::TAG_LEN;
use crate::wire::{Put, Reader, TRAILER_LEN, Trailer, append_trailer, check_trailer};

/// Records start at multiples of this, bytes: the sector size that disks write at once.
pub const RECORD_ALIGN: u64 = 512;

/// Most sealed blocks in one stripe.
pub const BLOCKS_PER_STRIPE_MAX: usize = 255;

/// Longest message of a stripe, bytes. A commit part is at most 16 MiB, a stripe of blocks far less; the rest is room.
pub const MESSAGE_LEN_MAX: usize = 32 << 20;

/// Most parts of one commit record: 1024 x 16 MiB of row changes in one generation.
pub const PARTS_MAX: u16 = 1024;

const MAGIC: [u8; 8] = *b"brineREC";
const FIXED_LEN: usize = 144;
const BLOCK_LEN: usize = 24;
const COMMIT_LEN: usize = 72;

/// Headers are multiples of this, bytes, so that payloads are aligned for vector code.
const HEADER_ALIGN: usize = 64;

/// Longest header, bytes; the shortest is 192.
pub const HEADER_LEN_MAX: usize = header_len_of(BLOCKS_PER_STRIPE_MAX, false);

/// Bytes with which a header is recognised, and all that [`quick_check`] looks at.
const QUICK_LEN: usize = 64;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// One shard of a stripe of sealed blocks.
    Stripe = 1,
    /// One shard of a commit record's message.
    CommitShard = 2,
    /// A commit record's whole message, the same in each slot that holds one.
    CommitCopy = 3,
    /// The index of a closed segment, the same in each slot.
    Footer = 4,
}

impl RecordKind {
    pub(super) fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Stripe),
            2 => Some(Self::CommitShard),
            3 => Some(Self::CommitCopy),
            4 => Some(Self::Footer),
            _ => None,
        }
    }

    /// Whether the payload is the whole message, not a shard of it.
    pub fn is_copy(self) -> bool {
        matches!(self, Self::CommitCopy | Self::Footer)
    }

    /// Whether the header carries a [`CommitHeader`].
    pub fn is_commit(self) -> bool {
        matches!(self, Self::CommitShard | Self::CommitCopy)
    }
}

/// A sealed block of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Its public name.
    pub id: BlockId,
    /// Its position in the stripe's message, bytes.
    pub offset: u32,
    /// Its length, bytes.
    pub len: u32,
}

/// What only records of commit kinds carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// Term of the writer.
    pub term: Term,
    /// The generation this record makes.
    pub generation: Generation,
    /// Which part of the generation's record, 0..parts.
    pub part: u16,
    /// Number of parts, 1..=[`PARTS_MAX`].
    pub parts: u16,
    /// Slots that must sync before the generation is answered; bit i is slot i.
    pub ack_set: u64,
    /// Slots that hold a copy (of a shard kind: a shard); the others keep a hole.
    pub copies: u64,
    /// The key of this message is derived from the log key and these.
    pub random: [u8; 32],
}

/// The header of one record in one file of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record holds.
    pub kind: RecordKind,
    /// The volume.
    pub volume: VolumeId,
    /// The segment.
    pub segment: SegmentId,
    /// Random number of the segment's life.
    pub incarnation: Incarnation,
    /// Offset of this record in the segment file, bytes; a multiple of [`RECORD_ALIGN`].
    pub offset: u64,
    /// Which shard; of copies the slot that holds this one.
    pub shard: ShardIndex,
    /// Geometry of the segment.
    pub geometry: Geometry,
    /// Length of the message before it was padded with zeros to k shards, bytes.
    pub message_len: u32,
    /// Length of the payload, bytes; of footers equal to `message_len`, of commit copies at least that.
    pub shard_len: u32,
    /// See [`stripe_tag`]; of a footer the BLAKE3 of its payload.
    pub stripe_tag: [u8; 32],
    /// See [`payload_checksum`].
    pub payload_checksum: [u8; 32],
    /// The sealed blocks of a stripe in the order of their offsets; empty in other kinds.
    pub blocks: Vec<BlockEntry>,
    /// Present in commit kinds only.
    pub commit: Option<CommitHeader>,
}

/// Identity of a stripe: BLAKE3 of the tags (the last 16 bytes) of its sealed messages, in order.
///
/// # Panics
/// If a message is shorter than a tag.
pub fn stripe_tag<'a>(sealed: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for message in sealed {
        hasher.update(message.last_chunk::<TAG_LEN>().expect("a sealed message ends with its tag"));
    }
    *hasher.finalize().as_bytes()
}

/// Checksum of a record's payload: plain BLAKE3 of its `shard_len` bytes, so that scrub needs no key.
pub fn payload_checksum(payload: &[u8]) -> [u8; 32] {
    *blake3::hash(payload).as_bytes()
}

/// Length of a record in its file, bytes: header and payload, padded with zeros to [`RECORD_ALIGN`].
pub fn record_len(header_len: usize, shard_len: usize) -> u64 {
    (header_len as u64 + shard_len as u64).next_multiple_of(RECORD_ALIGN)
}

const fn header_len_of(blocks: usize, commit: bool) -> usize {
    let commit_len = if commit { COMMIT_LEN } else { 0 };
    (FIXED_LEN + BLOCK_LEN * blocks + commit_len + TRAILER_LEN).next_multiple_of(HEADER_ALIGN)
}

/// A cheap look at the front of a record: is it the one that should lie here, and where is its payload?
/// Nothing is hashed; the tag of what the payload holds must be checked by the caller. `None`: another record, or
/// `bytes` ends before the payload does.
pub fn quick_check(bytes: &[u8], incarnation: Incarnation, offset: u64, shard: ShardIndex) -> Option<Range<usize>> {
    let head = bytes.first_chunk::<QUICK_LEN>()?;
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let same = head[..8] == MAGIC
        && head[8..10] == FORMAT.to_le_bytes()
        && head[11] == shard.0
        && head[40..48] == offset.to_le_bytes()
        && head[48..64] == incarnation.0;
    let (header_len, shard_len) = (number(16), number(20));
    let known = (QUICK_LEN..=HEADER_LEN_MAX).contains(&header_len)
        && header_len.is_multiple_of(HEADER_ALIGN)
        && shard_len <= MESSAGE_LEN_MAX;
    let payload = header_len..header_len + shard_len;
    (same && known && payload.end <= bytes.len()).then_some(payload)
}

/// Whether `bytes` begin as a record does: a first look for those who search for one.
pub fn looks_like_record(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

impl RecordHeader {
    /// Length of a header with that many blocks, bytes: a multiple of 64. The payload begins there.
    pub fn header_len(blocks: usize, kind: RecordKind) -> usize {
        header_len_of(blocks, kind.is_commit())
    }

    /// Length of this header, bytes.
    pub fn encoded_len(&self) -> usize {
        Self::header_len(self.blocks.len(), self.kind)
    }

    /// How many good records of one stripe give its message back: k shards, or one copy.
    pub fn needed(&self) -> usize {
        if self.kind.is_copy() { 1 } else { self.geometry.data() }
    }

    /// Length of the whole record, bytes.
    pub fn record_len(&self) -> u64 {
        record_len(self.encoded_len(), self.shard_len as usize)
    }

    /// The header's bytes, [`RecordHeader::encoded_len`] of them.
    ///
    /// # Panics
    /// If the fields contradict each other; decoding would refuse the same.
    pub fn encode(&self, mac_key: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode_into(mac_key, &mut out);
        out
    }

    /// Appends the header's bytes to `out`.
    ///
    /// # Panics
    /// As [`RecordHeader::encode`].
    pub fn encode_into(&self, mac_key: &[u8; 32], out: &mut Vec<u8>) {
        if let Err(error) = self.check() {
            panic!("refusing to write a record header that could not be read: {error}");
        }
        let start = out.len();
        out.put(&MAGIC);
        out.put_u16(FORMAT);
        out.put_u8(self.kind as u8);
        out.put_u8(self.shard.0);
        out.put_u8(self.geometry.data() as u8);
        out.put_u8(self.geometry.parity() as u8);
        out.put_u16(self.blocks.len() as u16);
        out.put_u32(self.encoded_len() as u32);
        out.put_u32(self.shard_len);
        out.put_u32(self.message_len);
        out.put_u32(0);
        out.put_u64(self.segment.0);
        out.put_u64(self.offset);
        out.put(&self.incarnation.0);
        out.put(&self.volume.0);
        out.put(&self.stripe_tag);
        out.put(&self.payload_checksum);
        debug_assert_eq!(out.len() - start, FIXED_LEN);
        for block in &self.blocks {
            out.put(&block.id.0);
            out.put_u32(block.offset);
            out.put_u32(block.len);
        }
        if let Some(commit) = &self.commit {
            commit.put(out);
        }
        out.resize(start + self.encoded_len() - TRAILER_LEN, 0);
        append_trailer(out, start, mac_key);
    }

    /// Reads the header at the front of `bytes`, which may go on after it, and verifies its checksum.
    pub fn decode(bytes: &[u8]) -> Result<UnverifiedHeader, HeaderError> {
        check_head(bytes, &MAGIC, QUICK_LEN)?;
        let mut reader = Reader::new(&bytes[8..]);
        let format = reader.u16()?;
        if format != FORMAT {
            return Err(HeaderError::Version(format));
        }
        let kind = reader.u8()?;
        let shard = ShardIndex(reader.u8()?);
        let (data, parity) = (reader.u8()?, reader.u8()?);
        let blocks = usize::from(reader.u16()?);
        let header_len = reader.u32()? as usize;
        // The length decides what is hashed, so it is checked before the checksum that covers it.
        if !(QUICK_LEN..=HEADER_LEN_MAX).contains(&header_len) || !header_len.is_multiple_of(HEADER_ALIGN) {
            return Err(HeaderError::Checksum);
        }
        let whole = bytes.get(..header_len).ok_or(HeaderError::Short { have: bytes.len(), need: header_len })?;
        let (body, trailer) = check_trailer(whole).ok_or(HeaderError::Checksum)?;
        let kind = RecordKind::from_u8(kind).ok_or(HeaderError::Field("kind"))?;
        if blocks > BLOCKS_PER_STRIPE_MAX || header_len != Self::header_len(blocks, kind) {
            return Err(HeaderError::Field("header length"));
        }
        let mut reader = Reader::new(&body[20..]);
        let (shard_len, message_len) = (reader.u32()?, reader.u32()?);
        if reader.u32()? != 0 {
            return Err(HeaderError::Field("reserved bytes"));
        }
        let header = Self {
            kind,
            shard,
            geometry: Geometry::new(data, parity).ok_or(HeaderError::Field("geometry"))?,
            shard_len,
            message_len,
            segment: SegmentId(reader.u64()?),
            offset: reader.u64()?,
            incarnation: Incarnation(reader.array()?),
            volume: VolumeId(reader.array()?),
            stripe_tag: reader.array()?,
            payload_checksum: reader.array()?,
            blocks: (0..blocks).map(|_| BlockEntry::read(&mut reader)).collect::<Result<_, _>>()?,
            commit: if kind.is_commit() { Some(CommitHeader::read(&mut reader)?) } else { None },
        };
        if reader.rest().iter().any(|&byte| byte != 0) {
            return Err(HeaderError::Field("padding"));
        }
        header.check()?;
        Ok(UnverifiedHeader { header, trailer })
    }

    /// What must hold between the fields, before writing and after reading.
    fn check(&self) -> Result<(), HeaderError> {
        let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(HeaderError::Field(what)) };
        let (total, shard_len, message_len) =
            (self.geometry.total(), self.shard_len as usize, self.message_len as usize);
        ensure(self.offset.is_multiple_of(RECORD_ALIGN), "offset")?;
        ensure(usize::from(self.shard.0) < total, "shard index")?;
        ensure(message_len <= MESSAGE_LEN_MAX && shard_len <= MESSAGE_LEN_MAX, "message length")?;
        if self.kind == RecordKind::CommitCopy {
            // Padded, so that the next record begins with a page.
            ensure(message_len <= shard_len, "shard length")?;
        } else if self.kind.is_copy() {
            ensure(message_len == shard_len, "shard length")?;
        } else {
            // A shard may be longer than needed: the packer aligns blocks to shard boundaries.
            ensure(shard_len > 0 && message_len <= shard_len * self.geometry.data(), "shard length")?;
        }
        ensure(self.blocks.len() <= BLOCKS_PER_STRIPE_MAX, "number of blocks")?;
        ensure((self.kind == RecordKind::Stripe) != self.blocks.is_empty(), "number of blocks")?;
        let mut end = 0;
        for block in &self.blocks {
            let offset = block.offset as usize;
            ensure(offset >= end && block.len as usize > TAG_LEN, "block position")?;
            end = offset + block.len as usize;
        }
        ensure(end <= message_len, "block position")?;
        ensure(self.kind.is_commit() == self.commit.is_some(), "commit fields")?;
        if let Some(commit) = &self.commit {
            ensure(commit.part < commit.parts && commit.parts <= PARTS_MAX, "commit part")?;
            let slots = u64::MAX >> (SLOTS_MAX - total);
            ensure((commit.ack_set | commit.copies) & !slots == 0, "slot masks")?;
            ensure(commit.ack_set & !commit.copies == 0, "ack set outside the copies")?;
            ensure(commit.copies >> self.shard.0 & 1 == 1, "a copy that is not listed")?;
        }
        Ok(())
    }
}

impl BlockEntry {
    fn read(reader: &mut Reader<'_>) -> Result<Self, HeaderError> {
        Ok(Self { id: BlockId(reader.array()?), offset: reader.u32()?, len: reader.u32()? })
    }
}

impl CommitHeader {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.term.0);
        out.put_u64(self.generation.0);
        out.put_u16(self.part);
        out.put_u16(self.parts);
        out.put_u32(0);
        out.put_u64(self.ack_set);
        out.put_u64(self.copies);
        out.put(&self.random);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, HeaderError> {
        let (term, generation) = (Term(reader.u64()?), Generation(reader.u64()?));
        let (part, parts) = (reader.u16()?, reader.u16()?);
        if reader.u32()? != 0 {
            return Err(HeaderError::Field("reserved bytes"));
        }
        let (ack_set, copies) = (reader.u64()?, reader.u64()?);
        Ok(Self { term, generation, part, parts, ack_set, copies, random: reader.array()? })
    }
}

/// A header whose checksum holds. Who wrote it is not known until [`UnverifiedHeader::verify`].
#[derive(Clone, Debug)]
pub struct UnverifiedHeader {
    header: RecordHeader,
    trailer: Trailer,
}

impl UnverifiedHeader {
    /// The header, if it was written with this key; else [`HeaderError::Mac`].
    pub fn verify(self, mac_key: &[u8; 32]) -> Result<RecordHeader, HeaderError> {
        if self.trailer.verify(mac_key) { Ok(self.header) } else { Err(HeaderError::Mac) }
    }

    /// The header as it stands, for a scrub without key. Accidents are excluded, forgery is not.
    pub fn unauthenticated(&self) -> &RecordHeader {
        &self.header
    }
}
