//! What a storage release must pass.

use std::process::Command;
use std::time::Duration;

use brine_tests::command::run_for;
use brine_tests::environment::sibling;
use brine_tests::scenario::damage::{self, ALL};
use brine_tests::scenario::{dedup, load, loss, programs, refusals, secrets, space};
use brine_tests::{Builder, TestVolume};

use crate::Point;

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("format refuses what it must", refusals::format),
        ("mount refuses what it must", refusals::mount),
        ("foreign and hostile bytes are refused", || refusals::hostile_superblocks(40)),
        ("nothing readable lies in backing or state directories", secrets::nothing_readable),
        ("no key is seen on the process", secrets::no_key_on_the_process),
        ("cp -a", || programs::cp(&mut mounted("cp"), 200)),
        ("rsync -a twice", || programs::rsync(&mut mounted("rsync"), 200)),
        ("tar there and back", || programs::tar(&mut mounted("tar"), 200)),
        ("git", || programs::git(&mut mounted("git"), 150)),
        ("cargo", || programs::cargo(&mut mounted("cargo"))),
        ("sqlite in both journal modes", || programs::sqlite(&mut mounted("sqlite"), 2000)),
        ("saves by rename", || programs::editors(&mut mounted("editors"), 100)),
        ("equal content once", || dedup::same_and_changed(160)),
        ("at most R copies", || dedup::copies(3, 200)),
        ("at most R copies, R = 8", || dedup::copies(8, 400)),
        ("epochs", dedup::epochs),
        ("owners", dedup::owners),
        ("space comes back", || dedup::space_comes_back(200)),
        ("any two of six directories lost", every_pair),
        ("directories lost under writers", || loss::lost_under_writers(&[3, 5], 6, Duration::from_secs(1))),
        ("the same of eight", || loss::lost_under_writers(&[0, 7], 8, Duration::ZERO)),
        ("beyond parity", loss::beyond_parity),
        ("the state directory lost, with two directories", || loss::lost_state_directory(&[0, 3], 200)),
        ("every damage in every directory", || damage::damaged_shards(&ALL, &[&[0], &[1], &[2], &[3], &[4], &[5]], 6)),
        ("every damage in two directories", || damage::damaged_shards(&ALL, &[&[0, 1], &[1, 4], &[3, 5]], 6)),
        ("directories exchanged", damage::swapped_directories),
        ("older copies of two directories", damage::old_copies),
        ("the whole volume back in time", damage::rolled_back_volume),
        ("healing behind reads", damage::background_healing),
        ("one directory hangs", || damage::hanging_directories(1, 60)),
        ("two directories hang", || damage::hanging_directories(2, 60)),
        ("two directories are slow", || damage::slow_directories(Duration::from_secs(1))),
        ("two directories fail", damage::failing_directories),
        ("too many directories fail", damage::too_many_failing),
        ("a failure while healing", damage::failing_while_healing),
        ("kills while healing", || damage::killed_while_healing(60)),
        ("random operations as the model has it", || load::random_operations(12, 4000)),
        ("the same without two directories", || load::random_operations_degraded(4000)),
        ("100,000 entries in a directory", || load::large_directory(100_000)),
        ("64 writers and 64 listers", || load::crowd(64, 64, Duration::from_secs(60))),
        ("full disks", || space::full(64)),
        ("full disks, large", || space::full(256)),
        ("figures", figures),
    ]
}

fn mounted(name: &str) -> TestVolume {
    Builder::new(name).lifetime(Duration::from_secs(1800)).mount()
}

fn every_pair() -> String {
    let pairs: Vec<[usize; 2]> = (0..6).flat_map(|a| (a + 1..6).map(move |b| [a, b])).collect();
    let sets: Vec<&[usize]> = pairs.iter().map(|pair| &pair[..]).collect();
    loss::lost_directories(&sets, 60)
}

/// What the benchmark programs print, if they are built.
fn figures() -> String {
    let mut lines = Vec::new();
    for (program, args) in [("bench-pipeline", &[] as &[&str]), ("bench-mount", &[])] {
        match sibling(program) {
            None => lines.push(format!("{program} is not built (cargo build --release -p brine-benches)")),
            Some(path) => {
                let finished = run_for(Command::new(path).args(args), Duration::from_secs(1800)).expect_success();
                lines.push(format!("{program}\n{}", finished.stdout.trim_end()));
            }
        }
    }
    lines.join("\n")
}
