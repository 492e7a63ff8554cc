//! `brine check` and `brine heal`: everything is read and verified, and what is damaged is listed by path.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::blocks::place_of;
use crate::error::{Error, Result};
use crate::ids::{BlockId, ChunkNo, Ino, ROOT_INO, SegmentId};
use crate::meta::rows::{Attr, BlockRow, FileKind};
use crate::seal::Sealer;
use crate::stripes::StripePlace;
use crate::volume::Volume;

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Only the files at and below this path inside the volume.
    pub path: Option<PathBuf>,
    /// Write bad shards anew.
    pub repair: bool,
}

/// Told how far the work is.
pub trait CheckProgress: Sync {
    /// `done_bytes` of `total_bytes` of the phase named are done.
    fn progress(&self, done_bytes: u64, total_bytes: u64, phase: &str);
    /// True if the work should stop.
    fn cancelled(&self) -> bool;
}

/// One damaged file.
#[derive(Clone, Debug, Serialize)]
pub struct DamagedFile {
    /// Path from the root of the volume.
    pub path: String,
    /// Inode number.
    pub ino: u64,
    /// What is wrong.
    pub what: String,
    /// False if bytes are lost.
    pub recoverable: bool,
}

/// What a check found. Fields are documented in docs/CLI.md and only ever added to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Files looked at, other than directories.
    pub files: u64,
    /// Directories looked at.
    pub directories: u64,
    /// Distinct blocks read.
    pub blocks: u64,
    /// Bytes of plaintext verified.
    pub bytes: u64,
    /// Shards read.
    pub shards_checked: u64,
    /// Shards missing or wrong.
    pub shards_bad: u64,
    /// Shards written anew.
    pub shards_repaired: u64,
    /// Blocks that are readable with fewer shards than they should have.
    pub blocks_degraded: u64,
    /// Blocks that cannot be read.
    pub blocks_lost: u64,
    /// Files concerned.
    pub damaged: Vec<DamagedFile>,
    /// Inconsistencies of the metadata.
    pub tables: Vec<String>,
    /// True if nothing is damaged.
    pub healthy: bool,
    /// False if it was stopped early.
    pub complete: bool,
}

/// Damaged files listed at most; the counts go on.
const DAMAGED_MAX: usize = 10_000;
/// Directory entries read at once.
const PAGE: usize = 1000;
/// Extents read at once.
const EXTENTS_PAGE: u64 = 1024;

/// Every file at and below a path, each inode once.
fn walk(volume: &Volume, from: Option<&Path>) -> Result<Vec<(Ino, Attr, PathBuf)>> {
    let start = match from {
        None => (ROOT_INO, PathBuf::from("/")),
        Some(path) => resolve(volume, path)?,
    };
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut queue = vec![start];
    while let Some((ino, path)) = queue.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let attr = volume.attr(ino)?;
        if attr.kind == FileKind::Directory {
            let mut cookie = 0;
            loop {
                let page = volume.read_dir(ino, cookie, PAGE, false)?;
                let Some(last) = page.last() else { break };
                cookie = last.cookie;
                for entry in page {
                    queue.push((entry.ino, path.join(os_name(&entry.name))));
                }
            }
        }
        found.push((ino, attr, path));
    }
    Ok(found)
}

fn os_name(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

fn resolve(volume: &Volume, path: &Path) -> Result<(Ino, PathBuf)> {
    use std::os::unix::ffi::OsStrExt;
    let mut ino = ROOT_INO;
    let mut done = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            std::path::Component::Normal(name) => {
                done.push(name);
                ino = volume
                    .lookup(ino, name.as_bytes())
                    .map_err(|error| match error {
                        Error::NotFound | Error::NotADirectory => {
                            Error::Refused(format!("{}: no such file in the volume", done.display()))
                        }
                        other => other,
                    })?
                    .ino;
            }
            std::path::Component::ParentDir | std::path::Component::Prefix(_) => {
                return Err(Error::Refused(format!(
                    "{}: give a path from the volume's root, without ..",
                    path.display()
                )));
            }
        }
    }
    Ok((ino, done))
}

