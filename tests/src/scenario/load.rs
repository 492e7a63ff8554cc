//! Many files, and random operations on few.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::model::Model;
use crate::sys::Directory;
use crate::{Builder, Random, content, seed};

/// Random operations on a few files against an in-memory model, mounting anew between rounds.
#[track_caller]
pub fn random_operations(rounds: u64, steps: u64) -> String {
    let seed = seed("random operations");
    let mut volume =
        Builder::new("model").directories(3).geometry(2, 1).lifetime(Duration::from_secs(120 + rounds * 120)).mount();
    let mut model = Model::new(volume.mnt(), 4, seed);
    for round in 0..rounds {
        model.run(steps);
        model.check_all();
        model.close();
        if round % 2 == 0 {
            volume.remount();
            model.check_all();
            model.close();
        }
    }
    volume.expect_clean();
    format!("{} operations as the model has it, seed {seed}", rounds * steps)
}

/// The same on a volume that has lost m directories, and with the whole cache of decoded blocks nearly absent.
#[track_caller]
pub fn random_operations_degraded(steps: u64) -> String {
    let seed = seed("random operations, degraded");
    let mut volume = Builder::new("model-degraded").option("cache=8M").mount();
    let mut model = Model::new(volume.mnt(), 3, seed);
    model.run(steps);
    model.close();
    volume.umount();
    fs::remove_dir_all(volume.dir(0)).expect("remove a backing directory");
    fs::remove_dir_all(volume.dir(3)).expect("remove a backing directory");
    volume.mount();
    model.check_all();
    model.run(steps);
    model.close();
    volume.remount();
    model.check_all();
    format!("{} operations as the model has it, seed {seed}", 2 * steps)
}

/// A directory of `count` files: listed completely, positions stay good while others come and go.
#[track_caller]
pub fn large_directory(count: usize) -> String {
    // A slow build on a busy machine makes some hundred names a second.
    let lifetime = Duration::from_secs(300 + count as u64 / 150);
    let mut volume = Builder::new("large-directory").directories(3).geometry(2, 1).lifetime(lifetime).mount();
    let dir = volume.path("many");
    fs::create_dir(&dir).expect("mkdir");
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let dir = &dir;
            scope.spawn(move || {
                for i in (thread..count).step_by(2) {
                    File::create_new(dir.join(format!("entry-{i:06}"))).expect("create");
                }
            });
        }
    });
    let rate = count as f64 / started.elapsed().as_secs_f64();
    let expected: BTreeSet<Vec<u8>> = (0..count).map(|i| format!("entry-{i:06}").into_bytes()).collect();
    expect_listing(&dir, &expected);
    volume.remount();
    expect_listing(&dir, &expected);

    // Whatever comes and goes meanwhile: after a position, each name that stays is listed once, and none from before.
    let mut stream = Directory::open(&dir).expect("opendir");
    for _ in 0..count / 2 {
        stream.next_name().expect("readdir").expect("half of the names");
    }
    let position = stream.tell();
    let rest: BTreeSet<Vec<u8>> = names(&mut stream).into_iter().collect();
    let gone: BTreeSet<Vec<u8>> = rest.iter().step_by(97).cloned().collect();
    for name in &gone {
        fs::remove_file(dir.join(std::str::from_utf8(name).expect("ASCII"))).expect("unlink");
    }
    for i in 0..200 {
        File::create_new(dir.join(format!("new-{i}"))).expect("create");
    }
    stream.seek(position);
    let again: Vec<Vec<u8>> = names(&mut stream).into_iter().filter(|name| !name.starts_with(b"new-")).collect();
    let distinct: BTreeSet<Vec<u8>> = again.iter().cloned().collect();
    assert_eq!(distinct.len(), again.len(), "a name is listed twice after returning to a position");
    assert!(
        rest.difference(&gone).all(|name| distinct.contains(name)),
        "a name is missed after returning to a position"
    );
    assert!(distinct.is_subset(&rest), "a name from before the position is listed after it");
    let expected: BTreeSet<Vec<u8>> =
        expected.difference(&gone).cloned().chain((0..200).map(|i| format!("new-{i}").into_bytes())).collect();
    expect_listing(&dir, &expected);
    drop(stream);
    let left = expected.first().map(|name| String::from_utf8_lossy(name).into_owned()).expect("names are left");
    fs::rename(dir.join(&left), dir.join("renamed")).expect("rename in a large directory");
    assert!(dir.join("renamed").exists() && !dir.join(&left).exists());
    format!("{count} entries, made at {rate:.0}/s")
}

fn names(stream: &mut Directory) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    while let Some(name) = stream.next_name().expect("readdir") {
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names
}

#[track_caller]
fn expect_listing(dir: &std::path::Path, expected: &BTreeSet<Vec<u8>>) {
    let listed = names(&mut Directory::open(dir).expect("opendir"));
    assert_eq!(listed.len(), expected.len(), "a listing has another number of names");
    let listed: BTreeSet<Vec<u8>> = listed.into_iter().collect();
    assert!(&listed == expected, "a listing misses names or has one twice");
}

/// Writers and listers at the same directory: no error that POSIX does not give, no entry listed twice.
#[track_caller]
pub fn crowd(writers: u64, listers: u64, duration: Duration) -> String {
    let volume =
        Builder::new("crowd").directories(3).geometry(2, 1).lifetime(duration + Duration::from_secs(240)).mount();
    let dir = volume.path("crowd");
    fs::create_dir(&dir).expect("mkdir");
    let (stop, operations) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (dir, stop, operations) = (&dir, &stop, &operations);
            scope.spawn(move || {
                let mut random = Random::new(writer);
                let mine = |n: u64| dir.join(format!("w{writer}-{n}"));
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let bytes = content(writer * 1_000_000 + n, random.below(9000) as usize);
                    fs::write(mine(n), &bytes).expect("write");
                    assert!(fs::read(mine(n)).expect("read") == bytes, "another content was read");
                    if n % 3 == 0 {
                        fs::rename(mine(n), dir.join(format!("w{writer}-renamed"))).expect("rename");
                    } else if n >= 8 && fs::exists(mine(n - 8)).expect("stat") {
                        fs::remove_file(mine(n - 8)).expect("unlink");
                    }
                    if n % 16 == 5 {
                        File::open(mine(n)).or_else(|_| File::open(dir)).and_then(|f| f.sync_all()).expect("fsync");
                    }
                    operations.fetch_add(4, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..listers {
            let (dir, stop, operations) = (&dir, &stop, &operations);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let listed = names(&mut Directory::open(dir).expect("opendir"));
                    let distinct: BTreeSet<&Vec<u8>> = listed.iter().collect();
                    assert_eq!(distinct.len(), listed.len(), "a listing has a name twice");
                    operations.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
    });
    volume.sync();
    volume.expect_clean();
    format!("{} operations by {writers} writers and {listers} listers", operations.into_inner())
}
