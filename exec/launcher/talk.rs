//! Frames, as `exec/src/protocol` has them: "brx1", kind, zero, length; then the body.

use core::cell::UnsafeCell;
use core::ptr;

use crate::sys::{self, Words, again, syscall};

const HEADER_LEN: usize = 12;
const ENDED: u16 = 3;
const STREAMS: u16 = 4;
const SIGNAL: u16 = 5;
const WINDOW: u16 = 6;
const CALL: u16 = 7;
const ASK: u16 = 10;
/// The credential of a run (X12).
const CREDENTIAL: usize = 3;
const VERSION: u32 = 1;
/// Resource limits there are.
const LIMITS: usize = 16;
const NO_SIGPIPE: usize = 0x4000;
const SOCKET_NAME: &[u8] = b"exec.sock";

/// The daemon's socket, beside this program; or the error.
pub fn connect(own: &[u8]) -> Result<i32, isize> {
    /// Bytes of a socket address's path.
    const PATH_LEN: usize = 108;
    let directory = match own.iter().rposition(|byte| *byte == b'/') {
        Some(at) => &own[..=at],
        None => b"./",
    };
    let mut address = [0_u8; 2 + PATH_LEN];
    address[0] = 1;
    let mut path = Text::new();
    if directory.len() + SOCKET_NAME.len() < PATH_LEN {
        path.add(directory);
    } else {
        // Too long for an address: through a handle on the directory.
        let mut long = [0_u8; 4097];
        long.get_mut(..directory.len()).ok_or(sys::ENAMETOOLONG)?.copy_from_slice(directory);
        let handle = sys::open(&long, sys::O_PATH | sys::O_CLOEXEC);
        if handle < 0 {
            return Err(handle as isize);
        }
        path.add(b"/proc/self/fd/");
        path.number(handle as u32);
        path.add(b"/");
    }
    path.add(SOCKET_NAME);
    address[2..][..path.len].copy_from_slice(&path.bytes[..path.len]);
    const UNIX: usize = 1;
    const STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
    // SAFETY: the address is valid for its length.
    unsafe {
        let socket = syscall(sys::SOCKET, [UNIX, STREAM_CLOEXEC, 0, 0, 0, 0]);
        if socket < 0 {
            return Err(socket);
        }
        let address = address.as_ptr() as usize;
        let result = again(|| syscall(sys::CONNECT, [socket as usize, address, 2 + path.len + 1, 0, 0, 0]));
        if result == 0 { Ok(socket as i32) } else { Err(result) }
    }
}

/// A connection: the end to keep, and the end for the run's init.
pub fn pair() -> Option<(i32, i32)> {
    const UNIX: usize = 1;
    const STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
    let mut pair = [0_i32; 2];
    // SAFETY: the two numbers are valid for the call.
    let made = unsafe { syscall(sys::SOCKETPAIR, [UNIX, STREAM_CLOEXEC, 0, pair.as_mut_ptr() as usize, 0, 0]) };
    (made == 0).then_some((pair[0], pair[1]))
}

/// Inside a run there is no socket beside this program. Its credential takes the other end of a connection instead.
pub fn connect_inside() -> Option<i32> {
    let (ours, theirs) = pair()?;
    let mut frame = header(CALL, 0);
    let sent = send_with(CREDENTIAL, &mut frame, theirs);
    sys::close(theirs);
    (sent == HEADER_LEN as isize).then_some(ours)
}

/// Send bytes with a descriptor.
fn send_with(socket: usize, bytes: &mut [u8], fd: i32) -> isize {
    let mut control = [(CONTROL_HEADER + 4) as u64, SOL_SOCKET | SCM_RIGHTS << 32, u64::from(fd as u32)];
    let mut part = Part { start: bytes.as_mut_ptr(), len: bytes.len() };
    let message = Message {
        name: 0,
        name_len: 0,
        parts: &raw mut part,
        parts_count: 1,
        control: control.as_mut_ptr().cast(),
        control_len: size_of_val(&control),
        flags: 0,
    };
    let address = &raw const message as usize;
    // SAFETY: the message describes buffers that live through the call.
    again(|| unsafe { syscall(sys::SENDMSG, [socket, address, NO_SIGPIPE, 0, 0, 0]) })
}

/// A short text being put together.
struct Text {
    bytes: [u8; 107],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 107], len: 0 }
    }

    fn add(&mut self, more: &[u8]) {
        self.bytes[self.len..][..more.len()].copy_from_slice(more);
        self.len += more.len();
    }

    fn number(&mut self, number: u32) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.add(&[b'0' + (number % 10) as u8]);
    }
}

/// Sends through a buffer. Its memory is static: a stack is small, and there is one thread.
struct Sender {
    socket: i32,
    used: usize,
    failed: bool,
    /// Goes with the first bytes.
    fd: Option<i32>,
}

