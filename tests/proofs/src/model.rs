//! What a filesystem must do, in memory: the tree, and the errno of what it refuses.
//!
//! Paths are relative to the root and without dots; `""` is the root. Times, owners and access are not modelled.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::workload::Op;

/// What a name leads to.
#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<String, u64>),
    Link(String),
}

#[derive(Clone, Debug)]
struct Node {
    body: Body,
    perm: u16,
    names: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// One file, directory or symbolic link, as it is seen from outside: comparable, and short enough to print.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// `f`, `d` or `l`.
    pub kind: char,
    /// Permission bits.
    pub perm: u16,
    /// Names of a file; 0 for directories and links.
    pub names: u32,
    /// Length of a file's content.
    pub len: u64,
    /// Hash of content or target.
    pub hash: [u8; 8],
    /// Extended attributes, and a hash of each value.
    pub xattrs: Vec<(String, [u8; 8])>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:o} x{} {} bytes {:02x?}", self.kind, self.perm, self.names, self.len, &self.hash[..4])?;
        if self.xattrs.is_empty() { Ok(()) } else { write!(f, " {:02x?}", self.xattrs) }
    }
}

/// A whole tree as it is seen from outside, by path.
pub type State = BTreeMap<String, Item>;

/// What differs between two states, a line a path.
pub fn difference(expected: &State, found: &State) -> String {
    let paths: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differ = paths.into_iter().filter(|path| expected.get(*path) != found.get(*path));
    let lines: Vec<String> = differ
        .map(|path| format!("  /{path}: expected {:?}, found {:?}", expected.get(path), found.get(path)))
        .collect();
    lines.join("\n")
}

/// The short hash of an item.
pub fn short_hash(bytes: &[u8]) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    short
}

/// A filesystem in memory.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: BTreeMap<u64, Arc<Node>>,
    next: u64,
}

const ROOT: u64 = 1;
/// Longest file of the model, bytes: operations beyond it are not generated.
pub const FILE_LEN_MAX: u64 = 1 << 20;

type Outcome<T> = Result<T, i32>;

