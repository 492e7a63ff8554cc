//! What the tests of sandboxes run: as a spawner; and inside or outside of a sandbox as a program that tries one thing
//! and says what came of it: `ok`, or the name of the error. Outside it is the canary: what is forbidden inside must
//! succeed there, else the test proves nothing.

mod probes {
    #![allow(clippy::undocumented_unsafe_blocks, reason = "a test program that makes system calls to see them refused")]

    use std::ffi::CString;
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    use std::path::Path;

    use libc::c_long;

    type Probe = io::Result<()>;

    fn call(result: c_long) -> Probe {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn text(word: &str) -> CString {
        CString::new(word).unwrap()
    }

    macro_rules! system {
        ($number:expr $(, $argument:expr)*) => { call(unsafe { libc::syscall($number $(, $argument)*) }) };
    }

    /// In a child: some calls change this process for good.
    fn child(probe: impl FnOnce() -> Probe) -> Probe {
        match unsafe { libc::fork() } {
            0 => std::process::exit(probe().err().map_or(0, |error| error.raw_os_error().unwrap_or(255))),
            pid => {
                let mut status = 0;
                call(c_long::from(unsafe { libc::waitpid(pid, &mut status, 0) }))?;
                match libc::WEXITSTATUS(status) {
                    0 => Ok(()),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }

    pub fn run(name: &str, arguments: &[String]) -> Probe {
        let argument = |index: usize| arguments.get(index).map_or("", String::as_str);
        match name {
            // -- namespaces and mounts
            "unshare" => child(|| call(c_long::from(unsafe { libc::unshare(argument(0).parse().unwrap()) }))),
            "clone-newuser" => {
                let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
                match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
                    0 => unsafe { libc::_exit(0) },
                    pid => {
                        call(pid)?;
                        call(c_long::from(unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), 0) }))
                    }
                }
            }
            "clone3" => system!(libc::SYS_clone3, std::ptr::null::<u8>(), 0),
            "setns" => {
                let own = File::open("/proc/self/ns/uts")?;
                child(|| call(c_long::from(unsafe { libc::setns(own.as_raw_fd(), 0) })))
            }
            "mount" => {
                let (none, kind) = (text("none"), text("tmpfs"));
                let at = text(argument(0));
                call(c_long::from(unsafe {
                    libc::mount(none.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null())
                }))?;
                call(c_long::from(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) }))
            }
            "fsopen" => system!(libc::SYS_fsopen, text("tmpfs").as_ptr(), 0),
            "open_tree" => system!(libc::SYS_open_tree, libc::AT_FDCWD, text("/").as_ptr(), libc::OPEN_TREE_CLONE),
            "mount-setattr" => system!(libc::SYS_mount_setattr, -1, text("/").as_ptr(), 0, [0_u64; 4].as_ptr(), 32),
            "pivot-root" => system!(libc::SYS_pivot_root, text("/").as_ptr(), text("/").as_ptr()),
            "chroot" => child(|| call(c_long::from(unsafe { libc::chroot(text("/").as_ptr()) }))),
            "sethostname" => {
                let mut name = [0_u8; 65];
                unsafe { libc::gethostname(name.as_mut_ptr().cast(), 64) };
                let len = name.iter().position(|byte| *byte == 0).unwrap();
                call(c_long::from(unsafe { libc::sethostname(name.as_ptr().cast(), len) }))
            }
            // -- files
            "read" => File::open(argument(0))
                .and_then(|file| io::copy(&mut io::Read::take(file, 1), &mut io::sink()))
                .map(drop),
            "list" => fs::read_dir(argument(0)).map(drop),
            "write" => OpenOptions::new().write(true).open(argument(0)).map(drop),
            "read-write" => OpenOptions::new().read(true).write(true).open(argument(0)).map(drop),
            "create" => File::create(argument(0)).map(drop),
            "exists" => fs::symlink_metadata(argument(0)).map(drop),
            "link" => fs::hard_link(argument(0), argument(1)),
            "rename" => fs::rename(argument(0), argument(1)),
            "chmod" => {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(argument(0), fs::Permissions::from_mode(0o777))
            }
            "mknod" => {
                let device = libc::makedev(argument(1).parse().unwrap(), argument(2).parse().unwrap());
                let path = text(argument(0));
                call(c_long::from(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, device) }))
            }
            "handle" => {
                // Room for a handle: its size, then the bytes.
                let mut handle = [0_u32; 34];
                handle[0] = 128;
                let mut mount = 0;
                system!(
                    libc::SYS_name_to_handle_at,
                    libc::AT_FDCWD,
                    text("/").as_ptr(),
                    handle.as_mut_ptr(),
                    &mut mount,
                    0
                )
            }
            "open-by-handle" => {
                let mut handle = [0_u32; 34];
                handle[0] = 8;
                let root = File::open("/")?;
                match system!(libc::SYS_open_by_handle_at, root.as_raw_fd(), handle.as_mut_ptr(), libc::O_RDONLY) {
                    // The handle is none; that it was looked at is what counts.
                    Err(error)
                        if matches!(error.raw_os_error(), Some(libc::ESTALE | libc::EINVAL | libc::EOPNOTSUPP)) =>
                    {
                        Ok(())
                    }
                    other => other,
                }
            }
            "memfd-exec" => {
                let fd = unsafe { libc::memfd_create(text("x").as_ptr(), 0) };
                call(c_long::from(fd))?;
                fs::copy("/bin/true", format!("/proc/self/fd/{fd}"))?;
                let status = std::process::Command::new(format!("/proc/self/fd/{fd}")).status()?;
                if status.success() { Ok(()) } else { Err(io::Error::other("it failed")) }
            }
            // -- processes
            "ptrace" => child(|| system!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
            "vm-read" => {
                let own = unsafe { libc::getpid() };
                system!(libc::SYS_process_vm_readv, own, std::ptr::null::<u8>(), 0, std::ptr::null::<u8>(), 0, 0)
            }
            "kcmp" => {
                let own = unsafe { libc::getpid() };
                system!(libc::SYS_kcmp, own, own, 0, 0, 0)
            }
            "pidfd-getfd" => {
                let own = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
                system!(libc::SYS_pidfd_getfd, own, 0, 0)
            }
            "signal" => call(c_long::from(unsafe { libc::kill(argument(0).parse().unwrap(), 0) })),
            "signal-parent" => call(c_long::from(unsafe { libc::kill(libc::getppid(), 0) })),
            // -- the kernel
            "io-uring" => system!(libc::SYS_io_uring_setup, 4, [0_u32; 64].as_mut_ptr()),
            "bpf" => system!(libc::SYS_bpf, 0, [0_u32, 0].as_ptr(), 8).or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => Ok(()),
                _ => Err(error),
            }),
            "userfaultfd" => system!(libc::SYS_userfaultfd, libc::O_CLOEXEC),
            "perf" => system!(libc::SYS_perf_event_open, std::ptr::null::<u8>(), 0, -1, -1, 0)
                .or_else(|error| if error.raw_os_error() == Some(libc::EFAULT) { Ok(()) } else { Err(error) }),
            // The id of the session keyring.
            "keyctl" => system!(libc::SYS_keyctl, 0, -3, 1, 0, 0),
            "add-key" => {
                system!(
                    libc::SYS_add_key,
                    text("user").as_ptr(),
                    text("brine-probe").as_ptr(),
                    text("x").as_ptr(),
                    1,
                    -2
                )
            }
            "personality" => {
                // READ_IMPLIES_EXEC
                child(|| call(c_long::from(unsafe { libc::personality(0x0040_0000) })))
            }
            "syslog" => system!(libc::SYS_syslog, 10, std::ptr::null::<u8>(), 0),
            "socket" => {
                let fd = unsafe { libc::socket(argument(0).parse().unwrap(), argument(1).parse().unwrap(), 0) };
                call(c_long::from(fd))
            }
            "connect" => {
                let address: std::net::SocketAddr = argument(0).parse().unwrap();
                std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(3)).map(drop)
            }
            "abstract" => UnixStream::connect_addr(&SocketAddr::from_abstract_name(argument(0))?).map(drop),
            "unix" => UnixStream::connect(argument(0)).map(drop),
            // -- terminals
            "tiocsti" => {
                let command: u64 = libc::TIOCSTI | argument(0).parse::<u64>().unwrap() << 32;
                system!(libc::SYS_ioctl, 0, command, text("x").as_ptr())
            }
            // -- identity
            "set-id" => {
                let output = std::process::Command::new(argument(0)).arg("-u").output()?;
                let uid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                if uid == "0" { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
            }
            "setuid" => child(|| call(c_long::from(unsafe { libc::setuid(argument(0).parse().unwrap()) }))),
            "capabilities" => {
                let status = fs::read_to_string("/proc/self/status")?;
                let zero = |name: &str| {
                    status.lines().any(|line| line.starts_with(name) && line.ends_with("0000000000000000"))
                };
                let none = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].into_iter().all(zero);
                if none { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
            }
            // -- bombs
            "forks" => {
                let mut started = 0;
                loop {
                    match unsafe { libc::fork() } {
                        0 => loop {
                            unsafe { libc::pause() };
                        },
                        -1 if argument(0) == "once" => {
                            println!("{started}");
                            return Err(io::Error::last_os_error());
                        }
                        -1 => {}
                        _ => started += 1,
                    }
                }
            }
            "memory" => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                loop {
                    all.push(vec![1; 1 << 20]);
                }
            }
            "disk" => {
                let mut file = File::create("/tmp/bomb")?;
                let block = vec![7_u8; 1 << 20];
                loop {
                    io::Write::write_all(&mut file, &block)?;
                }
            }
            "files" => (0..).try_for_each(|number| File::create(format!("/tmp/file-{number}")).map(drop)),
            "descriptors" => {
                let mut open = Vec::new();
                loop {
                    match File::open("/dev/null") {
                        Ok(file) => open.push(file),
                        Err(error) => {
                            println!("{}", open.len());
                            return Err(error);
                        }
                    }
                }
            }
            "spin" => loop {
                std::hint::spin_loop();
            },
            _ => panic!("no probe {name}"),
        }
    }

    /// Descriptors this process has, as `number target`.
    pub fn descriptors() {
        let mut lines: Vec<String> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let target = fs::read_link(entry.path()).ok()?;
                // The handle on the listing itself.
                let listing = target.starts_with("/proc") && Path::new(&target).ends_with("fd");
                (!listing).then(|| format!("{} {}", entry.file_name().to_string_lossy(), target.display()))
            })
            .collect();
        lines.sort();
        lines.iter().for_each(|line| println!("{line}"));
    }
}

