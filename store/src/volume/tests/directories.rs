//! Rules of a directory against a model: what was in it reads as it was in every state, wherever files and directories were
//! moved and whatever was linked, across collections and crashes; and of what was elsewhere nothing stays.

use std::collections::{BTreeMap, BTreeSet};

use super::history::Random;
use super::*;
use crate::gc::GcOptions;
use crate::ids::Generation;
use crate::retention::Rules;

/// Paths and what they hold; directories hold nothing.
type Tree = BTreeMap<String, Option<u64>>;

const DIRECTORIES: [&str; 5] = ["kept", "kept/sub", "kept/sub/deep", "other", "other/sub"];

fn content(number: u64) -> Vec<u8> {
    noise(number, 5000)
}

fn nothing() -> Rules {
    Rules { all_s: 0, minutely_s: 0, hourly_s: 0, ..Rules::default() }
}

fn everything() -> Rules {
    Rules { all_s: 3600, ..nothing() }
}

fn ino_of(volume: &Volume, path: &str) -> Ino {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(ROOT_INO, |at, name| volume.lookup(at, name.as_bytes()).unwrap().ino)
}

fn place<'p>(volume: &Volume, path: &'p str) -> (Ino, &'p [u8]) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (ino_of(volume, dir), name.as_bytes())
}

fn put_content(volume: &Volume, ino: Ino, number: u64) {
    let bytes = content(number);
    volume.write_chunks(ino, &[(ChunkNo(0), &bytes)]).unwrap();
    let now = volume.clock().now_ns();
    let size = bytes.len() as u64;
    volume.set_file(ino, &FileChange { size, mtime_ns: now, ctime_ns: now, inline: None, clear_suid: false }).unwrap();
}

/// What a view has at and below an inode, by the numbers that contents were made from.
fn tree_of(view: &View, dir: Ino, known: &BTreeMap<Vec<u8>, u64>) -> Tree {
    fn walk(view: &View, dir: Ino, path: &str, known: &BTreeMap<Vec<u8>, u64>, out: &mut Tree) {
        for entry in view.read_dir(dir, 0, usize::MAX >> 1, true).unwrap() {
            let path = format!("{path}{}", String::from_utf8(entry.name).unwrap());
            match entry.attr.unwrap().kind {
                FileKind::Directory => {
                    out.insert(path.clone(), None);
                    walk(view, entry.ino, &format!("{path}/"), known, out);
                }
                _ => {
                    let bytes = view.read(entry.ino, 0, usize::MAX >> 1).unwrap();
                    out.insert(path, Some(known[&bytes]));
                }
            }
        }
    }
    let mut out = Tree::new();
    walk(view, dir, "", known, &mut out);
    out
}

fn below(tree: &Tree, dir: &str) -> Tree {
    let inside = format!("{dir}/");
    let found = tree.iter().filter_map(|(path, number)| Some((path.strip_prefix(&inside)?.to_owned(), *number)));
    found.collect()
}

struct Life {
    scratch: Scratch,
    /// None while it is opened anew.
    volume: Option<Arc<Volume>>,
    random: Random,
    known: BTreeMap<Vec<u8>, u64>,
    now: Tree,
    committed: Tree,
    states: Vec<(Generation, Tree)>,
    kept: Ino,
    links: bool,
}

impl Life {
    fn new(seed: u64, links: bool) -> Self {
        let scratch = Scratch::new(&format!("directory-rules-{seed}-{links}"));
        scratch.format_kept(4);
        let volume = scratch.open();
        let mut now = Tree::new();
        for path in DIRECTORIES {
            let (parent, name) = place(&volume, path);
            let node = NewNode { kind: FileKind::Directory, ..new_file() };
            volume.create(parent, name, &node).unwrap();
            now.insert(path.to_owned(), None);
        }
        let kept = ino_of(&volume, "kept");
        volume.set_retention_rules(&nothing()).unwrap();
        volume.set_directory_rules(kept, Some(&everything())).unwrap();
        let known = (0..16).map(|number| (content(number), number)).collect();
        let mut life = Self {
            scratch,
            volume: Some(volume),
            random: Random(seed),
            known,
            committed: Tree::new(),
            now,
            states: Vec::new(),
            kept,
            links,
        };
        life.commit();
        life
    }

    fn volume(&self) -> &Arc<Volume> {
        self.volume.as_ref().unwrap()
    }

    fn commit(&mut self) {
        let generation = self.volume().commit(&NothingDirty).unwrap();
        self.committed.clone_from(&self.now);
        if self.states.last().is_none_or(|(last, _)| *last < generation) {
            self.states.push((generation, self.now.clone()));
        }
    }

