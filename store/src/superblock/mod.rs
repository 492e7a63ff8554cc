//! A volume's identity in each backing directory: geometry, members, key slots, checkpoint pointers.
//!
//! Promises: what decodes is bounded; without a key it tells whose directory this is and how to unlock it, with one it
//! is authenticated as a whole. Unknown incompatible features are refused. Pure: it does not know directories.
//! FORMAT.md section 7 owns the bytes.

mod codec;
mod pointer;
#[cfg(test)]
mod tests;

use crate::geometry::Geometry;
use crate::ids::{Generation, MemberId, SegmentId, Term, VolumeId};
use crate::keyslot::{KeySlot, SlotError, Unlock, WrappedConvergence, unlock};
use crate::seal::{Codec, VolumeKeys};
use crate::wire::{Short, Trailer};

pub use pointer::{CheckpointPointer, OPEN_SEGMENTS_MAX, OpenSegment};

/// The two files that hold copies by turns; the sound one with the higher sequence counts.
pub const SUPERBLOCK_FILES: [&str; 2] = ["superblock.0", "superblock.1"];

/// The format this version writes, and the newest it knows.
pub const FORMAT: u16 = 1;

/// Incompatible features this version knows: a volume with any other is refused.
pub const INCOMPAT_KNOWN: u64 = 0;
/// Features that must be known for writing: a volume with any other is opened read-only.
pub const RO_COMPAT_KNOWN: u64 = RO_COMPAT_QUOTAS;
/// Directories have, or had, quotas: who writes must count.
pub const RO_COMPAT_QUOTAS: u64 = 1;

/// Longest superblock, bytes.
pub const SUPERBLOCK_LEN_MAX: usize = 256 << 10;
/// Longest label, bytes of UTF-8.
pub const LABEL_LEN_MAX: usize = 64;
/// Longest failure domain label, bytes of UTF-8.
pub const DOMAIN_LEN_MAX: usize = 64;
/// Longest path of a member or a state directory, bytes (PATH_MAX).
pub const PATH_LEN_MAX: usize = 4096;
/// Longest host name, bytes of UTF-8.
pub const HOST_LEN_MAX: usize = 255;
/// Most members of a volume.
pub const MEMBERS_MAX: usize = 1024;
/// Most overridden ack sets: a generation that stays unacknowledged stops the volume long before.
pub const ACK_OVERRIDES_MAX: usize = 256;
/// Most segments noted as incomplete in some directory.
pub const BEHIND_MAX: usize = 1024;
/// Checkpoints kept.
pub const CHECKPOINTS_MAX: usize = 2;

/// Smallest and largest chunk size, as powers of two.
pub const CHUNK_BITS: std::ops::RangeInclusive<u8> = 12..=20;

/// Whose content may meet in deduplication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum DomainPolicy {
    /// The whole volume is one dedup domain.
    #[default]
    Volume = 0,
    /// Each owner is one.
    Owner = 1,
}

/// What is known of a member's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberState {
    /// Takes part.
    Active = 1,
    /// Known lost: lowers the number of acknowledgements needed until it is replaced or comes back.
    Lost = 2,
    /// Was taken out; its id is never used again.
    Removed = 3,
}

/// One member of the backing set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    /// Its identity.
    pub id: MemberId,
    /// Whether it takes part.
    pub state: MemberState,
    /// Failure domain label; empty: none given.
    pub domain: String,
    /// Where it was last seen, a hint; bytes as the kernel takes them.
    pub path: Vec<u8>,
}

/// A smaller ack set for a record already written (R8), made durable here before the generation is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckOverride {
    /// Term of the record.
    pub term: Term,
    /// Its generation.
    pub generation: Generation,
    /// Its part.
    pub part: u16,
    /// The segment it lies in.
    pub segment: SegmentId,
    /// Slots of that segment that must hold it; replaces the header's ack set.
    pub ack_set: u64,
}

/// Optional features in use, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// May be ignored.
    pub compat: u64,
    /// May be ignored when reading only.
    pub ro_compat: u64,
    /// Must be known.
    pub incompat: u64,
}

/// One member's copy of what the volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Optional features in use.
    pub features: Features,
    /// The volume.
    pub volume: VolumeId,
    /// The member that holds this copy; the only field that differs between members.
    pub member: MemberId,
    /// Grows by one with every update.
    pub sequence: u64,
    /// Term of the writer.
    pub term: Term,
    /// Last generation known durable when this was written.
    pub generation: Generation,
    /// When the volume was made, nanoseconds since 1970 UTC.
    pub created_ns: i64,
    /// No segment with this number or a higher one had been made.
    pub next_segment: SegmentId,
    /// Salt epoch of new blocks.
    pub epoch: u32,
    /// Copies of equal content a domain and epoch may hold, R; at least 1.
    pub copies: u16,
    /// Geometry of new segments.
    pub geometry: Geometry,
    /// Chunk size of new files unless inherited, log2; see [`CHUNK_BITS`].
    pub chunk_bits: u8,
    /// Dedup domains of new blocks.
    pub domain: DomainPolicy,
    /// Codec of new blocks.
    pub codec: Codec,
    /// Acknowledgements needed, if set by the operator; forbids lowering them for lost members.
    pub min_ack: Option<u8>,
    /// Name for people, at most [`LABEL_LEN_MAX`] bytes, no control characters.
    pub label: String,
    /// Host of the last writer.
    pub host: String,
    /// State directory of the last writer, a hint.
    pub state_dir: Vec<u8>,
    /// The convergence secret under the volume key.
    pub wrapped_convergence: WrappedConvergence,
    /// The volume key under each secret that opens it.
    pub key_slots: Vec<KeySlot>,
    /// All members, also lost and removed ones.
    pub members: Vec<MemberEntry>,
    /// Ack sets that were made smaller.
    pub ack_overrides: Vec<AckOverride>,
    /// The last checkpoints, newest first; none before the first.
    pub checkpoints: Vec<CheckpointPointer>,
    /// Segments of which some slots lack what was acknowledged last, and those slots.
    pub behind: Vec<(SegmentId, u64)>,
}

