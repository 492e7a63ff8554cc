//! The command line.

use std::path::PathBuf;

/// Shown by `--help`.
pub const HELP: &str = "\
bench-mount: a mounted brine volume beside a plain directory and gocryptfs, in one run

Where and what
  --dir D            work in a new directory in D, removed afterwards (default: the current directory)
  --tmpfs            work on a tmpfs instead: shows the processor's share (as root a new one is mounted)
  --sides A,B        only these of plain,six,gocryptfs,brine
  --only A,B         only these workloads (and, without showing them, those they need):
                     seq-write seq-read-cold seq-read-warm second-copy rand-read-cold rand-read-warm rand-write
                     create stat read-files-cold remove untar remove-tree append append-eight
                     append-stream stalls
  --brine PATH       the program (default: beside this one)
  --mount-options O  further options for brine mount, as for its -o

How much
  --repeat N         repeats, of which median, least and greatest are shown (default 3)
  --size MIB         length of the large file (default 1024)
  --reads N          random reads and overwrites of 4 KiB a repeat (default 5000)
  --files N          small files (default 10000)
  --tree-files N     files of the tree to unpack (default 3000)
  --tree-mib MIB     their bytes (default 80)
  --appends N        appends of 4 KiB, each with fsync (default 500)

  --json             print JSON instead of tables
";

/// Sides in the order in which they are shown.
pub const SIDES: [&str; 4] = ["plain", "six", "gocryptfs", "brine"];

/// What the user asked for.
pub struct Options {
    pub dir: PathBuf,
    pub tmpfs: bool,
    pub sides: Vec<String>,
    pub only: Vec<String>,
    pub brine: Option<PathBuf>,
    pub mount_options: Option<String>,
    pub repeat: usize,
    /// Bytes of the large file; a multiple of 4 MiB, so that a quarter of it is whole writes.
    pub size: u64,
    pub reads: u64,
    pub files: u64,
    pub tree_files: u64,
    /// Bytes of the tree, about.
    pub tree_size: u64,
    pub appends: usize,
    pub json: bool,
}

impl Options {
    /// `None`: help was asked for.
    pub fn parse() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            dir: PathBuf::from("."),
            tmpfs: false,
            sides: SIDES.map(String::from).to_vec(),
            only: Vec::new(),
            brine: None,
            mount_options: None,
            repeat: 3,
            size: 1 << 30,
            reads: 5000,
            files: 10_000,
            tree_files: 3000,
            tree_size: 80 << 20,
            appends: 500,
            json: false,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("dir") => options.dir = parser.value()?.into(),
                Long("tmpfs") => options.tmpfs = true,
                Long("sides") => options.sides = names(parser.value()?.string()?, &SIDES)?,
                Long("only") => options.only = names(parser.value()?.string()?, &crate::workloads::names())?,
                Long("brine") => options.brine = Some(parser.value()?.into()),
                Long("mount-options") => options.mount_options = Some(parser.value()?.string()?),
                Long("repeat") => options.repeat = parser.value()?.parse_with(at_least_one)? as usize,
                Long("size") => options.size = parser.value()?.parse_with(at_least_one)?.next_multiple_of(4) << 20,
                Long("reads") => options.reads = parser.value()?.parse_with(at_least_one)?,
                Long("files") => options.files = parser.value()?.parse_with(at_least_one)?,
                Long("tree-files") => options.tree_files = parser.value()?.parse_with(at_least_one)?,
                Long("tree-mib") => options.tree_size = parser.value()?.parse_with(at_least_one)? << 20,
                Long("appends") => options.appends = parser.value()?.parse_with(at_least_one)? as usize,
                Long("json") => options.json = true,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(argument.unexpected()),
            }
        }
        Ok(Some(options))
    }

    /// Whether a side takes part.
    pub fn has_side(&self, name: &str) -> bool {
        self.sides.iter().any(|side| side == name)
    }

    /// Whether a workload is to be shown.
    pub fn shows(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == workload)
    }
}

fn names(list: String, known: &[&str]) -> Result<Vec<String>, String> {
    let names: Vec<String> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(format!("{name} is none of {}", known.join(" "))),
        None => Ok(names),
    }
}

fn at_least_one(text: &str) -> Result<u64, String> {
    match text.parse::<u32>() {
        Ok(number) if number > 0 => Ok(u64::from(number)),
        _ => Err("expected a number from 1 to 4294967295".to_string()),
    }
}
