//! The escape suite: one test for each line of the hardening table. Each probe is first tried outside, where it must
//! succeed (the canary), then inside, where it must fail in the way that is said.

mod harness;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::time::{Duration, Instant};

use brine_exec::{Identity, Root, ViewAccess};
use harness::{Place, view};

/// What a probe says outside of any sandbox.
fn outside(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sandbox-probe")).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn inside(place: &Place, arguments: &[&str]) -> String {
    place.run(&place.probe(arguments)).1.trim().to_owned()
}

/// Each probe is `ok` outside and this error inside.
fn refused(probes: &[(&[&str], &str)]) {
    let place = Place::new();
    for (arguments, error) in probes {
        assert_eq!(outside(arguments), "ok", "canary of {arguments:?}");
        assert_eq!(inside(&place, arguments), *error, "{arguments:?}");
    }
}

#[test]
fn no_new_namespaces() {
    let flags = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let place = Place::new();
    for flag in flags {
        let arguments = ["unshare", &flag.to_string()];
        assert_eq!(outside(&arguments), "ok", "canary of {flag:#x}");
        assert_eq!(inside(&place, &arguments), "EPERM", "{flag:#x}");
    }
    drop(place);
    refused(&[(&["clone-newuser"], "EPERM"), (&["setns"], "EPERM")]);
    // Its arguments are out of a filter's sight, so it does not exist; outside it looks at them.
    let place = Place::new();
    assert_eq!(outside(&["clone3"]), "EINVAL");
    assert_eq!(inside(&place, &["clone3"]), "ENOSYS");
}

#[test]
fn no_mounts_and_no_other_root() {
    let there = std::env::temp_dir();
    let there = there.to_str().unwrap();
    let place = Place::new();
    // Not a canary that mounts over this machine's directories: in a namespace of its own.
    let canary =
        Command::new("unshare").args(["-m", env!("CARGO_BIN_EXE_sandbox-probe"), "mount", there]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&canary.stdout).trim(), "ok");
    assert_eq!(inside(&place, &["mount", "/tmp"]), "EPERM");
    assert_eq!(outside(&["pivot-root"]), "EBUSY", "it is looked at");
    assert_eq!(inside(&place, &["pivot-root"]), "EPERM");
    drop(place);
    refused(&[
        (&["fsopen"], "EPERM"),
        (&["open_tree"], "EPERM"),
        (&["mount-setattr"], "EPERM"),
        (&["chroot"], "EPERM"),
        (&["sethostname"], "EPERM"),
    ]);
}

#[test]
fn no_way_to_write_to_what_the_sandbox_runs_from() {
    let place = Place::new();
    assert_eq!(outside(&["read", "/proc/self/exe"]), "ok");
    // CVE-2019-5736: neither the program (a read-only view) nor the init (a sealed copy, and not to be seen).
    for path in ["/proc/self/exe", "/mnt/volume/exec/probe"] {
        let said = inside(&place, &["write", path]);
        assert!(["EACCES", "EROFS", "ETXTBSY"].contains(&said.as_str()), "{path}: {said}");
    }
    assert_eq!(outside(&["exists", "/proc/1/exe"]), "ok");
    let said = inside(&place, &["write", "/proc/1/exe"]);
    assert!(["ENOENT", "EACCES"].contains(&said.as_str()), "{said}");
    let spawner = place.sandboxes.status().spawner.unwrap();
    let opened = File::options().write(true).open(format!("/proc/{spawner}/exe"));
    assert!(opened.is_err(), "even root outside: it is sealed");
    assert_eq!(outside(&["write", place.volume.join("exec/probe").to_str().unwrap()]), "ok");
}

