//! placeholder

pub mod control_dir; // names reserved in the root
pub mod errno; // the one table from errors to errno
pub mod readahead; // how far ahead of a reader to read
pub mod workers; // threads that wait so that the event thread need not
pub mod write_buffer; // writes accepted and not in the store yet
pub mod handle; // open files and directories
pub mod inode_table; // what the kernel knows, and what has lost its last name
pub mod vfs; // what the kernel asks of a filesystem, without the kernel
pub mod fuse; // the adapter: unpack, call one Vfs method, reply
