//! From a sandbox that waits to the program in it: done in the process that becomes the program.
//!
//! It shares the init's memory until exec: to copy it, and to take the copy apart again, would cost more than all the
//! rest. The init stands still as long; should a path of the volume hang, the daemon counts time and ends the sandbox
//! from outside. Order: views while there are still rights to mount, then everything is given up,
//! the filter last, then exec.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::landlock::{self, Rules};
use super::message::{Failure, Run};
use super::root::{VOLUME_INSIDE, text};
use super::seccomp;
use crate::plan::{View, ViewAccess};
use crate::sys;

/// Descriptor the credential has in the program.
const CREDENTIAL_FD: i32 = 3;

/// What is made ready while a sandbox waits for its run.
pub(crate) struct Ready {
    /// Goes over the volume.
    cover: OwnedFd,
    filter: Vec<libc::sock_filter>,
    /// What every run of the template may do with files; none if the kernel has no Landlock.
    rules: Option<Rules>,
    /// The root directory may be written to: it is a private layer.
    writable_root: bool,
}

impl Ready {
    /// The descriptors it holds.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let rules = self.rules.as_ref().map(Rules::descriptor);
        [self.cover.as_raw_fd()].into_iter().chain(rules).collect()
    }

    /// In the sandbox's own root.
    pub fn new(cover: OwnedFd, writable_root: bool) -> Result<Self, Failure> {
        let failed = || Failure::step("Landlock rules");
        let rules = Rules::new().map_err(failed())?;
        if let Some(rules) = &rules {
            common(rules, writable_root).map_err(failed())?;
        }
        lock_rights().map_err(Failure::step("giving up rights"))?;
        Ok(Self { cover, filter: seccomp::program(), rules, writable_root })
    }
}

fn common(rules: &Rules, writable_root: bool) -> io::Result<()> {
    let open = |path: &str| text(Path::new(path)).and_then(|path| sys::open_path(&path));
    let root_access = if writable_root { landlock::LOOK | landlock::CHANGE } else { landlock::LOOK };
    rules.below(open("/")?, root_access)?;
    rules.below(open("/tmp")?, landlock::LOOK | landlock::CHANGE)?;
    for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"] {
        rules.file(open(device)?, landlock::DEVICE)?;
    }
    rules.below(open("/dev/pts")?, landlock::DEVICE | landlock::LOOK)
}

/// What the program is started with beside the message.
pub(crate) struct With {
    /// Standard descriptors; missing ones become /dev/null.
    pub streams: [Option<OwnedFd>; 3],
    pub credential: Option<OwnedFd>,
    /// Terminal to be the controlling one.
    pub terminal: Option<OwnedFd>,
}

/// Become the program. Returns only what went wrong.
/// `starts` is called right before exec.
pub(crate) fn launch(run: &Run, with: With, ready: Ready, starts: &mut dyn FnMut()) -> Failure {
    match prepare(run, with, ready) {
        Ok((program, argv, environment)) => {
            starts();
            let error = match nix::unistd::execve(&program, &argv, &environment) {
                Ok(never) => match never {},
                Err(errno) => errno,
            };
            why_not_started(run, error)
        }
        Err(failure) => failure,
    }
}

impl With {
    /// The descriptors it holds.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let all = self.streams.iter().flatten().chain(&self.credential).chain(&self.terminal);
        all.map(AsRawFd::as_raw_fd).collect()
    }
}

type Command = (CString, Vec<CString>, Vec<CString>);

