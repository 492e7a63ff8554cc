//! `brine log`, `brine cat`, `brine diff`, `brine restore`, `brine rewind`: past states of what lies at a path.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lexopt::{Arg, Parser};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::Value;

use super::args;
use super::output::{bytes, grouped};
use super::snapshot::{answer, ask, text};
use super::target::{Live, Target, resolve};
use crate::control::VersionsRequest;
use crate::exit_code::{ExitCode, Failure};
use crate::moment::Moment;
use crate::telemetry::printable;

/// Names listed for people; `--json` has them all.
const SHOWN_MAX: usize = 200;

/// A path on a mounted volume.
pub(super) struct Place {
    pub(super) live: Live,
    /// From the root of the volume.
    pub(super) inside: PathBuf,
}

pub(super) fn place(path: &Path) -> Result<Place, Failure> {
    match resolve(path)? {
        Target::Mounted(live) => {
            let inside = live.inside.clone().unwrap_or_else(|| PathBuf::from("/"));
            Ok(Place { live, inside })
        }
        Target::Unmounted(offline) => Err(Failure::new(
            ExitCode::NotMounted,
            format!("{} is not mounted; mount it first: its daemon keeps its history", offline.name()),
        )),
    }
}

/// `PATH@V` in its parts.
fn split(word: &Path) -> Option<(PathBuf, String)> {
    let bytes = word.as_os_str().as_bytes();
    let mut at = bytes.iter().rposition(|byte| *byte == b'@')?;
    // PATH@@SECONDS is a time, too.
    if at > 0 && bytes[at - 1] == b'@' {
        at -= 1;
    }
    let moment = String::from_utf8(bytes[at + 1..].to_vec()).ok().filter(|moment| !moment.is_empty())?;
    let path = std::ffi::OsString::from_vec(bytes[..at].to_vec());
    (!path.is_empty()).then(|| (path.into(), moment))
}

fn split_or_usage(word: &Path) -> Result<(PathBuf, String), Failure> {
    split(word).ok_or_else(|| {
        Failure::usage(format!("{}: give PATH@V, where V is a version, a time or a snapshot", word.display()))
    })
}

/// `brine log [--deleted] PATH`.
pub(super) fn run_log(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut deleted, mut paths) = (false, false, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("deleted") => deleted = true,
            other => args::positional(other, &mut paths)?,
        }
    }
    let [path] = args::exactly(paths, "PATH")?;
    let Place { live, inside } = place(&path)?;
    if deleted {
        let gone = live.ask_long(&ask(VersionsRequest::Deleted { path: inside }), |_| {})?;
        answer(json, &gone, || deleted_text(&gone));
    } else {
        let log = live.ask_long(&ask(VersionsRequest::Log { path: inside }), |_| {})?;
        answer(json, &log, || log_text(&log));
    }
    Ok(ExitCode::Success)
}

