//! Cases of POSIX and Linux that random operations meet seldom or never.

use super::model::name_of;
use super::*;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    name_of(&result.unwrap_err())
}

fn mkdir(meta: &Meta, parent: Ino, name: &[u8]) -> Ino {
    meta.with(|txn| txn.create(parent, name, &ROOT)).unwrap().ino
}

fn touch(meta: &Meta, parent: Ino, name: &[u8]) -> Ino {
    meta.with(|txn| txn.create(parent, name, &file(0o644))).unwrap().ino
}

#[test]
fn names_are_checked_wherever_they_come_in() {
    let (_dir, meta) = fresh("names");
    let long = [b'x'; 256];
    meta.with(|txn| {
        assert_eq!(txn.create(ROOT_INO, &long[1..], &file(0))?.nlink, 1);
        for name in [&long[..], b"", b"a/b", b"a\0", b".", b".."] {
            let error = errno(txn.create(ROOT_INO, name, &file(0)));
            assert!(["ENAMETOOLONG", "ENOENT", "EINVAL", "EEXIST"].contains(&error), "{name:?}: {error}");
        }
        assert_eq!(errno(txn.lookup(ROOT_INO, &long)), "ENAMETOOLONG");
        assert_eq!(errno(txn.link(Ino(2), ROOT_INO, &long)), "ENAMETOOLONG");
        assert_eq!(errno(txn.unlink(ROOT_INO, b".")), "EISDIR");
        assert_eq!(errno(txn.rmdir(ROOT_INO, b".")), "EINVAL");
        assert_eq!(errno(txn.rmdir(ROOT_INO, b"..")), "ENOTEMPTY");
        assert_eq!(errno(txn.rename(ROOT_INO, b".", ROOT_INO, b"x", RenameFlags::default())), "EINVAL");
        assert_eq!(errno(txn.lookup(Ino(2), b"below-a-file")), "ENOTDIR");
        assert_eq!(errno(txn.create(Ino(2), b"below-a-file", &file(0))), "ENOTDIR");
        assert_eq!(errno(txn.attr(Ino(99))), "ESTALE");
        Ok(())
    })
    .unwrap();
}

