//! The sticky bit of directories: who may remove and rename what is in them.

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, OTHER, USER};
use super::sys;

pub fn checks(s: &mut Suite) {
    for kind in KINDS {
        // Owner of the directory, owner of what is in it, whether USER may remove it.
        for (directory, entry, may) in
            [(USER, USER, true), (USER, OTHER, true), (OTHER, USER, true), (OTHER, OTHER, false), (0, 0, false)]
        {
            for sticky in [true, false] {
                let dir = s.dir();
                let path = dir.join("x");
                kind.make(&path, 0o777).expect("make");
                sys::lchown(&path, entry, entry).expect("chown");
                sys::chown(&dir, directory, directory).expect("chown");
                sys::chmod(&dir, if sticky { 0o1777 } else { 0o777 }).expect("chmod");
                let want = if may || !sticky { None } else { Some(Errno::EPERM) };
                let what = format!("{kind:?} of {entry} in a directory of {directory}, sticky {sticky}");
                let renamed = sys::as_user(USER, USER, &[], || sys::rename(&path, &dir.join("y")));
                s.answers(format!("rename {what}"), renamed, want);
                if want.is_none() {
                    sys::rename(&dir.join("y"), &path).expect("rename back");
                }
                if kind != Kind::Dir {
                    // Over it.
                    let over = dir.join("mine");
                    Kind::File.make(&over, 0o644).expect("make");
                    sys::chown(&over, USER, USER).expect("chown");
                    let replaced = sys::as_user(USER, USER, &[], || sys::rename(&over, &path));
                    s.answers(format!("rename over {what}"), replaced, want);
                    if want.is_none() {
                        continue;
                    }
                }
                let removed = sys::as_user(USER, USER, &[], || kind.remove(&path));
                s.answers(format!("remove {what}"), removed, want);
            }
        }
    }
}
