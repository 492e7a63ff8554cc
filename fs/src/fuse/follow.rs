//! Keeps the event thread on the processor of a client that asks one request after the other.
//!
//! Such a client and this thread take turns; when they sleep on two processors, each turn wakes an idle one. On the
//! virtual machine this was measured on (2 processors), client and thread bound to one by hand make 12,000 creates and
//! 25,000 removals a second, left to the scheduler 2,700 and 7,000. The scheduler prefers an idle processor at every
//! wake-up, so this thread stays bound to its client's for as long as nobody else asks: 3,300 creates and 11,000 removals,
//! as the client itself is still moved. It is free again with the first request of another, or one that is better served
//! beside its client (read-ahead and other large transfers).

use std::cell::RefCell;
use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Requests of one client in a row after which we look where it runs: reading that costs about one request's time.
const STREAK: u32 = 32;
/// Requests after which we look again, once bound to its processor.
const STREAK_BOUND: u32 = 256;

#[derive(Default)]
struct Following {
    /// The last client's thread.
    client: u32,
    /// Requests in a row that were its, since we looked.
    streak: u32,
    /// The processor this thread is bound to, and those it may use otherwise.
    bound: Option<(usize, CpuSet)>,
}

thread_local! {
    static FOLLOWING: RefCell<Following> = RefCell::default();
}

/// Note a request that its sender waits for.
pub(super) fn note(client: u32) {
    FOLLOWING.with_borrow_mut(|following| following.note(client, processor_of));
}

/// Note a request that is better served beside its sender.
pub(super) fn let_go() {
    FOLLOWING.with_borrow_mut(|following| {
        following.streak = 0;
        following.free();
    });
}

impl Following {
    fn note(&mut self, client: u32, processor_of: impl FnOnce(u32) -> Option<usize>) {
        if client != self.client {
            self.free();
            (self.client, self.streak) = (client, 0);
            return;
        }
        self.streak += 1;
        if self.streak < if self.bound.is_some() { STREAK_BOUND } else { STREAK } {
            return;
        }
        self.streak = 0;
        match processor_of(client) {
            Some(processor) if self.bound.is_some_and(|(bound, _)| bound == processor) => {}
            // Not being allowed to costs speed only.
            Some(processor) => drop(self.bind(processor)),
            None => self.free(),
        }
    }

    fn bind(&mut self, processor: usize) -> nix::Result<()> {
        let this_thread = Pid::from_raw(0);
        let allowed = match self.bound {
            Some((_, allowed)) => allowed,
            None => sched_getaffinity(this_thread)?,
        };
        if !allowed.is_set(processor)? {
            return Ok(());
        }
        let mut only = CpuSet::new();
        only.set(processor)?;
        sched_setaffinity(this_thread, &only)?;
        self.bound = Some((processor, allowed));
        Ok(())
    }

    fn free(&mut self) {
        if let Some((_, allowed)) = self.bound.take() {
            let _ = sched_setaffinity(Pid::from_raw(0), &allowed);
        }
    }
}

/// The processor a thread ran on last. See proc_pid_stat(5).
fn processor_of(thread: u32) -> Option<usize> {
    processor_in(&fs::read_to_string(format!("/proc/{thread}/stat")).ok()?)
}

/// Field 39; the name in field 2 may hold spaces and parentheses.
fn processor_in(stat: &str) -> Option<usize> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_odd_names() {
        let stat = "31 (a) 7 b) S 1 31 31 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 10 0 0 18446744073709551615 0 0 0 0 0 0 0 \
                    0 0 0 0 0 17 5 0 0 0 0 0";
        assert_eq!(processor_in(stat), Some(5));
        assert_eq!(processor_in("31 (x) S 1"), None);
        assert_eq!(processor_in(""), None);
        assert!(processor_of(std::process::id()).is_some());
    }

    #[test]
    fn the_thread_is_bound_while_one_client_asks_and_free_when_another_does() {
        let affinity = || sched_getaffinity(Pid::from_raw(0)).unwrap();
        let allowed = affinity();
        let is_set = |processor: &usize| allowed.is_set(*processor) == Ok(true);
        let last = (0..CpuSet::count()).rfind(is_set).unwrap();
        let first = (0..CpuSet::count()).find(is_set).unwrap();
        let mut only = CpuSet::new();
        only.set(last).unwrap();
        let mut following = Following::default();
        (0..STREAK).for_each(|_| following.note(7, |_| Some(last)));
        assert_eq!(affinity(), allowed);
        following.note(7, |_| Some(last));
        assert_eq!(affinity(), only);
        // It moves with its client, and what it may use otherwise is not forgotten.
        (0..STREAK_BOUND).for_each(|_| following.note(7, |_| Some(first)));
        let mut only = CpuSet::new();
        only.set(first).unwrap();
        assert_eq!(affinity(), only);
        following.note(8, |_| Some(last));
        assert_eq!(affinity(), allowed);
        // A client that has ended is followed no more.
        (0..=STREAK).for_each(|_| following.note(8, |_| Some(last)));
        (0..STREAK_BOUND).for_each(|_| following.note(8, |_| None));
        assert_eq!(affinity(), allowed);
    }
}
