//! A metadata database that is gone, damaged, behind the log, ahead of it or of another history.

use super::*;

#[test]
fn the_database_is_rebuilt_from_the_directories_alone() {
    let scratch = Scratch::new("rebuild");
    scratch.format(6, 1);
    let content = noise(20, 900_000);
    let volume = scratch.open();
    write(&volume, "before", &content);
    volume.commit(&NothingDirty).unwrap();
    volume.checkpoint().unwrap();
    write(&volume, "after", &content[5..]);
    volume.unlink(ROOT_INO, b"before").unwrap();
    volume.commit(&NothingDirty).unwrap();
    volume.create(ROOT_INO, b"unsynced", &new_file()).unwrap();
    // The daemon dies: nothing is closed.
    let digest = volume.meta().reader().unwrap().digest().unwrap();
    drop(volume);
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    // And m directories with it.
    std::fs::remove_dir_all(scratch.0.join("d4")).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d1")).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("rebuilt")), "{:?}", volume.warnings());
    assert_eq!(volume.meta().reader().unwrap().digest().unwrap(), digest);
    assert_eq!(read(&volume, "after").unwrap(), &content[5..]);
    assert!(matches!(read(&volume, "before"), Err(Error::NotFound)));
    write(&volume, "more", &content[9..]);
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "more").unwrap(), &content[9..]);
    assert!(check(&volume, &CheckOptions::default(), &Silent).unwrap().tables.is_empty());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn an_older_copy_of_the_database_is_brought_up_to_the_log() {
    let scratch = Scratch::new("older");
    scratch.format(6, 1);
    let content = noise(21, 300_000);
    let volume = scratch.open();
    write(&volume, "first", &content);
    volume.close(&NothingDirty).unwrap();
    let copy = scratch.0.join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(scratch.0.join("state/meta.db"), copy.join("meta.db")).unwrap();
    let volume = scratch.open();
    write(&volume, "second", &content[1..]);
    volume.close(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    std::fs::rename(&copy, scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    assert_eq!(read(&volume, "second").unwrap(), &content[1..]);
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_database_of_another_history_is_set_aside_and_rebuilt() {
    let scratch = Scratch::new("diverged");
    scratch.format(6, 1);
    let volume = scratch.open();
    volume.close(&NothingDirty).unwrap();
    save(&scratch, &SIX, "old");
    let volume = scratch.open();
    write(&volume, "one", &noise(22, 50_000));
    volume.close(&NothingDirty).unwrap();
    // The directories go back to their copies and take another way; the database stays.
    restore(&scratch, &SIX, "old");
    save(&scratch, &["state"], "one");
    std::fs::remove_dir_all(scratch.0.join("state")).unwrap();
    let volume = scratch.open();
    write(&volume, "two", &noise(23, 50_000));
    volume.close(&NothingDirty).unwrap();
    restore(&scratch, &["state"], "one");
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("not on the commit log")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "two").unwrap(), noise(23, 50_000));
    assert!(read(&volume, "one").is_err());
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_damaged_database_is_set_aside_and_rebuilt() {
    let scratch = Scratch::new("corrupt");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(24, 70_000));
    volume.close(&NothingDirty).unwrap();
    let path = scratch.0.join("state/meta.db");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("aside")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "file").unwrap(), noise(24, 70_000));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn a_database_that_a_power_cut_left_without_tables_is_made_anew() {
    let scratch = Scratch::new("blank");
    scratch.format(3, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(25, 70_000));
    volume.close(&NothingDirty).unwrap();
    for name in ["state/meta.db-wal", "state/meta.db-shm"] {
        let _ = std::fs::remove_file(scratch.0.join(name));
    }
    std::fs::write(scratch.0.join("state/meta.db"), b"").unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("aside")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "file").unwrap(), noise(25, 70_000));
    volume.close(&NothingDirty).unwrap();
}

/// Six directories and a copy of them; `more` generations are committed after the copy, then the daemon dies and the
/// directories are found as they were copied: as a power cut leaves them that keeps the database and loses the log's end.
fn database_ahead_by(name: &str, more: usize) -> Scratch {
    let scratch = Scratch::new(name);
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "acknowledged", &noise(30, 50_000));
    volume.commit(&NothingDirty).unwrap();
    save(&scratch, &SIX, "old");
    for n in 0..more {
        write(&volume, &format!("later{n}"), &noise(31 + n as u64, 50_000));
        volume.commit(&NothingDirty).unwrap();
    }
    drop(volume);
    restore(&scratch, &SIX, "old");
    scratch
}

