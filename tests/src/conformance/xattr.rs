//! Extended attributes: xattr(7).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, OTHER, USER, file, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "setxattr", Last::Followed, &|path| sys::setxattr(path, "user.a", b"1", 0, true));
    path_errors(s, "getxattr", Last::Itself, &|path| sys::getxattr(path, "user.a", 10).map(drop));
    path_errors(s, "listxattr", Last::Itself, &|path| sys::listxattr(path, 10).map(drop));
    path_errors(s, "removexattr", Last::Itself, &|path| sys::removexattr(path, "user.a"));
    kinds(s);
    values(s);
    permissions(s);
}

fn kinds(s: &mut Suite) {
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        for (name, may) in
            [("user.x", matches!(kind, Kind::File | Kind::Dir)), ("trusted.x", true), ("security.x", true)]
        {
            let want = (!may).then_some(Errno::EPERM);
            s.answers(format!("{name} of {kind:?}"), sys::setxattr(&path, name, b"value", 0, false), want);
            let want = if may { Ok(b"value".to_vec()) } else { Err(Errno::ENODATA) };
            // The user namespace does not exist there at all.
            s.is(format!("{name} of {kind:?} back"), sys::getxattr(&path, name, 100), want);
        }
        for name in ["nothing", "foo.x", "system.x", "os2.x"] {
            s.fails(format!("{name} of {kind:?}"), sys::setxattr(&path, name, b"x", 0, false), Errno::EOPNOTSUPP);
        }
    }
}

fn values(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"x");
    let set = |name: &str, value: &[u8], flags: i32| sys::setxattr(&path, name, value, flags, true);
    for len in [0usize, 1, 100, 255, 1000, 2000] {
        let value = crate::content(len as u64, len);
        s.works(format!("{len} bytes"), set("user.len", &value, 0));
        s.is(format!("{len} bytes back"), sys::getxattr(&path, "user.len", 65536), Ok(value));
        s.is(format!("length of {len}"), sys::getxattr(&path, "user.len", 0).map(|got| got.len()), Ok(len));
        if len > 1 {
            s.fails(format!("{len} bytes into less"), sys::getxattr(&path, "user.len", len - 1), Errno::ERANGE);
        }
    }
    s.works("an empty value", set("user.empty", b"", 0));
    s.is("is a value", sys::getxattr(&path, "user.empty", 10), Ok(vec![]));
    for (what, name, flags, want) in [
        ("create what exists", "user.len", libc::XATTR_CREATE, Some(Errno::EEXIST)),
        ("replace what exists", "user.len", libc::XATTR_REPLACE, None),
        ("replace what does not", "user.no", libc::XATTR_REPLACE, Some(Errno::ENODATA)),
        ("create what does not", "user.new", libc::XATTR_CREATE, None),
        ("unknown flags", "user.len", 64, Some(Errno::EINVAL)),
        ("no name", "", 0, Some(Errno::ERANGE)),
        ("a namespace without a name", "user.", 0, Some(Errno::EINVAL)),
    ] {
        s.answers(what, set(name, b"v", flags), want);
    }
    let longest = format!("user.{}", "n".repeat(250));
    s.works("a name of 255 bytes", set(&longest, b"v", 0));
    s.fails("a name of 256 bytes", set(&format!("{longest}n"), b"v", 0), Errno::ERANGE);
    s.fails("more than 64 KiB", set("user.big", &vec![1; 65537], 0), Errno::E2BIG);
    s.fails("getting what is not there", sys::getxattr(&path, "user.no", 10), Errno::ENODATA);
    s.fails("removing what is not there", sys::removexattr(&path, "user.no"), Errno::ENODATA);
    s.works("remove", sys::removexattr(&path, "user.len"));
    s.fails("removed", sys::getxattr(&path, "user.len", 10), Errno::ENODATA);
    let mut want = vec!["user.empty".to_owned(), "user.new".to_owned(), longest];
    want.sort();
    s.is("the list", sys::listxattr(&path, 65536), Ok(want.clone()));
    s.fails("the list into less", sys::listxattr(&path, 20), Errno::ERANGE);
    s.is("the list into nothing", sys::listxattr(&path, 0), Ok(vec![]));
    sys::link(&path, &dir.join("second")).expect("link");
    s.is("of another name", sys::listxattr(&dir.join("second"), 65536), Ok(want.clone()));
    sys::rename(&path, &dir.join("renamed")).expect("rename");
    s.is("after a rename", sys::listxattr(&dir.join("renamed"), 65536), Ok(want));
    file(&path, b"anew");
    s.is("a new file has none", sys::listxattr(&path, 100), Ok(vec![]));
}

fn permissions(s: &mut Suite) {
    let dir = s.dir();
    let path = dir.join("file");
    file(&path, b"x");
    sys::chown(&path, USER, USER).expect("chown");
    for name in ["user.a", "trusted.a", "security.a"] {
        sys::setxattr(&path, name, b"v", 0, true).expect("setxattr");
    }
    let by = |uid: u32, run: &(dyn Fn() -> Result<(), Errno> + Sync)| sys::as_user(uid, uid, &[], run);
    let get = |name: &'static str, path: &std::path::Path| sys::getxattr(path, name, 10).map(drop);
    sys::chmod(&path, 0o600).expect("chmod");
    for (what, uid, want, run) in [
        ("get user.a by the owner", USER, None, &(|| get("user.a", &path)) as &(dyn Fn() -> Result<(), Errno> + Sync)),
        ("set user.a by the owner", USER, None, &|| sys::setxattr(&path, "user.a", b"w", 0, true)),
        ("get user.a by another", OTHER, Some(Errno::EACCES), &|| get("user.a", &path)),
        ("set user.a by another", OTHER, Some(Errno::EACCES), &|| sys::setxattr(&path, "user.a", b"w", 0, true)),
        ("remove user.a by another", OTHER, Some(Errno::EACCES), &|| sys::removexattr(&path, "user.a")),
        ("set trusted.a by the owner", USER, Some(Errno::EPERM), &|| sys::setxattr(&path, "trusted.a", b"w", 0, true)),
        ("get trusted.a by the owner", USER, Some(Errno::ENODATA), &|| get("trusted.a", &path)),
        ("set security.a by the owner", USER, Some(Errno::EPERM), &|| {
            sys::setxattr(&path, "security.a", b"w", 0, true)
        }),
        ("get security.a by the owner", USER, None, &|| get("security.a", &path)),
        ("list by another", OTHER, None, &|| sys::listxattr(&path, 1000).map(drop)),
    ] {
        s.answers(what, by(uid, run), want);
    }
    let names = sys::as_user(USER, USER, &[], || sys::listxattr(&path, 1000));
    s.is("trusted is not listed to users", names, Ok(vec!["security.a".to_owned(), "user.a".to_owned()]));
    sys::chmod(&path, 0o444).expect("chmod");
    let got = by(USER, &|| sys::setxattr(&path, "user.a", b"w", 0, true));
    s.fails("set user.a of what is read-only", got, Errno::EACCES);
    let sticky = s.dir();
    sys::chmod(&sticky, 0o1777).expect("chmod");
    let got = by(USER, &|| sys::setxattr(&sticky, "user.a", b"w", 0, true));
    s.fails("set user.a of another's sticky directory", got, Errno::EPERM);
}
