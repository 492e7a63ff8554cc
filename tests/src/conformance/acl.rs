//! POSIX access control lists: acl(5). Lists are given as the bytes of the extended attributes that hold them.

use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{OTHER, USER, file, mode_of};
use super::sys;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const U: u16 = 1;
const USER_TAG: u16 = 2;
const G: u16 = 4;
const GROUP_TAG: u16 = 8;
const M: u16 = 16;
const O: u16 = 32;
const NONE: u32 = u32::MAX;

fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// user::rw-, user:USER:..., group::r--, mask::..., other::---
fn of_user(perm: u16, mask: u16) -> Vec<u8> {
    list(&[(U, 6, NONE), (USER_TAG, perm, USER), (G, 4, NONE), (M, mask, NONE), (O, 0, NONE)])
}

fn of_group(perm: u16, mask: u16) -> Vec<u8> {
    list(&[(U, 6, NONE), (G, 0, NONE), (GROUP_TAG, perm, USER), (M, mask, NONE), (O, 0, NONE)])
}

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    sys::getxattr(path, name, 65536).ok()
}

pub fn checks(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"content");
    sys::chmod(&path, 0o600).expect("chmod");
    s.fails("no list at first", sys::getxattr(&path, ACCESS, 100), Errno::ENODATA);
    enforcement(s, &path);
    in_step(s, &path);
    refusals(s, &dir, &path);
    inheritance(s);
    set_gid(s);
}

fn enforcement(s: &mut Suite, path: &Path) {
    for (who, make) in [("user", of_user as fn(u16, u16) -> Vec<u8>), ("group", of_group)] {
        for perm in 0..8 {
            for mask in [0, 4, 6, 7] {
                s.works(
                    format!("set {who} {perm} mask {mask}"),
                    sys::setxattr(path, ACCESS, &make(perm, mask), 0, true),
                );
                s.is(format!("mode of {who} {perm} mask {mask}"), mode_of(path), 0o600 | u32::from(mask) << 3);
                for (flags, bits) in [(libc::O_RDONLY, 4), (libc::O_RDWR, 6)] {
                    let got = sys::as_user(USER, USER, &[], || sys::open(path, flags, 0));
                    let want = if perm & mask & bits == bits { None } else { Some(Errno::EACCES) };
                    s.answers(format!("open {flags} by {who} with {perm}, mask {mask}"), got, want);
                }
                let got = sys::as_user(OTHER, OTHER, &[], || sys::open(path, libc::O_RDONLY, 0));
                s.fails(format!("open by others, {who} {perm} mask {mask}"), got, Errno::EACCES);
            }
        }
    }
}

fn in_step(s: &mut Suite, path: &Path) {
    let before = of_user(7, 7);
    s.works("set", sys::setxattr(path, ACCESS, &before, 0, true));
    s.is("read back", get(path, ACCESS), Some(before));
    for mode in [0o640, 0o604, 0o777, 0o000, 0o750] {
        sys::chmod(path, mode).expect("chmod");
        let bits = |shift: u32| (mode >> shift & 7) as u16;
        let want =
            list(&[(U, bits(6), NONE), (USER_TAG, 7, USER), (G, 4, NONE), (M, bits(3), NONE), (O, bits(0), NONE)]);
        s.is(format!("list after chmod {mode:o}"), get(path, ACCESS), Some(want));
        s.is(format!("mode after chmod {mode:o}"), mode_of(path), mode);
    }
    s.is("it is listed", sys::listxattr(path, 1000).map(|names| names.contains(&ACCESS.to_owned())), Ok(true));
    let plain = list(&[(U, 7, NONE), (G, 5, NONE), (O, 1, NONE)]);
    s.works("set a list of three", sys::setxattr(path, ACCESS, &plain, 0, true));
    s.is("its mode", mode_of(path), 0o751);
    s.fails("it is not kept", sys::getxattr(path, ACCESS, 100), Errno::ENODATA);
    s.works("set again", sys::setxattr(path, ACCESS, &of_user(7, 5), 0, true));
    s.works("remove", sys::removexattr(path, ACCESS));
    s.is("the mode stays", mode_of(path), 0o650);
    s.fails("it is gone", sys::getxattr(path, ACCESS, 100), Errno::ENODATA);
    s.works("set again", sys::setxattr(path, ACCESS, &of_user(7, 5), 0, true));
    sys::chown(path, OTHER, OTHER).expect("chown");
    s.is("chown keeps it", get(path, ACCESS), Some(of_user(7, 5)));
    let got = sys::as_user(OTHER, OTHER, &[], || sys::setxattr(path, ACCESS, &of_user(4, 4), 0, true));
    s.works("the owner sets it", got);
    let got = sys::as_user(USER, USER, &[], || sys::setxattr(path, ACCESS, &of_user(7, 7), 0, true));
    s.fails("a named user does not", got, Errno::EPERM);
    let got = sys::as_user(USER, USER, &[], || sys::removexattr(path, ACCESS));
    s.fails("nor removes it", got, Errno::EPERM);
}

