//! Asking for a secret on the terminal: nothing is echoed, and the terminal is as it was afterwards, also after Ctrl-C.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::exit_code::{ExitCode, Failure};

/// Longest secret typed, bytes.
const TYPED_LEN_MAX: usize = 4096;

/// The terminal, as it was, restored when dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        // Signals are read as bytes: a process ended by one could not restore the terminal.
        raw.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(terminal, SetArg::TCSAFLUSH, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

/// The terminal of this session, if there is one.
pub(super) fn terminal() -> Option<File> {
    File::options().read(true).write(true).open("/dev/tty").ok()
}

/// Ask for one line.
pub(super) fn ask(terminal: &File, question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let broken = |error: io::Error| Failure::io("reading from the terminal", &error);
    let silent = Silent::new(terminal).map_err(broken)?;
    let mut out = terminal;
    write!(out, "{question}: ").map_err(broken)?;
    let typed = read_line(terminal);
    let _ = writeln!(out);
    drop(silent);
    match typed.map_err(broken)? {
        Some(line) => Ok(line),
        None => Err(Failure::new(ExitCode::Interrupted, "interrupted")),
    }
}

/// Up to the end of the line; `None` if it was given up with Ctrl-C or Ctrl-D.
fn read_line(mut input: impl Read) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // Of full length from the start: growing would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(TYPED_LEN_MAX));
    let mut byte = [0];
    loop {
        if input.read(&mut byte)? == 0 {
            return Ok(if line.is_empty() { None } else { Some(line) });
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(Some(line)),
            3 => return Ok(None),
            4 if line.is_empty() => return Ok(None),
            4 => {}
            // Backspace takes a whole character of UTF-8.
            8 | 127 => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            21 => line.clear(),
            other if line.len() < TYPED_LEN_MAX => line.push(other),
            _ => return Err(io::Error::other("more than 4096 bytes were typed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Option<Vec<u8>> {
        read_line(keys).unwrap().map(|line| line.to_vec())
    }

    #[test]
    fn lines_are_read_as_typed() {
        assert_eq!(typed(b"secret word\nmore").as_deref(), Some(&b"secret word"[..]));
        assert_eq!(typed(b"\n").as_deref(), Some(&b""[..]));
        assert_eq!(typed("pässé\x7f\x7fs\n".as_bytes()).as_deref(), Some("päss".as_bytes()));
        assert_eq!(typed(b"\x7fab\x15cd\n").as_deref(), Some(&b"cd"[..]));
        assert_eq!(typed(b"abc\x03"), None);
        assert_eq!(typed(b"\x04"), None);
        assert_eq!(typed(b""), None);
        assert!(read_line(&vec![b'x'; 5000][..]).is_err());
    }
}
