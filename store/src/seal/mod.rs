//! chunk -> sealed block, and back.
//!
//! Promises: equal chunks under equal salts give equal bytes; nothing sealed opens with a flipped bit, for another
//! volume or as another kind. Pure: no I/O, no clock. It does not know where blocks are stored, nor why.
//! FORMAT.md sections 3 and 4 own the derivations and the bytes.

mod compress;
mod key;
mod pad;
mod salt;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use zeroize::Zeroizing;

use crate::ids::{BlockId, BlockKey, ContentDigest, VolumeId};
use crate::wire::{Purpose, Put, associated};

use brine_kernels::aead;
pub use brine_kernels::aead::TAG_LEN;
pub(crate) use brine_kernels::aead::{NONCE_ZERO, decrypt, encrypt};
pub use compress::Codec;
pub(crate) use key::derive;
pub use key::{SecretKey, VolumeKeys};
pub use pad::padme;
pub use salt::Salt;

/// Longest chunk, bytes.
pub const CHUNK_LEN_MAX: usize = 1 << 20;

/// Bytes before the payload, inside the seal: codec, three zero bytes, true length.
pub const PREFIX_LEN: usize = 8;

/// Longest sealed block, bytes.
pub const SEALED_LEN_MAX: usize = PREFIX_LEN + padme(CHUNK_LEN_MAX) + TAG_LEN;

/// What a block holds. Blocks of different kinds never share keys, even with equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockKind {
    /// A chunk of a file.
    FileData = 1,
    /// A part of a checkpoint image, or its root.
    Checkpoint = 2,
}

impl BlockKind {
    /// The kind with this number on disk.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::FileData),
            2 => Some(Self::Checkpoint),
            _ => None,
        }
    }

    fn purpose(self) -> Purpose {
        match self {
            Self::FileData => Purpose::FileData,
            Self::Checkpoint => Purpose::Checkpoint,
        }
    }
}

/// Why a sealed block does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No sealed block has this length.
    #[error("{0} bytes cannot be a sealed block")]
    Length(usize),
    /// Wrong bytes, key, volume or kind.
    #[error("the tag is wrong: other bytes, or another key, volume or kind")]
    Tag,
    /// Authentic, yet not as this version writes it: a newer codec, or a defect of the writer.
    #[error("authentic, but not in a form this version knows: {0}")]
    Form(&'static str),
}

/// A block that opened.
#[derive(Debug)]
pub struct Opened<'a> {
    /// The chunk: borrowed from the sealed buffer unless it was compressed.
    pub plain: Cow<'a, [u8]>,
    /// How it was stored; heal needs it to make the same bytes again.
    pub codec: Codec,
}

/// Derives block keys, seals and opens. Cheap to share; holds only derived keys.
pub struct Sealer {
    volume: VolumeId,
    file_digest: SecretKey,
    checkpoint_digest: SecretKey,
    salt_root: SecretKey,
}

impl Sealer {
    /// The sealer of one volume.
    pub fn new(keys: &VolumeKeys) -> Self {
        let secret = keys.convergence().as_bytes();
        let digest = |kind: BlockKind| derive("brine v1 content digest", &[secret, &[kind as u8]]);
        Self {
            volume: keys.volume(),
            file_digest: digest(BlockKind::FileData),
            checkpoint_digest: digest(BlockKind::Checkpoint),
            salt_root: derive("brine v1 salt", &[secret]),
        }
    }

    /// The keyed digest of a chunk, one pass over it.
    pub fn content_digest(&self, kind: BlockKind, plain: &[u8]) -> ContentDigest {
        let key = match kind {
            BlockKind::FileData => &self.file_digest,
            BlockKind::Checkpoint => &self.checkpoint_digest,
        };
        ContentDigest(*blake3::keyed_hash(key.as_bytes(), plain).as_bytes())
    }

    /// Key of the block that holds the content with this digest, under this salt.
    pub fn block_key(&self, salt: &Salt, digest: &ContentDigest) -> BlockKey {
        // Two compressions in all: as cheap as looking the salt's key up in a shared table, and nothing to bound.
        let salt_key = self.salt_key(salt);
        BlockKey(*blake3::keyed_hash(&salt_key, &digest.0).as_bytes())
    }

