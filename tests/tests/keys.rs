//! The secrets that open a volume, changed by `brine key`.

use std::fs;
use std::path::PathBuf;

use brine_tests::command::{Finished, exit};
use brine_tests::{Builder, TestVolume, content};
use serde_json::Value;

fn json(finished: Finished) -> Value {
    serde_json::from_str(&finished.expect_success().stdout).expect("JSON")
}

/// A file with a secret in it.
fn secret(volume: &TestVolume, name: &str, content: &[u8]) -> String {
    let path = volume.root().join(name);
    fs::write(&path, content).expect("write");
    path.display().to_string()
}

fn slots(volume: &TestVolume, source: &str) -> Vec<(u64, String)> {
    let listed = json(volume.brine(&["key", "list", "--json", source]));
    let slots = listed["slots"].as_array().expect("slots");
    slots.iter().map(|slot| (slot["slot"].as_u64().unwrap(), slot["kind"].as_str().unwrap().to_owned())).collect()
}

/// Mount with the secret of an option (`keyfile=F`), look at the file, unmount.
fn opens(volume: &mut TestVolume, source: &str, option: &str) {
    let options = [option.to_owned(), format!("state={}", volume.state_dir().display())];
    volume.try_mount_of(&PathBuf::from(source), &options).expect_success();
    volume.adopt();
    assert!(fs::read(volume.path("file")).expect("read") == content(1, 300_000), "a file is wrong");
    volume.umount();
}

#[test]
fn secrets_are_added_and_taken_away() {
    let mut volume = Builder::new("keys").directories(3).geometry(2, 1).mount();
    fs::write(volume.path("file"), content(1, 300_000)).expect("write");
    let source = volume.dir(0).display().to_string();
    let first = volume.unlock_args();
    let add = ["key", "add", &first[0], &first[1]].map(str::to_owned);
    let mnt = volume.mnt().display().to_string();
    // While it is mounted the daemon has the superblocks.
    let busy = volume.brine(&[&add[0], &add[1], &add[2], &add[3], "--new-recovery-key", &mnt]);
    busy.with_code(exit::BUSY).says(&["brine umount", &mnt]);
    let known = slots(&volume, &mnt);
    assert_eq!(known, [(0, "key-file".into()), (1, "recovery-key".into())]);
    volume.umount();
    assert_eq!(slots(&volume, &source), known);

    let words = secret(&volume, "words", b"correct horse battery staple\n");
    let passphrase = ["--new-passphrase-file", &words];
    let adding = |new: &[&str]| {
        let fixed = add.iter().map(String::as_str).chain(new.iter().copied()).chain(["--json", &source]);
        volume.brine(&fixed.collect::<Vec<_>>())
    };
    assert_eq!(json(adding(&passphrase))["slot"], 2);
    let made = json(adding(&["--new-recovery-key"]));
    assert_eq!(made["slot"], 3);
    let recovery = secret(&volume, "recovery", made["recovery_key"].as_str().expect("a key").as_bytes());
    let wrong = secret(&volume, "wrong", b"nobody knows this one, and it is long enough");
    volume.brine(&["key", "add", "--key-file", &wrong, "--new-recovery-key", &source]).with_code(exit::WRONG_SECRET);
    assert_eq!(slots(&volume, &source).len(), 4);
    for option in [format!("passfile={words}"), format!("recoveryfile={recovery}")] {
        opens(&mut volume, &source, &option);
    }

    // The first key file goes, by means of the passphrase, whichever directory and copy is asked.
    let remove = |volume: &TestVolume, slot: &str| {
        volume.brine(&["key", "remove", slot, "--passphrase-file", &words, "--json", &source])
    };
    assert_eq!(json(remove(&volume, "0"))["directories_not_told"], 0);
    for dir in volume.dirs().to_vec() {
        for copy in ["superblock.0", "superblock.1"] {
            let aside = dir.join(copy);
            let kept = fs::read(&aside).expect("read");
            fs::remove_file(&aside).expect("unlink");
            let options = [format!("keyfile={}", volume.key_file().display())];
            let options = [options[0].clone(), format!("state={}", volume.state_dir().display())];
            volume.try_mount_of(&dir, &options).with_code(exit::WRONG_SECRET);
            fs::write(&aside, kept).expect("write");
        }
    }
    opens(&mut volume, &source, &format!("passfile={words}"));

    remove(&volume, "0").with_code(exit::REFUSED).says(&["no key slot 0", "brine key list"]);
    remove(&volume, "1").expect_success();
    remove(&volume, "3").expect_success();
    remove(&volume, "2").with_code(exit::REFUSED).says(&["slot 2", "the last"]);
    // One more than the highest there is.
    let fixed = ["key", "add", "--passphrase-file", &words, "--new-key-file", &wrong, "--json", &source];
    assert_eq!(json(volume.brine(&fixed))["slot"], 3);
    opens(&mut volume, &source, &format!("keyfile={wrong}"));
    assert_eq!(slots(&volume, &source), [(2, "passphrase".into()), (3, "key-file".into())]);
}

#[test]
fn a_directory_that_was_away_learns_of_it_when_it_is_back() {
    let mut volume = Builder::new("keys-away").directories(3).geometry(2, 1).mount();
    fs::write(volume.path("file"), content(1, 300_000)).expect("write");
    volume.umount();
    let source = volume.dir(0).display().to_string();
    let first = volume.unlock_args();
    let words = secret(&volume, "words", b"correct horse battery staple\n");
    let args = ["key", "add", &first[0], &first[1], "--new-passphrase-file", &words, &source];
    volume.brine(&args).expect_success();
    let (away, aside) = (volume.dir(2).to_path_buf(), volume.root().join("aside"));
    fs::rename(&away, &aside).expect("rename");
    let removed = volume.brine(&["key", "remove", "0", "--passphrase-file", &words, "--json", &source]);
    assert_eq!(json(removed)["directories_not_told"], 1);
    fs::rename(&aside, &away).expect("rename");
    // With the others its old slot does not count, and after that it is gone there, too.
    let key_file = format!("keyfile={}", volume.key_file().display());
    let state = format!("state={}", volume.state_dir().display());
    volume.try_mount_of(&away, &[key_file.clone(), state.clone()]).with_code(exit::WRONG_SECRET);
    for _ in 0..2 {
        opens(&mut volume, &source, &format!("passfile={words}"));
    }
    for copy in ["superblock.0", "superblock.1"] {
        let kept = fs::read(away.join(copy)).expect("read");
        fs::remove_file(away.join(copy)).expect("unlink");
        volume.try_mount_of(&away, &[key_file.clone(), state.clone()]).with_code(exit::WRONG_SECRET);
        fs::write(away.join(copy), kept).expect("write");
    }
}
