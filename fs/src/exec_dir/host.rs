//! From a launcher's request to what is to be done: which function, whether this caller may run it, what of the volume
//! exists for the run. The exec crate asks here and does the rest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use brine_exec::invocation::Caller as Peer;
use brine_exec::protocol::Request;
use brine_exec::service::Host;
use brine_exec::{Error, ExitCause, Identity, Outcome, Plan, Result, Root, RunId, Verdict, View, ViewAccess};
use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::Ino;
use brine_store::volume::{Attr, FileKind, GenerationPin};
use nix::sys::stat::fstat;
use parking_lot::Mutex;

use super::code::{CodeNodes, CodePin};
use super::environment::{self, UserNames};
use super::grant::{CREDENTIAL, Input, Scout};
use super::open::{OpenFiles, Opened};
use super::permission::{EXECUTE, READ, permits};
use super::pin::Pin;
use super::policies::Place;
use super::policy::FunctionPolicy;
use super::record::{OUTPUTS_DROPPED, OUTPUTS_KEPT, OUTPUTS_PUBLISHED, RunRow};
use super::runs::Runs;
use super::staging::{Staging, Stagings};
use crate::errno::Errno;
use crate::vfs::Vfs;

/// Bytes of a program read ahead of its first run at most.
const BROUGHT_IN_MAX: u64 = 64 << 20;

/// A run that was asked for and has not ended.
struct Active {
    row: RunRow,
    place: Place,
    withheld: Vec<PathBuf>,
    depth: u8,
    /// Functions it may invoke, and what it was granted: paths from the root of the volume.
    call: Vec<PathBuf>,
    granted: Vec<PathBuf>,
    _pin: Arc<Pin>,
    /// What its record tells of can be looked at while it runs.
    _state: Option<GenerationPin>,
    _code: Option<Arc<CodePin>>,
    staging: Option<Staging>,
    /// Below these it may open files by asking, and those it did open.
    open: Vec<PathBuf>,
    opened: Arc<Opened>,
}

/// A run that invokes another.
struct Parent {
    depth: u8,
    call: Vec<PathBuf>,
    granted: Vec<PathBuf>,
}

/// What a request was found to be about.
struct Function {
    pin: Arc<Pin>,
    attr: Attr,
    /// From the root of the volume.
    path: PathBuf,
    place: Place,
}

/// Decides for the runs of one mount.
pub struct RunHost {
    vfs: Arc<Vfs>,
    mountpoint: PathBuf,
    /// Device number of the mount's files.
    device: u64,
    code: Arc<CodeNodes>,
    runs: Arc<Runs>,
    stagings: Arc<Stagings>,
    opens: Arc<OpenFiles>,
    users: UserNames,
    active: Mutex<HashMap<RunId, Active>>,
}

impl RunHost {
    /// For a mount.
    pub fn new(
        vfs: Arc<Vfs>,
        mountpoint: PathBuf,
        device: u64,
        code: Arc<CodeNodes>,
        runs: Arc<Runs>,
        stagings: Arc<Stagings>,
        opens: Arc<OpenFiles>,
    ) -> Self {
        let (users, active) = (UserNames::default(), Mutex::default());
        Self { vfs, mountpoint, device, code, runs, stagings, opens, users, active }
    }

    /// The volume.
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Records of runs.
    pub fn runs(&self) -> &Arc<Runs> {
        &self.runs
    }

    /// Staged outputs.
    pub fn stagings(&self) -> &Stagings {
        &self.stagings
    }

    /// Runs that have not ended: their records so far.
    pub fn active(&self) -> Vec<(RunId, RunRow)> {
        self.active.lock().iter().map(|(id, active)| (*id, active.row.clone())).collect()
    }

    /// What bounds the functions that a run invokes.
    fn parent(&self, id: RunId) -> Result<Parent> {
        let active = self.active.lock();
        let parent = active.get(&id).ok_or_else(|| Error::Refused("the run that asks has ended".into()))?;
        Ok(Parent { depth: parent.depth, call: parent.call.clone(), granted: parent.granted.clone() })
    }

    fn identify(&self, request: &Request, function: Option<OwnedFd>, who: &Identity) -> Result<(Arc<Pin>, Attr)> {
        if let Some(fd) = function {
            return self.by_descriptor(&fd, who);
        }
        let refused = |why: super::ticket::Refused| Error::Refused(why.to_string());
        let ticket = request.ticket.ok_or_else(|| {
            Error::Refused("the launcher was started by hand; run the file itself, or use `brine exec run`".into())
        })?;
        let issued = self.vfs.exec().tickets.redeem(ticket, who.uid, Instant::now()).map_err(refused)?;
        let attr = self.attr(issued.ino)?;
        if attr.version != issued.version {
            return Err(Error::Refused("the file was changed between its start and its run; run it again".into()));
        }
        Ok((issued.pin, attr))
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.vfs.settled(ino).map_err(unfit)
    }

