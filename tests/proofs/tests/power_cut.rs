//! Power cuts at chosen moments: everything acknowledged is there, and what is seen is a prefix of what was accepted.

use brine_proofs::power_cut::{Plan, prove};
use brine_proofs::random::run_seed;

fn plan(geometry: (usize, usize)) -> Plan {
    Plan { seed: run_seed("power cuts"), geometry, ..Plan::default() }
}

#[test]
fn six_directories_four_of_which_are_enough() {
    println!("{}", prove(&Plan { sessions: 14, ..plan((4, 2)) }));
}

#[test]
fn three_directories_two_of_which_are_enough() {
    println!("{}", prove(&Plan { sessions: 14, ..plan((2, 1)) }));
}

#[test]
fn one_directory_alone() {
    println!("{}", prove(&Plan { sessions: 4, ..plan((1, 0)) }));
}

#[test]
fn nothing_is_lost_while_space_is_given_back() {
    println!("{}", prove(&Plan { collections: true, sessions: 12, ..plan((2, 1)) }));
}

#[test]
fn as_many_directories_as_may_be_lost_may_lie_about_syncs() {
    println!("{}", prove(&Plan { liars: 2, sessions: 3, ..plan((4, 2)) }));
}

#[test]
#[should_panic = "power cut at event"]
fn more_that_lie_are_noticed_by_the_tests_above() {
    println!("{}", prove(&Plan { liars: 3, ..plan((4, 2)) }));
}

#[test]
fn what_was_recovered_and_then_synced_survives_the_loss_of_directories() {
    println!("{}", prove(&Plan { go_on: true, chain: 3, sessions: 5, ..plan((4, 2)) }));
}
