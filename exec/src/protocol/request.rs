//! Bodies of the frames that launchers send and get.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::bytes::{Reader, Writer};
use crate::error::{Error, Result};
use crate::run_record::Verdict;

/// A request at most: the kernel takes 6 MiB of arguments and environment; lengths and the rest come on top.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Words of argv, and variables of the environment, at most.
const WORDS_MAX: usize = 1 << 20;
/// Version of the request's layout.
const VERSION: u32 = 1;

/// Single-use proof of one exec open (X3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub [u8; 16]);

impl Ticket {
    /// A new one.
    pub fn random() -> Self {
        Self(crate::run_record::RunId::random().0)
    }

    /// From the 32 hexadecimal digits of an interpreter line.
    pub fn parse(word: &[u8]) -> Option<Self> {
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        if word.len() != 32 {
            return None;
        }
        let mut out = [0; 16];
        for (byte, pair) in out.iter_mut().zip(word.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(out))
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// It is a secret for the seconds it is valid.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// What a launcher asks for (X4).
///
/// ```text
/// u32 version 1 | string ticket | u32 umask | u32 nice + 20 | u64 ignored signals | string directory
/// u32 count, each: u32 resource, u64 soft, u64 hard
/// u32 count, each: string argv word | u32 count, each: string environment entry NAME=VALUE
/// string: u32 length, bytes without zero
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Proof of the exec open; none if the launcher was started by hand or a descriptor was sent instead.
    pub ticket: Option<Ticket>,
    /// Arguments; the first is the path the function was called by.
    pub argv: Vec<OsString>,
    /// The caller's whole environment; what of it is passed on is not decided here.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory; empty if the caller has none that can be named.
    pub directory: PathBuf,
    /// File mode creation mask.
    pub umask: u32,
    /// Nice value, -20 to 19.
    pub nice: i32,
    /// Signals the caller ignores; bit n-1 for signal n.
    pub ignored_signals: u64,
    /// Resource limits: number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
}

/// Arguments and environment may hold secrets.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("ticket", &self.ticket)
            .field("argv", &self.argv.len())
            .field("environment", &self.environment.len())
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Body of a `Request` frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(VERSION).bytes(self.ticket.map(|ticket| ticket.to_string()).unwrap_or_default().as_bytes());
        out.u32(self.umask).u32((self.nice + 20) as u32).u64(self.ignored_signals).path(&self.directory);
        out.u32(self.rlimits.len() as u32);
        for (resource, soft, hard) in &self.rlimits {
            out.u32(*resource).u64(*soft).u64(*hard);
        }
        out.u32(self.argv.len() as u32);
        for word in &self.argv {
            out.bytes(word.as_bytes());
        }
        out.u32(self.environment.len() as u32);
        for (name, value) in &self.environment {
            out.bytes(&[name.as_bytes(), b"=", value.as_bytes()].concat());
        }
        out.0
    }

    /// From the body of a `Request` frame.
    ///
    /// # Errors
    /// Whatever is not exactly one request.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        if body.u32()? != VERSION {
            return Err(Error::Malformed("the launcher is of another version of brine"));
        }
        let ticket = Ticket::parse(body.bytes()?);
        let umask = body.u32()? & 0o777;
        let nice = body.u32()?;
        if nice > 39 {
            return Err(Error::Malformed("a nice value that does not exist"));
        }
        let ignored_signals = body.u64()?;
        let directory = body.path()?;
        let rlimits = body.list(|body| Ok((body.u32()?, body.u64()?, body.u64()?)))?;
        let argv = body.list(Reader::string)?;
        let environment = body.list(|body| {
            let bytes = body.text()?;
            // As getenv(3) reads it; entries without a name are dropped by the caller's filter.
            let at = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
            let value = bytes.get(at + 1..).unwrap_or_default();
            Ok((std::ffi::OsStr::from_bytes(&bytes[..at]).to_owned(), std::ffi::OsStr::from_bytes(value).to_owned()))
        })?;
        body.end()?;
        if argv.is_empty() || argv.len() > WORDS_MAX || environment.len() > WORDS_MAX || rlimits.len() > 32 {
            return Err(Error::Malformed("no arguments, or too many"));
        }
        Ok(Self { ticket, argv, environment, directory, umask, nice: nice as i32 - 20, ignored_signals, rlimits })
    }
}

/// How a launcher ends, and what it says before.
///
/// ```text
/// u8 kind: 0 code, 1 signal | u8 number | string line, printed behind "brine: " if not empty
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ends.
    pub verdict: Verdict,
    /// Line for standard error, without `brine: ` and newline.
    pub line: Option<String>,
}

