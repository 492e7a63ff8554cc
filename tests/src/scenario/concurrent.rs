//! Many processes on one file and in one directory, on brine and on a disk of this machine: whatever order they come in,
//! nothing is lost, torn or counted wrongly.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::environment::{sibling, temp_dir};
use crate::random::content;
use crate::sys::Directory;
use crate::{Builder, Random, TestVolume, seed};

/// Processes that meet.
const PROCESSES: u64 = 6;
/// Longest record appended, bytes: over the length of a chunk now and then.
const RECORD_MAX: u64 = 40_000;
/// Length of the blocks that are written while the file is cut.
const BLOCK: u64 = 4096;
/// Names that processes fight for, in each of two directories.
const NAMES: u64 = 7;
/// Names that nobody touches.
const ANCHORS: usize = 300;

/// What one process does; run by the program `contend`.
///
/// # Errors
/// What must not happen to it.
pub fn worker(what: &str, directory: &Path, id: u64, count: u64, seed: u64) -> io::Result<()> {
    let mut random = Random::new(seed ^ (id << 32));
    match what {
        "append" => append(directory, id, count, &mut random),
        "names" => names(directory, count, &mut random),
        "cut" => cut(directory, id, count, &mut random),
        other => Err(io::Error::other(format!("nothing is known of {other}"))),
    }
}

/// A record: its length, who wrote it, the how manieth it is, bytes that follow from these, and its length again.
fn record(id: u64, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = [len as u64, id, number].map(u64::to_le_bytes).concat();
    bytes.extend(content(id << 32 | number, len));
    bytes.extend((len as u64).to_le_bytes());
    bytes
}

fn append(directory: &Path, id: u64, count: u64, random: &mut Random) -> io::Result<()> {
    let path = directory.join("log");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    for number in 0..count {
        let len = if random.one_in(4) { random.below(RECORD_MAX) } else { random.below(500) };
        let bytes = record(id, number, len as usize);
        let written = file.write(&bytes)?;
        if written != bytes.len() {
            return Err(io::Error::other(format!("{written} of {} bytes were appended", bytes.len())));
        }
        if random.one_in(20) {
            file = OpenOptions::new().append(true).open(&path)?;
        }
    }
    Ok(())
}

/// Names made, moved, linked and removed, of files and directories, in two directories at once.
fn names(directory: &Path, count: u64, random: &mut Random) -> io::Result<()> {
    let expected = [
        libc::ENOENT,
        libc::EEXIST,
        libc::ENOTEMPTY,
        libc::EISDIR,
        libc::ENOTDIR,
        libc::EINVAL,
        // A link to a directory, and to a file whose last name goes.
        libc::EPERM,
    ];
    for step in 0..count {
        let mut any = || directory.join(random.choose(&["one", "two"])).join(format!("n{}", random.below(NAMES)));
        let (path, other) = (any(), any());
        let outcome = match random.below(10) {
            0..=1 => File::create_new(&path).map(drop),
            2 => fs::create_dir(&path),
            3..=4 => fs::remove_file(&path),
            5 => fs::remove_dir(&path),
            6..=7 => fs::rename(&path, &other),
            8 => fs::hard_link(&path, &other),
            _ => fs::rename(&path, other.join("below")),
        };
        if let Err(error) = outcome
            && !error.raw_os_error().is_some_and(|code| expected.contains(&code))
        {
            return Err(io::Error::other(format!("step {step}, {}, {}: {error}", path.display(), other.display())));
        }
    }
    Ok(())
}

/// Blocks written at random places while the file is cut.
fn cut(directory: &Path, id: u64, count: u64, random: &mut Random) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(directory.join("blocks"))?;
    for _ in 0..count {
        let at = random.below(100) * BLOCK;
        match random.below(8) {
            0 => file.set_len(at)?,
            1 => file.sync_data()?,
            2 => {
                let mut block = vec![0; BLOCK as usize];
                let len = file.read_at(&mut block, at)?;
                if len % BLOCK as usize != 0 {
                    return Err(io::Error::other(format!("{len} bytes were read at {at}: the file ended in a block")));
                }
            }
            _ => file.write_all_at(&[1 + id as u8; BLOCK as usize], at)?,
        }
    }
    Ok(())
}

struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // Still there only if the test fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes that do the same in one directory.
#[track_caller]
fn meet(what: &str, directory: &Path, count: u64, seed: u64, mut meanwhile: impl FnMut()) {
    let program = sibling("contend").expect("contend is not built: cargo build -p brine-tests --bins");
    let mut workers: Vec<Worker> = (0..PROCESSES)
        .map(|id| {
            let mut command = Command::new(&program);
            command.arg(what).arg(directory).args([id, count, seed].map(|number| number.to_string()));
            Worker(command.stderr(Stdio::piped()).spawn().expect("start contend"))
        })
        .collect();
    while workers.iter_mut().any(|worker| worker.0.try_wait().expect("wait").is_none()) {
        meanwhile();
        std::thread::sleep(Duration::from_millis(2));
    }
    for mut worker in workers {
        let mut text = String::new();
        if let Some(mut stderr) = worker.0.stderr.take() {
            let _ = io::Read::read_to_string(&mut stderr, &mut text);
        }
        assert!(worker.0.wait().expect("wait").success(), "seed {seed}, {}: {text}", directory.display());
    }
}

