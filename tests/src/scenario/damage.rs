//! Wrong and slow bytes: reads stay right and bounded in time, damage is counted, named and healed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::damage::{flip_bits, segment_files, swap_offsets, swap_segments, truncate_segments};
use crate::fault_dir::{Fault, FaultDir};
use crate::scenario::loss::{Kept, fill, verify};
use crate::volume::wait_until;
use crate::{Builder, Random, TestVolume, content, seed};

/// Ways to damage one directory's segment files while nobody uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A flipped bit in every 4 KiB.
    FlippedBits,
    /// A flipped bit in every 512 bytes: no header is left either.
    DenselyFlippedBits,
    /// Cut in half.
    Truncated,
    /// Cut to nothing.
    Emptied,
    /// Blocks of 4 KiB exchanged within each file: shards where others belong.
    Swapped,
    /// Each file replaced by a directory of its name: it cannot be opened.
    Directories,
    /// Each file replaced by a FIFO, on which a careless open waits for ever.
    Fifos,
    /// All removed, the directory and its superblock stay.
    Removed,
}

/// All of them.
pub const ALL: [Damage; 8] = [
    Damage::FlippedBits,
    Damage::DenselyFlippedBits,
    Damage::Truncated,
    Damage::Emptied,
    Damage::Swapped,
    Damage::Directories,
    Damage::Fifos,
    Damage::Removed,
];

/// Does it to one directory.
///
/// # Panics
/// If a file cannot be changed.
#[track_caller]
pub fn inflict(damage: Damage, dir: &Path, random: &mut Random) {
    let files = segment_files(dir);
    assert!(!files.is_empty(), "{} has no segment files to damage", dir.display());
    let each = |change: fn(&Path) -> std::io::Result<()>| {
        for file in &files {
            fs::remove_file(file).and_then(|()| change(file)).expect("replace a segment file");
        }
    };
    match damage {
        Damage::FlippedBits => assert!(flip_bits(dir, 4096, random) > 0),
        Damage::DenselyFlippedBits => assert!(flip_bits(dir, 512, random) > 0),
        Damage::Truncated => truncate_segments(dir, 1, 2),
        Damage::Emptied => truncate_segments(dir, 0, 1),
        Damage::Swapped => swap_offsets(dir, 4096, random),
        Damage::Directories => each(|file| fs::create_dir(file)),
        Damage::Fifos => each(|file| Ok(nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU)?)),
        Damage::Removed => each(|_| Ok(())),
    }
}

/// Each kind of damage on each of these sets of directories: reads right, damage counted, healed, found healthy, and
/// then really so: what was healed carries when other directories go.
#[track_caller]
pub fn damaged_shards(kinds: &[Damage], sets: &[&[usize]], mebibytes: u64) -> String {
    let mut random = Random::new(seed("damaged shards"));
    let minutes = 2 + (kinds.len() * sets.len()) as u64;
    let mut volume = Builder::new("damaged").lifetime(Duration::from_secs(minutes * 60)).mount();
    let expected = fill(&volume, mebibytes);
    volume.umount();
    let kept = Kept::of(&volume);
    for &kind in kinds {
        for set in sets {
            let what = format!("{kind:?} in directories {set:?}");
            println!("{what}");
            for &i in *set {
                inflict(kind, volume.dir(i), &mut random);
            }
            volume.mount();
            verify(&volume, &expected, &what);
            // Reading at full redundancy need not look at parity; check looks at everything.
            let report = volume.check();
            assert_eq!(report["healthy"], false, "{what}: check finds nothing: {report:#}");
            expect_counted(&volume, &what);
            if matches!(kind, Damage::Directories | Damage::Fifos) {
                clear_the_way(&mut volume, set);
            }
            heal(&volume);
            let report = volume.check();
            assert_eq!(report["healthy"], true, "{what}: not healthy after healing: {report:#}");
            verify(&volume, &expected, &format!("{what}, healed"));
            volume.umount();
            let others: Vec<usize> = (0..volume.dirs().len()).filter(|i| !set.contains(i)).take(2).collect();
            for &i in &others {
                fs::remove_dir_all(volume.dir(i)).expect("remove a backing directory");
            }
            volume.mount();
            verify(&volume, &expected, &format!("{what}, healed, then directories {others:?} lost"));
            volume.umount();
            kept.put_back();
        }
    }
    format!(
        "{} kinds of damage on {} sets of directories: {} entries right, healed",
        kinds.len(),
        sets.len(),
        expected.len()
    )
}

