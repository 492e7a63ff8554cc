//! Numbers kept of the whole volume: what is next, how much there is.

use crate::error::{Error, Result};

/// Kept in memory, written as one settings row when a generation closes; [`super::Meta::verify`] recomputes the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Next inode number.
    pub next_ino: u64,
    /// Next data id.
    pub next_data: u64,
    /// Next segment number.
    pub next_segment: u64,
    /// Cuts made so far.
    pub cuts: u64,
    /// Inodes, orphans included.
    pub inodes: u64,
    /// Regular files, orphans included.
    pub files: u64,
    /// Sum of the sizes of regular files, bytes.
    pub logical_bytes: u64,
    /// Blocks that are live.
    pub live_blocks: u64,
    /// Sum of the plaintext lengths of live blocks, bytes.
    pub unique_bytes: u64,
    /// Sum of the sealed lengths of live blocks, bytes.
    pub stored_bytes: u64,
    /// Blocks that are unreferenced or condemned.
    pub dead_blocks: u64,
    /// Sum of the sealed lengths of those, bytes.
    pub dead_bytes: u64,
}

/// Key of their row on the settings shelf.
pub(super) const COUNTERS_KEY: &[u8] = b"counters";

const FIELDS: usize = 12;

impl Counters {
    fn fields(&mut self) -> [&mut u64; FIELDS] {
        [
            &mut self.next_ino,
            &mut self.next_data,
            &mut self.next_segment,
            &mut self.cuts,
            &mut self.inodes,
            &mut self.files,
            &mut self.logical_bytes,
            &mut self.live_blocks,
            &mut self.unique_bytes,
            &mut self.stored_bytes,
            &mut self.dead_blocks,
            &mut self.dead_bytes,
        ]
    }

    /// Little-endian, in the order of the fields.
    pub(super) fn encode(mut self) -> Vec<u8> {
        self.fields().iter().flat_map(|field| field.to_le_bytes()).collect()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut out = Self::default();
        let fields = out.fields();
        if bytes.len() != 8 * FIELDS {
            return Err(Error::format(
                "counters of the metadata database",
                format!(
                    "{} bytes instead of {}; move the database aside and mount again to rebuild it",
                    bytes.len(),
                    8 * FIELDS
                ),
            ));
        }
        for (field, word) in fields.into_iter().zip(bytes.as_chunks::<8>().0) {
            *field = u64::from_le_bytes(*word);
        }
        Ok(out)
    }

    /// What starts empty: inode 1 is the root, number 0 means none.
    pub(super) fn fresh() -> Self {
        Self { next_ino: 1, next_data: 1, next_segment: 1, ..Self::default() }
    }
}
