//! A mounted volume beside a plain directory and gocryptfs, in one run on one disk: a table with ratios, and the bars
//! that brine has set itself, each with PASS or MISS.
//!
//! Sides take turns workload by workload, so that a change in the machine's load falls on all of them. Everything made
//! is removed again, whatever happens; only daemons that this program started are ever ended.

mod bars;
mod daemon;
mod data;
mod facts;
mod failure;
mod metrics;
mod options;
mod place;
mod report;
mod sides;
mod watch;
mod workloads;

use std::process::ExitCode;

use data::Pool;
use facts::Facts;
use failure::{Failure, Result};
use metrics::Results;
use options::Options;
use place::{Place, interrupted};
use sides::{Side, set_up};
use watch::Watch;
use workloads::{FAMILIES, Family, Stage};

fn main() -> ExitCode {
    match Options::parse() {
        Ok(None) => {
            print!("{}", options::HELP);
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => match run(&options) {
            Ok(code) => code,
            Err(failure) => {
                eprintln!("bench-mount: {failure}");
                ExitCode::from(1)
            }
        },
        Err(error) => {
            eprintln!("bench-mount: {error}\nTry --help.");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    place::catch_signals()?;
    let families: Vec<&Family> = FAMILIES.into_iter().filter(|family| family.is_wanted(options)).collect();
    // Declared before the sides: they are unmounted first, then the place is removed.
    let place = Place::new(options)?;
    let facts = Facts::gather(options, &place)?;
    let watch = Watch::new();
    let mut sides = set_up(options, &place, &watch)?;
    let mut pool = Pool::new();
    let mut results = Results::default();

    for family in families {
        for repeat in 0..options.repeat {
            run_family(family, repeat, options, &place, &mut sides, &mut pool, &mut results)?;
        }
    }
    drop(sides);

    let memory = watch.peaks();
    let bars = bars::judge(options, &results, &memory);
    if options.json {
        println!("{}", report::json(options, &facts, &results, &memory, &bars));
    } else {
        print!("{}", report::text(options, &facts, &results, &memory, &bars));
    }
    Ok(if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// One repeat of the workloads that work on the same files, all sides in turn within each workload.
fn run_family(
    family: &Family,
    repeat: usize,
    options: &Options,
    place: &Place,
    sides: &mut [Box<dyn Side>],
    pool: &mut Pool,
    results: &mut Results,
) -> Result<()> {
    (family.prepare)(place, options, repeat)?;
    for workload in family.workloads.iter().filter(|workload| family.runs(workload, options)) {
        // Who begins changes with each repeat: the first after a pause has a small advantage.
        let count = sides.len();
        for turn in 0..count {
            if interrupted() {
                return Err(Failure::new("interrupted; what was made is removed"));
            }
            let side = &mut sides[(turn + repeat) % count];
            if !workload.suits(side.as_ref()) || results.leaves_out(side.name(), family.name, repeat) {
                continue;
            }
            if !options.json {
                eprintln!("{} {} {}", repeat + 1, workload.name, side.name());
            }
            place.settle()?;
            let mut stage = Stage { side: side.as_mut(), place, options, pool, repeat };
            match (workload.run)(&mut stage) {
                Ok(samples) => results.add(side.name(), samples),
                Err(failure) => give_up(family, workload.name, repeat, side.as_mut(), results, &failure),
            }
        }
    }
    for side in sides.iter_mut() {
        if results.is_lost(side.name()) {
            continue;
        }
        if let Err(failure) = (family.clean)(side.as_mut(), repeat) {
            give_up(family, "cleaning", repeat, side.as_mut(), results, &failure);
        }
    }
    Ok(())
}

/// The rest of this repeat is left out for that side; later ones go on if it can be mounted afresh.
fn give_up(
    family: &Family,
    workload: &'static str,
    repeat: usize,
    side: &mut dyn Side,
    results: &mut Results,
    failure: &Failure,
) {
    let mut what = failure.to_string();
    if let Err(failure) = side.unmount() {
        what = format!("{what}; then {failure}");
    }
    let lost = side.mount().err();
    if let Some(failure) = &lost {
        what = format!("{what}; then {failure}; left out from here on");
    }
    eprintln!("bench-mount: {workload} on {}: {what}", side.name());
    results.fail(side.name(), family.name, workload, repeat, what, lost.is_some());
}