struct Buffer(UnsafeCell<[u8; 16384]>);

// SAFETY: this program has one thread.
unsafe impl Sync for Buffer {}

static BUFFER: Buffer = Buffer(UnsafeCell::new([0; 16384]));

impl Sender {
    fn buffer(&mut self) -> &mut [u8; 16384] {
        // SAFETY: one thread, and the exclusive borrow of the only sender there is at a time.
        unsafe { &mut *BUFFER.0.get() }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = self.used;
            let room = self.buffer().len() - used;
            let len = bytes.len().min(room);
            self.buffer()[used..used + len].copy_from_slice(&bytes[..len]);
            self.used += len;
            bytes = &bytes[len..];
            if self.used == self.buffer().len() {
                self.flush();
            }
        }
    }

    fn u32(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn string(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes(bytes);
    }

    fn header(&mut self, kind: u16, len: usize) {
        self.bytes(&header(kind, len));
    }

    fn flush(&mut self) {
        let (socket, mut sent, used) = (self.socket as usize, 0, self.used);
        while sent < used && !self.failed {
            let fd = self.fd.take();
            let part = &mut self.buffer()[sent..used];
            let len = match fd {
                Some(fd) => send_with(socket, part, fd),
                None => {
                    let (start, len) = (part.as_ptr() as usize, part.len());
                    // SAFETY: the buffer is valid for what is used of it.
                    again(|| unsafe { syscall(sys::SENDTO, [socket, start, len, NO_SIGPIPE, 0, 0]) })
                }
            };
            if len <= 0 {
                self.failed = true;
            }
            sent += len.max(0) as usize;
        }
        self.used = 0;
    }
}

fn header(kind: u16, len: usize) -> [u8; HEADER_LEN] {
    let mut header = *b"brx1\0\0\0\0\0\0\0\0";
    header[4..6].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&(len as u32).to_le_bytes());
    header
}

/// What a run takes over from who called, beside words and descriptors.
pub struct Caller<'p> {
    directory: &'p [u8],
    umask: u32,
    nice: u32,
    /// Bit n-1: signal n.
    ignored: u64,
    limits: [Option<[u64; 2]>; LIMITS],
}

impl<'p> Caller<'p> {
    /// As it is now. The working directory's path is put into `path`.
    pub fn now(path: &'p mut [u8; 4096]) -> Self {
        let mut limits = [None; LIMITS];
        (0..LIMITS).for_each(|resource| limits[resource] = sys::limit(resource));
        let ignored = (1..=64).filter(|signal| sys::is_ignored(*signal));
        Self {
            directory: sys::directory(path),
            umask: sys::umask() as u32,
            nice: sys::nice(),
            ignored: ignored.fold(0_u64, |bits, signal| bits | 1 << (signal - 1)),
            limits,
        }
    }
}

/// Ask for the run; its init gets `init`. A daemon that refuses early has answered already: that is read next, whatever
/// becomes of the rest.
pub fn ask(daemon: i32, init: i32, words: &Words, ticket: &[u8], caller: &Caller<'_>) {
    let Caller { directory, umask, nice, ignored, limits } = caller;
    let arguments = words.arguments_from(2);
    let sum = |strings: &mut dyn Iterator<Item = &[u8]>| strings.fold(4, |sum, string| sum + 4 + string.len());
    let limited = limits.iter().flatten().count();
    let len = 4
        + 4
        + ticket.len()
        + 4
        + 4
        + 8
        + 4
        + directory.len()
        + 4
        + 20 * limited
        + sum(&mut arguments.clone())
        + sum(&mut words.environment());

    let mut out = Sender { socket: daemon, used: 0, failed: false, fd: Some(init) };
    out.header(ASK, len);
    out.u32(VERSION);
    out.string(ticket);
    out.u32(*umask);
    out.u32(*nice);
    out.u64(*ignored);
    out.string(directory);
    out.u32(limited as u32);
    for (resource, limit) in limits.iter().enumerate() {
        if let Some([soft, hard]) = *limit {
            out.u32(resource as u32);
            out.u64(soft);
            out.u64(hard);
        }
    }
    out.u32(arguments.clone().count() as u32);
    arguments.for_each(|word| out.string(word));
    out.u32(words.environment().count() as u32);
    words.environment().for_each(|entry| out.string(entry));
    out.flush();
}

/// How the run ended.
pub struct Ended {
    pub by_signal: bool,
    pub number: u8,
    line: [u8; 900],
    line_len: usize,
}

impl Ended {
    pub fn line(&self) -> &[u8] {
        &self.line[..self.line_len]
    }
}

/// What the daemon said.
pub enum Received {
    Ended(Ended),
    Nothing,
}

#[repr(C)]
struct Part {
    start: *mut u8,
    len: usize,
}

