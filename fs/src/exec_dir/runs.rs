//! The runs of a volume: their rows, which of them are kept, and `.brine/runs/ID/` where they can be read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use brine_store::ids::Ino;
use brine_store::volume::{Attr, COOKIE_MIN, DirEntry, FileKind};
use parking_lot::Mutex;
use serde_json::json;

use super::record::{RUNNING, RunRow};
use crate::control_dir::{Branch, Caching, Family, LOCAL_MASK, Opening, plain_attr, reading_only};
use crate::errno::{Errno, Outcome};
use crate::vfs::{Caller, Vfs};

/// Ended runs kept at most.
pub const KEPT_MAX: usize = 10_000;
/// How long ended runs are kept, nanoseconds: 30 days.
pub const KEPT_NS: i64 = 30 * 24 * 3600 * 1_000_000_000;
/// More than this many too many are forgotten together.
const FORGET_BATCH: usize = 256;

/// Runs whose rows the volume does not take, as on a read-only mount, that are known: the newest.
const UNWRITTEN_MAX: usize = 1000;

const FILES: [&str; 2] = ["status.json", "usage.json"];

/// All runs there are records of.
pub struct Runs {
    vfs: Weak<Vfs>,
    /// Keys of the rows: the oldest first. The name of a run is the last 32 bytes of its key.
    keys: Mutex<BTreeSet<Vec<u8>>>,
    /// Rows that the volume does not have, or not as they are: they are read from here.
    unwritten: Mutex<BTreeMap<Vec<u8>, Arc<RunRow>>>,
    /// Keys of ended runs whose rows wait to be written.
    waiting: Mutex<VecDeque<Vec<u8>>>,
    /// Held by who writes them: never by who notes one.
    settling: Mutex<()>,
    since_ns: i64,
}

impl Runs {
    /// The runs of a volume. Those that were running when its last daemon ended are lost, and said so in their records.
    ///
    /// # Errors
    /// The store's.
    pub fn new(vfs: &Arc<Vfs>, now_ns: i64) -> brine_store::Result<Arc<Self>> {
        let rows = vfs.volume().run_records()?;
        let keys = rows.iter().map(|row| row.key.to_vec()).collect();
        let runs = Self {
            vfs: Arc::downgrade(vfs),
            keys: Mutex::new(keys),
            unwritten: Mutex::default(),
            waiting: Mutex::default(),
            settling: Mutex::default(),
            since_ns: now_ns,
        };
        if vfs.volume().is_read_only().is_none() {
            for row in rows {
                // A row this version cannot read is kept as it is.
                let Ok(mut row) = RunRow::decode(&row.value) else { continue };
                if row.cause == RUNNING {
                    row.refuse(brine_exec::ExitCause::Lost, 125, "the daemon ended before the run did".into(), now_ns);
                    vfs.put_run_record(&row.key(), &row.encode())?;
                }
            }
        }
        Ok(Arc::new(runs))
    }

    /// A run's row, for everybody to read from now on. [`Self::write`] follows.
    pub fn note(&self, row: &RunRow) {
        let key = row.key();
        self.unwritten.lock().insert(key.clone(), Arc::new(row.clone()));
        self.keys.lock().insert(key);
    }

    /// [`Self::note`] of a run that ended: [`Self::settle`] follows.
    pub fn note_ended(&self, row: &RunRow) {
        self.note(row);
        self.waiting.lock().push_back(row.key());
    }

    /// [`Self::note`], and write it.
    pub fn put(&self, row: &RunRow) {
        self.note(row);
        self.write(&row.key());
    }

    /// Write what runs that ended have noted; when this returns, it is written, by whomever.
    pub fn settle(&self) {
        let _alone = self.settling.lock();
        let next = || self.waiting.lock().pop_front();
        while let Some(key) = next() {
            self.write(&key);
        }
    }

    /// Write a row as it was noted last. What the store refuses is logged, and kept as long as the mount: a record that
    /// cannot be written stops no run.
    pub fn write(&self, key: &[u8]) {
        let Some(row) = self.unwritten.lock().get(key).cloned() else { return };
        let Some(vfs) = self.vfs.upgrade() else { return };
        let written = if vfs.volume().is_read_only().is_some() {
            false
        } else {
            let put = vfs.put_run_record(key, &row.encode());
            put.inspect_err(|error| log::warn!("record of run {}: {error}", row.id)).is_ok()
        };
        let mut unwritten = self.unwritten.lock();
        if written {
            // It may have been noted anew meanwhile.
            if unwritten.get(key).is_some_and(|last| Arc::ptr_eq(last, &row)) {
                unwritten.remove(key);
            }
        } else if unwritten.len() > UNWRITTEN_MAX
            && let Some((oldest, _)) = unwritten.pop_first()
        {
            drop(unwritten);
            self.keys.lock().remove(&oldest);
        }
    }

