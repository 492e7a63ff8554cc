//! `accept THEME`: the points a release must pass, in their long form, a line each.
//!
//! A theme is a file beside this one with a list of points; what a point does is told in `brine_tests::scenario`.
//! Exit code 0 if all pass, 1 if any fails, 2 on wrong use. The details of a failure go to standard error.

mod crash;
mod exec;
mod posix;
mod storage;
mod versions;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use brine_tests::environment::{brine, require_fuse};

const HELP: &str = "\
accept: what a release must pass

  accept THEME [--only TEXT] [--list] [--beside N]

Themes: storage, crash, posix, versions, exec. Prints `PASS|FAIL name: detail` a point.
With --beside N points run beside each other, each in a process of its own; figures are then those of a busy machine.
Needs root, /dev/fuse and the program built beside this one.
BRINE_TEST_SEED repeats a run, BRINE_TEST_DIR says where volumes are made, BRINE_TEST_RUNS how long long points are.
";

/// How many runs a long point makes, unless BRINE_TEST_RUNS says otherwise.
fn runs(usual: usize) -> usize {
    std::env::var("BRINE_TEST_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(usual)
}

/// One point: its name, and the story that panics unless it holds and else tells in a sentence what was done.
pub type Point = (&'static str, fn() -> String);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let only = value("--only").cloned().unwrap_or_default();
    let points = match args.first().map(String::as_str) {
        Some("storage") => storage::points(),
        Some("crash") => crash::points(),
        Some("posix") => posix::points(),
        Some("versions") => versions::points(),
        Some("exec") => exec::points(),
        Some("--help" | "-h") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    // `--point`: exactly this one, as `--beside` asks for it.
    let exact = value("--point");
    let wanted = |name: &str| exact.map_or(name.contains(&only), |exact| name == exact);
    let points: Vec<Point> = points.into_iter().filter(|(name, _)| wanted(name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        points.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    if points.is_empty() {
        eprintln!("accept: no point of this theme has {only:?} in its name; --list shows them");
        return ExitCode::from(2);
    }
    if let Err(reason) = story(|| {
        require_fuse();
        brine().display().to_string()
    }) {
        println!("FAIL environment: {}", first_line(&reason));
        return ExitCode::FAILURE;
    }
    let beside = match value("--beside").map(|count| count.parse::<usize>()) {
        None => 1,
        Some(Ok(count)) if count > 0 => count,
        Some(_) => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    let failed = if beside > 1 {
        run_beside(&args[0], &points, beside)
    } else {
        points.into_iter().filter(|&(name, point)| !passes(name, point)).count()
    };
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs points in processes of their own, `beside` at a time, the last of the list (the long ones) first. Returns how many
/// failed.
fn run_beside(theme: &str, points: &[Point], beside: usize) -> usize {
    let program = std::env::current_exe().expect("the path of this program");
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..beside.min(points.len()) {
            scope.spawn(|| {
                while let Some((name, _)) = points.iter().rev().nth(next.fetch_add(1, Ordering::Relaxed)) {
                    let status = Command::new(&program).args([theme, "--point", name]).status();
                    if !status.is_ok_and(|status| status.success()) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failed.into_inner()
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
