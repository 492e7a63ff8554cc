//! utimensat(2).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Last, OTHER, USER, file, path_errors};
use super::sys;

const OMIT: (i64, i64) = (0, libc::UTIME_OMIT);
const NOW: (i64, i64) = (0, libc::UTIME_NOW);

pub fn checks(s: &mut Suite) {
    path_errors(s, "utimensat", Last::Followed, &|path| sys::utimens(path, (1, 2), (3, 4), 0));
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        for (atime, mtime) in [
            ((1_000_000_000, 123_456_789), (1_100_000_000, 987_654_321)),
            ((0, 0), (0, 1)),
            ((2_000_000_000, 999_999_999), (1, 0)),
            ((-5, 250_000_000), (-1, 999_999_999)),
            ((4_000_000_000, 5), (4_294_967_296, 6)),
        ] {
            s.works(format!("{kind:?} {atime:?}"), sys::utimens(&path, atime, mtime, libc::AT_SYMLINK_NOFOLLOW));
            let got = sys::lstat(&path).map(|s| ((s.st_atime, s.st_atime_nsec), (s.st_mtime, s.st_mtime_nsec)));
            s.is(format!("{kind:?} at {atime:?}"), got, Ok((atime, mtime)));
        }
    }
    let path = dir.join("file");
    file(&path, b"x");
    sys::utimens(&path, (10, 20), (30, 40), 0).expect("utimens");
    let seconds = |path| sys::lstat(path).map(|stat| (stat.st_atime, stat.st_mtime));
    s.works("omit both", sys::utimens(&path, OMIT, OMIT, 0));
    s.is("nothing changed", seconds(&path), Ok((10, 30)));
    s.works("omit the first", sys::utimens(&path, OMIT, (50, 0), 0));
    s.is("the second changed", seconds(&path), Ok((10, 50)));
    s.works("omit the second", sys::utimens(&path, (60, 0), OMIT, 0));
    s.is("the first changed", seconds(&path), Ok((60, 50)));
    s.works("now and a time", sys::utimens(&path, NOW, (70, 0), 0));
    s.holds("now is now", seconds(&path).is_ok_and(|(atime, mtime)| atime > 1_500_000_000 && mtime == 70));
    s.works("now", sys::utimens_now(&path));
    s.holds("both are now", seconds(&path).is_ok_and(|(atime, mtime)| atime > 1_500_000_000 && mtime > 1_500_000_000));
    for nanoseconds in [-1, 1_000_000_000, 2_000_000_000] {
        s.fails(format!("{nanoseconds} ns"), sys::utimens(&path, (1, nanoseconds), (1, 0), 0), Errno::EINVAL);
    }
    s.fails("an unknown flag", sys::utimens(&path, (1, 1), (1, 1), 0x8000), Errno::EINVAL);
    sys::chown(&path, USER, USER).expect("chown");
    for (mode, uid, what, atime, mtime, want) in [
        (0o644, USER, "times by the owner", (1, 1), (1, 1), None),
        (0o444, USER, "now by the owner of what is read-only", NOW, NOW, None),
        (0o644, OTHER, "times by another", (1, 1), (1, 1), Some(Errno::EPERM)),
        (0o666, OTHER, "times by another who may write", (1, 1), (1, 1), Some(Errno::EPERM)),
        (0o644, OTHER, "now by another", NOW, NOW, Some(Errno::EACCES)),
        (0o666, OTHER, "now by another who may write", NOW, NOW, None),
        (0o666, OTHER, "now and omit by another who may write", NOW, OMIT, Some(Errno::EPERM)),
        (0o600, OTHER, "omit both by another", OMIT, OMIT, None),
    ] {
        sys::chmod(&path, mode).expect("chmod");
        s.answers(what, sys::as_user(uid, uid, &[], || sys::utimens(&path, atime, mtime, 0)), want);
    }
    let link = dir.join("link");
    sys::symlink(std::path::Path::new("file"), &link).expect("symlink");
    s.works("through a link", sys::utimens(&link, (500, 0), (600, 0), 0));
    s.is("its target", seconds(&path), Ok((500, 600)));
    s.works("of a link", sys::utimens(&link, (700, 0), (800, 0), libc::AT_SYMLINK_NOFOLLOW));
    s.is("the link", seconds(&link).map(|times| times.1), Ok(800));
    s.is("not its target", seconds(&path), Ok((500, 600)));
}
