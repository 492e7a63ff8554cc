//! Sandboxes that were made ahead: each is used once, by one run of the identity and template it was made for.
//!
//! How many are kept adapts: a run that found none raises the number for its kind, a kind nobody asks for is let go
//! step by step. Both bounds are given. The pool only keeps; making and ending sandboxes is its owner's.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::plan::{Identity, Template};

/// No run of a kind for so long, and sandboxes of it are made: most programs have ended then.
pub(crate) const QUIET: Duration = Duration::from_millis(3);

/// Bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBounds {
    /// Sandboxes of one kind at most.
    pub of_kind: usize,
    /// Sandboxes in all.
    pub all: usize,
    /// A kind nobody asked for during this time is halved.
    pub idle: Duration,
}

impl Default for PoolBounds {
    fn default() -> Self {
        Self { of_kind: 8, all: 32, idle: Duration::from_secs(60) }
    }
}

/// What makes two unused sandboxes exchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub identity: Identity,
    pub template: Template,
}

#[derive(Debug)]
struct Shelf<S, L> {
    ready: VecDeque<S>,
    /// How many there should be.
    target: usize,
    /// Being made now.
    making: usize,
    /// Limits of the last run of this kind: the next will probably have them too.
    limits: L,
    asked: Instant,
}

impl<S, L> Shelf<S, L> {
    fn missing(&self) -> usize {
        self.target.saturating_sub(self.ready.len() + self.making)
    }

    fn can_wait(&self, now: Instant) -> bool {
        (self.ready.len() * 2 >= self.target || self.target == 1) && now.saturating_duration_since(self.asked) < QUIET
    }
}

/// Unused sandboxes `S`, made with limits `L`.
#[derive(Debug)]
pub(crate) struct Pool<S, L> {
    bounds: PoolBounds,
    shelves: HashMap<Kind, Shelf<S, L>>,
}

impl<S, L: Copy> Pool<S, L> {
    pub fn new(bounds: PoolBounds) -> Self {
        Self { bounds, shelves: HashMap::new() }
    }

    /// One for a run that is about to start, if there is one.
    pub fn take(&mut self, kind: &Kind, limits: L, now: Instant) -> Option<S> {
        if self.bounds.of_kind == 0 {
            return None;
        }
        if !self.shelves.contains_key(kind) {
            let shelf = Shelf { ready: VecDeque::new(), target: 0, making: 0, limits, asked: now };
            self.shelves.insert(kind.clone(), shelf);
        }
        let shelf = self.shelves.get_mut(kind)?;
        shelf.asked = now;
        shelf.limits = limits;
        let found = shelf.ready.pop_front();
        if found.is_none() {
            shelf.target = (shelf.target + 1).min(self.bounds.of_kind);
        }
        found
    }

    /// What should be made at `now`, if anything. [`Self::put`] or [`Self::not_made`] must follow. Where a run has taken one
    /// and left half of them, or was the only one so far, nothing is made for [`QUIET`]: it would be in the way of that run.
    pub fn wanted(&mut self, now: Instant) -> Option<(Kind, L)> {
        let all: usize = self.shelves.values().map(|shelf| shelf.ready.len() + shelf.making).sum();
        if all >= self.bounds.all {
            return None;
        }
        let due = |shelf: &Shelf<S, L>| shelf.missing() > 0 && !shelf.can_wait(now);
        let shelves = self.shelves.iter_mut().filter(|(_, shelf)| due(shelf));
        let (kind, shelf) = shelves.max_by_key(|(_, shelf)| shelf.missing())?;
        shelf.making += 1;
        Some((kind.clone(), shelf.limits))
    }

    /// Whether something will be made when it has been quiet.
    pub fn is_waiting(&self, now: Instant) -> bool {
        self.shelves.values().any(|shelf| shelf.missing() > 0 && shelf.can_wait(now))
    }

    /// It was made. Comes back if nobody wants it any more.
    pub fn put(&mut self, kind: &Kind, sandbox: S) -> Option<S> {
        match self.shelves.get_mut(kind) {
            Some(shelf) => {
                shelf.making -= 1;
                shelf.ready.push_back(sandbox);
                None
            }
            None => Some(sandbox),
        }
    }

