//! What a power cut takes: file data since the last fsync of the file, names since the last fsync of the directory.
//!
//! Stricter than any one filesystem: a file synced by itself still loses its name with an unsynced directory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::random::Random;

/// One change of a file's bytes.
struct DataChange {
    offset: u64,
    old: Vec<u8>,
    old_len: u64,
    new_end: u64,
}

/// One change of a directory; `kept` is another name of what was there before.
enum NameChange {
    Created { path: PathBuf },
    Removed { path: PathBuf, kept: PathBuf },
    Renamed { from: PathBuf, to: PathBuf, kept: Option<PathBuf> },
}

/// Changes that are not synced.
pub(super) struct UndoLog {
    aside: PathBuf,
    kept: u64,
    /// By inode: the file, open for reading and writing, and its changes.
    data: HashMap<u64, (File, Vec<DataChange>)>,
    names: Vec<(PathBuf, NameChange)>,
}

impl UndoLog {
    /// An empty log; `aside` is a directory for what is removed, on the same filesystem.
    pub(super) fn new(aside: PathBuf) -> Self {
        let _ = fs::remove_dir_all(&aside);
        fs::create_dir_all(&aside).expect("create the directory for what is removed");
        Self { aside, kept: 0, data: HashMap::new(), names: Vec::new() }
    }

    /// `len` bytes at `offset` of `file` (inode `ino`), which is open for reading and writing, are about to change.
    pub(super) fn will_change(&mut self, ino: u64, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let old_len = file.metadata()?.len();
        let end = offset.saturating_add(len).min(old_len);
        let mut old = vec![0; end.saturating_sub(offset) as usize];
        file.read_exact_at(&mut old, offset)?;
        let change = DataChange { offset, old, old_len, new_end: offset.saturating_add(len) };
        if let Some((_, changes)) = self.data.get_mut(&ino) {
            changes.push(change);
        } else {
            self.data.insert(ino, (file.try_clone()?, vec![change]));
        }
        Ok(())
    }

    /// The file's data is on disk.
    pub(super) fn file_synced(&mut self, ino: u64) {
        self.data.remove(&ino);
    }

    /// The names in `dir` are on disk.
    pub(super) fn dir_synced(&mut self, dir: &Path) {
        self.names.retain(|(of, _)| of != dir);
    }

    /// `path` was created.
    pub(super) fn created(&mut self, path: &Path) {
        self.names.push((parent(path), NameChange::Created { path: path.to_path_buf() }));
    }

    /// `path` is about to be removed.
    pub(super) fn will_remove(&mut self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            // Nothing is lost by an empty directory that does not come back.
            return Ok(());
        }
        let kept = self.keep(path)?;
        self.names.push((parent(path), NameChange::Removed { path: path.to_path_buf(), kept }));
        Ok(())
    }

    /// `from` is about to become `to`.
    pub(super) fn will_rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let kept = if to.is_file() { Some(self.keep(to)?) } else { None };
        self.names.push((parent(to), NameChange::Renamed { from: from.to_path_buf(), to: to.to_path_buf(), kept }));
        Ok(())
    }

    fn keep(&mut self, path: &Path) -> io::Result<PathBuf> {
        self.kept += 1;
        let kept = self.aside.join(self.kept.to_string());
        fs::hard_link(path, &kept)?;
        Ok(kept)
    }

    /// Takes back what was not synced: names all, newest first; of data each change wholly, in part or not at all.
    pub(super) fn undo(self, random: &mut Random) -> io::Result<()> {
        for (file, changes) in self.data.into_values() {
            for change in changes.into_iter().rev() {
                undo_data(&file, &change, random)?;
            }
        }
        for (_, change) in self.names.into_iter().rev() {
            match change {
                NameChange::Created { path } if path.is_dir() => ignore_missing(fs::remove_dir_all(path))?,
                NameChange::Created { path } => ignore_missing(fs::remove_file(path))?,
                NameChange::Removed { path, kept } => fs::rename(kept, path)?,
                NameChange::Renamed { from, to, kept } => {
                    ignore_missing(fs::rename(&to, from))?;
                    if let Some(kept) = kept {
                        fs::rename(kept, to)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn undo_data(file: &File, change: &DataChange, random: &mut Random) -> io::Result<()> {
    const SECTOR: u64 = 512;
    match random.below(4) {
        // It reached the disk by itself.
        0 => Ok(()),
        // Torn: some sectors did.
        1 => {
            for start in (change.offset..change.new_end).step_by(SECTOR as usize) {
                if random.one_in(2) {
                    continue;
                }
                let end = (start + SECTOR).min(change.new_end);
                let zero = vec![0; (end - start) as usize];
                let from = (start - change.offset) as usize;
                let old = change.old.get(from..).unwrap_or_default();
                let old = &old[..old.len().min(zero.len())];
                if start < file.metadata()?.len() {
                    file.write_all_at(&zero, start)?;
                    file.write_all_at(old, start)?;
                }
            }
            Ok(())
        }
        _ => {
            if change.new_end > change.old_len {
                file.set_len(change.old_len)?;
            }
            file.write_all_at(&change.old, change.offset)
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_path_buf()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
