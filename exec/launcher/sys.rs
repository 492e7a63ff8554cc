//! System calls, the entry point, and what the kernel puts on the stack.

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const READ: usize = 0;
    pub const SIGACTION: usize = 13;
    pub const SIGPROCMASK: usize = 14;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SOCKETPAIR: usize = 53;
    pub const SENDTO: usize = 44;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const EXIT_GROUP: usize = 231;
    pub const IOCTL: usize = 16;
    pub const GETPGID: usize = 121;
    pub const FSTAT: usize = 5;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const GETCWD: usize = 79;
    pub const UMASK: usize = 95;
    pub const GETPRIORITY: usize = 140;
    pub const MLOCK: usize = 149;
    pub const OPENAT: usize = 257;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
    pub const PRLIMIT64: usize = 302;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const SIGACTION: usize = 134;
    pub const SIGPROCMASK: usize = 135;
    pub const GETPID: usize = 172;
    pub const SOCKET: usize = 198;
    pub const CONNECT: usize = 203;
    pub const SOCKETPAIR: usize = 199;
    pub const SENDTO: usize = 206;
    pub const SENDMSG: usize = 211;
    pub const RECVMSG: usize = 212;
    pub const EXIT_GROUP: usize = 94;
    pub const IOCTL: usize = 29;
    pub const GETPGID: usize = 155;
    pub const FSTAT: usize = 80;
    pub const KILL: usize = 129;
    pub const FCNTL: usize = 25;
    pub const GETCWD: usize = 17;
    pub const UMASK: usize = 166;
    pub const GETPRIORITY: usize = 141;
    pub const MLOCK: usize = 228;
    pub const OPENAT: usize = 56;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const PRLIMIT64: usize = 261;
}

pub use number::*;

pub const O_PATH: usize = 0o10_000_000;
pub const O_CLOEXEC: usize = 0o2_000_000;
const AT_FDCWD: usize = -100_isize as usize;
const EINTR: isize = -4;
pub const EACCES: isize = -13;
pub const ENAMETOOLONG: isize = -36;

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    main = sym super::launcher_main
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "bl {main}",
    main = sym super::launcher_main
);

/// Any system call: its result, negative for an error.
///
/// # Safety
/// Pointers among the arguments are valid for what the call does with them.
pub unsafe fn syscall(number: usize, arguments: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention; the arguments are the caller's responsibility.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: the kernel's calling convention; the arguments are the caller's responsibility.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") arguments[0] as isize => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            in("x4") arguments[4],
            in("x5") arguments[5],
        );
    }
    result
}

/// [`syscall`] with integers only.
fn plain(number: usize, arguments: [usize; 4]) -> isize {
    // SAFETY: no caller passes an address here.
    unsafe { syscall(number, [arguments[0], arguments[1], arguments[2], arguments[3], 0, 0]) }
}

pub fn exit(code: i32) -> ! {
    loop {
        plain(EXIT_GROUP, [code as usize, 0, 0, 0]);
    }
}

/// Arguments, environment and auxiliary vector, as the kernel left them.
pub struct Words {
    count: usize,
    arguments: *const *const u8,
    environment: *const *const u8,
    auxiliary: *const usize,
}

impl Words {
    /// # Safety
    /// `stack` is the initial stack pointer.
    pub unsafe fn from_stack(stack: *const usize) -> Self {
        // SAFETY: the layout of a new process's stack: count, arguments, null, environment, null, pairs.
        unsafe {
            let count = *stack;
            let arguments = stack.add(1).cast::<*const u8>();
            let environment = arguments.add(count + 1);
            let mut end = environment;
            while !(*end).is_null() {
                end = end.add(1);
            }
            Self { count, arguments, environment, auxiliary: end.add(1).cast() }
        }
    }

    /// With its terminating zero not counted, but there.
    pub fn argument(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: the first `count` pointers are C strings that live as long as the process.
        (index < self.count).then(|| unsafe { string(*self.arguments.add(index)) })
    }

    /// From this one on.
    pub fn arguments_from(&self, first: usize) -> impl Iterator<Item = &[u8]> + Clone {
        (first..self.count).filter_map(|index| self.argument(index))
    }

    pub fn environment(&self) -> impl Iterator<Item = &[u8]> + Clone {
        // SAFETY: the environment ends with a null pointer; each before it is a C string that lives as long.
        (0..).map_while(|index| unsafe {
            let entry = *self.environment.add(index);
            (!entry.is_null()).then(|| string(entry))
        })
    }

