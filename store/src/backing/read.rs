//! Reading shards with late binding: whoever answers first, and a substitute for whoever does not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::Backing;
use super::member::{CallKind, Member};
use super::set::BackingSet;
use crate::ids::{MemberId, SegmentId};

/// One shard to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRead {
    /// From whom.
    pub member: MemberId,
    /// From which segment.
    pub segment: SegmentId,
    /// Offset in the segment's file, bytes.
    pub offset: u64,
    /// Bytes to read. Fewer are passed on when the file ends before.
    pub len: usize,
}

/// When to ask for more shards than are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hedge {
    /// When one is late against its member's recent latency.
    #[default]
    Adaptive,
    /// Ask for all from the start.
    All,
    /// Only when one fails.
    Off,
}

/// How to read.
#[derive(Clone, Copy)]
pub struct ReadPlan<'a> {
    /// How many accepted shards are enough.
    pub need: usize,
    /// How many to ask for at first; `need` if that is more.
    pub first: usize,
    /// When to ask for more.
    pub hedge: Hedge,
    /// Whether the bytes read for `wants[i]` are what was meant. Called on the reading thread; the bytes are as many
    /// as asked for, or at least one if the file ends there.
    pub accept: &'a (dyn Fn(usize, &[u8]) -> bool + Sync),
}

/// Why a shard is not among the good.
#[derive(Debug)]
pub enum ReadFault {
    /// The member, the file, or that part of the file is not there.
    Missing,
    /// The read failed.
    Io(io::Error),
    /// Not accepted.
    Rejected,
    /// No answer by the time the reader went on, or the member had too much to do already.
    Late,
}

/// What was read. Shards never asked for, or not needed any more and not late, are in neither list.
#[derive(Debug, Default)]
pub struct ReadOutcome {
    /// Accepted shards by index in `wants`, in the order in which they came; `need` of them, or fewer if there were
    /// no more.
    pub good: Vec<(usize, Vec<u8>)>,
    /// The others by index in `wants`, and why.
    pub bad: Vec<(usize, ReadFault)>,
}

type Answer = (usize, io::Result<Vec<u8>>);

struct Pending {
    index: usize,
    member: Arc<Member>,
    since: Instant,
    /// When this counts as late.
    due: Instant,
    late: bool,
}

struct Reader<'a> {
    set: &'a BackingSet,
    wants: &'a [ShardRead],
    plan: &'a ReadPlan<'a>,
    /// Indices of `wants` not asked yet.
    unasked: std::vec::IntoIter<usize>,
    pending: Vec<Pending>,
    sender: Sender<Answer>,
    receiver: Receiver<Answer>,
    /// Set when nobody waits any more: what has not begun need not.
    finished: Arc<AtomicBool>,
    outcome: ReadOutcome,
}

pub(super) fn read_shards(set: &BackingSet, wants: &[ShardRead], plan: &ReadPlan<'_>) -> ReadOutcome {
    let turn = |index: &usize| {
        let member = set.get(&wants[*index].member);
        member.and_then(Member::readable).map_or(0, |(_, turn)| turn)
    };
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_cached_key(turn);
    let (sender, receiver) = unbounded();
    let mut reader = Reader {
        set,
        wants,
        plan,
        unasked: order.into_iter(),
        pending: Vec::new(),
        sender,
        receiver,
        finished: Arc::default(),
        outcome: ReadOutcome::default(),
    };
    reader.start_first();
    reader.wait();
    reader.finished.store(true, Ordering::Release);
    let late = reader.pending.drain(..).filter(|one| one.late).map(|one| (one.index, ReadFault::Late));
    reader.outcome.bad.extend(late);
    reader.outcome
}

/// What came of asking for a shard on the calling thread.
enum Asked {
    /// An answer from memory.
    Answered(io::Result<Vec<u8>>),
    /// A thread must ask; the buffer is for it. The flag tells that the member is sick.
    MustWait(Arc<Member>, Arc<dyn Backing>, Vec<u8>, bool),
    /// The member is not to be read.
    Missing,
}

