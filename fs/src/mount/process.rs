//! What a process that holds keys does to itself, and how it goes to the background.

use std::fs::File;
use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

/// Nobody but root may look into this process, and it leaves no core.
pub fn harden() {
    // Neither can fail for lack of rights; a kernel without them is not worth refusing for.
    let _ = prctl::set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// Segments are kept open in every directory: as many files as may be had.
pub fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Memory pools of the C library. A third does not make anything faster: large buffers are few and recycled.
const MEMORY_POOLS: i32 = 2;
/// Freed bytes that each of them keeps at its end: more than a commit or a few chunks take.
const FREED_KEPT: i32 = 8 << 20;

/// Threads share their freed buffers, so that the daemon stays within the memory its caches are given.
pub fn share_memory() {
    crate::sys::limit_memory_pools(MEMORY_POOLS);
    crate::sys::keep_freed_memory(FREED_KEPT);
}

/// Name of this process in ps and top: it was started as /proc/self/exe.
pub fn set_name() {
    let _ = prctl::set_name(c"brine");
}

/// A session of its own, out of every directory: a terminal that closes or a disk that is unmounted is not held.
pub fn detach_from_terminal() {
    // EPERM says that it leads a session already.
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
}

/// Standard output and input become /dev/null, so that the pipe to whoever waits is closed.
///
/// # Errors
/// What the system says.
pub fn close_standard_files() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// The signals that ask for an orderly end.
pub fn ending_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}
