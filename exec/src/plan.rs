//! What a sandbox will be and what is run in it, as data that can be printed before anything is done.
//!
//! A [`Plan`] is made by whoever decides (policy, scope, caller); this crate does what it says and decides nothing
//! more. Paths of the volume are from the volume's root; paths inside are absolute. It does not know FUSE: the volume
//! is whatever directory the sandboxes were started on.

use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::policy::{Limits, MEMORY_BYTES_MIN, Network};

/// Views of one run at most: one a granted argument (256), and as many by policy.
pub const VIEWS_MAX: usize = 512;
/// The program that interpreter lines name, from the root of the volume.
pub const LAUNCHER: &str = ".brine/launcher";

/// Bytes of argv and environment together at most; the kernel's own bound is 6 MiB.
pub const ARGUMENT_BYTES_MAX: usize = 6 << 20;
/// Runs that invoke runs: levels at most.
pub const DEPTH_MAX: u8 = 4;
/// Supplementary groups at most: the kernel takes 340 ranges in a map.
pub const GROUPS_MAX: usize = 330;

/// Whose rights a run has (X7).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What a run's root directory is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Root {
    /// The host's system directories, read-only.
    #[default]
    Host,
    /// A directory of the volume with a private layer above it, from the volume's root.
    Image(PathBuf),
}

/// The state a sandbox starts from (X8). Sandboxes of one template and identity are exchangeable until they are used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    /// Its root.
    pub root: Root,
    /// Its network.
    pub network: Network,
    /// Size of its scratch, bytes.
    pub scratch_bytes: u64,
}

/// What may be done with what a view shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewAccess {
    /// Read and, where mode bits allow, execute.
    Read,
    /// Write as well.
    Write,
    /// Write, into this directory of the volume instead, from its root: it holds `upper` and `work` for overlayfs, and
    /// what the view shows is left as it is.
    Stage(PathBuf),
}

impl ViewAccess {
    /// For records and reports.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Stage(_) => "stage",
        }
    }
}

/// A path of the volume that the run sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Path from the volume's root; it is resolved without symbolic links.
    pub source: PathBuf,
    /// Inode number it must have when it is resolved; else the run is refused.
    pub ino: Option<u64>,
    /// Where the run sees it.
    pub at: PathBuf,
    /// What may be done with it.
    pub access: ViewAccess,
}

/// What a program is: two of one id hold the same bytes and may be run by the same users, whenever they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId {
    /// Inode number.
    pub inode: u64,
    /// How often the number was given before.
    pub generation: u32,
    /// Version of its content.
    pub version: u64,
    /// Length, bytes.
    pub bytes: u64,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// One run, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whose rights it has.
    pub identity: Identity,
    /// The sandbox's initial state.
    pub template: Template,
    /// The program: its code node, seen and started at `at`. Always read-only.
    pub program: View,
    /// What it is, if a copy of it may be run instead.
    pub program_id: Option<ProgramId>,
    /// What else of the volume exists for it.
    pub views: Vec<View>,
    /// Its limits.
    pub limits: Limits,
    /// Start even if a limit cannot be enforced here.
    pub best_effort: bool,
    /// Where processes of the run find the socket of its credential (X12); none: it has no credential.
    pub credential: Option<PathBuf>,
    /// How many runs it was invoked through: 0 for a launcher outside, at most [`DEPTH_MAX`].
    pub depth: u8,
    /// Arguments, the first being the path it was called by.
    pub argv: Vec<OsString>,
    /// Environment, complete: nothing is added but what [`Plan::environment_default`] gave.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory inside; made (empty) if no view gives it.
    pub directory: PathBuf,
    /// File mode creation mask.
    pub umask: u32,
    /// Nice value, -20 to 19; negative ones are not given.
    pub nice: i32,
    /// Signals that start ignored; bit n-1 for signal n.
    pub ignored_signals: u64,
}

impl Plan {
    /// A run of `program` as `identity` with nothing else of the volume, default limits and environment.
    pub fn new(identity: Identity, program: View) -> Self {
        let limits = Limits::default();
        Self {
            identity,
            template: Template { root: Root::Host, network: Network::None, scratch_bytes: limits.scratch_bytes },
            argv: vec![program.at.clone().into_os_string()],
            program,
            program_id: None,
            views: Vec::new(),
            limits,
            best_effort: false,
            credential: None,
            depth: 0,
            environment: Self::environment_default(),
            directory: PathBuf::from("/"),
            umask: 0o022,
            nice: 0,
            ignored_signals: 0,
        }
    }

    /// What every run has in its environment. A policy may add names; `LD_*` and the like never.
    pub fn environment_default() -> Vec<(OsString, OsString)> {
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/tmp")]
            .map(|(name, value)| (name.into(), value.into()))
            .into()
    }

