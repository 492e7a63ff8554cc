//! The commit log: each generation's row changes as a sealed record in the backing directories, chained to the one
//! before. The log is the truth; the local database is a cache of it.
//!
//! Promises: when [`CommitLog::append`] returns, the record and everything it names are synced in every healthy
//! occupied slot and in at least min_ack of them (R8). Knows records, not what they change.

mod outgoing;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::blocks::Blocks;
use crate::clock::Entropy;
use crate::error::{Error, Result};
use crate::ids::{Generation, Term, VolumeId};
use crate::meta::codec::encode_changes;
use crate::meta::{Closed, Meta, OutboxRow};
use crate::record::{ChainHash, GenerationRecord, RowsDigest};
use crate::shard::CommitHeader;
use crate::superblock::AckOverride;

/// Where ack sets are made smaller, durably, before a generation is answered (R8).
pub trait AckOverrides: std::fmt::Debug {
    /// Make these durable in the superblocks of the members left.
    ///
    /// # Errors
    /// If too few members took them: the generation must not be answered.
    fn put(&self, overrides: Vec<AckOverride>) -> Result<()>;
}

pub use outgoing::{Outgoing, outbox_of};

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

/// Where on the log a database stands: by its own last record, or as its rebuilding left it. `None`: it does not say.
pub fn head_of(meta: &Meta) -> Result<Option<Head>> {
    let generation = meta.committed();
    meta.with(|txn| {
        let rows = txn.outbox()?;
        if let Some(last) = outgoing::last_of(&rows, generation)? {
            return Ok(Some(Head { generation, chain: ChainHash::of(&last.message) }));
        }
        let noted = txn.local(HEAD_KEY)?.and_then(|bytes| Head::decode(&bytes));
        Ok(noted.filter(|head| head.generation == generation))
    })
}

/// The log of one open volume.
pub struct CommitLog {
    volume: VolumeId,
    term: Term,
    log_key: zeroize::Zeroizing<[u8; 32]>,
    entropy: Arc<dyn Entropy>,
    head: Mutex<Head>,
    /// Bytes of records appended since the last checkpoint.
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
    /// Going on from `head`.
    pub fn new(volume: VolumeId, term: Term, log_key: [u8; 32], entropy: Arc<dyn Entropy>, head: Head) -> Self {
        Self {
            volume,
            term,
            log_key: zeroize::Zeroizing::new(log_key),
            entropy,
            head: Mutex::new(head),
            since_checkpoint: Mutex::new(0),
            rows_digest: Mutex::default(),
        }
    }

    /// Where the log ends now.
    pub fn head(&self) -> Head {
        *self.head.lock()
    }

    /// Bytes of records appended since the last checkpoint.
    pub fn bytes_since_checkpoint(&self) -> u64 {
        *self.since_checkpoint.lock()
    }

    /// A checkpoint of these rows was published when the log had this many bytes more than at the one before. The next
    /// record tells what the rows were.
    pub fn checkpointed(&self, bytes: u64, rows: RowsDigest) {
        *self.rows_digest.lock() = Some(rows);
        let mut since = self.since_checkpoint.lock();
        *since = since.saturating_sub(bytes);
    }

    /// Append the record of a generation and sync it together with everything it names. Returns what the database
    /// keeps of it, to be committed with the rows.
    ///
    /// If slots of its ack set were not synced, `overrides` makes that durable first (R8).
    ///
    /// # Errors
    /// Those of appending and syncing: the generation is then not durable, though it may still become so (R9).
    pub fn append(
        &self,
        blocks: &Blocks,
        closed: &Closed,
        overrides: &dyn AckOverrides,
    ) -> Result<(Head, Vec<OutboxRow>)> {
        let before = self.head();
        let record = GenerationRecord {
            volume: self.volume,
            term: self.term,
            generation: closed.generation,
            // Every record is synced before the next is made.
            durable_through: before.generation,
            previous: before.chain,
            rows_digest: self.rows_digest.lock().take(),
            changes: encode_changes(&closed.changes),
        };
        let parts = record.seal(&self.log_key, self.entropy.as_ref()).map_err(|error| {
            Error::format(format!("commit record of generation {}", closed.generation), error.to_string())
        })?;
        let mut head = before;
        let mut rows = Vec::with_capacity(parts.len());
        let mut bytes = 0;
        let mut appended = Vec::with_capacity(parts.len());
        for part in parts {
            let header = CommitHeader {
                term: self.term,
                generation: closed.generation,
                part: part.part,
                parts: part.parts,
                ack_set: 0,
                copies: 0,
                random: part.random,
            };
            appended.push(blocks.append_commit(header, &part.message)?);
            bytes += part.message.len() as u64;
            head = Head { generation: closed.generation, chain: part.chain };
            rows.push(Outgoing { header, message: part.message }.into_row());
        }
        blocks.segments().sync()?;
        let smaller: Vec<AckOverride> = appended
            .iter()
            .filter_map(|at| {
                let left = at.ack_set & !blocks.segments().lacking(at.segment);
                let (term, generation) = (self.term, closed.generation);
                (left != at.ack_set).then_some(AckOverride {
                    term,
                    generation,
                    part: at.part,
                    segment: at.segment,
                    ack_set: left,
                })
            })
            .collect();
        if !smaller.is_empty() {
            overrides.put(smaller)?;
        }
        *self.since_checkpoint.lock() += bytes;
        Ok((head, rows))
    }

    /// The database committed the rows of `head`.
    pub fn advance(&self, head: Head) {
        *self.head.lock() = head;
    }
}

#[cfg(test)]
mod tests;
