//! What the owner of a function lets it do, as a row of the volume: keyed by (directory, name), so that an editor that
//! replaces the file keeps it (X11).
//!
//! The row is a JSON object; fields that are not there have their defaults, unknown ones make it unreadable, and a
//! function whose policy cannot be read is not run. A policy never lends rights: what it grants is cut to what the
//! caller may do anyway.

use std::path::{Component, Path};
use std::time::Duration;

use brine_exec::policy::{Limits, MEMORY_BYTES_MIN, Network};
use serde::{Deserialize, Serialize};

use super::environment;

/// Paths of one kind at most.
const PATHS_MAX: usize = 128;
/// Longest time a run may be given.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The policy of one function. Paths are from the root of the volume and begin with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionPolicy {
    /// Paths that exist for every run, read-only.
    pub read: Vec<String>,
    /// Paths that exist for every run, to be written.
    pub write: Vec<String>,
    /// What is written goes to a private copy, published in one step when the program ends with 0.
    pub stage: bool,
    /// Whole arguments that name readable files of the volume grant reading them.
    pub args: bool,
    /// Memory without scratch, bytes.
    pub memory_bytes: Option<u64>,
    /// Scratch space, bytes.
    pub scratch_bytes: Option<u64>,
    /// Processor, thousandths of a core.
    pub cpu_milli: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Wall-clock time, milliseconds.
    pub timeout_ms: Option<u64>,
    /// Processor time, milliseconds.
    pub cpu_time_ms: Option<u64>,
    /// The host's network.
    pub net_host: bool,
    /// Names of variables passed on.
    pub env: Vec<String>,
    /// A directory that is the root.
    pub root: Option<String>,
    /// Runs at a time.
    pub concurrency: Option<u32>,
    /// Functions a run may invoke.
    pub call: Vec<String>,
    /// Paths below which a run may open files by asking for them; they are not shown.
    pub open: Vec<String>,
    /// Whom runs for root run as.
    pub uid: Option<u32>,
    /// Start even where a limit cannot be enforced.
    pub best_effort: bool,
    /// Who set it.
    pub set_by: u32,
    /// Who changed the content since, if it was neither that user nor root: then nothing is run.
    pub suspended_by: Option<u32>,
}

impl Default for FunctionPolicy {
    fn default() -> Self {
        Self {
            read: Vec::new(),
            write: Vec::new(),
            stage: false,
            args: true,
            memory_bytes: None,
            scratch_bytes: None,
            cpu_milli: None,
            pids: None,
            timeout_ms: None,
            cpu_time_ms: None,
            net_host: false,
            env: Vec::new(),
            root: None,
            concurrency: None,
            call: Vec::new(),
            open: Vec::new(),
            uid: None,
            best_effort: false,
            set_by: 0,
            suspended_by: None,
        }
    }
}

