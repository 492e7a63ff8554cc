//! Volumes under and over other layers: overlayfs, loop devices, watchers.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use brine_tests::command::{program, run};
use brine_tests::environment::temp_dir;
use brine_tests::sys::Watch;
use brine_tests::{Builder, TestVolume, content};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

fn mounted(name: &str) -> TestVolume {
    Builder::new(name).directories(3).geometry(2, 1).option("allow_other").mount()
}

/// Something mounted in a temporary directory, taken away when dropped.
struct Over(PathBuf);

impl Over {
    fn overlay(lower: &Path, upper: &Path, work: &Path) -> Self {
        let point = temp_dir("overlay");
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), &point, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .unwrap_or_else(|error| panic!("overlay with {options}: {error}"));
        Self(point)
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

/// What a container does with its image: read, change, remove, rename, replace a directory.
fn use_overlay(over: &Path) {
    assert_eq!(fs::read(over.join("read")).expect("read"), content(1, 200_000));
    fs::write(over.join("changed"), b"changed").expect("write");
    fs::remove_file(over.join("removed")).expect("remove");
    fs::rename(over.join("renamed"), over.join("renamed-2")).expect("rename");
    fs::remove_dir_all(over.join("replaced")).expect("remove");
    fs::create_dir(over.join("replaced")).expect("mkdir");
    fs::write(over.join("replaced/new"), b"new").expect("write");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).expect("list").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(over), ["changed", "read", "renamed-2", "replaced"]);
    assert_eq!(names(&over.join("replaced")), ["new"]);
    assert_eq!(fs::read(over.join("changed")).expect("read"), b"changed");
}

fn fill_lower(lower: &Path) {
    fs::create_dir_all(lower.join("replaced")).expect("mkdir");
    fs::write(lower.join("replaced/old"), b"old").expect("write");
    fs::write(lower.join("read"), content(1, 200_000)).expect("write");
    for name in ["changed", "removed", "renamed"] {
        fs::write(lower.join(name), name).expect("write");
    }
}

#[test]
fn overlayfs_takes_a_volume_as_its_lower_layer() {
    let volume = mounted("lower");
    let lower = volume.path("lower");
    fill_lower(&lower);
    let (upper, work) = (temp_dir("upper"), temp_dir("work"));
    let over = Over::overlay(&lower, &upper, &work);
    use_overlay(&over.0);
    drop(over);
    // The lower layer is as it was.
    assert_eq!(fs::read(lower.join("changed")).expect("read"), b"changed".to_vec());
    assert!(lower.join("removed").exists() && lower.join("renamed").exists() && lower.join("replaced/old").exists());
    for dir in [upper, work] {
        let _ = fs::remove_dir_all(dir);
    }
}

#[test]
fn overlayfs_takes_a_volume_as_its_upper_layer() {
    let mut volume = mounted("upper");
    for name in ["lower", "upper", "work"] {
        fs::create_dir(volume.path(name)).expect("mkdir");
    }
    fill_lower(&volume.path("lower"));
    let over = Over::overlay(&volume.path("lower"), &volume.path("upper"), &volume.path("work"));
    use_overlay(&over.0);
    drop(over);
    let whiteout = fs::symlink_metadata(volume.path("upper/removed")).expect("a whiteout");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    // All of it is in the volume.
    volume.remount();
    let over = Over::overlay(&volume.path("lower"), &volume.path("upper"), &volume.path("work"));
    assert_eq!(fs::read(over.0.join("replaced/new")).expect("read"), b"new");
    assert!(!over.0.join("removed").exists() && over.0.join("renamed-2").exists());
}

#[test]
fn an_image_in_a_volume_is_mounted_by_a_loop_device() {
    let volume = mounted("loop");
    let image = volume.path("image");
    fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
    run(Command::new(program("mkfs.ext4")).arg("-q").arg(&image)).expect_success();
    let over = Over(temp_dir("loop"));
    run(Command::new(program("mount")).args(["-o", "loop"]).arg(&image).arg(&over.0)).expect_success();
    fs::write(over.0.join("file"), content(4, 5_000_000)).expect("write");
    assert_eq!(fs::read(over.0.join("file")).expect("read"), content(4, 5_000_000));
    run(Command::new(program("umount")).arg(&over.0)).expect_success();
    run(Command::new(program("e2fsck")).arg("-fn").arg(&image)).expect_success();
    volume.expect_clean();
}

