//! How long a volume takes to come back: replay of the commit log, and rebuilding of the database.
//!
//!     bench-recovery [--dir DIR] [--files N] [--per-commit N] [--json]
//!
//! In DIR (default: the system's temporary directory) a volume of six directories is made and N empty files are created
//! in it, so many a generation. Then the database of before is put back and the volume opened (replay), and the database
//! is made anew from checkpoint and log (rebuild), each timed, and the rows of both compared.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use brine_store::ids::ROOT_INO;
use brine_store::volume::{
    Codec, DomainPolicy, FileKind, FormatOptions, KdfCost, NewNode, NewSecret, NothingDirty, OpenOptions, Unlock,
    Volume, format, rebuild,
};
use lexopt::{Arg, Parser, ValueExt};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

const SECRET: &[u8] = b"the key file of a volume to measure";
/// Files in one directory.
const PER_DIRECTORY: u64 = 1000;

struct Asked {
    dir: PathBuf,
    files: u64,
    per_commit: u64,
    json: bool,
}

fn parse() -> Result<Asked, Failure> {
    let mut asked = Asked { dir: std::env::temp_dir(), files: 100_000, per_commit: 100, json: false };
    let mut parser = Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("dir") => asked.dir = parser.value()?.into(),
            Arg::Long("files") => asked.files = parser.value()?.parse()?,
            Arg::Long("per-commit") => asked.per_commit = parser.value()?.parse::<u64>()?.max(1),
            Arg::Long("json") => asked.json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(asked)
}

/// A scratch directory, removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    fn members(&self) -> Vec<PathBuf> {
        (0..6).map(|n| self.0.join(format!("d{n}"))).collect()
    }

    fn options(&self) -> OpenOptions {
        let unlock = Unlock::KeyFile(SECRET.to_vec().into());
        OpenOptions { state_dir: Some(self.state()), ..OpenOptions::new(self.members(), unlock) }
    }

    fn make(&self) -> Result<(), Failure> {
        for member in self.members() {
            std::fs::create_dir_all(member)?;
        }
        format(&FormatOptions {
            directories: self.members(),
            geometry: None,
            secret: NewSecret::KeyFile(SECRET.to_vec().into()),
            state_dir: Some(self.state()),
            copies: 1,
            domain: DomainPolicy::Volume,
            codec: Codec::None,
            chunk_bits: 17,
            history: true,
            label: "recovery".into(),
            kdf: KdfCost::Fast,
        })?;
        Ok(())
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.metadata()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn fill(volume: &Arc<Volume>, asked: &Asked) -> Result<u64, Failure> {
    let node = |kind| NewNode { kind, perm: 0o644, uid: 0, gid: 0, rdev: 0, target: None };
    let mut directory = ROOT_INO;
    let mut generations = 0;
    for n in 0..asked.files {
        if n % PER_DIRECTORY == 0 {
            let name = format!("dir{:06}", n / PER_DIRECTORY);
            directory = volume.create(ROOT_INO, name.as_bytes(), &node(FileKind::Directory))?.ino;
        }
        volume.create(directory, format!("file{n:08}").as_bytes(), &node(FileKind::File))?;
        if (n + 1) % asked.per_commit == 0 || n + 1 == asked.files {
            volume.commit(&NothingDirty)?;
            generations += 1;
        }
    }
    Ok(generations)
}

fn run(asked: &Asked) -> Result<(), Failure> {
    let scratch = Scratch(asked.dir.join(format!("brine-recovery-{}", std::process::id())));
    scratch.make()?;
    let before = scratch.0.join("before");
    copy_dir(&scratch.state(), &before)?;

    let started = Instant::now();
    let volume = Volume::open(scratch.options())?;
    let generations = fill(&volume, asked)?;
    volume.close(&NothingDirty)?;
    let created = started.elapsed().as_secs_f64();

    std::fs::remove_dir_all(scratch.state())?;
    copy_dir(&before, &scratch.state())?;
    let started = Instant::now();
    let volume = Volume::open(scratch.options())?;
    let replay = started.elapsed().as_secs_f64();
    let replayed = !volume.warnings().iter().any(|warning| warning.contains("rebuilt"));
    volume.close(&NothingDirty)?;

    let made = rebuild(&scratch.options())?;
    let again = rebuild(&scratch.options())?;
    if made.digest != again.digest || !made.tables.is_empty() || made.inodes <= asked.files {
        return Err(format!("the rows that were rebuilt are not those that were written: {made:?}, {again:?}").into());
    }
    let rate = made.inodes as f64 / made.seconds;
    if asked.json {
        let figures = json!({
            "files": asked.files, "generations": generations, "create_s": created, "open_s": replay,
            "open_replayed": replayed, "rebuild_s": made.seconds, "rebuild_files_per_s": rate,
            "rebuild_replayed": made.replayed,
        });
        println!("{figures}");
    } else {
        println!("created   {} files in {generations} generations: {created:.2} s", asked.files);
        let how = if replayed { "replay" } else { "a checkpoint came between: rebuilt from it" };
        println!("open      with the database of before ({how}): {replay:.2} s");
        println!(
            "rebuild   {:.2} s, {rate:.0} files a second ({} generations replayed after the checkpoint)",
            made.seconds, made.replayed
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let outcome = parse().and_then(|asked| run(&asked));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench-recovery: {failure}");
            ExitCode::FAILURE
        }
    }
}
