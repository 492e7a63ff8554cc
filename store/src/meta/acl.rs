//! POSIX access control lists: what they say of a mode, and what a new inode inherits.
//!
//! Stored as the extended attributes the kernel knows them by, in its layout (linux/posix_acl_xattr.h: a version, then
//! 8-byte entries, all little-endian). The kernel checks permissions by them; this module keeps the mode and the list
//! in step, as acl(5) and fs/posix_acl.c have it, and says what they permit where the daemon acts for somebody. Pure,
//! but for the transaction's methods at the end.

use super::rows::*;
use super::txn::Txn;
use crate::error::{Error, Result};
use crate::ids::Ino;

/// Version of the layout.
const VERSION: u32 = 2;
const HEADER_LEN: usize = 4;
const ENTRY_LEN: usize = 8;
/// Most entries that fit into the largest attribute.
const ENTRIES_MAX: usize = (XATTR_SIZE_MAX - HEADER_LEN) / ENTRY_LEN;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Stands where a tag names nobody.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A list in the order acl(5) demands: owner, users, group, groups, mask, others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Read and check a list as the kernel hands it over. `None` is a list without entries, which stands for no list.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let wrong = Error::InvalidArgument("not a valid access control list");
        let Some((version, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Err(wrong) };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::InvalidArgument("an access control list of an unknown version"));
        }
        if rest.len() % ENTRY_LEN != 0 || rest.len() / ENTRY_LEN > ENTRIES_MAX {
            return Err(wrong);
        }
        let entry = |bytes: &[u8]| Entry {
            tag: u16::from_le_bytes([bytes[0], bytes[1]]),
            perm: u16::from_le_bytes([bytes[2], bytes[3]]),
            id: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        };
        let acl = Self(rest.chunks_exact(ENTRY_LEN).map(entry).collect());
        if acl.0.is_empty() {
            return Ok(None);
        }
        if acl.is_valid() { Ok(Some(acl)) } else { Err(wrong) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.0.len() * ENTRY_LEN);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// One owner, one group, others once, at most one mask, which named entries demand; in order, no name twice.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let order = self.0.windows(2).all(|pair| {
            let (one, two) = (pair[0], pair[1]);
            one.tag < two.tag || one.tag == two.tag && matches!(one.tag, USER | GROUP)
        });
        let entries = self.0.iter().all(|entry| match entry.tag {
            USER | GROUP => entry.perm <= 7 && entry.id != NOBODY,
            USER_OBJ | GROUP_OBJ | MASK | OTHER => entry.perm <= 7,
            _ => false,
        });
        let mut names: Vec<(u16, u32)> = self
            .0
            .iter()
            .filter(|entry| matches!(entry.tag, USER | GROUP))
            .map(|entry| (entry.tag, entry.id))
            .collect();
        names.sort_unstable();
        names.dedup();
        let single = count(USER_OBJ) == 1 && count(GROUP_OBJ) == 1 && count(OTHER) == 1;
        single && entries && order && names.len() == named && (named == 0 || count(MASK) == 1)
    }

    fn perm(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.perm)
    }

    fn set(&mut self, tag: u16, perm: u16) {
        self.0.iter_mut().filter(|entry| entry.tag == tag).for_each(|entry| entry.perm = perm);
    }

    /// The tag whose permissions the mode's group bits are.
    fn group_class(&self) -> u16 {
        if self.perm(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    /// The permission bits that go with the list.
    pub fn mode(&self) -> u16 {
        let of = |tag| self.perm(tag).unwrap_or(0);
        of(USER_OBJ) << 6 | of(self.group_class()) << 3 | of(OTHER)
    }

    /// Whether the list says no more than its mode does.
    pub fn is_mode_only(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The list after chmod(2).
    pub fn with_mode(mut self, perm: u16) -> Self {
        self.set(USER_OBJ, perm >> 6 & 7);
        self.set(self.group_class(), perm >> 3 & 7);
        self.set(OTHER, perm & 7);
        self
    }

    /// What an inode made with `perm` inherits of this default list: its own list, and its permission bits. The umask
    /// has no say.
    pub fn inherited(&self, perm: u16) -> (Self, u16) {
        let acl = self.clone().with_mode(self.mode() & perm);
        let mode = acl.mode();
        (acl, perm & 0o7000 | mode)
    }
}

/// On whose behalf the daemon looks something up.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

impl Who<'_> {
    /// Whether they are in a group.
    pub fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

/// What of an inode permissions depend on, beside its list.
#[derive(Clone, Copy)]
struct Owned {
    kind: FileKind,
    perm: u16,
    uid: u32,
    gid: u32,
}

/// Whether `who` has all of `wanted` (bits of one digit of a mode) on an inode, by acl(5)'s access check; without a list
/// the mode's bits stand for one. Root reads, writes and searches everything, and executes what anybody may. Where the mask
/// is empty Linux does not look at the list at all and gives those it names what others have; here they have nothing.
fn permits(row: Owned, acl: Option<&Acl>, who: Who<'_>, wanted: u16) -> bool {
    if who.uid == 0 {
        return wanted & 1 == 0 || row.kind == FileKind::Directory || row.perm & 0o111 != 0;
    }
    let has = |perm: u16| perm & wanted == wanted;
    if who.uid == row.uid {
        return has(row.perm >> 6);
    }
    let Some(acl) = acl else { return has(row.perm >> if who.is_in(row.gid) { 3 } else { 0 }) };
    let masked = |entry: &Entry| has(entry.perm & acl.perm(MASK).unwrap_or(7));
    if let Some(user) = acl.0.iter().find(|entry| entry.tag == USER && entry.id == who.uid) {
        return masked(user);
    }
    let mut groups = acl.0.iter().filter(|entry| match entry.tag {
        GROUP_OBJ => who.is_in(row.gid),
        GROUP => who.is_in(entry.id),
        _ => false,
    });
    match groups.next() {
        // One entry has to have it all.
        Some(first) => masked(first) || groups.any(masked),
        None => has(row.perm),
    }
}

/// What of a directory's lists a new inode gets: permission bits and attributes.
pub(super) struct Inherited {
    pub perm: u16,
    pub attributes: Vec<(&'static [u8], Vec<u8>)>,
}

impl Txn<'_> {
    /// What a new inode in `parent` inherits. `umask` counts only in a directory without a default list.
    pub(super) fn inherit_acl(&mut self, parent: Ino, kind: FileKind, perm: u16, umask: u16) -> Result<Inherited> {
        let mut attributes = Vec::new();
        if kind == FileKind::Symlink {
            return Ok(Inherited { perm, attributes });
        }
        let default = match self.get_xattr(parent, ACL_DEFAULT) {
            Ok(bytes) => Acl::decode(&bytes)?,
            Err(Error::NoSuchXattr) => None,
            Err(error) => return Err(error),
        };
        let Some(default) = default else { return Ok(Inherited { perm: perm & !(umask & 0o777), attributes }) };
        let (access, perm) = default.inherited(perm);
        if !access.is_mode_only() {
            attributes.push((ACL_ACCESS, access.encode()));
        }
        if kind == FileKind::Directory {
            attributes.push((ACL_DEFAULT, default.encode()));
        }
        Ok(Inherited { perm, attributes })
    }

    /// Let one user search a directory that is otherwise its owner's alone.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn let_search(&mut self, ino: Ino, uid: u32) -> Result<()> {
        let entry = |tag, perm, id| Entry { tag, perm, id };
        let (owner, group, others) = (entry(USER_OBJ, 7, NOBODY), entry(GROUP_OBJ, 0, NOBODY), entry(OTHER, 0, NOBODY));
        let list = Acl(vec![owner, entry(USER, 1, uid), group, entry(MASK, 1, NOBODY), others]);
        self.set_acl(ino, ACL_ACCESS, &list.encode(), true)
    }

    /// Set an access control list ([`ACL_ACCESS`] or [`ACL_DEFAULT`]); a list without entries removes it. The access
    /// list sets the permission bits and is not kept if it says no more than they do; with `clear_set_gid` the caller
    /// may not keep that bit. Removing a list leaves the bits as they are, and is no error if there is none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] (another name, a malformed list), [`Error::NotPermitted`] (a default list on what is
    /// no directory), [`Error::Stale`].
    pub fn set_acl(&mut self, ino: Ino, name: &[u8], list: &[u8], clear_set_gid: bool) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let (kind, old_perm) = (row.kind, row.perm);
        let acl = if list.is_empty() { None } else { Acl::decode(list)? };
        match (name, acl) {
            (ACL_ACCESS | ACL_DEFAULT, None) => match self.remove_xattr(ino, name) {
                Err(Error::NoSuchXattr) => Ok(()),
                other => other,
            },
            (ACL_DEFAULT, Some(_)) if kind != FileKind::Directory => {
                Err(Error::NotPermitted("only directories have default access control lists"))
            }
            (ACL_DEFAULT, Some(acl)) => self.set_xattr(ino, ACL_DEFAULT, &acl.encode(), false, false),
            (ACL_ACCESS, Some(acl)) => {
                if acl.is_mode_only() {
                    match self.remove_xattr(ino, ACL_ACCESS) {
                        Err(Error::NoSuchXattr) => {}
                        other => other?,
                    }
                } else {
                    self.set_xattr(ino, ACL_ACCESS, &acl.encode(), false, false)?;
                }
                let kept = if clear_set_gid { old_perm & 0o5000 } else { old_perm & 0o7000 };
                let now = self.now_ns();
                self.amend(ino, |row| {
                    row.perm = kept | acl.mode();
                    row.ctime_ns = now;
                })
            }
            _ => Err(Error::InvalidArgument("no access control list has this name")),
        }
    }

    /// Whether `who` has all of `wanted` (bits of one digit of a mode) on an inode, by its mode and access list.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn permits(&mut self, ino: Ino, who: Who<'_>, wanted: u16) -> Result<bool> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let owned = Owned { kind: row.kind, perm: row.perm, uid: row.uid, gid: row.gid };
        let acl = if row.flags & INODE_HAS_XATTRS != 0 { self.access_list(ino)? } else { None };
        Ok(permits(owned, acl.as_ref(), who, wanted))
    }

    fn access_list(&mut self, ino: Ino) -> Result<Option<Acl>> {
        match self.get_xattr(ino, ACL_ACCESS) {
            Ok(bytes) => Acl::decode(&bytes),
            Err(Error::NoSuchXattr) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The permission bits become `perm`: the access list follows. To be called before the row changes.
    pub(super) fn acl_follows_mode(&mut self, ino: Ino, perm: u16) -> Result<()> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        if row.flags & INODE_HAS_XATTRS == 0 || row.perm & 0o777 == perm & 0o777 {
            return Ok(());
        }
        match self.access_list(ino)? {
            Some(acl) => self.put_xattr(ino, ACL_ACCESS, &acl.with_mode(perm).encode()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|(tag, perm, id)| Entry { tag: *tag, perm: *perm, id: *id }).collect())
    }

    fn rich() -> Acl {
        acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NOBODY),
            (GROUP, 7, 1000),
            (MASK, 7, NOBODY),
            (OTHER, 4, NOBODY),
        ])
    }

    #[test]
    fn lists_survive_their_bytes() {
        assert_eq!(Acl::decode(&rich().encode()).unwrap(), Some(rich()));
        assert_eq!(Acl::decode(&VERSION.to_le_bytes()).unwrap(), None);
    }

    #[test]
    fn malformed_lists_are_refused() {
        let good = rich().encode();
        for len in (0..good.len()).filter(|len| *len != HEADER_LEN) {
            assert!(Acl::decode(&good[..len]).is_err(), "cut at {len}");
        }
        let mut version = good.clone();
        version[0] = 1;
        assert!(Acl::decode(&version).is_err());
        let base = [(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)];
        assert!(Acl::decode(&acl(&base).encode()).is_ok());
        for wrong in [
            // Without others, a named entry without mask, out of order, twice the same, too many bits, unknown tag.
            vec![base[0], base[1]],
            vec![base[0], (USER, 1, 5), base[1], base[2]],
            vec![base[1], base[0], base[2]],
            vec![base[0], (USER, 1, 5), (USER, 2, 5), base[1], (MASK, 7, NOBODY), base[2]],
            vec![base[0], base[1], (OTHER, 8, NOBODY)],
            vec![base[0], base[1], base[2], (0x40, 1, NOBODY)],
            vec![base[0], (USER, 1, NOBODY), base[1], (MASK, 7, NOBODY), base[2]],
        ] {
            assert!(Acl::decode(&acl(&wrong).encode()).is_err(), "{wrong:?}");
        }
    }

    /// What `who` (user, group, supplementary groups) may of a file of user 10 and group 20: a digit.
    fn digit(kind: FileKind, perm: u16, list: Option<&Acl>, who: (u32, u32, &[u32])) -> u16 {
        let row = Owned { kind, perm, uid: 10, gid: 20 };
        let who = Who { uid: who.0, gid: who.1, groups: who.2 };
        (0..3).map(|bit| 1 << bit).filter(|bit| permits(row, list, who, *bit)).sum()
    }

    #[test]
    fn the_first_class_of_a_mode_that_fits_decides() {
        let of = |perm, who| digit(FileKind::File, perm, None, who);
        assert_eq!(of(0o500, (10, 1, &[])), 5);
        assert_eq!(of(0o077, (10, 20, &[])), 0, "the owner's digit, though the group's would do");
        assert_eq!(of(0o010, (11, 20, &[])), 1);
        assert_eq!(of(0o740, (11, 1, &[3, 20])), 4);
        assert_eq!(of(0o770, (11, 1, &[3])), 0);
        assert_eq!(of(0o704, (11, 1, &[])), 4);
        assert_eq!((of(0o000, (0, 0, &[])), of(0o010, (0, 0, &[]))), (6, 7));
        assert_eq!(digit(FileKind::Directory, 0, None, (0, 0, &[])), 7);
    }

    #[test]
    fn the_entries_of_a_list_decide_in_order() {
        let list = acl(&[
            (USER_OBJ, 4, NOBODY),
            (USER, 0, 30),
            (USER, 7, 31),
            (GROUP_OBJ, 0, NOBODY),
            (GROUP, 4, 40),
            (GROUP, 2, 41),
            (MASK, 6, NOBODY),
            (OTHER, 5, NOBODY),
        ]);
        let of = |who| digit(FileKind::File, list.mode(), Some(&list), who);
        assert_eq!(of((10, 40, &[])), 4, "the owner");
        assert_eq!(of((30, 40, &[41])), 0, "a name that has nothing, whatever its groups have");
        assert_eq!(of((31, 1, &[])), 6, "the mask");
        assert_eq!(of((32, 20, &[])), 0, "the mode's group bits are the mask's, not the group's");
        assert_eq!(of((32, 20, &[40])), 4, "any of the groups");
        assert_eq!(of((32, 1, &[40, 41])), 6, "each bit asked for alone");
        assert_eq!(of((32, 1, &[])), 5, "the mask has no say about others");
        assert_eq!(of((0, 0, &[])), 7);
        let row = Owned { kind: FileKind::File, perm: list.mode(), uid: 10, gid: 20 };
        let both = Who { uid: 32, gid: 1, groups: &[40, 41] };
        assert!(!permits(row, Some(&list), both, 6), "no entry alone has both bits");
    }

    #[test]
    fn mode_and_mask_are_in_step() {
        assert_eq!(rich().mode(), 0o774);
        let changed = rich().with_mode(0o640);
        assert_eq!(changed.mode(), 0o640);
        assert_eq!((changed.perm(MASK), changed.perm(GROUP_OBJ), changed.perm(GROUP)), (Some(4), Some(5), Some(7)));
    }

    #[test]
    fn what_is_inherited_is_cut_by_the_mode_asked_for() {
        let (access, perm) = rich().inherited(0o2640);
        assert_eq!(perm, 0o2640 & 0o7774);
        assert_eq!(access.perm(MASK), Some(4));
        assert_eq!(access.perm(GROUP_OBJ), Some(5));
        let plain = acl(&[(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)]);
        let (access, perm) = plain.inherited(0o666);
        assert!(access.is_mode_only());
        assert_eq!(perm, 0o640);
    }
}
