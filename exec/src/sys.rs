//! System calls without a safe wrapper; the only unsafe code of this crate.
//!
//! The functions are thin: arguments in, `io::Error` out. What they mean for a sandbox is said where they are called.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_long, c_uint, c_ulong};
use nix::unistd::Pid;

/// The constant of the C library crate overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Take ownership of a descriptor that was just received.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the descriptor came out of a control message of this process's own recvmsg call, or of a system call that
    // made it, a moment ago; nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// One side of a [`clone3`].
pub(crate) enum Side {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// The new process, in this process's pid namespace.
        pid: Pid,
        /// A handle on it, if one was asked for.
        pidfd: Option<OwnedFd>,
    },
}

/// New process in new namespaces, born in `cgroup`.
///
/// The caller must be single-threaded: the child continues with a copy of this process and may allocate.
pub(crate) fn clone3(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid value of this plain structure of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (flags | libc::CLONE_PIDFD) as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: `args` is valid for its size; without CLONE_VM and CLONE_SETTLS the child has its own copy of memory and
    // thread state, as after fork; the process has one thread, so that no lock is held by a thread the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    Ok(if pid == 0 { Side::Child } else { Side::Parent { pid: Pid::from_raw(pid as i32), pidfd: Some(own(pidfd)) } })
}

/// A process that shares this one's memory and descriptors; see [`share`].
#[derive(Debug)]
pub(crate) struct Sharing {
    pub pid: i32,
    /// Not 0 until it has a memory of its own, or is gone.
    shares: &'static AtomicU32,
}

const SHARES: u32 = 1;

/// Run `child` in a new process that shares this one's memory and descriptors until it executes a program or ends. It has
/// signals, limits, rights, directories of its own.
///
/// Of the two only one may run at a time: the other one waits, for a byte from it or by [`Sharing::await_parting`]. On its
/// way there it does not so much as allocate. The caller must be single-threaded; `child` must end by [`exit_now`]. It and
/// its stack stay in memory as long as this process.
pub(crate) fn share(stack_bytes: usize, child: Box<dyn FnMut()>) -> io::Result<Sharing> {
    extern "C" fn start(child: *mut libc::c_void) -> c_int {
        // SAFETY: it is the leaked closure below, which nobody else uses.
        let child = unsafe { &mut *child.cast::<Box<dyn FnMut()>>() };
        child();
        exit_now(125)
    }
    const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    let shares: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(SHARES)));
    let child: *mut Box<dyn FnMut()> = Box::leak(Box::new(child));
    let end = vec![0_u8; stack_bytes].leak().as_mut_ptr_range().end;
    let top = end.wrapping_sub(end as usize % 16);
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the stack is valid down from its aligned end, lives as long as the process, and is used by nobody else; the
    // two processes take turns, as the callers promise, so that neither sees memory the other one is changing; the kernel
    // writes to `shares`, which is atomic and never freed.
    let pid = unsafe { libc::clone(start, top.cast(), FLAGS, child.cast(), none, none, shares.as_ptr()) };
    check(c_long::from(pid))?;
    Ok(Sharing { pid, shares })
}

impl Sharing {
    /// Stand still until it has executed a program, or is gone.
    pub fn await_parting(&self) {
        let forever = std::ptr::null::<libc::timespec>();
        while self.shares.load(Ordering::SeqCst) != 0 {
            // SAFETY: the word is never freed. Not the private kind of wait: the kernel's own waking is not of that kind.
            unsafe { libc::syscall(libc::SYS_futex, self.shares.as_ptr(), libc::FUTEX_WAIT, SHARES, forever) };
        }
    }
}

/// End this process without running anything of it.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// `open_tree(2)` with `O_CLOEXEC`.
pub(crate) fn open_tree(at: Option<BorrowedFd<'_>>, path: &CStr, flags: c_uint) -> io::Result<OwnedFd> {
    let at = at.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: the path is a valid C string for the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags | libc::OPEN_TREE_CLOEXEC) })?;
    Ok(own(fd as RawFd))
}

