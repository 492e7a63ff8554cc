//! `brine usage`: what takes the space, found by marking.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::ids::{BlockId, ChunkNo};
use crate::meta::rows::{BlockRow, CHUNK_END, FileKind};
use crate::meta::{Reader, Walk};
use crate::volume::Volume;

/// Extents read at once.
const PAGE: usize = 4096;

/// One entry of the directory that was asked about, with all below it. Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UsageEntry {
    /// Its name.
    pub name: String,
    /// "directory", "file" or "other".
    pub kind: &'static str,
    /// Files of all kinds, directories not counted.
    pub files: u64,
    /// Sum of the sizes of its regular files.
    pub logical_bytes: u64,
    /// Sealed bytes of the distinct blocks it names.
    pub stored_bytes: u64,
    /// Sealed bytes of the blocks that nothing else names, history among it: what removing it gives back.
    pub exclusive_bytes: u64,
}

/// What takes the space. Bytes where not said otherwise. Fields are documented in docs/CLI.md and only ever added to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UsageReport {
    /// What was asked about, a path inside the volume.
    pub path: String,
    /// That with all below it.
    pub total: UsageEntry,
    /// Its entries, the greatest first; of a file none.
    pub entries: Vec<UsageEntry>,
    /// The rest is of the whole volume. Plaintext of distinct blocks in use, history among it.
    pub unique_bytes: u64,
    /// The same, sealed.
    pub stored_bytes: u64,
    /// Sealed bytes of blocks that only former states name.
    pub history_bytes: u64,
    /// Of those: what snapshots pin.
    pub snapshot_bytes: u64,
    /// What parity adds to the sealed bytes in use.
    pub redundancy_bytes: u64,
    /// Sealed bytes of blocks that nothing names.
    pub dead_bytes: u64,
    /// What all files of segments take on the devices.
    pub raw_bytes: u64,
    /// Of those: what holds nothing alive, estimated.
    pub reclaimable_bytes: u64,
}

/// How often each block is named.
type Names = HashMap<BlockId, u64>;

#[derive(Default)]
struct Tally {
    entry: UsageEntry,
    names: Names,
}

impl Tally {
    fn file(&mut self, state: &Reader, row: &crate::meta::rows::InodeRow) -> Result<()> {
        self.entry.files += 1;
        if row.kind != FileKind::File {
            return Ok(());
        }
        self.entry.logical_bytes += row.size;
        let mut from = ChunkNo(0);
        loop {
            let page = state.extents(row.data, from, CHUNK_END, PAGE)?;
            for (_, key) in &page {
                *self.names.entry(state.block_id(key)).or_default() += 1;
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => from = ChunkNo(last.0 + 1),
                _ => return Ok(()),
            }
        }
    }

    fn sum(mut self, blocks: &HashMap<BlockId, BlockRow>) -> UsageEntry {
        for (id, count) in self.names {
            let Some(row) = blocks.get(&id) else { continue };
            self.entry.stored_bytes += u64::from(row.sealed_len);
            if row.refs == count {
                self.entry.exclusive_bytes += u64::from(row.sealed_len);
            }
        }
        self.entry
    }
}

/// What takes the space of the volume, and of what is at and below `path` (none: the root). Reads one committed state
/// beside whatever goes on. Memory: about 200 bytes a block.
///
/// # Errors
/// [`Error::Refused`] if there is nothing at `path`; [`Error::Database`].
pub fn usage(volume: &Volume, path: Option<&Path>) -> Result<UsageReport> {
    use std::os::unix::ffi::OsStrExt;
    let state = volume.meta().reader()?;
    let path = path.unwrap_or(Path::new("/"));
    let start = state
        .find(path.as_os_str().as_bytes())?
        .ok_or_else(|| Error::Refused(format!("{}: no such file in the volume", path.display())))?;
    let mut blocks = HashMap::new();
    let mut report = UsageReport { path: path.display().to_string(), ..UsageReport::default() };
    state.for_each_block(|row| {
        if row.refs > 0 {
            report.unique_bytes += u64::from(row.plain_len);
            report.stored_bytes += u64::from(row.sealed_len);
        } else {
            report.dead_bytes += u64::from(row.sealed_len);
        }
        blocks.insert(row.id, row.clone());
        Ok(())
    })?;

    let mut total = Tally::default();
    let mut tallies: HashMap<Vec<u8>, Tally> = HashMap::new();
    let mut seen = HashSet::new();
    state.walk(start.ino, b"", |path, row| {
        // A file with several names counts where it is met first.
        if row.kind != FileKind::Directory && row.nlink > 1 && !seen.insert(row.ino) {
            return Ok(Walk::Past);
        }
        let name = path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/').next().unwrap_or_default();
        if !name.is_empty() {
            let tally = tallies.entry(name.to_vec()).or_default();
            if tally.entry.kind.is_empty() {
                tally.entry.kind = kind(row.kind);
                tally.entry.name = String::from_utf8_lossy(name).into_owned();
            }
            if row.kind != FileKind::Directory {
                tally.file(&state, row)?;
            }
        }
        if row.kind != FileKind::Directory {
            total.file(&state, row)?;
        }
        Ok(Walk::On)
    })?;
    total.entry.kind = kind(start.kind);
    report.total = total.sum(&blocks);
    report.entries = tallies.into_values().map(|tally| tally.sum(&blocks)).collect();
    report.entries.sort_by(|a, b| b.stored_bytes.cmp(&a.stored_bytes).then_with(|| a.name.cmp(&b.name)));

    let (history, pinned) = state.only_in_history()?;
    let sealed =
        |ids: &HashSet<BlockId>| ids.iter().filter_map(|id| blocks.get(id)).map(|row| u64::from(row.sealed_len)).sum();
    report.history_bytes = sealed(&history);
    report.snapshot_bytes = sealed(&pinned);
    let geometry = volume.geometry();
    report.redundancy_bytes = report.stored_bytes * geometry.parity() as u64 / geometry.data() as u64;
    let taken = volume.taken()?;
    (report.raw_bytes, report.reclaimable_bytes) = (taken.bytes, taken.reclaimable_bytes);
    Ok(report)
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::File => "file",
        _ => "other",
    }
}