impl Default for Model {
    fn default() -> Self {
        let root = Node { body: Body::Directory(BTreeMap::new()), perm: 0o755, names: 0, xattrs: BTreeMap::new() };
        Self { nodes: BTreeMap::from([(ROOT, Arc::new(root))]), next: ROOT + 1 }
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Model {
    fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&id).expect("ids in directories lead to nodes"))
    }

    fn entries(&self, id: u64) -> Outcome<&BTreeMap<String, u64>> {
        match &self.node(id).body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn find(&self, path: &str) -> Outcome<u64> {
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = *self.entries(at)?.get(name).ok_or(libc::ENOENT)?;
        }
        Ok(at)
    }

    fn file(&mut self, path: &str) -> Outcome<&mut Vec<u8>> {
        let id = self.find(path)?;
        match &mut self.node_mut(id).body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory(_) => Err(libc::EISDIR),
            Body::Link(_) => Err(libc::EINVAL),
        }
    }

    fn add(&mut self, path: &str, body: Body, perm: u16) -> Outcome<()> {
        let (parent, name) = split(path);
        let parent = self.find(parent)?;
        if self.entries(parent)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Arc::new(Node { body, perm, names: 1, xattrs: BTreeMap::new() }));
        self.put(parent, name, id);
        Ok(())
    }

    fn put(&mut self, parent: u64, name: &str, id: u64) {
        if let Body::Directory(entries) = &mut self.node_mut(parent).body {
            entries.insert(name.to_owned(), id);
        }
    }

    fn take(&mut self, parent: u64, name: &str) {
        if let Body::Directory(entries) = &mut self.node_mut(parent).body {
            entries.remove(name);
        }
    }

    /// A name of a node is gone.
    fn drop_name(&mut self, id: u64) {
        self.node_mut(id).names -= 1;
        if self.node(id).names == 0 {
            self.nodes.remove(&id);
        }
    }

    /// Whether directory `inner` is `outer` or lies below it.
    fn is_within(&self, inner: u64, outer: u64) -> bool {
        inner == outer || self.entries(outer).is_ok_and(|entries| entries.values().any(|id| self.is_within(inner, *id)))
    }

    /// Do an operation, or answer the errno with which it is refused.
    ///
    /// # Errors
    /// An errno.
    pub fn apply(&mut self, op: &Op) -> Outcome<()> {
        match op {
            Op::Create { path } => self.add(path, Body::File(Vec::new()), 0o644),
            Op::Mkdir { path } => self.add(path, Body::Directory(BTreeMap::new()), 0o755),
            Op::Symlink { path, target } => self.add(path, Body::Link(target.clone()), 0o777),
            Op::Write { path, offset, len, seed } => {
                let bytes = self.file(path)?;
                let (start, end) = (*offset as usize, *offset as usize + len);
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(&crate::random::noise(*seed, *len));
                Ok(())
            }
            Op::Truncate { path, len } => {
                self.file(path)?.resize(*len as usize, 0);
                Ok(())
            }
            Op::Punch { path, offset, len } => {
                let bytes = self.file(path)?;
                let end = (offset + len).min(bytes.len() as u64) as usize;
                let start = (*offset as usize).min(end);
                bytes[start..end].fill(0);
                Ok(())
            }
            Op::Unlink { path } => self.unlink(path),
            Op::Rmdir { path } => self.rmdir(path),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Exchange { one, other } => self.exchange(one, other),
            Op::Link { path, to } => {
                let id = self.find(path)?;
                if matches!(self.node(id).body, Body::Directory(_)) {
                    return Err(libc::EPERM);
                }
                let (parent, name) = split(to);
                let parent = self.find(parent)?;
                if self.entries(parent)?.contains_key(name) {
                    return Err(libc::EEXIST);
                }
                self.put(parent, name, id);
                self.node_mut(id).names += 1;
                Ok(())
            }
            Op::Chmod { path, perm } => {
                let id = self.find(path)?;
                self.node_mut(id).perm = *perm;
                Ok(())
            }
            Op::SetXattr { path, name, value } => {
                let id = self.find(path)?;
                self.node_mut(id).xattrs.insert(name.clone(), value.clone());
                Ok(())
            }
            Op::RemoveXattr { path, name } => {
                let id = self.find(path)?;
                self.node_mut(id).xattrs.remove(name).map(drop).ok_or(libc::ENODATA)
            }
            Op::Sync { path } => self.find(path).map(drop),
            Op::SyncAll | Op::Checkpoint | Op::Collect | Op::Quota | Op::Pause => Ok(()),
        }
    }

    fn unlink(&mut self, path: &str) -> Outcome<()> {
        let id = self.find(path)?;
        if matches!(self.node(id).body, Body::Directory(_)) {
            return Err(libc::EISDIR);
        }
        let (parent, name) = split(path);
        let parent = self.find(parent)?;
        self.take(parent, name);
        self.drop_name(id);
        Ok(())
    }

    fn rmdir(&mut self, path: &str) -> Outcome<()> {
        let id = self.find(path)?;
        if !self.entries(id)?.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        let (parent, name) = split(path);
        let parent = self.find(parent)?;
        self.take(parent, name);
        self.drop_name(id);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Outcome<()> {
        let ((from_parent, from_name), (to_parent, to_name)) = (split(from), split(to));
        let (from_parent, to_parent) = (self.find(from_parent)?, self.find(to_parent)?);
        let id = *self.entries(from_parent)?.get(from_name).ok_or(libc::ENOENT)?;
        let replaced = self.entries(to_parent)?.get(to_name).copied();
        if replaced == Some(id) {
            return Ok(());
        }
        let is_dir = matches!(self.node(id).body, Body::Directory(_));
        if is_dir && self.is_within(to_parent, id) {
            return Err(libc::EINVAL);
        }
        if let Some(replaced) = replaced {
            // As Linux answers for an ancestor, whatever is renamed.
            if self.is_within(from_parent, replaced) {
                return Err(libc::ENOTEMPTY);
            }
            match (&self.node(replaced).body, is_dir) {
                (Body::Directory(entries), true) if entries.is_empty() => {}
                (Body::Directory(_), true) => return Err(libc::ENOTEMPTY),
                (Body::Directory(_), false) => return Err(libc::EISDIR),
                (_, true) => return Err(libc::ENOTDIR),
                (_, false) => {}
            }
            self.drop_name(replaced);
        }
        self.take(from_parent, from_name);
        self.put(to_parent, to_name, id);
        Ok(())
    }

    fn exchange(&mut self, one: &str, other: &str) -> Outcome<()> {
        let ((one_parent, one_name), (other_parent, other_name)) = (split(one), split(other));
        let (one_parent, other_parent) = (self.find(one_parent)?, self.find(other_parent)?);
        let one_id = *self.entries(one_parent)?.get(one_name).ok_or(libc::ENOENT)?;
        let other_id = *self.entries(other_parent)?.get(other_name).ok_or(libc::ENOENT)?;
        if self.is_within(other_parent, one_id) || self.is_within(one_parent, other_id) {
            return Err(libc::EINVAL);
        }
        self.put(one_parent, one_name, other_id);
        self.put(other_parent, other_name, one_id);
        Ok(())
    }

    /// Every path but the root's, with whether it is a directory, and a file's length.
    pub fn paths(&self) -> Vec<(String, bool, Option<u64>)> {
        let mut out = Vec::new();
        self.walk(ROOT, "", &mut |path, node| {
            let len = if let Body::File(bytes) = &node.body { Some(bytes.len() as u64) } else { None };
            out.push((path.to_owned(), matches!(node.body, Body::Directory(_)), len));
        });
        out
    }

    fn walk(&self, id: u64, path: &str, visit: &mut impl FnMut(&str, &Node)) {
        if let Body::Directory(entries) = &self.node(id).body {
            for (name, child) in entries {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                visit(&path, self.node(*child));
                self.walk(*child, &path, visit);
            }
        }
    }

    /// The content of a file.
    pub fn content(&self, path: &str) -> Option<&[u8]> {
        match &self.node(self.find(path).ok()?).body {
            Body::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The tree as it is seen from outside.
    pub fn state(&self) -> State {
        let mut state = State::new();
        self.walk(ROOT, "", &mut |path, node| {
            let (kind, names, len, hash) = match &node.body {
                Body::File(bytes) => ('f', node.names, bytes.len() as u64, short_hash(bytes)),
                Body::Directory(_) => ('d', 0, 0, [0; 8]),
                Body::Link(target) => ('l', 0, 0, short_hash(target.as_bytes())),
            };
            let xattrs = node.xattrs.iter().map(|(name, value)| (name.clone(), short_hash(value))).collect();
            state.insert(path.to_owned(), Item { kind, perm: node.perm, names, len, hash, xattrs });
        });
        state
    }
}
