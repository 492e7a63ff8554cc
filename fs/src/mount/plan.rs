//! What the command passes to the supervisor and the daemon: everything needed to mount, the secret included.
//!
//! The bytes live in memory files and zeroed buffers only; never in argv, in the environment or on disk.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use brine_store::volume::Unlock;
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

use crate::config::MountOptions;
use crate::exit_code::Failure;
use crate::telemetry;

/// Longest encoded plan, bytes: a key file of 1 MiB and many long paths.
const PLAN_LEN_MAX: u64 = 4 << 20;
/// Version of the encoding; both ends are one executable, so this only catches a wrong standard input.
const MAGIC: &[u8] = b"brine plan 1\n";

/// What opens a volume; zeroed when dropped.
#[derive(Clone)]
pub enum Secret {
    /// What a person types.
    Passphrase(Zeroizing<Vec<u8>>),
    /// Content of a key file.
    KeyFile(Zeroizing<Vec<u8>>),
    /// A recovery key as printed.
    RecoveryKey(Zeroizing<Vec<u8>>),
}

impl Secret {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Passphrase(bytes) => (1, bytes),
            Self::KeyFile(bytes) => (2, bytes),
            Self::RecoveryKey(bytes) => (3, bytes),
        }
    }

    /// For the store.
    pub fn into_unlock(self) -> Unlock {
        match self {
            Self::Passphrase(bytes) => Unlock::Passphrase(bytes),
            Self::KeyFile(bytes) => Unlock::KeyFile(bytes),
            Self::RecoveryKey(bytes) => Unlock::RecoveryKey(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A mount to be made. Paths are absolute, but for those in `options`, which are relative to `base`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Backing directories.
    pub sources: Vec<PathBuf>,
    /// The source as the user wrote it, absolute: what mount(8) shows.
    pub shown_source: OsString,
    /// Where.
    pub mountpoint: PathBuf,
    /// Working directory of the command.
    pub base: PathBuf,
    /// Arguments of all `-o`.
    pub options: Vec<OsString>,
    /// Log file of the daemon. Its directory may not exist yet: a state directory that was lost is made anew.
    pub log: PathBuf,
    /// What opens the volume.
    pub secret: Secret,
}

impl Plan {
    /// The options, read anew.
    ///
    /// # Errors
    /// Names a wrong option.
    pub fn parsed_options(&self) -> Result<MountOptions, Failure> {
        MountOptions::parse(&self.options, &self.base)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (kind, secret) = self.secret.parts();
        // Of its full length at once: growing would leave copies of the secret behind.
        let paths = self.sources.iter().map(|path| path.as_os_str()).chain(self.options.iter().map(|o| o.as_os_str()));
        let fixed =
            [self.shown_source.as_os_str(), self.mountpoint.as_os_str(), self.base.as_os_str(), self.log.as_os_str()];
        let len: usize = paths.chain(fixed).map(|text| text.len() + 4).sum::<usize>() + MAGIC.len() + secret.len() + 64;
        let mut out = Zeroizing::new(Vec::with_capacity(len));
        out.extend_from_slice(MAGIC);
        put_list(&mut out, self.sources.iter().map(|path| path.as_os_str()));
        fixed.iter().for_each(|text| put(&mut out, text.as_bytes()));
        put_list(&mut out, self.options.iter().map(OsString::as_os_str));
        put(&mut out, &[kind]);
        put(&mut out, secret);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let sources = take_list(&mut rest)?.into_iter().map(PathBuf::from).collect();
        let shown_source = os(take(&mut rest)?);
        let mountpoint = os(take(&mut rest)?).into();
        let base = os(take(&mut rest)?).into();
        let log = os(take(&mut rest)?).into();
        let options = take_list(&mut rest)?;
        let kind = take(&mut rest)?;
        let content = Zeroizing::new(take(&mut rest)?.to_vec());
        let secret = match kind {
            [1] => Secret::Passphrase(content),
            [2] => Secret::KeyFile(content),
            [3] => Secret::RecoveryKey(content),
            _ => return None,
        };
        rest.is_empty().then_some(Self { sources, shown_source, mountpoint, base, options, log, secret })
    }

    /// Whether the log file can be made: not while its directory is missing.
    pub(super) fn has_place_for_log(&self) -> bool {
        self.log.parent().is_some_and(Path::is_dir)
    }

    /// Log into the file, as soon as there is a place for it.
    ///
    /// # Errors
    /// What the system says, with the file's name.
    pub(super) fn start_log(&self) -> Result<(), Failure> {
        if !self.has_place_for_log() {
            return Ok(());
        }
        telemetry::log_to_file(&self.log)
            .map_err(|error| Failure::io(format!("log file {}", self.log.display()), &error))
    }

    /// A memory file to pass on as a standard input.
    ///
    /// # Errors
    /// What the system says.
    pub fn to_memory(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create("brine-plan", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&self.encode())?;
        file.rewind()?;
        Ok(file)
    }

    /// From standard input, which is a memory file of [`Self::to_memory`]. The file is emptied: the plan is in this
    /// process's memory only from here on.
    ///
    /// # Errors
    /// What the system says, or that standard input is something else.
    pub fn from_stdin() -> io::Result<Self> {
        let mut file = File::from(nix::unistd::dup(io::stdin())?);
        let len = file.metadata()?.len().min(PLAN_LEN_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(len as usize + 1));
        Read::by_ref(&mut file).take(PLAN_LEN_MAX).read_to_end(&mut bytes)?;
        let plan = Self::decode(&bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "this command is run by `brine mount`, not by hand")
        })?;
        file.rewind()?;
        file.write_all(&vec![0; bytes.len()])?;
        file.set_len(0)?;
        Ok(plan)
    }
}

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_list<'a>(out: &mut Vec<u8>, items: impl ExactSizeIterator<Item = &'a OsStr>) {
    out.extend_from_slice(&(items.len() as u32).to_le_bytes());
    items.for_each(|item| put(out, item.as_bytes()));
}

