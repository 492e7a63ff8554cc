//! The volume key, wrapped by a passphrase, a key file or a recovery key.
//!
//! Promises: a slot opens with the secret it was made for and nothing else; costs read from disk are bounded before they
//! are spent; a wrong secret and a damaged slot are told apart. It does not know where slots are kept.
//! FORMAT.md section 7 owns the bytes.

mod kdf;
mod recovery;
#[cfg(test)]
mod tests;

use std::fmt;

use zeroize::Zeroizing;

use crate::clock::Entropy;
use crate::error::Error;
use crate::ids::VolumeId;
use crate::seal::{NONCE_ZERO, SecretKey, TAG_LEN, decrypt, derive, encrypt};
use crate::wire::{Purpose, Put, Reader, Short, associated};

pub use kdf::{Cost, KEY_FILE_LEN_MAX, KEY_FILE_LEN_MIN, KdfCost};
pub use recovery::{RecoveryError, RecoveryKey};

/// Most key slots of a volume.
pub const KEY_SLOTS_MAX: usize = 32;

/// Length of an encoded slot, bytes.
pub const SLOT_LEN: usize = 144;

/// Length of the wrapped convergence secret: nonce, ciphertext, tag.
pub const WRAPPED_CONVERGENCE_LEN: usize = 12 + 32 + TAG_LEN;

/// Bytes of an encoded slot before the nonce; the wrapping key depends on them.
const HEAD_LEN: usize = 52;

/// A secret for a new slot. (Recovery keys are made, not chosen: [`KeySlot::create_recovery`].)
pub enum NewSecret {
    /// What a person types, not empty.
    Passphrase(Zeroizing<Vec<u8>>),
    /// The content of a key file, 32 bytes to 1 MiB.
    KeyFile(Zeroizing<Vec<u8>>),
}

/// A secret to open a slot with.
pub enum Unlock {
    /// What a person types.
    Passphrase(Zeroizing<Vec<u8>>),
    /// The content of a key file.
    KeyFile(Zeroizing<Vec<u8>>),
    /// A recovery key as printed; case, spaces and dashes do not matter.
    RecoveryKey(String),
}

impl Unlock {
    /// The kind of slot this secret opens.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::RecoveryKey(_) => SlotKind::RecoveryKey,
        }
    }
}

impl fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewSecret(..)")
    }
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unlock(..)")
    }
}

/// What opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// Argon2id of a passphrase.
    Passphrase,
    /// BLAKE3 of a key file.
    KeyFile,
    /// BLAKE3 of a recovery key.
    RecoveryKey,
    /// A kind of a newer version: kept as it is, never opened.
    Other(u8),
}

impl SlotKind {
    fn number(self) -> u8 {
        match self {
            Self::Passphrase => 1,
            Self::KeyFile => 2,
            Self::RecoveryKey => 3,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Passphrase,
            2 => Self::KeyFile,
            3 => Self::RecoveryKey,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passphrase => f.write_str("passphrase"),
            Self::KeyFile => f.write_str("key file"),
            Self::RecoveryKey => f.write_str("recovery key"),
            Self::Other(number) => write!(f, "secret of unknown kind {number}"),
        }
    }
}

/// Why a slot cannot be made, read or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// No slot takes this kind of secret.
    #[error("this volume has no {asked} slot; it opens with: {}", list(.present))]
    NoSlot {
        /// What was given.
        asked: SlotKind,
        /// What the volume has.
        present: Vec<SlotKind>,
    },
    /// There are slots of this kind, and none opens.
    #[error("wrong {0}: no slot of this volume opens with it")]
    Wrong(SlotKind),
    /// The secret is right, the wrapped key is not.
    #[error("key slot {0} is damaged, though the secret is right; use another slot or another backing directory")]
    Damaged(u32),
    /// The cost on disk is out of bounds: damaged, or made to exhaust this machine.
    #[error("key slot asks for {memory_kib} KiB, {passes} passes and {lanes} lanes, which is out of bounds")]
    Cost {
        /// Memory, KiB.
        memory_kib: u32,
        /// Passes.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// The memory that the slot's cost asks for is not there.
    #[error("not enough memory: deriving the key takes {0} KiB")]
    Memory(u32),
    /// A passphrase must not be empty.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// A key file must hold enough, and not without end.
    #[error("the key file holds {0} bytes; it must hold 32 bytes to 1 MiB (make one with: head -c 64 /dev/urandom)")]
    KeyFileLen(usize),
    /// The recovery key was mistyped.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// Bytes that are no slot.
    #[error("key slot: {0}")]
    Form(&'static str),
}

fn list(kinds: &[SlotKind]) -> String {
    if kinds.is_empty() {
        return "nothing".into();
    }
    kinds.iter().map(SlotKind::to_string).collect::<Vec<_>>().join(", ")
}

impl From<SlotError> for Error {
    fn from(error: SlotError) -> Self {
        Self::Unlock(error.to_string())
    }
}

impl From<Short> for SlotError {
    fn from(_: Short) -> Self {
        Self::Form("too short")
    }
}

/// The volume key, wrapped once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    id: u32,
    kind: SlotKind,
    reserved: [u8; 3],
    /// Zero unless the kind is a passphrase.
    cost: [u32; 3],
    salt: [u8; 32],
    nonce: [u8; 12],
    wrapped: [u8; 32 + TAG_LEN],
    commitment: [u8; 32],
}

