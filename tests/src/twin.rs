//! The same operations on two trees: every answer must be the same, and so must be what the trees hold.
//!
//! One tree is on brine, its twin on a filesystem of this machine, which says what POSIX and Linux want. Operations are
//! made from a seed without looking at either tree, so that any part of a sequence can be carried out by itself: what
//! fails is shortened as long as it still fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::Random;
use crate::conformance::sys::{self, Answer};
use crate::random::content;
use crate::sys::Mapping;

/// Files kept open.
const SLOTS: u64 = 5;
/// Longest offset and length of what is written and read.
const SPAN: u64 = 180_000;
/// Device numbers without a driver: nothing happens when such a node is opened.
const NO_DEVICE: u64 = 240 << 8 | 7;
/// Length of pages of mappings.
const PAGE: usize = 4096;

/// One operation. Paths are relative to the tree.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as the system calls and their arguments are")]
pub enum Op {
    Open { slot: usize, path: String, flags: i32, mode: u32 },
    Close { slot: usize },
    Write { slot: usize, at: Option<i64>, len: usize, seed: u64 },
    Read { slot: usize, at: i64, len: usize },
    Ftruncate { slot: usize, size: i64 },
    Truncate { path: String, size: i64 },
    Fallocate { slot: usize, mode: i32, at: i64, len: i64 },
    MapWrite { slot: usize, page: usize, at: usize, len: usize, seed: u64 },
    MapRead { slot: usize },
    Copy { from: usize, to: usize, at: i64, to_at: i64, len: usize },
    Drop { slot: usize },
    Sync { slot: usize, data: bool },
    SyncDir { path: String },
    Mkdir { path: String, mode: u32 },
    Rmdir { path: String },
    Unlink { path: String },
    Symlink { target: String, path: String },
    Readlink { path: String },
    Link { from: String, to: String },
    Rename { from: String, to: String, flags: u32 },
    Mknod { path: String, mode: u32 },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: u32, gid: u32 },
    Utimens { path: String, seconds: i64 },
    SetXattr { path: String, name: &'static str, len: usize, seed: u64, flags: i32 },
    SetList { path: String, default: bool, group: u16, mask: u16 },
    RemoveXattr { path: String, name: &'static str },
    Stat { path: String },
    List { path: String },
    Remount,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const ATTRIBUTES: [&str; 6] =
    ["user.one", "user.two", "trusted.three", "security.four", "system.posix_acl_access", "system.posix_acl_default"];

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3).min(random.below(3));
    let names: Vec<&str> = (0..depth).map(|_| *random.choose(&NAMES)).collect();
    names.join("/")
}

/// Places at page and chunk limits are as frequent as any.
fn place(random: &mut Random) -> i64 {
    let place = match random.below(4) {
        0 => 0,
        1 => PAGE as u64 * random.below(40),
        2 => 131_072 * random.below(2),
        _ => random.below(SPAN),
    };
    place as i64
}

fn length(random: &mut Random) -> usize {
    match random.below(4) {
        0 => random.range(1, 200) as usize,
        1 => *random.choose(&[1, 512, 2048, 4096, 131_072]),
        _ => random.range(1, SPAN) as usize,
    }
}

