//! The directory a run works in, and the machine around it: caches, mounts, signals.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, syncfs};

use crate::failure::{Doing, Failure, Result};
use crate::options::Options;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// SIGINT, SIGTERM and SIGHUP end the run between two steps, so that everything is cleaned up. To be called before any
/// thread is started: the mask is inherited.
pub fn catch_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().doing(|| "block signals".into())?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("bench-mount: stopping after this step");
        }
    });
    Ok(())
}

/// A new directory, removed when dropped.
pub struct Place {
    root: PathBuf,
    /// Whether a tmpfs of this run is mounted on `root`.
    mounted: bool,
    can_drop_caches: bool,
}

impl Place {
    /// Makes the directory; with `--tmpfs` on a tmpfs.
    pub fn new(options: &Options) -> Result<Self> {
        let root_user = Uid::effective().is_root();
        let parent = if options.tmpfs && !root_user { PathBuf::from("/dev/shm") } else { options.dir.clone() };
        let parent = parent.canonicalize().doing(|| format!("find {}", parent.display()))?;
        let root = parent.join(format!("bench-mount-{}", std::process::id()));
        fs::create_dir(&root).doing(|| format!("make {}", root.display()))?;
        let mut place = Self { root, mounted: false, can_drop_caches: root_user };
        if options.tmpfs && root_user {
            let size = format!("size={}", needed_bytes(options));
            mount(Some("bench-mount"), &place.root, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
                .doing(|| format!("mount a tmpfs on {}", place.root.display()))?;
            place.mounted = true;
        }
        place.check_space(needed_bytes(options))?;
        Ok(place)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A directory in it, made if it does not exist.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).doing(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Whether cold reads are cold for the kernel, too, and not only for the daemon.
    pub fn can_drop_caches(&self) -> bool {
        self.can_drop_caches
    }

    /// Writes out what earlier steps left behind, so that the next one does not pay for it.
    pub fn settle(&self) -> Result<()> {
        sync_filesystem(&self.root)
    }

    /// Empties the page cache, as far as this user may.
    pub fn drop_caches(&self) -> Result<()> {
        self.settle()?;
        if self.can_drop_caches {
            fs::write("/proc/sys/vm/drop_caches", "3").doing(|| "drop the page cache".into())?;
        }
        Ok(())
    }

    fn check_space(&self, needed: u64) -> Result<()> {
        let space = statvfs(&self.root).doing(|| format!("ask for the space at {}", self.root.display()))?;
        let available = space.blocks_available() * space.fragment_size();
        if available < needed {
            return Err(Failure::new(format!(
                "{} has {} MiB available, this run needs about {}: choose another --dir or a smaller --size",
                self.root.display(),
                available >> 20,
                needed >> 20
            )));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Daemons were unmounted by their own guards; one that could not be is told to the user, and not reached into.
        if let Some(left) = mounts_below(&self.root).first() {
            eprintln!(
                "bench-mount: {} is still mounted; umount it, then remove {}",
                left.display(),
                self.root.display()
            );
            return;
        }
        if self.mounted
            && let Err(error) = umount2(&self.root, MntFlags::empty())
        {
            eprintln!("bench-mount: cannot unmount {}: {error}", self.root.display());
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.root) {
            eprintln!("bench-mount: cannot remove {}: {error}", self.root.display());
        }
    }
}

/// Two copies of the large file on each side, with parity where there is some, the tree twice, and the small files.
fn needed_bytes(options: &Options) -> u64 {
    options.size * 9 + options.tree_size * 10 + options.files * 4096 * 8 + (512 << 20)
}

/// Everything written to the filesystem that holds `path` reaches its disk.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let directory = File::open(path).doing(|| format!("open {}", path.display()))?;
    syncfs(&directory).doing(|| format!("sync the filesystem of {}", path.display()))
}

/// Whether something is mounted exactly on `path`.
pub fn is_mounted(path: &Path) -> bool {
    mount_table().iter().any(|mount| mount.point == path)
}

/// The filesystem type and source under `path`, by the device number of the mount.
pub fn filesystem_of(path: &Path) -> Result<(String, String)> {
    let device = fs::metadata(path).doing(|| format!("look at {}", path.display()))?.dev();
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    mount_table()
        .into_iter()
        .find(|mount| mount.device == number)
        .map(|mount| (mount.kind, mount.source))
        .ok_or_else(|| Failure::new(format!("no mount has the device of {}", path.display())))
}

fn mounts_below(root: &Path) -> Vec<PathBuf> {
    mount_table()
        .into_iter()
        .map(|mount| mount.point)
        .filter(|point| point.starts_with(root) && point != root)
        .collect()
}

struct Mount {
    device: String,
    point: PathBuf,
    kind: String,
    source: String,
}

/// Lines of `/proc/self/mountinfo` (proc_pid_mountinfo(5)); empty if there is none.
fn mount_table() -> Vec<Mount> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ');
    let device = before.nth(2)?.to_string();
    // Names made here hold no blank, so that escapes (\040) need no undoing to be found.
    let point = PathBuf::from(before.nth(1)?);
    let mut after = after.split(' ');
    Some(Mount { device, point, kind: after.next()?.to_string(), source: after.next()?.to_string() })
}
