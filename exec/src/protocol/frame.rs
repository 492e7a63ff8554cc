//! Frames: a header of 12 bytes, a body, and descriptors that come with the header.
//!
//! ```text
//! 0   4  magic "brx1"
//! 4   2  kind
//! 6   2  zero
//! 8   4  length of the body
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg};

use crate::error::{Error, Result};
use crate::sys;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"brx1";
/// Bytes of a header.
pub const HEADER_LEN: usize = 12;
/// Descriptors of one frame at most.
pub const FDS_MAX: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// To the daemon: start a run of the function whose descriptor comes with it. Answered with `Accepted`.
    Request = 1,
    /// Daemon to launcher: accepted; with a connection to the init.
    Accepted = 2,
    /// Daemon to launcher: how it ends.
    Ended = 3,
    /// Launcher to init: standard descriptors.
    Streams = 4,
    /// Launcher to init: a signal to pass on.
    Signal = 5,
    /// Launcher to init: the terminal's window size.
    Window = 6,
    /// A launcher inside a run to the daemon, over the run's credential: with the other end of its connection.
    Call = 7,
    /// A process of a run to the daemon, over a connection of the run's credential: open the file of this path.
    Open = 8,
    /// Daemon to that process: the file, as a descriptor.
    Opened = 9,
    /// Launcher to daemon: start a run, for a ticket; the init's end of a connection comes with it.
    Ask = 10,
    /// Daemon to spawner: make a sandbox.
    Make = 16,
    /// Spawner to daemon: made, or not.
    Made = 17,
    /// Spawner to daemon: ready to make sandboxes.
    Ready = 18,
    /// Init to daemon: built and waiting.
    Built = 32,
    /// Daemon to init: run this.
    Run = 33,
    /// Init to daemon: the program runs.
    Started = 34,
    /// Init to daemon: the program ended, everything it left is gone.
    Finished = 35,
    /// Init to daemon: it could not be started.
    Failed = 36,
    /// Init to daemon: with the socket at which the run's credential is found.
    Listens = 38,
    /// Daemon to init: end the run.
    Kill = 37,
}

impl Kind {
    fn from_number(number: u16) -> Option<Self> {
        use Kind::*;
        [
            Request, Accepted, Ended, Streams, Signal, Window, Call, Open, Opened, Ask, Make, Made, Ready, Built, Run,
            Started, Finished, Failed, Listens, Kill,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == number)
    }

    /// Bytes its body has at most.
    pub fn body_len_max(self) -> usize {
        match self {
            Self::Request | Self::Ask | Self::Run => super::REQUEST_BYTES_MAX,
            Self::Open => 4096,
            Self::Make | Self::Ended | Self::Failed | Self::Made | Self::Ready => 64 << 10,
            _ => 256,
        }
    }
}

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its body.
    pub body: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Kind and body length of a header.
///
/// # Errors
/// Bytes that are no header, and lengths above the kind's bound.
pub fn decode_header(header: &[u8; HEADER_LEN]) -> Result<(Kind, usize)> {
    let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if header[..4] != MAGIC || number(6) != 0 {
        return Err(Error::Malformed("not a frame"));
    }
    let kind = Kind::from_number(number(4)).ok_or(Error::Malformed("unknown kind of frame"))?;
    let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if len > kind.body_len_max() {
        return Err(Error::Malformed("frame too long"));
    }
    Ok((kind, len))
}

/// Header of a frame.
///
/// # Errors
/// A body longer than the kind's bound.
pub fn encode_header(kind: Kind, body_len: usize) -> Result<[u8; HEADER_LEN]> {
    if body_len > kind.body_len_max() {
        return Err(Error::Malformed("frame too long"));
    }
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
    header[8..].copy_from_slice(&(body_len as u32).to_le_bytes());
    Ok(header)
}

/// Send one frame, whole.
///
/// # Errors
/// What the system says; EPIPE if the other end is gone (never SIGPIPE).
pub fn send_frame(socket: impl AsFd, kind: Kind, body: &[u8], fds: &[RawFd]) -> io::Result<()> {
    send_frame_by(socket.as_fd(), kind, body, fds, None)
}

