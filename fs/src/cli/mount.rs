//! `brine mount`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use brine_store::clock::{Clock, SystemClock};
use brine_store::lock::LocalLock;
use brine_store::volume::{Probe, check_state_dir, probe};
use lexopt::{Arg, Parser};
use nix::mount::{MsFlags, mount};
use nix::unistd::geteuid;

use super::output::Meter;
use super::target::name;
use super::{args, output, secret};
use crate::config::MountOptions;
use crate::control::{self, Progress};
use crate::exit_code::{ExitCode, Failure};
use crate::moment::Moment;
use crate::mount::{Mountpoint, Plan, Secret, check_overlap, harden, launch, prepare, run_foreground};
use crate::vfs::Atime;

/// Name of the log file in a state directory.
const LOG_FILE: &str = "daemon.log";
/// Times a passphrase is asked for.
const ATTEMPTS: usize = 3;

#[derive(Default)]
struct Asked {
    options: Vec<OsString>,
    foreground: bool,
    verbose: bool,
    paths: Vec<PathBuf>,
}

fn parse(mut parser: Parser) -> Result<Asked, Failure> {
    let mut asked = Asked::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('o') | Arg::Long("options") => asked.options.push(parser.value()?),
            Arg::Short('f') | Arg::Long("foreground") => asked.foreground = true,
            Arg::Short('r') | Arg::Long("read-only") => asked.options.push("ro".into()),
            Arg::Short('w') | Arg::Long("rw" | "read-write") => asked.options.push("rw".into()),
            Arg::Short('v') | Arg::Long("verbose") => asked.verbose = true,
            Arg::Long("take-over") => asked.options.push("take_over".into()),
            Arg::Long("accept-rollback") => asked.options.push("accept_rollback".into()),
            // Exit codes as mount(8) wants them: seen to in main.
            Arg::Long("mount8") => {}
            other => args::positional(other, &mut asked.paths)?,
        }
    }
    Ok(asked)
}

pub(super) fn run(parser: Parser) -> Result<ExitCode, Failure> {
    let mut asked = parse(parser)?;
    let [source, point] =
        args::exactly(std::mem::take(&mut asked.paths), "SOURCE (any directory of the volume) and MOUNTPOINT")?;
    let base = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let options = MountOptions::parse(&asked.options, &base)?;
    let fixed = options.at.as_deref().and_then(|at| fixed_time(at, SystemClock.now_ns()));
    asked.options.extend(fixed);
    if options.remount {
        return remount(&base.join(point), &options).map(|()| ExitCode::Success);
    }
    harden();
    let sources = args::sources(&source);
    let point = prepare(&point)?;
    let probe = probe_for(&sources, &options)?;
    let state_dir = options.state.clone().unwrap_or_else(|| probe.state_dir.clone());
    let members = probe.members.iter().map(|member| member.path.as_path());
    check_overlap(&point.path, members, &state_dir)?;
    // The log would be written there before the volume is opened.
    check_state_dir(&state_dir, probe.volume)?;
    check_machine(&options)?;
    check_log(&options)?;
    tell(&point, &options, asked.verbose);
    let plan = |secret| Plan {
        shown_source: shown_source(&source, &sources),
        sources: sources.clone(),
        mountpoint: point.path.clone(),
        base: base.clone(),
        options: asked.options.clone(),
        log: log_file(&options, &state_dir),
        secret,
    };
    if asked.foreground {
        let secret = first_secret(&options, &probe)?;
        let meter = Mutex::new(Meter::counting(false));
        let step = move |step: Progress| {
            if let Ok(mut meter) = meter.lock() {
                meter.step(&step);
            }
        };
        return run_foreground(plan(secret), step).map(|()| ExitCode::Success);
    }
    for attempt in 1.. {
        let mut meter = Meter::counting(false);
        let launched = launch(&plan(first_secret(&options, &probe)?), options.supervise, |step| meter.step(step));
        meter.finish();
        match launched {
            Ok(mounted) => {
                mounted.warnings.iter().for_each(|warning| output::warn(warning));
                if asked.verbose {
                    output::note(&format!(
                        "{} mounted at {}, daemon {}",
                        name(&probe),
                        point.path.display(),
                        mounted.pid
                    ));
                }
                return Ok(ExitCode::Success);
            }
            // Typed wrong: ask again. A file does not change by asking.
            Err(failure)
                if failure.code() == ExitCode::WrongSecret && options.secret.is_none() && attempt < ATTEMPTS =>
            {
                output::note(failure.message());
            }
            Err(failure) => return Err(failure),
        }
    }
    unreachable!("the loop returns at its last attempt")
}

