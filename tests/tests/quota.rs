//! Quotas of directories, on real mounts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Barrier;

use brine_tests::command::shell;
use brine_tests::sys::copy_file_range;
use brine_tests::{Random, TestVolume, content, seed};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn small(name: &str) -> TestVolume {
    TestVolume::new(name, 3, (2, 1))
}

fn set(volume: &TestVolume, dir: &Path, limits: &[&str]) -> Value {
    let dir = dir.display().to_string();
    let mut args = vec!["quota", "set", &dir, "--json"];
    args.extend(limits);
    serde_json::from_str(&volume.brine(&args).expect_success().stdout).expect("JSON")
}

/// Bytes and inodes that the innermost quota of a directory says.
fn used(volume: &TestVolume, dir: &Path) -> (u64, u64) {
    volume.sync();
    let shown = volume.brine(&["quota", "show", &dir.display().to_string(), "--json"]).expect_success();
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let number = |name: &str| shown["quotas"][0][name].as_u64().expect("a number");
    (number("bytes"), number("inodes"))
}

/// The same as du(1) has it.
fn recount(dir: &Path) -> (u64, u64) {
    fn walk(path: &Path, seen: &mut BTreeMap<u64, u64>) {
        let meta = path.symlink_metadata().expect("stat");
        seen.insert(meta.ino(), meta.blocks() * 512);
        if meta.is_dir() {
            fs::read_dir(path).expect("list").for_each(|entry| walk(&entry.expect("entry").path(), seen));
        }
    }
    let mut seen = BTreeMap::new();
    walk(dir, &mut seen);
    (seen.values().sum(), seen.len() as u64)
}

#[track_caller]
fn expect_dquot<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("it is over its quota").raw_os_error(), Some(libc::EDQUOT));
}

#[test]
fn a_writer_over_quota_is_told_when_it_writes() {
    let volume = small("quota-write");
    let dir = volume.path("dir");
    fs::create_dir_all(dir.join("below")).expect("mkdir");
    set(&volume, &dir, &["--bytes", &(2 * MIB + 2 * 4096).to_string()]);
    let path = dir.join("below/file");
    let file = File::create(&path).expect("create");
    file.write_all_at(&content(1, MIB as usize), 0).expect("within");
    file.write_all_at(&content(2, MIB as usize), MIB).expect("up to the limit");
    expect_dquot(file.write_at(b"x", 2 * MIB));
    expect_dquot(fs::write(dir.join("other"), b"x"));
    // What was accepted is stored, what is there can be overwritten, and neither close nor fsync has anything to tell.
    file.write_all_at(&content(3, MIB as usize), MIB / 2).expect("overwrite");
    file.sync_all().expect("fsync");
    file.write_all_at(&content(4, 300_000), 100).expect("overwrite what is stored");
    expect_dquot(file.write_at(b"x", 2 * MIB));
    // A hole takes nothing, data in it does.
    file.set_len(100 * MIB).expect("a hole");
    expect_dquot(file.write_at(b"x", 50 * MIB));
    file.set_len(2 * MIB).expect("cut");
    expect_dquot(fallocate(&file, FallocateFlags::empty(), 0, 3 * MIB as i64).map_err(Into::into));
    fallocate(&file, FallocateFlags::empty(), 0, 2 * MIB as i64).expect("what it has anyway");
    // Outside nothing is refused; a copy into the directory is.
    let outside = volume.path("outside");
    fs::write(&outside, content(5, MIB as usize)).expect("outside");
    volume.sync();
    let (from, to) = (File::open(&outside).expect("open"), File::create(dir.join("copy")).expect("create"));
    expect_dquot(copy_file_range(&from, &mut 0, &to, &mut 0, MIB as usize));
    // Removing makes room at once.
    file.set_len(MIB).expect("cut");
    volume.sync();
    assert_eq!(copy_file_range(&from, &mut 0, &to, &mut 0, MIB as usize).expect("now it fits"), MIB as usize);
    expect_dquot(file.write_at(b"x", MIB));
    drop((file, from, to));
    assert_eq!(fs::read(dir.join("copy")).expect("read"), content(5, MIB as usize));
    assert_eq!(used(&volume, &dir), recount(&dir));
    volume.expect_clean();
}

