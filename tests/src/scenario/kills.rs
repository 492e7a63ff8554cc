//! Kills of the daemon under a mixed load, by the hundred: small files, appends, saves by rename, databases, and files in
//! sequence that nobody syncs. After each kill the volume is mounted, checked in full, and compared with what was
//! acknowledged; one kill in three takes the state directory along, one in three as many directories as may be lost.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::crash::mount_after_kill;
use crate::command::run_for;
use crate::damage::copy_tree;
use crate::volume::{Daemon, brine_command};
use crate::{Builder, Random, TestVolume, content, program, run, seed};

/// Rounds after which a new volume is begun.
const ROUNDS_OF_A_VOLUME: u64 = 24;
const DIRECTORIES: usize = 6;

/// What was acknowledged.
#[derive(Default)]
struct Promises {
    /// Files replaced by rename or written in place: the stamp last synced.
    saved: Mutex<BTreeMap<String, u64>>,
    /// Files that were appended to: bytes synced.
    appended: Mutex<BTreeMap<String, u64>>,
    /// Databases: rows committed.
    rows: Mutex<BTreeMap<String, u64>>,
}

/// Content that says by itself whether it is whole.
fn stamped(stamp: u64, len: usize) -> Vec<u8> {
    let mut bytes = stamp.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(len as u64).to_le_bytes());
    bytes.extend_from_slice(&content(stamp, len));
    bytes
}

/// The stamp of whole stamped content.
fn stamp_of(bytes: &[u8]) -> Option<u64> {
    let stamp = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let len = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes.len() as u64 == 16 + len && bytes[16..] == content(stamp, len as usize)).then_some(stamp)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Saves: a temporary file, synced, renamed over, the directory synced.
fn save(dir: &Path, random: &mut Random, stamp: u64, promises: &Promises) -> io::Result<()> {
    let name = format!("saved-{}", random.below(6));
    let len = *random.choose(&[0, 100, 1500, 5000, 60_000, 140_000]) + random.below(50) as usize;
    let temp = dir.join("saved-tmp");
    let mut file = File::create(&temp)?;
    file.write_all(&stamped(stamp, len))?;
    file.sync_all()?;
    fs::rename(&temp, dir.join(&name))?;
    sync_dir(dir)?;
    promises.saved.lock().expect("promises").insert(name, stamp);
    Ok(())
}

/// Many small files, of which one in eight is synced with its directory.
fn small(dir: &Path, random: &mut Random, stamp: u64, promises: &Promises) -> io::Result<()> {
    let name = format!("small-{}", random.below(200));
    // From here until it is synced neither the old nor the new content is promised: it is truncated first.
    promises.saved.lock().expect("promises").remove(&name);
    let mut file = File::create(dir.join(&name))?;
    file.write_all(&stamped(stamp, random.below(3000) as usize))?;
    if random.one_in(8) {
        file.sync_all()?;
        sync_dir(dir)?;
        promises.saved.lock().expect("promises").insert(name, stamp);
    }
    Ok(())
}