#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    parts: *mut Part,
    parts_count: usize,
    control: *mut usize,
    control_len: usize,
    flags: i32,
}

const CLOEXEC_MESSAGE: usize = 0x4000_0000;
const WAIT_ALL: usize = 0x100;
const SOL_SOCKET: u64 = 1;
const SCM_RIGHTS: u64 = 1;
/// Length, level, type.
const CONTROL_HEADER: usize = 16;

/// Fill `buffer`. False if there is no more.
fn fill(socket: i32, buffer: &mut [u8]) -> bool {
    let mut have = 0;
    while have < buffer.len() {
        let rest = &mut buffer[have..];
        let mut part = Part { start: rest.as_mut_ptr(), len: rest.len() };
        // No room for descriptors: none is expected.
        let mut message = Message {
            name: 0,
            name_len: 0,
            parts: &raw mut part,
            parts_count: 1,
            control: ptr::null_mut(),
            control_len: 0,
            flags: 0,
        };
        let address = &raw mut message as usize;
        // SAFETY: the message describes buffers that live through the call.
        let len =
            again(|| unsafe { syscall(sys::RECVMSG, [socket as usize, address, CLOEXEC_MESSAGE | WAIT_ALL, 0, 0, 0]) });
        if len <= 0 {
            return false;
        }
        have += len as usize;
    }
    true
}

/// The daemon's next frame.
pub fn receive(daemon: i32) -> Received {
    let mut head = [0; HEADER_LEN];
    if !fill(daemon, &mut head) {
        return Received::Nothing;
    }
    let kind = u16::from_le_bytes([head[4], head[5]]);
    let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    if head[..4] != *b"brx1" {
        return Received::Nothing;
    }
    let mut body = [0; 1024];
    // A line longer than this is cut.
    let kept = len.min(body.len());
    if kept > 0 && !fill(daemon, &mut body[..kept]) {
        return Received::Nothing;
    }
    match kind {
        ENDED if kept >= 6 => {
            let mut ended = Ended { by_signal: body[0] == 1, number: body[1], line: [0; 900], line_len: 0 };
            let line_len = u32::from_le_bytes([body[2], body[3], body[4], body[5]]) as usize;
            ended.line_len = line_len.min(kept - 6).min(ended.line.len());
            ended.line[..ended.line_len].copy_from_slice(&body[6..][..ended.line_len]);
            if ended.by_signal && !(1..=64).contains(&ended.number) {
                return Received::Nothing;
            }
            Received::Ended(ended)
        }
        _ => Received::Nothing,
    }
}

/// Give the init this program's standard descriptors.
pub fn streams(init: i32, relay: bool) {
    let present = (0..3).filter(|fd| sys::is_open(*fd)).fold(0_u8, |bits, fd| bits | 1 << fd);
    let open = (0..3).filter(|fd| present >> fd & 1 == 1);
    let count = open.clone().count();
    // A control message: length, level and type, then descriptors of four bytes each.
    let mut control = [0_u64; 4];
    control[0] = (CONTROL_HEADER + 4 * count) as u64;
    control[1] = SOL_SOCKET | SCM_RIGHTS << 32;
    for (place, fd) in open.enumerate() {
        control[2 + place / 2] |= u64::from(fd as u32) << (32 * (place % 2));
    }
    let mut frame = [0; HEADER_LEN + 10];
    frame[..HEADER_LEN].copy_from_slice(&header(STREAMS, 10));
    frame[HEADER_LEN] = present;
    if relay {
        frame[HEADER_LEN + 1] = 1;
        frame[HEADER_LEN + 2..].copy_from_slice(&sys::window());
    }
    let mut part = Part { start: frame.as_mut_ptr(), len: frame.len() };
    let message = Message {
        name: 0,
        name_len: 0,
        parts: &raw mut part,
        parts_count: 1,
        control: control.as_mut_ptr().cast(),
        control_len: if count > 0 { CONTROL_HEADER + 8 * count.div_ceil(2) } else { 0 },
        flags: 0,
    };
    let address = &raw const message as usize;
    // SAFETY: the message describes buffers that live through the call. An init that is gone is the daemon's to tell.
    again(|| unsafe { syscall(sys::SENDMSG, [init as usize, address, NO_SIGPIPE, 0, 0, 0]) });
}

/// Pass a signal on.
pub fn signal(init: i32, signal: u8) {
    let mut out = Sender { socket: init, used: 0, failed: false, fd: None };
    out.header(SIGNAL, 1);
    out.bytes(&[signal]);
    out.flush();
}

/// The terminal has another size.
pub fn window(init: i32) {
    let mut out = Sender { socket: init, used: 0, failed: false, fd: None };
    out.header(WINDOW, 8);
    out.bytes(&sys::window());
    out.flush();
}
