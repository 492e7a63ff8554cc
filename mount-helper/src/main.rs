//! `mount.brine`: what mount(8) runs for `mount -t brine` and for fstab. It runs `brine mount` and nothing else.
//!
//! Knows no volume and no key. Its exit codes are those of mount(8), which `brine mount --mount8` answers with.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Exit codes of mount(8).
const WRONG_INVOCATION: u8 = 1;
/// A system call failed.
const SYSTEM_ERROR: u8 = 2;

const USAGE: &str = "usage: mount.brine SOURCE DIRECTORY [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]";

/// What mount(8) asked for. See "External helpers" in mount(8).
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    names: Vec<OsString>,
    options: Vec<OsString>,
    /// `-f`: do all but mounting.
    fake: bool,
    /// `-s`: options nobody knows are no error.
    sloppy: bool,
    verbose: bool,
    /// `-N`: mount in this mount namespace.
    namespace: Option<OsString>,
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut arguments = arguments;
    let mut only_names = false;
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if only_names || bytes.len() < 2 || bytes[0] != b'-' {
            asked.names.push(argument);
            continue;
        }
        if bytes == b"--" {
            only_names = true;
            continue;
        }
        let mut at = 1;
        while at < bytes.len() {
            let letter = bytes[at];
            at += 1;
            match letter {
                b's' => asked.sloppy = true,
                b'f' => asked.fake = true,
                b'v' => asked.verbose = true,
                // The kernel's table is the only one.
                b'n' => {}
                b'r' => asked.options.push("ro".into()),
                b'w' => asked.options.push("rw".into()),
                b'o' | b't' | b'N' => {
                    let rest = &bytes[at..];
                    at = bytes.len();
                    let value =
                        if rest.is_empty() { arguments.next() } else { Some(OsStr::from_bytes(rest).to_owned()) };
                    let value = value.ok_or_else(|| format!("-{} needs a value", char::from(letter)))?;
                    match letter {
                        b'o' => asked.options.push(value),
                        b'N' => asked.namespace = Some(value),
                        _ => check_type(&value)?,
                    }
                }
                other => return Err(format!("unknown option -{}", char::from(other).escape_default())),
            }
        }
    }
    if asked.names.len() != 2 {
        return Err("give a source and a directory".into());
    }
    Ok(asked)
}

fn check_type(name: &OsStr) -> Result<(), String> {
    if name == "brine" || name == "fuse.brine" {
        Ok(())
    } else {
        Err(format!("file system type {} is not brine", name.display()))
    }
}

/// Where `brine` is: beside this program, in the `bin` beside its `sbin`, or in the usual places. PATH is looked at
/// only if this is not a program that runs with more rights than whoever started it.
fn brine(own: Option<PathBuf>, path: Option<OsString>, privileged: bool) -> Option<PathBuf> {
    let home = own.as_deref().and_then(Path::parent);
    let beside = home.map(|dir| dir.join("brine")).into_iter().chain(home.map(|dir| dir.join("../bin/brine")));
    let usual =
        ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/bin"].map(|dir| Path::new(dir).join("brine"));
    let listed: Vec<PathBuf> = match path {
        Some(path) if !privileged => {
            std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join("brine")).collect()
        }
        _ => Vec::new(),
    };
    beside.chain(usual).chain(listed).find(|file| file.is_file())
}

/// Whether the kernel gave this process rights its starter does not have (AT_SECURE), by the numbers in /proc.
fn is_privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let differs = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let mut ids = line.split_whitespace();
        ids.next() != ids.next()
    };
    status.is_empty() || differs("Uid:") || differs("Gid:")
}