    fn salt_key(&self, salt: &Salt) -> Zeroizing<[u8; 32]> {
        key::keyed(self.salt_root.as_bytes(), &salt.to_bytes())
    }

    /// Public name of the block with this key.
    pub fn block_id(key: &BlockKey) -> BlockId {
        let mut id = [0; BlockId::LEN];
        id.copy_from_slice(&blake3::derive_key("brine v1 block id", &key.0)[..BlockId::LEN]);
        BlockId(id)
    }

    /// Length of a sealed block whose payload is `payload_len` bytes: the chunk as it is, or the LZ4 block.
    /// No codec makes a block longer than `Codec::None` does.
    pub fn sealed_len(codec: Codec, payload_len: usize) -> usize {
        let payload = match codec {
            Codec::None => payload_len,
            Codec::Lz4 => compress::LZ4_HEAD_LEN + payload_len,
        };
        PREFIX_LEN + padme(payload) + TAG_LEN
    }

    /// Appends the sealed block to `out` and returns the codec that was kept. Deterministic in all arguments.
    ///
    /// # Panics
    /// If `plain` is longer than [`CHUNK_LEN_MAX`].
    pub fn seal(&self, kind: BlockKind, key: &BlockKey, codec: Codec, plain: &[u8], out: &mut Vec<u8>) -> Codec {
        assert!(plain.len() <= CHUNK_LEN_MAX, "chunk of {} bytes", plain.len());
        let start = out.len();
        out.reserve(Self::sealed_len(Codec::None, plain.len()));
        out.put(&[0; 4]);
        out.put_u32(plain.len() as u32);
        let payload = out.len();
        let kept = match codec {
            Codec::Lz4 if compress::try_lz4(plain, out) => Codec::Lz4,
            _ => {
                out.put(plain);
                Codec::None
            }
        };
        out[start] = kept as u8;
        out.resize(payload + padme(out.len() - payload), 0);
        let aad = associated(&self.volume, kind.purpose());
        let tag = aead::encrypt(&key.0, &NONCE_ZERO, &aad, &mut out[start..]);
        out.put(&tag);
        kept
    }

    /// Authenticates and decrypts in place, then checks that the form is the one [`Sealer::seal`] gives.
    pub fn open<'a>(&self, kind: BlockKind, key: &BlockKey, sealed: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let len = sealed.len();
        if !(PREFIX_LEN + TAG_LEN..=SEALED_LEN_MAX).contains(&len) {
            return Err(OpenError::Length(len));
        }
        let (body, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(OpenError::Length(len))?;
        if !aead::decrypt(&key.0, &NONCE_ZERO, &associated(&self.volume, kind.purpose()), body, tag) {
            return Err(OpenError::Tag);
        }
        Self::parse(body)
    }

    fn parse(body: &[u8]) -> Result<Opened<'_>, OpenError> {
        let (&[codec, r0, r1, r2, l0, l1, l2, l3], padded) =
            body.split_first_chunk::<PREFIX_LEN>().ok_or(OpenError::Length(body.len()))?;
        let codec = Codec::from_u8(codec).ok_or(OpenError::Form("codec"))?;
        if [r0, r1, r2] != [0; 3] {
            return Err(OpenError::Form("reserved bytes"));
        }
        let true_len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if true_len > CHUNK_LEN_MAX {
            return Err(OpenError::Form("true length"));
        }
        let plain = match codec {
            Codec::None => {
                let (plain, zeros) = padded.split_at_checked(true_len).ok_or(OpenError::Form("true length"))?;
                if padme(true_len) != padded.len() || zeros.iter().any(|&byte| byte != 0) {
                    return Err(OpenError::Form("padding"));
                }
                Cow::Borrowed(plain)
            }
            Codec::Lz4 => Cow::Owned(compress::open_lz4(padded, true_len).ok_or(OpenError::Form("LZ4 payload"))?),
        };
        Ok(Opened { plain, codec })
    }
}
