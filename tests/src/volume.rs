//! A volume of its own for each test: made, mounted, damaged, and taken away again whatever happens.
//!
//! Promises: only the daemon this volume started is ever killed, and only its own mountpoint detached. A test that
//! leaves a mount or a daemon behind fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::command::{Finished, program, run, run_for};
use crate::environment::{brine, is_mounted, require_fuse, temp_dir};
use crate::watchdog::Watchdog;

/// Passphrase of every volume that has one.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// How a volume is unlocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// By a key file, which costs no time.
    KeyFile,
    /// By a passphrase, as cheaply as the program can.
    Passphrase,
}

/// A running daemon, told from any later process with its number by its start time.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Process id.
    pub pid: i32,
    started: String,
}

impl Daemon {
    /// The process `pid`, if it runs.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: start_time(pid)? })
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Waits until it is gone.
    pub fn wait_gone(&self, patience: Duration) -> bool {
        wait_until(patience, || !self.alive())
    }
}

/// Start time of a process that has not ended, as /proc writes it.
fn start_time(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything. After it: state, ..., number of threads, 0, start time.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // A first thread that ended is a zombie while others still run, and hold locks and files.
    let ended = matches!(fields.first(), Some(&"Z" | &"X")) && matches!(fields.get(17), Some(&"0" | &"1"));
    if ended { None } else { fields.get(19).map(|&time| time.to_owned()) }
}

/// Asks every few milliseconds until `done` or `patience` is over; says which.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if done() {
            return true;
        }
        if started.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a test wants its volume to be.
#[derive(Debug)]
pub struct Builder {
    name: String,
    directories: usize,
    at: Option<Vec<PathBuf>>,
    geometry: Option<(usize, usize)>,
    secret: Secret,
    format_args: Vec<String>,
    options: Vec<String>,
    supervised: bool,
    lifetime: Option<Duration>,
}

impl Builder {
    /// Six directories, 4+2, a key file, a daemon that stays dead when killed.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            directories: 6,
            at: None,
            geometry: Some((4, 2)),
            secret: Secret::KeyFile,
            format_args: Vec::new(),
            options: Vec::new(),
            supervised: false,
            lifetime: None,
        }
    }

    /// `count` new backing directories beside each other.
    pub fn directories(mut self, count: usize) -> Self {
        self.directories = count;
        self
    }

    /// Backing directories that exist already; they are not removed afterwards.
    pub fn directories_at(mut self, directories: Vec<PathBuf>) -> Self {
        self.directories = directories.len();
        self.at = Some(directories);
        self
    }

    /// k data and m parity shards.
    pub fn geometry(mut self, data: usize, parity: usize) -> Self {
        self.geometry = Some((data, parity));
        self
    }

    /// The geometry `brine format` chooses by itself.
    pub fn default_geometry(mut self) -> Self {
        self.geometry = None;
        self
    }

    /// How it is unlocked.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = secret;
        self
    }

    /// More arguments for `brine format`.
    pub fn format_args(mut self, args: &[&str]) -> Self {
        self.format_args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// One more mount option.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// With a supervisor, as by default: a daemon that dies is replaced.
    pub fn supervised(mut self) -> Self {
        self.supervised = true;
        self
    }

    /// How long the test may take before its daemon is ended.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Makes directories and secrets; formats and mounts nothing.
    #[track_caller]
    pub fn prepare(mut self) -> TestVolume {
        require_fuse();
        if !self.supervised {
            self.options.insert(0, "nosupervise".into());
        }
        let root = temp_dir(&self.name);
        let dirs = self.at.unwrap_or_else(|| (0..self.directories).map(|i| root.join(format!("d{i}"))).collect());
        let (mountpoint, key_file) = (root.join("mnt"), root.join("key"));
        for dir in dirs.iter().chain([&mountpoint]) {
            fs::create_dir_all(dir).unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
        }
        match self.secret {
            Secret::KeyFile => fs::write(&key_file, crate::content(0x6b6579, 64)),
            Secret::Passphrase => fs::write(&key_file, format!("{PASSPHRASE}\n")),
        }
        .and_then(|()| fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)))
        .expect("write the secret");
        let watchdog = Watchdog::new(&self.name, mountpoint.clone(), self.lifetime);
        TestVolume {
            name: self.name,
            state: root.join("state"),
            root,
            dirs,
            mountpoint,
            key_file,
            secret: self.secret,
            geometry: self.geometry,
            format_args: self.format_args,
            options: self.options,
            daemon: None,
            watchdog,
        }
    }

    /// Makes and formats it; mounts nothing.
    #[track_caller]
    pub fn format(self) -> TestVolume {
        let volume = self.prepare();
        volume.try_format().expect_success();
        volume
    }

    /// Makes, formats and mounts it.
    #[track_caller]
    pub fn mount(self) -> TestVolume {
        let mut volume = self.format();
        volume.mount();
        volume
    }
}

