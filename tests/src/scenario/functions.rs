//! Functions by the thousand: that nothing of them stays, that their callers may die at any moment, and how long they
//! take beside the same program run plainly.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::random::Random;
use crate::volume::{Builder, TestVolume, brine_command, wait_until};
use crate::{program, run};

/// Callers at a time.
const CALLERS: usize = 8;

fn volume(name: &str) -> TestVolume {
    Builder::new(name).directories(2).geometry(1, 1).lifetime(Duration::from_secs(4 * 3600)).mount()
}

/// A function that is a shell script, and its policy: options of `brine exec policy`.
///
/// # Panics
/// If it cannot be made.
#[track_caller]
pub fn function(volume: &TestVolume, name: &str, body: &str, policy: &[&str]) -> PathBuf {
    let path = volume.path("exec").join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    if !policy.is_empty() {
        run(brine_command(&["exec", "policy"]).arg(&path).args(policy)).expect_success();
    }
    path
}

/// What can pile up, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Litter {
    /// Processes that descend from the daemon.
    processes: usize,
    /// Control groups of the volume.
    groups: usize,
    /// Mounts of the volume in the daemon's namespace, which is everybody's, and all in its spawner's.
    mounts: usize,
    /// Descriptors of the daemon and its spawner, but for the files that hold the volume: those are kept open by age.
    descriptors: usize,
    /// Temporary files and directories of the volume.
    temporary: usize,
}

fn parents() -> Vec<(i32, i32)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?))
    };
    pids.filter_map(parent).collect()
}

fn descendants(of: i32) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![of];
    let mut at = 0;
    while at < found.len() {
        let above = found[at];
        found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}

fn count(path: &str) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Control groups that are a volume's, by its id.
pub fn control_groups(id: &str) -> usize {
    groups(Path::new("/sys/fs/cgroup"), id, 4)
}

/// Directories below `dir` whose path has `label` in it.
fn groups(dir: &Path, label: &str, depth: usize) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    entries
        .map(|entry| {
            let own = usize::from(entry.path().to_string_lossy().contains(label));
            own + if depth > 0 { groups(&entry.path(), label, depth - 1) } else { 0 }
        })
        .sum()
}

impl Litter {
    fn of(volume: &TestVolume) -> Self {
        let daemon = volume.daemon().expect("mounted").pid;
        let below = descendants(daemon);
        let label = volume.status()["volume"].as_str().expect("the volume's id").to_owned();
        let spawner = below.first().copied().unwrap_or(daemon);
        let lines = |pid: i32, of: &str| {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            mounts.lines().filter(|line| line.contains(of)).count()
        };
        let holds = |link: &Path| link.starts_with(volume.root());
        let open = |pid: i32| {
            let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            links.filter(|link| fs::read_link(link.path()).is_ok_and(|target| !holds(&target))).count()
        };
        // Others of this machine have theirs there.
        let shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let shared = shared.filter(|entry| entry.file_name().to_string_lossy().contains(&label)).count();
        Self {
            processes: below.len(),
            groups: control_groups(&label),
            mounts: lines(daemon, &volume.root().display().to_string()) + lines(spawner, ""),
            descriptors: open(daemon) + open(spawner),
            temporary: shared + count(&format!("/run/brine-exec/{label}")),
        }
    }

    /// Whether there is no more of anything than in `other`.
    fn within(&self, other: &Self) -> bool {
        self.processes <= other.processes
            && self.groups <= other.groups
            && self.mounts <= other.mounts
            && self.descriptors <= other.descriptors
            && self.temporary <= other.temporary
    }
}

/// Memory in use when nothing runs, KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Of the daemon and its spawner, shared with nobody.
    own: i64,
    /// The metadata database. Its pages are kept in memory, up to 64 MiB; records of runs, of which 10,000 are kept, are
    /// in it.
    metadata: i64,
}

