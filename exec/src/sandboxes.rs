//! Sandboxes as the daemon has them: making, pooling, running, ending. What `fs` holds for the life of a mount.
//!
//! Rule of the house: a sandbox runs one invocation of one caller, ever, and is then destroyed from outside, whatever
//! its state (X8). Threads: one keeps the pool filled, one ends what is over; runs are watched on their callers'
//! threads.

mod make;
mod running;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::cgroup::{Backend, GroupLimits, Tree};
use crate::copies::Copies;
use crate::error::{Error, Result};
use crate::ledger::{Capacity, Ledger, LedgerStatus, Need, Promise};
use crate::plan::Plan;
use crate::pool::{Kind as PoolKind, Pool, PoolBounds};
use crate::protocol::Streams;
use crate::protocol::frame::{Kind, send_frame};
use crate::run_record::{Outcome, RunId, Steps};
use crate::sandbox::message;
use crate::spawner::Client;
use make::Sandbox;
pub(crate) use make::is_readable;
pub use running::{Event, Remains, Running};

/// A caller's run has ended, and its program is to be copied: so long the one who could start a process is waited for.
const SPAWNER_WAIT: Duration = Duration::from_millis(20);
/// Period in which the pool is looked through for what is not needed any more.
const POOL_TICK: Duration = Duration::from_secs(1);

/// What sandboxes are started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The program whose `main` calls [`crate::spawner::enter`]: this one.
    pub program: PathBuf,
    /// Names the control groups: the volume's id. One daemon a host may use a label.
    pub label: String,
    /// Where the volume is mounted.
    pub volume: Option<PathBuf>,
    /// What all runs together may use.
    pub capacity: Capacity,
    /// Bounds of the pool.
    pub pool: PoolBounds,
}

impl Config {
    /// For the volume mounted at `volume`, with this machine's capacity.
    pub fn new(label: &str, volume: impl Into<PathBuf>) -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            label: label.to_owned(),
            volume: Some(volume.into()),
            capacity: Capacity::of_this_machine(),
            pool: PoolBounds::default(),
        }
    }
}

/// How things stand.
#[derive(Clone, Debug)]
pub struct Status {
    /// Capacity, promises, queue.
    pub ledger: LedgerStatus,
    /// Unused sandboxes that are ready.
    pub pooled: usize,
    /// Runs that found one, and runs that did not.
    pub hits_and_misses: (u64, u64),
    /// Kind of control groups.
    pub cgroups: Backend,
    /// Limits that cannot be enforced.
    pub unenforceable: Vec<&'static str>,
    /// Process number of the spawner; none while there is none.
    pub spawner: Option<u32>,
    /// Why none could be started, when that was last tried: nothing can be run.
    pub unable: Option<String>,
    /// Groups of a killed daemon that were found and removed at the start.
    pub swept: usize,
    /// Ended sandboxes whose remains could not be removed in time.
    pub not_removed: u64,
}

/// A run that is going on.
#[derive(Clone, Debug)]
pub struct Active {
    /// Which.
    pub id: RunId,
    /// Whose.
    pub uid: u32,
    /// Path of the function, as called.
    pub program: PathBuf,
    /// How long it has been.
    pub age: Duration,
    /// Process number of its init.
    pub init: i32,
}

#[derive(Debug)]
struct ActiveRun {
    uid: u32,
    program: PathBuf,
    begun: Instant,
    init: i32,
    control: Arc<OwnedFd>,
    killed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    tree: Tree,
    swept: usize,
    spawner: Mutex<Option<Client>>,
    /// Why there is none.
    unable: Mutex<Option<String>>,
    ledger: Arc<Ledger>,
    pool: Mutex<Pool<Sandbox, GroupLimits>>,
    /// Of the spawner there is.
    copies: Mutex<Option<Arc<Copies>>>,
    /// Signalled when the pool lacks something, and at the end.
    pool_changed: Condvar,
    active: Mutex<HashMap<RunId, ActiveRun>>,
    over: Mutex<Option<Sender<Over>>>,
    serial: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    not_removed: AtomicU64,
    stopping: AtomicBool,
}

/// Everything needed to run plans. Ends with [`Self::stop`], or when it is dropped.
#[derive(Debug)]
pub struct Sandboxes {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A run that was begun, and the end of its init's connection that a launcher gets.
#[derive(Debug)]
pub struct Begun {
    /// To be waited for.
    pub running: Running,
    /// For standard descriptors and signals, unless a connection was given. Closing it kills the run.
    pub launcher: Option<OwnedFd>,
}

impl Sandboxes {
    /// Sweep what a killed daemon of this label left, and start the spawner. If this machine cannot have one, each run is
    /// refused with what it lacks, until it has it: [`crate::doctor`] tells more.
    ///
    /// # Errors
    /// Control groups or threads cannot be had.
    pub fn start(config: Config) -> Result<Self> {
        let tree = Tree::open(&config.label).map_err(Error::step("finding the control groups"))?;
        let swept = tree.sweep();
        let (over, ended) = channel();
        let shared = Arc::new(Shared {
            tree,
            swept,
            spawner: Mutex::new(None),
            unable: Mutex::new(None),
            ledger: Ledger::new(config.capacity),
            pool: Mutex::new(Pool::new(config.pool)),
            copies: Mutex::default(),
            pool_changed: Condvar::new(),
            active: Mutex::default(),
            over: Mutex::new(Some(over)),
            serial: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            not_removed: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            config,
        });
        if let Ok(spawner) = shared.start_spawner() {
            *shared.spawner.lock() = Some(spawner);
        }
        let own = Arc::clone(&shared);
        let janitor = thread("brine-exec-end", move || {
            // One at a time: the kernel takes namespaces apart one at a time as well.
            for over in ended {
                if !over.sandbox.destroy() {
                    own.not_removed.fetch_add(1, Ordering::Relaxed);
                }
            }
        })?;
        let own = Arc::clone(&shared);
        let filler = thread("brine-exec-pool", move || own.keep_pool())?;
        Ok(Self { shared, threads: Mutex::new(vec![filler, janitor]) })
    }

