//! POSIX semantics through a real mount: data.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use brine_tests::scenario::load;
use brine_tests::sys::{Aligned, Mapping, copy_file_range};
use brine_tests::volume::wait_until;
use brine_tests::{Builder, TestVolume, content};
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};

fn small(name: &str) -> TestVolume {
    TestVolume::new(name, 3, (2, 1))
}

fn open(path: std::path::PathBuf) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(&path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

fn expect(path: &std::path::Path, want: &[u8]) {
    let got = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    assert_eq!(got.len(), want.len(), "{} has another length", path.display());
    assert!(got == want, "{} has another content", path.display());
}

#[test]
fn files_of_every_size_around_the_limits_are_read_back() {
    let mut volume = small("sizes");
    let sizes =
        [0, 1, 7, 511, 512, 2047, 2048, 2049, 4095, 4096, 4097, 65_536, 131_071, 131_072, 131_073, 1 << 20, 3_000_001];
    for size in sizes {
        fs::write(volume.path(&size.to_string()), content(size as u64, size)).expect("write");
    }
    for _ in 0..2 {
        for size in sizes {
            expect(&volume.path(&size.to_string()), &content(size as u64, size));
            let meta = fs::metadata(volume.path(&size.to_string())).expect("stat");
            assert_eq!(meta.len(), size as u64);
        }
        volume.remount();
    }
}

#[test]
fn appends_from_several_descriptors_all_arrive_whole() {
    let volume = small("append");
    let path = volume.path("log");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open");
                for line in 0..300 {
                    file.write_all(format!("{writer}:{line:04} {}\n", "x".repeat(line % 90)).as_bytes())
                        .expect("append");
                }
            });
        }
    });
    let text = fs::read_to_string(&path).expect("read");
    for writer in 0..4 {
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{writer}:"))).collect();
        assert_eq!(lines.len(), 300, "appends of writer {writer} were lost");
        for (number, line) in lines.iter().enumerate() {
            assert_eq!(
                *line,
                format!("{writer}:{number:04} {}", "x".repeat(number % 90)),
                "an append was torn or moved"
            );
        }
    }
}

#[test]
fn overwriting_in_the_middle_changes_only_that() {
    let mut volume = small("overwrite");
    let mut want = content(1, 1_000_000);
    fs::write(volume.path("file"), &want).expect("write");
    for (offset, len) in [(0, 1), (131_071, 2), (131_072, 131_072), (500_000, 4096), (999_999, 1), (4095, 4097)] {
        let bytes = content(offset as u64 + 77, len);
        open(volume.path("file")).write_all_at(&bytes, offset as u64).expect("write");
        want[offset..offset + len].copy_from_slice(&bytes);
        expect(&volume.path("file"), &want);
    }
    volume.remount();
    expect(&volume.path("file"), &want);
}