/// Start sandboxes as whoever this is, run one program of exec/ in one, and say how it ended.
fn run_one(volume: &str, name: &str, best_effort: bool) {
    use brine_exec::{Config, Identity, Plan, RunId, Sandboxes, View, ViewAccess};
    let label = format!("user-{}", std::process::id());
    let sandboxes = match Sandboxes::start(Config::new(&label, volume)) {
        Ok(sandboxes) => sandboxes,
        Err(error) => return println!("no sandboxes: {error}"),
    };
    let groups = nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
    let identity = Identity { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), groups };
    let source = std::path::Path::new("exec").join(name);
    let program = View { source, ino: None, at: format!("/mnt/exec/{name}").into(), access: ViewAccess::Read };
    let mut plan = Plan::new(identity, program);
    plan.best_effort = best_effort;
    plan.views.push(View { source: "data".into(), ino: None, at: "/mnt/data".into(), access: ViewAccess::Write });
    println!("unenforceable {:?}", sandboxes.status().unenforceable);
    use std::os::fd::AsFd;
    let output = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    match sandboxes.run(&plan, [None, Some(output), None]) {
        Ok(outcome) => println!("{}", outcome.cause.word()),
        Err(error) => println!("{error}"),
    }
    assert!(!sandboxes.kill(RunId::random()));
    sandboxes.stop();
}

fn main() {
    brine_exec::spawner::enter();
    let mut words = std::env::args().skip(1);
    let name = words.next().expect("the name of a probe");
    if name == "list-descriptors" {
        return probes::descriptors();
    }
    let arguments: Vec<String> = words.collect();
    if name == "run-one" {
        return run_one(&arguments[0], &arguments[1], arguments.len() > 2);
    }
    match probes::run(&name, &arguments) {
        Ok(()) => println!("ok"),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            println!("{:?}", nix::errno::Errno::from_raw(errno));
            std::process::exit(1);
        }
    }
}