fn rows(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn words(value: &Value) -> String {
    rows(value).iter().map(text).collect::<Vec<_>>().join(", ")
}

fn log_text(log: &Value) -> String {
    let states = rows(&log["states"]);
    let present = states.first().and_then(|state| state["ino"].as_u64());
    let lines = states.iter().map(|state| {
        let (time, what) = (text(&state["time"]), words(&state["what"]));
        let Some(version) = state["version"].as_u64() else { return format!("{time}  {:>12}  {:>10}  {what}", "", "") };
        let ino = state["ino"].as_u64();
        // A version of what had the name before is named with its inode.
        let version = if ino == present { version.to_string() } else { format!("{}:{version}", ino.unwrap_or(0)) };
        format!("{time}  {version:>12}  {:>10}  {what}", bytes(state["size"].as_u64().unwrap_or(0)))
    });
    let head = format!("{:<24}  {:>12}  {:>10}  {}", "TIME", "VERSION", "SIZE", "WHAT");
    std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
}

fn deleted_text(gone: &Value) -> String {
    let lines = rows(&gone["deleted"]);
    let lines = lines.iter().map(|row| {
        let size = bytes(row["size"].as_u64().unwrap_or(0));
        format!("{}  {size:>10}  {:<9}  {}", text(&row["time"]), text(&row["kind"]), text(&row["name"]))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where the daemon shows an inode as of a generation.
fn shown(live: &Live, state: &Value) -> Result<PathBuf, Failure> {
    let mountpoint = live.mountpoint.as_ref().ok_or_else(|| {
        Failure::new(ExitCode::NotMounted, "the volume is mounted, but it is not known where; name its mountpoint")
    })?;
    let number = |name: &str| state[name].as_u64().unwrap_or(0);
    Ok(mountpoint.join(format!(".brine/file/{}.{}", number("ino"), number("generation"))))
}

/// `brine cat PATH@V`.
pub(super) fn run_cat(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut names = Vec::new();
    while let Some(argument) = parser.next()? {
        args::positional(argument, &mut names)?;
    }
    let [word] = args::exactly(names, "PATH@V")?;
    let (path, at) = split_or_usage(&word)?;
    let Place { live, inside } = place(&path)?;
    let found = live.ask_long(&ask(VersionsRequest::Find { path: inside, at }), |_| {})?;
    if found["kind"] != "file" {
        let text = format!("{} was a {} then; `brine cat` shows files", path.display(), text(&found["kind"]));
        return Err(Failure::new(ExitCode::Refused, text));
    }
    let source = shown(&live, &found)?;
    let mut file = File::open(&source).map_err(|error| Failure::io(source.display(), &error))?;
    let mut out = io::stdout().lock();
    match io::copy(&mut file, &mut out).and_then(|_| out.flush()) {
        // A reader who has gone (`| head`) is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::Success),
        Err(error) => Err(Failure::io(format!("copying {}", word.display()), &error)),
        Ok(()) => Ok(ExitCode::Success),
    }
}

/// `brine diff PATH@V [V]`.
pub(super) fn run_diff(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut names) = (false, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            other => args::positional(other, &mut names)?,
        }
    }
    let to = if names.len() == 2 { names.pop() } else { None };
    let [word] = args::exactly(names, "PATH@V and perhaps another V")?;
    let (path, from) = split_or_usage(&word)?;
    // Both `V` and `PATH@V` may be given, the same path.
    let to = to.map(|to| match split(&to) {
        Some((other, to)) if other == path => Ok(to),
        Some((other, _)) if other.components().count() > 1 => {
            Err(Failure::usage(format!("{} and {} are two paths; give one", path.display(), other.display())))
        }
        _ => to.into_os_string().into_string().map_err(|to| Failure::usage(format!("{} is not UTF-8", to.display()))),
    });
    let to = to.transpose()?;
    let Place { live, inside } = place(&path)?;
    let diff =
        live.ask_long(&ask(VersionsRequest::Diff { path: inside, from: from.clone(), to: to.clone() }), |_| {})?;
    show_diff(json, &live, &diff, &path, &from, to.as_deref().unwrap_or("now"))
}

/// A difference, of trees as a list, of files as diff(1) shows it.
pub(super) fn show_diff(
    json: bool,
    live: &Live,
    diff: &Value,
    path: &Path,
    from: &str,
    to: &str,
) -> Result<ExitCode, Failure> {
    if json || diff["differences"].is_array() {
        answer(json, diff, || {
            let lines = rows(&diff["differences"]);
            let count = diff["count"].as_u64().unwrap_or(0);
            let shown =
                lines.iter().take(SHOWN_MAX).map(|row| format!("{:<10} {}", words(&row["what"]), text(&row["path"])));
            let mut shown: Vec<String> = shown.collect();
            if count as usize > SHOWN_MAX {
                shown.push(format!("... {} in all; `--json` lists them", grouped(count)));
            }
            shown.join("\n")
        });
        return Ok(ExitCode::Success);
    }
    let mut command = Command::new("diff");
    command.arg("-u");
    for at in [from, to] {
        command.arg("--label").arg(format!("{}@{at}", path.display()));
    }
    command.arg("--").arg(shown(live, &diff["from"])?).arg(shown(live, &diff["to"])?);
    let status = command.status().map_err(|error| Failure::io("running diff(1)", &error))?;
    match status.code() {
        // 1: they differ, which is what was asked.
        Some(0 | 1) => Ok(ExitCode::Success),
        _ => Err(Failure::new(ExitCode::Failed, "diff(1) failed")),
    }
}

/// `brine restore PATH[@V] [--to NEW_PATH]`.
pub(super) fn run_restore(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut to, mut if_version, mut names) = (false, None, None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("to") => to = Some(args::path(&mut parser, "--to")?),
            Arg::Long("if-version") => if_version = Some(version(&mut parser)?),
            other => args::positional(other, &mut names)?,
        }
    }
    if to.is_some() && if_version.is_some() {
        return Err(Failure::usage("--to NEW_PATH must be free, so it has no version that --if-version could name"));
    }
    let [word] = args::exactly(names, "PATH@V")?;
    // A name may hold an @ itself: without a state it is brought back from before it was deleted.
    let (path, at) = match split(&word) {
        Some((path, at)) => (path, Some(at)),
        None => (word.clone(), None),
    };
    let Place { live, inside } = place(&path)?;
    let to = to.map(|to| same_volume(&live, &to)).transpose()?;
    let done = live.ask_long(&ask(VersionsRequest::Restore { path: inside, at, to, if_version }), |_| {})?;
    answer(json, &done, || {
        let from = &done["from"];
        format!(
            "{} is what it was in version {}, of {}; its version now is {}",
            text(&done["path"]),
            from["version"],
            text(&from["time"]),
            done["version"]
        )
    });
    Ok(ExitCode::Success)
}