/// A volume in a temporary directory. Dropping it unmounts it and removes everything.
pub struct TestVolume {
    name: String,
    root: PathBuf,
    dirs: Vec<PathBuf>,
    state: PathBuf,
    mountpoint: PathBuf,
    key_file: PathBuf,
    secret: Secret,
    geometry: Option<(usize, usize)>,
    format_args: Vec<String>,
    options: Vec<String>,
    daemon: Option<Daemon>,
    watchdog: Watchdog,
}

impl TestVolume {
    /// A mounted volume over `directories` new directories.
    #[track_caller]
    pub fn new(name: &str, directories: usize, geometry: (usize, usize)) -> Self {
        Builder::new(name).directories(directories).geometry(geometry.0, geometry.1).mount()
    }

    /// The temporary directory that holds everything; for a test's own files too.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where it is mounted.
    pub fn mnt(&self) -> &Path {
        &self.mountpoint
    }

    /// A path inside the mounted volume.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.mountpoint.join(relative)
    }

    /// Backing directory `i`, in the order given to `brine format`.
    pub fn dir(&self, i: usize) -> &Path {
        &self.dirs[i]
    }

    /// All backing directories.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The file that holds its key or passphrase.
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// The daemon, while mounted.
    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// `--key-file F` or `--passphrase-file F`.
    pub fn unlock_args(&self) -> [String; 2] {
        let flag = match self.secret {
            Secret::KeyFile => "--key-file",
            Secret::Passphrase => "--passphrase-file",
        };
        [flag.into(), self.key_file.display().to_string()]
    }

    /// `brine format` as the builder said.
    #[track_caller]
    pub fn try_format(&self) -> Finished {
        let mut command = brine_command(&["format"]);
        command.args(&self.dirs).args(self.unlock_args()).arg("--state-dir").arg(&self.state);
        if let Some((data, parity)) = self.geometry {
            command.args(["--data", &data.to_string(), "--parity", &parity.to_string()]);
        }
        if self.secret == Secret::Passphrase && knows_fast_kdf() {
            command.args(["--kdf", "fast"]);
        }
        run(command.args(&self.format_args).arg("--json"))
    }

    /// A directory by which the volume can be named: the first that still has its marker.
    pub fn source(&self) -> PathBuf {
        let has_marker = |dir: &&PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("superblock"))
        };
        self.dirs.iter().find(has_marker).unwrap_or(&self.dirs[0]).clone()
    }

    /// The mount options that unlock and place it, before those of the builder.
    pub fn base_options(&self) -> Vec<String> {
        let secret = match self.secret {
            Secret::KeyFile => "keyfile",
            Secret::Passphrase => "passfile",
        };
        vec![format!("{secret}={}", self.key_file.display()), format!("state={}", self.state.display())]
    }

    /// `brine mount` of `source` with these options only; success and failure are the caller's.
    #[track_caller]
    pub fn try_mount_of(&mut self, source: &Path, options: &[String]) -> Finished {
        assert!(self.daemon.is_none(), "{} is mounted already", self.name);
        let mut command = brine_command(&["mount"]);
        command.arg(source).arg(&self.mountpoint).arg("-o").arg(options.join(","));
        let finished = run_for(&mut command, Duration::from_secs(90));
        if finished.success() && is_mounted(&self.mountpoint) {
            self.adopt();
        }
        finished
    }

    /// `brine mount` with `options` after those of the builder; success and failure are the caller's.
    #[track_caller]
    pub fn try_mount(&mut self, options: &[&str]) -> Finished {
        let extra = options.iter().map(|&option| option.to_owned());
        let all: Vec<String> = self.base_options().into_iter().chain(self.options.clone()).chain(extra).collect();
        self.try_mount_of(&self.source(), &all)
    }

    /// Mounts it.
    #[track_caller]
    pub fn mount(&mut self) {
        self.mount_with(&[]);
    }

    /// Mounts it with further options.
    #[track_caller]
    pub fn mount_with(&mut self, options: &[&str]) -> Finished {
        let finished = self.try_mount(options).expect_success();
        assert!(is_mounted(&self.mountpoint), "`brine mount` succeeded and nothing is mounted: {finished}");
        finished
    }

    /// Finds the daemon behind the mountpoint.
    #[track_caller]
    pub fn adopt(&mut self) {
        let pid = self.status()["pid"].as_i64().expect("status has the daemon's pid") as i32;
        assert!(pid > 1 && pid != std::process::id() as i32, "status names process {pid} as the daemon");
        self.daemon = Daemon::of(pid);
        assert!(self.daemon.is_some(), "status names process {pid} as the daemon, which does not run");
        self.watchdog.set_daemon(self.daemon.clone());
    }

    /// Unmounts it and waits until its daemon has ended.
    #[track_caller]
    pub fn umount(&mut self) {
        let finished = run(brine_command(&["umount"]).arg(&self.mountpoint)).expect_success();
        assert!(!is_mounted(&self.mountpoint), "`brine umount` succeeded and it is still mounted: {finished}");
        if let Some(daemon) = self.daemon.take() {
            let gone = daemon.wait_gone(Duration::from_secs(20));
            self.watchdog.set_daemon(None);
            if !gone {
                daemon.kill();
                panic!("the daemon {} still ran 20 s after `brine umount` had succeeded", daemon.pid);
            }
        }
    }

    /// umount(8), which does not wait for the daemon to end.
    #[track_caller]
    pub fn umount8(&mut self) {
        run(Command::new(program("umount")).arg(&self.mountpoint)).expect_success();
        self.daemon = None;
        self.watchdog.set_daemon(None);
    }

    /// Unmounts and mounts again: every cache is empty afterwards.
    #[track_caller]
    pub fn remount(&mut self) {
        self.umount();
        self.mount();
    }

    /// SIGKILL to the daemon, and waits until it is gone. The mountpoint is left as that leaves it.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        let daemon = self.daemon.take().expect("it is mounted");
        self.watchdog.set_daemon(None);
        daemon.kill();
        assert!(daemon.wait_gone(Duration::from_secs(20)), "daemon {} survived SIGKILL for 20 s", daemon.pid);
    }

    /// Notes that it was unmounted by other means.
    pub fn forget_daemon(&mut self) {
        self.daemon = None;
        self.watchdog.set_daemon(None);
    }

    /// Takes a dead daemon's mountpoint away.
    pub fn detach(&mut self) {
        detach(&self.mountpoint);
    }

    /// `brine status --json` of the mountpoint.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.status_of(&self.mountpoint.clone())
    }

    /// `brine status --json` of any source or mountpoint of the volume.
    #[track_caller]
    pub fn status_of(&self, which: &Path) -> Value {
        let finished = run(brine_command(&["status", "--json"]).arg(which));
        match serde_json::from_str(&finished.stdout) {
            Ok(value) => value,
            Err(error) => panic!("`brine status --json` does not print JSON ({error}): {finished}"),
        }
    }

    /// A number in status, by path: `number(&["space", "stored_bytes"])`.
    #[track_caller]
    pub fn number(&self, path: &[&str]) -> u64 {
        let status = self.status();
        let value = path.iter().fold(&status, |value, key| &value[*key]);
        value.as_u64().unwrap_or_else(|| panic!("status has no number {}: {status:#}", path.join(".")))
    }

    /// `brine sync`.
    #[track_caller]
    pub fn sync(&self) {
        run(brine_command(&["sync"]).arg(&self.mountpoint)).expect_success();
    }

    /// `brine check --json` of the mounted volume; the report, whatever the exit code.
    #[track_caller]
    pub fn check(&self) -> Value {
        let finished = run(brine_command(&["check", "--json"]).arg(&self.mountpoint).args(self.unlock_args()));
        // Progress may come before the report, a line each.
        let report = finished.stdout.find('{').and_then(|_| last_json(&finished.stdout));
        report.unwrap_or_else(|| panic!("`brine check --json` does not print JSON: {finished}"))
    }

    /// `brine check`, which must find nothing.
    #[track_caller]
    pub fn expect_clean(&self) {
        let report = self.check();
        assert_eq!(report["healthy"], Value::Bool(true), "check is not clean: {report:#}");
        let lists = ["damaged", "tables"].map(|list| report[list].as_array().map_or(0, Vec::len));
        assert_eq!(lists, [0, 0], "check is not clean: {report:#}");
    }

    /// Any other `brine` command.
    #[track_caller]
    pub fn brine(&self, args: &[&str]) -> Finished {
        run(&mut brine_command(args))
    }
}

