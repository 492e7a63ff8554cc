//! The commit path over directories in memory that fail when they are told to.

use std::path::PathBuf;

use super::*;
use crate::backing::{Backing, BackingSet, Call, Fault, FaultyBacking, Health, Limits, MemBacking, Member, Rule};
use crate::blocks::{BlocksConfig, Put};
use crate::clock::{ManualClock, SeededEntropy};
use crate::commit::{Commit, NothingDirty, Parts};
use crate::fence::FenceWatch;
use crate::geometry::Geometry;
use crate::ids::{MemberId, ROOT_INO, SegmentId};
use crate::meta::Setup;
use crate::meta::rows::{FileKind, NewNode};
use crate::seal::{Codec, Salt, Sealer, SecretKey, VolumeKeys};
use crate::segment::{Segments, Writer};
use crate::shard::{RecordHeader, RecordKind};
use crate::stripes::{SegmentInfo, StripePlace};

const VOLUME: VolumeId = VolumeId([3; 16]);

#[derive(Debug, Default)]
struct Noted(Mutex<Vec<AckOverride>>);

impl AckOverrides for Noted {
    fn put(&self, overrides: Vec<AckOverride>, _lacking: &[(SegmentId, u64)]) -> Result<()> {
        self.0.lock().extend(overrides);
        Ok(())
    }
}

/// All records are needed; no row names anything.
struct All;

/// No record is needed, only the stripes at these offsets.
struct Stripes(Vec<u64>);

impl crate::blocks::Need for Stripes {
    fn stripes(&self, _segment: SegmentId) -> Result<Vec<u64>> {
        Ok(self.0.clone())
    }

    fn log_from(&self) -> Option<Generation> {
        Some(Generation(9))
    }

    fn log_until(&self, _segment: SegmentId) -> Result<Option<Generation>> {
        Ok(Some(Generation(9)))
    }
}

impl crate::blocks::Need for All {
    fn stripes(&self, _segment: SegmentId) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }

    fn log_from(&self) -> Option<Generation> {
        None
    }

    fn log_until(&self, _segment: SegmentId) -> Result<Option<Generation>> {
        Ok(None)
    }
}