/// The value of `--if-version`.
fn version(parser: &mut Parser) -> Result<u64, Failure> {
    let word = args::word(parser)?;
    word.parse()
        .map_err(|_| Failure::usage(format!("--if-version {word}: a version as `brine log` shows it, such as 7")))
}

/// `brine write [--if-version V] PATH < CONTENT`.
pub(super) fn run_write(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut if_version, mut names) = (false, None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("if-version") => if_version = Some(version(&mut parser)?),
            other => args::positional(other, &mut names)?,
        }
    }
    let [path] = args::exactly(names, "PATH")?;
    let Place { live, inside } = place(&path)?;
    // Whether this user may write it is the kernel's to say. Whether somebody runs it is asked again when it is written.
    File::options().write(true).open(&path).map_err(|error| Failure::io(path.display(), &error))?;
    let (beside, mut file) = Beside::of(&path, &inside)?;
    beside
        .fill(&mut file)
        .map_err(|error| Failure::io(format!("the new content, beside it in {}", beside.path.display()), &error))?;
    beside.goes_with_signals()?;
    let request = VersionsRequest::Write { path: inside, from: beside.inside.clone(), if_version };
    let done = live.ask_long(&ask(request), |_| {})?;
    beside.taken.set(true);
    answer(json, &done, || format!("{} is version {} now", text(&done["path"]), done["version"]));
    Ok(ExitCode::Success)
}

/// Names that are tried for a file beside another.
const BESIDE_MAX: usize = 16;
/// Bytes of new content copied at once.
const COPIED_AT_ONCE: usize = 256 << 10;
/// What ends a command from outside, and leaves it the time to clear up.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// A file beside another, nobody else's to read, that holds its new content until that is taken. Removed when dropped
/// before, and by signals that end the command.
struct Beside {
    path: PathBuf,
    inside: PathBuf,
    taken: std::cell::Cell<bool>,
    /// Signals that end the command; blocked from before the file is there.
    ending: SigSet,
    /// What was blocked before.
    unblocked: SigSet,
}

impl Beside {
    fn of(path: &Path, inside: &Path) -> Result<(Self, File), Failure> {
        let name = path.file_name().ok_or_else(|| Failure::usage(format!("{}: name a file", path.display())))?;
        // Names of 255 bytes are the longest.
        let kept: Vec<u8> = name.as_bytes().iter().copied().take(200).collect();
        let ending: SigSet = ENDING.into_iter().collect();
        let unblocked = ending.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap_or_else(|_| SigSet::empty());
        let mut tried = 0;
        loop {
            let own = [b".", &kept[..], format!(".new-{}-{tried}", std::process::id()).as_bytes()].concat();
            let own = std::ffi::OsString::from_vec(own);
            let beside = path.with_file_name(&own);
            match File::options().write(true).create_new(true).mode(0o600).open(&beside) {
                Ok(file) => {
                    let inside = inside.with_file_name(&own);
                    return Ok((Self { path: beside, inside, taken: false.into(), ending, unblocked }, file));
                }
                // Left by a command that was killed, or of another host.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tried < BESIDE_MAX => tried += 1,
                Err(error) => {
                    let what = format!("the new content, beside it in {}", beside.display());
                    return Err(Failure::io(what, &error));
                }
            }
        }
    }

