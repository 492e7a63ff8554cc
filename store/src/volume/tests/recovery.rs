//! What is trusted, what is dropped and what is refused when a volume is opened again.

use super::*;
use crate::meta::SCHEMA_VERSION;
use crate::volume::database::kept_aside;

fn digest(volume: &Volume) -> [u8; 32] {
    volume.meta().reader().unwrap().digest().unwrap()
}

#[test]
fn the_uncertain_end_of_the_log_is_written_again_on_all_healthy_members() {
    let scratch = Scratch::new("again");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(60, 200_000));
    volume.commit(&NothingDirty).unwrap();
    assert_eq!(twice(&volume), 0);
    let open = volume.blocks().segments().open_tails()[0].0;
    // Killed; and one directory lost all it had not synced, which it had said it had.
    scratch.kill(volume);
    let file = format!("segments/{:02x}/{:016x}.seg", open.0 & 0xff, open.0);
    std::fs::OpenOptions::new().write(true).open(scratch.0.join("d0").join(file)).unwrap().set_len(4096).unwrap();
    let volume = scratch.open();
    assert_eq!(twice(&volume), 1, "the last record");
    let expected = digest(&volume);
    scratch.kill(volume);
    // Any two more, and the database.
    for name in ["d1", "d2", "state"] {
        std::fs::remove_dir_all(scratch.0.join(name)).unwrap();
    }
    let volume = scratch.open();
    assert_eq!(read(&volume, "file").unwrap(), noise(60, 200_000));
    assert_eq!(digest(&volume), expected);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_clean_end_is_not_written_again() {
    let scratch = Scratch::new("clean");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(61, 200_000));
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert_eq!(twice(&volume), 0);
    volume.close(&NothingDirty).unwrap();
}

/// Commit records that lie in two places.
fn twice(volume: &Volume) -> usize {
    let stripes = volume.blocks().stripes();
    let mut seen = std::collections::HashMap::new();
    for (segment, _) in volume.set.members()[3].list_segments().unwrap() {
        let info = stripes.segment_info(segment).unwrap();
        for (_, header) in stripes.records(segment, 0, &info) {
            let Some(commit) = header.commit else { continue };
            *seen.entry((commit.term, commit.generation, commit.part, header.stripe_tag)).or_insert(0) += 1;
        }
    }
    seen.values().filter(|count| **count > 1).count()
}

#[test]
fn directories_that_went_back_are_refused_until_that_is_accepted() {
    let scratch = Scratch::new("wentback");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "old", &noise(62, 90_000));
    volume.close(&NothingDirty).unwrap();
    save(&scratch, &SIX, "old");
    let volume = scratch.open();
    let old = volume.status().unwrap().generation;
    for n in 0..3 {
        write(&volume, &format!("new{n}"), &noise(63 + n, 90_000));
        volume.commit(&NothingDirty).unwrap();
    }
    let new = volume.status().unwrap().generation;
    volume.close(&NothingDirty).unwrap();
    restore(&scratch, &SIX, "old");
    let refused = scratch.try_open(&scratch.options()).unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, Error::Refused(_)), "{text}");
    assert!(text.contains(&format!("generation {new}")) && text.contains(&old.to_string()), "{text}");
    assert!(text.contains("brine mount -o accept_rollback"), "{text}");
    let volume = scratch.try_open(&OpenOptions { accept_rollback: true, ..scratch.options() }).unwrap();
    assert!(volume.warnings().iter().any(|note| note.contains("accepted by option")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "old").unwrap(), noise(62, 90_000));
    assert!(matches!(read(&volume, "new0"), Err(Error::NotFound)));
    write(&volume, "after", &noise(70, 5000));
    volume.close(&NothingDirty).unwrap();
    // It is told once; the volume is whole from then on.
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "after").unwrap(), noise(70, 5000));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_database_older_than_the_log_goes_back_to_is_rebuilt() {
    let scratch = Scratch::new("stale");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "first", &noise(64, 20_000));
    volume.close(&NothingDirty).unwrap();
    copy(&scratch.0.join("state"), &scratch.0.join("stale"));
    let volume = scratch.open();
    write(&volume, "second", &noise(65, 20_000));
    volume.commit(&NothingDirty).unwrap();
    let between = volume.blocks().segments().open_tails();
    volume.checkpoint().unwrap();
    volume.blocks().segments().close();
    write(&volume, "third", &noise(66, 20_000));
    volume.commit(&NothingDirty).unwrap();
    volume.close(&NothingDirty).unwrap();
    let expected = rebuild(&scratch.options()).unwrap().digest;
    // Space that the log before the checkpoint took was given back.
    for name in SIX {
        for (segment, _) in &between {
            let file = format!("segments/{:02x}/{:016x}.seg", segment.0 & 0xff, segment.0);
            // Its other records are needed: only its commit records go.
            wipe_commits(&scratch.0.join(name).join(file));
        }
    }
    copy(&scratch.0.join("stale"), &scratch.0.join("state"));
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|note| note.contains("rebuilt")), "{:?}", volume.warnings());
    assert!(volume.warnings().iter().any(|note| note.contains("kept as")), "{:?}", volume.warnings());
    assert_eq!(blake3::Hash::from_bytes(digest(&volume)).to_hex().as_str(), expected);
    volume.close(&NothingDirty).unwrap();
}

