//! States that are kept for one directory only, by a rule of its own: all that was in it and below, and the line of
//! directories that leads there. Of everything else such a generation may be forgotten, so it has no row in
//! `generations`, and whoever reads it stays within the directory ([`PastReader::lies_within`]).
//!
//! Where an inode was is found by the parents that the rows name. A file that ever had several names may have been
//! anywhere and counts as within every directory. Whose an extent is, its data id says: it is the file's number, but for
//! files made by early versions, which numbered data apart; what they do not find an owner of is kept.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension};

use super::changes::PastKey;
use super::past::{self, PastReader};
use super::rows::*;
use super::shelf;
use super::sql::{At, blob, int};
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::{DataId, Generation, Ino};

/// Settings keys: this, the directory, the generation; the value is the time.
const KEPT: &[u8] = b"kept/";
/// Settings keys: this, the directory; the value are its rules.
const RULES: &[u8] = b"retention/";
/// Deeper trees do not exist: paths are shorter.
const DEPTH_MAX: usize = 4096;

/// A state that is kept for one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptBelow {
    /// The directory.
    pub dir: Ino,
    /// The generation.
    pub generation: Generation,
    /// When it closed, nanoseconds since 1970.
    pub time_ns: i64,
}

impl KeptBelow {
    fn key(dir: Ino, generation: Generation) -> Vec<u8> {
        [KEPT, &dir.0.to_be_bytes(), &generation.0.to_be_bytes()].concat()
    }

    fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let (dir, generation) = key.strip_prefix(KEPT)?.split_at_checked(8)?;
        Some(Self {
            dir: Ino(u64::from_be_bytes(dir.try_into().ok()?)),
            generation: Generation(u64::from_be_bytes(generation.try_into().ok()?)),
            time_ns: i64::from_le_bytes(value.try_into().ok()?),
        })
    }
}

fn all(conn: &Connection) -> rusqlite::Result<Vec<KeptBelow>> {
    let rows = shelf::with_prefix(conn, Shelf::Settings, KEPT)?;
    Ok(rows.iter().filter_map(|(key, value)| KeptBelow::from_row(key, value)).collect())
}

/// The directories above `dir` at the end of a generation, the nearest first.
fn line(conn: &Connection, dir: Ino, generation: Generation) -> rusqlite::Result<Vec<Ino>> {
    let (mut line, mut at) = (Vec::new(), dir);
    while let Some(row) = past::inode_at(conn, at, generation)?
        && row.parent != at
        && line.len() < DEPTH_MAX
    {
        line.push(row.parent);
        at = row.parent;
    }
    Ok(line)
}

/// Whether an inode was `dir`, or in it or below, at the end of a generation.
fn is_within(conn: &Connection, ino: Ino, generation: Generation, dir: Ino) -> rusqlite::Result<bool> {
    let mut at = ino;
    for _ in 0..DEPTH_MAX {
        if at == dir {
            return Ok(true);
        }
        // What the state does not have any more was not within any directory it is kept for.
        let Some(row) = past::inode_at(conn, at, generation)? else { return Ok(false) };
        // Early versions did not note that there had been several.
        if row.flags & INODE_HAD_LINKS != 0 || (row.kind != FileKind::Directory && row.nlink > 1) {
            return Ok(true);
        }
        if row.parent == at {
            return Ok(false);
        }
        at = row.parent;
    }
    Ok(true)
}

/// Which former rows the states that are kept for directories need, of those between two whole ones.
pub(super) struct Needed {
    states: Vec<KeptBelow>,
    lines: Vec<Vec<Ino>>,
    known: HashMap<(Ino, usize), bool>,
}

impl Needed {
    /// By the states after `after` and before `until`.
    pub fn between(conn: &Connection, after: Generation, until: Generation) -> rusqlite::Result<Self> {
        let mut states = all(conn)?;
        states.retain(|state| state.generation > after && state.generation < until);
        let lines: rusqlite::Result<_> = states.iter().map(|state| line(conn, state.dir, state.generation)).collect();
        Ok(Self { states, lines: lines?, known: HashMap::new() })
    }

