//! Making the metadata database of a volume, and opening it.
//!
//! Promises: a database that is damaged, of another volume or version, or in use is told apart.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use rusqlite::ErrorCode;
use zeroize::Zeroizing;

use super::behind::Behind;
use super::dentry::NameHash;
use super::rows::{CHUNK_BITS, NewNode};
use super::schema::{self, Role};
use super::sql::{At, int};
use super::txn::Core;
use super::{DATABASE_FILE, Meta, Setup, outbox, past};
use crate::error::{Error, Result};

impl Meta {
    /// Make the database of a new volume in a state directory, with its root directory in the open generation.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a database already.
    /// [`Error::InvalidArgument`] unless chunks are 4 KiB to 1 MiB.
    pub fn create(dir: &Path, key: &[u8; 32], setup: &Setup, root: &NewNode<'_>, chunk_bits: u8) -> Result<Self> {
        if !CHUNK_BITS.contains(&chunk_bits) {
            return Err(Error::InvalidArgument("chunks are 4 KiB to 1 MiB long"));
        }
        let meta = Self::create_blank(dir, key, setup)?;
        meta.with(|txn| {
            txn.create_root(root, chunk_bits);
            Ok(())
        })?;
        Ok(meta)
    }

    /// Make a database without any row, to be filled by [`Self::import`] and [`Self::replay`].
    ///
    /// # Errors
    /// [`Error::Refused`] if there is a database already.
    pub fn create_blank(dir: &Path, key: &[u8; 32], setup: &Setup) -> Result<Self> {
        let path = dir.join(DATABASE_FILE);
        if path.symlink_metadata().is_ok() {
            return Err(Error::Refused(format!("metadata database {}: there is one already", path.display())));
        }
        let conn = schema::connect(&path, key, Role::Create).at(&path)?;
        schema::settle(&conn).at(&path)?;
        conn.execute_batch("BEGIN IMMEDIATE").at(&path)?;
        schema::make_tables(&conn).at(&path)?;
        outbox::put_local(&conn, "volume", &setup.volume.0).at(&path)?;
        outbox::put_local(&conn, outbox::GENERATION_KEY, &0u64.to_le_bytes()).at(&path)?;
        conn.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE);").at(&path)?;
        drop(conn);
        Self::open(dir, key, setup)
    }

    /// Open the database of a volume.
    ///
    /// # Errors
    /// [`Error::DatabaseVersion`]; [`Error::Format`] if it is damaged or the key is wrong; [`Error::Refused`] naming what
    /// else is wrong: none there, another volume's, in use by another process.
    pub fn open(dir: &Path, key: &[u8; 32], setup: &Setup) -> Result<Self> {
        let path = dir.join(DATABASE_FILE);
        let refused = |reason: &str| {
            Error::Refused(format!(
                "metadata database {}: {reason}; move it aside and mount again to rebuild it from the backing directories",
                path.display()
            ))
        };
        match path.symlink_metadata() {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Err(refused("is not a regular file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(refused("does not exist")),
            Err(source) => return Err(Error::io(format!("metadata database {}", path.display()), source)),
        }
        let of_version = |(conn, found)| Error::DatabaseVersion {
            path: path.clone(),
            found,
            known: schema::SCHEMA_VERSION,
            acknowledged: outbox::acknowledged(&conn),
        };
        let conn = schema::connect(&path, key, Role::Write);
        let identified = conn.and_then(|conn| schema::identity(&conn).map(|found| (conn, found)));
        let conn = match identified {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                return Err(schema::former_version(&path, key).map(of_version).unwrap_or_else(|| {
                    let object = format!("metadata database {}", path.display());
                    Error::format(object, "it is damaged, or was made with another key")
                }));
            }
            Err(source) => return Err(Error::Database { path, source }),
            Ok((conn, (false, _))) if schema::is_blank(&conn).at(&path)? => {
                return Err(Error::format(
                    format!("metadata database {}", path.display()),
                    "it has no tables: making it was cut short",
                ));
            }
            Ok((_, (false, _))) => return Err(refused("is not a metadata database of brine")),
            Ok((conn, (true, schema::SCHEMA_VERSION))) => conn,
            Ok((conn, (true, version))) => return Err(of_version((conn, version))),
        };
        if outbox::get_local(&conn, "volume").at(&path)?.as_deref() != Some(&setup.volume.0) {
            return Err(refused("belongs to another volume"));
        }
        schema::settle(&conn).at(&path)?;
        match conn.execute_batch("BEGIN IMMEDIATE") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                let path = path.display();
                return Err(Error::Refused(format!(
                    "metadata database {path}: in use by another process; stop it first"
                )));
            }
            other => other.at(&path)?,
        }
        let Some(generation) = outbox::get_generation(&conn, outbox::GENERATION_KEY).at(&path)? else {
            return Err(refused("does not say which generation it holds"));
        };
        let committed_ns = conn
            .query_row(
                "SELECT coalesce(max(time), 0) FROM generations WHERE generation = ?1",
                [int(generation.0)],
                |row| row.get(0),
            )
            .at(&path)?;
        let names = NameHash::new(setup.name_key);
        let own_names = names.clone();
        let clock = Arc::clone(&setup.clock);
        let mut core = Core::new(conn, path.clone(), names, clock, setup.block_id, generation, committed_ns);
        core.reload()?;
        core.reload_counters()?;
        let copier = schema::connect(&path, key, Role::Write).at(&path)?;
        schema::identity(&copier).at(&path)?;
        schema::settle(&copier).at(&path)?;
        let wal_path = wal_path(&path);
        let wal = File::open(&wal_path)
            .map_err(|error| Error::io(format!("log of the metadata database {}", wal_path.display()), error))?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| Error::io(format!("state directory {}: sync", dir.display()), error))?;
        Ok(Self {
            path,
            key: Zeroizing::new(*key),
            block_id: setup.block_id,
            core: Arc::new(Mutex::new(core)),
            behind: Behind::start(),
            closing: AtomicBool::new(false),
            names: own_names,
            idle: past::Idle::default(),
            copier: Mutex::new(copier),
            wal,
            restart_wal: AtomicBool::new(false),
            retries: AtomicU64::new(0),
        })
    }
}

fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}