/// Zero every commit record of a segment file.
pub(super) fn wipe_commits(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let mut at = 4096;
    while at + 512 <= bytes.len() {
        let header = crate::shard::RecordHeader::decode(&bytes[at..]).map(|header| header.unauthenticated().clone());
        let Ok(header) = header else {
            at += 512;
            continue;
        };
        let len = header.record_len() as usize;
        let end = (at + len).min(bytes.len());
        if header.commit.is_some() {
            bytes[at..end].fill(0);
        }
        at += len;
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_log_with_a_gap_is_refused_and_says_where() {
    let scratch = Scratch::new("gap");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "one", &noise(67, 20_000));
    let first = volume.commit(&NothingDirty).unwrap();
    let (segment, lost_from) = volume.blocks().segments().open_tails()[0];
    write(&volume, "two", &noise(68, 20_000));
    volume.commit(&NothingDirty).unwrap();
    let (_, lost_to) = volume.blocks().segments().open_tails()[0];
    write(&volume, "three", &noise(69, 20_000));
    let last = volume.commit(&NothingDirty).unwrap();
    scratch.kill(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    for name in SIX {
        let path = scratch.0.join(name).join(format!("segments/{:02x}/{:016x}.seg", segment.0 & 0xff, segment.0));
        let mut bytes = std::fs::read(&path).unwrap();
        let (from, to) = (lost_from as usize, (lost_to as usize).min(bytes.len()));
        bytes[from..to].fill(0);
        std::fs::write(&path, bytes).unwrap();
    }
    let text = scratch.try_open(&scratch.options()).unwrap_err().to_string();
    assert!(text.contains("gap") && text.contains(&format!("generation {last} follows {first}")), "{text}");
    assert!(text.contains("brine mount -o accept_rollback"), "{text}");
    assert!(!scratch.0.join("state/meta.db").exists(), "nothing half made is left");
    let volume = scratch.try_open(&OpenOptions { accept_rollback: true, ..scratch.options() }).unwrap();
    assert_eq!(read(&volume, "one").unwrap(), noise(67, 20_000));
    assert!(matches!(read(&volume, "three"), Err(Error::NotFound)));
    write(&volume, "four", &noise(71, 20_000));
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "four").unwrap(), noise(71, 20_000));
    volume.close(&NothingDirty).unwrap();
}

