//! Space is given back: in the background, and by the commands.

use brine_tests::scenario::reclaim;

#[test]
fn space_of_removed_files_comes_back_by_itself() {
    println!("{}", reclaim::removed_files(3000));
}

#[test]
fn gc_usage_retention_and_salt_on_a_mount() {
    println!("{}", reclaim::commands());
}

#[test]
fn a_volume_whose_history_is_deleted_is_as_small_as_a_fresh_copy() {
    println!("{}", reclaim::as_small_as_a_fresh_copy(4));
}