impl Memory {
    fn of(volume: &TestVolume) -> Self {
        let daemon = volume.daemon().expect("mounted").pid;
        let anonymous = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse::<i64>().ok()).unwrap_or_default()
        };
        let spawner = descendants(daemon).first().map_or(0, |spawner| anonymous(*spawner));
        let size = |name: &str| fs::metadata(volume.state_dir().join(name)).map_or(0, |found| found.len() as i64 >> 10);
        Self { own: anonymous(daemon) + spawner, metadata: size("meta.db") }
    }

    /// What it grew by and what of that is not explained by the pages of the database, each of which takes some more in
    /// memory than in the file: once for the writer, and once, up to 8 MiB, for whoever reads all of it for a checkpoint,
    /// which is freed each time and kept by the C library for the next.
    fn unexplained(&self, since: &Self) -> i64 {
        self.own - since.own - (self.metadata - since.metadata) * 5 / 2
    }
}

/// Memory may differ by so much between two moments in which nothing runs, KiB: what the C library keeps.
const MEMORY_NOISE_KIB: i64 = 2048;

/// A function and what is expected of it.
struct Case {
    path: PathBuf,
    causes: &'static [&'static str],
    /// The launcher is killed while it runs.
    killed: bool,
}

fn cases(volume: &TestVolume) -> Vec<Case> {
    let small = ["--memory", "32M", "--scratch", "4M", "--pids", "16", "--timeout", "30s"];
    let case = |name: &str, body: &str, more: &[&str], causes| Case {
        path: function(volume, name, body, &[&small[..], more].concat()),
        causes,
        killed: false,
    };
    let mut cases = vec![
        case("fine", "echo fine", &[], &["exited"]),
        case("failing", "exit 3", &[], &["exited"]),
        case("crashing", "kill -SEGV $$", &[], &["signal"]),
        case("greedy", "x=x; while :; do x=$x$x; done", &[], &["memory"]),
        case("slow", "while :; do :; done", &["--timeout", "200ms"], &["timeout"]),
        case(
            "forking",
            "f() { f | f & }; f; sleep 0.2; exit 1",
            &["--timeout", "2s"],
            &["exited", "pids", "timeout", "memory", "signal"],
        ),
        case("leaving", "(setsid sleep 1000 >/dev/null 2>&1 &) ; exit 0", &[], &["exited"]),
        case(
            "filling",
            "dd if=/dev/zero of=/tmp/x bs=65536 2>/dev/null; exit 1",
            &[],
            &["exited", "scratch", "memory"],
        ),
    ];
    let mut killed = case("staying", "echo ready; while :; do sleep 0.05; done", &[], &["killed", "signal"]);
    killed.killed = true;
    cases.push(killed);
    cases
}

fn call(case: &Case) {
    let mut command = Command::new(&case.path);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start");
    if case.killed {
        let mut first = [0; 1];
        let _ = child.stdout.as_mut().expect("stdout").read(&mut first);
        child.kill().expect("kill");
    }
    // Also reads what it says.
    child.wait_with_output().expect("wait");
}

