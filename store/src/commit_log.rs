//! The commit log: each generation's row changes as a sealed record in the backing directories, chained to the one
//! before. The log is the truth; the local database is a cache of it.
//!
//! A generation is appended, then its rows are committed locally, then record and all it names are synced, then it is
//! acknowledged ([`CommitLog::acknowledge`]). Of the database a power cut may leave the rows of a generation whose record
//! was not synced yet; recovery knows by the notes kept here. Knows records, not what they change.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::blocks::{AppendedCommit, Blocks};
use crate::clock::Entropy;
use crate::error::{Error, Result};
use crate::ids::{Generation, SegmentId, Term, VolumeId};
use crate::meta::changes::RowChange;
use crate::meta::codec::encode_changes;
use crate::meta::{Closed, Meta, OutboxRow};
use crate::record::{ChainHash, GenerationRecord, RowsDigest};
use crate::shard::CommitHeader;
use crate::superblock::AckOverride;

/// Where ack sets are made smaller, durably, before a generation is answered (R8).
pub trait AckOverrides: std::fmt::Debug {
    /// Make these, and which slots of which segments lack something, durable in the superblocks of the members left.
    /// Nothing is to be done if there are none and all that lack something are noted already.
    ///
    /// # Errors
    /// If too few members took them: the generation must not be answered.
    fn put(&self, overrides: Vec<AckOverride>, lacking: &[(SegmentId, u64)]) -> Result<()>;
}

/// Where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last generation.
    pub generation: Generation,
    /// Chain hash of its record.
    pub chain: ChainHash,
}

impl Head {
    /// Bytes under which a database that was rebuilt remembers where it stands.
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = self.generation.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.chain.0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (generation, chain) = bytes.split_first_chunk::<8>()?;
        Some(Self { generation: Generation(u64::from_le_bytes(*generation)), chain: ChainHash(chain.try_into().ok()?) })
    }
}

/// Name under which a rebuilt database remembers its head.
pub(crate) const HEAD_KEY: &str = "head";

/// Of the bytes of small writes in a record so many cost as much to replay as one byte of other rows.
const PATCH_COST: u64 = 4;

fn patch_bytes(changes: &[RowChange]) -> u64 {
    let bytes = |change: &RowChange| if let RowChange::PutPatch(patch) = change { patch.bytes.len() as u64 } else { 0 };
    changes.iter().map(bytes).sum()
}

/// What a database says of where it stands on the log.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Its last generation, by its own note or as its rebuilding left it.
    pub head: Head,
    /// The generation before, if it knows.
    pub before: Option<Head>,
    /// The last generation that it knows was durable.
    pub durable: Generation,
}

/// Where on the log a database stands. `None`: it does not say.
pub fn standing_of(meta: &Meta) -> Result<Option<Standing>> {
    let generation = meta.committed();
    meta.with(|txn| {
        let rows = txn.outbox()?;
        let noted = |generation: Generation| {
            let row = rows.iter().rfind(|row| row.generation == generation)?;
            Some(Head { generation, chain: ChainHash(row.message.as_slice().try_into().ok()?) })
        };
        let rebuilt = txn.local(HEAD_KEY)?.and_then(|bytes| Head::decode(&bytes));
        let durable = txn.durable()?;
        let at = |generation| noted(generation).or_else(|| rebuilt.filter(|head| head.generation == generation));
        let before = generation.0.checked_sub(1).and_then(|before| at(Generation(before)));
        Ok(at(generation).map(|head| Standing { head, before, durable }))
    })
}

/// A record that was appended and is not known synced.
#[derive(Debug)]
pub struct Appended {
    head: Head,
    at: Vec<AppendedCommit>,
    /// What replaying it costs.
    cost: u64,
}

/// The log of one open volume.
pub struct CommitLog {
    volume: VolumeId,
    term: Term,
    log_key: zeroize::Zeroizing<[u8; 32]>,
    entropy: Arc<dyn Entropy>,
    head: Mutex<Head>,
    /// The last generation that was acknowledged.
    durable: Mutex<Generation>,
    /// What replaying the records costs that were appended since the last checkpoint.
    since_checkpoint: Mutex<u64>,
    /// What the rows were at the last checkpoint, for the next record.
    rows_digest: Mutex<Option<RowsDigest>>,
}

impl std::fmt::Debug for CommitLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitLog").field("head", &*self.head.lock()).finish_non_exhaustive()
    }
}

