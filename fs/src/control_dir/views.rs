//! `.brine/snapshots/NAME`, `.brine/at/TIME` and `.brine/file/INODE.GENERATION`: past states as read-only trees.
//!
//! An inode of a past tree has a number of its own, made from what the tree was reached by, its generation and the
//! inode: it is the same after a remount, and differs between trees, so that nothing takes two states for one file. A
//! tree lives, and keeps its generation from being forgotten, as long as the kernel knows an inode of it or a file of
//! it is open. Content and attributes of a past tree never change, so the kernel may keep them; only what stands in the
//! three directories themselves is looked up each time.

use std::collections::HashMap;
use std::sync::Arc;

use brine_store::Error;
use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::{Generation, Ino, ROOT_INO};
use brine_store::volume::{Attr, COOKIE_MIN, DirEntry, FileKind, View, Volume};
use parking_lot::Mutex;

use super::branch::{Branch, Caching, Opening, VirtualFile, plain_attr, reading_only};
use super::number::{Family, LOCAL_MASK};
use crate::errno::{Errno, Outcome};
use crate::moment::parse_time;
use crate::vfs::Caller;

/// A past tree, or one inode of it with what is below.
struct Tree {
    view: View,
    family: Family,
    /// Tells its inodes' numbers from those of other trees.
    key: u64,
    /// The inode it was entered by.
    entry: Ino,
}

impl Tree {
    fn number(&self, ino: Ino) -> Ino {
        // The entry's name may come to mean another tree; what is below stays as it is.
        self.family.number(mix(self.key ^ mix(ino.0)), ino != self.entry)
    }
}

/// An inode that the kernel knows.
struct Known {
    tree: Arc<Tree>,
    ino: Ino,
    lookups: u64,
}

/// One of the three directories.
pub struct Views {
    volume: Arc<Volume>,
    family: Family,
    known: Mutex<HashMap<Ino, Known>>,
    since_ns: i64,
}

/// What a name in one of the three directories leads to.
struct Target {
    generation: Generation,
    ino: Ino,
}

impl Views {
    /// One of the three directories of a mount.
    pub fn new(volume: Arc<Volume>, family: Family) -> Self {
        Self { volume, family, known: Mutex::default(), since_ns: SystemClock.now_ns() }
    }

    fn known(&self, ino: Ino) -> Outcome<(Arc<Tree>, Ino)> {
        let known = self.known.lock();
        let known = known.get(&ino).ok_or(Errno::STALE)?;
        Ok((Arc::clone(&known.tree), known.ino))
    }

    fn target(&self, name: &[u8]) -> Outcome<Target> {
        let text = std::str::from_utf8(name).ok();
        let found = match self.family {
            Family::Snapshots => self.volume.snapshot(name).map(|row| (row.generation, ROOT_INO)),
            Family::At => {
                let time_ns = text.and_then(parse_time).ok_or(Errno::NOT_FOUND)?;
                if time_ns > SystemClock.now_ns() {
                    return Err(Errno::NOT_FOUND);
                }
                self.volume.generation_at(time_ns).map(|row| (row.generation, ROOT_INO))
            }
            _ => {
                let (ino, generation) = text.and_then(|text| text.split_once('.')).ok_or(Errno::NOT_FOUND)?;
                let (Ok(ino), Ok(generation)) = (ino.parse(), generation.parse()) else {
                    return Err(Errno::NOT_FOUND);
                };
                Ok((Generation(generation), Ino(ino)))
            }
        };
        let (generation, ino) = found.map_err(|error| Errno::from(&error))?;
        Ok(Target { generation, ino })
    }

