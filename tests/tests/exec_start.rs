//! How a function starts: by which launcher, and from which copy of the program.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use brine_tests::function::{call, function, policy, put, small};
use brine_tests::run;
use brine_tests::volume::brine_command;

#[test]
fn a_function_that_ran_is_run_from_memory_and_a_changed_one_is_not() {
    let mut volume = small("exec-copies");
    let body =
        |word: &str| format!("stat -c %d \"$0\"; id -u; echo {word}; [ -z \"$(ls -A /var/empty)\" ] || echo leak");
    let says = function(&volume, "says", &body("one"));
    let ran = |function: &Path| {
        let text = call(function, &[]).expect_success().stdout;
        let mut lines = text.lines().map(str::to_owned);
        (lines.next().expect("a device"), lines.collect::<Vec<_>>())
    };
    let (device, first) = ran(&says);
    assert_eq!(first, ["0", "one"]);
    let (other, again) = ran(&says);
    assert_eq!(again, first);
    assert_ne!(device, other, "the second run asks nobody for the program");
    assert_eq!(ran(&says), (other, again), "nor the third");
    // Another content, by another name, with other rights.
    put(&says, &format!("#!/bin/sh\n{}\n", body("two")));
    assert_eq!(ran(&says), (device.clone(), vec!["0".into(), "two".into()]));
    assert_eq!(ran(&says).1, ["0", "two"]);
    fs::rename(&says, volume.path("exec/other")).expect("rename");
    assert_eq!(ran(&volume.path("exec/other")).1, ["0", "two"]);
    put(&says, &format!("#!/bin/sh\n{}\n", body("three")));
    assert_eq!(ran(&says).1, ["0", "three"]);
    assert_eq!(ran(&says).1, ["0", "three"]);
    fs::set_permissions(&says, fs::Permissions::from_mode(0o600)).expect("chmod");
    let refused = Command::new(&says).status().expect_err("nobody may run it");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    // A large one is always the volume's.
    let large = format!("#!/bin/sh\n{}\nexit\n{}", body("large"), "#".repeat(5 << 20));
    put(&volume.path("exec/large"), &large);
    for _ in 0..2 {
        assert_eq!(ran(&volume.path("exec/large")), (device.clone(), vec!["0".into(), "large".into()]));
    }
    volume.umount();
}

#[test]
fn functions_run_below_a_mountpoint_with_a_blank() {
    let mut volume = small("exec with a blank");
    let inner = function(&volume, "inner", "echo inner \"$1\"");
    // By the credential it was given, and by its socket when descriptors were closed.
    let outer = function(&volume, "outer", &format!("'{0}' \"$1\"; exec 3>&-; '{0}' \"$1\"", inner.display()));
    policy(&outer, &["--call", "inner"]);
    assert_eq!(call(&outer, &["an argument"]).expect_success().stdout, "inner an argument\n".repeat(2));
    volume.umount();
}

#[test]
fn the_launcher_is_put_where_it_is_asked_to_be() {
    let mut volume = small("exec-launcher");
    let (place, shared) = (volume.root().join("place"), volume.root().join("shared"));
    for (directory, mode) in [(&place, 0o755), (&shared, 0o777)] {
        fs::create_dir(directory).expect("mkdir");
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let inner = function(&volume, "inner", "echo inner");
    let outer = function(&volume, "outer", &inner.display().to_string());
    let stays = function(&volume, "stays", "echo ready; read x");
    policy(&outer, &["--call", "inner"]);
    volume.umount();
    let option = |place: &Path| format!("launcher={}", place.display());

    volume.mount_with(&[&option(&place)]).expect_success();
    assert_eq!(call(&outer, &[]).expect_success().stdout, "inner\n");
    let mut child = Command::new(&stays).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    child.stdout.as_mut().expect("stdout").read_exact(&mut [0; 6]).expect("it starts");
    let program = fs::read_link(format!("/proc/{}/exe", child.id())).expect("its program");
    assert_eq!(program, place.join("launcher"));
    drop(child.stdin.take());
    child.wait().expect("wait");
    run(brine_command(&["sync"]).arg(volume.mnt())).expect_success();
    // What a killed daemon left there is taken over by the next of the same volume.
    volume.kill_daemon();
    volume.detach();
    volume.mount_with(&[&option(&place)]).expect_success();
    assert_eq!(call(&outer, &[]).expect_success().stdout, "inner\n");
    volume.umount();
    assert_eq!(fs::read_dir(&place).expect("list").count(), 0, "nothing stays");

    // Nothing of somebody else's is replaced, and nobody else may replace the launcher.
    fs::write(place.join("launcher"), "mine").expect("write");
    for (directory, why) in [(&place, "not this volume's"), (&shared, "nobody else can write to")] {
        let mounted = volume.mount_with(&[&option(directory)]).expect_success();
        assert!(mounted.stderr.contains("nothing can be run") && mounted.stderr.contains(why), "{mounted}");
        // As on any mount on which nothing can be run.
        assert!(Command::new(&inner).status().is_err(), "it is not run");
        volume.umount();
    }
    assert_eq!(fs::read_to_string(place.join("launcher")).expect("read"), "mine");
    assert_eq!(fs::read_dir(&shared).expect("list").count(), 0);
}