#[test]
fn no_descriptor_but_the_standard_ones() {
    let place = Place::new();
    // Something to leak, without close-on-exec.
    let directory = File::open("/").unwrap();
    nix::fcntl::fcntl(&directory, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let canary = outside(&["list-descriptors"]);
    assert!(canary.lines().any(|line| line == format!("{} /", directory.as_raw_fd())), "{canary}");
    let (outcome, said) = place.run(&place.probe(&["list-descriptors"]));
    let numbers: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(numbers, ["0", "1", "2"], "{said} {outcome:?}");
}

#[test]
fn a_directory_as_a_standard_stream_is_refused() {
    let place = Place::new();
    let directory: OwnedFd = File::open("/").unwrap().into();
    let error = place.sandboxes.run(&place.probe(&["list", "/proc/self/fd/0"]), [Some(directory), None, None]);
    assert!(error.unwrap_err().to_string().contains("is a directory"));
    let mut plan = place.probe(&["list", "."]);
    plan.directory = "/proc/self/fd/0".into();
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("working directory"), "CVE-2024-21626: {error}");
}

#[test]
fn symbolic_links_in_the_volume_lead_nowhere() {
    let place = Place::new();
    let secret = place.volume.with_extension("secret");
    fs::create_dir_all(&secret).unwrap();
    fs::write(secret.join("key"), "secret").unwrap();
    std::os::unix::fs::symlink(&secret, place.volume.join("link")).unwrap();
    std::os::unix::fs::symlink(secret.join("key"), place.volume.join("file-link")).unwrap();
    assert_eq!(outside(&["read", place.volume.join("link/key").to_str().unwrap()]), "ok");
    for source in ["link", "link/key", "file-link"] {
        let mut plan = place.probe(&["read", "/mnt/x"]);
        plan.views.push(view(source, "/mnt/x", ViewAccess::Read));
        let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{source}: {error}");
        assert_eq!(error.exit_code(), 126);
    }
    // A path that is exchanged between the decision and the mount is noticed by its inode.
    place.file("data", "x", 0o644);
    let mut plan = place.probe(&["read", "/mnt/x"]);
    plan.views.push(view("data", "/mnt/x", ViewAccess::Read));
    plan.views[0].ino = Some(1);
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("replaced"), "{error}");
    fs::remove_dir_all(&secret).unwrap();
}

#[test]
fn a_link_in_one_view_does_not_move_another_view() {
    let place = Place::new();
    place.file("tree/a", "a", 0o644);
    place.file("other", "other", 0o644);
    std::os::unix::fs::symlink("/usr", place.volume.join("tree/usr")).unwrap();
    let mut plan = place.probe(&["read", "/usr/bin/env"]);
    plan.views.push(view("tree", "/mnt/tree", ViewAccess::Read));
    plan.views.push(view("other", "/mnt/tree/usr/bin/env", ViewAccess::Read));
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("cannot be shown"), "{error}");
}

#[test]
fn links_in_a_root_image_lead_nowhere_while_the_root_is_made() {
    let place = Place::new();
    let precious = place.file("data/precious", "precious", 0o644);
    let image = place.image("images/evil");
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, image.join(name)).unwrap();
    fs::create_dir_all(image.join("dev")).unwrap();
    fs::create_dir_all(image.join("var")).unwrap();
    // As the process that builds it sees the volume, and as the one that shows views does.
    link("/volume/data/precious", "dev/null");
    link("/volume/data/made", "dev/zero");
    link("/volume/data", "dev/pts");
    link("/var/empty/data/precious", "dev/ptmx");
    link("/volume/data", "proc");
    link("/volume/data", "tmp");
    link("/volume/data", "var/empty");
    link("/var/empty/data", "views");
    let mut plan = place.script(
        "look",
        "#!/bin/sh\n[ -c /dev/null ] && [ -c /dev/ptmx ] && [ -d /proc/self ] && echo hi > /tmp/x && echo made\n",
    );
    plan.template.root = Root::Image("images/evil".into());
    let (outcome, text) = place.run(&plan);
    assert_eq!(text, "made\n", "{outcome:?}");
    plan.views.push(view("data/precious", "/views/below/it", ViewAccess::Read));
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("cannot be shown"), "{error}");
    plan.views.clear();
    plan.credential = Some("/views/below/socket".into());
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("credential"), "{error}");
    plan.credential = None;
    // A directory above what is the sandbox's own is not taken away.
    let worse = place.image("images/worse");
    std::os::unix::fs::symlink("/volume/data", worse.join("dev")).unwrap();
    plan.template.root = Root::Image("images/worse".into());
    let error = place.sandboxes.run(&plan, [None, None, None]).unwrap_err();
    assert!(error.to_string().contains("/dev") && error.to_string().contains("root image"), "{error}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    let names: Vec<_> =
        fs::read_dir(precious.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["precious"]);
}