    /// The newest runs first: at most `max` of those that `shown` holds of and, if `before` is given, whose key is below
    /// it. Rows are looked at one at a time.
    pub fn newest(&self, before: Option<Vec<u8>>, max: usize, shown: impl Fn(&RunRow) -> bool) -> Vec<RunRow> {
        let below = |at: Option<&Vec<u8>>| {
            let end = at.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
            self.keys.lock().range((Bound::Unbounded, end)).next_back().cloned()
        };
        let keys = std::iter::successors(below(before.as_ref()), |key| below(Some(key)));
        keys.filter_map(|key| self.row(&key)).filter(shown).take(max).collect()
    }

    /// The runs whose name begins so.
    pub fn named(&self, start: &str) -> Vec<RunRow> {
        let keys: Vec<Vec<u8>> =
            self.keys.lock().iter().filter(|key| name_of(key).starts_with(start.as_bytes())).cloned().collect();
        keys.iter().filter_map(|key| self.row(key)).collect()
    }

    fn row(&self, key: &[u8]) -> Option<RunRow> {
        if let Some(row) = self.unwritten.lock().get(key) {
            return Some(RunRow::clone(row));
        }
        let row = self.vfs.upgrade()?.volume().run_record(key).ok()??;
        RunRow::decode(&row).ok()
    }

    /// Forget what the rule does not keep. Runs that go on are kept: they are the newest.
    pub fn sweep(&self, now_ns: i64) {
        let Some(vfs) = self.vfs.upgrade() else { return };
        let mut gone = too_many(&self.keys.lock(), now_ns);
        if vfs.volume().is_read_only().is_some() {
            return;
        }
        // Their outputs can still be published: that was promised.
        gone.retain(|key| may_go(self.row(key).as_ref(), now_ns));
        if gone.is_empty() {
            return;
        }
        let mut keys = self.keys.lock();
        gone.iter().for_each(|key| {
            keys.remove(key);
        });
        drop(keys);
        if let Err(error) = vfs.forget_run_records(&gone) {
            log::warn!("forgetting old runs: {error}");
        }
    }

    fn of(&self, ino: Ino) -> Outcome<(RunRow, u64)> {
        let local = ino.0 & LOCAL_MASK;
        let keys = self.keys.lock();
        let key = keys.iter().rev().find(|key| local_of(name_of(key)) == local >> 2).cloned();
        drop(keys);
        Ok((key.and_then(|key| self.row(&key)).ok_or(Errno::STALE)?, local & 3))
    }

    fn attr_of(&self, row: &RunRow, part: u64) -> Attr {
        let ino = Family::Runs.number(local_of(row.id.as_bytes()) << 2 | part, false);
        let time = row.ended_ns.unwrap_or(row.started_ns);
        let mut attr = match part {
            0 => plain_attr(ino, FileKind::Directory, 0o500, 0, time),
            part => plain_attr(ino, FileKind::File, 0o400, content(row, part).len() as u64, time),
        };
        (attr.uid, attr.gid) = (row.uid, row.gid);
        attr
    }
}

/// The keys of rows that the rule does not keep.
fn too_many(keys: &BTreeSet<Vec<u8>>, now_ns: i64) -> Vec<Vec<u8>> {
    let oldest = now_ns.saturating_sub(KEPT_NS).max(0).to_be_bytes();
    let surplus = keys.len().saturating_sub(KEPT_MAX);
    let old = keys.iter().take_while(|key| key[..] < oldest[..]).count();
    let many = if surplus > FORGET_BATCH { surplus } else { 0 };
    keys.iter().take(old.max(many)).cloned().collect()
}

/// Whether a row may be forgotten: not while outputs of its run can be published, as was promised.
fn may_go(row: Option<&RunRow>, now_ns: i64) -> bool {
    row.is_none_or(|row| !row.keeps_outputs(now_ns))
}

fn name_of(key: &[u8]) -> &[u8] {
    key.get(8..).unwrap_or_default()
}

/// Enough digits of a run's name that no two of those kept have the same.
fn local_of(name: &[u8]) -> u64 {
    let digits = std::str::from_utf8(name.get(..13).unwrap_or_default()).unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or_default()
}

