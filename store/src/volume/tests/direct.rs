//! Commit records that are written past the page cache: what they promise, and what becomes of them when that fails.

use super::behind::Faulty;
use super::*;
use crate::backing::{Call, Fault, Rule};

/// Every directory of a volume of six, in turn to fail.
fn opened(scratch: &Scratch) -> (Faulty, Arc<Volume>) {
    scratch.format(6, 1);
    let directories = Faulty::new((0..6).map(|n| scratch.0.join(format!("d{n}"))));
    let volume = Volume::open_in(scratch.options(), &directories).unwrap();
    (directories, volume)
}

/// A small file, all of it in the metadata: no stripe waits to be synced with its record.
fn write(volume: &Volume, name: &str, content: &[u8]) {
    let attr = volume.create(ROOT_INO, name.as_bytes(), &new_file()).unwrap();
    let inline = Some(content.to_vec());
    let now = volume.clock().now_ns();
    let change = FileChange { size: content.len() as u64, mtime_ns: now, ctime_ns: now, inline, clear_suid: false };
    volume.set_file(attr.ino, &change).unwrap();
}

fn read(volume: &Volume, name: &str) -> Vec<u8> {
    let attr = volume.lookup(ROOT_INO, name.as_bytes()).unwrap();
    volume.inline_data(attr.ino).unwrap().unwrap().to_vec()
}

fn direct_writes(volume: &Volume) -> u64 {
    volume.set.members().iter().map(|member| member.stats().direct_writes).sum()
}

/// Commit small files until three directories take the record directly.
fn commit_until_direct(volume: &Volume) -> Vec<String> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut names = Vec::new();
    loop {
        let before = direct_writes(volume);
        names.push(format!("first-{}", names.len()));
        write(volume, names.last().unwrap(), b"small");
        volume.commit(&NothingDirty).unwrap();
        if direct_writes(volume) == before + 3 {
            return names;
        }
        assert!(std::time::Instant::now() < deadline, "is {:?} on ext4 or xfs?", volume.set.members()[0].path());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The directories that took the last record.
fn used(volume: &Volume) -> Vec<crate::ids::MemberId> {
    let before: Vec<u64> = volume.set.members().iter().map(|member| member.stats().direct_writes).collect();
    write(volume, "probe", b"probe");
    volume.commit(&NothingDirty).unwrap();
    let members = volume.set.members().iter().zip(before);
    members.filter(|(member, before)| member.stats().direct_writes > *before).map(|(member, _)| member.id).collect()
}

fn fail(directories: &Faulty, volume: &Volume, members: &[crate::ids::MemberId], fault: &Fault) {
    for member in members {
        let path = volume.set.get(member).unwrap().path();
        directories.0[&*path].add(Rule::new(Call::DirectWrite, fault.clone()).times(1));
    }
}

#[test]
fn small_commits_are_written_directly_and_survive_a_kill_without_two_directories() {
    let scratch = Scratch::new("direct");
    let (directories, volume) = opened(&scratch);
    let mut names = commit_until_direct(&volume);
    // Past all zeros that were made ready at once, with stripes and records of another kind in between.
    for n in 0..300 {
        names.push(format!("file-{n}"));
        write(&volume, names.last().unwrap(), &noise(n, 1500));
        if n % 40 == 7 {
            super::write(&volume, &format!("large-{n}"), &noise(n, 300_000));
        }
        volume.commit(&NothingDirty).unwrap();
    }
    assert!(direct_writes(&volume) > 450, "{} records were written directly", direct_writes(&volume) / 3);
    scratch.kill(volume);
    drop(directories);
    for name in ["state", "d1", "d4"] {
        std::fs::remove_dir_all(scratch.0.join(name)).unwrap();
    }
    let volume = scratch.open();
    for name in names {
        let content = name.strip_prefix("file-").map_or(b"small".to_vec(), |n| noise(n.parse().unwrap(), 1500));
        assert!(read(&volume, &name) == content, "{name}");
    }
    for n in (7..300).step_by(40) {
        assert!(super::read(&volume, &format!("large-{n}")).unwrap() == noise(n, 300_000), "large-{n}");
    }
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn directories_whose_direct_writes_fail_are_done_without_and_nothing_is_lost() {
    for (errno, failing) in [(libc::EIO, 1), (libc::EIO, 2), (libc::ENOSPC, 1), (libc::EINVAL, 3), (libc::EAGAIN, 3)] {
        let scratch = Scratch::new(&format!("direct-fails-{errno}-{failing}"));
        let (directories, volume) = opened(&scratch);
        commit_until_direct(&volume);
        let used = used(&volume);
        fail(&directories, &volume, &used[..failing], &Fault::Errno(errno));
        write(&volume, "file", b"content");
        volume.commit(&NothingDirty).unwrap();
        // Of one that cannot, the record is written and synced by other calls.
        let healthy = volume.set.get(&used[0]).unwrap().is_healthy();
        assert_eq!(healthy, errno != libc::EIO, "errno {errno}");
        write(&volume, "next", b"more");
        volume.commit(&NothingDirty).unwrap();
        scratch.kill(volume);
        drop(directories);
        std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
        let volume = scratch.open();
        assert_eq!(read(&volume, "file"), b"content");
        assert_eq!(read(&volume, "next"), b"more");
        volume.close(&NothingDirty).unwrap();
    }
}

#[test]
fn a_record_that_too_few_directories_have_is_not_answered_and_nothing_follows_it() {
    let scratch = Scratch::new("direct-short");
    let (directories, volume) = opened(&scratch);
    commit_until_direct(&volume);
    let used = used(&volume);
    fail(&directories, &volume, &used, &Fault::Errno(libc::EIO));
    write(&volume, "file", b"content");
    assert!(volume.commit(&NothingDirty).is_err());
    // No later sync makes it durable.
    assert!(volume.blocks().segments().sync().is_err());
    assert!(volume.commit(&NothingDirty).is_err());
    scratch.kill(volume);
    drop(directories);
    let volume = scratch.open();
    assert_eq!(read(&volume, "probe"), b"probe");
    write(&volume, "after", b"after");
    volume.commit(&NothingDirty).unwrap();
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_fence_that_another_writer_left_stops_commits_that_are_written_directly() {
    let scratch = Scratch::new("direct-fenced");
    let (directories, volume) = opened(&scratch);
    commit_until_direct(&volume);
    assert_eq!(used(&volume).len(), 3);
    // Directories of another mind make names come and go: it is looked again, and found as before.
    for path in directories.0.keys() {
        std::fs::write(path.join("foreign"), b"").unwrap();
    }
    write(&volume, "file", b"content");
    volume.commit(&NothingDirty).unwrap();
    let term = volume.term.0 + 1;
    for path in directories.0.keys().take(4) {
        std::fs::write(path.join(crate::fence::fence_file(crate::ids::Term(term))), b"").unwrap();
    }
    write(&volume, "late", b"too late");
    let error = volume.commit(&NothingDirty).unwrap_err();
    assert!(error.to_string().contains(&format!("term {term}")), "{error}");
    scratch.kill(volume);
}