/// `runs` mixed runs by several callers at a time; nothing of them is left, and each has the record it should have.
pub fn soak(runs: usize) -> String {
    let mut volume = volume("exec-soak");
    let cases = cases(&volume);
    let batch = |first: usize, count: usize| {
        let next = std::sync::atomic::AtomicUsize::new(first);
        std::thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if number >= first + count {
                            return;
                        }
                        call(&cases[number % cases.len()]);
                    }
                });
            }
        });
    };
    // Warm: the pool has its size, caches are filled.
    let warm = (runs / 10).max(2 * cases.len());
    batch(0, warm);
    let ended = |volume: &TestVolume| {
        let text = run(brine_command(&["exec", "ps", "--json", "--at"]).arg(volume.mnt())).expect_success().stdout;
        serde_json::from_str::<Value>(&text).expect("JSON").as_array().is_some_and(Vec::is_empty)
    };
    assert!(wait_until(Duration::from_secs(60), || ended(&volume)), "runs go on that nobody waits for");
    std::thread::sleep(Duration::from_secs(2));
    let before = Litter::of(&volume);
    let mut memory = vec![Memory::of(&volume)];
    let mut after = before.clone();
    let third = (runs - warm.min(runs)) / 3;
    let runs = warm + 3 * third;
    for part in 0..3 {
        batch(warm + part * third, third);
        assert!(wait_until(Duration::from_secs(60), || ended(&volume)), "runs go on that nobody waits for");
        let clean = wait_until(Duration::from_secs(60), || {
            std::thread::sleep(Duration::from_millis(200));
            after = Litter::of(&volume);
            after.within(&before)
        });
        assert!(clean, "something piled up: {before:?} before, {after:?} after");
        memory.push(Memory::of(&volume));
    }
    // In the first third caches get their size.
    let unexplained = memory[3].unexplained(&memory[2]);
    assert!(unexplained < MEMORY_NOISE_KIB, "memory grows by {unexplained} KiB in {third} runs: {memory:?}");
    let mut log = brine_command(&["exec", "log", "--json", "-n", "100000", "--at"]);
    let records = run(log.arg(volume.mnt())).expect_success().stdout;
    let records: Value = serde_json::from_str(&records).expect("JSON");
    let records = records.as_array().expect("an array");
    // What was needed for that is given back.
    let mut told = Memory::of(&volume);
    let given_back = wait_until(Duration::from_secs(10), || {
        told = Memory::of(&volume);
        told.unexplained(&memory[3]) < 2 * MEMORY_NOISE_KIB
    });
    assert!(given_back, "telling of {} runs took memory for good: {told:?}, {:?} before", records.len(), memory[3]);
    assert!(records.len() >= runs.min(9_000), "{} records of {runs} runs", records.len());
    for record in records {
        let function = record["function"].as_str().unwrap_or_default();
        let case = cases.iter().find(|case| case.path.ends_with(function.trim_start_matches('/'))).expect("a function");
        let cause = record["cause"].as_str().unwrap_or_default();
        assert!(case.causes.contains(&cause), "{function} ended with {cause}: {record}");
    }
    volume.umount();
    format!(
        "{runs} mixed runs, {CALLERS} at a time; left: {after:?}, as before; memory after each third: {memory:?}, \
         {unexplained} KiB unexplained in the last; with all records told {told:?}"
    )
}

/// Callers, the spawner and the daemon are killed at random moments; afterwards nothing is left and runs work.
pub fn kills(times: usize) -> String {
    let mut volume = volume("exec-kills");
    let body = "echo ready; i=0; while [ $i -lt 20 ]; do sleep 0.01; i=$((i+1)); done";
    let path = function(&volume, "f", body, &["--memory", "32M", "--scratch", "1M"]);
    let mut random = Random::new(crate::seed("exec-kills"));
    let (mut callers, mut daemons) = (0, 0);
    for turn in 0..times {
        let mut children: Vec<_> = (0..4)
            .map(|_| {
                let mut command = Command::new(&path);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start")
            })
            .collect();
        std::thread::sleep(Duration::from_millis(random.below(60)));
        if turn % 5 == 4 {
            daemons += 1;
            volume.kill_daemon();
            volume.detach();
            volume.mount();
        } else {
            callers += 1;
            let at = random.below(children.len() as u64) as usize;
            let _ = children[at].kill();
        }
        for mut child in children {
            child.wait().expect("wait");
        }
    }
    let ended = || {
        let text = run(brine_command(&["exec", "log", "--json", "-n", "100000", "--at"]).arg(volume.mnt())).stdout;
        let rows: Value = serde_json::from_str(&text).unwrap_or_default();
        rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["cause"] != "running"))
    };
    assert!(wait_until(Duration::from_secs(60), ended), "a record says that a run goes on");
    run(Command::new(&path).stdin(Stdio::null())).expect_success();
    let litter = Litter::of(&volume);
    assert!(litter.processes <= 10, "more than the spawner and a pool: {litter:?}");
    volume.umount();
    format!("{callers} callers and {daemons} daemons killed; left: {litter:?}")
}