    /// The tree that a name in the directory leads to, entered.
    fn enter(&self, name: &[u8]) -> Outcome<Attr> {
        let Target { generation, ino } = self.target(name)?;
        let key = tree_key(self.family, name, generation);
        let number = self.family.number(mix(key ^ mix(ino.0)), false);
        let entered = self.known.lock().get(&number).map(|known| Arc::clone(&known.tree));
        let tree = match entered.filter(|tree| tree.key == key) {
            Some(tree) => tree,
            None => {
                let view = self.volume.view_of(generation, ino).map_err(|error| Errno::from(&error))?;
                Arc::new(Tree { view, family: self.family, key, entry: ino })
            }
        };
        let attr = tree.view.attr(ino).map_err(|error| match error {
            Error::Stale(_) => Errno::NOT_FOUND,
            error => Errno::from(&error),
        })?;
        Ok(self.told(&tree, attr))
    }

    /// The kernel is about to be told of an inode.
    fn told(&self, tree: &Arc<Tree>, attr: Attr) -> Attr {
        let mut known = self.known.lock();
        let mut number = tree.number(attr.ino);
        // Two inodes may come to one number, once in ten million trees of this size; the later takes the next.
        while known.get(&number).is_some_and(|known| known.tree.key != tree.key || known.ino != attr.ino) {
            number = tree.family.number((number.0 + 1) & LOCAL_MASK, attr.ino != tree.entry);
        }
        let entry = known.entry(number).or_insert_with(|| Known { tree: Arc::clone(tree), ino: attr.ino, lookups: 0 });
        entry.lookups += 1;
        shown(attr, number)
    }
}

/// Attributes as they are shown: under another number, and nothing of it is a function.
fn shown(attr: Attr, number: Ino) -> Attr {
    Attr { ino: number, in_exec: false, ..attr }
}

impl Branch for Views {
    fn family(&self) -> Family {
        self.family
    }

    fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if ino == self.family.top() {
            // Looking an inode up by number leaves out the directories above it, which may be closed to others.
            let perm = if self.family == Family::File { 0o700 } else { 0o755 };
            return Ok(plain_attr(ino, FileKind::Directory, perm, 0, self.since_ns));
        }
        let (tree, live) = self.known(ino)?;
        tree.view.attr(live).map(|attr| shown(attr, ino)).map_err(|error| Errno::from(&error))
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if parent == self.family.top() {
            return self.enter(name);
        }
        let (tree, live) = self.known(parent)?;
        let attr = tree.view.lookup(live, name).map_err(|error| Errno::from(&error))?;
        Ok(self.told(&tree, attr))
    }

    fn forget(&self, ino: Ino, count: u64) {
        let mut known = self.known.lock();
        if let Some(entry) = known.get_mut(&ino) {
            entry.lookups = entry.lookups.saturating_sub(count);
            if entry.lookups == 0 {
                let gone = known.remove(&ino);
                // The last of a tree gives its view up, which takes another lock.
                drop(known);
                drop(gone);
            }
        }
    }

    fn parent(&self, dir: Ino) -> Outcome<Ino> {
        let (tree, live) = self.known(dir)?;
        if live == tree.entry {
            return Ok(self.family.top());
        }
        let parent = tree.view.parent_of(live).map_err(|error| Errno::from(&error))?;
        let number = tree.number(parent);
        // Known, unless the kernel came here by a file handle.
        Ok(if self.known.lock().contains_key(&number) { number } else { self.family.top() })
    }

    fn entries(&self, dir: Ino, cookie: u64, max: usize, plus: bool) -> Outcome<Vec<DirEntry>> {
        if dir != self.family.top() {
            let (tree, live) = self.known(dir)?;
            let read = tree.view.read_dir(live, cookie, max, plus);
            let mut entries = read.map_err(|error| Errno::from(&error))?;
            for entry in &mut entries {
                let attr = entry.attr.map(|attr| self.told(&tree, attr));
                entry.ino = attr.map_or_else(|| tree.number(entry.ino), |attr| attr.ino);
                entry.attr = attr;
            }
            return Ok(entries);
        }
        if self.family != Family::Snapshots {
            // Every time, and every inode, is a name: there are too many to list.
            return Ok(Vec::new());
        }
        let snapshots = self.volume.snapshots().map_err(|error| Errno::from(&error))?;
        let mut entries = Vec::new();
        for (at, row) in (COOKIE_MIN..).zip(snapshots).filter(|(at, _)| *at > cookie).take(max) {
            let key = tree_key(self.family, &row.name, row.generation);
            let number = self.family.number(mix(key ^ mix(ROOT_INO.0)), false);
            let attr = if plus {
                match self.enter(&row.name) {
                    Ok(attr) => Some(attr),
                    // Deleted in between, or not committed yet.
                    Err(_) => continue,
                }
            } else {
                None
            };
            let ino = attr.map_or(number, |attr| attr.ino);
            entries.push(DirEntry { name: row.name.into(), ino, kind: FileKind::Directory, cookie: at, attr });
        }
        Ok(entries)
    }

    fn read_link(&self, ino: Ino) -> Outcome<Vec<u8>> {
        let (tree, live) = self.known(ino)?;
        tree.view.read_link(live).map_err(|error| Errno::from(&error))
    }

    fn open(&self, _caller: Caller, ino: Ino, flags: i32) -> Outcome<Opening> {
        reading_only(flags)?;
        let (tree, ino) = self.known(ino)?;
        Ok(Opening { file: Arc::new(PastFile { tree, ino }), caching: Caching::Keep })
    }

    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Outcome<Vec<u8>> {
        let attributes = self.xattrs(ino)?;
        let found = attributes.into_iter().find(|(known, _)| **known == *name);
        found.map(|(_, value)| value.into_vec()).ok_or(Errno(libc::ENODATA))
    }

    fn list_xattrs(&self, ino: Ino) -> Outcome<Vec<Vec<u8>>> {
        Ok(self.xattrs(ino)?.into_iter().map(|(name, _)| name.into_vec()).collect())
    }
}