impl FunctionPolicy {
    /// From a row.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn decode(row: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(row)
            .map_err(|error| format!("its policy cannot be read ({error}); set it anew with `brine exec policy`"))
    }

    /// As a row.
    pub fn encode(&self) -> Vec<u8> {
        // Every field is of a kind that JSON has.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Refuse what contradicts itself or cannot be.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        for (option, paths) in
            [("--read", &self.read), ("--write", &self.write), ("--call", &self.call), ("--open", &self.open)]
        {
            if paths.len() > PATHS_MAX {
                return Err(format!("{option} was given {} times, {PATHS_MAX} are possible", paths.len()));
            }
            paths.iter().try_for_each(|path| check_path(option, path))?;
        }
        if let Some(root) = &self.root {
            check_path("--root", root)?;
        }
        let both = self.read.iter().find(|path| self.write.contains(path));
        if let Some(path) = both {
            return Err(format!("{path} cannot be both --read and --write"));
        }
        if self.write.iter().chain(&self.read).chain(&self.open).any(|path| covers_control(path)) {
            return Err("the root of the volume cannot be granted: it holds .brine; name the directories".into());
        }
        if self.stage && self.write.is_empty() {
            return Err("--stage without --write: there is nothing to stage".into());
        }
        for name in &self.env {
            environment::check_name(name).map_err(|why| format!("--env {name}: {why}"))?;
        }
        let limits = self.limits();
        if limits.memory_bytes < MEMORY_BYTES_MIN {
            return Err(format!("--memory: a run needs at least {} MiB", MEMORY_BYTES_MIN >> 20));
        }
        if limits.cpu_milli == 0 || limits.pids == 0 || limits.wall.is_zero() || self.concurrency == Some(0) {
            return Err("a limit of 0 lets nothing run; take the execute permission away instead".into());
        }
        if limits.wall > TIMEOUT_MAX {
            return Err("--timeout: at most 7 days".into());
        }
        if let Some(cpu) = limits.cpu_time
            && cpu.is_zero()
        {
            return Err("--cpu-time 0 lets nothing run".into());
        }
        Ok(())
    }

    /// The limits of a run.
    pub fn limits(&self) -> Limits {
        let base = Limits::default();
        Limits {
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            scratch_bytes: self.scratch_bytes.unwrap_or(base.scratch_bytes),
            cpu_milli: self.cpu_milli.unwrap_or(base.cpu_milli),
            pids: self.pids.unwrap_or(base.pids),
            wall: self.timeout_ms.map_or(base.wall, Duration::from_millis),
            cpu_time: self.cpu_time_ms.map(Duration::from_millis).or(base.cpu_time),
            ..base
        }
    }

    /// Its network.
    pub fn network(&self) -> Network {
        if self.net_host { Network::Host } else { Network::None }
    }

    /// Content was changed by `uid`: suspended, unless that is who set it, or root. Whether it is so only now.
    pub fn changed_by(&mut self, uid: u32) -> bool {
        let stranger = uid != 0 && uid != self.set_by && self.suspended_by.is_none();
        if stranger {
            self.suspended_by = Some(uid);
        }
        stranger
    }
}

/// A change of a policy, as the command asks for it. What is not there stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyChange {
    /// Replaces the list.
    pub read: Option<Vec<String>>,
    /// Replaces the list.
    pub write: Option<Vec<String>>,
    /// Sets [`FunctionPolicy::stage`].
    pub stage: Option<bool>,
    /// Sets [`FunctionPolicy::args`].
    pub args: Option<bool>,
    /// Sets the limit, bytes.
    pub memory_bytes: Option<u64>,
    /// Sets the limit, bytes.
    pub scratch_bytes: Option<u64>,
    /// Sets the limit.
    pub cpu_milli: Option<u32>,
    /// Sets the limit.
    pub pids: Option<u32>,
    /// Sets the limit, milliseconds.
    pub timeout_ms: Option<u64>,
    /// Sets the limit, milliseconds.
    pub cpu_time_ms: Option<u64>,
    /// Sets [`FunctionPolicy::net_host`].
    pub net_host: Option<bool>,
    /// Replaces the list.
    pub env: Option<Vec<String>>,
    /// Sets the root; an empty one is the host's.
    pub root: Option<String>,
    /// Sets the limit.
    pub concurrency: Option<u32>,
    /// Replaces the list.
    pub call: Option<Vec<String>>,
    /// Replaces the list.
    pub open: Option<Vec<String>>,
    /// Sets [`FunctionPolicy::uid`].
    pub uid: Option<u32>,
    /// Sets [`FunctionPolicy::best_effort`].
    pub best_effort: Option<bool>,
    /// Take the policy away.
    pub reset: bool,
}

impl PolicyChange {
    /// Whether nothing is asked for: the policy is only shown.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The policy after this change, made by `uid`. `old` may be suspended; who sets it has looked at the content.
    pub fn apply(self, old: FunctionPolicy, uid: u32) -> FunctionPolicy {
        FunctionPolicy {
            read: self.read.unwrap_or(old.read),
            write: self.write.unwrap_or(old.write),
            stage: self.stage.unwrap_or(old.stage),
            args: self.args.unwrap_or(old.args),
            memory_bytes: self.memory_bytes.or(old.memory_bytes),
            scratch_bytes: self.scratch_bytes.or(old.scratch_bytes),
            cpu_milli: self.cpu_milli.or(old.cpu_milli),
            pids: self.pids.or(old.pids),
            timeout_ms: self.timeout_ms.or(old.timeout_ms),
            cpu_time_ms: self.cpu_time_ms.or(old.cpu_time_ms),
            net_host: self.net_host.unwrap_or(old.net_host),
            env: self.env.unwrap_or(old.env),
            root: self.root.or(old.root).filter(|root| !root.is_empty()),
            concurrency: self.concurrency.or(old.concurrency),
            call: self.call.unwrap_or(old.call),
            open: self.open.unwrap_or(old.open),
            uid: self.uid.or(old.uid),
            best_effort: self.best_effort.unwrap_or(old.best_effort),
            set_by: uid,
            suspended_by: None,
        }
    }
}

