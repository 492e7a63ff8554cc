//! The main job: what is written is read back, whatever m of the directories do.

use std::fs;
use std::time::Duration;

use brine_tests::damage::{empty_dir, remove_dir};
use brine_tests::scenario::loss;
use brine_tests::{Builder, TestVolume, content};

#[test]
fn a_tree_survives_unmounting_and_mounting() {
    let mut volume = TestVolume::new("tree", 6, (4, 2));
    let expected = loss::fill(&volume, 12);
    loss::verify(&volume, &expected, "right after copying");
    volume.remount();
    loss::verify(&volume, &expected, "after mounting again");
    volume.expect_clean();
    let status = volume.status();
    assert_eq!(status["health"], "healthy", "{status:#}");
    assert_eq!(status["tolerated_losses"], 2, "{status:#}");
    assert_eq!(status["mounted"], true, "{status:#}");
    assert_eq!(status["mountpoint"], volume.mnt().to_str().expect("UTF-8"), "{status:#}");
}

/// umount(8) returns before the daemon has made the rest durable; mounting waits for that.
#[test]
fn a_volume_is_mounted_again_at_once_after_umount8() {
    let mut volume = TestVolume::new("at-once", 6, (4, 2));
    for round in 0..4 {
        let name = format!("of-round-{round}");
        fs::write(volume.mnt().join(&name), vec![round; 4 << 20]).unwrap();
        volume.umount8();
        volume.mount();
        assert!(fs::read(volume.mnt().join(&name)).unwrap() == vec![round; 4 << 20]);
    }
}

#[test]
fn any_two_of_six_directories_may_be_deleted_while_mounted() {
    println!("{}", loss::lost_directories(&[&[0, 1], &[2, 5], &[3, 4]], 8));
}

#[test]
fn every_default_geometry_survives_the_loss_it_promises() {
    for (directories, parity) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut builder = Builder::new("geometries").directories(directories);
        // The default is what is under test.
        builder = builder.default_geometry();
        let mut volume = builder.mount();
        let status = volume.status();
        let total = status["geometry"]["data"].as_u64().zip(status["geometry"]["parity"].as_u64());
        assert_eq!(
            total.map(|(data, parity)| (data + parity, parity)),
            Some((directories as u64, parity)),
            "{status:#}"
        );
        let expected = loss::fill(&volume, 2);
        for i in 0..parity as usize {
            remove_dir(volume.dir(directories - 1 - i));
        }
        volume.remount();
        loss::verify(&volume, &expected, &format!("with {directories} directories, {parity} of them lost"));
    }
}

#[test]
fn more_directories_than_a_stripe_needs_are_used_and_two_may_still_be_lost() {
    let mut volume = TestVolume::new("eight", 8, (4, 2));
    let expected = loss::fill(&volume, 8);
    remove_dir(volume.dir(1));
    remove_dir(volume.dir(6));
    volume.remount();
    loss::verify(&volume, &expected, "without two of eight directories");
}

#[test]
fn directories_that_disappear_under_writers_reach_nobody() {
    println!("{}", loss::lost_under_writers(&[0, 4], 6, Duration::from_millis(500)));
}

#[test]
fn directories_that_disappear_at_once_under_writers_reach_nobody() {
    println!("{}", loss::lost_under_writers(&[1, 5], 6, Duration::ZERO));
    println!("{}", loss::lost_under_writers(&[2, 6], 8, Duration::ZERO));
}

#[test]
fn beyond_parity_only_the_files_concerned_are_lost() {
    println!("{}", loss::beyond_parity());
}

#[test]
fn losing_the_state_directory_and_two_backing_directories_loses_nothing() {
    println!("{}", loss::lost_state_directory(&[1, 4], 6));
}

#[test]
fn a_replaced_directory_is_filled_and_others_may_then_be_lost() {
    let mut volume = TestVolume::new("replace", 6, (4, 2));
    let expected = loss::fill(&volume, 8);
    let new = volume.root().join("new");
    fs::create_dir(&new).expect("create a directory");
    remove_dir(volume.dir(2));
    volume.remount();
    let (old, new, mnt) =
        (volume.dir(2).display().to_string(), new.display().to_string(), volume.mnt().display().to_string());
    volume.brine(&["replace", &old, &new, &mnt]).expect_success();
    volume.brine(&["heal", &mnt]).expect_success();
    loss::verify(&volume, &expected, "after a directory was replaced");
    let status = volume.status();
    assert_eq!(status["tolerated_losses"], 2, "{status:#}");
    volume.umount();
    for i in [0, 5] {
        empty_dir(volume.dir(i));
    }
    let options = volume.base_options();
    let source = volume.dir(1).to_path_buf();
    volume.try_mount_of(&source, &options).expect_success();
    loss::verify(&volume, &expected, "with a replaced directory and two others lost");
}

#[test]
fn a_directory_that_returns_is_caught_up() {
    let mut volume = TestVolume::new("returns", 6, (4, 2));
    fs::write(volume.path("early"), content(1, 500_000)).expect("write");
    volume.umount();
    let aside = volume.root().join("aside");
    fs::rename(volume.dir(3), &aside).expect("take a directory away");
    volume.mount();
    fs::write(volume.path("while away"), content(2, 2_000_000)).expect("write");
    volume.umount();
    let _ = fs::remove_dir(volume.dir(3));
    fs::rename(&aside, volume.dir(3)).expect("bring the directory back");
    volume.mount();
    let mnt = volume.mnt().display().to_string();
    volume.brine(&["heal", &mnt]).expect_success();
    volume.umount();
    for i in [0, 1] {
        remove_dir(volume.dir(i));
    }
    volume.mount();
    assert!(fs::read(volume.path("early")).expect("read") == content(1, 500_000), "the older file is wrong");
    assert!(fs::read(volume.path("while away")).expect("read") == content(2, 2_000_000), "the newer file is wrong");
}

#[test]
fn a_volume_with_a_passphrase_is_mounted_with_it() {
    let mut volume = Builder::new("passphrase").secret(brine_tests::Secret::Passphrase).mount();
    fs::write(volume.path("file"), b"text").expect("write");
    volume.remount();
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"text");
}

#[test]
fn a_read_only_mount_reads_and_refuses_writes() {
    let mut volume = TestVolume::new("read-only", 3, (2, 1));
    fs::write(volume.path("file"), b"text").expect("write");
    volume.umount();
    volume.mount_with(&["ro"]);
    assert_eq!(fs::read(volume.path("file")).expect("read"), b"text");
    let error = fs::write(volume.path("other"), b"text").expect_err("a write to a read-only mount");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
}
