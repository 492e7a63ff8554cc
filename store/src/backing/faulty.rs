//! Faults from a script, injected around any backing.
//!
//! What the store must survive in any m of the k+m directories of a stripe, and what this can do to it:
//! calls that fail, hang or are slow; reads that are flipped, truncated, taken from elsewhere, or older than what was
//! written; writes that are torn, lost, or land elsewhere; syncs that fail and take with them what was not synced, or
//! report success and do nothing.
//!
//! Without rules every call passes through and is counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Backing, Direct, DirectEnd, Space, failed_before};
use crate::ids::SegmentId;

/// A kind of call of [`Backing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as the methods are")]
pub enum Call {
    CreateSegment,
    WriteAt,
    /// The end of a direct write. None is begun while a fault may strike `WriteAt` or `SyncSegment` of the segment.
    DirectWrite,
    /// Reads, cached or not.
    ReadAt,
    SyncSegment,
    ResetSegment,
    FinishSegment,
    Punch,
    RemoveSegment,
    ListSegments,
    ReadFile,
    WriteFile,
    CreateFile,
    ListFiles,
    RemoveFile,
    Space,
    Lock,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Any call: fails with this errno and does nothing. A sync that fails leaves the segment failed.
    Errno(i32),
    /// Any call: waits until the gate is opened, then goes on as usual.
    Hang(Gate),
    /// Any call: takes this much longer.
    Delay(Duration),
    /// Any call without a result but success: reports success and does nothing.
    Lost,
    /// `WriteAt`: writes this many bytes, then fails with the errno.
    ShortWrite {
        /// Bytes written.
        bytes: usize,
        /// The error.
        errno: i32,
    },
    /// `WriteAt`: writes at this offset instead.
    Misplaced {
        /// Where, bytes.
        offset: u64,
    },
    /// `ReadAt`, `ReadFile`: this bit (modulo the length) is flipped.
    FlipBit {
        /// Which, counted from the lowest bit of the first byte read.
        bit: u64,
    },
    /// `ReadAt`, `ReadFile`: at most this many bytes are there.
    Truncate {
        /// Bytes.
        len: usize,
    },
    /// `ReadAt`: the bytes of another place.
    Swapped {
        /// From this segment.
        segment: SegmentId,
        /// At this offset, bytes.
        offset: u64,
    },
    /// `ReadAt`, `ReadFile`: as it was before the last write through this handle. Segments are written once, so there
    /// that is zeros; a small file has its content before, or does not exist.
    Stale,
    /// `SyncSegment`: fails with this errno, and what was written since the last good sync is gone.
    DropUnsynced {
        /// The error.
        errno: i32,
    },
}

/// When a fault strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    call: Call,
    segment: Option<SegmentId>,
    first: u64,
    times: u64,
    fault: Fault,
    seen: u64,
}

impl Rule {
    /// Strikes every call of this kind.
    ///
    /// # Panics
    /// If the fault cannot strike such calls: a test that injects nothing would succeed for the wrong reason.
    pub fn new(call: Call, fault: Fault) -> Self {
        assert!(fault.fits(call), "{fault:?} cannot strike {call:?}");
        Self { call, segment: None, first: 1, times: u64::MAX, fault, seen: 0 }
    }

    /// Only calls for this segment (and only those are counted for [`Rule::from_nth`]).
    pub fn segment(mut self, id: SegmentId) -> Self {
        self.segment = Some(id);
        self
    }

    /// From the n-th such call after the rule is set, counted from 1.
    pub fn from_nth(mut self, nth: u64) -> Self {
        self.first = nth;
        self
    }

    /// At most so many times.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn matches(&self, call: Call, segment: Option<SegmentId>) -> bool {
        self.call == call && (self.segment.is_none() || self.segment == segment)
    }

    fn is_spent(&self) -> bool {
        self.seen >= self.first.saturating_add(self.times).saturating_sub(1)
    }
}

