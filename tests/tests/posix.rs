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
fn more_names_than_a_mount_was_told_are_refused() {
    let mut volume = TestVolume::new("links", 3, (2, 1));
    volume.umount();
    volume.mount_with(&["link_max=10"]);
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.expect_err("one too many").raw_os_error(), Some(libc::EMLINK));
    };
    fs::write(volume.path("file"), b"x").expect("write");
    let link = |volume: &TestVolume, i: u32| fs::hard_link(volume.path("file"), volume.path(&format!("name{i}")));
    (1..10).for_each(|i| link(&volume, i).expect("up to the limit"));
    refused(link(&volume, 10));
    let sub = |i: u32| volume.path(&format!("dir/{i}"));
    fs::create_dir(volume.path("dir")).expect("mkdir");
    (2..10).for_each(|i| fs::create_dir(sub(i)).expect("up to the limit"));
    refused(fs::create_dir(sub(10)));
    fs::create_dir(volume.path("other")).expect("mkdir");
    refused(fs::rename(volume.path("other"), sub(10)));
    fs::remove_file(volume.path("name1")).expect("remove");
    link(&volume, 1).expect("a name is free again");
    assert_eq!(fs::metadata(volume.path("file")).expect("stat").nlink(), 10);
    volume.remount();
    link(&volume, 10).expect("no such limit now");
    volume.expect_clean();
}

#[test]
fn fsx_finds_no_wrong_byte() {
    println!("{}", posix::fsx(2, 1500));
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
    let shell = brine_tests::command::shell;
    let cloned = shell(volume.mnt(), "cp --reflink=always file clone").expect_refusal();
    assert!(cloned.text().contains("not supported"), "FICLONE: {}", cloned.text());
    shell(volume.mnt(), "cp --reflink=auto file clone && cmp file clone").expect_success();
}

/// CAP_FSETID keeps set-id bits, whoever has it. Of writes the kernel tells the daemon; of cutting the library does not.
#[test]
fn capabilities_of_who_cuts_a_file_are_not_known() {
    let mut volume = TestVolume::new("capabilities", 3, (2, 1));
    volume.umount();
    volume.mount_with(&["allow_other", "suid"]);
    let disk = brine_tests::environment::temp_dir("capabilities");
    let mode_after = |dir: &std::path::Path, command: &[&str]| {
        let path = dir.join("program");
        let _ = fs::remove_file(&path);
        fs::write(&path, b"program").expect("write");
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).expect("chown");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("chmod");
        // Open from here on: the user may not reach the place.
        let program = fs::OpenOptions::new().append(true).open(&path).expect("open");
        let mut writer = std::process::Command::new(brine_tests::command::program("setpriv"));
        writer.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=+fsetid", "--ambient-caps=+fsetid"]);
        let status = writer.args(command).stdout(program).status().expect("setpriv");
        assert!(status.success());
        path.metadata().expect("stat").mode() & 0o7777
    };
    let (write, cut) = (["echo", "more"], ["truncate", "-s", "3", "/proc/self/fd/1"]);
    let (here, there) = (mode_after(volume.mnt(), &write), mode_after(&disk, &write));
    assert_eq!((here, there), (0o4755, 0o4755), "who writes has the capability");
    let (here, there) = (mode_after(volume.mnt(), &cut), mode_after(&disk, &cut));
    let _ = fs::remove_dir_all(&disk);
    assert_eq!(there, 0o4755, "a disk looks at the capability");
    assert_eq!(here, 0o755, "the daemon knows of the capability now: say so in docs/SEMANTICS.md");
}

#[test]
fn a_volume_first_mounted_read_only_stays_so() {
    let mut volume = TestVolume::new("first-ro", 3, (2, 1));
    volume.umount();
    volume.mount_with(&["ro"]);
    let (source, point) = (volume.source().display().to_string(), volume.mnt().display().to_string());
    let _ = volume.brine(&["mount", &source, &point, "-o", "remount,rw"]);
    let refused = fs::write(volume.path("file"), b"x").expect_err("written");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
}

