//! `brine check` and `brine heal`: everything is read and verified, and what is damaged is listed by path.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::blocks::{DamageEvent, Identity, StripeHealth, place_of};
use crate::error::{Error, Result};
use crate::ids::{BlockId, ChunkNo, Generation, Ino, MemberId, ROOT_INO, SegmentId, Term};
use crate::meta::rows::{Attr, BlockRow, BlockState, FileKind};
use crate::seal::Sealer;
use crate::shard::CommitHeader;
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
    let seen = check_blocks(volume, options, progress, &files, &owners, &keys, &mut report)?;
    if options.path.is_none() && report.complete {
        check_rest(volume, options, progress, &seen, &mut report)?;
    }
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
) -> Result<HashSet<(SegmentId, u64)>> {
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
        let place = place_of(&rows[0]);
        let health = volume.blocks().heal_stripe(place, repair, &mut unsynced)?;
        report.count(&health);
        let ino = owners.get(&rows[0].id).and_then(|list| list.first()).map(|index| files[*index].0);
        tell(volume, &rows[0], ino, &health);
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
    volume.blocks().sync_healed(&mut unsynced)?;
    Ok(stripes.into_keys().collect())
}

/// What is wrong with a stripe of blocks counts in `status`, too, and is healed in the background.
fn tell(volume: &Volume, row: &BlockRow, ino: Option<Ino>, health: &StripeHealth) {
    if health.wrong & health.left != 0 && !health.lost {
        let what = format!("{} of {} shards missing or wrong", health.wrong.count_ones(), health.shards);
        let event = DamageEvent { ino, block: row.id, what, recoverable: true };
        volume.blocks().damage().degraded(event, health.wrong, row.segment, row.offset);
    }
}

impl CheckReport {
    fn count(&mut self, health: &StripeHealth) {
        self.shards_checked += health.shards as u64;
        self.shards_bad += health.bad as u64;
        self.shards_repaired += health.repaired as u64;
    }
}

/// What the volume needs beside the files as they are now: blocks of former states, the kept checkpoints, and the log
/// since the older of them. What a writer left unfinished that nothing needs is no damage.
fn check_rest(
    volume: &Volume,
    options: &CheckOptions,
    progress: &dyn CheckProgress,
    seen: &HashSet<(SegmentId, u64)>,
    report: &mut CheckReport,
) -> Result<()> {
    let repair = options.repair.then(|| volume.identity());
    let mut unsynced = BTreeSet::new();
    let mut former: BTreeMap<(SegmentId, u64), Vec<BlockRow>> = BTreeMap::new();
    volume.meta().reader()?.for_each_block(|row| {
        if row.state == BlockState::Live && !seen.contains(&(row.segment, row.offset)) {
            former.entry((row.segment, row.offset)).or_default().push(row.clone());
        }
        Ok(())
    })?;
    let (mut done, total) = (0, former.len() as u64);
    let mut lost = 0;
    for rows in former.values() {
        if progress.cancelled() {
            report.complete = false;
            return volume.blocks().sync_healed(&mut unsynced);
        }
        let health = volume.blocks().heal_stripe(place_of(&rows[0]), repair, &mut unsynced)?;
        // Freed since: its last former state was given up while files were looked at.
        if health.lost && !is_needed(volume, place_of(&rows[0]))? {
            continue;
        }
        report.count(&health);
        tell(volume, &rows[0], None, &health);
        report.blocks += rows.len() as u64;
        if health.lost {
            lost += rows.len() as u64;
        } else if health.bad > health.repaired {
            report.blocks_degraded += rows.len() as u64;
        }
        done += 1;
        progress.progress(done, total, "former states");
    }
    if lost > 0 {
        report.blocks_lost += lost;
        let what = format!("{lost} of their blocks cannot be read");
        report.damaged.push(DamagedFile { path: "(former states)".into(), ino: 0, what, recoverable: false });
    }
    progress.progress(0, 0, "log");
    match volume.image_stripes(None) {
        Ok(images) => {
            for (segment, stripes) in images.stripes {
                for (offset, len) in stripes {
                    let place = StripePlace { segment, offset, record_len: len as u32 };
                    let health = volume.blocks().heal_stripe(place, repair, &mut unsynced)?;
                    report.count(&health);
                    volume.blocks().damage().bad(health.wrong & health.left, segment, offset);
                    if health.lost {
                        report.tables.push(format!("a part of a checkpoint, in segment {segment}, cannot be read"));
                    }
                }
            }
        }
        Err(error) => report.tables.push(error.to_string()),
    }
    check_log(volume, repair, &mut unsynced, report)?;
    volume.blocks().sync_healed(&mut unsynced)
}

