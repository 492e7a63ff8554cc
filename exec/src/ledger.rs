//! What runs may use in all, and what is promised to them. A run starts only with its limits promised; until then it
//! waits, bounded in number and time, and fairly: the next to go is of the user with the fewest runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// Part of everything that only runs invoked by runs may have: without it, runs that wait for their children could
/// hold all there is.
const NESTED_PART: u64 = 8;
/// How often it is looked whether who waits is still wanted.
const UNWANTED_TICK: Duration = Duration::from_millis(50);

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Memory, bytes, scratch included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Runs at one time.
    pub runs: u64,
    /// Requests that wait at most.
    pub waiting: usize,
    /// How long one waits at most.
    pub wait: Duration,
}

impl Capacity {
    /// Three quarters of this machine's memory, and bounds that do not depend on it.
    pub fn of_this_machine() -> Self {
        let memory_bytes = crate::policy::machine_memory_bytes() / 4 * 3;
        Self { memory_bytes, pids: 16384, runs: 512, waiting: 1024, wait: Duration::from_secs(60) }
    }
}

/// What one run needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Memory, bytes, scratch included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerStatus {
    /// What there is.
    pub capacity: Capacity,
    /// What is promised.
    pub promised: Need,
    /// Runs that have a promise.
    pub runs: u64,
    /// Requests that wait.
    pub waiting: usize,
}

#[derive(Debug, Default)]
struct State {
    promised: Need,
    runs: u64,
    /// Runs of each user that has any.
    runs_of: HashMap<u32, u64>,
    /// In the order they came: number and user.
    waiting: Vec<(u64, u32)>,
    next: u64,
    stopping: bool,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    capacity: Capacity,
    state: Mutex<State>,
    changed: Condvar,
}

/// Limits promised to a run, given back when it is dropped.
#[derive(Debug)]
pub struct Promise {
    ledger: Arc<Ledger>,
    need: Need,
    uid: u32,
}

impl Ledger {
    /// An empty one.
    pub fn new(capacity: Capacity) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default(), changed: Condvar::new() })
    }

    /// A promise of `need` to a run of `uid`, as soon as it can be had; given up soon after `unwanted` says so.
    ///
    /// # Errors
    /// [`Error::Refused`] if it never can, or is unwanted; [`Error::Full`] if too many wait or the wait is over;
    /// [`Error::Stopping`].
    pub fn promise(
        self: &Arc<Self>,
        uid: u32,
        need: Need,
        nested: bool,
        unwanted: Option<&dyn Fn() -> bool>,
    ) -> Result<Promise> {
        if !self.fits(&State::default(), &need, nested) {
            return Err(Error::Refused(format!(
                "its limits ({} MiB, {} processes) are larger than what all runs may use on this machine ({} MiB, {})",
                need.memory_bytes >> 20,
                need.pids,
                self.part(self.capacity.memory_bytes, nested) >> 20,
                self.part(self.capacity.pids, nested)
            )));
        }
        let mut state = self.state.lock();
        if state.waiting.len() >= self.capacity.waiting {
            return Err(Error::Full("too many runs wait already"));
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push((number, uid));
        let deadline = Instant::now() + self.capacity.wait;
        let outcome = loop {
            if state.stopping {
                break Err(Error::Stopping);
            }
            if (nested || first(&state) == Some(number)) && self.fits(&state, &need, nested) {
                break Ok(());
            }
            if unwanted.is_some_and(|unwanted| unwanted()) {
                break Err(Error::Refused("who asked for it has ended".into()));
            }
            let until = unwanted.map_or(deadline, |_| deadline.min(Instant::now() + UNWANTED_TICK));
            if self.changed.wait_until(&mut state, until).timed_out() && until == deadline {
                break Err(Error::Full("it waited for its limits to become free"));
            }
        };
        state.waiting.retain(|(waiter, _)| *waiter != number);
        if outcome.is_ok() {
            state.promised.memory_bytes += need.memory_bytes;
            state.promised.pids += need.pids;
            state.runs += 1;
            *state.runs_of.entry(uid).or_default() += 1;
        }
        drop(state);
        // Whoever is first now may fit too.
        self.changed.notify_all();
        outcome.map(|()| Promise { ledger: Arc::clone(self), need, uid })
    }

    /// Refuse everything that waits or comes.
    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }

    /// How things stand.
    pub fn status(&self) -> LedgerStatus {
        let state = self.state.lock();
        LedgerStatus {
            capacity: self.capacity,
            promised: state.promised,
            runs: state.runs,
            waiting: state.waiting.len(),
        }
    }

    fn part(&self, whole: u64, nested: bool) -> u64 {
        if nested { whole } else { whole - whole / NESTED_PART }
    }

    fn fits(&self, state: &State, need: &Need, nested: bool) -> bool {
        let room = |used: u64, more: u64, whole: u64| used.saturating_add(more) <= self.part(whole, nested);
        room(state.promised.memory_bytes, need.memory_bytes, self.capacity.memory_bytes)
            && room(state.promised.pids, need.pids, self.capacity.pids)
            && room(state.runs, 1, self.capacity.runs)
    }
}

