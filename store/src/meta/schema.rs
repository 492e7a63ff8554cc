//! The tables, their version, and how a connection is set up.
//!
//! Non-local tables are those a commit record and a checkpoint restore; [`TABLES`] lists them with the order that the
//! digest reads them in. Local tables (`local`, `outbox`) are in neither.

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use zeroize::Zeroize;

/// Version of the tables below. A database with an earlier one is rebuilt: it is a cache. A later one is refused.
pub(crate) const SCHEMA_VERSION: i64 = 4;

/// `application_id` of the database: "brin".
const APPLICATION_ID: i64 = 0x6272_696e;

/// Page cache of the writing connection, KiB.
const CACHE_KIB: i64 = 64 * 1024;

/// How long a connection waits for another's lock before it reports an error, milliseconds.
const BUSY_TIMEOUT_MS: i64 = 5_000;

/// Statements kept prepared by a connection: more than this crate has.
const STATEMENTS_MAX: usize = 256;

/// Columns of an inode, in the order that rows are read and bound in.
macro_rules! inode_columns {
    () => {
        "ino, version, kind, perm, uid, gid, nlink, rdev, size, atime, mtime, ctime, btime, data, chunk_bits, flags, \
         inline, ino_generation, allocated, parent, since"
    };
}
pub(super) use inode_columns;

/// Columns of a patch, of `patches` or `patches_past`. Its bytes have a table of their own: when it ends they stay where they
/// are.
macro_rules! patch_columns {
    ($table:literal) => {
        concat!(
            "data, chunk, sequence, ino, at, (SELECT bytes FROM patch_bytes WHERE patch_bytes.sequence = ",
            $table,
            ".sequence), since"
        )
    };
}
pub(super) use patch_columns;

const INODE_BODY: &str = "
    kind INTEGER NOT NULL, perm INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL,
    rdev INTEGER NOT NULL, size INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL,
    ctime INTEGER NOT NULL, btime INTEGER NOT NULL, data INTEGER NOT NULL, chunk_bits INTEGER NOT NULL,
    flags INTEGER NOT NULL, inline BLOB, ino_generation INTEGER NOT NULL, allocated INTEGER NOT NULL,
    parent INTEGER NOT NULL, since INTEGER NOT NULL";

const TABLES_DDL: &str = "
CREATE TABLE dentries (
    parent INTEGER NOT NULL, hash INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL,
    since INTEGER NOT NULL, PRIMARY KEY (parent, hash, name)) WITHOUT ROWID;
CREATE TABLE dentries_past (
    parent INTEGER NOT NULL, hash INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL,
    since INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (parent, hash, name, since)) WITHOUT ROWID;
CREATE INDEX dentries_past_until ON dentries_past (until);

CREATE TABLE extents (
    data INTEGER NOT NULL, chunk INTEGER NOT NULL, key BLOB NOT NULL, sequence INTEGER NOT NULL,
    since INTEGER NOT NULL, PRIMARY KEY (data, chunk)) WITHOUT ROWID;
CREATE TABLE extents_past (
    data INTEGER NOT NULL, chunk INTEGER NOT NULL, key BLOB NOT NULL, sequence INTEGER NOT NULL,
    since INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (data, chunk, since)) WITHOUT ROWID;
CREATE INDEX extents_past_until ON extents_past (until);
CREATE TABLE cuts (
    data INTEGER NOT NULL, sequence INTEGER NOT NULL, first INTEGER NOT NULL, beyond INTEGER NOT NULL,
    ino INTEGER NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (data, sequence)) WITHOUT ROWID;
CREATE TABLE patches (
    data INTEGER NOT NULL, chunk INTEGER NOT NULL, sequence INTEGER NOT NULL, ino INTEGER NOT NULL,
    at INTEGER NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (data, chunk, sequence)) WITHOUT ROWID;
CREATE TABLE patches_past (
    data INTEGER NOT NULL, chunk INTEGER NOT NULL, sequence INTEGER NOT NULL, ino INTEGER NOT NULL,
    at INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (data, chunk, sequence)) WITHOUT ROWID;
