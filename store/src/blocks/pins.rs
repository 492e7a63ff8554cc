//! Who is using blocks right now, so that gc can wait for them.
//!
//! A reader looks a block's place up and reads there a little later; a writer appends a block and puts its row a little
//! later. In between nothing in the tables tells of them. Each holds a [`Pin`] meanwhile, and gc, after it has decided
//! from the tables that a range is dead, waits until everyone who began before is done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    /// How many hold a pin of each epoch; no entry is zero.
    held: BTreeMap<u64, usize>,
}

/// The pins of one open volume.
#[derive(Debug, Default)]
pub struct Pins {
    state: Mutex<State>,
    released: Condvar,
}

/// Blocks found while this is held stay where they are until it is dropped.
#[derive(Debug)]
pub struct Pin<'a> {
    pins: &'a Pins,
    epoch: u64,
}

impl Pins {
    /// Begin to use blocks. Take it before looking anything up.
    pub fn enter(&self) -> Pin<'_> {
        let mut state = self.state.lock();
        let epoch = state.epoch;
        *state.held.entry(epoch).or_default() += 1;
        Pin { pins: self, epoch }
    }

    /// Wait until all pins taken before this call are dropped. False if that takes longer than `patience`. Nobody who
    /// begins later is held up.
    pub fn wait_for_earlier(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        state.epoch += 1;
        let epoch = state.epoch;
        while state.held.first_key_value().is_some_and(|(oldest, _)| *oldest < epoch) {
            if self.released.wait_until(&mut state, until).timed_out() {
                return state.held.first_key_value().is_none_or(|(oldest, _)| *oldest >= epoch);
            }
        }
        true
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut state = self.pins.state.lock();
        if let Some(held) = state.held.get_mut(&self.epoch) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.epoch);
                drop(state);
                self.pins.released.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pins;
    use std::time::Duration;

    #[test]
    fn only_earlier_pins_are_waited_for() {
        let pins = Pins::default();
        assert!(pins.wait_for_earlier(Duration::ZERO));
        let early = pins.enter();
        assert!(!pins.wait_for_earlier(Duration::from_millis(1)));
        // It began after the wait above, before the next.
        let late = pins.enter();
        drop(early);
        assert!(!pins.wait_for_earlier(Duration::from_millis(1)));
        drop(late);
        assert!(pins.wait_for_earlier(Duration::ZERO));
        std::thread::scope(|scope| {
            let held = pins.enter();
            let waiter = scope.spawn(|| pins.wait_for_earlier(Duration::from_secs(60)));
            drop(held);
            assert!(waiter.join().unwrap());
        });
    }
}
