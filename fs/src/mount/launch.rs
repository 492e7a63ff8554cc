//! Starting the supervisor or the daemon, and hearing how it went.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::control::Progress;
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry;

/// Longest word, bytes: a warning for each of many directories.
pub(super) const WORD_LEN_MAX: u64 = 1 << 20;
/// Lines of the log shown when a daemon ended without a word.
const LOG_TAIL_LINES: usize = 3;

/// What a daemon says to whoever started it: a line each, the last one is that it is ready or failed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    /// How far it is.
    Step(Progress),
    /// The mount works.
    Ready {
        /// The daemon.
        pid: u32,
        /// What the user should know.
        warnings: Vec<String>,
    },
    /// It does not.
    Failed(Failure),
}

impl Word {
    pub(super) fn say(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)?;
        to.flush()
    }

    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
    }
}

/// A mount that works.
#[derive(Debug)]
pub struct Mounted {
    /// The daemon.
    pub pid: u32,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// This program once more, as a part of a mount.
pub(super) fn start(role: &str, plan: &Plan) -> Result<Child, Failure> {
    let errors = if plan.has_place_for_log() {
        let log = telemetry::append(&plan.log);
        Stdio::from(log.map_err(|error| Failure::io(format!("log file {}", plan.log.display()), &error))?)
    } else {
        Stdio::null()
    };
    let broken = |error: io::Error| Failure::io("starting the daemon", &error);
    // The file may have been replaced by a newer version: the parts of a mount are all of one.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("brine").arg(role).arg(&plan.mountpoint);
    command.stdin(plan.to_memory().map_err(broken)?).stdout(Stdio::piped()).stderr(errors);
    command.spawn().map_err(broken)
}

/// Mount in the background; returns when the mount works. `progress` is told what takes long.
///
/// # Errors
/// Why it does not.
pub fn launch(plan: &Plan, supervise: bool, mut progress: impl FnMut(&Progress)) -> Result<Mounted, Failure> {
    let role = if supervise { "supervise" } else { "serve" };
    let mut child = start(role, plan)?;
    let mut output = child.stdout.take().map(BufReader::new);
    loop {
        let mut line = Vec::new();
        let read = output.as_mut().map(|output| output.take(WORD_LEN_MAX).read_until(b'\n', &mut line));
        match read.and_then(Result::ok).and_then(|_| Word::parse(&line)) {
            Some(Word::Step(step)) => progress(&step),
            // The child goes on; nobody waits for it.
            Some(Word::Ready { pid, warnings }) => return Ok(Mounted { pid, warnings }),
            Some(Word::Failed(failure)) => {
                // Its end lets go of the locks, so that the next attempt does not meet them.
                let _ = child.wait();
                return Err(failure);
            }
            None => {
                let ended = child.wait().map(|status| status.to_string()).unwrap_or_default();
                return Err(without_a_word(&plan.log, &ended));
            }
        }
    }
}

pub(super) fn without_a_word(log: &Path, ended: &str) -> Failure {
    let tail = tail_of(log);
    let seen = match (tail.is_empty(), log.exists()) {
        (false, _) => format!("; the end of {}:\n{tail}", log.display()),
        (true, true) => format!("; its log is {}", log.display()),
        (true, false) => "; mount with -f to see why".to_owned(),
    };
    Failure::new(ExitCode::Failed, format!("the daemon ended ({ended}) before the mount was ready{seen}"))
}

fn tail_of(path: &Path) -> String {
    let Ok(file) = File::open(path) else { return String::new() };
    let len = fs::metadata(path).map_or(0, |meta| meta.len());
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    let start = len.saturating_sub(4096);
    let read = io::Seek::seek(&mut reader, io::SeekFrom::Start(start)).and_then(|_| reader.read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_whole_or_not_at_all() {
        let mut line = Vec::new();
        Word::Failed(Failure::new(ExitCode::WrongSecret, "wrong passphrase\nsecond line")).say(&mut line).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let Some(Word::Failed(failure)) = Word::parse(&line) else { panic!("it is a failure") };
        assert_eq!(failure.code(), ExitCode::WrongSecret);
        assert!(Word::parse(&line[..line.len() - 1]).is_none());
        assert!(Word::parse(b"").is_none());
        assert!(Word::parse(b"thread 'main' panicked\n").is_none());
    }

    #[test]
    fn the_end_of_the_log_is_shown() {
        let path = std::env::temp_dir().join(format!("brine-tail-{}", std::process::id()));
        fs::write(&path, "one\ntwo\nthree\nfour\n").unwrap();
        let failure = without_a_word(&path, "signal: 9 (SIGKILL)");
        fs::remove_file(&path).unwrap();
        assert!(failure.message().contains("signal: 9 (SIGKILL)"));
        assert!(failure.message().ends_with(":\n  two\n  three\n  four"), "{failure}");
        assert!(without_a_word(Path::new("/nowhere/log"), "").message().contains("-f"));
    }
}
