//! The one error type of this crate. Messages name the object and the next step; never key, plaintext or bytes.

use std::io;
use std::path::PathBuf;

use crate::ids::{BlockId, Generation, Ino, SegmentId};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the store. The first group mirrors POSIX errors one to one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST.
    #[error("file exists")]
    Exists,
    /// ENOTDIR.
    #[error("not a directory")]
    NotADirectory,
    /// EISDIR.
    #[error("is a directory")]
    IsADirectory,
    /// ENOTEMPTY.
    #[error("directory not empty")]
    NotEmpty,
    /// ENAMETOOLONG: names hold at most 255 bytes.
    #[error("name longer than 255 bytes")]
    NameTooLong,
    /// EINVAL.
    #[error("invalid argument: {0}")]
    InvalidArgument(&'static str),
    /// EMLINK.
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG.
    #[error("file too large")]
    FileTooBig,
    /// ENODATA: no such extended attribute.
    #[error("no such attribute")]
    NoSuchXattr,
    /// ERANGE or E2BIG: attribute value or list too large.
    #[error("attribute too large")]
    XattrTooBig,
    /// EPERM.
    #[error("operation not permitted: {0}")]
    NotPermitted(&'static str),
    /// EXDEV.
    #[error("crosses a boundary that links may not cross")]
    CrossesDevices,
    /// ENOSPC.
    #[error("no space left on the volume")]
    NoSpace,
    /// EDQUOT.
    #[error("quota exceeded")]
    QuotaExceeded,
    /// EROFS.
    #[error("the volume is read-only: {0}")]
    ReadOnly(String),
    /// ESTALE: the inode is gone.
    #[error("inode {0} no longer exists")]
    Stale(Ino),
    /// A conditional write met another version too often.
    #[error("inode {0} kept changing under a conditional write")]
    Conflict(Ino),

    /// More shards of a stripe are missing or wrong than parity can replace.
    #[error(
        "block {block} cannot be read: {good} good shards of the {needed} needed (segment {segment}, offset {offset})"
    )]
    BlockLost {
        /// The block asked for.
        block: BlockId,
        /// Its segment.
        segment: SegmentId,
        /// Offset of its stripe in the segment, bytes.
        offset: u64,
        /// Shards that verified.
        good: usize,
        /// Shards needed (k).
        needed: usize,
    },
    /// A call on a backing directory failed.
    #[error("backing directory {directory}: {operation}: {source}")]
    Backing {
        /// The directory's path.
        directory: PathBuf,
        /// The call, for example "pwrite segment 12".
        operation: String,
        /// The cause.
        source: io::Error,
    },
    /// Too few members to write a generation safely.
    #[error(
        "{healthy} backing directories can be written, {needed} are needed; bring missing ones back or mount read-only"
    )]
    TooFewMembers {
        /// Members that can be written.
        healthy: usize,
        /// Members needed.
        needed: usize,
    },
    /// Bytes on disk that are not what the format says.
    #[error("{object}: {reason}")]
    Format {
        /// What was being read, with its path where there is one.
        object: String,
        /// What is wrong with it, and the next step.
        reason: String,
    },
    /// No key slot opens with what was given.
    #[error("{0}")]
    Unlock(String),
    /// Nothing that is named is a brine volume.
    #[error("{0}")]
    NotAVolume(String),
    /// Another process has the volume open.
    #[error("{0}")]
    InUse(String),
    /// A volume that cannot be used as asked; the text names the object and the next step.
    #[error("{0}")]
    Refused(String),
    /// The state of this generation could not be made durable.
    #[error("generation {generation} could not be made durable: {reason}")]
    NotDurable {
        /// The generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// The metadata database failed.
    #[error("metadata database {path}: {source}")]
    Database {
        /// The database file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The metadata database was made by a program that keeps it in another way.
    #[error(
        "metadata database {path}: it is of version {found}, this program understands version {known}. It is a cache of the \
         backing directories; to make it anew from them and keep the former beside it: brine rebuild SOURCE"
    )]
    DatabaseVersion {
        /// The database file.
        path: PathBuf,
        /// The version it is of.
        found: i64,
        /// The version this program makes and understands.
        known: i64,
        /// The last generation that it holds and that was acknowledged, as far as it tells.
        acknowledged: Generation,
    },
    /// A system call outside the backing directories failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the object's name.
        context: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] with its context.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }

    /// An [`Error::Format`].
    pub fn format(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Format { object: object.into(), reason: reason.into() }
    }
}