/// What a stream has stored within the file's size counts once, not as stored and, until the next flush, as promised.
#[test]
fn what_another_writer_has_stored_counts_once() {
    let volume = small("quota-once");
    let dir = volume.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    let stream = File::create(dir.join("stream")).expect("create");
    stream.set_len(16 * MIB).expect("a hole");
    let other = File::create(dir.join("other")).expect("create");
    volume.sync();
    set(&volume, &dir, &["--bytes", &(14 * MIB + 4096).to_string()]);
    let seed = seed("quota-once");
    for round in 0..10 {
        for mib in 0..8 {
            stream.write_all_at(&content(seed + round * 100 + mib, MIB as usize), mib * MIB).expect("within");
        }
        for mib in 0..6 {
            let data = content(seed + round * 100 + 50 + mib, MIB as usize);
            other.write_all_at(&data, mib * MIB).unwrap_or_else(|error| panic!("round {round}, {mib} MiB: {error}"));
        }
        expect_dquot(other.write_at(&[1; 4096], 6 * MIB));
        // Room at once, for either.
        for file in [&stream, &other] {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, flags, 0, 8 * MIB as i64).expect("punch");
        }
        other.set_len(0).expect("cut");
    }
    assert_eq!(used(&volume, &dir), recount(&dir));
    volume.expect_clean();
}

/// Where a file is sparse, what a write will add to it is not known without looking: nobody is refused for that.
#[test]
fn what_another_writer_overwrites_takes_nothing_more() {
    let volume = small("quota-over");
    let dir = volume.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    let sparse = File::create(dir.join("sparse")).expect("create");
    sparse.set_len(64 * MIB).expect("a hole");
    let other = File::create(dir.join("other")).expect("create");
    let seed = seed("quota-over");
    let overwrite = |round: u64| {
        for mib in 0..8 {
            sparse.write_all_at(&content(seed + round * 100 + mib, MIB as usize), mib * MIB).expect("overwrite");
        }
    };
    overwrite(0);
    volume.sync();
    set(&volume, &dir, &["--bytes", &(20 * MIB + 4096).to_string()]);
    for round in 1..8 {
        overwrite(round);
        for mib in 0..12 {
            let data = content(seed + round * 100 + 50 + mib, MIB as usize);
            other.write_all_at(&data, mib * MIB).unwrap_or_else(|error| panic!("round {round}, {mib} MiB: {error}"));
        }
        expect_dquot(other.write_at(&[1; 4096], 12 * MIB));
        other.set_len(0).expect("cut");
    }
    assert_eq!(used(&volume, &dir), recount(&dir));
    volume.expect_clean();
}

/// The kernel tells that a file is forgotten behind its removal, and what is being sealed goes later still.
#[test]
fn what_was_removed_just_before_is_in_nobodys_way() {
    let volume = small("quota-leaving");
    let dir = volume.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    set(&volume, &dir, &["--bytes", &(4 * MIB + 2 * 4096).to_string(), "--inodes", "2"]);
    let (path, flags) = (dir.join("new"), FallocateFlags::empty());
    let fill = |i: u64| {
        let path = dir.join("full");
        fs::write(&path, content(i, 4 * MIB as usize)).expect("all there is");
        fs::remove_file(&path).expect("remove");
    };
    for i in 0..12 {
        fill(6 * i);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("mkdir {i}: {error}"));
        fs::remove_dir(&path).expect("rmdir");
        fill(6 * i + 1);
        std::os::unix::fs::symlink("x", &path).unwrap_or_else(|error| panic!("symlink {i}: {error}"));
        fs::remove_file(&path).expect("remove");
        fill(6 * i + 2);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::empty()).unwrap_or_else(|error| panic!("mknod {i}: {error}"));
        fs::remove_file(&path).expect("remove");
        fill(6 * i + 3);
        let file = File::create(&path).unwrap_or_else(|error| panic!("create {i}: {error}"));
        fallocate(&file, flags, 0, 3 * MIB as i64).unwrap_or_else(|error| panic!("fallocate {i}: {error}"));
        drop(file);
        fs::remove_file(&path).expect("remove");
    }
    volume.expect_clean();
}

