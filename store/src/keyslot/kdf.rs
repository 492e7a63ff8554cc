//! From a secret to the key that wraps the volume key.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use super::{RecoveryKey, SlotError};
use crate::seal::{SecretKey, derive};

/// Shortest key file, bytes: as much as the key it stands for.
pub const KEY_FILE_LEN_MIN: usize = 32;

/// Longest key file, bytes: a photo will do, a disk image given by mistake will not.
pub const KEY_FILE_LEN_MAX: usize = 1 << 20;

/// How dear guessing a passphrase is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KdfCost {
    /// 64 MiB, three passes, one lane: the second recommended setting of RFC 9106, a quarter of a second.
    #[default]
    Default,
    /// Next to nothing. For tests; a volume made so is as good as its passphrase.
    Fast,
}

impl KdfCost {
    pub(super) fn cost(self) -> Cost {
        match self {
            Self::Default => Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 },
            Self::Fast => Cost { memory_kib: 64, passes: 1, lanes: 1 },
        }
    }
}

/// Parameters of Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// Of slots that are not opened by a passphrase.
    pub(super) const NONE: Self = Self { memory_kib: 0, passes: 0, lanes: 0 };

    /// Most memory, KiB: 1 GiB. Whoever can write to a superblock must not be able to exhaust the machine.
    pub const MEMORY_KIB_MAX: u32 = 1 << 20;
    /// Most passes.
    pub const PASSES_MAX: u32 = 16;
    /// Most lanes.
    pub const LANES_MAX: u32 = 16;

    /// The cost in a slot, if it is within bounds.
    pub(super) fn checked([memory_kib, passes, lanes]: [u32; 3]) -> Result<Self, SlotError> {
        let bounded = (1..=Self::LANES_MAX).contains(&lanes)
            && (1..=Self::PASSES_MAX).contains(&passes)
            && (8 * lanes..=Self::MEMORY_KIB_MAX).contains(&memory_kib);
        if bounded {
            Ok(Self { memory_kib, passes, lanes })
        } else {
            Err(SlotError::Cost { memory_kib, passes, lanes })
        }
    }
}

/// Argon2id, version 0x13.
pub(super) fn from_passphrase(typed: &[u8], salt: &[u8; 32], cost: Cost) -> Result<SecretKey, SlotError> {
    if typed.is_empty() {
        return Err(SlotError::EmptyPassphrase);
    }
    let Cost { memory_kib, passes, lanes } = cost;
    let bounds = |_| SlotError::Cost { memory_kib, passes, lanes };
    let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(bounds)?;
    let count = params.block_count();
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(count).map_err(|_| SlotError::Memory(memory_kib))?;
    memory.resize(count, Block::new());
    let mut key = Zeroizing::new([0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let result = argon.hash_password_into_with_memory(typed, salt, &mut key[..], &mut memory[..]);
    memory.fill(Block::new());
    std::hint::black_box(&memory);
    result.map_err(bounds)?;
    Ok(SecretKey::from_bytes(*key))
}

/// BLAKE3 of salt and content.
pub(super) fn from_key_file(content: &[u8], salt: &[u8; 32]) -> Result<SecretKey, SlotError> {
    if !(KEY_FILE_LEN_MIN..=KEY_FILE_LEN_MAX).contains(&content.len()) {
        return Err(SlotError::KeyFileLen(content.len()));
    }
    Ok(derive("brine v1 key file", &[salt, content]))
}

/// BLAKE3 of salt and recovery key.
pub(super) fn from_recovery_key(key: &RecoveryKey, salt: &[u8; 32]) -> SecretKey {
    derive("brine v1 recovery key", &[salt, key.as_bytes()])
}
