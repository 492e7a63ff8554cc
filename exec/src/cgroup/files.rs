//! Reading and writing of control files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// One write of the whole text, as these files want it. The error names the file.
pub(super) fn write(place: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = place.join(name);
    let written = File::options().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// [`write`], but a file that is not there is fine.
pub(super) fn write_if_there(place: &Path, name: &str, text: &str) -> io::Result<()> {
    match write(place, name, text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file that holds one number; `None` also for `max`.
pub(super) fn read_number(place: &Path, name: &str) -> Option<u64> {
    read(place, name)?.trim().parse().ok()
}

/// The number behind `word` in a file of lines `word number`.
pub(super) fn read_word(place: &Path, name: &str, word: &str) -> Option<u64> {
    read(place, name)?.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
}

/// One read, as the kernel makes the whole text for each.
fn read(place: &Path, name: &str) -> Option<String> {
    let mut text = [0; 4096];
    let len = File::open(place.join(name)).and_then(|mut file| file.read(&mut text)).ok()?;
    Some(String::from_utf8_lossy(&text[..len]).into_owned())
}

/// A file that holds one number, opened ahead of being read: to look its path up takes longer than to read it.
#[derive(Debug)]
pub(super) struct Number(File);

impl Number {
    /// None if there is no such file.
    pub fn open(place: &Path, name: &str) -> Option<Self> {
        File::open(place.join(name)).ok().map(Self)
    }

    /// What it holds now.
    pub fn read(&self) -> Option<u64> {
        let mut text = [0; 32];
        let len = self.0.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..len]).ok()?.trim().parse().ok()
    }
}

/// A handle on a directory.
pub(super) fn open_directory(place: &Path) -> io::Result<OwnedFd> {
    Ok(File::options().read(true).custom_flags(libc::O_DIRECTORY).open(place)?.into())
}

/// A handle to write to.
pub(super) fn open_write(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::options().write(true).open(path)?.into())
}