/// Who is next: of the user with the fewest runs, the one that came first. It goes before any that would fit earlier,
/// so that a large run is not passed by for ever.
fn first(state: &State) -> Option<u64> {
    let runs = |uid: &u32| state.runs_of.get(uid).copied().unwrap_or(0);
    state.waiting.iter().min_by_key(|(number, uid)| (runs(uid), *number)).map(|(number, _)| *number)
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut state = self.ledger.state.lock();
        state.promised.memory_bytes -= self.need.memory_bytes;
        state.promised.pids -= self.need.pids;
        state.runs -= 1;
        if let Some(runs) = state.runs_of.get_mut(&self.uid) {
            *runs -= 1;
            if *runs == 0 {
                state.runs_of.remove(&self.uid);
            }
        }
        drop(state);
        self.ledger.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn ledger(wait: Duration) -> Arc<Ledger> {
        Ledger::new(Capacity { memory_bytes: 800, pids: 800, runs: 80, waiting: 4, wait })
    }

    const BIG: Need = Need { memory_bytes: 400, pids: 1 };

    #[test]
    fn what_is_promised_comes_back_and_what_never_fits_is_refused() {
        let ledger = ledger(Duration::ZERO);
        let one = ledger.promise(1, BIG, false, None).unwrap();
        assert!(
            matches!(ledger.promise(1, BIG, false, None), Err(Error::Full(_))),
            "an eighth is kept for nested runs"
        );
        let nested = ledger.promise(1, BIG, true, None).unwrap();
        assert_eq!(ledger.status().promised.memory_bytes, 800);
        drop((one, nested));
        assert_eq!(ledger.status().promised, Need::default());
        assert_eq!((ledger.status().runs, ledger.status().waiting), (0, 0));
        let huge = Need { memory_bytes: 801, pids: 1 };
        assert!(matches!(ledger.promise(1, huge, true, None), Err(Error::Refused(_))));
    }

    #[test]
    fn the_user_with_fewer_runs_goes_first_and_the_queue_is_bounded() {
        let ledger = ledger(Duration::from_secs(60));
        let small = ledger.promise(1, Need { memory_bytes: 100, pids: 1 }, false, None).unwrap();
        let held = ledger.promise(1, BIG, false, None).unwrap();
        let (say, heard) = std::sync::mpsc::channel();
        let mut threads = Vec::new();
        for (index, uid) in [1, 1, 1, 2].into_iter().enumerate() {
            let (own, say) = (Arc::clone(&ledger), say.clone());
            threads.push(std::thread::spawn(move || {
                let promise = own.promise(uid, BIG, false, None);
                say.send((uid, promise.is_ok())).unwrap();
                promise
            }));
            while ledger.status().waiting < index + 1 {
                std::thread::yield_now();
            }
        }
        assert!(matches!(ledger.promise(3, BIG, false, None), Err(Error::Full(_))), "four wait already");
        // User 1 still has the small run then, so user 2 passes three that came before.
        drop(held);
        assert_eq!(heard.recv().unwrap(), (2, true));
        ledger.stop();
        for thread in threads {
            let _ = thread.join().unwrap();
        }
        drop(small);
        assert_eq!(ledger.status().promised, Need::default());
    }

    #[test]
    fn a_wait_that_nobody_wants_any_more_ends() {
        let ledger = ledger(Duration::from_secs(600));
        let held = ledger.promise(1, BIG, false, None).unwrap();
        let unwanted = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| ledger.promise(1, BIG, false, Some(&|| unwanted.load(Ordering::SeqCst))));
            while ledger.status().waiting == 0 {
                std::thread::yield_now();
            }
            unwanted.store(true, Ordering::SeqCst);
            assert!(matches!(waits.join().unwrap(), Err(Error::Refused(_))));
        });
        assert_eq!((ledger.status().waiting, ledger.status().runs), (0, 1));
        drop(held);
    }
}
