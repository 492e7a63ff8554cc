//! Tickets: proof that the kernel opened a certain file to run it, for a certain user, a moment ago (X3).
//!
//! A ticket is 128 random bits, good once, for [`LIFE`]. It is bound to the inode, its version and the user of the open;
//! whoever shows another one, an old one or one of another user learns nothing but that it is refused.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use brine_exec::protocol::Ticket;
use brine_store::ids::{Ino, Version};
use parking_lot::Mutex;

/// How long a ticket is good: from the open of the file to the launcher's request, on a machine that is busy.
pub const LIFE: Duration = Duration::from_secs(20);
/// Tickets outstanding at most; beyond, the oldest are no longer good.
const OUTSTANDING_MAX: usize = 4096;
/// What a ticket stands for. `P` is what keeps the function as it is as long as the ticket lives.
#[derive(Debug)]
pub struct Issued<P> {
    /// The file that was opened.
    pub ino: Ino,
    /// Its version then.
    pub version: Version,
    /// The user of the open.
    pub uid: u32,
    /// Keeps it.
    pub pin: P,
    issued: Instant,
}

/// Why a ticket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Never given out, used before, or too old.
    Unknown,
    /// Given to another user.
    OtherUser,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the ticket is not valid (any more); run the file itself, not the launcher",
            Self::OtherUser => "the ticket was given to another user",
        })
    }
}

/// Tickets given out and not used.
pub struct Tickets<P> {
    table: Mutex<Table<P>>,
}

struct Table<P> {
    issued: HashMap<Ticket, Issued<P>>,
    /// In the order they were given out; used ones stay until they are the oldest.
    order: VecDeque<(Ticket, Instant)>,
}

impl<P> Default for Tickets<P> {
    fn default() -> Self {
        Self { table: Mutex::new(Table { issued: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<P> Tickets<P> {
    /// Give a fresh one out.
    pub fn issue(&self, ino: Ino, version: Version, uid: u32, pin: P, now: Instant) -> Ticket {
        let ticket = Ticket::random();
        let mut table = self.table.lock();
        // What they kept is let go of outside the lock.
        let mut gone = table.expire(now);
        while table.issued.len() >= OUTSTANDING_MAX
            && let Some((oldest, _)) = table.order.pop_front()
        {
            gone.extend(table.issued.remove(&oldest));
        }
        table.issued.insert(ticket, Issued { ino, version, uid, pin, issued: now });
        table.order.push_back((ticket, now));
        drop(table);
        drop(gone);
        ticket
    }

    /// Take one back from whoever shows it as user `uid`. Whatever the answer, it is not good a second time.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn redeem(&self, ticket: Ticket, uid: u32, now: Instant) -> Result<Issued<P>, Refused> {
        let issued = self.table.lock().issued.remove(&ticket).ok_or(Refused::Unknown)?;
        if now.saturating_duration_since(issued.issued) >= LIFE {
            return Err(Refused::Unknown);
        }
        if issued.uid == uid { Ok(issued) } else { Err(Refused::OtherUser) }
    }

    /// Forget those that are too old.
    pub fn sweep(&self, now: Instant) {
        let gone = self.table.lock().expire(now);
        drop(gone);
    }

    /// Forget all.
    pub fn clear(&self) {
        let issued = std::mem::take(&mut self.table.lock().issued);
        drop(issued);
    }

    /// Tickets out.
    pub fn len(&self) -> usize {
        self.table.lock().issued.len()
    }

    /// Whether none is out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<P> Table<P> {
    fn expire(&mut self, now: Instant) -> Vec<Issued<P>> {
        let mut gone = Vec::new();
        while let Some((oldest, issued)) = self.order.front()
            && now.saturating_duration_since(*issued) >= LIFE
        {
            gone.extend(self.issued.remove(oldest));
            self.order.pop_front();
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn give(tickets: &Tickets<Arc<()>>, pin: &Arc<()>, now: Instant) -> Ticket {
        tickets.issue(Ino(7), Version(3), 1000, Arc::clone(pin), now)
    }

    #[test]
    fn a_ticket_is_good_once_for_its_user_and_not_for_long() {
        let (tickets, pin, now) = (Tickets::default(), Arc::new(()), Instant::now());
        let ticket = give(&tickets, &pin, now);
        let issued = tickets.redeem(ticket, 1000, now).unwrap();
        assert_eq!((issued.ino, issued.version, issued.uid), (Ino(7), Version(3), 1000));
        assert_eq!(tickets.redeem(ticket, 1000, now).unwrap_err(), Refused::Unknown, "replayed");

        let ticket = give(&tickets, &pin, now);
        assert_eq!(tickets.redeem(ticket, 1001, now).unwrap_err(), Refused::OtherUser);
        assert_eq!(tickets.redeem(ticket, 1000, now).unwrap_err(), Refused::Unknown, "shown by another before");

        let ticket = give(&tickets, &pin, now);
        assert_eq!(tickets.redeem(ticket, 1000, now + LIFE).unwrap_err(), Refused::Unknown, "stale");
        assert_eq!(tickets.redeem(Ticket::random(), 1000, now).unwrap_err(), Refused::Unknown, "forged");
        drop(issued);
        assert!(tickets.is_empty());
        assert_eq!(Arc::strong_count(&pin), 1, "nothing is kept for tickets that are gone");
    }

    #[test]
    fn old_and_surplus_tickets_keep_nothing() {
        let (tickets, pin, now) = (Tickets::default(), Arc::new(()), Instant::now());
        give(&tickets, &pin, now);
        tickets.sweep(now + LIFE / 2);
        assert_eq!(tickets.len(), 1);
        tickets.sweep(now + LIFE);
        assert_eq!((tickets.len(), Arc::strong_count(&pin)), (0, 1));
        let first = give(&tickets, &pin, now);
        for _ in 0..OUTSTANDING_MAX {
            give(&tickets, &pin, now);
        }
        assert_eq!((tickets.len(), Arc::strong_count(&pin)), (OUTSTANDING_MAX, OUTSTANDING_MAX + 1));
        assert_eq!(tickets.redeem(first, 1000, now).unwrap_err(), Refused::Unknown, "the oldest had to go");
        tickets.clear();
        assert_eq!(Arc::strong_count(&pin), 1);
    }
}
