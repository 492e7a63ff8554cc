//! Quotas: how many bytes and inodes a directory may hold with everything below it.
//!
//! Every inode carries the number of the innermost quota it counts in ([`InodeRow::quota`]): what is made in a directory
//! gets the directory's. A quota knows the one around it (`outer`), and a charge goes to all of the chain, in the
//! operation that changes the row, so that usage always is what a recount of the rows gives ([`super::Reader::verify`]).
//! An inode takes what `st_blocks` says of it; former states take nothing. The names of an inode stay within one quota:
//! links and renames across a border are refused.
//!
//! Setting a quota on a directory tags what is below in steps; until it is all tagged, the quota is `Counting` and not
//! enforced. A removed quota stays as a row that stands for the one around it, until no inode names it any more.
//!
//! What writers were promised and is not stored yet is held in memory ([`Txn::hold_quota`]) and counts as used.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::Connection;

use super::rows::*;
use super::shelf;
use super::sql::{At, int};
use super::txn::{Core, Txn};
use crate::error::{Error, Result};
use crate::ids::{ChunkNo, Ino};

/// Version of the encoding of a quota.
const FORMAT: u8 = 1;
/// Length of an encoded quota, bytes.
pub(super) const ENCODED_LEN: usize = 48;
/// Numbers of quotas are less than this: they have 24 bits of an inode's flags.
const NUMBER_END: u32 = 1 << 24;
/// Stored for "no limit".
const NO_LIMIT: u64 = u64::MAX;
/// Most quotas around one another.
const NESTING_MAX: usize = 64;

/// Most that a directory may hold with everything below it; `None`: as much as the volume can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Bytes allocated.
    pub bytes: Option<u64>,
    /// Inodes: files, directories and all else, each once.
    pub inodes: Option<u64>,
}

/// Life of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaState {
    /// Its limits hold.
    Enforced = 0,
    /// What was there before it is being counted; its limits do not hold yet.
    Counting = 1,
    /// It is removed and has no limits; inodes that name it belong to the one around it.
    Removed = 2,
}

/// One quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Its number.
    pub number: u32,
    /// The directory it is set on.
    pub directory: Ino,
    /// Number of the quota around it, 0 if none.
    pub outer: u32,
    /// Its limits.
    pub limits: QuotaLimits,
    /// Bytes allocated in it.
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Its state.
    pub state: QuotaState,
}

impl Quota {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, self.state as u8, 0, 0];
        out.extend(self.outer.to_le_bytes());
        let limit = |limit: Option<u64>| limit.unwrap_or(NO_LIMIT);
        let words = [self.directory.0, limit(self.limits.bytes), limit(self.limits.inodes), self.bytes, self.inodes];
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        out
    }

    /// From the key and the value of its row.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self> {
        let damaged = || {
            let reason = format!("{} bytes under a key of {}; run `brine rebuild`", value.len(), key.len());
            Error::format("a quota in the metadata database", reason)
        };
        let number = u32::from_be_bytes(key.try_into().map_err(|_| damaged())?);
        if value.len() != ENCODED_LEN || value[0] != FORMAT || number == 0 || number >= NUMBER_END {
            return Err(damaged());
        }
        let state = match value[1] {
            0 => QuotaState::Enforced,
            1 => QuotaState::Counting,
            2 => QuotaState::Removed,
            _ => return Err(damaged()),
        };
        let mut outer = [0; 4];
        outer.copy_from_slice(&value[4..8]);
        let words = value[8..].as_chunks::<8>().0;
        let word = |at: usize| u64::from_le_bytes(words[at]);
        let limit = |at: usize| Some(word(at)).filter(|limit| *limit != NO_LIMIT);
        Ok(Self {
            number,
            directory: Ino(word(0)),
            outer: u32::from_le_bytes(outer),
            limits: QuotaLimits { bytes: limit(1), inodes: limit(2) },
            bytes: word(3),
            inodes: word(4),
            state,
        })
    }
}

/// What is left of a chain of quotas: of each kind the tightest limit, and how much of it is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaRoom {
    /// Limit and what is free of it, bytes.
    pub bytes: Option<(u64, u64)>,
    /// Limit and what is free of it, inodes.
    pub inodes: Option<(u64, u64)>,
}

/// A quota as it was before the running operation changed it, and whether it was to be written then.
type Undo = (u32, Option<Quota>, bool);