fn prepare(run: &Run, with: With, ready: Ready) -> Result<Command, Failure> {
    let failed = |step: &'static str| Failure::step(step);
    nix::unistd::setsid().map_err(io::Error::from).map_err(failed("a session of its own"))?;
    let writable = views(run, &ready.cover)?;
    directory(&run.directory)?;
    seal_root(ready.writable_root)?;
    enter(&run.directory)?;
    if let Some(terminal) = &with.terminal {
        sys::set_controlling(terminal).map_err(failed("the controlling terminal"))?;
    }
    files(ready.rules.as_ref(), &with, &writable)?;
    place(with)?;
    let keep = if run.credential.is_some() { CREDENTIAL_FD + 1 } else { CREDENTIAL_FD };
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(run.umask));
    limits(run).map_err(failed("resource limits"))?;
    give_up().map_err(failed("giving up rights"))?;
    if let Some(rules) = ready.rules {
        rules.enforce().map_err(failed("Landlock"))?;
    }
    sys::close_from(keep, true).map_err(failed("closing descriptors"))?;
    let strings = |strings: &[std::ffi::OsString]| {
        strings.iter().map(|string| CString::new(string.as_bytes())).collect::<Result<Vec<_>, _>>()
    };
    let command = (text(&run.program.at), strings(&run.argv), strings(&run.environment));
    let (Ok(program), Ok(argv), Ok(environment)) = command else {
        return Err(Failure { code: 126, step: "a zero byte in an argument".into(), errno: 0 });
    };
    sys::set_signals(run.ignored_signals);
    sys::seccomp_filter(&ready.filter, true)
        .or_else(|_| sys::seccomp_filter(&ready.filter, false))
        .map_err(failed("the system call filter"))?;
    Ok((program, argv, environment))
}

/// Show what the plan names, and nothing else of the volume. Returns where writing is allowed.
fn views(run: &Run, cover: &OwnedFd) -> Result<Vec<OwnedFd>, Failure> {
    let refused = |view: &View| {
        let path = view.source.display().to_string();
        move |error: io::Error| {
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            let errno = error.raw_os_error().unwrap_or(0);
            let why = if errno == libc::ELOOP { " is or passes a symbolic link" } else { "" };
            Failure { code, step: format!("{path}{why}"), errno }
        }
    };
    let inside = text(Path::new(VOLUME_INSIDE)).map_err(Failure::step("the volume's root"))?;
    let volume = sys::open_path(&inside).map_err(Failure::step("the volume's root"))?;
    let root = File::open("/").map_err(Failure::step("the root"))?;
    // What lies above is mounted first.
    let mut views: Vec<&View> = run.views.iter().collect();
    views.sort_by_key(|view| view.at.components().count());
    views.push(&run.program);
    let mut writable = Vec::new();
    for view in views {
        let path = text(&view.source).map_err(refused(view))?;
        let found = sys::open_beneath(&volume, &path, libc::O_PATH | libc::O_NOFOLLOW).map_err(refused(view))?;
        let stat = nix::sys::stat::fstat(&found).map_err(io::Error::from).map_err(refused(view))?;
        let kind = stat.st_mode & libc::S_IFMT;
        if kind != libc::S_IFREG && kind != libc::S_IFDIR {
            let what = if kind == libc::S_IFLNK { "a symbolic link" } else { "neither a file nor a directory" };
            let step = format!("{} is {what}", view.source.display());
            return Err(Failure { code: 126, step, errno: 0 });
        }
        if view.ino.is_some_and(|ino| ino != stat.st_ino) {
            let step = format!("{} was replaced while the run was being prepared", view.source.display());
            return Err(Failure { code: 126, step, errno: 0 });
        }
        let at = || mount_point(&root, view, kind == libc::S_IFDIR);
        if let ViewAccess::Stage(staging) = &view.access {
            overlay(&volume, staging, &found, &at()?, view)?;
            // The overlay is on top now.
            writable.push(at()?);
            continue;
        }
        let tree = sys::open_tree(Some(found.as_fd()), c"", libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32)
            .map_err(refused(view))?;
        let write = view.access == ViewAccess::Write;
        let attributes = sys::MOUNT_NOSUID | sys::MOUNT_NODEV | if write { 0 } else { sys::MOUNT_RDONLY };
        sys::mount_setattr(&tree, false, attributes).map_err(refused(view))?;
        sys::move_mount_to(&tree, at()?).map_err(refused(view))?;
        if write {
            writable.push(tree);
        }
    }
    // From here on nobody gets at the volume's root any more: the cover cannot be taken off without the right to
    // unmount, and the descriptor is closed.
    sys::move_mount_to(cover, &volume).map_err(Failure::step("covering the volume"))?;
    Ok(writable)
}

