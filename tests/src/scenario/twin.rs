//! Operations of every kind, at random, beside a disk of this machine; and what is left of them when the daemon is killed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::environment::temp_dir;
use crate::twin::{Op, State, Tree, compare, difference, operations, shorten};
use crate::{Builder, Random, TestVolume, seed};

/// Sequences tried when one that fails is shortened.
const TRIES: usize = 120;
/// Operations shown of a sequence that cannot be shortened further.
const SHOWN: usize = 60;

fn mounted(name: &str, rounds: u64, steps: usize) -> TestVolume {
    let lifetime = Duration::from_secs(300 + rounds * (20 + steps as u64 / 20));
    Builder::new(name).directories(3).geometry(2, 1).option("allow_other,suid,dev").lifetime(lifetime).mount()
}

/// Trees of the disk, removed when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new() -> Self {
        Self(temp_dir("twin-disk"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Only temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `rounds` times `steps` operations, in a new tree each round, with remounting in between. What differs is shortened and
/// told with its seed.
#[track_caller]
pub fn operations_of_every_kind(rounds: u64, steps: usize) -> String {
    let seed = seed("operations of every kind");
    let mut volume = mounted("twin", rounds, steps);
    let disk = Disk::new();
    let mut left: Vec<(String, State)> = Vec::new();
    for round in 0..rounds {
        let ops = operations(seed.wrapping_add(round), steps, true);
        let name = format!("round-{round}");
        let mut tree = Tree::new(volume.path(&name));
        let mut twin = Tree::new(disk.0.join(&name));
        if let Err((at, told)) = compare(&ops, &mut tree, &mut twin, || volume.remount()) {
            // What is open keeps the volume from being unmounted.
            drop((tree, twin));
            let mut tried = 0;
            let short = shorten(&ops[..=at], TRIES, |ops| {
                tried += 1;
                let name = format!("short-{tried}");
                let (mut tree, mut twin) = (Tree::new(volume.path(&name)), Tree::new(disk.0.join(&name)));
                compare(ops, &mut tree, &mut twin, || volume.remount()).is_err()
            });
            let shown = &short[short.len().saturating_sub(SHOWN)..];
            panic!("seed {seed}, round {round}, operation {at}: {told}\nthe same with only: {shown:#?}");
        }
        left.push((name, twin.state()));
        tree.close();
    }
    volume.remount();
    expect_states(&volume, &left);
    volume.expect_clean();
    format!("{} operations in {rounds} trees as on a disk, seed {seed}", rounds * steps as u64)
}

#[track_caller]
fn expect_states(volume: &TestVolume, left: &[(String, State)]) {
    for (name, state) in left {
        let found = Tree::at(volume.path(name)).state();
        if let Some(difference) = difference(&found, state) {
            panic!("{name} is not what it was: {difference}");
        }
    }
}

/// The same, with the daemon killed at a random moment of each round: then the tree must be what the disk's was after some
/// operation, not before the last that was acknowledged. What earlier rounds left must stay.
#[track_caller]
pub fn killed_in_between(rounds: u64, steps: usize) -> String {
    let seed = seed("operations and kills");
    let mut random = Random::new(seed);
    let mut volume = mounted("twin-killed", rounds, steps);
    let disk = Disk::new();
    let mut left: Vec<(String, State)> = Vec::new();
    let (mut lost, mut kept) = (0, 0);
    for round in 0..rounds {
        let end = 1 + random.below(steps as u64) as usize;
        let ops = operations(seed.wrapping_add(round), end, false);
        let name = format!("round-{round}");
        let mut tree = Tree::new(volume.path(&name));
        let mut twin = Tree::new(disk.0.join(&name));
        volume.sync();
        // Of the last acknowledged operation, and of each after it.
        let mut states = vec![twin.state()];
        for (at, op) in ops.iter().enumerate() {
            let (here, there) = (tree.carry_out(op), twin.carry_out(op));
            assert_eq!(here, there, "seed {seed}, round {round}, operation {at}, {op:?}");
            if matches!(op, Op::Sync { .. } | Op::SyncDir { .. }) && here == "done" {
                states.clear();
            }
            let state = twin.state();
            if states.last() != Some(&state) {
                states.push(state);
            }
        }
        volume.kill_daemon();
        drop(tree);
        volume.mount();
        let found = Tree::at(volume.path(&name)).state();
        let Some(moment) = states.iter().rposition(|state| *state == found) else {
            let near: Vec<String> = states.iter().filter_map(|state| difference(&found, state)).collect();
            panic!(
                "seed {seed}, round {round}, killed after {end} operations: the tree is none of the {} it may be;\n\
                 the first: {}\nthe last: {}\nthe operations before: {:#?}",
                states.len(),
                near.first().cloned().unwrap_or_default(),
                near.last().cloned().unwrap_or_default(),
                &ops[ops.len().saturating_sub(SHOWN)..]
            );
        };
        lost += states.len() - 1 - moment;
        kept += moment;
        volume.sync();
        left.push((name, found));
    }
    expect_states(&volume, &left);
    volume.expect_clean();
    format!(
        "killed {rounds} times: of the changes nobody had synced {kept} were kept and {lost} lost, always the latest; seed {seed}"
    )
}
