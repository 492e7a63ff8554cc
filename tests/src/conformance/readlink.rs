//! readlink(2).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    path_errors(s, "readlink", Last::Itself, &|path| sys::readlink(path, 4096).map(drop));
    let dir = s.dir();
    for kind in KINDS {
        let path = dir.join(format!("{kind:?}"));
        kind.make(&path, 0o644).expect("make");
        let want = if kind == Kind::Symlink { Ok(b"nowhere".to_vec()) } else { Err(Errno::EINVAL) };
        s.is(format!("of {kind:?}"), sys::readlink(&path, 4096), want);
    }
    for room in [1, 6, 7, 8] {
        let want = b"nowhere"[..room.min(7)].to_vec();
        s.is(format!("into {room} bytes"), sys::readlink(&dir.join("Symlink"), room), Ok(want));
    }
    s.fails("into nothing", sys::readlink(&dir.join("Symlink"), 0), Errno::EINVAL);
    for len in [1, 59, 60, 255, 256, 1000, 4000, 4095] {
        let (path, target) = (dir.join(format!("l{len}")), "t".repeat(len));
        s.works(format!("a target of {len} bytes"), sys::symlink(target.as_ref(), &path));
        s.is(format!("{len} bytes back"), sys::readlink(&path, 5000), Ok(target.into_bytes()));
        s.is(format!("size of {len}"), sys::lstat(&path).map(|stat| stat.st_size), Ok(len as i64));
    }
}
