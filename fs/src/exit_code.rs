//! Exit codes, and the failure that carries one with its message. docs/CLI.md lists them; numbers are never reused.

use std::fmt;
use std::io;

use brine_store::Error;
use serde::{Deserialize, Serialize};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Success = 0,
    /// Failed for a reason that has no number of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The volume or directory cannot be used as asked; nothing was changed.
    Refused = 3,
    /// No key slot opens with what was given.
    WrongSecret = 4,
    /// A file or directory does not exist, or holds no volume.
    NotFound = 5,
    /// In use by another process.
    Busy = 6,
    /// The volume works but is not healthy.
    Unhealthy = 7,
    /// Damaged data was found, or could not be healed.
    Damaged = 8,
    /// Reading or writing failed.
    Io = 9,
    /// No space left.
    NoSpace = 10,
    /// The volume is read-only.
    ReadOnly = 11,
    /// Nothing is mounted there, or its daemon does not answer.
    NotMounted = 12,
    /// Stopped before it was done.
    Interrupted = 13,
    /// Not allowed to this user.
    NotPermitted = 14,
    /// What was to be changed is not of the version that was asked for.
    Conflict = 15,
}

impl ExitCode {
    /// All codes with the names that docs/CLI.md and `--json` errors use.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Success, "success"),
        (Self::Failed, "failed"),
        (Self::Usage, "usage"),
        (Self::Refused, "refused"),
        (Self::WrongSecret, "wrong-secret"),
        (Self::NotFound, "not-found"),
        (Self::Busy, "busy"),
        (Self::Unhealthy, "unhealthy"),
        (Self::Damaged, "damaged"),
        (Self::Io, "io"),
        (Self::NoSpace, "no-space"),
        (Self::ReadOnly, "read-only"),
        (Self::NotMounted, "not-mounted"),
        (Self::Interrupted, "interrupted"),
        (Self::NotPermitted, "not-permitted"),
        (Self::Conflict, "conflict"),
    ];

    /// The number the process exits with.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The name in `--json` errors.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or("failed", |(_, name)| name)
    }

    /// The code with a number, [`ExitCode::Failed`] if there is none.
    pub fn from_number(number: u8) -> Self {
        Self::ALL.iter().map(|(code, _)| *code).find(|code| code.number() == number).unwrap_or(Self::Failed)
    }

    /// The number mount(8) expects of its helpers: 1 wrong invocation, 2 system error, 4 internal, 8 interrupted,
    /// 32 mount failure.
    pub fn for_mount8(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage | Self::NotPermitted => 1,
            Self::Interrupted => 8,
            Self::Failed => 4,
            Self::Io | Self::NoSpace => 2,
            Self::Refused
            | Self::WrongSecret
            | Self::NotFound
            | Self::Busy
            | Self::Unhealthy
            | Self::Damaged
            | Self::ReadOnly
            | Self::NotMounted
            | Self::Conflict => 32,
        }
    }
}

/// Why a command failed: a code for programs and a text for people, which names the object and the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// [`ExitCode`] as a number.
    code: u8,
    /// The text.
    message: String,
}

impl Failure {
    /// A failure with its code.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code: code.number(), message: message.into() }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// A failed call; `doing` names the object.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(code_of_io(error), format!("{doing}: {error}"))
    }

    /// Its code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from_number(self.code)
    }

    /// Its text.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

fn code_of_io(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::NotFound => ExitCode::NotFound,
        io::ErrorKind::PermissionDenied => ExitCode::NotPermitted,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ExitCode::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => ExitCode::ReadOnly,
        io::ErrorKind::ResourceBusy => ExitCode::Busy,
        _ => ExitCode::Io,
    }
}

impl From<&Error> for ExitCode {
    fn from(error: &Error) -> Self {
        match error {
            Error::NotFound | Error::NotADirectory | Error::NotAVolume(_) => Self::NotFound,
            Error::Unlock(_) => Self::WrongSecret,
            Error::InUse(_) => Self::Busy,
            Error::Refused(_)
            | Error::Exists
            | Error::IsADirectory
            | Error::NotEmpty
            | Error::NameTooLong
            | Error::InvalidArgument(_)
            | Error::TooManyLinks
            | Error::FileTooBig
            | Error::NoSuchXattr
            | Error::XattrTooBig
            | Error::CrossesDevices
            | Error::DatabaseVersion { .. }
            | Error::TooFewMembers { .. } => Self::Refused,
            Error::NotPermitted(_) => Self::NotPermitted,
            Error::NoSpace | Error::QuotaExceeded => Self::NoSpace,
            Error::ReadOnly(_) => Self::ReadOnly,
            Error::BlockLost { .. } | Error::Format { .. } => Self::Damaged,
            Error::Backing { source, .. } | Error::Io { source, .. } => code_of_io(source),
            Error::NotDurable { .. } => Self::Io,
            Error::Conflict(_) => Self::Conflict,
            Error::Stale(_) | Error::Database { .. } => Self::Failed,
            // The enum is non-exhaustive; a variant that is not in this table yet is a failure without a number.
            _ => Self::Failed,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(ExitCode::from(&error), error.to_string())
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the table in docs/CLI.md under the heading: number and name.
    fn documented(heading: &str) -> Vec<(u8, String)> {
        let text = include_str!("../../docs/CLI.md");
        let section = text.split(heading).nth(1).expect("docs/CLI.md has the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?.trim_matches('`').to_owned()))
        });
        rows.collect()
    }

    #[test]
    fn the_documented_codes_are_the_codes() {
        let codes: Vec<(u8, String)> =
            ExitCode::ALL.iter().map(|(code, name)| (code.number(), (*name).to_owned())).collect();
        assert_eq!(documented("\n## Exit codes\n"), codes);
    }

    #[test]
    fn numbers_are_unique_and_come_back() {
        for (index, (code, _)) in ExitCode::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), index);
            assert_eq!(ExitCode::from_number(code.number()), *code);
        }
        assert_eq!(ExitCode::from_number(200), ExitCode::Failed);
    }

    #[test]
    fn mount8_knows_only_its_own_codes() {
        for (code, name) in ExitCode::ALL {
            assert!([0, 1, 2, 4, 8, 16, 32, 64].contains(&code.for_mount8()), "{name}");
            assert_eq!(code.for_mount8() == 0, code == ExitCode::Success);
        }
    }
}