fn side(scratch: &Scratch, dirs: [&str; 2], state: &str, name: &str, commits: u64) {
    let options = OpenOptions {
        sources: dirs.iter().map(|dir| scratch.0.join(dir)).collect(),
        state_dir: Some(scratch.0.join(state)),
        take_over: true,
        ..scratch.options()
    };
    let volume = scratch.try_open(&options).unwrap();
    for n in 0..commits {
        write(&volume, &format!("{name}{n}"), &noise(n, 3000));
        volume.commit(&NothingDirty).unwrap();
    }
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn two_histories_after_a_split_are_never_chosen_between_silently() {
    for (commits, terms_apart) in [(1, false), (4, true)] {
        let scratch = Scratch::new(&format!("split{commits}"));
        scratch.format(4, 1);
        let volume = scratch.open();
        write(&volume, "common", &noise(80, 40_000));
        volume.close(&NothingDirty).unwrap();
        let away = |dirs: &[&str], there: bool| {
            for dir in dirs {
                let (from, to) = (scratch.0.join(dir), scratch.0.join(format!("{dir}-away")));
                let (from, to) = if there { (to, from) } else { (from, to) };
                std::fs::rename(from, to).unwrap();
            }
        };
        away(&["d2", "d3"], false);
        side(&scratch, ["d0", "d1"], "state", "left", 3);
        away(&["d2", "d3"], true);
        away(&["d0", "d1"], false);
        if terms_apart {
            side(&scratch, ["d2", "d3"], "other", "none", 0);
        }
        side(&scratch, ["d2", "d3"], "other", "right", commits);
        away(&["d0", "d1"], true);
        for state in ["state", "other", "third"] {
            let options = OpenOptions { state_dir: Some(scratch.0.join(state)), ..scratch.options() };
            let text = scratch.try_open(&options).unwrap_err().to_string();
            assert!(text.contains("two writers went apart"), "{state}: {text}");
            assert!(
                text.contains("brine mount -o accept_rollback") && text.contains("brine mount -o take_over"),
                "{text}"
            );
            assert!(text.contains("/state,") && text.contains("/other,"), "{text}");
        }
        let options = || OpenOptions { state_dir: Some(scratch.0.join("state")), ..scratch.options() };
        let volume = scratch.try_open(&OpenOptions { accept_rollback: true, ..options() }).unwrap();
        assert!(volume.warnings().iter().any(|note| note.contains("accepted by option")));
        let (kept, given_up) = if terms_apart { ("right", "left") } else { ("left", "right") };
        assert_eq!(read(&volume, &format!("{kept}0")).unwrap(), noise(0, 3000));
        assert!(matches!(read(&volume, &format!("{given_up}0")), Err(Error::NotFound)));
        assert_eq!(read(&volume, "common").unwrap(), noise(80, 40_000));
        write(&volume, "joined", &noise(81, 3000));
        volume.close(&NothingDirty).unwrap();
        for state in ["state", "other", "fourth"] {
            let options = OpenOptions { state_dir: Some(scratch.0.join(state)), ..scratch.options() };
            let volume = scratch.try_open(&options).unwrap();
            assert_eq!(read(&volume, "joined").unwrap(), noise(81, 3000), "{state}: {:?}", volume.warnings());
            assert!(matches!(read(&volume, &format!("{given_up}0")), Err(Error::NotFound)));
            volume.close(&NothingDirty).unwrap();
        }
    }
}

#[test]
fn rebuilding_keeps_the_former_database_and_gives_the_same_rows() {
    let scratch = Scratch::new("rebuildcmd");
    scratch.format(6, 1);
    let volume = scratch.open();
    for n in 0..5 {
        write(&volume, &format!("f{n}"), &noise(90 + n, 20_000));
        volume.commit(&NothingDirty).unwrap();
        if n == 2 {
            volume.checkpoint().unwrap();
        }
    }
    assert!(matches!(rebuild(&scratch.options()), Err(Error::InUse(_))));
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.try_open(&OpenOptions { read_only: true, ..scratch.options() }).unwrap();
    let expected = digest(&volume);
    volume.close(&NothingDirty).unwrap();
    for round in 1..3 {
        let made = rebuild(&scratch.options()).unwrap();
        assert_eq!(made.digest, blake3::Hash::from_bytes(expected).to_hex().as_str());
        assert!(made.tables.is_empty(), "{:?}", made.tables);
        assert!(made.aside.iter().filter(|path| !path.ends_with("-wal") && !path.ends_with("-shm")).count() >= round);
        assert!(made.replayed >= 2 && made.inodes == 6, "{made:?}");
    }
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    assert_eq!((digest(&volume), read(&volume, "f4").unwrap()), (expected, noise(94, 20_000)));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn the_first_record_after_a_checkpoint_tells_what_the_rows_were() {
    let scratch = Scratch::new("rowsdigest");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "one", &noise(95, 3000));
    volume.commit(&NothingDirty).unwrap();
    volume.checkpoint().unwrap();
    let then = digest(&volume);
    let generation = volume.meta().committed();
    write(&volume, "two", &noise(96, 3000));
    volume.commit(&NothingDirty).unwrap();
    write(&volume, "three", &noise(97, 3000));
    volume.commit(&NothingDirty).unwrap();
    let stripes = volume.blocks().stripes();
    let mut told = Vec::new();
    for (segment, _) in volume.set.members()[0].list_segments().unwrap() {
        let info = stripes.segment_info(segment).unwrap();
        for (place, header) in stripes.records(segment, 0, &info) {
            let Some(commit) = header.commit else { continue };
            let (_, mut message) = stripes.message(place, &info).unwrap();
            let log_key = volume.keys.log_key();
            let (record, _) = crate::record::CommitRecord::open(log_key, volume.id, &commit, &mut message).unwrap();
            told.extend(record.rows_digest.map(|rows| (record.generation, rows)));
        }
    }
    let (at, rows) = told.last().unwrap();
    assert_eq!((at.0, rows.generation, rows.digest), (generation.0 + 1, generation, then));
    assert!(told.iter().all(|(at, _)| at.0 <= generation.0 + 1), "once a checkpoint");
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_checkpoint_is_due_by_what_came_since_the_last_also_when_that_is_of_another_mount() {
    let scratch = Scratch::new("checkpoint-due");
    scratch.format(3, 1);
    let mounted = |number: u32, checkpoint: bool| {
        let volume = scratch.open();
        write(&volume, &number.to_string(), &noise(98 + u64::from(number), 9000));
        volume.commit(&NothingDirty).unwrap();
        if checkpoint {
            volume.checkpoint().unwrap();
        }
        volume.checkpoint_if_due().unwrap();
        let pointer = volume.superblock.lock().checkpoints[0].generation;
        let segments = volume.blocks().segments().next_id();
        volume.close(&NothingDirty).unwrap();
        (pointer, segments.0)
    };
    let (mut number, mut segments) = (0, 0);
    while segments < 20 {
        (_, segments) = mounted(number, false);
        number += 1;
    }
    let (pointer, then) = mounted(number, true);
    let (next, now) = mounted(number + 1, false);
    assert!(now > then && now - then < 8, "{then} and {now} segments");
    assert_eq!(next, pointer, "a mount alone is no reason");
    let mut last = (next, now);
    while last.0 == pointer {
        number += 1;
        last = mounted(number + 1, false);
        assert!(last.1 - then < 16, "many segments are");
    }
}

#[test]
fn a_checkpoint_is_due_when_the_log_costs_too_much() {
    let scratch = Scratch::new("checkpoint-cost");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(111, 9000));
    volume.commit(&NothingDirty).unwrap();
    volume.checkpoint().unwrap();
    let pointer = || volume.superblock.lock().checkpoints[0].generation;
    let first = pointer();
    volume.checkpoint_if_due().unwrap();
    let mut number = 0;
    while volume.log.cost_since_checkpoint() < 16 << 20 {
        let ino = volume.create(ROOT_INO, format!("n{number}").as_bytes(), &new_file()).unwrap().ino;
        volume.set_xattr(ino, b"user.a", &noise(number, 60_000), false, false).unwrap();
        volume.commit(&NothingDirty).unwrap();
        assert_eq!(pointer(), first);
        number += 1;
    }
    volume.checkpoint_if_due().unwrap();
    assert_eq!(pointer(), first, "not while so much is committed");
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert!(volume.superblock.lock().checkpoints[0].generation > first, "but then");
    volume.close(&NothingDirty).unwrap();
}

/// Three commits, then killed: where the second record lies, and the numbers of the generations.
fn three_commits(scratch: &Scratch) -> (crate::ids::SegmentId, [usize; 4], [Generation; 3]) {
    scratch.format(6, 1);
    let volume = scratch.open();
    let mut ends = [0; 4];
    let mut generations = [Generation(0); 3];
    volume.create(ROOT_INO, b"first", &new_file()).unwrap();
    volume.commit(&NothingDirty).unwrap();
    let (segment, tail) = volume.blocks().segments().open_tails()[0];
    ends[0] = tail as usize;
    for n in 0..3 {
        // No data: the records lie one after the other, equally long.
        volume.create(ROOT_INO, format!("file{n}").as_bytes(), &new_file()).unwrap();
        generations[n] = volume.commit(&NothingDirty).unwrap();
        ends[n + 1] = volume.blocks().segments().open_tails()[0].1 as usize;
    }
    assert_eq!(volume.blocks().segments().open_tails()[0].0, segment);
    scratch.kill(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    (segment, ends, generations)
}

fn edit(scratch: &Scratch, segment: crate::ids::SegmentId, change: impl Fn(usize, &mut Vec<u8>)) {
    for (n, name) in SIX.iter().enumerate() {
        let path = scratch.0.join(name).join(format!("segments/{:02x}/{:016x}.seg", segment.0 & 0xff, segment.0));
        let mut bytes = std::fs::read(&path).unwrap();
        change(n, &mut bytes);
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn damaged_reordered_replayed_and_foreign_records_are_noticed() {
    type Edit = Box<dyn Fn(usize, &mut Vec<u8>, [usize; 4])>;
    let foreign = {
        let scratch = Scratch::new("foreign");
        let (segment, ends, _) = three_commits(&scratch);
        let file = format!("segments/{:02x}/{:016x}.seg", segment.0 & 0xff, segment.0);
        let files = SIX.iter().map(|name| std::fs::read(scratch.0.join(name).join(&file)).unwrap());
        let records = files.filter_map(|bytes| bytes.get(ends[1]..ends[2]).map(<[u8]>::to_vec));
        records.into_iter().find(|record| record.starts_with(b"brineREC")).unwrap()
    };
    let cases: [(&str, Edit); 6] = [
        (
            "flipped",
            Box::new(|_, bytes, at| {
                let (from, to) = (at[1], at[2].min(bytes.len()));
                (from..to).step_by(100).for_each(|byte| bytes[byte] ^= 0x10);
            }),
        ),
        (
            "cut",
            Box::new(|_, bytes, at| {
                let to = at[2].min(bytes.len());
                bytes[(at[1] + 300).min(to)..to].fill(0);
            }),
        ),
        (
            "swapped",
            Box::new(|_, bytes, at| {
                bytes.resize(bytes.len().max(at[2]), 0);
                let len = (at[1] - at[0]).min(at[2] - at[1]);
                let first = bytes[at[0]..at[0] + len].to_vec();
                bytes.copy_within(at[1]..at[1] + len, at[0]);
                bytes[at[1]..at[1] + len].copy_from_slice(&first);
            }),
        ),
        (
            "replayed",
            Box::new(|_, bytes, at| {
                bytes.resize(bytes.len().max(at[3]), 0);
                bytes.copy_within(at[0]..at[1], at[1]);
            }),
        ),
        (
            "foreign",
            Box::new(move |_, bytes, at| {
                bytes.resize(bytes.len().max(at[3]), 0);
                let len = foreign.len().min(at[2] - at[1]);
                bytes[at[1]..at[1] + len].copy_from_slice(&foreign[..len]);
            }),
        ),
        (
            "lost in too many",
            Box::new(|n, bytes, at| {
                if n < 5 {
                    let to = at[2].min(bytes.len());
                    bytes[at[1].min(to)..to].fill(0);
                }
            }),
        ),
    ];
    for (name, change) in cases {
        let scratch = Scratch::new("badrecord");
        let (segment, ends, generations) = three_commits(&scratch);
        edit(&scratch, segment, |n, bytes| change(n, bytes, ends));
        match scratch.try_open(&scratch.options()) {
            Err(refused) => {
                let text = refused.to_string();
                assert!(matches!(refused, Error::Refused(_)), "{name}: {text}");
                let named = generations.iter().filter(|generation| text.contains(&generation.to_string())).count();
                assert!(named >= 1 && text.contains("brine mount -o accept_rollback"), "{name}: {text}");
                let volume = scratch.try_open(&OpenOptions { accept_rollback: true, ..scratch.options() }).unwrap();
                assert!(volume.lookup(ROOT_INO, b"first").is_ok(), "{name}: what came before is kept");
                assert!(matches!(volume.lookup(ROOT_INO, b"file2"), Err(Error::NotFound)), "{name}");
                volume.close(&NothingDirty).unwrap();
            }
            Ok(volume) => {
                // A whole copy may lie in the one file that was left alone.
                assert_eq!(name, "lost in too many");
                assert!(volume.lookup(ROOT_INO, b"file2").is_ok());
                volume.close(&NothingDirty).unwrap();
            }
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_told_and_the_one_before_is_used() {
    let scratch = Scratch::new("badimage");
    scratch.format(6, 1);
    let volume = scratch.open();
    let mut places = Vec::new();
    for n in 0..2 {
        write(&volume, &format!("f{n}"), &noise(100 + n, 20_000));
        volume.commit(&NothingDirty).unwrap();
        volume.checkpoint().unwrap();
        places.push(volume.superblock.lock().checkpoints[0].location);
    }
    write(&volume, "f2", &noise(102, 20_000));
    volume.commit(&NothingDirty).unwrap();
    let expected = digest(&volume);
    scratch.kill(volume);
    let damage = |location: crate::shard::Location| {
        edit(&scratch, location.segment, |_, bytes| bytes[location.stripe as usize + 300] ^= 1);
    };
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    damage(places[1]);
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|note| note.contains("cannot be used")), "{:?}", volume.warnings());
    assert_eq!(digest(&volume), expected);
    scratch.kill(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    damage(places[0]);
    let text = scratch.try_open(&scratch.options()).unwrap_err().to_string();
    assert!(text.contains("no checkpoint can be read"), "{text}");
    assert!(!scratch.0.join("state/meta.db").exists());
}

/// Versions up to 2 authenticated their pages in another way, so that to SQLCipher they look damaged.
#[test]
fn a_database_of_a_former_version_is_rebuilt_and_one_of_a_later_is_refused() {
    let scratch = Scratch::new("former-database");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(27, 70_000));
    let key = *volume.keys.database_key();
    let last = volume.committed().0;
    volume.close(&NothingDirty).unwrap();
    let path = scratch.0.join("state/meta.db");
    let replace_by_version = |version, generation| {
        for name in ["state/meta.db", "state/meta.db-wal", "state/meta.db-shm"] {
            let _ = std::fs::remove_file(scratch.0.join(name));
        }
        crate::meta::make_database_of_version(&path, &key, version, generation).unwrap();
        std::fs::read(&path).unwrap()
    };
    let mut kept = Vec::new();
    for version in [2, SCHEMA_VERSION - 1] {
        // Of its last generation it cannot tell whether it was acknowledged.
        kept.push(replace_by_version(version, last + 1));
        let volume = scratch.open();
        let named = |note: &String| note.contains(&format!("it is of version {version}")) && note.contains("kept as");
        assert!(volume.warnings().iter().any(named), "{:?}", volume.warnings());
        assert_eq!(read(&volume, "file").unwrap(), noise(27, 70_000));
        volume.close(&NothingDirty).unwrap();
        let aside = kept_aside(&scratch.0.join("state"));
        assert!(aside.iter().any(|aside| std::fs::read(aside).unwrap() == *kept.last().unwrap()), "{aside:?}");
    }
    let later = replace_by_version(SCHEMA_VERSION + 1, last);
    let error = scratch.try_open(&scratch.options()).map(drop).unwrap_err();
    let expected = |found, known| found == SCHEMA_VERSION + 1 && known == SCHEMA_VERSION;
    assert!(matches!(error, Error::DatabaseVersion { found, known, .. } if expected(found, known)), "{error}");
    assert!(error.to_string().contains("brine rebuild SOURCE"), "{error}");
    assert!(std::fs::read(&path).unwrap() == later, "it is left as it is");
    let rebuilt = rebuild(&scratch.options()).unwrap();
    assert!(rebuilt.aside.iter().any(|aside| std::fs::read(aside).unwrap() == later), "{:?}", rebuilt.aside);
    let volume = scratch.open();
    assert_eq!(read(&volume, "file").unwrap(), noise(27, 70_000));
    volume.close(&NothingDirty).unwrap();
    // What it holds is not in the directories: they went back.
    let ahead = replace_by_version(SCHEMA_VERSION - 1, last + 1000);
    for refused in [scratch.try_open(&scratch.options()).map(drop), rebuild(&scratch.options()).map(drop)] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(&(last + 999).to_string()) && text.contains("accept"), "{text}");
        assert!(std::fs::read(&path).unwrap() == ahead, "it is back in its place");
    }
    scratch
        .try_open(&OpenOptions { accept_rollback: true, ..scratch.options() })
        .unwrap()
        .close(&NothingDirty)
        .unwrap();
    // Nor is it gone if it cannot be rebuilt.
    let former = replace_by_version(SCHEMA_VERSION - 1, last);
    for number in 0..4 {
        let _ = std::fs::remove_dir_all(scratch.0.join(format!("d{number}/segments")));
    }
    scratch.try_open(&scratch.options()).map(drop).unwrap_err();
    assert!(std::fs::read(&path).unwrap() == former, "it is back in its place");
}
