//! Secret keys and what is derived from them. FORMAT.md section 3 lists every derivation.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::clock::Entropy;
use crate::ids::VolumeId;

/// 256 secret bits, wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new random key.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut key = Self([0; 32]);
        entropy.fill(&mut key.0);
        key
    }

    /// The bytes themselves; do not copy them to where they are not wiped.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// BLAKE3 key derivation: one context string, one meaning. The parts must be of fixed length, or the last one alone not.
pub(crate) fn derive(context: &'static str, parts: &[&[u8]]) -> SecretKey {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    let mut key = SecretKey([0; 32]);
    hasher.finalize_xof().fill(&mut key.0);
    key
}

/// All keys of an unlocked volume.
pub struct VolumeKeys {
    volume: VolumeId,
    volume_key: SecretKey,
    convergence: SecretKey,
    superblock_mac: SecretKey,
    header_mac: SecretKey,
    log: SecretKey,
    database: SecretKey,
    name: SecretKey,
    fence_mac: SecretKey,
    checkpoint_pointer: SecretKey,
}

impl VolumeKeys {
    /// Derives every key of the volume from its two secrets.
    pub fn new(volume: VolumeId, volume_key: SecretKey, convergence: SecretKey) -> Self {
        let of = |context| derive(context, &[volume_key.as_bytes(), &volume.0]);
        Self {
            superblock_mac: of("brine v1 superblock mac"),
            header_mac: of("brine v1 header mac"),
            log: of("brine v1 log"),
            database: of("brine v1 database"),
            name: of("brine v1 name hash"),
            fence_mac: of("brine v1 fence mac"),
            checkpoint_pointer: of("brine v1 checkpoint pointer"),
            volume,
            volume_key,
            convergence,
        }
    }

    /// The volume these keys belong to; part of all associated data.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The key that key slots wrap.
    pub fn volume_key(&self) -> &SecretKey {
        &self.volume_key
    }

    /// The secret in every block key; it stays when the volume key changes, so that equal content still meets.
    pub fn convergence(&self) -> &SecretKey {
        &self.convergence
    }

    /// Authenticates superblocks.
    pub fn superblock_mac(&self) -> &[u8; 32] {
        self.superblock_mac.as_bytes()
    }

    /// Authenticates record and segment headers; opens no content, so heal can run with this key alone.
    pub fn header_mac(&self) -> &[u8; 32] {
        self.header_mac.as_bytes()
    }

    /// Commit records are sealed under keys derived from this one.
    pub fn log_key(&self) -> &[u8; 32] {
        self.log.as_bytes()
    }

    /// Key of the local metadata database.
    pub fn database_key(&self) -> &[u8; 32] {
        self.database.as_bytes()
    }

    /// Key of the hash by which names are looked up and ordered.
    pub fn name_key(&self) -> &[u8; 32] {
        self.name.as_bytes()
    }

    /// Authenticates fences.
    pub fn fence_mac(&self) -> &[u8; 32] {
        self.fence_mac.as_bytes()
    }

    /// Checkpoint pointers in superblocks are sealed under this key.
    pub fn checkpoint_pointer_key(&self) -> &[u8; 32] {
        self.checkpoint_pointer.as_bytes()
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKeys({}, ..)", self.volume)
    }
}

/// A key derived for one use and wiped after it.
pub(crate) fn keyed(key: &[u8; 32], bytes: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(*blake3::keyed_hash(key, bytes).as_bytes())
}
