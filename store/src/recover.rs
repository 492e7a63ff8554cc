//! Recovery: the log is read back from the segments' own files, and a database is brought up to it or made from
//! checkpoint and log.
//!
//! Promises: a generation is taken only if it follows by chain hash from what is trusted already; what was never
//! acknowledged is dropped and logged; what was acknowledged and cannot be read is never passed over in silence (R12).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::commit_log::{HEAD_KEY, Head, Standing};
use crate::error::{Error, Result};
use crate::ids::{BlockKey, Generation, SegmentId, Term};
use crate::meta::codec::decode_changes;
use crate::meta::rows::{RowChange, SegmentState};
use crate::meta::{Meta, Setup};
use crate::record::{ChainHash, CommitRecord, GenerationRecord, ImageIndex};
use crate::seal::{BlockKind, Sealer, VolumeKeys};
use crate::shard::{CommitHeader, Location, RecordKind};
use crate::stripes::{SegmentInfo, StripePlace, Stripes};
use crate::superblock::{AckOverride, CheckpointPointer};

/// One part of a commit record, where it was found.
struct FoundPart {
    header: CommitHeader,
    place: StripePlace,
    info: Arc<SegmentInfo>,
}

/// Commit records by generation and term.
type Found = BTreeMap<Generation, BTreeMap<Term, Vec<FoundPart>>>;

/// Told how far recovery is: what is being done, how much of how much.
pub type Report<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// What recovery did.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Generations replayed from the log.
    pub replayed: u64,
    /// Sentences for the user.
    pub notes: Vec<String>,
}

