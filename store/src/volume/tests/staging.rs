//! Publishing what was staged: on whose behalf, what counts as changed, and directories of any depth.

use super::*;
use crate::meta::rows::SetAttr;

const ALICE: u32 = 1000;
const BOB: u32 = 1001;
/// Deeper than a stack of [`STACK_BYTES`] has frames for.
const DEPTH: usize = 6000;
const STACK_BYTES: usize = 1 << 20;

fn user(uid: u32) -> Who<'static> {
    Who { uid, gid: uid, groups: &[] }
}

fn in_bobs_group(uid: u32) -> Who<'static> {
    Who { groups: &[BOB], ..user(uid) }
}

fn directory(perm: u16, uid: u32) -> NewNode<'static> {
    NewNode { kind: FileKind::Directory, perm, uid, gid: uid, rdev: 0, target: None }
}

fn file(uid: u32) -> NewNode<'static> {
    NewNode { kind: FileKind::File, perm: 0o644, uid, gid: uid, rdev: 0, target: None }
}

fn whiteout(uid: u32) -> NewNode<'static> {
    NewNode { kind: FileKind::CharDevice, perm: 0, uid, gid: uid, rdev: 0, target: None }
}

fn chmod(volume: &Volume, ino: Ino, perm: u16) {
    volume.set_attr(ino, &SetAttr { perm: Some(perm), ..SetAttr::default() }).unwrap();
}

/// A directory of Bob's, and what Alice staged for it.
struct Staging {
    _scratch: Scratch,
    volume: Arc<Volume>,
    target: Ino,
    staging: Ino,
    tree: Staged,
    upper: Ino,
}

impl Staging {
    fn new(name: &str, perm: u16, fill: impl FnOnce(&Volume, Ino)) -> Self {
        let scratch = Scratch::new(name);
        scratch.format_kept(1);
        let volume = scratch.open_of(1);
        let target = volume.create(ROOT_INO, b"bob", &directory(perm, BOB)).unwrap().ino;
        fill(&volume, target);
        let staging = volume.make_staging(b"run").unwrap().ino;
        let part = volume.make_part(staging, b"0", ALICE).unwrap();
        let upper = volume.make_layer(part, target, (ALICE, ALICE)).unwrap();
        let tree = Staged { path: b"/bob".into(), part, what: StagedWhat::Tree { upper, target } };
        Self { _scratch: scratch, volume, target, staging, tree, upper }
    }

    fn base(&self) -> Base {
        self.volume.base(&NothingDirty).unwrap()
    }

    fn publish(&self, base: Option<&Base>, who: Who<'_>) -> Result<Published> {
        self.volume.publish(&NothingDirty, base, std::slice::from_ref(&self.tree), who)
    }

    fn refused(&self, who: Who<'_>, path: &str) {
        match self.publish(Some(&self.base()), who) {
            Err(Error::Refused(why)) => assert!(why.starts_with(path), "{why}"),
            other => panic!("published: {other:?}"),
        }
    }

    fn done(&self, who: Who<'_>) {
        let done = self.publish(Some(&self.base()), who);
        assert!(matches!(done, Ok(Published::Done(_))), "{done:?}");
    }
}