    /// The kernel has not checked that this caller may run what it has a descriptor of, nor that nobody writes to it.
    fn by_descriptor(&self, fd: &OwnedFd, who: &Identity) -> Result<(Arc<Pin>, Attr)> {
        let stat = fstat(fd).map_err(|errno| Error::Refused(format!("the descriptor of the function: {errno}")))?;
        if stat.st_dev != self.device {
            return Err(Error::Refused("the function is not on this volume".into()));
        }
        let ino = Ino(stat.st_ino);
        let pin = self.vfs.pin(ino);
        let attr = self.attr(ino)?;
        if !attr.in_exec || attr.kind != FileKind::File {
            return Err(Error::Refused("not a file in exec/".into()));
        }
        if !permits(&self.vfs, who, ino, EXECUTE) {
            return Err(Error::Refused("permission denied".into()));
        }
        self.vfs.await_writers(ino).map_err(unfit)?;
        Ok((pin, self.attr(ino)?))
    }

    /// Where the function is: by the name it was called by if that leads to it, else by the first name that does.
    fn locate(&self, pin: Arc<Pin>, attr: Attr, request: &Request, who: &Identity) -> Result<Function> {
        let scout = Scout { vfs: &self.vfs, mountpoint: &self.mountpoint, who, within: None };
        let called = request.argv.first().map(Path::new).unwrap_or(Path::new(""));
        // With the directory it leads through.
        let leads = |inside: PathBuf| {
            let (directory, _) = scout.find_in(&inside).filter(|(_, found)| found.ino == attr.ino)?;
            Some((inside, directory))
        };
        let found = scout.inside(&request.directory, called).and_then(leads);
        let found = found.or_else(|| {
            let named = self.vfs.volume().path_of(attr.ino).ok()?;
            leads(PathBuf::from(named.trim_start_matches('/')))
        });
        let (path, directory) = found.ok_or_else(|| Error::NotFound(called.to_owned()))?;
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        Ok(Function { pin, attr, path, place: (directory, name) })
    }

    fn policy(&self, function: &Function) -> Result<FunctionPolicy> {
        let policy = self.vfs.exec().policies.get(&function.place).map_err(Error::Refused)?.unwrap_or_default();
        let name = self.mountpoint.join(&function.path);
        if let Some(uid) = policy.suspended_by {
            return Err(Error::Refused(format!(
                "the policy of {0} is suspended: user {uid} changed the program; look at it, then `brine exec policy {0} \
                 --resume`",
                name.display()
            )));
        }
        if let Some(most) = policy.concurrency {
            let running = self.active.lock().values().filter(|active| active.place == function.place).count();
            if running >= most as usize {
                return Err(Error::Full("the function's --concurrency is reached"));
            }
        }
        Ok(policy)
    }

    fn plan(
        &self,
        id: RunId,
        request: Request,
        function: &Function,
        who: &Identity,
        parent: Option<&Parent>,
    ) -> Result<(Plan, RunGrants)> {
        if function.attr.size == 0 {
            return Err(Error::Refused("an empty file is no program".into()));
        }
        let policy = self.policy(function)?;
        let within = parent.map(|parent| &parent.granted[..]);
        let scout = Scout { vfs: &self.vfs, mountpoint: &self.mountpoint, who, within };
        let arguments = request.argv.get(1..).unwrap_or_default();
        let mut grants = scout.grants(&policy, &request.directory, arguments).map_err(Error::NotFound)?;
        let mut identity = who.clone();
        if let (0, Some(uid)) = (who.uid, policy.uid) {
            identity = Identity { uid, gid: uid, groups: Vec::new() };
        }
        let (code, new) = self.code.node(&function.pin, &function.attr);
        if new {
            self.bring_in(&code);
        }
        let program = View {
            source: Path::new(".brine/code").join(code.name()),
            ino: None,
            at: self.mountpoint.join(&function.path),
            access: ViewAccess::Read,
        };
        let user = self.users.name(identity.uid);
        let granted = grants.views.iter().map(|view| view.source.clone()).collect();
        let scope = grants.views.clone();
        let staging = match policy.stage {
            true => Some(self.stagings.begin(id, &scout, &identity, &mut grants.views).map_err(Error::Refused)?),
            false => None,
        };
        let mut plan = Plan::new(identity, program).with_limits(policy.limits());
        plan.program_id = Some(code.program());
        plan.template.network = policy.network();
        if let Some(root) = &policy.root {
            plan.template.root = Root::Image(root.trim_start_matches('/').into());
        }
        plan.views = grants.views;
        plan.depth = parent.map_or(0, |parent| parent.depth + 1);
        plan.best_effort = policy.best_effort;
        plan.environment =
            environment::filtered(Plan::environment_default(), request.environment, &policy.env, user.as_deref());
        plan.argv = request.argv;
        plan.directory = directory_inside(request.directory);
        plan.umask = request.umask;
        plan.nice = request.nice.max(0);
        plan.ignored_signals = request.ignored_signals;
        if !policy.call.is_empty() || !grants.open.is_empty() {
            plan.credential = Some(self.mountpoint.join(CREDENTIAL));
        }
        let call: Vec<PathBuf> = policy.call.iter().map(|path| path.trim_start_matches('/').into()).collect();
        let (inputs, withheld, open) = (grants.inputs, grants.withheld, grants.open);
        Ok((plan, RunGrants { scope, inputs, withheld, granted, call, open, code, staging }))
    }

