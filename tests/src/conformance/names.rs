//! Names: every byte but two, every length up to 255.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::Suite;
use super::common::{file, name};
use super::sys;

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    // Sixteen at a time: each a check that all of them are made, found and listed.
    for group in bytes.chunks(16) {
        let sub = s.dir();
        let names: Vec<Vec<u8>> = group.iter().map(|byte| vec![b'_', *byte, b'_']).collect();
        let made = names.iter().all(|name| {
            let path = sub.join(OsStr::from_bytes(name));
            file(&path, name);
            std::fs::read(&path).ok().as_ref() == Some(name)
        });
        s.holds(format!("names with {group:?}"), made);
        let listed: BTreeSet<Vec<u8>> = std::fs::read_dir(&sub)
            .map(|list| list.flatten().map(|entry| entry.file_name().as_bytes().to_vec()).collect())
            .unwrap_or_default();
        s.is(format!("listing of {group:?}"), listed, names.into_iter().collect());
    }
    for len in [1, 2, 63, 64, 127, 128, 200, 254, 255] {
        file(&dir.join(name(len)), b"x");
        s.works(format!("{len} bytes"), sys::stat(&dir.join(name(len))));
    }
    s.fails("256 bytes", sys::stat(&dir.join(name(256))), Errno::ENAMETOOLONG);
    let upper = dir.join("Case");
    file(&upper, b"x");
    s.fails("case counts", sys::stat(&dir.join("case")), Errno::ENOENT);
    file(&dir.join("caf\u{e9}"), b"composed");
    s.fails("nothing is composed", sys::stat(&dir.join("cafe\u{301}")), Errno::ENOENT);
    for dots in ["...", "..x", ".x", " ", "-", "*", "\\", "\n"] {
        file(&dir.join(dots), dots.as_bytes());
        s.is(format!("{dots:?}"), std::fs::read(dir.join(dots)).ok(), Some(dots.as_bytes().to_vec()));
    }
}
