//! What is kept of a run: a JSON object, one row of the volume each. Written when the run begins and when it has ended,
//! durable with the next commit; a row that says `running` at a mount is of a run the daemon did not survive.

use std::time::Duration;

use brine_exec::{ExitCause, Outcome, RunId, Steps, Usage, Verdict, View};
use serde::{Deserialize, Serialize};

use super::grant::Input;
use super::staging::StagedRow;

/// The cause of a run that has not ended.
pub const RUNNING: &str = "running";

/// [`RunRow::outputs`]: they have their names.
pub const OUTPUTS_PUBLISHED: &str = "published";
/// [`RunRow::outputs`]: the program did not end with 0, and they are gone.
pub const OUTPUTS_DROPPED: &str = "dropped";
/// [`RunRow::outputs`]: they could not be published and can be for a day.
pub const OUTPUTS_KEPT: &str = "kept";

/// One run. Paths are from the root of the volume; what in them is no text is replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRow {
    /// Its name, 32 hexadecimal digits.
    pub id: String,
    /// The function's path; empty if no function was found.
    pub function: String,
    /// The function's inode.
    pub ino: u64,
    /// Its version.
    pub version: u64,
    /// Who called.
    pub uid: u32,
    /// With which group.
    pub gid: u32,
    /// The run that invoked it; empty if none did.
    pub parent: String,
    /// Start, nanoseconds since 1970.
    pub started_ns: i64,
    /// End.
    pub ended_ns: Option<i64>,
    /// Why it ended: a word of [`ExitCause::word`], or [`RUNNING`].
    pub cause: String,
    /// The program's exit code, if it exited by itself.
    pub program_code: Option<i32>,
    /// The signal that ended it.
    pub program_signal: Option<i32>,
    /// Exit code its caller saw; none if that was a signal.
    pub exit_code: Option<u8>,
    /// What its caller was told on standard error.
    pub message: Option<String>,
    /// What of the volume existed for it.
    pub scope: Vec<ScopeRow>,
    /// The versions it began with.
    pub inputs: Vec<InputRow>,
    /// What was staged of its scope.
    pub staged: Vec<StagedRow>,
    /// What became of staged outputs: `published`, `dropped`, `kept`; empty if nothing was staged, or the run goes on.
    pub outputs: String,
    /// What it used.
    pub usage: UsageRow,
    /// How long after its acceptance it had got where.
    pub steps: StepsRow,
    /// Digest of the state its sandbox started from.
    pub template: String,
}

/// One granted path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScopeRow {
    /// The path.
    pub path: String,
    /// `read`, `write` or `stage`.
    pub access: String,
}

/// One input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputRow {
    /// The path.
    pub path: String,
    /// Its inode.
    pub ino: u64,
    /// Its version.
    pub version: u64,
}

/// What a run used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageRow {
    /// Wall-clock time, microseconds.
    pub wall_us: u64,
    /// Processor time, microseconds.
    pub cpu_us: u64,
    /// Most memory at one time, bytes.
    pub memory_peak_bytes: u64,
    /// Most processes at one time.
    pub pids_peak: u32,
    /// Scratch in use at the end, bytes.
    pub scratch_bytes: u64,
    /// Scratch files at the end.
    pub scratch_files: u64,
    /// Bytes read from and written to devices.
    pub io_bytes: u64,
}

/// Microseconds from the acceptance of the request to each step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepsRow {
    /// Resources were promised.
    pub admitted_us: u64,
    /// It had a sandbox.
    pub sandbox_us: u64,
    /// The sandbox had been made ahead.
    pub pooled: bool,
    /// Its program started.
    pub started_us: u64,
    /// Its program had ended.
    pub ended_us: u64,
    /// Nothing of it was left.
    pub gone_us: u64,
}

/// The key of a run's row: by age, then by name.
pub fn key(started_ns: i64, id: &str) -> Vec<u8> {
    let mut key = started_ns.max(0).to_be_bytes().to_vec();
    key.extend_from_slice(id.as_bytes());
    key
}

