//! O_DIRECT, O_SYNC and O_DSYNC.

use std::os::fd::AsRawFd;

use super::Suite;
use super::common::file;
use super::sys;
use crate::content;
use crate::sys::Aligned;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    let mut want = content(1, 256 << 10);
    file(&path, &want);
    let direct = sys::open(&path, libc::O_RDWR | libc::O_DIRECT, 0).expect("open");
    let cached = sys::open(&path, libc::O_RDWR, 0).expect("open");
    for (offset, len) in [(0usize, 4096usize), (4096, 8192), (131_072, 131_072), (65_536, 4096), (126_976, 8192)] {
        let bytes = Aligned::from(&content(offset as u64 + 9, len));
        s.is(
            format!("write {offset}+{len}"),
            sys::write(direct.as_raw_fd(), bytes.bytes(), Some(offset as i64)),
            Ok(len),
        );
        want[offset..offset + len].copy_from_slice(bytes.bytes());
        let got = sys::read(cached.as_raw_fd(), len, Some(offset as i64));
        s.holds(format!("read {offset}+{len} through the cache"), got.as_deref() == Ok(&want[offset..offset + len]));
        let patch = content(offset as u64 + 50, 100);
        s.is(
            format!("write at {offset} through the cache"),
            sys::write(cached.as_raw_fd(), &patch, Some(offset as i64)),
            Ok(100),
        );
        want[offset..offset + 100].copy_from_slice(&patch);
        let mut file = std::fs::File::from(direct.try_clone().expect("dup"));
        let mut room = Aligned::new(len);
        let got = std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset as u64))
            .and_then(|_| std::io::Read::read_exact(&mut file, room.bytes_mut()));
        s.holds(
            format!("read {offset}+{len} past the cache"),
            got.is_ok() && room.bytes() == &want[offset..offset + len],
        );
    }
    for (name, flags) in [("O_SYNC", libc::O_SYNC), ("O_DSYNC", libc::O_DSYNC)] {
        let file = sys::open(&path, libc::O_WRONLY | flags, 0).expect("open");
        s.is(format!("write with {name}"), sys::write(file.as_raw_fd(), b"synced", Some(7)), Ok(6));
        s.is(format!("content with {name}"), sys::read(cached.as_raw_fd(), 6, Some(7)), Ok(b"synced".to_vec()));
        s.is(
            format!("{name} is told"),
            sys::fcntl(file.as_raw_fd(), libc::F_GETFL, 0).map(|got| got & flags),
            Ok(flags),
        );
    }
}
