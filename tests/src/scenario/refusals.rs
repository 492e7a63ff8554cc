//! What must be refused: with the object and the next step named, a stable exit code, and nothing written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::{Finished, exit};
use crate::damage::{copy_tree, empty_dir, superblock_files};
use crate::manifest::Manifest;
use crate::scenario::loss::Kept;
use crate::{Builder, Random, Secret, TestVolume, content, seed};

/// Runs the same refusal twice: refused both times, with one exit code and the same object named; nothing that is in
/// `untouched` changes.
#[track_caller]
pub fn twice(untouched: &[&Path], mut attempt: impl FnMut() -> Finished, parts: &[&str]) -> Finished {
    let before: Vec<Manifest> = untouched.iter().map(|dir| Manifest::of(dir)).collect();
    let first = attempt().expect_refusal().says(parts);
    let second = attempt().expect_refusal().says(parts);
    assert_eq!(first.code(), second.code(), "the exit code is not stable: {first}\n{second}");
    for (dir, before) in untouched.iter().zip(before) {
        before.expect_same(&Manifest::of(dir), &format!("{} was written to", dir.display()));
    }
    first
}

fn unformatted(name: &str) -> TestVolume {
    Builder::new(name).directories(3).geometry(2, 1).prepare()
}

/// Everything `brine format` must refuse, and what it must not.
#[track_caller]
pub fn format() -> String {
    let mut refusals = 0;
    let mut refused = |volume: &TestVolume, parts: &[&str]| {
        let dirs: Vec<&Path> = volume.dirs().iter().map(PathBuf::as_path).filter(|dir| dir.is_dir()).collect();
        twice(&dirs, || volume.try_format(), parts);
        refusals += 1;
    };

    let volume = unformatted("format-nonempty");
    fs::write(volume.dir(1).join("letter.txt"), b"mine").expect("write");
    refused(&volume, &[&volume.dir(1).display().to_string(), "empty"]);

    let volume = unformatted("format-missing");
    fs::remove_dir(volume.dir(2)).expect("rmdir");
    refused(&volume, &[&volume.dir(2).display().to_string()]);

    let volume = unformatted("format-file");
    fs::remove_dir(volume.dir(0)).expect("rmdir");
    fs::write(volume.dir(0), b"a file").expect("write");
    refused(&volume, &[&volume.dir(0).display().to_string()]);

    let volume = Builder::new("format-few").directories(3).geometry(4, 2).prepare();
    refused(&volume, &["6", "3"]);

    let volume = Builder::new("format-zero").directories(3).geometry(0, 2).prepare();
    refused(&volume, &[]);

    let volume = unformatted("format-twice");
    let twice_named = volume.dir(0).to_path_buf();
    let doubled = Builder::new("format-same-dir").directories_at(vec![
        twice_named.clone(),
        twice_named.clone(),
        volume.dir(1).into(),
    ]);
    refused(&doubled.geometry(2, 1).prepare(), &[&twice_named.display().to_string()]);

    let volume = unformatted("format-existing");
    volume.try_format().expect_success();
    refused(&volume, &[&volume.dir(0).display().to_string()]);

    let volume = unformatted("format-no-key");
    fs::remove_file(volume.key_file()).expect("unlink");
    refused(&volume, &[&volume.key_file().display().to_string()]);

    let volume =
        Builder::new("format-empty-passphrase").directories(3).geometry(2, 1).secret(Secret::Passphrase).prepare();
    fs::write(volume.key_file(), b"\n").expect("write");
    refused(&volume, &["empty"]);

    let volume = unformatted("format-state-inside");
    let inside = volume.dir(0).join("state");
    let mut args = vec!["format".to_owned()];
    args.extend(volume.dirs().iter().map(|dir| dir.display().to_string()));
    args.extend(volume.unlock_args());
    args.extend(["--state-dir".into(), inside.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    twice(&[], || volume.brine(&args), &[&inside.display().to_string()]);

    // What a fresh ext4 has is no content.
    let volume = unformatted("format-lost-found");
    fs::create_dir(volume.dir(0).join("lost+found")).expect("mkdir");
    let finished = volume.try_format().expect_success();
    let warned = finished.text().to_lowercase();
    assert!(
        warned.contains("same filesystem")
            || warned.contains("one filesystem")
            || warned.contains("same disk")
            || warned.contains("same device"),
        "three directories on one filesystem, and no warning: {finished}"
    );
    format!("{} refusals, each with its object, nothing written", refusals + 1)
}

/// Everything `brine mount` must refuse.
#[track_caller]
pub fn mount() -> String {
    wrong_secrets();
    foreign_directories();
    second_mount();
    "wrong secrets, foreign directories, wrong state directory, second mount: each refused with its object".into()
}

/// A wrong passphrase, a wrong key file, a kind of secret no slot has.
#[track_caller]
pub fn wrong_secrets() {
    for secret in [Secret::Passphrase, Secret::KeyFile] {
        let mut volume = Builder::new("wrong-secret").directories(3).geometry(2, 1).secret(secret).format();
        let right = fs::read(volume.key_file()).expect("read");
        let untouched = volume.dirs().to_vec();
        let untouched: Vec<&Path> = untouched.iter().map(PathBuf::as_path).collect();
        fs::write(volume.key_file(), b"another secret, long enough for anyone\n").expect("write");
        let word = if secret == Secret::Passphrase { "passphrase" } else { "key" };
        twice(&untouched, || volume.try_mount(&[]), &[word]).with_code(exit::WRONG_SECRET);
        assert!(!crate::environment::is_mounted(volume.mnt()), "refused, and mounted");
        let (state, source) = (volume.state_dir().display().to_string(), volume.source());
        let other = if secret == Secret::Passphrase { "keyfile" } else { "passfile" };
        let options = [format!("{other}={}", volume.key_file().display()), format!("state={state}")];
        twice(&untouched, || volume.try_mount_of(&source, &options), &[]).with_code(exit::WRONG_SECRET);
        fs::remove_file(volume.key_file()).expect("unlink");
        let key_file = volume.key_file().display().to_string();
        twice(&untouched, || volume.try_mount(&[]), &[&key_file]).with_code(exit::NOT_FOUND);
        fs::write(volume.key_file(), right).expect("write");
        volume.mount();
    }
}

/// A directory of another volume in a member's place, another volume's state directory, sources that are none.
#[track_caller]
pub fn foreign_directories() {
    let mut volume = Builder::new("one").directories(3).geometry(2, 1).mount();
    let mut other = Builder::new("other").directories(3).geometry(2, 1).mount();
    fs::write(volume.path("file"), content(1, 400_000)).expect("write");
    fs::write(other.path("file"), content(2, 400_000)).expect("write");
    volume.umount();
    other.umount();

    // Of another volume, in a member's place: that member is missing, and nothing is written there.
    let kept = Kept::of(&volume);
    empty_dir(volume.dir(1));
    copy_tree(&other.dir(1).join("."), volume.dir(1));
    let before = Manifest::of(volume.dir(1));
    volume.mount();
    let status = volume.status();
    assert_eq!(status["directories"][1]["state"], "missing", "{status:#}");
    fs::write(volume.path("new"), content(3, 400_000)).expect("write");
    assert!(fs::read(volume.path("file")).expect("read") == content(1, 400_000), "a file is wrong");
    volume.umount();
    before.expect_same(&Manifest::of(volume.dir(1)), "a directory of another volume was written to");
    kept.put_back();

    // Another volume's state directory: never used for this one, never harmed.
    let theirs = Manifest::of(other.state_dir());
    let key = volume.base_options().remove(0);
    let options = [key, format!("state={}", other.state_dir().display())];
    let source = volume.source();
    let finished = volume.try_mount_of(&source, &options);
    finished.expect_refusal().says(&[&other.state_dir().display().to_string()]);
    let keep = |manifest: &Manifest| {
        let locks = |path: &Path| path.extension().is_some_and(|e| e == "lock") || path.ends_with("lock");
        Manifest(manifest.0.iter().filter(|(path, _)| !locks(path)).map(|(p, e)| (p.clone(), e.clone())).collect())
    };
    keep(&theirs)
        .expect_same(&keep(&Manifest::of(other.state_dir())), "another volume's state directory was written to");

    // No volume at all.
    let nowhere = volume.root().join("nowhere");
    let options = volume.base_options();
    twice(&[], || volume.try_mount_of(&nowhere, &options), &[&nowhere.display().to_string()])
        .with_code(exit::NOT_FOUND);
    let empty = volume.root().join("empty");
    fs::create_dir(&empty).expect("mkdir");
    twice(&[&empty.clone()], || volume.try_mount_of(&empty, &options), &[&empty.display().to_string()]);

    // A mountpoint that is none.
    volume.mount();
    other.mount();
    assert!(fs::read(volume.path("file")).expect("read") == content(1, 400_000), "a file is wrong");
    assert!(fs::read(other.path("file")).expect("read") == content(2, 400_000), "a file is wrong");
}

/// A volume that is mounted cannot be mounted a second time, by any of its directories, at any place.
#[track_caller]
pub fn second_mount() {
    let volume = Builder::new("mounted-twice").directories(3).geometry(2, 1).mount();
    fs::write(volume.path("file"), content(1, 200_000)).expect("write");
    let second = volume.root().join("second");
    fs::create_dir(&second).expect("mkdir");
    let options = volume.base_options().join(",");
    let other_state = format!("{},state={}", volume.base_options()[0], volume.root().join("state2").display());
    let (second_text, sources) = (second.display().to_string(), [volume.dir(0), volume.dir(2)]);
    for source in sources {
        for options in [&options, &other_state] {
            let source = source.display().to_string();
            let finished = volume.brine(&["mount", &source, &second_text, "-o", options]);
            if crate::environment::is_mounted(&second) {
                crate::volume::detach(&second);
                panic!("one volume was mounted twice: {finished}");
            }
            finished.expect_refusal().says_one_of(&["mounted", "in use", "locked", "another"]).with_code(exit::BUSY);
        }
    }
    assert!(fs::read(volume.path("file")).expect("read") == content(1, 200_000), "the first mount was harmed");
    fs::write(volume.path("more"), b"more").expect("the first mount was harmed");
}

/// Random bytes, truncations and flips in superblocks: of up to m directories, the volume mounts; of all, it is
/// refused; never a panic, a hang, or a gigabyte of memory for a length somebody wrote there.
#[track_caller]
pub fn hostile_superblocks(rounds: u64) -> String {
    let seed = seed("hostile superblocks");
    let mut random = Random::new(seed);
    let mut volume = Builder::new("hostile").mount();
    fs::write(volume.path("file"), content(1, 500_000)).expect("write");
    volume.umount();
    let kept = Kept::of(&volume);
    let (mut mounted, mut refused) = (0, 0);
    for round in 0..rounds {
        let everywhere = round % 2 == 1;
        let concerned = if everywhere { 0..6 } else { 2..4 };
        for i in concerned {
            for file in superblock_files(volume.dir(i)) {
                hurt(&file, &mut random);
            }
        }
        let finished = volume.try_mount(&[]);
        let text = finished.text();
        assert!(!text.contains("panicked at"), "panicked on hostile superblocks, seed {seed}: {finished}");
        assert!(finished.took.as_secs() < 60, "hostile superblocks took {:?}, seed {seed}: {finished}", finished.took);
        if finished.success() {
            mounted += 1;
            let read = fs::read(volume.path("file")).unwrap_or_else(|error| {
                panic!("seed {seed}, round {round}: {error}; {finished}\n{:#}", volume.status())
            });
            assert!(read == content(1, 500_000), "seed {seed}: wrong bytes");
            volume.umount();
        } else {
            refused += 1;
            assert!(everywhere, "two hostile superblocks of six prevent the mount, seed {seed}: {finished}");
            let named = volume.dirs().iter().any(|dir| text.contains(&dir.display().to_string()));
            assert!(named, "no directory is named, seed {seed}: {finished}");
            finished.expect_refusal();
        }
        kept.put_back();
    }
    format!("{rounds} rounds: {mounted} mounted and right, {refused} refused; seed {seed}")
}

/// Does something bad to a file.
fn hurt(file: &Path, random: &mut Random) {
    let mut bytes = fs::read(file).expect("read a superblock");
    match random.below(6) {
        0 => bytes.clear(),
        1 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
        2 => bytes = random.bytes(bytes.len()),
        3 => {
            // Every length and count a decoder may trust.
            let at = random.below(bytes.len().max(9) as u64 - 8) as usize;
            bytes[at..at + 8].fill(0xff);
        }
        4 => bytes.extend(random.bytes(4 << 20)),
        _ => {
            for _ in 0..1 + random.below(20) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
        }
    }
    fs::write(file, bytes).expect("write a superblock");
}
