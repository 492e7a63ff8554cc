//! Requests about quotas.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a daemon can be asked about quotas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum QuotaRequest {
    /// All of them.
    List,
    /// Those that a path counts in, innermost first.
    Show {
        /// The path in the volume.
        path: PathBuf,
    },
    /// Give a directory a quota, or its quota other limits.
    Set {
        /// Its path in the volume.
        path: PathBuf,
        /// Another limit of bytes.
        bytes: Option<NewLimit>,
        /// Another limit of inodes.
        inodes: Option<NewLimit>,
    },
    /// Take a directory's quota away.
    Remove {
        /// Its path in the volume.
        path: PathBuf,
    },
}

/// A limit to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewLimit {
    /// As much as the volume can.
    None,
    /// At most this.
    AtMost(u64),
}
