//! mmap(2): shared mappings agree with read and write.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Suite;
use super::common::file;
use super::sys;
use crate::content;
use crate::sys::Mapping;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    let mut want = content(6, 300_000);
    file(&path, &want);
    let open = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let f = open.as_raw_fd();
    let Some(mut map) = s.works(
        "map",
        Mapping::new(&open, want.len()).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    ) else {
        return;
    };
    s.holds("the mapping has the content", map.read(0, want.len()) == want);
    for (at, len) in [(0usize, 1usize), (4095, 2), (131_071, 4097), (299_990, 10)] {
        let bytes = content(at as u64, len);
        map.write(at, &bytes);
        want[at..at + len].copy_from_slice(&bytes);
        s.holds(format!("read what was stored at {at}"), sys::read(f, len, Some(at as i64)) == Ok(bytes));
        let bytes = content(at as u64 + 1, len);
        sys::write(f, &bytes, Some(at as i64)).expect("write");
        want[at..at + len].copy_from_slice(&bytes);
        s.holds(format!("the mapping has what was written at {at}"), map.read(at, len) == bytes);
    }
    s.holds("msync", map.sync().is_ok());
    s.holds("all of it", std::fs::read(&path).ok() == Some(want.clone()));
    sys::fallocate(f, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 8192, 131_072).expect("punch");
    want[8192..8192 + 131_072].fill(0);
    s.holds("the mapping has the hole", map.read(0, want.len()) == want);
    drop(map);
    let read = sys::open(&path, libc::O_RDONLY, 0).expect("open");
    let write = sys::open(&path, libc::O_WRONLY, 0).expect("open");
    s.works("map for reading", sys::can_map(&read, 4096, false));
    s.fails("map for writing what is read", sys::can_map(&read, 4096, true), Errno::EACCES);
    s.fails("map what cannot be read", sys::can_map(&write, 4096, true), Errno::EACCES);
    s.fails("map nothing", sys::can_map(&read, 0, false), Errno::EINVAL);
    let directory = sys::open(&dir, libc::O_RDONLY, 0).expect("open");
    s.fails("map a directory", sys::can_map(&directory, 4096, false), Errno::ENODEV);
    // A mapping outlives descriptor and name.
    let gone = dir.join("gone");
    file(&gone, b"mapped content");
    let open = std::fs::OpenOptions::new().read(true).write(true).open(&gone).expect("open");
    let mut map = Mapping::new(&open, 14).expect("map");
    drop(open);
    sys::unlink(&gone).expect("unlink");
    map.write(0, b"MAPPED");
    s.is("after unlinking", map.read(0, 14), b"MAPPED content".to_vec());
}
