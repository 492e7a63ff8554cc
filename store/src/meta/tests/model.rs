//! A filesystem in memory, as simple as can be, that the database must agree with: results, errors, attributes,
//! versions, listings, content. It knows nothing of transactions, generations or caches.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Name of an error, to compare by.
pub(super) fn name_of(error: &Error) -> &'static str {
    match error {
        Error::NotFound => "ENOENT",
        Error::Exists => "EEXIST",
        Error::NotADirectory => "ENOTDIR",
        Error::IsADirectory => "EISDIR",
        Error::NotEmpty => "ENOTEMPTY",
        Error::NameTooLong => "ENAMETOOLONG",
        Error::InvalidArgument(_) => "EINVAL",
        Error::CrossesDevices => "EXDEV",
        Error::TooManyLinks => "EMLINK",
        Error::NoSuchXattr => "ENODATA",
        Error::NotPermitted(_) => "EPERM",
        Error::Stale(_) => "ESTALE",
        other => panic!("unexpected: {other}"),
    }
}

pub(super) type Errno = &'static str;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub kind: FileKind,
    pub perm: u16,
    pub gid: u32,
    pub nlink: u32,
    pub version: u64,
    pub size: u64,
    pub parent: u64,
    pub names: BTreeMap<Vec<u8>, u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub chunks: BTreeMap<u64, BlockKey>,
    pub inline: Option<Vec<u8>>,
}

#[derive(Clone)]
pub(super) struct Model {
    pub nodes: BTreeMap<u64, Node>,
    pub next: u64,
    pub nlink_max: u32,
}

impl Model {
    pub fn new(nlink_max: u32) -> Self {
        let root = Self::node(FileKind::Directory, 0o755, 0, 1);
        Self { nodes: [(1, root)].into(), next: 2, nlink_max }
    }

    fn node(kind: FileKind, perm: u16, gid: u32, parent: u64) -> Node {
        let is_directory = kind == FileKind::Directory;
        Node {
            kind,
            perm,
            gid,
            nlink: if is_directory { 2 } else { 1 },
            version: 1,
            size: if is_directory { 4096 } else { 0 },
            parent,
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            chunks: BTreeMap::new(),
            inline: None,
        }
    }

