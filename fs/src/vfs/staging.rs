//! Outputs of runs that nobody sees until they are published; see [`brine_store::volume::Volume::publish`].

use std::sync::Arc;

use brine_store::Result as StoreResult;
use brine_store::ids::{Generation, Ino};
use brine_store::volume::{Attr, Base, Destination, Published, Staged};

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
    pub fn make_staging(&self, name: &str, uid: u32, gid: u32) -> StoreResult<Attr> {
        let _gate = self.buffer.change();
        self.volume.make_staging(name.as_bytes(), uid, gid)
    }

    /// See [`brine_store::volume::Volume::make_layer`].
    ///
    /// # Errors
    /// Its.
    pub fn make_layer(&self, staging: Ino, name: &str, target: Ino) -> StoreResult<Ino> {
        let _gate = self.buffer.change();
        self.volume.make_layer(staging, name.as_bytes(), target)
    }

    /// A copy of a file as it was in a generation, in a staging directory; blocks are shared.
    ///
    /// # Errors
    /// [`brine_store::Error::NotFound`] on a volume without history.
    pub fn stage_file(
        self: &Arc<Self>,
        staging: Ino,
        name: &str,
        generation: Generation,
        file: Ino,
    ) -> StoreResult<()> {
        let to = Destination { parent: staging, name: name.as_bytes(), replace: false, version: None };
        self.restore(generation, file, to).map(|_| ())
    }

    /// See [`brine_store::volume::Volume::publish`]. Waits for disks.
    ///
    /// # Errors
    /// Its.
    pub fn publish(
        self: &Arc<Self>,
        base: Option<&Base>,
        staged: &[Staged],
        allowed: &dyn Fn(&Attr) -> bool,
    ) -> StoreResult<Published> {
        let published = self.volume.publish(&*self.buffer, base, staged, allowed)?;
        if let Published::Done(done) = &published {
            self.brought_back(done);
        }
        Ok(published)
    }

    /// See [`brine_store::volume::Volume::discard_staging`].
    ///
    /// # Errors
    /// Its.
    pub fn discard_staging(self: &Arc<Self>, name: &str) -> StoreResult<()> {
        let gone = {
            let _gate = self.buffer.change();
            self.volume.discard_staging(name.as_bytes())?
        };
        self.brought_back(&gone);
        Ok(())
    }
}