    /// Promise a plan its limits, and start it in a sandbox of its own. The program starts when its standard
    /// descriptors come over `connection`, of which the init gets this end, or over [`Begun::launcher`]. It waits for room
    /// until `unwanted` says that nobody wants it any more.
    ///
    /// # Errors
    /// Why it was not started; nothing is left of it.
    pub fn begin(
        &self,
        id: RunId,
        plan: &Plan,
        credential: Option<OwnedFd>,
        connection: Option<OwnedFd>,
        unwanted: Option<&dyn Fn() -> bool>,
    ) -> Result<Begun> {
        let shared = &self.shared;
        let begun = Instant::now();
        plan.check()?;
        let missing = shared.tree.missing();
        if let (Some(what), false) = (missing.first(), plan.best_effort) {
            return Err(Error::Unenforceable { what });
        }
        let need = Need { memory_bytes: plan.group_memory_bytes(), pids: u64::from(plan.limits.pids) };
        let promise = shared.ledger.promise(plan.identity.uid, need, plan.depth > 0, unwanted)?;
        let mut steps = Steps { admitted: begun.elapsed(), ..Steps::default() };
        let limits = group_limits(plan);
        let kind = PoolKind { identity: plan.identity.clone(), template: plan.template.clone() };
        let pooled = shared.living(&kind, limits, begun);
        steps.pooled = pooled.is_some();
        let counter = if steps.pooled { &shared.hits } else { &shared.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        let sandbox = match pooled {
            Some(sandbox) => sandbox,
            None => shared.make(&kind, &limits)?,
        };
        let mut sandbox = Disposed { sandbox: Some(sandbox), promise: Some(promise), shared: Arc::clone(shared) };
        let inner = sandbox.get_mut();
        inner.group.limit(&limits).map_err(Error::step("setting the run's limits"))?;
        steps.sandbox = begun.elapsed();
        let (launcher, theirs) = match connection {
            Some(theirs) => (None, theirs),
            None => {
                let (ours, theirs) = make::socket_pair().map_err(Error::step("a socket for the launcher"))?;
                (Some(ours), theirs)
            }
        };
        let has = |name: &str| !missing.contains(&name);
        let copies = shared.copies.lock().clone();
        let copy = copies.zip(plan.program_id).and_then(|(copies, program)| copies.find(&program));
        let order = message::Run::of(plan, copy, has("pids"), has("memory"));
        let mut fds = vec![theirs.as_raw_fd()];
        fds.extend(credential.as_ref().map(AsRawFd::as_raw_fd));
        send_frame(inner.control.as_ref(), Kind::Run, &order.encode(), &fds)
            .map_err(Error::step("handing the run to its sandbox"))?;
        let killed = Arc::new(AtomicBool::new(false));
        let active = ActiveRun {
            uid: plan.identity.uid,
            program: plan.program.at.clone(),
            begun,
            init: inner.pid,
            control: Arc::clone(&inner.control),
            killed: Arc::clone(&killed),
        };
        shared.active.lock().insert(id, active);
        if shared.stopping.load(Ordering::SeqCst) {
            // It came between the two steps of `stop`.
            self.kill(id);
        }
        let running = Running::new(id, plan, sandbox, killed, begun, steps);
        Ok(Begun { running, launcher })
    }

    /// Have the program of a run, which is held as it is, at hand for others of it. Takes as long as to read it, once.
    pub fn keep_program(&self, plan: &Plan) {
        let Some((program, volume)) = plan.program_id.as_ref().zip(self.shared.config.volume.as_ref()) else { return };
        let Some(copies) = self.shared.copies.lock().clone() else { return };
        if !copies.begin(program) {
            return;
        }
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let read = options.open(volume.join(&plan.program.source)).and_then(|file| {
            let mut content = Vec::with_capacity(program.bytes as usize + 1);
            file.take(program.bytes + 1).read_to_end(&mut content).map(|_| content)
        });
        // No spawner is started meanwhile. One that makes a sandbox is not waited for long.
        let spawner = self.shared.spawner.try_lock_for(SPAWNER_WAIT);
        match (spawner, read) {
            (Some(_spawner), Ok(content)) => {
                if let Err(error) = copies.keep(program, &content) {
                    log::info!("no copy of {} is kept in memory: {error}", plan.program.at.display());
                }
            }
            _ => copies.leave(program),
        }
    }

    /// Run a plan to its end with these standard descriptors; those missing are /dev/null.
    ///
    /// # Errors
    /// Why it was not started; nothing is left of it.
    pub fn run(&self, plan: &Plan, streams: [Option<OwnedFd>; 3]) -> Result<Outcome> {
        let (ours, theirs) = make::socket_pair().map_err(Error::step("a socket for the launcher"))?;
        let open: Vec<(usize, &OwnedFd)> =
            streams.iter().enumerate().filter_map(|(number, fd)| Some((number, fd.as_ref()?))).collect();
        let present = open.iter().fold(0, |bits, (number, _)| bits | 1 << number);
        let fds: Vec<i32> = open.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let said = Streams { present, ..Streams::default() };
        send_frame(&ours, Kind::Streams, &said.encode(), &fds).map_err(Error::step("handing over the descriptors"))?;
        drop(streams);
        let outcome = self.begin(RunId::random(), plan, None, Some(theirs), None)?.running.wait(|_| {});
        drop(ours);
        outcome.map(|(outcome, _)| outcome)
    }

    /// End a run. False if it is not going on.
    pub fn kill(&self, id: RunId) -> bool {
        let Some((control, killed)) =
            self.shared.active.lock().get(&id).map(|run| (Arc::clone(&run.control), Arc::clone(&run.killed)))
        else {
            return false;
        };
        killed.store(true, Ordering::SeqCst);
        // If the init does not hear it, whoever waits for the run ends it from outside.
        let _ = send_frame(control.as_ref(), Kind::Kill, &[], &[]);
        true
    }

    /// Runs that are going on.
    pub fn active(&self) -> Vec<Active> {
        let active = self.shared.active.lock();
        let mut runs: Vec<Active> = active
            .iter()
            .map(|(id, run)| Active {
                id: *id,
                uid: run.uid,
                program: run.program.clone(),
                age: run.begun.elapsed(),
                init: run.init,
            })
            .collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.age));
        runs
    }