    /// Set the limits, and the scratch size of the template with them.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self.template.scratch_bytes = limits.scratch_bytes;
        self
    }

    /// Refuse what cannot be built, before anything is spent on it.
    ///
    /// # Errors
    /// [`Error::Refused`] names what is wrong.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::Refused(text));
        if self.views.len() > VIEWS_MAX {
            return refuse(format!("{} paths are granted, {VIEWS_MAX} are possible", self.views.len()));
        }
        if self.identity.groups.len() > GROUPS_MAX {
            return refuse(format!("the caller has {} groups, {GROUPS_MAX} are possible", self.identity.groups.len()));
        }
        let strings = self.argv.iter().map(|word| word.len() + 9);
        let variables = self.environment.iter().map(|(name, value)| name.len() + value.len() + 10);
        if strings.chain(variables).sum::<usize>() > ARGUMENT_BYTES_MAX {
            return refuse("argument list too long".into());
        }
        if self.depth > DEPTH_MAX {
            return refuse(format!("functions invoke each other more than {DEPTH_MAX} levels deep"));
        }
        if self.argv.is_empty() {
            return refuse("an argument list has at least one word".into());
        }
        for view in self.views.iter().chain([&self.program]) {
            if !inside(&view.at) || RESERVED.iter().any(|taken| view.at.starts_with(taken)) || view.at == Path::new("/")
            {
                return refuse(format!("{} cannot be shown at this path in a sandbox", view.at.display()));
            }
            let staged = if let ViewAccess::Stage(path) = &view.access { Some(path) } else { None };
            for path in [&view.source].into_iter().chain(staged) {
                if path.is_absolute() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
                    return refuse(format!("{} is no path of the volume", path.display()));
                }
            }
        }
        if self.credential.as_ref().is_some_and(|path| !inside(path) || path.file_name().is_none()) {
            return refuse("the credential cannot be shown at this path".into());
        }
        if !inside(&self.directory) {
            return refuse(format!("{} cannot be a working directory", self.directory.display()));
        }
        if self.limits.memory_bytes < MEMORY_BYTES_MIN {
            return refuse(format!("a run needs at least {} MiB of memory", MEMORY_BYTES_MIN >> 20));
        }
        if self.template.scratch_bytes != self.limits.scratch_bytes {
            return refuse("the template's scratch size is not the limits'".into());
        }
        if self.limits.pids == 0 || self.limits.cpu_milli == 0 || self.limits.wall.is_zero() {
            return refuse("a limit of nothing: no process, no processor or no time".into());
        }
        Ok(())
    }

    /// Memory the group is allowed: the run's and its scratch (X9).
    pub fn group_memory_bytes(&self) -> u64 {
        self.limits.memory_bytes.saturating_add(self.limits.scratch_bytes)
    }
}

/// Places a view may not cover: what the sandbox itself is made of.
const RESERVED: [&str; 4] = ["/proc", "/dev", "/sys", "/var/empty"];

/// Absolute, without `.` and `..`.
fn inside(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

impl Template {
    /// Digest of all that a sandbox of this template starts from: what is in it, and the version of how it is made.
    pub fn digest(&self) -> [u8; 32] {
        blake3::hash(self.to_string().as_bytes()).into()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "namespaces user mnt pid ipc uts cgroup{}",
            if self.network == Network::None { " net" } else { "" }
        )?;
        match &self.root {
            Root::Host => writeln!(f, "root host system directories, read-only")?,
            Root::Image(path) => writeln!(f, "root image {}", path.display())?,
        }
        writeln!(f, "scratch /tmp {} bytes", self.scratch_bytes)?;
        writeln!(f, "network {}", if self.network == Network::None { "none" } else { "host" })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.template)?;
        let Identity { uid, gid, groups } = &self.identity;
        writeln!(f, "identity uid {uid} gid {gid} groups {groups:?}, capabilities none")?;
        writeln!(f, "program {} at {}", self.program.source.display(), self.program.at.display())?;
        for view in &self.views {
            let access = view.access.word();
            writeln!(f, "{access} {} at {}", view.source.display(), view.at.display())?;
        }
        let limits = &self.limits;
        writeln!(
            f,
            "limits memory {} scratch {} cpu {}/1000 pids {} wall {} s cpu-time {} files {} file-size {}",
            limits.memory_bytes,
            limits.scratch_bytes,
            limits.cpu_milli,
            limits.pids,
            limits.wall.as_secs_f64(),
            limits.cpu_time.map_or("any".into(), |time| format!("{} s", time.as_secs_f64())),
            limits.open_files,
            limits.file_size_bytes
        )?;
        writeln!(f, "directory {} umask {:03o} nice {}", self.directory.display(), self.umask, self.nice)
    }
}

#[cfg(test)]
mod tests;
