//! Running programs: with a deadline, captured output, and the Debian package of one that is missing.
//!
//! Output goes to memory files, not pipes: a daemon that keeps its parent's descriptors then blocks nobody.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Longest any program may run, unless a test says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Exit codes of `brine`, as docs/CLI.md has them.
pub mod exit {
    /// The command line is wrong.
    pub const USAGE: i32 = 2;
    /// Cannot be used as asked.
    pub const REFUSED: i32 = 3;
    /// No key slot opens.
    pub const WRONG_SECRET: i32 = 4;
    /// Does not exist, or holds no volume.
    pub const NOT_FOUND: i32 = 5;
    /// In use.
    pub const BUSY: i32 = 6;
    /// Damage was found.
    pub const DAMAGED: i32 = 8;
    /// Nothing is mounted there.
    pub const NOT_MOUNTED: i32 = 12;
}

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// How it ended; `None` if it was killed at its deadline.
    pub status: Option<ExitStatus>,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Whether it ended with exit code 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Exit code; `None` if it ended by a signal or at its deadline.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Panics with everything that is known unless it succeeded.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(self.success(), "{self}");
        self
    }

    /// Panics unless it failed in an orderly way: an exit code, no signal, no panic, a message.
    #[track_caller]
    pub fn expect_refusal(self) -> Self {
        let code = self.code();
        assert!(code.is_some(), "ended by a signal or at its deadline instead of refusing: {self}");
        assert!(code != Some(0), "succeeded, a refusal was expected: {self}");
        assert!(code != Some(101) && !self.text().contains("panicked at"), "panicked: {self}");
        assert!(!self.text().trim().is_empty(), "failed without a message: {self}");
        self
    }

    /// Panics unless it ended with this exit code.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "exit code {code} was expected: {self}");
        self
    }

    /// Panics unless the message holds each of `parts`, in any case.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let text = self.text().to_lowercase();
        for part in parts {
            assert!(text.contains(&part.to_lowercase()), "the message does not name {part:?}: {self}");
        }
        self
    }

    /// Panics unless the message holds at least one of `parts`, in any case.
    #[track_caller]
    pub fn says_one_of(self, parts: &[&str]) -> Self {
        let text = self.text().to_lowercase();
        let found = parts.iter().any(|part| text.contains(&part.to_lowercase()));
        assert!(found, "the message names none of {parts:?}: {self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ", self.command)?;
        match self.status {
            None => write!(f, "was killed after {:.1?}", self.took)?,
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "ended with exit code {code}")?,
                (None, signal) => write!(f, "ended by signal {signal:?}")?,
            },
        }
        write!(f, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

/// The program `name` on PATH. Panics naming the Debian package if it is missing.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()) {
        Some(file) => file,
        None => panic!("{}", missing(name)),
    }
}

/// What is said of a program that is not on PATH.
pub fn missing(name: &str) -> String {
    format!("{name} is not on PATH: apt-get install {}", package_of(name))
}

/// Debian package that holds `program`.
fn package_of(program: &str) -> &str {
    match program {
        "fusermount3" => "fuse3",
        "cp" | "sync" | "chown" | "dd" => "coreutils",
        "sh" => "dash",
        "setfacl" | "getfacl" => "acl",
        "setpriv" | "flock" => "util-linux",
        other => other,
    }
}

/// The error of a call that must not succeed.
///
/// # Panics
/// If it succeeded.
#[track_caller]
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.raw_os_error().expect("a system error"),
    }
}

/// Runs to the end; at most [`PATIENCE`].
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_for(command, PATIENCE)
}

/// Runs to the end; after `patience` it is killed.
#[track_caller]
pub fn run_for(command: &mut Command, patience: Duration) -> Finished {
    let described = describe(command);
    let (mut stdout, mut stderr) = (memory_file(), memory_file());
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone().expect("duplicate a descriptor"));
    command.stderr(stderr.try_clone().expect("duplicate a descriptor"));
    let started = Instant::now();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("cannot start `{described}`: {error}"),
    };
    let status = loop {
        match child.try_wait().expect("wait for a child") {
            Some(status) => break Some(status),
            None if started.elapsed() > patience => {
                let _ = child.kill();
                // A child stuck in the kernel cannot be waited for: it is left behind rather than waited for.
                std::thread::sleep(Duration::from_millis(200));
                let _ = child.try_wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let took = started.elapsed();
    Finished { command: described, status, stdout: text_of(&mut stdout), stderr: text_of(&mut stderr), took }
}

/// Runs `script` with `sh -eu` in `directory`.
#[track_caller]
pub fn shell(directory: &Path, script: &str) -> Finished {
    run(Command::new(program("sh")).arg("-euc").arg(script).current_dir(directory))
}

/// Runs `script` with `sh -eu` as an ordinary user who owns nothing.
#[track_caller]
pub fn shell_as(uid: u32, directory: &Path, script: &str) -> Finished {
    // setpriv enters the directory as root: the stranger may not be allowed to walk to it.
    let ids = [format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()];
    run(Command::new(program("setpriv")).args(ids).args(["sh", "-euc", script]).current_dir(directory))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn memory_file() -> File {
    File::from(memfd_create("output", MFdFlags::MFD_CLOEXEC).expect("create a memory file"))
}

fn text_of(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.flush().and_then(|()| file.seek(SeekFrom::Start(0))).expect("rewind output");
    file.read_to_end(&mut bytes).expect("read output");
    String::from_utf8_lossy(&bytes).into_owned()
}
