//! The files of the local database: what SQLite writes and syncs is recorded below it, and what a power cut would
//! leave of them can be made.
//!
//! The model of the medium: after an xSync a file has what was written before, under its name; of what was written later
//! any sector may be there or not, and its length may be anything between. Files made or removed may be there or not
//! until SQLite syncs their directory, which it does with the first sync of a new log or journal.

pub mod sys;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::journal::{Event, Journal};
use crate::random::Random;

/// What a medium writes whole or not at all, bytes.
const SECTOR: usize = 512;

/// A call of SQLite that changes one of its files, by name within the state directory.
#[derive(Clone, Debug)]
pub enum FileCall {
    /// The file is made, empty.
    Create(String),
    /// Bytes are written at an offset.
    Write(String, u64, Arc<[u8]>),
    /// It is given a length.
    Truncate(String, u64),
    /// It is synced.
    Sync(String),
    /// It is removed.
    Delete(String),
}

/// Told of every change SQLite makes in a state directory.
pub trait Watcher: Send + Sync {
    /// `act` does the change and answers SQLite's code; it is to be called once, or a code given instead.
    fn change(&self, call: FileCall, act: &mut dyn FnMut() -> i32) -> i32;
}

impl Watcher for Journal {
    fn change(&self, call: FileCall, act: &mut dyn FnMut() -> i32) -> i32 {
        self.record(Event::Database(call), act)
    }
}

/// A file: what is read, and what is synced.
#[derive(Clone, Default)]
struct File {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that differ from what is synced, perhaps.
    dirty: BTreeSet<usize>,
    /// Whether a power cut leaves its name.
    named: bool,
}

/// The files of a state directory.
#[derive(Clone, Default)]
pub struct Files {
    files: BTreeMap<String, File>,
    /// Removed, but a power cut may bring them back.
    removed: BTreeMap<String, File>,
}

impl File {
    fn dirty(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let (end, old) = (offset + bytes.len(), self.bytes.len());
        if old < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        self.dirty(offset.min(old), end);
    }

    fn truncate(&mut self, len: usize) {
        let old = self.bytes.len();
        self.bytes.resize(len, 0);
        self.dirty(old.min(len), old.max(len));
    }

    fn sync(&mut self) {
        self.synced.resize(self.bytes.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let from = (sector * SECTOR).min(self.bytes.len());
            let to = (from + SECTOR).min(self.bytes.len());
            self.synced[from..to].copy_from_slice(&self.bytes[from..to]);
        }
        self.named = true;
    }

    fn cut(&self, random: &Random) -> Vec<u8> {
        let (short, long) = (self.synced.len().min(self.bytes.len()), self.synced.len().max(self.bytes.len()));
        let len = match random.below(3) {
            0 => self.synced.len(),
            1 => self.bytes.len(),
            _ => short + random.index(long - short + 1),
        };
        let mut left = self.synced.clone();
        left.resize(len, 0);
        for sector in &self.dirty {
            if random.one_in(2) {
                let from = (sector * SECTOR).min(len);
                let to = (from + SECTOR).min(len);
                left[from..to].fill(0);
                let have = to.min(self.bytes.len()).max(from);
                if have > from {
                    left[from..have].copy_from_slice(&self.bytes[from..have]);
                }
            }
        }
        left
    }
}

impl Files {
    /// The files as they are in a directory, all of them synced.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn load(dir: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).expect("list the state directory") {
            let entry = entry.expect("list the state directory");
            let name = entry.file_name().into_string().expect("names in a state directory are text");
            if Self::is_kept(&name) {
                files.insert(name, std::fs::read(entry.path()).expect("read a file of the state directory"));
            }
        }
        Self::of(&files)
    }

    /// Files of these contents, all synced.
    pub fn of(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let file =
            |bytes: &Vec<u8>| File { synced: bytes.clone(), bytes: bytes.clone(), named: true, ..File::default() };
        Self {
            files: files.iter().map(|(name, bytes)| (name.clone(), file(bytes))).collect(),
            removed: BTreeMap::new(),
        }
    }

    /// Whether a file survives the end of the processes that use it.
    fn is_kept(name: &str) -> bool {
        !name.ends_with("-shm") && name != "lock"
    }

    /// Follow a call of SQLite.
    pub fn apply(&mut self, call: &FileCall) {
        match call {
            FileCall::Create(name) => {
                self.files.insert(name.clone(), File::default());
                self.removed.remove(name);
            }
            FileCall::Write(name, offset, bytes) => {
                self.files.entry(name.clone()).or_default().write(*offset as usize, bytes);
            }
            FileCall::Truncate(name, len) => self.files.entry(name.clone()).or_default().truncate(*len as usize),
            FileCall::Sync(name) => {
                let file = self.files.entry(name.clone()).or_default();
                let is_new = !file.named;
                file.sync();
                if is_new && (name.ends_with("-wal") || name.ends_with("-journal")) {
                    self.removed.clear();
                    self.files.values_mut().for_each(|file| file.named = true);
                }
            }
            FileCall::Delete(name) => {
                if let Some(file) = self.files.remove(name)
                    && file.named
                {
                    self.removed.insert(name.clone(), file);
                }
            }
        }
    }

    /// What the end of the process alone leaves: everything.
    pub fn whole(&self) -> BTreeMap<String, Vec<u8>> {
        self.files.iter().map(|(name, file)| (name.clone(), file.bytes.clone())).collect()
    }

    /// What a power cut may leave.
    pub fn cut(&self, random: &Random) -> BTreeMap<String, Vec<u8>> {
        let there = self.files.iter().filter(|(_, file)| file.named || random.one_in(2));
        let back = self.removed.iter().filter(|_| random.one_in(2));
        back.chain(there).map(|(name, file)| (name.clone(), file.cut(random))).collect()
    }
}

/// Write files into a directory that is made for them.
///
/// # Panics
/// If that cannot be done.
pub fn put_files(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    std::fs::create_dir_all(dir).expect("make a state directory");
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).expect("write a file of a state directory");
    }
}

#[cfg(test)]
mod tests;