/// Send one frame, whole, within a time, whatever the other end does.
///
/// # Errors
/// As [`send_frame`]; [`io::ErrorKind::TimedOut`] if it was not taken in time, part of it perhaps.
pub fn send_frame_within(
    socket: impl AsFd,
    kind: Kind,
    body: &[u8],
    fds: &[RawFd],
    within: Duration,
) -> io::Result<()> {
    send_frame_by(socket.as_fd(), kind, body, fds, Some(Instant::now() + within))
}

fn send_frame_by(
    socket: BorrowedFd<'_>,
    kind: Kind,
    body: &[u8],
    fds: &[RawFd],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let header = encode_header(kind, body.len()).map_err(|error| io::Error::other(error.to_string()))?;
    let number = socket.as_raw_fd();
    let with_fds = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &with_fds[..] };
    let flags = match deadline {
        Some(_) => MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None => MsgFlags::MSG_NOSIGNAL,
    };
    let mut sent = 0;
    while sent < HEADER_LEN + body.len() {
        let part = retry(|| match sent {
            0 => sendmsg::<()>(number, &[io::IoSlice::new(&header), io::IoSlice::new(body)], control, flags, None),
            1..HEADER_LEN => send(number, &header[sent..], flags),
            _ => send(number, &body[sent - HEADER_LEN..], flags),
        });
        match (part, deadline) {
            (Ok(len), _) => sent += len,
            (Err(error), Some(deadline)) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_to_send(socket, deadline)?
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(())
}

/// Until something more is taken.
fn wait_to_send(socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // Rounded up: a poll that returns early would spin.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    retry(|| poll(&mut [PollFd::new(socket, PollFlags::POLLOUT)], timeout)).map(drop)
}

/// Receive one frame, whole; `None` if the other end closed before it began.
///
/// # Errors
/// What the system says, and [`io::ErrorKind::InvalidData`] for what is no frame or ends within one.
pub fn receive_frame(socket: impl AsFd) -> io::Result<Option<Frame>> {
    let socket = socket.as_fd();
    let mut header = [0; HEADER_LEN];
    let mut fds = Vec::new();
    let mut have = 0;
    while have < HEADER_LEN {
        let (len, more) = receive_part(socket.as_raw_fd(), &mut header[have..])?;
        fds.extend(more);
        if len == 0 {
            return if have == 0 { Ok(None) } else { Err(invalid("the frame ends within its header")) };
        }
        have += len;
    }
    let (kind, len) = decode_header(&header).map_err(|error| invalid(&error.to_string()))?;
    let mut body = Vec::new();
    // Memory grows with what has arrived, not with what a header promises.
    while body.len() < len {
        let have = body.len();
        body.resize(len.min(have + (256 << 10)), 0);
        let got = retry(|| recv(socket.as_raw_fd(), &mut body[have..], MsgFlags::empty()))?;
        if got == 0 {
            return Err(invalid("the frame ends within its body"));
        }
        body.truncate(have + got);
    }
    Ok(Some(Frame { kind, body, fds }))
}

fn receive_part(socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut fds = Vec::new();
    let len = retry(|| {
        let mut parts = [io::IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                fds.extend(received.into_iter().map(sys::own));
            }
        }
        Ok(message.bytes)
    })?;
    Ok((len, fds))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_frame_that_nobody_takes_is_given_up_in_time() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let body = vec![7; 5000];
        send_frame_within(&ours, Kind::Ended, &body, &[], Duration::ZERO).unwrap();
        assert_eq!(receive_frame(&theirs).unwrap().unwrap().body, body);
        ours.set_nonblocking(true).unwrap();
        let mut filled = 0;
        while let Ok(len) = ours.write(&[0; 4096]) {
            filled += len;
        }
        ours.set_nonblocking(false).unwrap();
        for wait in [Duration::ZERO, Duration::from_millis(30)] {
            let started = Instant::now();
            let error = send_frame_within(&ours, Kind::Ended, &body, &[], wait).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(started.elapsed() >= wait);
        }
        // What is taken in time arrives whole.
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut vec![0; filled]).unwrap();
            receive_frame(&theirs).unwrap().unwrap().body
        });
        send_frame_within(&ours, Kind::Ended, &body, &[], Duration::from_secs(60)).unwrap();
        assert_eq!(reader.join().unwrap(), body);
    }
}