CREATE TABLE patch_bytes (sequence INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE INDEX patches_past_until ON patches_past (until);
CREATE TABLE range_links (
    data INTEGER NOT NULL, chunk INTEGER NOT NULL, chunks INTEGER NOT NULL, source INTEGER NOT NULL,
    source_chunk INTEGER NOT NULL, source_generation INTEGER NOT NULL, since INTEGER NOT NULL,
    PRIMARY KEY (data, chunk)) WITHOUT ROWID;
CREATE INDEX range_links_source ON range_links (source);

CREATE TABLE xattrs (
    ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, since INTEGER NOT NULL,
    PRIMARY KEY (ino, name)) WITHOUT ROWID;
CREATE TABLE xattrs_past (
    ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, since INTEGER NOT NULL,
    until INTEGER NOT NULL, PRIMARY KEY (ino, name, since)) WITHOUT ROWID;
CREATE INDEX xattrs_past_until ON xattrs_past (until);

CREATE TABLE blocks (
    id BLOB NOT NULL PRIMARY KEY, digest BLOB NOT NULL, domain INTEGER NOT NULL, epoch INTEGER NOT NULL,
    idx INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL, record_len INTEGER NOT NULL,
    stripe_blocks INTEGER NOT NULL, message_offset INTEGER NOT NULL, sealed_len INTEGER NOT NULL,
    plain_len INTEGER NOT NULL, refs INTEGER NOT NULL, state INTEGER NOT NULL, state_since INTEGER NOT NULL,
    codec INTEGER NOT NULL, since INTEGER NOT NULL, verified INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX blocks_place ON blocks (segment, offset);
CREATE INDEX blocks_digest ON blocks (digest);
CREATE INDEX blocks_dead ON blocks (state, state_since) WHERE state <> 0;

CREATE TABLE segments (
    id INTEGER PRIMARY KEY, incarnation BLOB NOT NULL, data INTEGER NOT NULL, parity INTEGER NOT NULL,
    slots BLOB NOT NULL, capacity INTEGER NOT NULL, tail INTEGER NOT NULL, state INTEGER NOT NULL,
    since INTEGER NOT NULL);

CREATE TABLE generations (generation INTEGER PRIMARY KEY, time INTEGER NOT NULL);
CREATE INDEX generations_time ON generations (time);
CREATE TABLE snapshots (
    name BLOB NOT NULL PRIMARY KEY, generation INTEGER NOT NULL, time INTEGER NOT NULL,
    since INTEGER NOT NULL) WITHOUT ROWID;

CREATE INDEX snapshots_generation ON snapshots (generation);

CREATE TABLE local (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    generation INTEGER NOT NULL, part INTEGER NOT NULL, message BLOB NOT NULL,
    PRIMARY KEY (generation, part)) WITHOUT ROWID;
";

/// Names of the shelf tables, in the order of [`super::rows::Shelf::ALL`].
pub(super) const SHELVES: [&str; 6] = ["settings", "members", "quotas", "runs", "policies", "triggers"];

/// Non-local tables: name, columns of the digest, primary key.
pub(super) const TABLES: &[(&str, &str, &str)] = &[
    ("inodes", inode_columns!(), "ino"),
    ("inodes_past", concat!(inode_columns!(), ", until"), "ino, since"),
    ("dentries", "parent, hash, name, ino, kind, since", "parent, hash, name"),
    ("dentries_past", "parent, hash, name, ino, kind, since, until", "parent, hash, name, since"),
    ("extents", "data, chunk, key, sequence, since", "data, chunk"),
    ("extents_past", "data, chunk, key, sequence, since, until", "data, chunk, since"),
    ("cuts", "data, sequence, first, beyond, ino, since", "data, sequence"),
    ("patches", patch_columns!("patches"), "data, chunk, sequence"),
    ("patches_past", concat!(patch_columns!("patches_past"), ", until"), "data, chunk, sequence"),
    ("range_links", "data, chunk, chunks, source, source_chunk, source_generation, since", "data, chunk"),
    ("xattrs", "ino, name, value, since", "ino, name"),
    ("xattrs_past", "ino, name, value, since, until", "ino, name, since"),
    (
        "blocks",
        "id, digest, domain, epoch, idx, segment, offset, record_len, stripe_blocks, message_offset, sealed_len, \
         plain_len, refs, state, state_since, codec, since",
        "id",
    ),
    ("segments", "id, incarnation, data, parity, slots, capacity, tail, state, since", "id"),
    ("generations", "generation, time", "generation"),
    ("snapshots", "name, generation, time, since", "name"),
    ("settings", "key, value, since", "key"),
    ("members", "key, value, since", "key"),
    ("quotas", "key, value, since", "key"),
    ("runs", "key, value, since", "key"),
    ("policies", "key, value, since", "key"),
    ("triggers", "key, value, since", "key"),
];

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Makes a new file; fails if there is one.
    Create,
    /// The one writer.
    Write,
    /// A reader of committed states.
    Read,
}

/// How pages are authenticated. The default, SHA-512, takes twice as long a page where processors know SHA-256.
const PAGE_HMAC: &str = "HMAC_SHA256";
/// The same up to version 2.
pub(super) const FORMER_PAGE_HMAC: &str = "HMAC_SHA512";

/// Open a connection with its key and settings. Reads nothing yet, so a wrong key shows at the first query.
pub(super) fn connect(path: &Path, key: &[u8; 32], role: Role) -> rusqlite::Result<Connection> {
    connect_with(path, key, role, PAGE_HMAC)
}

/// A database that [`connect`] takes for damaged, with its version, if it is one of a version that authenticated its pages in
/// another way.
pub(super) fn former_version(path: &Path, key: &[u8; 32]) -> Option<(Connection, i64)> {
    let conn = connect_with(path, key, Role::Read, FORMER_PAGE_HMAC).ok()?;
    let (ours, version) = identity(&conn).ok()?;
    ours.then_some((conn, version))
}

/// As [`connect`], with pages authenticated by `hmac`.
pub(super) fn connect_with(path: &Path, key: &[u8; 32], role: Role, hmac: &str) -> rusqlite::Result<Connection> {
    let flags = match role {
        Role::Create => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        Role::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Role::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let conn = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Else some statements are compiled anew whenever a value is bound to them, which took half of an unlink.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // SQLCipher would report a wrong key on standard error besides returning it.
    conn.execute_batch("PRAGMA cipher_log_level = NONE;")?;
    let mut pragma = String::with_capacity(96);
    pragma.push_str("PRAGMA key = \"x'");
    for byte in key {
        for digit in [byte >> 4, byte & 15] {
            pragma.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    pragma.push_str("'\";");
    let keyed = conn.execute_batch(&pragma);
    pragma.zeroize();
    keyed?;
    conn.execute_batch(&format!(
        "PRAGMA cipher_hmac_algorithm = {hmac}; PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -{};",
        if role == Role::Read { 8 * 1024 } else { CACHE_KIB },
    ))?;
    Ok(conn)
}

/// Settings that touch the file: after the key has been found right.
pub(super) fn settle(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;")
}

/// Make every table. Within a transaction of the caller.
pub(super) fn make_tables(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(&format!(
        "CREATE TABLE inodes (ino INTEGER PRIMARY KEY, version INTEGER NOT NULL, {INODE_BODY});
         CREATE INDEX inodes_orphan ON inodes (ino) WHERE nlink = 0;
         CREATE TABLE inodes_past (ino INTEGER NOT NULL, version INTEGER NOT NULL, {INODE_BODY},
             until INTEGER NOT NULL, PRIMARY KEY (ino, since)) WITHOUT ROWID;
         CREATE INDEX inodes_past_until ON inodes_past (until);"
    ))?;
    conn.execute_batch(TABLES_DDL)?;
    for table in ["inodes", "dentries", "extents", "patches", "xattrs"] {
        conn.execute_batch(&former_rows_stay(table))?;
    }
    for shelf in SHELVES {
        conn.execute_batch(&format!(
            "CREATE TABLE {shelf} (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL,
             since INTEGER NOT NULL) WITHOUT ROWID;"
        ))?;
    }
    conn.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"))
}

/// R5: a former row is never changed, and not forgotten while a snapshot names a generation in which it was true.
fn former_rows_stay(table: &str) -> String {
    format!(
        "CREATE TRIGGER {table}_past_never_changes BEFORE UPDATE ON {table}_past
         BEGIN SELECT RAISE(ABORT, 'a former state is never changed'); END;
         CREATE TRIGGER {table}_past_stays BEFORE DELETE ON {table}_past
         WHEN EXISTS (SELECT 1 FROM snapshots WHERE generation >= OLD.since AND generation < OLD.until)
         BEGIN SELECT RAISE(ABORT, 'a snapshot needs this former state'); END;"
    )
}

/// True if nothing was ever put into the database: a power cut may leave it so before its first transaction.
pub(super) fn is_blank(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

/// (is it ours, its schema version). The first query of a connection: fails with `NotADatabase` if the key is wrong.
pub(super) fn identity(conn: &Connection) -> rusqlite::Result<(bool, i64)> {
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let id: i64 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok((tables > 0 && id == APPLICATION_ID, version))
}

/// A database of another version, as far as it can be told from one of today, that ends with a generation.
#[cfg(test)]
pub(crate) fn make_of_version(path: &Path, key: &[u8; 32], version: i64, generation: u64) -> rusqlite::Result<()> {
    let hmac = if version <= 2 { FORMER_PAGE_HMAC } else { PAGE_HMAC };
    let conn = connect_with(path, key, Role::Create, hmac)?;
    settle(&conn)?;
    make_tables(&conn)?;
    super::outbox::put_local(&conn, super::outbox::GENERATION_KEY, &generation.to_le_bytes())?;
    conn.execute_batch(&format!("PRAGMA user_version = {version};"))
}
