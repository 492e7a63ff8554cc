//! The log as a chain: which records follow from what is trusted, which do not, and what that means.
//!
//! Records are ordered by their chain hashes alone. A record belongs to a branch; of two branches the one with the
//! higher term is the log, and the other one is off it. That is as it should be for what a fenced writer never
//! answered. Where the branch that is off shows that its generations were known durable, two writers acknowledged
//! different states: nobody decides that silently.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::scan::{FoundPart, KEPT_BYTES_MAX, Scan, on_threads};
use super::{Ground, Reader};
use crate::commit_log::Head;
use crate::error::{Error, Result};
use crate::ids::{Generation, Term};
use crate::record::{ChainHash, CommitRecord, GenerationRecord, RowsDigest};
use crate::stripes::DIRECTORY_MISSING;
use crate::superblock::AckOverride;

/// A record that opens.
pub(super) struct Link {
    pub(super) term: Term,
    pub(super) generation: Generation,
    pub(super) previous: ChainHash,
    pub(super) chain: ChainHash,
    pub(super) durable_through: Generation,
    pub(super) rows_digest: Option<RowsDigest>,
    /// Its parts, in order, each where it can be read.
    pub(super) parts: Vec<FoundPart>,
    /// Its row changes, unless memory is short.
    pub(super) changes: Option<Vec<u8>>,
}

/// Shards of a record that do not give it back.
struct Unreadable {
    term: Term,
    generation: Generation,
    parts: Vec<FoundPart>,
}

/// All records found.
pub(super) struct Log {
    links: Vec<Link>,
    /// Links by the hash they name as the one before.
    after: HashMap<ChainHash, Vec<usize>>,
    unreadable: Vec<Unreadable>,
}

/// The way from a head to the end of the log.
pub(super) struct Path {
    /// The links that follow, in order (indexes into the log).
    pub(super) links: Vec<usize>,
    /// The link of the head itself, if it was found.
    pub(super) head: Option<usize>,
    /// Where it ends.
    pub(super) end: Head,
    /// The highest generation known durable.
    pub(super) durable: Generation,
    /// Sentences for the user.
    pub(super) notes: Vec<String>,
}