type Attributes = Vec<(Box<[u8]>, Box<[u8]>)>;

impl Views {
    fn xattrs(&self, ino: Ino) -> Outcome<Attributes> {
        if ino == self.family.top() {
            return Ok(Vec::new());
        }
        let (tree, live) = self.known(ino)?;
        tree.view.xattrs(live).map_err(|error| Errno::from(&error))
    }
}

/// An open file of a past tree.
struct PastFile {
    tree: Arc<Tree>,
    ino: Ino,
}

impl VirtualFile for PastFile {
    fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        self.tree.view.read(self.ino, offset, len).map_err(|error| {
            log::error!("read of inode {} as of generation {}: {error}", self.ino, self.tree.view.generation());
            Errno::from(&error)
        })
    }

    fn seek(&self, offset: u64, whence: i32) -> Outcome<u64> {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(Errno::INVALID),
        };
        let found = self.tree.view.seek(self.ino, offset, data).map_err(|error| Errno::from(&error))?;
        found.ok_or(Errno::NO_DATA_THERE)
    }
}

/// What tells the trees of a mount apart: FNV-1a (Fowler, Noll, Vo) over how one is reached and its generation.
fn tree_key(family: Family, name: &[u8], generation: Generation) -> u64 {
    let generation = generation.0.to_le_bytes();
    let bytes = [family as u8].into_iter().chain(generation).chain(name.iter().copied());
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
}

/// A fixed mixture (Steele and others, "SplitMix", 2014): numbers that differ little fall apart.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_differ_between_trees() {
        let key = tree_key(Family::Snapshots, b"monday", Generation(7));
        assert_eq!(key, tree_key(Family::Snapshots, b"monday", Generation(7)));
        let others = [
            tree_key(Family::Snapshots, b"monday", Generation(8)),
            tree_key(Family::Snapshots, b"tuesday", Generation(7)),
            tree_key(Family::At, b"monday", Generation(7)),
        ];
        assert!(others.iter().all(|other| *other != key));
        let numbers: std::collections::HashSet<u64> =
            (1..100_000).map(|ino| mix(key ^ mix(ino)) & LOCAL_MASK).collect();
        assert_eq!(numbers.len(), 99_999);
    }
}