impl Reader<'_> {
    fn enough(&self) -> bool {
        self.outcome.good.len() >= self.plan.need
    }

    /// Ask the first wants: those that must wait are handed out before the bytes of the others are looked at.
    fn start_first(&mut self) {
        let all = self.plan.hedge == Hedge::All;
        let first = if all { self.wants.len() } else { self.plan.first.max(self.plan.need) };
        let mut answered = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..first {
            if answered.len() >= self.plan.need {
                break;
            }
            let Some(index) = self.unasked.next() else { break };
            match self.ask(index) {
                Asked::MustWait(member, backing, buf, sick) => waiting.push((index, member, backing, buf, sick)),
                asked => answered.push((index, asked)),
            }
        }
        if answered.len() >= self.plan.need {
            // Very likely all there is to do; the loop below would ask devices for nothing.
            self.settle_all(&mut answered);
            if self.enough() {
                return;
            }
        }
        for (index, member, backing, buf, sick) in waiting {
            self.hand_out(index, member, backing, buf, sick);
        }
        self.settle_all(&mut answered);
        if all {
            while !self.enough() && self.start_next() {}
        }
    }

    fn settle_all(&mut self, answered: &mut Vec<(usize, Asked)>) {
        for (index, asked) in answered.drain(..) {
            let settled = match asked {
                Asked::Answered(result) => self.settle(index, result),
                _ => self.fault(index, ReadFault::Missing),
            };
            if !settled {
                self.start_next();
            }
        }
    }

    fn ask(&self, index: usize) -> Asked {
        let want = &self.wants[index];
        let Some(member) = self.set.get(&want.member) else { return Asked::Missing };
        let Some((backing, turn)) = member.readable() else { return Asked::Missing };
        let mut buf = vec![0; want.len];
        match backing.read_cached(want.segment, want.offset, &mut buf) {
            Ok(got) => {
                buf.truncate(got);
                member.counters.reads_cached.add(1);
                Asked::Answered(Ok(buf))
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                Asked::MustWait(member.clone(), backing, buf, turn == 2)
            }
            Err(err) => Asked::Answered(Err(err)),
        }
    }

    /// Ask for the next want, and the one after it if that one fails at once, and so on; `false` when none is left.
    fn start_next(&mut self) -> bool {
        while let Some(index) = self.unasked.next() {
            let started = match self.ask(index) {
                Asked::MustWait(member, backing, buf, sick) => self.hand_out(index, member, backing, buf, sick),
                Asked::Answered(result) => self.settle(index, result),
                Asked::Missing => self.fault(index, ReadFault::Missing),
            };
            if started {
                return true;
            }
        }
        false
    }

    /// Have one of the member's threads read. `false` if it has too much to do.
    fn hand_out(
        &mut self,
        index: usize,
        member: Arc<Member>,
        backing: Arc<dyn Backing>,
        mut buf: Vec<u8>,
        sick: bool,
    ) -> bool {
        let ShardRead { segment, offset, .. } = self.wants[index];
        let mut reply = Reply { index, sender: self.sender.clone(), sent: false };
        let (target, finished) = (member.clone(), self.finished.clone());
        let job = move || {
            if finished.load(Ordering::Acquire) {
                return;
            }
            let running = target.begin(CallKind::Read);
            let result = backing.read_at(segment, offset, &mut buf);
            drop(running);
            reply.send(result.map(|got| {
                buf.truncate(got);
                buf
            }));
        };
        // Known before submitting, so that the answer to a refused job (its reply is dropped) is not mistaken for one.
        let since = Instant::now();
        if member.submit_read(sick, job).is_err() {
            member.counters.late.add(1);
            return self.fault(index, ReadFault::Late);
        }
        let wait = match self.plan.hedge {
            Hedge::Adaptive => member.hedge_after(),
            Hedge::All | Hedge::Off => member.limits.read_patience,
        };
        self.pending.push(Pending { index, member, since, due: since + wait, late: false });
        true
    }

    fn wait(&mut self) {
        while !self.enough() {
            if self.pending.is_empty() {
                if !self.start_next() {
                    return;
                }
                continue;
            }
            let now = Instant::now();
            self.replace_late(now);
            if self.enough() {
                return;
            }
            let Some(deadline) = self.pending.iter().map(Pending::deadline).min() else { continue };
            match self.receiver.recv_deadline(deadline) {
                Ok((index, result)) => {
                    let Some(at) = self.pending.iter().position(|one| one.index == index) else { continue };
                    let one = self.pending.swap_remove(at);
                    // A late one has its substitute already.
                    if !self.settle(index, result) && !one.late {
                        self.start_next();
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    /// Give up on those waited for too long, and ask a substitute for each that has become late.
    fn replace_late(&mut self, now: Instant) {
        let mut substitutes = 0;
        let mut at = 0;
        while let Some(one) = self.pending.get_mut(at) {
            if !one.late && one.due <= now {
                one.late = true;
                one.member.counters.late.add(1);
                substitutes += 1;
            }
            if one.late && one.deadline() <= now {
                let one = self.pending.swap_remove(at);
                self.outcome.bad.push((one.index, ReadFault::Late));
            } else {
                at += 1;
            }
        }
        for _ in 0..substitutes {
            self.start_next();
        }
    }

    fn fault(&mut self, index: usize, fault: ReadFault) -> bool {
        self.outcome.bad.push((index, fault));
        false
    }

    /// Judge an answer; whether it is good.
    fn settle(&mut self, index: usize, result: io::Result<Vec<u8>>) -> bool {
        let want = &self.wants[index];
        let Some(member) = self.set.get(&want.member) else { return self.fault(index, ReadFault::Missing) };
        let counters = &member.counters;
        let fault = match result {
            Ok(bytes) if bytes.is_empty() && want.len > 0 => {
                counters.absent.add(1);
                ReadFault::Missing
            }
            Ok(bytes) => {
                counters.reads.add(1);
                counters.read_bytes.add(bytes.len() as u64);
                if (self.plan.accept)(index, &bytes) {
                    self.outcome.good.push((index, bytes));
                    return true;
                }
                counters.rejected.add(1);
                ReadFault::Rejected
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                counters.absent.add(1);
                ReadFault::Missing
            }
            Err(err) => {
                counters.read_errors.add(1);
                ReadFault::Io(err)
            }
        };
        self.fault(index, fault)
    }
}

impl Pending {
    /// When something is to be done about it: it becomes late, or it is given up.
    fn deadline(&self) -> Instant {
        if self.late { self.since + self.member.limits.read_patience } else { self.due }
    }
}

/// Sends an answer exactly once: an error if the job ends without one (its thread panicked, or the pool closed).
struct Reply {
    index: usize,
    sender: Sender<Answer>,
    sent: bool,
}

impl Reply {
    fn send(&mut self, result: io::Result<Vec<u8>>) {
        self.sent = true;
        // Nobody listens once there are enough.
        let _ = self.sender.send((self.index, result));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            self.send(Err(io::Error::other("the read was dropped")));
        }
    }
}