impl Reader<'_> {
    /// Open everything that was found and put it in order.
    pub(super) fn log(&self, scan: Scan) -> Log {
        let mut kept = 0;
        let mut log = Log { links: Vec::new(), after: HashMap::new(), unreadable: Vec::new() };
        let mut by_record: BTreeMap<(Generation, Term), Vec<FoundPart>> = BTreeMap::new();
        for part in scan.parts {
            by_record.entry((part.header.generation, part.header.term)).or_default().push(part);
        }
        let records: Vec<((Generation, Term), Vec<FoundPart>)> = by_record.into_iter().collect();
        let total = records.len() as u64;
        let mut opened = 0;
        // In batches, so that what need not be kept is let go of.
        for batch in records.chunks(256) {
            (self.report)("opening commit records", opened, total);
            for ((generation, term), links, bad) in on_threads(batch, |(key, parts)| {
                let (links, bad) = self.join(parts);
                (*key, links, bad)
            }) {
                for mut link in links {
                    let len = link.changes.as_ref().map_or(0, Vec::len);
                    if kept + len > KEPT_BYTES_MAX {
                        link.changes = None;
                    } else {
                        kept += len;
                    }
                    log.add(link);
                }
                if !bad.is_empty() {
                    log.unreadable.push(Unreadable { term, generation, parts: bad });
                }
            }
            opened += batch.len() as u64;
        }
        log
    }

    /// The records that the parts of one term and generation make, and the parts of none.
    fn join(&self, parts: &[FoundPart]) -> (Vec<Link>, Vec<FoundPart>) {
        let mut open: Vec<(FoundPart, CommitRecord, ChainHash)> = Vec::new();
        let mut closed: BTreeMap<(u16, [u8; 32]), Vec<FoundPart>> = BTreeMap::new();
        for part in parts {
            let key = (part.header.part, part.tag);
            // Written again by a later writer, it is the same message.
            if open.iter().any(|(other, ..)| (other.header.part, other.tag) == key) {
                continue;
            }
            match self.open_part(part) {
                Some((record, chain)) => {
                    closed.remove(&key);
                    open.push((part.clone(), record, chain));
                }
                None => closed.entry(key).or_default().push(part.clone()),
            }
        }
        let mut used = HashSet::new();
        let mut links = Vec::new();
        for first in open.iter().filter(|(part, ..)| part.header.part == 0) {
            let mut run = vec![first];
            while let Some((part, _, chain)) = run.last()
                && part.header.part + 1 < part.header.parts
            {
                let next = part.header.part + 1;
                let follows = |(other, record, _): &&(FoundPart, CommitRecord, ChainHash)| {
                    other.header.part == next && record.previous == *chain
                };
                match open.iter().find(follows) {
                    Some(found) => run.push(found),
                    None => break,
                }
            }
            let records = run.iter().map(|(_, record, chain)| (record.clone(), *chain)).collect();
            let Ok((whole, chain)) = GenerationRecord::join(records) else { continue };
            used.extend(run.iter().map(|(part, ..)| (part.header.part, part.tag)));
            links.push(Link {
                term: whole.term,
                generation: whole.generation,
                previous: whole.previous,
                chain,
                durable_through: whole.durable_through,
                rows_digest: whole.rows_digest,
                parts: run.iter().map(|(part, ..)| part.clone()).collect(),
                changes: Some(whole.changes),
            });
        }
        let unused = open.into_iter().map(|(part, ..)| part).filter(|p| !used.contains(&(p.header.part, p.tag)));
        let bad = closed.into_values().flatten().chain(unused).collect();
        (links, bad)
    }

    /// True if the record was synced in its whole ack set, as far as present members show: it may have been answered
    /// (R12). A record of which a present member of its ack set lacks its shard never was.
    fn acknowledged(&self, parts: &[FoundPart]) -> bool {
        let expected = parts.first().map_or(0, |part| part.header.parts);
        let whole = |number: u16| {
            parts.iter().filter(|part| part.header.part == number).any(|part| {
                let survey = self.stripes.survey(part.place, &part.info);
                let lacks =
                    |(slot, what): &(usize, &str)| self.ack_set(part) >> slot & 1 == 1 && *what != DIRECTORY_MISSING;
                !survey.bad.iter().any(lacks)
            })
        };
        (0..expected).all(whole)
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

    /// True if nothing that is left of a generation's records was synced in its whole ack set.
    pub(super) fn never_acknowledged(&self, log: &Log, generation: Generation) -> bool {
        log.unreadable.iter().filter(|record| record.generation == generation).all(|r| !self.acknowledged(&r.parts))
    }

    /// From a head to the end of the log.
    ///
    /// # Errors
    /// [`Error::Refused`] naming both generations and the command to proceed, where what was acknowledged cannot be
    /// read or two writers acknowledged different states, unless the loss is accepted.
    pub(super) fn path(&self, log: &Log, head: Head, ground: &Ground<'_>) -> Result<Path> {
        let own = log.links.iter().position(|link| (link.generation, link.chain) == (head.generation, head.chain));
        let mut path = Path { links: Vec::new(), head: own, end: head, durable: ground.generation, notes: Vec::new() };
        let mut term = own.map_or(Term(0), |at| log.links[at].term);
        while let Some(next) = log.best_after(path.end) {
            let link = &log.links[next];
            path.durable = path.durable.max(link.durable_through);
            path.end = Head { generation: link.generation, chain: link.chain };
            term = link.term;
            path.links.push(next);
        }
        self.drop_unwritten(log, &mut path)?;
        let (notes, refusals) = self.losses(log, head, &path, term, ground);
        path.notes.extend(notes);
        if refusals.is_empty() {
            return Ok(path);
        }
        if ground.accept_rollback {
            path.notes.extend(refusals.into_iter().map(|reason| format!("accepted by option: {reason}")));
            return Ok(path);
        }
        Err(Error::Refused(format!(
            "{}. Nothing was changed. Bring back directories that are missing or newer. To go on from generation {} and \
             give up what came after it: brine mount -o accept_rollback SOURCE MOUNTPOINT",
            refusals.join("; "),
            path.end.generation
        )))
    }

    /// The links after a head that are known durable, and up to which generation that is known.
    pub(super) fn durable_after(&self, log: &Log, head: Head, ground: &Ground<'_>) -> (Vec<usize>, Generation) {
        let (mut links, mut end, mut durable) = (Vec::new(), head, ground.generation);
        while let Some(next) = log.best_after(end) {
            let link = &log.links[next];
            // A later writer's record that cannot be read (yet) may stand in its place.
            let waits = |other: &Unreadable| other.generation == link.generation && other.term > link.term;
            if log.unreadable.iter().any(waits) {
                break;
            }
            durable = durable.max(link.durable_through);
            end = Head { generation: link.generation, chain: link.chain };
            links.push(next);
        }
        links.retain(|at| log.links[*at].generation <= durable);
        (links, durable)
    }

    /// Records at the end that name blocks which were never written were never acknowledged. Of earlier ones blocks may
    /// have been freed since (R14).
    fn drop_unwritten(&self, log: &Log, path: &mut Path) -> Result<()> {
        let unsure = path.links.iter().position(|at| log.links[*at].generation > path.durable);
        for position in unsure.unwrap_or(path.links.len())..path.links.len() {
            let link = &log.links[path.links[position]];
            if self.blocks_hold(&self.changes(link)?) {
                continue;
            }
            path.notes.push(format!(
                "generation {}, term {}, was never acknowledged and names blocks that were not written; dropped",
                link.generation, link.term
            ));
            let before = link.previous;
            path.links.truncate(position);
            path.end = Head { generation: Generation(link.generation.0 - 1), chain: before };
            break;
        }
        Ok(())
    }

    /// What lies beside and beyond the path: sentences about what is rightly dropped, and about what must not be.
    fn losses(
        &self,
        log: &Log,
        head: Head,
        path: &Path,
        term: Term,
        ground: &Ground<'_>,
    ) -> (Vec<String>, Vec<String>) {
        let (mut notes, mut refusals) = (Vec::new(), Vec::new());
        let end = path.end.generation;
        let on_path: HashSet<usize> = path.links.iter().copied().chain(path.head).collect();
        let dropped = !path.notes.is_empty();
        // Branches, by the link at which each leaves what is trusted.
        let by_chain: HashMap<ChainHash, usize> =
            log.links.iter().enumerate().map(|(at, link)| (link.chain, at)).collect();
        let mut branches: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for at in (0..log.links.len()).filter(|at| !on_path.contains(at)) {
            let mut root = at;
            while let Some(&before) = by_chain.get(&log.links[root].previous)
                && !on_path.contains(&before)
                && log.links[before].generation < log.links[root].generation
            {
                root = before;
            }
            branches.entry(root).or_default().push(at);
        }
        for (root, members) in branches {
            let root = &log.links[root];
            let last = members.iter().map(|at| log.links[*at].generation).max().unwrap_or(root.generation);
            let known = members.iter().map(|at| log.links[*at].durable_through).max().unwrap_or_default();
            let terms: BTreeSet<Term> = members.iter().map(|at| log.links[*at].term).collect();
            let shown = |word: &str| {
                if root.generation == last {
                    format!("a record of generation {last}, term {}, {word}", root.term)
                } else {
                    format!("records of generations {} to {last}, term {}, {word}", root.generation, root.term)
                }
            };
            // What left the log at or before the head was decided when the head was made.
            if root.generation <= head.generation {
                if last > head.generation || root.generation == head.generation {
                    notes.push(format!("{}; ignored", shown("of another history, off the log")));
                }
                continue;
            }
            let linked = root.previous == head.chain
                || path.links.iter().chain(&path.head).any(|at| log.links[*at].chain == root.previous);
            if linked {
                // What one writer tried twice is no division.
                let own = |term: &Term| {
                    let later = path.links.iter().map(|at| &log.links[*at]).filter(|l| l.generation >= root.generation);
                    later.map(|link| link.term).any(|other| other == *term)
                };
                let told = ground
                    .superblocks
                    .iter()
                    .any(|(term, known)| terms.contains(term) && !own(term) && *known >= root.generation);
                if (known >= root.generation || told) && root.generation <= end {
                    refusals.push(format!(
                        "the log divides after generation {}: one writer (term {}) went on to generation {last}, another \
                         (term {term}) to generation {end}, and both acknowledged what they wrote. To keep the former's \
                         instead, mount with the directories only it could reach, and none of the others",
                        Generation(root.generation.0 - 1),
                        root.term
                    ));
                } else if !dropped || root.generation <= end {
                    notes.push(format!("{}; ignored", shown("was never acknowledged, off the log")));
                }
            } else if root.term < term {
                notes.push(format!("{}; ignored", shown("of a former writer, off the log")));
            } else {
                refusals.push(format!(
                    "the commit log has a gap: generation {} follows {}, what is between is missing",
                    root.generation, end
                ));
            }
        }
        for record in log.unreadable.iter().filter(|record| record.generation > head.generation) {
            // Superseded on the log, by the same or a later writer.
            let at = |link: &&usize| log.links[**link].generation == record.generation;
            if path.links.iter().find(at).is_some_and(|at| log.links[*at].term >= record.term) {
                continue;
            }
            let (generation, its_term) = (record.generation, record.term);
            if generation > path.durable && !self.acknowledged(&record.parts) {
                notes.push(format!(
                    "generation {generation}, term {its_term}, was never acknowledged and is incomplete; dropped"
                ));
            } else if its_term >= term {
                refusals.push(format!(
                    "generation {generation}, term {its_term}, was acknowledged but cannot be read: too many of its shards \
                     are gone. The last whole generation is {end}"
                ));
            }
        }
        if refusals.is_empty() && end < path.durable {
            refusals.push(format!(
                "the log ends at generation {end}, but generation {} is known durable: directories went back to an older \
                 state, or those with the newer records are missing",
                path.durable
            ));
        }
        (notes, refusals)
    }
}

