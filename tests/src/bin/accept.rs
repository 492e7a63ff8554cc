//! `accept storage`: the points a storage release must pass, in their long form, a line each.
//!
//! Exit code 0 if all pass, 1 if any fails, 2 on wrong use. The details of a failure go to standard error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brine_tests::command::run_for;
use brine_tests::environment::{brine, require_fuse, sibling};
use brine_tests::scenario::damage::{self, ALL};
use brine_tests::scenario::{crash, dedup, load, loss, programs, refusals, secrets, space};
use brine_tests::{Builder, TestVolume};

const HELP: &str = "\
accept: what a release must pass

  accept storage [--only TEXT] [--list]

Prints `PASS|FAIL name: detail` a point. Needs root, /dev/fuse and the program built beside this one.
BRINE_TEST_SEED repeats a run, BRINE_TEST_DIR says where volumes are made.
";

/// One point: its name, and the story that panics unless it holds.
type Point = (&'static str, fn() -> String);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let only = args.iter().position(|arg| arg == "--only").and_then(|at| args.get(at + 1)).cloned().unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("storage") => {}
        Some("--help" | "-h") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    }
    let points: Vec<Point> = storage().into_iter().filter(|(name, _)| name.contains(&only)).collect();
    if args.iter().any(|arg| arg == "--list") {
        points.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = story(|| {
        require_fuse();
        brine().display().to_string()
    }) {
        println!("FAIL environment: {}", first_line(&reason));
        return ExitCode::FAILURE;
    }
    let failed = points.into_iter().filter(|&(name, point)| !passes(name, point)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every point, cheap ones first.
fn storage() -> Vec<Point> {
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
        ("a daemon that dies is replaced", crash::supervised),
        ("random operations as the model has it", || load::random_operations(12, 4000)),
        ("the same without two directories", || load::random_operations_degraded(4000)),
        ("100,000 entries in a directory", || load::large_directory(100_000)),
        ("64 writers and 64 listers", || load::crowd(64, 64, Duration::from_secs(60))),
        ("full disks", || space::full(64)),
        ("full disks, large", || space::full(256)),
        ("kills under load", || crash::kills(100)),
        ("power cuts under load", || crash::power_cuts(25)),
        ("kills with two directories lost", || crash::kill_and_lose(15)),
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

/// Runs one point and prints its line.
fn passes(name: &str, point: fn() -> String) -> bool {
    let started = Instant::now();
    let result = story(point);
    let took = started.elapsed().as_secs_f64();
    match &result {
        Ok(detail) => println!("PASS {name}: {detail} ({took:.1} s)"),
        Err(reason) => {
            println!("FAIL {name}: {} ({took:.1} s)", first_line(reason));
            eprintln!("--- {name}\n{reason}\n---");
        }
    }
    result.is_ok()
}

/// The story's sentence, or what it panicked with and where.
fn story(story: fn() -> String) -> Result<String, String> {
    let place = Arc::new(Mutex::new(String::new()));
    let noted = place.clone();
    std::panic::set_hook(Box::new(move |info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let mut noted = noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The first panic is the cause; a second comes from a thread that waited for it.
        if noted.is_empty() {
            *noted = format!("{} [{at}]", text_of(info.payload()));
        }
    }));
    let result = catch_unwind(AssertUnwindSafe(story));
    let _ = std::panic::take_hook();
    result.map_err(|payload| {
        let noted = place.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if noted.is_empty() { text_of(&*payload) } else { noted }
    })
}

fn text_of(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason")
}
