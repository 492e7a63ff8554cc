//! `prove`: the proofs of this crate at any length, for `./run accept crash`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use brine_proofs::faults::{Part, enumerate, markdown};
use brine_proofs::power_cut::{Plan, Summary, prove};
use brine_proofs::random::{Random, run_seed};

const HELP: &str = "\
prove: crashes and faults lose nothing, below the mount and in memory

  prove power-cuts SECONDS    random sessions, each cut off at some hundred moments, for so long
  prove faults                every call of a backing directory fails once, with every errno and partial result

Ends with 0 if nothing was lost. A failure says how it can be repeated: BRINE_TEST_SEED.
";

/// Geometries that are tried by turns: data and parity shards.
const GEOMETRIES: [(usize, usize); 4] = [(4, 2), (2, 1), (1, 1), (2, 2)];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seconds = args.get(1).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    match (args.first().map(String::as_str), seconds) {
        (Some("power-cuts"), Some(time)) => println!("{}", power_cuts(time)),
        (Some("faults"), _) => {
            for part in [Part::Front, Part::Behind] {
                match enumerate((4, 2), part, true) {
                    Ok((table, runs)) => {
                        print!("{}", markdown(&table));
                        let sites = table.len();
                        println!("{runs} runs, {sites} call sites; nothing acknowledged was lost, no byte was wrong");
                    }
                    Err(what) => {
                        eprintln!("{what}");
                        return ExitCode::FAILURE;
                    }
                }
            }
        }
        (Some("--help" | "-h"), _) => print!("{HELP}"),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn power_cuts(time: Duration) -> Summary {
    let random = Random::new(run_seed("power cuts"));
    let started = Instant::now();
    let mut total = Summary::default();
    for geometry in GEOMETRIES.iter().cycle() {
        let seed = random.next();
        let plan = Plan { seed, geometry: *geometry, sessions: 1, chain: 1, ops: 200, cuts: 300, ..Plan::default() };
        total.add(&prove(&plan));
        if started.elapsed() >= time {
            break;
        }
    }
    total
}
