//! A volume in memory: its directories and its local database's files, from which it can be opened any number of times.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use brine_fs::vfs::{Atime, Vfs, VfsOptions};
use brine_store::backing::{Backing, DirBacking, Directories, MemBacking, Pace};
use brine_store::clock::SeededEntropy;
use brine_store::geometry::Geometry;
use brine_store::volume::{
    Codec, DomainPolicy, FormatOptions, KdfCost, NewSecret, OpenOptions, Unlock, Volume, format, format_with,
};
use brine_store::{Error, Result};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::database::{Files, put_files};

/// Size of each directory, bytes: enough for what a proof writes.
const DISK_BYTES: u64 = 1 << 30;

/// A directory of this machine that goes when this is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty one, in memory if the machine has a place for that.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("brine-proofs-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("make a scratch directory");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A volume that is not open.
pub struct World {
    /// Its directories.
    pub disks: Vec<MemBacking>,
    /// Where they are said to be.
    pub paths: Vec<PathBuf>,
    /// Shards of a stripe.
    pub geometry: Geometry,
    /// The files of its state directory; none if that is lost.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The same each time it is made, and opened so that nothing depends on how fast the machine is.
    pub steady: bool,
}

fn key_file() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(b"a key file of the proofs, no secret".repeat(2))
}

/// Copy a real backing directory into memory, everything synced.
fn load(path: &Path) -> io::Result<MemBacking> {
    let real = DirBacking::open(path)?;
    let disk = MemBacking::new(&path.display().to_string(), DISK_BYTES);
    for dir in ["", "fence"] {
        for name in real.list_files(dir)? {
            let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if let Some(bytes) = real.read_file(&name)? {
                disk.write_file(&name, &bytes)?;
            }
        }
    }
    for (id, len) in real.list_segments()? {
        let mut bytes = vec![0; len as usize];
        let got = real.read_at(id, 0, &mut bytes)?;
        disk.create_segment(id, len)?;
        disk.write_at(id, 0, &[io::IoSlice::new(&bytes[..got])])?;
        disk.sync_segment(id)?;
    }
    Ok(disk)
}

impl World {
    /// A new volume of this geometry. Made once on real directories, then copied.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn format(data: usize, parity: usize) -> Self {
        Self::made(data, parity, false)
    }

    /// As [`World::format`], the same volume each time, and [steady](Pace::steady).
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn format_steady(data: usize, parity: usize) -> Self {
        Self::made(data, parity, true)
    }

    fn made(data: usize, parity: usize, steady: bool) -> Self {
        type Made = BTreeMap<(usize, usize, bool), World>;
        static MADE: OnceLock<Mutex<Made>> = OnceLock::new();
        let mut made = MADE.get_or_init(Mutex::default).lock();
        made.entry((data, parity, steady)).or_insert_with(|| Self::make(data, parity, steady)).fork()
    }

    fn make(data: usize, parity: usize, steady: bool) -> Self {
        let scratch = Scratch::new();
        let directories: Vec<PathBuf> = (0..data + parity).map(|n| scratch.path().join(format!("d{n}"))).collect();
        directories.iter().for_each(|path| std::fs::create_dir(path).expect("make a backing directory"));
        let geometry = Geometry::new(data as u8, parity as u8).expect("a geometry");
        let options = FormatOptions {
            directories,
            geometry: Some(geometry),
            secret: NewSecret::KeyFile(key_file()),
            state_dir: Some(scratch.path().join("state")),
            copies: 1,
            domain: DomainPolicy::Volume,
            codec: Codec::None,
            chunk_bits: 17,
            history: true,
            label: "proof".into(),
            kdf: KdfCost::Fast,
        };
        let made = if steady { format_with(&options, &SeededEntropy::new(1)) } else { format(&options) };
        let made = made.expect("format");
        Self {
            disks: made.directories.iter().map(|path| load(path).expect("copy a directory")).collect(),
            paths: made.directories,
            geometry,
            files: Files::load(&made.state_dir).whole(),
            steady,
        }
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> Self {
        Self {
            disks: self.disks.iter().map(MemBacking::fork).collect(),
            paths: self.paths.clone(),
            geometry: self.geometry,
            files: self.files.clone(),
            steady: self.steady,
        }
    }

    /// Put the files of the state directory where [`World::open`] is to find them.
    pub fn put_files(&self, state_dir: &Path) {
        if !self.files.is_empty() {
            put_files(state_dir, &self.files);
        }
    }

    /// Open the volume over its directories, each as `wrap` gives it; `None` is a directory that is not there.
    ///
    /// # Errors
    /// Those of [`Volume::open_in`].
    pub fn open(
        &self,
        state_dir: &Path,
        wrap: impl Fn(usize, MemBacking) -> Option<Arc<dyn Backing>>,
    ) -> Result<Arc<Volume>> {
        let there = self.paths.iter().enumerate();
        let there = there.filter_map(|(n, path)| Some((path.clone(), wrap(n, self.disks[n].reopen())?))).collect();
        let pace = if self.steady { Pace::steady() } else { Pace::default() };
        let places = Places { there, pace };
        if places.there.is_empty() {
            return Err(Error::NotAVolume("every directory is lost".into()));
        }
        let options = OpenOptions {
            state_dir: Some(state_dir.to_owned()),
            cache_bytes: 4 << 20,
            // Every opening has a state directory of its own, as another host would: where half of the directories are
            // enough for a writer, only who takes over may go on without the others (R16).
            take_over: self.geometry.total() <= 2 * self.geometry.parity(),
            ..OpenOptions::new(self.paths.clone(), Unlock::KeyFile(key_file()))
        };
        Volume::open_in(options, &places)
    }
}

/// Directories by path.
struct Places {
    there: BTreeMap<PathBuf, Arc<dyn Backing>>,
    pace: Pace,
}

impl Directories for Places {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn Backing>> {
        self.there.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn canonical(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    fn pace(&self) -> Pace {
        self.pace
    }
}

/// What was reported to the operator.
pub type Told = Arc<Mutex<Vec<String>>>;

/// Interval of commits that nobody asks for where none are wanted.
pub const NO_COMMITS: Duration = Duration::from_secs(3600);

/// The filesystem above a volume, with few threads. What it reports to the operator is kept.
///
/// # Errors
/// What the system says when it cannot start a thread.
pub fn filesystem(volume: Arc<Volume>, commit_interval: Duration) -> io::Result<(Arc<Vfs>, Told)> {
    filesystem_of(volume, commit_interval, 2)
}

/// As [`filesystem`] over a [steady](Pace::steady) volume: nothing is done but what an operation asks for, and before it
/// returns, so that equal operations make equal calls.
///
/// # Errors
/// What the system says when it cannot start a thread.
pub fn steady_filesystem(volume: Arc<Volume>) -> io::Result<(Arc<Vfs>, Told)> {
    filesystem_of(volume, NO_COMMITS, 0)
}

fn filesystem_of(volume: Arc<Volume>, commit_interval: Duration, seal_threads: usize) -> io::Result<(Arc<Vfs>, Told)> {
    let told = Told::default();
    let teller = Arc::clone(&told);
    let options = VfsOptions {
        dirty_limit_bytes: 8 << 20,
        commit_interval,
        io_threads: 1,
        seal_threads,
        readahead_bytes: 0,
        atime: Atime::Off,
        dir_atime: true,
        report: Arc::new(move |line| teller.lock().push(line.to_owned())),
    };
    Ok((Vfs::new(volume, options)?, told))
}