/// Why a superblock does not decode, verify or encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// There is none.
    #[error("no superblock here")]
    Missing,
    /// Not a superblock, cut short, or damaged.
    #[error("the superblock is damaged: {0}")]
    Damaged(&'static str),
    /// Written by a version whose volumes this one cannot read.
    #[error("the volume needs a version of brine that reads format {needs}; this one reads up to {FORMAT}")]
    Version {
        /// The format a reader must know.
        needs: u16,
    },
    /// Features that this version does not know.
    #[error("the volume uses features unknown to this version (bits {0:#x}); use a newer one")]
    Features(u64),
    /// A sound checksum over a field out of bounds.
    #[error("inconsistent field: {0}")]
    Field(&'static str),
    /// Not made with this volume's key.
    #[error("the superblock's MAC does not hold: it was changed by someone without the volume's key")]
    Mac,
    /// More than fits.
    #[error("the superblock would take {0} bytes of {SUPERBLOCK_LEN_MAX}; shorten member paths or remove members")]
    TooLong(usize),
}

impl From<Short> for SuperblockError {
    fn from(_: Short) -> Self {
        Self::Field("the fields do not fit into the length")
    }
}

impl Superblock {
    /// The file that the copy with this sequence goes to.
    pub fn file_of(sequence: u64) -> &'static str {
        SUPERBLOCK_FILES[(sequence % 2) as usize]
    }

    /// Superblocks of different members compare by this: the newest state of the volume has the highest.
    pub fn age(&self) -> (Term, Generation, u64) {
        (self.term, self.generation, self.sequence)
    }

    /// Why this version must not write to the volume, if so.
    pub fn read_only_reason(&self) -> Option<String> {
        let unknown = self.features.ro_compat & !RO_COMPAT_KNOWN;
        (unknown != 0).then(|| {
            format!(
                "the volume uses features that this version can read but not write (bits {unknown:#x}); use a newer one"
            )
        })
    }
}

/// A superblock whose checksum holds. Who wrote it is not known until [`UnverifiedSuperblock::verify`].
#[derive(Clone, Debug)]
pub struct UnverifiedSuperblock {
    superblock: Superblock,
    sealed_pointers: Vec<Vec<u8>>,
    trailer: Trailer,
}

impl UnverifiedSuperblock {
    /// The superblock as it stands, with no checkpoints in it: enough to tell whose directory this is.
    pub fn unauthenticated(&self) -> &Superblock {
        &self.superblock
    }

    /// All keys of the volume, by one secret.
    pub fn unlock(&self, secret: &Unlock) -> Result<VolumeKeys, SlotError> {
        let Superblock { volume, key_slots, wrapped_convergence, .. } = &self.superblock;
        let volume_key = unlock(key_slots, *volume, secret)?;
        let convergence = wrapped_convergence
            .unwrap(&volume_key, *volume)
            .ok_or(SlotError::Form("the wrapped convergence secret is damaged; try another backing directory"))?;
        Ok(VolumeKeys::new(*volume, volume_key, convergence))
    }

    /// The superblock, if it was written with these keys; its checkpoint pointers are opened.
    pub fn verify(self, keys: &VolumeKeys) -> Result<Superblock, SuperblockError> {
        let mut superblock = self.superblock;
        if superblock.volume != keys.volume() || !self.trailer.verify(keys.superblock_mac()) {
            return Err(SuperblockError::Mac);
        }
        for sealed in &self.sealed_pointers {
            superblock.checkpoints.push(CheckpointPointer::open(keys, sealed)?);
        }
        Ok(superblock)
    }
}

/// The sound copies of a member, newest first: of two that decode the older one serves if the newer fails to verify.
///
/// If a copy was written by a version too new to read, that is the answer, whatever the other copy says.
pub fn newest_first(copies: [Option<&[u8]>; 2]) -> Result<Vec<UnverifiedSuperblock>, SuperblockError> {
    let mut sound = Vec::new();
    let mut failure = SuperblockError::Missing;
    for bytes in copies.into_iter().flatten() {
        match Superblock::decode(bytes) {
            Ok(superblock) => sound.push(superblock),
            Err(error @ (SuperblockError::Version { .. } | SuperblockError::Features(_))) => return Err(error),
            Err(error) => failure = error,
        }
    }
    if sound.is_empty() {
        return Err(failure);
    }
    sound.sort_by_key(|copy| std::cmp::Reverse(copy.superblock.sequence));
    Ok(sound)
}
