//! What is measured: a plain directory, six of them, gocryptfs, brine. All on one filesystem.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::daemon::{self, PATIENCE, Process, detach, wait_for_mount};
use crate::failure::{Doing, Failure, Result};
use crate::options::Options;
use crate::place::{Place, sync_filesystem};
use crate::watch::{Reporter, Watch};

/// Directories of the volume, and of the side that writes plain files as the volume would.
pub const MEMBERS: usize = 6;
/// Data shards of the volume's default geometry over six directories.
pub const DATA_SHARDS: usize = 4;

const PASSPHRASE: &str = "correct horse battery staple\n";

/// One filesystem to be measured.
pub trait Side {
    /// Its name in the table.
    fn name(&self) -> &'static str;
    /// Where its files are.
    fn root(&self) -> &Path;
    /// The process that serves it, if one does.
    fn pid(&self) -> Option<u32>;
    /// Mounts it, if it is not.
    fn mount(&mut self) -> Result<()>;
    /// Unmounts it, if it is mounted, and waits until its daemon has ended. After an error it is unmounted, too, by
    /// force, so that it can be mounted again.
    fn unmount(&mut self) -> Result<()>;
    /// Everything written to it so far survives a power cut.
    fn sync_all(&self) -> Result<()>;
}

/// The sides asked for, mounted; those whose program is missing are left out with a message.
pub fn set_up(options: &Options, place: &Place, watch: &Watch) -> Result<Vec<Box<dyn Side>>> {
    let mut sides: Vec<Box<dyn Side>> = Vec::new();
    if options.has_side("plain") {
        sides.push(Box::new(Plain { name: "plain", root: place.directory("plain")? }));
    }
    if options.has_side("six") {
        let root = place.directory("six")?;
        for member in 0..MEMBERS {
            place.directory(&format!("six/{member}"))?;
        }
        sides.push(Box::new(Plain { name: "six", root }));
    }
    if options.has_side("gocryptfs") {
        match gocryptfs_version() {
            Some(_) => sides.push(Box::new(Gocryptfs::new(place, watch)?)),
            None => eprintln!("bench-mount: gocryptfs is not installed, so it is left out"),
        }
    }
    if options.has_side("brine") {
        let program = brine_program(options)?;
        if program.exists() {
            sides.push(Box::new(Brine::new(program, options, place, watch)?));
        } else {
            eprintln!("bench-mount: {} does not exist, so brine is left out; build it", program.display());
        }
    }
    for side in &mut sides {
        side.mount()?;
    }
    Ok(sides)
}

/// The program to measure.
pub fn brine_program(options: &Options) -> Result<PathBuf> {
    match &options.brine {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe().doing(|| "find this program".into())?.with_file_name("brine")),
    }
}

