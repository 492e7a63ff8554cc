//! renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.

use nix::errno::Errno;

use super::Suite;
use super::common::{KINDS, Kind, file, links_of};
use super::sys;

pub fn checks(s: &mut Suite) {
    for source in KINDS {
        for target in KINDS {
            let dir = s.dir();
            let (one, two) = (dir.join("one"), dir.join("two"));
            source.make(&one, 0o644).expect("make");
            target.make(&two, 0o755).expect("make");
            let inode = |path| sys::lstat(path).map(|stat| stat.st_ino);
            let (a, b) = (inode(&one), inode(&two));
            let refused = sys::rename2(&one, &two, libc::RENAME_NOREPLACE);
            s.fails(format!("{source:?} over {target:?}, not replacing"), refused, Errno::EEXIST);
            s.works(format!("exchange {source:?} and {target:?}"), sys::rename2(&one, &two, libc::RENAME_EXCHANGE));
            s.is(format!("{source:?} and {target:?} are exchanged"), (inode(&one), inode(&two)), (b, a));
        }
    }
    let dir = s.dir();
    for name in ["a", "a/sub", "b", "b/sub"] {
        sys::mkdir(&dir.join(name), 0o755).expect("mkdir");
    }
    file(&dir.join("b/file"), b"x");
    let exchange = |one: &str, two: &str| sys::rename2(&dir.join(one), &dir.join(two), libc::RENAME_EXCHANGE);
    s.fails("exchange with nothing", exchange("a", "no"), Errno::ENOENT);
    s.fails("exchange nothing", exchange("no", "a"), Errno::ENOENT);
    s.fails("exchange with what is inside", exchange("a", "a/sub"), Errno::EINVAL);
    s.fails("exchange with what it is inside", exchange("a/sub", "a"), Errno::EINVAL);
    s.works("exchange a directory and a file", exchange("a/sub", "b/file"));
    s.is("links of who lost it", links_of(&dir.join("a")), 2);
    s.is("links of who got it", links_of(&dir.join("b")), 4);
    let up = sys::stat(&dir.join("b/file/..")).map(|stat| stat.st_ino);
    s.is("its \"..\"", up, sys::stat(&dir.join("b")).map(|stat| stat.st_ino));
    let both = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
    s.fails("both flags", sys::rename2(&dir.join("a"), &dir.join("b"), both), Errno::EINVAL);
    s.fails("an unknown flag", sys::rename2(&dir.join("a"), &dir.join("b"), 1 << 10), Errno::EINVAL);
    let whiteout_and_exchange = libc::RENAME_WHITEOUT | libc::RENAME_EXCHANGE;
    s.fails(
        "whiteout and exchange",
        sys::rename2(&dir.join("a"), &dir.join("b"), whiteout_and_exchange),
        Errno::EINVAL,
    );
    s.works("not replacing nothing", sys::rename2(&dir.join("a"), &dir.join("new"), libc::RENAME_NOREPLACE));
    file(&dir.join("w"), b"content");
    s.works("leaving a whiteout", sys::rename2(&dir.join("w"), &dir.join("w2"), libc::RENAME_WHITEOUT));
    let whiteout = sys::lstat(&dir.join("w")).map(|stat| (stat.st_mode & libc::S_IFMT, stat.st_rdev));
    s.is("the whiteout", whiteout, Ok((Kind::Char.bits(), 0)));
    s.is("what was moved", std::fs::read(dir.join("w2")).ok(), Some(b"content".to_vec()));

    // A whiteout is a new inode like any other: its owner is the caller, its group and list are the directory's to give.
    let owner = |path: &std::path::Path| sys::lstat(path).map(|stat| (stat.st_uid, stat.st_gid));
    for (mode, group) in [(0o755, 0), (0o2755, 1000)] {
        let dir = s.dir();
        sys::chown(&dir, 1000, 1000).expect("chown");
        sys::chmod(&dir, mode).expect("chmod");
        file(&dir.join("w"), b"content");
        s.works(format!("a whiteout in a directory of mode {mode:o}"), {
            sys::rename2(&dir.join("w"), &dir.join("w2"), libc::RENAME_WHITEOUT)
        });
        s.is(format!("its owner in a directory of mode {mode:o}"), owner(&dir.join("w")), Ok((0, group)));
    }
    let dir = s.dir();
    let list: Vec<u8> = [2u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain([(1u16, 7u16, u32::MAX), (2, 5, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)].map(
            |(tag, perm, id)| {
                [tag.to_le_bytes().to_vec(), perm.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()].concat()
            },
        ))
        .flatten()
        .collect();
    s.works("a default list", sys::setxattr(&dir, "system.posix_acl_default", &list, 0, true));
    file(&dir.join("w"), b"content");
    s.works("a whiteout there", sys::rename2(&dir.join("w"), &dir.join("w2"), libc::RENAME_WHITEOUT));
    s.is("its mode", sys::lstat(&dir.join("w")).map(|stat| stat.st_mode & 0o7777), Ok(0));
    let inherited = sys::listxattr(&dir.join("w"), 4096);
    s.is("its list", inherited, Ok(vec!["system.posix_acl_access".to_owned()]));
}