/// A view whose changes go to a staging directory: an overlay of it over what the view shows.
fn overlay(volume: &OwnedFd, staging: &Path, lower: &OwnedFd, at: &OwnedFd, view: &View) -> Result<(), Failure> {
    let step = || Failure::step(format!("staging the outputs of {}", view.source.display()));
    let path = text(staging).map_err(step())?;
    let staging = sys::open_beneath(volume, &path, libc::O_PATH | libc::O_DIRECTORY).map_err(step())?;
    // By number: no path of a user's stands among the options. It is thrown away if the run fails, so that nothing in
    // it need be synced.
    let options = format!(
        "lowerdir=/proc/self/fd/{},upperdir=/proc/self/fd/{1}/upper,workdir=/proc/self/fd/{1}/work,userxattr,volatile",
        lower.as_raw_fd(),
        staging.as_raw_fd()
    );
    let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
    let at = format!("/proc/self/fd/{}", at.as_raw_fd());
    super::root::mount_at(Some("overlay"), &at, Some("overlay"), flags, &options).map_err(step())
}

/// The place in the sandbox where a view is mounted, made if need be. No link is followed on the way: a view shown
/// earlier may hold some.
fn mount_point(root: &File, view: &View, is_directory: bool) -> Result<OwnedFd, Failure> {
    let cannot = || Failure::step(format!("{} cannot be shown in a sandbox at this path", view.at.display()));
    let relative = view.at.strip_prefix("/").unwrap_or(&view.at);
    let path = text(relative).map_err(cannot())?;
    if let Ok(found) = sys::open_beneath(root, &path, libc::O_PATH | libc::O_NOFOLLOW) {
        return Ok(found);
    }
    let parent = view.at.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(cannot())?;
    if is_directory {
        fs::create_dir(&view.at).map_err(cannot())?;
    } else {
        File::options().write(true).create_new(true).open(&view.at).map_err(cannot())?;
    }
    sys::open_beneath(root, &path, libc::O_PATH | libc::O_NOFOLLOW).map_err(cannot())
}

/// The caller's working directory exists, if only empty, so that relative paths mean what they meant.
fn directory(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(Failure::step(format!("working directory {}", path.display())))
}

fn seal_root(writable: bool) -> Result<(), Failure> {
    let root = sys::open_path(c"/").map_err(Failure::step("the root"))?;
    let attributes = sys::MOUNT_NOSUID | sys::MOUNT_NODEV | if writable { 0 } else { sys::MOUNT_RDONLY };
    sys::mount_setattr(&root, false, attributes).map_err(Failure::step("making the root read-only"))
}

fn enter(path: &Path) -> Result<(), Failure> {
    let step = || Failure::step(format!("working directory {}", path.display()));
    nix::unistd::chdir(path).map_err(io::Error::from).map_err(step())?;
    // Reachable from the root, or a descriptor leaked (CVE-2024-21626): the C library refuses a path that is not.
    let seen = nix::unistd::getcwd().map_err(io::Error::from).map_err(step())?;
    if seen.is_absolute() { Ok(()) } else { Err(step()(io::Error::from_raw_os_error(libc::EACCES))) }
}

/// Landlock's rules for what this run has beside others.
fn files(rules: Option<&Rules>, with: &With, writable: &[OwnedFd]) -> Result<(), Failure> {
    let failed = || Failure::step("Landlock rules");
    let Some(rules) = rules else {
        for stream in with.streams.iter().flatten() {
            if file_type(stream) == libc::S_IFREG {
                let step = "a standard stream is a file, and without Landlock it could be reopened for more; put a \
                            pipe between (`| cat`)";
                return Err(Failure { code: 126, step: step.into(), errno: 0 });
            }
        }
        return Ok(());
    };
    for view in writable {
        match file_type(view) {
            libc::S_IFDIR => rules.below(view, landlock::LOOK | landlock::CHANGE),
            _ => rules.file(view, landlock::LOOK | landlock::CHANGE),
        }
        .map_err(failed())?;
    }
    for stream in with.streams.iter().flatten() {
        let flags = nix::fcntl::fcntl(stream, nix::fcntl::FcntlArg::F_GETFL).map_err(io::Error::from);
        let flags = flags.map_err(failed())?;
        let access = landlock::of_stream(flags);
        match file_type(stream) {
            libc::S_IFREG => match rules.file(stream, access) {
                // A file in memory (memfd_create): Landlock knows no rule for it and forbids nothing. Open for both
                // directions it cannot be reopened for more.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                    if flags & libc::O_ACCMODE != libc::O_RDWR {
                        let step = "a standard stream is a file in memory and could be reopened for more; put a pipe \
                                    between (`| cat`)";
                        return Err(Failure { code: 126, step: step.into(), errno: 0 });
                    }
                }
                outcome => outcome.map_err(failed())?,
            },
            libc::S_IFCHR => rules.file(stream, access | landlock::IOCTL_DEV).map_err(failed())?,
            // Pipes and sockets have no path that Landlock knows.
            _ => {}
        }
    }
    Ok(())
}