/// `count` operations of a seed. Those that sometimes take several steps are left out if not `composite`: a crash may
/// come between the steps.
pub fn operations(seed: u64, count: usize, composite: bool) -> Vec<Op> {
    let random = &mut Random::new(seed);
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let (path_, other, slot) = (path(random), path(random), random.below(SLOTS) as usize);
        let (at, len, seed) = (place(random), length(random), random.next_u64());
        let path = path_;
        let op = match random.below(64) {
            0..=9 => {
                let how = *random.choose(&[libc::O_RDWR, libc::O_RDWR, libc::O_RDWR, libc::O_RDONLY, libc::O_WRONLY]);
                let more = *random.choose(&[
                    libc::O_CREAT,
                    libc::O_CREAT,
                    libc::O_CREAT,
                    libc::O_CREAT | libc::O_TRUNC,
                    libc::O_CREAT | libc::O_EXCL,
                    libc::O_CREAT | libc::O_APPEND,
                    libc::O_APPEND,
                    libc::O_TRUNC,
                    libc::O_NOFOLLOW,
                    libc::O_DIRECTORY,
                    0,
                ]);
                let mode = *random.choose(&[0o644, 0o600, 0o4755, 0o2775, 0o000]);
                Op::Open { slot, path, flags: how | more | libc::O_NONBLOCK, mode }
            }
            10 => Op::Close { slot },
            11..=15 => Op::Write { slot, at: Some(at), len, seed },
            16..=17 => Op::Write { slot, at: None, len, seed },
            18..=20 => Op::Read { slot, at, len },
            21 => Op::Ftruncate { slot, size: at },
            22 => Op::Truncate { path, size: at },
            23..=24 => {
                let keep = libc::FALLOC_FL_KEEP_SIZE;
                let mode = *random.choose(&[
                    0,
                    keep,
                    libc::FALLOC_FL_PUNCH_HOLE | keep,
                    libc::FALLOC_FL_PUNCH_HOLE | keep,
                    libc::FALLOC_FL_PUNCH_HOLE,
                    libc::FALLOC_FL_ZERO_RANGE,
                    libc::FALLOC_FL_ZERO_RANGE | keep,
                ]);
                Op::Fallocate { slot, mode, at, len: len as i64 - 1 }
            }
            25 => {
                let at = random.below(PAGE as u64 - 1) as usize;
                let len = random.range(1, (PAGE - at) as u64) as usize;
                Op::MapWrite { slot, page: random.below(40) as usize, at, len, seed }
            }
            26 => Op::MapRead { slot },
            27..=28 if composite => {
                let to = random.below(SLOTS) as usize;
                let aligned = random.one_in(2);
                let to_at = place(random);
                let (at, to_at) = if aligned { (at & !131_071, to_at & !131_071) } else { (at, to_at) };
                Op::Copy { from: slot, to, at, to_at, len }
            }
            29 => Op::Drop { slot },
            30 => Op::Sync { slot, data: random.one_in(2) },
            31 => Op::SyncDir { path: if random.one_in(2) { ".".into() } else { path } },
            32..=35 => Op::Mkdir { path, mode: *random.choose(&[0o755, 0o2777, 0o1777, 0o700]) },
            36 => Op::Rmdir { path },
            37..=40 => Op::Unlink { path },
            41 => Op::Symlink { target: other, path },
            42 => Op::Readlink { path },
            43..=44 => Op::Link { from: path, to: other },
            45..=49 => {
                let flags = *random.choose(&[
                    0,
                    0,
                    0,
                    libc::RENAME_NOREPLACE,
                    libc::RENAME_EXCHANGE,
                    libc::RENAME_WHITEOUT,
                    libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE,
                ]);
                Op::Rename { from: path, to: other, flags }
            }
            50 => {
                let kind =
                    *random.choose(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFREG]);
                Op::Mknod { path, mode: kind | 0o640 }
            }
            51 => Op::Chmod { path, mode: random.below(0o10000) as u32 },
            52 => Op::Chown { path, uid: random.below(3) as u32 * 1000, gid: random.below(3) as u32 * 1000 },
            53 => Op::Utimens { path, seconds: random.below(2_000_000_000) as i64 },
            54..=55 => {
                let flags = *random.choose(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
                Op::SetXattr {
                    path,
                    name: ATTRIBUTES[random.below(4) as usize],
                    len: random.below(300) as usize,
                    seed,
                    flags,
                }
            }
            56 => {
                let (group, mask) = (random.below(8) as u16, random.below(8) as u16);
                Op::SetList { path, default: random.one_in(2), group, mask }
            }
            57 => Op::RemoveXattr { path, name: ATTRIBUTES[random.below(6) as usize] },
            58..=60 => Op::Stat { path },
            61 | 62 => Op::List { path: if random.one_in(3) { ".".into() } else { path } },
            63 if composite && random.one_in(12) => Op::Remount,
            _ => continue,
        };
        all.push(op);
    }
    all
}

/// A list in the kernel's layout: owner all, user 1000 and the group as told, a mask, others none.
fn list(group: u16, mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, none), (2, group, 1000), (4, group, none), (0x10, mask, none), (0x20, 0, none)];
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// A tree and the files open in it.
pub struct Tree {
    root: PathBuf,
    open: Vec<Option<OwnedFd>>,
}

