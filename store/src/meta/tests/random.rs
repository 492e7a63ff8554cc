//! Random operations against the model, and what must follow from them: the tables verify, replaying the records of
//! all generations and importing an image both give the same digest.

use super::model::{Errno, Model, Node, name_of};
use super::*;
use crate::meta::codec::{decode_changes, encode_changes};

/// xorshift64*: reproducible from the seed that a failure names.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Run {
    meta: Meta,
    model: Model,
    random: Random,
    records: Vec<(Generation, Vec<u8>)>,
    history: bool,
    /// (generation, the model as of then), a few.
    kept: Vec<(Generation, Model)>,
    /// Audits of references that ended.
    audits: usize,
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: Result<T>, wanted: Result<T, Errno>) {
    assert_eq!(seen.as_ref().map_err(name_of), wanted.as_ref().map_err(|errno| *errno), "{what}");
}

impl Run {
    fn pick(&mut self) -> u64 {
        // Mostly inodes that are there, at times one that is gone.
        let all: Vec<u64> = self.model.nodes.keys().copied().collect();
        if self.random.chance(2) { 1_000_000 } else { all[self.random.below(all.len() as u64) as usize] }
    }

    fn pick_directory(&mut self) -> u64 {
        if self.random.chance(5) {
            return self.pick();
        }
        let all = self.model.nodes.iter().filter(|(_, node)| node.kind == FileKind::Directory);
        let all: Vec<u64> = all.map(|(ino, _)| *ino).collect();
        all[self.random.below(all.len() as u64) as usize]
    }

    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.random.below(6)).into_bytes()
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..22 => self.create(),
            22..30 => self.link(),
            30..42 => self.remove(),
            42..57 => self.rename(),
            57..62 => {
                let (ino, perm, gid) = (self.pick(), self.random.below(0o10000) as u16, self.random.below(3) as u32);
                let change = SetAttr { perm: Some(perm), gid: Some(gid), ..SetAttr::default() };
                let seen = self.meta.with(|txn| txn.set_attr(Ino(ino), &change)).map(|_| ());
                same("set_attr", seen, self.model.set_perm(ino, perm, gid));
            }
            62..68 => self.xattr(),
            68..80 => self.write(),
            80..85 => self.resize(),
            85..88 => {
                let (ino, first, count) = (self.pick(), self.random.below(12), self.random.below(8));
                let seen = self.meta.with(|txn| txn.punch(Ino(ino), ChunkNo(first), count));
                let wanted = self.model.punch(ino, first, count);
                same("punch", seen, wanted);
            }
            88..91 => {
                let ino = self.pick();
                let seen = self.meta.with(|txn| txn.release_orphan(Ino(ino)));
                same("release", seen, self.model.release(ino));
            }
            91..93 => {
                self.meta.with(|txn| txn.retire_step(3)).unwrap();
            }
            93..95 => self.collect(),
            95..96 => {
                let ino = self.pick();
                let time = self.random.below(1 << 40) as i64;
                self.meta
                    .with(|txn| {
                        txn.touch_atime(Ino(ino), time);
                        Ok(())
                    })
                    .unwrap();
            }
            96..98 => self.abandon(),
            _ => self.commit(),
        }
    }

    fn create(&mut self) {
        let (parent, name) = (self.pick_directory(), self.name());
        let kind = [
            FileKind::File,
            FileKind::File,
            FileKind::Directory,
            FileKind::Directory,
            FileKind::Symlink,
            FileKind::Fifo,
        ][self.random.below(6) as usize];
        let (perm, gid) = (self.random.below(0o10000) as u16, self.random.below(3) as u32);
        let target = (kind == FileKind::Symlink).then_some(&name[..]);
        let node = NewNode { kind, perm, uid: 0, gid, rdev: 0, target };
        let seen = self.meta.with(|txn| txn.create(Ino(parent), &name, &node)).map(|attr| attr.ino.0);
        same("create", seen, self.model.create(parent, &name, kind, perm, gid));
    }

    fn link(&mut self) {
        let (ino, parent, name) = (self.pick(), self.pick_directory(), self.name());
        let seen = self.meta.with(|txn| txn.link(Ino(ino), Ino(parent), &name)).map(|_| ());
        same("link", seen, self.model.link(ino, parent, &name));
    }

    fn remove(&mut self) {
        let (parent, name) = (self.pick_directory(), self.name());
        if self.random.chance(50) {
            let seen = self.meta.with(|txn| txn.unlink(Ino(parent), &name)).map(|gone| gone.ino.0);
            same("unlink", seen, self.model.unlink(parent, &name));
        } else {
            let seen = self.meta.with(|txn| txn.rmdir(Ino(parent), &name)).map(|gone| gone.ino.0);
            same("rmdir", seen, self.model.rmdir(parent, &name));
        }
    }

    fn rename(&mut self) {
        let (from, name, mut to, new_name) = (self.pick_directory(), self.name(), self.pick_directory(), self.name());
        if self.random.chance(30) {
            to = from;
        }
        let flags = RenameFlags {
            no_replace: self.random.chance(20),
            exchange: self.random.chance(25),
            whiteout: self.random.chance(5),
            owner: (1, self.random.below(4) as u32),
        };
        let seen = self.meta.with(|txn| txn.rename(Ino(from), &name, Ino(to), &new_name, flags));
        let seen = seen.map(|gone| gone.map(|gone| gone.ino.0));
        same("rename", seen, self.model.rename((from, &name), (to, &new_name), flags));
    }

    fn xattr(&mut self) {
        let (ino, name) = (self.pick(), self.name());
        if self.random.chance(60) {
            let value = vec![7; self.random.below(100) as usize];
            let (create, replace) = (self.random.chance(20), self.random.chance(20));
            let seen = self.meta.with(|txn| txn.set_xattr(Ino(ino), &name, &value, create, replace));
            same("set_xattr", seen, self.model.set_xattr(ino, &name, &value, create, replace));
        } else {
            let seen = self.meta.with(|txn| txn.remove_xattr(Ino(ino), &name));
            same("remove_xattr", seen, self.model.remove_xattr(ino, &name));
        }
    }

    /// Chunks of one file become another's.
    fn share(&mut self) {
        let (source, target) = (self.pick(), self.pick());
        let (from, to, count) = (self.random.below(10), self.random.below(10), 1 + self.random.below(6));
        let places = ((Ino(source), ChunkNo(from)), (Ino(target), ChunkNo(to)));
        let seen = self.meta.with(|txn| txn.share_extents(places.0, places.1, count));
        let wanted = self.model.share((source, from), (target, to), count);
        let done = wanted.is_ok();
        same("share_extents", seen, wanted);
        if done {
            let size = self.model.nodes[&target].size.max(4096 * (to + count) - 1);
            self.set_file(target, size, None);
        }
    }

    fn write(&mut self) {
        if self.random.chance(25) {
            return self.share();
        }
        let ino = self.pick();
        let first = self.random.below(8);
        let chunks: Vec<_> = (first..first + 1 + self.random.below(6))
            .map(|chunk| (ChunkNo(chunk), (!self.random.chance(20)).then(|| key(self.random.below(20)))))
            .collect();
        let end = chunks.last().unwrap().0.0 + 1;
        let seen = self.meta.with(|txn| {
            for (_, key) in &chunks {
                let Some(key) = key else { continue };
                let number = u64::from_le_bytes(key.0[..8].try_into().unwrap()) - 1;
                if txn.find_duplicate(&test_block_id(key))?.is_none() {
                    if txn.block(&test_block_id(key))?.is_some() {
                        txn.free_block(&test_block_id(key))?;
                    }
                    assert!(txn.put_block(&block(number))?);
                }
            }
            txn.put_extents(Ino(ino), &chunks)
        });
        let wanted = self.model.put_chunks(ino, &chunks);
        let done = wanted.is_ok();
        same("put_extents", seen, wanted);
        if done {
            let size = self.model.nodes[&ino].size.max(4096 * end - 1);
            self.set_file(ino, size, None);
        }
    }

    fn resize(&mut self) {
        let ino = self.pick();
        let size = self.random.below(14 * 4096);
        if size < 4096 && self.random.chance(50) {
            let size = size % 2048;
            self.set_file(ino, size, Some(vec![1; size as usize]));
        } else {
            self.set_file(ino, size, None);
        }
    }

    fn set_file(&mut self, ino: u64, size: u64, inline: Option<Vec<u8>>) {
        let change = FileChange { size, mtime_ns: 1, ctime_ns: 1, inline: inline.clone(), clear_suid: false };
        let seen = self.meta.with(|txn| txn.set_file(Ino(ino), &change)).map(|_| ());
        same("set_file", seen, self.model.set_file(ino, size, inline));
    }

    /// A slice of an audit that goes on beside all this.
    fn audit(&mut self) {
        let rows = 1 + self.random.below(12) as usize;
        if let Some(findings) = self.meta.audit(rows).unwrap() {
            assert_eq!(findings, Vec::<String>::new());
            self.audits += 1;
        }
    }

    /// What retention and gc do, without waiting.
    fn collect(&mut self) {
        let pinned: Vec<Generation> = self.kept.iter().map(|(generation, _)| *generation).collect();
        let committed = self.meta.committed();
        self.meta.with(|txn| txn.forget_history(Generation(0), committed, &pinned)).unwrap();
        self.meta
            .with(|txn| {
                for block in txn.dead_blocks(BlockState::Zero, txn.generation(), 5)? {
                    txn.condemn_block(&block.id)?;
                }
                for block in txn.dead_blocks(BlockState::Condemned, Generation(txn.generation().0 - 1), 5)? {
                    txn.free_block(&block.id)?;
                }
                Ok(())
            })
            .unwrap();
    }

    /// Operations that end in a failure leave no trace.
    fn abandon(&mut self) {
        let (parent, name, other) = (self.pick_directory(), self.name(), self.pick());
        let failed: Result<()> = self.meta.with(|txn| {
            let _ = txn.create(Ino(parent), &name, &file(0o600));
            let _ = txn.unlink(Ino(parent), &name);
            let _ = txn.set_attr(Ino(other), &SetAttr { perm: Some(0), ..SetAttr::default() });
            let _ = txn.set_xattr(Ino(other), b"gone", b"", false, false);
            let _ = txn.punch(Ino(other), ChunkNo(0), 100);
            let _ = txn.release_orphan(Ino(other));
            let _ = txn.retire_step(2)?;
            Err(Error::NoSpace)
        });
        assert!(matches!(failed, Err(Error::NoSpace)));
    }

    fn commit(&mut self) {
        let closed = self.meta.commit_generation().unwrap();
        if closed.changed {
            let bytes = encode_changes(&closed.changes);
            assert_eq!(decode_changes(&bytes).unwrap(), unverified(&closed.changes));
            self.records.push((closed.generation, bytes));
            if self.history && self.random.chance(15) {
                self.kept.push((closed.generation, self.model.clone()));
            }
        }
    }

    fn check_history(&self) {
        for (generation, model) in &self.kept {
            self.meta
                .past(|past| {
                    for (ino, node) in &model.nodes {
                        check_past(past, *generation, Ino(*ino), node);
                    }
                    Ok(())
                })
                .unwrap();
        }
    }
}

