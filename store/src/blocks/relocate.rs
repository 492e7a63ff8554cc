//! Moving blocks to another segment, as they are: sealed messages are copied, keys and ids stay.

use super::put::Stripe;
use super::{Blocks, pack, place_of};
use crate::error::Result;
use crate::ids::{BlockId, Generation};
use crate::meta::rows::{BlockRow, BlockState};
use crate::segment::QUORUM_PATIENCE;
use crate::shard::RecordKind;

/// A block on its way: its row, and its sealed message.
struct Moving {
    row: BlockRow,
    sealed: Vec<u8>,
}

impl Blocks {
    /// Copy these blocks (in the order of their places; a few MiB at most) to the open segment, and change their rows where they still say the old
    /// place (a conditional write). Blocks whose stripe cannot be read stay where they are. Returns how many sealed
    /// bytes were moved. Not synced: what names them is, with the next commit.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`], those of appending and of the database.
    pub fn relocate(&self, rows: &[BlockRow]) -> Result<u64> {
        let _pin = self.pins.enter();
        let mut moving = Vec::with_capacity(rows.len());
        for stripe in rows.chunk_by(|a, b| (a.segment, a.offset) == (b.segment, b.offset)) {
            let place = place_of(&stripe[0]);
            let info = self.segment_info(place.segment)?;
            let Some((_, message)) = self.stripes.message(place, &info) else {
                log::warn!(
                    "stripe at {} of segment {} cannot be moved: too few good shards",
                    place.offset,
                    place.segment
                );
                continue;
            };
            for row in stripe {
                let start = row.message_offset as usize;
                if let Some(sealed) = message.get(start..start + row.sealed_len as usize) {
                    moving.push(Moving { row: row.clone(), sealed: sealed.to_vec() });
                }
            }
        }
        if moving.is_empty() {
            return Ok(0);
        }
        let lens: Vec<usize> = moving.iter().map(|block| block.sealed.len()).collect();
        let mut stripes: Vec<Stripe> = pack::plan(&lens, self.geometry.data())
            .iter()
            .map(|plan| {
                let pieces: Vec<(BlockId, usize, &[u8])> = plan
                    .blocks
                    .iter()
                    .map(|&(index, at)| (moving[index].row.id, at, &moving[index].sealed[..]))
                    .collect();
                let indices = plan.blocks.iter().map(|&(index, _)| index).collect();
                self.make_stripe(RecordKind::Stripe, &pieces, plan.shard_len, indices)
            })
            .collect();
        let generation = Generation(self.meta.committed().0 + 1);
        let written = self.write_stripes(&mut stripes, generation, QUORUM_PATIENCE);
        let outcome = written.and_then(|extent| {
            self.settled(|txn| {
                let mut moved = 0;
                for stripe in &stripes {
                    for (entry, &index) in stripe.entries.iter().zip(&stripe.indices) {
                        let before = &moving[index].row;
                        let Some(now) = txn.block(&before.id)? else { continue };
                        // Freed, condemned or stored anew meanwhile: what was copied is dead.
                        if now.state == BlockState::Condemned || place_of(&now) != place_of(before) {
                            continue;
                        }
                        txn.move_block(&before.id, |row| {
                            row.segment = extent.segment.id;
                            row.offset = extent.offset + stripe.at;
                            row.record_len = stripe.record_len as u32;
                            row.stripe_blocks = stripe.entries.len() as u16;
                            row.message_offset = entry.offset;
                        })?;
                        moved += u64::from(entry.len);
                    }
                }
                Ok(moved)
            })
        });
        for stripe in stripes {
            self.give_back_shared(stripe.shards);
        }
        outcome
    }
}