/// Attach a detached mount at `path`.
pub(crate) fn move_mount(from: impl AsFd, path: &CStr) -> io::Result<()> {
    const F_EMPTY_PATH: c_uint = 4;
    // SAFETY: both paths are valid C strings for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Attributes to set on a mount: read-only.
pub(crate) const MOUNT_RDONLY: u64 = 1;
/// No set-id bits.
pub(crate) const MOUNT_NOSUID: u64 = 2;
/// No device nodes.
pub(crate) const MOUNT_NODEV: u64 = 4;

/// Set attributes of the mount `fd` is the root of, and of those below it if asked.
pub(crate) fn mount_setattr(fd: impl AsFd, recursive: bool, set: u64) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = Attr { set, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure is the kernel's first version of it, valid for its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<Attr>(),
        )
    })?;
    Ok(())
}

/// `openat2(2)` that stays beneath `at` and follows no symbolic or magic link.
pub(crate) fn open_beneath(at: impl AsFd, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const NO_MAGICLINKS: u64 = 2;
    const NO_SYMLINKS: u64 = 4;
    const BENEATH: u64 = 8;
    let mode = if flags & libc::O_CREAT == 0 { 0 } else { 0o600 };
    let how = How { flags: (flags | libc::O_CLOEXEC) as u64, mode, resolve: NO_MAGICLINKS | NO_SYMLINKS | BENEATH };
    // SAFETY: path and structure are valid for the call; the structure's size is passed.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_openat2, at.as_fd().as_raw_fd(), path.as_ptr(), &raw const how, size_of::<How>())
    })?;
    Ok(own(fd as RawFd))
}

/// `close_range(2)`: from `first` on, close at exec or at once.
pub(crate) fn close_from(first: RawFd, at_exec: bool) -> io::Result<()> {
    let flags: c_uint = if at_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: descriptors are integers to the kernel; callers own every one of the range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first as c_uint, c_uint::MAX, flags) })?;
    Ok(())
}

/// `prctl(2)` with two arguments.
pub(crate) fn prctl(option: c_int, two: c_ulong, three: c_ulong) -> io::Result<c_int> {
    // SAFETY: only options that take integers are used in this crate.
    let result = unsafe { libc::prctl(option, two, three, 0 as c_ulong, 0 as c_ulong) };
    check(c_long::from(result)).map(|result| result as c_int)
}

/// Give up every capability of this thread.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let data = [0_u32; 6];
    // SAFETY: version 3 takes a header of two and data of six 32-bit words; both live through the call.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// Install a seccomp filter on this thread. `speculation`: without the store-bypass penalty of old kernels.
pub(crate) fn seccomp_filter(program: &[libc::sock_filter], speculation: bool) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let flags = if speculation { libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW } else { 0 };
    // SAFETY: the kernel copies the program, which is valid for its length, and does not write to it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    Ok(())
}

/// Landlock's version of this kernel; an error if it has none or it is switched off.
pub(crate) fn landlock_abi() -> io::Result<u32> {
    const VERSION: c_uint = 1;
    // SAFETY: with this flag the kernel takes a null attribute of size zero.
    let abi =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) })?;
    Ok(abi as u32)
}

/// A Landlock rule set that handles these accesses and scopes.
pub(crate) fn landlock_ruleset(abi: u32, handled_fs: u64, scoped: u64) -> io::Result<OwnedFd> {
    let attr: [u64; 3] = [handled_fs, 0, scoped];
    let size = size_of::<u64>() * if abi >= 6 { 3 } else { 1 };
    // SAFETY: the attribute is valid for the size passed, which is that of the version the kernel reported.
    let fd = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attr.as_ptr(), size, 0) })?;
    Ok(own(fd as RawFd))
}

/// Allow `access` below (or, for a file, on) what `fd` refers to.
pub(crate) fn landlock_allow(ruleset: impl AsFd, fd: impl AsFd, access: u64) -> io::Result<()> {
    const PATH_BENEATH: c_int = 1;
    #[repr(C, packed)]
    struct Beneath {
        access: u64,
        parent: i32,
    }
    let rule = Beneath { access, parent: fd.as_fd().as_raw_fd() };
    // SAFETY: the structure is the kernel's packed one, valid for the call.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_fd().as_raw_fd(), PATH_BENEATH, &raw const rule, 0)
    })?;
    Ok(())
}