/// Heals, or is told that it cannot be done: then takes away what is in the way.
#[track_caller]
fn clear_the_way(volume: &mut TestVolume, set: &[usize]) {
    let mut command = crate::volume::brine_command(&["heal"]);
    let finished = crate::run(command.arg(volume.mnt()));
    if !finished.success() {
        finished.expect_refusal().with_code(crate::command::exit::DAMAGED);
        set.iter().for_each(|&i| remove_all_but_files(volume.dir(i)));
        volume.remount();
    }
}

/// Removes everything below `dir` that is neither a directory with something in it nor a file.
fn remove_all_but_files(dir: &Path) {
    for entry in fs::read_dir(dir).expect("list a backing directory").flatten() {
        let kind = entry.file_type().expect("stat in a backing directory");
        if kind.is_dir() {
            remove_all_but_files(&entry.path());
            let _ = fs::remove_dir(entry.path());
        } else if !kind.is_file() {
            fs::remove_file(entry.path()).expect("unlink in a backing directory");
        }
    }
}

/// Damage must show in status, in one way or another: bad shards, or a directory that is not healthy.
#[track_caller]
fn expect_counted(volume: &TestVolume, what: &str) {
    let status = volume.status();
    let bad = status["damage"]["shards_bad"].as_u64().unwrap_or_default();
    let errors: u64 = status["directories"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(|dir| dir["read_errors"].as_u64().unwrap_or(0) + dir["rejected_shards"].as_u64().unwrap_or(0))
        .sum();
    assert!(bad > 0 || errors > 0, "{what}: nothing is counted: {status:#}");
    assert_eq!(status["damage"]["blocks_lost"], 0, "{what}: blocks are said to be lost: {status:#}");
}

/// `brine heal`, which must succeed.
#[track_caller]
pub fn heal(volume: &TestVolume) {
    let mut command = crate::volume::brine_command(&["heal"]);
    let patience = Duration::from_secs(120);
    crate::command::run_for(command.arg(volume.mnt()), patience).expect_success();
}

/// The segment files of two directories change places: every shard authentic, none where it belongs.
#[track_caller]
pub fn swapped_directories() -> String {
    let mut volume = Builder::new("swapped").mount();
    let expected = fill(&volume, 6);
    volume.umount();
    assert!(swap_segments(volume.dir(0), volume.dir(1)) > 0, "no segment has files in both directories");
    volume.mount();
    verify(&volume, &expected, "with the segment files of two directories exchanged");
    heal(&volume);
    volume.remount();
    volume.expect_clean();
    "every shard authentic and in the wrong directory: read right, healed".into()
}

/// Two directories are put back as they were before most was written and much was overwritten.
#[track_caller]
pub fn old_copies() -> String {
    let mut volume = Builder::new("old-copies").mount();
    fs::write(volume.path("early"), content(1, 1_000_000)).expect("write");
    fs::write(volume.path("changed"), content(2, 1_000_000)).expect("write");
    volume.umount();
    let kept = Kept::of(&volume);
    volume.mount();
    fs::write(volume.path("changed"), content(3, 1_500_000)).expect("write");
    fs::write(volume.path("late"), content(4, 2_000_000)).expect("write");
    fs::remove_file(volume.path("early")).expect("unlink");
    volume.umount();
    let check = |volume: &TestVolume, when: &str| {
        assert!(
            fs::read(volume.path("changed")).expect("read") == content(3, 1_500_000),
            "{when}: an old content is back"
        );
        assert!(fs::read(volume.path("late")).expect("read") == content(4, 2_000_000), "{when}: a new file is wrong");
        assert!(!volume.path("early").exists(), "{when}: a removed file is back");
    };
    for i in [0, 4] {
        kept.put_back_one(i);
    }
    volume.mount();
    check(&volume, "with two directories from an older backup");
    heal(&volume);
    volume.umount();
    for i in [1, 2] {
        fs::remove_dir_all(volume.dir(i)).expect("remove a backing directory");
    }
    volume.mount();
    check(&volume, "caught up, and two others lost");
    "two directories from an older backup change nothing, and are caught up".into()
}

/// All backing directories are put back to an older state, the state directory is not: that is said, not hidden.
#[track_caller]
pub fn rolled_back_volume() -> String {
    let mut volume = Builder::new("rolled-back").mount();
    fs::write(volume.path("one"), content(1, 500_000)).expect("write");
    volume.umount();
    let kept = Kept::of(&volume);
    volume.mount();
    fs::write(volume.path("two"), content(2, 500_000)).expect("write");
    volume.umount();
    for i in 0..volume.dirs().len() {
        kept.put_back_one(i);
    }
    let finished = volume.try_mount(&[]);
    if finished.success() {
        // Going on is right only if nobody could take it for the newer state in silence.
        let status = volume.status();
        let said = finished.text() + &status["warnings"].to_string() + &status["health_reason"].to_string();
        let said = said.to_lowercase();
        assert!(
            ["older", "roll", "diverge", "aside", "generation"].iter().any(|word| said.contains(word)),
            "all directories went back in time and nothing is said: {finished}\n{status:#}"
        );
        assert!(fs::read(volume.path("one")).expect("read") == content(1, 500_000), "the older state is wrong");
        "mounted with a warning".into()
    } else {
        finished.expect_refusal().says_one_of(&["older", "roll", "generation"]);
        "refused with the reason".into()
    }
}

/// Damage is named by check and counted; what reading meets is healed behind it.
#[track_caller]
pub fn background_healing() -> String {
    let mut volume = Builder::new("self-healing").mount();
    let expected = fill(&volume, 6);
    volume.remount();
    verify(&volume, &expected, "before any damage");
    // The directory that is read most holds data, not parity: reading must meet what is wrong there.
    let status = volume.status();
    let reads = |i: &usize| status["directories"][*i]["reads"].as_u64().unwrap_or_default();
    let busiest = (0..volume.dirs().len()).max_by_key(reads).expect("there are directories");
    volume.umount();
    let mut random = Random::new(seed("background healing"));
    flip_bits(volume.dir(busiest), 4096, &mut random);
    volume.mount();
    let before = volume.check();
    let bad = before["shards_bad"].as_u64().unwrap_or_default();
    assert!(bad > 0, "check does not see flipped bits: {before:#}");
    assert_eq!(before["blocks_lost"], 0, "{before:#}");
    let damaged = before["damaged"].as_array().map_or(&[][..], Vec::as_slice);
    let named = damaged.iter().filter_map(|item| item["path"].as_str()).any(|path| path.contains("file-"));
    assert!(named, "check does not name the files concerned: {before:#}");
    let status = volume.status();
    assert!(status["damage"]["shards_bad"].as_u64() > Some(0), "what check found is not in status: {status:#}");
    assert_ne!(status["health"], "healthy", "what check found is not in status: {status:#}");
    volume.remount();
    verify(&volume, &expected, "with flipped bits");
    let healed = wait_until(Duration::from_secs(30), || {
        let status = volume.status();
        status["damage"]["queued"] == 0 && status["damage"]["shards_repaired"].as_u64() >= Some(1)
    });
    assert!(healed, "nothing was healed within 30 s of reading: {:#}", volume.status());
    heal(&volume);
    let after = volume.check();
    assert_eq!(after["healthy"], Value::Bool(true), "not healthy after healing: {after:#}");
    assert_eq!(after["shards_bad"], 0, "{after:#}");
    format!("{bad} bad shards, files named, healed behind reads, none left")
}

/// A volume of which two directories are of the test's making.
pub struct Faulty {
    // Dropped in this order: the volume lets go of the directories first.
    /// The volume.
    pub volume: TestVolume,
    /// Its directories `4` and `5`.
    pub faults: Vec<FaultDir>,
    _root: Root,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Before the volume goes: a daemon that waits for a hanging directory could not even be killed.
        self.faults.iter().for_each(|fault| fault.set(Fault::None));
    }
}

