//! placeholder

pub mod control_dir; // names reserved in the root
pub mod errno; // the one table from errors to errno
pub mod readahead; // how far ahead of a reader to read
pub mod workers; // threads that wait so that the event thread need not
pub mod write_buffer; // writes accepted and not in the store yet
