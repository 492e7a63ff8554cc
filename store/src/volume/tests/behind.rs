//! Segments that are not complete on k+m directories: known for what they are, also by the next to open the volume, and
//! completed when the directories are back.

use std::io;

use super::*;
use crate::backing::{Backing, Call, DirBacking, Directories, Fault, FaultyBacking, RealDirectories, Rule};
use crate::blocks::Put;
use crate::commit_log::AckOverrides;
use crate::ids::SegmentId;
use crate::meta::rows::{SegmentRow, SegmentState};
use crate::superblock::BEHIND_MAX;

/// Real directories, of which these fail when told to.
pub(super) struct Faulty(pub(super) BTreeMap<PathBuf, Arc<FaultyBacking>>);

impl Faulty {
    pub(super) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let faulty = paths.into_iter().map(|path| {
            let path = std::fs::canonicalize(path).unwrap();
            let real = DirBacking::open(&path).unwrap();
            (path, Arc::new(FaultyBacking::new(Arc::new(real))))
        });
        Self(faulty.collect())
    }
}

impl Directories for Faulty {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn Backing>> {
        match self.0.get(path) {
            Some(faulty) => Ok(faulty.clone()),
            None => RealDirectories.open(path),
        }
    }

    fn canonical(&self, path: &Path) -> PathBuf {
        RealDirectories.canonical(path)
    }
}

/// As `brine status` of an unmounted volume: nothing is changed.
fn status_of(scratch: &Scratch) -> VolumeStatus {
    let volume = scratch.open_with(OpenOptions { read_only: true, ..scratch.options() });
    let status = volume.status().unwrap();
    volume.close(&NothingDirty).unwrap();
    status
}

fn wait_until_complete(volume: &Volume) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let status = volume.status().unwrap();
        if status.behind.is_empty() {
            assert_eq!(status.tolerated_losses, 2);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "not caught up: {:?}", status.behind);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Everything is there though two directories and the state directory are not.
