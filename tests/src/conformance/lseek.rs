//! lseek(2), with SEEK_DATA and SEEK_HOLE.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::file;
use super::sys;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    file(&dir.join("file"), &[7; 1000]);
    let open = sys::open(&dir.join("file"), libc::O_RDWR, 0).expect("open");
    let f = open.as_raw_fd();
    for (offset, whence, want) in [
        (0, libc::SEEK_SET, Ok(0)),
        (500, libc::SEEK_SET, Ok(500)),
        (10, libc::SEEK_CUR, Ok(510)),
        (-510, libc::SEEK_CUR, Ok(0)),
        (-1, libc::SEEK_CUR, Err(Errno::EINVAL)),
        (0, libc::SEEK_END, Ok(1000)),
        (-1000, libc::SEEK_END, Ok(0)),
        (-1001, libc::SEEK_END, Err(Errno::EINVAL)),
        (5000, libc::SEEK_END, Ok(6000)),
        (1 << 43, libc::SEEK_SET, Ok(1 << 43)),
        (-1, libc::SEEK_SET, Err(Errno::EINVAL)),
        (0, 99, Err(Errno::EINVAL)),
        (0, libc::SEEK_DATA, Ok(0)),
        (999, libc::SEEK_DATA, Ok(999)),
        (1000, libc::SEEK_DATA, Err(Errno::ENXIO)),
        (5000, libc::SEEK_DATA, Err(Errno::ENXIO)),
        (-1, libc::SEEK_DATA, Err(Errno::ENXIO)),
        (0, libc::SEEK_HOLE, Ok(1000)),
        (999, libc::SEEK_HOLE, Ok(1000)),
        (1000, libc::SEEK_HOLE, Err(Errno::ENXIO)),
    ] {
        s.is(format!("{offset} from {whence}"), sys::lseek(f, offset, whence), want);
    }
    sys::lseek(f, 1 << 20, libc::SEEK_SET).expect("seek");
    s.is("seeking does not grow", sys::fstat(f).map(|stat| stat.st_size), Ok(1000));
    s.is("nothing to read there", sys::read(f, 10, None), Ok(vec![]));
    s.is("writing there", sys::write(f, b"x", None), Ok(1));
    s.is("grows", sys::fstat(f).map(|stat| stat.st_size), Ok((1 << 20) + 1));
    s.is("with zeros", sys::read(f, 4, Some((1 << 20) - 3)), Ok(b"\0\0\0x".to_vec()));
    s.fails("of nothing", sys::lseek(-1, 0, libc::SEEK_SET), Errno::EBADF);
    sys::mknod(&dir.join("pipe"), libc::S_IFIFO | 0o600, 0).expect("fifo");
    let pipe = sys::open(&dir.join("pipe"), libc::O_RDWR, 0).expect("open");
    s.fails("of a fifo", sys::lseek(pipe.as_raw_fd(), 0, libc::SEEK_SET), Errno::ESPIPE);
    sparse(s);
}

/// Data in 1 MiB steps, each 128 KiB long and so aligned: what is found must be the same before and after a sync.
fn sparse(s: &mut Suite) {
    let dir = s.dir();
    let open = sys::open(&dir.join("sparse"), libc::O_RDWR | libc::O_CREAT, 0o644).expect("open");
    let (f, step, len) = (open.as_raw_fd(), 1i64 << 20, 128i64 << 10);
    for at in [1, 3, 5] {
        sys::write(f, &vec![at as u8; len as usize], Some(at * step)).expect("write");
    }
    sys::ftruncate(f, 8 * step).expect("truncate");
    for synced in [false, true] {
        if synced {
            sys::fsync(f).expect("fsync");
        }
        let when = if synced { "synced" } else { "dirty" };
        for (from, whence, want) in [
            (0, libc::SEEK_DATA, Ok(step)),
            (0, libc::SEEK_HOLE, Ok(0)),
            (step, libc::SEEK_HOLE, Ok(step + len)),
            (step + 5, libc::SEEK_DATA, Ok(step + 5)),
            (step + len, libc::SEEK_DATA, Ok(3 * step)),
            (3 * step, libc::SEEK_HOLE, Ok(3 * step + len)),
            (3 * step + len + 7, libc::SEEK_HOLE, Ok(3 * step + len + 7)),
            (4 * step, libc::SEEK_DATA, Ok(5 * step)),
            (6 * step, libc::SEEK_DATA, Err(Errno::ENXIO)),
            (6 * step, libc::SEEK_HOLE, Ok(6 * step)),
            (8 * step, libc::SEEK_HOLE, Err(Errno::ENXIO)),
        ] {
            s.is(format!("{when}: {from} by {whence}"), sys::lseek(f, from, whence), want);
        }
    }
    sys::fallocate(f, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 3 * step, step).expect("punch");
    s.is("what was punched is a hole", sys::lseek(f, step + len, libc::SEEK_DATA), Ok(5 * step));
    sys::ftruncate(f, 5 * step).expect("truncate");
    s.fails("what was cut off is no data", sys::lseek(f, 2 * step, libc::SEEK_DATA), Errno::ENXIO);
}
