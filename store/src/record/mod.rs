//! Commit records: the row changes of one generation, chained to the one before.
//!
//! Promises: a record opens only with the log key, for its volume, and only if the header that led to it says the same;
//! two messages never share a key. Pure. It knows neither the rows inside (`meta::codec` does) nor where records lie.
//! FORMAT.md sections 6 and 8 own the bytes.

mod image;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::clock::Entropy;
use crate::ids::{Generation, Term, VolumeId};
use crate::seal::{NONCE_ZERO, SecretKey, TAG_LEN, decrypt, derive, encrypt, padme};
use crate::shard::{CommitHeader, PARTS_MAX};
use crate::wire::{Purpose, Put, Reader, Short, associated};

pub use image::{IMAGE_ENTRIES_MAX, ImageEntry, ImageIndex};
pub(crate) use image::{put_location, read_location};

/// Longest message before it is sealed, bytes: 16 MiB less one step of padding, so that the sealed message, tag
/// included, stays under 16 MiB.
pub const PLAIN_LEN_MAX: usize = (16 << 20) - (256 << 10);

/// Most bytes of row changes in one part.
pub const CHANGES_LEN_MAX: usize = PLAIN_LEN_MAX - HEAD_LEN;

const FORMAT: u16 = 1;
const HEAD_LEN: usize = 128;
const FLAG_ROWS_DIGEST: u16 = 1;

/// BLAKE3 of a sealed message: what the next record names as the one before.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// What the first record of a volume names as the one before.
    pub const START: Self = Self([0; 32]);

    /// Of this sealed message.
    pub fn of(sealed: &[u8]) -> Self {
        Self(*blake3::hash(sealed).as_bytes())
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainHash({self})")
    }
}

/// Why a record does not seal or open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No sealed record has this length.
    #[error("{0} bytes cannot be a commit record")]
    Length(usize),
    /// Wrong bytes, key, volume or random number.
    #[error("the tag is wrong: other bytes, or another key, volume or header")]
    Tag,
    /// Written by a newer version.
    #[error("commit record of format {0}, which this version does not know; use a newer one")]
    Version(u16),
    /// Authentic, yet not as this version writes it.
    #[error("authentic, but inconsistent: {0}")]
    Form(&'static str),
    /// More changes than a generation can hold.
    #[error("{0} bytes of changes do not fit into one generation; the generation must be closed earlier")]
    TooLarge(usize),
    /// Parts that do not make one generation.
    #[error("the parts do not fit together: {0}")]
    Parts(&'static str),
}

impl From<Short> for RecordError {
    fn from(_: Short) -> Self {
        Self::Form("too short")
    }
}

/// What the rows of a generation before this record were: whoever replays can compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsDigest {
    /// The generation the rows are of, before the record's own: that of the last checkpoint.
    pub generation: Generation,
    /// Digest of its sorted non-local rows (FORMAT.md section 8.4).
    pub digest: [u8; 32],
}

/// One message of the log: a part of a generation's record, in most cases the only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// The volume.
    pub volume: VolumeId,
    /// Term of the writer.
    pub term: Term,
    /// The generation it makes.
    pub generation: Generation,
    /// Which part, 0..parts.
    pub part: u16,
    /// Number of parts, 1..=[`PARTS_MAX`].
    pub parts: u16,
    /// The highest generation known durable when this was written.
    pub durable_through: Generation,
    /// Hash of the message before: of the last part of the generation before, or of the part before.
    pub previous: ChainHash,
    /// In the first record after a checkpoint (its part 0): what the rows were then.
    pub rows_digest: Option<RowsDigest>,
    /// Encoded row changes, at most [`CHANGES_LEN_MAX`] bytes; a change may go on in the next part.
    pub changes: Vec<u8>,
}

/// Key of one message.
fn message_key(log_key: &[u8; 32], random: &[u8; 32]) -> SecretKey {
    derive("brine v1 commit record", &[log_key, random])
}

