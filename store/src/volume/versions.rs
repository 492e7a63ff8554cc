//! Past states as the crates above see them: snapshots.

use super::Volume;
use crate::error::Result;
use crate::meta::rows::SnapshotRow;

impl Volume {
    /// Name the open generation. It holds everything accepted so far once [`Volume::commit`] has closed it; until then
    /// the snapshot is not durable.
    ///
    /// # Errors
    /// [`crate::Error::Exists`]; [`crate::Error::NameTooLong`], [`crate::Error::InvalidArgument`] for what cannot be a
    /// name.
    pub fn create_snapshot(&self, name: &[u8]) -> Result<SnapshotRow> {
        self.change(|txn| txn.create_snapshot(name))
    }

    /// Give a snapshot up. What only it kept may be forgotten from now on.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    pub fn delete_snapshot(&self, name: &[u8]) -> Result<()> {
        self.change(|txn| txn.delete_snapshot(name))
    }

    /// Give a snapshot another name.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Exists`], and those of names.
    pub fn rename_snapshot(&self, name: &[u8], new_name: &[u8]) -> Result<SnapshotRow> {
        self.change(|txn| txn.rename_snapshot(name, new_name))
    }

    /// All snapshots, sorted by name.
    ///
    /// # Errors
    /// [`crate::Error::Database`].
    pub fn snapshots(&self) -> Result<Vec<SnapshotRow>> {
        self.meta.with(|txn| txn.snapshots())
    }
}
