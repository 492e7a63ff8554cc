//! A small append made durable, again and again: what a database or a mail spool asks of a filesystem.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Family, Stage, Workload, nothing_to_prepare};
use crate::failure::{Doing, Failure, Result};
use crate::metrics::Sample;
use crate::sides::Side;

pub static FAMILY: Family = Family {
    name: "append",
    workloads: &[Workload { name: "append", needs: &[], on_six: false, run: append }],
    prepare: nothing_to_prepare,
    clean,
};

const CONTENT: u64 = 5;

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
    let sample = |metric, percent| Sample { metric, value: percentile(&times, percent).as_secs_f64() * 1e6, daemon };
    Ok(vec![sample("append-p50", 50), sample("append-p99", 99)])
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

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

fn clean(side: &mut dyn Side, repeat: usize) -> Result<()> {
    let path = path(side, repeat);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", path.display())),
    }
}
