//! What could wait for itself: functions that use the mount they run from while others do; and the mount's end while
//! sandboxes are ready.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use brine_tests::command::exit;
use brine_tests::scenario::functions::{control_groups, function};
use brine_tests::volume::{brine_command, wait_until};
use brine_tests::{Builder, TestVolume, content, program, run};
use serde_json::Value;

fn small(name: &str) -> TestVolume {
    Builder::new(name).directories(2).geometry(1, 1).mount()
}

/// All of them end by themselves, with 0, in time; what each said.
#[track_caller]
fn all_end(children: Vec<Child>) -> Vec<String> {
    let ended = |child: Child| {
        let out = child.wait_with_output().expect("wait");
        assert!(out.status.success(), "{:?}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    children.into_iter().map(ended).collect()
}

fn piped(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn functions_read_thousands_of_files_at_more_concurrency_than_there_are_threads() {
    let mut volume = small("load-files");
    fs::create_dir(volume.path("many")).expect("mkdir");
    for number in 0..1500 {
        fs::write(volume.path(&format!("many/{number}")), content(number, 700)).expect("write");
    }
    let body = format!("cat {0}/many/* | wc -c; ls -l {0}/many | wc -l", volume.mnt().display());
    let f = function(&volume, "read", &body, &["--read", "../many", "--memory", "64M", "--scratch", "1M"]);
    // Nothing of it is known to the kernel: each asks the daemon, which has one thread for all.
    volume.remount();
    let children: Vec<Child> = (0..8).map(|_| piped(&f).spawn().expect("start")).collect();
    for said in all_end(children) {
        assert_eq!(said, "1050000\n1501\n");
    }
    volume.umount();
}

#[test]
fn streams_of_functions_are_files_of_the_same_mount() {
    let mut volume = small("load-streams");
    let copy = function(&volume, "copy", "cat; sync /proc/self/fd/1 2>/dev/null; echo end >&2", &[]);
    let data = content(7, 8 << 20);
    fs::write(volume.path("in"), &data).expect("write");
    let children: Vec<Child> = (0..8)
        .map(|number| {
            let input = File::open(volume.path("in")).expect("open");
            let output = File::create(volume.path(&format!("out-{number}"))).expect("create");
            Command::new(&copy).stdin(input).stdout(output).stderr(Stdio::piped()).spawn().expect("start")
        })
        .collect();
    all_end(children);
    for number in 0..8 {
        assert!(fs::read(volume.path(&format!("out-{number}"))).expect("read") == data, "out-{number}");
    }
    // One's output is another's input, by pipes, and the first input and the last output are files of the mount.
    let script = "\"$0\" < \"$1/in\" | \"$0\" | \"$0\" | \"$0\" > \"$1/through\"";
    run(Command::new(program("sh")).args(["-c", script]).arg(&copy).arg(volume.mnt())).expect_success();
    assert!(fs::read(volume.path("through")).expect("read") == data);
    // The end of a file is where the last one left it.
    let append = function(&volume, "append", "echo one; echo two", &[]);
    for _ in 0..3 {
        let end = File::options().append(true).create(true).open(volume.path("log")).expect("open");
        all_end(vec![Command::new(&append).stdout(end).stderr(Stdio::piped()).spawn().expect("start")]);
    }
    assert_eq!(fs::read_to_string(volume.path("log")).expect("read"), "one\ntwo\n".repeat(3));
    volume.umount();
}

#[test]
fn runs_that_wait_for_runs_do_not_hold_all_there_is() {
    let mut volume = small("load-nested");
    // Four of these would have all 16384 processes; an eighth is for invoked runs alone, so three go and the others wait.
    let limits = ["--memory", "32M", "--scratch", "1M"];
    let inner = function(&volume, "inner", "echo inner", &[&limits[..], &["--pids", "256"]].concat());
    let body = format!("{0}; {0}; {0}", inner.display());
    let outer = function(&volume, "outer", &body, &[&limits[..], &["--pids", "4096", "--call", "inner"]].concat());
    let children: Vec<Child> = (0..8).map(|_| piped(&outer).spawn().expect("start")).collect();
    for said in all_end(children) {
        assert_eq!(said, "inner\n".repeat(3));
    }
    volume.umount();
}

/// Processes that are this volume's: daemon, supervisor, spawner, sandboxes.
fn processes(volume: &TestVolume) -> Vec<String> {
    let mnt = volume.mnt().display().to_string();
    let lines = fs::read_dir("/proc").expect("list").flatten().filter_map(|entry| {
        let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        // Those of sandboxes are copies of the spawner.
        let own = ["brine serve ", "brine supervise "].iter().any(|start| line.starts_with(start))
            || line.contains("sandbox-spawner ");
        (own && line.contains(&mnt)).then_some(line)
    });
    lines.collect()
}

#[test]
fn plain_umount_with_sandboxes_ready_ends_all_within_two_seconds() {
    let mut volume = Builder::new("load-umount").directories(2).geometry(1, 1).supervised().mount();
    let f = function(&volume, "f", "echo ready; read x", &[]);
    let last = |volume: &TestVolume| -> Vec<Value> {
        let text = run(brine_command(&["exec", "log", "--json", "--at"]).arg(volume.mnt())).expect_success().stdout;
        serde_json::from_str::<Value>(&text).expect("JSON").as_array().expect("an array").clone()
    };
    let mut records = 0;
    for _ in 0..3 {
        let mut child = Command::new(&f).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
        child.stdout.as_mut().expect("stdout").read_exact(&mut [0; 6]).expect("it starts");
        // While it runs the mount is busy, for whoever asks; the command names its caller.
        let plain = run(Command::new(program("umount")).arg(volume.mnt())).expect_refusal();
        assert!(plain.stderr.contains("busy"), "{plain}");
        let named = run(brine_command(&["umount"]).arg(volume.mnt())).with_code(exit::BUSY);
        assert!(named.stderr.contains(&child.id().to_string()), "{named}");
        drop(child.stdin.take());
        child.wait().expect("wait");
        records += 1;
        let ready = || volume.status()["exec"]["sandboxes_ready"].as_u64() > Some(0);
        assert!(wait_until(Duration::from_secs(20), ready), "sandboxes are ready");
        fs::write(volume.path(&format!("last-{records}")), content(records, 200_000)).expect("write");

        assert!(processes(&volume).len() >= 4, "daemon, supervisor, spawner, sandboxes: {:?}", processes(&volume));
        let label = volume.status()["volume"].as_str().expect("its id").to_owned();
        let begun = Instant::now();
        run(Command::new(program("umount")).arg(volume.mnt())).expect_success();
        // The key is in the memory of the daemon and its supervisor, and nowhere else.
        let gone = wait_until(Duration::from_secs(2), || processes(&volume).is_empty());
        assert!(gone, "after {:?} there are {:?}", begun.elapsed(), processes(&volume));
        assert!(!Path::new("/run/brine-exec").join(label).exists(), "its sockets are gone");
        volume.forget_daemon();

        volume.mount();
        for number in 1..=records {
            let name = format!("last-{number}");
            assert!(fs::read(volume.path(&name)).expect("read") == content(number, 200_000), "{name} was durable");
        }
        assert_eq!(last(&volume).len() as u64, records, "so were the records of runs");
        assert!(last(&volume).iter().all(|row| row["cause"] == "exited"));
    }
    volume.umount();
}

#[test]
fn a_lazy_umount_leaves_nothing_of_the_sandboxes() {
    let mut volume = small("load-lazy");
    let f = function(&volume, "f", "exit 3", &[]);
    assert_eq!(Command::new(&f).status().expect("run").code(), Some(3));
    let ready = || volume.status()["exec"]["sandboxes_ready"].as_u64() > Some(0);
    assert!(wait_until(Duration::from_secs(20), ready), "sandboxes are ready");
    let id = volume.status()["volume"].as_str().expect("its id").to_owned();
    assert!(control_groups(&id) > 0, "this machine has control groups");
    run(Command::new(program("umount")).arg("-l").arg(volume.mnt())).expect_success();
    let gone = wait_until(Duration::from_secs(20), || processes(&volume).is_empty());
    assert!(gone, "{:?}", processes(&volume));
    assert_eq!(control_groups(&id), 0, "control groups are left");
    assert!(!Path::new("/run/brine-exec").join(&id).exists(), "its sockets are gone");
    volume.forget_daemon();

    // While they are only being made.
    for _ in 0..5 {
        volume.mount();
        run(Command::new(program("umount")).arg("-l").arg(volume.mnt())).expect_success();
        assert!(wait_until(Duration::from_secs(20), || processes(&volume).is_empty()), "{:?}", processes(&volume));
        assert_eq!(control_groups(&id), 0, "control groups are left");
        volume.forget_daemon();
    }
}

/// A function that was started, and the lines it says.
struct Started {
    child: Child,
    said: Receiver<String>,
}

fn start(path: &Path) -> Started {
    let mut child = piped(path).stdin(Stdio::piped()).spawn().expect("start");
    let (sender, said) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().expect("stdout"));
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    Started { child, said }
}

#[test]
fn runs_for_which_there_is_no_room_wait_their_turn() {
    let mut volume = small("load-ledger");
    let memory = fs::read_to_string("/proc/meminfo").expect("read");
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let mib: u64 = total.expect("a total").parse::<u64>().expect("a number") / 1024;
    // Runs may be promised some two thirds of the machine: one of these, not two.
    let part = format!("{}M", mib * 2 / 5);
    let f = function(&volume, "large", "echo runs; read x", &["--memory", &part, "--scratch", "1M"]);
    let of_status = |name: &str| volume.status()["exec"][name].as_u64();
    let mut first = start(&f);
    assert_eq!(first.said.recv_timeout(Duration::from_secs(20)).expect("it starts"), "runs");
    let mut given_up = start(&f);
    let mut second = start(&f);
    assert!(second.said.recv_timeout(Duration::from_secs(1)).is_err(), "there is no room for it");
    assert_eq!((of_status("running"), of_status("waiting")), (Some(3), Some(2)));
    // Who asked and went waits no more.
    given_up.child.kill().expect("kill");
    given_up.child.wait().expect("wait");
    assert!(wait_until(Duration::from_secs(5), || of_status("waiting") == Some(1)), "{:#}", volume.status()["exec"]);

    drop(first.child.stdin.take());
    first.child.wait().expect("wait");
    assert_eq!(second.said.recv_timeout(Duration::from_secs(20)).expect("its turn comes"), "runs");
    drop(second.child.stdin.take());
    assert!(!second.child.wait().expect("wait").success(), "`read` met the end");
    assert!(wait_until(Duration::from_secs(20), || of_status("running") == Some(0)), "{:#}", volume.status()["exec"]);
    assert!(given_up.said.recv().is_err(), "nothing of it ran");
    volume.umount();
}