/// Change the kernel's flags of a mount: ro, rw, nosuid, nodev, noexec and their opposites, noatime and nodiratime. What
/// the daemon was told stays.
fn remount(point: &Path, options: &MountOptions) -> Result<(), Failure> {
    let is_ours = crate::mount_table::at(point).ok().flatten().is_some_and(|mount| mount.is_brine());
    if !is_ours {
        return Err(Failure::usage(format!("{}: no brine volume is mounted here", point.display())));
    }
    let mut flags = MsFlags::MS_REMOUNT;
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    flags.set(MsFlags::MS_NOATIME, options.atime == Atime::Off);
    flags.set(MsFlags::MS_NODIRATIME, options.nodiratime);
    // As when it is mounted first: off unless asked for.
    let mut given = |name: &str, off: &str, flag| {
        let last = options.kernel.iter().rfind(|option| *option == name || *option == off);
        flags.set(flag, last.is_none_or(|option| option == off));
    };
    given("suid", "nosuid", MsFlags::MS_NOSUID);
    given("dev", "nodev", MsFlags::MS_NODEV);
    let exec = options.kernel.iter().rfind(|option| *option == "exec" || *option == "noexec");
    flags.set(MsFlags::MS_NOEXEC, exec.is_some_and(|option| option == "noexec"));
    flags.set(MsFlags::MS_SYNCHRONOUS, options.kernel.iter().any(|option| option == "sync"));
    flags.set(MsFlags::MS_DIRSYNC, options.kernel.iter().any(|option| option == "dirsync"));
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>)
        .map_err(|errno| Failure::io(format!("remounting {}", point.display()), &errno.into()))
}