struct Fixture {
    faulty: Vec<Arc<FaultyBacking>>,
    blocks: Arc<Blocks>,
    meta: Arc<Meta>,
    log: CommitLog,
    commit: Commit,
    noted: Noted,
    dir: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Fixture {
    fn new(name: &str, (data, parity): (u8, u8)) -> Self {
        let geometry = Geometry::new(data, parity).unwrap();
        let dir = std::env::temp_dir().join(format!("brine-commit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let faulty: Vec<_> = (0..geometry.total())
            .map(|number| {
                let faulty = FaultyBacking::new(Arc::new(MemBacking::new(&format!("/member/{number}"), 1 << 30)));
                faulty.write_file("superblock.0", b"marker").unwrap();
                Arc::new(faulty)
            })
            .collect();
        let members = faulty.iter().enumerate().map(|(number, faulty)| {
            let backing: Arc<dyn Backing> = faulty.clone();
            let id = MemberId([number as u8 + 1; 16]);
            Member::with_limits(id, faulty.describe(), Some(backing), Health::Healthy, Limits::default())
        });
        let set = Arc::new(BackingSet::new(members.collect()));
        let keys = VolumeKeys::new(VOLUME, SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(7));
        let writer = Writer { volume: VOLUME, term: Term(1), header_mac: *keys.header_mac() };
        let segments = Segments::new(set, geometry, writer, entropy.clone(), (geometry.min_ack(), false), SegmentId(1));
        let setup = Setup {
            volume: VOLUME,
            name_key: *keys.name_key(),
            clock: Arc::new(ManualClock::default()),
            block_id: Sealer::block_id,
        };
        let root = NewNode { kind: FileKind::Directory, perm: 0o755, uid: 0, gid: 0, rdev: 0, target: None };
        let meta = Arc::new(Meta::create(&dir, keys.database_key(), &setup, &root, 17).unwrap());
        let config = BlocksConfig {
            codec: Codec::None,
            hedge: crate::backing::Hedge::Adaptive,
            geometry,
            cache_bytes: 0,
            header_mac: *keys.header_mac(),
            volume: VOLUME,
        };
        let blocks = Arc::new(Blocks::new(segments, Arc::new(Sealer::new(&keys)), meta.clone(), config));
        let head = Head { generation: Generation(0), chain: ChainHash([0; 32]) };
        let log = CommitLog::new(VOLUME, Term(1), *keys.log_key(), entropy, head);
        Self { faulty, blocks, meta, log, commit: Commit::default(), noted: Noted::default(), dir }
    }

    fn create(&self, name: &str) {
        let node = NewNode { kind: FileKind::File, perm: 0o644, uid: 0, gid: 0, rdev: 0, target: None };
        self.meta.with(|txn| txn.create(ROOT_INO, name.as_bytes(), &node)).unwrap();
    }

    fn store(&self, seed: u8) {
        let put = Put { plain: &[seed; 5000], salt: Salt { domain: 0, epoch: 0, index: 0 } };
        self.blocks.put(&[put], |_, _| Ok(())).unwrap();
    }

    fn commit(&self) -> Result<Generation> {
        let fence = FenceWatch::new(self.blocks.segments().set().clone(), VOLUME, [0; 32], None, 2);
        let (blocks, meta, log) = (&self.blocks, &self.meta, &self.log);
        let parts = Parts { blocks, meta, log, overrides: &self.noted, fence: &fence };
        self.commit.run(&parts, &NothingDirty, false)
    }

    fn syncs(&self) -> Vec<u64> {
        self.faulty.iter().map(|faulty| faulty.count(Call::SyncSegment)).collect()
    }

    /// Commit records of a segment, in order.
    fn records(&self, segment: SegmentId) -> Vec<(StripePlace, RecordHeader)> {
        let stripes = self.blocks.stripes();
        let info = stripes.segment_info(segment).unwrap();
        let records = stripes.records(segment, 0, &info);
        records.into_iter().filter(|(_, header)| header.commit.is_some()).collect()
    }

    /// Commit the first record, which is written in whole copies: its place, and the slots that hold it.
    fn record_in_copies(&self) -> (StripePlace, Arc<SegmentInfo>, Vec<usize>) {
        self.create("a");
        self.commit().unwrap();
        let (place, header) = self.records(SegmentId(1)).remove(0);
        assert_eq!(header.kind, RecordKind::CommitCopy);
        let holders = (0..6).filter(|slot| header.commit.unwrap().copies >> slot & 1 == 1).collect();
        (place, self.blocks.segment_info(SegmentId(1)).unwrap(), holders)
    }
}

#[test]
fn a_small_commit_is_written_in_copies_and_syncs_only_their_files() {
    let fixture = Fixture::new("copies", (4, 2));
    fixture.store(1);
    fixture.create("a");
    fixture.commit().unwrap();
    let before = fixture.syncs();
    fixture.create("b");
    fixture.commit().unwrap();
    let asked: Vec<u64> = fixture.syncs().iter().zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!(asked.iter().sum::<u64>(), 3, "m+1 files are synced: {asked:?}");
    let records = fixture.records(SegmentId(1));
    let kinds: Vec<RecordKind> = records.iter().map(|(_, header)| header.kind).collect();
    assert_eq!(kinds, [RecordKind::CommitShard, RecordKind::CommitCopy], "beside stripes shards cost no more syncs");
    let (place, header) = &records[1];
    let commit = header.commit.unwrap();
    assert_eq!((commit.copies.count_ones(), commit.ack_set), (3, commit.copies));
    let info = fixture.blocks.segment_info(SegmentId(1)).unwrap();
    for (slot, member) in info.slots.iter().enumerate() {
        let number = usize::from(member.unwrap().0[0]) - 1;
        assert_eq!(asked[number], commit.copies >> slot & 1, "slot {slot}");
    }
    let survey = fixture.blocks.stripes().survey(*place, &info);
    assert_eq!((survey.good.len(), survey.bad.len()), (3, 0), "holes elsewhere are no damage");
    assert_eq!(records[0].1.commit.unwrap().ack_set, 0b11_1111);
}

#[test]
fn a_record_in_copies_is_read_while_one_is_left_and_healed() {
    let fixture = Fixture::new("copies-left", (4, 2));
    let (place, info, holders) = fixture.record_in_copies();
    let whole = fixture.blocks.stripes().message(place, &info).unwrap().1;
    for slot in &holders[..2] {
        let member = info.slots[*slot].unwrap();
        let number = usize::from(member.0[0]) - 1;
        fixture.faulty[number].write_at(SegmentId(1), place.offset, &[std::io::IoSlice::new(&[0; 600])]).unwrap();
    }
    assert_eq!(fixture.records(SegmentId(1)).len(), 1, "the last copy tells of the record");
    assert_eq!(fixture.blocks.stripes().message(place, &info).unwrap().1, whole);
    let identity = crate::blocks::Identity { volume: VOLUME, term: Term(1) };
    let mut unsynced = std::collections::BTreeSet::new();
    let health = fixture.blocks.heal_stripe(place, Some(identity), &mut unsynced).unwrap();
    assert_eq!((health.shards, health.bad, health.repaired, health.lost), (3, 2, 2, false));
    fixture.blocks.sync_healed(&mut unsynced).unwrap();
    let survey = fixture.blocks.stripes().survey(place, &info);
    assert_eq!((survey.good.len(), survey.bad.len()), (3, 0));
}

#[test]
fn a_generation_answered_with_fewer_syncs_says_so_first() {
    let fixture = Fixture::new("override", (4, 2));
    fixture.store(1);
    fixture.create("a");
    // The segment is announced before: only the record's sync fails.
    fixture.faulty[2].add(Rule::new(Call::SyncSegment, Fault::Errno(libc::EIO)).times(1));
    fixture.commit().unwrap();
    let noted = std::mem::take(&mut *fixture.noted.0.lock());
    let info = fixture.blocks.segment_info(SegmentId(1)).unwrap();
    let slot = info.slots.iter().position(|id| *id == Some(MemberId([3; 16]))).unwrap();
    assert_eq!(noted.len(), 1);
    assert_eq!((noted[0].generation, noted[0].segment, noted[0].part), (Generation(1), SegmentId(1), 0));
    assert_eq!(noted[0].ack_set, 0b11_1111 & !(1 << slot));
    // The next goes to a new segment on those left, and needs no such note.
    fixture.create("b");
    fixture.commit().unwrap();
    assert!(fixture.noted.0.lock().is_empty());
    let next = fixture.records(SegmentId(2));
    assert_eq!(next.len(), 1);
    assert_eq!(fixture.records(SegmentId(1)).len(), 1, "nothing more goes to a segment with a failed sync");
}

#[test]
fn a_sync_that_failed_in_too_many_directories_is_not_passed_over_by_the_next() {
    let fixture = Fixture::new("short", (4, 2));
    fixture.store(1);
    for faulty in &fixture.faulty[..3] {
        faulty.add(Rule::new(Call::SyncSegment, Fault::Errno(libc::EIO)).times(1));
    }
    assert!(matches!(fixture.blocks.segments().sync(), Err(Error::TooFewMembers { healthy: 3, needed: 4 })));
    // Nothing fails any more, but what was appended before is still in three directories only.
    assert!(fixture.blocks.segments().has_unsynced());
    assert_eq!(fixture.blocks.segments().lacking(SegmentId(1)).count_ones(), 3);
}

#[test]
fn records_behind_a_place_never_filled_are_found() {
    let fixture = Fixture::new("gap", (4, 2));
    fixture.create("a");
    fixture.commit().unwrap();
    // Another thread was handed a place, longer than what is searched at once, and died before it wrote.
    fixture.blocks.segments().allocate(3 << 20, 512, Generation(2), crate::segment::QUORUM_PATIENCE).unwrap();
    fixture.create("b");
    fixture.commit().unwrap();
    let generations: Vec<u64> =
        fixture.records(SegmentId(1)).iter().map(|(_, header)| header.commit.unwrap().generation.0).collect();
    assert_eq!(generations, [1, 2]);
}

#[test]
fn nobody_is_held_off_while_a_generation_is_synced() {
    let fixture = Fixture::new("gate", (4, 2));
    fixture.create("a");
    fixture.commit().unwrap();
    let gate = crate::backing::Gate::new();
    for faulty in &fixture.faulty {
        faulty.add(Rule::new(Call::SyncSegment, Fault::Hang(gate.clone())));
    }
    std::thread::scope(|scope| {
        fixture.create("b");
        let committing = scope.spawn(|| fixture.commit());
        gate.wait_for(3);
        // Changes and reads go on, into the next generation.
        {
            let _held = fixture.commit.gate();
            fixture.create("c");
            fixture.meta.with(|txn| txn.lookup(ROOT_INO, b"b")).unwrap();
        }
        assert_eq!((fixture.log.head().generation, fixture.log.durable()), (Generation(2), Generation(1)));
        assert!(!committing.is_finished());
        gate.open();
        assert_eq!(committing.join().unwrap().unwrap(), Generation(2));
    });
    assert_eq!(fixture.log.durable(), Generation(2));
    fixture.commit().unwrap();
    assert_eq!(fixture.log.durable(), Generation(3));
}

#[test]
fn nothing_follows_a_generation_that_could_not_be_synced() {
    let fixture = Fixture::new("ended", (4, 2));
    fixture.store(1);
    fixture.create("a");
    for faulty in &fixture.faulty[..3] {
        faulty.add(Rule::new(Call::SyncSegment, Fault::Errno(libc::EIO)).from_nth(2).times(1));
    }
    fixture.commit().unwrap();
    fixture.store(2);
    fixture.create("b");
    assert!(matches!(fixture.commit(), Err(Error::TooFewMembers { .. })));
    fixture.create("c");
    assert!(matches!(fixture.commit(), Err(Error::NotDurable { generation: Generation(2), .. })));
    assert_eq!(fixture.log.durable(), Generation(1));
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_directory_that_hangs_while_it_is_written_holds_up_nobody_for_ever() {
    let fixture = Fixture::new("hang-write", (4, 2));
    fixture.store(1);
    fixture.create("a");
    fixture.commit().unwrap();
    let gate = crate::backing::Gate::new();
    fixture.faulty[1].add(Rule::new(Call::WriteAt, Fault::Hang(gate.clone())));
    fixture.store(2);
    fixture.create("b");
    fixture.commit().unwrap();
    let hanging = MemberId([2; 16]);
    let last = SegmentId(fixture.blocks.segments().next_id().0 - 1);
    assert!(last > SegmentId(1));
    assert!(!fixture.blocks.segment_info(last).unwrap().slots.contains(&Some(hanging)));
    assert_eq!(fixture.records(last).len(), 1);
    assert!(fixture.noted.0.lock().is_empty(), "what is answered lies in all slots of its segment");
    gate.open();
    fixture.faulty[1].clear();
    let member = fixture.blocks.segments().set().get(&hanging).unwrap().clone();
    wait_until("the directory answers again", || member.is_healthy());
    // It takes part at once, not only when the open segment is full.
    fixture.blocks.segments().widen();
    fixture.store(3);
    let next = SegmentId(fixture.blocks.segments().next_id().0 - 1);
    assert!(fixture.blocks.segment_info(next).unwrap().slots.contains(&Some(hanging)));
}

#[test]
fn a_directory_that_hangs_in_a_sync_is_left_behind_and_caught_up_later() {
    let fixture = Fixture::new("hang-sync", (4, 2));
    fixture.store(1);
    fixture.create("a");
    let gate = crate::backing::Gate::new();
    fixture.faulty[2].add(Rule::new(Call::SyncSegment, Fault::Hang(gate.clone())));
    fixture.commit().unwrap();
    assert_eq!(fixture.noted.0.lock().len(), 1, "answered with fewer than the ack set");
    assert_eq!(fixture.blocks.segments().lacking(SegmentId(1)).count_ones(), 1);
    let identity = crate::blocks::Identity { volume: VOLUME, term: Term(1) };
    fixture.blocks.catch_up(identity, &All).unwrap();
    assert_eq!(fixture.blocks.segments().lacking(SegmentId(1)).count_ones(), 1, "it does not answer yet");
    gate.open();
    fixture.faulty[2].clear();
    let member = fixture.blocks.segments().set().get(&MemberId([3; 16])).unwrap().clone();
    wait_until("the directory answers again", || member.is_healthy());
    fixture.blocks.catch_up(identity, &All).unwrap();
    assert!(fixture.blocks.segments().lacking_segments().is_empty());
}

#[test]
fn what_a_failed_sync_dropped_is_written_again_when_the_directory_is_back() {
    let fixture = Fixture::new("drop-sync", (4, 2));
    fixture.store(1);
    fixture.create("a");
    fixture.faulty[4].add(Rule::new(Call::SyncSegment, Fault::DropUnsynced { errno: libc::EIO }).times(1));
    fixture.commit().unwrap();
    let info = fixture.blocks.segment_info(SegmentId(1)).unwrap();
    let bad = |fixture: &Fixture| -> usize {
        let records = fixture.blocks.stripes().records(SegmentId(1), 0, &info);
        records.iter().map(|(place, _)| fixture.blocks.stripes().survey(*place, &info).bad.len()).sum()
    };
    assert!(bad(&fixture) > 0);
    assert!(fixture.blocks.segments().set().restore(&MemberId([5; 16]), None));
    fixture.blocks.catch_up(crate::blocks::Identity { volume: VOLUME, term: Term(1) }, &All).unwrap();
    assert_eq!(bad(&fixture), 0);
    assert!(fixture.blocks.segments().lacking_segments().is_empty());
}

impl Fixture {
    fn member(&self, number: usize) -> &Arc<Member> {
        self.blocks.segments().set().get(&MemberId([number as u8 + 1; 16])).unwrap()
    }

    fn back(&self, number: usize) {
        assert!(self.member(number).restore(Some(self.faulty[number].clone())));
    }

    fn catch_up(&self, need: &dyn crate::blocks::Need) -> Vec<(SegmentId, u64)> {
        self.blocks.forget_stuck();
        self.blocks.catch_up(crate::blocks::Identity { volume: VOLUME, term: Term(1) }, need).unwrap();
        self.blocks.segments().lacking_segments()
    }

    /// A stripe and a record that the fifth directory missed, while the first two are away.
    fn behind_with_two_away(name: &str) -> Self {
        let fixture = Self::new(name, (4, 2));
        fixture.store(1);
        fixture.create("a");
        fixture.faulty[4].add(Rule::new(Call::SyncSegment, Fault::DropUnsynced { errno: libc::EIO }).times(1));
        fixture.commit().unwrap();
        [0, 1].iter().for_each(|number| fixture.member(*number).mark_missing("away"));
        fixture.back(4);
        fixture
    }
}

#[test]
fn nothing_is_caught_up_while_too_few_shards_are_there_to_rebuild_it_from() {
    let fixture = Fixture::behind_with_two_away("behind-lost");
    let info = fixture.blocks.segment_info(SegmentId(1)).unwrap();
    let noted = fixture.blocks.segments().lacking_segments();
    assert_eq!((noted.len(), noted[0].1.count_ones()), (1, 1));
    assert_eq!(fixture.catch_up(&All), noted);
    let at = fixture.records(SegmentId(1))[0].0.offset - 4096;
    assert_eq!(fixture.catch_up(&Stripes(vec![at])), noted, "a row names a stripe of which three shards are there");
    [0, 1].iter().for_each(|number| fixture.back(*number));
    // As a directory is there again it is tried at once.
    fixture.blocks.catch_up(crate::blocks::Identity { volume: VOLUME, term: Term(1) }, &All).unwrap();
    assert!(fixture.blocks.segments().lacking_segments().is_empty());
    let records = fixture.blocks.stripes().records(SegmentId(1), 0, &info);
    let bad = records.iter().map(|(place, _)| fixture.blocks.stripes().survey(*place, &info).bad.len());
    assert_eq!((records.len(), bad.sum::<usize>()), (2, 0));
}

#[test]
fn stripes_that_nothing_needs_do_not_keep_a_directory_behind() {
    let fixture = Fixture::behind_with_two_away("behind-dead");
    assert_eq!(fixture.catch_up(&Stripes(Vec::new())), []);
}

#[test]
fn a_record_whose_other_copies_are_away_is_not_taken_for_none() {
    let fixture = Fixture::new("behind-unseen", (4, 2));
    let (place, info, holders) = fixture.record_in_copies();
    let number = |slot: usize| usize::from(info.slots[slot].unwrap().0[0]) - 1;
    fixture.faulty[number(holders[0])]
        .write_at(SegmentId(1), place.offset, &[std::io::IoSlice::new(&[0; 600])])
        .unwrap();
    fixture.blocks.segments().abandon(SegmentId(1));
    fixture.blocks.segments().note_lacking(SegmentId(1), 1 << holders[0]);
    holders[1..].iter().for_each(|slot| fixture.member(number(*slot)).mark_missing("away"));
    assert!(fixture.blocks.stripes().records(SegmentId(1), 0, &info).is_empty());
    assert_eq!(fixture.catch_up(&All).len(), 1);
    holders[1..].iter().for_each(|slot| fixture.back(number(*slot)));
    assert_eq!(fixture.catch_up(&All), []);
    assert_eq!(fixture.blocks.stripes().survey(place, &info).good.len(), 3);
}

#[test]
fn a_segment_is_taken_for_given_back_only_if_a_file_of_it_would_be_seen() {
    let fixture = Fixture::new("behind-gone", (4, 2));
    fixture.blocks.segments().note_lacking(SegmentId(77), 1);
    (0..4).for_each(|number| fixture.member(number).mark_missing("away"));
    assert_eq!(fixture.catch_up(&All).len(), 1);
    fixture.back(0);
    assert_eq!(fixture.catch_up(&All), []);
}

#[test]
fn who_holds_vacant_slots_is_asked_of_no_directory_by_readers_and_of_none_for_ever() {
    let fixture = Fixture::new("vacant-hang", (4, 2));
    fixture.member(0).mark_missing("away");
    fixture.store(1);
    fixture.create("a");
    fixture.commit().unwrap();
    fixture.blocks.settled(|_| Ok(())).unwrap();
    fixture.back(0);
    let vacant = |info: &crate::stripes::SegmentInfo| info.slots.iter().filter(|slot| slot.is_none()).count();
    let gate = crate::backing::Gate::new();
    fixture.faulty[3].add(Rule::new(Call::ReadAt, Fault::Hang(gate.clone())));
    let reads = || fixture.faulty.iter().map(|faulty| faulty.count(Call::ReadAt)).sum::<u64>();
    fixture.blocks.forget_segment(SegmentId(1));
    let before = reads();
    assert_eq!(vacant(&fixture.blocks.segment_info(SegmentId(1)).unwrap()), 1);
    assert_eq!(reads(), before, "a reader goes by the row");
    // The directory that hangs is not waited for; without it the answer is not taken for the last.
    assert_eq!(vacant(&fixture.blocks.placement(SegmentId(1)).unwrap()), 1);
    assert_eq!(reads(), before + 6);
    gate.open();
}

#[test]
fn a_directory_that_is_slow_to_tell_its_room_is_not_done_without() {
    let fixture = Fixture::new("slow-room", (4, 2));
    // Longer than anyone who only wants the figures waits.
    fixture.faulty[3].add(Rule::new(Call::Space, Fault::Delay(std::time::Duration::from_millis(700))));
    fixture.store(1);
    let info = fixture.blocks.segment_info(SegmentId(1)).unwrap();
    assert!(info.slots.iter().all(Option::is_some), "a slot is vacant: {:?}", info.slots);
}

#[test]
fn directories_that_fail_to_tell_their_room_are_not_full() {
    let fixture = Fixture::new("no-room", (4, 2));
    for faulty in &fixture.faulty[..3] {
        faulty.add(Rule::new(Call::Space, Fault::Errno(libc::EIO)));
    }
    let put = Put { plain: &[1; 5000], salt: Salt { domain: 0, epoch: 0, index: 0 } };
    let outcome = fixture.blocks.put(&[put], |_, _| Ok(()));
    assert!(matches!(outcome, Err(Error::TooFewMembers { healthy: 3, needed: 5 })), "{:?}", outcome.err());
}