impl Tree {
    /// An empty tree in a new directory.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap_or_else(|error| panic!("mkdir {}: {error}", root.display()));
        Self::at(root)
    }

    /// A tree that is there, with no file open.
    pub fn at(root: PathBuf) -> Self {
        Self { root, open: (0..SLOTS).map(|_| None).collect() }
    }

    /// Close all files.
    pub fn close(&mut self) {
        self.open.iter_mut().for_each(|slot| *slot = None);
    }

    fn fd(&self, slot: usize) -> Answer<i32> {
        self.open[slot].as_ref().map(AsRawFd::as_raw_fd).ok_or(Errno::EBADF)
    }

    /// A regular file that is open.
    fn regular(&self, slot: usize) -> Answer<i32> {
        let fd = self.fd(slot)?;
        let stat = sys::fstat(fd)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFREG { Ok(fd) } else { Err(Errno::EINVAL) }
    }

    /// Carry out one operation, and tell what came of it, in words that both trees must agree on.
    pub fn carry_out(&mut self, op: &Op) -> String {
        match self.answer(op) {
            Ok(told) => told,
            Err(errno) => format!("{errno:?}"),
        }
    }

    fn answer(&mut self, op: &Op) -> Answer<String> {
        let at = |path: &str| self.root.join(path);
        let done = |answer: Answer| answer.map(|()| "done".to_owned());
        match op {
            Op::Open { slot, path, flags, mode } => {
                let opened = sys::open(&at(path), *flags, *mode);
                self.open[*slot] = None;
                self.open[*slot] = Some(opened?);
                Ok("opened".into())
            }
            Op::Close { slot } => Ok(format!("{}", self.open[*slot].take().is_some())),
            Op::Write { slot, at, len, seed } => {
                let fd = self.regular(*slot)?;
                sys::write(fd, &content(*seed, *len), *at).map(|len| len.to_string())
            }
            Op::Read { slot, at, len } => {
                let bytes = sys::read(self.regular(*slot)?, *len, Some(*at))?;
                Ok(format!("{} {}", bytes.len(), blake3::hash(&bytes)))
            }
            Op::Ftruncate { slot, size } => done(sys::ftruncate(self.fd(*slot)?, *size)),
            Op::Truncate { path, size } => done(sys::truncate(&at(path), *size)),
            Op::Fallocate { slot, mode, at, len } => done(sys::fallocate(self.regular(*slot)?, *mode, *at, *len)),
            Op::MapWrite { slot, page, at, len, seed } => {
                let fd = self.regular(*slot)?;
                let size = sys::fstat(fd)?.st_size as usize;
                let start = page * PAGE + at;
                let end = (start + len).min(size);
                if start >= end {
                    return Ok("beyond the end".into());
                }
                let file = self.open[*slot].as_ref().ok_or(Errno::EBADF)?.try_clone().map_err(io)?;
                let mut mapping = Mapping::new(&fs::File::from(file), size).map_err(io)?;
                mapping.write(start, &content(*seed, end - start));
                mapping.sync().map_err(io)?;
                Ok("mapped".into())
            }
            Op::MapRead { slot } => {
                let size = sys::fstat(self.regular(*slot)?)?.st_size as usize;
                if size == 0 {
                    return Ok("empty".into());
                }
                let file = self.open[*slot].as_ref().ok_or(Errno::EBADF)?.try_clone().map_err(io)?;
                let mapping = Mapping::new(&fs::File::from(file), size).map_err(io)?;
                Ok(blake3::hash(&mapping.read(0, size)).to_string())
            }
            Op::Copy { from, to, at, to_at, len } => {
                let (from, to) = (self.regular(*from)?, self.regular(*to)?);
                let mut copied = 0;
                while copied < *len {
                    let (at, to_at) = (*at + copied as i64, *to_at + copied as i64);
                    match sys::copy_range(from, at, to, to_at, *len - copied, 0)? {
                        0 => break,
                        more => copied += more,
                    }
                }
                Ok(copied.to_string())
            }
            Op::Drop { slot } => {
                let _ = self.regular(*slot)?;
                let file = self.open[*slot].as_ref().ok_or(Errno::EBADF)?;
                posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
                Ok("dropped".into())
            }
            Op::Sync { slot, data } => {
                let fd = self.regular(*slot)?;
                done(if *data { sys::fdatasync(fd) } else { sys::fsync(fd) })
            }
            Op::SyncDir { path } => {
                let directory = sys::open(&at(path), libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
                done(sys::fsync(directory.as_raw_fd()))
            }
            Op::Mkdir { path, mode } => done(sys::mkdir(&at(path), *mode)),
            Op::Rmdir { path } => done(sys::rmdir(&at(path))),
            Op::Unlink { path } => done(sys::unlink(&at(path))),
            Op::Symlink { target, path } => done(sys::symlink(Path::new(target), &at(path))),
            Op::Readlink { path } => {
                sys::readlink(&at(path), 300).map(|target| String::from_utf8_lossy(&target).into_owned())
            }
            Op::Link { from, to } => done(sys::link(&at(from), &at(to))),
            Op::Rename { from, to, flags: 0 } => done(sys::rename(&at(from), &at(to))),
            Op::Rename { from, to, flags } => done(sys::rename2(&at(from), &at(to), *flags)),
            Op::Mknod { path, mode } => {
                let device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
                done(sys::mknod(&at(path), *mode, if device { NO_DEVICE } else { 0 }))
            }
            Op::Chmod { path, mode } => done(sys::chmod(&at(path), *mode)),
            Op::Chown { path, uid, gid } => done(sys::lchown(&at(path), *uid, *gid)),
            Op::Utimens { path, seconds } => {
                done(sys::utimens(&at(path), (*seconds, 1), (*seconds, 2), libc::AT_SYMLINK_NOFOLLOW))?;
                let stat = sys::lstat(&at(path))?;
                Ok(format!("{} {}", stat.st_mtime, stat.st_mtime_nsec))
            }
            Op::SetXattr { path, name, len, seed, flags } => {
                done(sys::setxattr(&at(path), name, &content(*seed, *len), *flags, false))
            }
            Op::SetList { path, default, group, mask } => {
                let name = ATTRIBUTES[if *default { 5 } else { 4 }];
                done(sys::setxattr(&at(path), name, &list(*group, *mask), 0, true))
            }
            Op::RemoveXattr { path, name } => done(sys::removexattr(&at(path), name)),
            Op::Stat { path } => node(&at(path), None),
            Op::List { path } => {
                let mut names: Vec<_> = fs::read_dir(at(path)).map_err(io)?.flatten().map(|e| e.file_name()).collect();
                names.sort();
                Ok(format!("{names:?}"))
            }
            Op::Remount => Ok("remounted".into()),
        }
    }

    /// All that the tree holds, by path.
    pub fn state(&self) -> State {
        let mut out = State::new();
        let mut first = BTreeMap::new();
        walk(&self.root, Path::new(""), &mut first, &mut out);
        out
    }
}