#[test]
fn what_is_shown_below_var_tmp_is_there() {
    let place = Place::new();
    place.file("data/shown", "shown", 0o644);
    let mut plan = place.probe(&["read", "/var/tmp/volume/data/shown"]);
    plan.views.push(view("data/shown", "/var/tmp/volume/data/shown", ViewAccess::Read));
    assert_eq!(place.run(&plan).1.trim(), "ok");
}

#[test]
fn what_is_not_granted_does_not_exist() {
    let place = Place::new();
    place.file("exec/other", "x", 0o755);
    place.file("data/secret", "x", 0o644);
    place.file("data/shown", "x", 0o644);
    let own = place.volume.to_str().unwrap();
    let secret = format!("{own}/data/secret");
    assert_eq!(outside(&["read", &secret]), "ok");
    let ask = |arguments: &[&str]| {
        let mut plan = place.probe(arguments);
        plan.views.push(view("data/shown", "/mnt/volume/data/shown", ViewAccess::Read));
        place.run(&plan).1.trim().to_owned()
    };
    assert_eq!(ask(&["read", "/mnt/volume/data/shown"]), "ok");
    for path in [
        secret.as_str(),
        "/mnt/volume/data/secret",
        "/mnt/volume/exec/other",
        "/var/empty/data",
        "/var/empty/exec",
        "/volume",
    ] {
        assert_eq!(ask(&["exists", path]), "ENOENT", "{path}");
    }
    for path in ["/etc/shadow", "/root", "/home", "/sys", "/boot", "/proc/sys", "/proc/sysrq-trigger", "/proc/kcore"] {
        assert_eq!(ask(&["exists", path]), "ENOENT", "{path}");
    }
    for path in ["/dev/fuse", "/dev/kvm", "/dev/mem", "/dev/console", "/dev/pts/0"] {
        assert_eq!(ask(&["exists", path]), "ENOENT", "{path}");
    }
}

#[test]
fn read_only_views_and_the_root_cannot_be_written_to() {
    let place = Place::new();
    place.file("data/file", "x", 0o666);
    let shown = |access: ViewAccess, arguments: &[&str]| {
        let mut plan = place.probe(arguments);
        plan.views.push(view("data", "/mnt/data", access));
        place.run(&plan).1.trim().to_owned()
    };
    let own = place.volume.join("data/file");
    assert_eq!(outside(&["write", own.to_str().unwrap()]), "ok");
    assert_eq!(shown(ViewAccess::Write, &["write", "/mnt/data/file"]), "ok", "a write grant is the canary");
    for (arguments, errors) in [
        (&["write", "/mnt/data/file"][..], &["EROFS", "EACCES"][..]),
        (&["create", "/mnt/data/new"], &["EROFS", "EACCES"]),
        (&["chmod", "/mnt/data/file"], &["EROFS", "EPERM"]),
        (&["rename", "/mnt/data/file", "/tmp/file"], &["EXDEV", "EROFS", "EACCES"]),
        (&["link", "/mnt/data/file", "/tmp/file"], &["EXDEV", "EROFS", "EACCES"]),
        (&["create", "/etc/passwd"], &["EROFS", "EACCES"]),
        (&["create", "/new"], &["EROFS", "EACCES"]),
        (&["create", "/usr/bin/new"], &["EROFS", "EACCES"]),
        (&["chmod", "/usr/bin/env"], &["EROFS", "EPERM"]),
    ] {
        let said = shown(ViewAccess::Read, arguments);
        assert!(errors.contains(&said.as_str()), "{arguments:?}: {said}");
    }
    assert_eq!(shown(ViewAccess::Read, &["create", "/tmp/new"]), "ok", "scratch is there to be written to");
    assert_eq!(shown(ViewAccess::Write, &["rename", "/mnt/data/file", "/tmp/file"]), "EXDEV", "out of its view");
}

