//! What differs between two past trees, and between two states of one inode.

use std::collections::BTreeMap;

use serde::Serialize;

use super::View;
use crate::error::Result;
use crate::ids::Ino;
use crate::meta::rows::{FileKind, InodeRow};

/// How one name differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// Only the later tree has it.
    Created,
    /// Only the earlier tree has it.
    Deleted,
    /// It is another inode, or of another kind.
    Replaced,
    /// It is the same inode, and this of it differs.
    Changed(Vec<&'static str>),
}

/// Is told each name that differs: its path, its kind, how.
pub type Found<'a> = dyn FnMut(&[u8], FileKind, &Difference) -> Result<()> + 'a;

/// What of an inode differs between two of its states.
pub fn changes(old: &InodeRow, new: &InodeRow) -> Vec<&'static str> {
    let content = |row: &InodeRow| (row.size, row.mtime_ns, row.data, row.inline.clone());
    let mut what = Vec::new();
    if old.kind != FileKind::Directory && content(old) != content(new) {
        what.push("content");
    }
    if old.kind == FileKind::Directory && old.mtime_ns != new.mtime_ns {
        what.push("entries");
    }
    if old.perm != new.perm {
        what.push("mode");
    }
    if (old.uid, old.gid) != (new.uid, new.gid) {
        what.push("owner");
    }
    if old.nlink != new.nlink {
        what.push("links");
    }
    if what.is_empty() && old.version != new.version {
        // Extended attributes, times that were set, a name elsewhere.
        what.push("attributes");
    }
    what
}

/// Every name below two directories, one of each tree, that differs; in the order of paths, told to `found` with its
/// path from there. Reads names and inodes of both trees, no data.
///
/// # Errors
/// Those of reading; of `found`.
pub fn differences((old_tree, old): (&View, Ino), (new_tree, new): (&View, Ino), found: &mut Found<'_>) -> Result<()> {
    let mut path = Vec::new();
    directories((old_tree, Some(old)), (new_tree, Some(new)), &mut path, found)
}

type Names = BTreeMap<Vec<u8>, Ino>;

fn names(tree: &View, dir: Option<Ino>) -> Result<Names> {
    let Some(dir) = dir else { return Ok(Names::new()) };
    let entries = tree.read_dir(dir, 0, usize::MAX, false)?;
    Ok(entries.into_iter().map(|entry| (entry.name, entry.ino)).collect())
}

fn directories(
    (old_tree, old): (&View, Option<Ino>),
    (new_tree, new): (&View, Option<Ino>),
    path: &mut Vec<u8>,
    found: &mut Found<'_>,
) -> Result<()> {
    let (olds, news) = (names(old_tree, old)?, names(new_tree, new)?);
    let mut all: Vec<&Vec<u8>> = olds.keys().chain(news.keys()).collect();
    all.sort_unstable();
    all.dedup();
    for name in all {
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let old = olds.get(name).map(|ino| old_tree.row(*ino)).transpose()?;
        let new = news.get(name).map(|ino| new_tree.row(*ino)).transpose()?;
        let difference = match (&old, &new) {
            (None, _) => Some(Difference::Created),
            (_, None) => Some(Difference::Deleted),
            (Some(old), Some(new)) if old.ino != new.ino || old.kind != new.kind => Some(Difference::Replaced),
            (Some(old), Some(new)) => {
                let what = changes(old, new);
                (!what.is_empty()).then_some(Difference::Changed(what))
            }
        };
        if let (Some(difference), Some(row)) = (difference, new.as_ref().or(old.as_ref())) {
            found(path, row.kind, &difference)?;
        }
        let directory =
            |row: &Option<InodeRow>| row.as_ref().filter(|row| row.kind == FileKind::Directory).map(|row| row.ino);
        if directory(&old).is_some() || directory(&new).is_some() {
            directories((old_tree, directory(&old)), (new_tree, directory(&new)), path, found)?;
        }
        path.truncate(length);
    }
    Ok(())
}
