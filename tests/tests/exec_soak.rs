//! The bounded form of what `accept exec` does with thousands.

use brine_tests::scenario::functions;

#[test]
fn mixed_runs_leave_nothing() {
    println!("{}", functions::soak(60));
}

#[test]
fn callers_and_daemons_may_be_killed() {
    println!("{}", functions::kills(10));
}

#[test]
fn many_runs_at_once_are_all_answered() {
    println!("{}", functions::burst(30));
}