    /// Whether somebody waits for what ended runs still hold.
    pub(crate) fn is_pressed(&self) -> bool {
        self.shared.ledger.status().waiting > 0
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        Status {
            ledger: shared.ledger.status(),
            pooled: shared.pool.lock().ready(),
            hits_and_misses: (shared.hits.load(Ordering::Relaxed), shared.misses.load(Ordering::Relaxed)),
            cgroups: shared.tree.backend(),
            unenforceable: shared.tree.missing(),
            spawner: shared.spawner.lock().as_ref().map(Client::pid),
            unable: shared.unable.lock().clone(),
            swept: shared.swept,
            not_removed: shared.not_removed.load(Ordering::Relaxed),
        }
    }

    /// Refuse new runs, end those going on, let the pool, the spawner and with it every copy of the volume's mount go.
    /// Waits until nothing is left. Runs are waited for by their own threads.
    pub fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        shared.ledger.stop();
        let ids: Vec<RunId> = shared.active.lock().keys().copied().collect();
        for id in ids {
            self.kill(id);
        }
        shared.pool_changed.notify_all();
        let deadline = Instant::now() + running::KILL_WAIT * 2;
        while !shared.active.lock().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = shared.pool.lock().drain();
        if let Some(over) = shared.over.lock().take() {
            left.into_iter().for_each(|sandbox| drop(over.send(Over { sandbox, _promise: None })));
        }
        // Whatever still lives in a sandbox dies with it.
        drop(shared.spawner.lock().take());
        drop(shared.copies.lock().take());
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        shared.tree.sweep();
        shared.tree.remove();
    }
}

impl Drop for Sandboxes {
    fn drop(&mut self) {
        if !self.threads.lock().is_empty() {
            self.stop();
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run).map_err(Error::step("starting a thread"))
}

/// What a plan's group is held to.
fn group_limits(plan: &Plan) -> GroupLimits {
    GroupLimits {
        memory_bytes: plan.group_memory_bytes(),
        // The init is one of the processes.
        pids: plan.limits.pids.saturating_add(1),
        cpu_milli: plan.limits.cpu_milli,
    }
}

/// A sandbox whose run is over. What was promised is given back when nothing of it is left.
#[derive(Debug)]
struct Over {
    sandbox: Sandbox,
    _promise: Option<Promise>,
}

/// A sandbox that is destroyed when this goes, whatever happened to it.
#[derive(Debug)]
struct Disposed {
    sandbox: Option<Sandbox>,
    promise: Option<Promise>,
    shared: Arc<Shared>,
}

impl Disposed {
    fn get(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("taken only when dropped")
    }

    fn get_mut(&mut self) -> &mut Sandbox {
        self.sandbox.as_mut().expect("taken only when dropped")
    }
}

impl Drop for Disposed {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.shared.pool_changed.notify_all();
            self.shared.dispose(Over { sandbox, _promise: self.promise.take() });
        }
    }
}
