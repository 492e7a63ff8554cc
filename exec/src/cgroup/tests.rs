use super::*;

const LIMITS: GroupLimits = GroupLimits { memory_bytes: 64 << 20, pids: 50, cpu_milli: 500 };

/// A recorded version 2 tree: what is written where, and what is read from where. Nothing is proved about a kernel.
#[test]
fn version_2_files_are_written_and_read_by_their_names() {
    let top = std::env::temp_dir().join(format!("brine-cgroup-{}", std::process::id()));
    fs::create_dir_all(&top).unwrap();
    let write_all =
        |files: &[(&str, &str)]| files.iter().for_each(|(name, text)| fs::write(top.join(name), text).unwrap());
    write_all(&[
        ("memory.max", ""),
        ("memory.oom.group", ""),
        ("pids.max", ""),
        ("cpu.max", ""),
        ("cgroup.kill", ""),
        ("memory.peak", "4096\n"),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 1\n"),
        ("pids.peak", "7\n"),
        ("pids.events", "max 12\n"),
        ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
    ]);
    let place = Some(top.clone());
    let places = Places {
        backend: Backend::V2,
        core: place.clone(),
        memory: place.clone(),
        pids: place.clone(),
        cpu: place,
        cpuacct: None,
    };
    let mut group = Group::at(places);
    group.open_peaks();
    group.limit(&LIMITS).unwrap();
    let read = |name: &str| fs::read_to_string(top.join(name)).unwrap();
    assert_eq!(
        (read("memory.max"), read("pids.max"), read("cpu.max")),
        ("67108864".into(), "50".into(), "50000 100000".into())
    );
    assert_eq!(read("memory.oom.group"), "1");
    assert!(!top.join("memory.swap.max").exists(), "a kernel without swap has no such file");
    let usage = group.usage();
    assert_eq!(usage.memory_peak_bytes, Some(4096));
    assert_eq!((usage.oom_kills, usage.fork_failures, usage.pids_peak), (1, 12, Some(7)));
    assert_eq!(usage.cpu, Some(Duration::from_micros(1500)));
    group.kill_all();
    assert_eq!(read("cgroup.kill"), "1");
    fs::remove_dir_all(&top).unwrap();
}

/// On whatever this machine has.
#[test]
fn a_group_is_made_limited_killed_and_removed() {
    let tree = Tree::open(&format!("test-{}", std::process::id())).unwrap();
    if tree.backend() == Backend::None {
        eprintln!("no control groups can be made here; nothing tested");
        return;
    }
    let group = tree.make("one", &LIMITS).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    for place in group.paths() {
        write(place, "cgroup.procs", &child.id().to_string()).unwrap();
    }
    assert!(!group.is_empty());
    assert!(!group.remove_now(), "a group with a process stays");
    group.kill_all();
    child.wait().unwrap();
    assert!(group.remove());
    assert!(group.paths().all(|place| !place.exists()));

    tree.make("left-behind", &LIMITS).unwrap();
    assert_eq!(tree.sweep(), 1, "by whoever comes next");
    tree.remove();
}