#[test]
fn inodes_are_limited_whatever_their_kind() {
    let volume = small("quota-inodes");
    let dir = volume.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    set(&volume, &dir, &["--inodes", "4"]);
    let file = File::create(dir.join("file")).expect("create");
    std::os::unix::fs::symlink("x", dir.join("link")).expect("symlink");
    fs::create_dir(dir.join("sub")).expect("mkdir");
    fs::hard_link(dir.join("file"), dir.join("sub/same")).expect("another name is no inode");
    expect_dquot(File::create(dir.join("sub/more")));
    expect_dquot(fs::create_dir(dir.join("more")));
    expect_dquot(std::os::unix::fs::symlink("x", dir.join("more")));
    expect_dquot(nix::unistd::mkfifo(&dir.join("more"), nix::sys::stat::Mode::empty()).map_err(Into::into));
    assert_eq!(File::create_new(dir.join("file")).expect_err("it exists").raw_os_error(), Some(libc::EEXIST));
    // A file that is open without a name still counts.
    fs::remove_file(dir.join("file")).expect("unlink");
    fs::remove_file(dir.join("sub/same")).expect("unlink");
    expect_dquot(File::create(dir.join("more")));
    drop(file);
    let made =
        brine_tests::volume::wait_until(std::time::Duration::from_secs(20), || File::create(dir.join("more")).is_ok());
    assert!(made, "the inode of a file that is gone was not given back");
    set(&volume, &dir, &["--inodes", "none"]);
    fs::create_dir(dir.join("as many as one likes")).expect("mkdir");
    volume.expect_clean();
}

#[test]
fn df_of_a_directory_shows_its_quota() {
    let volume = small("quota-df");
    let (outer, inner) = (volume.path("outer"), volume.path("outer/inner"));
    fs::create_dir_all(&inner).expect("mkdir");
    fs::write(inner.join("file"), content(1, MIB as usize)).expect("write");
    let whole = statvfs(volume.mnt()).expect("statvfs");
    set(&volume, &outer, &["--bytes", "8M", "--inodes", "100"]);
    set(&volume, &inner, &["--bytes", "20M"]);
    let stat = statvfs(&inner).expect("statvfs");
    // The inner one allows more than the outer leaves.
    assert_eq!(stat.blocks() * stat.fragment_size(), 8 * MIB);
    assert_eq!((stat.blocks() - stat.blocks_available()) * stat.fragment_size(), used(&volume, &outer).0);
    assert_eq!((stat.files(), stat.files_available()), (100, 97));
    set(&volume, &inner, &["--bytes", "2M"]);
    assert_eq!(statvfs(&inner).expect("statvfs").blocks() * stat.fragment_size(), 2 * MIB);
    assert_eq!(statvfs(volume.mnt()).expect("statvfs").blocks(), whole.blocks());
    let df = shell(volume.root(), &format!("df -B1 --output=size {}", inner.display())).expect_success();
    assert!(df.stdout.contains(&(2 * MIB).to_string()), "{}", df.stdout);
    // What is buffered is used, too.
    fs::write(inner.join("more"), content(2, 500_000)).expect("write");
    let stat = statvfs(&inner).expect("statvfs");
    assert!((stat.blocks() - stat.blocks_available()) * stat.fragment_size() > MIB + 500_000);
}

