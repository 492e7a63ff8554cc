//! One large file: written, read, written again, read and overwritten at random.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Family, Stage, Workload, nothing_to_prepare};
use crate::data::{BLOCK, PAGE, Pool, Random};
use crate::failure::{Doing, Failure, Result};
use crate::metrics::{Sample, Stopwatch};
use crate::sides::{DATA_SHARDS, MEMBERS, Side};

pub static FAMILY: Family = Family {
    name: "stream",
    workloads: &[
        Workload { name: "seq-write", needs: &[], on_six: true, run: write },
        Workload { name: "seq-read-cold", needs: WRITTEN, on_six: false, run: read_cold },
        Workload { name: "seq-read-warm", needs: WRITTEN, on_six: false, run: read_warm },
        Workload { name: "second-copy", needs: WRITTEN, on_six: false, run: second_copy },
        Workload { name: "rand-read-cold", needs: WRITTEN, on_six: false, run: random_read_cold },
        Workload { name: "rand-read-warm", needs: WRITTEN, on_six: false, run: random_read_warm },
        Workload { name: "rand-write", needs: WRITTEN, on_six: false, run: random_write },
    ],
    prepare: nothing_to_prepare,
    clean,
};

const WRITTEN: &[&str] = &["seq-write"];
const CONTENT: u64 = 1;
const OVERWRITTEN: u64 = 2;
const PLACES: u64 = 3;
const PAGES_A_BLOCK: u64 = (BLOCK / PAGE) as u64;
/// Overwritten pages looked at again after a remount.
const CHECKED_OVERWRITES: usize = 200;

fn path(side: &dyn Side, repeat: usize) -> PathBuf {
    side.root().join(format!("large-{repeat}"))
}

fn write(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    if stage.side.name() == "six" {
        return write_six(stage);
    }
    let path = path(stage.side, stage.repeat);
    let watch = stage.start();
    write_content(stage.pool, stage.seed(CONTENT), stage.options.size, &path, watch, "seq-write")
}

fn write_content(
    pool: &mut Pool,
    seed: u64,
    size: u64,
    path: &Path,
    watch: Stopwatch,
    metric: &'static str,
) -> Result<Vec<Sample>> {
    let mut file = create(path)?;
    for index in 0..size / BLOCK as u64 {
        file.write_all(pool.block(seed, index)).doing(|| format!("write {}", path.display()))?;
    }
    file.sync_all().doing(|| format!("sync {}", path.display()))?;
    Ok(vec![watch.stop().mib_rate(metric, size)])
}

/// What six files at once can take on this disk: the volume's shards of the same data, without the volume.
fn write_six(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let each = stage.options.size / DATA_SHARDS as u64;
    let paths: Vec<PathBuf> =
        (0..MEMBERS).map(|member| stage.side.root().join(format!("{member}/large-{}", stage.repeat))).collect();
    let pool = &*stage.pool;
    let watch = stage.start();
    std::thread::scope(|scope| {
        let writers: Vec<_> = paths.iter().map(|path| scope.spawn(|| write_one_of_six(pool, path, each))).collect();
        writers.into_iter().try_for_each(|writer| {
            writer.join().unwrap_or_else(|_| Err(Failure::new("a writer of the six files panicked")))
        })
    })?;
    Ok(vec![watch.stop().mib_rate("seq-write", each * MEMBERS as u64)])
}

fn write_one_of_six(pool: &Pool, path: &Path, size: u64) -> Result<()> {
    let mut file = create(path)?;
    for index in 0..size / BLOCK as u64 {
        file.write_all(pool.unstamped(index)).doing(|| format!("write {}", path.display()))?;
    }
    file.sync_all().doing(|| format!("sync {}", path.display()))
}

fn read_cold(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    stage.cool_down()?;
    read_all(stage, "seq-read-cold")
}

fn read_warm(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    read_all(stage, "seq-read-warm")?;
    read_all(stage, "seq-read-warm")
}