#[test]
fn names_come_only_where_the_publisher_may_make_them() {
    let staging = Staging::new("staged-rights", 0o755, |_, _| {});
    staging.volume.create(staging.upper, b".profile", &file(ALICE)).unwrap();
    staging.refused(user(ALICE), "/bob/.profile");
    assert!(staging.volume.lookup(staging.target, b".profile").is_err());
    chmod(&staging.volume, staging.target, 0o775);
    staging.refused(user(ALICE), "/bob/.profile");
    // A list that gives the group less than the mode shows, and Alice nothing.
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let list = |alice: u16| {
        let none = u32::MAX;
        let entries =
            [entry(1, 7, none), entry(2, alice, ALICE), entry(4, 5, none), entry(16, 7, none), entry(32, 5, none)];
        [&2u32.to_le_bytes()[..], &entries.concat()].concat()
    };
    let set =
        |alice| staging.volume.change(|txn| txn.set_acl(staging.target, ACL_ACCESS, &list(alice), false)).unwrap();
    set(5);
    staging.refused(in_bobs_group(ALICE), "/bob/.profile");
    staging.refused(in_bobs_group(7), "/bob/.profile");
    set(7);
    staging.done(user(ALICE));
    assert!(staging.volume.lookup(staging.target, b".profile").is_ok());
    staging.volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_group_may_publish_where_it_may_write() {
    let staging = Staging::new("staged-group", 0o775, |_, _| {});
    staging.volume.create(staging.upper, b"new", &file(ALICE)).unwrap();
    staging.refused(user(ALICE), "/bob/new");
    staging.done(in_bobs_group(ALICE));
    staging.volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_is_anothers_stays_in_a_directory_with_the_sticky_bit() {
    let staging = Staging::new("staged-sticky", 0o1777, |volume, target| {
        volume.create(target, b"bobs", &file(BOB)).unwrap();
        volume.create(target, b"alices", &file(ALICE)).unwrap();
    });
    staging.volume.create(staging.upper, b"alices", &whiteout(ALICE)).unwrap();
    staging.volume.create(staging.upper, b"bobs", &whiteout(ALICE)).unwrap();
    staging.refused(user(ALICE), "/bob/bobs");
    staging.volume.unlink(staging.upper, b"bobs").unwrap();
    staging.volume.create(staging.upper, b"bobs", &file(ALICE)).unwrap();
    staging.refused(user(ALICE), "/bob/bobs");
    staging.volume.unlink(staging.upper, b"bobs").unwrap();
    staging.done(user(ALICE));
    assert!(staging.volume.lookup(staging.target, b"bobs").is_ok());
    assert!(staging.volume.lookup(staging.target, b"alices").is_err());
    staging.volume.close(&NothingDirty).unwrap();
}

#[test]
fn attributes_of_a_directory_are_its_owners_to_change() {
    let staging = Staging::new("staged-attributes", 0o777, |volume, target| {
        let inner = volume.create(target, b"inner", &directory(0o755, BOB)).unwrap().ino;
        volume.set_xattr(inner, b"user.gone", b"1", false, false).unwrap();
        volume.set_xattr(inner, b"trusted.kept", b"1", false, false).unwrap();
    });
    let volume = &staging.volume;
    let inner = volume.lookup(staging.target, b"inner").unwrap().ino;
    let upper = volume.create(staging.upper, b"inner", &directory(0o777, BOB)).unwrap().ino;
    volume.set_xattr(upper, b"user.gone", b"1", false, false).unwrap();
    staging.refused(user(ALICE), "/bob/inner");
    chmod(volume, upper, 0o755);
    volume.set_xattr(upper, b"user.new", b"2", false, false).unwrap();
    staging.refused(user(ALICE), "/bob/inner");
    volume.remove_xattr(upper, b"user.gone").unwrap();
    // To another owner: not even its owner.
    volume.set_attr(upper, &SetAttr { uid: Some(ALICE), ..SetAttr::default() }).unwrap();
    staging.refused(user(BOB), "/bob/inner");
    volume.set_attr(upper, &SetAttr { uid: Some(BOB), perm: Some(0o700), ..SetAttr::default() }).unwrap();
    staging.done(user(BOB));
    assert_eq!(volume.attr(inner).unwrap().perm, 0o700);
    let names: Vec<Vec<u8>> = volume.list_xattrs(inner).unwrap();
    assert_eq!(names, [b"trusted.kept".to_vec(), b"user.new".to_vec()], "{names:?}");
    Arc::clone(volume).close(&NothingDirty).unwrap();
}

#[test]
fn attributes_that_somebody_else_set_meanwhile_are_a_conflict() {
    let staging = Staging::new("staged-attributes-theirs", 0o777, |volume, target| {
        let inner = volume.create(target, b"inner", &directory(0o755, ALICE)).unwrap().ino;
        volume.set_xattr(inner, b"user.one", b"1", false, false).unwrap();
    });
    let volume = &staging.volume;
    let inner = volume.lookup(staging.target, b"inner").unwrap().ino;
    let base = staging.base();
    let upper = volume.create(staging.upper, b"inner", &directory(0o755, ALICE)).unwrap().ino;
    volume.set_xattr(upper, b"user.one", b"1", false, false).unwrap();
    volume.create(upper, b"file", &file(ALICE)).unwrap();
    volume.set_xattr(inner, b"user.two", b"2", false, false).unwrap();
    volume.set_xattr(upper, b"user.mine", b"3", false, false).unwrap();
    match staging.publish(Some(&base), user(ALICE)) {
        Ok(Published::Conflict(paths)) => assert_eq!(paths, [b"/bob/inner".to_vec()]),
        other => panic!("{other:?}"),
    }
    // The run set none: theirs stay.
    volume.remove_xattr(upper, b"user.mine").unwrap();
    let done = staging.publish(Some(&base), user(ALICE));
    assert!(matches!(done, Ok(Published::Done(_))), "{done:?}");
    assert_eq!(volume.list_xattrs(inner).unwrap().len(), 2);
    Arc::clone(volume).close(&NothingDirty).unwrap();
}

#[test]
fn what_was_staged_is_known_by_its_inode() {
    let staging = Staging::new("staged-inode", 0o777, |_, _| {});
    let volume = &staging.volume;
    volume.rename(staging.tree.part, b"upper", staging.tree.part, b"old", RenameFlags::default()).unwrap();
    let other = volume.create(staging.tree.part, b"upper", &directory(0o777, ALICE)).unwrap().ino;
    volume.create(other, b".profile", &file(ALICE)).unwrap();
    match staging.publish(Some(&staging.base()), user(0)) {
        Err(Error::Refused(why)) => assert!(why.contains("/bob"), "{why}"),
        other => panic!("published: {other:?}"),
    }
    Arc::clone(volume).close(&NothingDirty).unwrap();
}

/// A file of Alice's in Bob's directory, and its staged copy.
fn staged_file(staging: &Staging, base: &Base) -> (Staged, Ino) {
    let volume = &staging.volume;
    let of = volume.lookup(staging.target, b"file").unwrap().ino;
    let part = volume.make_part(staging.staging, b"1", ALICE).unwrap();
    let to = Destination { parent: part, name: b"file", replace: false, version: None };
    volume.restore(&NothingDirty, base.generation(), of, to, &|_| false).unwrap();
    let copy = volume.lookup(part, b"file").unwrap();
    let what =
        StagedWhat::File { copy: (b"file".into(), copy.ino, copy.version), to: (staging.target, b"file".into()), of };
    (Staged { path: b"/bob/file".into(), part, what }, copy.ino)
}

#[test]
fn a_file_is_published_if_anything_of_it_was_changed_and_only_in_its_place() {
    let staging = Staging::new("staged-file", 0o777, |volume, target| {
        volume.create(target, b"file", &file(ALICE)).unwrap();
        volume.create(target, b"other", &file(BOB)).unwrap();
    });
    let volume = &staging.volume;
    let base = staging.base();
    let (one, copy) = staged_file(&staging, &base);
    let publish = || volume.publish(&NothingDirty, Some(&base), std::slice::from_ref(&one), user(ALICE));
    assert!(matches!(publish(), Ok(Published::Done(_))));
    let there = || volume.lookup(staging.target, b"file").unwrap().ino;
    assert_ne!(there(), copy, "nothing was changed");
    // Size, times, mode and owner stay.
    volume.set_xattr(copy, b"user.note", b"1", false, false).unwrap();
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    volume.rename(staging.target, b"file", staging.target, b"other", exchange).unwrap();
    match publish() {
        Ok(Published::Conflict(paths)) => assert!(paths.contains(&b"/bob/file".to_vec()), "{paths:?}"),
        other => panic!("{other:?}"),
    }
    volume.rename(staging.target, b"file", staging.target, b"other", exchange).unwrap();
    let kept = volume.publish(&NothingDirty, None, std::slice::from_ref(&one), user(ALICE));
    assert!(matches!(kept, Ok(Published::Done(_))), "{kept:?}");
    assert_eq!(there(), copy);
    Arc::clone(volume).close(&NothingDirty).unwrap();
}

fn chain(volume: &Volume, mut at: Ino, uid: u32) -> Vec<Ino> {
    let mut all = vec![at];
    for _ in 0..DEPTH {
        at = volume.create(at, b"d", &directory(0o755, uid)).unwrap().ino;
        all.push(at);
    }
    all
}

#[test]
fn directories_of_any_depth_are_published_and_discarded_on_a_small_stack() {
    let deep = || {
        let staging = Staging::new("staged-deep", 0o777, |volume, target| {
            chain(volume, target, ALICE);
        });
        let volume = &staging.volume;
        // Merged with what is there, all the way down, and new below it.
        let upper = chain(volume, staging.upper, ALICE);
        volume.create(upper[DEPTH], b"file", &file(ALICE)).unwrap();
        let new = volume.create(staging.upper, b"new", &directory(0o755, ALICE)).unwrap().ino;
        chain(volume, new, ALICE);
        staging.done(user(ALICE));
        let published = volume.lookup(staging.target, b"new").unwrap().ino;
        assert!(volume.lookup(published, b"d").is_ok());
        // And replaced by a whiteout.
        volume.create(staging.upper, b"new", &whiteout(ALICE)).unwrap();
        staging.done(user(ALICE));
        assert!(volume.lookup(staging.target, b"new").is_err());
        // What is left of the upper layer goes, in steps.
        let (mut discard, mut steps) = (Discard::new(b"run"), 0);
        while volume.discard_some(&mut discard).unwrap().1 {
            steps += 1;
        }
        assert!(steps >= DEPTH / 1024, "{steps} steps");
        assert!(volume.stagings().unwrap().is_empty());
        Arc::clone(volume).close(&NothingDirty).unwrap();
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(deep).unwrap().join().unwrap();
}
