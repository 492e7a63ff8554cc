//! What goes to the terminal, to pipes and to programs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::Progress;
use crate::exit_code::Failure;
use crate::telemetry::printable;

/// Between two updates of a line of progress.
const REDRAW: Duration = Duration::from_millis(200);

/// Text to standard output. A reader who has gone (`| head`) is no failure.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// A JSON value to standard output, readable.
pub(super) fn say_json(value: &Value) {
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Something the user should know, to standard error.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "brine: warning: {}", printable(text));
}

/// What is being done, to standard error.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "brine: {}", printable(text));
}

/// Why the command failed.
pub(super) fn failure(failure: &Failure, json: bool) {
    if json {
        let code = failure.code();
        let object = json!({ "error": { "code": code.number(), "name": code.name(), "message": failure.message() } });
        let _ = writeln!(io::stderr(), "{object}");
    } else {
        // Messages of ours may have several lines, a path in them must not steer the terminal.
        let lines: Vec<String> = failure.message().lines().map(printable).collect();
        let _ = writeln!(io::stderr(), "brine: {}", lines.join("\n"));
    }
}

/// "1.5 GiB".
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// "1,234,567".
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1:02:03".
pub(super) fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// One noun or several.
pub(super) fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

/// Shows how far a long command is: a line that is redrawn on a terminal, JSON lines for programs, else nothing.
pub(super) struct Meter {
    kind: MeterKind,
    phase: String,
    phase_started: Instant,
    phase_from: u64,
    drawn: Option<Instant>,
    /// What is counted are things, not bytes.
    counting: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MeterKind {
    Terminal,
    Json,
    Silent,
}

impl Meter {
    pub(super) fn new(json: bool) -> Self {
        let kind = match (json, io::stderr().is_terminal()) {
            (true, _) => MeterKind::Json,
            (false, true) => MeterKind::Terminal,
            (false, false) => MeterKind::Silent,
        };
        Self { kind, phase: String::new(), phase_started: Instant::now(), phase_from: 0, drawn: None, counting: false }
    }

    /// For steps that count segments or records.
    pub(super) fn counting(json: bool) -> Self {
        Self { counting: true, ..Self::new(json) }
    }

    pub(super) fn step(&mut self, step: &Progress) {
        if self.phase != step.phase {
            self.phase.clone_from(&step.phase);
            (self.phase_started, self.phase_from, self.drawn) = (Instant::now(), step.done_bytes, None);
        }
        let last = step.done_bytes == step.total_bytes;
        if self.kind == MeterKind::Silent || (!last && self.drawn.is_some_and(|at| at.elapsed() < REDRAW)) {
            return;
        }
        self.drawn = Some(Instant::now());
        let (rate, eta) = rate(step, self.phase_from, self.phase_started.elapsed());
        let mut out = io::stderr();
        let _ = if self.kind == MeterKind::Json {
            let object = json!({ "progress": {
                "phase": step.phase, "done_bytes": step.done_bytes, "total_bytes": step.total_bytes,
                "bytes_per_s": rate, "eta_s": eta,
            } });
            writeln!(out, "{object}")
        } else {
            let text = if self.counting { count_line(step, eta) } else { line(step, rate, eta) };
            write!(out, "\r\x1b[K{text}").and_then(|()| out.flush())
        };
    }

    /// Take the line away.
    pub(super) fn finish(&self) {
        if self.kind == MeterKind::Terminal && !self.phase.is_empty() {
            let _ = write!(io::stderr(), "\r\x1b[K").and_then(|()| io::stderr().flush());
        }
    }
}

/// Bytes a second in this phase, and seconds left; 0 and none while unknown.
fn rate(step: &Progress, from: u64, elapsed: Duration) -> (u64, Option<u64>) {
    let seconds = elapsed.as_secs_f64();
    let done = step.done_bytes.saturating_sub(from);
    if seconds < 0.2 || done == 0 {
        return (0, None);
    }
    let rate = done as f64 / seconds;
    let left = step.total_bytes.saturating_sub(step.done_bytes) as f64;
    (rate as u64, (step.total_bytes > 0).then_some((left / rate).ceil() as u64))
}

fn line(step: &Progress, rate: u64, eta: Option<u64>) -> String {
    if step.total_bytes == 0 {
        return format!("{} ...", step.phase);
    }
    let percent = step.done_bytes.min(step.total_bytes) as u128 * 100 / u128::from(step.total_bytes);
    let (done, total) = (bytes(step.done_bytes), bytes(step.total_bytes));
    let mut text = format!("{} {percent:3} %  {done} of {total}", step.phase);
    if rate > 0 {
        text += &format!("  {}/s", bytes(rate));
    }
    if let Some(eta) = eta {
        text += &format!("  {} left", duration(eta));
    }
    text
}

fn count_line(step: &Progress, eta: Option<u64>) -> String {
    let left = eta.map_or(String::new(), |eta| format!(", {} left", duration(eta)));
    match step.total_bytes {
        0 => format!("{} ...", step.phase),
        total => format!("{}: {} of {}{left}", step.phase, grouped(step.done_bytes), grouped(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let shown = [0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, 5 << 40, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 GiB", "5.0 TiB", "16.0 EiB"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([5, 65, 3723].map(duration), ["0:05", "1:05", "1:02:03"]);
        assert_eq!(plural(1, "file", "files"), "1 file");
    }

    #[test]
    fn progress_has_rate_and_rest() {
        let step = Progress { phase: "blocks".into(), done_bytes: 50 << 20, total_bytes: 100 << 20 };
        let (rate, eta) = rate(&step, 0, Duration::from_secs(5));
        assert_eq!((rate, eta), (10 << 20, Some(5)));
        assert_eq!(line(&step, rate, eta), "blocks  50 %  50.0 MiB of 100.0 MiB  10.0 MiB/s  0:05 left");
        assert_eq!(super::rate(&step, 0, Duration::from_millis(1)), (0, None));
        assert_eq!(count_line(&step, eta), "blocks: 52,428,800 of 104,857,600, 0:05 left");
        assert_eq!(line(&Progress { phase: "files".into(), ..Progress::default() }, 0, None), "files ...");
    }
}
