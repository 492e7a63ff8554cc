//! brine behaves as POSIX, the manual pages and a filesystem of this machine have it.

use brine_tests::scenario::posix;

#[test]
fn what_the_manual_pages_say_holds_here_and_on_a_disk() {
    println!("{}", posix::conformance());
}

#[test]
fn pjdfstest_passes_and_skips_no_more_than_on_a_disk() {
    println!("{}", posix::pjdfstest());
}

#[test]
fn fsx_finds_no_wrong_byte() {
    println!("{}", posix::fsx(3000));
}