    /// Read a new code node once, so that its pages, and the kernel's knowledge of it, belong to the daemon: what a run
    /// touches first is charged to its control group, and thrown out with it (X14). What fails here, the run will say.
    fn bring_in(&self, code: &CodePin) {
        let mut read = File::options();
        read.read(true).custom_flags(libc::O_NOFOLLOW);
        if let Ok(file) = read.open(self.mountpoint.join(".brine/code").join(code.name())) {
            let _ = io::copy(&mut file.take(BROUGHT_IN_MAX), &mut io::sink());
        }
    }

    /// A run is over: its record, and the function is let go of. That comes before the launcher hears, so that who waited
    /// for the run may edit the function.
    fn close(&self, id: RunId, caller: Option<&Peer>, end: impl FnOnce(&mut RunRow, &[PathBuf], i64)) {
        let now_ns = SystemClock.now_ns();
        let active = self.active.lock().remove(&id);
        if let Some(active) = &active {
            active.opened.revoke();
        }
        let (mut row, withheld) = match (active, caller) {
            (Some(active), _) => (active.row, active.withheld),
            (None, Some(peer)) => (RunRow::new(id, peer.identity.uid, peer.identity.gid, now_ns), Vec::new()),
            (None, None) => return,
        };
        end(&mut row, &withheld, now_ns);
        if row.outputs == OUTPUTS_KEPT {
            // They go if nothing says that they are to be kept.
            self.runs.put(&row);
        } else {
            self.runs.note_ended(&row);
        }
    }
}

impl Host for RunHost {
    fn admit(
        &self,
        id: RunId,
        request: Request,
        function: Option<OwnedFd>,
        caller: &Peer,
        parent: Option<RunId>,
    ) -> Result<Plan> {
        let who = &caller.identity;
        let invoker = parent.map(|parent| self.parent(parent)).transpose()?;
        // On a volume whose database fails nothing can be kept, and little else done.
        let state = self.vfs.pin_present();
        let (pin, attr) = self.identify(&request, function, who)?;
        let function = self.locate(pin, attr, &request, who)?;
        if invoker.as_ref().is_some_and(|invoker| !invoker.call.contains(&function.path)) {
            let path = self.mountpoint.join(&function.path);
            let why = format!("the run may not invoke {} (`brine exec policy --call`)", path.display());
            return Err(Error::Refused(why));
        }
        let mut row = RunRow::new(id, who.uid, who.gid, SystemClock.now_ns());
        row.function = format!("/{}", function.path.display());
        (row.ino, row.version) = (attr.ino.0, attr.version.0);
        row.parent = parent.map(|parent| parent.to_string()).unwrap_or_default();
        let planned = self.plan(id, request, &function, who, invoker.as_ref());
        if let Ok((_, grants)) = &planned {
            row.grant(&grants.scope, &grants.inputs);
            if let Some(staging) = &grants.staging {
                row.staged = staging.rows().to_vec();
                row.scope.iter_mut().filter(|row| row.access == "write").for_each(|row| row.access = "stage".into());
            }
            self.runs.note(&row);
        }
        // Also of what is refused now: `refused` makes the record.
        let mut active = Active {
            row,
            place: function.place,
            withheld: Vec::new(),
            depth: 0,
            call: Vec::new(),
            granted: Vec::new(),
            _pin: function.pin,
            _state: state,
            _code: None,
            staging: None,
            open: Vec::new(),
            opened: self.opens.of_run(),
        };
        let plan = planned.map(|(plan, grants)| {
            (active.granted, active.staging) = (grants.granted, grants.staging);
            active.depth = plan.depth;
            active.open = grants.open;
            (active.withheld, active.call, active._code) = (grants.withheld, grants.call, Some(grants.code));
            plan
        });
        self.active.lock().insert(id, active);
        plan
    }