/// Every record is there once, whole, and in its writer's order.
#[track_caller]
fn expect_records(directory: &Path, count: u64) {
    let bytes = fs::read(directory.join("log")).expect("read");
    let word = |at: usize| bytes.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let mut next = [0; PROCESSES as usize];
    let mut at = 0;
    while at < bytes.len() {
        let (Some(len), Some(id), Some(number)) = (word(at), word(at + 8), word(at + 16)) else {
            panic!("a piece of a record at {at} of {}", bytes.len());
        };
        let whole = len < RECORD_MAX
            && id < PROCESSES
            && bytes.get(at..at + len as usize + 32) == Some(&record(id, number, len as usize)[..]);
        assert!(whole, "a torn record at {at} of {}", bytes.len());
        assert_eq!(number, next[id as usize], "records of {id} are lost or out of order at {at}");
        next[id as usize] += 1;
        at += len as usize + 32;
    }
    assert_eq!(next, [count; PROCESSES as usize], "records are lost");
}

/// Names and links agree, and nothing is listed that is not there.
#[track_caller]
fn expect_names(directory: &Path) {
    let mut found: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut todo = vec![directory.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let mut below = 0;
        for entry in fs::read_dir(&dir).expect("list") {
            let entry = entry.expect("list");
            let meta =
                entry.path().symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", entry.path().display()));
            if meta.is_dir() {
                below += 1;
                todo.push(entry.path());
            } else {
                found.entry(meta.ino()).or_insert((0, meta.nlink())).0 += 1;
            }
        }
        assert_eq!(dir.metadata().expect("stat").nlink(), 2 + below, "links of {}", dir.display());
    }
    let wrong: Vec<_> = found.iter().filter(|(_, (names, links))| names != links).collect();
    assert!(wrong.is_empty(), "inodes with (names, links): {wrong:?}");
}

/// Both sides of one story: the directory on brine and the one on the disk.
struct Sides {
    volume: TestVolume,
    disk: PathBuf,
    seed: u64,
}

impl Sides {
    /// For `count` steps of each process: a hundred of them a second, if some are synced.
    fn new(name: &str, count: u64) -> Self {
        let lifetime = Duration::from_secs(120 + PROCESSES * count / 100);
        let builder = Builder::new(name).directories(3).geometry(2, 1).option("allow_other").lifetime(lifetime);
        let volume = builder.mount();
        Self { volume, disk: temp_dir(name), seed: seed(name) }
    }

    fn each(&self, name: &str) -> [PathBuf; 2] {
        let both = [self.volume.path(name), self.disk.join(name)];
        both.iter().for_each(|dir| fs::create_dir(dir).expect("mkdir"));
        both
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        // Only temporary files.
        let _ = fs::remove_dir_all(&self.disk);
    }
}

/// O_APPEND from several processes: no record is lost, torn or out of its writer's order.
pub fn appends(count: u64) -> String {
    let mut sides = Sides::new("appends", count);
    for dir in sides.each("dir") {
        meet("append", &dir, count, sides.seed, || {});
        expect_records(&dir, count);
    }
    sides.volume.remount();
    expect_records(&sides.volume.path("dir"), count);
    sides.volume.expect_clean();
    format!("{PROCESSES} processes appended {} records, seed {}", PROCESSES * count, sides.seed)
}

/// Names made, moved, linked and removed by several processes, while the directory is listed: names and link counts agree
/// afterwards, and each listing has what nobody touches once.
pub fn names_fought_for(count: u64) -> String {
    let mut sides = Sides::new("fought", count);
    let mut listings = 0;
    for dir in sides.each("dir") {
        for half in ["one", "two"] {
            fs::create_dir(dir.join(half)).expect("mkdir");
        }
        let anchors: BTreeSet<Vec<u8>> = (0..ANCHORS).map(|i| format!("anchor-{i}").into_bytes()).collect();
        for name in &anchors {
            File::create_new(dir.join("one").join(String::from_utf8_lossy(name).as_ref())).expect("create");
        }
        meet("names", &dir, count, sides.seed, || {
            let mut stream = Directory::open(&dir.join("one")).expect("opendir");
            let listed: Vec<Vec<u8>> = std::iter::from_fn(|| stream.next_name().expect("readdir")).collect();
            let seen = listed.iter().filter(|name| anchors.contains(*name)).count();
            let distinct = listed.iter().filter(|name| anchors.contains(*name)).collect::<BTreeSet<_>>().len();
            assert_eq!((seen, distinct), (ANCHORS, ANCHORS), "names nobody touches, in a listing of {}", dir.display());
            listings += 1;
        });
        expect_names(&dir);
    }
    sides.volume.remount();
    expect_names(&sides.volume.path("dir"));
    sides.volume.expect_clean();
    let all = PROCESSES * count;
    format!("{all} changes by {PROCESSES} processes, {listings} listings meanwhile, seed {}", sides.seed)
}

/// Blocks written by several processes while others cut the file: each block is one writer's, or zeros.
pub fn cuts(count: u64) -> String {
    let mut sides = Sides::new("cuts", count);
    let check = |dir: &Path| {
        let bytes = fs::read(dir.join("blocks")).expect("read");
        assert_eq!(bytes.len() as u64 % BLOCK, 0, "the file ends within a block");
        for (at, block) in bytes.chunks(BLOCK as usize).enumerate() {
            let first = block[0];
            let whole = block.iter().all(|byte| *byte == first) && u64::from(first) <= PROCESSES;
            assert!(whole, "block {at} of {} is mixed", dir.display());
        }
        bytes
    };
    for dir in sides.each("dir") {
        File::create_new(dir.join("blocks")).expect("create");
        meet("cut", &dir, count, sides.seed, || {});
        check(&dir);
    }
    let before = check(&sides.volume.path("dir"));
    sides.volume.remount();
    assert!(check(&sides.volume.path("dir")) == before, "another content after mounting anew");
    sides.volume.expect_clean();
    format!("{} writes and cuts by {PROCESSES} processes, seed {}", PROCESSES * count, sides.seed)
}
