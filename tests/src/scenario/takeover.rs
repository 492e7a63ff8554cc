//! A writer that was stopped in the middle of its work, and another that took its place meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::run_for;
use crate::damage::files_below;
use crate::volume::{brine_command, detach, wait_until};
use crate::{Builder, TestVolume, content, run};

/// A second mount of a volume, taken away again when this is dropped.
struct Second(PathBuf);

impl Drop for Second {
    fn drop(&mut self) {
        let _ = run_for(brine_command(&["umount"]).arg(&self.0), Duration::from_secs(40));
        detach(&self.0);
    }
}

/// Lets a stopped process go on, whatever becomes of the test.
struct Stopped(Pid);

impl Stopped {
    #[track_caller]
    fn new(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop the daemon");
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// What lies in all backing directories, by file.
fn digests(volume: &TestVolume) -> BTreeMap<PathBuf, blake3::Hash> {
    let files = volume.dirs().iter().flat_map(|dir| files_below(dir));
    files.map(|file| (file.clone(), blake3::hash(&fs::read(&file).expect("read a backing file")))).collect()
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::write(path, bytes)?;
    File::open(path)?.sync_all()
}

/// The writer is stopped (SIGSTOP), a follower takes over by mounting, the writer goes on: it is told, says so, and
/// writes nothing on.
#[track_caller]
pub fn stopped_writer() -> String {
    let mut volume = Builder::new("stopped-writer").lifetime(Duration::from_secs(180)).mount();
    let (standby, mountpoint) = (volume.root().join("standby"), volume.root().join("second"));
    fs::create_dir(&mountpoint).expect("make a mountpoint");
    write_synced(&volume.path("before"), &content(1, 400_000)).expect("write");
    let mut follow = brine_command(&["follow", "--once", "--state-dir"]);
    run(follow.arg(&standby).arg(volume.dir(0)).args(volume.unlock_args())).expect_success();
    fs::write(volume.path("unsynced"), content(2, 400_000)).expect("write");

    let stopped = Stopped::new(volume.daemon().expect("it is mounted").pid);
    let options = format!("keyfile={},state={},take_over,nosupervise", volume.key_file().display(), standby.display());
    let mut mount = brine_command(&["mount"]);
    run_for(mount.arg(volume.dir(0)).arg(&mountpoint).args(["-o", &options]), Duration::from_secs(90)).expect_success();
    let second = Second(mountpoint.clone());
    assert!(fs::read(mountpoint.join("before")).expect("read") == content(1, 400_000), "what was synced is wrong");
    write_synced(&mountpoint.join("next"), &content(3, 400_000)).expect("write to the second");
    drop(second);
    let after_second = digests(&volume);

    drop(stopped);
    let failed = wait_until(Duration::from_secs(30), || {
        write_synced(&volume.path("late"), &content(4, 400_000)).is_err() && volume.status()["taken_over"].is_object()
    });
    let status = volume.status();
    assert!(failed, "the former writer goes on: {status:#}");
    assert_eq!(status["health"], "read-only", "{status:#}");
    let reasons = status["health_reason"].to_string();
    assert!(reasons.contains("took the volume over") && reasons.contains("unmount"), "{status:#}");
    // What it was about when it was stopped may be appended where nobody else writes; from now on nothing is.
    let noticed = digests(&volume);
    let gone: Vec<_> = after_second.keys().filter(|file| !noticed.contains_key(*file)).collect();
    assert!(gone.is_empty(), "the former writer removed what the second left: {gone:?}");
    for _ in 0..3 {
        let error = write_synced(&volume.path("late"), b"more").expect_err("a writer that was fenced takes more");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS), "{error}");
        std::thread::sleep(Duration::from_millis(700));
    }
    assert!(digests(&volume) == noticed, "a writer that was fenced wrote on");
    let finished = run(brine_command(&["umount"]).arg(volume.mnt()));
    println!("unmounting the former writer: {finished}");
    detach(volume.mnt());
    if let Some(daemon) = volume.daemon().cloned()
        && !daemon.wait_gone(Duration::from_secs(20))
    {
        volume.kill_daemon();
    }
    volume.forget_daemon();

    let options = [format!("keyfile={}", volume.key_file().display()), format!("state={}", standby.display())];
    let source = volume.dir(0).to_path_buf();
    volume.try_mount_of(&source, &[&options[..], &["nosupervise".to_owned()]].concat()).expect_success();
    for (name, seed) in [("before", 1), ("next", 3)] {
        assert!(fs::read(volume.path(name)).expect("read") == content(seed, 400_000), "{name} is wrong");
    }
    assert!(!volume.path("late").exists(), "what was never answered is there");
    volume.expect_clean();
    "a stopped writer's place was taken; it was told, and wrote nothing on".into()
}
