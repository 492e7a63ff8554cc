//! Outputs of runs that nobody sees until they are published; see [`brine_store::volume::Volume::publish`].

use std::sync::Arc;

use brine_store::Result as StoreResult;
use brine_store::ids::{Generation, Ino};
use brine_store::volume::{Attr, Base, Destination, Discard, Published, Staged, Who};

use super::Vfs;

impl Vfs {
    /// The present state, to stage from. Waits for disks.
    ///
    /// # Errors
    /// Those of a commit.
    pub fn staging_base(&self) -> StoreResult<Base> {
        self.volume.base(&*self.buffer)
    }

    /// See [`brine_store::volume::Volume::make_staging`].
    ///
    /// # Errors
    /// Its.
    pub fn make_staging(&self, name: &str) -> StoreResult<Attr> {
        let _gate = self.buffer.change();
        self.volume.make_staging(name.as_bytes())
    }

    /// See [`brine_store::volume::Volume::make_part`].
    ///
    /// # Errors
    /// Its.
    pub fn make_part(&self, staging: Ino, name: &str, uid: u32) -> StoreResult<Ino> {
        let _gate = self.buffer.change();
        self.volume.make_part(staging, name.as_bytes(), uid)
    }

    /// See [`brine_store::volume::Volume::make_layer`].
    ///
    /// # Errors
    /// Its.
    pub fn make_layer(&self, part: Ino, target: Ino, owner: (u32, u32)) -> StoreResult<Ino> {
        let _gate = self.buffer.change();
        self.volume.make_layer(part, target, owner)
    }

    /// A copy of a file as it was in a generation, in the directory of a part; blocks are shared.
    ///
    /// # Errors
    /// [`brine_store::Error::NotFound`] on a volume without history.
    pub fn stage_file(self: &Arc<Self>, part: Ino, name: &str, generation: Generation, file: Ino) -> StoreResult<Attr> {
        let to = Destination { parent: part, name: name.as_bytes(), replace: false, version: None };
        self.restore(generation, file, to)?;
        self.volume.lookup(part, name.as_bytes())
    }

    /// See [`brine_store::volume::Volume::publish`]. Waits for disks.
    ///
    /// # Errors
    /// Its.
    pub fn publish(self: &Arc<Self>, base: Option<&Base>, staged: &[Staged], who: Who<'_>) -> StoreResult<Published> {
        let published = self.volume.publish(&*self.buffer, base, staged, who)?;
        if let Published::Done(done) = &published {
            self.brought_back(done);
        }
        Ok(published)
    }

    /// Remove the staging directory of this name and everything in it, in steps of bounded size.
    ///
    /// # Errors
    /// Those of [`brine_store::volume::Volume::discard_some`]; some of it may be gone then.
    pub fn discard_staging(self: &Arc<Self>, name: &str) -> StoreResult<()> {
        let mut discard = Discard::new(name.as_bytes());
        loop {
            let (gone, more) = {
                let _gate = self.buffer.change();
                self.volume.discard_some(&mut discard)?
            };
            self.brought_back(&gone);
            if !more {
                return Ok(());
            }
        }
    }
}
