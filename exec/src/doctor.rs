//! What this machine can give to sandboxes, and what each missing thing costs. Looks, and tries what is harmless.

use std::fs;

use brine_store::linux;

use crate::cgroup::{Backend, Tree};
use crate::sys;

/// Oldest kernel sandboxes work on: mount attributes (5.12), close-on-exec ranges (5.11), kill by group (5.14).
const KERNEL_MIN: (u32, u32) = (5, 15);

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// There.
    Good,
    /// Missing; runs work with less.
    Limited,
    /// Missing; no run can start.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found, what it costs, and the step to take.
    pub text: String,
}

fn finding(what: &'static str, standing: Standing, text: impl Into<String>) -> Finding {
    Finding { what, standing, text: text.into() }
}

/// Everything, in the order to be shown.
pub fn findings() -> Vec<Finding> {
    let mut all = vec![kernel(), user_namespaces(), landlock(), seccomp(), groups()];
    all.extend(devices());
    all
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn kernel() -> Finding {
    const WHAT: &str = "exec: kernel";
    let release = linux::release();
    let (major, minor) = KERNEL_MIN;
    if linux::version(&release) >= Some(KERNEL_MIN) {
        finding(WHAT, Standing::Good, format!("Linux {release}"))
    } else {
        finding(WHAT, Standing::Bad, format!("Linux {release}; functions need {major}.{minor} or newer"))
    }
}

fn user_namespaces() -> Finding {
    const WHAT: &str = "exec: namespaces";
    let root = nix::unistd::geteuid().is_root();
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        let text =
            "user namespaces are switched off; no function can run. As root: `sysctl user.max_user_namespaces=65536`";
        return finding(WHAT, Standing::Bad, text);
    }
    if !root && number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        let text = "user namespaces are for root only; functions run on root's mounts. As root: `sysctl \
                    kernel.unprivileged_userns_clone=1`";
        return finding(WHAT, Standing::Bad, text);
    }
    if !root && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        let text = "AppArmor lets only named programs make user namespaces; functions run on root's mounts. As root, \
                    write /etc/apparmor.d/brine: `abi <abi/4.0>, profile brine /usr/bin/brine flags=(unconfined) { \
                    userns, }` and run `apparmor_parser -r /etc/apparmor.d/brine`";
        return finding(WHAT, Standing::Bad, text);
    }
    finding(WHAT, Standing::Good, if root { "for any user" } else { "for your own runs" })
}

fn landlock() -> Finding {
    const WHAT: &str = "exec: Landlock";
    match sys::landlock_abi() {
        Ok(abi @ 6..) => finding(WHAT, Standing::Good, format!("version {abi}")),
        Ok(abi) => finding(
            WHAT,
            Standing::Limited,
            format!("version {abi}; before 6, runs with the host's network reach its abstract sockets"),
        ),
        Err(_) => finding(
            WHAT,
            Standing::Limited,
            "missing; views are fenced by mounts alone, and files as standard streams are refused (put a pipe between). \
             Boot with `lsm=landlock,...`",
        ),
    }
}

fn seccomp() -> Finding {
    const WHAT: &str = "exec: call filter";
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.contains("errno") && actions.contains("kill_process") {
        finding(WHAT, Standing::Good, format!("{} calls have a rule", crate::sandbox::seccomp::RULES.len()))
    } else {
        finding(WHAT, Standing::Bad, "the kernel has no seccomp filters; no function can run")
    }
}

fn groups() -> Finding {
    const WHAT: &str = "exec: limits";
    let label = format!("doctor-{}", std::process::id());
    let tree = match Tree::open(&label) {
        Ok(tree) => tree,
        Err(error) => return finding(WHAT, Standing::Limited, format!("control groups cannot be found: {error}")),
    };
    let (backend, missing) = (tree.backend(), tree.missing());
    tree.remove();
    let word = backend.word();
    match (backend, missing.is_empty()) {
        (Backend::None, _) => finding(
            WHAT,
            Standing::Limited,
            "no control group can be made here: runs are refused unless their policy says best effort. As a user, mount \
             with `systemd-run --user --scope -p Delegate=yes brine mount ...`",
        ),
        (_, true) => {
            finding(WHAT, Standing::Good, format!("memory, processes and processor by control groups ({word})"))
        }
        (_, false) => finding(
            WHAT,
            Standing::Limited,
            format!(
                "control groups ({word}) without {}: runs are refused unless their policy says best effort",
                missing.join(", ")
            ),
        ),
    }
}

/// Only if something is wrong with it.
fn devices() -> Option<Finding> {
    let missing = ["null", "zero", "full", "random", "urandom", "tty"]
        .into_iter()
        .find(|name| fs::symlink_metadata(format!("/dev/{name}")).is_err())?;
    Some(finding("exec: devices", Standing::Bad, format!("/dev/{missing} is missing; no function can run")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_looked_at_and_nothing_is_left_behind() {
        let all = findings();
        assert!(all.len() >= 5);
        assert!(all.iter().all(|finding| !finding.text.is_empty() && finding.what.starts_with("exec: ")));
        let tree = Tree::open(&format!("doctor-{}", std::process::id())).unwrap();
        assert_eq!(tree.sweep(), 0, "nothing was left");
        tree.remove();
    }
}
