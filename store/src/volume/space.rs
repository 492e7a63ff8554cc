//! How much can still be written, and promises of it (R10).
//!
//! What a user can write depends on how free space is spread: a stripe needs k+m different members. The figure is
//! the largest T such that members together could give k+m shares of T, no member giving more than it has or than T.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backing::BackingSet;
use crate::error::{Error, Result};
use crate::geometry::Geometry;

/// How old a reading of the members' free space may be.
const SAMPLE_AGE_MAX: Duration = Duration::from_millis(500);
/// Space kept back on each member, so that metadata and deletes still work when data no longer fits: a hundredth of it.
const RESERVE_SHARE: u64 = 100;
/// The most that is kept back on one member, bytes.
const RESERVE_MAX: u64 = 256 << 20;
/// The least, bytes, unless that is more than an eighth of the member.
const RESERVE_MIN: u64 = 16 << 20;
/// Headers, alignment and its part of a commit record, for each request however small, bytes.
const OVERHEAD_FIXED: u64 = 1024;
/// What headers, padding and alignment add to a stripe at worst, as a share of the data (1/16), and per request, bytes.
const OVERHEAD_SHARE: u64 = 16;

/// What is written within so long is remembered as one.
const PORTION_TIME: Duration = Duration::from_millis(20);

/// With less than this part of the usable space free, it is tight.
const TIGHT_SHARE: u64 = 10;

/// Figures of the backing directories, raw, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawSpace {
    /// Size of all present members.
    pub total: u64,
    /// Free on all present members.
    pub free: u64,
    /// Plaintext that fits in what the members could ever hold.
    pub usable_total: u64,
    /// Plaintext that still fits.
    pub usable_free: u64,
    /// Plaintext that gc may move meanwhile: with half of what is kept back, as it frees more than it takes.
    pub movable: u64,
}

#[derive(Default)]
struct Sample {
    taken: Option<Instant>,
    /// A directory that could be written and does not tell its room, and why, if there are too few others.
    untold: Option<(PathBuf, String)>,
    raw: RawSpace,
    /// What was written since the directories were asked.
    written: Written,
}

/// Bytes of plaintext that were written, by time.
#[derive(Debug, Default)]
struct Written {
    /// When the first and the last of each were, and how much.
    portions: VecDeque<(Instant, Instant, u64)>,
    sum: u64,
}

impl Written {
    fn add(&mut self, now: Instant, bytes: u64) {
        self.sum += bytes;
        match self.portions.back_mut() {
            Some((first, last, sum)) if now.duration_since(*first) < PORTION_TIME => {
                *last = now;
                *sum += bytes;
            }
            _ => self.portions.push_back((now, now, bytes)),
        }
    }

    /// What was written before then does not matter any more.
    fn forget_before(&mut self, then: Instant) {
        while let Some((_, last, bytes)) = self.portions.front()
            && *last < then
        {
            self.sum -= bytes;
            self.portions.pop_front();
        }
    }
}

/// Accounts of space of one open volume.
pub struct Space {
    set: Arc<BackingSet>,
    geometry: Geometry,
    sample: Mutex<Sample>,
    promised: AtomicU64,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("promised", &self.promised).finish_non_exhaustive()
    }
}