fn take_number(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*number) as usize)
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_number(rest)?;
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(bytes)
}

fn take_list(rest: &mut &[u8]) -> Option<Vec<OsString>> {
    let count = take_number(rest)?;
    // An item takes four bytes at least.
    (count <= rest.len() / 4).then(|| (0..count).map(|_| take(rest).map(os)).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            sources: vec!["/a".into(), "/b c".into()],
            shown_source: "/a:/b c".into(),
            mountpoint: OsString::from_vec(b"/mnt/\xff".to_vec()).into(),
            base: "/home/me".into(),
            options: vec!["ro,cache=64M".into()],
            log: "/log".into(),
            secret: Secret::KeyFile(Zeroizing::new(vec![0, 1, 255])),
        }
    }

    #[test]
    fn what_is_passed_arrives() {
        let bytes = plan().encode();
        let back = Plan::decode(&bytes).unwrap();
        assert_eq!(*back.encode(), *bytes);
        assert_eq!(back.mountpoint, plan().mountpoint);
        assert!(back.parsed_options().unwrap().read_only);
        assert!(matches!(back.secret, Secret::KeyFile(content) if *content == [0, 1, 255]));
    }

    #[test]
    fn nothing_else_is_taken_for_a_plan() {
        let bytes = plan().encode();
        for len in 0..bytes.len() {
            assert!(Plan::decode(&bytes[..len]).is_none(), "{len}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Plan::decode(&longer).is_none());
        let mut huge = MAGIC.to_vec();
        huge.extend(u32::MAX.to_le_bytes());
        assert!(Plan::decode(&huge).is_none());
    }

    #[test]
    fn the_buffer_is_never_moved() {
        let bytes = plan().encode();
        assert!(bytes.len() <= bytes.capacity());
        let mut many = plan();
        many.options = vec!["x".repeat(1000).into(); 50];
        let capacity_needed = many.encode();
        assert!(capacity_needed.capacity() < capacity_needed.len() + 200);
    }

    #[test]
    fn no_secret_is_printed() {
        assert!(format!("{:?}", plan()).contains("Secret(..)"));
    }
}