#[test]
fn a_standard_stream_cannot_be_reopened_for_more() {
    let place = Place::new();
    let path = place.file("outside.txt", "x", 0o666);
    let read: OwnedFd = File::open(&path).unwrap().into();
    // The canary: without a sandbox it works.
    let canary = Command::new(env!("CARGO_BIN_EXE_sandbox-probe"))
        .args(["read-write", "/proc/self/fd/0"])
        .stdin(File::open(&path).unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&canary.stdout).trim(), "ok");
    let ask = |arguments: &[&str], stdin: &OwnedFd| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let streams = [Some(stdin.try_clone().unwrap()), Some(writer.into()), None];
        place.sandboxes.run(&place.probe(arguments), streams).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
        said.trim().to_owned()
    };
    assert_eq!(ask(&["read-write", "/proc/self/fd/0"], &read), "EACCES");
    assert_eq!(ask(&["write", "/proc/self/fd/0"], &read), "EACCES");
    assert_eq!(ask(&["read", "/proc/self/fd/0"], &read), "ok", "what it came with");
    let both: OwnedFd = File::options().read(true).write(true).open(&path).unwrap().into();
    assert_eq!(ask(&["read-write", "/proc/self/fd/0"], &both), "ok", "what it came with");
    let write: OwnedFd = File::options().write(true).open(&path).unwrap().into();
    assert_eq!(ask(&["read", "/proc/self/fd/0"], &write), "EACCES");
}

#[test]
fn other_processes_are_out_of_reach() {
    refused(&[(&["ptrace"], "EPERM"), (&["vm-read"], "EPERM"), (&["kcmp"], "EPERM"), (&["pidfd-getfd"], "EPERM")]);
    let place = Place::new();
    let own = std::process::id().to_string();
    assert_eq!(outside(&["signal", &own]), "ok");
    assert_eq!(inside(&place, &["signal", &own]), "ESRCH");
    // Its init is another domain of Landlock, if the kernel has scopes; in any case it ignores what it does not catch.
    let said = inside(&place, &["signal-parent"]);
    assert!(["EPERM", "ok"].contains(&said.as_str()), "{said}");
    // Everybody: only the own namespace is there to be hit, and this test is alive to say so.
    place.script("kills", "#!/bin/sh\nkill -9 -1\nexit 0\n");
    place.run(&place.plan("kills"));
    let processes = place.script("ls-proc", "#!/bin/sh\nls /proc | grep -c '^[0-9]'\n");
    let (_, said) = place.run(&processes);
    assert!(said.trim().parse::<u32>().unwrap() <= 4, "only its own: {said}");
}

#[test]
fn the_kernels_large_doors_are_shut() {
    refused(&[
        (&["io-uring"], "ENOSYS"),
        (&["userfaultfd"], "EPERM"),
        (&["perf"], "EPERM"),
        (&["personality"], "EPERM"),
        (&["handle"], "EPERM"),
        (&["open-by-handle"], "EPERM"),
        (&["syslog"], "EPERM"),
        (&["bpf"], "EPERM"),
        (&["socket", "16", "3"], "EAFNOSUPPORT"),
        (&["socket", "17", "3"], "EAFNOSUPPORT"),
    ]);
}

#[test]
fn keyrings_of_the_outside_are_out_of_reach() {
    let place = Place::new();
    for arguments in [&["keyctl"][..], &["add-key"]] {
        let canary = outside(arguments);
        assert!(canary == "ok" || canary == "ENOSYS", "a kernel without keys has nothing to protect: {canary}");
        assert_eq!(inside(&place, arguments), "EPERM", "{arguments:?}");
    }
}

