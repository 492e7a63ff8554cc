//! Reading the image of a checkpoint.

use std::path::Path;

use super::Reader;
use super::scan::on_threads;
use crate::error::{Error, Result};
use crate::ids::BlockKey;
use crate::meta::codec::decode_changes;
use crate::meta::{Meta, Setup};
use crate::record::{ImageEntry, ImageIndex};
use crate::seal::BlockKind;
use crate::shard::Location;
use crate::stripes::StripePlace;
use crate::superblock::CheckpointPointer;

/// Blocks of rows read and decoded at once.
const BATCH: usize = 32;

impl Reader<'_> {
    /// A blank database with the rows of a checkpoint, verified by their digest.
    pub(super) fn import(&self, dir: &Path, setup: &Setup, pointer: &CheckpointPointer) -> Result<Meta> {
        let index = self.image_index(pointer)?;
        if (index.generation, index.chain) != (pointer.generation, pointer.chain) {
            return Err(Error::format("checkpoint index", "it is not the one the superblock names"));
        }
        let meta = Meta::create_blank(dir, self.keys.database_key(), setup)?;
        let mut done = 0;
        for batch in index.entries.chunks(BATCH) {
            (self.report)("reading the checkpoint", done, index.entries.len() as u64);
            let rows = on_threads(batch, |entry| -> Result<_> {
                decode_changes(&self.image_block(&entry.key, &entry.location)?)
            });
            for rows in rows {
                meta.import(&rows?)?;
            }
            done += batch.len() as u64;
        }
        meta.finish_import(index.generation)?;
        (self.report)("verifying the rows", 0, 0);
        if meta.reader()?.digest()? != index.rows_digest {
            return Err(Error::format("checkpoint image", "its rows are not those its digest was taken of"));
        }
        Ok(meta)
    }

    /// A block of an image.
    fn image_block(&self, key: &BlockKey, location: &Location) -> Result<Vec<u8>> {
        let object = format!("checkpoint block in segment {} at {}", location.segment, location.stripe);
        let lost = || Error::format(object.clone(), "too many of its shards are missing or wrong");
        let mut outcome = Err(lost());
        for info in self.stripes.segment_infos(location.segment) {
            let Some(header) = self.stripes.header_at(location.segment, location.stripe, &info) else { continue };
            let (segment, offset) = (location.segment, location.stripe);
            let place = StripePlace { segment, offset, record_len: header.record_len() as u32 };
            let Some((_, message)) = self.stripes.message(place, &info) else { continue };
            let start = location.offset as usize;
            let Some(sealed) = message.get(start..start + location.len as usize) else { continue };
            let mut sealed = sealed.to_vec();
            match self.sealer.open(BlockKind::Checkpoint, key, &mut sealed) {
                Ok(opened) => return Ok(opened.plain.into_owned()),
                Err(error) => outcome = Err(Error::format(object.clone(), error.to_string())),
            }
        }
        outcome
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
            for ImageEntry { key, location } in index.entries.iter().rev() {
                open.push(self.read_index(key, location)?);
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
}
