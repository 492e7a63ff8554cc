//! The one table from the store's errors to errno.
//!
//! No wildcard hides a new variant from review: the last arm exists only because [`brine_store::Error`] is
//! non-exhaustive, and a test in the table's own crate cannot see variants it does not name.

use brine_store::Error;

/// A number from errno(3), as a FUSE reply carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Result of what the kernel asks of us.
pub type Outcome<T> = Result<T, Errno>;

impl Errno {
    /// The object does not exist.
    pub const NOT_FOUND: Self = Self(libc::ENOENT);
    /// EDQUOT: a quota leaves no room.
    pub const QUOTA: Self = Self(libc::EDQUOT);
    /// The operation is refused whoever asks.
    pub const NOT_PERMITTED: Self = Self(libc::EPERM);
    /// A file handle that is not open.
    pub const BAD_HANDLE: Self = Self(libc::EBADF);
    /// The object is gone, or was never told of.
    pub const STALE: Self = Self(libc::ESTALE);
    /// What cannot be changed.
    pub const READ_ONLY: Self = Self(libc::EROFS);
    /// An argument outside what the operation takes.
    pub const INVALID: Self = Self(libc::EINVAL);
    /// An operation this filesystem does not offer.
    pub const NOT_SUPPORTED: Self = Self(libc::EOPNOTSUPP);
    /// No data, or no hole, at or after an offset.
    pub const NO_DATA_THERE: Self = Self(libc::ENXIO);
    /// A buffer too small for the answer.
    pub const TOO_SMALL: Self = Self(libc::ERANGE);
    /// Data could not be read or made durable.
    pub const IO: Self = Self(libc::EIO);

    /// Whether an operator should hear of it: everything that is not an ordinary answer to a program.
    pub fn is_failure(self) -> bool {
        self.0 == libc::EIO
    }
}

impl From<&Error> for Errno {
    fn from(error: &Error) -> Self {
        Self(match error {
            Error::NotFound => libc::ENOENT,
            Error::Exists => libc::EEXIST,
            Error::NotADirectory => libc::ENOTDIR,
            Error::IsADirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::InvalidArgument(_) => libc::EINVAL,
            Error::TooManyLinks => libc::EMLINK,
            Error::FileTooBig => libc::EFBIG,
            Error::NoSuchXattr => libc::ENODATA,
            // ERANGE is for buffers of the caller and is answered where they are looked at.
            Error::XattrTooBig => libc::E2BIG,
            Error::NotPermitted(_) => libc::EPERM,
            Error::CrossesDevices => libc::EXDEV,
            Error::NoSpace => libc::ENOSPC,
            Error::QuotaExceeded => libc::EDQUOT,
            Error::ReadOnly(_) => libc::EROFS,
            Error::Stale(_) => libc::ESTALE,
            // Retries were bounded and used up; EAGAIN would tell programs to poll, which no file operation does.
            Error::Conflict(_) => libc::EBUSY,
            Error::Unlock(_) => libc::EACCES,
            // A full backing disk was meant to be caught by the reservation; if it comes through it is a failure
            // of ours, and ENOSPC would promise that deleting helps.
            Error::BlockLost { .. }
            | Error::Backing { .. }
            | Error::TooFewMembers { .. }
            | Error::Format { .. }
            | Error::Refused(_)
            | Error::NotDurable { .. }
            | Error::Database { .. }
            | Error::Io { .. } => libc::EIO,
            _ => libc::EIO,
        })
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brine_store::ids::{Generation, Ino};

    #[test]
    fn ordinary_answers_are_not_failures() {
        for error in [Error::NotFound, Error::Exists, Error::NoSpace, Error::NoSuchXattr, Error::Stale(Ino(7))] {
            assert!(!Errno::from(&error).is_failure(), "{error}");
        }
        let lost = Error::NotDurable { generation: Generation(3), reason: "disk gone".into() };
        assert!(Errno::from(&lost).is_failure());
        assert_eq!(Errno::from(Error::ReadOnly("asked".into())).0, libc::EROFS);
    }
}