#[test]
fn what_lies_beyond_a_truncation_reads_as_zero_when_the_file_grows_again() {
    let mut volume = small("truncate");
    for (size, cut, grown) in [
        (5000, 100, 5000),
        (300_000, 131_072, 400_000),
        (300_000, 131_073, 300_000),
        (2000, 0, 2000),
        (700_000, 5, 131_100),
    ] {
        let path = volume.path(&format!("{size}-{cut}-{grown}"));
        fs::write(&path, content(size as u64, size)).expect("write");
        let file = open(path.clone());
        file.set_len(cut as u64).expect("truncate");
        file.set_len(grown as u64).expect("truncate");
        let mut want = content(size as u64, size);
        want.truncate(cut);
        want.resize(grown, 0);
        expect(&path, &want);
        drop(file);
        volume.remount();
        expect(&path, &want);
    }
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed() {
    let volume = small("orphan");
    let path = volume.path("file");
    fs::write(&path, content(1, 400_000)).expect("write");
    let mut file = open(path.clone());
    fs::remove_file(&path).expect("unlink");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    assert_eq!(fs::metadata(&path).expect_err("it is gone").raw_os_error(), Some(libc::ENOENT));
    fs::write(&path, b"another file").expect("write");
    file.write_all_at(b"changed", 200_000).expect("write to an unlinked file");
    file.sync_all().expect("fsync of an unlinked file");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    let (mut got, mut want) = (Vec::new(), content(1, 400_000));
    want[200_000..200_007].copy_from_slice(b"changed");
    file.read_to_end(&mut got).expect("read");
    assert!(got == want, "an unlinked open file has another content");
    assert_eq!(fs::read(&path).expect("read"), b"another file");
}

#[test]
fn an_open_file_keeps_its_content_when_another_is_renamed_over_it() {
    let volume = small("rename-over");
    fs::write(volume.path("a"), b"old").expect("write");
    fs::write(volume.path("b"), b"new").expect("write");
    let mut old = open(volume.path("a"));
    fs::rename(volume.path("b"), volume.path("a")).expect("rename");
    let mut text = String::new();
    old.read_to_string(&mut text).expect("read");
    assert_eq!(text, "old");
    expect(&volume.path("a"), b"new");
}

#[test]
fn shared_mappings_and_descriptors_see_each_other() {
    let mut volume = small("mmap");
    let file = open(volume.path("file"));
    let mut want = content(3, 600_000);
    file.write_all_at(&want, 0).expect("write");
    let mut one = Mapping::new(&file, 600_000).expect("mmap");
    let two = Mapping::new(&open(volume.path("file")), 600_000).expect("mmap");
    one.write(131_000, b"through a mapping");
    want[131_000..131_017].copy_from_slice(b"through a mapping");
    assert_eq!(two.read(131_000, 17), b"through a mapping");
    let mut bytes = vec![0; 17];
    file.read_exact_at(&mut bytes, 131_000).expect("read");
    assert_eq!(bytes, b"through a mapping");
    file.write_all_at(b"through write", 400_000).expect("write");
    want[400_000..400_013].copy_from_slice(b"through write");
    assert_eq!(two.read(400_000, 13), b"through write");
    one.sync().expect("msync");
    // Left dirty without msync: closing and unmounting must write it.
    one.write(599_990, b"last bytes");
    want[599_990..].copy_from_slice(b"last bytes");
    drop((one, two, file));
    volume.remount();
    expect(&volume.path("file"), &want);
}

#[test]
fn direct_and_buffered_reads_and_writes_agree() {
    let mut volume = small("direct");
    let path = volume.path("file");
    let mut want = content(4, 512 << 10);
    fs::write(&path, &want).expect("write");
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).expect("open O_DIRECT");
    let mut bytes = Aligned::new(64 << 10);
    direct.read_exact_at(bytes.bytes_mut(), 128 << 10).expect("read O_DIRECT");
    assert!(bytes.bytes() == &want[128 << 10..192 << 10], "a direct read does not see what was just written");
    let new = content(5, 32 << 10);
    direct.write_all_at(Aligned::from(&new).bytes(), 200 << 10).expect("write O_DIRECT");
    want[200 << 10..232 << 10].copy_from_slice(&new);
    expect(&path, &want);
    open(path.clone()).write_all_at(b"buffered", 4096).expect("write");
    want[4096..4104].copy_from_slice(b"buffered");
    let mut bytes = Aligned::new(4096);
    direct.read_exact_at(bytes.bytes_mut(), 4096).expect("read O_DIRECT");
    assert!(bytes.bytes() == &want[4096..8192], "a direct read does not see a buffered write");
    drop(direct);
    volume.remount();
    expect(&path, &want);
}