#[test]
fn files_are_copied_across_the_border_of_a_quota() {
    let volume = small("quota-border");
    let (dir, other) = (volume.path("dir"), volume.path("other"));
    fs::create_dir(&dir).expect("mkdir");
    fs::create_dir(&other).expect("mkdir");
    fs::write(dir.join("file"), content(1, 300_000)).expect("write");
    set(&volume, &dir, &["--bytes", "1M"]);
    let across = |result: io::Result<()>| assert_eq!(result.expect_err("across").raw_os_error(), Some(libc::EXDEV));
    across(fs::rename(dir.join("file"), other.join("file")));
    across(fs::hard_link(dir.join("file"), other.join("file")));
    across(fs::rename(&other, dir.join("other")));
    fs::rename(&dir, volume.path("moved")).expect("the directory itself moves");
    fs::rename(volume.path("moved"), &dir).expect("and back");
    shell(volume.mnt(), "mv dir/file other/file && mv other dir/").expect_success();
    assert_eq!(fs::read(dir.join("other/file")).expect("read"), content(1, 300_000));
    fs::write(volume.path("large"), content(2, MIB as usize)).expect("write");
    let refused = shell(volume.mnt(), "mv large dir/").expect_refusal();
    assert!(refused.text().contains("quota exceeded"), "{}", refused.text());
    assert!(volume.path("large").exists());
    volume.brine(&["quota", "remove", &dir.display().to_string()]).expect_success();
    fs::rename(volume.path("large"), dir.join("large")).expect("no border any more");
    volume.brine(&["quota", "remove", &dir.display().to_string()]).with_code(5).says(&["brine quota list"]);
    volume.brine(&["quota", "set", &dir.join("large").display().to_string(), "--bytes", "1"]).expect_refusal();
    volume.expect_clean();
}

#[test]
fn usage_survives_whatever_befalls_the_volume() {
    let mut volume = small("quota-survives");
    let dir = volume.path("dir");
    fs::create_dir_all(dir.join("a/b")).expect("mkdir");
    for i in 0..50 {
        fs::write(dir.join(format!("a/b/{i}")), content(i, 1000 * i as usize)).expect("write");
    }
    let quota = set(&volume, &dir, &["--bytes", "4M", "--inodes", "80"]);
    assert_eq!((quota["bytes"].as_u64().expect("bytes"), quota["inodes"].as_u64().expect("inodes")), recount(&dir));
    volume.brine(&["snapshot", "create", "then", &volume.mnt().display().to_string()]).expect_success();
    let limits = |volume: &TestVolume| {
        let before = used(volume, &dir);
        assert_eq!(before, recount(&dir));
        let room = 4 * MIB - before.0;
        expect_dquot(fs::write(dir.join("large"), content(99, room as usize + 4096)));
        fs::remove_file(dir.join("large")).expect("remove");
        for i in before.1..80 {
            fs::write(dir.join(format!("n{i}")), b"x").expect("write");
        }
        expect_dquot(File::create(dir.join("one too many")));
        for i in before.1..80 {
            fs::remove_file(dir.join(format!("n{i}"))).expect("remove");
        }
        volume.expect_clean();
    };
    limits(&volume);
    volume.remount();
    limits(&volume);
    // Killed with writes under way, some of them stored.
    let file = File::create(dir.join("under way")).expect("create");
    file.write_all_at(&content(7, 600_000), 0).expect("write");
    volume.sync();
    file.write_all_at(&content(8, 600_000), 600_000).expect("write");
    volume.kill_daemon();
    drop(file);
    volume.mount();
    limits(&volume);
    // The database is made anew from the directories.
    volume.umount();
    fs::remove_dir_all(volume.state_dir()).expect("lose the state directory");
    volume.mount();
    limits(&volume);
    // What comes back counts, and does not come if there is no room.
    fs::remove_dir_all(dir.join("a")).expect("remove");
    fs::write(dir.join("full"), content(50, 3_500_000)).expect("write");
    volume.sync();
    let at = format!("{}@then", dir.join("a").display());
    volume.brine(&["restore", &at]).with_code(10);
    assert!(!dir.join("a").exists(), "half of it came back");
    fs::remove_file(dir.join("full")).expect("remove");
    volume.sync();
    volume.brine(&["restore", &at]).expect_success();
    limits(&volume);
    // A rewind makes before it removes: only the outcome counts.
    fs::remove_dir_all(dir.join("a")).expect("remove");
    fs::write(dir.join("x"), content(51, 1_000_000)).expect("write");
    volume.brine(&["rewind", &dir.display().to_string(), "--to", "then"]).expect_success();
    limits(&volume);
}

