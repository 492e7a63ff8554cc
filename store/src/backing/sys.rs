//! System calls that nix does not wrap. The only unsafe code of this module.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Read at `offset` what is in the page cache, without waiting for a device. Fewer bytes than asked mean the end of
/// the file or of what is cached; `WouldBlock` that nothing is cached.
pub(super) fn pread_nowait(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `fd` is open for the whole call (borrowed), `iov` is one iovec on this stack frame, and it describes
    // exactly the bytes of `buf`, which is exclusively borrowed, so the kernel writes only memory we own.
    let got = unsafe { libc::preadv2(fd.as_raw_fd(), &iov, 1, offset, libc::RWF_NOWAIT) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
}

/// Start write-back of a range without waiting for it.
pub(super) fn start_writeback(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (libc::off64_t::try_from(offset), libc::off64_t::try_from(len)) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: takes no pointers; `fd` is open for the whole call (borrowed).
    let code = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if code != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether direct writes of this file go past the page cache, as far as the system tells (statx(2), STATX_DIOALIGN since
/// Linux 6.1): of a file whose filesystem encrypts it, or keeps its data in a journal, they only seem to.
pub(super) fn is_direct(fd: BorrowedFd<'_>) -> bool {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `fd` is open for the whole call (borrowed), the path is an empty C string, and `stat` is one statx, which
    // the kernel writes at most.
    let code = unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, stat.as_mut_ptr())
    };
    // SAFETY: of zeros, or of what the kernel wrote, every field is a number.
    let stat = unsafe { stat.assume_init() };
    code == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0
}
