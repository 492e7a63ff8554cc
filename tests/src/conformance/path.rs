//! Walking paths: what every operation does with its path, shown by stat(2).

use std::path::Path;

use nix::errno::Errno;

use super::Suite;
use super::common::{Last, file, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "stat", Last::Followed, &|path| sys::stat(path).map(drop));
    path_errors(s, "lstat", Last::Itself, &|path| sys::lstat(path).map(drop));
    s.fails("a path that is not in memory", sys::stat_nowhere(), Errno::EFAULT);
    let dir = s.dir();
    for sub in ["a", "a/b", "a/b/c"] {
        sys::mkdir(&dir.join(sub), 0o755).expect("mkdir");
    }
    file(&dir.join("a/b/c/file"), b"x");
    let want = sys::stat(&dir.join("a/b/c/file")).map(|stat| stat.st_ino);
    for (link, target) in
        [("rel", "a/b"), ("up", "a/b/../../a/b/c"), ("slashes", "a//b///c/"), ("chain", "rel/c"), ("self", ".")]
    {
        sys::symlink(Path::new(target), &dir.join(link)).expect("symlink");
    }
    sys::symlink(&dir.join("a/b/c"), &dir.join("absolute")).expect("symlink");
    for path in [
        "a/b/c/file",
        "a//b//c//file",
        "./a/./b/./c/./file",
        "a/b/../b/c/file",
        "a/../a/b/c/../c/file",
        "rel/c/file",
        "up/file",
        "slashes/file",
        "chain/file",
        "absolute/file",
        "self/self/self/chain/file",
        "absolute/../c/file",
        "rel/../b/c/file",
    ] {
        s.is(path, sys::stat(&dir.join(path)).map(|stat| stat.st_ino), want);
    }
    for path in ["a/", "a/.", "a/b/..", "self/a/", "rel/.."] {
        let is_directory = sys::stat(&dir.join(path)).map(|stat| stat.st_mode & libc::S_IFMT);
        s.is(path, is_directory, Ok(libc::S_IFDIR));
    }
    // A link with a slash is followed even by lstat.
    let kind = |path: &str| sys::lstat(&dir.join(path)).map(|stat| stat.st_mode & libc::S_IFMT);
    s.is("lstat of a link", kind("rel"), Ok(libc::S_IFLNK));
    s.is("lstat of a link with a slash", kind("rel/"), Ok(libc::S_IFDIR));
    // Moved directories know where they are.
    sys::mkdir(&dir.join("x"), 0o755).expect("mkdir");
    sys::rename(&dir.join("a/b"), &dir.join("x/b")).expect("rename");
    let up = sys::stat(&dir.join("x/b/..")).map(|stat| stat.st_ino);
    s.is("\"..\" after a move", up, sys::stat(&dir.join("x")).map(|stat| stat.st_ino));
    s.fails("the old path", sys::stat(&dir.join("a/b")), Errno::ENOENT);
    s.fails("a link to the old path", sys::stat(&dir.join("rel")), Errno::ENOENT);
    s.works("below the new one", sys::stat(&dir.join("x/b/c/file")));
}
