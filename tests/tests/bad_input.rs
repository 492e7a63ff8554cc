//! Wrong input: a message that names the object and the next step, a stable exit code, nothing written elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use brine_tests::command::exit;
use brine_tests::damage::{copy_tree, empty_dir, superblock_files};
use brine_tests::scenario::loss::Kept;
use brine_tests::scenario::{refusals, space};
use brine_tests::volume::{brine_command, wait_until};
use brine_tests::{Builder, Manifest, TestVolume, content, run};
use nix::mount::{MsFlags, mount};

fn volume_with_a_file(name: &str) -> TestVolume {
    let volume = TestVolume::new(name, 6, (4, 2));
    fs::write(volume.path("file"), content(1, 900_000)).expect("write");
    volume
}

#[track_caller]
fn expect_file(volume: &TestVolume) {
    assert!(fs::read(volume.path("file")).expect("read") == content(1, 900_000), "a file is wrong");
}

#[track_caller]
fn state_of(volume: &TestVolume, i: usize) -> String {
    volume.status()["directories"][i]["state"].as_str().expect("directories have a state").to_owned()
}

#[test]
fn format_refuses_what_it_must() {
    println!("{}", refusals::format());
}

#[test]
fn wrong_secrets_are_refused() {
    refusals::wrong_secrets();
}

#[test]
fn foreign_directories_are_refused_and_never_written() {
    refusals::foreign_directories();
}

#[test]
fn a_mounted_volume_is_not_mounted_a_second_time() {
    refusals::second_mount();
}

#[test]
fn hostile_superblocks_are_survived_or_refused() {
    println!("{}", refusals::hostile_superblocks(12));
}

#[test]
fn the_empty_mountpoint_of_an_unmounted_disk_is_never_written() {
    let mut volume = volume_with_a_file("unmounted-disk");
    volume.umount();
    empty_dir(volume.dir(3));
    volume.mount();
    assert_eq!(state_of(&volume, 3), "missing");
    expect_file(&volume);
    fs::write(volume.path("new"), content(2, 3 << 20)).expect("write");
    volume.sync();
    let mnt = volume.mnt().display().to_string();
    let _ = volume.brine(&["heal", &mnt]);
    volume.umount();
    assert_eq!(fs::read_dir(volume.dir(3)).expect("readdir").count(), 0, "an empty mountpoint was written to");
}

#[test]
fn a_disk_unmounted_while_the_volume_is_mounted_is_not_written_any_more() {
    let disks = space::Disks::new("vanishing", 6, 64);
    let mut volume = Builder::new("vanishing").directories_at(disks.mounts.clone()).mount();
    fs::write(volume.path("file"), content(1, 900_000)).expect("write");
    volume.sync();
    brine_tests::volume::detach(&disks.mounts[2]);
    fs::write(volume.path("new"), content(2, 2 << 20)).expect("write");
    volume.sync();
    expect_file(&volume);
    volume.remount();
    expect_file(&volume);
    assert!(fs::read(volume.path("new")).expect("read") == content(2, 2 << 20), "what was written then is wrong");
    assert_eq!(
        fs::read_dir(&disks.mounts[2]).expect("readdir").count(),
        0,
        "an unmounted disk's mountpoint was written to"
    );
}

#[test]
fn older_superblocks_in_some_directories_do_not_win() {
    let mut volume = volume_with_a_file("superblocks-disagree");
    volume.umount();
    let kept = Kept::of(&volume);
    volume.mount();
    fs::write(volume.path("newer"), content(2, 600_000)).expect("write");
    volume.umount();
    for i in [0, 1] {
        for file in superblock_files(volume.dir(i)) {
            let older = kept.copy(i).join(file.strip_prefix(volume.dir(i)).expect("it lies below"));
            fs::copy(older, &file).expect("put an older superblock back");
        }
    }
    volume.mount();
    expect_file(&volume);
    assert!(fs::read(volume.path("newer")).expect("read") == content(2, 600_000), "an older superblock won");
}