    /// Whether a row that was true from `since` until `until` is needed. `apart`: see [`numbered_apart`].
    pub fn has(
        &mut self,
        conn: &Connection,
        apart: &mut Option<bool>,
        key: &PastKey,
        since: Generation,
        until: Generation,
    ) -> rusqlite::Result<bool> {
        for at in 0..self.states.len() {
            let state = self.states[at];
            if state.generation < since || state.generation >= until {
                continue;
            }
            let (ino, may_lead) = match key {
                PastKey::Inode(ino, ..) | PastKey::Xattr(ino, ..) => (*ino, true),
                PastKey::Dentry(parent, ..) => (*parent, true),
                PastKey::Extent(data, ..) | PastKey::Patch(data, ..) => {
                    match owner(conn, apart, *data, state.generation)? {
                        Owner::Is(ino) => (ino, false),
                        Owner::Gone => continue,
                        Owner::Unknown => return Ok(true),
                    }
                }
            };
            if may_lead && self.lines[at].contains(&ino) {
                return Ok(true);
            }
            let within = match self.known.get(&(ino, at)) {
                Some(within) => *within,
                None => {
                    let within = is_within(conn, ino, state.generation, state.dir)?;
                    self.known.insert((ino, at), within);
                    within
                }
            };
            if within {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whose extents a data id's are.
enum Owner {
    Is(Ino),
    /// The state does not have it: see [`is_within`].
    Gone,
    Unknown,
}

fn owner(conn: &Connection, apart: &mut Option<bool>, data: DataId, generation: Generation) -> rusqlite::Result<Owner> {
    // A file's data id is its inode number.
    let ino = Ino(data.0);
    Ok(match past::inode_at(conn, ino, generation)? {
        // It may be that of a file with another number.
        None if numbered_apart(conn, apart)? => Owner::Unknown,
        None => Owner::Gone,
        Some(row) if row.data == data => Owner::Is(ino),
        Some(_) => Owner::Unknown,
    })
}

/// Whether there are or were files whose data id is not their number. All rows are looked at once; no such files are made
/// any more.
fn numbered_apart(conn: &Connection, known: &mut Option<bool>) -> rusqlite::Result<bool> {
    if let Some(known) = known {
        return Ok(*known);
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM inodes WHERE data <> 0 AND data <> ino) \
               OR EXISTS (SELECT 1 FROM inodes_past WHERE data <> 0 AND data <> ino)";
    let found = conn.query_row(sql, [], |row| row.get(0))?;
    *known = Some(found);
    Ok(found)
}

#[cfg(test)]
impl Txn<'_> {
    /// As early versions made files.
    pub fn number_apart(&mut self, ino: Ino, data: DataId) {
        self.core.inode(ino).unwrap();
        self.core.inodes.change(ino).unwrap().data = data;
    }

    /// As early versions left files with several names.
    pub fn forget_links(&mut self, ino: Ino) {
        self.core.inode(ino).unwrap();
        self.core.inodes.change(ino).unwrap().flags &= !INODE_HAD_LINKS;
    }
}

impl Txn<'_> {
    /// Keep what `state.dir` holds in a generation that has, or will have, no row of its own.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn keep_below(&mut self, state: KeptBelow) -> Result<()> {
        let key = KeptBelow::key(state.dir, state.generation);
        self.put_shelf(Shelf::Settings, &key, &state.time_ns.to_le_bytes())
    }

    /// Keep that no longer. Its rows are forgotten by [`Txn::forget_gap`].
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn give_up_below(&mut self, state: KeptBelow) -> Result<()> {
        self.delete_shelf(Shelf::Settings, &KeptBelow::key(state.dir, state.generation))
    }

    /// All states kept for single directories, by directory and generation.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn kept_below(&mut self) -> Result<Vec<KeptBelow>> {
        all(&self.core.conn).at(&self.core.path)
    }

