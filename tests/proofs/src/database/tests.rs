use rusqlite::Connection;

use super::*;

fn scratch(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("brine-proofs-database-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn rows(dir: &Path) -> i64 {
    let conn = Connection::open(dir.join("meta.db")).unwrap();
    let sound: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    match tables {
        0 => 0,
        _ => conn.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap(),
    }
}

/// SQLite's own promise, under this model of the medium: what was committed before a checkpoint that synced is there,
/// in order, whatever the power cut left of the rest. If this fails, the model is wrong, not SQLite.
#[test]
fn a_power_cut_leaves_a_sound_database_with_what_was_synced() {
    let dir = scratch("cut");
    let journal = Journal::new();
    let watch = sys::watch(&dir, journal.clone());
    {
        let conn = Connection::open(dir.join("meta.db")).unwrap();
        conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0").unwrap();
        conn.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, bytes BLOB)").unwrap();
        for n in 0..60 {
            conn.execute("INSERT INTO t VALUES (?1, randomblob(900))", [n]).unwrap();
            if n == 20 || n == 40 {
                conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
            }
            journal.note(Event::Begun(n as usize));
        }
    }
    drop(watch);
    let events = journal.close();
    assert!(events.len() > 200, "SQLite's writes were not seen: {} events", events.len());
    let random = Random::new(7);
    let mut files = Files::default();
    let (mut begun, mut synced, mut lost) = (0, 0, 0);
    for (n, event) in events.iter().enumerate() {
        match event {
            Event::Database(call) => files.apply(call),
            Event::Begun(n) => {
                begun = *n as i64 + 1;
                synced = [0, 21, 41][usize::from(begun > 21) + usize::from(begun > 41)];
            }
            _ => {}
        }
        if begun > 0 && n % 7 == 0 {
            let left = scratch("left");
            put_files(&left, &files.cut(&random));
            let found = rows(&left);
            assert!((synced..=begun + 1).contains(&found), "{found} rows of {begun}, {synced} synced");
            lost += i64::from(found < begun);
        }
    }
    assert!(lost > 0, "nothing was ever lost: the cut cuts nothing");
    let whole = scratch("left");
    put_files(&whole, &files.whole());
    assert_eq!(rows(&whole), 60);
    let _ = std::fs::remove_dir_all(dir);
    let _ = std::fs::remove_dir_all(whole);
}