impl Drop for TestVolume {
    fn drop(&mut self) {
        let mut complaints = Vec::new();
        if std::thread::panicking() {
            self.tell_how_it_was();
        }
        if is_mounted(&self.mountpoint) {
            let finished = run_for(brine_command(&["umount"]).arg(&self.mountpoint), Duration::from_secs(40));
            if !finished.success() || is_mounted(&self.mountpoint) {
                complaints.push(format!("it could not be unmounted: {finished}"));
            }
        }
        detach(&self.mountpoint);
        if let Some(daemon) = self.daemon.take().filter(|daemon| !daemon.wait_gone(Duration::from_secs(20))) {
            complaints.push(format!("its daemon {} had to be killed", daemon.pid));
            daemon.kill();
            daemon.wait_gone(Duration::from_secs(5));
        }
        if is_mounted(&self.mountpoint) {
            complaints.push(format!("{} is still mounted", self.mountpoint.display()));
        } else if std::env::var_os("BRINE_TEST_KEEP").is_some() && std::thread::panicking() {
            eprintln!("kept: {}", self.root.display());
        } else if let Err(error) = fs::remove_dir_all(&self.root) {
            complaints.push(format!("{} cannot be removed: {error}", self.root.display()));
        }
        if !complaints.is_empty() {
            let text = format!("volume {} left something behind: {}", self.name, complaints.join("; "));
            if std::thread::panicking() { eprintln!("{text}") } else { panic!("{text}") }
        }
    }
}