/// Space promised to data that is accepted but not yet appended. Dropping it gives the promise back.
#[derive(Debug)]
pub struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.promised.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Space {
    /// Over the members of `set`.
    pub fn new(set: Arc<BackingSet>, geometry: Geometry) -> Arc<Self> {
        Arc::new(Self { set, geometry, sample: Mutex::default(), promised: AtomicU64::new(0) })
    }

    /// Promise room for `bytes` of new data.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if it might not fit; [`Error::Backing`] if too few directories tell their room.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let bytes = bytes + bytes / OVERHEAD_SHARE + OVERHEAD_FIXED;
        let free = self.usable_free();
        let mut promised = self.promised.load(Ordering::Acquire);
        loop {
            let wanted = promised.saturating_add(bytes);
            if wanted > free {
                return Err(self.untold().unwrap_or(Error::NoSpace));
            }
            match self.promised.compare_exchange_weak(promised, wanted, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Reservation { space: self.clone(), bytes }),
                Err(now) => promised = now,
            }
        }
    }

    fn untold(&self) -> Option<Error> {
        let (directory, reason) = self.sample.lock().untold.clone()?;
        let source = std::io::Error::other(reason);
        Some(Error::Backing { directory, operation: "asking how much room it has".into(), source })
    }

    /// True if [`Self::reserve`] would grant `bytes` now.
    pub fn fits(&self, bytes: u64) -> bool {
        let wanted = bytes + bytes / OVERHEAD_SHARE + OVERHEAD_FIXED;
        self.promised.load(Ordering::Acquire).saturating_add(wanted) <= self.usable_free()
    }

    /// Space was given back: what was measured before does not count.
    pub fn freed(&self) {
        self.sample.lock().taken = None;
    }

    /// Tell that `bytes` of plaintext were appended just now.
    pub fn wrote(&self, bytes: u64) {
        self.sample.lock().written.add(Instant::now(), bytes + bytes / OVERHEAD_SHARE);
    }

    fn usable_free(&self) -> u64 {
        let mut sample = self.sample.lock();
        self.refresh(&mut sample);
        sample.raw.usable_free.saturating_sub(sample.written.sum)
    }

    /// True if nine tenths of what fits is used, counting what is promised.
    pub fn is_tight(&self) -> bool {
        let raw = self.raw();
        raw.usable_free.saturating_sub(self.promised.load(Ordering::Acquire)) < raw.usable_total / TIGHT_SHARE
    }

    /// Figures not older than half a second.
    pub fn raw(&self) -> RawSpace {
        let mut sample = self.sample.lock();
        self.refresh(&mut sample);
        let mut raw = sample.raw;
        raw.usable_free = raw.usable_free.saturating_sub(sample.written.sum);
        raw.movable = raw.movable.saturating_sub(sample.written.sum);
        raw
    }

    fn refresh(&self, sample: &mut Sample) {
        let age_max = self.set.members().first().map_or(SAMPLE_AGE_MAX, |member| member.limits().room_age_max);
        if sample.taken.is_some_and(|taken| taken.elapsed() < age_max) {
            return;
        }
        // Members on one filesystem share its free space: each gets an equal part.
        let mut untold = None;
        let mut asked: Option<Instant> = None;
        let mut spaces = Vec::new();
        for member in self.set.members().iter().filter(|member| member.can_read()) {
            match member.told_space() {
                Ok((at, space)) => {
                    asked = Some(asked.map_or(at, |other| other.min(at)));
                    spaces.push(space);
                }
                Err(error) if member.is_healthy() => untold = Some((member.path().to_path_buf(), error.to_string())),
                Err(_) => {}
            }
        }
        let sharing = |device: u64| spaces.iter().filter(|other| other.device == device).count().max(1) as u64;
        let mut raw = RawSpace::default();
        let (mut free, mut movable, mut total) = (Vec::new(), Vec::new(), Vec::new());
        for space in &spaces {
            let parts = sharing(space.device);
            raw.total += space.total_bytes / parts;
            raw.free += space.available_bytes / parts;
            let least = RESERVE_MIN.min(space.total_bytes / 8);
            let reserve = (space.total_bytes / RESERVE_SHARE).clamp(least, RESERVE_MAX) / parts;
            free.push((space.available_bytes / parts).saturating_sub(reserve));
            movable.push((space.available_bytes / parts).saturating_sub(reserve / 2));
            total.push((space.total_bytes / parts).saturating_sub(reserve));
        }
        raw.usable_free = usable(free, self.geometry);
        raw.movable = usable(movable, self.geometry);
        raw.usable_total = usable(total, self.geometry);
        untold = untold.filter(|_| spaces.len() < self.geometry.data());
        // It is asked again at once.
        let taken = untold.is_none().then(Instant::now);
        // The answers may be older than this moment.
        if let Some(asked) = asked {
            sample.written.forget_before(asked);
        }
        (sample.taken, sample.untold, sample.raw) = (taken, untold, raw);
    }
}

/// Bytes of plaintext that fit into members with these free bytes. With fewer members than slots the missing slots
/// stay vacant, so the members present carry one share each.
fn usable(mut free: Vec<u64>, geometry: Geometry) -> u64 {
    if free.len() < geometry.data() {
        return 0;
    }
    let slots = geometry.total().min(free.len()) as u64;
    free.sort_unstable();
    // Lower the cap T to the mean of what the smaller members leave, until every larger one can give T.
    let mut share = u128::MAX;
    for taken in 0..slots {
        // The `taken` largest members give T each; the others give all they have.
        let rest: u128 = free[..free.len() - taken as usize].iter().map(|&f| u128::from(f)).sum();
        share = share.min(rest / u128::from(slots - taken));
    }
    u64::try_from(share * geometry.data() as u128).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn g(k: u8, m: u8) -> Geometry {
        Geometry::new(k, m).unwrap()
    }

    #[test]
    fn equal_members_hold_k_shares() {
        assert_eq!(usable(vec![100; 6], g(4, 2)), 400);
        assert_eq!(usable(vec![100; 12], g(4, 2)), 800);
        assert_eq!(usable(vec![100], g(1, 0)), 100);
    }

    #[test]
    fn a_small_member_limits_only_what_needs_it() {
        // Six slots, six members: the smallest bounds every stripe.
        assert_eq!(usable(vec![10, 100, 100, 100, 100, 100], g(4, 2)), 40);
        // A seventh member lets stripes avoid it now and then.
        assert_eq!(usable(vec![10, 100, 100, 100, 100, 100, 100], g(4, 2)), 404);
        assert_eq!(usable(vec![50, 50, 1000], g(1, 1)), 100);
    }

    #[test]
    fn fewer_members_than_slots_carry_one_share_each() {
        assert_eq!(usable(vec![100; 4], g(4, 2)), 400);
        assert_eq!(usable(vec![100; 3], g(4, 2)), 0);
    }

    #[test]
    fn what_was_written_since_the_directories_were_asked_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut written = Written::default();
        for ms in 0..100 {
            written.add(at(ms), 10);
        }
        assert_eq!(written.sum, 1000);
        // A portion that went on after that counts whole.
        written.forget_before(at(50));
        assert_eq!(written.sum, 600);
        written.forget_before(at(50));
        assert_eq!(written.sum, 600);
        written.forget_before(at(200));
        assert_eq!(written.sum, 0);
        written.add(at(300), 7);
        assert_eq!(written.sum, 7);
    }
}