#[test]
fn a_sparse_file_has_holes_where_nothing_was_written() {
    let mut volume = small("sparse");
    let path = volume.path("sparse");
    let file = open(path.clone());
    file.write_all_at(&content(1, 131_072), 10 << 20).expect("write");
    file.write_all_at(&content(2, 131_072), 40 << 20).expect("write");
    file.set_len(64 << 20).expect("truncate");
    drop(file);
    for turn in 0..2 {
        let file = open(path.clone());
        let seek = |from: i64, whence| {
            lseek(&file, from, whence).unwrap_or_else(|error| panic!("turn {turn}: lseek {from}: {error}"))
        };
        assert_eq!(seek(0, Whence::SeekData), 10 << 20);
        assert_eq!(seek(10 << 20, Whence::SeekHole), (10 << 20) + 131_072);
        assert_eq!(seek(11 << 20, Whence::SeekData), 40 << 20);
        assert_eq!(seek(0, Whence::SeekHole), 0);
        assert_eq!(lseek(&file, 41 << 20, Whence::SeekData), Err(nix::errno::Errno::ENXIO));
        assert_eq!(seek(64 << 20, Whence::SeekEnd), 128 << 20);
        let meta = file.metadata().expect("stat");
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 2 << 20, "holes are counted: {} blocks", meta.blocks());
        let mut bytes = vec![1; 4096];
        file.read_exact_at(&mut bytes, 20 << 20).expect("read a hole");
        assert!(bytes.iter().all(|&byte| byte == 0), "a hole does not read as zero");
        drop(file);
        volume.remount();
    }
}

#[test]
fn what_a_file_takes_is_right_soon_after_it_was_overwritten() {
    let volume = small("overwritten");
    let path = volume.path("sparse");
    let file = open(path.clone());
    file.set_len(1 << 20).expect("truncate");
    let taken = || fs::metadata(&path).expect("stat").blocks() * 512;
    file.write_all_at(&content(1, 256 << 10), 0).and_then(|()| file.sync_all()).expect("write");
    assert_eq!(taken(), 256 << 10);
    file.write_all_at(&content(2, 256 << 10), 0).expect("overwrite");
    // Not more than it is while that is buffered, or as much as could be; not for longer.
    assert!(taken() >= 256 << 10);
    let agree = wait_until(Duration::from_secs(20), || taken() == 256 << 10);
    assert!(agree, "{} bytes are said to be taken", taken());
    file.write_all_at(&vec![0; 128 << 10], 0).expect("zeros");
    assert!(taken() >= 128 << 10);
    let agree = wait_until(Duration::from_secs(20), || taken() == 128 << 10);
    assert!(agree, "{} bytes are said to be taken after zeros", taken());
}

#[test]
fn holes_are_never_reported_where_dirty_data_lies() {
    let volume = small("dirty-holes");
    for round in 0..40u64 {
        let path = volume.path("file");
        let file = open(path.clone());
        file.set_len(2 << 20).expect("truncate");
        let offset = (round % 15) * 131_072 + round * 13;
        if round % 2 == 0 {
            file.write_all_at(b"dirty", offset).expect("write");
        } else {
            let mut mapping = Mapping::new(&file, 2 << 20).expect("mmap");
            mapping.write(offset as usize, b"dirty");
            mapping.sync().expect("msync");
        }
        let data = lseek(&file, 0, Whence::SeekData).expect("SEEK_DATA finds dirty data") as u64;
        assert!(data <= offset, "data at {offset} is said to be in a hole that ends at {data}");
        let hole = lseek(&file, offset as i64, Whence::SeekHole).expect("SEEK_HOLE") as u64;
        assert!(hole >= offset + 5, "data at {offset} is said to be in a hole that begins at {hole}");
        drop(file);
        fs::remove_file(path).expect("unlink");
    }
}

#[test]
fn fallocate_extends_keeps_punches_and_zeroes() {
    let mut volume = small("fallocate");
    let path = volume.path("file");
    let mut want = content(6, 600_000);
    fs::write(&path, &want).expect("write");
    let file = open(path.clone());
    let call = |flags, offset, len| fallocate(&file, flags, offset, len);
    call(FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 2 << 20).expect("fallocate KEEP_SIZE");
    assert_eq!(file.metadata().expect("stat").len(), 600_000);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    call(punch, 100, 300_000).expect("punch");
    want[100..300_100].fill(0);
    call(FallocateFlags::FALLOC_FL_ZERO_RANGE, 500_000, 200_000).expect("zero range");
    want[500_000..].fill(0);
    want.resize(700_000, 0);
    call(FallocateFlags::empty(), 690_000, 110_000).expect("fallocate");
    want.resize(800_000, 0);
    expect(&path, &want);
    assert_eq!(lseek(&file, 131_072, Whence::SeekHole), Ok(131_072), "a whole punched chunk is a hole");
    let refused = call(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 131_072);
    assert_eq!(refused, Err(nix::errno::Errno::EOPNOTSUPP), "what is not done must be refused");
    drop(file);
    volume.remount();
    expect(&path, &want);
}