impl KeySlot {
    /// Wraps the volume key by a secret. `id` names the slot to people; `cost` matters to passphrases only.
    pub fn create(
        id: u32,
        secret: &NewSecret,
        volume_key: &SecretKey,
        volume: VolumeId,
        entropy: &dyn Entropy,
        cost: KdfCost,
    ) -> Result<Self, SlotError> {
        let (kind, cost) = match secret {
            NewSecret::Passphrase(_) => (SlotKind::Passphrase, cost.cost()),
            NewSecret::KeyFile(_) => (SlotKind::KeyFile, Cost::NONE),
        };
        let mut slot = Self::blank(id, kind, cost, entropy);
        let kek = match secret {
            NewSecret::Passphrase(typed) => kdf::from_passphrase(typed, &slot.salt, cost)?,
            NewSecret::KeyFile(content) => kdf::from_key_file(content, &slot.salt)?,
        };
        slot.wrap(&kek, volume_key, volume);
        Ok(slot)
    }

    /// Wraps the volume key by a new recovery key, which is to be shown once and kept by the user.
    pub fn create_recovery(
        id: u32,
        volume_key: &SecretKey,
        volume: VolumeId,
        entropy: &dyn Entropy,
    ) -> (Self, RecoveryKey) {
        let recovery = RecoveryKey::random(entropy);
        let mut slot = Self::blank(id, SlotKind::RecoveryKey, Cost::NONE, entropy);
        slot.wrap(&kdf::from_recovery_key(&recovery, &slot.salt), volume_key, volume);
        (slot, recovery)
    }

    fn blank(id: u32, kind: SlotKind, cost: Cost, entropy: &dyn Entropy) -> Self {
        let (mut salt, mut nonce) = ([0; 32], [0; 12]);
        entropy.fill(&mut salt);
        entropy.fill(&mut nonce);
        let cost = [cost.memory_kib, cost.passes, cost.lanes];
        Self { id, kind, reserved: [0; 3], cost, salt, nonce, wrapped: [0; 48], commitment: [0; 32] }
    }

    /// Number of this slot among the volume's.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What opens it.
    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    /// The volume key, if `secret` is the right one.
    pub fn open(&self, volume: VolumeId, secret: &Unlock) -> Result<SecretKey, SlotError> {
        let kek = match (self.kind, secret) {
            (SlotKind::Passphrase, Unlock::Passphrase(typed)) => {
                kdf::from_passphrase(typed, &self.salt, Cost::checked(self.cost)?)?
            }
            (SlotKind::KeyFile, Unlock::KeyFile(content)) => kdf::from_key_file(content, &self.salt)?,
            (SlotKind::RecoveryKey, Unlock::RecoveryKey(text)) => {
                kdf::from_recovery_key(&RecoveryKey::parse(text)?, &self.salt)
            }
            _ => return Err(SlotError::NoSlot { asked: secret.kind(), present: vec![self.kind] }),
        };
        let (wrapping, commitment) = self.keys(&kek, volume);
        // GCM-SIV does not commit to its key: without this a slot could be made that opens with two secrets.
        if blake3::Hash::from_bytes(*commitment.as_bytes()) != blake3::Hash::from_bytes(self.commitment) {
            return Err(SlotError::Wrong(self.kind));
        }
        let (body, tag) = self.wrapped.split_last_chunk::<TAG_LEN>().ok_or(SlotError::Damaged(self.id))?;
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(body);
        let aad = associated(&volume, Purpose::KeySlot);
        if !decrypt(wrapping.as_bytes(), &self.nonce, &aad, &mut key[..], tag) {
            return Err(SlotError::Damaged(self.id));
        }
        Ok(SecretKey::from_bytes(*key))
    }

    fn wrap(&mut self, kek: &SecretKey, volume_key: &SecretKey, volume: VolumeId) {
        let (wrapping, commitment) = self.keys(kek, volume);
        self.commitment = *commitment.as_bytes();
        let (body, tag) = self.wrapped.split_at_mut(32);
        body.copy_from_slice(volume_key.as_bytes());
        let aad = associated(&volume, Purpose::KeySlot);
        tag.copy_from_slice(&encrypt(wrapping.as_bytes(), &self.nonce, &aad, body));
    }

