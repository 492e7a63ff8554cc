//! Functions: scripts in `exec/` of a volume, as the suites make and run them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Finished, run};
use crate::volume::{Builder, TestVolume, brine_command};

/// A small volume that every user reaches, mounted.
pub fn small(name: &str) -> TestVolume {
    Builder::new(name).directories(2).geometry(1, 1).option("allow_other").mount()
}

/// A script in exec/.
pub fn function(volume: &TestVolume, name: &str, body: &str) -> PathBuf {
    let path = volume.path("exec").join(name);
    put(&path, &format!("#!/bin/sh\n{body}\n"));
    path
}

/// A program with this content.
pub fn put(path: &Path, content: &str) {
    fs::write(path, content).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// Run it to its end.
pub fn call(path: &Path, args: &[&str]) -> Finished {
    run(Command::new(path).args(args))
}

/// Set its policy.
pub fn policy(path: &Path, options: &[&str]) {
    run(brine_command(&["exec", "policy"]).arg(path).args(options)).expect_success();
}