#[test]
fn copy_file_range_copies_and_shares() {
    let mut volume = small("copy-range");
    let bytes = content(8, 1 << 20);
    fs::write(volume.path("from"), &bytes).expect("write");
    volume.sync();
    let before = volume.number(&["space", "unique_bytes"]);
    let (from, to) = (open(volume.path("from")), open(volume.path("to")));
    let (mut at, mut to_at) = (0, 0);
    while at < 1 << 20 {
        assert!(copy_file_range(&from, &mut at, &to, &mut to_at, 1 << 20).expect("copy_file_range") > 0);
    }
    drop((from, to));
    expect(&volume.path("to"), &bytes);
    volume.sync();
    assert_eq!(volume.number(&["space", "unique_bytes"]), before, "a copied range is stored twice");
    open(volume.path("from")).write_all_at(b"changed", 300_000).expect("write");
    expect(&volume.path("to"), &bytes);
    fs::remove_file(volume.path("from")).expect("unlink");
    volume.remount();
    expect(&volume.path("to"), &bytes);
}

#[test]
fn lengths_beyond_all_limits_are_refused() {
    let volume = small("too-big");
    let file = open(volume.path("file"));
    let error = file.write_all_at(b"x", i64::MAX as u64).expect_err("a write that ends beyond 8 EiB");
    assert!(matches!(error.raw_os_error(), Some(libc::EFBIG | libc::EINVAL)), "{error}");
    match file.set_len(i64::MAX as u64) {
        Ok(()) => assert_eq!(file.metadata().expect("stat").len(), i64::MAX as u64),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EFBIG), "{error}"),
    }
    file.set_len(1 << 40).expect("1 TiB of nothing");
    file.write_all_at(b"end", (1 << 40) - 3).expect("write at 1 TiB");
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, (1 << 40) - 3).expect("read at 1 TiB");
    assert_eq!(&bytes, b"end");
    drop(file);
    fs::remove_file(volume.path("file")).expect("unlink");
}

#[test]
fn open_flags_mean_what_they_say() {
    let volume = small("flags");
    let path = volume.path("file");
    fs::write(&path, b"text").expect("write");
    let error = File::create_new(&path).expect_err("O_EXCL");
    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    OpenOptions::new().write(true).truncate(true).open(&path).expect("O_TRUNC");
    expect(&path, b"");
    let error = OpenOptions::new().write(true).open(volume.mnt()).expect_err("a directory");
    assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
    let error = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path).expect_err("a file");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    std::os::unix::fs::symlink("file", volume.path("link")).expect("symlink");
    let error =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(volume.path("link")).expect_err("O_NOFOLLOW");
    assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o640);
    options.open(volume.path("moded")).expect("open");
    assert_eq!(fs::metadata(volume.path("moded")).expect("stat").mode() & 0o7777, 0o640);
}

#[test]
fn reading_past_the_end_and_seeking_work() {
    let volume = small("seek");
    fs::write(volume.path("file"), b"0123456789").expect("write");
    let mut file = open(volume.path("file"));
    file.seek(SeekFrom::End(-3)).expect("lseek");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "789");
    assert_eq!(file.read(&mut [0; 10]).expect("read at the end"), 0);
    assert_eq!(file.read_at(&mut [0; 10], 1 << 30).expect("read far beyond the end"), 0);
    assert!(lseek(&file, -1, Whence::SeekSet).is_err());
}

#[test]
fn fsync_of_files_and_directories_makes_them_survive_a_kill() {
    let mut volume = small("fsync");
    let path = volume.path("dir/file");
    fs::create_dir(volume.path("dir")).expect("mkdir");
    let mut file = File::create(&path).expect("create");
    file.write_all(&content(1, 200_000)).expect("write");
    file.sync_all().expect("fsync");
    File::open(volume.path("dir")).and_then(|dir| dir.sync_all()).expect("fsync of a directory");
    drop(file);
    volume.kill_daemon();
    volume.detach();
    volume.mount();
    expect(&path, &content(1, 200_000));
    volume.expect_clean();
}

