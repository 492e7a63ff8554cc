//! What daemon, spawner and init tell each other. All three are the same program; decoders are bounded all the same.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::plan::{Identity, Plan, Root, Template, View, ViewAccess};
use crate::policy::Network;
use crate::protocol::bytes::{Reader, Writer};

/// Daemon to spawner: make a sandbox. With it come the init's socket, then the group to be born in if `born`, then
/// files to write its number to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Make {
    pub identity: Identity,
    pub template: Template,
    /// A version 2 group comes with it.
    pub born: bool,
    /// A directory its program will probably be shown in: to make it takes time that a run need not wait. May be empty.
    pub place: PathBuf,
}

impl Make {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(self.identity.uid).u32(self.identity.gid).u32(self.identity.groups.len() as u32);
        for group in &self.identity.groups {
            out.u32(*group);
        }
        match &self.template.root {
            Root::Host => out.u8(0),
            Root::Image(path) => out.u8(1).path(path),
        };
        out.u8(u8::from(self.template.network == Network::Host)).u64(self.template.scratch_bytes);
        out.u8(u8::from(self.born)).path(&self.place);
        out.0
    }

    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        let identity = Identity { uid: body.u32()?, gid: body.u32()?, groups: body.list(Reader::u32)? };
        let root = match body.u8()? {
            0 => Root::Host,
            1 => Root::Image(body.path()?),
            _ => return Err(Error::Malformed("an unknown kind of root")),
        };
        let network = if body.u8()? == 1 { Network::Host } else { Network::None };
        let template = Template { root, network, scratch_bytes: body.u64()? };
        let born = body.u8()? == 1;
        let place = body.path()?;
        body.end()?;
        Ok(Self { identity, template, born, place })
    }
}

/// Daemon to init: run this. With it come the launcher's connection, then the credential if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub program: View,
    /// Number of a copy to be run instead, if it is still there; 0: none.
    pub copy: u64,
    pub views: Vec<View>,
    pub argv: Vec<OsString>,
    pub environment: Vec<OsString>,
    pub directory: PathBuf,
    pub umask: u32,
    pub nice: i32,
    pub ignored_signals: u64,
    pub wall: Duration,
    pub cpu_time: Option<Duration>,
    pub grace: Duration,
    pub open_files: u64,
    pub file_size_bytes: u64,
    /// Limits no group enforces: processes, memory; held by the weaker per-process ones. 0 if a group does.
    pub pids: u64,
    pub memory_bytes: u64,
    /// Descriptor 3 comes with it, and this is where the socket beside it is made.
    pub credential: Option<PathBuf>,
}

impl Run {
    pub fn of(plan: &Plan, copy: Option<u64>, pids_in_group: bool, memory_in_group: bool) -> Self {
        let entry = |(name, value): &(OsString, OsString)| {
            let mut entry = name.clone();
            entry.push("=");
            entry.push(value);
            entry
        };
        let limits = &plan.limits;
        Self {
            program: plan.program.clone(),
            copy: copy.unwrap_or(0),
            views: plan.views.clone(),
            argv: plan.argv.clone(),
            environment: plan.environment.iter().map(entry).collect(),
            directory: plan.directory.clone(),
            umask: plan.umask,
            nice: plan.nice.max(0),
            ignored_signals: plan.ignored_signals,
            wall: limits.wall,
            cpu_time: limits.cpu_time,
            grace: limits.grace,
            open_files: limits.open_files,
            file_size_bytes: limits.file_size_bytes,
            pids: if pids_in_group { 0 } else { u64::from(limits.pids) },
            memory_bytes: if memory_in_group { 0 } else { limits.memory_bytes },
            credential: plan.credential.clone(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        fn view(out: &mut Writer, view: &View) {
            out.path(&view.source).u64(view.ino.unwrap_or(0)).u8(u8::from(view.ino.is_some())).path(&view.at);
            match &view.access {
                ViewAccess::Read => out.u8(0),
                ViewAccess::Write => out.u8(1),
                ViewAccess::Stage(path) => out.u8(2).path(path),
            };
        }
        fn strings(out: &mut Writer, strings: &[OsString]) {
            out.u32(strings.len() as u32);
            for string in strings {
                out.bytes(string.as_bytes());
            }
        }
        let mut out = Writer::default();
        view(&mut out, &self.program);
        out.u64(self.copy);
        out.u32(self.views.len() as u32);
        self.views.iter().for_each(|one| view(&mut out, one));
        strings(&mut out, &self.argv);
        strings(&mut out, &self.environment);
        out.path(&self.directory).u32(self.umask).u32(self.nice as u32).u64(self.ignored_signals);
        out.u64(nanoseconds(self.wall)).u64(self.cpu_time.map_or(0, nanoseconds)).u64(nanoseconds(self.grace));
        out.u64(self.open_files).u64(self.file_size_bytes).u64(self.pids).u64(self.memory_bytes);
        out.path(self.credential.as_deref().unwrap_or(Path::new("")));
        out.0
    }

    pub fn decode(body: &[u8]) -> Result<Self> {
        fn view(body: &mut Reader<'_>) -> Result<View> {
            let source = body.path()?;
            let (ino, known) = (body.u64()?, body.u8()? == 1);
            let at = body.path()?;
            let access = match body.u8()? {
                0 => ViewAccess::Read,
                1 => ViewAccess::Write,
                2 => ViewAccess::Stage(body.path()?),
                _ => return Err(Error::Malformed("an unknown kind of view")),
            };
            Ok(View { source, ino: known.then_some(ino), at, access })
        }
        let mut body = Reader(body);
        let run = Self {
            program: view(&mut body)?,
            copy: body.u64()?,
            views: body.list(view)?,
            argv: body.list(Reader::string)?,
            environment: body.list(Reader::string)?,
            directory: body.path()?,
            umask: body.u32()?,
            nice: body.u32()? as i32,
            ignored_signals: body.u64()?,
            wall: Duration::from_nanos(body.u64()?),
            cpu_time: Some(Duration::from_nanos(body.u64()?)).filter(|time| !time.is_zero()),
            grace: Duration::from_nanos(body.u64()?),
            open_files: body.u64()?,
            file_size_bytes: body.u64()?,
            pids: body.u64()?,
            memory_bytes: body.u64()?,
            credential: Some(body.path()?).filter(|path| !path.as_os_str().is_empty()),
        };
        body.end()?;
        Ok(run)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Something could not be done, on its way to whoever can say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the launcher ends for it: 125, 126 or 127.
    pub code: u8,
    /// What was being done, and to what.
    pub step: String,
    /// What the system said; 0 if it said nothing.
    pub errno: i32,
}

impl Failure {
    /// Building failed.
    pub fn step(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let step = step.into();
        move |error| Self { code: 125, step, errno: error.raw_os_error().unwrap_or(0) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let step: String = self.step.chars().take(4096).collect();
        out.u8(self.code).u32(self.errno as u32).bytes(step.as_bytes());
        out.0
    }

    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        let (code, errno) = (body.u8()?, body.u32()? as i32);
        let step = String::from_utf8_lossy(body.bytes()?).into_owned();
        body.end()?;
        Ok(Self { code, step, errno })
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Sandbox { code: failure.code, text: failure.to_string() }
    }
}

/// For people: what failed, and why.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.step)?;
        if self.errno == 0 { Ok(()) } else { write!(f, ": {}", nix::errno::Errno::from_raw(self.errno).desc()) }
    }
}

/// What the init did on its own account before the program ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EndedBy {
    /// Nothing: the program ended by itself.
    #[default]
    Itself = 0,
    /// Wall-clock time was over.
    Wall = 1,
    /// Told to by the daemon.
    Order = 2,
    /// The launcher went away.
    Launcher = 3,
}