fn us(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

impl From<&Usage> for UsageRow {
    fn from(usage: &Usage) -> Self {
        Self {
            wall_us: us(usage.wall),
            cpu_us: us(usage.cpu),
            memory_peak_bytes: usage.memory_peak_bytes,
            pids_peak: usage.pids_peak,
            scratch_bytes: usage.scratch_bytes,
            scratch_files: usage.scratch_files,
            io_bytes: usage.io_bytes,
        }
    }
}

impl From<&Steps> for StepsRow {
    fn from(steps: &Steps) -> Self {
        Self {
            admitted_us: us(steps.admitted),
            sandbox_us: us(steps.sandbox),
            pooled: steps.pooled,
            started_us: us(steps.started),
            ended_us: us(steps.ended),
            gone_us: us(steps.gone),
        }
    }
}

impl RunRow {
    /// A run that begins.
    pub fn new(id: RunId, uid: u32, gid: u32, started_ns: i64) -> Self {
        Self { id: id.to_string(), uid, gid, started_ns, cause: RUNNING.into(), ..Self::default() }
    }

    /// From a row.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(row: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(row)
    }

    /// As a row.
    pub fn encode(&self) -> Vec<u8> {
        // Every field is of a kind that JSON has.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The key of its row.
    pub fn key(&self) -> Vec<u8> {
        key(self.started_ns, &self.id)
    }

    /// Whether it has outputs that are kept to be published.
    pub fn keeps_outputs(&self, now_ns: i64) -> bool {
        let young = |ended: i64| now_ns.saturating_sub(ended) < super::staging::KEPT_NS;
        self.outputs == OUTPUTS_KEPT && self.ended_ns.is_some_and(young)
    }

    /// Note what it was granted.
    pub fn grant(&mut self, views: &[View], inputs: &[Input]) {
        let shown = |path: &std::path::Path| format!("/{}", path.display());
        let scope = views.iter().map(|view| ScopeRow { path: shown(&view.source), access: view.access.word().into() });
        self.scope = scope.collect();
        let row = |input: &Input| InputRow { path: shown(&input.path), ino: input.ino.0, version: input.version.0 };
        self.inputs = inputs.iter().map(row).collect();
    }

    /// Note what it opened by asking. So many are told at most.
    pub fn add_input(&mut self, input: &Input) {
        const INPUTS_MAX: usize = 1024;
        let path = format!("/{}", input.path.display());
        let known = self.inputs.iter().any(|row| row.ino == input.ino.0 && row.version == input.version.0);
        if !known && self.inputs.len() < INPUTS_MAX {
            self.inputs.push(InputRow { path, ino: input.ino.0, version: input.version.0 });
        }
    }

    /// It was not started.
    pub fn refuse(&mut self, cause: ExitCause, exit_code: u8, message: String, now_ns: i64) {
        self.cause = cause.word().into();
        self.exit_code = Some(exit_code);
        self.message = Some(message);
        self.ended_ns = Some(now_ns);
    }

    /// It ended.
    pub fn end(&mut self, outcome: &Outcome, now_ns: i64) {
        self.cause = outcome.cause.word().into();
        match outcome.cause {
            ExitCause::Exited(code) => self.program_code = Some(code),
            ExitCause::Signaled(signal) => self.program_signal = Some(signal),
            _ => {}
        }
        self.exit_code = match outcome.verdict {
            Verdict::Code(code) => Some(code),
            Verdict::Signal(signal) => {
                self.program_signal = Some(signal.into());
                None
            }
        };
        self.message.clone_from(&outcome.line);
        self.usage = UsageRow::from(&outcome.usage);
        self.steps = StepsRow::from(&outcome.steps);
        self.template = outcome.template.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ended_ns = Some(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_sort_by_age() {
        let mut row = RunRow::new(RunId([7; 16]), 1000, 100, 5);
        let outcome = Outcome {
            id: RunId([7; 16]),
            cause: ExitCause::OutOfMemory,
            verdict: Verdict::Signal(9),
            line: Some("killed: memory".into()),
            usage: Usage { memory_peak_bytes: 1 << 30, cpu: Duration::from_millis(3), ..Usage::default() },
            steps: Steps::default(),
            template: [0xab; 32],
        };
        row.end(&outcome, 9);
        let back = RunRow::decode(&row.encode()).unwrap();
        assert_eq!(back, row);
        assert_eq!((&*back.cause, back.exit_code, back.program_signal), ("memory", None, Some(9)));
        assert_eq!((back.usage.cpu_us, &back.template[..4]), (3000, "abab"));
        assert!(RunRow::new(RunId([255; 16]), 0, 0, 4).key() < row.key());
        assert!(RunRow::new(RunId([1; 16]), 0, 0, 1 << 40).key() > row.key());
        assert!(RunRow::decode(b"{}").is_ok(), "fields may be added later");
    }
}
