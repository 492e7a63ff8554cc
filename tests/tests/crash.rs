//! Kills of the daemon and power cuts under load: everything synced is there.

use brine_tests::fault_dir::Fault;
use brine_tests::scenario::{crash, kills, takeover};

#[test]
fn whatever_was_synced_survives_kills_under_load() {
    println!("{}", crash::kills(6));
}

#[test]
fn kills_under_a_mixed_load_lose_nothing_that_was_acknowledged() {
    println!("{}", kills::cycles(30));
}

#[test]
fn whatever_was_synced_survives_power_cuts_under_load() {
    println!("{}", crash::power_cuts(3));
}

#[test]
#[should_panic = "was synced"]
fn disks_that_lie_about_syncs_are_noticed_by_the_test_above() {
    println!("{}", crash::power_cuts_on(4, Fault::LyingSyncs));
}

#[test]
fn whatever_was_synced_survives_a_kill_with_two_directories_lost_at_once() {
    println!("{}", crash::kill_and_lose(3));
}

#[test]
fn a_daemon_that_dies_is_replaced_by_its_supervisor() {
    println!("{}", crash::supervised());
}

#[test]
fn a_stopped_writer_whose_place_was_taken_is_told_and_writes_nothing_on() {
    println!("{}", takeover::stopped_writer());
}