/// Reads the file once, and compares a page of every block, at a place nobody can foresee, with what was written.
fn read_all(stage: &Stage<'_>, metric: &'static str) -> Result<Vec<Sample>> {
    let path = path(stage.side, stage.repeat);
    let seed = stage.seed(CONTENT);
    let mut random = Random::new(stage.seed(PLACES));
    let mut buffer = vec![0; BLOCK];
    let watch = stage.start();
    let mut file = File::open(&path).doing(|| format!("open {}", path.display()))?;
    for index in 0..stage.options.size / BLOCK as u64 {
        file.read_exact(&mut buffer).doing(|| format!("read {}", path.display()))?;
        let page = random.below(PAGES_A_BLOCK);
        let at = page as usize * PAGE;
        check(stage.pool, seed, index * PAGES_A_BLOCK + page, &buffer[at..at + PAGE], &path)?;
    }
    Ok(vec![watch.stop().mib_rate(metric, stage.options.size)])
}

fn second_copy(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let path = stage.side.root().join(format!("copy-{}", stage.repeat));
    let watch = stage.start();
    let samples = write_content(stage.pool, stage.seed(CONTENT), stage.options.size, &path, watch, "second-copy")?;
    fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
    Ok(samples)
}

fn random_read_cold(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    stage.cool_down()?;
    random_read(stage, "rand-read-cold")
}

fn random_read_warm(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    read_all(stage, "seq-read-warm")?;
    random_read(stage, "rand-read-warm")
}

fn random_read(stage: &Stage<'_>, metric: &'static str) -> Result<Vec<Sample>> {
    let path = path(stage.side, stage.repeat);
    let pages = Random::new(stage.seed(PLACES)).different(stage.options.reads, stage.options.size / PAGE as u64);
    let mut buffer = [0; PAGE];
    let file = File::open(&path).doing(|| format!("open {}", path.display()))?;
    let watch = stage.start();
    for page in &pages {
        file.read_exact_at(&mut buffer, page * PAGE as u64).doing(|| format!("read {}", path.display()))?;
        check(stage.pool, stage.seed(CONTENT), *page, &buffer, &path)?;
    }
    Ok(vec![watch.stop().rate(metric, pages.len() as f64)])
}

fn random_write(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let path = path(stage.side, stage.repeat);
    let seed = stage.seed(OVERWRITTEN);
    let pages = Random::new(seed).different(stage.options.reads, stage.options.size / PAGE as u64);
    let file = OpenOptions::new().write(true).open(&path).doing(|| format!("open {}", path.display()))?;
    let watch = stage.start();
    for page in &pages {
        let bytes = stage.pool.page(seed, *page);
        file.write_all_at(bytes, page * PAGE as u64).doing(|| format!("overwrite {}", path.display()))?;
    }
    file.sync_all().doing(|| format!("sync {}", path.display()))?;
    let lap = watch.stop();
    drop(file);
    check_overwritten(stage, &path, &pages)?;
    Ok(vec![lap.rate("rand-write", pages.len() as f64)])
}

/// Not timed: what was overwritten is there after a remount, and what lies beside it is as before.
fn check_overwritten(stage: &mut Stage<'_>, path: &Path, pages: &[u64]) -> Result<()> {
    stage.cool_down()?;
    let (old, new) = (stage.seed(CONTENT), stage.seed(OVERWRITTEN));
    let overwritten: std::collections::HashSet<u64> = pages.iter().copied().collect();
    let file = File::open(path).doing(|| format!("open {}", path.display()))?;
    let mut buffer = [0; PAGE];
    for page in pages.iter().take(CHECKED_OVERWRITES) {
        let neighbour = page ^ 1;
        for page in [*page, neighbour] {
            let seed = if overwritten.contains(&page) { new } else { old };
            file.read_exact_at(&mut buffer, page * PAGE as u64).doing(|| format!("read {}", path.display()))?;
            check(stage.pool, seed, page, &buffer, path)?;
        }
    }
    Ok(())
}

fn clean(side: &mut dyn Side, repeat: usize) -> Result<()> {
    if side.name() == "six" {
        return (0..MEMBERS).try_for_each(|member| remove(&side.root().join(format!("{member}/large-{repeat}"))));
    }
    remove(&path(side, repeat))?;
    remove(&side.root().join(format!("copy-{repeat}")))
}

fn create(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path).doing(|| format!("create {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", path.display())),
    }
}

fn check(pool: &Pool, seed: u64, page: u64, bytes: &[u8], path: &Path) -> Result<()> {
    if pool.is_page(seed, page, bytes) {
        return Ok(());
    }
    Err(Failure::new(format!("{} holds something else than what was written, at page {page}", path.display())))
}