impl CommitRecord {
    /// Appends the sealed message to `out`. `random` is new for every message and goes into the record headers.
    ///
    /// # Panics
    /// If the fields contradict each other or the changes are too long; opening would refuse the same.
    pub fn seal(&self, log_key: &[u8; 32], random: &[u8; 32], out: &mut Vec<u8>) -> ChainHash {
        assert!(self.changes.len() <= CHANGES_LEN_MAX, "{} bytes of changes in one part", self.changes.len());
        if let Err(error) = self.check() {
            panic!("refusing to write a commit record that could not be read: {error}");
        }
        let start = out.len();
        let plain_len = padme(HEAD_LEN + self.changes.len());
        out.reserve(plain_len + TAG_LEN);
        out.put_u16(FORMAT);
        out.put_u16(if self.rows_digest.is_some() { FLAG_ROWS_DIGEST } else { 0 });
        out.put_u32(self.changes.len() as u32);
        out.put(&self.volume.0);
        out.put_u64(self.term.0);
        out.put_u64(self.generation.0);
        out.put_u64(self.durable_through.0);
        out.put_u16(self.part);
        out.put_u16(self.parts);
        out.put_u32(0);
        out.put(&self.previous.0);
        out.put(&self.rows_digest.map_or([0; 32], |rows| rows.digest));
        out.put_u64(self.rows_digest.map_or(0, |rows| rows.generation.0));
        debug_assert_eq!(out.len() - start, HEAD_LEN);
        out.put(&self.changes);
        out.resize(start + plain_len, 0);
        let aad = associated(&self.volume, Purpose::CommitRecord);
        let tag = encrypt(message_key(log_key, random).as_bytes(), &NONCE_ZERO, &aad, &mut out[start..]);
        out.put(&tag);
        ChainHash::of(&out[start..])
    }

    /// Opens a sealed message in place and checks it against the header that led to it. Also gives its chain hash.
    pub fn open(
        log_key: &[u8; 32],
        volume: VolumeId,
        header: &CommitHeader,
        sealed: &mut [u8],
    ) -> Result<(Self, ChainHash), RecordError> {
        let len = sealed.len();
        if !(HEAD_LEN + TAG_LEN..=PLAIN_LEN_MAX + TAG_LEN).contains(&len) {
            return Err(RecordError::Length(len));
        }
        let chain = ChainHash::of(sealed);
        let (body, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(RecordError::Length(len))?;
        let key = message_key(log_key, &header.random);
        if !decrypt(key.as_bytes(), &NONCE_ZERO, &associated(&volume, Purpose::CommitRecord), body, tag) {
            return Err(RecordError::Tag);
        }
        let record = Self::parse(body)?;
        if record.volume != volume {
            return Err(RecordError::Form("volume"));
        }
        let same = (record.term, record.generation, record.part, record.parts)
            == (header.term, header.generation, header.part, header.parts);
        if same { Ok((record, chain)) } else { Err(RecordError::Form("the header says otherwise")) }
    }

    fn parse(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(body);
        let format = reader.u16()?;
        if format != FORMAT {
            return Err(RecordError::Version(format));
        }
        let flags = reader.u16()?;
        let changes_len = reader.u32()? as usize;
        let volume = VolumeId(reader.array()?);
        let (term, generation) = (Term(reader.u64()?), Generation(reader.u64()?));
        let durable_through = Generation(reader.u64()?);
        let (part, parts) = (reader.u16()?, reader.u16()?);
        let reserved = reader.u32()?;
        let previous = ChainHash(reader.array()?);
        let rows = RowsDigest { digest: reader.array()?, generation: Generation(reader.u64()?) };
        if reserved != 0 || flags & !FLAG_ROWS_DIGEST != 0 {
            return Err(RecordError::Form("reserved bytes"));
        }
        let rows_digest = (flags & FLAG_ROWS_DIGEST != 0).then_some(rows);
        if rows_digest.is_none() && (rows.digest, rows.generation) != ([0; 32], Generation(0)) {
            return Err(RecordError::Form("a digest that is not announced"));
        }
        let changes = reader.take(changes_len)?.to_vec();
        if padme(HEAD_LEN + changes_len) != body.len() || reader.rest().iter().any(|&byte| byte != 0) {
            return Err(RecordError::Form("padding"));
        }
        let record = Self { volume, term, generation, part, parts, durable_through, previous, rows_digest, changes };
        record.check()?;
        Ok(record)
    }

    /// What must hold between the fields, before writing and after reading.
    fn check(&self) -> Result<(), RecordError> {
        if self.part >= self.parts || self.parts > PARTS_MAX {
            return Err(RecordError::Form("part"));
        }
        if self.rows_digest.is_some() && self.part != 0 {
            return Err(RecordError::Form("a digest in a later part"));
        }
        if self.rows_digest.is_some_and(|rows| rows.generation >= self.generation) {
            return Err(RecordError::Form("a digest of rows that were not there yet"));
        }
        if self.durable_through >= self.generation {
            return Err(RecordError::Form("durable before it was written"));
        }
        Ok(())
    }
}

/// A generation's record, whole: what [`GenerationRecord::seal`] cuts into parts and [`GenerationRecord::join`] joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRecord {
    /// The volume.
    pub volume: VolumeId,
    /// Term of the writer.
    pub term: Term,
    /// The generation it makes.
    pub generation: Generation,
    /// The highest generation known durable when this was written.
    pub durable_through: Generation,
    /// Chain hash of the generation before.
    pub previous: ChainHash,
    /// In the first record after a checkpoint: what the rows were then.
    pub rows_digest: Option<RowsDigest>,
    /// Encoded row changes.
    pub changes: Vec<u8>,
}

