//! Runs that do what programs do, and how they end.

mod harness;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use brine_exec::protocol::Streams;
use brine_exec::protocol::frame::{Kind, send_frame};
use brine_exec::sandboxes::Event;
use brine_exec::{ExitCause, Identity, ProgramId, Root, RunId, Verdict, ViewAccess};
use harness::{Place, view};

const USER: u32 = 61_234;

#[test]
fn a_script_runs_in_a_sandbox_of_its_own_and_its_code_comes_back() {
    let place = Place::new();
    let plan = place.script("hello", "#!/bin/sh\necho \"I am $0 with $1\"; id -u; exit 7\n");
    let mut plan = plan;
    plan.argv.push("one argument".into());
    let (outcome, text) = place.run(&plan);
    let uid = nix::unistd::geteuid();
    assert_eq!(text, format!("I am /mnt/volume/exec/hello with one argument\n{uid}\n"), "{outcome:?}");
    assert_eq!((outcome.cause, outcome.verdict, outcome.line), (ExitCause::Exited(7), Verdict::Code(7), None));
}

#[test]
fn a_program_that_ran_is_run_from_a_copy_until_it_is_another() {
    let place = Place::new();
    let text = |word: &str| {
        format!("#!/bin/sh\n{{ echo x >>\"$0\"; chmod 777 \"$0\"; }} 2>/dev/null && echo changed\necho {word}\n")
    };
    let mut plan = place.script("says", &text("first"));
    let meta = fs::metadata(place.volume.join("exec/says")).unwrap();
    let program = ProgramId {
        inode: meta.ino(),
        generation: 0,
        version: 1,
        bytes: meta.size(),
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        modified_ns: 0,
    };
    plan.program_id = Some(program);
    // Nothing is copied of what was not run.
    assert_eq!(place.run(&plan).1, "first\n");
    place.script("says", &text("other"));
    assert_eq!(place.run(&plan).1, "other\n");
    place.sandboxes.keep_program(&plan);
    place.script("says", &text("third"));
    // Also by a sandbox that waited before the copy was made; and the file is its own, but it cannot change it.
    for _ in 0..3 {
        assert_eq!(place.run(&plan).1, "other\n", "the copy is what the version held");
    }
    // In the root of an image as well.
    place.image("image");
    let mut in_image = plan.clone();
    in_image.template.root = Root::Image("image".into());
    assert_eq!(place.run(&in_image).1, "other\n");
    plan.program_id = Some(ProgramId { version: 2, ..program });
    assert_eq!(place.run(&plan).1, "third\n");
    // Who may not run the program may not run its copy.
    plan.program_id = Some(ProgramId { mode: 0o100_600, ..program });
    place.sandboxes.keep_program(&plan);
    let (outcome, said) = match place.sandboxes.run(&plan, [None, None, None]) {
        Ok(outcome) => (outcome.verdict, String::new()),
        Err(error) => (Verdict::Code(error.exit_code()), error.to_string()),
    };
    assert_eq!(outcome, Verdict::Code(126), "{said}");
    assert!(said.contains("/mnt/volume/exec/says: Permission denied"), "{said}");
}

#[test]
fn that_a_program_runs_is_told_however_long_its_start_took() {
    let place = Place::new();
    let mut plan = place.script("sleeps", "#!/bin/sh\nsleep 3\n");
    place.file("data", "x", 0o644);
    // So much is to be shown that it is not done in the time for which nobody is woken.
    plan.views.extend((0..200).map(|number| view("data", &format!("/mnt/data/{number}"), ViewAccess::Read)));
    let begun = place.sandboxes.begin(RunId::random(), &plan, None, None, None).unwrap();
    let launcher = begun.launcher.unwrap();
    send_frame(&launcher, Kind::Streams, &Streams::default().encode(), &[]).unwrap();
    let mut told = None;
    let ended = begun.running.wait(|event| {
        if matches!(event, Event::Started) {
            told = Some(Instant::now());
        }
    });
    assert_eq!(ended.unwrap().0.cause, ExitCause::Exited(0));
    assert!(told.expect("it started").elapsed() > Duration::from_secs(2), "it was told only with the end");
}

