//! The system calls of this crate that need `unsafe`.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor of the process `pid`; it becomes readable when that process ends.
///
/// # Errors
/// ESRCH if there is no such process, ENOSYS before Linux 5.3.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open(2) takes two integers by value and touches no memory of this process.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(answer).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new open descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Have the C library keep freed memory in at most `pools` pools, which all threads share. Its default, eight for each
/// processor, lets buffers that were used once by each thread stay resident. Call before threads start.
#[cfg(target_env = "gnu")]
pub fn limit_memory_pools(pools: i32) {
    // SAFETY: mallopt(3) takes two integers by value; it is safe to call at any time, and an unknown value is ignored.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, pools) };
}

/// Have the C library keep up to `bytes` at the end of each pool that were freed, and take buffers up to that from there. Its
/// default, 128 KiB, is less than a commit of several writers needs, and what is given back to the kernel is cleared page by
/// page when it is wanted again. Call before threads start.
#[cfg(target_env = "gnu")]
pub fn keep_freed_memory(bytes: i32) {
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
        libc::mallopt(libc::M_TRIM_THRESHOLD, bytes);
    }
}

/// Only the GNU C library has such pools.
#[cfg(not(target_env = "gnu"))]
pub fn limit_memory_pools(_pools: i32) {}

/// Only the GNU C library is asked.
#[cfg(not(target_env = "gnu"))]
pub fn keep_freed_memory(_bytes: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_processes_have_descriptors_and_impossible_ones_do_not() {
        assert!(pidfd_open(std::process::id()).is_ok());
        assert_eq!(pidfd_open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
