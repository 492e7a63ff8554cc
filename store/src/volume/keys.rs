//! The secrets that open a volume: listed, added, taken away.

use zeroize::Zeroizing;

use super::Volume;
use crate::clock::OsEntropy;
use crate::error::{Error, Result};
use crate::keyslot::{KEY_SLOTS_MAX, KdfCost, KeySlot, NewSecret, SlotKind, Unlock, unlock};
use crate::superblock::SUPERBLOCK_FILES;

/// A secret to add to a volume.
pub enum NewKey {
    /// Chosen by the user.
    Secret(NewSecret, KdfCost),
    /// A recovery key, made here.
    Recovery,
}

/// A secret that was added.
#[derive(Debug)]
pub struct AddedKey {
    /// Its slot.
    pub slot: u32,
    /// The recovery key, if one was made: to be shown once.
    pub recovery_key: Option<Zeroizing<String>>,
}

impl Volume {
    /// The slots, and what opens each.
    pub fn key_slots(&self) -> Vec<(u32, SlotKind)> {
        self.superblock.lock().key_slots.iter().map(|slot| (slot.id(), slot.kind())).collect()
    }

    /// Let another secret open the volume. `known` is one that does already.
    ///
    /// # Errors
    /// [`Error::Unlock`]: `known` opens nothing, or the new secret cannot be used; [`Error::Refused`]: there are
    /// [`KEY_SLOTS_MAX`] slots; those of writing the superblocks.
    pub fn add_key(&self, known: &Unlock, new: &NewKey) -> Result<AddedKey> {
        self.writable()?;
        let failed = |error: crate::keyslot::SlotError| Error::Unlock(error.to_string());
        let slots = self.superblock.lock().key_slots.clone();
        if slots.len() >= KEY_SLOTS_MAX {
            return Err(Error::Refused(format!("all {KEY_SLOTS_MAX} key slots are taken; remove one first")));
        }
        let volume_key = unlock(&slots, self.id, known).map_err(failed)?;
        let id = slots.iter().map(|slot| slot.id() + 1).max().unwrap_or(0);
        let (slot, recovery_key) = match new {
            NewKey::Secret(secret, cost) => {
                (KeySlot::create(id, secret, &volume_key, self.id, &OsEntropy, *cost).map_err(failed)?, None)
            }
            NewKey::Recovery => {
                let (slot, key) = KeySlot::create_recovery(id, &volume_key, self.id, &OsEntropy);
                (slot, Some(key.to_text()))
            }
        };
        self.write_superblocks(|superblock| superblock.key_slots.push(slot))?;
        Ok(AddedKey { slot: id, recovery_key })
    }

    /// Let the secret of a slot open the volume no more. Directories that are away keep the slot until the volume is
    /// opened with them.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that does not exist and for the last one; those of writing the superblocks.
    pub fn remove_key(&self, slot: u32) -> Result<()> {
        self.writable()?;
        let slots = self.key_slots();
        if !slots.iter().any(|(id, _)| *id == slot) {
            return Err(Error::Refused(format!("there is no key slot {slot}; `brine key list` shows them")));
        }
        if slots.iter().all(|(id, kind)| *id == slot || matches!(kind, SlotKind::Other(_))) {
            return Err(Error::Refused(format!(
                "nothing would open the volume without slot {slot}, the last; add another first (`brine key add`)"
            )));
        }
        // Each directory has several copies, written in turn: all must lose it.
        for _ in SUPERBLOCK_FILES {
            self.write_superblocks(|superblock| superblock.key_slots.retain(|other| other.id() != slot))?;
        }
        Ok(())
    }
}