/// Commit records that a lost database would be rebuilt from.
fn check_log(
    volume: &Volume,
    repair: Option<Identity>,
    unsynced: &mut BTreeSet<(MemberId, SegmentId)>,
    report: &mut CheckReport,
) -> Result<()> {
    let Some(from) = volume.oldest_checkpoint() else { return Ok(()) };
    let committed = volume.meta().committed();
    // Each part may have been written several times: by a later term, by a writer that tried twice, or again after a crash.
    let mut records: BTreeMap<(Generation, u16), Vec<(Term, StripePlace)>> = BTreeMap::new();
    for (place, commit) in commit_records(volume, from)? {
        if commit.generation <= committed {
            records.entry((commit.generation, commit.part)).or_default().push((commit.term, place));
        }
    }
    let mut next = from.0 + 1;
    for ((generation, _), copies) in records {
        let gap = next..generation.0;
        if !gap.is_empty() {
            report.tables.push(format!("the commit log lacks generations {} to {}", gap.start, gap.end - 1));
        }
        next = generation.0 + 1;
        let term = copies.iter().map(|(term, _)| *term).max().unwrap_or_default();
        let mut best: Option<(StripePlace, StripeHealth)> = None;
        for (_, place) in copies.iter().filter(|(other, _)| *other == term) {
            let health = volume.blocks().heal_stripe(*place, repair, unsynced)?;
            let rank = |health: &StripeHealth| (health.lost, health.bad - health.repaired);
            if best.as_ref().is_none_or(|(_, best)| rank(&health) < rank(best)) {
                best = Some((*place, health));
            }
        }
        if let Some((place, best)) = best {
            report.count(&best);
            volume.blocks().damage().bad(best.wrong & best.left, place.segment, place.offset);
            if best.lost {
                report.tables.push(format!("the commit record of generation {generation} cannot be read"));
            }
        }
    }
    if next <= committed.0 {
        report.tables.push(format!("the commit log lacks generations {next} to {committed}"));
    }
    Ok(())
}

/// True if something refers to a block of a stripe.
fn is_needed(volume: &Volume, place: StripePlace) -> Result<bool> {
    let rows = volume.meta().with(|txn| txn.blocks_of_stripe(place.segment, place.offset))?;
    Ok(rows.iter().any(|row| row.state == BlockState::Live))
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

/// Commit records of generations after `from`, in every segment that is there.
fn commit_records(volume: &Volume, from: Generation) -> Result<Vec<(StripePlace, CommitHeader)>> {
    let mut ids: BTreeSet<SegmentId> =
        volume.meta().with(|txn| txn.segments())?.into_iter().map(|row| row.id).collect();
    for member in volume.members().members().iter().filter(|member| member.can_read()) {
        ids.extend(member.list_segments().unwrap_or_default().into_iter().map(|(id, _)| id));
    }
    let mut records = Vec::new();
    for id in ids {
        // Without an authentic header in any file nothing was ever written there.
        if let Ok(info) = volume.blocks().placement(id) {
            let all = volume.blocks().stripes().records(id, 0, &info).into_iter();
            let commits = all.filter_map(|(place, header)| Some((place, header.commit?)));
            records.extend(commits.filter(|(_, commit)| commit.generation > from));
        }
    }
    Ok(records)
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
        let info = volume.blocks().placement(segment.id)?;
        stripes.extend(volume.blocks().stripes().records(segment.id, 0, &info).into_iter().map(|(place, _)| place));
    }
    Ok(stripes)
}

/// Rebuild missing and wrong shards of every stripe onto the directories that can take them. Counts again at the end.
pub fn heal(volume: &Volume, progress: &dyn CheckProgress) -> Result<HealReport> {
    let _held = volume.maintenance();
    let mut report = HealReport::default();
    volume.blocks().forget_stuck();
    volume.fill_all_vacant_slots(&|| progress.cancelled())?;
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
        let named = !health.lost || is_needed(volume, place)?;
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
    volume.catch_up()?;
    // Only what reads back counts.
    for (place, bad) in repaired {
        let again = volume.blocks().heal_stripe(place, None, &mut unsynced)?;
        report.shards_repaired += bad.saturating_sub(again.bad) as u64;
    }
    report.shards_left = report.shards_bad - report.shards_repaired;
    report.healed = report.shards_left == 0 && report.stripes_lost == 0;
    Ok(report)
}
