//! `brine doctor`: can this machine and user mount brine volumes, and if not, what is the exact step.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use brine_exec::doctor::{self, Standing};
use brine_store::linux;
use lexopt::{Arg, Parser};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use serde_json::{Value, json};

use super::mount::user_allow_other;
use super::{args, output};
use crate::exit_code::{ExitCode, Failure};

/// Oldest kernel that has all that is used: openat2(2).
const KERNEL_MIN: (u32, u32) = (5, 6);
/// Open files a volume should be allowed: several segments in each of many directories.
const OPEN_FILES_MIN: u64 = 4096;

/// How one thing stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Works, but not all of it.
    Limited,
    Bad,
}

struct Finding {
    what: &'static str,
    verdict: Verdict,
    /// What was found, and the step to take.
    text: String,
}

fn finding(what: &'static str, verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding { what, verdict, text: text.into() }
}

pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut as_json = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => as_json = true,
            other => {
                args::positional(other, &mut Vec::new())?;
                return Err(Failure::usage("doctor takes no names"));
            }
        }
    }
    let root = geteuid().is_root();
    let mut findings = vec![
        kernel(),
        device(),
        helper(root),
        allow_other(root),
        open_files(),
        finding("erasure coding", Verdict::Good, format!("kernel {}", brine_store::erasure::kernel_name())),
    ];
    findings.extend(sandboxes());
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    if as_json {
        let rows: Vec<Value> = findings.iter().map(row).collect();
        output::say_json(&json!({ "healthy": !bad, "findings": rows }));
    } else {
        for finding in &findings {
            output::say(&format!("{:<8} {:<16} {}", word(finding.verdict), finding.what, finding.text));
        }
    }
    Ok(if bad { ExitCode::Unhealthy } else { ExitCode::Success })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Limited => "limited",
        Verdict::Bad => "BAD",
    }
}

fn row(finding: &Finding) -> Value {
    json!({ "what": finding.what, "verdict": word(finding.verdict).to_lowercase(), "text": finding.text })
}

fn kernel() -> Finding {
    let release = linux::release();
    let (major, minor) = KERNEL_MIN;
    if linux::version(&release) >= Some(KERNEL_MIN) {
        finding("kernel", Verdict::Good, format!("Linux {release}"))
    } else {
        finding("kernel", Verdict::Bad, format!("Linux {release}; brine needs {major}.{minor} or newer"))
    }
}

fn device() -> Finding {
    const DEVICE: &str = "/dev/fuse";
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => finding(DEVICE, Verdict::Good, "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            finding(DEVICE, Verdict::Bad, "missing; load the module: `modprobe fuse` as root")
        }
        Err(error) => finding(DEVICE, Verdict::Bad, format!("{error}; its mode should be 666")),
    }
}

fn helper(root: bool) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(|file| file.is_file());
    match found {
        Some(file) => {
            let set_uid = fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o4000 != 0);
            if set_uid || root {
                finding("fusermount3", Verdict::Good, file.display().to_string())
            } else {
                let shown = file.display();
                finding(
                    "fusermount3",
                    Verdict::Bad,
                    format!("{shown} is not set-uid root; as root: `chmod u+s {shown}`"),
                )
            }
        }
        None if root => finding("fusermount3", Verdict::Good, "missing, and not needed by root"),
        None => finding("fusermount3", Verdict::Bad, "missing; as root: `apt-get install fuse3`"),
    }
}

fn allow_other(root: bool) -> Finding {
    match (root, user_allow_other()) {
        (true, _) => finding("allow_other", Verdict::Good, "allowed to root"),
        (false, true) => finding("allow_other", Verdict::Good, "allowed to all by /etc/fuse.conf"),
        (false, false) => finding(
            "allow_other",
            Verdict::Limited,
            "only you will see your mounts; to let others in, root adds the line user_allow_other to /etc/fuse.conf",
        ),
    }
}

/// What sandboxes need.
fn sandboxes() -> impl Iterator<Item = Finding> {
    doctor::findings().into_iter().map(|found| {
        let verdict = match found.standing {
            Standing::Good => Verdict::Good,
            // Mounting works without functions.
            Standing::Limited | Standing::Bad => Verdict::Limited,
        };
        finding(found.what, verdict, found.text)
    })
}

fn open_files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= OPEN_FILES_MIN => finding("open files", Verdict::Good, format!("up to {hard}")),
        Ok((_, hard)) => {
            finding("open files", Verdict::Limited, format!("up to {hard}; {OPEN_FILES_MIN} are better (`ulimit -Hn`)"))
        }
        Err(errno) => finding("open files", Verdict::Limited, errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(linux::version("6.18.0-rc1"), Some((6, 18)));
        assert_eq!(linux::version("5.10.0-28-amd64"), Some((5, 10)));
        assert!(linux::version("5.4.1") < Some(KERNEL_MIN) && linux::version("5.10") > Some(KERNEL_MIN));
        assert_eq!(linux::version("unknown"), None);
        assert!(kernel().verdict == Verdict::Good);
    }
}