    /// The wrapping key and the commitment: both depend on the slot's number, kind, cost and salt.
    fn keys(&self, kek: &SecretKey, volume: VolumeId) -> (SecretKey, SecretKey) {
        let encoded = self.encode();
        let of = |context| derive(context, &[kek.as_bytes(), &volume.0, &encoded[..HEAD_LEN]]);
        (of("brine v1 key slot wrap"), of("brine v1 key slot commitment"))
    }

    /// The slot's bytes.
    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = Vec::with_capacity(SLOT_LEN);
        out.put_u32(self.id);
        out.put_u8(self.kind.number());
        out.put(&self.reserved);
        self.cost.iter().for_each(|&value| out.put_u32(value));
        out.put(&self.salt);
        debug_assert_eq!(out.len(), HEAD_LEN);
        out.put(&self.nonce);
        out.put(&self.wrapped);
        out.put(&self.commitment);
        let mut slot = [0; SLOT_LEN];
        slot.copy_from_slice(&out);
        slot
    }

    /// Reads a slot. Its cost is checked only when it is opened, so that a slot of bad cost does not hide the others.
    pub fn decode(bytes: &[u8; SLOT_LEN]) -> Result<Self, SlotError> {
        let mut reader = Reader::new(bytes);
        let slot = Self {
            id: reader.u32()?,
            kind: SlotKind::from_number(reader.u8()?),
            reserved: reader.array()?,
            cost: [reader.u32()?, reader.u32()?, reader.u32()?],
            salt: reader.array()?,
            nonce: reader.array()?,
            wrapped: reader.array()?,
            commitment: reader.array()?,
        };
        let known = !matches!(slot.kind, SlotKind::Other(_));
        if known && slot.reserved != [0; 3] {
            return Err(SlotError::Form("reserved bytes"));
        }
        if known && slot.kind != SlotKind::Passphrase && slot.cost != [0; 3] {
            return Err(SlotError::Form("a cost where there is none"));
        }
        Ok(slot)
    }
}

/// The volume key, by the first slot that opens.
pub fn unlock(slots: &[KeySlot], volume: VolumeId, secret: &Unlock) -> Result<SecretKey, SlotError> {
    if let Unlock::RecoveryKey(text) = secret {
        // Mistyping is told before anything else.
        RecoveryKey::parse(text)?;
    }
    let asked = secret.kind();
    let mut failure = None;
    for slot in slots.iter().filter(|slot| slot.kind == asked) {
        match slot.open(volume, secret) {
            Ok(key) => return Ok(key),
            // Of several failures the most telling: damage or cost before a secret that is just another slot's.
            Err(error @ SlotError::Wrong(_)) => failure = failure.or(Some(error)),
            Err(error) => failure = Some(error),
        }
    }
    let mut present: Vec<SlotKind> = slots.iter().map(KeySlot::kind).collect();
    present.sort_unstable_by_key(|kind| kind.number());
    present.dedup();
    Err(failure.unwrap_or(SlotError::NoSlot { asked, present }))
}

/// The convergence secret, wrapped by the volume key: re-keying wraps it anew and keeps what was deduplicated.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedConvergence(pub [u8; WRAPPED_CONVERGENCE_LEN]);

impl WrappedConvergence {
    /// Wraps the secret by the volume key.
    pub fn wrap(convergence: &SecretKey, volume_key: &SecretKey, volume: VolumeId, entropy: &dyn Entropy) -> Self {
        let mut out = [0; WRAPPED_CONVERGENCE_LEN];
        let (nonce, rest) = out.split_at_mut(12);
        let (body, tag) = rest.split_at_mut(32);
        entropy.fill(nonce);
        body.copy_from_slice(convergence.as_bytes());
        let key = Self::key(volume_key, volume, nonce);
        let aad = associated(&volume, Purpose::ConvergenceSecret);
        tag.copy_from_slice(&encrypt(key.as_bytes(), &NONCE_ZERO, &aad, body));
        Self(out)
    }

    /// The secret; `None` if this is damaged or was wrapped by another volume key.
    pub fn unwrap(&self, volume_key: &SecretKey, volume: VolumeId) -> Option<SecretKey> {
        let (nonce, rest) = self.0.split_at(12);
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>()?;
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(body);
        let key = Self::key(volume_key, volume, nonce);
        let aad = associated(&volume, Purpose::ConvergenceSecret);
        decrypt(key.as_bytes(), &NONCE_ZERO, &aad, &mut secret[..], tag).then(|| SecretKey::from_bytes(*secret))
    }

    fn key(volume_key: &SecretKey, volume: VolumeId, nonce: &[u8]) -> SecretKey {
        derive("brine v1 convergence wrap", &[volume_key.as_bytes(), &volume.0, nonce])
    }
}

impl fmt::Debug for WrappedConvergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappedConvergence(..)")
    }
}