fn expect_all_without(scratch: &Scratch, lost: [&str; 2], files: &[(&str, &[u8])]) {
    for name in lost.iter().chain(&["state"]) {
        std::fs::remove_dir_all(scratch.0.join(name)).unwrap();
    }
    let volume = scratch.open();
    for (name, content) in files {
        assert!(read(&volume, name).unwrap() == *content, "{name}");
    }
    let report = check(&volume, &CheckOptions::default(), &Silent).unwrap();
    assert_eq!(report.blocks_lost, 0, "{report:?}");
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn what_a_directory_lacks_is_remembered_over_a_crash_and_caught_up() {
    let scratch = Scratch::new("behind");
    scratch.format(6, 1);
    let content = noise(70, 300_000);
    let directories = Faulty::new([scratch.0.join("d2")]);
    let volume = Volume::open_in(scratch.options(), &directories).unwrap();
    write(&volume, "before", &content[..1000]);
    volume.commit(&NothingDirty).unwrap();
    let open = volume.blocks().segments().open_tails()[0].0;
    // The sync of this generation fails in one directory, which loses what it had not synced.
    let failed_sync = Rule::new(Call::SyncSegment, Fault::DropUnsynced { errno: libc::EIO });
    directories.0.values().for_each(|faulty| faulty.add(failed_sync.clone().segment(open).times(1)));
    write(&volume, "file", &content);
    volume.commit(&NothingDirty).unwrap();
    let status = volume.status().unwrap();
    assert_eq!((status.behind.len(), status.tolerated_losses), (1, 1), "{:?}", status.behind);
    assert_eq!((status.behind[0].segment, status.behind[0].tolerated_losses), (open.0, 1));
    assert!(status.behind[0].directories[0].ends_with("d2"), "{:?}", status.behind);
    scratch.kill(volume);
    drop(directories);
    // The database may be lost as well: this is noted in the directories.
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let status = status_of(&scratch);
    assert_eq!((status.behind.len(), status.tolerated_losses), (1, 1), "{:?}", status.behind);
    let volume = scratch.open();
    wait_until_complete(&volume);
    scratch.kill(volume);
    assert_eq!(status_of(&scratch).tolerated_losses, 2);
    expect_all_without(&scratch, ["d0", "d5"], &[("file", &content), ("before", &content[..1000])]);
}

/// R9: with a directory to spare a failed sync costs no redundancy, though the one that failed never comes back.
#[test]
fn what_missed_a_sync_is_written_elsewhere_at_once() {
    let scratch = Scratch::new("elsewhere");
    scratch.format(7, 1);
    let (before, content) = (noise(75, 300_000), noise(76, 700_000));
    let directories = Faulty::new((0..7).map(|n| scratch.0.join(format!("d{n}"))));
    let volume = Volume::open_in(OpenOptions { cache_bytes: 0, ..scratch.options() }, &directories).unwrap();
    write(&volume, "before", &before);
    volume.commit(&NothingDirty).unwrap();
    let open = volume.blocks().segments().open_tails()[0].0;
    let blocks_there = || volume.meta.with(|txn| txn.blocks_of_segment(open, 0, 1000)).unwrap().len();
    assert_eq!(blocks_there(), 3);
    let first = volume.blocks().segment_info(open).unwrap().slots[0].unwrap();
    let failing = volume.set.get(&first).unwrap();
    let faulty = &directories.0[&*failing.path()];
    faulty.add(Rule::new(Call::SyncSegment, Fault::DropUnsynced { errno: libc::EIO }).segment(open).times(1));
    write(&volume, "file", &content);
    volume.commit(&NothingDirty).unwrap();
    assert!(matches!(failing.health(), crate::backing::Health::Failed { .. }));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while blocks_there() > 3 {
        assert!(std::time::Instant::now() < deadline, "{} blocks lie where a sync failed", blocks_there());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    volume.commit(&NothingDirty).unwrap();
    // What was synced before stays where it is.
    assert_eq!(blocks_there(), 3);
    assert!(read(&volume, "before").unwrap() == before);
    volume.housekeeper.lock().take().unwrap().stop();
    volume.set.mark_missing(&first, "gone for good");
    let others: Vec<_> = volume.set.members().iter().filter(|member| member.id != first).collect();
    for (n, one) in others.iter().enumerate() {
        for other in &others[n + 1..] {
            [one, other].iter().for_each(|member| member.mark_missing("gone too"));
            assert!(read(&volume, "file").unwrap() == content);
            for member in [one, other] {
                assert!(member.restore(Some(directories.0[&*member.path()].clone())));
            }
        }
    }
    scratch.kill(volume);
}

#[test]
fn a_slot_that_stood_vacant_is_given_to_its_directory_when_that_is_back() {
    let scratch = Scratch::new("vacant");
    scratch.format(6, 1);
    let content = noise(71, 300_000);
    std::fs::rename(scratch.0.join("d3"), scratch.0.join("away")).unwrap();
    let volume = scratch.open();
    write(&volume, "file", &content);
    volume.commit(&NothingDirty).unwrap();
    // No block: it lives in the log.
    write(&volume, "empty", b"");
    scratch.kill({
        volume.commit(&NothingDirty).unwrap();
        volume
    });
    std::fs::rename(scratch.0.join("away"), scratch.0.join("d3")).unwrap();
    let status = status_of(&scratch);
    assert_eq!(
        status.tolerated_losses, 1,
        "all directories are there, and a segment lies in five: {:?}",
        status.behind
    );
    assert!(status.behind.iter().any(|behind| behind.vacant == 1 && behind.since.is_some()), "{:?}", status.behind);
    let volume = scratch.open();
    wait_until_complete(&volume);
    scratch.kill(volume);
    expect_all_without(&scratch, ["d0", "d1"], &[("file", &content), ("empty", b"")]);
}

#[test]
fn healing_completes_segments_that_were_opened_while_directories_were_away() {
    let scratch = Scratch::new("vacant-heal");
    scratch.format(6, 1);
    let content = noise(72, 300_000);
    for name in ["d1", "d4"] {
        std::fs::rename(scratch.0.join(name), scratch.0.join(format!("away-{name}"))).unwrap();
    }
    let volume = scratch.open();
    write(&volume, "file", &content);
    volume.commit(&NothingDirty).unwrap();
    for name in ["d1", "d4"] {
        std::fs::create_dir(scratch.0.join(name)).unwrap();
        replace(&volume, &scratch.0.join(name), &scratch.0.join(name)).unwrap();
    }
    // The segment that is open is among them, and what is written next goes elsewhere.
    let report = heal(&volume, &Silent).unwrap();
    assert!(report.healed, "{report:?}");
    write(&volume, "next", &content[..200_000]);
    volume.commit(&NothingDirty).unwrap();
    let status = volume.status().unwrap();
    assert_eq!((status.behind.len(), status.tolerated_losses), (0, 2), "{:?}", status.behind);
    scratch.kill(volume);
    assert_eq!(status_of(&scratch).tolerated_losses, 2, "what is complete again is forgotten by the superblocks, too");
    expect_all_without(&scratch, ["d0", "d2"], &[("file", &content), ("next", &content[..200_000])]);
}

#[test]
fn no_more_segments_are_given_away_than_can_be_noted() {
    let scratch = Scratch::new("behind-many");
    scratch.format(6, 1);
    std::fs::rename(scratch.0.join("d3"), scratch.0.join("away")).unwrap();
    let volume = scratch.open();
    write(&volume, "file", &noise(73, 300_000));
    volume.commit(&NothingDirty).unwrap();
    scratch.kill(volume);
    std::fs::rename(scratch.0.join("away"), scratch.0.join("d3")).unwrap();
    let volume = scratch.open();
    // Only what this test asks for is done.
    volume.housekeeper.lock().take().unwrap().stop();
    let segments = volume.blocks().segments();
    let before = segments.lacking_segments().len();
    (before..BEHIND_MAX).for_each(|n| segments.note_lacking(SegmentId(1_000_000 + n as u64), 1));
    assert_eq!(volume.fill_vacant_slots(SegmentId(0), usize::MAX).unwrap().0, 0);
    // More cannot be noted: the superblocks are written once, not with every generation.
    segments.note_lacking(SegmentId(2_000_000), 1);
    AckOverrides::put(&*volume, Vec::new(), &segments.lacking_segments()).unwrap();
    let sequence = volume.superblock.lock().sequence;
    AckOverrides::put(&*volume, Vec::new(), &segments.lacking_segments()).unwrap();
    assert_eq!(volume.superblock.lock().sequence, sequence);
    scratch.kill(volume);
}

#[test]
fn giving_a_slot_away_leaves_the_rest_of_the_row_as_it_is() {
    use crate::volume::replace::take_slots;
    let scratch = Scratch::new("vacant-row");
    scratch.format(6, 1);
    std::fs::rename(scratch.0.join("d3"), scratch.0.join("away")).unwrap();
    let volume = scratch.open();
    write(&volume, "file", &noise(74, 300_000));
    volume.commit(&NothingDirty).unwrap();
    let row = |volume: &Volume, id: SegmentId| volume.meta.with(|txn| txn.segment(id)).unwrap();
    let all = volume.meta.with(|txn| txn.segments()).unwrap();
    let stale = all.into_iter().find(|row| row.slots.contains(&None)).unwrap();
    let away = stale.slots.iter().position(Option::is_none).unwrap();
    let mut given = stale.clone();
    given.slots[away] = Some(MemberId([9; 16]));
    // Closed and condemned by others since it was read.
    let put = |row: &SegmentRow| volume.meta.with(|txn| txn.put_segment(row)).unwrap();
    put(&SegmentRow { state: SegmentState::Closed, tail: 123_456, ..stale.clone() });
    volume.meta.with(|txn| take_slots(txn, &given)).unwrap();
    let now = row(&volume, stale.id).unwrap();
    assert_eq!((now.state, now.tail, &now.slots), (SegmentState::Closed, 123_456, &given.slots));
    let condemned = SegmentRow { state: SegmentState::Condemned, ..stale.clone() };
    put(&condemned);
    volume.meta.with(|txn| take_slots(txn, &given)).unwrap();
    let now = row(&volume, stale.id).unwrap();
    assert_eq!((now.state, &now.slots), (SegmentState::Condemned, &stale.slots));
    let gone = SegmentRow { id: SegmentId(987_654), ..given };
    volume.meta.with(|txn| take_slots(txn, &gone)).unwrap();
    assert!(row(&volume, gone.id).is_none());
    drop(volume);
}

/// Others may have appended to it before one of its directories failed, and what they wrote there is named.
#[test]
fn a_segment_that_was_given_up_has_a_row_as_any_other() {
    let scratch = Scratch::new("given-up");
    scratch.format(6, 1);
    let directories = Faulty::new((0..6).map(|n| scratch.0.join(format!("d{n}"))));
    let volume = Volume::open_in(scratch.options(), &directories).unwrap();
    write(&volume, "before", &noise(1, 300_000));
    volume.commit(&NothingDirty).unwrap();
    volume.blocks().segments().close();
    let given_up = volume.blocks().segments().next_id();
    for directory in directories.0.values().take(1) {
        // The first write announces it.
        let second = Rule::new(Call::WriteAt, Fault::Errno(libc::EIO)).segment(given_up).from_nth(2);
        directory.add(second.times(1));
    }
    write(&volume, "after", &noise(2, 300_000));
    let rows = volume.meta.with(|txn| txn.segments()).unwrap();
    let row = rows.iter().find(|row| row.id == given_up).unwrap();
    assert_eq!(row.state, SegmentState::Closed);
    assert!(rows.iter().any(|row| row.id.0 > given_up.0), "it was written elsewhere");
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().verify().unwrap(), Vec::<String>::new());
    assert!(read(&volume, "after").unwrap() == noise(2, 300_000));
    scratch.kill(volume);
}

/// An operation that fails is undone, and the rows of segments that were put with it.
#[test]
fn rows_of_segments_outlast_the_operation_they_were_put_with() {
    let scratch = Scratch::new("undone-rows");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "before", &noise(1, 300_000));
    volume.commit(&NothingDirty).unwrap();
    volume.blocks().segments().close();
    let opened = volume.blocks().segments().next_id();
    let content = noise(2, 300_000);
    let puts = [Put { plain: &content[..128 << 10], salt: volume.salt(ROOT_INO, 0) }];
    let refused = volume.blocks().put(&puts, |_, _| Err::<(), _>(Error::InvalidArgument("refused")));
    assert!(refused.is_err());
    assert!(volume.meta.with(|txn| txn.segment(opened)).unwrap().is_none());
    volume.blocks().segments().close();
    write(&volume, "after", &content);
    let row = volume.meta.with(|txn| txn.segment(opened)).unwrap().unwrap();
    assert_eq!(row.state, SegmentState::Closed);
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(volume.meta().verify().unwrap(), Vec::<String>::new());
    scratch.kill(volume);
}