    fn collect(&mut self) {
        self.commit();
        for _ in 0..2 {
            let report = self.volume().gc(&NothingDirty, GcOptions::default(), &|_, _, _| true).unwrap();
            assert!(report.problems.is_empty(), "{report:?}");
        }
        self.check();
        // One block for each content that is named: by the live tree, or by a state of the directory.
        let mut named: BTreeSet<u64> = self.now.values().flatten().copied().collect();
        named.extend(self.states.iter().flat_map(|(_, tree)| below(tree, "kept").into_values().flatten()));
        let live = self.volume().meta().counters().live_blocks;
        if self.links {
            assert!(live >= named.len() as u64, "{live} of {named:?}");
        } else {
            assert_eq!(live, named.len() as u64, "{named:?}");
        }
    }

    fn check(&self) {
        for (generation, tree) in &self.states {
            match self.volume().view(*generation) {
                Ok(view) => assert_eq!(tree_of(&view, ROOT_INO, &self.known), *tree, "{generation}"),
                Err(Error::NotFound) => {
                    let view = self.volume().view_of(*generation, self.kept).unwrap();
                    assert_eq!(tree_of(&view, self.kept, &self.known), below(tree, "kept"), "{generation}");
                    let found = view.find(b"kept").unwrap();
                    assert_eq!(found.ino, self.kept, "the way there is kept");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn pick(&mut self, wanted: impl Fn(&str, &Option<u64>) -> bool) -> Option<String> {
        let all: Vec<&String> =
            self.now.iter().filter(|(path, number)| wanted(path, number)).map(|(path, _)| path).collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len() as u64) as usize].clone())
    }

    fn step(&mut self) {
        let name = format!("f{}", self.random.below(4));
        let dir = self.pick(|_, number| number.is_none()).unwrap();
        let path = format!("{dir}/{name}");
        match self.random.below(14) {
            0..=4 => {
                let number = self.random.below(16);
                let ino = match self.now.get(&path) {
                    Some(_) => ino_of(self.volume(), &path),
                    None => {
                        let (parent, name) = place(self.volume(), &path);
                        self.volume().create(parent, name, &new_file()).unwrap().ino
                    }
                };
                put_content(self.volume(), ino, number);
                // All names of the file.
                let names: Vec<String> =
                    self.now.iter().filter(|(_, it)| it.is_some()).map(|(path, _)| path.clone()).collect();
                for other in names {
                    if ino_of(self.volume(), &other) == ino {
                        self.now.insert(other, Some(number));
                    }
                }
                self.now.insert(path, Some(number));
            }
            5 | 6 => {
                let Some(path) = self.pick(|_, number| number.is_some()) else { return };
                let (parent, name) = place(self.volume(), &path);
                let gone = self.volume().unlink(parent, name).unwrap();
                if gone.nlink == 0 {
                    self.volume().release_orphan(gone.ino).unwrap();
                }
                self.now.remove(&path);
            }
            7 | 8 => {
                let Some(from) = self.pick(|_, number| number.is_some()) else { return };
                self.rename(&from, &path);
            }
            9 => {
                // A directory moves with what is in it; the one with the rules stays.
                let Some(from) = self.pick(|path, number| number.is_none() && path.contains('/')) else { return };
                self.rename(&from, &format!("{dir}/d{name}"));
            }
            10 if self.links => {
                let Some(from) = self.pick(|_, number| number.is_some()) else { return };
                if !self.now.contains_key(&path) {
                    let (parent, name) = place(self.volume(), &path);
                    self.volume().link(ino_of(self.volume(), &from), parent, name).unwrap();
                    self.now.insert(path, self.now[&from]);
                }
            }
            11 => self.collect(),
            12 => {
                // A crash, now and then with the database.
                let volume = self.volume.take().unwrap();
                self.scratch.kill(volume);
                self.now.clone_from(&self.committed);
                if self.random.below(2) == 0 {
                    std::fs::remove_dir_all(self.scratch.0.join("state")).unwrap();
                }
                self.volume = Some(self.scratch.open());
            }
            _ => self.commit(),
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if self.now.contains_key(to) || to.starts_with(&format!("{from}/")) {
            return;
        }
        let ((parent, name), (new_parent, new_name)) = (place(self.volume(), from), place(self.volume(), to));
        self.volume().rename(parent, name, new_parent, new_name, RenameFlags::default()).unwrap();
        let moved = below(&self.now, from);
        let number = self.now.remove(from).unwrap();
        self.now.insert(to.to_owned(), number);
        for (path, number) in moved {
            self.now.remove(&format!("{from}/{path}"));
            self.now.insert(format!("{to}/{path}"), number);
        }
    }
}

fn random_life(seed: u64, links: bool) {
    let mut life = Life::new(seed, links);
    for _ in 0..90 {
        life.step();
    }
    life.collect();
    // Without the rules nothing but what is there now stays.
    life.volume().set_directory_rules(life.kept, None).unwrap();
    for _ in 0..2 {
        life.volume().gc(&NothingDirty, GcOptions::default(), &|_, _, _| true).unwrap();
    }
    let named: BTreeSet<u64> = life.now.values().flatten().copied().collect();
    assert_eq!(life.volume().meta().counters().live_blocks, named.len() as u64, "seed {seed}");
    assert_eq!(life.volume().meta().with(|txn| txn.kept_below()).unwrap(), []);
    let report = check(life.volume(), &CheckOptions::default(), &Silent).unwrap();
    assert!(report.healthy, "seed {seed}: {report:?}");
    let volume = life.volume.take().unwrap();
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_was_in_the_directory_is_kept_and_nothing_else() {
    for seed in 1..=4 {
        random_life(seed, false);
    }
}

#[test]
fn files_with_several_names_are_kept_wherever_they_were() {
    for seed in 11..=13 {
        random_life(seed, true);
    }
}

#[test]
fn files_of_early_versions_are_kept_too() {
    let scratch = Scratch::new("directory-rules-early");
    scratch.format_kept(4);
    let volume = scratch.open();
    let made = |parent: Ino, name: &str, kind: FileKind| {
        volume.create(parent, name.as_bytes(), &NewNode { kind, ..new_file() }).unwrap().ino
    };
    let kept = made(ROOT_INO, "kept", FileKind::Directory);
    let other = made(ROOT_INO, "other", FileKind::Directory);
    volume.set_retention_rules(&nothing()).unwrap();
    volume.set_directory_rules(kept, Some(&everything())).unwrap();
    // Its data has a number of its own.
    let apart = made(kept, "apart", FileKind::File);
    // A name outside was the first, and nothing tells that it had another.
    let linked = made(other, "linked", FileKind::File);
    volume.link(linked, kept, b"linked").unwrap();
    volume
        .meta()
        .with(|txn| {
            txn.number_apart(apart, crate::ids::DataId(1_000_000));
            txn.forget_links(linked);
            Ok(())
        })
        .unwrap();
    put_content(&volume, apart, 1);
    put_content(&volume, linked, 2);
    let then = volume.commit(&NothingDirty).unwrap();
    put_content(&volume, apart, 3);
    put_content(&volume, linked, 4);
    volume.commit(&NothingDirty).unwrap();
    made(other, "next", FileKind::File);
    volume.commit(&NothingDirty).unwrap();
    for _ in 0..2 {
        volume.gc(&NothingDirty, GcOptions::default(), &|_, _, _| true).unwrap();
    }
    let view = volume.view_of(then, kept).unwrap();
    for (name, number) in [("apart", 1), ("linked", 2)] {
        let ino = view.find(format!("kept/{name}").as_bytes()).unwrap().ino;
        assert!(view.read(ino, 0, 10_000).unwrap() == content(number), "{name}");
    }
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn rules_that_do_not_add_are_refused_whichever_is_set_last() {
    let scratch = Scratch::new("directory-rules-refused");
    scratch.format_kept(4);
    let volume = scratch.open();
    let made = |parent: Ino, name: &str| {
        let node = NewNode { kind: FileKind::Directory, ..new_file() };
        volume.create(parent, name.as_bytes(), &node).unwrap().ino
    };
    let outer = made(ROOT_INO, "outer");
    let inner = made(outer, "inner");
    let file = volume.create(outer, b"file", &new_file()).unwrap().ino;
    let refused = |dir, rules: &Rules| match volume.set_directory_rules(dir, Some(rules)) {
        Err(Error::Refused(text)) => text,
        other => panic!("{other:?}"),
    };
    let daily = |days: u64| Rules { daily_s: days * 86_400, ..Rules::default() };
    assert!(refused(outer, &Rules::default()).contains("nothing that the rules of the volume"));
    assert!(refused(outer, &nothing()).contains("keeps less"));
    assert!(refused(ROOT_INO, &daily(30)).contains("volume's rules"));
    assert!(refused(outer, &Rules { budget_percent: 30, ..daily(30) }).contains("whole volume's"));
    assert!(matches!(volume.set_directory_rules(file, Some(&daily(30))), Err(Error::NotADirectory)));
    assert!(matches!(volume.set_directory_rules(outer, None), Err(Error::NotFound)));
    volume.set_directory_rules(inner, Some(&daily(30))).unwrap();
    // The nearest rules above count, whichever came first.
    assert!(refused(outer, &daily(60)).contains(&format!("directory {inner}: this keeps less")));
    volume.set_directory_rules(outer, Some(&daily(20))).unwrap();
    assert!(matches!(volume.set_retention_rules(&daily(25)), Err(Error::Refused(_))));
    assert_eq!(volume.retention_rules().unwrap(), Rules::default());
    volume.commit(&NothingDirty).unwrap();
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    let all = volume.directory_rules().unwrap();
    let paths: Vec<_> = all.iter().map(|it| (it.path.clone().unwrap(), it.rules.daily_s / 86_400)).collect();
    assert_eq!(paths, [(b"/outer".to_vec(), 20), (b"/outer/inner".to_vec(), 30)]);
    volume.close(&NothingDirty).unwrap();
}