#[test]
fn of_two_directories_with_one_identity_neither_is_written() {
    let mut volume = volume_with_a_file("clone");
    volume.umount();
    // Directory 1 is lost, and in its place lies a copy of directory 0.
    empty_dir(volume.dir(1));
    copy_tree(&volume.dir(0).join("."), volume.dir(1));
    let before = [Manifest::of(volume.dir(0)), Manifest::of(volume.dir(1))];
    volume.mount();
    let status = volume.status();
    let states = [0, 1].map(|i| status["directories"][i]["state"].as_str().unwrap_or_default().to_owned());
    assert!(states.iter().all(|state| state == "duplicate" || state == "missing"), "{status:#}");
    assert!(states.iter().any(|state| state == "duplicate"), "the clone is not called one: {status:#}");
    expect_file(&volume);
    fs::write(volume.path("new"), content(2, 2 << 20)).expect("write");
    volume.umount();
    for (i, before) in before.iter().enumerate() {
        before.expect_same(&Manifest::of(volume.dir(i)), &format!("directory {i}, one of two clones, was written to"));
    }
}

#[test]
fn a_read_only_backing_directory_is_worked_around() {
    let mut volume = volume_with_a_file("read-only-dir");
    volume.umount();
    let dir = volume.dir(4).to_path_buf();
    mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
    let _unmount = Detach(dir.clone());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &dir, None::<&str>, flags, None::<&str>).expect("remount read-only");
    volume.mount();
    expect_file(&volume);
    fs::write(volume.path("new"), content(2, 2 << 20)).expect("write with a read-only directory");
    volume.sync();
    let status = volume.status();
    assert_ne!(status["health"], "healthy", "{status:#}");
    let named = status["health_reason"].to_string() + &status["warnings"].to_string();
    assert!(named.contains(&dir.display().to_string()), "the read-only directory is not named: {status:#}");
    volume.remount();
    expect_file(&volume);
    assert!(fs::read(volume.path("new")).expect("read") == content(2, 2 << 20));
    volume.umount();
}

struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        brine_tests::volume::detach(&self.0);
    }
}

#[test]
fn too_few_directories_are_read_only_or_refused() {
    let mut volume = volume_with_a_file("too-few");
    volume.umount();
    let kept = Kept::of(&volume);
    for lost in [3, 4, 5, 6] {
        for i in 0..lost {
            empty_dir(volume.dir(i));
        }
        let options = volume.base_options();
        let finished = volume.try_mount_of(&volume.source(), &options);
        if finished.success() {
            let error = fs::write(volume.path("new"), b"x").expect_err("a write with fewer than n-m directories");
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
            let status = volume.status();
            assert_ne!(status["health"], "healthy", "{status:#}");
            volume.umount();
        } else {
            let named = finished.expect_refusal();
            let text = named.text();
            assert!(
                (0..6).any(|i| text.contains(&volume.dir(i).display().to_string())),
                "no directory is named: {named}"
            );
        }
        kept.put_back();
    }
    volume.mount();
    expect_file(&volume);
}

#[test]
fn what_is_written_over_makes_room_for_what_comes() {
    println!("{}", space::overwritten(6));
}

#[test]
fn full_disks_say_so_to_the_writer_and_go_on_working() {
    println!("{}", space::full(64));
}

