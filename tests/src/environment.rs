//! What this machine must have, where temporary files lie, what is mounted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::command::program;

/// Uid and gid of an ordinary user who owns nothing on this machine.
pub const STRANGER: u32 = 54_321;

/// Panics with the reason unless filesystems can be mounted here.
#[track_caller]
pub fn require_fuse() {
    assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: load the fuse module (modprobe fuse)");
    program("fusermount3");
    assert!(nix::unistd::geteuid().is_root(), "these tests mount filesystems and change owners: run them as root");
}

/// The directory cargo puts the programs of this profile into.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("path of this program");
    let dir = exe.parent().expect("programs lie in directories");
    // Test binaries lie in target/<profile>/deps, `accept` beside `brine`.
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_path_buf() } else { dir.to_path_buf() }
}

/// A program of this workspace, or `None` if it is not built.
pub fn sibling(name: &str) -> Option<PathBuf> {
    let path = profile_dir().join(name);
    path.is_file().then_some(path)
}

/// The `brine` program under test. Panics if it is not built.
#[track_caller]
pub fn brine() -> PathBuf {
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    sibling("brine").unwrap_or_else(|| {
        panic!("{} is not built: cargo build -p brine-fs{profile}", profile_dir().join("brine").display())
    })
}

/// A public test suite that `./run tools` installs. Panics if it is not there.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let target = profile_dir().parent().map(Path::to_path_buf).unwrap_or_default();
    let path = target.join("tools/bin").join(name);
    assert!(path.is_file(), "{} is not installed: `./run tools` does it", path.display());
    path
}

/// Where this run's temporary directories are made: `BRINE_TEST_DIR`, else `target/tmp`, which is on a disk.
fn temp_root() -> PathBuf {
    match std::env::var_os("BRINE_TEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => profile_dir().parent().map_or_else(std::env::temp_dir, |target| target.join("tmp")),
    }
}

/// A new empty directory for one test; `name` appears in it. The caller removes it.
#[track_caller]
pub fn temp_dir(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = temp_root().join(format!("{name}-{}-{number}", std::process::id()));
    // Left by a killed run whose process number came again.
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
    dir
}

/// Panics with the reason unless a tenth of the disk is free that temporary directories lie on: with less, volumes give up
/// former states before anything else.
#[track_caller]
pub fn require_room_for_history() {
    let root = temp_root();
    std::fs::create_dir_all(&root).unwrap_or_else(|error| panic!("cannot create {}: {error}", root.display()));
    let disk = nix::sys::statvfs::statvfs(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let (free, all) = (disk.blocks_available(), disk.blocks());
    assert!(
        free >= all / 10,
        "the disk of {} is {} % full, and volumes on a disk that is over 90 % full give former states up: free some, or \
         name another place by BRINE_TEST_DIR",
        root.display(),
        100 - 100 * free / all.max(1)
    );
}

/// Mountpoints of this mount namespace, in the order of mounting.
pub fn mounts() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

/// Whether something is mounted exactly at `path`. Never touches `path` itself, which may hang.
pub fn is_mounted(path: &Path) -> bool {
    mounts().iter().any(|mount| mount == path)
}

/// Filesystem type and mount options of `path`, as the kernel shows them.
pub fn mount_line(path: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().rfind(|line| line.split(' ').nth(4).map(unescape).as_deref() == Some(path)).map(str::to_owned)
}

/// `\040` and its like, as mountinfo writes blanks.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| field.get(at + 1..at + 4)).flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}