    /// Copy standard input to the file. A signal ends the command here also where the input ended after it was sent: what
    /// an interrupt cuts short, by ending the program that writes it as well, is not all of the content.
    fn fill(&self, file: &mut File) -> io::Result<()> {
        let signals = SignalFd::with_flags(&self.ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut buffer = vec![0; COPIED_AT_ONCE];
        loop {
            let mut ready = [input.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut ready, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled?,
            };
            let has_input = ready[0].any().unwrap_or(true);
            let count = if has_input { Some(input.read(&mut buffer)?) } else { None };
            if let Some(sent) = signals.read_signal()?
                && let Ok(signal) = Signal::try_from(sent.ssi_signo as i32)
            {
                end_by(signal, &self.path, self.unblocked);
            }
            match count {
                Some(0) => return Ok(()),
                Some(count) => file.write_all(&buffer[..count])?,
                None => {}
            }
        }
    }

    /// From now on a thread of its own waits for the signals, while this one waits for the daemon.
    fn goes_with_signals(&self) -> Result<(), Failure> {
        let (path, ending, unblocked) = (self.path.clone(), self.ending, self.unblocked);
        let waits = move || {
            if let Ok(signal) = ending.wait() {
                end_by(signal, &path, unblocked);
            }
        };
        let thread = std::thread::Builder::new().name("brine-signals".into()).spawn(waits);
        thread.map(drop).map_err(|error| Failure::io("a thread for signals", &error))
    }
}

/// Let a signal do what it does, when the file is gone.
fn end_by(signal: Signal, path: &Path, unblocked: SigSet) -> ! {
    let _ = std::fs::remove_file(path);
    let _ = unblocked.thread_set_mask();
    let _ = raise(signal);
    // It was ignored from the start.
    std::process::exit(128 + signal as i32)
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.taken.get() {
            // The daemon may have taken it and failed after that.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A path on the same mount, from the root of the volume.
fn same_volume(live: &Live, path: &Path) -> Result<PathBuf, Failure> {
    let other = place(path)?;
    if other.live.socket != live.socket {
        let text = format!("{} is not on the same volume; copy from .brine/at or .brine/snapshots", path.display());
        return Err(Failure::new(ExitCode::Refused, text));
    }
    Ok(other.inside)
}

/// `brine rewind DIR|MOUNTPOINT --to X [--dry-run]`.
pub(super) fn run_rewind(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut dry_run, mut to, mut names) = (false, false, None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("dry-run") => dry_run = true,
            Arg::Long("to") => to = Some(args::word(&mut parser)?),
            other => args::positional(other, &mut names)?,
        }
    }
    let [path] = args::exactly(names, "DIR or MOUNTPOINT, and --to TIME|SNAPSHOT")?;
    let to = to.ok_or_else(|| Failure::usage("give --to TIME or --to SNAPSHOT"))?;
    if let Moment::Version { .. } = Moment::parse(&to, 0) {
        return Err(Failure::usage(format!("--to {to} is a version of a file; give a time or a snapshot")));
    }
    let Place { live, inside } = place(&path)?;
    let done = live.ask_long(&ask(VersionsRequest::Rewind { path: inside, to, dry_run }), |_| {})?;
    answer(json, &done, || {
        let mut lines = Vec::new();
        let actions = rows(&done["actions"]);
        if dry_run {
            let shown = actions.iter().take(SHOWN_MAX);
            lines.extend(shown.map(|row| format!("{:<8} {}", text(&row["what"]), text(&row["path"]))));
            if actions.len() > SHOWN_MAX {
                lines.push("... `--json` lists all".to_owned());
            }
        }
        let count = |name: &str| grouped(done[name].as_u64().unwrap_or(0));
        lines.push(format!(
            "{}{}: {} created, {} changed, {} moved, {} removed",
            if dry_run { "would be as of " } else { "as of " },
            text(&done["time"]),
            count("created"),
            count("changed"),
            count("moved"),
            count("removed")
        ));
        if let Some(undo) = done["undo"].as_str() {
            lines.push(format!("undo it with: brine rewind {} --to {undo}", printable(&path.to_string_lossy())));
        }
        lines.join("\n")
    });
    Ok(ExitCode::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_states_are_parted_at_the_last_sign() {
        let parts = |word: &str| split(Path::new(word)).map(|(path, at)| (path.display().to_string(), at));
        assert_eq!(parts("/mnt/a@7"), Some(("/mnt/a".into(), "7".into())));
        assert_eq!(parts("/mnt/me@home@monday"), Some(("/mnt/me@home".into(), "monday".into())));
        assert_eq!(parts("/mnt/a@@1700000000"), Some(("/mnt/a".into(), "@1700000000".into())));
        assert_eq!(parts("/mnt/a"), None);
        assert_eq!(parts("/mnt/a@"), None);
        assert_eq!(parts("@7"), None);
    }
}
