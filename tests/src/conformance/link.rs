//! link(2).

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, Last, OTHER, USER, file, links_of, path_errors};
use super::sys;

pub fn checks(s: &mut Suite) {
    let base = s.dir();
    file(&base.join("old"), b"x");
    let old = base.join("old");
    path_errors(s, "link to", Last::Made, &|path| sys::link(&old, path));
    let new = base.join("new");
    path_errors(s, "link from", Last::Itself, &|path| sys::link(path, &new));
    let dir = s.dir();
    for kind in KINDS {
        let (one, two) = (dir.join(format!("{kind:?}")), dir.join(format!("{kind:?}2")));
        kind.make(&one, 0o644).expect("make");
        if kind == Kind::Dir {
            s.fails("of a directory", sys::link(&one, &two), Errno::EPERM);
            continue;
        }
        s.works(format!("of {kind:?}"), sys::link(&one, &two));
        let (a, b) = (sys::lstat(&one).expect("stat"), sys::lstat(&two).expect("stat"));
        s.is(format!("{kind:?}: one inode"), (a.st_ino, a.st_mode, a.st_dev), (b.st_ino, b.st_mode, b.st_dev));
        s.is(format!("{kind:?}: two links"), links_of(&one), 2);
        s.works(format!("{kind:?}: remove the first name"), sys::unlink(&one));
        s.is(format!("{kind:?}: one link"), links_of(&two), 1);
        for other in KINDS {
            let taken = dir.join("taken");
            other.make(&taken, 0o644).expect("make");
            s.fails(format!("of {kind:?} over {other:?}"), sys::link(&two, &taken), Errno::EEXIST);
            other.remove(&taken).expect("remove");
        }
    }
    let across = s.dir();
    s.works("into another directory", sys::link(&old, &across.join("here")));
    for count in 3..20u64 {
        s.works(format!("{count} links"), sys::link(&old, &across.join(count.to_string())));
        s.is(format!("{count} links counted"), links_of(&old), count);
    }
    std::fs::write(across.join("5"), b"changed").expect("write");
    s.is("one content", std::fs::read(&old).ok(), Some(b"changed".to_vec()));
    let closed = s.dir();
    let got = sys::as_user(USER, USER, &[], || sys::link(&old, &closed.join("x")));
    // fs.protected_hardlinks asks first whether the file may be linked.
    let protected = std::fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|text| text.trim() == "1");
    s.fails("where the user may not write", got, if protected { Errno::EPERM } else { Errno::EACCES });
    let open = s.dir();
    sys::chown(&open, USER, USER).expect("chown");
    file(&open.join("theirs"), b"x");
    sys::chown(&open.join("theirs"), OTHER, OTHER).expect("chown");
    sys::chmod(&open.join("theirs"), 0o600).expect("chmod");
    let got = sys::as_user(USER, USER, &[], || sys::link(&open.join("theirs"), &open.join("mine")));
    s.answers("of another's unreadable file", got, protected.then_some(Errno::EPERM));
    // Across filesystems.
    s.fails("from another filesystem", sys::link(std::path::Path::new("/proc/version"), &open.join("v")), Errno::EXDEV);
}
