//! Operations: made up at random, carried out on a filesystem without a mount, and on the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use brine_fs::errno::{Errno, Outcome};
use brine_fs::vfs::{AttrChange, Caller, Vfs};
use brine_store::gc::GcOptions;
use brine_store::ids::{Ino, ROOT_INO};
use brine_store::retention::Rules;
use brine_store::volume::{FileKind, QuotaLimits, RenameFlags};

use crate::model::{FILE_LEN_MAX, Item, Model, State, short_hash};
use crate::random::{Random, noise};

/// One operation. Each but [`Op::Sync`], [`Op::SyncAll`], [`Op::Checkpoint`], [`Op::Collect`], [`Op::Quota`] and
/// [`Op::Pause`] is one change.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as the system calls and their arguments are")]
pub enum Op {
    Create {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Symlink {
        path: String,
        target: String,
    },
    Write {
        path: String,
        offset: u64,
        len: usize,
        seed: u64,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Punch {
        path: String,
        offset: u64,
        len: u64,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Exchange {
        one: String,
        other: String,
    },
    Link {
        path: String,
        to: String,
    },
    Chmod {
        path: String,
        perm: u16,
    },
    SetXattr {
        path: String,
        name: String,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
    /// fsync of a file or directory.
    Sync {
        path: String,
    },
    /// `brine sync`.
    SyncAll,
    /// A checkpoint is written.
    Checkpoint,
    /// History is given up, and space given back.
    Collect,
    /// The whole tree gets a quota without limits, or loses it: usage must be a recount after whatever follows.
    Quota,
    /// Nothing, for a moment: the commit timer may strike.
    Pause,
}

impl Op {
    /// Whether everything before it is durable when it has succeeded.
    pub fn acknowledges(&self) -> bool {
        matches!(self, Self::Sync { .. } | Self::SyncAll)
    }
}

/// What kinds of operations are made up.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// One operation in so many is a sync.
    pub sync_every: u64,
    /// Longest write, bytes.
    pub write_max: u64,
    /// Whether checkpoints are written in between.
    pub checkpoints: bool,
    /// Whether space is given back in between.
    pub collections: bool,
}

impl Default for Mix {
    fn default() -> Self {
        Self { sync_every: 9, write_max: 300_000, checkpoints: true, collections: false }
    }
}

/// Make up the next operation, for a tree as the model has it. Most are possible, some are refused.
pub fn next_op(model: &Model, random: &Random, mix: &Mix) -> Op {
    let paths = model.paths();
    let dirs: Vec<&String> = paths.iter().filter(|(_, dir, _)| *dir).map(|(path, _, _)| path).collect();
    let files: Vec<(&String, u64)> = paths.iter().filter_map(|(path, _, len)| Some((path, (*len)?))).collect();
    let fresh = |random: &Random| {
        let dir = if dirs.is_empty() || random.one_in(3) { "" } else { random.choose(&dirs).as_str() };
        let name = format!("{}{}", random.choose(&["f", "f", "f", "d"]), random.below(7));
        if dir.is_empty() || dir.matches('/').count() > 2 { name } else { format!("{dir}/{name}") }
    };
    let any = |random: &Random| match paths.len() {
        0 => fresh(random),
        len => paths[random.index(len)].0.clone(),
    };
    if random.one_in(mix.sync_every) {
        return if random.one_in(3) { Op::SyncAll } else { Op::Sync { path: any(random) } };
    }
    if files.is_empty() {
        return Op::Create { path: fresh(random) };
    }
    let (file, len) = *random.choose(&files);
    let path = file.clone();
    let seed = random.next();
    match random.below(40) {
        0..=5 => Op::Create { path: fresh(random) },
        6..=8 => Op::Mkdir { path: fresh(random) },
        9 => Op::Symlink { path: fresh(random), target: any(random) },
        10..=15 => Op::Write { path, offset: len, len: write_len(random, mix, len), seed: seed_of(random, seed) },
        16..=19 => {
            let offset = random.below(len + 1);
            Op::Write { path, offset, len: write_len(random, mix, offset), seed: seed_of(random, seed) }
        }
        20 => Op::Write { path, offset: (len + random.below(300_000)).min(FILE_LEN_MAX / 2), len: 100, seed },
        21..=22 => Op::Truncate { path, len: random.below(len * 5 / 4 + 1).min(FILE_LEN_MAX) },
        23 => Op::Truncate { path, len: 0 },
        24 => Op::Punch { path, offset: random.below(len + 1), len: 1 + random.below(len + 1) },
        25..=27 => Op::Unlink { path: any(random) },
        28 => Op::Rmdir { path: any(random) },
        29..=31 => Op::Rename { from: any(random), to: any(random) },
        32 => Op::Rename { from: any(random), to: fresh(random) },
        33 => Op::Exchange { one: any(random), other: any(random) },
        34 => Op::Link { path, to: fresh(random) },
        35 => Op::Chmod { path: any(random), perm: 0o600 | random.below(64) as u16 },
        36 => Op::SetXattr { path, name: format!("user.x{}", random.below(3)), value: noise(seed, random.index(200)) },
        37 => Op::RemoveXattr { path, name: format!("user.x{}", random.below(3)) },
        38..=39 if mix.collections && random.one_in(2) => Op::Collect,
        38 if mix.checkpoints && random.one_in(3) => Op::Checkpoint,
        39 if mix.checkpoints && random.one_in(2) => Op::Quota,
        _ => Op::Pause,
    }
}

/// Small lengths, lengths about a chunk, and anything between.
fn write_len(random: &Random, mix: &Mix, offset: u64) -> usize {
    let len = match random.below(6) {
        0 | 1 => 1 + random.below(300),
        2 | 3 => 1 + random.below(5000),
        4 => *random.choose(&[4096, 131_072, 131_073, 2048, 262_144]),
        _ => 1 + random.below(mix.write_max),
    };
    len.min(mix.write_max).min(FILE_LEN_MAX.saturating_sub(offset)).max(1) as usize
}

/// Now and then content that was there before: deduplication is part of what is proved.
fn seed_of(random: &Random, seed: u64) -> u64 {
    if random.one_in(4) { random.below(5) } else { seed }
}

static PAUSES: AtomicU64 = AtomicU64::new(0);

const ME: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

/// Call `act` with the inode a path leads to, as a kernel would: looked up name by name, and forgotten afterwards.
fn at<R>(vfs: &Arc<Vfs>, path: &str, act: impl FnOnce(Ino) -> Outcome<R>) -> Outcome<R> {
    let mut known = Vec::new();
    let mut ino = ROOT_INO;
    let mut found = Ok(());
    for name in path.split('/').filter(|name| !name.is_empty()) {
        match vfs.lookup(ino, name.as_bytes()) {
            Ok(attr) => {
                ino = attr.ino;
                known.push(ino);
            }
            Err(errno) => {
                found = Err(errno);
                break;
            }
        }
    }
    let outcome = found.and_then(|()| act(ino));
    known.into_iter().for_each(|ino| vfs.forget(ino, 1));
    outcome
}

/// As [`at`], for the directory that holds a name.
fn within<R>(vfs: &Arc<Vfs>, path: &str, act: impl FnOnce(Ino, &[u8]) -> Outcome<R>) -> Outcome<R> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    at(vfs, parent, |ino| act(ino, name.as_bytes()))
}

/// Open a file, call `act` with the handle, close it; an error of closing counts.
fn opened(vfs: &Arc<Vfs>, path: &str, act: impl FnOnce(u64) -> Outcome<()>) -> Outcome<()> {
    at(vfs, path, |ino| {
        match vfs.attr(ino)?.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno(libc::EINVAL)),
        }
        let handle = vfs.open(ME, ino, libc::O_RDWR)?.number;
        let done = act(handle);
        let flushed = vfs.flush(handle);
        vfs.close_file(handle);
        done.and(flushed)
    })
}