fn command(brine: &Path, asked: &Asked) -> Command {
    let mut command = match &asked.namespace {
        // A path or a process id, as nsenter(1) takes it.
        Some(namespace) => {
            let file = if namespace.as_bytes().iter().all(u8::is_ascii_digit) {
                format!("/proc/{}/ns/mnt", namespace.display()).into()
            } else {
                namespace.clone()
            };
            let mut mount_option = OsString::from("--mount=");
            mount_option.push(file);
            let mut command = Command::new("/usr/bin/nsenter");
            command.arg(mount_option).arg("--").arg(brine);
            command
        }
        None => Command::new(brine),
    };
    command.args(["mount", "--mount8"]);
    if asked.verbose {
        command.arg("-v");
    }
    if asked.sloppy {
        command.args(["-o", "sloppy"]);
    }
    for options in &asked.options {
        command.arg("-o").arg(options);
    }
    command.arg("--").args(&asked.names);
    command
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args_os().skip(1)) {
        Ok(asked) => asked,
        Err(complaint) => {
            eprintln!("mount.brine: {complaint}\n{USAGE}");
            return ExitCode::from(WRONG_INVOCATION);
        }
    };
    let privileged = is_privileged();
    let Some(brine) = brine(std::env::current_exe().ok(), std::env::var_os("PATH"), privileged) else {
        eprintln!("mount.brine: the program brine is not found; install it beside mount.brine or in /usr/local/bin");
        return ExitCode::from(SYSTEM_ERROR);
    };
    let mut command = command(&brine, &asked);
    if privileged {
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    }
    if asked.fake {
        if asked.verbose {
            eprintln!("mount.brine: would run {command:?}");
        }
        return ExitCode::SUCCESS;
    }
    let error = command.exec();
    eprintln!("mount.brine: {}: {error}", brine.display());
    ExitCode::from(SYSTEM_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Asked, String> {
        parse(words.iter().map(OsString::from))
    }

    fn arguments(asked: &Asked) -> Vec<String> {
        command(Path::new("/b"), asked).get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn mount_calls_it_so() {
        let asked = parsed(&["/disk1", "/mnt", "-o", "rw,keyfile=/k,noauto"]).unwrap();
        assert_eq!(arguments(&asked), ["mount", "--mount8", "-o", "rw,keyfile=/k,noauto", "--", "/disk1", "/mnt"]);
        let asked = parsed(&["/disk1", "/mnt", "-n", "-v", "-t", "brine", "-oro"]).unwrap();
        assert_eq!(arguments(&asked), ["mount", "--mount8", "-v", "-o", "ro", "--", "/disk1", "/mnt"]);
        assert!(parsed(&["-sfnv", "/disk1", "/mnt"]).unwrap().fake);
        assert_eq!(parsed(&["--", "-a", "-b"]).unwrap().names, ["-a", "-b"]);
    }

    #[test]
    fn wrong_invocations_are_refused() {
        for words in [
            &["/disk1"][..],
            &["/a", "/b", "/c"],
            &["/a", "/b", "-x"],
            &["/a", "/b", "-o"],
            &["/a", "/b", "-t", "ext4"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn sloppy_is_said_first() {
        let asked = parsed(&["/a", "/b", "-o", "ro,fancy=1", "-s"]).unwrap();
        assert_eq!(arguments(&asked), ["mount", "--mount8", "-o", "sloppy", "-o", "ro,fancy=1", "--", "/a", "/b"]);
    }

    #[test]
    fn another_namespace_is_entered_first() {
        let asked = parsed(&["/a", "/b", "-N", "42"]).unwrap();
        let command = command(Path::new("/b"), &asked);
        assert_eq!(command.get_program(), "/usr/bin/nsenter");
        assert_eq!(command.get_args().next().unwrap(), "--mount=/proc/42/ns/mnt");
    }

    #[test]
    fn the_environment_is_not_asked_by_a_privileged_program() {
        let dir = std::env::temp_dir().join(format!("brine-helper-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("brine"), "").unwrap();
        let path = Some(dir.clone().into_os_string());
        let installed = brine(None, None, true);
        let found = brine(None, path.clone(), false);
        let beside = brine(Some(dir.join("mount-brine")), None, true);
        assert_eq!(brine(None, path, true), installed);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(beside, Some(dir.join("brine")));
        assert!(found == Some(dir.join("brine")) || found == installed);
    }
}