    /// Directories with rules of their own, and these.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn rules_of_directories(&mut self) -> Result<Vec<(Ino, Box<[u8]>)>> {
        let rows = shelf::with_prefix(&self.core.conn, Shelf::Settings, RULES).at(&self.core.path)?;
        let read = |(key, value): shelf::Pair| {
            let number: [u8; 8] = key.strip_prefix(RULES)?.try_into().ok()?;
            Some((Ino(u64::from_be_bytes(number)), value))
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Give a directory rules of its own, or take them away.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn set_rules_of_directory(&mut self, dir: Ino, rules: Option<&[u8]>) -> Result<()> {
        let key = [RULES, &dir.0.to_be_bytes()].concat();
        match rules {
            Some(rules) => self.put_shelf(Shelf::Settings, &key, rules),
            None => self.delete_shelf(Shelf::Settings, &key),
        }
    }

    /// The directories above one, the nearest first.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn directories_above(&mut self, dir: Ino) -> Result<Vec<Ino>> {
        let (mut line, mut at) = (Vec::new(), dir);
        while line.len() < DEPTH_MAX {
            let parent = self.parent_of(at)?;
            if parent == at {
                return Ok(line);
            }
            line.push(parent);
            at = parent;
        }
        Err(Error::format(format!("directory {dir}"), "its parents form a loop; unmount and run `brine check`"))
    }

    /// The path of a living directory.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn path_of_directory(&mut self, dir: Ino) -> Result<Vec<u8>> {
        let (mut names, mut at) = (Vec::new(), dir);
        for parent in self.directories_above(dir)? {
            let sql = "SELECT name FROM dentries WHERE parent = ?1 AND ino = ?2 AND kind = 2";
            let conn = &self.core.conn;
            let name = conn.prepare_cached(sql).and_then(|mut statement| {
                statement.query_row([int(parent.0), int(at.0)], |row| blob(row, 0)).optional()
            });
            names.push(name.at(&self.core.path)?.ok_or(Error::Stale(at))?);
            at = parent;
        }
        Ok(names.iter().rev().flat_map(|name| [b"/", &**name].concat()).collect())
    }

    /// Whether what an inode was in a generation is kept for a directory.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn is_kept_below(&mut self, ino: Ino, generation: Generation) -> Result<bool> {
        is_kept(&self.core.conn, ino, generation).at(&self.core.path)
    }
}

fn is_kept(conn: &Connection, ino: Ino, generation: Generation) -> rusqlite::Result<bool> {
    for state in all(conn)?.iter().filter(|state| state.generation == generation) {
        if is_within(conn, ino, generation, state.dir)? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl PastReader<'_> {
    /// States that are kept for the directory that an inode was in at the time, or for one above it: of generations
    /// from `since` on and before `until`, ascending.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn kept_around(&self, ino: Ino, since: Generation, until: Option<Generation>) -> Result<Vec<GenerationRow>> {
        let mut out = Vec::new();
        for state in all(self.conn).at(self.path)? {
            let outside = state.generation < since || until.is_some_and(|until| state.generation >= until);
            if !outside && is_within(self.conn, ino, state.generation, state.dir).at(self.path)? {
                out.push(GenerationRow { generation: state.generation, time_ns: state.time_ns });
            }
        }
        out.sort_unstable_by_key(|row| row.generation);
        out.dedup();
        Ok(out)
    }

    /// The state of a time, of those that are kept for directories, in which `path` led to something kept for one; and
    /// that.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn find_below(
        &self,
        path: &[u8],
        time_ns: i64,
        newer_than: Generation,
    ) -> Result<Option<(InodeRow, GenerationRow)>> {
        let mut states = all(self.conn).at(self.path)?;
        states.retain(|state| state.time_ns <= time_ns && state.generation > newer_than);
        states.sort_unstable_by_key(|state| std::cmp::Reverse(state.generation));
        for state in states {
            let row = match self.find(path, state.generation) {
                Ok(row) => row,
                Err(Error::NotFound | Error::NotADirectory) => continue,
                Err(error) => return Err(error),
            };
            if is_within(self.conn, row.ino, state.generation, state.dir).at(self.path)? {
                return Ok(Some((row, GenerationRow { generation: state.generation, time_ns: state.time_ns })));
            }
        }
        Ok(None)
    }
}