struct Root(std::path::PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Six directories, 4+2, the last `count` of which can be broken.
#[track_caller]
pub fn faulty(name: &str, count: usize, options: &[&str]) -> Faulty {
    crate::environment::require_fuse();
    let root = Root(crate::environment::temp_dir(&format!("{name}-dirs")));
    let faults: Vec<FaultDir> = (0..count).map(|i| FaultDir::new(&root.0, &format!("fault-{i}"))).collect();
    let mut dirs: Vec<_> = (0..6 - count).map(|i| root.0.join(format!("plain-{i}"))).collect();
    dirs.iter().for_each(|dir| fs::create_dir(dir).expect("create a backing directory"));
    dirs.extend(faults.iter().map(|fault| fault.path().to_path_buf()));
    let mut builder = Builder::new(name).directories_at(dirs).lifetime(Duration::from_secs(90));
    for option in options {
        builder = builder.option(option);
    }
    Faulty { volume: builder.mount(), faults, _root: root }
}

/// m directories stop answering: reads go on, none takes long; writes and fsync go on too.
#[track_caller]
pub fn hanging_directories(count: usize, files: u64) -> String {
    let mut set = faulty("hanging", count, &["cache=8M"]);
    for i in 0..files {
        fs::write(set.volume.path(&format!("file-{i}")), content(i, 700_000)).expect("write");
    }
    set.volume.remount();
    set.faults.iter().for_each(|fault| fault.set(Fault::Hang));
    let mut slowest = Duration::ZERO;
    for i in 0..files {
        let started = Instant::now();
        let read = fs::read(set.volume.path(&format!("file-{i}"))).expect("read with hanging directories");
        slowest = slowest.max(started.elapsed());
        assert!(read == content(i, 700_000), "a file is wrong with hanging directories");
    }
    assert!(slowest < Duration::from_secs(5), "a read took {slowest:.1?} with {count} hanging directories");
    // Writing is held up by a hanging directory: docs/SEMANTICS.md says so, and nothing here waits for it.
    // A call must be out for two seconds before its directory counts as sick.
    let noticed = wait_until(Duration::from_secs(10), || {
        let status = set.volume.status();
        let directories = status["directories"].as_array().cloned().unwrap_or_default();
        directories.iter().filter(|dir| dir["state"] != "healthy").count() >= count
    });
    assert!(noticed, "hanging directories are called healthy: {:#}", set.volume.status());
    set.faults.iter().for_each(|fault| fault.set(Fault::None));
    format!("{count} hanging: slowest of {files} reads {slowest:.1?}")
}

/// m directories answer reads late: parity is asked instead.
#[track_caller]
pub fn slow_directories(delay: Duration) -> String {
    let mut set = faulty("slow", 2, &["cache=8M"]);
    let files = 24;
    for i in 0..files {
        fs::write(set.volume.path(&format!("file-{i}")), content(i, 131_072)).expect("write");
    }
    set.volume.remount();
    // What a directory usually takes has to be known before late means anything.
    for i in 0..files / 2 {
        assert!(fs::read(set.volume.path(&format!("file-{i}"))).expect("read") == content(i, 131_072));
    }
    set.faults.iter().for_each(|fault| fault.set(Fault::SlowReads(delay)));
    let mut times: Vec<Duration> = (files / 2..files)
        .map(|i| {
            let started = Instant::now();
            assert!(fs::read(set.volume.path(&format!("file-{i}"))).expect("read") == content(i, 131_072));
            started.elapsed()
        })
        .collect();
    times.sort();
    set.faults.iter().for_each(|fault| fault.set(Fault::None));
    let median = times[times.len() / 2];
    assert!(median < delay / 2, "the median read took {median:.1?}, as long as the slow directories ({delay:?})");
    format!("two directories at {delay:?}: median read {median:.1?}, slowest {:.1?}", times[times.len() - 1])
}

/// m directories fail every read, then every write, then every sync, then are without room: no error, no wrong byte.
#[track_caller]
pub fn failing_directories() -> String {
    let mut set = faulty("failing", 2, &["cache=8M"]);
    // A full directory is not a lost one: with fewer than min_ack that have room, ENOSPC is the answer.
    let faults = [Fault::ReadErrors, Fault::WriteErrors, Fault::SyncErrors, Fault::AllErrors];
    for (number, fault) in (0u64..).zip(faults) {
        println!("{fault:?}");
        fs::write(set.volume.path("before"), content(number, 900_000)).expect("write");
        set.volume.remount();
        set.faults.iter().for_each(|dir| dir.set(fault));
        assert!(
            fs::read(set.volume.path("before")).expect("read") == content(number, 900_000),
            "{fault:?}: wrong bytes"
        );
        let path = set.volume.path(&format!("during-{number}"));
        fs::write(&path, content(number + 100, 600_000)).unwrap_or_else(|error| panic!("{fault:?}: write: {error}"));
        let synced = fs::File::open(&path).and_then(|file| file.sync_all());
        synced.unwrap_or_else(|error| panic!("{fault:?}: fsync with m failing directories: {error}"));
        set.faults.iter().for_each(|dir| dir.set(Fault::None));
        set.volume.remount();
        heal(&set.volume);
        assert!(fs::read(&path).expect("read") == content(number + 100, 600_000), "{fault:?}: wrong bytes");
    }
    let report = set.volume.check();
    assert_eq!(report["healthy"], true, "not healthy after all faults are gone and healed: {report:#}");
    "reads, writes, syncs, room failing in two directories: no error reaches anyone".into()
}

/// More directories fail than parity can make up for: the writer is told, nothing synced before is harmed, and when
/// the directories are well again the volume is, at the latest after mounting anew.
#[track_caller]
pub fn too_many_failing() -> String {
    let mut set = faulty("too-many", 4, &[]);
    let synced = content(1, 800_000);
    let mut file = fs::File::create(set.volume.path("synced")).expect("create");
    file.write_all(&synced).and_then(|()| file.sync_all()).expect("write");
    drop(file);
    set.faults.iter().for_each(|dir| dir.set(Fault::SyncErrors));
    let told = fs::File::create(set.volume.path("unsynced")).and_then(|mut file| {
        file.write_all(&content(2, 800_000))?;
        file.sync_all()
    });
    let error = told.expect_err("fsync succeeded though four of six directories cannot sync");
    assert!(matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS)), "{error}");
    let status = set.volume.status();
    assert_ne!(status["health"], "healthy", "{status:#}");
    assert!(fs::read(set.volume.path("synced")).expect("read") == synced, "what was synced before is wrong");
    set.faults.iter().for_each(|dir| dir.set(Fault::None));
    let _ = crate::run(crate::volume::brine_command(&["umount"]).arg(set.volume.mnt()));
    if crate::environment::is_mounted(set.volume.mnt()) || set.volume.daemon().is_some_and(|daemon| daemon.alive()) {
        set.volume.kill_daemon();
        set.volume.detach();
    } else {
        set.volume.forget_daemon();
    }
    set.volume.mount();
    assert!(fs::read(set.volume.path("synced")).expect("read") == synced, "what was synced before is wrong");
    fs::write(set.volume.path("after"), content(3, 800_000)).expect("write when all is well again");
    fs::File::open(set.volume.path("after")).and_then(|file| file.sync_all()).expect("fsync when all is well again");
    heal(&set.volume);
    set.volume.expect_clean();
    "fsync says so; what was synced before is right; all is well after mounting anew".into()
}

