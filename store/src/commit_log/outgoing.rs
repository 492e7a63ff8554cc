//! What the outbox keeps of a record: its messages and what their headers need, so that they can be appended again.

use super::{Generation, Result, Term};
use crate::error::Error;
use crate::meta::{Meta, OutboxRow};
use crate::shard::CommitHeader;
use crate::wire::{Put, Reader};

/// A message of the log with its header.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its header; ack set and slots are those of where it lies, and chosen anew when it is appended again.
    pub header: CommitHeader,
    /// The sealed message.
    pub message: Vec<u8>,
}

impl Outgoing {
    /// As the outbox keeps it: term, parts, random bytes, message.
    pub fn into_row(self) -> OutboxRow {
        let mut bytes = Vec::with_capacity(self.message.len() + 42);
        bytes.put_u64(self.header.term.0);
        bytes.put_u16(self.header.parts);
        bytes.put(&self.header.random);
        bytes.put(&self.message);
        OutboxRow { generation: self.header.generation, part: self.header.part, message: bytes }
    }

    /// From the outbox.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn from_row(row: &OutboxRow) -> Result<Self> {
        let short = |_| Error::format("outbox of the metadata database", "a record in it is cut short");
        let mut reader = Reader::new(&row.message);
        let term = Term(reader.u64().map_err(short)?);
        let parts = reader.u16().map_err(short)?;
        let random = reader.array().map_err(short)?;
        let header = CommitHeader {
            term,
            generation: row.generation,
            part: row.part,
            parts,
            ack_set: 0,
            copies: 0,
            random,
        };
        Ok(Self { header, message: reader.rest().to_vec() })
    }
}

/// The records that a database keeps beside its rows: its own last ones.
///
/// # Errors
/// [`Error::Database`], [`Error::Format`].
pub fn outbox_of(meta: &Meta) -> Result<Vec<Outgoing>> {
    let rows = meta.with(|txn| txn.outbox())?;
    rows.iter().map(Outgoing::from_row).collect()
}

/// The generation a database holds, if its outbox does not say more.
pub(super) fn last_of(rows: &[OutboxRow], generation: Generation) -> Result<Option<Outgoing>> {
    rows.iter().rfind(|row| row.generation == generation).map(Outgoing::from_row).transpose()
}
