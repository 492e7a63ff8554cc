//! What is kept for the exec directory: policies of functions and records of runs. The values belong to those who
//! write them; here they are rows.

use super::Volume;
use crate::error::{Error, Result};
use crate::ids::Ino;
use crate::meta::rows::{Attr, EXEC_NAME, FileKind, NewNode, Shelf};

/// The policy row of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRow {
    /// The directory that holds the name.
    pub directory: Ino,
    /// The name.
    pub name: Vec<u8>,
    /// What [`Volume::put_policy`] was given.
    pub value: Box<[u8]>,
}

/// The record row of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRow {
    /// As its writer made it.
    pub key: Box<[u8]>,
    /// What [`Volume::put_run_record`] was given.
    pub value: Box<[u8]>,
}

fn policy_key(directory: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = directory.0.to_be_bytes().to_vec();
    key.extend_from_slice(name);
    key
}

impl Volume {
    /// The exec directory, made if there is none. `None` if something else has its name. The caller holds the gate.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn exec_directory(&self) -> Result<Option<Attr>> {
        let found = match self.lookup(crate::ids::ROOT_INO, EXEC_NAME) {
            Ok(found) => found,
            Err(Error::NotFound) if self.is_read_only().is_some() => return Ok(None),
            Err(Error::NotFound) => {
                let root = self.attr(crate::ids::ROOT_INO)?;
                let node = NewNode {
                    kind: FileKind::Directory,
                    perm: 0o755,
                    uid: root.uid,
                    gid: root.gid,
                    rdev: 0,
                    target: None,
                };
                self.create(crate::ids::ROOT_INO, EXEC_NAME, &node)?
            }
            Err(error) => return Err(error),
        };
        Ok((found.kind == FileKind::Directory && found.in_exec).then_some(found))
    }

    /// The policy of a name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn policy(&self, directory: Ino, name: &[u8]) -> Result<Option<Box<[u8]>>> {
        self.meta.with(|txn| txn.shelf(Shelf::Policies, &policy_key(directory, name)))
    }

    /// Give a name a policy, or take it away: one change. The caller holds the gate.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::InvalidArgument`] if it is too long.
    pub fn put_policy(&self, directory: Ino, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let key = policy_key(directory, name);
        self.change(|txn| match value {
            Some(value) => txn.put_shelf(Shelf::Policies, &key, value),
            None => txn.delete_shelf(Shelf::Policies, &key),
        })
    }

    /// All policies.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn policies(&self) -> Result<Vec<PolicyRow>> {
        let rows = self.meta.with(|txn| txn.shelf_rows(Shelf::Policies))?;
        let row = |key: &[u8], value| {
            let (directory, name) = key.split_first_chunk::<8>()?;
            Some(PolicyRow { directory: Ino(u64::from_be_bytes(*directory)), name: name.to_vec(), value })
        };
        Ok(rows.into_iter().filter_map(|found| row(&found.key, found.value)).collect())
    }

    /// Write or replace the record of a run: one change, durable with the next commit. Keys sort by age, as their
    /// writer makes them. The caller holds the gate.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::InvalidArgument`] if it is too long.
    pub fn put_run_record(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.change(|txn| txn.put_shelf(Shelf::Runs, key, value))
    }

    /// The record of a run.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn run_record(&self, key: &[u8]) -> Result<Option<Box<[u8]>>> {
        self.meta.with(|txn| txn.shelf(Shelf::Runs, key))
    }

    /// Forget runs. The caller holds the gate.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub fn forget_run_records(&self, keys: &[Vec<u8>]) -> Result<()> {
        self.change(|txn| keys.iter().try_for_each(|key| txn.delete_shelf(Shelf::Runs, key)))
    }

    /// All records of runs, sorted by key.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn run_records(&self) -> Result<Vec<RecordRow>> {
        let rows = self.meta.with(|txn| txn.shelf_rows(Shelf::Runs))?;
        Ok(rows.into_iter().map(|row| RecordRow { key: row.key, value: row.value }).collect())
    }
}