/// Make everything durable, and wait for it.
///
/// # Errors
/// What the commit answers.
pub fn sync_all(vfs: &Arc<Vfs>) -> Outcome<()> {
    let (sender, answer) = channel();
    vfs.sync_all(move |outcome| {
        let _ = sender.send(outcome);
    });
    answer.recv().unwrap_or(Err(Errno::IO))
}

fn sync_file(vfs: &Arc<Vfs>, handle: u64) -> Outcome<()> {
    let (sender, answer) = channel();
    vfs.sync_file(handle, move |outcome| {
        let _ = sender.send(outcome);
    });
    answer.recv().unwrap_or(Err(Errno::IO))
}

/// As [`carry_out`], and whether the operation was accepted: a write is, though closing the file may tell of an error
/// that was deferred. Nothing is stored ahead.
pub fn carry_out_told(vfs: &Arc<Vfs>, op: &Op) -> (bool, Outcome<()>) {
    match op {
        Op::Write { path, offset, len, seed } => write(vfs, path, *offset, &noise(*seed, *len), false),
        _ => {
            let outcome = carry_out(vfs, op);
            (outcome.is_ok(), outcome)
        }
    }
}

/// Whether it was accepted, and the outcome. `ahead`: as beside others who sync.
fn write(vfs: &Arc<Vfs>, path: &str, offset: u64, bytes: &[u8], ahead: bool) -> (bool, Outcome<()>) {
    let mut accepted = false;
    let outcome = opened(vfs, path, |handle| {
        if ahead {
            vfs.store_ahead(handle, offset, bytes);
        }
        let written = vfs.write(handle, offset, bytes, false)?;
        assert_eq!(written as usize, bytes.len(), "a write is accepted whole or refused");
        accepted = true;
        Ok(())
    });
    (accepted, outcome)
}