/// What the open transaction knows of quotas.
#[derive(Default)]
pub(super) struct Quotas {
    rows: BTreeMap<u32, Quota>,
    /// By directory, those that are not removed.
    by_directory: HashMap<Ino, u32>,
    /// Those whose row is to be written or, if gone, deleted.
    dirty: BTreeSet<u32>,
    /// Bytes promised to writers of what counts in a quota, not stored yet.
    held: HashMap<u32, u64>,
    /// What the running operation has replaced, oldest first.
    undo: Vec<Undo>,
    /// Never given out before.
    next: u32,
    /// Usage before the running operation of what it grew, if limits are looked at when it ends.
    late: Option<HashMap<u32, (u64, u64)>>,
}

impl Quotas {
    /// As the table has them. What is held stays.
    pub fn load(&mut self, conn: &Connection, at: &std::path::Path) -> Result<()> {
        self.rows.clear();
        self.by_directory.clear();
        self.dirty.clear();
        for (key, value) in shelf::with_prefix(conn, Shelf::Quotas, &[]).at(at)? {
            self.insert(Quota::decode(&key, &value)?);
        }
        self.next = self.next.max(self.rows.keys().next_back().map_or(1, |last| last + 1));
        Ok(())
    }

    fn insert(&mut self, quota: Quota) {
        if quota.state == QuotaState::Removed {
            if self.by_directory.get(&quota.directory) == Some(&quota.number) {
                self.by_directory.remove(&quota.directory);
            }
        } else {
            self.by_directory.insert(quota.directory, quota.number);
        }
        self.rows.insert(quota.number, quota);
    }

    fn remove(&mut self, number: u32) {
        if let Some(quota) = self.rows.remove(&number)
            && self.by_directory.get(&quota.directory) == Some(&number)
        {
            self.by_directory.remove(&quota.directory);
        }
    }

    /// Put one in the place of what has its number.
    fn put(&mut self, quota: Quota) {
        self.remember(quota.number);
        self.insert(quota);
        self.dirty.insert(quota.number);
    }

