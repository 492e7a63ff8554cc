//! Outcomes of operations as answers to the kernel.
//!
//! Promises: every outcome gets exactly one answer. Knows nothing of requests, and not which operation it was.

use brine_store::volume::Attr;
use fuser::{
    Errno as Code, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr,
};

use super::convert::{attr_ttl, file_attr, name_ttl};
use crate::control_dir::Caching;
use crate::errno::{Errno, Outcome};
use crate::vfs::{Handle, Opened, ReadBytes};

pub(super) fn code(errno: Errno) -> Code {
    Code::from_i32(errno.0)
}

pub(super) fn data(outcome: Outcome<ReadBytes>, reply: ReplyData) {
    match outcome {
        Ok(bytes) => reply.data(bytes.as_slice()),
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn empty(outcome: Outcome<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn entry(outcome: Outcome<Attr>, reply: ReplyEntry) {
    match outcome {
        Ok(attr) => {
            let generation = Generation(attr.ino_generation.into());
            reply.entry_with_ttls(&attr_ttl(&attr), &name_ttl(&attr), &file_attr(&attr), generation);
        }
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn attr(outcome: Outcome<Attr>, reply: ReplyAttr) {
    match outcome {
        Ok(attr) => reply.attr(&attr_ttl(&attr), &file_attr(&attr)),
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn open(outcome: Outcome<Handle>, flags: i32, reply: ReplyOpen) {
    match outcome {
        Ok(handle) => {
            let direct = handle.caching == Caching::Direct;
            let more = if direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
            reply.opened(FileHandle(handle.number), open_answer(flags) | more);
        }
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn created(outcome: Outcome<Opened>, flags: i32, reply: ReplyCreate) {
    match outcome {
        Ok(opened) => {
            let generation = Generation(opened.attr.ino_generation.into());
            let handle = FileHandle(opened.handle);
            reply.created(&attr_ttl(&opened.attr), &file_attr(&opened.attr), generation, handle, open_answer(flags));
        }
        Err(errno) => reply.error(code(errno)),
    }
}

pub(super) fn written(outcome: Outcome<u32>, reply: ReplyWrite) {
    match outcome {
        Ok(len) => reply.written(len),
        Err(errno) => reply.error(code(errno)),
    }
}

/// The page cache stays. A reader has no error to be told of when it closes; a writer may, so it is asked to flush.
fn open_answer(flags: i32) -> FopenFlags {
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
    } else {
        FopenFlags::FOPEN_KEEP_CACHE
    }
}

/// An attribute or list of attributes, or its size if the caller's buffer is of size 0.
pub(super) fn xattr(outcome: Outcome<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(code(Errno::TOO_SMALL)),
        Err(errno) => reply.error(code(errno)),
    }
}