/// Carry an operation out on a filesystem.
///
/// # Errors
/// The errno it answers.
pub fn carry_out(vfs: &Arc<Vfs>, op: &Op) -> Outcome<()> {
    match op {
        Op::Create { path } => within(vfs, path, |parent, name| {
            let opened = vfs.create(ME, parent, name, 0o644, libc::O_EXCL | libc::O_RDWR)?;
            vfs.close_file(opened.handle);
            vfs.forget(opened.attr.ino, 1);
            Ok(())
        }),
        Op::Mkdir { path } => make(vfs, path, FileKind::Directory, 0o755, None),
        Op::Symlink { path, target } => make(vfs, path, FileKind::Symlink, 0o777, Some(target.as_bytes())),
        Op::Write { path, offset, len, seed } => {
            write(vfs, path, *offset, &noise(*seed, *len), seed.is_multiple_of(3)).1
        }
        Op::Truncate { path, len } => at(vfs, path, |ino| {
            let change = AttrChange { size: Some(*len), ..AttrChange::default() };
            match vfs.attr(ino)?.kind {
                FileKind::File => vfs.set_attr(ME, ino, &change).map(drop),
                FileKind::Directory => Err(Errno(libc::EISDIR)),
                _ => Err(Errno(libc::EINVAL)),
            }
        }),
        Op::Punch { path, offset, len } => opened(vfs, path, |handle| {
            vfs.allocate(ME, handle, *offset, *len, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
        }),
        Op::Unlink { path } => within(vfs, path, |parent, name| vfs.unlink(parent, name)),
        Op::Rmdir { path } => within(vfs, path, |parent, name| vfs.rmdir(parent, name)),
        Op::Rename { from, to } => rename(vfs, from, to, RenameFlags::default()),
        Op::Exchange { one, other } => {
            rename(vfs, one, other, RenameFlags { exchange: true, ..RenameFlags::default() })
        }
        Op::Link { path, to } => at(vfs, path, |ino| {
            within(vfs, to, |parent, name| {
                let attr = vfs.link(ME, ino, parent, name)?;
                vfs.forget(attr.ino, 1);
                Ok(())
            })
        }),
        Op::Chmod { path, perm } => {
            let change = AttrChange { perm: Some(*perm), ..AttrChange::default() };
            at(vfs, path, |ino| vfs.set_attr(ME, ino, &change).map(drop))
        }
        Op::SetXattr { path, name, value } => at(vfs, path, |ino| vfs.set_xattr(ME, ino, name.as_bytes(), value, 0)),
        Op::RemoveXattr { path, name } => at(vfs, path, |ino| vfs.remove_xattr(ME, ino, name.as_bytes())),
        Op::Sync { path } => at(vfs, path, |ino| match vfs.attr(ino)?.kind {
            FileKind::File => {
                let handle = vfs.open(ME, ino, libc::O_RDWR)?.number;
                let done = sync_file(vfs, handle);
                vfs.close_file(handle);
                done
            }
            _ => sync_all(vfs),
        }),
        Op::SyncAll => sync_all(vfs),
        Op::Checkpoint => {
            // Another may be running; whether there is one is no promise.
            let _ = vfs.volume().checkpoint();
            Ok(())
        }
        Op::Collect => {
            let nothing = Rules { all_s: 0, minutely_s: 0, hourly_s: 0, ..Rules::default() };
            if vfs.volume().retention_rules().is_ok_and(|rules| rules != nothing) {
                let _ = vfs.volume().set_retention_rules(&nothing);
            }
            // What it could not free it frees the next time; that it must not free what is needed is seen by reading.
            let _ = vfs.gc(GcOptions::default(), &|_, _, _| true);
            Ok(())
        }
        Op::Quota => {
            let volume = vfs.volume();
            // Refused on a volume that went read-only; then nothing changes.
            let _ = match volume.quotas().is_ok_and(|quotas| quotas.is_empty()) {
                true => volume.set_quota(ROOT_INO, QuotaLimits::default()).map(drop),
                false => volume.remove_quota(ROOT_INO),
            };
            Ok(())
        }
        Op::Pause => {
            // Now and then long enough for the housekeeper, too.
            let long = PAUSES.fetch_add(1, Ordering::Relaxed) % 16 == 15;
            std::thread::sleep(Duration::from_millis(if long { 550 } else { 3 }));
            Ok(())
        }
    }
}

fn make(vfs: &Arc<Vfs>, path: &str, kind: FileKind, perm: u16, target: Option<&[u8]>) -> Outcome<()> {
    within(vfs, path, |parent, name| {
        let attr = vfs.make(ME, parent, name, kind, perm, 0, target)?;
        vfs.forget(attr.ino, 1);
        Ok(())
    })
}

fn rename(vfs: &Arc<Vfs>, from: &str, to: &str, flags: RenameFlags) -> Outcome<()> {
    within(vfs, from, |parent, name| {
        within(vfs, to, |new_parent, new_name| vfs.rename(ME, parent, name, new_parent, new_name, flags))
    })
}

/// Bytes read at once.
const READ_LEN: usize = 128 << 10;

fn read_file(vfs: &Arc<Vfs>, ino: Ino, len: u64) -> Outcome<Vec<u8>> {
    let handle = vfs.open(ME, ino, libc::O_RDONLY)?.number;
    let mut bytes = Vec::with_capacity(len as usize);
    let outcome = loop {
        match vfs.read_now(handle, bytes.len() as u64, READ_LEN) {
            Ok(read) if read.as_slice().is_empty() => break Ok(()),
            Ok(read) => bytes.extend_from_slice(read.as_slice()),
            Err(errno) => break Err(errno),
        }
    };
    vfs.close_file(handle);
    outcome.map(|()| bytes)
}

/// The whole tree as a reader sees it, or the path that cannot be read and why.
///
/// # Errors
/// What went wrong, and with which path.
pub fn read_state(vfs: &Arc<Vfs>) -> Result<State, String> {
    let mut state = State::new();
    let mut queue = vec![(String::new(), ROOT_INO)];
    while let Some((path, dir)) = queue.pop() {
        let context = |what: &str, path: &str, errno: Errno| format!("{what} of /{path}: errno {}", errno.0);
        let handle = vfs.open_dir(dir);
        let mut names: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut after = 0;
        loop {
            let before = after;
            vfs.read_dir(handle, before, false, &mut |item| {
                if item.name != b"." && item.name != b".." {
                    names.push((item.name.to_vec(), item.ino.0));
                }
                after = item.offset;
                false
            })
            .map_err(|errno| context("readdir", &path, errno))?;
            if after == before {
                break;
            }
        }
        vfs.close_dir(handle);
        for (name, _) in names {
            let text = String::from_utf8_lossy(&name).into_owned();
            let full = if path.is_empty() { text } else { format!("{path}/{text}") };
            let attr = vfs.lookup(dir, &name).map_err(|errno| context("lookup", &full, errno))?;
            let (kind, names, len, hash) = match attr.kind {
                FileKind::Directory => {
                    queue.push((full.clone(), attr.ino));
                    ('d', 0, 0, [0; 8])
                }
                FileKind::Symlink => {
                    let target = vfs.read_link(attr.ino).map_err(|errno| context("readlink", &full, errno))?;
                    ('l', 0, 0, short_hash(&target))
                }
                _ => {
                    let bytes = read_file(vfs, attr.ino, attr.size).map_err(|errno| context("read", &full, errno))?;
                    if bytes.len() as u64 != attr.size {
                        return Err(format!("/{full} has {} bytes and says {}", bytes.len(), attr.size));
                    }
                    ('f', attr.nlink, attr.size, short_hash(&bytes))
                }
            };
            let list = vfs.list_xattrs(ME, attr.ino).map_err(|errno| context("listxattr", &full, errno))?;
            let mut xattrs = Vec::new();
            for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let value = vfs.get_xattr(attr.ino, name).map_err(|errno| context("getxattr", &full, errno))?;
                xattrs.push((String::from_utf8_lossy(name).into_owned(), short_hash(&value)));
            }
            xattrs.sort();
            vfs.forget(attr.ino, 1);
            state.insert(full, Item { kind, perm: attr.perm, names, len, hash, xattrs });
        }
    }
    Ok(state)
}
