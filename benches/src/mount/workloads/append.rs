//! A small append made durable, again and again: what a database or a mail spool asks of a filesystem. By one writer, by
//! eight at once, beside a stream, and what others notice of it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Family, Stage, Workload, nothing_to_prepare};
use crate::failure::{Doing, Failure, Result};
use crate::metrics::Sample;
use crate::sides::Side;

pub static FAMILY: Family = Family {
    name: "append",
    workloads: &[
        Workload { name: "append", needs: &[], on_six: false, run: append },
        Workload { name: "append-eight", needs: &[], on_six: false, run: append_eight },
        Workload { name: "append-stream", needs: &[], on_six: false, run: append_beside_stream },
        Workload { name: "stalls", needs: &[], on_six: false, run: stalls },
    ],
    prepare: nothing_to_prepare,
    clean,
};

const CONTENT: u64 = 5;

/// Writers at once.
const WRITERS: usize = 8;
/// The stream starts over in its file at this length, bytes.
const STREAM_LEN: u64 = 512 << 20;
/// It goes no faster than this, bytes a second: more than a network brings, and it must not fill the disk with what
/// waits to be reclaimed.
const STREAM_RATE: u64 = 200 << 20;
/// It is under way for so long when the first sync is measured.
const STREAM_LEAD: Duration = Duration::from_millis(500);
/// The stream ends after this, bytes, and with it what is measured beside it.
const STREAM_TOTAL: u64 = 6 << 30;
/// One write of the stream, bytes.
const STREAM_WRITE: usize = 1 << 20;
/// Operations that nobody syncs, each timed.
const QUICK: usize = 20_000;
/// Files that are written and looked at meanwhile.
const QUICK_FILES: usize = 16;

fn path(side: &dyn Side, repeat: usize) -> PathBuf {
    side.root().join(format!("appended-{repeat}"))
}

fn append(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let (path, seed) = (path(stage.side, stage.repeat), stage.seed(CONTENT));
    let mut file =
        OpenOptions::new().append(true).create_new(true).open(&path).doing(|| format!("create {}", path.display()))?;
    let mut times = Vec::with_capacity(stage.options.appends);
    let watch = stage.start();
    for number in 0..stage.options.appends {
        let page = stage.pool.page(seed, number as u64);
        let start = Instant::now();
        file.write_all(page).doing(|| format!("append to {}", path.display()))?;
        file.sync_all().doing(|| format!("sync {}", path.display()))?;
        times.push(start.elapsed());
    }
    let daemon = watch.stop().seconds("append-p50").daemon;
    drop(file);
    check(stage, &path)?;
    times.sort();
    let sample = |metric, percent| micros(metric, &times, percent, daemon);
    let all: Duration = times.iter().sum();
    let rate = Sample { metric: "append-rate", value: times.len() as f64 / all.as_secs_f64().max(1e-9), daemon };
    Ok(vec![sample("append-p50", 50.0), sample("append-p99", 99.0), rate])
}

/// Eight writers, each with a file of its own, each as long as the one: what comes only now and then is part of it.
fn append_eight(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let page = stage.pool.page(stage.seed(CONTENT), 0).to_vec();
    let each = stage.options.appends;
    let paths: Vec<PathBuf> = (0..WRITERS).map(|n| extra(stage, &format!("eight-{n}"))).collect();
    let watch = stage.start();
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let writers: Vec<_> = paths.iter().map(|path| scope.spawn(|| append_pages(path, &page, each))).collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap_or_else(|_| Err(Failure::new("a writer panicked"))))
            .collect()
    });
    let lap = watch.stop();
    outcomes.into_iter().collect::<Result<()>>()?;
    for path in &paths {
        fs::remove_file(path).doing(|| format!("remove {}", path.display()))?;
    }
    Ok(vec![lap.rate("append-eight-rate", (each * WRITERS) as f64)])
}

fn append_pages(path: &Path, page: &[u8], count: usize) -> Result<()> {
    let mut file = File::create(path).doing(|| format!("create {}", path.display()))?;
    for _ in 0..count {
        append_one(&mut file, page).doing(|| format!("append to {}", path.display()))?;
    }
    Ok(())
}

fn append_one(file: &mut File, page: &[u8]) -> std::io::Result<Duration> {
    let start = Instant::now();
    file.write_all(page)?;
    file.sync_all()?;
    Ok(start.elapsed())
}

/// Small syncs while somebody else streams into another file and never syncs.
fn append_beside_stream(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let page = stage.pool.page(stage.seed(CONTENT), 0).to_vec();
    let small = extra(stage, "beside");
    let appends = stage.options.appends;
    let watch = stage.start();
    let mut times = beside_stream(stage, |ended| {
        std::thread::sleep(STREAM_LEAD);
        let mut file = File::create(&small).doing(|| format!("create {}", small.display()))?;
        let mut times = Vec::with_capacity(appends);
        while times.len() < appends && !ended.load(Ordering::Relaxed) {
            times.push(append_one(&mut file, &page).doing(|| format!("append to {}", small.display()))?);
        }
        Ok(times)
    })?;
    let daemon = watch.stop().seconds("append-stream-p50").daemon;
    fs::remove_file(&small).doing(|| format!("remove {}", small.display()))?;
    times.sort();
    Ok(vec![micros("append-stream-p50", &times, 50.0, daemon), micros("append-stream-p99", &times, 99.0, daemon)])
}