/// The first line gocryptfs says about itself; `None` if it is not installed.
pub fn gocryptfs_version() -> Option<String> {
    let output = Command::new("gocryptfs").arg("-version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(String::from)
}

struct Plain {
    name: &'static str,
    root: PathBuf,
}

impl Side for Plain {
    fn name(&self) -> &'static str {
        self.name
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn mount(&mut self) -> Result<()> {
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> Result<()> {
        sync_filesystem(&self.root)
    }
}

struct Gocryptfs {
    cipher: PathBuf,
    point: PathBuf,
    passphrase: PathBuf,
    child: Option<Child>,
    reporter: Reporter,
}

impl Gocryptfs {
    fn new(place: &Place, watch: &Watch) -> Result<Self> {
        let side = Self {
            cipher: place.directory("gocryptfs/cipher")?,
            point: place.directory("gocryptfs/mount")?,
            passphrase: place.path().join("gocryptfs/passphrase"),
            child: None,
            reporter: watch.reporter("gocryptfs"),
        };
        fs::write(&side.passphrase, PASSPHRASE).doing(|| format!("write {}", side.passphrase.display()))?;
        let mut init = Command::new("gocryptfs");
        // The key derivation is made cheap: it is paid at each mount, which is not measured.
        daemon::run(init.args(["-q", "-init", "-scryptn", "10", "-passfile"]).arg(&side.passphrase).arg(&side.cipher))?;
        Ok(side)
    }
}

impl Side for Gocryptfs {
    fn name(&self) -> &'static str {
        "gocryptfs"
    }

    fn root(&self) -> &Path {
        &self.point
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn mount(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let mut command = Command::new("gocryptfs");
        command.args(["-q", "-fg", "-passfile"]).arg(&self.passphrase).arg(&self.cipher).arg(&self.point);
        // Its own group: the terminal's interrupt is for this program, which then unmounts.
        let child = command.stdin(Stdio::null()).process_group(0).spawn().doing(|| "start gocryptfs".into())?;
        self.reporter.started(child.id());
        wait_for_mount(self.child.insert(child), &self.point)
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        self.reporter.ending();
        let asked = daemon::ask_to_unmount(|| {
            let mut command = Command::new("fusermount");
            command.arg("-u").arg(&self.point);
            command
        });
        if asked.is_err() {
            detach(&self.point);
            // It may have ended by itself.
            let _ = child.kill();
        }
        child.wait().doing(|| "wait for gocryptfs".into())?;
        asked
    }

    fn sync_all(&self) -> Result<()> {
        // Its own syncfs reaches only the kernel's side of the mount; what it wrote lies in the cipher directory.
        sync_filesystem(&self.point)?;
        sync_filesystem(&self.cipher)
    }
}

impl Drop for Gocryptfs {
    fn drop(&mut self) {
        if let Err(failure) = self.unmount() {
            eprintln!("bench-mount: {failure}");
        }
    }
}

struct Brine {
    program: PathBuf,
    members: Vec<PathBuf>,
    state: PathBuf,
    point: PathBuf,
    passphrase: PathBuf,
    further_options: Option<String>,
    process: Option<Process>,
    reporter: Reporter,
}

impl Brine {
    fn new(program: PathBuf, options: &Options, place: &Place, watch: &Watch) -> Result<Self> {
        let mut members = Vec::new();
        for member in 0..MEMBERS {
            members.push(place.directory(&format!("brine/{member}"))?);
        }
        let side = Self {
            program,
            members,
            state: place.directory("brine/state")?,
            point: place.directory("brine/mount")?,
            passphrase: place.path().join("brine/passphrase"),
            further_options: options.mount_options.clone(),
            process: None,
            reporter: watch.reporter("brine"),
        };
        fs::write(&side.passphrase, PASSPHRASE).doing(|| format!("write {}", side.passphrase.display()))?;
        let mut format = Command::new(&side.program);
        format.arg("format").args(&side.members).arg("--passphrase-file").arg(&side.passphrase);
        daemon::run(format.arg("--state-dir").arg(&side.state))?;
        Ok(side)
    }

    fn ask_process(&self) -> Result<Process> {
        let output = daemon::run(Command::new(&self.program).args(["status", "--json"]).arg(&self.point))?;
        let status: serde_json::Value =
            serde_json::from_slice(&output.stdout).doing(|| "read the answer of brine status --json".into())?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.and_then(Process::now).ok_or_else(|| Failure::new("brine status --json names no living pid"))
    }
}

impl Side for Brine {
    fn name(&self) -> &'static str {
        "brine"
    }

    fn root(&self) -> &Path {
        &self.point
    }

    fn pid(&self) -> Option<u32> {
        self.process.map(Process::pid)
    }

    fn mount(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let mut options = format!("passfile={},state={}", self.passphrase.display(), self.state.display());
        if let Some(further) = &self.further_options {
            options = format!("{options},{further}");
        }
        let mut command = Command::new(&self.program);
        command.arg("mount").arg(&self.members[0]).arg(&self.point).arg("-o").arg(options).process_group(0);
        // No pipe: a daemon that kept it open would keep its reader waiting.
        let log = self.point.with_file_name("log");
        let file = File::create(&log).doing(|| format!("make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let status = command.status().doing(|| format!("start {}", self.program.display()))?;
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(Failure::new(format!("brine mount ended with {status}: {}", said.trim())));
        }
        let process = self.ask_process()?;
        self.reporter.started(process.pid());
        self.process = Some(process);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        self.reporter.ending();
        let asked = daemon::ask_to_unmount(|| {
            let mut command = Command::new(&self.program);
            command.arg("umount").arg(&self.point);
            command
        });
        if asked.is_err() {
            detach(&self.point);
        }
        if !process.wait(PATIENCE) {
            process.kill();
            return Err(Failure::new(format!(
                "brine (pid {}) still ran {PATIENCE:?} after umount, and was killed",
                process.pid()
            )));
        }
        asked
    }

    fn sync_all(&self) -> Result<()> {
        // syncfs does not reach a FUSE daemon; fsync of anything makes durable all that was accepted before it.
        let root = File::open(&self.point).doing(|| format!("open {}", self.point.display()))?;
        root.sync_all().doing(|| format!("sync {}", self.point.display()))
    }
}

impl Drop for Brine {
    fn drop(&mut self) {
        if let Err(failure) = self.unmount() {
            eprintln!("bench-mount: {failure}");
        }
        // Mounted, but its process was never learned: it ends by itself once nothing is mounted.
        detach(&self.point);
    }
}