#[test]
fn random_operations_agree_with_a_model() {
    println!("{}", load::random_operations(4, 250));
}

#[test]
fn random_operations_agree_with_a_model_without_two_directories() {
    println!("{}", load::random_operations_degraded(200));
}

#[test]
fn many_writers_and_listers_see_no_error() {
    println!("{}", load::crowd(12, 4, Duration::from_secs(6)));
}

#[test]
fn locks_exclude_between_descriptors_and_processes() {
    let volume = small("locks");
    fs::write(volume.path("file"), b"text").expect("write");
    // flock(2), held by a shell while another tries.
    let script = "flock -n 9 || exit 3; flock -n file true && exit 4; exit 0";
    brine_tests::program("flock");
    brine_tests::command::shell(volume.mnt(), &format!("exec 9<file; {script}")).expect_success();
    // Open file description locks between two descriptors of one process.
    let lock = |file: &File, kind: i32, start: i64, len: i64| {
        let range =
            libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 };
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&range))
    };
    let (one, two) = (open(volume.path("file")), open(volume.path("file")));
    lock(&one, libc::F_WRLCK, 0, 10).expect("lock");
    assert_eq!(lock(&two, libc::F_WRLCK, 5, 10), Err(nix::errno::Errno::EAGAIN));
    lock(&two, libc::F_WRLCK, 10, 10).expect("lock of another range");
    lock(&one, libc::F_UNLCK, 0, 10).expect("unlock");
    lock(&two, libc::F_WRLCK, 0, 10).expect("lock of what was unlocked");
}

#[test]
fn statfs_tells_sizes_that_shrink_with_use() {
    let volume = Builder::new("statfs").mount();
    let before = nix::sys::statvfs::statvfs(volume.mnt()).expect("statvfs");
    assert!(before.blocks() > 0 && before.blocks_available() <= before.blocks_free());
    assert!(before.blocks_free() <= before.blocks() && before.name_max() == 255);
    let total = before.blocks() * before.fragment_size();
    let raw = volume.number(&["space", "raw_total_bytes"]);
    // Six directories on one filesystem hold no more than that filesystem, less what parity takes.
    assert!(total <= raw, "df promises {total} bytes of {raw} raw ones");
    fs::write(volume.path("file"), content(1, 8 << 20)).expect("write");
    volume.sync();
    let status = volume.status();
    assert!(status["space"]["logical_bytes"].as_u64() >= Some(8 << 20), "{status:#}");
    assert!(status["space"]["raw_bytes"].as_u64() >= Some(12 << 20), "{status:#}");
    let used = before.files() - before.files_free();
    let after = nix::sys::statvfs::statvfs(volume.mnt()).expect("statvfs");
    assert_eq!(after.files() - after.files_free(), used + 1, "a new file is not counted");
}

#[test]
fn what_was_copied_past_the_end_and_cut_off_does_not_come_back() {
    let volume = Builder::new("cut-copy").directories(3).geometry(2, 1).mount();
    let (from, to) = (volume.path("from"), volume.path("to"));
    fs::write(&from, content(1, 831_733)).expect("write");
    let source = File::open(&from).expect("open");
    source.sync_all().expect("fsync");
    let target = OpenOptions::new().read(true).write(true).create_new(true).open(&to).expect("create");
    target.write_all_at(&content(2, 300_000), 0).expect("write");
    let (mut at, mut to_at) = (655_360, 1_048_576);
    while copy_file_range(&source, &mut at, &target, &mut to_at, 191_402).expect("copy") > 0 {}
    target.set_len(1_040_277).expect("cut");
    target.write_all_at(&content(3, 21_497), 1_144_967).expect("write");
    target.sync_all().expect("fsync");
    target.set_len(1_364_027).expect("extend");
    target.set_len(1_187_542).expect("cut");
    let mut bytes = vec![1; 1_187_542 - 1_166_464];
    target.read_exact_at(&mut bytes, 1_166_464).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 0), "what was cut off came back");
    volume.expect_clean();
}
