//! What it costs to run a program in a sandbox of its own, beside running it plainly and beside other sandboxes.
//!
//! The sides are interleaved: one run each, over and over, so that a busy moment of the machine hits all of them. The
//! program is a static one that does nothing. No filesystem is mounted: this is the exec side alone, called in process.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use brine_exec::{Config, ExitCause, Identity, Plan, Sandboxes, View, ViewAccess};
use lexopt::{Arg, Parser, ValueExt};
use serde_json::json;

const HELP: &str = "\
Runs a static program that does nothing: plainly, in pooled sandboxes, in sandboxes made on demand, and, if they are
installed, in bubblewrap and runc; interleaved. Root.

bench-exec [--runs N] [--parallel N] [--json]
  --runs N      runs of each side (default 300)
  --parallel N  then N at once, pooled (default 50; 0 leaves it out)
  --json        one JSON object instead of tables
";

struct Options {
    runs: usize,
    parallel: usize,
    json: bool,
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { runs: 300, parallel: 50, json: false };
    let mut parser = Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("runs") => options.runs = parser.value()?.parse()?,
            Arg::Long("parallel") => options.parallel = parser.value()?.parse()?,
            Arg::Long("json") => options.json = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    brine_exec::spawner::enter();
    match options() {
        Ok(Some(options)) => match Bench::new().and_then(|bench| bench.all(&options)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench-exec: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-exec: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

type Failure = Box<dyn std::error::Error>;

/// Times of one thing, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e6);
    }

    fn part(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(((sorted.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

struct Bench {
    directory: PathBuf,
    program: PathBuf,
    pooled: Sandboxes,
    cold: Sandboxes,
}

impl Bench {
    fn new() -> Result<Self, Failure> {
        let directory = std::env::temp_dir().join(format!("brine-bench-exec-{}", std::process::id()));
        fs::create_dir_all(directory.join("exec"))?;
        let program = directory.join("exec/true");
        compile(&program)?;
        let start = |name: &str, of_kind: usize| {
            let mut config = Config::new(&format!("bench-{name}-{}", std::process::id()), &directory);
            config.pool.of_kind = of_kind;
            config.pool.all = of_kind;
            Sandboxes::start(config)
        };
        Ok(Self { pooled: start("pooled", 16)?, cold: start("cold", 0)?, program, directory })
    }

    fn plan(&self) -> Plan {
        let program =
            View { source: "exec/true".into(), ino: None, at: "/mnt/exec/true".into(), access: ViewAccess::Read };
        Plan::new(Identity { uid: 0, gid: 0, groups: Vec::new() }, program)
    }

    fn all(&self, options: &Options) -> Result<(), Failure> {
        let bubblewrap = bubblewrap(&self.program);
        let runc = runc(&self.directory, &self.program)?;
        let mut sides: Vec<(&str, Times)> = Vec::new();
        let mut steps: Vec<(&str, Times)> = Vec::new();
        let mut add = |name: &'static str, time: Duration, to_steps: bool| {
            let list = if to_steps { &mut steps } else { &mut sides };
            match list.iter_mut().find(|(found, _)| *found == name) {
                Some((_, times)) => times.add(time),
                None => list.push((name, Times(vec![time.as_secs_f64() * 1e6]))),
            }
        };
        let plan = self.plan();
        let mut pooled = 0;
        for round in 0..options.runs + WARM_UP {
            let counts = round >= WARM_UP;
            let mut side = |name: &'static str, run: &mut dyn FnMut() -> Result<(), Failure>| {
                let start = Instant::now();
                run()?;
                if counts {
                    add(name, start.elapsed(), false);
                }
                Ok::<(), Failure>(())
            };
            let mut to_main = Duration::ZERO;
            side("plain", &mut || {
                let start = Instant::now();
                let mut child = quiet(&mut Command::new(&self.program)).spawn()?;
                to_main = start.elapsed();
                child.wait()?;
                Ok(())
            })?;
            let mut outcome = None;
            side("pooled", &mut || run(&self.pooled, &plan).map(|found| outcome = Some(found)))?;
            side("on demand", &mut || run(&self.cold, &plan).map(drop))?;
            for (name, command) in [("bubblewrap", &bubblewrap), ("runc", &runc)] {
                if let Some(command) = command {
                    side(name, &mut || run_other(command))?;
                }
            }
            if let (Some(outcome), true) = (outcome, counts) {
                pooled += usize::from(outcome.steps.pooled);
                add("plain: fork to exec done", to_main, true);
                add("1 promised", outcome.steps.admitted, true);
                add("2 has a sandbox", outcome.steps.sandbox, true);
                add("3 exec done", outcome.steps.started, true);
                add("4 program ended", outcome.steps.ended, true);
            }
        }
        let parallel = self.parallel(options.parallel)?;
        let plain = sides.iter().find(|(name, _)| *name == "plain").map_or(f64::NAN, |(_, times)| times.part(0.5));
        if options.json {
            let rows = |list: &[(&str, Times)]| -> Vec<serde_json::Value> {
                let row = |(name, times): &(&str, Times)| json!({ "name": name, "p50_us": times.part(0.5), "p99_us": times.part(0.99), "runs": times.0.len() });
                list.iter().map(row).collect()
            };
            let parallel = rows(&[("parallel", parallel)]);
            println!(
                "{}",
                json!({ "sides": rows(&sides), "steps": rows(&steps), "pooled": pooled, "parallel": parallel })
            );
            return Ok(());
        }
        println!("{:<28} {:>10} {:>10} {:>8}", "whole run, us", "p50", "p99", "x plain");
        for (name, times) in &sides {
            println!(
                "{name:<28} {:>10.0} {:>10.0} {:>8.2}",
                times.part(0.5),
                times.part(0.99),
                times.part(0.5) / plain
            );
        }
        println!(
            "\n{:<28} {:>10} {:>10}   ({pooled} of {} found a sandbox ready)",
            "pooled, from the request", "p50", "p99", options.runs
        );
        for (name, times) in &steps {
            println!("{name:<28} {:>10.0} {:>10.0}", times.part(0.5), times.part(0.99));
        }
        if !parallel.0.is_empty() {
            println!(
                "\n{:<28} {:>10.0} {:>10.0}",
                format!("{} at once, each", options.parallel),
                parallel.part(0.5),
                parallel.part(0.99)
            );
        }
        Ok(())
    }

    fn parallel(&self, count: usize) -> Result<Times, Failure> {
        let mut times = Times::default();
        for _ in 0..if count == 0 { 0 } else { 4 } {
            let each: Vec<Result<Duration, String>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..count)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut plan = self.plan();
                            plan.limits.memory_bytes = 64 << 20;
                            let start = Instant::now();
                            run(&self.pooled, &plan).map(|_| start.elapsed()).map_err(|error| error.to_string())
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or(Err("a thread failed".into()))).collect()
            });
            for time in each {
                times.add(time?);
            }
        }
        Ok(times)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.pooled.stop();
        self.cold.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Rounds that are not counted: caches fill, the pool learns.
const WARM_UP: usize = 20;

fn run(sandboxes: &Sandboxes, plan: &Plan) -> Result<brine_exec::Outcome, Failure> {
    let null = || -> std::io::Result<Option<OwnedFd>> {
        Ok(Some(File::options().read(true).write(true).open("/dev/null")?.into()))
    };
    let outcome = sandboxes.run(plan, [null()?, null()?, null()?])?;
    if outcome.cause == ExitCause::Exited(0) { Ok(outcome) } else { Err(format!("{outcome:?}").into()) }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn run_other(command: &[String]) -> Result<(), Failure> {
    let status = quiet(Command::new(&command[0]).args(&command[1..])).status()?;
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", command[0]).into()) }
}

/// A static program that does nothing.
fn compile(at: &Path) -> Result<(), Failure> {
    let source = at.with_extension("c");
    fs::write(&source, "int main(void) { return 0; }\n")?;
    let status = Command::new("cc").args(["-O2", "-static", "-o"]).arg(at).arg(&source).status()?;
    fs::remove_file(source)?;
    if !status.success() {
        return Err("cc cannot build a static program; install libc6-dev".into());
    }
    fs::set_permissions(at, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn installed(name: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|directory| directory.join(name).is_file())
}

/// Bubblewrap with the same isolation.
fn bubblewrap(program: &Path) -> Option<Vec<String>> {
    let shown = program.to_string_lossy().into_owned();
    let words = "--unshare-all --die-with-parent --new-session --tmpfs / --ro-bind /usr /usr --symlink usr/bin /bin \
                 --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --cap-drop ALL";
    let command = ["bwrap"].into_iter().chain(words.split_whitespace()).map(str::to_owned);
    let command: Vec<String> =
        command.chain(["--ro-bind".into(), shown.clone(), "/program".into(), "/program".into()]).collect();
    (installed("bwrap") && run_other(&command).is_ok()).then_some(command)
}

/// runc with a bundle of its own.
fn runc(directory: &Path, program: &Path) -> Result<Option<Vec<String>>, Failure> {
    if !installed("runc") {
        return Ok(None);
    }
    let bundle = directory.join("bundle");
    fs::create_dir_all(bundle.join("rootfs"))?;
    fs::copy(program, bundle.join("rootfs/true"))?;
    let made = quiet(Command::new("runc").args(["spec", "--bundle"]).arg(&bundle)).status()?;
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/true"]);
    fs::write(&path, spec.to_string())?;
    let command = ["runc", "run", "--bundle"].map(str::to_owned).into_iter();
    let command: Vec<String> =
        command.chain([bundle.to_string_lossy().into_owned(), format!("brine-bench-{}", std::process::id())]).collect();
    Ok((made.success() && run_other(&command).is_ok()).then_some(command))
}
