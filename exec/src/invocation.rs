//! One request to run a function, as decided upon: which version, for whom, with what.

use std::ffi::OsString;
use std::path::PathBuf;

use brine_store::ids::{Ino, Version};

use crate::plan::Identity;

/// Who asked for a run. A run has exactly the caller's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Process that called; a hint for people, never an authorisation.
    pub pid: i32,
    /// User, group and supplementary groups, as the kernel vouches for them.
    pub identity: Identity,
}

/// A request to run one version of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The function's inode.
    pub function: Ino,
    /// Its version, pinned from the exec open on.
    pub version: Version,
    /// Arguments, the first being the path it was called by.
    pub argv: Vec<OsString>,
    /// Environment after the allow list.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory of the caller.
    pub directory: PathBuf,
    /// File mode creation mask of the caller.
    pub umask: u32,
    /// Who asked.
    pub caller: Caller,
}