    fn auxiliary(&self, kind: usize) -> Option<usize> {
        // SAFETY: pairs that end with kind 0.
        (0..)
            .map(|index| unsafe { (*self.auxiliary.add(2 * index), *self.auxiliary.add(2 * index + 1)) })
            .take_while(|(found, _)| *found != 0)
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }
}

unsafe fn string<'a>(start: *const u8) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: the callers pass C strings that live as long as the process.
    unsafe {
        // Volatile, or the compiler makes this loop a call of strlen.
        while core::ptr::read_volatile(start.add(len)) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(start, len)
    }
}

/// Read one byte of every page of this program, and keep them if the limit allows.
pub fn touch_pages(words: &Words) {
    const AT_PHDR: usize = 3;
    const AT_PHNUM: usize = 5;
    const PT_LOAD: u32 = 1;
    const PAGE: usize = 4096;
    #[repr(C)]
    struct Header {
        kind: u32,
        flags: u32,
        offset: usize,
        address: usize,
        physical: usize,
        file_size: usize,
        memory_size: usize,
        align: usize,
    }
    if let (Some(headers), Some(count)) = (words.auxiliary(AT_PHDR), words.auxiliary(AT_PHNUM)) {
        for index in 0..count {
            // SAFETY: the kernel says where this program's own headers are; segments are mapped readable.
            unsafe {
                let header = &*(headers as *const Header).add(index);
                if header.kind != PT_LOAD {
                    continue;
                }
                let mut at = header.address;
                while at < header.address + header.file_size {
                    core::ptr::read_volatile(at as *const u8);
                    at += PAGE;
                }
                // What cannot be locked may be read again later, which is as good unless the daemon died. Memory that is
                // not the file's needs none: locking a whole stack costs a fault for every page of it.
                syscall(MLOCK, [header.address, header.file_size, 0, 0, 0, 0]);
            }
        }
    }
}

/// `path` is followed by a zero, as every string of the kernel's stack is.
pub fn open(path: &[u8], flags: usize) -> i32 {
    // SAFETY: the strings of [`Words`] and the buffers of `talk` end with a zero.
    unsafe { syscall(OPENAT, [AT_FDCWD, path.as_ptr() as usize, flags, 0, 0, 0]) as i32 }
}

pub fn close(fd: i32) {
    plain(CLOSE, [fd as usize, 0, 0, 0]);
}

pub fn is_open(fd: i32) -> bool {
    const F_GETFD: usize = 1;
    plain(FCNTL, [fd as usize, F_GETFD, 0, 0]) >= 0
}

#[repr(C)]
pub struct PollFd {
    fd: i32,
    events: i16,
    found: i16,
}

impl PollFd {
    pub fn input(fd: i32) -> Self {
        Self { fd, events: 1, found: 0 }
    }

    pub fn ready(&self) -> bool {
        self.found != 0
    }

    /// The kernel skips negative ones.
    pub fn forget(&mut self) {
        self.fd = -1;
        self.found = 0;
    }
}

pub fn poll(fds: &mut [PollFd]) -> isize {
    // SAFETY: the slice is valid for its length; no timeout, no mask.
    unsafe { syscall(PPOLL, [fds.as_mut_ptr() as usize, fds.len(), 0, 0, 0, 0]) }
}

const MASK_LEN: usize = 8;

pub fn block(mask: u64) {
    // SAFETY: the mask is valid for its length.
    unsafe { syscall(SIGPROCMASK, [0, &raw const mask as usize, 0, MASK_LEN, 0, 0]) };
}

pub fn signal_fd(mask: u64) -> i32 {
    const NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    // SAFETY: the mask is valid for its length.
    unsafe { syscall(SIGNALFD4, [usize::MAX, &raw const mask as usize, MASK_LEN, NONBLOCK_CLOEXEC, 0, 0]) as i32 }
}

pub fn read_signal(fd: i32) -> Option<u8> {
    let mut info = [0_u32; 32];
    // SAFETY: the buffer has the 128 bytes of one signalfd_siginfo.
    let len = unsafe { syscall(READ, [fd as usize, info.as_mut_ptr() as usize, 128, 0, 0, 0]) };
    (len == 128).then_some(info[0] as u8)
}

pub fn kill_self(signal: usize) {
    let own = plain(GETPID, [0; 4]);
    plain(KILL, [own as usize, signal, 0, 0]);
}

