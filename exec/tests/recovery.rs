//! Everything comes back: after runs of every kind, after a spawner that died, after a daemon that was killed.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brine_exec::{Config, Error, ExitCause, RunId, Sandboxes};
use harness::{Place, limits};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// What the kernel holds for this process and its sandboxes, counted.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    descriptors: usize,
    spawner_descriptors: usize,
    mounts: usize,
    groups: usize,
    children: BTreeMap<String, usize>,
    namespaces: usize,
}

fn groups(label: &str) -> usize {
    fn count(directory: &Path, label: &str) -> usize {
        let Ok(entries) = fs::read_dir(directory) else { return 0 };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| {
                let own = usize::from(entry.path().to_string_lossy().contains(label));
                own + count(&entry.path(), label)
            })
            .sum()
    }
    count(Path::new("/sys/fs/cgroup"), label)
}

/// Processes below `root` in the tree of processes, by name.
fn descendants(root: u32) -> (BTreeMap<String, usize>, BTreeSet<String>) {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let (front, back) = stat.rsplit_once(") ").unwrap();
        let (pid, name) = front.split_once(" (").unwrap();
        let parent: u32 = back.split(' ').nth(1).unwrap().parse().unwrap();
        parents.insert(pid.parse::<u32>().unwrap(), (parent, name.to_owned()));
    }
    let mut names = BTreeMap::new();
    let mut namespaces = BTreeSet::new();
    for (pid, (_, name)) in &parents {
        let mut at = *pid;
        while at != root && at != 0 {
            at = parents.get(&at).map_or(0, |(parent, _)| *parent);
        }
        if at == root && *pid != root {
            *names.entry(name.clone()).or_default() += 1;
            for kind in ["mnt", "pid", "net", "user"] {
                let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"));
                namespaces.extend(link.map(|link| link.to_string_lossy().into_owned()));
            }
        }
    }
    (names, namespaces)
}

fn counts(place: &Place) -> Counts {
    let open = |pid: &str| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let spawner = place.sandboxes.status().spawner.unwrap();
    let (children, namespaces) = descendants(std::process::id());
    Counts {
        descriptors: open("self"),
        spawner_descriptors: open(&spawner.to_string()),
        mounts: fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count(),
        groups: groups(&label(place)),
        children,
        namespaces: namespaces.len(),
    }
}

fn label(place: &Place) -> String {
    place.volume.file_name().unwrap().to_string_lossy().replace("brine-exec-", "brine-")
}

