//! What a mounted volume does when asked through the control socket.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use brine_store::check::{CheckOptions, CheckProgress, check, heal};
use brine_store::gc::GcOptions;
use brine_store::reseal::{EpochReport, epochs, reseal};
use brine_store::usage::usage;
use brine_store::volume::{GenerationRow, Volume, replace};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use super::busy::users_of;
use super::exec_side::ExecSide;
use crate::control::{Progress, Request, RetentionChange, SaltRequest, Service, answer_retention};
use crate::exec_dir::request::{Asker, ExecRequest};
use crate::exit_code::{ExitCode, Failure};
use crate::mount_table::{self, UnmountError};
use crate::telemetry::{timestamp, timestamp_ns};
use crate::vfs::Vfs;

/// Steps of a long request are told at most this often.
const STEP_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

/// A mounted volume.
pub(super) struct VolumeService {
    volume: Arc<Volume>,
    vfs: Arc<Vfs>,
    mountpoint: PathBuf,
    source: PathBuf,
    /// The state that is shown, if not the live one.
    past: Option<GenerationRow>,
    since: SystemTime,
    started: Instant,
    /// Held by the one long request that runs.
    working: Mutex<()>,
    /// It is to stop.
    stop: AtomicBool,
    /// Set once files can be run.
    pub(super) exec: OnceLock<Arc<ExecSide>>,
}

impl VolumeService {
    pub(super) fn new(
        volume: Arc<Volume>,
        vfs: Arc<Vfs>,
        mountpoint: PathBuf,
        source: PathBuf,
        past: Option<GenerationRow>,
    ) -> Self {
        Self {
            volume,
            vfs,
            mountpoint,
            source,
            past,
            since: SystemTime::now(),
            started: Instant::now(),
            working: Mutex::new(()),
            stop: AtomicBool::new(false),
            exec: OnceLock::new(),
        }
    }

    pub(super) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    pub(super) fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }

    fn work_alone(&self, request: &Request, progress: &Steps<'_>) -> Result<Value, Failure> {
        match request {
            Request::Check { path, repair } => {
                // What was accepted is checked, too.
                self.sync()?;
                to_json(&check(&self.volume, &CheckOptions { path: path.clone(), repair: *repair }, progress)?)
            }
            Request::Heal => {
                self.sync()?;
                to_json(&heal(&self.volume, progress)?)
            }
            Request::Replace { old, new } => {
                replace(&self.volume, old, new)?;
                log::info!("{} takes the place of {}", new.display(), old.display());
                to_json(&heal(&self.volume, progress)?)
            }
            Request::Gc { dry_run } => {
                let step = |phase: &str, done, total| {
                    progress.progress(done, total, phase);
                    !progress.cancelled()
                };
                to_json(&self.vfs.gc(GcOptions { dry_run: *dry_run }, &step)?)
            }
            Request::Retention { ask } => {
                let answer = answer_retention(&self.volume, ask)?;
                if ask.change != RetentionChange::None {
                    self.sync()?;
                }
                Ok(answer)
            }
            Request::Salt { ask } => {
                let step = |phase: &str, done, total| {
                    progress.progress(done, total, phase);
                    !progress.cancelled()
                };
                self.sync()?;
                let report = match ask {
                    SaltRequest::Show => epochs(&self.volume)?,
                    SaltRequest::Rotate => {
                        self.volume.rotate_epoch()?;
                        epochs(&self.volume)?
                    }
                    SaltRequest::Reseal => {
                        let report = reseal(&self.volume, &step)?;
                        // References are folded when the generation closes.
                        self.sync()?;
                        EpochReport {
                            resealed_chunks: report.resealed_chunks,
                            resealed_bytes: report.resealed_bytes,
                            complete: report.complete,
                            ..epochs(&self.volume)?
                        }
                    }
                };
                to_json(&report)
            }
            Request::Usage { path } => {
                self.sync()?;
                to_json(&usage(&self.volume, path.as_deref())?)
            }
            Request::Status
            | Request::Sync
            | Request::Exec { .. }
            | Request::Umount { .. }
            | Request::Versions { .. }
            | Request::Quota { .. } => Err(Failure::new(ExitCode::Failed, "this request is not a long one")),
        }
    }
}

impl Service for VolumeService {
    fn status(&self) -> Result<Value, Failure> {
        let mut status = to_json(&self.volume.status()?)?;
        let counts = self.vfs.counts();
        let at = self.past.map(
            |row| json!({ "generation": row.generation.0, "time": timestamp_ns(row.time_ns), "time_ns": row.time_ns }),
        );
        let live = json!({
            "at": at,
            "mounted": true,
            "mountpoint": self.mountpoint.to_string_lossy(),
            "source": self.source.to_string_lossy(),
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "since": timestamp(self.since),
            "uptime_s": self.started.elapsed().as_secs(),
            "read_only": self.volume.is_read_only(),
            "open_files": counts.open_files,
            "inodes_cached": counts.inodes,
            "dirty_files": counts.dirty_files,
            "unsynced_bytes": counts.dirty_bytes,
            "exec": self.exec.get().map(|exec| exec.status()),
        });
        if let (Value::Object(status), Value::Object(live)) = (&mut status, live) {
            status.extend(live);
        }
        Ok(status)
    }

