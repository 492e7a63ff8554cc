//! Programs people use work on the mount as on any filesystem.

use brine_tests::TestVolume;
use brine_tests::scenario::programs;

fn volume(name: &str) -> TestVolume {
    TestVolume::new(name, 3, (2, 1))
}

#[test]
fn cp_keeps_everything_there_and_back() {
    println!("{}", programs::cp(&mut volume("cp"), 6));
}

#[test]
fn a_second_rsync_transfers_nothing() {
    println!("{}", programs::rsync(&mut volume("rsync"), 6));
}

#[test]
fn tar_finds_what_it_unpacked() {
    println!("{}", programs::tar(&mut volume("tar"), 6));
}

#[test]
fn a_git_repository_lives_on_the_mount() {
    println!("{}", programs::git(&mut volume("git"), 12));
}

#[test]
fn cargo_builds_a_crate_and_finds_it_fresh() {
    println!("{}", programs::cargo(&mut volume("cargo")));
}

#[test]
fn sqlite_keeps_its_integrity_in_both_journal_modes() {
    println!("{}", programs::sqlite(&mut volume("sqlite"), 150));
}

#[test]
fn editors_save_by_rename() {
    println!("{}", programs::editors(&mut volume("editors"), 12));
}
