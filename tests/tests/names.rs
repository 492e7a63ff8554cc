//! POSIX semantics through a real mount: names, attributes, directories.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use brine_tests::command::{errno, shell, shell_as};
use brine_tests::environment::STRANGER;
use brine_tests::scenario::load;
use brine_tests::sys::{get_xattr, list_xattrs, remove_xattr, set_xattr};
use brine_tests::{Builder, TestVolume};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

fn small(name: &str) -> TestVolume {
    TestVolume::new(name, 3, (2, 1))
}

/// The names in a directory, but for the exec directory that every volume has in its root.
fn listing(dir: &Path) -> BTreeSet<OsString> {
    let names = fs::read_dir(dir).expect("readdir").map(|entry| entry.expect("readdir").file_name());
    names.filter(|name| name != "exec").collect()
}

#[test]
fn directories_are_made_listed_and_removed() {
    let mut volume = small("mkdir");
    fs::create_dir(volume.path("a")).expect("mkdir");
    assert_eq!(fs::metadata(volume.path("a")).expect("stat").nlink(), 2);
    fs::create_dir(volume.path("a/b")).expect("mkdir");
    assert_eq!(fs::metadata(volume.path("a")).expect("stat").nlink(), 3, "a directory's links count its children");
    assert_eq!(errno(fs::create_dir(volume.path("a"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(volume.path("a"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(volume.path("a"))), libc::EISDIR);
    fs::write(volume.path("file"), b"").expect("write");
    assert_eq!(errno(fs::remove_dir(volume.path("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::read_dir(volume.path("file/x"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(volume.path("none"))), libc::ENOENT);
    volume.remount();
    assert_eq!(listing(volume.mnt()), BTreeSet::from(["a".into(), "file".into()]));
    fs::remove_dir(volume.path("a/b")).expect("rmdir");
    fs::remove_dir(volume.path("a")).expect("rmdir");
    assert_eq!(listing(volume.mnt()), BTreeSet::from(["file".into()]));
}

#[test]
fn every_flag_of_rename_does_what_posix_and_linux_say() {
    let mut volume = small("rename");
    let p = |name: &str| volume.path(name);
    let rename2 = |from: &str, to: &str, flags| renameat2(AT_FDCWD, &p(from), AT_FDCWD, &p(to), flags);
    fs::write(p("a"), b"a").expect("write");
    fs::write(p("b"), b"b").expect("write");
    assert_eq!(rename2("a", "b", RenameFlags::RENAME_NOREPLACE), Err(nix::errno::Errno::EEXIST));
    rename2("a", "c", RenameFlags::RENAME_NOREPLACE).expect("rename NOREPLACE");
    rename2("b", "c", RenameFlags::RENAME_EXCHANGE).expect("rename EXCHANGE");
    assert_eq!((fs::read(p("b")).expect("read"), fs::read(p("c")).expect("read")), (b"a".to_vec(), b"b".to_vec()));
    assert_eq!(rename2("b", "none", RenameFlags::RENAME_EXCHANGE), Err(nix::errno::Errno::ENOENT));
    fs::create_dir_all(p("dir/sub")).expect("mkdir");
    rename2("dir", "c", RenameFlags::RENAME_EXCHANGE).expect("exchange a directory and a file");
    assert!(p("c/sub").is_dir() && p("dir").is_file());
    rename2("dir", "c/moved", RenameFlags::empty()).expect("rename into a directory");
    assert_eq!(errno(fs::rename(p("c"), p("c/sub/x"))), libc::EINVAL, "a directory into itself");
    fs::create_dir(p("other")).expect("mkdir");
    assert_eq!(errno(fs::rename(p("other"), p("c"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(p("other"), p("b"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(p("b"), p("other"))), libc::EISDIR);
    fs::rename(p("c"), p("other")).expect("a directory over an empty one");
    fs::hard_link(p("b"), p("same")).expect("link");
    fs::rename(p("b"), p("same")).expect("rename between two links of one file does nothing");
    assert!(p("b").exists() && p("same").exists());
    let links = fs::metadata(volume.mnt()).expect("stat").nlink();
    // "." and "..", exec/ and the one directory that is left.
    assert_eq!(links, 4, "the root's links after renames of directories");
    volume.remount();
    assert_eq!(fs::read(volume.path("other/moved")).expect("read"), b"b");
    assert_eq!(listing(volume.mnt()), ["b", "same", "other"].map(OsString::from).into());
}

#[test]
fn a_moved_directory_keeps_its_tree_and_its_parent_is_the_new_one() {
    let mut volume = small("move-tree");
    let deep: PathBuf = std::iter::repeat_n("deep", 200).collect();
    fs::create_dir_all(volume.path("from").join(&deep)).expect("mkdir");
    fs::create_dir(volume.path("to")).expect("mkdir");
    fs::write(volume.path("from").join(&deep).join("file"), b"text").expect("write");
    fs::rename(volume.path("from"), volume.path("to/here")).expect("rename");
    volume.remount();
    assert_eq!(fs::read(volume.path("to/here").join(&deep).join("file")).expect("read"), b"text");
    let parent = fs::metadata(volume.path("to/here/..")).expect("stat").ino();
    assert_eq!(parent, fs::metadata(volume.path("to")).expect("stat").ino());
    fs::remove_dir_all(volume.path("to")).expect("remove a deep tree");
}

#[test]
fn hard_links_share_one_file() {
    let mut volume = small("link");
    fs::write(volume.path("a"), b"text").expect("write");
    fs::create_dir(volume.path("dir")).expect("mkdir");
    fs::hard_link(volume.path("a"), volume.path("dir/b")).expect("link");
    assert_eq!(errno(fs::hard_link(volume.path("dir"), volume.path("dir2"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(volume.path("a"), volume.path("dir/b"))), libc::EEXIST);
    let same = |volume: &TestVolume| {
        let (a, b) = (fs::metadata(volume.path("a")).expect("stat"), fs::metadata(volume.path("dir/b")).expect("stat"));
        assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
    };
    same(&volume);
    volume.remount();
    same(&volume);
    fs::write(volume.path("dir/b"), b"changed").expect("write");
    fs::remove_file(volume.path("dir/b")).expect("unlink");
    assert_eq!(fs::read(volume.path("a")).expect("read"), b"changed");
    assert_eq!(fs::metadata(volume.path("a")).expect("stat").nlink(), 1);
}

#[test]
fn symlinks_of_every_length_are_kept() {
    let mut volume = small("symlink");
    for len in [1, 59, 60, 255, 1000, 4095] {
        symlink("x".repeat(len), volume.path(&format!("link-{len}"))).expect("symlink");
    }
    symlink("loop", volume.path("loop")).expect("symlink");
    symlink("dir/../target", volume.path("good")).expect("symlink");
    fs::create_dir(volume.path("dir")).expect("mkdir");
    fs::write(volume.path("target"), b"text").expect("write");
    volume.remount();
    for len in [1, 59, 60, 255, 1000, 4095] {
        let path = volume.path(&format!("link-{len}"));
        assert_eq!(fs::read_link(&path).expect("readlink").as_os_str().len(), len);
        assert_eq!(fs::symlink_metadata(&path).expect("lstat").len(), len as u64);
    }
    assert_eq!(errno(fs::read(volume.path("loop"))), libc::ELOOP);
    assert_eq!(fs::read(volume.path("good")).expect("read"), b"text");
}

#[test]
fn fifos_sockets_and_devices_are_kept() {
    let mut volume = small("special");
    mkfifo(&volume.path("fifo"), Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let socket = std::os::unix::net::UnixListener::bind(volume.path("socket"));
    // The path of the test may be too long for a socket.
    let bound = socket.is_ok();
    let device = nix::sys::stat::makedev(1, 3);
    mknod(&volume.path("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), device).expect("mknod");
    drop(socket);
    volume.remount();
    assert!(fs::symlink_metadata(volume.path("fifo")).expect("stat").file_type().is_fifo());
    if bound {
        assert!(fs::symlink_metadata(volume.path("socket")).expect("stat").file_type().is_socket());
    }
    let meta = fs::symlink_metadata(volume.path("null")).expect("stat");
    assert!(meta.file_type().is_char_device());
    assert_eq!(meta.rdev(), device);
}

#[test]
fn names_of_any_bytes_up_to_255_are_kept() {
    let mut volume = small("names");
    let names: Vec<Vec<u8>> = vec![
        vec![b'x'; 255],
        b"\xff\xfe\x80 not utf-8".to_vec(),
        b"new\nline\ttab".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        b" ".to_vec(),
        "\u{e9}".as_bytes().to_vec(),
        "e\u{301}".as_bytes().to_vec(),
        b"case".to_vec(),
        b"CASE".to_vec(),
        b"\"quote'\\back".to_vec(),
        b"%s%n".to_vec(),
    ];
    for name in &names {
        fs::write(volume.mnt().join(OsStr::from_bytes(name)), name).expect("write");
    }
    assert_eq!(errno(File::create(volume.path(&"x".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(volume.path(&"x".repeat(256)))), libc::ENAMETOOLONG);
    volume.remount();
    let expected: BTreeSet<OsString> = names.iter().map(|name| OsString::from_vec(name.clone())).collect();
    assert_eq!(listing(volume.mnt()), expected);
    for name in &names {
        assert_eq!(&fs::read(volume.mnt().join(OsStr::from_bytes(name))).expect("read"), name);
    }
}

#[test]
fn a_directory_of_100_000_entries_is_listed_completely_and_positions_stay() {
    println!("{}", load::large_directory(100_000));
}

#[test]
fn times_are_kept_to_the_nanosecond_and_change_when_they_must() {
    let mut volume = small("times");
    let path = volume.path("file");
    fs::write(&path, b"text").expect("write");
    let (access, change) = (TimeSpec::new(1_000_000_000, 123_456_789), TimeSpec::new(-86_400, 1));
    utimensat(AT_FDCWD, &path, &access, &change, UtimensatFlags::NoFollowSymlink).expect("utimensat");
    fs::write(volume.path("far"), b"").expect("write");
    let far = TimeSpec::new(7_258_118_400, 999_999_999);
    utimensat(AT_FDCWD, &volume.path("far"), &far, &far, UtimensatFlags::NoFollowSymlink).expect("utimensat");
    for _ in 0..2 {
        let meta = fs::metadata(&path).expect("stat");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-86_400, 1), "a time before 1970");
        assert_eq!((meta.atime(), meta.atime_nsec()), (1_000_000_000, 123_456_789));
        let meta = fs::metadata(volume.path("far")).expect("stat");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (7_258_118_400, 999_999_999), "a time after 2038");
        volume.remount();
    }
    let times = |path: &Path| {
        let meta = fs::metadata(path).expect("stat");
        ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()))
    };
    let pause = || std::thread::sleep(std::time::Duration::from_millis(15));
    let before = times(&path);
    pause();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let after = times(&path);
    assert!(after.0 == before.0 && after.1 > before.1, "chmod changes ctime only: {before:?} {after:?}");
    pause();
    fs::write(&path, b"changed").expect("write");
    assert!(times(&path).0 > after.0, "a write changes mtime");
    let dir = times(volume.mnt());
    pause();
    fs::remove_file(&path).expect("unlink");
    assert!(times(volume.mnt()).0 > dir.0, "unlink changes the directory's mtime");
}

#[test]
fn extended_attributes_of_all_namespaces_are_kept() {
    let mut volume = small("xattr");
    let path = volume.path("file");
    fs::write(&path, b"").expect("write");
    let large = vec![7; 60_000];
    set_xattr(&path, "user.one", b"1", 0).expect("setxattr");
    set_xattr(&path, "user.empty", b"", 0).expect("setxattr");
    set_xattr(&path, "user.large", &large, 0).expect("setxattr of 60,000 bytes");
    set_xattr(&path, "trusted.two", b"\0\xff", 0).expect("setxattr trusted");
    set_xattr(&path, "security.three", b"3", 0).expect("setxattr security");
    assert_eq!(errno(set_xattr(&path, "user.one", b"x", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(set_xattr(&path, "user.none", b"x", libc::XATTR_REPLACE)), libc::ENODATA);
    set_xattr(&path, "user.one", b"changed", libc::XATTR_REPLACE).expect("setxattr REPLACE");
    volume.remount();
    assert_eq!(get_xattr(&path, "user.one").expect("getxattr"), b"changed");
    assert_eq!(get_xattr(&path, "user.empty").expect("getxattr"), b"");
    assert_eq!(get_xattr(&path, "user.large").expect("getxattr"), large);
    assert_eq!(get_xattr(&path, "trusted.two").expect("getxattr"), b"\0\xff");
    assert_eq!(get_xattr(&path, "security.three").expect("getxattr"), b"3");
    let names = list_xattrs(&path).expect("listxattr");
    assert_eq!(names, ["security.three", "trusted.two", "user.empty", "user.large", "user.one"]);
    assert_eq!(errno(get_xattr(&path, "user.none")), libc::ENODATA);
    remove_xattr(&path, "user.one").expect("removexattr");
    assert_eq!(errno(remove_xattr(&path, "user.one")), libc::ENODATA);
    assert_eq!(errno(get_xattr(&path, "user.one")), libc::ENODATA);
    set_xattr(volume.mnt(), "user.root", b"root", 0).expect("setxattr on the root");
    fs::create_dir(volume.path("dir")).expect("mkdir");
    set_xattr(&volume.path("dir"), "user.dir", b"dir", 0).expect("setxattr on a directory");
    volume.remount();
    assert_eq!(get_xattr(volume.mnt(), "user.root").expect("getxattr"), b"root");
    assert_eq!(get_xattr(&volume.path("dir"), "user.dir").expect("getxattr"), b"dir");
}

#[test]
fn an_ordinary_user_may_do_what_permissions_allow_and_no_more() {
    let volume = Builder::new("permissions").directories(3).geometry(2, 1).option("allow_other").mount();
    let script = "
        umask 022
        echo secret >secret; chmod 600 secret
        echo public >public; chmod 644 public
        mkdir closed; chmod 700 closed
        mkdir open; chmod 777 open
        mkdir sticky; chmod 1777 sticky; echo mine >sticky/roots; chmod 666 sticky/roots
        mkdir grouped; chown 0:54321 grouped; chmod 2775 grouped
        echo program >suid; chmod 6777 suid";
    shell(volume.mnt(), script).expect_success();
    let may = |script: &str| shell_as(STRANGER, volume.mnt(), script);
    may("cat public").expect_success().says(&["public"]);
    may("echo x >open/file; mkdir open/dir; mv open/file open/dir/; rm -r open/dir").expect_success();
    may("echo more >>sticky/roots").expect_success();
    may("mkdir grouped/sub; touch grouped/file").expect_success();
    for forbidden in [
        "cat secret",
        "echo x >>public",
        "ls closed",
        "touch closed/x",
        "rm sticky/roots",
        "mv sticky/roots sticky/mine",
        "touch new",
        "rm public",
        "chmod 777 public",
        "chown 54321 public",
        "ln -s x link",
        "mkdir dir",
        "touch -d 2001-01-01 public",
    ] {
        let finished = may(forbidden);
        assert!(!finished.success(), "an ordinary user could `{forbidden}`");
        assert!(
            finished.stderr.contains("ermission denied") || finished.stderr.contains("not permitted"),
            "{finished}"
        );
    }
    let meta = fs::metadata(volume.path("grouped/sub")).expect("stat");
    assert_eq!((meta.gid(), meta.mode() & 0o2000), (STRANGER, 0o2000), "a set-group-id directory hands both on");
    may("echo changed >>suid").expect_success();
    let mode = fs::metadata(volume.path("suid")).expect("stat").mode();
    assert_eq!(mode & 0o6000, 0, "a write by another user clears set-user-id: {mode:o}");
    shell(volume.mnt(), "chmod 4755 suid; chown 54321:54321 suid").expect_success();
    assert_eq!(fs::metadata(volume.path("suid")).expect("stat").mode() & 0o4000, 0, "chown clears set-user-id");
    may("test -O suid; chmod 700 suid; touch -d 2001-01-01 suid").expect_success();
}

#[test]
fn without_allow_other_nobody_else_gets_in() {
    let volume = small("private");
    fs::write(volume.path("file"), b"text").expect("write");
    let finished = shell_as(STRANGER, volume.root(), "ls mnt");
    assert!(!finished.success(), "another user can list a private mount");
}

/// The attribute by which Linux hands POSIX access control lists to filesystems (linux/posix_acl_xattr.h): owner,
/// `user`, group, mask, others, with these permissions.
fn acl(owner: u16, user: (u32, u16), group: u16, mask: u16, other: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries =
        [(1u16, owner, NOBODY), (2, user.1, user.0), (4, group, NOBODY), (0x10, mask, NOBODY), (0x20, other, NOBODY)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
#[ignore = "POSIX ACLs are not there yet: docs/SEMANTICS.md says so"]
fn access_control_lists_are_kept_and_obeyed() {
    const ACCESS: &str = "system.posix_acl_access";
    let mut volume = Builder::new("acl").directories(3).geometry(2, 1).option("allow_other").mount();
    shell(volume.mnt(), "echo text >file; chmod 600 file; mkdir dir; chmod 755 dir").expect_success();
    let readable = acl(6, (STRANGER, 4), 0, 4, 0);
    set_xattr(&volume.path("file"), ACCESS, &readable, 0).expect("set an access control list");
    let open = acl(7, (STRANGER, 7), 5, 7, 5);
    set_xattr(&volume.path("dir"), ACCESS, &open, 0).expect("set an access control list");
    set_xattr(&volume.path("dir"), "system.posix_acl_default", &open, 0).expect("set a default access control list");
    volume.remount();
    assert_eq!(get_xattr(&volume.path("file"), ACCESS).expect("getxattr"), readable);
    assert_eq!(fs::metadata(volume.path("file")).expect("stat").mode() & 0o777, 0o640, "the mask shows as group bits");
    shell_as(STRANGER, volume.mnt(), "cat file; echo x >dir/new").expect_success().says(&["text"]);
    assert!(!shell_as(STRANGER, volume.mnt(), "echo x >>file").success(), "an access control list is not obeyed");
    fs::create_dir(volume.path("dir/inherits")).expect("mkdir");
    let inherited = get_xattr(&volume.path("dir/inherits"), "system.posix_acl_default").expect("it is inherited");
    assert_eq!(inherited, open);
    shell_as(STRANGER, volume.mnt(), "touch dir/inherits/file").expect_success();
    shell(volume.mnt(), "chmod 600 file").expect_success();
    assert!(!shell_as(STRANGER, volume.mnt(), "cat file").success(), "chmod does not change the mask");
}

#[test]
fn inode_numbers_stay_and_differ() {
    let mut volume = small("inodes");
    let mut seen = BTreeSet::new();
    for i in 0..200 {
        let path = volume.path(&format!("file-{i}"));
        fs::write(&path, b"x").expect("write");
        assert!(seen.insert(fs::metadata(&path).expect("stat").ino()), "an inode number is used twice");
    }
    let before: Vec<u64> =
        (0..200).map(|i| fs::metadata(volume.path(&format!("file-{i}"))).expect("stat").ino()).collect();
    volume.remount();
    let after: Vec<u64> =
        (0..200).map(|i| fs::metadata(volume.path(&format!("file-{i}"))).expect("stat").ino()).collect();
    assert_eq!(before, after);
}

#[test]
fn the_control_directory_is_not_listed() {
    let volume = small("control");
    fs::write(volume.path("file"), b"x").expect("write");
    assert_eq!(listing(volume.mnt()), BTreeSet::from(["file".into()]));
}