/// Which files a block belongs to: a few names are enough to tell a person.
type Owners = HashMap<BlockId, Vec<usize>>;

/// Files remembered for one block.
const OWNERS_MAX: usize = 16;

/// Read and verify everything: shards, blocks, references, tables. With `repair`, bad shards are written anew.
pub fn check(volume: &Volume, options: &CheckOptions, progress: &dyn CheckProgress) -> Result<CheckReport> {
    let _held = volume.maintenance();
    let mut report = CheckReport { complete: true, ..CheckReport::default() };
    if options.path.is_none() {
        progress.progress(0, 0, "tables");
        report.tables = volume.meta().verify()?;
    }
    progress.progress(0, 0, "files");
    let files = walk(volume, options.path.as_deref())?;
    let mut owners: Owners = HashMap::new();
    let mut keys = HashMap::new();
    for (index, (_, attr, _)) in files.iter().enumerate() {
        if attr.kind == FileKind::Directory {
            report.directories += 1;
            continue;
        }
        report.files += 1;
        if attr.kind != FileKind::File {
            continue;
        }
        let mut first = 0;
        loop {
            let end = attr.size.div_ceil(1 << attr.chunk_bits);
            if first >= end {
                break;
            }
            let to = end.min(first.saturating_add(EXTENTS_PAGE));
            let page = volume.meta().with(|txn| txn.extents(attr.data, ChunkNo(first), ChunkNo(to)))?;
            for (_, key) in &page {
                let id = Sealer::block_id(key);
                keys.insert(id, *key);
                let list = owners.entry(id).or_default();
                if list.len() < OWNERS_MAX && list.last() != Some(&index) {
                    list.push(index);
                }
            }
            // Holes may be very long: go on at the next extent.
            first = match volume.meta().with(|txn| txn.seek_data(attr.data, ChunkNo(to)))? {
                Some(chunk) => chunk.0,
                None => break,
            };
        }
    }
    check_blocks(volume, options, progress, &files, &owners, &keys, &mut report)?;
    report.healthy = report.tables.is_empty() && report.damaged.is_empty() && report.blocks_lost == 0;
    report.healthy &= report.shards_bad == report.shards_repaired && report.complete;
    Ok(report)
}

#[allow(clippy::too_many_arguments, reason = "one step of check, apart only for its length")]
fn check_blocks(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
    files: &[(Ino, Attr, PathBuf)],
    owners: &Owners,
    keys: &HashMap<BlockId, crate::ids::BlockKey>,
    report: &mut CheckReport,
) -> Result<()> {
    // In the order they lie on disk, stripe by stripe.
    let mut stripes: BTreeMap<(SegmentId, u64), Vec<BlockRow>> = BTreeMap::new();
    let mut total = 0;
    for id in keys.keys() {
        match volume.meta().with(|txn| txn.block(id))? {
            Some(row) => {
                total += u64::from(row.plain_len);
                stripes.entry((row.segment, row.offset)).or_default().push(row);
            }
            None => note(report, files, owners, id, "the metadata has no row for one of its blocks", false),
        }
    }
    let mut unsynced = BTreeSet::new();
    let repair = options.repair.then(|| volume.identity());
    for rows in stripes.values() {
        if progress.cancelled() {
            report.complete = false;
            break;
        }
        let health = volume.blocks().heal_stripe(place_of(&rows[0]), repair, &mut unsynced)?;
        report.shards_checked += health.shards as u64;
        report.shards_bad += health.bad as u64;
        report.shards_repaired += health.repaired as u64;
        for row in rows {
            report.blocks += 1;
            report.bytes += u64::from(row.plain_len);
            let verdict = keys.get(&row.id).map(|key| volume.verify_block(key, row));
            match verdict {
                Some(Err(error)) => {
                    report.blocks_lost += 1;
                    note(report, files, owners, &row.id, &error.to_string(), false);
                }
                _ if health.bad > health.repaired => {
                    report.blocks_degraded += 1;
                    let what = format!("{} of {} shards missing or wrong", health.bad - health.repaired, health.shards);
                    note(report, files, owners, &row.id, &what, true);
                }
                _ => {}
            }
        }
        progress.progress(report.bytes, total, "blocks");
    }
    volume.blocks().sync_healed(&mut unsynced)
}

