//! Where a command's secret comes from: a file, standard input or the terminal. Never argv, never the environment.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use brine_store::volume::NewSecret;
use zeroize::Zeroizing;

use super::{args, output, prompt};
use crate::config::SecretFile;
use crate::exit_code::{ExitCode, Failure};
use crate::mount::Secret;

/// Longest file a secret is read from, bytes: the longest key file.
const SECRET_LEN_MAX: u64 = 1 << 20;

/// The options by which every command takes a secret.
#[derive(Debug, Default)]
pub(super) struct SecretArgs {
    /// Put before their names: `new-`, or nothing.
    prefix: &'static str,
    file: Option<SecretFile>,
}

impl SecretArgs {
    /// Those of a secret that comes to others: `--new-passphrase-file`, `--new-key-file`.
    pub(super) fn of_another() -> Self {
        Self { prefix: "new-", file: None }
    }

    /// Take one of the options; false if `name` is none of them.
    pub(super) fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<bool, Failure> {
        let make: fn(PathBuf) -> SecretFile = match name.strip_prefix(self.prefix) {
            Some("passphrase-file") => SecretFile::Passphrase,
            Some("key-file") => SecretFile::Key,
            Some("recovery-key-file") => SecretFile::Recovery,
            _ => return Ok(false),
        };
        if self.file.is_some() {
            let prefix = self.prefix;
            return Err(Failure::usage(format!(
                "give one of --{prefix}passphrase-file, --{prefix}key-file and --{prefix}recovery-key-file"
            )));
        }
        self.file = Some(make(args::path(parser, &format!("--{name}"))?));
        Ok(true)
    }

    pub(super) fn is_given(&self) -> bool {
        self.file.is_some()
    }

    /// What opens a volume: as given, or asked for on the terminal.
    pub(super) fn unlock(&self, volume: &str) -> Result<Secret, Failure> {
        match &self.file {
            Some(file) => read(file),
            None => ask_to_unlock(volume, "give --passphrase-file FILE, --key-file FILE or --recovery-key-file FILE"),
        }
    }

    /// A secret that opens nothing yet: as given, or asked for twice.
    pub(super) fn for_new_slot(&self) -> Result<NewSecret, Failure> {
        match &self.file {
            Some(SecretFile::Recovery(_)) => {
                Err(Failure::usage("recovery keys are made and shown by brine, not chosen; give another secret"))
            }
            Some(file) => match read(file)? {
                Secret::KeyFile(content) => Ok(NewSecret::KeyFile(content)),
                Secret::Passphrase(content) | Secret::RecoveryKey(content) => Ok(NewSecret::Passphrase(content)),
            },
            None => ask_for_new(self.prefix),
        }
    }
}

/// The secret in a file.
pub(super) fn read(file: &SecretFile) -> Result<Secret, Failure> {
    match file {
        SecretFile::Passphrase(path) => one_line(content(path, "passphrase file")?, path).map(Secret::Passphrase),
        SecretFile::Key(path) => content(path, "key file").map(Secret::KeyFile),
        SecretFile::Recovery(path) => content(path, "recovery key file").map(Secret::RecoveryKey),
    }
}

fn content(path: &Path, kind: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let shown = path.display();
    let broken = |error: io::Error| Failure::io(format!("{kind} {shown}"), &error);
    if path == Path::new("-") {
        return bounded(io::stdin().lock(), 0)
            .map_err(|error| Failure::io("reading the secret from standard input", &error));
    }
    let file = File::open(path).map_err(broken)?;
    let meta = file.metadata().map_err(broken)?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        output::warn(&format!("{kind} {shown} can be read by other users; `chmod 600 {shown}`"));
    }
    if meta.len() > SECRET_LEN_MAX {
        return Err(Failure::new(
            ExitCode::Refused,
            format!("{kind} {shown} is longer than 1 MiB; name the right file"),
        ));
    }
    let content = bounded(file, meta.len() as usize).map_err(broken)?;
    if content.is_empty() {
        return Err(Failure::new(ExitCode::Refused, format!("{kind} {shown} is empty; name the right file")));
    }
    Ok(content)
}

/// At most [`SECRET_LEN_MAX`] bytes, in one buffer that never moves.
fn bounded(mut input: impl Read, expected: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let room = if expected > 0 { expected + 1 } else { SECRET_LEN_MAX as usize + 1 };
    let mut buffer = Zeroizing::new(vec![0; room]);
    let mut len = 0;
    loop {
        match input.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
        if len == room {
            return Err(io::Error::other("it is longer than 1 MiB, or grows while it is read"));
        }
    }
    buffer.truncate(len);
    Ok(buffer)
}