fn io(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What each path of a tree is, in words.
pub type State = BTreeMap<PathBuf, String>;

fn walk(root: &Path, below: &Path, first: &mut BTreeMap<u64, PathBuf>, out: &mut State) {
    let mut names: Vec<_> = match fs::read_dir(root.join(below)) {
        Ok(list) => list.flatten().map(|entry| entry.file_name()).collect(),
        Err(error) => return drop(out.insert(below.join("?"), error.to_string())),
    };
    names.sort();
    for name in names {
        let path = below.join(name);
        let full = root.join(&path);
        let ino = full.symlink_metadata().map_or(0, |meta| meta.ino());
        let same = first.entry(ino).or_insert_with(|| path.clone()).clone();
        out.insert(path.clone(), node(&full, Some(&same)).unwrap_or_else(|errno| errno.to_string()));
        if full.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            walk(root, &path, first, out);
        }
    }
}

/// One inode: what lstat(2) says but for times and places, content, target, attributes, and which path it was first at.
fn node(path: &Path, first: Option<&Path>) -> Answer<String> {
    let stat = sys::lstat(path)?;
    let kind = stat.st_mode & libc::S_IFMT;
    let size = if kind == libc::S_IFDIR { 0 } else { stat.st_size };
    let mut told = format!("{:o} {}:{} {} links {size}", stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink);
    if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
        told += &format!(" device {:x}", stat.st_rdev);
    }
    if kind == libc::S_IFLNK {
        told += &format!(" -> {}", String::from_utf8_lossy(&sys::readlink(path, 300)?));
    }
    if kind == libc::S_IFREG {
        told += &match fs::read(path) {
            Ok(bytes) => format!(" {}", blake3::hash(&bytes)),
            Err(error) => format!(" {error}"),
        };
    }
    for name in sys::listxattr(path, 65536)? {
        let value = sys::getxattr(path, &name, 65536)?;
        told += &format!(" {name}={}", &blake3::hash(&value).to_hex()[..8]);
    }
    if let Some(first) = first {
        told += &format!(" as {}", String::from_utf8_lossy(first.as_os_str().as_bytes()));
    }
    Ok(told)
}

