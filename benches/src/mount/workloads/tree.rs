//! A source tree: unpacked by tar, listed by find, cloned by git, removed by rm. The tree is made anew for each repeat, the same for all sides.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Family, Stage, Workload};
use crate::daemon::run;
use crate::data::Random;
use crate::failure::{Doing, Result};
use crate::metrics::Sample;
use crate::options::Options;
use crate::place::Place;
use crate::sides::Side;

pub static FAMILY: Family = Family {
    name: "tree",
    workloads: &[
        Workload { name: "untar", needs: &[], on_six: false, run: untar },
        Workload { name: "find", needs: &["untar"], on_six: false, run: find },
        Workload { name: "git-clone", needs: &["untar"], on_six: false, run: git_clone },
        Workload { name: "remove-tree", needs: &["untar"], on_six: false, run: remove_tree },
    ],
    prepare,
    clean,
};

const FILES_A_DIRECTORY: u64 = 10;
const DEPTH_MAX: usize = 6;
const VOCABULARY: u64 = 4000;

fn archive(place: &Place) -> PathBuf {
    place.path().join("tree.tar")
}

fn directory(side: &dyn Side, repeat: usize) -> PathBuf {
    side.root().join(format!("tree-{repeat}"))
}

fn untar(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let directory = directory(stage.side, stage.repeat);
    fs::create_dir(&directory).doing(|| format!("make {}", directory.display()))?;
    let archive = archive(stage.place);
    // Into the page cache, from which all sides read it.
    fs::read(&archive).doing(|| format!("read {}", archive.display()))?;
    let watch = stage.start();
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&directory))?;
    let lap = watch.stop();
    // Not timed: every name, mode, owner, time and byte is what the archive has.
    run(Command::new("tar").arg("--compare").arg("-f").arg(&archive).arg("-C").arg(&directory))?;
    Ok(vec![lap.seconds("untar")])
}

/// Cold: nothing of the tree is cached.
fn find(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    stage.cool_down()?;
    let directory = directory(stage.side, stage.repeat);
    let watch = stage.start();
    run(Command::new("find").arg(&directory).args(["-type", "f", "-newermt", "2000-01-01", "-size", "+1k"]))?;
    Ok(vec![watch.stop().seconds("find")])
}

/// The repository lies beside the sides, in the page cache; the clone is checked afterwards, not timed.
fn git_clone(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let repository = stage.place.path().join("tree.git");
    if !repository.exists() {
        let script =
            "export GIT_CONFIG_NOSYSTEM=1 HOME=/nonexistent; git -c init.defaultBranch=main init -q --bare \"$1\"
            export GIT_DIR=\"$1\" GIT_WORK_TREE=\"$2\"; git add -A
            git -c user.name=a -c user.email=a@b commit -qm all; git repack -adq";
        let tree = directory(stage.side, stage.repeat);
        run(Command::new("sh").args(["-euc", script, "sh"]).arg(&repository).arg(&tree))?;
    }
    let clone = stage.side.root().join(format!("clone-{}", stage.repeat));
    let watch = stage.start();
    let git = || {
        let mut git = Command::new("git");
        git.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", "/nonexistent");
        git
    };
    run(git().args(["clone", "-q", "--no-local"]).arg(&repository).arg(&clone))?;
    let lap = watch.stop();
    run(git().arg("-C").arg(&clone).args(["diff", "--quiet", "HEAD"]))?;
    remove_directory(&clone)?;
    Ok(vec![lap.seconds("git-clone")])
}

fn remove_tree(stage: &mut Stage<'_>) -> Result<Vec<Sample>> {
    let directory = directory(stage.side, stage.repeat);
    let watch = stage.start();
    run(Command::new("rm").arg("-rf").arg(&directory))?;
    Ok(vec![watch.stop().seconds("remove-tree")])
}

fn clean(side: &mut dyn Side, repeat: usize) -> Result<()> {
    remove_directory(&directory(side, repeat))
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", path.display())),
    }
}

/// Makes the archive: text that compresses about as source does, lengths as uneven as those of sources.
fn prepare(place: &Place, options: &Options, repeat: usize) -> Result<()> {
    let source = place.directory("tree")?;
    let mut random = Random::new(0x7472_6565 + repeat as u64);
    let directories = directories(&mut random, options.tree_files.div_ceil(FILES_A_DIRECTORY));
    for path in &directories {
        fs::create_dir_all(source.join(path)).doing(|| format!("make {}", path.display()))?;
    }
    let weights: Vec<f64> = (0..options.tree_files).map(|_| weight(&mut random)).collect();
    let scale = options.tree_size as f64 / weights.iter().sum::<f64>();
    let words: Vec<String> = (0..VOCABULARY).map(|_| word(&mut random)).collect();
    for (number, weight) in weights.iter().enumerate() {
        let home = &directories[random.below(directories.len() as u64) as usize];
        let path = source.join(home).join(format!("{}_{number}.rs", words[random.below(VOCABULARY) as usize]));
        let text = text(&mut random, &words, (weight * scale) as usize);
        fs::write(&path, text).doing(|| format!("write {}", path.display()))?;
    }
    run(Command::new("tar").arg("-cf").arg(archive(place)).arg("-C").arg(&source).arg("."))?;
    remove_directory(&source)
}

/// Each lies in one made before it, so that some are deep and most are not.
fn directories(random: &mut Random, count: u64) -> Vec<PathBuf> {
    let mut directories = vec![PathBuf::from("src")];
    while (directories.len() as u64) < count {
        let parent = &directories[random.below(directories.len() as u64) as usize];
        if parent.components().count() < DEPTH_MAX {
            directories.push(parent.join(format!("module_{}", directories.len())));
        }
    }
    directories
}

/// Roughly log-normal: the sum of uniform numbers is near enough to normal.
fn weight(random: &mut Random) -> f64 {
    let sum: f64 = (0..6).map(|_| random.below(1000) as f64 / 1000.0).sum();
    ((sum - 3.0) * 1.8).exp()
}

fn word(random: &mut Random) -> String {
    let length = 2 + random.below(9);
    (0..length).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}

fn text(random: &mut Random, words: &[String], length: usize) -> String {
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        // Some words are frequent, as in any language.
        let rank = random.below(VOCABULARY).min(random.below(VOCABULARY)).min(random.below(VOCABULARY));
        let end = if random.below(8) == 0 { ";\n    " } else { " " };
        // Writing to a String does not fail.
        let _ = write!(text, "{}{end}", words[rank as usize]);
    }
    text.truncate(length);
    text
}
