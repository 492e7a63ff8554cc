//! That crashes and faults lose nothing.

use std::process::Command;
use std::time::Duration;

use brine_tests::command::run_for;
use brine_tests::environment::sibling;
use brine_tests::scenario::{crash, kills, takeover};

use crate::{Point, runs};

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("a daemon that dies is replaced", crash::supervised),
        ("a stopped writer's place is taken", takeover::stopped_writer),
        ("every backing call fails in every way", || prove(&["faults"])),
        ("power cuts in memory, ten minutes", || prove(&["power-cuts", "600"])),
        ("power cuts under load", || crash::power_cuts(25)),
        ("kills with two directories lost", || crash::kill_and_lose(15)),
        ("kills under load", || crash::kills(30)),
        ("a thousand kills under a mixed load", || kills::cycles(runs(1000) as u64)),
    ]
}

/// What the program of the proofs in memory prints last.
fn prove(args: &[&str]) -> String {
    let program = sibling("prove").expect("prove is not built (cargo build --release -p brine-proofs)");
    let finished = run_for(Command::new(program).args(args), Duration::from_secs(3600)).expect_success();
    finished.stdout.lines().last().unwrap_or_default().to_owned()
}