impl CommitLog {
    /// Going on from `head`, which is durable.
    pub fn new(volume: VolumeId, term: Term, log_key: [u8; 32], entropy: Arc<dyn Entropy>, head: Head) -> Self {
        Self {
            volume,
            term,
            log_key: zeroize::Zeroizing::new(log_key),
            entropy,
            head: Mutex::new(head),
            durable: Mutex::new(head.generation),
            since_checkpoint: Mutex::new(0),
            rows_digest: Mutex::default(),
        }
    }

    /// Where the log ends now.
    pub fn head(&self) -> Head {
        *self.head.lock()
    }

    /// What replaying the records costs that were appended since the last checkpoint: their bytes, of small writes kept in
    /// them a part ([`PATCH_COST`]).
    pub fn cost_since_checkpoint(&self) -> u64 {
        *self.since_checkpoint.lock()
    }

    /// A checkpoint of these rows was published when [`Self::cost_since_checkpoint`] was this. The next record tells what
    /// the rows were.
    pub fn checkpointed(&self, cost: u64, rows: RowsDigest) {
        *self.rows_digest.lock() = Some(rows);
        let mut since = self.since_checkpoint.lock();
        *since = since.saturating_sub(cost);
    }

    /// The last generation that was acknowledged: what later ones may be built on, and what space may be freed by.
    pub fn durable(&self) -> Generation {
        *self.durable.lock()
    }

    /// Fails once a generation was committed and could not be made durable: nothing may follow it.
    pub fn usable(&self) -> Result<()> {
        let generation = self.head().generation;
        if self.durable() == generation {
            return Ok(());
        }
        Err(Error::NotDurable { generation, reason: "it could not be synced before; unmount and mount again".into() })
    }

    /// Append the record of a generation. Returns what the database notes of it, to be committed with the rows.
    ///
    /// # Errors
    /// Those of appending: the generation stays open.
    pub fn append(&self, blocks: &Blocks, closed: &Closed) -> Result<(Appended, Vec<OutboxRow>)> {
        let before = self.head();
        let record = GenerationRecord {
            volume: self.volume,
            term: self.term,
            generation: closed.generation,
            durable_through: self.durable(),
            previous: before.chain,
            rows_digest: self.rows_digest.lock().take(),
            changes: encode_changes(&closed.changes),
        };
        let parts = record.seal(&self.log_key, self.entropy.as_ref()).map_err(|error| {
            Error::format(format!("commit record of generation {}", closed.generation), error.to_string())
        })?;
        let message_bytes: u64 = parts.iter().map(|part| part.message.len() as u64).sum();
        let cost = message_bytes.saturating_sub(patch_bytes(&closed.changes) / PATCH_COST * (PATCH_COST - 1));
        let mut appended = Appended { head: before, at: Vec::with_capacity(parts.len()), cost };
        for part in &parts {
            let header = CommitHeader {
                term: self.term,
                generation: closed.generation,
                part: part.part,
                parts: part.parts,
                ack_set: 0,
                copies: 0,
                random: part.random,
            };
            // Readers wait for the database meanwhile, and must not wait for directories that are silent.
            appended.at.push(blocks.append_commit(header, &part.message, Duration::ZERO)?);
            appended.head = Head { generation: closed.generation, chain: part.chain };
        }
        let (generation, message) = (closed.generation, appended.head.chain.0.to_vec());
        Ok((appended, vec![OutboxRow { generation, part: 0, message }]))
    }

    /// The database committed the rows of a record that was appended.
    pub fn advance(&self, record: &Appended) {
        *self.head.lock() = record.head;
        *self.since_checkpoint.lock() += record.cost;
    }

    /// Record and all it names were synced, in at least min_ack slots: its generation is durable. If slots of its ack set
    /// are not among them, `overrides` makes that durable first (R8).
    ///
    /// # Errors
    /// Those of `overrides`: the generation must not be answered.
    pub fn acknowledge(&self, blocks: &Blocks, record: &Appended, overrides: &dyn AckOverrides) -> Result<()> {
        let generation = record.head.generation;
        let smaller = record.at.iter().filter_map(|at| {
            let ack_set = at.ack_set & !blocks.segments().lacking(at.segment);
            let (term, part, segment) = (self.term, at.part, at.segment);
            (ack_set != at.ack_set).then_some(AckOverride { term, generation, part, segment, ack_set })
        });
        let smaller: Vec<AckOverride> = smaller.collect();
        let lacking = blocks.segments().lacking_segments();
        if !smaller.is_empty() || !lacking.is_empty() {
            overrides.put(smaller, &lacking)?;
        }
        *self.durable.lock() = generation;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
