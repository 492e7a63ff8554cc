//! Space given back: of removed files and of history, in the directories themselves.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::damage::data_bytes;
use crate::random::content;
use crate::{Builder, TestVolume, run};

/// How long a volume may be used here: files are made by the hundred thousand, perhaps on a busy machine.
const LIFETIME: Duration = Duration::from_secs(1800);

/// Bytes that the segments take on their devices; what is preallocated there does not count.
fn device_bytes(volume: &TestVolume) -> u64 {
    fn below(path: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(path) else { return 0 };
        let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
        paths.map(|path| if path.is_dir() { below(&path) } else { data_bytes(&path) }).sum()
    }
    volume.dirs().iter().map(|dir| below(&dir.join("segments"))).sum()
}

#[track_caller]
fn json(volume: &TestVolume, args: &[&str]) -> Value {
    let mount = volume.mnt().to_string_lossy().into_owned();
    let mut line = args.to_vec();
    line.extend(["--json", &mount]);
    let finished = volume.brine(&line).expect_success();
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

fn volume(name: &str) -> TestVolume {
    Builder::new(name).directories(3).geometry(2, 1).lifetime(LIFETIME).mount()
}

/// Nothing but the newest state is kept.
fn forget_history(volume: &TestVolume) {
    json(volume, &["retention", "set", "--all", "0", "--minutely", "0", "--hourly", "0"]);
}

/// So many small files are removed; within a minute of retention allowing it their space is back in the directories,
/// nobody having asked for it.
#[track_caller]
pub fn removed_files(count: u64) -> String {
    let volume = volume("removed-files");
    forget_history(&volume);
    fs::write(volume.path("kept"), content(1, 3 << 20)).expect("write");
    volume.sync();
    let before = device_bytes(&volume);
    for n in 0..count {
        let dir = volume.path(&format!("tree/{}", n / 1000));
        if n % 1000 == 0 {
            fs::create_dir_all(&dir).expect("mkdir");
        }
        fs::write(dir.join(format!("{n}")), content(1000 + n, 4200 + (n % 7) as usize * 100)).expect("write");
    }
    volume.sync();
    let full = device_bytes(&volume);
    let raw = count * 4500 * 3 / 2;
    assert!(full - before > raw * 9 / 10, "{count} files take only {} bytes", full - before);
    fs::remove_dir_all(volume.path("tree")).expect("remove");
    let began = Instant::now();
    let back = crate::volume::wait_until(Duration::from_secs(60), || device_bytes(&volume) < before + raw / 10);
    let left = device_bytes(&volume) - before;
    assert!(back, "a minute later {left} of {} bytes are not given back: {:#}", full - before, volume.status());
    let took = began.elapsed().as_secs_f64();
    assert!(fs::read(volume.path("kept")).expect("read") == content(1, 3 << 20), "a kept file is wrong");
    volume.expect_clean();
    format!("{} MiB of {count} files were back after {took:.0} s", (full - before - left) >> 20)
}

/// A tree that was changed over and over, with a snapshot of each round; all history is deleted, and what is left takes
/// at most a twentieth more than the same tree copied to a fresh volume.
#[track_caller]
pub fn as_small_as_a_fresh_copy(rounds: u64) -> String {
    const FILES: u64 = 32;
    let old = volume("history-deleted");
    let tree = old.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    for round in 0..rounds {
        // Large files overwritten in part, replaced and cut; small ones that share stripes with what stays.
        for n in 0..FILES {
            let (path, seed) = (tree.join(format!("large{n}")), 1000 * round + n);
            match (round, (n + round) % 4) {
                (0, _) | (_, 0) => fs::write(&path, content(seed, 1 << 20)).expect("write"),
                (_, 1) => {
                    let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
                    file.write_all_at(&content(seed, 200_000), 100_000 + 50_000 * n).expect("write");
                }
                (_, 2) => {
                    let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
                    file.set_len((1 << 20) - 30_000 * n % (1 << 19)).expect("truncate");
                }
                _ => {}
            }
        }
        let small = tree.join(format!("small{round}"));
        fs::create_dir(&small).expect("mkdir");
        for n in 0..300 {
            fs::write(small.join(n.to_string()), content(500_000 + 1000 * round + n, 5000)).expect("write");
        }
        if round > 0 && round % 2 == 0 {
            fs::remove_dir_all(tree.join(format!("small{}", round - 1))).expect("remove");
        }
        json(&old, &["snapshot", "create", &format!("round {round}")]);
    }
    let full = device_bytes(&old);
    for round in 0..rounds {
        json(&old, &["snapshot", "delete", &format!("round {round}")]);
    }
    forget_history(&old);
    let report = json(&old, &["gc"]);
    assert_eq!(report["problems"], Value::Array(Vec::new()), "{report:#}");
    let left = device_bytes(&old);

    let fresh = volume("history-never-was");
    run(Command::new("cp").arg("-a").arg(&tree).arg(fresh.mnt())).expect_success();
    forget_history(&fresh);
    json(&fresh, &["gc"]);
    let wanted = device_bytes(&fresh);
    assert!(full > 2 * wanted, "history took too little to tell: {full} bytes, {wanted} without");
    assert!(left <= wanted + wanted / 20, "{left} bytes of {full} are left, a fresh copy takes {wanted}: {report:#}");
    run(Command::new("diff").arg("-r").arg(&tree).arg(fresh.path("tree"))).expect_success();
    old.expect_clean();
    let more = left as f64 / wanted as f64 * 100.0 - 100.0;
    format!("{} of {} KiB are left, a fresh copy takes {} ({more:+.1}%)", left >> 10, full >> 10, wanted >> 10)
}

/// The commands on a mount: what they say agrees with the directories, and wrong rules change nothing.
#[track_caller]
pub fn commands() -> String {
    let mut volume = Builder::new("space-commands").directories(3).geometry(2, 1).mount();
    fs::create_dir(volume.path("photos")).expect("mkdir");
    fs::write(volume.path("photos/one"), content(1, 2 << 20)).expect("write");
    fs::write(volume.path("photos/twin"), content(1, 2 << 20)).expect("write");
    fs::write(volume.path("gone"), content(2, 8 << 20)).expect("write");
    volume.sync();

    let usage = json(&volume, &["usage"]);
    assert_eq!(usage["total"]["logical_bytes"], 12 << 20, "{usage:#}");
    let photos = usage["entries"].as_array().and_then(|all| all.iter().find(|entry| entry["name"] == "photos"));
    let photos = photos.unwrap_or_else(|| panic!("photos is not listed: {usage:#}"));
    assert_eq!(photos["logical_bytes"], 4 << 20, "{usage:#}");
    let stored = photos["stored_bytes"].as_u64().unwrap_or(0);
    assert!(stored > 2 << 20 && stored < 3 << 20, "equal files are stored once: {usage:#}");
    assert_eq!(photos["exclusive_bytes"], stored, "nothing else names its blocks: {usage:#}");

    // Rules that contradict each other are refused, and change nothing.
    let mount = volume.mnt().to_string_lossy().into_owned();
    let refused = volume.brine(&["retention", "set", "--hourly", "30m", &mount]).expect_refusal();
    assert!(refused.text().contains("--hourly"), "{refused}");
    assert_eq!(json(&volume, &["retention", "show"])["hourly_s"], 86_400);
    forget_history(&volume);

    fs::remove_file(volume.path("gone")).expect("unlink");
    volume.sync();
    let dry = json(&volume, &["gc", "--dry-run"]);
    assert_eq!(dry["dry_run"], true, "{dry:#}");
    let full = device_bytes(&volume);
    let report = json(&volume, &["gc"]);
    assert_eq!(report["problems"], Value::Array(Vec::new()), "{report:#}");
    let left = device_bytes(&volume);
    assert!(left < 8 << 20, "{left} bytes left of {full}: {report:#}");

    // Another epoch: equal content is stored again, and resealing lets the old blocks go.
    json(&volume, &["salt", "rotate"]);
    fs::write(volume.path("third"), content(1, 2 << 20)).expect("write");
    volume.sync();
    let epochs = json(&volume, &["salt", "show"]);
    assert_eq!(epochs["epochs"].as_array().map(Vec::len), Some(2), "{epochs:#}");
    let resealed = json(&volume, &["salt", "reseal"]);
    assert_eq!(resealed["resealed_bytes"], 4 << 20, "{resealed:#}");
    // The blocks of the former epoch are those of former states until these go.
    let drained = crate::volume::wait_until(Duration::from_secs(60), || {
        json(&volume, &["gc"]);
        json(&volume, &["salt", "show"])["epochs"].as_array().is_some_and(|epochs| epochs.len() == 1)
    });
    assert!(drained, "{:#}", json(&volume, &["salt", "show"]));
    volume.remount();
    for name in ["photos/one", "photos/twin", "third"] {
        assert!(fs::read(volume.path(name)).expect("read") == content(1, 2 << 20), "{name} is wrong");
    }
    volume.expect_clean();
    format!("{} of {} KiB given back on request", (full - left) >> 10, full >> 10)
}