/// The option that stands for the same time whenever it is read: a daemon that is started again shows the same state.
fn fixed_time(at: &str, now_ns: i64) -> Option<OsString> {
    match Moment::parse(at, now_ns) {
        Moment::Time(ns) if ns >= 0 => Some(format!("at=@{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000).into()),
        _ => None,
    }
}

fn first_secret(options: &MountOptions, probe: &Probe) -> Result<Secret, Failure> {
    match &options.secret {
        Some(file) => secret::read(file),
        None => secret::ask_to_unlock(&name(probe), "give -o passfile=FILE, keyfile=FILE or recoveryfile=FILE"),
    }
}

/// What is known without a key, before one is asked for.
fn probe_for(sources: &[PathBuf], options: &MountOptions) -> Result<Probe, Failure> {
    let mut all = sources.to_vec();
    all.extend(options.use_member.iter().cloned());
    let found = probe(&all)?;
    // Of a volume that is taken over, fences and the lock of the state directory decide.
    if options.take_over || !await_end(&found, options)? {
        return Ok(found);
    }
    // Whoever has ended wrote to the directories before.
    Ok(probe(&all)?)
}

/// Wait until a daemon has ended whose mount is gone. False if there was none.
fn await_end(probe: &Probe, options: &MountOptions) -> Result<bool, Failure> {
    let state_dir = options.state.as_deref().unwrap_or(&probe.state_dir);
    let since = Instant::now();
    let (mut seen, mut told, mut waited) = (since, false, false);
    loop {
        match control::find_volume(probe.volume) {
            Some(entry) if !entry.is_unmounted() || since.elapsed() >= ENDING_PATIENCE => {
                return Err(mounted_already(probe, &entry));
            }
            Some(entry) => {
                seen = Instant::now();
                if !told && since.elapsed() > Duration::from_secs(1) {
                    let (name, pid) = (name(probe), entry.pid);
                    output::note(&format!(
                        "{name} was unmounted; waiting for process {pid}, which still has to do with it"
                    ));
                    told = true;
                }
            }
            None => match LocalLock::holder(state_dir) {
                None => return Ok(waited),
                // The last that it gives back.
                Some(_) if seen.elapsed() < HOLDER_PATIENCE => {}
                // Tells more when it tries to take it.
                Some(_) if options.state.is_some() => return Ok(waited),
                Some(pid) => {
                    let text = "wait for it, or unmount it where it is mounted";
                    let text = format!("{} is in use by process {pid}; {text}", name(probe));
                    return Err(Failure::new(ExitCode::Busy, text));
                }
            },
        }
        waited = true;
        std::thread::sleep(ENDING_PAUSE);
    }
}

/// How long the daemon of a volume that was unmounted is waited for: it makes the rest durable.
const ENDING_PATIENCE: Duration = Duration::from_secs(60);
/// How long whoever holds a state directory is, after it was seen last.
const HOLDER_PATIENCE: Duration = Duration::from_secs(2);
const ENDING_PAUSE: Duration = Duration::from_millis(20);

fn mounted_already(probe: &Probe, entry: &control::Entry) -> Failure {
    let (name, point) = (name(probe), entry.mountpoint.display());
    let text =
        format!("{name} is mounted at {point} already, by process {}; `brine umount {point}` ends that", entry.pid);
    Failure::new(ExitCode::Busy, text)
}

/// What this machine and user must have, with the exact step to get it.
fn check_machine(options: &MountOptions) -> Result<(), Failure> {
    if !Path::new("/dev/fuse").exists() {
        return Err(Failure::new(ExitCode::NotFound, "/dev/fuse is missing; load the module: `modprobe fuse` as root"));
    }
    if geteuid().is_root() {
        return Ok(());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("fusermount3").is_file()) {
        return Err(Failure::new(
            ExitCode::NotFound,
            "fusermount3 is missing, by which ordinary users mount; as root: `apt-get install fuse3`",
        ));
    }
    if options.allow_other && !user_allow_other() {
        return Err(Failure::new(
            ExitCode::NotPermitted,
            "allow_other is for root, or for all once /etc/fuse.conf has the line user_allow_other; add it as root, \
             or mount without allow_other",
        ));
    }
    Ok(())
}

/// A log that was asked for must be writable; the usual one comes with the state directory.
fn check_log(options: &MountOptions) -> Result<(), Failure> {
    match &options.log {
        Some(log) if !log.parent().is_some_and(Path::is_dir) => Err(Failure::new(
            ExitCode::NotFound,
            format!("log file {}: its directory does not exist; make it first", log.display()),
        )),
        _ => Ok(()),
    }
}

/// Whether ordinary users may let others in.
pub(super) fn user_allow_other() -> bool {
    let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

fn tell(point: &Mountpoint, options: &MountOptions, verbose: bool) {
    if point.stale {
        output::note(&format!(
            "{}: the daemon of the mount there died; taking the dead mount away",
            point.path.display()
        ));
    }
    if verbose {
        options.notes.iter().for_each(|note| output::note(note));
    }
}

/// The source as written, absolute: fstab and mount(8) then recognise it.
fn shown_source(source: &Path, sources: &[PathBuf]) -> OsString {
    match sources {
        [one] => one.clone().into_os_string(),
        _ => source.as_os_str().to_owned(),
    }
}

/// Where the daemon writes what it has to say.
fn log_file(options: &MountOptions, state_dir: &Path) -> PathBuf {
    options.log.clone().unwrap_or_else(|| state_dir.join(LOG_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_may_stand_anywhere() {
        let asked =
            parse(Parser::from_args(["-o", "ro", "/a", "-f", "/mnt", "-okeyfile=/k", "-v", "--mount8"])).unwrap();
        assert_eq!(asked.paths, [PathBuf::from("/a"), "/mnt".into()]);
        assert_eq!(asked.options, ["ro", "keyfile=/k"]);
        assert!(asked.foreground && asked.verbose);
        assert!(parse(Parser::from_args(["-x"])).is_err());
    }

    #[test]
    fn a_time_that_was_is_the_same_later() {
        let now_ns = 1_700_000_000_250_000_000;
        assert_eq!(fixed_time("10m", now_ns), Some("at=@1699999400.250000000".into()));
        assert_eq!(fixed_time("2023-11-14", now_ns), Some("at=@1699920000.000000000".into()));
        assert_eq!(fixed_time("monday", now_ns), None);
    }

    #[test]
    fn sources_are_shown_as_fstab_has_them() {
        let shown = |source: &str| shown_source(Path::new(source), &args::sources(Path::new(source)));
        assert_eq!(shown("/no/a"), "/no/a");
        assert_eq!(shown("/no/a:/no/b"), "/no/a:/no/b");
    }
}