/// The pieces recovery reads with.
pub struct Reader<'a> {
    /// Reads stripes.
    pub stripes: &'a Stripes,
    /// The volume's keys.
    pub keys: &'a VolumeKeys,
    /// Opens image blocks.
    pub sealer: &'a Sealer,
    /// Ack sets that were made smaller, as the newest superblock has them.
    pub overrides: &'a [AckOverride],
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader<'_> {
    /// All segments present in any directory.
    fn segments(&self) -> BTreeSet<SegmentId> {
        let members = self.stripes.set().members().iter().filter(|member| member.can_read());
        members.filter_map(|member| member.list_segments().ok()).flatten().map(|(id, _)| id).collect()
    }

    /// Commit records after `base`, in the segments given with the offset to start at.
    fn scan(&self, base: Generation, segments: &BTreeMap<SegmentId, u64>, report: Report<'_>) -> Found {
        let mut found = Found::new();
        for (n, (&segment, &offset)) in segments.iter().enumerate() {
            report("reading the commit log", n as u64, segments.len() as u64);
            // An announced segment without records proves nothing.
            let Some(info) = self.stripes.segment_info(segment) else { continue };
            let info = Arc::new(info);
            for (place, header) in self.stripes.records(segment, offset, &info) {
                let Some(commit) = header.commit.filter(|_| header.kind != RecordKind::Stripe) else { continue };
                if commit.generation > base {
                    let part = FoundPart { header: commit, place, info: info.clone() };
                    found.entry(commit.generation).or_default().entry(commit.term).or_default().push(part);
                }
            }
        }
        found
    }

    /// The record of one term's parts, if all of them are there and decode.
    fn read_record(&self, parts: &[FoundPart]) -> Option<(GenerationRecord, ChainHash)> {
        let mut by_number: BTreeMap<u16, (CommitRecord, ChainHash)> = BTreeMap::new();
        for part in parts {
            let Some((_, mut message)) = self.stripes.message(part.place, &part.info) else { continue };
            let opened = CommitRecord::open(self.keys.log_key(), self.keys.volume(), &part.header, &mut message);
            if let Ok(record) = opened {
                by_number.insert(part.header.part, record);
            }
        }
        GenerationRecord::join(by_number.into_values().collect()).ok()
    }

    /// True if some present member of a part's ack set lacks its shard, or a part is missing altogether: then the
    /// generation was never acknowledged (R12).
    fn unacknowledged(&self, parts: &[FoundPart]) -> bool {
        let expected = parts.first().map_or(0, |part| part.header.parts);
        let seen: BTreeSet<u16> = parts.iter().map(|part| part.header.part).collect();
        if seen.len() < usize::from(expected) {
            return true;
        }
        parts.iter().any(|part| {
            let survey = self.stripes.survey(part.place, &part.info);
            let ack_set = self.ack_set(part);
            survey.bad.iter().any(|(slot, what)| ack_set >> slot & 1 == 1 && *what != "directory missing")
        })
    }

    /// The slots that were synced before a record was answered, if it was.
    fn ack_set(&self, part: &FoundPart) -> u64 {
        let header = &part.header;
        let of_part = |other: &&AckOverride| {
            (other.term, other.generation, other.part, other.segment)
                == (header.term, header.generation, header.part, part.place.segment)
        };
        self.overrides.iter().rev().find(of_part).map_or(header.ack_set, |other| other.ack_set)
    }

    /// True if every stripe of the blocks that a record adds still has k good shards.
    fn blocks_hold(&self, changes: &[RowChange]) -> bool {
        let mut infos: HashMap<SegmentId, Option<SegmentInfo>> = HashMap::new();
        let mut places = BTreeSet::new();
        for change in changes {
            if let RowChange::PutBlock(row) = change {
                places.insert(StripePlace { segment: row.segment, offset: row.offset, record_len: row.record_len });
            }
        }
        places.into_iter().all(|place| {
            let info = infos.entry(place.segment).or_insert_with(|| self.stripes.segment_info(place.segment));
            info.as_ref()
                .is_some_and(|info| self.stripes.survey(place, info).largest_group().len() >= info.geometry.data())
        })
    }

    /// Replay what follows `head` on the log. Returns the new head.
    fn follow(&self, meta: &Meta, head: Head, found: &Found, report: Report<'_>, out: &mut Recovered) -> Result<Head> {
        let mut head = head;
        let last = found.keys().next_back().copied().unwrap_or(head.generation);
        loop {
            let next = Generation(head.generation.0 + 1);
            let Some(terms) = found.get(&next) else {
                if let Some(later) = found.range(next..).next() {
                    return Err(gap(next, *later.0));
                }
                return Ok(head);
            };
            report("replaying the commit log", next.0, last.0);
            let mut taken = None;
            let mut unreadable = false;
            // Of equal generations the higher term wins; records off the chain are ignored and reported.
            for (term, parts) in terms.iter().rev() {
                match self.read_record(parts) {
                    Some((record, chain)) if record.previous == head.chain && taken.is_none() => {
                        taken = Some((record, chain));
                    }
                    Some(_) => {
                        out.notes.push(format!("a record of generation {next}, term {term}, is off the log; ignored"));
                    }
                    None if self.unacknowledged(parts) => {
                        out.notes.push(format!(
                            "generation {next}, term {term}, was never acknowledged and is incomplete; dropped"
                        ));
                    }
                    None => unreadable = true,
                }
            }
            let Some((record, chain)) = taken else {
                if unreadable {
                    return Err(Error::Refused(format!(
                        "generation {next} was acknowledged but cannot be read: too many of its shards are gone. \
                         The last whole generation is {}. Bring missing directories back",
                        head.generation
                    )));
                }
                if let Some(later) = found.range(Generation(next.0 + 1)..).next() {
                    return Err(gap(next, *later.0));
                }
                return Ok(head);
            };
            let changes = decode_changes(&record.changes)?;
            // Later records say that this one was durable; of the last one that must be seen (R14).
            if next == last && !self.blocks_hold(&changes) {
                out.notes.push(format!(
                    "generation {next} was never acknowledged and names blocks that were not written; dropped"
                ));
                return Ok(head);
            }
            meta.replay(next, &changes)?;
            out.replayed += 1;
            head = Head { generation: next, chain };
        }
    }

    /// Bring a database up to the end of the log. `None`: it does not stand on the log, and must be rebuilt.
    ///
    /// # Errors
    /// [`Error::Refused`] naming both generations, where an acknowledged one cannot be read.
    pub fn catch_up(
        &self,
        meta: &Meta,
        standing: &Standing,
        checkpoints: &[CheckpointPointer],
        report: Report<'_>,
    ) -> Result<Option<(Head, Recovered)>> {
        let head = standing.head;
        let rows = meta.with(|txn| txn.segments())?;
        let closed: BTreeSet<SegmentId> =
            rows.iter().filter(|row| row.state != SegmentState::Open).map(|row| row.id).collect();
        let segments: BTreeMap<SegmentId, u64> =
            self.segments().into_iter().filter(|id| !closed.contains(id)).map(|id| (id, 0)).collect();
        let mut out = Recovered::default();
        let found = self.scan(Generation(head.generation.0.saturating_sub(1)), &segments, report);
        // Its own last record must be on the log, unless its directories are away or a checkpoint stands for it.
        if let Some(terms) = found.get(&head.generation) {
            let read: Vec<_> = terms.values().filter_map(|parts| self.read_record(parts)).collect();
            // Until it knows better, the last generation may have been committed here and not synced there.
            let unsure = standing.durable < head.generation && found.range(head.generation..).nth(1).is_none();
            match read.iter().find(|(_, chain)| *chain == head.chain) {
                // Of equal generations the higher term wins: this one was written by a writer that had been fenced.
                Some((own, _)) if read.iter().any(|(other, _)| other.term > own.term) => return Ok(None),
                Some((record, _)) if unsure && !self.blocks_hold(&decode_changes(&record.changes)?) => {
                    return Ok(None);
                }
                Some(_) => {}
                None if !read.is_empty() => return Ok(None),
                None if unsure && terms.values().all(|parts| self.unacknowledged(parts)) => return Ok(None),
                None => {}
            }
        }
        // A volume that is just being made has neither log nor checkpoint.
        let on_log =
            found.contains_key(&head.generation) || checkpoints.iter().any(|p| p.generation == head.generation);
        if !on_log && standing.durable < head.generation && self.precedes(standing, checkpoints, report) {
            log::warn!("generation {} was never acknowledged: its record is not on the log; dropped", head.generation);
            return Ok(None);
        }
        let members = self.stripes.set().members();
        if !on_log && !checkpoints.is_empty() && members.iter().all(|member| member.can_read()) {
            return Err(Error::Refused(format!(
                "the metadata database is at generation {}, but the backing directories do not hold that generation \
                 (their last checkpoint is of generation {}): they went back to an older state. Bring the newer \
                 directories back, or move the state directory aside to accept the older state",
                head.generation,
                checkpoints.first().map_or(Generation(0), |p| p.generation),
            )));
        }
        let head = self.follow(meta, head, &found, report, &mut out)?;
        if out.replayed > 0 {
            meta.with(|txn| txn.put_local(HEAD_KEY, &head.encode()))?;
        }
        Ok(Some((head, out)))
    }

    /// True if the generation before a database's last one is on the log. A power cut may leave rows whose record had
    /// been appended and was not synced yet.
    fn precedes(&self, standing: &Standing, checkpoints: &[CheckpointPointer], report: Report<'_>) -> bool {
        let Some(before) = standing.before else { return false };
        if checkpoints.iter().any(|p| (p.generation, p.chain) == (before.generation, before.chain)) {
            return true;
        }
        // Its segment may have been closed in the generation that is gone.
        let segments = self.segments().into_iter().map(|id| (id, 0)).collect();
        let found = self.scan(Generation(before.generation.0.saturating_sub(1)), &segments, report);
        let Some(terms) = found.get(&before.generation) else { return false };
        terms.values().filter_map(|parts| self.read_record(parts)).any(|(_, chain)| chain == before.chain)
    }

    /// A block of an image.
    fn image_block(&self, key: &BlockKey, location: &Location) -> Result<Vec<u8>> {
        let object = format!("checkpoint block in segment {} at {}", location.segment, location.stripe);
        let lost = || Error::format(object.clone(), "too many of its shards are missing or wrong");
        let info = self.stripes.segment_info(location.segment).ok_or_else(lost)?;
        let header = self.stripes.header_at(location.segment, location.stripe, &info).ok_or_else(lost)?;
        let place =
            StripePlace { segment: location.segment, offset: location.stripe, record_len: header.record_len() as u32 };
        let (_, message) = self.stripes.message(place, &info).ok_or_else(lost)?;
        let start = location.offset as usize;
        let mut sealed = message.get(start..start + location.len as usize).ok_or_else(lost)?.to_vec();
        let opened = self
            .sealer
            .open(BlockKind::Checkpoint, key, &mut sealed)
            .map_err(|error| Error::format(object.clone(), error.to_string()))?;
        Ok(opened.plain.into_owned())
    }

    /// The index of an image and all indexes below it, flattened to the blocks that hold rows.
    pub(crate) fn image_index(&self, pointer: &CheckpointPointer) -> Result<ImageIndex> {
        let root = self.read_index(&pointer.root, &pointer.location)?;
        let mut flat = ImageIndex { level: 0, entries: Vec::new(), ..root.clone() };
        let mut open = vec![root];
        while let Some(index) = open.pop() {
            if index.level == 0 {
                flat.entries.extend(index.entries);
                continue;
            }
            for entry in index.entries.iter().rev() {
                open.push(self.read_index(&entry.key, &entry.location)?);
            }
        }
        Ok(flat)
    }

    /// Where every block of an image lies, indexes and root among them.
    ///
    /// # Errors
    /// If an index cannot be read: then it is not known what the image needs.
    pub(crate) fn image_places(&self, pointer: &CheckpointPointer) -> Result<Vec<Location>> {
        let mut places = vec![pointer.location];
        let mut open = vec![self.read_index(&pointer.root, &pointer.location)?];
        while let Some(index) = open.pop() {
            places.extend(index.entries.iter().map(|entry| entry.location));
            if index.level > 0 {
                for entry in &index.entries {
                    open.push(self.read_index(&entry.key, &entry.location)?);
                }
            }
        }
        Ok(places)
    }

    fn read_index(&self, key: &BlockKey, location: &Location) -> Result<ImageIndex> {
        let bytes = self.image_block(key, location)?;
        let index = ImageIndex::decode(&bytes).map_err(|error| {
            Error::format(format!("checkpoint index in segment {}", location.segment), error.to_string())
        })?;
        if index.volume != self.keys.volume() {
            return Err(Error::format("checkpoint index", "it belongs to another volume"));
        }
        Ok(index)
    }

    /// Make a database from checkpoint and log.
    ///
    /// # Errors
    /// [`Error::Refused`] if no checkpoint can be read or an acknowledged generation cannot.
    pub fn rebuild(
        &self,
        dir: &Path,
        setup: &Setup,
        pointers: &[CheckpointPointer],
        report: Report<'_>,
    ) -> Result<Recovered> {
        let mut pointers: Vec<&CheckpointPointer> = pointers.iter().collect();
        pointers.sort_by_key(|pointer| std::cmp::Reverse(pointer.generation));
        let mut failures = Vec::new();
        for pointer in pointers {
            match self.rebuild_from(dir, setup, pointer, report) {
                Ok(mut out) => {
                    out.notes.splice(0..0, failures);
                    return Ok(out);
                }
                Err(error @ Error::Refused(_)) => return Err(error),
                Err(error) => {
                    failures
                        .push(format!("the checkpoint of generation {} cannot be used: {error}", pointer.generation));
                    remove_database(dir)?;
                }
            }
        }
        Err(Error::Refused(format!(
            "the metadata database cannot be rebuilt: no checkpoint can be read ({}). Bring missing directories back",
            if failures.is_empty() { "the superblocks name none".into() } else { failures.join("; ") }
        )))
    }

    fn rebuild_from(
        &self,
        dir: &Path,
        setup: &Setup,
        pointer: &CheckpointPointer,
        report: Report<'_>,
    ) -> Result<Recovered> {
        let index = self.image_index(pointer)?;
        if (index.generation, index.chain) != (pointer.generation, pointer.chain) {
            return Err(Error::format("checkpoint index", "it is not the one the superblock names"));
        }
        let meta = Meta::create_blank(dir, self.keys.database_key(), setup)?;
        for (n, entry) in index.entries.iter().enumerate() {
            report("reading the checkpoint", n as u64, index.entries.len() as u64);
            meta.import(&decode_changes(&self.image_block(&entry.key, &entry.location)?)?)?;
        }
        meta.finish_import(index.generation)?;
        let digest = meta.reader()?.digest()?;
        if digest != index.rows_digest {
            return Err(Error::format("checkpoint image", "its rows are not those its digest was taken of"));
        }
        let mut segments: BTreeMap<SegmentId, u64> =
            pointer.open_segments.iter().map(|open| (open.segment, open.tail)).collect();
        let known: BTreeSet<SegmentId> = meta.with(|txn| txn.segments())?.iter().map(|row| row.id).collect();
        for id in self.segments() {
            if !known.contains(&id) {
                segments.entry(id).or_insert(0);
            }
        }
        let found = self.scan(pointer.generation, &segments, report);
        let head = Head { generation: pointer.generation, chain: pointer.chain };
        let mut out = Recovered::default();
        let head = self.follow(&meta, head, &found, report, &mut out)?;
        meta.with(|txn| txn.put_local(HEAD_KEY, &head.encode()))?;
        meta.close()?;
        out.notes.push(format!(
            "the metadata database was rebuilt from the checkpoint of generation {} and {} records of the log",
            pointer.generation, out.replayed
        ));
        Ok(out)
    }
}

fn gap(next: Generation, later: Generation) -> Error {
    Error::Refused(format!(
        "the commit log has a gap: generation {next} is missing while {later} is there. \
         Bring missing directories back, or restore the state directory"
    ))
}

/// Files of a database in a state directory.
const DATABASE_FILES: [&str; 3] = ["meta.db", "meta.db-wal", "meta.db-shm"];

fn remove_database(dir: &Path) -> Result<()> {
    for name in DATABASE_FILES {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("removing {}", dir.join(name).display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keep a database that cannot be used beside its successor, under a name that says so.
pub fn set_aside(dir: &Path, now_ns: i64) -> Result<std::path::PathBuf> {
    let aside = dir.join(format!("meta.db.aside-{}", now_ns / 1_000_000_000));
    for name in DATABASE_FILES {
        let suffix = name.strip_prefix("meta.db").unwrap_or_default();
        let target = dir.join(format!("meta.db.aside-{}{suffix}", now_ns / 1_000_000_000));
        match std::fs::rename(dir.join(name), &target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("setting {} aside", dir.join(name).display()), error));
            }
            _ => {}
        }
    }
    Ok(aside)
}
