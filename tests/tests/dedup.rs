//! Equal content is stored once, as the salts say.

use brine_tests::scenario::dedup;

#[test]
fn an_equal_file_costs_nothing_a_changed_byte_one_block_zeros_nothing() {
    println!("{}", dedup::same_and_changed(16));
}

#[test]
fn what_is_streamed_beside_small_syncs_is_stored_as_it_was_written() {
    println!("{}", dedup::streamed_beside_syncs(48));
}

#[test]
fn three_wanted_copies_are_three_ciphertexts_however_many_files() {
    println!("{}", dedup::copies(3, 40));
}

#[test]
fn one_wanted_copy_is_one_ciphertext_however_many_files() {
    println!("{}", dedup::copies(1, 12));
}

#[test]
fn epochs_do_not_share() {
    println!("{}", dedup::epochs());
}

#[test]
fn owners_do_not_share_when_each_has_a_domain() {
    println!("{}", dedup::owners());
}

#[test]
fn space_of_removed_files_comes_back() {
    println!("{}", dedup::space_comes_back(8));
}