impl Ended {
    /// Body of an `Ended` frame. Lines are cut to what a frame holds.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self.verdict {
            Verdict::Code(code) => out.u8(0).u8(code),
            Verdict::Signal(signal) => out.u8(1).u8(signal),
        };
        let line: String =
            self.line.iter().flat_map(|line| line.chars()).filter(|c| !c.is_control()).take(4096).collect();
        out.bytes(line.as_bytes());
        out.0
    }

    /// From the body of an `Ended` frame.
    ///
    /// # Errors
    /// Whatever is not exactly that.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        let kind = body.u8()?;
        let number = body.u8()?;
        let verdict = match kind {
            0 => Verdict::Code(number),
            1 if (1..=64).contains(&number) => Verdict::Signal(number),
            _ => return Err(Error::Malformed("an end that is neither code nor signal")),
        };
        let line = String::from_utf8_lossy(body.bytes()?).into_owned();
        body.end()?;
        Ok(Self { verdict, line: (!line.is_empty()).then_some(line) })
    }
}

/// Which standard descriptors come with the frame, and whether the run gets a terminal of its own.
///
/// ```text
/// u8 present, bit n: descriptor n | u8 relay: 0 no, 1 standard input is a tty to relay | Window
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Bit n: descriptor n is open and comes with the frame, in order.
    pub present: u8,
    /// The launcher has put its terminal into raw mode; the init relays between it and a pseudo terminal.
    pub relay: bool,
    /// Window size, if `relay`.
    pub window: Window,
}

impl Streams {
    /// Body of a `Streams` frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(self.present).u8(u8::from(self.relay));
        out.0.extend(self.window.encode());
        out.0
    }

    /// From the body of a `Streams` frame.
    ///
    /// # Errors
    /// Whatever is not exactly that.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        let (present, relay) = (body.u8()?, body.u8()?);
        if present > 7 || relay > 1 {
            return Err(Error::Malformed("descriptors that are not standard"));
        }
        let window = Window::decode(body.0)?;
        Ok(Self { present, relay: relay == 1, window })
    }
}

/// Size of a terminal's window: rows, columns, and pixels across and down; four u16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window(pub [u16; 4]);

impl Window {
    /// Body of a `Window` frame.
    pub fn encode(&self) -> [u8; 8] {
        let mut out = [0; 8];
        for (bytes, number) in out.chunks_exact_mut(2).zip(self.0) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    /// From the body of a `Window` frame.
    ///
    /// # Errors
    /// Whatever is not exactly that.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader(body);
        let out = Self([body.u16()?, body.u16()?, body.u16()?, body.u16()?]);
        body.end()?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            ticket: Some(Ticket([7; 16])),
            argv: vec!["/mnt/exec/a".into(), "".into(), OsString::from("b c")],
            environment: vec![("A".into(), "1=2".into()), ("EMPTY".into(), "".into())],
            directory: "/mnt".into(),
            umask: 0o27,
            nice: -5,
            ignored_signals: 1 << 12,
            rlimits: vec![(7, 1024, u64::MAX)],
        }
    }

    #[test]
    fn requests_come_through_byte_exact() {
        let request = request();
        assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        let by_hand = Request { ticket: None, ..request };
        assert_eq!(Request::decode(&by_hand.encode()).unwrap(), by_hand);
    }

    #[test]
    fn no_bytes_are_taken_for_a_request_that_are_none() {
        let whole = request().encode();
        for len in 0..whole.len() {
            assert!(Request::decode(&whole[..len]).is_err(), "cut to {len}");
        }
        assert!(Request::decode(&[&whole[..], b"x"].concat()).is_err());
        // Every byte changed: it may decode to another request, but must come back.
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = Request::decode(&bytes);
            }
        }
    }

    #[test]
    fn ends_and_windows() {
        let ended = Ended { verdict: Verdict::Signal(9), line: Some("killed:\nmemory".into()) };
        let back = Ended::decode(&ended.encode()).unwrap();
        assert_eq!(back, Ended { line: Some("killed:memory".into()), ..ended }, "no control characters");
        assert!(Ended::decode(&[1, 0, 0, 0, 0, 0]).is_err(), "there is no signal 0");
        let streams = Streams { present: 5, relay: true, window: Window([24, 80, 0, 1]) };
        assert_eq!(Streams::decode(&streams.encode()).unwrap(), streams);
        assert!(Streams::decode(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn tickets_are_exactly_32_digits() {
        let ticket = Ticket::random();
        assert_eq!(Ticket::parse(ticket.to_string().as_bytes()), Some(ticket));
        for bad in ["", "00", "0000000000000000000000000000000g", "000000000000000000000000000000000"] {
            assert_eq!(Ticket::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(format!("{ticket:?}"), "Ticket(..)", "tickets do not get into logs");
    }
}
