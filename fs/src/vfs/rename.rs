//! Renaming.

use std::sync::Arc;

use brine_store::ids::Ino;
use brine_store::volume::RenameFlags;

use super::{Caller, Vfs};
use crate::control_dir::is_reserved;
use crate::errno::{Errno, Outcome};

impl Vfs {
    /// Give what has one name another, replacing, exchanging or not, as the flags say.
    #[allow(clippy::too_many_arguments)] // the request's fields
    pub fn rename(
        self: &Arc<Self>,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Outcome<()> {
        self.check_live(parent)?;
        self.check_live(new_parent)?;
        if is_reserved(parent, name) || is_reserved(new_parent, new_name) {
            return Err(Errno::NOT_PERMITTED);
        }
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(Errno::INVALID);
        }
        let flags = RenameFlags { owner: (caller.uid, caller.gid), ..flags };
        let replaced = {
            let _gate = self.buffer.change();
            self.volume.rename(parent, name, new_parent, new_name, flags)
        };
        let replaced = replaced.map_err(|error| self.fail("rename in", parent, &error))?;
        self.name_changed(caller, new_parent, new_name);
        if flags.exchange {
            self.name_changed(caller, parent, name);
        }
        if let Some(unlinked) = replaced {
            self.removed(unlinked);
        }
        Ok(())
    }
}
