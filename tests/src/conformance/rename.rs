//! rename(2): every kind over every kind.

use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, USER, file, links_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    let base = s.dir();
    let (old, new) = (base.join("old"), base.join("new"));
    path_errors(s, "rename from", Last::Itself, &|path| sys::rename(path, &new));
    file(&old, b"x");
    path_errors(s, "rename to", Last::Made, &|path| sys::rename(&old, path));
    for source in KINDS {
        for target in KINDS {
            let dir = s.dir();
            let (one, two) = (dir.join("one"), dir.join("two"));
            source.make(&one, 0o644).expect("make");
            target.make(&two, 0o755).expect("make");
            let inode = sys::lstat(&one).map(|stat| stat.st_ino);
            let want = match (source, target) {
                (Kind::Dir, Kind::Dir) => None,
                (Kind::Dir, _) => Some(Errno::ENOTDIR),
                (_, Kind::Dir) => Some(Errno::EISDIR),
                _ => None,
            };
            s.answers(format!("{source:?} over {target:?}"), sys::rename(&one, &two), want);
            if want.is_none() {
                s.is(format!("{source:?} is where {target:?} was"), sys::lstat(&two).map(|stat| stat.st_ino), inode);
                s.fails(format!("{source:?} has left its name"), sys::lstat(&one), Errno::ENOENT);
            } else {
                s.is(format!("{source:?} stays beside {target:?}"), sys::lstat(&one).map(|stat| stat.st_ino), inode);
            }
        }
    }
    directories(s);
    links(s);
    permissions(s);
    s.fails("to another filesystem", sys::rename(&old, Path::new("/proc/x")), Errno::EXDEV);
}

fn directories(s: &mut Suite) {
    let dir = s.dir();
    for name in ["a", "a/b", "a/b/c", "full", "full/x", "empty"] {
        sys::mkdir(&dir.join(name), 0o755).expect("mkdir");
    }
    for (from, to, want) in [
        ("empty", "full", Errno::ENOTEMPTY),
        ("a", "a/b/c/d", Errno::EINVAL),
        ("a", "a/b", Errno::EINVAL),
        ("a", "a/x", Errno::EINVAL),
        ("a/b/c", "a", Errno::ENOTEMPTY),
        ("a/.", "z", Errno::EBUSY),
        ("a/..", "z", Errno::EBUSY),
        ("a", "empty/.", Errno::EBUSY),
        ("a", "no/x", Errno::ENOENT),
    ] {
        s.fails(format!("{from} to {to}"), sys::rename(&dir.join(from), &dir.join(to)), want);
    }
    s.is("links before", links_of(&dir), 5);
    s.works("over an empty directory", sys::rename(&dir.join("a"), &dir.join("empty")));
    s.is("links after", links_of(&dir), 4);
    s.works("into another", sys::rename(&dir.join("empty/b"), &dir.join("full/b")));
    s.is("links of where it was", links_of(&dir.join("empty")), 2);
    s.is("links of where it is", links_of(&dir.join("full")), 4);
    let up = sys::stat(&dir.join("full/b/..")).map(|stat| stat.st_ino);
    s.is("its \"..\"", up, sys::stat(&dir.join("full")).map(|stat| stat.st_ino));
    s.works("with slashes", sys::rename(&dir.join("full/b/"), &dir.join("moved/")));
    file(&dir.join("f"), b"x");
    s.fails("a file to a name with a slash", sys::rename(&dir.join("f"), &dir.join("g/")), Errno::ENOTDIR);
    s.works("to itself", sys::rename(&dir.join("f"), &dir.join("f")));
    s.works("a directory to itself", sys::rename(&dir.join("moved"), &dir.join("moved")));
}

fn links(s: &mut Suite) {
    let dir = s.dir();
    file(&dir.join("one"), b"x");
    sys::link(&dir.join("one"), &dir.join("two")).expect("link");
    s.works("over another name of itself", sys::rename(&dir.join("one"), &dir.join("two")));
    s.is("both names stay", links_of(&dir.join("one")), 2);
    file(&dir.join("new"), b"new");
    let open = sys::open(&dir.join("two"), libc::O_RDONLY, 0).expect("open");
    s.works("over one of two names", sys::rename(&dir.join("new"), &dir.join("two")));
    s.is("the other stays", links_of(&dir.join("one")), 1);
    s.is("what was open is readable", sys::read(std::os::fd::AsRawFd::as_raw_fd(&open), 10, None), Ok(b"x".to_vec()));
    sys::symlink(Path::new("two"), &dir.join("link")).expect("symlink");
    s.works("a link, not what it leads to", sys::rename(&dir.join("link"), &dir.join("link2")));
    s.is("it still leads there", sys::readlink(&dir.join("link2"), 10), Ok(b"two".to_vec()));
}

fn permissions(s: &mut Suite) {
    let (mine, theirs) = (s.dir(), s.dir());
    sys::chown(&mine, USER, USER).expect("chown");
    file(&mine.join("m"), b"");
    file(&theirs.join("t"), b"");
    sys::chown(&theirs.join("t"), USER, USER).expect("chown");
    for (from, to, want) in [
        (mine.join("m"), theirs.join("x"), Some(Errno::EACCES)),
        (theirs.join("t"), mine.join("x"), Some(Errno::EACCES)),
        (mine.join("m"), theirs.join("t"), Some(Errno::EACCES)),
        (mine.join("m"), mine.join("x"), None),
    ] {
        let got = sys::as_user(USER, USER, &[], || sys::rename(&from, &to));
        s.answers(format!("{} to {} by a user", from.display(), to.display()), got, want);
    }
    // Moving a directory of someone else's elsewhere changes its "..", which needs write permission.
    sys::mkdir(&mine.join("roots"), 0o755).expect("mkdir");
    sys::mkdir(&mine.join("sub"), 0o777).expect("mkdir");
    sys::chmod(&mine.join("sub"), 0o777).expect("chmod");
    let got = sys::as_user(USER, USER, &[], || sys::rename(&mine.join("roots"), &mine.join("sub/roots")));
    s.fails("another's directory into another", got, Errno::EACCES);
    let got = sys::as_user(USER, USER, &[], || sys::rename(&mine.join("roots"), &mine.join("renamed")));
    s.works("another's directory in place", got);
}