#[test]
fn hostile_and_truncated_segment_files_are_no_panic() {
    let mut volume = volume_with_a_file("hostile-segments");
    volume.umount();
    let kept = Kept::of(&volume);
    let mut random = brine_tests::Random::new(brine_tests::seed("hostile segments"));
    for round in 0..8 {
        for i in [2, 3] {
            for file in brine_tests::damage::segment_files(volume.dir(i)) {
                let mut bytes = fs::read(&file).expect("read a segment file");
                match round % 4 {
                    0 => bytes = random.bytes(100),
                    1 => bytes.truncate(random.below(5000) as usize),
                    2 => {
                        // Lengths and counts at their largest, wherever a header may begin.
                        for at in (0..bytes.len().min(1 << 20)).step_by(512) {
                            let at = at + random.below(120) as usize * 4;
                            if at + 4 <= bytes.len() {
                                bytes[at..at + 4].fill(0xff);
                            }
                        }
                    }
                    _ => {
                        let len = bytes.len().min(1 << 20);
                        bytes = random.bytes(len);
                    }
                }
                fs::write(&file, bytes).expect("write a segment file");
            }
        }
        if round >= 4 {
            // Without the database every header is read.
            fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
        }
        volume.mount();
        expect_file(&volume);
        let report = volume.check();
        assert_eq!(report["blocks_lost"], 0, "{report:#}");
        volume.umount();
        kept.put_back();
    }
}

#[test]
fn foreign_files_in_a_backing_directory_are_left_alone() {
    let mut volume = volume_with_a_file("foreign-files");
    volume.umount();
    fs::write(volume.dir(0).join("letter.txt"), b"mine").expect("write");
    fs::create_dir(volume.dir(0).join("photos")).expect("mkdir");
    fs::write(volume.dir(0).join("photos/1.jpg"), b"mine too").expect("write");
    volume.mount();
    expect_file(&volume);
    let mnt = volume.mnt().display().to_string();
    let _ = volume.brine(&["heal", &mnt]);
    volume.umount();
    assert_eq!(fs::read(volume.dir(0).join("letter.txt")).expect("read"), b"mine");
    assert_eq!(fs::read(volume.dir(0).join("photos/1.jpg")).expect("read"), b"mine too");
}

#[test]
fn unknown_commands_options_and_missing_arguments_are_named() {
    let volume = Builder::new("cli").directories(3).geometry(2, 1).format();
    volume.brine(&["frobnicate"]).expect_refusal().says(&["frobnicate"]).with_code(exit::USAGE);
    volume.brine(&["format", "--frobnicate"]).expect_refusal().says(&["frobnicate"]).with_code(exit::USAGE);
    volume.brine(&["format"]).expect_refusal();
    volume.brine(&["mount"]).expect_refusal();
    volume.brine(&["umount", "/nowhere/at/all"]).expect_refusal().says(&["/nowhere/at/all"]);
    volume.brine(&["status", "/nowhere/at/all"]).expect_refusal().says(&["/nowhere/at/all"]);
    volume.brine(&["check", "/nowhere/at/all"]).expect_refusal().says(&["/nowhere/at/all"]);
    let (source, mnt) = (volume.source().display().to_string(), volume.mnt().display().to_string());
    let with = |option: &str| format!("{},{option}", volume.base_options().join(","));
    volume
        .brine(&["mount", &source, &mnt, "-o", &with("frobnicate=1")])
        .expect_refusal()
        .says(&["frobnicate"])
        .with_code(exit::USAGE);
    for option in ["cache=many", "hedge=sometimes", "epoch=x", "copies=0"] {
        volume
            .brine(&["mount", &source, &mnt, "-o", &with(option)])
            .expect_refusal()
            .says(&[option.split('=').next().unwrap_or(option)]);
    }
    let nowhere = volume.root().join("no-such-mountpoint").display().to_string();
    volume
        .brine(&["mount", &source, &nowhere, "-o", &volume.base_options().join(",")])
        .expect_refusal()
        .says(&[&nowhere]);
    let file = volume.root().join("a-file");
    fs::write(&file, b"").expect("write");
    let file = file.display().to_string();
    volume.brine(&["mount", &source, &file, "-o", &volume.base_options().join(",")]).expect_refusal().says(&[&file]);
    let help = run(&mut brine_tests::volume::brine_command(&["--help"])).expect_success();
    for command in ["format", "mount", "umount", "status", "check", "heal", "replace", "sync"] {
        assert!(help.stdout.contains(command), "help does not name {command}: {help}");
    }
}