/// What is read of a past generation is what the model was then.
fn check_past(past: &PastReader<'_>, generation: Generation, ino: Ino, node: &Node) {
    let row = past.inode(ino, generation).unwrap().unwrap();
    assert_eq!((row.version.0, row.nlink, row.size), (node.version, node.nlink, node.size));
    let xattrs = past.xattrs(ino, generation).unwrap().into_iter();
    let xattrs: Vec<_> = xattrs.map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
    assert_eq!(xattrs, node.xattrs.clone().into_iter().collect::<Vec<_>>(), "inode {ino} in generation {generation}");
    if node.kind == FileKind::Directory {
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let page = past.read_dir(ino, generation, cookie, 3, true).unwrap();
            let Some(last) = page.last() else { break };
            cookie = last.cookie;
            names.extend(page.into_iter().map(|entry| (entry.name, entry.ino.0)));
        }
        names.sort();
        assert_eq!(names, node.names.clone().into_iter().collect::<Vec<_>>());
        for (name, ino) in &names {
            assert_eq!(past.lookup(row.ino, name, generation).unwrap().ino.0, *ino);
        }
    }
    if node.kind == FileKind::File {
        let chunks = past.extents(row.data, generation, ChunkNo(0), CHUNK_END).unwrap();
        let wanted: Vec<_> = node.chunks.iter().map(|(chunk, key)| (ChunkNo(*chunk), *key)).collect();
        assert_eq!(chunks, wanted, "inode {ino} in generation {generation}");
    }
}