#[test]
fn a_run_has_exactly_the_callers_identity() {
    let place = Place::new();
    let directory = place.volume.join("shared");
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    place.file("shared/for-group", "group reads this\n", 0o640);
    place.file("shared/for-root", "root reads this\n", 0o600);
    std::os::unix::fs::chown(directory.join("for-group"), Some(0), Some(USER + 1)).unwrap();
    let mut plan = place.script(
        "who",
        "#!/bin/sh\nid -u; id -g; id -G\ncat /mnt/shared/for-group\ncat /mnt/shared/for-root 2>/dev/null || echo denied\n\
         echo made > /mnt/shared/made; umask\n",
    );
    plan.identity = Identity { uid: USER, gid: USER, groups: vec![USER, USER + 1] };
    plan.views.push(view("shared", "/mnt/shared", ViewAccess::Write));
    plan.umask = 0o077;
    let (outcome, text) = place.run(&plan);
    let expected = format!("{USER}\n{USER}\n{USER} {}\ngroup reads this\ndenied\n0077\n", USER + 1);
    assert_eq!(text, expected, "{outcome:?}");
    let made = fs::metadata(directory.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (USER, USER, 0o600));
}

#[test]
fn an_ordinary_user_has_sandboxes_of_his_own() {
    let place = Place::new();
    place.script(
        "who",
        "#!/bin/sh\nid -u; cat /mnt/data/file; echo more > /mnt/data/new; ls /proc | grep -c '^[0-9]'\n",
    );
    fs::create_dir_all(place.volume.join("data")).unwrap();
    fs::set_permissions(place.volume.join("data"), fs::Permissions::from_mode(0o777)).unwrap();
    place.file("data/file", "content\n", 0o644);
    let program = place.volume.join("exec/probe");
    let run = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]);
        let output = command.arg(&program).arg("run-one").arg(&place.volume).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let said = run(&["who", "best-effort"]);
    // On this machine an ordinary user has no control groups; a delegated one would have all limits.
    assert!(said.contains(&format!("{USER}\ncontent\n")), "{said}");
    assert!(said.ends_with("exited\n"), "{said}");
    assert_eq!(fs::metadata(place.volume.join("data/new")).unwrap().uid(), USER);
    if said.contains("\"memory\"") {
        let said = run(&["who"]);
        assert!(said.contains("cannot enforce memory"), "never silently: {said}");
    }
}

#[test]
fn a_root_image_is_the_root_and_changes_to_it_are_gone_afterwards() {
    let place = Place::new();
    let image = place.image("images/small");
    fs::write(image.join("etc/os-release"), "NAME=small\n").unwrap();
    let text = "#!/bin/sh\nread line < /etc/os-release; echo $line\necho changed > /etc/os-release\n\
                [ -e /usr/bin/env ] || echo no host\nread line < /etc/os-release; echo $line\n";
    let mut plan = place.script("inside", text);
    plan.template.root = Root::Image("images/small".into());
    for _ in 0..2 {
        let (outcome, text) = place.run(&plan);
        assert_eq!(text, "NAME=small\nno host\nchanged\n", "{outcome:?}");
    }
    assert_eq!(fs::read_to_string(image.join("etc/os-release")).unwrap(), "NAME=small\n");
    plan.template.root = Root::Image("images/none".into());
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("images/none"), "{error}");
}

