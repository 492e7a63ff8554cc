//! brine behaves as POSIX, the manual pages and a filesystem of this machine have it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use brine_tests::environment::{is_mounted, mount_line};
use brine_tests::scenario::{concurrent, posix, twin};
use brine_tests::volume::wait_until;
use brine_tests::{TestVolume, sys};

#[test]
fn what_the_manual_pages_say_holds_here_and_on_a_disk() {
    println!("{}", posix::conformance());
}

#[test]
fn pjdfstest_passes_and_skips_no_more_than_on_a_disk() {
    println!("{}", posix::pjdfstest());
}

#[test]
fn fsx_finds_no_wrong_byte() {
    println!("{}", posix::fsx(3000));
}

#[test]
fn operations_of_every_kind_do_what_they_do_on_a_disk() {
    println!("{}", twin::operations_of_every_kind(3, 1200));
}

#[test]
fn killed_in_between_operations_of_every_kind_a_prefix_is_left() {
    println!("{}", twin::killed_in_between(6, 250));
}

#[test]
fn records_appended_by_many_processes_are_all_there_and_whole() {
    println!("{}", concurrent::appends(150));
}

#[test]
fn names_that_many_processes_fight_for_agree_with_link_counts() {
    println!("{}", concurrent::names_fought_for(600));
}

#[test]
fn blocks_written_while_the_file_is_cut_are_never_mixed() {
    println!("{}", concurrent::cuts(400));
}

#[test]
fn the_flags_of_a_mount_can_be_changed() {
    let volume = TestVolume::new("remount", 3, (2, 1));
    let path = volume.path("file");
    fs::write(&path, b"before").expect("write");
    let remount = |options: &str| {
        let (source, point) = (volume.source().display().to_string(), volume.mnt().display().to_string());
        volume.brine(&["mount", &source, &point, "-o", &format!("remount,{options}")])
    };
    let flags = || mount_line(volume.mnt()).unwrap_or_default().split(' ').nth(5).unwrap_or_default().to_owned();
    remount("ro,suid").expect_success();
    assert!(flags().starts_with("ro,") && !flags().contains("nosuid") && flags().contains("nodev"), "{}", flags());
    let refused = fs::write(&path, b"not now").expect_err("written to a read-only mount");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read(&path).expect("read"), b"before");
    remount("rw,noexec,noatime").expect_success();
    assert!(flags().starts_with("rw,") && flags().contains("noexec") && flags().contains("nosuid"), "{}", flags());
    fs::write(&path, b"after").expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"after");
    remount("frobnicate").expect_refusal().says(&["frobnicate"]);
    let elsewhere = volume.root().display().to_string();
    volume.brine(&["mount", &volume.source().display().to_string(), &elsewhere, "-o", "remount,ro"]).expect_refusal();
}

#[test]
fn a_mount_nobody_uses_is_unmounted_when_asked_to() {
    let mut volume = TestVolume::new("idle", 3, (2, 1));
    volume.umount();
    volume.mount_with(&["idle=2s"]);
    let open = fs::File::create(volume.path("file")).expect("create");
    std::thread::sleep(Duration::from_secs(4));
    assert!(is_mounted(volume.mnt()), "unmounted while a file was open");
    drop(open);
    assert!(wait_until(Duration::from_secs(30), || !is_mounted(volume.mnt())), "nobody used it for 30 s");
    let daemon = volume.daemon().cloned().expect("a daemon");
    assert!(daemon.wait_gone(Duration::from_secs(30)), "the daemon goes on without a mount");
    volume.forget_daemon();
    volume.mount();
    assert!(volume.path("file").exists());
}

#[test]
fn access_times_are_noted_as_asked_for() {
    for (options, file_noted, directory_noted) in
        [("relatime", true, true), ("noatime", false, false), ("nodiratime", true, false), ("strictatime", true, true)]
    {
        let mut volume = TestVolume::new("atime", 3, (2, 1));
        fs::create_dir(volume.path("dir")).expect("mkdir");
        fs::write(volume.path("dir/file"), b"content").expect("write");
        let old = (1_000_000_000, 0);
        for name in ["dir/file", "dir"] {
            brine_tests::conformance::sys::utimens(&volume.path(name), old, (1_000_000_001, 0), 0).expect("utimens");
        }
        volume.umount();
        volume.mount_with(&[options]);
        fs::read(volume.path("dir/file")).expect("read");
        assert_eq!(fs::read_dir(volume.path("dir")).expect("list").count(), 1);
        let noted = |name: &str| fs::metadata(volume.path(name)).expect("stat").atime() != old.0;
        assert_eq!((noted("dir/file"), noted("dir")), (file_noted, directory_noted), "with {options}");
    }
}

#[test]
fn limits_of_the_kernel_and_the_library_are_errors() {
    use std::os::fd::AsRawFd;
    let volume = TestVolume::new("limits", 3, (2, 1));
    let open = brine_tests::conformance::sys::open;
    let unnamed = open(volume.mnt(), libc::O_TMPFILE | libc::O_RDWR, 0o600).expect_err("O_TMPFILE works now");
    assert_eq!(unnamed, nix::errno::Errno::EOPNOTSUPP);
    fs::write(volume.path("file"), vec![1; 1 << 20]).expect("write");
    let file = open(&volume.path("file"), libc::O_RDWR, 0).expect("open");
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        let got = brine_tests::conformance::sys::fallocate(file.as_raw_fd(), mode, 0, 131_072);
        assert_eq!(got, Err(nix::errno::Errno::EOPNOTSUPP), "mode {mode} works now");
    }
    assert!(sys::list_xattrs(&volume.path("file")).expect("list").is_empty());
}