    /// It could not be made: runs of its kind will say why; no more is tried until one asks.
    pub fn not_made(&mut self, kind: &Kind) {
        if let Some(shelf) = self.shelves.get_mut(kind) {
            shelf.making -= 1;
            shelf.target = 0;
        }
    }

    /// What is not needed any more at `now`.
    pub fn surplus(&mut self, now: Instant) -> Vec<S> {
        let idle = self.bounds.idle;
        let mut out = Vec::new();
        self.shelves.retain(|_, shelf| {
            if now.duration_since(shelf.asked) >= idle {
                shelf.target /= 2;
                shelf.asked = now;
            }
            while shelf.ready.len() > shelf.target {
                out.extend(shelf.ready.pop_front());
            }
            shelf.target > 0 || shelf.making > 0
        });
        out
    }

    /// Everything, because it is over.
    pub fn drain(&mut self) -> Vec<S> {
        self.shelves.drain().flat_map(|(_, shelf)| shelf.ready).collect()
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.shelves.values().map(|shelf| shelf.ready.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Root;
    use crate::policy::Network;

    fn kind(uid: u32) -> Kind {
        Kind {
            identity: Identity { uid, gid: uid, groups: Vec::new() },
            template: Template { root: Root::Host, network: Network::None, scratch_bytes: 0 },
        }
    }

    fn fill(pool: &mut Pool<u32, ()>, now: Instant) -> usize {
        let mut made = 0;
        while let Some((kind, ())) = pool.wanted(now) {
            assert!(pool.put(&kind, made).is_none());
            made += 1;
        }
        made as usize
    }

    #[test]
    fn it_grows_with_misses_within_its_bounds_and_shrinks_when_nobody_asks() {
        let bounds = PoolBounds { of_kind: 3, all: 4, idle: Duration::from_secs(10) };
        let mut pool = Pool::new(bounds);
        let start = Instant::now();
        assert_eq!(fill(&mut pool, start + QUIET), 0, "nothing is made for nobody");
        for _ in 0..5 {
            assert_eq!(pool.take(&kind(1), (), start), None);
        }
        assert_eq!(fill(&mut pool, start + QUIET), 3, "of one kind");
        assert!(pool.take(&kind(2), (), start).is_none(), "never another identity's");
        pool.take(&kind(2), (), start);
        assert_eq!(fill(&mut pool, start + QUIET), 1, "in all");
        assert!(pool.take(&kind(1), (), start).is_some());
        assert_eq!(pool.surplus(start), Vec::<u32>::new());
        let mut left = pool.ready();
        for period in 1..5 {
            left -= pool.surplus(start + bounds.idle * period).len();
        }
        assert_eq!((left, pool.ready(), pool.shelves.len()), (0, 0, 0));
    }

    #[test]
    fn nothing_is_made_beside_a_run_that_left_enough() {
        let mut pool: Pool<u32, ()> = Pool::new(PoolBounds::default());
        let start = Instant::now();
        pool.take(&kind(1), (), start);
        assert!(pool.wanted(start).is_none() && pool.is_waiting(start), "the first of its kind");
        assert_eq!(fill(&mut pool, start + QUIET), 1);
        let mut later = start + QUIET;
        assert!(pool.take(&kind(1), (), later).is_some());
        assert!(pool.take(&kind(1), (), later).is_none(), "the next one comes at once");
        assert_eq!(fill(&mut pool, later), 1, "none was left, half of them are again");
        assert!(pool.is_waiting(later));
        later += QUIET;
        assert_eq!(fill(&mut pool, later), 1);
        assert!(pool.take(&kind(1), (), later).is_some());
        assert_eq!(fill(&mut pool, later), 0, "half of them are left");
    }

    #[test]
    fn what_cannot_be_made_is_not_tried_again_and_again() {
        let mut pool: Pool<u32, ()> = Pool::new(PoolBounds::default());
        pool.take(&kind(1), (), Instant::now());
        let (kind, ()) = pool.wanted(Instant::now() + QUIET).unwrap();
        pool.not_made(&kind);
        assert!(pool.wanted(Instant::now() + QUIET).is_none());
        pool.take(&kind, (), Instant::now());
        assert!(pool.wanted(Instant::now() + QUIET).is_some(), "until a run asks again");
    }
}