/// A passphrase is one line; its end does not belong to it.
fn one_line(mut content: Zeroizing<Vec<u8>>, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if content.last() == Some(&b'\n') {
        content.pop();
        if content.last() == Some(&b'\r') {
            content.pop();
        }
    }
    if content.contains(&b'\n') {
        return Err(Failure::new(
            ExitCode::Refused,
            format!(
                "passphrase file {} has more than one line; use it as a key file, or name the right one",
                path.display()
            ),
        ));
    }
    if content.is_empty() {
        return Err(Failure::new(ExitCode::Refused, format!("the passphrase in {} is empty", path.display())));
    }
    Ok(content)
}

/// Ask for the passphrase of a volume. `instead` says what to do without a terminal.
pub(super) fn ask_to_unlock(volume: &str, instead: &str) -> Result<Secret, Failure> {
    let Some(terminal) = prompt::terminal() else {
        return Err(Failure::usage(format!("no terminal to ask for the passphrase of {volume}; {instead}")));
    };
    let typed = prompt::ask(&terminal, &format!("Passphrase of {volume}"))?;
    if typed.is_empty() {
        return Err(Failure::new(ExitCode::Interrupted, "no passphrase was typed"));
    }
    Ok(Secret::Passphrase(typed))
}

fn ask_for_new(prefix: &str) -> Result<NewSecret, Failure> {
    const ATTEMPTS: usize = 3;
    let Some(terminal) = prompt::terminal() else {
        return Err(Failure::usage(format!(
            "no terminal to ask for a passphrase; give --{prefix}passphrase-file FILE or --{prefix}key-file FILE \
             (`head -c 32 /dev/urandom > FILE` makes a key file)"
        )));
    };
    for _ in 0..ATTEMPTS {
        let first = prompt::ask(&terminal, "New passphrase")?;
        if first.is_empty() {
            output::note("the passphrase may not be empty");
            continue;
        }
        let second = prompt::ask(&terminal, "The same again")?;
        if *first == *second {
            return Ok(NewSecret::Passphrase(first));
        }
        output::note("the two differ");
    }
    Err(Failure::new(ExitCode::Interrupted, "no passphrase was chosen; nothing was changed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("brine-secret-{name}-{}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        path
    }

    fn passphrase(name: &str, content: &[u8]) -> Result<Vec<u8>, Failure> {
        let path = file(name, content);
        let secret = read(&SecretFile::Passphrase(path.clone()));
        std::fs::remove_file(path).unwrap();
        match secret? {
            Secret::Passphrase(bytes) => Ok(bytes.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_end_of_the_line_is_no_part_of_a_passphrase() {
        assert_eq!(passphrase("plain", b"open sesame").unwrap(), b"open sesame");
        assert_eq!(passphrase("unix", b"open sesame\n").unwrap(), b"open sesame");
        assert_eq!(passphrase("dos", b"open sesame\r\n").unwrap(), b"open sesame");
        assert_eq!(passphrase("blank", b" open \n").unwrap(), b" open ");
        assert_eq!(passphrase("lines", b"a\nb\n").unwrap_err().code(), ExitCode::Refused);
        assert_eq!(passphrase("empty", b"\n").unwrap_err().code(), ExitCode::Refused);
        assert_eq!(passphrase("nothing", b"").unwrap_err().code(), ExitCode::Refused);
    }

    #[test]
    fn key_files_are_taken_as_they_are() {
        let path = file("key", b"\x00\n\xff\n");
        let Ok(Secret::KeyFile(content)) = read(&SecretFile::Key(path.clone())) else { panic!("it is a key file") };
        std::fs::remove_file(&path).unwrap();
        assert_eq!(*content, b"\x00\n\xff\n");
        let missing = read(&SecretFile::Key(path.clone())).unwrap_err();
        assert_eq!(missing.code(), ExitCode::NotFound);
        assert!(missing.message().contains(path.to_str().unwrap()));
    }

    #[test]
    fn what_is_read_is_bounded() {
        assert_eq!(bounded(&b"abc"[..], 0).unwrap().len(), 3);
        assert!(bounded(&vec![0; (1 << 20) + 2][..], 0).is_err());
        assert!(bounded(&b"abcd"[..], 3).is_err());
    }
}
