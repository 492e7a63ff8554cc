//! Runs that do what programs do, and how they end.

mod harness;

use brine_exec::{ExitCause, Verdict};
use harness::Place;

#[test]
fn a_script_runs_in_a_sandbox_of_its_own_and_its_code_comes_back() {
    let place = Place::new();
    let plan = place.script("hello", "#!/bin/sh\necho \"I am $0 with $1\"; id -u; exit 7\n");
    let mut plan = plan;
    plan.argv.push("one argument".into());
    let (outcome, text) = place.run(&plan);
    let uid = nix::unistd::geteuid();
    assert_eq!(text, format!("I am /mnt/volume/exec/hello with one argument\n{uid}\n"), "{outcome:?}");
    assert_eq!((outcome.cause, outcome.verdict, outcome.line), (ExitCause::Exited(7), Verdict::Code(7), None));
}