#[test]
fn writers_that_meet_at_the_limit_share_what_there_is() {
    let volume = small("quota-race");
    let dir = volume.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    let limit = 4 * MIB + 4096;
    set(&volume, &dir, &["--bytes", &limit.to_string()]);
    let barrier = Barrier::new(4);
    let written: u64 = std::thread::scope(|scope| {
        let writer = |id: u64| {
            let (dir, barrier) = (&dir, &barrier);
            move || {
                let mut file =
                    OpenOptions::new().create(true).append(true).open(dir.join(id.to_string())).expect("open");
                barrier.wait();
                let mut written = 0;
                loop {
                    match file.write(&content(id * 1000 + written / 4096, 4096)) {
                        Ok(len) => written += len as u64,
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(libc::EDQUOT));
                            file.sync_all().expect("what was accepted is stored");
                            return written;
                        }
                    }
                }
            }
        };
        let writers: Vec<_> = (0..4).map(|id| scope.spawn(writer(id))).collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer failed")).sum()
    });
    assert!(written <= 4 * MIB, "{written} bytes were accepted");
    assert_eq!(used(&volume, &dir), recount(&dir));
    assert!(used(&volume, &dir).0 <= limit);
    // All of it can be used.
    let mut file = OpenOptions::new().append(true).open(dir.join("0")).expect("open");
    let mut left = 4 * MIB - written;
    while left > 0 {
        file.write_all(&content(left, 4096)).expect("there is room");
        left -= 4096;
    }
    expect_dquot(file.write(b"x"));
    volume.expect_clean();
}

/// Random operations in a tree with quotas within quotas: what they say is what du says, and never over a limit.
#[test]
fn what_quotas_say_is_what_du_says() {
    let mut volume = small("quota-random");
    let seed = seed("quota-random");
    let mut random = Random::new(seed);
    let top = volume.path("top");
    let dirs = [top.clone(), top.join("a"), top.join("a/b"), top.join("c")];
    dirs.iter().for_each(|dir| fs::create_dir(dir).expect("mkdir"));
    let limits = [6 * MIB, 3 * MIB, MIB];
    for (dir, limit) in dirs.iter().zip(limits) {
        set(&volume, dir, &["--bytes", &limit.to_string(), "--inodes", "40"]);
    }
    let allowed = [libc::EDQUOT, libc::EXDEV, libc::ENOENT, libc::EEXIST, libc::ENOTEMPTY, libc::ENOTDIR, libc::EISDIR];
    let mut refused = 0;
    for step in 0..1200 {
        let mut place = || {
            let dir = random.choose(&dirs).clone();
            dir.join(format!("f{}", random.below(8)))
        };
        let (path, other) = (place(), place());
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let (offset, len) = (random.below(900_000), random.range(1, 200_000));
        let outcome: io::Result<()> = match random.below(12) {
            0..=3 => open().and_then(|file| file.write_all_at(&content(step, len as usize), offset)),
            4 => open().and_then(|file| file.set_len(offset)),
            5 => open().and_then(|file| {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&file, flags, offset as i64, len as i64).map_err(Into::into)
            }),
            6 => fs::rename(&path, &other),
            7 => fs::hard_link(&path, &other),
            8 | 9 => fs::remove_file(&path),
            10 => File::open(&path).and_then(|from| {
                let to = OpenOptions::new().write(true).create(true).truncate(false).open(&other)?;
                copy_file_range(&from, &mut 0, &to, &mut ((offset & !131_071) as i64), len as usize).map(drop)
            }),
            _ => open().and_then(|file| file.sync_all()),
        };
        if let Err(error) = outcome {
            let code = error.raw_os_error().unwrap_or(0);
            // One name for source and target is refused as such.
            assert!(allowed.contains(&code) || code == libc::EINVAL, "seed {seed}, step {step}: {error}");
            refused += u64::from(code == libc::EDQUOT);
        }
        if step % 150 == 149 {
            // What was cut off is given back behind.
            for (dir, limit) in dirs.iter().zip(limits) {
                let agree = brine_tests::volume::wait_until(std::time::Duration::from_secs(20), || {
                    used(&volume, dir) == recount(dir)
                });
                assert!(agree, "seed {seed}, step {step}: {:?}, du {:?}", used(&volume, dir), recount(dir));
                assert!(used(&volume, dir).0 <= limit, "seed {seed}, step {step}: over the limit");
            }
            volume.expect_clean();
            if step == 599 {
                volume.kill_daemon();
                volume.mount();
            }
        }
    }
    assert!(refused > 0, "nothing was refused: the limits were not reached");
}