impl Fault {
    fn fits(&self, call: Call) -> bool {
        match self {
            Self::Errno(_) | Self::Hang(_) | Self::Delay(_) => true,
            Self::Lost => {
                !matches!(call, Call::ReadAt | Call::ListSegments | Call::ReadFile | Call::ListFiles | Call::Space)
            }
            Self::ShortWrite { .. } | Self::Misplaced { .. } => call == Call::WriteAt,
            Self::FlipBit { .. } | Self::Truncate { .. } | Self::Stale => {
                matches!(call, Call::ReadAt | Call::ReadFile)
            }
            Self::Swapped { .. } => call == Call::ReadAt,
            Self::DropUnsynced { .. } => call == Call::SyncSegment,
        }
    }
}

/// Holds callers until it is opened. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Debug, Default)]
struct GateState {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Let everyone through, now and later.
    pub fn open(&self) {
        self.0.state.lock().0 = true;
        self.0.changed.notify_all();
    }

    /// Wait until so many callers have come to the gate.
    pub fn wait_for(&self, callers: usize) {
        let mut state = self.0.state.lock();
        self.0.changed.wait_while(&mut state, |(_, come)| *come < callers);
    }

    fn pass(&self) {
        let mut state = self.0.state.lock();
        state.1 += 1;
        self.0.changed.notify_all();
        self.0.changed.wait_while(&mut state, |(open, _)| !*open);
    }
}

/// A backing with faults.
pub struct FaultyBacking {
    inner: Arc<dyn Backing>,
    script: Mutex<Script>,
    uncached: AtomicBool,
}

#[derive(Default)]
struct Script {
    rules: Vec<Rule>,
    counts: HashMap<Call, u64>,
    /// What writes since the last good sync replaced, oldest first.
    unsynced: HashMap<SegmentId, Vec<Replaced>>,
    /// Segments with a failed sync.
    failed: HashSet<SegmentId>,
    /// Small files before their last write.
    before: BTreeMap<String, Option<Vec<u8>>>,
}

struct Replaced {
    offset: u64,
    bytes: Vec<u8>,
}

impl FaultyBacking {
    /// Wrap a backing, without faults yet.
    pub fn new(inner: Arc<dyn Backing>) -> Self {
        Self { inner, script: Mutex::default(), uncached: AtomicBool::new(false) }
    }

    /// Add a rule. Of several rules for a call the one added first strikes.
    pub fn add(&self, rule: Rule) {
        self.script.lock().rules.push(rule);
    }

    /// Drop all rules. What hangs keeps hanging until its gate is opened.
    pub fn clear(&self) {
        self.script.lock().rules.clear();
    }

    /// Calls of a kind so far.
    pub fn count(&self, call: Call) -> u64 {
        self.script.lock().counts.get(&call).copied().unwrap_or(0)
    }

    /// Have nothing in memory: every read has to go to a device, and so to a member's thread.
    pub fn set_uncached(&self, uncached: bool) {
        self.uncached.store(uncached, Ordering::Relaxed);
    }

