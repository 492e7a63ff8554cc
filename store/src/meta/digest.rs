//! Digest of all non-local rows: two databases with one digest hold the same volume.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::schema::TABLES;
use super::sql::At;
use crate::error::Result;

/// Mixed in first: a digest of other columns or another encoding must differ.
const CONTEXT: &str = "brine 2026 digest of metadata rows v1";

/// BLAKE3 of every row of every non-local table, tables in their listed order, rows in the order of their keys. A
/// value is its type (1 byte) and, for numbers, 8 bytes little-endian, for bytes and text a 4-byte length and content.
///
/// `visit` gets each row on the way, with the name of its table.
pub(super) fn digest(
    conn: &Connection,
    path: &Path,
    mut visit: impl FnMut(&str, &Row<'_>) -> Result<()>,
) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for (table, columns, key) in TABLES {
        hasher.update(table.as_bytes());
        hasher.update(&[0]);
        let sql = format!("SELECT {columns} FROM {table} ORDER BY {key}");
        let mut statement = conn.prepare_cached(&sql).at(path)?;
        let width = statement.column_count();
        let mut rows = statement.query([]).at(path)?;
        while let Some(row) = rows.next().at(path)? {
            hasher.update(&[1]);
            for column in 0..width {
                update(&mut hasher, row.get_ref(column).at(path)?);
            }
            visit(table, row)?;
        }
        hasher.update(&[0]);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn update(hasher: &mut blake3::Hasher, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => {
            hasher.update(&[0]);
        }
        ValueRef::Integer(number) => {
            hasher.update(&[1]);
            hasher.update(&number.to_le_bytes());
        }
        ValueRef::Real(number) => {
            hasher.update(&[2]);
            hasher.update(&number.to_le_bytes());
        }
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            hasher.update(&[3]);
            hasher.update(&(bytes.len() as u32).to_le_bytes());
            hasher.update(bytes);
        }
    }
}