fn note(
    report: &mut CheckReport,
    files: &[(Ino, Attr, PathBuf)],
    owners: &Owners,
    id: &BlockId,
    what: &str,
    recoverable: bool,
) {
    for &index in owners.get(id).map(Vec::as_slice).unwrap_or_default() {
        let (ino, _, path) = &files[index];
        // One line a file and kind of damage.
        let known = report.damaged.iter().rev().take(64).any(|d| d.ino == ino.0 && d.recoverable == recoverable);
        if known || report.damaged.len() >= DAMAGED_MAX {
            continue;
        }
        report.damaged.push(DamagedFile {
            path: path.display().to_string(),
            ino: ino.0,
            what: what.to_owned(),
            recoverable,
        });
    }
}

/// What healing did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HealReport {
    /// Stripes looked at.
    pub stripes: u64,
    /// Shards missing or wrong.
    pub shards_bad: u64,
    /// Shards written anew, and read back.
    pub shards_repaired: u64,
    /// Stripes of which too few shards are left.
    pub stripes_lost: u64,
    /// Shards that could not be written because their directory cannot take them.
    pub shards_left: u64,
    /// True if every stripe has all its shards.
    pub healed: bool,
}

/// Every stripe, in the order they lie on disk, as the segments' own files tell: those of commit records and
/// checkpoints, which the metadata does not list, are among them.
fn all_stripes(volume: &Volume, progress: &dyn CheckProgress) -> Result<Vec<StripePlace>> {
    let segments = volume.meta().with(|txn| txn.segments())?;
    let mut stripes = Vec::new();
    for (n, segment) in segments.iter().enumerate() {
        progress.progress(n as u64, segments.len() as u64, "segments");
        let info = volume.blocks().segment_info(segment.id)?;
        stripes.extend(volume.blocks().stripes().records(segment.id, 0, &info).into_iter().map(|(place, _)| place));
    }
    Ok(stripes)
}

/// Rebuild missing and wrong shards of every stripe onto the directories that can take them. Counts again at the end.
pub fn heal(volume: &Volume, progress: &dyn CheckProgress) -> Result<HealReport> {
    let _held = volume.maintenance();
    let mut report = HealReport::default();
    volume.fill_all_vacant_slots()?;
    let stripes = all_stripes(volume, progress)?;
    let total: u64 = stripes.iter().map(|place| u64::from(place.record_len)).sum();
    let mut done = 0;
    let mut repaired = Vec::new();
    let mut unsynced = BTreeSet::new();
    for &place in &stripes {
        if progress.cancelled() {
            return Ok(report);
        }
        let health = volume.blocks().heal_stripe(place, Some(volume.identity()), &mut unsynced)?;
        report.stripes += 1;
        report.shards_bad += health.bad as u64;
        // What was abandoned half-written (after an error in a directory it is written again elsewhere) names nothing.
        let named =
            !health.lost || !volume.meta().with(|txn| txn.blocks_of_stripe(place.segment, place.offset))?.is_empty();
        if !named {
            report.stripes -= 1;
            report.shards_bad -= health.bad as u64;
        }
        report.stripes_lost += u64::from(health.lost && named);
        if health.repaired > 0 {
            repaired.push((place, health.bad));
        }
        done += u64::from(place.record_len);
        progress.progress(done, total, "heal");
    }
    volume.blocks().sync_healed(&mut unsynced)?;
    volume.blocks().catch_up(volume.identity())?;
    // Only what reads back counts.
    for (place, bad) in repaired {
        let again = volume.blocks().heal_stripe(place, None, &mut unsynced)?;
        report.shards_repaired += bad.saturating_sub(again.bad) as u64;
    }
    report.shards_left = report.shards_bad - report.shards_repaired;
    report.healed = report.shards_left == 0 && report.stripes_lost == 0;
    Ok(report)
}
