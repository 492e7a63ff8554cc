//! The launcher: what the kernel starts when a file in exec/ is executed (`#!LAUNCHER TICKET`).
//!
//! It asks the daemon for a run on `exec.sock` beside itself, gives its standard descriptors to the run's init, passes
//! signals on, and ends as the run ends. No C library, no heap, no thread; a few pages, all touched before anything
//! else: it is read from the very mount whose daemon may die, and then it must say so and not die of SIGBUS. The bytes
//! it speaks are those of `exec/src/protocol`.
//!
//! Its failures: 125 the daemon ended, 126 refused, each with a line on standard error that starts with `brine: `.
#![no_std]
#![no_main]

mod sys;
mod talk;

use core::ptr;

use sys::{Terminal, Words, exit, syscall};
use talk::{Caller, Ended, Received};

/// The volume's daemon cannot be reached, or ended.
const LOST: i32 = 125;
/// Started in another way than by the kernel.
const REFUSED: i32 = 126;

/// Signals that are passed on: HUP INT QUIT USR1 USR2 ALRM TERM CONT TSTP TTIN TTOU WINCH.
const PASSED: [u8; 12] = [1, 2, 3, 10, 12, 14, 15, 18, 20, 21, 22, 28];
const WINCH: u8 = 28;
const STOP: usize = 19;

/// Where the kernel's stack of arguments is handed to by the entry point.
///
/// # Safety
/// `stack` is the initial stack pointer of the process.
#[unsafe(no_mangle)]
unsafe extern "C" fn launcher_main(stack: *const usize) -> ! {
    // SAFETY: as this function's own contract says; the strings live as long as the process.
    let words = unsafe { Words::from_stack(stack) };
    sys::touch_pages(&words);
    let (Some(own), Some(ticket), Some(path)) = (words.argument(0), words.argument(1), words.argument(2)) else {
        die(REFUSED, b"this program starts functions; it is not started by hand")
    };
    // As long as this is open, umount(8) finds the mount in use and names this process (X6). It is never read.
    sys::open(path, sys::O_PATH | sys::O_CLOEXEC);
    let signals = catch();
    let Some((init, theirs)) = talk::pair() else { die(LOST, b"descriptors are out") };
    let terminal = Terminal::foreground();
    // Before the run is asked for: its init finds them there, and nobody has to be woken for it.
    talk::streams(init, terminal.is_some());
    let mut path = [0; 4096];
    let caller = Caller::now(&mut path);
    // When all is at hand: the daemon's thread that wakes for the connection finds the question there.
    let daemon = match talk::connect(own).or_else(|error| talk::connect_inside().ok_or(error)) {
        Ok(daemon) => daemon,
        // The socket is in a directory of that user's own.
        Err(sys::EACCES) => die(REFUSED, b"only the user who mounted this volume can run functions on it"),
        Err(_) => die(LOST, b"the volume's daemon does not answer; is it mounted?"),
    };
    talk::ask(daemon, theirs, &words, ticket, &caller);
    sys::close(theirs);
    // The run will have them: ends of files and broken pipes are between it and the others. Standard error is kept for
    // the one line this program may have to say, and a terminal to be set back.
    if terminal.is_none() {
        sys::close(0);
    }
    sys::close(1);
    let received = wait(daemon, init, signals, terminal.is_some());
    if let Some(terminal) = terminal {
        // The init did, if it could.
        terminal.restore();
    }
    match received {
        Received::Ended(ended) => end(&ended),
        _ => die(LOST, b"the volume's daemon ended; the run is lost"),
    }
}

/// Until the daemon says how it ended, or is gone.
fn wait(daemon: i32, init: i32, signals: i32, relay: bool) -> Received {
    let mut polled = [sys::PollFd::input(daemon), sys::PollFd::input(signals), sys::PollFd::input(init)];
    loop {
        if sys::poll(&mut polled) < 0 {
            continue;
        }
        if polled[1].ready() {
            while let Some(signal) = sys::read_signal(signals) {
                match signal {
                    WINCH if relay => talk::window(init),
                    _ => pass_on(init, signal),
                }
            }
        }
        if polled[2].ready() {
            // The init says nothing; it is gone. The daemon will say why.
            polled[2].forget();
        }
        if polled[0].ready() {
            return talk::receive(daemon);
        }
    }
}

fn pass_on(init: i32, signal: u8) {
    talk::signal(init, signal);
    if matches!(signal, 20..=22) {
        // The run stops, and so does what the shell waits for. CONT comes through the same way.
        sys::kill_self(STOP);
    }
}

/// Signals come as data from now on. Those the caller ignores stay ignored.
fn catch() -> i32 {
    let mask = PASSED.iter().fold(0_u64, |mask, signal| mask | 1 << (signal - 1));
    sys::block(mask);
    sys::signal_fd(mask)
}

fn end(ended: &Ended) -> ! {
    if !ended.line().is_empty() {
        say(ended.line());
    }
    if ended.by_signal {
        sys::die_of(usize::from(ended.number));
        exit(128 + i32::from(ended.number));
    }
    exit(i32::from(ended.number))
}

fn die(code: i32, line: &[u8]) -> ! {
    say(line);
    exit(code)
}

/// One write, so that lines of several launchers do not mix.
fn say(line: &[u8]) {
    const FRONT: &[u8] = b"brine: ";
    let mut buffer = [0; 1024];
    let len = line.len().min(buffer.len() - FRONT.len() - 1);
    buffer[..FRONT.len()].copy_from_slice(FRONT);
    buffer[FRONT.len()..][..len].copy_from_slice(&line[..len]);
    buffer[FRONT.len() + len] = b'\n';
    let whole = &buffer[..FRONT.len() + len + 1];
    // SAFETY: the buffer is valid for its length.
    unsafe { syscall(sys::WRITE, [2, whole.as_ptr() as usize, whole.len(), 0, 0, 0]) };
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    die(LOST, b"the launcher is broken; please report this")
}

/// What the compiler calls to copy.
///
/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    for at in 0..len {
        // SAFETY: by the contract of memcpy. Volatile, or the compiler makes this loop a call of itself.
        unsafe { ptr::write_volatile(to.add(at), ptr::read_volatile(from.add(at))) };
    }
    to
}

/// What the compiler calls to fill.
///
/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: by the contract of memset. One instruction: paths and buffers of some thousand bytes are filled.
    unsafe {
        core::arch::asm!(
            "rep stosb",
            inout("rdi") to => _,
            inout("rcx") len => _,
            in("al") byte as u8,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..len {
        // SAFETY: by the contract of memset; volatile for the same reason.
        unsafe { ptr::write_volatile(to.add(at), byte as u8) };
    }
    to
}

/// What the compiler calls to compare.
///
/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, two: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: by the contract of memcmp; volatile for the same reason.
        let (a, b) = unsafe { (ptr::read_volatile(one.add(at)), ptr::read_volatile(two.add(at))) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}