impl Log {
    /// True if a record of this generation and hash was found, or one that names the hash as the one before.
    pub(super) fn holds(&self, head: Head) -> bool {
        self.after.contains_key(&head.chain) || self.own(head).is_some()
    }

    /// One more record.
    fn add(&mut self, link: Link) {
        self.after.entry(link.previous).or_default().push(self.links.len());
        self.links.push(link);
    }

    /// True if there are readable records of a generation.
    pub(super) fn has(&self, generation: Generation) -> bool {
        self.links.iter().any(|link| link.generation == generation)
    }

    /// True if anything of a record of a generation is there that is not readable.
    pub(super) fn has_remains(&self, generation: Generation) -> bool {
        self.unreadable.iter().any(|record| record.generation == generation)
    }

    /// The record of a head.
    pub(super) fn own(&self, head: Head) -> Option<&Link> {
        self.links.iter().find(|link| (link.generation, link.chain) == (head.generation, head.chain))
    }

    /// True if a writer of a later term made another record of the same generation.
    pub(super) fn overruled(&self, own: &Link) -> bool {
        self.links.iter().any(|other| other.generation == own.generation && other.term > own.term)
    }

    /// The last generation with a readable record.
    pub(super) fn last(&self) -> Option<Generation> {
        self.links.iter().map(|link| link.generation).max()
    }

