//! Past states: what a snapshot costs, what history costs a listing, and that trees are brought back whole.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::shell;
use crate::volume::{Builder, TestVolume};

/// Best of this many tries, so that a busy machine counts less.
const TRIES: usize = 5;

fn volume(name: &str) -> TestVolume {
    Builder::new(name).directories(3).geometry(2, 1).lifetime(Duration::from_secs(3600)).mount()
}

fn json(volume: &TestVolume, args: &[&str]) -> Value {
    let args = [args, &["--json"]].concat();
    serde_json::from_str(&volume.brine(&args).expect_success().stdout).expect("JSON")
}

/// Makes `count` empty files in directories of a thousand.
fn make_files(tree: &Path, count: usize) {
    for n in 0..count {
        let dir = tree.join(format!("d{:04}", n / 1000));
        if n % 1000 == 0 {
            fs::create_dir_all(&dir).expect("mkdir");
        }
        fs::write(dir.join(format!("f{n:06}")), b"").expect("create");
    }
}

/// Everything `find` tells of a tree but access times.
fn listing(tree: &Path) -> String {
    shell(tree, "find . -printf '%P %y %m %U %G %s %n %T@ %l\\n' | sort").expect_success().stdout
}

/// A snapshot of a tree of `count` files takes less than `most`.
#[track_caller]
pub fn snapshot_is_instant(count: usize, most: Duration) -> String {
    let volume = volume("snapshot-instant");
    make_files(volume.mnt(), count);
    volume.sync();
    let mut best = Duration::MAX;
    for n in 0..TRIES {
        // Something to commit, as there always is.
        fs::write(volume.path("changed"), n.to_string()).expect("write");
        let name = format!("s{n}");
        let mnt = volume.mnt().display().to_string();
        let started = Instant::now();
        volume.brine(&["snapshot", "create", &name, &mnt]).expect_success();
        best = best.min(started.elapsed());
    }
    for n in 0..TRIES {
        let seen = fs::read_to_string(volume.path(&format!(".brine/snapshots/s{n}/changed"))).expect("read");
        assert_eq!(seen, n.to_string());
    }
    assert!(best <= most, "a snapshot of {count} files took {best:?}, more than {most:?}");
    format!("{count} files, {:.1} ms with the command's own start", best.as_secs_f64() * 1000.0)
}

fn list_time(dir: &Path, wanted: usize) -> Duration {
    let mut best = Duration::MAX;
    for n in 0..TRIES {
        // A change empties what the kernel has cached of the listing.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        let touched = dir.join(format!("touch{n}"));
        fs::write(&touched, b"").expect("write");
        fs::remove_file(&touched).expect("rm");
        let started = Instant::now();
        let seen = fs::read_dir(dir).expect("readdir").count();
        best = best.min(started.elapsed());
        assert_eq!(seen, wanted);
    }
    best
}

/// Listing a directory that had `dead` more names in its history takes at most `percent` longer than one that had not.
#[track_caller]
pub fn dead_names_cost_a_listing_nothing(dead: usize, percent: u32) -> String {
    const LIVE: usize = 10_000;
    let volume = volume("dead-names");
    // Nothing is to be forgotten meanwhile.
    let mnt = volume.mnt().display().to_string();
    volume
        .brine(&["retention", "set", "--all", "1d", "--minutely", "0", "--hourly", "0", "--budget", "90", &mnt])
        .expect_success();
    let (fresh, old) = (volume.path("fresh"), volume.path("old"));
    for dir in [&fresh, &old] {
        fs::create_dir(dir).expect("mkdir");
        for n in 0..LIVE {
            fs::write(dir.join(format!("live{n:06}")), b"").expect("create");
        }
    }
    // Each name must have been in a committed state to be in history. Names of one file: half the requests of new files.
    const BATCH: usize = 20_000;
    let file = old.join("live000000");
    for start in (0..dead).step_by(BATCH) {
        let names: Vec<_> = (start..(start + BATCH).min(dead)).map(|n| old.join(format!("dead{n:07}"))).collect();
        names.iter().for_each(|path| fs::hard_link(&file, path).expect("link"));
        volume.sync();
        names.iter().for_each(|path| fs::remove_file(path).expect("rm"));
    }
    volume.sync();
    let (without, with) = (list_time(&fresh, LIVE), list_time(&old, LIVE));
    let more = with.as_secs_f64() / without.as_secs_f64() * 100.0 - 100.0;
    assert!(
        with <= without * (100 + percent) / 100,
        "listing {LIVE} names takes {with:?} with {dead} dead ones in history, {without:?} without"
    );
    format!("{LIVE} names: {with:.2?} with {dead} dead ones, {without:.2?} without ({more:+.0}%)")
}

/// A tree of `count` files is rewound after all of it was changed, and back again.
#[track_caller]
pub fn rewinds_a_whole_tree(count: usize) -> String {
    let volume = volume("rewind-tree");
    make_files(volume.mnt(), count);
    shell(volume.mnt(), "head -c 20000000 /dev/urandom > big; find . -exec touch -h -d @1000000000 {} +")
        .expect_success();
    let before = listing(volume.mnt());
    let mnt = volume.mnt().display().to_string();
    volume.brine(&["snapshot", "create", "then", &mnt]).expect_success();
    shell(
        volume.mnt(),
        "rm -r d0000; mv d0001 moved; chmod -R go-rwx d0002; for f in d0003/f*0; do echo x > $f; done; rm big",
    )
    .expect_success();
    let after = listing(volume.mnt());
    let started = Instant::now();
    let done = json(&volume, &["rewind", &mnt, "--to", "then"]);
    let took = started.elapsed();
    assert_eq!(listing(volume.mnt()), before);
    let undo = done["undo"].as_str().expect("a snapshot").to_owned();
    json(&volume, &["rewind", &mnt, "--to", &undo]);
    assert_eq!(listing(volume.mnt()), after);
    volume.expect_clean();
    format!("{count} files, {took:.1?}")
}

/// `processes` programs change the mode of one file `each` times: its version grows by exactly that many.
#[track_caller]
pub fn versions_have_no_gaps(processes: u64, each: u64) -> String {
    let volume = volume("gapless");
    fs::write(volume.path("file"), b"x").expect("write");
    let file = volume.path("file").display().to_string();
    let version = || json(&volume, &["log", &file])["states"][0]["version"].as_u64().expect("a version");
    let before = version();
    std::thread::scope(|scope| {
        for process in 0..processes {
            let (mnt, modes) = (volume.mnt(), [600 + process, 640 + process]);
            scope.spawn(move || {
                let script =
                    format!("for i in $(seq {}); do chmod {} file; chmod {} file; done", each / 2, modes[0], modes[1]);
                shell(mnt, &script).expect_success();
            });
        }
    });
    assert_eq!(version() - before, processes * each);
    format!("{processes} programs, {each} changes each: {} versions", processes * each)
}