#[test]
fn there_is_no_network() {
    let place = Place::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    assert_eq!(outside(&["connect", &address]), "ok");
    assert_eq!(inside(&place, &["connect", &address]), "ENETUNREACH");
    assert_eq!(inside(&place, &["connect", "169.254.169.254:80"]), "ENETUNREACH");
}

#[test]
fn sockets_of_the_host_are_out_of_reach() {
    let place = Place::new();
    let name = format!("brine-escape-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    assert_eq!(outside(&["abstract", &name]), "ok");
    assert_eq!(inside(&place, &["abstract", &name]), "ECONNREFUSED");
    // With the host's network, what shuts this door is Landlock's scope.
    let mut plan = place.probe(&["abstract", &name]);
    plan.template.network = brine_exec::Network::Host;
    assert_eq!(place.run(&plan).1.trim(), "EPERM");
    // Descriptors cannot be handed out: no socket of anybody else is there.
    let path = std::env::temp_dir().join(&name);
    let _named = UnixListener::bind(&path).unwrap();
    assert_eq!(outside(&["unix", path.to_str().unwrap()]), "ok");
    assert_eq!(inside(&place, &["unix", path.to_str().unwrap()]), "ENOENT");
    fs::remove_file(path).unwrap();
}

#[test]
fn nothing_can_be_typed_into_the_callers_terminal() {
    let place = Place::new();
    let legacy = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").is_ok_and(|on| on.trim() == "1");
    let pair = nix::pty::openpty(None, None).unwrap();
    for high in ["0", "1"] {
        if legacy {
            // Root may always; the terminal is its standard input.
            let canary = Command::new(env!("CARGO_BIN_EXE_sandbox-probe"))
                .args(["tiocsti", high])
                .stdin(pair.slave.try_clone().unwrap())
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&canary.stdout).trim(), "ok", "canary, high bits {high}");
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        let streams = [Some(pair.slave.try_clone().unwrap()), Some(writer.into()), None];
        place.sandboxes.run(&place.probe(&["tiocsti", high]), streams).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert_eq!(said.trim(), "EPERM", "high bits {high}");
    }
}

