//! Many small files in one directory: made, looked at, read, removed, in the order in which they were made.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;

use super::{Family, Stage, Workload, nothing_to_prepare};
use crate::data::PAGE;
use crate::failure::{Doing, Failure, Result};
use crate::metrics::Sample;
use crate::sides::Side;

pub static FAMILY: Family = Family {
    name: "files",
    workloads: &[
        Workload { name: "create", needs: &[], on_six: false, run: create },
        Workload { name: "stat", needs: CREATED, on_six: false, run: stat },
        Workload { name: "read-files-cold", needs: CREATED, on_six: false, run: read_cold },
        Workload { name: "remove", needs: CREATED, on_six: false, run: remove },
    ],
    prepare: nothing_to_prepare,
    clean,
};

const CREATED: &[&str] = &["create"];
const CONTENT: u64 = 4;

fn directory(side: &dyn Side, repeat: usize) -> PathBuf {
    side.root().join(format!("files-{repeat}"))
}

fn paths(stage: &Stage<'_>) -> Vec<PathBuf> {
    let directory = directory(stage.side, stage.repeat);
    (0..stage.options.files).map(|number| directory.join(format!("file-{number:06}"))).collect()
}

fn create(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let directory = directory(stage.side, stage.repeat);
    fs::create_dir(&directory).doing(|| format!("make {}", directory.display()))?;
    let (paths, seed) = (paths(stage), stage.seed(CONTENT));
    let watch = stage.start();
    for (number, path) in paths.iter().enumerate() {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .doing(|| format!("create {}", path.display()))?;
        file.write_all(stage.pool.page(seed, number as u64)).doing(|| format!("write {}", path.display()))?;
    }
    let created = watch.stop();
    let watch = stage.start();
    stage.side.sync_all()?;
    let synced = watch.stop();
    Ok(vec![created.rate("create", paths.len() as f64), synced.seconds("create-sync")])
}

fn stat(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let paths = paths(stage);
    let mut lap = None;
    // The first pass warms what can be warmed.
    for _ in 0..2 {
        let watch = stage.start();
        for path in &paths {
            let attributes = fs::symlink_metadata(path).doing(|| format!("look at {}", path.display()))?;
            if attributes.len() != PAGE as u64 {
                return Err(Failure::new(format!("{} has {} bytes, not {PAGE}", path.display(), attributes.len())));
            }
        }
        lap = Some(watch.stop());
    }
    Ok(lap.into_iter().map(|lap| lap.rate("stat", paths.len() as f64)).collect())
}

fn read_cold(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    stage.cool_down()?;
    let (paths, seed) = (paths(stage), stage.seed(CONTENT));
    let mut content = Vec::with_capacity(PAGE + 1);
    let watch = stage.start();
    for (number, path) in paths.iter().enumerate() {
        content.clear();
        let mut file = File::open(path).doing(|| format!("open {}", path.display()))?;
        file.read_to_end(&mut content).doing(|| format!("read {}", path.display()))?;
        if !stage.pool.is_page(seed, number as u64, &content) {
            return Err(Failure::new(format!("{} holds something else than what was written", path.display())));
        }
    }
    Ok(vec![watch.stop().rate("read-files-cold", paths.len() as f64)])
}

fn remove(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let paths = paths(stage);
    let watch = stage.start();
    for path in &paths {
        fs::remove_file(path).doing(|| format!("remove {}", path.display()))?;
    }
    let lap = watch.stop();
    let directory = directory(stage.side, stage.repeat);
    fs::remove_dir(&directory).doing(|| format!("remove {}", directory.display()))?;
    Ok(vec![lap.rate("remove", paths.len() as f64)])
}

fn clean(side: &mut dyn Side, repeat: usize) -> Result<()> {
    let directory = directory(side, repeat);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", directory.display())),
    }
}