    fn sync(&self) -> Result<Value, Failure> {
        if self.volume.is_read_only().is_some() {
            return Ok(json!({ "generation": self.volume.status()?.generation }));
        }
        if let Some(exec) = self.exec.get() {
            exec.settle();
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        self.vfs.sync_all(move |outcome| {
            let _ = sender.send(outcome);
        });
        match receiver.recv() {
            Ok(Ok(())) => Ok(json!({ "generation": self.volume.status()?.generation })),
            Ok(Err(errno)) => {
                let reason = self.volume.is_read_only().map(|reason| format!(" ({reason})")).unwrap_or_default();
                let error = std::io::Error::from_raw_os_error(errno.0);
                Err(Failure::io(
                    format!("what was written to {} is not durable{reason}", self.mountpoint.display()),
                    &error,
                ))
            }
            Err(_) => Err(Failure::new(ExitCode::NotMounted, "the volume is being closed")),
        }
    }

    fn work(&self, request: &Request, step: &(dyn Fn(Progress) -> bool + Sync)) -> Result<Value, Failure> {
        let Some(_alone) = self.working.try_lock() else {
            return Err(Failure::new(
                ExitCode::Busy,
                "another long command (check, heal, replace, gc) of this volume runs; wait for it",
            ));
        };
        let steps = Steps { step, stop: &self.stop, hung_up: AtomicBool::new(false), last: Mutex::new(None) };
        let outcome = self.work_alone(request, &steps);
        if steps.cancelled() { Err(Failure::new(ExitCode::Interrupted, "stopped before it was done")) } else { outcome }
    }

    fn family(&self, request: &Request, _step: &(dyn Fn(Progress) -> bool + Sync)) -> Result<Value, Failure> {
        match request {
            Request::Versions { ask } => self.versions(ask),
            Request::Quota { ask } => self.quota(ask),
            other => Err(Failure::new(ExitCode::Failed, format!("{other:?} belongs to no family of commands"))),
        }
    }

    fn exec(&self, request: &ExecRequest, asker: Asker) -> Result<Value, Failure> {
        match self.exec.get() {
            Some(exec) => exec.answer(request, asker),
            None => Err(Failure::new(ExitCode::Refused, "nothing can be run on this mount; the daemon's log says why")),
        }
    }

    fn umount(&self, lazy: bool) -> Result<(), Failure> {
        // A check must not run into a volume that is being closed.
        self.stop.store(true, Ordering::Relaxed);
        let _idle = self.working.lock();
        let outcome = unmount(&self.mountpoint, lazy);
        if outcome.is_err() {
            self.stop.store(false, Ordering::Relaxed);
        }
        outcome
    }
}

/// Unmount, and say who is in the way.
pub(super) fn unmount(point: &Path, lazy: bool) -> Result<(), Failure> {
    let mount = mount_table::at(point).ok().flatten();
    mount_table::unmount(point, lazy).or_else(|error| match error {
        // Somebody else was faster; the daemon is about to end.
        UnmountError::NotMounted => Ok(()),
        UnmountError::Busy => {
            let users: Vec<String> = mount.iter().flat_map(users_of).map(|user| user.to_string()).collect();
            let who = if users.is_empty() { "a process this user may not look into".into() } else { users.join(", ") };
            Err(Failure::new(
                ExitCode::Busy,
                format!(
                    "{} is in use by {who}; end that, or take the mount out of sight with `brine umount --lazy {}`",
                    point.display(),
                    point.display()
                ),
            ))
        }
        UnmountError::Other(reason) => {
            Err(Failure::new(ExitCode::NotPermitted, format!("unmounting {}: {reason}", point.display())))
        }
    })
}

/// Passes steps on, not too often, and remembers whether anybody still listens.
struct Steps<'a> {
    step: &'a (dyn Fn(Progress) -> bool + Sync),
    stop: &'a AtomicBool,
    hung_up: AtomicBool,
    last: Mutex<Option<(Instant, String)>>,
}

impl CheckProgress for Steps<'_> {
    fn progress(&self, done_bytes: u64, total_bytes: u64, phase: &str) {
        let mut last = self.last.lock();
        let early = last.as_ref().is_some_and(|(at, before)| before == phase && at.elapsed() < STEP_INTERVAL);
        if early && done_bytes != total_bytes {
            return;
        }
        *last = Some((Instant::now(), phase.to_owned()));
        if !(self.step)(Progress { phase: phase.to_owned(), done_bytes, total_bytes }) {
            self.hung_up.store(true, Ordering::Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.hung_up.load(Ordering::Relaxed)
    }
}

fn to_json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new(ExitCode::Failed, format!("writing JSON: {error}")))
}
