use std::sync::Arc;

use brine_store::ids::{Ino, ROOT_INO};
use brine_store::volume::{Attr, FileKind};

use super::*;
use crate::errno::{Errno, Outcome};
use crate::vfs::Caller;

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

/// A file `launcher` with some content.
struct Program(Arc<[u8]>);

impl Branch for Program {
    fn family(&self) -> Family {
        Family::Launcher
    }

    fn attr(&self, ino: Ino) -> Outcome<Attr> {
        Ok(plain_attr(ino, FileKind::File, 0o555, self.0.len() as u64, 7))
    }

    fn open(&self, _caller: Caller, _ino: Ino, flags: i32) -> Outcome<Opening> {
        reading_only(flags)?;
        Ok(Opening { file: Arc::new(Arc::clone(&self.0)), caching: Caching::Keep })
    }
}

fn control() -> ControlDir {
    let control = ControlDir::new(42);
    control.add(Arc::new(Program(Arc::from(&b"a program"[..]))));
    control
}

#[test]
fn only_the_root_reserves() {
    assert!(is_reserved(ROOT_INO, b".brine"));
    assert!(is_reserved(ROOT_INO, b".brine-tmp"));
    assert!(!is_reserved(ROOT_INO, b".brin"));
    assert!(!is_reserved(ROOT_INO, b"x.brine"));
    assert!(!is_reserved(Ino(2), b".brine"));
}

#[test]
fn parts_are_found_by_name_and_listed() {
    let control = control();
    let top = control.lookup(ROOT_INO, b".brine").unwrap();
    assert_eq!((top.ino, top.kind), (Family::Control.top(), FileKind::Directory));
    assert_eq!(control.lookup(ROOT_INO, b".brine-tmp").unwrap_err(), Errno::NOT_FOUND);
    assert_eq!(control.lookup(top.ino, b"snapshots").unwrap_err(), Errno::NOT_FOUND);
    let launcher = control.lookup(top.ino, b"launcher").unwrap();
    assert_eq!(launcher.ino, Family::Launcher.top());
    let listed = control.entries(top.ino, 0, 100, true).unwrap();
    assert_eq!(listed.iter().map(|entry| &entry.name[..]).collect::<Vec<_>>(), [b"launcher"]);
    assert!(control.entries(top.ino, listed[0].cookie, 100, true).unwrap().is_empty());
    assert_eq!(control.parent(top.ino).unwrap(), ROOT_INO);
    assert_eq!(control.entries(launcher.ino, 0, 1, false).unwrap_err(), Errno(libc::ENOTDIR));
    assert_eq!(control.attr(Family::Runs.top()).unwrap_err(), Errno::STALE);
}

#[test]
fn handles_are_told_apart_from_live_ones() {
    let control = control();
    let ino = Family::Launcher.top();
    assert_eq!(control.open(CALLER, ino, libc::O_RDWR).unwrap_err(), Errno::READ_ONLY);
    let (handle, caching) = control.open(CALLER, ino, libc::O_RDONLY).unwrap();
    assert_eq!(caching, Caching::Keep);
    let file = control.file(handle).unwrap().unwrap();
    assert_eq!(file.read(2, 100).unwrap(), b"program");
    assert!(file.read(u64::MAX, 100).unwrap().is_empty());
    assert!(control.file(handle & !CONTROL_BIT).is_none(), "that is a live file's");
    assert!(!control.close(0));
    assert!(control.close(handle));
    assert_eq!(control.file(handle).unwrap().err(), Some(Errno::BAD_HANDLE));
}