/// A program that does nothing: static, so that its own start is as short as can be.
fn nothing(at: &Path) -> PathBuf {
    let (source, out) = (at.join("nothing.c"), at.join("nothing"));
    fs::write(&source, "int main(void){return 0;}\n").expect("write");
    run(Command::new(program("gcc")).args(["-O2", "-static", "-o"]).arg(&out).arg(&source)).expect_success();
    out
}

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// `runs` interleaved runs of a program that does nothing: plainly from local disk, through exec/, and by bubblewrap if
/// it is installed; `pause` before each, so that none pays for what the one before left to be taken apart. Figures only:
/// what they should be depends on what else the machine does.
pub fn latency(runs: usize, pause: Duration) -> String {
    let mut volume = volume("exec-latency");
    let plain = nothing(volume.root());
    let function = volume.path("exec/nothing");
    fs::copy(&plain, &function).expect("copy");
    let bubblewrap = Path::new("/usr/bin/bwrap").exists();
    let mut sides: Vec<(&str, Vec<Duration>)> = vec![("plain", vec![]), ("exec", vec![])];
    if bubblewrap {
        sides.push(("bwrap", vec![]));
    }
    let command = |side: &str| match side {
        "plain" => Command::new(&plain),
        "exec" => Command::new(&function),
        _ => {
            let mut command = Command::new("/usr/bin/bwrap");
            command.args(["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib64"]);
            command.args(["/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind"]);
            command.arg(&plain).args(["/nothing", "/nothing"]);
            command
        }
    };
    for _ in 0..20 {
        run(&mut Command::new(&function)).expect_success();
    }
    for _ in 0..runs {
        for (side, times) in &mut sides {
            let mut command = command(side);
            std::thread::sleep(pause);
            let started = Instant::now();
            let status = command.status().expect("run");
            times.push(started.elapsed());
            assert!(status.success(), "{side}: {status}");
        }
    }
    let mut text = format!("{runs} interleaved runs, {} ms before each", pause.as_millis());
    let mut base = (1.0, 1.0);
    for (side, times) in &mut sides {
        times.sort_unstable();
        let (p50, p99) = (quantile(times, 0.5).as_secs_f64() * 1e3, quantile(times, 0.99).as_secs_f64() * 1e3);
        if *side == "plain" {
            base = (p50, p99);
        }
        text += &format!("; {side} p50 {p50:.2} ms ({:.1}x) p99 {p99:.2} ms ({:.1}x)", p50 / base.0, p99 / base.1);
    }
    let mut log = brine_command(&["exec", "log", "--json", "-n", "100000", "--at"]);
    let records = run(log.arg(volume.mnt())).expect_success().stdout;
    let records: Value = serde_json::from_str(&records).expect("JSON");
    for step in ["admitted_us", "sandbox_us", "started_us", "ended_us", "gone_us"] {
        let rows = records.as_array().expect("an array").iter();
        let mut steps: Vec<u64> = rows.filter_map(|row| row["steps"][step].as_u64()).collect();
        steps.sort_unstable();
        text += &format!("; {step} p50 {}", steps[steps.len() / 2]);
    }
    volume.umount();
    text
}

/// `many` runs at one time, all answered.
pub fn burst(many: usize) -> String {
    let mut volume = volume("exec-burst");
    let path = function(&volume, "f", "echo $1", &["--memory", "16M", "--scratch", "1M", "--pids", "8"]);
    let started = Instant::now();
    let children: Vec<_> = (0..many)
        .map(|number| {
            let mut command = Command::new(&path);
            command.arg(number.to_string()).stdout(Stdio::piped()).spawn().expect("start")
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let out = child.wait_with_output().expect("wait");
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), number.to_string(), "{:?}", out.status);
    }
    let took = started.elapsed();
    volume.umount();
    format!("{many} at once in {:.2} s", took.as_secs_f64())
}