/// The first path on which two states differ, and how.
pub fn difference(brine: &State, disk: &State) -> Option<String> {
    let all: std::collections::BTreeSet<&PathBuf> = brine.keys().chain(disk.keys()).collect();
    let differs = all.into_iter().find(|path| brine.get(*path) != disk.get(*path))?;
    let told = |state: &State| state.get(differs).cloned().unwrap_or_else(|| "not there".into());
    Some(format!("{}: here {}; on the disk {}", differs.display(), told(brine), told(disk)))
}

/// Carry out operations on both trees until they differ: which operation showed it, and how. `remount` is called, with no
/// file open, where the operations ask for it.
pub fn compare(
    ops: &[Op],
    brine: &mut Tree,
    disk: &mut Tree,
    mut remount: impl FnMut(),
) -> Result<(), (usize, String)> {
    for (at, op) in ops.iter().enumerate() {
        if matches!(op, Op::Remount) {
            brine.close();
            disk.close();
            remount();
        }
        let (here, there) = (brine.carry_out(op), disk.carry_out(op));
        if here != there {
            return Err((at, format!("here {here}; on the disk {there}")));
        }
        // Looking at everything takes a while.
        if (at % 64 == 63 || matches!(op, Op::Remount) || at + 1 == ops.len())
            && let Some(difference) = difference(&brine.state(), &disk.state())
        {
            return Err((at, difference));
        }
    }
    Ok(())
}

/// The shortest sequence that was found by leaving parts out as long as `fails`, within `tries`.
pub fn shorten(ops: &[Op], mut tries: usize, mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let mut ops = ops.to_vec();
    let mut part = ops.len().div_ceil(2);
    while part > 0 && tries > 0 {
        let (mut at, before) = (0, ops.len());
        while at < ops.len() && tries > 0 {
            let end = (at + part).min(ops.len());
            let fewer: Vec<Op> = ops[..at].iter().chain(&ops[end..]).cloned().collect();
            tries -= 1;
            if !fewer.is_empty() && fails(&fewer) { ops = fewer } else { at = end }
        }
        if part == 1 && ops.len() == before {
            break;
        }
        part = (part / 2).max(1);
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::temp_dir;

    #[test]
    fn a_sequence_is_shortened_to_what_fails() {
        let ops = operations(1, 300, true);
        // Fails as long as both of two operations are in it, in this order.
        let (one, two) = (format!("{:?}", ops[17]), format!("{:?}", ops[203]));
        let fails = |ops: &[Op]| {
            let at = |what: &str| ops.iter().position(|op| format!("{op:?}") == what);
            matches!((at(&one), at(&two)), (Some(one), Some(two)) if one < two)
        };
        let short = shorten(&ops, 200, fails);
        assert_eq!(short.len(), 2, "{short:?}");
    }

    #[test]
    fn twins_on_one_filesystem_agree_and_a_difference_is_found() {
        let dir = temp_dir("twins");
        let trees = |name: &str| (Tree::new(dir.join(format!("{name}-1"))), Tree::new(dir.join(format!("{name}-2"))));
        let ops = operations(7, 1500, true);
        let (mut one, mut two) = trees("same");
        compare(&ops, &mut one, &mut two, || {}).unwrap_or_else(|(at, told)| panic!("{:?}: {told}", ops[at]));
        assert!(one.state().len() > 5, "the operations make nothing");
        // The second tree is changed behind its back.
        let (mut one, mut two) = trees("other");
        fs::create_dir(two.root.join("a")).expect("mkdir");
        let (at, told) = compare(&ops, &mut one, &mut two, || {}).expect_err("they differ");
        let mut count = 0;
        let short = shorten(&ops[..=at], 200, |ops| {
            count += 1;
            let (mut one, mut two) = trees(&format!("short-{count}"));
            fs::create_dir(two.root.join("a")).expect("mkdir");
            compare(ops, &mut one, &mut two, || {}).is_err()
        });
        assert!(short.len() <= 2, "{told}, shortened to {short:?}");
        let _ = fs::remove_dir_all(dir);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let of = |seed| format!("{:?}", operations(seed, 200, false));
        assert_eq!(of(5), of(5));
        assert_ne!(of(5), of(6));
    }
}
