//! Writing, and making or freeing room inside files.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Caller, Vfs};
use crate::errno::{Errno, Outcome};

/// Writes that may be stored before they are accepted are at least this long, bytes: shorter ones are soon stored.
const STORED_AHEAD_MIN: usize = 256 << 10;

/// Writes that are being stored ahead, or wait for it, at most.
const AHEAD_MAX: usize = 16;

/// A write that is being stored ahead, or waits for it.
pub struct AheadTurn(Arc<Vfs>);

impl Drop for AheadTurn {
    fn drop(&mut self) {
        self.0.ahead.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a write can be accepted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It can.
    Now,
    /// [`Vfs::write_when_room`] must be called for it: its turn is kept.
    Later,
}

impl Vfs {
    /// Whether a write of `len` bytes can be accepted at once; if not, later writers queue behind it.
    pub fn room_for(&self, len: usize) -> Room {
        if self.buffer.has_room(len) {
            return Room::Now;
        }
        self.buffer.announce_waiting();
        Room::Later
    }

    /// Whether a write of `len` bytes should be [stored](Self::store_ahead) before it is accepted, by [`Self::storers`]: its
    /// turn. What is accepted belongs to the next commit, and who waits for that would wait for all of it to be stored. When
    /// many writes are being stored, others are accepted as ever: what waits is no part of the buffer, and not bounded by it.
    pub fn turn_ahead(self: &Arc<Self>, handle: u64, len: usize) -> Option<AheadTurn> {
        if len < STORED_AHEAD_MIN || !self.file(handle).is_ok_and(|file| self.others_sync(file.node.ino)) {
            return None;
        }
        let turn = AheadTurn(Arc::clone(self));
        (self.ahead.fetch_add(1, Ordering::Relaxed) < AHEAD_MAX).then_some(turn)
    }

    /// Store what is about to be written, if there is room for it. Waits for disks. What fails here is told of by the write.
    pub fn store_ahead(&self, handle: u64, offset: u64, data: &[u8]) {
        let Ok(file) = self.file(handle) else { return };
        if let Err(error) = self.buffer.store_ahead(&file.node, offset, data) {
            log::debug!("inode {}: storing ahead: {error}", file.node.ino);
        }
    }

    /// Write what [`Self::room_for`] said must wait. Waits for room.
    pub fn write_when_room(&self, handle: u64, offset: u64, data: &[u8], drop_set_id: bool) -> Outcome<u32> {
        self.buffer.wait_for_room(data.len())?;
        self.write(handle, offset, data, drop_set_id)
    }

    /// Accept a write. With `drop_set_id` the writer may not keep set-user-id and set-group-id bits.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8], drop_set_id: bool) -> Outcome<u32> {
        let file = self.file(handle)?;
        self.deferred_error(&file)?;
        self.check_writable()?;
        self.buffer
            .write(&file.node, offset, data, self.now_ns(), drop_set_id)
            .map_err(|error| self.fail("write to", file.node.ino, &error))?;
        file.wrote.store(true, Ordering::Relaxed);
        Ok(data.len() as u32)
    }

    /// fallocate(2): extend, free or zero a range. Collapsing and inserting ranges is not offered. May wait for chunks
    /// being sealed.
    ///
    /// Preallocation checks that there is space now, and promises nothing for later: a block's size is known only when
    /// its content is, and equal content takes no space at all.
    pub fn allocate(&self, caller: Caller, handle: u64, offset: u64, len: u64, mode: i32) -> Outcome<()> {
        let file = self.file(handle)?;
        self.deferred_error(&file)?;
        self.check_writable()?;
        let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or(Errno(libc::EFBIG))?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let (node, now_ns) = (&file.node, self.now_ns());
        if caller.uid != 0 {
            self.buffer.drop_set_id_bits(node, now_ns).map_err(|error| self.fail("fallocate of", node.ino, &error))?;
        }
        let done = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {
                self.volume.wait_for_space(len);
                self.volume.reserve(len).and_then(|reservation| {
                    drop(reservation);
                    self.buffer.check_quota(node, offset..end)?;
                    if keep_size { Ok(()) } else { self.buffer.extend(node, end, now_ns) }
                })
            }
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => self.buffer.zero(node, offset, end, true, now_ns),
            libc::FALLOC_FL_ZERO_RANGE => self.buffer.zero(node, offset, end, keep_size, now_ns),
            _ => return Err(Errno::NOT_SUPPORTED),
        };
        file.wrote.store(true, Ordering::Relaxed);
        done.map_err(|error| self.fail("fallocate of", node.ino, &error))
    }
}
