//! Requests about past states.

use serde::{Deserialize, Serialize};

/// What a daemon can be asked about past states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VersionsRequest {
    /// All snapshots.
    Snapshots,
    /// Name the present state.
    CreateSnapshot {
        /// The name.
        name: String,
    },
    /// Give a snapshot up.
    DeleteSnapshot {
        /// Its name.
        name: String,
    },
    /// Give a snapshot another name.
    RenameSnapshot {
        /// Its name.
        name: String,
        /// The new one.
        new_name: String,
    },
}
