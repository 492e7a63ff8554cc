//! O_APPEND.

use std::os::fd::AsRawFd;

use super::Suite;
use super::common::file;
use super::sys;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"start");
    let one = sys::open(&path, libc::O_RDWR | libc::O_APPEND, 0).expect("open");
    let two = sys::open(&path, libc::O_WRONLY | libc::O_APPEND, 0).expect("open");
    s.is("append", sys::write(one.as_raw_fd(), b"-one", None), Ok(4));
    s.is("append elsewhere", sys::write(two.as_raw_fd(), b"-two", None), Ok(4));
    s.is("the position follows", sys::lseek(two.as_raw_fd(), 0, libc::SEEK_CUR), Ok(13));
    s.is("append after seeking", sys::lseek(one.as_raw_fd(), 0, libc::SEEK_SET), Ok(0));
    s.is("still at the end", sys::write(one.as_raw_fd(), b"!", None), Ok(1));
    // Linux appends in pwrite(2) too; see its BUGS.
    s.is("pwrite appends", sys::write(one.as_raw_fd(), b"?", Some(0)), Ok(1));
    s.is("the content", sys::read(one.as_raw_fd(), 100, Some(0)), Ok(b"start-one-two!?".to_vec()));
    sys::ftruncate(one.as_raw_fd(), 3).expect("truncate");
    s.is("append after truncating", sys::write(two.as_raw_fd(), b"X", None), Ok(1));
    s.is("the content", sys::read(one.as_raw_fd(), 100, Some(0)), Ok(b"staX".to_vec()));
    s.works("drop O_APPEND", sys::fcntl(one.as_raw_fd(), libc::F_SETFL, 0));
    s.is("write in place", sys::write(one.as_raw_fd(), b"S", Some(0)), Ok(1));
    s.is("the content", sys::read(one.as_raw_fd(), 100, Some(0)), Ok(b"StaX".to_vec()));
    // Many writers, no line torn or lost.
    let log = dir.join("log");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let log = &log;
            scope.spawn(move || {
                let out = sys::open(log, libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT, 0o644).expect("open");
                for line in 0..100 {
                    let text = vec![b'a' + writer; 10 + line];
                    sys::write(out.as_raw_fd(), &[&text[..], b"\n"].concat(), None).expect("append");
                }
            });
        }
    });
    let text = std::fs::read(&log).unwrap_or_default();
    for writer in 0..4u8 {
        let lens: Vec<usize> = text
            .split(|byte| *byte == b'\n')
            .filter(|line| line.first() == Some(&(b'a' + writer)))
            .filter(|line| line.iter().all(|byte| *byte == b'a' + writer))
            .map(<[u8]>::len)
            .collect();
        s.is(format!("lines of writer {writer}"), lens, (10..110).collect());
    }
}