#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// Whether the caller had this signal ignored.
pub fn is_ignored(signal: usize) -> bool {
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: only the old action is asked for, and there is room for it.
    let result = unsafe { syscall(SIGACTION, [signal, 0, &raw mut action as usize, MASK_LEN, 0, 0]) };
    result == 0 && action.handler == 1
}

/// End by this signal, without a core. Returns if that does not end a process.
pub fn die_of(signal: usize) {
    const RLIMIT_CORE: usize = 4;
    let limit = [0_u64; 2];
    let action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let mask = 1_u64 << (signal - 1);
    // SAFETY: all structures are valid for what the calls read.
    unsafe {
        syscall(PRLIMIT64, [0, RLIMIT_CORE, &raw const limit as usize, 0, 0, 0]);
        syscall(SIGACTION, [signal, &raw const action as usize, 0, MASK_LEN, 0, 0]);
        syscall(SIGPROCMASK, [1, &raw const mask as usize, 0, MASK_LEN, 0, 0]);
    }
    kill_self(signal);
}

pub fn umask() -> usize {
    let mask = plain(UMASK, [0, 0, 0, 0]) as usize;
    plain(UMASK, [mask, 0, 0, 0]);
    mask
}

/// Nice value plus 20.
pub fn nice() -> u32 {
    // The call gives 40 to 1.
    let result = plain(GETPRIORITY, [0, 0, 0, 0]);
    if (1..=40).contains(&result) { (40 - result) as u32 } else { 20 }
}

pub fn limit(resource: usize) -> Option<[u64; 2]> {
    let mut limit = [0_u64; 2];
    // SAFETY: there is room for the two numbers.
    let result = unsafe { syscall(PRLIMIT64, [0, resource, 0, limit.as_mut_ptr() as usize, 0, 0]) };
    (result == 0).then_some(limit)
}

/// The working directory; empty if it has no path.
pub fn directory(buffer: &mut [u8; 4096]) -> &[u8] {
    // SAFETY: the buffer is valid for its length.
    let len = unsafe { syscall(GETCWD, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0]) };
    // The terminating zero is counted; what is not reachable starts with "(".
    if len > 1 && buffer[0] == b'/' { &buffer[..len as usize - 1] } else { &[] }
}

/// A terminal as it was set, to be set back.
pub struct Terminal([u8; 64]);

const TCGETS: usize = 0x5401;
const TCSETSW: usize = 0x5403;
const TIOCGPGRP: usize = 0x540f;
const TIOCGWINSZ: usize = 0x5413;

impl Terminal {
    /// Of standard input, if it and standard output are one terminal and this process is in its foreground group.
    pub fn foreground() -> Option<Self> {
        let mut saved = [0_u8; 64];
        let mut group = 0_i32;
        // SAFETY: the kernel's termios has 36 bytes.
        if unsafe { syscall(IOCTL, [0, TCGETS, saved.as_mut_ptr() as usize, 0, 0, 0]) } != 0 {
            return None;
        }
        // SAFETY: a group is an int.
        let has_group = unsafe { syscall(IOCTL, [0, TIOCGPGRP, &raw mut group as usize, 0, 0, 0]) } == 0;
        let own = plain(GETPGID, [0; 4]);
        let same = device(0).is_some() && device(0) == device(1);
        (has_group && own == group as isize && same).then_some(Self(saved))
    }

    pub fn restore(&self) {
        // SAFETY: as it was read.
        unsafe { syscall(IOCTL, [0, TCSETSW, self.0.as_ptr() as usize, 0, 0, 0]) };
    }
}

/// Rows, columns, pixels across and down, as the kernel has them: four little-endian u16.
pub fn window() -> [u8; 8] {
    let mut size = [0; 8];
    // SAFETY: a winsize has eight bytes.
    unsafe { syscall(IOCTL, [0, TIOCGWINSZ, size.as_mut_ptr() as usize, 0, 0, 0]) };
    size
}

/// Number of the device a descriptor is.
fn device(fd: usize) -> Option<u64> {
    /// Where it stands in a `struct stat`.
    #[cfg(target_arch = "x86_64")]
    const RDEV: usize = 5;
    #[cfg(target_arch = "aarch64")]
    const RDEV: usize = 4;
    let mut stat = [0_u64; 32];
    // SAFETY: there is more room than a `struct stat` has bytes.
    let result = unsafe { syscall(FSTAT, [fd, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    (result == 0).then_some(stat[RDEV])
}

/// Call until it is not interrupted.
pub fn again(mut call: impl FnMut() -> isize) -> isize {
    loop {
        let result = call();
        if result != EINTR {
            return result;
        }
    }
}