    fn remember(&mut self, number: u32) {
        self.undo.push((number, self.rows.get(&number).copied(), self.dirty.contains(&number)));
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn keep_operation(&mut self) {
        self.undo.clear();
        self.late = None;
    }

    pub fn undo_operation(&mut self) {
        self.late = None;
        for (number, before, dirty) in std::mem::take(&mut self.undo).into_iter().rev() {
            match before {
                Some(quota) => self.insert(quota),
                None => self.remove(number),
            }
            if dirty {
                self.dirty.insert(number)
            } else {
                self.dirty.remove(&number)
            };
        }
    }

    /// The numbers from `number` outwards.
    fn chain(&self, number: u32) -> impl Iterator<Item = &Quota> {
        std::iter::successors(self.rows.get(&number), |quota| self.rows.get(&quota.outer)).take(NESTING_MAX + 1)
    }

    /// The innermost quota at `number` or around it that is not removed; 0 if none.
    fn effective(&self, number: u32) -> u32 {
        self.chain(number).find(|quota| quota.state != QuotaState::Removed).map_or(0, |quota| quota.number)
    }

    /// Count `bytes` and `inodes` more (or fewer) from `number` outwards.
    fn charge(&mut self, number: u32, bytes: i64, inodes: i64) {
        if number == 0 || (bytes == 0 && inodes == 0) {
            return;
        }
        let chain: Vec<Quota> = self.chain(number).copied().collect();
        for quota in chain {
            if let Some(late) = &mut self.late {
                late.entry(quota.number).or_insert((quota.bytes, quota.inodes));
            }
            let (bytes, inodes) = (quota.bytes.wrapping_add_signed(bytes), quota.inodes.wrapping_add_signed(inodes));
            if quota.state == QuotaState::Removed && inodes == 0 {
                self.remember(quota.number);
                self.dirty.insert(quota.number);
                self.remove(quota.number);
            } else {
                self.put(Quota { bytes, inodes, ..quota });
            }
        }
    }

    /// Whether `bytes` and `inodes` more fit from `number` outwards.
    fn room(&self, number: u32, bytes: u64, inodes: u64) -> Result<()> {
        let full = |used: u64, more: u64, limit: Option<u64>| {
            more > 0 && limit.is_some_and(|limit| used.saturating_add(more) > limit)
        };
        for quota in self.chain(number).filter(|quota| quota.state == QuotaState::Enforced) {
            let held = if bytes > 0 { self.held_in(quota.number) } else { 0 };
            if full(quota.bytes.saturating_add(held), bytes, quota.limits.bytes)
                || full(quota.inodes, inodes, quota.limits.inodes)
            {
                return Err(Error::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// Bytes promised in a quota and those within.
    fn held_in(&self, number: u32) -> u64 {
        let within = |inner: u32| self.chain(inner).any(|quota| quota.number == number);
        self.held.iter().filter(|(inner, _)| within(**inner)).map(|(_, held)| held).sum()
    }

    /// Take `less` promised bytes back and promise `more`.
    fn hold(&mut self, number: u32, less: u64, more: u64) {
        if number == 0 || (less == 0 && more == 0) {
            return;
        }
        let held = self.held.entry(number).or_default();
        *held = held.saturating_sub(less) + more;
        if *held == 0 {
            self.held.remove(&number);
        }
    }
}

/// The number that an inode's flags carry.
pub(super) fn tagged(flags: u32, number: u32) -> u32 {
    flags & !(u32::MAX << INODE_QUOTA_SHIFT) | number << INODE_QUOTA_SHIFT
}

impl Core {
    /// Count how a row's change moved what it takes. `None`: it is not there.
    pub fn charge(&mut self, before: Option<(u32, u64)>, after: Option<(u32, u64)>) {
        match (before, after) {
            _ if self.quotas.rows.is_empty() => {}
            (Some((one, old)), Some((two, new))) if one == two => {
                self.quotas.charge(one, new.wrapping_sub(old) as i64, 0);
            }
            _ => {
                // First what is added: a removed quota that both count in must not end in between.
                if let Some((number, bytes)) = after {
                    self.quotas.charge(number, bytes as i64, 1);
                }
                if let Some((number, bytes)) = before {
                    self.quotas.charge(number, -(bytes as i64), -1);
                }
            }
        }
    }

    /// Write the rows of quotas that changed.
    pub fn write_quotas(&mut self) -> Result<()> {
        let since = self.generation();
        for number in std::mem::take(&mut self.quotas.dirty) {
            let key = number.to_be_bytes();
            let change = match self.quotas.rows.get(&number) {
                Some(quota) => {
                    let value = quota.encode().into();
                    RowChange::PutShelf(ShelfRow { shelf: Shelf::Quotas, key: key.into(), value, since })
                }
                None => RowChange::DelShelf { shelf: Shelf::Quotas, key: key.into() },
            };
            self.apply(change)?;
        }
        Ok(())
    }
}

/// What is still to be looked at while a quota counts what was there before it.
#[derive(Debug, Default)]
pub struct Counting {
    /// Directories, and where in each of them.
    todo: Vec<(Ino, u64)>,
}

impl Txn<'_> {
    /// All quotas that are not removed, by number.
    pub fn quotas(&self) -> Vec<Quota> {
        let all = self.core.quotas.rows.values();
        all.filter(|quota| quota.state != QuotaState::Removed).copied().collect()
    }

    /// The quotas that an inode counts in, innermost first.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn quotas_of(&mut self, ino: Ino) -> Result<Vec<Quota>> {
        let number = self.core.inode(ino)?.ok_or(Error::Stale(ino))?.quota();
        let chain = self.core.quotas.chain(number);
        Ok(chain.filter(|quota| quota.state != QuotaState::Removed).copied().collect())
    }

    /// What the quotas that an inode counts in leave free; what writers were promised is not.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn quota_room(&mut self, ino: Ino) -> Result<QuotaRoom> {
        let mut room = QuotaRoom::default();
        let tighter = |room: &mut Option<(u64, u64)>, limit: Option<u64>, used: u64| {
            if let Some(limit) = limit
                && room.is_none_or(|(_, free)| limit.saturating_sub(used) < free)
            {
                *room = Some((limit, limit.saturating_sub(used)));
            }
        };
        for quota in self.quotas_of(ino)? {
            let held = self.core.quotas.held_in(quota.number);
            tighter(&mut room.bytes, quota.limits.bytes, quota.bytes.saturating_add(held));
            tighter(&mut room.inodes, quota.limits.inodes, quota.inodes);
        }
        Ok(room)
    }

    /// Give a directory a quota, or its quota other limits. A new one is to be counted by [`Self::count_quota`].
    ///
    /// # Errors
    /// [`Error::NotADirectory`], [`Error::Stale`], [`Error::NotFound`] (the directory was removed),
    /// [`Error::InvalidArgument`] (nested too deep, or no number is left).
    pub fn set_quota(&mut self, directory: Ino, limits: QuotaLimits) -> Result<Quota> {
        let row = self.core.inode(directory)?.ok_or(Error::Stale(directory))?;
        let (kind, nlink, tag) = (row.kind, row.nlink, row.quota());
        if kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        if nlink == 0 {
            return Err(Error::NotFound);
        }
        let quotas = &mut self.core.quotas;
        if let Some(quota) = quotas.by_directory.get(&directory).and_then(|number| quotas.rows.get(number)).copied() {
            let quota = Quota { limits, ..quota };
            quotas.put(quota);
            return Ok(quota);
        }
        let outer = quotas.effective(tag);
        if quotas.chain(outer).count() >= NESTING_MAX {
            return Err(Error::InvalidArgument("quotas nest at most 64 deep"));
        }
        let number = quotas.next.max(1);
        if number >= NUMBER_END {
            return Err(Error::InvalidArgument("the volume has no number left for another quota"));
        }
        quotas.next = number + 1;
        let state = QuotaState::Counting;
        quotas.put(Quota { number, directory, outer, limits, bytes: 0, inodes: 0, state });
        self.retag(directory, number)?;
        Ok(self.core.quotas.rows[&number])
    }

    /// Take a directory's quota away. What is in it goes on counting in those around it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has none.
    pub fn remove_quota(&mut self, directory: Ino) -> Result<()> {
        let quotas = &mut self.core.quotas;
        let number = *quotas.by_directory.get(&directory).ok_or(Error::NotFound)?;
        let quota = quotas.rows[&number];
        quotas.put(Quota { state: QuotaState::Removed, limits: QuotaLimits::default(), ..quota });
        Ok(())
    }

    /// The directory is gone, and so is its quota.
    pub(super) fn forget_quota_of(&mut self, directory: Ino) {
        if self.core.quotas.by_directory.contains_key(&directory) {
            // It is there: nothing else fails.
            let _ = self.remove_quota(directory);
        }
    }

    /// Let an inode count in a quota. No change of it: no version, no former row.
    fn retag(&mut self, ino: Ino, number: u32) -> Result<()> {
        self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let row = self.core.inodes.change(ino).ok_or(Error::Stale(ino))?;
        let before = (row.quota(), row.charge());
        row.flags = tagged(row.flags, number);
        let after = (number, row.charge());
        self.core.charge(Some(before), Some(after));
        Ok(())
    }

    /// Look at up to `max` more names below the directory of a quota that is being counted, and let them count in it.
    /// Begin with a fresh `counting`; to begin anew is harmless. True: call again. At the end the quota is enforced.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn count_quota(&mut self, number: u32, counting: &mut Option<Counting>, max: usize) -> Result<bool> {
        let quotas = &self.core.quotas;
        let Some(quota) = quotas.rows.get(&number).filter(|quota| quota.state == QuotaState::Counting).copied() else {
            return Ok(false);
        };
        let outer = quotas.effective(quota.outer);
        let counting = counting.get_or_insert_with(|| Counting { todo: vec![(quota.directory, 0)] });
        let mut left = max.max(1);
        while let Some((directory, cookie)) = counting.todo.pop() {
            let entries = match self.read_dir(directory, cookie, left, false) {
                // It was removed meanwhile, empty.
                Err(Error::Stale(_) | Error::NotFound) => continue,
                entries => entries?,
            };
            let Some(last) = entries.last() else { continue };
            left -= entries.len().min(left);
            counting.todo.push((directory, last.cookie));
            for entry in entries {
                self.count_name(&entry, number, outer, &mut counting.todo)?;
            }
            if left == 0 {
                return Ok(true);
            }
        }
        let quota = self.core.quotas.rows[&number];
        self.core.quotas.put(Quota { state: QuotaState::Enforced, ..quota });
        Ok(false)
    }

    fn count_name(&mut self, entry: &DirEntry, number: u32, outer: u32, todo: &mut Vec<(Ino, u64)>) -> Result<()> {
        let tag = self.core.inode(entry.ino)?.ok_or(Error::Stale(entry.ino))?.quota();
        if let Some(inner) = self.core.quotas.by_directory.get(&entry.ino).copied() {
            // A quota within: all of it counts in the new one.
            let inner = self.core.quotas.rows[&inner];
            if self.core.quotas.effective(inner.outer) == outer {
                self.core.quotas.charge(inner.outer, -(inner.bytes as i64), -(inner.inodes as i64));
                self.core.quotas.put(Quota { outer: number, ..inner });
                self.core.quotas.charge(number, inner.bytes as i64, inner.inodes as i64);
            }
            return Ok(());
        }
        let now = self.core.quotas.effective(tag);
        if now == outer {
            self.retag(entry.ino, number)?;
        }
        if entry.kind == FileKind::Directory && (now == outer || now == number) {
            todo.push((entry.ino, 0));
        }
        Ok(())
    }

    /// Whether what counts in quota `number` may take `bytes` and `inodes` more.
    pub(super) fn quota_fits(&mut self, number: u32, bytes: u64, inodes: u64) -> Result<()> {
        let quotas = &self.core.quotas;
        if quotas.late.is_some() { Ok(()) } else { quotas.room(number, bytes, inodes) }
    }

    /// From now on limits are looked at by [`Self::check_late_quotas`], not by each step: for an operation that removes
    /// after it has made.
    pub fn quotas_late(&mut self) {
        self.core.quotas.late = Some(HashMap::new());
    }

    /// Whether all quotas that grew since [`Self::quotas_late`] are within their limits.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`].
    pub fn check_late_quotas(&mut self) -> Result<()> {
        let quotas = &mut self.core.quotas;
        for (number, (bytes, inodes)) in quotas.late.take().unwrap_or_default() {
            let Some(quota) = quotas.rows.get(&number).filter(|quota| quota.state == QuotaState::Enforced) else {
                continue;
            };
            let over = |now: u64, before: u64, limit: Option<u64>| now > before && limit.is_some_and(|max| now > max);
            if over(quota.bytes, bytes, quota.limits.bytes) || over(quota.inodes, inodes, quota.limits.inodes) {
                return Err(Error::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// Whether an inode may have a name in `parent`, as far as quotas are concerned: all names of an inode are in one, so
    /// that what it takes counts where it is seen. `from`: the directory that it had a name in so far, if it is renamed.
    ///
    /// # Errors
    /// [`Error::CrossesDevices`]: programs then copy, as between filesystems.
    pub(super) fn quota_border(&mut self, ino: Ino, from: Option<Ino>, parent: Ino) -> Result<()> {
        if self.core.quotas.rows.is_empty() {
            return Ok(());
        }
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let (tag, kind) = (row.quota(), row.kind);
        let to = self.core.inode(parent)?.ok_or(Error::Stale(parent))?.quota();
        let from = from.map(|from| self.core.inode(from).map(|row| row.map_or(0, InodeRow::quota))).transpose()?;
        let quotas = &self.core.quotas;
        let to = quotas.effective(to);
        // A directory with a quota of its own moves in what is around it.
        let own = quotas.by_directory.get(&ino).and_then(|number| quotas.rows.get(number));
        let outside = own.map_or_else(|| quotas.effective(tag), |own| quotas.effective(own.outer));
        // A name of a file that got another one inside before the quota was set moves among its like. While a quota
        // counts, what it has not seen yet must not get past it.
        let counting = quotas.rows.get(&to).is_some_and(|quota| quota.state == QuotaState::Counting);
        let among = kind != FileKind::Directory && !counting && from.map(|from| quotas.effective(from)) == Some(to);
        if outside == to || among { Ok(()) } else { Err(Error::CrossesDevices) }
    }

    /// Let an inode and all below it count where `parent` does, to be renamed there by this operation, across the border.
    /// Limits are looked at as for any step of it ([`Self::quotas_late`]).
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn adopt_quota(&mut self, ino: Ino, parent: Ino) -> Result<()> {
        if self.core.quotas.rows.is_empty() {
            return Ok(());
        }
        let to = self.core.inode(parent)?.ok_or(Error::Stale(parent))?.quota();
        let mut todo = vec![ino];
        while let Some(ino) = todo.pop() {
            let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
            let (kind, tag) = (row.kind, row.quota());
            if tag != to {
                self.retag(ino, to)?;
            }
            if kind == FileKind::Directory {
                todo.extend(self.read_dir(ino, 0, usize::MAX, false)?.into_iter().map(|entry| entry.ino));
            }
        }
        Ok(())
    }

    /// Promise a writer what its file will take beyond what it takes now, in place of `held` bytes promised for it before.
    /// `need` says how much: from the file's row, and the number of `chunks` that have no row. Returns the number of the
    /// quota and the bytes promised.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`]: then what was promised before still is. [`Error::Stale`].
    pub fn hold_quota(
        &mut self,
        ino: Ino,
        held: (u32, u64),
        chunks: &[ChunkNo],
        need: impl FnOnce(&Attr, u64) -> u64,
    ) -> Result<(u32, u64)> {
        let row = self.core.inode(ino)?.ok_or(Error::Stale(ino))?;
        let (attr, number, data) = (row.attr(), row.quota(), row.data);
        let mut missing = 0;
        for chunk in chunks {
            missing += u64::from(!self.has_row(data, *chunk)?);
        }
        let need = need(&attr, missing);
        let quotas = &mut self.core.quotas;
        quotas.hold(held.0, held.1, 0);
        // Less than before always fits.
        let grows = number != held.0 || need > held.1;
        if grows && let Err(error) = quotas.room(number, need, 0) {
            quotas.hold(held.0, 0, held.1);
            return Err(error);
        }
        quotas.hold(number, 0, need);
        Ok((number, need))
    }

    /// Take a promise back and, in one with it, make the smaller one that is left.
    pub fn release_quota(&mut self, held: (u32, u64), left: (u32, u64)) {
        self.core.quotas.hold(held.0, held.1, 0);
        self.core.quotas.hold(left.0, 0, left.1);
    }
}

/// SQL of the bytes that an inode takes: [`InodeRow::charge`].
const CHARGE_SQL: &str = "CASE WHEN kind = 2 THEN size WHEN inline IS NOT NULL AND kind <> 1 THEN 0 \
    WHEN inline IS NOT NULL THEN (length(inline) + 511) / 512 * 512 \
    ELSE min(allocated, CASE WHEN size > 9223372036854771712 THEN 9223372036854775807 \
    ELSE (size + 4095) / 4096 * 4096 END) END";

/// Recount all quotas of a committed state. Returns what does not agree, one sentence each.
pub(super) fn verify(conn: &Connection, at: &std::path::Path) -> Result<Vec<String>> {
    let mut quotas = Quotas::default();
    quotas.load(conn, at)?;
    let mut findings = Vec::new();
    let mut counted: HashMap<u32, (u64, u64)> = HashMap::new();
    let sql = format!("SELECT flags >> {INODE_QUOTA_SHIFT}, sum({CHARGE_SQL}), count(*) FROM inodes GROUP BY 1");
    let mut statement = conn.prepare(&sql).at(at)?;
    let mut rows = statement.query([]).at(at)?;
    while let Some(row) = rows.next().at(at)? {
        let (number, bytes, inodes): (u32, i64, i64) =
            row.get(0).and_then(|number| Ok((number, row.get(1)?, row.get(2)?))).at(at)?;
        if number != 0 && !quotas.rows.contains_key(&number) {
            findings.push(format!("{inodes} inodes count in quota {number}, which does not exist"));
        }
        for quota in quotas.chain(number) {
            let sum = counted.entry(quota.number).or_default();
            *sum = (sum.0 + bytes as u64, sum.1 + inodes as u64);
        }
    }
    for quota in quotas.rows.values() {
        let (bytes, inodes) = counted.get(&quota.number).copied().unwrap_or_default();
        if (quota.bytes, quota.inodes) != (bytes, inodes) {
            let Quota { number, directory, bytes: says, inodes: says_inodes, .. } = quota;
            findings.push(format!(
                "quota {number} of directory {directory} says {says} bytes in {says_inodes} inodes, \
                 there are {bytes} bytes in {inodes} inodes"
            ));
        }
        if quota.outer != 0 && !quotas.rows.contains_key(&quota.outer) {
            findings.push(format!("quota {} lies in quota {}, which does not exist", quota.number, quota.outer));
        }
    }
    let sql = format!("SELECT count(*) FROM inodes WHERE ino = ?1 AND kind = 2 AND flags >> {INODE_QUOTA_SHIFT} = ?2");
    let mut directory = conn.prepare(&sql).at(at)?;
    for quota in quotas.rows.values().filter(|quota| quota.state != QuotaState::Removed) {
        let there: i64 =
            directory.query_row([int(quota.directory.0), i64::from(quota.number)], |row| row.get(0)).at(at)?;
        if there == 0 {
            findings
                .push(format!("quota {} is set on directory {}, which is not there", quota.number, quota.directory));
        }
    }
    Ok(findings)
}
