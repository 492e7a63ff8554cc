//! Bombs are stopped, each is told from the others, and what a run used is known.

mod harness;

use std::time::Duration;

use brine_exec::cgroup::Backend;
use brine_exec::{Error, ExitCause, Verdict};
use harness::{Place, limits};

const MIB: u64 = 1 << 20;
const KILLED: Verdict = Verdict::Signal(libc::SIGKILL as u8);

/// Without groups there is nothing to test here; it is said, and the doctor says it to users.
fn place() -> Option<Place> {
    let place = Place::new();
    if place.sandboxes.status().cgroups == Backend::None {
        eprintln!("no control groups can be made here; nothing tested");
        return None;
    }
    Some(place)
}

#[test]
fn a_memory_bomb_is_killed_and_said_to_be_one() {
    let Some(place) = place() else { return };
    let limits = limits(|limits| (limits.memory_bytes, limits.scratch_bytes) = (32 * MIB, 8 * MIB));
    let (outcome, _) = place.run(&place.probe(&["memory"]).with_limits(limits));
    assert_eq!((outcome.cause, outcome.verdict), (ExitCause::OutOfMemory, KILLED), "{outcome:?}");
    assert!(outcome.line.unwrap().contains("32 MiB of memory"));
    let peak = outcome.usage.memory_peak_bytes;
    assert!((16 * MIB..=40 * MIB).contains(&peak), "{peak}");
}

#[test]
fn a_child_that_runs_out_of_memory_takes_the_run_along() {
    let Some(place) = place() else { return };
    let limits = limits(|limits| (limits.memory_bytes, limits.scratch_bytes) = (32 * MIB, MIB));
    let program = place.script("half", "#!/bin/sh\n/mnt/volume/exec/probe memory &\nsleep 30\necho limps on\n");
    let mut plan = program.with_limits(limits);
    plan.views.push(harness::view("exec/probe", "/mnt/volume/exec/probe", brine_exec::ViewAccess::Read));
    let (outcome, text) = place.run(&plan);
    assert_eq!((outcome.cause, text.as_str()), (ExitCause::OutOfMemory, ""), "{outcome:?}");
}

#[test]
fn a_fork_bomb_is_killed_and_said_to_be_one() {
    let Some(place) = place() else { return };
    let limits = limits(|limits| limits.pids = 20);
    let (outcome, _) = place.run(&place.probe(&["forks"]).with_limits(limits));
    assert_eq!((outcome.cause, outcome.verdict), (ExitCause::OutOfPids, KILLED), "{outcome:?}");
    // One that gives up keeps its own code.
    let (outcome, text) = place.run(&place.probe(&["forks", "once"]).with_limits(limits));
    assert_eq!((outcome.cause, outcome.verdict), (ExitCause::OutOfPids, Verdict::Code(1)), "{outcome:?}");
    assert_eq!(text, "19\nEAGAIN\n", "its own process is one of the 20");
}

#[test]
fn a_full_scratch_is_no_lack_of_memory() {
    let Some(place) = place() else { return };
    let limits = limits(|limits| (limits.memory_bytes, limits.scratch_bytes) = (32 * MIB, 16 * MIB));
    for bomb in ["disk", "files"] {
        let (outcome, text) = place.run(&place.probe(&[bomb]).with_limits(limits));
        assert_eq!(
            (outcome.cause, outcome.verdict),
            (ExitCause::OutOfScratch, Verdict::Code(1)),
            "{bomb}: {outcome:?}"
        );
        assert_eq!(text, "ENOSPC\n", "{bomb}");
        if bomb == "disk" {
            assert_eq!(outcome.usage.scratch_bytes, 16 * MIB);
        } else {
            assert!(outcome.usage.scratch_files > 4000, "{outcome:?}");
        }
    }
}

#[test]
fn descriptors_and_file_sizes_are_bounded() {
    let place = Place::new();
    let limits = limits(|limits| (limits.open_files, limits.file_size_bytes) = (64, MIB));
    let (outcome, text) = place.run(&place.probe(&["descriptors"]).with_limits(limits));
    assert_eq!((outcome.cause, text.as_str()), (ExitCause::Exited(1), "61\nEMFILE\n"), "{outcome:?}");
    let (outcome, _) = place.run(&place.probe(&["disk"]).with_limits(limits));
    assert_eq!(outcome.cause, ExitCause::Signaled(libc::SIGXFSZ), "{outcome:?}");
}

#[test]
fn time_is_bounded_by_the_clock_and_by_the_processor() {
    let place = Place::new();
    let plan = place.script("sleeps", "#!/bin/sh\ntrap '' TERM\necho on; sleep 1000; sleep 1000\n");
    let limits_wall = limits(|limits| {
        (limits.wall, limits.grace) = (Duration::from_millis(300), Duration::from_millis(100));
    });
    let (outcome, text) = place.run(&plan.with_limits(limits_wall));
    assert_eq!((outcome.cause, outcome.verdict), (ExitCause::TimedOut, Verdict::Code(124)), "{outcome:?}");
    assert_eq!((text.as_str(), outcome.line.as_deref()), ("on\n", Some("timed out after 0.3 s")));

    let limits_cpu = limits(|limits| limits.cpu_time = Some(Duration::from_millis(200)));
    let (outcome, _) = place.run(&place.probe(&["spin"]).with_limits(limits_cpu));
    assert_eq!((outcome.cause, outcome.verdict), (ExitCause::OutOfCpuTime, Verdict::Code(124)), "{outcome:?}");
}

#[test]
fn a_program_that_ends_itself_on_time_is_not_said_to_be_late() {
    let place = Place::new();
    let plan = place.script("tidy", "#!/bin/sh\ntrap 'echo tidy; exit 5' TERM\nwhile :; do sleep 0.05; done\n");
    let limits = limits(|limits| limits.wall = Duration::from_millis(300));
    let (outcome, text) = place.run(&plan.with_limits(limits));
    assert!(text.ends_with("tidy\n"), "it had time to: {text}");
    assert_eq!((outcome.cause, outcome.verdict), (ExitCause::TimedOut, Verdict::Code(124)));
}

#[test]
fn what_cannot_be_had_is_refused() {
    let place = Place::with(|config| config.capacity.memory_bytes = 256 * MIB);
    let error = place.sandboxes.run(&place.probe(&["capabilities"]), [None, None, None]).unwrap_err();
    assert!(matches!(&error, Error::Refused(text) if text.contains("larger than")), "{error}");
    assert_eq!(error.exit_code(), 126);
    assert_eq!(place.sandboxes.status().ledger.runs, 0);
}

#[test]
fn usage_is_known() {
    let place = Place::new();
    let plan = place.script(
        "uses",
        "#!/bin/sh\nhead -c 3000000 /dev/zero > /tmp/three\ni=0; while [ $i -lt 20000 ]; do i=$((i+1)); done\n",
    );
    let (outcome, _) = place.run(&plan);
    assert_eq!(outcome.cause, ExitCause::Exited(0), "{outcome:?}");
    let usage = outcome.usage;
    assert!(usage.scratch_bytes >= 3_000_000 && usage.scratch_files == 1, "{usage:?}");
    assert!(
        usage.cpu > Duration::ZERO && usage.wall > Duration::ZERO && usage.memory_peak_bytes > 3_000_000,
        "{usage:?}"
    );
    assert_eq!(outcome.template, plan.template.digest());
}
