//! The policies of a volume, in memory as in their rows, and who changed what they stand for.

use std::collections::HashMap;

use brine_store::ids::Ino;
use parking_lot::RwLock;

use super::policy::FunctionPolicy;

/// A name in a directory.
pub type Place = (Ino, Vec<u8>);

/// A policy, or why its row cannot be read.
pub type Known = Result<FunctionPolicy, String>;

/// All policies.
#[derive(Default)]
pub struct Policies(RwLock<HashMap<Place, Known>>);

impl Policies {
    /// Take them over from their rows.
    pub fn load(&self, rows: Vec<brine_store::volume::PolicyRow>) {
        let known = rows.into_iter().map(|row| ((row.directory, row.name), FunctionPolicy::decode(&row.value)));
        *self.0.write() = known.collect();
    }

    /// The policy of a name; the default one if it has none.
    ///
    /// # Errors
    /// Why its row cannot be read.
    pub fn get(&self, place: &Place) -> Result<Option<FunctionPolicy>, String> {
        self.0.read().get(place).cloned().transpose()
    }

    /// Set or remove one.
    pub fn set(&self, place: Place, policy: Option<FunctionPolicy>) {
        let mut all = self.0.write();
        match policy {
            Some(policy) => drop(all.insert(place, Ok(policy))),
            None => drop(all.remove(&place)),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    /// Where there are policies.
    pub fn places(&self) -> Vec<Place> {
        self.0.read().keys().cloned().collect()
    }

    /// What a name stands for was changed by `uid`: the policy that is suspended by it.
    pub fn changed(&self, place: &Place, uid: u32) -> Option<FunctionPolicy> {
        let mut all = self.0.write();
        let Some(Ok(policy)) = all.get_mut(place) else { return None };
        let suspended = policy.changed_by(uid);
        suspended.then(|| policy.clone())
    }
}
