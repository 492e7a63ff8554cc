//! readdir(3), telldir(3), seekdir(3).

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, USER, file};
use super::sys;
use crate::sys::Directory;

fn list(path: &std::path::Path) -> Vec<Vec<u8>> {
    let Ok(mut dir) = Directory::open(path) else { return Vec::new() };
    std::iter::from_fn(|| dir.next_name().ok().flatten()).collect()
}

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let sorted = |path| list(path).into_iter().collect::<BTreeSet<_>>();
    s.is("an empty directory", sorted(&dir), [b".".to_vec(), b"..".to_vec()].into());
    for kind in KINDS {
        kind.make(&dir.join(format!("{kind:?}")), 0o644).expect("make");
    }
    let entries: BTreeMap<_, _> = std::fs::read_dir(&dir)
        .map(|list| list.flatten().map(|entry| (entry.file_name(), entry)).collect())
        .unwrap_or_default();
    for kind in KINDS {
        let name = format!("{kind:?}");
        let entry = entries.get(std::ffi::OsStr::new(&name));
        let inode = entry.map(std::os::unix::fs::DirEntryExt::ino);
        s.is(format!("inode of {name}"), inode, sys::lstat(&dir.join(&name)).ok().map(|stat| stat.st_ino));
        let is = entry
            .and_then(|entry| entry.file_type().ok())
            .map(|found| (found.is_file(), found.is_dir(), found.is_symlink()));
        let want = (name == "File", name == "Dir", name == "Symlink");
        s.is(format!("kind of {name}"), is, Some(want));
    }
    large(s);
    while_it_changes(s);
    let closed = s.dir();
    sys::chmod(&closed, 0o711).expect("chmod");
    let got = sys::as_user(USER, USER, &[], || Directory::open(&closed).err().and_then(|error| error.raw_os_error()));
    s.is("where the user may not read", got, Some(libc::EACCES));
    file(&dir.join("f"), b"");
    s.is("a file", Directory::open(&dir.join("f")).err().and_then(|error| error.raw_os_error()), Some(libc::ENOTDIR));
    s.is("nothing", Directory::open(&dir.join("no")).err().and_then(|error| error.raw_os_error()), Some(libc::ENOENT));
}

fn large(s: &mut Suite) {
    let dir = s.dir();
    let names: BTreeSet<Vec<u8>> = (0..1500).map(|n| format!("entry-{n:05}").into_bytes()).collect();
    for name in &names {
        file(&dir.join(String::from_utf8_lossy(name).as_ref()), b"");
    }
    let listed = list(&dir);
    s.is("no name twice", listed.len(), names.len() + 2);
    s.is("every name", listed.iter().filter(|name| names.contains(*name)).count(), names.len());
    // Positions lead back to where they were taken.
    let mut stream = Directory::open(&dir).expect("opendir");
    let mut seen = Vec::new();
    loop {
        let position = stream.tell();
        match stream.next_name() {
            Ok(Some(name)) => seen.push((position, name)),
            _ => break,
        }
    }
    for (position, name) in seen.iter().step_by(50).rev() {
        stream.seek(*position);
        let got = stream.next_name().ok().flatten();
        s.is(format!("the name at {position}"), got.as_ref(), Some(name));
    }
    for start in [0, 1, 2, 700, 1400] {
        stream.seek(seen[start].0);
        let rest: Vec<Vec<u8>> = std::iter::from_fn(|| stream.next_name().ok().flatten()).collect();
        s.holds(format!("all from entry {start}"), rest.iter().eq(seen[start..].iter().map(|(_, name)| name)));
    }
    let mut left = names.len();
    while left > 0 {
        // What rm -r does: list, remove what was listed, list again.
        let batch: Vec<Vec<u8>> = list(&dir).into_iter().filter(|name| names.contains(name)).take(400).collect();
        s.holds(format!("something of {left} is listed"), !batch.is_empty());
        if batch.is_empty() {
            break;
        }
        for name in &batch {
            sys::unlink(&dir.join(String::from_utf8_lossy(name).as_ref())).expect("unlink");
        }
        left -= batch.len();
    }
    s.is("empty again", list(&dir).len(), 2);
    s.works("and removable", sys::rmdir(&dir));
}

/// Entries that are there all the time are listed once, whatever comes and goes meanwhile.
fn while_it_changes(s: &mut Suite) {
    let dir = s.dir();
    for n in 0..600 {
        file(&dir.join(format!("stays-{n}")), b"");
        file(&dir.join(format!("goes-{n}")), b"");
    }
    let mut stream = Directory::open(&dir).expect("opendir");
    let mut listed: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let mut step = 0;
    while let Ok(Some(name)) = stream.next_name() {
        *listed.entry(name).or_default() += 1;
        if step < 600 {
            sys::unlink(&dir.join(format!("goes-{step}"))).expect("unlink");
            file(&dir.join(format!("comes-{step}")), b"");
        }
        step += 1;
        if step > 10_000 {
            break;
        }
    }
    s.holds("the listing ends", step <= 10_000);
    let stays = (0..600).filter(|n| listed.get(format!("stays-{n}").as_bytes()) == Some(&1)).count();
    s.is("what stays is listed once", stays, 600);
    s.is("nothing is listed twice", listed.values().filter(|count| **count > 1).count(), 0);
    s.fails("what went is gone", sys::stat(&dir.join("goes-0")), Errno::ENOENT);
}
