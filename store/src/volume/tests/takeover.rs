//! One writer at a time: a volume taken from a writer that is alive.

use super::*;

fn standby(scratch: &Scratch) -> OpenOptions {
    OpenOptions { state_dir: Some(scratch.0.join("standby")), take_over: true, ..scratch.options() }
}

#[test]
fn the_former_writer_is_fenced_and_says_who_took_over() {
    let scratch = Scratch::new("takeover");
    scratch.format(6, 1);
    let content = noise(40, 400_000);
    let former = scratch.open();
    write(&former, "durable", &content);
    former.commit(&NothingDirty).unwrap();
    write(&former, "unsynced", &content[1..]);
    // Without being told to, nobody takes it from a process of this host.
    let refused = Volume::open(OpenOptions { take_over: false, ..standby(&scratch) }).unwrap_err();
    assert!(matches!(&refused, Error::InUse(text) if text.contains("-o take_over")), "{refused}");
    let refused = Volume::open(OpenOptions { state_dir: None, ..standby(&scratch) }).unwrap_err();
    assert!(matches!(&refused, Error::InUse(text) if text.contains("state directory")), "{refused}");
    assert!(former.commit(&NothingDirty).is_ok(), "who was refused fenced nobody");

    write(&former, "late", &content[2..]);
    let next = scratch.try_open(&standby(&scratch)).unwrap();
    assert_eq!(read(&next, "durable").unwrap(), content);
    assert_eq!(read(&next, "unsynced").unwrap(), &content[1..]);
    assert!(matches!(read(&next, "late"), Err(Error::NotFound)));

    let told = former.commit(&NothingDirty).unwrap_err();
    assert!(matches!(told, Error::ReadOnly(_)), "{told}");
    let standby_dir = std::fs::canonicalize(scratch.0.join("standby")).unwrap();
    let status = former.status().unwrap();
    let other = status.taken_over.unwrap();
    assert_eq!((other.term, other.state_dir), (status.term + 1, standby_dir.display().to_string()));
    assert_eq!((status.health, next.status().unwrap().term), ("read-only", status.term + 1));
    assert!(status.health_reason.iter().any(|reason| reason.contains("took the volume over")));
    assert!(matches!(former.create(ROOT_INO, b"more", &new_file()), Err(Error::ReadOnly(_))));
    assert_eq!(read(&former, "durable").unwrap(), content, "it may still be read");
    assert!(former.checkpoint().is_err());
    assert!(former.close(&NothingDirty).is_err(), "what was not durable is lost, and said so");

    write(&next, "next", &content[3..]);
    next.commit(&NothingDirty).unwrap();
    assert!(next.status().unwrap().taken_over.is_none());
    next.close(&NothingDirty).unwrap();
    let again = scratch.try_open(&OpenOptions { take_over: false, ..standby(&scratch) }).unwrap();
    assert_eq!(read(&again, "next").unwrap(), &content[3..]);
    assert!(check(&again, &CheckOptions::default(), &Silent).unwrap().healthy);
    again.close(&NothingDirty).unwrap();
}

#[test]
fn what_a_fenced_writer_made_durable_too_late_is_off_the_log() {
    let scratch = Scratch::new("toolate");
    scratch.format(4, 1);
    let former = scratch.open();
    write(&former, "before", &noise(41, 30_000));
    former.commit(&NothingDirty).unwrap();
    let next = scratch.try_open(&standby(&scratch)).unwrap();
    // Its record is appended and synced in full, and not answered.
    write(&former, "former", &noise(42, 30_000));
    assert!(former.commit(&NothingDirty).is_err());
    write(&next, "next", &noise(43, 30_000));
    next.commit(&NothingDirty).unwrap();
    scratch.kill(former);
    scratch.kill(next);
    std::fs::remove_dir_all(scratch.0.join("standby")).unwrap();
    let rebuilt = scratch.try_open(&standby(&scratch)).unwrap();
    assert!(rebuilt.warnings().iter().any(|note| note.contains("off the log")), "{:?}", rebuilt.warnings());
    assert_eq!(read(&rebuilt, "next").unwrap(), noise(43, 30_000));
    assert_eq!(read(&rebuilt, "before").unwrap(), noise(41, 30_000));
    assert!(matches!(read(&rebuilt, "former"), Err(Error::NotFound)));
    rebuilt.close(&NothingDirty).unwrap();
    // The former writer's own database is of another history.
    let back =
        scratch.try_open(&OpenOptions { state_dir: Some(scratch.0.join("state")), ..scratch.options() }).unwrap();
    assert_eq!(read(&back, "next").unwrap(), noise(43, 30_000));
    back.close(&NothingDirty).unwrap();
}

#[test]
fn two_writers_with_half_the_directories_each_are_kept_apart() {
    let scratch = Scratch::new("halves");
    scratch.format(4, 1);
    let hide = |names: &[&str]| {
        names.iter().for_each(|n| std::fs::rename(scratch.0.join(n), scratch.0.join(format!("{n}-away"))).unwrap())
    };
    hide(&["d0", "d1"]);
    let sources = vec![scratch.0.join("d2"), scratch.0.join("d3")];
    let other = || OpenOptions { take_over: false, sources: sources.clone(), ..standby(&scratch) };
    let refused = scratch.try_open(&other()).unwrap_err().to_string();
    assert!(refused.contains("2 of 4 backing directories are missing"), "{refused}");
    assert!(refused.contains("brine mount -o take_over"), "{refused}");
    // The last writer goes on by itself, another one when told to.
    let own = scratch.try_open(&OpenOptions { sources: sources.clone(), ..scratch.options() }).unwrap();
    own.close(&NothingDirty).unwrap();
    let told = scratch.try_open(&OpenOptions { take_over: true, ..other() }).unwrap();
    told.close(&NothingDirty).unwrap();
    let own = Volume::open(OpenOptions {
        sources: sources.clone(),
        state_dir: Some(scratch.0.join("state")),
        ..scratch.options()
    });
    assert!(own.unwrap_err().to_string().contains("standby"), "it is not the last any more");
}