impl Model {
    fn share(&mut self, (source, from): (u64, u64), (target, to): (u64, u64), count: u64) -> Result<(), Errno> {
        let (one, two) = (self.get(source)?, self.get(target)?);
        if one.kind != FileKind::File || two.kind != FileKind::File || one.inline.is_some() {
            return Err("EINVAL");
        }
        if source == target && from < to + count && to < from + count {
            return Err("EINVAL");
        }
        let copied: Vec<_> =
            one.chunks.range(from..from + count).map(|(chunk, key)| (chunk - from + to, *key)).collect();
        let node = self.nodes.get_mut(&target).unwrap();
        node.inline = None;
        node.chunks.retain(|chunk, _| !(to..to + count).contains(chunk));
        node.chunks.extend(copied);
        Ok(())
    }

    fn punch(&mut self, ino: u64, first: u64, count: u64) -> Result<(), Errno> {
        if self.get(ino)?.kind != FileKind::File {
            return Err("EINVAL");
        }
        let node = self.nodes.get_mut(&ino).unwrap();
        if first == 0 && count > 0 {
            node.inline = None;
        }
        node.chunks.retain(|chunk, _| !(first..first + count).contains(chunk));
        Ok(())
    }
}

/// Records do not say what only this machine knows.
fn unverified(changes: &[RowChange]) -> Vec<RowChange> {
    let mut changes = changes.to_vec();
    for change in &mut changes {
        if let RowChange::PutBlock(row) = change {
            row.verified = false;
        }
    }
    changes
}