/// Flushes of its cache that a disk has done.
fn flushes(of: &Path) -> u64 {
    let device = fs::metadata(of).expect("metadata").dev();
    let stat = format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device));
    let stat = fs::read_to_string(&stat).unwrap_or_else(|error| panic!("{stat}: {error}"));
    stat.split_whitespace().nth(15).expect("Linux counts flushes").parse().expect("a number")
}

#[test]
fn every_small_fsync_reaches_the_disk_below_with_a_journal_and_without() {
    const APPENDS: u64 = 200;
    for journal in ["has_journal", "^has_journal"] {
        let image = temp_dir("flushes");
        let file = image.join("image");
        fs::File::create(&file).and_then(|file| file.set_len(2 << 30)).expect("an image");
        run(Command::new(program("mkfs.ext4")).args(["-q", "-O", journal]).arg(&file)).expect_success();
        let disk = Over(temp_dir("flushes"));
        // Times alone are nothing to commit then: only what is asked for reaches the disk.
        run(Command::new(program("mount")).args(["-o", "loop,lazytime"]).arg(&file).arg(&disk.0)).expect_success();
        let directories: Vec<PathBuf> = (0..6).map(|number| disk.0.join(format!("d{number}"))).collect();
        directories.iter().for_each(|directory| fs::create_dir(directory).expect("mkdir"));
        let mut volume = Builder::new("flushes").directories_at(directories).default_geometry().mount();
        let mut log = fs::File::create(volume.path("log")).expect("create");
        let mut append = |number: u64| {
            log.write_all(&content(number, 4096)).and_then(|()| log.sync_all()).expect("append and fsync");
        };
        (0..50).for_each(&mut append);
        let before = flushes(&disk.0);
        (0..APPENDS).for_each(&mut append);
        let done = flushes(&disk.0) - before;
        assert!(done >= APPENDS, "{journal}: {done} flushes for {APPENDS} fsyncs");
        drop(log);
        volume.umount();
        drop(volume);
        drop(disk);
        fs::remove_dir_all(image).expect("remove");
    }
}

#[test]
fn watchers_are_told_of_changes() {
    let volume = mounted("inotify");
    let mut watch = Watch::new(volume.mnt()).expect("inotify");
    let (one, two) = (volume.path("one"), volume.path("two"));
    fs::write(&one, b"x").expect("write");
    fs::rename(&one, &two).expect("rename");
    fs::set_permissions(&two, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    fs::remove_file(&two).expect("remove");
    let seen = watch.events().expect("events");
    for (name, mask) in [
        ("one", libc::IN_CREATE),
        ("one", libc::IN_MODIFY),
        ("one", libc::IN_CLOSE_WRITE),
        ("one", libc::IN_MOVED_FROM),
        ("two", libc::IN_MOVED_TO),
        ("two", libc::IN_ATTRIB),
        ("two", libc::IN_DELETE),
    ] {
        let told = seen.iter().any(|(seen, of)| seen & mask != 0 && of == name.as_bytes());
        assert!(told, "{mask:#x} of {name} was not told: {seen:?}");
    }
}

#[test]
fn several_volumes_are_mounted_at_once() {
    let volumes: Vec<TestVolume> = (0..3).map(|number| mounted(&format!("several-{number}"))).collect();
    for (number, volume) in volumes.iter().enumerate() {
        fs::write(volume.path("file"), content(number as u64, 100_000)).expect("write");
    }
    for (number, volume) in volumes.iter().enumerate() {
        assert_eq!(fs::read(volume.path("file")).expect("read"), content(number as u64, 100_000));
        let refused = fs::hard_link(volume.path("file"), volumes[(number + 1) % 3].path("link")).expect_err("a link");
        assert_eq!(refused.raw_os_error(), Some(libc::EXDEV));
    }
}