    /// Count a call, wait if it is to hang, and give the fault that is left for the caller to act out.
    fn enter(&self, call: Call, segment: Option<SegmentId>) -> io::Result<Option<Fault>> {
        let fault = {
            let mut script = self.script.lock();
            *script.counts.entry(call).or_default() += 1;
            let mut fault = None;
            for rule in script.rules.iter_mut().filter(|rule| rule.matches(call, segment)) {
                let due = !rule.is_spent() && rule.seen + 1 >= rule.first;
                rule.seen += 1;
                if due && fault.is_none() {
                    fault = Some(rule.fault.clone());
                }
            }
            fault
        };
        match fault {
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Hang(gate)) => {
                gate.pass();
                Ok(None)
            }
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// A call without a result but success.
    fn act(&self, call: Call, segment: Option<SegmentId>, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.enter(call, segment)? {
            Some(Fault::Lost) => Ok(()),
            _ => act(),
        }
    }

    /// The segment's file is another one now, or none.
    fn forget(&self, id: SegmentId) {
        let mut script = self.script.lock();
        script.failed.remove(&id);
        script.unsynced.remove(&id);
    }

    /// Write, after noting what is replaced.
    fn write_noted(&self, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        let mut bytes = vec![0; len];
        // What is beyond the end, or cannot be read, counts as zeros.
        let _ = self.inner.read_at(id, offset, &mut bytes);
        self.script.lock().unsynced.entry(id).or_default().push(Replaced { offset, bytes });
        self.inner.write_at(id, offset, bufs)
    }

    fn sync(&self, id: SegmentId) -> io::Result<()> {
        if self.script.lock().failed.contains(&id) {
            return Err(failed_before());
        }
        let fault = self.enter(Call::SyncSegment, Some(id));
        match fault? {
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::DropUnsynced { errno }) => {
                let unsynced = self.script.lock().unsynced.remove(&id).unwrap_or_default();
                for Replaced { offset, bytes } in unsynced.iter().rev() {
                    self.inner.write_at(id, *offset, &[IoSlice::new(bytes)])?;
                }
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => {}
        }
        // A write that comes during the sync is noted anew.
        let unsynced = self.script.lock().unsynced.remove(&id);
        let synced = self.inner.sync_segment(id);
        if let (Err(_), Some(mut unsynced)) = (&synced, unsynced) {
            let mut script = self.script.lock();
            let newer = script.unsynced.remove(&id).unwrap_or_default();
            unsynced.extend(newer);
            script.unsynced.insert(id, unsynced);
        }
        synced
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    if !bytes.is_empty() {
        let bit = bit % (bytes.len() as u64 * 8);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

impl Backing for FaultyBacking {
    fn describe(&self) -> PathBuf {
        self.inner.describe()
    }

    fn create_segment(&self, id: SegmentId, capacity: u64) -> io::Result<()> {
        self.act(Call::CreateSegment, Some(id), || {
            self.inner.create_segment(id, capacity)?;
            self.forget(id);
            Ok(())
        })
    }

    fn write_at(&self, id: SegmentId, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        match self.enter(Call::WriteAt, Some(id))? {
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Misplaced { offset }) => return self.write_noted(id, offset, bufs),
            Some(Fault::ShortWrite { bytes, errno }) => {
                let whole: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                let part = &whole[..bytes.min(whole.len())];
                self.write_noted(id, offset, &[IoSlice::new(part)])?;
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => {}
        }
        if self.script.lock().failed.contains(&id) {
            return Err(failed_before());
        }
        self.write_noted(id, offset, bufs)
    }

    fn read_at(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let fault = self.enter(Call::ReadAt, Some(id))?;
        if let Some(Fault::Swapped { segment, offset }) = fault {
            return self.inner.read_at(segment, offset, buf);
        }
        let mut got = self.inner.read_at(id, offset, buf)?;
        match fault {
            Some(Fault::FlipBit { bit }) => flip(&mut buf[..got], bit),
            Some(Fault::Truncate { len }) => got = got.min(len),
            Some(Fault::Stale) => buf[..got].fill(0),
            _ => {}
        }
        Ok(got)
    }

    fn read_cached(&self, id: SegmentId, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let armed = |rule: &Rule| rule.matches(Call::ReadAt, Some(id)) && !rule.is_spent();
        // A fault must not strike the thread that asks for what is in memory.
        if self.uncached.load(Ordering::Relaxed) || self.script.lock().rules.iter().any(armed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let got = self.inner.read_cached(id, offset, buf)?;
        *self.script.lock().counts.entry(Call::ReadAt).or_default() += 1;
        Ok(got)
    }

    fn will_need(&self, id: SegmentId, offset: u64, len: u64) {
        self.inner.will_need(id, offset, len);
    }

    fn start_writeback(&self, id: SegmentId, offset: u64, len: u64) {
        self.inner.start_writeback(id, offset, len);
    }

    fn sync_segment(&self, id: SegmentId) -> io::Result<()> {
        let synced = self.sync(id);
        if synced.is_err() {
            self.script.lock().failed.insert(id);
        }
        synced
    }

    fn direct(&self, id: SegmentId, offset: u64, len: u64) -> Direct {
        let strikes = |rule: &Rule| {
            [Call::WriteAt, Call::SyncSegment].iter().any(|call| rule.matches(*call, Some(id))) && !rule.is_spent()
        };
        let script = self.script.lock();
        // Faults of the single steps strike where these are done one by one.
        if script.rules.iter().any(strikes) || script.failed.contains(&id) {
            return Direct::NotYet;
        }
        drop(script);
        self.inner.direct(id, offset, len)
    }

    fn make_direct(&self, id: SegmentId) -> io::Result<()> {
        self.inner.make_direct(id)
    }

    fn end_direct(&self, id: SegmentId, result: io::Result<()>) -> DirectEnd {
        let struck = self.enter(Call::DirectWrite, Some(id)).map(drop);
        let end = self.inner.end_direct(id, result.and(struck));
        if matches!(end, DirectEnd::Failed(_)) {
            self.script.lock().failed.insert(id);
        }
        end
    }

    fn changes(&self) -> Option<u64> {
        let armed = |rule: &Rule| rule.matches(Call::ListFiles, None) && !rule.is_spent();
        if self.script.lock().rules.iter().any(armed) { None } else { self.inner.changes() }
    }

    fn reset_segment(&self, id: SegmentId) -> io::Result<()> {
        self.act(Call::ResetSegment, Some(id), || {
            self.script.lock().failed.remove(&id);
            self.inner.reset_segment(id)
        })
    }

    fn finish_segment(&self, id: SegmentId) -> io::Result<()> {
        self.act(Call::FinishSegment, Some(id), || self.inner.finish_segment(id))
    }

    fn punch(&self, id: SegmentId, offset: u64, len: u64) -> io::Result<()> {
        self.act(Call::Punch, Some(id), || self.inner.punch(id, offset, len))
    }

    fn allocated(&self, id: SegmentId) -> io::Result<u64> {
        self.inner.allocated(id)
    }

    fn remove_segment(&self, id: SegmentId) -> io::Result<()> {
        self.act(Call::RemoveSegment, Some(id), || {
            self.inner.remove_segment(id)?;
            self.forget(id);
            Ok(())
        })
    }

    fn list_segments(&self) -> io::Result<Vec<(SegmentId, u64)>> {
        self.enter(Call::ListSegments, None)?;
        self.inner.list_segments()
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let fault = self.enter(Call::ReadFile, None)?;
        if let Some(Fault::Stale) = fault
            && let Some(before) = self.script.lock().before.get(name)
        {
            return Ok(before.clone());
        }
        let mut content = self.inner.read_file(name)?;
        match (fault, &mut content) {
            (Some(Fault::FlipBit { bit }), Some(bytes)) => flip(bytes, bit),
            (Some(Fault::Truncate { len }), Some(bytes)) => bytes.truncate(len),
            _ => {}
        }
        Ok(content)
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.act(Call::WriteFile, None, || {
            let before = self.inner.read_file(name).unwrap_or(None);
            self.inner.write_file(name, bytes)?;
            self.script.lock().before.insert(name.to_owned(), before);
            Ok(())
        })
    }

    fn create_file_exclusive(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.act(Call::CreateFile, None, || {
            self.inner.create_file_exclusive(name, bytes)?;
            self.script.lock().before.insert(name.to_owned(), None);
            Ok(())
        })
    }

    fn list_files(&self, dir: &str) -> io::Result<Vec<String>> {
        self.enter(Call::ListFiles, None)?;
        self.inner.list_files(dir)
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.act(Call::RemoveFile, None, || self.inner.remove_file(name))
    }

    fn is_marked(&self) -> bool {
        self.inner.is_marked()
    }

    fn space(&self) -> io::Result<Space> {
        self.enter(Call::Space, None)?;
        self.inner.space()
    }

    fn lock(&self) -> io::Result<()> {
        self.act(Call::Lock, None, || self.inner.lock())
    }
}

#[cfg(test)]
mod tests;