fn refusals(s: &mut Suite, dir: &Path, path: &Path) {
    let wrong = [
        ("no others", list(&[(U, 7, NONE), (G, 5, NONE)])),
        ("no owner", list(&[(G, 5, NONE), (O, 0, NONE)])),
        ("no mask", list(&[(U, 7, NONE), (USER_TAG, 7, USER), (G, 5, NONE), (O, 0, NONE)])),
        ("out of order", list(&[(O, 0, NONE), (G, 5, NONE), (U, 7, NONE)])),
        ("two masks", list(&[(U, 7, NONE), (G, 5, NONE), (M, 1, NONE), (M, 2, NONE), (O, 0, NONE)])),
        ("too many bits", list(&[(U, 8, NONE), (G, 5, NONE), (O, 0, NONE)])),
        ("an unknown tag", list(&[(U, 7, NONE), (G, 5, NONE), (O, 0, NONE), (64, 0, NONE)])),
        ("half an entry", list(&[(U, 7, NONE)])[..9].to_vec()),
    ];
    for (what, bytes) in wrong {
        s.fails(format!("a list with {what}"), sys::setxattr(path, ACCESS, &bytes, 0, true), Errno::EINVAL);
    }
    let mut version = of_user(7, 7);
    version[0] = 3;
    s.fails("another version", sys::setxattr(path, ACCESS, &version, 0, true), Errno::EOPNOTSUPP);
    s.fails("a default list on a file", sys::setxattr(path, DEFAULT, &of_user(7, 7), 0, true), Errno::EACCES);
    sys::symlink(Path::new("file"), &dir.join("link")).expect("symlink");
    let got = sys::setxattr(&dir.join("link"), ACCESS, &of_user(7, 7), 0, false);
    s.fails("a list on a symbolic link", got, Errno::EOPNOTSUPP);
    s.fails("a buffer too small", sys::getxattr(path, ACCESS, 5), Errno::ERANGE);
    s.is("its length", sys::getxattr(path, ACCESS, 0).map(|bytes| bytes.len()), Ok(44));
}

fn inheritance(s: &mut Suite) {
    let dir = s.dir();
    let default = list(&[(U, 7, NONE), (USER_TAG, 7, USER), (G, 5, NONE), (M, 7, NONE), (O, 0, NONE)]);
    s.works("set a default list", sys::setxattr(&dir, DEFAULT, &default, 0, true));
    s.is("the directory's mode stays", mode_of(&dir), 0o755);
    s.is("read back", get(&dir, DEFAULT), Some(default.clone()));
    for asked in [0o666u32, 0o644, 0o600, 0o777, 0o640, 0o070, 0o007] {
        let path = dir.join(format!("f{asked:o}"));
        sys::with_umask(0o077, || sys::open(&path, libc::O_CREAT | libc::O_EXCL, asked)).expect("create");
        let bits = |shift: u32| (asked >> shift & 7) as u16;
        // The umask has no say.
        s.is(format!("mode of a file made with {asked:o}"), mode_of(&path), asked & 0o770);
        let want = list(&[(U, bits(6), NONE), (USER_TAG, 7, USER), (G, 5, NONE), (M, bits(3), NONE), (O, 0, NONE)]);
        s.is(format!("list of a file made with {asked:o}"), get(&path, ACCESS), Some(want));
        s.is(format!("no default list of a file made with {asked:o}"), get(&path, DEFAULT), None);
        let path = dir.join(format!("d{asked:o}"));
        sys::with_umask(0o077, || sys::mkdir(&path, asked)).expect("mkdir");
        s.is(format!("mode of a directory made with {asked:o}"), mode_of(&path), asked & 0o770);
        s.is(format!("default list of a directory made with {asked:o}"), get(&path, DEFAULT), Some(default.clone()));
        let path = dir.join(format!("p{asked:o}"));
        sys::with_umask(0o077, || sys::mknod(&path, libc::S_IFIFO | asked, 0)).expect("mknod");
        s.is(format!("mode of a fifo made with {asked:o}"), mode_of(&path), asked & 0o770);
    }
    sys::symlink(Path::new("x"), &dir.join("link")).expect("symlink");
    s.is("mode of a symbolic link", mode_of(&dir.join("link")), 0o777);
    let plain = list(&[(U, 7, NONE), (G, 5, NONE), (O, 1, NONE)]);
    s.works("set a default list of three", sys::setxattr(&dir, DEFAULT, &plain, 0, true));
    sys::with_umask(0o077, || sys::mkdir(&dir.join("plain"), 0o777)).expect("mkdir");
    s.is("mode by it", mode_of(&dir.join("plain")), 0o751);
    s.is("no access list by it", get(&dir.join("plain"), ACCESS), None);
    s.is("the default list goes on", get(&dir.join("plain"), DEFAULT), Some(plain));
    s.works("remove the default list", sys::removexattr(&dir, DEFAULT));
    sys::with_umask(0o027, || sys::mkdir(&dir.join("without"), 0o777)).expect("mkdir");
    s.is("the umask counts again", mode_of(&dir.join("without")), 0o750);
    s.is("nothing is inherited", get(&dir.join("without"), DEFAULT), None);
}

fn set_gid(s: &mut Suite) {
    let dir = s.dir();
    for (who, uid, gid, groups, kept) in [
        ("a member", USER, USER, &[][..], true),
        ("a supplementary member", USER, OTHER, &[USER][..], true),
        ("a stranger to the group", USER, OTHER, &[][..], false),
    ] {
        let path = dir.join(who);
        file(&path, b"");
        sys::chown(&path, USER, USER).expect("chown");
        sys::chmod(&path, 0o2755).expect("chmod");
        let got = sys::as_user(uid, gid, groups, || sys::setxattr(&path, ACCESS, &of_user(7, 7), 0, true));
        s.works(format!("set by {who}"), got);
        s.is(format!("set-group-id after a list set by {who}"), mode_of(&path) & 0o2000 != 0, kept);
    }
}