    /// The last generation that follows from a head.
    pub(super) fn reach(&self, head: Head) -> Generation {
        let mut end = head;
        while let Some(next) = self.best_after(end) {
            end = Head { generation: self.links[next].generation, chain: self.links[next].chain };
        }
        end.generation
    }

    pub(super) fn link(&self, at: usize) -> &Link {
        &self.links[at]
    }

    /// Of the records that follow, the one with the highest term; of one writer's the one that it went on from.
    fn best_after(&self, head: Head) -> Option<usize> {
        let next = Generation(head.generation.0 + 1);
        let mut following: Vec<usize> = self.after.get(&head.chain).cloned().unwrap_or_default();
        following.retain(|at| self.links[*at].generation == next);
        if following.len() < 2 {
            return following.first().copied();
        }
        following.into_iter().max_by_key(|at| {
            let link = &self.links[*at];
            let place = link.parts.first().map(|part| (part.place.segment, part.place.offset));
            (link.term, self.depth(*at), place)
        })
    }

    /// How many generations follow from a link.
    fn depth(&self, at: usize) -> u64 {
        let mut deepest = 0;
        // Depth first with an explicit stack: branches may be long.
        let mut open = vec![(at, 0)];
        while let Some((at, depth)) = open.pop() {
            deepest = deepest.max(depth);
            let link = &self.links[at];
            for next in self.after.get(&link.chain).into_iter().flatten() {
                if self.links[*next].generation.0 == link.generation.0 + 1 {
                    open.push((*next, depth + 1));
                }
            }
        }
        deepest
    }
}