/// The same again, when what ended has been cleared away.
fn settle(place: &Place, expected: &Counts) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = counts(place);
        if now == *expected {
            return;
        }
        assert!(Instant::now() < deadline, "left over: {now:#?}, and there were {expected:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// From now on this thread, and those it starts, do not see what others mount.
fn see_own_mounts_only() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// X15. The number of rounds is taken from the environment for longer soaks: `BRINE_SOAK_RUNS`.
#[test]
fn nothing_is_left_after_runs_of_every_kind() {
    let rounds = std::env::var("BRINE_SOAK_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(240) / 8;
    see_own_mounts_only();
    let place = Place::with(|config| config.pool.of_kind = 0);
    let small = |change: fn(&mut brine_exec::Limits)| {
        limits(|limits| {
            (limits.memory_bytes, limits.scratch_bytes, limits.pids) = (24 << 20, 4 << 20, 16);
            change(limits);
        })
    };
    let plans = [
        place.script("fine", "#!/bin/sh\nexit 0\n"),
        place.script("fails", "#!/bin/sh\nexit 3\n"),
        place.script("crashes", "#!/bin/sh\nkill -SEGV $$\n"),
        place.script("daemon", "#!/bin/sh\nsetsid sleep 1000 </dev/null >/dev/null 2>&1 &\n"),
        place.script("late", "#!/bin/sh\nsleep 1000\n").with_limits(small(|limits| {
            (limits.wall, limits.grace) = (Duration::from_millis(50), Duration::from_millis(20));
        })),
        place.probe(&["memory"]).with_limits(small(|_| {})),
        place.probe(&["disk"]).with_limits(small(|_| {})),
        place.probe(&["forks"]).with_limits(small(|_| {})),
    ];
    place.run(&plans[0]);
    let quiet = Counts { groups: groups(&label(&place)).min(5), ..counts(&place) };
    let deadline = Instant::now() + Duration::from_secs(10);
    while counts(&place).groups > quiet.groups && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    // What the first run left is being cleared away: until nothing changes any more.
    let mut before = counts(&place);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = counts(&place);
        if now == before {
            break;
        }
        before = now;
    }
    for _ in 0..rounds {
        for plan in &plans {
            let (outcome, _) = place.run(plan);
            assert_ne!(outcome.cause, ExitCause::SandboxFailed, "{outcome:?}");
        }
    }
    settle(&place, &before);
    let status = place.sandboxes.status();
    assert_eq!((status.ledger.runs, status.ledger.promised.memory_bytes, status.not_removed), (0, 0, 0));
}

#[test]
fn a_dead_spawner_loses_its_runs_and_is_started_again() {
    let place = Place::new();
    let plan = place.script("sleeps", "#!/bin/sh\nsleep 1000\n");
    let spawner = place.sandboxes.status().spawner.unwrap();
    std::thread::scope(|scope| {
        let lost = scope.spawn(|| place.sandboxes.run(&plan, [None, None, None]));
        while !descendants(spawner).0.contains_key("sleep") {
            std::thread::sleep(Duration::from_millis(5));
        }
        // That it runs is told a moment later.
        std::thread::sleep(Duration::from_millis(300));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawner as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
        let outcome = lost.join().unwrap().unwrap();
        assert_eq!(outcome.cause, ExitCause::SandboxFailed, "{outcome:?}");
        assert!(outcome.line.unwrap().contains("broke"));
    });
    // Sandboxes that waited in the pool died too: a run may meet one of them, and then the next works.
    let fine = place.script("fine", "#!/bin/sh\necho again\n");
    let again = (0..20).find_map(|_| match place.sandboxes.run(&fine, [None, None, None]) {
        // One that was being made just then may outlive its spawner and serve a run; the next needs a new spawner.
        Ok(outcome) => {
            let other = place.sandboxes.status().spawner != Some(spawner);
            (outcome.cause == ExitCause::Exited(0) && other).then_some(())
        }
        Err(Error::Sandbox { .. } | Error::Step { .. } | Error::SpawnerLost) => None,
        Err(error) => panic!("{error}"),
    });
    assert!(again.is_some());
}

#[test]
fn what_a_killed_daemon_left_is_swept_by_the_next() {
    if std::env::var_os("BRINE_TEST_DAEMON").is_some() {
        return;
    }
    let place = Place::new();
    let label = format!("swept-{}", std::process::id());
    let mark = format!("7{}", std::process::id());
    place.script("sleeps", &format!("#!/bin/sh\nsleep {mark}\n"));
    // The same test program, as a daemon with a run that goes on.
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_daemon_with_a_run", "--nocapture"])
        .env("BRINE_TEST_DAEMON", format!("{label}:{}", place.volume.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let running = || harness::is_running(&format!("sleep {mark}"));
    while !running() {
        assert!(daemon.try_wait().unwrap().is_none(), "the daemon ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(groups(&format!("brine-{label}")) > 0);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while running() {
        assert!(Instant::now() < deadline, "a run outlives its daemon");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut config = Config::new(&label, &place.volume);
    config.program = env!("CARGO_BIN_EXE_sandbox-probe").into();
    let next = Sandboxes::start(config).unwrap();
    assert!(next.status().swept > 0);
    next.stop();
    assert_eq!(groups(&format!("brine-{label}")), 0);
}

/// Not a test of its own: see above.
#[test]
fn as_a_daemon_with_a_run() {
    let Ok(said) = std::env::var("BRINE_TEST_DAEMON") else { return };
    let (label, volume) = said.split_once(':').unwrap();
    let mut config = Config::new(label, volume);
    config.program = env!("CARGO_BIN_EXE_sandbox-probe").into();
    let sandboxes = Sandboxes::start(config).unwrap();
    let identity = brine_exec::Identity { uid: 0, gid: 0, groups: Vec::new() };
    let program = harness::view("exec/sleeps", "/mnt/sleeps", brine_exec::ViewAccess::Read);
    let _ = sandboxes.run(&brine_exec::Plan::new(identity, program), [None, None, None]);
}

#[test]
fn stopping_ends_what_runs_and_refuses_what_comes() {
    let place = Place::new();
    let plan = place.script("sleeps", "#!/bin/sh\nsleep 1000\n");
    std::thread::scope(|scope| {
        let run = scope.spawn(|| place.sandboxes.run(&plan, [None, None, None]));
        while place.sandboxes.active().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        place.sandboxes.stop();
        assert_eq!(run.join().unwrap().unwrap().cause, ExitCause::Killed);
    });
    assert!(matches!(place.sandboxes.run(&plan, [None, None, None]), Err(Error::Stopping)));
    assert_eq!(groups(&label(&place)), 0);
    assert!(place.sandboxes.active().is_empty() && !place.sandboxes.kill(RunId::random()));
}