/// A directory fails while it is healed and recovers: healing ends without mounting anew.
#[track_caller]
pub fn failing_while_healing() -> String {
    let mut set = faulty("mid-heal", 1, &[]);
    let expected = fill(&set.volume, 6);
    set.volume.umount();
    let mut random = Random::new(seed("failing while healing"));
    flip_bits(set.faults[0].below(), 4096, &mut random);
    set.volume.mount();
    set.faults[0].set(Fault::WriteErrors);
    let mut command = crate::volume::brine_command(&["heal"]);
    let finished = crate::command::run_for(command.arg(set.volume.mnt()), Duration::from_secs(90));
    assert!(!finished.success(), "healing onto a directory that cannot be written is said to have worked: {finished}");
    finished.expect_refusal();
    set.faults[0].set(Fault::None);
    let healed = wait_until(Duration::from_secs(60), || {
        let mut command = crate::volume::brine_command(&["heal"]);
        let finished = crate::command::run_for(command.arg(set.volume.mnt()), Duration::from_secs(90));
        finished.success() && set.volume.check()["healthy"] == true
    });
    assert!(healed, "not healed 60 s after the directory recovered: {:#}", set.volume.check());
    verify(&set.volume, &expected, "healed after a failure");
    "fails with a message, then ends well without mounting anew".into()
}

/// Healing is killed in the middle and goes on after mounting again.
#[track_caller]
pub fn killed_while_healing(mebibytes: u64) -> String {
    let mut volume = Builder::new("kill-heal").mount();
    let expected = fill(&volume, mebibytes);
    volume.umount();
    let mut random = Random::new(seed("killed while healing"));
    for i in [1, 2] {
        flip_bits(volume.dir(i), 4096, &mut random);
    }
    for millis in [20, 150] {
        volume.mount();
        let daemon = volume.daemon().expect("it is mounted").clone();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(millis));
                daemon.kill();
            });
            let mut command = crate::volume::brine_command(&["heal"]);
            let _ = crate::command::run_for(command.arg(volume.mnt()), Duration::from_secs(60));
        });
        volume.kill_daemon();
        volume.detach();
    }
    volume.mount();
    heal(&volume);
    volume.expect_clean();
    for i in [3, 4] {
        fs::remove_dir_all(volume.dir(i)).expect("remove a backing directory");
    }
    volume.remount();
    verify(&volume, &expected, "healed after two kills, then two other directories lost");
    "killed twice while healing, then healed, then two others lost".into()
}