/// Init to daemon: the program ended and nothing it started is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    /// As waitpid gives it.
    pub status: i32,
    pub by: EndedBy,
    pub wall: Duration,
    /// User and system time of all its processes.
    pub cpu: Duration,
    /// Of the largest of them, bytes.
    pub resident_peak_bytes: u64,
    /// 512-byte blocks read and written.
    pub io_blocks: u64,
    pub scratch_bytes: u64,
    pub scratch_files: u64,
    /// No byte or no file was left in scratch.
    pub scratch_full: bool,
    /// When the program was started, by the clock that never goes back; 0 if that was told before, or it was not.
    pub started_ns: u64,
}

impl Finished {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(self.status as u32).u8(self.by as u8).u64(nanoseconds(self.wall)).u64(nanoseconds(self.cpu));
        out.u64(self.resident_peak_bytes).u64(self.io_blocks).u64(self.scratch_bytes).u64(self.scratch_files);
        out.u8(u8::from(self.scratch_full)).u64(self.started_ns);
        out.0
    }

    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        let status = body.u32()? as i32;
        let by = match body.u8()? {
            0 => EndedBy::Itself,
            1 => EndedBy::Wall,
            2 => EndedBy::Order,
            3 => EndedBy::Launcher,
            _ => return Err(Error::Malformed("an unknown reason to end")),
        };
        let finished = Self {
            status,
            by,
            wall: Duration::from_nanos(body.u64()?),
            cpu: Duration::from_nanos(body.u64()?),
            resident_peak_bytes: body.u64()?,
            io_blocks: body.u64()?,
            scratch_bytes: body.u64()?,
            scratch_files: body.u64()?,
            scratch_full: body.u8()? == 1,
            started_ns: body.u64()?,
        };
        body.end()?;
        Ok(finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_through_and_cut_ones_do_not() {
        let identity = Identity { uid: 7, gid: 8, groups: vec![9, 10] };
        let program = View { source: "exec/a".into(), ino: Some(5), at: "/m/exec/a".into(), access: ViewAccess::Read };
        let mut plan = Plan::new(identity.clone(), program.clone());
        plan.views = vec![
            View { ino: None, access: ViewAccess::Write, ..program.clone() },
            View { access: ViewAccess::Stage(".brine/stage/x/0".into()), ..program },
        ];
        plan.template.root = Root::Image("img".into());
        plan.nice = -3;
        plan.credential = Some("/m/.brine/exec.sock".into());

        let make = Make { identity, template: plan.template.clone(), born: true, place: "/m/exec".into() };
        assert_eq!(Make::decode(&make.encode()).unwrap(), make);
        let run = Run::of(&plan, Some(3), true, false);
        assert_eq!((run.pids, run.memory_bytes, run.nice), (0, plan.limits.memory_bytes, 0));
        let bytes = run.encode();
        assert_eq!(Run::decode(&bytes).unwrap(), run);
        assert!((0..bytes.len()).all(|len| Run::decode(&bytes[..len]).is_err()));
        let failure = Failure { code: 127, step: "no such interpreter".into(), errno: 2 };
        assert_eq!(Failure::decode(&failure.encode()).unwrap(), failure);
        let finished =
            Finished { status: 9, by: EndedBy::Launcher, scratch_full: true, started_ns: 7, ..Finished::default() };
        assert_eq!(Finished::decode(&finished.encode()).unwrap(), finished);
    }
}