/// Restrict this thread, and all it starts.
pub(crate) fn landlock_restrict(ruleset: impl AsFd) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_fd().as_raw_fd(), 0) })?;
    Ok(())
}

/// Send a signal through a process handle: never to another process that got its number.
pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: c_int) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    })?;
    Ok(())
}

/// A signal of any number, realtime ones included.
pub(crate) fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    check(c_long::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}

/// Every signal's default action, and none blocked.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: this action needs no handler; signals that cannot be set answer EINVAL, which is right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_signals(0);
}

/// Ignore those of `ignored` (bit n-1 for signal n), and block none.
pub(crate) fn set_signals(ignored: u64) {
    for signal in (1..=64).filter(|signal| ignored >> (signal - 1) & 1 == 1) {
        // SAFETY: as above.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Nice value of this process.
pub(crate) fn set_nice(nice: c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    check(c_long::from(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }))?;
    Ok(())
}

/// Set one resource limit of this process.
pub(crate) fn set_rlimit(resource: c_uint, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives through the call.
    check(c_long::from(unsafe { libc::setrlimit(resource as _, &raw const limit) }))?;
    Ok(())
}

/// Process, user and group of a connected Unix socket's other end, and its supplementary groups, when it connected.
pub(crate) fn peer(socket: impl AsFd) -> io::Result<(i32, u32, u32, Vec<u32>)> {
    const SO_PEERGROUPS: c_int = 59;
    let credentials = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    // Nearly everybody has few, and nobody more than the second number.
    for most in [32, 65536] {
        let mut groups = vec![0_u32; most];
        let mut len = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer is valid for `len` bytes, which is what the kernel is told.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        match check(c_long::from(result)) {
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => continue,
            other => other?,
        };
        groups.truncate(len as usize / size_of::<u32>());
        return Ok((credentials.pid(), credentials.uid(), credentials.gid(), groups));
    }
    Err(io::Error::from_raw_os_error(libc::ERANGE))
}

/// Nanoseconds of the clock that never goes back; the same in every process of a machine, until it restarts.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives through the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Window size of a terminal: rows, columns, pixels across and down.
pub(crate) fn set_window(terminal: impl AsFd, size: [u16; 4]) -> io::Result<()> {
    let size = libc::winsize { ws_row: size[0], ws_col: size[1], ws_xpixel: size[2], ws_ypixel: size[3] };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    check(c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }))?;
    Ok(())
}

/// Make a terminal the controlling one of this session leader.
pub(crate) fn set_controlling(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }))?;
    Ok(())
}

/// An `O_PATH` descriptor of a path of this crate's own making.
pub(crate) fn open_path(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the path is a valid C string for the call.
    let fd = check(c_long::from(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }))?;
    Ok(own(fd as RawFd))
}

/// Attach a detached mount on what `to` refers to.
pub(crate) fn move_mount_to(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    const F_AND_T_EMPTY_PATH: c_uint = 4 | 0x40;
    // SAFETY: both paths are valid C strings for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_fd().as_raw_fd(),
            c"".as_ptr(),
            to.as_fd().as_raw_fd(),
            c"".as_ptr(),
            F_AND_T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// A number that is known to be an open descriptor for as long as the borrow is used.
pub(crate) fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: callers take the number from an owner they keep until the borrow's last use.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Make `target` a copy of `source`, kept at exec.
pub(crate) fn duplicate(source: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: descriptors are integers to the kernel; the caller is about to exec and owns all of them.
    check(c_long::from(unsafe { libc::dup2(source, target) }))?;
    Ok(())
}

/// Wait for any child, of whatever kind: its number and status, or `None` if none has ended and `block` is false. ECHILD
/// if there is none.
pub(crate) fn wait_any(block: bool) -> io::Result<Option<(i32, c_int)>> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a valid place for one int.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | if block { 0 } else { libc::WNOHANG }) };
        match pid {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            pid => return Ok(Some((pid, status))),
        }
    }
}