#[test]
fn what_a_program_starts_with_is_what_was_planned() {
    let place = Place::new();
    let mut plan = place.script("starts", "#!/bin/sh\npwd; env | grep -v ^_= | sort; kill -s INT $$; nice; hostname\n");
    plan.environment.push(("SPECIAL".into(), "a=b".into()));
    plan.directory = "/home/somebody/work".into();
    plan.ignored_signals = 1 << (libc::SIGINT - 1);
    plan.nice = 5;
    let (outcome, text) = place.run(&plan);
    let expected = "/home/somebody/work\nHOME=/tmp\nPATH=/usr/local/bin:/usr/bin:/bin\nPWD=/home/somebody/work\n\
                    SPECIAL=a=b\n5\nbrine\n";
    assert_eq!(text, expected, "{outcome:?}");
}

#[test]
fn any_bytes_are_arguments() {
    use std::os::unix::ffi::OsStringExt;
    let place = Place::new();
    let mut plan = place.script("bytes", "#!/bin/sh\nshift; printf '%s' \"$1\" | od -An -tx1\n");
    plan.argv.extend([OsString::from("first"), OsString::from_vec(vec![0xff, 0x0a, 0x01])]);
    assert_eq!(place.run(&plan).1.trim(), "ff 0a 01");
}

#[test]
fn many_runs_at_once_are_all_served_and_the_pool_is_used() {
    let place = Place::new();
    let plan = place.script("many", "#!/bin/sh\necho done\n");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(place.run(&plan).1, "done\n")));
        }
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while place.sandboxes.status().pooled == 0 {
        assert!(std::time::Instant::now() < deadline, "the pool is never filled");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (outcome, _) = place.run(&plan);
    assert!(outcome.steps.pooled, "{outcome:?}");
    let (hits, misses) = place.sandboxes.status().hits_and_misses;
    assert_eq!(hits + misses, 31);
}

#[test]
fn a_run_can_be_killed_by_its_number() {
    let place = Place::new();
    let plan = place.script("sleeps", "#!/bin/sh\nexec sleep 1000\n");
    std::thread::scope(|scope| {
        let run = scope.spawn(|| place.run(&plan).0);
        let id = loop {
            if let Some(active) = place.sandboxes.active().first() {
                break active.id;
            }
            std::thread::yield_now();
        };
        assert!(place.sandboxes.kill(id));
        let outcome = run.join().unwrap();
        assert_eq!((outcome.cause, outcome.id), (ExitCause::Killed, id));
    });
}

/// Processes that process `pid` started and that go on.
fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn what_becomes_the_program_waits_behind_its_filter_and_in_a_session_of_its_own() {
    let place = Place::new();
    place.run(&place.probe(&["capabilities"]));
    while place.sandboxes.status().pooled == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let spawner = place.sandboxes.status().spawner.unwrap();
    let waiting: Vec<u32> = children(spawner).into_iter().flat_map(children).collect();
    assert!(!waiting.is_empty());
    for pid in waiting {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let says = |line: &str| status.lines().any(|found| found == line);
        assert!(says("Seccomp:\t2") && says("NoNewPrivs:\t1") && says("CapBnd:\t0000000000000000"), "{status}");
        let session = status.lines().find_map(|line| line.strip_prefix("NSsid:\t")).unwrap();
        assert_eq!(session.split_whitespace().last(), Some("2"), "its own, in its namespace: {status}");
    }
}

#[test]
fn sandboxes_whose_waiting_processes_were_killed_run_nothing_and_are_made_anew() {
    let place = Place::new();
    place.run(&place.probe(&["capabilities"]));
    let pooled = || place.sandboxes.status().pooled;
    while pooled() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let spawner = place.sandboxes.status().spawner.unwrap();
    let sandboxes = || children(spawner);
    let before = sandboxes();
    // As `pkill -u` of whoever they wait for.
    for starter in before.iter().copied().flat_map(children) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(starter as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while sandboxes().iter().any(|sandbox| before.contains(sandbox)) {
        assert!(std::time::Instant::now() < deadline, "sandboxes without a starter stay");
        std::thread::sleep(Duration::from_millis(5));
    }
    let outcome = place.run(&place.probe(&["capabilities"]));
    assert!(matches!(outcome.0.cause, ExitCause::Exited(_)), "the probe ran: {outcome:?}");
}
