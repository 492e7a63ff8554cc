//! The asking side of the control socket.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{ANSWER_LEN_MAX, Line, Progress, Request, read_line, with_short_name};
use crate::exit_code::{ExitCode, Failure};

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connect to a daemon's socket.
    ///
    /// # Errors
    /// What the system says: ENOENT or ECONNREFUSED if no daemon listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = with_short_name(socket, |name| UnixStream::connect(name))?;
        Ok(Self { stream })
    }

    /// Ask, and wait for the answer; `progress` is told of each step. `patience` bounds the silence between two lines.
    ///
    /// # Errors
    /// The daemon's own failure, or that it does not answer.
    pub fn ask(
        self,
        request: &Request,
        patience: Option<Duration>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Value, Failure> {
        let broken = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Failure::new(ExitCode::NotMounted, "the daemon does not answer; its log tells what it waits for")
            }
            _ => Failure::new(ExitCode::NotMounted, format!("talking to the daemon: {error}")),
        };
        let mut text =
            serde_json::to_string(request).map_err(|error| Failure::new(ExitCode::Failed, error.to_string()))?;
        text.push('\n');
        self.stream.set_read_timeout(patience).map_err(broken)?;
        (&self.stream).write_all(text.as_bytes()).map_err(broken)?;
        let mut reader = BufReader::new(&self.stream);
        loop {
            let Some(line) = read_line(&mut reader, ANSWER_LEN_MAX).map_err(broken)? else {
                return Err(Failure::new(ExitCode::NotMounted, "the daemon ended before it had answered; see its log"));
            };
            match serde_json::from_str(&line) {
                Ok(Line::Progress(step)) => progress(&step),
                Ok(Line::Done(value)) => return Ok(value),
                Ok(Line::Failed(failure)) => return Err(failure),
                Err(error) => {
                    return Err(Failure::new(
                        ExitCode::Failed,
                        format!("the daemon answers what this version of brine does not understand: {error}"),
                    ));
                }
            }
        }
    }
}