/// What an NFS server does: it knows files by handles, and asks for them when the kernel has long forgotten them.
#[test]
fn file_handles_outlive_what_the_kernel_has_cached() {
    let mut volume = TestVolume::new("handles", 3, (2, 1));
    fs::create_dir_all(volume.path("a/b")).expect("mkdir");
    fs::write(volume.path("a/b/file"), b"content").expect("write");
    fs::write(volume.path("gone"), b"gone").expect("write");
    let paths = ["a", "a/b", "a/b/file", "gone"].map(|path| volume.path(path));
    let mut handles = paths.map(|path| sys::Handle::of(&path).expect("name_to_handle_at"));
    fs::remove_file(volume.path("gone")).expect("unlink");
    fs::rename(volume.path("a"), volume.path("moved")).expect("rename");
    for again in [false, true] {
        if again {
            volume.remount();
        }
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop what the kernel has cached");
        let mount = fs::File::open(volume.mnt()).expect("open");
        let [a, b, file, gone] = &mut handles;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file.open(&mount).expect("open_by_handle_at"), &mut text).expect("read");
        assert_eq!(text, "content");
        let inode = |file: &fs::File| file.metadata().expect("stat").ino();
        for (handle, path) in [(a, "moved"), (b, "moved/b")] {
            let found = handle.open(&mount).expect("open_by_handle_at");
            assert_eq!(inode(&found), volume.path(path).metadata().expect("stat").ino(), "{path}");
        }
        assert_eq!(gone.open(&mount).expect_err("it is gone").raw_os_error(), Some(libc::ESTALE));
    }
}

#[test]
fn a_mount_out_of_sight_works_until_nobody_uses_it() {
    let mut volume = TestVolume::new("lazy", 3, (2, 1));
    fs::write(volume.path("file"), b"before").expect("write");
    let mut file = fs::OpenOptions::new().append(true).read(true).open(volume.path("file")).expect("open");
    let daemon = volume.daemon().expect("a daemon").clone();
    let point = volume.mnt().display().to_string();
    brine_tests::command::shell(volume.root(), &format!("umount -l {point}")).expect_success();
    assert!(!is_mounted(volume.mnt()) && daemon.alive());
    std::io::Write::write_all(&mut file, b" and after").expect("write");
    file.sync_all().expect("fsync");
    std::io::Write::write_all(&mut file, b", unsynced").expect("write");
    assert_eq!(std::os::unix::fs::FileExt::read_at(&file, &mut [0; 100], 0).expect("read"), 26);
    assert!(daemon.alive(), "the daemon ended while a file was open");
    drop(file);
    assert!(daemon.wait_gone(Duration::from_secs(60)), "the daemon goes on though nobody uses the mount");
    volume.forget_daemon();
    volume.mount();
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"before and after, unsynced");
    volume.expect_clean();
}

#[test]
fn ids_are_not_mapped_and_asking_for_it_is_an_error() {
    let mut volume = TestVolume::new("ids", 3, (2, 1));
    // A user namespace to take ids from.
    let unshare = brine_tests::command::program("unshare");
    let mut holder = std::process::Command::new(unshare);
    let mut holder = holder.args(["--user", "--map-root-user", "sleep", "60"]).spawn().expect("unshare");
    let users = format!("/proc/{}/ns/user", holder.id());
    let own = fs::read_link("/proc/self/ns/user").expect("own namespace");
    let parted = wait_until(Duration::from_secs(10), || fs::read_link(&users).is_ok_and(|other| other != own));
    let mapped = fs::read_to_string(format!("/proc/{}/uid_map", holder.id())).is_ok_and(|map| !map.is_empty());
    let users = fs::File::open(&users).expect("open the namespace");
    let here = sys::map_ids(volume.mnt(), &users);
    let there = sys::map_ids(volume.root(), &users);
    let _ = holder.kill();
    let _ = holder.wait();
    assert!(parted, "unshare made no user namespace");
    there.expect("a disk's ids can be mapped");
    let refused = here.expect_err("the kernel maps ids of brine's mounts now: say so in docs/SEMANTICS.md");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "with ids mapped: {mapped}");
    volume.umount();
    for (option, next) in
        [("uid=1000", "chown"), ("gid=7", "chgrp"), ("umask=022", "chmod"), ("X-mount.idmap=0:1:1", "chown")]
    {
        volume.try_mount(&[option]).expect_refusal().says(&[next]);
    }
}