/// The seed of an appended file's content: byte n of the file is always the same.
fn line_of(name: &str, number: u64) -> Vec<u8> {
    format!("{name} line {number:08} {:016x}\n", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

/// Appends lines, and syncs every third.
fn append(dir: &Path, random: &mut Random, promises: &Promises) -> io::Result<()> {
    let name = format!("log-{}", random.below(3));
    let mut file = OpenOptions::new().append(true).create(true).open(dir.join(&name))?;
    let line_len = line_of(&name, 0).len() as u64;
    let at = file.metadata()?.len();
    // A crash may have left part of a line: what was written is then cut back to whole lines.
    let whole = at / line_len * line_len;
    if whole != at {
        file.set_len(whole)?;
    }
    let mut end = whole;
    for _ in 0..1 + random.below(3) {
        let line = line_of(&name, end / line_len);
        file.write_all(&line)?;
        end += line_len;
    }
    if random.below(3) == 0 {
        file.sync_data()?;
        sync_dir(dir)?;
        promises.appended.lock().expect("promises").insert(name, end);
    }
    Ok(())
}

/// A sequence of files by one program that syncs nothing: a crash leaves a prefix of it.
fn sequence(dir: &Path, round: u64, number: &mut u64) -> io::Result<()> {
    fs::write(dir.join(format!("seq-{round}/{number:06}")), stamped(*number, 64 + *number as usize % 900))?;
    *number += 1;
    Ok(())
}

/// A database that commits a row at a time, in one journal mode or the other.
fn database(dir: &Path, name: &str, mode: &str, first: u64, promises: &Promises, stop: &AtomicBool) {
    let Ok(mut child) = sqlite(&dir.join(name)) else { return };
    let answer = talk(&mut child, name, mode, first, promises, stop);
    drop(child.stdin.take());
    // It ends with the daemon; whether it noticed in time does not matter.
    let _ = child.kill();
    let _ = child.wait();
    drop(answer);
}

fn sqlite(file: &Path) -> io::Result<Child> {
    let mut command = Command::new("sqlite3");
    command.arg("-bail").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
}

fn talk(
    child: &mut Child,
    name: &str,
    mode: &str,
    first: u64,
    promises: &Promises,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut to = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut from = BufReader::new(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
    writeln!(
        to,
        "PRAGMA journal_mode={mode};\nPRAGMA synchronous=FULL;\nCREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, b);"
    )?;
    let mut number = first;
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        writeln!(to, "INSERT OR REPLACE INTO t VALUES ({number}, randomblob(700));\nSELECT 'done {number}';")?;
        loop {
            line.clear();
            if from.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim() == format!("done {number}") {
                break;
            }
        }
        // Not in journal mode DELETE: there the commit is the removal of a file, and when the daemon dies before SQLite
        // opens the directory to sync it, SQLite takes that for success.
        promises.rows.lock().expect("promises").insert(name.to_owned(), number + 1);
        number += 1;
    }
    Ok(())
}

/// Writes of all kinds until the daemon dies, which it does after `after`.
fn load_and_kill(volume: &mut TestVolume, round: u64, random: &mut Random, promises: &Promises, after: Duration) {
    let (root, stop) = (volume.mnt().to_path_buf(), AtomicBool::new(false));
    let daemon: Daemon = volume.daemon().expect("it is mounted").clone();
    fs::create_dir_all(root.join(format!("seq-{round}"))).expect("make a directory");
    let rows = promises.rows.lock().expect("promises").clone();
    std::thread::scope(|scope| {
        for kind in 0..4 {
            let (root, stop) = (&root, &stop);
            let mut random = Random::new(random.next_u64());
            scope.spawn(move || {
                let mut stamp = (round + 1) << 24 | kind << 20;
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    stamp += 1;
                    let done = match kind {
                        0 => save(root, &mut random, stamp, promises),
                        1 => small(root, &mut random, stamp, promises),
                        2 => append(root, &mut random, promises),
                        _ => sequence(root, round, &mut number),
                    };
                    if done.is_err() {
                        return;
                    }
                }
            });
        }
        for (name, mode) in [("wal.db", "WAL"), ("truncate.db", "TRUNCATE")] {
            let first = rows.get(name).copied().unwrap_or(0);
            let (root, stop) = (&root, &stop);
            scope.spawn(move || database(root, name, mode, first, promises, stop));
        }
        std::thread::sleep(after);
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
        assert!(daemon.wait_gone(Duration::from_secs(20)), "the daemon survived SIGKILL");
    });
    volume.kill_daemon();
}

/// Everything that was acknowledged is there, and what was not is a prefix.
#[track_caller]
fn compare(root: &Path, round: u64, promises: &Promises, when: &str) {
    for (name, stamp) in &*promises.saved.lock().expect("promises") {
        let bytes = fs::read(root.join(name)).unwrap_or_else(|error| panic!("{when}: {name}, synced: {error}"));
        let found = stamp_of(&bytes);
        let right = found.is_some_and(|found| found >= *stamp);
        assert!(right, "{when}: {name} has {found:?} in {} bytes; {stamp} was synced", bytes.len());
    }
    for (name, end) in &*promises.appended.lock().expect("promises") {
        let bytes = fs::read(root.join(name)).unwrap_or_else(|error| panic!("{when}: {name}, synced: {error}"));
        assert!(bytes.len() as u64 >= *end, "{when}: {name} has {} bytes, {end} were synced", bytes.len());
        let len = line_of(name, 0).len();
        for (number, line) in bytes.chunks(len).enumerate() {
            let right = line_of(name, number as u64);
            assert_eq!(line, &right[..line.len()], "{when}: {name}, line {number} is not what was appended");
        }
    }
    for (name, rows) in &*promises.rows.lock().expect("promises") {
        let query = "PRAGMA integrity_check; SELECT count(*) FROM t;";
        let asked = run_for(Command::new("sqlite3").arg(root.join(name)).arg(query), Duration::from_secs(60));
        let answer: Vec<&str> = asked.stdout.lines().collect();
        let found = answer.last().and_then(|text| text.parse::<u64>().ok());
        let sound = answer.first() == Some(&"ok") && found.is_some_and(|found| found >= *rows);
        assert!(sound, "{when}: {name}: {rows} rows were committed: {asked}");
    }
    compare_sequence(&root.join(format!("seq-{round}")), when);
}

/// The files in sequence are there without a gap, and all but the last are whole.
#[track_caller]
fn compare_sequence(dir: &Path, when: &str) {
    let mut names: Vec<String> = fs::read_dir(dir)
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    for (number, name) in names.iter().enumerate() {
        assert_eq!(*name, format!("{number:06}"), "{when}: the sequence of files has a gap: no prefix is shown");
        let bytes = fs::read(dir.join(name)).expect("read a file of the sequence");
        let whole = stamp_of(&bytes) == Some(number as u64);
        let last = number + 1 == names.len();
        assert!(whole || last, "{when}: file {number} of {} is cut short though later ones are there", names.len());
    }
    let _ = fs::remove_dir_all(dir);
}

/// Nothing is lost, as `brine check` sees it; degraded blocks are, while directories are missing.
#[track_caller]
fn expect_no_loss(volume: &TestVolume, when: &str) {
    let report = volume.check();
    let lost = report["blocks_lost"].as_u64() != Some(0) || report["tables"].as_array().is_none_or(|t| !t.is_empty());
    assert!(!lost && report["complete"] == true, "{when}: check finds a loss: {report:#}");
}

/// Empty directories take the places of those that were lost, and are filled.
#[track_caller]
fn replace(volume: &TestVolume, lost: &[usize], when: &str) {
    for n in lost {
        fs::create_dir(volume.dir(*n)).expect("make an empty directory");
        let mut command = brine_command(&["replace"]);
        command.arg(volume.dir(*n)).arg(volume.dir(*n)).arg(volume.mnt()).args(volume.unlock_args());
        // It heals, too, and cannot heal everything before the last one is replaced: that has an exit code of its own.
        let finished = run(&mut command);
        assert!(finished.stdout.contains("has the place of"), "{when}: replace: {finished}");
    }
    let finished = run(brine_command(&["heal"]).arg(volume.mnt()).args(volume.unlock_args()));
    assert!(finished.success(), "{when}: heal: {finished}");
}

/// How many directories may be lost of a volume as a kill left it: all of parity, unless the machine was so slow that the
/// daemon had to do without one for a while. Looked at with a copy of the state directory, so that the mount that follows
/// has as much to do as without this.
#[track_caller]
pub(super) fn tolerated_losses(volume: &TestVolume) -> usize {
    let copy = volume.root().join("state-copy");
    let _ = fs::remove_dir_all(&copy);
    copy_tree(volume.state_dir(), &copy);
    let mut command = brine_command(&["status", "--json"]);
    command.arg(volume.dir(0)).args(volume.unlock_args()).arg("--state-dir").arg(&copy);
    let finished = run(&mut command);
    let status: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let Some(losses) = status["tolerated_losses"].as_u64() else { panic!("status of a killed volume: {finished}") };
    if losses < 2 {
        println!("only {losses} losses are tolerated: {}", status["behind"]);
    }
    losses as usize
}

/// `rounds` kills, a third each with nothing else lost, without the state directory, without two directories of six.
#[track_caller]
pub fn cycles(rounds: u64) -> String {
    program("sqlite3");
    let seed = seed("kill cycles");
    let mut random = Random::new(seed);
    let started = Instant::now();
    let (mut volume, mut promises) = fresh(rounds);
    let (mut saved, mut bytes, mut committed) = (0, 0, 0);
    let (mut losses, mut fewer) = (0, 0);
    for round in 0..rounds {
        if round > 0 && round % ROUNDS_OF_A_VOLUME == 0 {
            drop(volume);
            (volume, promises) = fresh(rounds);
        }
        let after = Duration::from_millis(random.range(30, 500));
        load_and_kill(&mut volume, round, &mut random, &promises, after);
        let mut lost = Vec::new();
        match round % 3 {
            1 => {
                volume.detach();
                fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
            }
            2 => {
                volume.detach();
                let first = random.below(DIRECTORIES as u64) as usize;
                lost = vec![first, (first + 1 + random.below(DIRECTORIES as u64 - 1) as usize) % DIRECTORIES];
                lost.truncate(tolerated_losses(&volume));
                if lost.len() < 2 {
                    fewer += 1;
                } else {
                    losses += 1;
                }
                for n in &lost {
                    fs::remove_dir_all(volume.dir(*n)).expect("remove a backing directory");
                }
            }
            _ => {}
        }
        let when = format!(
            "after kill {round}, {} lost, seed {seed}",
            ["nothing", "the state directory", "two directories"][round as usize % 3]
        );
        mount_after_kill(&mut volume);
        compare(volume.mnt(), round, &promises, &when);
        expect_no_loss(&volume, &when);
        if !lost.is_empty() {
            replace(&volume, &lost, &when);
            volume.expect_clean();
        }
        saved += promises.saved.lock().expect("promises").len() as u64;
        bytes += promises.appended.lock().expect("promises").values().sum::<u64>();
        committed += promises.rows.lock().expect("promises").values().sum::<u64>();
    }
    assert!(saved > 0 && bytes > 0 && committed > 0, "nothing was acknowledged in {rounds} rounds");
    assert!(
        rounds < 3 || losses > fewer,
        "{losses} times two directories were lost, {fewer} times fewer are tolerated"
    );
    format!(
        "{rounds} kills, {:.2} s each; {saved} files, {bytes} appended bytes and {committed} database rows that were \
         acknowledged compared, all right; {losses} times two directories were lost, {fewer} times fewer; seed {seed}",
        started.elapsed().as_secs_f64() / rounds as f64
    )
}

fn fresh(rounds: u64) -> (TestVolume, Promises) {
    let builder = Builder::new("kill-cycles").directories(DIRECTORIES);
    (builder.lifetime(Duration::from_secs(600 + rounds * 60)).mount(), Promises::default())
}
