//! How a sandbox is made and what runs in it: everything here happens in the spawner's children.
//!
//! [`root`] builds the root directory, [`beneath`] what is mounted onto there, [`init`] is process 1, [`launch`] shows the
//! program what it may see, [`start`] is the process that becomes the program; [`seccomp`] and [`landlock`] are the filters.
//! All unsafe code is in [`crate::sys`].

pub(crate) mod message;
pub(crate) mod seccomp;
pub(crate) mod landlock;
pub(crate) mod beneath;
pub(crate) mod root;
pub(crate) mod launch;
mod start;
mod terminal;
pub(crate) mod init;