fn file_type(fd: &OwnedFd) -> u32 {
    nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_mode & libc::S_IFMT)
}

/// Put the descriptors where the program expects them.
fn place(with: With) -> Result<(), Failure> {
    let failed = || Failure::step("standard descriptors");
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed())?;
    // Out of the way of 0 to 3 first, so that none overwrites another.
    let high = |fd: &dyn AsRawFd| {
        let borrowed = sys::borrow(fd.as_raw_fd());
        nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10)).map_err(io::Error::from)
    };
    let mut sources = Vec::new();
    for (number, stream) in with.streams.iter().enumerate() {
        let source = match stream {
            Some(stream) => high(stream),
            None => high(&null),
        };
        sources.push((source.map_err(failed())?, number as i32));
    }
    if let Some(credential) = &with.credential {
        sources.push((high(credential).map_err(failed())?, CREDENTIAL_FD));
    }
    for (source, target) in sources {
        sys::duplicate(source, target).map_err(failed())?;
    }
    Ok(())
}

fn limits(run: &Run) -> io::Result<()> {
    sys::set_rlimit(libc::RLIMIT_CORE, 0, 0)?;
    sys::set_rlimit(libc::RLIMIT_FSIZE, run.file_size_bytes, run.file_size_bytes)?;
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let files = run.open_files.min(hard);
    sys::set_rlimit(libc::RLIMIT_NOFILE, files, files)?;
    sys::set_rlimit(libc::RLIMIT_MSGQUEUE, 0, 0)?;
    sys::set_rlimit(libc::RLIMIT_MEMLOCK, 64 << 10, 64 << 10)?;
    if let Some(time) = run.cpu_time {
        // Of one process; the daemon counts them all. Two seconds more, so that the daemon's word comes first.
        let seconds = time.as_secs() + 2;
        sys::set_rlimit(libc::RLIMIT_CPU, seconds, seconds)?;
    }
    if run.pids > 0 {
        sys::set_rlimit(libc::RLIMIT_NPROC, run.pids, run.pids)?;
    }
    if run.memory_bytes > 0 {
        sys::set_rlimit(libc::RLIMIT_AS, run.memory_bytes, run.memory_bytes)?;
    }
    if run.nice > 0 {
        sys::set_nice(run.nice)?;
    }
    Ok(())
}

/// Every way to get a capability at exec, locked; it changes nothing for this process.
fn lock_rights() -> io::Result<()> {
    /// NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each locked.
    const SECURE_BITS: u64 = 0b1110_1111;
    sys::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0)?;
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    // The kernel says EINVAL behind the last one it has.
    for capability in 0..64 {
        if sys::prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            break;
        }
    }
    Ok(())
}

/// Every capability there is; [`lock_rights`] took the ways back.
fn give_up() -> io::Result<()> {
    sys::drop_capabilities()?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
    Ok(())
}

/// The message for an exec that failed. The filter is in force already; reading a file is all this needs.
fn why_not_started(run: &Run, errno: nix::errno::Errno) -> Failure {
    use nix::errno::Errno;
    let path = run.program.at.display();
    let mut head = [0; 256];
    let len = File::open(&run.program.at).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let interpreter = head[..len].strip_prefix(b"#!").map(|line| {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let word = line.trim_ascii_start().split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
        String::from_utf8_lossy(word).into_owned()
    });
    let failure = |code, step: String, errno: Errno| Failure { code, step, errno: errno as i32 };
    match (errno, interpreter) {
        (Errno::ENOENT, Some(interpreter)) => {
            failure(127, format!("{path}: its interpreter {interpreter} is not in the sandbox"), errno)
        }
        (Errno::ENOENT, None) if head.starts_with(b"\x7fELF") => {
            failure(127, format!("{path}: its dynamic loader is not in the sandbox"), errno)
        }
        (Errno::ENOENT, None) => failure(127, format!("{path}"), errno),
        (Errno::ENOEXEC, _) => {
            failure(126, format!("{path} is neither a program for this machine nor a script with a #! line"), errno)
        }
        _ => failure(126, format!("{path}"), errno),
    }
}
