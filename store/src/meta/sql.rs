//! Small conversions between SQL values and this crate's types.

use std::path::Path;

use rusqlite::{Row, types::Type};

use crate::error::{Error, Result};

/// Gives a database error the path of its database.
pub(super) trait At<T> {
    /// As [`Error::Database`] of the database at `path`.
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> At<T> for rusqlite::Result<T> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Database { path: path.to_owned(), source })
    }
}

/// Numbers are stored as 64-bit signed; the limits in [`super::rows`] keep them positive where order matters.
pub(super) fn int(number: u64) -> i64 {
    number as i64
}

/// Column `at` as an unsigned number.
pub(super) fn number(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(at)? as u64)
}

/// Column `at` as a blob of its own.
pub(super) fn blob(row: &Row<'_>, at: usize) -> rusqlite::Result<Box<[u8]>> {
    Ok(row.get_ref(at)?.as_blob()?.into())
}

/// Column `at` through one of the `from_number` functions of the row types.
pub(super) fn enumerated<T>(row: &Row<'_>, at: usize, from: fn(u8) -> Option<T>) -> rusqlite::Result<T> {
    let number: i64 = row.get(at)?;
    u8::try_from(number).ok().and_then(from).ok_or(rusqlite::Error::IntegralValueOutOfRange(at, number))
}

/// The error for a blob that is not what its column holds.
pub(super) fn malformed(at: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, Type::Blob, what.into())
}
