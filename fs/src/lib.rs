//! brine's filesystem over FUSE, and the `brine` program.

pub mod control_dir; // names reserved in the root
pub mod errno; // the one table from errors to errno
pub mod exec_dir; // functions: what their opens are answered, what they may do, what is kept of runs
pub mod fuse;
pub mod handle; // open files and directories
pub mod image; // container images as directories
pub mod inode_table; // what the kernel knows, and what has lost its last name
pub mod readahead; // how far ahead of a reader to read
pub mod vfs; // what the kernel asks of a filesystem, without the kernel
pub mod workers; // threads that wait so that the event thread need not
pub mod write_buffer; // writes accepted and not in the store yet // the adapter: unpack, call one Vfs method, reply

pub mod cli;
pub mod config; // mount options
pub mod control; // talking to a running daemon
pub mod exit_code; // how commands end
pub mod moment; // how people name a past state
pub mod mount; // from a source and options to a daemon that serves
pub mod mount_table; // what is mounted where
pub mod sys; // system calls that need unsafe
pub mod telemetry; // where messages go // the commands
