//! Past states against a model that remembers them: whatever is done later, and across crashes, each kept generation
//! reads exactly as it was.

use std::collections::BTreeMap;

use super::*;
use crate::ids::Generation;

const CHUNK: usize = 1 << 17;

/// xorshift64*: reproducible from the seed that a failure names.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }
}

/// What a path is; directories have no content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    content: Option<Vec<u8>>,
    perm: u16,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All paths of a tree.
type Tree = BTreeMap<String, Node>;

/// Like a database: `kept` is what each generation must read as; `now` what the volume is.
struct Model {
    now: Tree,
    committed: Tree,
    kept: Vec<(Generation, Tree)>,
}

fn ino_of(volume: &Volume, path: &str) -> Ino {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(ROOT_INO, |at, name| volume.lookup(at, name.as_bytes()).unwrap().ino)
}

fn parts(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The tree of a view.
fn tree_of(view: &View) -> Tree {
    fn walk(view: &View, dir: Ino, path: &str, out: &mut Tree) {
        let mut cookie = 0;
        loop {
            let page = view.read_dir(dir, cookie, 7, true).unwrap();
            let Some(last) = page.last() else { return };
            cookie = last.cookie;
            for entry in page {
                let name = String::from_utf8(entry.name).unwrap();
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                let attr = entry.attr.unwrap();
                let content = (attr.kind == FileKind::File).then(|| view.read(entry.ino, 0, usize::MAX >> 1).unwrap());
                let xattrs = view.xattrs(entry.ino).unwrap();
                let xattrs = xattrs.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
                out.insert(path.clone(), Node { content, perm: attr.perm, xattrs });
                if attr.kind == FileKind::Directory {
                    walk(view, entry.ino, &path, out);
                }
            }
        }
    }
    let mut out = Tree::new();
    walk(view, ROOT_INO, "", &mut out);
    out
}

impl Model {
    fn check(&self, volume: &Arc<Volume>) {
        for (generation, tree) in &self.kept {
            assert_eq!(tree_of(&volume.view(*generation).unwrap()), *tree, "generation {generation}");
        }
    }

    fn pick(&self, random: &mut Random, wanted: impl Fn(&Node) -> bool) -> Option<String> {
        let all: Vec<&String> = self.now.iter().filter(|(_, node)| wanted(node)).map(|(path, _)| path).collect();
        (!all.is_empty()).then(|| all[random.below(all.len() as u64) as usize].clone())
    }

    fn directory(&self, random: &mut Random) -> String {
        match random.below(3) {
            0 => String::new(),
            _ => self.pick(random, |node| node.content.is_none()).unwrap_or_default(),
        }
    }

    fn below(&self, path: &str) -> Vec<String> {
        let inside = format!("{path}/");
        self.now.keys().filter(|other| *other == path || other.starts_with(&inside)).cloned().collect()
    }

    fn commit(&mut self, volume: &Volume, random: &mut Random) {
        let generation = volume.commit(&NothingDirty).unwrap();
        self.note(generation, random);
    }

    fn note(&mut self, generation: Generation, random: &mut Random) {
        self.committed = self.now.clone();
        if random.below(3) == 0 && self.kept.last().is_none_or(|(last, _)| *last < generation) {
            self.kept.push((generation, self.now.clone()));
        }
    }
}

fn write_file(volume: &Volume, ino: Ino, content: &[u8]) {
    let attr = volume.attr(ino).unwrap();
    let now = volume.clock().now_ns();
    let inline = (content.len() <= INLINE_MAX).then(|| content.to_vec());
    if inline.is_none() {
        let chunks = content.chunks(CHUNK).enumerate().map(|(n, chunk)| (ChunkNo(n as u64), chunk));
        volume.write_chunks(attr.ino, &chunks.collect::<Vec<_>>()).unwrap();
    }
    let change = FileChange { size: content.len() as u64, mtime_ns: now, ctime_ns: now, inline, clear_suid: false };
    volume.set_file(ino, &change).unwrap();
}

fn step(volume: &Arc<Volume>, model: &mut Model, random: &mut Random) {
    let fresh = format!("n{}", random.below(12));
    match random.below(16) {
        0..4 => {
            let dir = model.directory(random);
            let path = if dir.is_empty() { fresh } else { format!("{dir}/{fresh}") };
            let (parent, name) = parts(&path);
            if model.now.contains_key(&path) {
                return;
            }
            let kind = if random.below(3) == 0 { FileKind::Directory } else { FileKind::File };
            let node = NewNode { kind, ..new_file() };
            let made = volume.create(ino_of(volume, parent), name.as_bytes(), &node).unwrap();
            let content = (kind == FileKind::File).then(Vec::new);
            model.now.insert(path, Node { content, perm: made.perm, xattrs: BTreeMap::new() });
        }
        4..8 => {
            let Some(path) = model.pick(random, |node| node.content.is_some()) else { return };
            let mut content = model.now[&path].content.clone().unwrap();
            match random.below(3) {
                0 => content = noise(random.next(), random.below(2000) as usize),
                1 => content = noise(random.next(), 2 * CHUNK + random.below(1000) as usize),
                // A hole at the end, and one byte inside.
                _ => {
                    content.resize(content.len() + random.below(3) as usize * CHUNK, 0);
                    let at = random.below(content.len().max(1) as u64) as usize;
                    if let Some(byte) = content.get_mut(at) {
                        *byte ^= 0x55;
                    }
                }
            }
            write_file(volume, ino_of(volume, &path), &content);
            model.now.get_mut(&path).unwrap().content = Some(content);
        }
        8 => {
            let Some(path) = model.pick(random, |_| true) else { return };
            let perm = 0o600 | (random.below(64) as u16);
            let change = SetAttr { perm: Some(perm), ..SetAttr::default() };
            volume.set_attr(ino_of(volume, &path), &change).unwrap();
            model.now.get_mut(&path).unwrap().perm = perm;
        }
        9 => {
            let Some(path) = model.pick(random, |_| true) else { return };
            let (name, value) = (format!("user.{}", random.below(3)).into_bytes(), noise(random.next(), 20));
            volume.set_xattr(ino_of(volume, &path), &name, &value, false, false).unwrap();
            model.now.get_mut(&path).unwrap().xattrs.insert(name, value);
        }
        10 | 11 => {
            let Some(path) = model.pick(random, |node| node.content.is_some()) else { return };
            let (parent, name) = parts(&path);
            let gone = volume.unlink(ino_of(volume, parent), name.as_bytes()).unwrap();
            volume.release_orphan(gone.ino).unwrap();
            model.now.remove(&path);
        }
        12 => {
            // Renaming takes everything below along.
            let Some(path) = model.pick(random, |_| true) else { return };
            let dir = model.directory(random);
            let to = if dir.is_empty() { fresh } else { format!("{dir}/{fresh}") };
            if model.now.contains_key(&to) || dir == path || dir.starts_with(&format!("{path}/")) {
                return;
            }
            let ((parent, name), (new_parent, new_name)) = (parts(&path), parts(&to));
            let (parent, new_parent) = (ino_of(volume, parent), ino_of(volume, new_parent));
            let flags = RenameFlags::default();
            volume.rename(parent, name.as_bytes(), new_parent, new_name.as_bytes(), flags).unwrap();
            for old in model.below(&path) {
                let node = model.now.remove(&old).unwrap();
                model.now.insert(format!("{to}{}", &old[path.len()..]), node);
            }
        }
        13 => {
            // A file, or a tree that is gone, as it was.
            let Some(at) = (!model.kept.is_empty()).then(|| random.below(model.kept.len() as u64) as usize) else {
                return;
            };
            let (generation, past) = model.kept[at].clone();
            let all: Vec<&String> = past.keys().collect();
            if all.is_empty() {
                return;
            }
            let path = all[random.below(all.len() as u64) as usize].clone();
            let (parent, name) = parts(&path);
            if !parent.is_empty() && model.now.get(parent).is_none_or(|node| node.content.is_some()) {
                return;
            }
            let source = volume.view(generation).unwrap().find(path.as_bytes()).unwrap();
            let to =
                Destination { parent: ino_of(volume, parent), name: name.as_bytes(), replace: true, version: None };
            let restored = volume.restore(&NothingDirty, generation, source.ino, to, &|_| false);
            model.committed = model.now.clone();
            let replaced = model.now.get(&path).map(|node| node.content.is_some());
            if replaced.is_none() || replaced == Some(true) && source.kind == FileKind::File {
                restored.unwrap();
                let inside = format!("{path}/");
                let tree = past.iter().filter(|(other, _)| **other == path || other.starts_with(&inside));
                model.now.extend(tree.map(|(path, node)| (path.clone(), node.clone())));
                model.committed = model.now.clone();
            } else {
                assert!(matches!(restored, Err(Error::Exists)), "{restored:?}");
            }
        }
        14 => {
            let Some(at) = (!model.kept.is_empty()).then(|| random.below(model.kept.len() as u64) as usize) else {
                return;
            };
            let (generation, past) = model.kept[at].clone();
            let rewound =
                volume.rewind(&NothingDirty, generation, ROOT_INO, ROOT_INO, random.below(4) == 0, &|_| false).unwrap();
            for gone in rewound.unlinked {
                // Tried only, or gone.
                let _ = volume.release_orphan(gone.ino);
            }
            let live = tree_of(&volume.view(volume.commit(&NothingDirty).unwrap()).unwrap());
            assert!(live == past || live == model.now, "neither what it was nor what it is");
            model.now = live;
            model.committed = model.now.clone();
        }
        _ => model.commit(volume, random),
    }
}

/// A volume that is gone without having been closed.
fn crash(volume: Arc<Volume>) {
    assert_eq!(Arc::strong_count(&volume), 1, "somebody still uses it");
    drop(volume);
}

#[test]
fn every_kept_generation_reads_as_the_model_remembers_it() {
    for seed in [3, 4] {
        println!("seed {seed}");
        let scratch = Scratch::new(&format!("history-{seed}"));
        scratch.format_kept(3);
        let mut random = Random(seed);
        let mut model = Model { now: Tree::new(), committed: Tree::new(), kept: Vec::new() };
        let mut volume = scratch.open_of(3);
        for round in 0..12 {
            for _ in 0..40 {
                step(&volume, &mut model, &mut random);
            }
            model.check(&volume);
            match random.below(3) {
                0 => {
                    // What no commit has seen is gone; all before it is there.
                    model.now = model.committed.clone();
                    crash(volume);
                    volume = scratch.open_of(3);
                    let generation = volume.commit(&NothingDirty).unwrap();
                    assert_eq!(tree_of(&volume.view(generation).unwrap()), model.now, "round {round}");
                }
                1 => {
                    model.commit(&volume, &mut random);
                    volume.close(&NothingDirty).unwrap();
                    if random.below(2) == 0 {
                        // History is on the log and in the checkpoints, too.
                        std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
                    }
                    volume = scratch.open_of(3);
                }
                _ => {
                    let name = format!("s{round}");
                    let row = volume.create_snapshot(name.as_bytes()).unwrap();
                    let generation = volume.commit(&NothingDirty).unwrap();
                    assert_eq!(row.generation, generation);
                    model.committed = model.now.clone();
                    model.kept.push((generation, model.now.clone()));
                }
            }
            model.check(&volume);
        }
        assert!(model.kept.len() > 10, "too little was kept to prove anything");
        healthy(&volume);
        volume.close(&NothingDirty).unwrap();
    }
}

#[test]
fn conditional_increments_lose_none_and_double_none() {
    const THREADS: u64 = 4;
    const EACH: u64 = 25;
    let scratch = Scratch::new("increments");
    scratch.format_kept(3);
    let volume = scratch.open_of(3);
    for keep in [false, true] {
        let ino = write(&volume, if keep { "kept" } else { "plain" }, b"").ino;
        volume.commit(&NothingDirty).unwrap();
        let before = volume.attr(ino).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        // The count lives in the time: computed from what was read, written only if that is current.
                        let increment = || {
                            let attr = volume.attr(ino)?;
                            std::thread::yield_now();
                            let next = SetAttr { mtime_ns: Some(attr.mtime_ns + 1), ..SetAttr::default() };
                            volume.set_attr_if(&NothingDirty, ino, attr.version, &next, keep)
                        };
                        // Retries are bounded; whoever gave up tries again.
                        while let Err(error) = volume.retry(increment) {
                            assert!(matches!(error, Error::Conflict(_)), "{error}");
                        }
                    }
                });
            }
        });
        let after = volume.attr(ino).unwrap();
        assert_eq!(after.version.0 - before.version.0, THREADS * EACH, "the version grows by one with each");
        assert_eq!(after.mtime_ns - before.mtime_ns, (THREADS * EACH) as i64, "none is lost, none doubled");
        volume.commit(&NothingDirty).unwrap();
        let states = volume.past(|past| past.states(ino)).unwrap();
        let versions: std::collections::BTreeSet<u64> = states.iter().map(|(row, _)| row.version.0).collect();
        let wanted = before.version.0..=after.version.0;
        if keep {
            assert!(wanted.clone().all(|version| versions.contains(&version)), "{versions:?}");
            for (row, until) in &states {
                let kept = volume.past(|past| past.kept_within(row.since, *until)).unwrap().unwrap();
                let view = volume.view(kept.generation).unwrap();
                assert_eq!(view.attr(ino).unwrap().mtime_ns, row.mtime_ns);
            }
        } else {
            assert!(versions.len() < (THREADS * EACH) as usize, "states inside a generation are not kept unasked");
        }
    }
    let late = volume.attr(ROOT_INO).unwrap();
    let version = crate::ids::Version(late.version.0 - 1);
    let stale = volume.set_attr_if(&NothingDirty, ROOT_INO, version, &SetAttr::default(), true);
    assert!(matches!(stale, Err(Error::Conflict(ROOT_INO))));
    assert!(volume.status().unwrap().versions.conflicts > 0);
    assert_eq!(volume.keep(&NothingDirty, ROOT_INO).unwrap(), late.version);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn former_states_are_held_by_the_schema() {
    let scratch = Scratch::new("schema");
    scratch.format_kept(3);
    let volume = scratch.open_of(3);
    let attr = write(&volume, "file", &noise(1, 3 * CHUNK));
    volume.create_snapshot(b"first").unwrap();
    let first = volume.commit(&NothingDirty).unwrap();
    put(&volume, &attr, &noise(2, 3 * CHUNK));
    volume.commit(&NothingDirty).unwrap();
    volume.unlink(ROOT_INO, b"file").unwrap();
    volume.release_orphan(attr.ino).unwrap();
    let last = volume.commit(&NothingDirty).unwrap();
    let forget = |pins: &[Generation]| {
        let end = Generation(last.0 + 1);
        volume.meta.with(|txn| txn.forget_history(Generation(0), end, pins))
    };
    // Whoever forgets a pin is stopped, with everything he did.
    assert!(matches!(forget(&[]), Err(Error::Database { .. })));
    let view = volume.view(first).unwrap();
    assert_eq!(view.read(attr.ino, 0, usize::MAX >> 1).unwrap(), noise(1, 3 * CHUNK));
    assert!(forget(&[first]).unwrap() > 0);
    assert_eq!(view.read(attr.ino, 0, usize::MAX >> 1).unwrap(), noise(1, 3 * CHUNK));
    volume.delete_snapshot(b"first").unwrap();
    assert_eq!(volume.pinned_generations(), [first], "somebody reads it");
    drop(view);
    assert!(volume.pinned_generations().is_empty());
    assert!(forget(&[]).unwrap() > 0);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta.verify().unwrap(), Vec::<String>::new());
    volume.close(&NothingDirty).unwrap();
}