fn check_path(option: &str, path: &str) -> Result<(), String> {
    let inside = path.starts_with('/')
        && Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if inside { Ok(()) } else { Err(format!("{option} {path}: not a path inside the volume")) }
}

fn covers_control(path: &str) -> bool {
    let mut parts = Path::new(path).components().skip(1);
    parts.next().is_none_or(|first| first.as_os_str().as_encoded_bytes().starts_with(b".brine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: PolicyChange) -> FunctionPolicy {
        change.apply(FunctionPolicy::default(), 1000)
    }

    fn paths(paths: &[&str]) -> Option<Vec<String>> {
        Some(paths.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn rows_come_back_and_strange_ones_are_refused() {
        let policy = set(PolicyChange {
            read: paths(&["/data"]),
            write: paths(&["/out"]),
            memory_bytes: Some(64 << 20),
            env: paths(&["TOKEN"]),
            ..PolicyChange::default()
        });
        policy.check().unwrap();
        assert_eq!(FunctionPolicy::decode(&policy.encode()).unwrap(), policy);
        assert_eq!(policy.limits().memory_bytes, 64 << 20);
        assert!(FunctionPolicy::decode(b"{\"future\":1}").unwrap_err().contains("brine exec policy"));
        assert_eq!(FunctionPolicy::decode(b"{}").unwrap(), FunctionPolicy::default());
    }

    #[test]
    fn contradictions_and_paths_outside_the_volume_are_refused() {
        let bad = [
            PolicyChange { read: paths(&["/a"]), write: paths(&["/a"]), ..PolicyChange::default() },
            PolicyChange { read: paths(&["../etc"]), ..PolicyChange::default() },
            PolicyChange { read: paths(&["/a/../../etc"]), ..PolicyChange::default() },
            PolicyChange { write: paths(&["/"]), ..PolicyChange::default() },
            PolicyChange { read: paths(&["/.brine/runs"]), ..PolicyChange::default() },
            PolicyChange { stage: Some(true), ..PolicyChange::default() },
            PolicyChange { env: paths(&["LD_PRELOAD"]), ..PolicyChange::default() },
            PolicyChange { memory_bytes: Some(1), ..PolicyChange::default() },
            PolicyChange { timeout_ms: Some(0), ..PolicyChange::default() },
            PolicyChange { timeout_ms: Some(u64::MAX), ..PolicyChange::default() },
            PolicyChange { concurrency: Some(0), ..PolicyChange::default() },
            PolicyChange { root: Some("image".into()), ..PolicyChange::default() },
        ];
        for change in bad {
            let shown = format!("{change:?}");
            assert!(set(change).check().is_err(), "{shown}");
        }
        set(PolicyChange::default()).check().unwrap();
    }

    #[test]
    fn a_strangers_change_suspends_until_it_is_set_again() {
        let mut policy = set(PolicyChange { read: paths(&["/a"]), ..PolicyChange::default() });
        assert!(!policy.changed_by(1000) && !policy.changed_by(0));
        assert!(policy.changed_by(1001) && !policy.changed_by(1002), "told once");
        assert_eq!(policy.suspended_by, Some(1001));
        let again = PolicyChange { args: Some(false), ..PolicyChange::default() }.apply(policy, 1000);
        assert_eq!((again.suspended_by, &again.read[..]), (None, &["/a".to_owned()][..]));
        let cleared = PolicyChange { root: Some(String::new()), ..PolicyChange::default() }
            .apply(FunctionPolicy { root: Some("/i".into()), ..again }, 1000);
        assert_eq!(cleared.root, None);
    }
}