impl TestVolume {
    /// What helps to understand a failure, printed before everything is taken away.
    fn tell_how_it_was(&self) {
        if is_mounted(&self.mountpoint) {
            let status = run_for(brine_command(&["status", "--json"]).arg(&self.mountpoint), Duration::from_secs(10));
            eprintln!("--- status when the test failed\n{}", status.text().trim_end());
        }
        for log in fs::read_dir(&self.state).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if log.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- end of {}\n{}", log.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}

/// Detaches exactly this mountpoint, however broken, however often mounted over.
pub fn detach(mountpoint: &Path) {
    for _ in 0..4 {
        if !is_mounted(mountpoint) {
            return;
        }
        if nix::mount::umount2(mountpoint, nix::mount::MntFlags::MNT_DETACH).is_err() {
            let _ = run(Command::new(program("fusermount3")).arg("-uz").arg(mountpoint));
        }
    }
}

/// `brine` with these arguments.
#[track_caller]
pub fn brine_command(args: &[&str]) -> Command {
    let mut command = Command::new(brine());
    command.args(args);
    command
}

/// Whether `brine format` can be told to spend no time on the passphrase.
fn knows_fast_kdf() -> bool {
    static KNOWS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *KNOWS.get_or_init(|| {
        let help = run(&mut brine_command(&["format", "--help"]));
        help.text().contains("--kdf")
    })
}

/// The last JSON object of an output that may begin with lines of progress.
fn last_json(text: &str) -> Option<Value> {
    let whole = serde_json::from_str(text).ok();
    whole.or_else(|| text.lines().rev().find_map(|line| serde_json::from_str(line).ok())).or_else(|| {
        let starts = text.match_indices("\n{").map(|(at, _)| at + 1);
        starts.last().and_then(|at| serde_json::from_str(&text[at..]).ok())
    })
}