    fn open(&self, parent: RunId, path: &Path, caller: &Peer) -> Result<OwnedFd> {
        let ended = || Error::Refused("the run that asks has ended".into());
        let (opened, below) = {
            let active = self.active.lock();
            let active = active.get(&parent).ok_or_else(ended)?;
            (Arc::clone(&active.opened), active.open.clone())
        };
        let scout = Scout { vfs: &self.vfs, mountpoint: &self.mountpoint, who: &caller.identity, within: None };
        let inside = scout.inside(Path::new("/"), path).filter(|_| path.is_absolute());
        let inside = inside.filter(|inside| below.iter().any(|granted| inside.starts_with(granted)));
        let found = inside.and_then(|inside| scout.find(&inside).map(|attr| (inside, attr)));
        let readable = found
            .filter(|(_, attr)| attr.kind == FileKind::File && permits(&self.vfs, &caller.identity, attr.ino, READ));
        // What may not be opened does not exist.
        let (inside, attr) = readable.ok_or_else(|| Error::NotFound(path.to_owned()))?;
        let file = opened.open(&self.mountpoint, &attr).map_err(Error::Refused)?;
        if let Some(active) = self.active.lock().get_mut(&parent) {
            active.row.add_input(&Input { path: inside, ino: attr.ino, version: attr.version });
        }
        Ok(file)
    }

    fn refused(&self, id: RunId, caller: &Peer, why: &Error) {
        let cause = match why.exit_code() {
            127 => ExitCause::NotFound,
            125 => ExitCause::SandboxFailed,
            _ => ExitCause::Refused,
        };
        self.close(id, Some(caller), |row, _, now_ns| row.refuse(cause, why.exit_code(), why.to_string(), now_ns));
    }

    fn started(&self, id: RunId) {
        let key = self.active.lock().get(&id).map(|active| active.row.key());
        key.into_iter().for_each(|key| self.runs.write(&key));
    }

    fn told(&self) {
        self.runs.settle();
    }

    fn ended(&self, outcome: &mut Outcome) {
        // Held until the record says what became of it: no sweep takes it before.
        let mut staging = self.active.lock().get_mut(&outcome.id).and_then(|active| active.staging.take());
        if staging.is_some() {
            // What is published has a record, whatever ends this process before its outcome is written.
            self.started(outcome.id);
        }
        let outputs = staging.as_mut().map(|staging| publish(staging, outcome));
        self.close(outcome.id, None, |row, withheld, now_ns| {
            row.outputs = outputs.unwrap_or_default().into();
            if outcome.cause != ExitCause::Exited(0) && outcome.line.is_none() && !withheld.is_empty() {
                let paths: Vec<String> = withheld.iter().take(8).map(|path| path.display().to_string()).collect();
                let line = format!("not granted to this run: {}; see `brine exec policy`", paths.join(", "));
                outcome.line = Some(line);
            }
            row.end(outcome, now_ns);
        });
    }
}

/// Why the content of a function cannot be run.
fn unfit(errno: Errno) -> Error {
    match errno.0 {
        libc::ETXTBSY => Error::Refused("text file busy: it is open to be written".into()),
        _ => Error::NotFound("the function".into()),
    }
}

/// Staged outputs of a run that ended: what became of them. A run whose outputs nobody can see has failed.
fn publish(staging: &mut Staging, outcome: &mut Outcome) -> &'static str {
    if outcome.cause != ExitCause::Exited(0) {
        return OUTPUTS_DROPPED;
    }
    match staging.publish() {
        Ok(()) => OUTPUTS_PUBLISHED,
        Err((conflict, why)) => {
            outcome.cause = if conflict { ExitCause::Conflict } else { ExitCause::SandboxFailed };
            outcome.verdict = Verdict::Code(125);
            outcome.line = Some(why);
            OUTPUTS_KEPT
        }
    }
}

/// Where a run starts: the caller's directory, unless a sandbox has something else of that name.
fn directory_inside(directory: PathBuf) -> PathBuf {
    let own = ["/proc", "/dev", "/sys", "/.brine-volume", "/.brine-root"].iter().any(|own| directory.starts_with(own));
    let plain = directory.is_absolute() && directory.components().all(|part| part != std::path::Component::ParentDir);
    if own || !plain { PathBuf::from("/") } else { directory }
}

/// What of a plan is kept beside it.
struct RunGrants {
    open: Vec<PathBuf>,
    /// As granted; the plan's views of staged outputs lead elsewhere.
    scope: Vec<View>,
    granted: Vec<PathBuf>,
    staging: Option<Staging>,
    inputs: Vec<super::grant::Input>,
    withheld: Vec<PathBuf>,
    call: Vec<PathBuf>,
    code: Arc<CodePin>,
}