fn content(row: &RunRow, part: u64) -> Vec<u8> {
    let value = if part == 1 {
        let mut value = serde_json::to_value(row).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("usage");
        }
        value
    } else {
        json!({ "id": row.id, "usage": row.usage })
    };
    let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
    text.push(b'\n');
    text
}

impl Branch for Runs {
    fn family(&self) -> Family {
        Family::Runs
    }

    fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if ino == Family::Runs.top() {
            return Ok(plain_attr(ino, FileKind::Directory, 0o711, 0, self.since_ns));
        }
        let (row, part) = self.of(ino)?;
        Ok(self.attr_of(&row, part))
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if parent == Family::Runs.top() {
            let name = std::str::from_utf8(name).ok().filter(|name| name.len() == 32).ok_or(Errno::NOT_FOUND)?;
            let row = self.named(name).into_iter().next().ok_or(Errno::NOT_FOUND)?;
            return Ok(self.attr_of(&row, 0));
        }
        let (row, part) = self.of(parent)?;
        if part != 0 {
            return Err(Errno(libc::ENOTDIR));
        }
        let part = FILES.iter().position(|file| file.as_bytes() == name).ok_or(Errno::NOT_FOUND)?;
        Ok(self.attr_of(&row, part as u64 + 1))
    }

    fn entries(&self, dir: Ino, cookie: u64, max: usize, plus: bool) -> Outcome<Vec<DirEntry>> {
        let entry = |name: &[u8], attr: Attr, cookie| DirEntry {
            name: name.to_vec(),
            ino: attr.ino,
            kind: attr.kind,
            cookie,
            attr: plus.then_some(attr),
        };
        if dir != Family::Runs.top() {
            let (row, _) = self.of(dir)?;
            let files = (COOKIE_MIN..).zip((1..).zip(FILES)).filter(|(at, _)| *at > cookie);
            let files = files.map(|(at, (part, name))| entry(name.as_bytes(), self.attr_of(&row, part), at));
            return Ok(files.take(max).collect());
        }
        // A run's place in a listing is its age, so that runs that come and go meanwhile shift nothing.
        let place = |key: &[u8]| COOKIE_MIN + age_of(key);
        let keys: Vec<Vec<u8>> = self.keys.lock().iter().filter(|key| place(key) > cookie).take(max).cloned().collect();
        let row = |key: &Vec<u8>| Some(entry(name_of(key), self.attr_of(&self.row(key)?, 0), place(key)));
        Ok(keys.iter().filter_map(row).collect())
    }

    fn open(&self, _caller: Caller, ino: Ino, flags: i32) -> Outcome<Opening> {
        reading_only(flags)?;
        let (row, part) = self.of(ino)?;
        let file: Arc<[u8]> = content(&row, part).into();
        Ok(Opening { file: Arc::new(file), caching: Caching::Direct })
    }
}

fn age_of(key: &[u8]) -> u64 {
    key.first_chunk::<8>().map_or(0, |age| u64::from_be_bytes(*age)) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec_dir::record::{OUTPUTS_DROPPED, OUTPUTS_KEPT};
    use brine_exec::RunId;

    const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

    #[test]
    fn runs_whose_outputs_can_be_published_are_not_forgotten() {
        let now_ns = 100 * DAY_NS;
        let run = |outputs: &str, ended_ns| {
            let mut row = RunRow::new(RunId([1; 16]), 1, 1, now_ns - 40 * DAY_NS);
            (row.outputs, row.ended_ns) = (outputs.into(), ended_ns);
            row
        };
        assert!(!may_go(Some(&run(OUTPUTS_KEPT, Some(now_ns - DAY_NS + 1))), now_ns));
        assert!(may_go(Some(&run(OUTPUTS_KEPT, Some(now_ns - DAY_NS))), now_ns));
        assert!(may_go(Some(&run(OUTPUTS_DROPPED, Some(now_ns))), now_ns));
        assert!(may_go(None, now_ns));
    }

    #[test]
    fn the_oldest_of_too_many_are_forgotten_together() {
        let now_ns = 100 * DAY_NS;
        let key = |n: usize| RunRow::new(RunId([1; 16]), 1, 1, now_ns - DAY_NS + n as i64).key();
        let mut keys: BTreeSet<Vec<u8>> = (0..KEPT_MAX + FORGET_BATCH).map(key).collect();
        assert!(too_many(&keys, now_ns).is_empty());
        keys.insert(key(KEPT_MAX + FORGET_BATCH));
        let gone = too_many(&keys, now_ns);
        assert_eq!((gone.len(), &gone[0]), (FORGET_BATCH + 1, &key(0)));
    }
}
