//! A directory as the volume, sandboxes on it, and runs whose output is collected.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use brine_exec::{Config, Identity, Limits, Outcome, Plan, Sandboxes, View, ViewAccess};

/// Sandboxes over a directory that is removed with them.
pub struct Place {
    pub sandboxes: Sandboxes,
    pub volume: PathBuf,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let label = format!("test-{}-{number}", std::process::id());
        let volume = std::env::temp_dir().join(format!("brine-exec-{label}"));
        fs::create_dir_all(volume.join("exec")).unwrap();
        let mut config = Config::new(&label, &volume);
        config.program = PathBuf::from(env!("CARGO_BIN_EXE_sandbox-probe"));
        change(&mut config);
        let place = Self { sandboxes: Sandboxes::start(config).unwrap(), volume };
        fs::copy(env!("CARGO_BIN_EXE_sandbox-probe"), place.volume.join("exec/probe")).unwrap();
        place
    }

    /// Put a script into exec/ and plan a run of it.
    pub fn script(&self, name: &str, text: &str) -> Plan {
        self.file(&format!("exec/{name}"), text, 0o755);
        self.plan(name)
    }

    /// Plan a run of a program in exec/ as this process's user.
    pub fn plan(&self, name: &str) -> Plan {
        let identity =
            Identity { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), groups: Vec::new() };
        Plan::new(identity, view(&format!("exec/{name}"), &format!("/mnt/volume/exec/{name}"), ViewAccess::Read))
    }

    /// The probe program with these arguments.
    pub fn probe(&self, arguments: &[&str]) -> Plan {
        let mut plan = self.plan("probe");
        plan.argv.extend(arguments.iter().map(Into::into));
        plan
    }

    pub fn file(&self, path: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.volume.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Run it without input; what it wrote comes back, standard error behind standard output.
    /// A root image with a shell and the libraries it needs.
    pub fn image(&self, name: &str) -> PathBuf {
        let image = self.volume.join(name);
        for name in ["bin", "etc", "lib", "lib64", "usr"] {
            fs::create_dir_all(image.join(name)).unwrap();
        }
        fs::copy("/bin/sh", image.join("bin/sh")).unwrap();
        let list = Command::new("ldd").arg("/bin/sh").output().unwrap();
        for word in String::from_utf8_lossy(&list.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            let at = image.join(&word[1..]);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::copy(word, at).unwrap();
        }
        image
    }

    pub fn run(&self, plan: &Plan) -> (Outcome, String) {
        let (mut read, write) = std::io::pipe().unwrap();
        let second: OwnedFd = write.try_clone().unwrap().into();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            read.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        let outcome = self.sandboxes.run(plan, [Some(null), Some(write.into()), Some(second)]);
        let text = reader.join().unwrap();
        (outcome.unwrap_or_else(|error| panic!("{error}\n{text}")), text)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sandboxes.stop();
        let _ = fs::remove_dir_all(&self.volume);
    }
}

pub fn view(source: &str, at: &str, access: ViewAccess) -> View {
    View { source: source.into(), ino: None, at: at.into(), access }
}

pub fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

/// Processes of this machine that have these words, whole and in this order, in their command line.
pub fn running(words: &str) -> usize {
    let words: Vec<&str> = words.split(' ').collect();
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let has = |line: Vec<u8>| {
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split('\0').collect::<Vec<_>>().windows(words.len()).any(|part| part == words)
    };
    entries.flatten().filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(has)).count()
}

/// Whether there is any.
pub fn is_running(words: &str) -> bool {
    running(words) > 0
}

pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
