//! Requests about past states.

use std::path::PathBuf;

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
    /// The kept states of what has, and had, a path.
    Log {
        /// The path in the volume.
        path: PathBuf,
    },
    /// Names that were deleted in a directory.
    Deleted {
        /// Its path in the volume.
        path: PathBuf,
    },
    /// Which inode and generation a state of a path is.
    Find {
        /// The path in the volume.
        path: PathBuf,
        /// Version, time or snapshot.
        at: String,
    },
    /// Bring a state of a path back.
    Restore {
        /// The path in the volume.
        path: PathBuf,
        /// Version, time or snapshot; without, the last state before the path was deleted.
        at: Option<String>,
        /// The path to bring it back as, if another.
        to: Option<PathBuf>,
        /// Only over a file of this version.
        if_version: Option<u64>,
    },
    /// Give a file the content of another, which loses its name.
    Write {
        /// The path in the volume.
        path: PathBuf,
        /// The other's.
        from: PathBuf,
        /// Only if it is of this version.
        if_version: Option<u64>,
    },
    /// Make a directory what it was.
    Rewind {
        /// Its path in the volume.
        path: PathBuf,
        /// Time or snapshot.
        to: String,
        /// Only tell what would be done.
        dry_run: bool,
    },
    /// What differs below a path between two states.
    Diff {
        /// The path in the volume.
        path: PathBuf,
        /// The earlier state: version, time or snapshot.
        from: String,
        /// The later one; without, the present one.
        to: Option<String>,
    },
}