#[test]
fn rows_of_a_generation_that_was_not_synced_are_dropped() {
    let scratch = database_ahead_by("ahead", 1);
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|w| w.contains("not on the commit log")), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "acknowledged").unwrap(), noise(30, 50_000));
    assert!(matches!(read(&volume, "later0"), Err(Error::NotFound)));
    write(&volume, "more", &noise(40, 50_000));
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "more").unwrap(), noise(40, 50_000));
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn directories_older_than_what_the_database_knows_durable_are_refused() {
    let scratch = database_ahead_by("rolled-back", 2);
    let error = Volume::open(scratch.options()).unwrap_err().to_string();
    assert!(error.contains("generation"), "{error}");
}

/// A rebuild that ends while it does `phase`, as if it were killed there.
fn rebuild_killed_at(scratch: &Scratch, phase: &'static str) {
    let report = move |what: &str, _: u64, _: u64| assert!(what != phase, "killed");
    let options = OpenOptions { report: Some(ReportFn(Box::new(report))), ..scratch.options() };
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rebuild(&options)));
    assert!(killed.is_err(), "it never came to {phase:?}");
}

fn files_of(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    files
}

#[test]
fn a_rebuild_that_is_killed_leaves_the_database_as_it_was() {
    let scratch = Scratch::new("killed");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(26, 70_000));
    volume.close(&NothingDirty).unwrap();
    let state = scratch.0.join("state");
    let (files, before) = (files_of(&state), std::fs::read(state.join("meta.db")).unwrap());
    for phase in ["reading the checkpoint", "verifying the rows"] {
        rebuild_killed_at(&scratch, phase);
        assert_eq!(std::fs::read(state.join("meta.db")).unwrap(), before, "{phase}");
    }
    // What it left goes with the next mount.
    assert_ne!(files_of(&state), files);
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    assert_eq!(read(&volume, "file").unwrap(), noise(26, 70_000));
    volume.close(&NothingDirty).unwrap();
    assert_eq!(files_of(&state), files);
}

#[test]
fn a_killed_rebuild_forgets_no_database_that_is_ahead() {
    let scratch = database_ahead_by("killed-ahead", 2);
    let ahead = |outcome: Result<_>| match outcome {
        Err(Error::Refused(text)) => assert!(text.contains("ahead") || text.contains("went back"), "{text}"),
        other => panic!("{:?}", other.map(|_: Arc<Volume>| ())),
    };
    ahead(scratch.try_open(&scratch.options()));
    rebuild_killed_at(&scratch, "verifying the rows");
    ahead(scratch.try_open(&scratch.options()));
}

#[test]
fn what_users_have_beside_a_database_is_left_alone() {
    let scratch = Scratch::new("beside");
    scratch.format(6, 1);
    let beside = scratch.0.join("state/meta.db.new");
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(beside.join("letter"), b"mine").unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().iter().any(|warning| warning.contains("meta.db.new")), "{:?}", volume.warnings());
    volume.close(&NothingDirty).unwrap();
    let refused = rebuild(&scratch.options()).unwrap_err().to_string();
    assert!(refused.contains("meta.db.new"), "{refused}");
    assert_eq!(std::fs::read(beside.join("letter")).unwrap(), b"mine");
}

#[test]
fn a_database_that_cannot_be_opened_is_not_taken_for_damaged() {
    let scratch = Scratch::new("held");
    scratch.format(6, 1);
    let volume = scratch.open();
    write(&volume, "file", &noise(27, 70_000));
    volume.close(&NothingDirty).unwrap();
    let state = scratch.0.join("state");
    let (database, kept) = (state.join("meta.db"), scratch.0.join("kept"));
    // As for one of another user's: it cannot be opened, and is whole.
    std::fs::rename(&database, &kept).unwrap();
    std::fs::create_dir(&database).unwrap();
    let refused = scratch.try_open(&scratch.options()).map(drop).unwrap_err();
    assert!(refused.to_string().contains("meta.db"), "{refused}");
    std::fs::remove_dir(&database).unwrap();
    std::fs::rename(&kept, &database).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    volume.close(&NothingDirty).unwrap();
}
