//! System calls without a safe wrapper; the only unsafe code of this crate.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Take ownership of a descriptor that was just received.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the descriptor came out of a control message of this process's own recvmsg call a moment ago; nothing
    // else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