fn run(name: &str, seed: u64, steps: usize, history: bool) {
    println!("seed {seed}");
    let dir = Scratch::new(name);
    let mut meta = Meta::create(&dir.0, &KEY, &setup(), &ROOT, 12).unwrap();
    meta.names.mask = 0x7;
    {
        let mut core = meta.core.lock();
        core.nlink_max = 6;
        core.cut_at_once = 2;
        core.names.mask = 0x7;
    }
    meta.with(|txn| {
        txn.set_history(history)?;
        txn.put_segment(&SegmentRow {
            id: SegmentId(1),
            incarnation: Incarnation([1; 16]),
            data: 2,
            parity: 1,
            slots: vec![Some(MemberId([1; 16])), None, Some(MemberId([2; 16]))],
            capacity: 1 << 26,
            tail: 4096,
            state: SegmentState::Open,
            since: Generation(0),
        })
    })
    .unwrap();
    let (model, random) = (Model::new(6), Random(seed));
    let mut run = Run { meta, model, random, records: Vec::new(), history, kept: Vec::new(), audits: 0 };
    for step in 0..steps {
        run.step();
        run.audit();
        if step % 500 == 499 {
            run.model.compare(&run.meta);
        }
    }
    run.commit();
    assert!(run.audits > 10, "{} audits", run.audits);
    run.model.compare(&run.meta);
    run.check_history();
    assert_eq!(run.meta.verify().unwrap(), Vec::<String>::new());
    let wanted = run.meta.reader().unwrap().digest().unwrap();
    replayed(name, &run, wanted);
    imported(name, &run, wanted);
    // All cuts retired and all orphans released, what is left is what the tree refers to.
    run.meta.with(|txn| txn.orphans()?.into_iter().try_for_each(|ino| txn.release_orphan(ino))).unwrap();
    while run.meta.with(|txn| txn.retire_step(100)).unwrap() {}
    if history {
        run.meta.commit_generation().unwrap();
        let committed = run.meta.committed();
        run.meta.with(|txn| txn.forget_history(Generation(0), committed, &[])).unwrap();
    }
    run.meta.commit_generation().unwrap();
    assert_eq!(run.meta.verify().unwrap(), Vec::<String>::new());
}

fn replayed(name: &str, run: &Run, wanted: [u8; 32]) {
    let dir = Scratch::new(&format!("{name}-replay"));
    let copy = Meta::create_blank(&dir.0, &KEY, &setup()).unwrap();
    for (generation, bytes) in &run.records {
        let changes = decode_changes(bytes).unwrap();
        assert!(copy.replay(*generation, &changes).unwrap());
        assert!(!copy.replay(*generation, &changes).unwrap());
    }
    assert_eq!(copy.reader().unwrap().digest().unwrap(), wanted);
    assert_eq!(copy.counters(), run.meta.counters());
    copy.core.lock().names.mask = 0x7;
    run.model.compare(&copy);
}

fn imported(name: &str, run: &Run, wanted: [u8; 32]) {
    let dir = Scratch::new(&format!("{name}-import"));
    let copy = Meta::create_blank(&dir.0, &KEY, &setup()).unwrap();
    let reader = run.meta.reader().unwrap();
    let mut page = Vec::new();
    let told = reader
        .image(|change| {
            page.push(change);
            if page.len() == 100 {
                copy.import(&decode_changes(&encode_changes(&page)).unwrap()).unwrap();
                page.clear();
            }
            Ok(())
        })
        .unwrap();
    copy.import(&page).unwrap();
    copy.finish_import(reader.generation()).unwrap();
    assert_eq!(told, wanted);
    assert_eq!(copy.committed(), run.meta.committed());
    assert_eq!(copy.reader().unwrap().digest().unwrap(), wanted);
}

#[test]
fn random_operations_agree_with_the_model_and_replay() {
    for seed in 1..=4 {
        run("random", seed, 3000, false);
    }
}

#[test]
fn random_operations_with_history_agree_with_the_model_and_replay() {
    for seed in 11..=13 {
        run("history", seed, 3000, true);
    }
}