#[test]
fn dots_lead_to_the_directory_and_its_parent() {
    let (_dir, meta) = fresh("dots");
    let (one, other) = (mkdir(&meta, ROOT_INO, b"one"), mkdir(&meta, ROOT_INO, b"other"));
    let below = mkdir(&meta, one, b"below");
    meta.with(|txn| {
        assert_eq!(txn.lookup(below, b".")?.ino, below);
        assert_eq!(txn.lookup(below, b"..")?.ino, one);
        assert_eq!(txn.lookup(ROOT_INO, b"..")?.ino, ROOT_INO);
        txn.rename(one, b"below", other, b"below", RenameFlags::default())?;
        assert_eq!(txn.lookup(below, b"..")?.ino, other);
        assert_eq!((txn.attr(one)?.nlink, txn.attr(other)?.nlink), (2, 3));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_removed_directory_takes_no_names_and_lists_none() {
    let (_dir, meta) = fresh("removed");
    let gone = mkdir(&meta, ROOT_INO, b"gone");
    let kept = touch(&meta, ROOT_INO, b"kept");
    meta.with(|txn| {
        assert_eq!(txn.rmdir(ROOT_INO, b"gone")?.nlink, 0);
        assert_eq!(errno(txn.create(gone, b"x", &file(0))), "ENOENT");
        assert_eq!(errno(txn.link(kept, gone, b"x")), "ENOENT");
        assert_eq!(errno(txn.rename(ROOT_INO, b"kept", gone, b"x", RenameFlags::default())), "ENOENT");
        assert_eq!(errno(txn.lookup(gone, b"x")), "ENOENT");
        assert!(txn.read_dir(gone, 0, 10, true)?.is_empty());
        txn.release_orphan(gone)?;
        assert_eq!(errno(txn.attr(gone)), "ESTALE");
        txn.release_orphan(gone)
    })
    .unwrap();
}

#[test]
fn a_directory_never_moves_below_itself() {
    let (_dir, meta) = fresh("loops");
    let one = mkdir(&meta, ROOT_INO, b"one");
    let two = mkdir(&meta, one, b"two");
    let three = mkdir(&meta, two, b"three");
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    meta.with(|txn| {
        for flags in [RenameFlags::default(), RenameFlags { no_replace: true, ..RenameFlags::default() }] {
            assert_eq!(errno(txn.rename(ROOT_INO, b"one", one, b"x", flags)), "EINVAL");
            assert_eq!(errno(txn.rename(ROOT_INO, b"one", three, b"x", flags)), "EINVAL");
        }
        assert_eq!(errno(txn.rename(two, b"three", ROOT_INO, b"one", RenameFlags::default())), "ENOTEMPTY");
        assert_eq!(errno(txn.rename(two, b"three", ROOT_INO, b"one", exchange)), "EINVAL");
        assert_eq!(errno(txn.rename(ROOT_INO, b"one", two, b"three", exchange)), "EINVAL");
        Ok(())
    })
    .unwrap();
}

#[test]
fn times_change_where_they_should_and_nowhere_else() {
    let (_dir, meta) = fresh("times");
    let before = meta.with(|txn| txn.attr(ROOT_INO)).unwrap();
    let ino = touch(&meta, ROOT_INO, b"a");
    let root = meta.with(|txn| txn.attr(ROOT_INO)).unwrap();
    assert!(root.mtime_ns > before.mtime_ns && root.ctime_ns == root.mtime_ns && root.atime_ns == before.atime_ns);
    let created = meta.with(|txn| txn.attr(ino)).unwrap();
    meta.with(|txn| txn.rename(ROOT_INO, b"a", ROOT_INO, b"b", RenameFlags::default())).unwrap();
    let renamed = meta.with(|txn| txn.attr(ino)).unwrap();
    assert!(renamed.ctime_ns > created.ctime_ns && renamed.mtime_ns == created.mtime_ns);
    assert_eq!(renamed.version.0, created.version.0 + 1);
    let linked = meta.with(|txn| txn.link(ino, ROOT_INO, b"c")).unwrap();
    assert!(linked.ctime_ns > renamed.ctime_ns && linked.nlink == 2);
    let nothing = meta.with(|txn| txn.rename(ROOT_INO, b"b", ROOT_INO, b"c", RenameFlags::default())).unwrap();
    assert!(nothing.is_none());
    let same = meta.with(|txn| txn.attr(ino)).unwrap();
    assert_eq!(same, linked, "renaming one link over another changes nothing");
    let set = SetAttr { mtime_ns: Some(5), ..SetAttr::default() };
    let set = meta.with(|txn| txn.set_attr(ino, &set)).unwrap();
    assert!(set.mtime_ns == 5 && set.ctime_ns > linked.ctime_ns && set.btime_ns == created.btime_ns);
}

#[test]
fn access_times_make_no_version_and_no_generation() {
    let (dir, meta) = fresh("atime");
    let ino = touch(&meta, ROOT_INO, b"a");
    meta.commit_generation().unwrap();
    let before = meta.with(|txn| txn.attr(ino)).unwrap();
    let note = |ns| {
        meta.with(|txn| {
            txn.touch_atime(ino, ns);
            txn.touch_atime(Ino(77), ns);
            Ok(())
        })
        .unwrap();
    };
    note(900);
    let after = meta.with(|txn| txn.attr(ino)).unwrap();
    assert_eq!(after, Attr { atime_ns: 900, ..before });
    assert!(!meta.commit_generation().unwrap().changed);
    touch(&meta, ROOT_INO, b"b");
    let closed = meta.commit_generation().unwrap();
    let put = |change: &RowChange| matches!(change, RowChange::PutInode(row) if row.ino == ino && row.atime_ns == 900);
    assert!(closed.changes.iter().any(put), "it goes along with the next generation");
    note(901);
    meta.flush_atimes().unwrap();
    assert!(meta.commit_generation().unwrap().changed);
    meta.close().unwrap();
    drop(meta);
    let meta = Meta::open(&dir.0, &KEY, &setup()).unwrap();
    assert_eq!(meta.with(|txn| txn.attr(ino)).unwrap(), Attr { atime_ns: 901, ..before });
}

#[test]
fn set_group_id_directories_and_chunk_lengths_are_inherited() {
    let (_dir, meta) = fresh("inherit");
    let shared = NewNode { perm: 0o2775, gid: 42, ..ROOT };
    let shared = meta.with(|txn| txn.create(ROOT_INO, b"shared", &shared)).unwrap().ino;
    meta.with(|txn| txn.set_chunk_bits(shared, 20)).unwrap();
    let below = meta.with(|txn| txn.create(shared, b"below", &NewNode { gid: 7, ..ROOT })).unwrap();
    assert_eq!((below.gid, below.perm, below.chunk_bits), (42, 0o2755, 20));
    let inside = meta.with(|txn| txn.create(below.ino, b"file", &file(0o644))).unwrap();
    assert_eq!((inside.gid, inside.perm, inside.chunk_bits), (42, 0o644, 20));
    assert_eq!(errno(meta.with(|txn| txn.set_chunk_bits(inside.ino, 30))), "EINVAL");
    let change = FileChange { size: 1, mtime_ns: 0, ctime_ns: 0, inline: None, clear_suid: false };
    meta.with(|txn| txn.set_file(inside.ino, &change)).unwrap();
    assert_eq!(errno(meta.with(|txn| txn.set_chunk_bits(inside.ino, 12))), "EINVAL");
}

#[test]
fn symbolic_links_and_devices_keep_what_they_are() {
    let (_dir, meta) = fresh("special");
    let target = [b't'; TARGET_MAX];
    let node = |kind, rdev, target| NewNode { kind, perm: 0o777, uid: 0, gid: 0, rdev, target };
    meta.with(|txn| {
        let link = txn.create(ROOT_INO, b"link", &node(FileKind::Symlink, 0, Some(&target)))?;
        assert_eq!((link.size, link.allocated), (TARGET_MAX as u64, 0));
        assert_eq!(txn.read_link(link.ino)?, target);
        assert_eq!(errno(txn.create(ROOT_INO, b"x", &node(FileKind::Symlink, 0, Some(b"")))), "EINVAL");
        assert_eq!(errno(txn.create(ROOT_INO, b"x", &node(FileKind::Symlink, 0, None))), "EINVAL");
        assert_eq!(errno(txn.create(ROOT_INO, b"x", &node(FileKind::File, 0, Some(b"t")))), "EINVAL");
        let device = txn.create(ROOT_INO, b"device", &node(FileKind::CharDevice, 0x501, None))?;
        assert_eq!(device.rdev, 0x501);
        assert_eq!(errno(txn.read_link(device.ino)), "EINVAL");
        assert_eq!(txn.inline_data(link.ino)?, None);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_whiteout_stays_at_the_old_name() {
    let (_dir, meta) = fresh("whiteout");
    let ino = touch(&meta, ROOT_INO, b"a");
    let flags = RenameFlags { whiteout: true, ..RenameFlags::default() };
    meta.with(|txn| txn.rename(ROOT_INO, b"a", ROOT_INO, b"b", flags)).unwrap();
    assert_eq!(meta.with(|txn| txn.lookup(ROOT_INO, b"b")).unwrap().ino, ino);
    let white = meta.with(|txn| txn.lookup(ROOT_INO, b"a")).unwrap();
    assert_eq!((white.kind, white.rdev, white.perm), (FileKind::CharDevice, 0, 0));
}

#[test]
fn attributes_have_limits() {
    let (_dir, meta) = fresh("xattrs");
    let ino = touch(&meta, ROOT_INO, b"a");
    let big = |result: Result<()>| assert!(matches!(result, Err(Error::XattrTooBig)));
    meta.with(|txn| {
        txn.set_xattr(ino, b"user.full", &vec![1; XATTR_SIZE_MAX], false, false)?;
        big(txn.set_xattr(ino, b"user.more", &vec![1; XATTR_SIZE_MAX + 1], false, false));
        big(txn.set_xattr(ino, &[b'n'; 256], b"", false, false));
        let mut fitted = 0;
        while txn.set_xattr(ino, format!("{fitted:0>255}").as_bytes(), b"", true, false).is_ok() {
            fitted += 1;
        }
        assert_eq!(fitted, (XATTR_SIZE_MAX - 10) / 256);
        Ok(())
    })
    .unwrap();
}

#[test]
fn listings_page_through_a_hundred_thousand_names_that_come_and_go() {
    let (_dir, meta) = fresh("listing");
    meta.core.lock().names.mask = 0xffff; // collisions: about as many names as hashes
    let stays = |n: usize| format!("stays-{n}").into_bytes();
    let count = 100_000;
    meta.with(|txn| {
        for n in 0..count {
            txn.create(ROOT_INO, &stays(n), &file(0))?;
        }
        (0..2000).try_for_each(|n| txn.create(ROOT_INO, format!("goes-{n}").as_bytes(), &file(0)).map(|_| ()))
    })
    .unwrap();
    let mut seen = std::collections::HashMap::new();
    let (mut cookie, mut pages) = (0, 0);
    loop {
        let page = meta.with(|txn| txn.read_dir(ROOT_INO, cookie, 100, false)).unwrap();
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        for entry in page {
            *seen.entry(entry.name).or_insert(0) += 1;
        }
        meta.with(|txn| {
            for n in 0..2 {
                let _ = txn.unlink(ROOT_INO, format!("goes-{}", pages * 2 + n).as_bytes());
                txn.create(ROOT_INO, format!("comes-{pages}-{n}").as_bytes(), &file(0))?;
            }
            Ok(())
        })
        .unwrap();
        pages += 1;
    }
    assert!(pages >= 900);
    assert!((0..count).all(|n| seen.get(&stays(n)) == Some(&1)), "a name that stays comes exactly once");
    assert!(seen.values().all(|times| *times == 1));
}

#[test]
fn a_listing_cut_short_within_equal_hashes_skips_nothing() {
    let (_dir, meta) = fresh("collisions");
    meta.core.lock().names.mask = 0; // all names collide
    for n in 0..10 {
        touch(&meta, ROOT_INO, format!("{n}").as_bytes());
    }
    let page = meta.with(|txn| txn.read_dir(ROOT_INO, 0, 3, false)).unwrap();
    assert_eq!(page.len(), 10, "a page ends with all names of a hash");
    let again = meta.with(|txn| txn.read_dir(ROOT_INO, page[4].cookie, 3, false)).unwrap();
    assert_eq!(again.len(), 10, "who took five entries gets them again rather than losing five");
    assert!(meta.with(|txn| txn.read_dir(ROOT_INO, page[9].cookie, 3, false)).unwrap().is_empty());
    assert!(page.iter().all(|entry| entry.cookie >= COOKIE_MIN - 1));
}

#[test]
fn paths_are_found_both_ways() {
    let (_dir, meta) = fresh("paths");
    let one = mkdir(&meta, ROOT_INO, b"one");
    let two = mkdir(&meta, one, b"two");
    let ino = touch(&meta, two, b"file");
    meta.with(|txn| txn.link(ino, ROOT_INO, b"link")).unwrap();
    meta.commit_generation().unwrap();
    let reader = meta.reader().unwrap();
    assert_eq!(reader.path_of(ino).unwrap().unwrap(), b"/one/two/file");
    assert_eq!(reader.path_of(ROOT_INO).unwrap().unwrap(), b"/");
    assert_eq!(reader.find(b"/one/two/").unwrap().unwrap().ino, two);
    assert_eq!(reader.find(b"").unwrap().unwrap().ino, ROOT_INO);
    assert!(reader.find(b"/one/file").unwrap().is_none());
    let mut paths = Vec::new();
    let whole = reader.walk(ROOT_INO, b"", |path, row| {
        paths.push((String::from_utf8_lossy(path).into_owned(), row.ino));
        Ok(Walk::On)
    });
    assert!(whole.unwrap());
    paths.sort();
    let wanted = [("", ROOT_INO), ("/link", ino), ("/one", one), ("/one/two", two), ("/one/two/file", ino)];
    assert_eq!(paths, wanted.map(|(path, ino)| (path.to_owned(), ino)));
    drop(reader);
    // The hint names a directory that no longer holds the file: the other name is found.
    meta.with(|txn| txn.unlink(two, b"file")).unwrap();
    meta.commit_generation().unwrap();
    assert_eq!(meta.reader().unwrap().path_of(ino).unwrap().unwrap(), b"/link");
    meta.with(|txn| txn.unlink(ROOT_INO, b"link")).unwrap();
    meta.commit_generation().unwrap();
    assert_eq!(meta.reader().unwrap().path_of(ino).unwrap(), None);
}