/// A sealed message, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedPart {
    /// Which part.
    pub part: u16,
    /// Number of parts.
    pub parts: u16,
    /// For the record headers.
    pub random: [u8; 32],
    /// The message.
    pub message: Vec<u8>,
    /// Its chain hash.
    pub chain: ChainHash,
}

impl GenerationRecord {
    /// Seals the record in parts of at most [`CHANGES_LEN_MAX`] bytes of changes. The chain goes through all parts; the
    /// last part's hash is the generation's.
    ///
    /// # Panics
    /// If `durable_through` is not below `generation`.
    pub fn seal(&self, log_key: &[u8; 32], entropy: &dyn Entropy) -> Result<Vec<SealedPart>, RecordError> {
        let count = self.changes.len().div_ceil(CHANGES_LEN_MAX).max(1);
        let parts = u16::try_from(count).ok().filter(|parts| *parts <= PARTS_MAX);
        let parts = parts.ok_or(RecordError::TooLarge(self.changes.len()))?;
        let mut sealed: Vec<SealedPart> = Vec::with_capacity(count);
        for part in 0..parts {
            let from = usize::from(part) * CHANGES_LEN_MAX;
            let to = (from + CHANGES_LEN_MAX).min(self.changes.len());
            let record = CommitRecord {
                volume: self.volume,
                term: self.term,
                generation: self.generation,
                part,
                parts,
                durable_through: self.durable_through,
                previous: sealed.last().map_or(self.previous, |before| before.chain),
                rows_digest: self.rows_digest.filter(|_| part == 0),
                changes: self.changes[from..to].to_vec(),
            };
            let (mut random, mut message) = ([0; 32], Vec::new());
            entropy.fill(&mut random);
            let chain = record.seal(log_key, &random, &mut message);
            sealed.push(SealedPart { part, parts, random, message, chain });
        }
        Ok(sealed)
    }

    /// Joins the opened parts of one generation, in order, each with its chain hash. Gives the generation's chain hash.
    pub fn join(parts: Vec<(CommitRecord, ChainHash)>) -> Result<(Self, ChainHash), RecordError> {
        let total = parts.len();
        let mut all = parts.into_iter();
        let (first, mut chain) = all.next().ok_or(RecordError::Parts("there are none"))?;
        if first.part != 0 || usize::from(first.parts) != total {
            return Err(RecordError::Parts("some are missing"));
        }
        let mut whole = Self {
            volume: first.volume,
            term: first.term,
            generation: first.generation,
            durable_through: first.durable_through,
            previous: first.previous,
            rows_digest: first.rows_digest,
            changes: first.changes,
        };
        for (index, (record, next_chain)) in (1u16..).zip(all) {
            let of_this = (record.volume, record.term, record.generation, record.durable_through)
                == (whole.volume, whole.term, whole.generation, whole.durable_through);
            if !of_this || record.part != index || record.parts != first.parts {
                return Err(RecordError::Parts("they belong to different records, or are out of order"));
            }
            if record.previous != chain {
                return Err(RecordError::Parts("the chain between them is broken"));
            }
            whole.changes.extend_from_slice(&record.changes);
            chain = next_chain;
        }
        Ok((whole, chain))
    }
}