/// Operations that sync nothing, while one writer syncs and another streams.
fn stalls(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let page = stage.pool.page(stage.seed(CONTENT), 0).to_vec();
    let files: Vec<PathBuf> = (0..QUICK_FILES).map(|n| extra(stage, &format!("quick-{n}"))).collect();
    let synced = extra(stage, "synced");
    let watch = stage.start();
    let mut times = beside_stream(stage, |ended| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let syncing = scope.spawn(|| -> Result<()> {
                let mut file = File::create(&synced).doing(|| format!("create {}", synced.display()))?;
                while !done.load(Ordering::Relaxed) {
                    append_one(&mut file, &page).doing(|| format!("append to {}", synced.display()))?;
                }
                Ok(())
            });
            let quick = quick_operations(&files, &page, ended);
            done.store(true, Ordering::Relaxed);
            syncing.join().unwrap_or_else(|_| Err(Failure::new("the writer that syncs panicked")))?;
            quick
        })
    })?;
    let daemon = watch.stop().seconds("stall-p999").daemon;
    for path in files.iter().chain([&synced]) {
        fs::remove_file(path).doing(|| format!("remove {}", path.display()))?;
    }
    times.sort();
    Ok(vec![micros("stall-p50", &times, 50.0, daemon), micros("stall-p999", &times, 99.9, daemon)])
}

/// Writes of a page, looks at attributes, new names: each timed.
fn quick_operations(files: &[PathBuf], page: &[u8], ended: &AtomicBool) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(QUICK);
    for number in 0..QUICK {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let path = &files[number % files.len()];
        let start = Instant::now();
        let done = match number / files.len() % 3 {
            0 => File::create(path).map(drop),
            1 => OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(page)),
            _ => fs::metadata(path).map(drop),
        };
        done.doing(|| format!("use {}", path.display()))?;
        times.push(start.elapsed());
        // Some thousand a second, not as many as there can be: it is the slow ones that are looked for.
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(times)
}

/// Does `work` while a thread streams into a file without ever syncing; the flag tells that the stream broke off.
fn beside_stream<T: Send>(stage: &Stage<'_>, work: impl FnOnce(&AtomicBool) -> Result<T>) -> Result<T> {
    let (path, seed) = (extra(stage, "stream"), stage.seed(CONTENT));
    let (stop, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let worked = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| {
            let streamed = stream(&path, seed, &stop);
            ended.store(true, Ordering::Relaxed);
            streamed
        });
        let worked = work(&ended);
        stop.store(true, Ordering::Relaxed);
        streaming.join().unwrap_or_else(|_| Err(Failure::new("the stream panicked")))?;
        worked
    })?;
    fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
    Ok(worked)
}

fn stream(path: &Path, seed: u64, stop: &AtomicBool) -> Result<()> {
    let mut file = File::create(path).doing(|| format!("create {}", path.display()))?;
    let mut bytes = vec![0u8; STREAM_WRITE];
    let mut written = 0u64;
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) && written < STREAM_TOTAL {
        let due = Duration::from_secs_f64(written as f64 / STREAM_RATE as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        // Never the same content twice, nor in two repeats: nothing is shared.
        bytes.chunks_mut(512).enumerate().for_each(|(n, part)| {
            part[..8].copy_from_slice(&(written + n as u64).to_le_bytes());
            part[8..16].copy_from_slice(&seed.to_le_bytes());
        });
        if written.is_multiple_of(STREAM_LEN) {
            file.seek(SeekFrom::Start(0)).doing(|| format!("rewind {}", path.display()))?;
        }
        file.write_all(&bytes).doing(|| format!("write {}", path.display()))?;
        written += STREAM_WRITE as u64;
    }
    Ok(())
}

fn extra(stage: &Stage<'_>, name: &str) -> PathBuf {
    stage.side.root().join(format!("append-{name}-{}", stage.repeat))
}

fn micros(metric: &'static str, sorted: &[Duration], percent: f64, daemon: Duration) -> Sample {
    Sample { metric, value: percentile(sorted, percent).as_secs_f64() * 1e6, daemon }
}

/// Not timed: all of it is there after a remount.
fn check(stage: &mut Stage<'_>, path: &std::path::Path) -> Result<()> {
    stage.cool_down()?;
    let content = fs::read(path).doing(|| format!("read {}", path.display()))?;
    let pages = content.chunks(crate::data::PAGE);
    let seed = stage.seed(CONTENT);
    if pages.len() != stage.options.appends
        || pages.enumerate().any(|(number, page)| !stage.pool.is_page(seed, number as u64, page))
    {
        return Err(Failure::new(format!("{} does not hold what was appended", path.display())));
    }
    Ok(())
}

fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    let place = ((sorted.len() as f64 * percent / 100.0) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

fn clean(side: &mut dyn Side, repeat: usize) -> Result<()> {
    let path = path(side, repeat);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", path.display())),
    }
}
