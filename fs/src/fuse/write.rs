//! Writes that the event thread does not carry out itself.

use std::sync::Arc;

use fuser::{FileHandle, ReplyWrite};

use super::answer;
use crate::errno::{Errno, Outcome};
use crate::vfs::Vfs;

/// A write that is carried out by another thread.
pub(super) struct Write {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
    drop_set_id: bool,
    reply: ReplyWrite,
}

impl Write {
    pub(super) fn new(handle: FileHandle, offset: u64, data: &[u8], drop_set_id: bool, reply: ReplyWrite) -> Self {
        Self { handle: handle.0, offset, data: data.to_vec(), drop_set_id, reply }
    }

    pub(super) fn carry_out(&self, vfs: &Vfs) -> Outcome<u32> {
        vfs.write(self.handle, self.offset, &self.data, self.drop_set_id)
    }

    pub(super) fn when_room(self, vfs: &Arc<Vfs>) {
        let outcome = vfs.write_when_room(self.handle, self.offset, &self.data, self.drop_set_id);
        self.answer(vfs, outcome);
    }

    pub(super) fn answer(self, vfs: &Arc<Vfs>, outcome: Outcome<u32>) {
        match outcome {
            // Elsewhere: the next writers wait behind this thread.
            Err(Errno::QUOTA) => {
                let again = Arc::clone(vfs);
                vfs.io().run(move || {
                    again.await_given_back();
                    answer::written(self.carry_out(&again), self.reply);
                });
            }
            outcome => answer::written(outcome, self.reply),
        }
    }
}