    pub fn get(&self, ino: u64) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or("ESTALE")
    }

    fn directory(&self, ino: u64) -> Result<&Node, Errno> {
        let node = self.get(ino)?;
        if node.kind == FileKind::Directory { Ok(node) } else { Err("ENOTDIR") }
    }

    fn living(&self, ino: u64) -> Result<&Node, Errno> {
        let node = self.directory(ino)?;
        if node.nlink > 0 { Ok(node) } else { Err("ENOENT") }
    }

    fn step(&mut self, ino: u64) -> &mut Node {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.version += 1;
        node
    }

    fn is_directory(&self, ino: u64) -> bool {
        self.nodes[&ino].kind == FileKind::Directory
    }

    /// Subdirectories are counted, not booked: links of every directory follow from the tree.
    fn recount(&mut self, ino: u64) {
        let below = self.nodes[&ino].names.values().filter(|child| self.is_directory(**child)).count();
        let node = self.nodes.get_mut(&ino).unwrap();
        if node.nlink > 0 {
            node.nlink = 2 + below as u32;
        }
    }

    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        self.directory(parent)?.names.get(name).copied().ok_or("ENOENT")
    }

    pub fn create(&mut self, parent: u64, name: &[u8], kind: FileKind, perm: u16, gid: u32) -> Result<u64, Errno> {
        let directory = self.living(parent)?;
        if directory.names.contains_key(name) {
            return Err("EEXIST");
        }
        if kind == FileKind::Directory && directory.nlink >= self.nlink_max {
            return Err("EMLINK");
        }
        let mut node = Self::node(kind, perm, gid, parent);
        if directory.perm & 0o2000 != 0 {
            node.gid = directory.gid;
            node.perm |= if kind == FileKind::Directory { 0o2000 } else { 0 };
        }
        if kind == FileKind::Symlink {
            node.size = name.len() as u64;
        }
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        self.step(parent).names.insert(name.to_vec(), ino);
        self.recount(parent);
        Ok(ino)
    }

    pub fn link(&mut self, ino: u64, parent: u64, name: &[u8]) -> Result<(), Errno> {
        if self.living(parent)?.names.contains_key(name) {
            return Err("EEXIST");
        }
        let node = self.get(ino)?;
        if node.kind == FileKind::Directory {
            return Err("EPERM");
        }
        if node.nlink == 0 {
            return Err("ENOENT");
        }
        if node.nlink >= self.nlink_max {
            return Err("EMLINK");
        }
        self.step(parent).names.insert(name.to_vec(), ino);
        self.step(ino).nlink += 1;
        Ok(())
    }

    fn lose(&mut self, ino: u64) {
        let node = self.step(ino);
        node.nlink = if node.kind == FileKind::Directory { 0 } else { node.nlink - 1 };
    }

    pub fn unlink(&mut self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        let ino = self.lookup(parent, name)?;
        if self.is_directory(ino) {
            return Err("EISDIR");
        }
        self.step(parent).names.remove(name);
        self.lose(ino);
        Ok(ino)
    }

    pub fn rmdir(&mut self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        let ino = self.lookup(parent, name)?;
        if !self.is_directory(ino) {
            return Err("ENOTDIR");
        }
        if !self.nodes[&ino].names.is_empty() {
            return Err("ENOTEMPTY");
        }
        self.step(parent).names.remove(name);
        self.recount(parent);
        self.lose(ino);
        Ok(ino)
    }

    fn is_above(&self, ancestor: u64, mut ino: u64) -> bool {
        loop {
            if ino == ancestor {
                return true;
            }
            if ino == 1 || ino == self.nodes[&ino].parent {
                return false;
            }
            ino = self.nodes[&ino].parent;
        }
    }

    pub fn rename(
        &mut self,
        (from, name): (u64, &[u8]),
        (to, new_name): (u64, &[u8]),
        flags: RenameFlags,
    ) -> Result<Option<u64>, Errno> {
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err("EINVAL");
        }
        self.directory(from)?;
        self.directory(to)?;
        let ino = self.lookup(from, name)?;
        self.living(to)?;
        let target = self.nodes[&to].names.get(new_name).copied();
        match target {
            Some(_) if flags.no_replace => return Err("EEXIST"),
            None if flags.exchange => return Err("ENOENT"),
            _ => {}
        }
        if from != to && self.is_directory(ino) && self.is_above(ino, to) {
            return Err("EINVAL");
        }
        if let Some(target) = target
            && from != to
            && self.is_directory(target)
            && self.is_above(target, from)
        {
            return Err(if flags.exchange { "EINVAL" } else { "ENOTEMPTY" });
        }
        if target == Some(ino) {
            return Ok(None);
        }
        if let (Some(target), false) = (target, flags.exchange) {
            match (self.is_directory(ino), self.is_directory(target)) {
                (false, true) => return Err("EISDIR"),
                (true, true) if !self.nodes[&target].names.is_empty() => return Err("ENOTEMPTY"),
                (true, false) => return Err("ENOTDIR"),
                _ => {}
            }
        }
        let (moves, replaces) = (self.is_directory(ino), target.is_some_and(|target| self.is_directory(target)));
        let full = |ino: u64| self.nodes[&ino].nlink >= self.nlink_max;
        if from != to && (moves && !replaces && full(to) || flags.exchange && replaces && !moves && full(from)) {
            return Err("EMLINK");
        }
        self.step(from).names.remove(name);
        if from != to {
            self.step(to);
        }
        self.nodes.get_mut(&to).unwrap().names.insert(new_name.to_vec(), ino);
        self.step(ino).parent = to;
        let mut replaced = None;
        if let Some(target) = target {
            if flags.exchange {
                self.nodes.get_mut(&from).unwrap().names.insert(name.to_vec(), target);
                self.step(target).parent = from;
            } else {
                self.lose(target);
                replaced = Some(target);
            }
        }
        if flags.whiteout {
            let directory = &self.nodes[&from];
            let gid = if directory.perm & 0o2000 != 0 { directory.gid } else { flags.owner.1 };
            self.nodes.insert(self.next, Self::node(FileKind::CharDevice, 0, gid, from));
            self.nodes.get_mut(&from).unwrap().names.insert(name.to_vec(), self.next);
            self.next += 1;
        }
        self.recount(from);
        self.recount(to);
        Ok(replaced)
    }

    pub fn set_perm(&mut self, ino: u64, perm: u16, gid: u32) -> Result<(), Errno> {
        self.get(ino)?;
        let node = self.step(ino);
        node.perm = perm;
        node.gid = gid;
        Ok(())
    }

    pub fn set_xattr(&mut self, ino: u64, name: &[u8], value: &[u8], create: bool, replace: bool) -> Result<(), Errno> {
        let exists = self.get(ino)?.xattrs.contains_key(name);
        if exists && create {
            return Err("EEXIST");
        }
        if !exists && replace {
            return Err("ENODATA");
        }
        self.step(ino).xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    pub fn remove_xattr(&mut self, ino: u64, name: &[u8]) -> Result<(), Errno> {
        if !self.get(ino)?.xattrs.contains_key(name) {
            return Err("ENODATA");
        }
        self.step(ino).xattrs.remove(name);
        Ok(())
    }

    pub fn put_chunks(&mut self, ino: u64, chunks: &[(ChunkNo, Option<BlockKey>)]) -> Result<(), Errno> {
        if self.get(ino)?.kind != FileKind::File {
            return Err("EINVAL");
        }
        let node = self.nodes.get_mut(&ino).unwrap();
        node.inline = None;
        for (chunk, key) in chunks {
            match key {
                Some(key) => node.chunks.insert(chunk.0, *key),
                None => node.chunks.remove(&chunk.0),
            };
        }
        Ok(())
    }

    pub fn set_file(&mut self, ino: u64, size: u64, inline: Option<Vec<u8>>) -> Result<(), Errno> {
        match self.get(ino)?.kind {
            FileKind::File => {}
            FileKind::Directory => return Err("EISDIR"),
            _ => return Err("EINVAL"),
        }
        let node = self.step(ino);
        if inline.is_some() {
            node.chunks.clear();
            node.inline = inline;
        } else if let Some(old) = &mut node.inline {
            old.truncate(size as usize);
        }
        if size < node.size {
            node.chunks.retain(|chunk, _| *chunk < size.div_ceil(4096));
        }
        node.size = size;
        Ok(())
    }

    pub fn release(&mut self, ino: u64) -> Result<(), Errno> {
        match self.nodes.get(&ino) {
            Some(node) if node.nlink > 0 => Err("EINVAL"),
            _ => {
                self.nodes.remove(&ino);
                Ok(())
            }
        }
    }

    pub fn orphans(&self) -> Vec<Ino> {
        self.nodes.iter().filter(|(_, node)| node.nlink == 0).map(|(ino, _)| Ino(*ino)).collect()
    }

    /// Every node of the database must be as here.
    pub fn compare(&self, meta: &Meta) {
        let orphans = meta.with(|txn| txn.orphans()).unwrap();
        assert_eq!(orphans, self.orphans());
        for (ino, node) in &self.nodes {
            self.compare_node(meta, Ino(*ino), node);
        }
        assert_eq!(meta.counters().inodes, self.nodes.len() as u64);
        let files = self.nodes.values().filter(|node| node.kind == FileKind::File);
        assert_eq!(meta.counters().logical_bytes, files.map(|node| node.size).sum::<u64>());
    }

    fn compare_node(&self, meta: &Meta, ino: Ino, node: &Node) {
        let attr = meta.with(|txn| txn.attr(ino)).unwrap();
        let seen = (attr.kind, attr.perm, attr.gid, attr.nlink, attr.version.0, attr.size);
        let wanted = (node.kind, node.perm, node.gid, node.nlink, node.version, node.size);
        assert_eq!(seen, wanted, "inode {ino}");
        let xattrs: BTreeSet<_> = meta.with(|txn| txn.list_xattrs(ino)).unwrap().into_iter().collect();
        assert_eq!(xattrs, node.xattrs.keys().cloned().collect(), "inode {ino}");
        for (name, value) in &node.xattrs {
            assert_eq!(meta.with(|txn| txn.get_xattr(ino, name)).unwrap(), *value);
        }
        match node.kind {
            FileKind::Directory => {
                assert_eq!(meta.with(|txn| txn.parent_of(ino)).unwrap().0, node.parent);
                let mut names = BTreeMap::new();
                let mut cookie = 0;
                loop {
                    let page = meta.with(|txn| txn.read_dir(ino, cookie, 3, true)).unwrap();
                    let Some(last) = page.last() else { break };
                    cookie = last.cookie;
                    for entry in page {
                        assert_eq!(entry.attr.unwrap().kind, entry.kind);
                        assert!(names.insert(entry.name, entry.ino.0).is_none(), "a name came twice");
                    }
                }
                assert_eq!(names, node.names, "directory {ino}");
            }
            FileKind::File => {
                let chunks = meta.with(|txn| txn.extents(attr.data, ChunkNo(0), CHUNK_END)).unwrap();
                let chunks: BTreeMap<_, _> = chunks.into_iter().map(|(chunk, key)| (chunk.0, key)).collect();
                assert_eq!(chunks, node.chunks, "file {ino}");
                let inline = meta.with(|txn| txn.inline_data(ino)).unwrap();
                assert_eq!(inline.as_deref(), node.inline.as_deref(), "file {ino}");
                for from in [0u64, 3, 9] {
                    let data = meta.with(|txn| txn.seek_data(attr.data, ChunkNo(from))).unwrap();
                    assert_eq!(data.map(|chunk| chunk.0), node.chunks.range(from..).next().map(|(chunk, _)| *chunk));
                    let hole = meta.with(|txn| txn.seek_hole(attr.data, ChunkNo(from))).unwrap();
                    assert_eq!(hole.0, (from..).find(|chunk| !node.chunks.contains_key(chunk)).unwrap());
                }
            }
            _ => {}
        }
    }
}