#[test]
fn no_rights_can_be_had_back() {
    let place = Place::new();
    // A set-id program of the volume, and root's own.
    let path = place.volume.join("exec/id");
    fs::copy("/usr/bin/id", &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let user = Identity { uid: 61_234, gid: 61_234, groups: vec![61_235] };
    let ask = |arguments: &[&str]| {
        let mut plan = place.probe(arguments);
        plan.identity = user.clone();
        plan.views.push(view("exec/id", "/mnt/id", ViewAccess::Read));
        place.run(&plan).1.trim().to_owned()
    };
    let outside =
        Command::new("setpriv").args(["--reuid=61234", "--clear-groups", path.to_str().unwrap(), "-u"]).output();
    assert_eq!(String::from_utf8_lossy(&outside.unwrap().stdout).trim(), "0", "canary");
    assert_eq!(ask(&["set-id", "/mnt/id"]), "EPERM");
    assert_eq!(ask(&["capabilities"]), "EPERM");
    assert_eq!(ask(&["setuid", "0"]), "EINVAL", "there is no such user in its namespace");
    // Root's runs have no more.
    assert_eq!(self::outside(&["capabilities"]), "ok");
    assert_eq!(inside(&place, &["capabilities"]), "EPERM");
    // Landlock's word, or the missing capability's.
    let said = inside(&place, &["mknod", "/tmp/null", "1", "3"]);
    assert!(["EACCES", "EPERM"].contains(&said.as_str()), "{said}");
    let there = std::env::temp_dir().join(format!("brine-null-{}", std::process::id()));
    assert_eq!(self::outside(&["mknod", there.to_str().unwrap(), "1", "3"]), "ok");
    fs::remove_file(there).unwrap();
}

#[test]
fn device_nodes_of_the_volume_are_dead() {
    let place = Place::new();
    let node = place.volume.join("tree/null");
    fs::create_dir_all(place.volume.join("tree")).unwrap();
    assert_eq!(outside(&["mknod", node.to_str().unwrap(), "1", "3"]), "ok");
    assert_eq!(outside(&["read", node.to_str().unwrap()]), "ok");
    let mut plan = place.probe(&["read", "/mnt/tree/null"]);
    plan.views.push(view("tree", "/mnt/tree", ViewAccess::Read));
    assert_eq!(place.run(&plan).1.trim(), "EACCES");
    let mut plan = place.probe(&["read", "/mnt/null"]);
    plan.views.push(view("tree/null", "/mnt/null", ViewAccess::Read));
    assert!(place.sandboxes.run(&plan, [None, None, None]).is_err(), "nor is one shown by itself");
}

#[test]
fn control_groups_cannot_be_seen() {
    // CVE-2022-0492: release_agent is a file of a tree that is not there, and mounting it is refused above.
    let place = Place::new();
    assert_eq!(outside(&["exists", "/sys/fs/cgroup"]), "ok");
    assert_eq!(inside(&place, &["exists", "/sys/fs/cgroup"]), "ENOENT");
}

#[test]
fn a_program_from_memory_runs_with_no_more_than_any_other() {
    let place = Place::new();
    assert_eq!(outside(&["memfd-exec"]), "ok");
    assert_eq!(inside(&place, &["memfd-exec"]), "ok", "allowed: it is held by the same walls");
}

#[test]
fn what_it_leaves_running_is_gone_when_the_run_is() {
    let place = Place::new();
    let mark = format!("9{}", std::process::id());
    let plan =
        place.script("daemon", &format!("#!/bin/sh\nsetsid sleep {mark} >/dev/null 2>&1 </dev/null &\nexit 0\n"));
    let (outcome, _) = place.run(&plan);
    assert_eq!(outcome.cause, brine_exec::ExitCause::Exited(0));
    assert!(!harness::is_running(&format!("sleep {mark}")));
    let mut canary = Command::new("sleep").arg(&mark).spawn().unwrap();
    // A program that was only just started has no command line for a moment.
    let begun = Instant::now();
    while !harness::is_running(&format!("sleep {mark}")) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it would be seen");
    }
    canary.kill().unwrap();
    canary.wait().unwrap();

    // However it ends: a crowd that will not go, the run's time over, its init killed from outside, the run killed.
    let crowd = format!(
        "#!/bin/sh\ntrap '' TERM\nfor n in 1 2 3 4 5 6 7 8 9 10; do for m in 1 2 3 4 5 6 7 8; do setsid sleep {mark} & \
         done; done\nwait; wait\n"
    );
    for end in ["time", "init", "order"] {
        let mut plan = place.script("crowd", &crowd);
        if end == "time" {
            plan = plan.with_limits(harness::limits(|limits| {
                (limits.wall, limits.grace) = (Duration::from_millis(700), Duration::from_millis(50));
            }));
        }
        let begun = std::thread::scope(|scope| {
            let run = scope.spawn(|| place.sandboxes.run(&plan, [None, None, None]));
            while end != "time" && harness::running(&format!("sleep {mark}")) < 80 {
                assert!(!run.is_finished(), "it runs until it is ended");
                std::thread::sleep(Duration::from_millis(2));
            }
            let active = place.sandboxes.active();
            match end {
                "init" => nix::sys::signal::kill(nix::unistd::Pid::from_raw(active[0].init), nix::sys::signal::SIGKILL)
                    .unwrap(),
                "order" => assert!(place.sandboxes.kill(active[0].id)),
                _ => {}
            }
            let outcome = run.join().unwrap().unwrap();
            (outcome, harness::running(&format!("sleep {mark}")))
        });
        assert_eq!(begun.1, 0, "left when the end is visible ({end}): {:?}", begun.0);
    }
}
