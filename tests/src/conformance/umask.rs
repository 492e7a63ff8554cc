//! umask(2) and what it does to everything that is made.

use super::Suite;
use super::common::{KINDS, Kind, mode_of};
use super::sys;

pub fn checks(s: &mut Suite) {
    for mask in [0o000, 0o022, 0o027, 0o077, 0o777, 0o111, 0o444] {
        let dir = s.dir();
        for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Symlink) {
            for mode in [0o777, 0o666, 0o640] {
                let path = dir.join(format!("{kind:?}{mode:o}"));
                sys::with_umask(mask, || kind.make(&path, mode)).expect("make");
                s.is(format!("{kind:?} {mode:o} under {mask:o}"), mode_of(&path), mode & !mask);
            }
        }
        let path = dir.join("open");
        sys::with_umask(mask, || sys::open(&path, libc::O_CREAT | libc::O_EXCL, 0o1776)).expect("open");
        s.is(format!("open 1776 under {mask:o}"), mode_of(&path), 0o1776 & !mask);
        sys::with_umask(mask, || sys::chmod(&path, 0o666)).expect("chmod");
        s.is(format!("chmod under {mask:o}"), mode_of(&path), 0o666);
    }
}