#[test]
fn status_of_an_unmounted_volume_needs_no_key() {
    let mut volume = volume_with_a_file("status-unmounted");
    volume.umount();
    let status = volume.status_of(&volume.source());
    assert_eq!(status["mounted"], false, "{status:#}");
    assert_eq!(status["geometry"]["data"], 4, "{status:#}");
    empty_dir(volume.dir(5));
    let status = volume.status_of(&volume.source());
    let text = status.to_string();
    assert!(text.contains(&volume.dir(5).display().to_string()), "the missing directory is not named: {status:#}");
}

#[test]
fn check_of_an_unmounted_volume_and_of_a_path_work() {
    let mut volume = volume_with_a_file("check-unmounted");
    fs::create_dir(volume.path("dir")).expect("mkdir");
    fs::write(volume.path("dir/inner"), content(4, 300_000)).expect("write");
    let mnt = volume.mnt().display().to_string();
    volume.brine(&["check", "--json", "/dir", &mnt]).expect_success();
    volume.umount();
    let [flag, file] = volume.unlock_args();
    let source = volume.source().display().to_string();
    let state = volume.state_dir().display().to_string();
    let _ = Path::new(&state);
    volume.brine(&["check", "--json", &source, &flag, &file, "--state-dir", &state]).expect_success();
}

/// A volume of more metadata than a disk of 1 MiB has room for, and that disk.
fn volume_and_small_disk(name: &str) -> (TestVolume, space::Disks) {
    let mut volume = volume_with_a_file(name);
    let long = "n".repeat(200);
    (0..3000).for_each(|n| drop(fs::File::create(volume.path(&format!("{long}{n}"))).expect("create")));
    volume.umount();
    (volume, space::Disks::new(name, 1, 1))
}

#[test]
fn a_rebuild_without_room_says_so_and_leaves_nothing() {
    let (mut volume, disks) = volume_and_small_disk("rebuild-room");
    let (state, source) = (disks.mounts[0].display().to_string(), volume.dir(0).display().to_string());
    let [flag, secret] = volume.unlock_args();
    let refused = volume.brine(&["rebuild", &source, "--state-dir", &state, &flag, &secret]);
    refused.expect_refusal().says(&["no room", &state, "another state directory"]);
    let left = fs::read_dir(&disks.mounts[0]).expect("list").map(|file| file.expect("an entry").file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("meta.db")).collect();
    assert!(left.is_empty(), "{left:?}");
    volume.mount();
    expect_file(&volume);
}

#[test]
fn a_follower_without_room_goes_on_when_there_is_some() {
    let (volume, disks) = volume_and_small_disk("follow-room");
    let (state, source) = (disks.mounts[0].display().to_string(), volume.dir(0).display().to_string());
    let [flag, secret] = volume.unlock_args();
    let said = volume.root().join("said");
    let output = fs::File::create(&said).expect("create");
    let mut follow = brine_command(&["follow", &source, "--interval", "1", "--state-dir", &state, &flag, &secret]);
    follow.stdout(output.try_clone().expect("a descriptor")).stderr(output);
    let mut follow = follow.spawn().expect("start brine follow");
    let says = |what: &str| {
        let said = || fs::read_to_string(&said).expect("read");
        assert!(wait_until(Duration::from_secs(60), || said().contains(what)), "no {what:?} in {:?}", said());
    };
    says("full");
    std::thread::sleep(Duration::from_secs(3));
    let warnings = fs::read_to_string(&said).expect("read").matches("full").count();
    let larger = Some("size=64m,mode=700");
    mount(None::<&str>, &disks.mounts[0], None::<&str>, MsFlags::MS_REMOUNT, larger).expect("make the disk larger");
    says("applied");
    follow.kill().and_then(|()| follow.wait()).expect("end brine follow");
    assert_eq!(warnings, 1, "told once, not at each look");
}
