//! Applying the entries of layers to a directory, which they cannot leave.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::{Error, Imported};

/// What marks a name as removed by a layer, and a directory as emptied.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bytes copied at a time.
const COPY_LEN: usize = 1 << 20;

/// A directory that layers are applied to.
pub struct Tree {
    root: OwnedFd,
    path: PathBuf,
    /// Owners and groups are those of the image; only root can give files away.
    own: bool,
    imported: Imported,
    /// Modes and times of directories, set when nothing is made in them any more.
    directories: BTreeMap<PathBuf, (Mode, i64)>,
}

fn failed(entry: &Path, doing: &str) -> impl FnOnce(nix::Error) -> Error {
    let doing = format!("{doing} \"{}\"", entry.display());
    move |errno| Error::Io { doing, source: errno.into() }
}

/// An entry's name as it is used: relative and without dots.
///
/// # Errors
/// [`Error::Escapes`] for names with `..` or from the root.
fn plain_name(name: &[u8]) -> Result<PathBuf, Error> {
    let mut out = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => out.push(part),
            Component::CurDir => {}
            _ => return Err(Error::Escapes(String::from_utf8_lossy(name).into_owned())),
        }
    }
    Ok(out)
}

impl Tree {
    /// An empty directory.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let root = openat(AT_FDCWD, path, flags, Mode::empty()).map_err(failed(path, "opening"))?;
        let own = geteuid().is_root();
        Ok(Self { root, path: path.to_owned(), own, imported: Imported::default(), directories: BTreeMap::new() })
    }

    /// Apply one layer. `progress` is told the bytes written so far.
    ///
    /// # Errors
    /// The archive is malformed, or writing failed.
    pub fn apply(&mut self, layer: &mut dyn Read, progress: &mut impl FnMut(u64)) -> Result<(), Error> {
        let mut archive = tar::Archive::new(layer);
        let malformed = |error: io::Error| Error::malformed("archive", error.to_string());
        for entry in archive.entries().map_err(malformed)? {
            let mut entry = entry.map_err(malformed)?;
            let kind = entry.header().entry_type();
            if matches!(kind, EntryType::XGlobalHeader) {
                continue;
            }
            let name = plain_name(&entry.path_bytes())?;
            self.imported.entries += 1;
            let (mode, mtime, uid, gid) = {
                let header = entry.header();
                let bad = |error: io::Error| Error::malformed(name.display().to_string(), error.to_string());
                let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX - 1);
                let mtime = i64::try_from(header.mtime().map_err(bad)?).unwrap_or(0);
                (header.mode().map_err(bad)?, mtime, id(header.uid().map_err(bad)?), id(header.gid().map_err(bad)?))
            };
            if name.as_os_str().is_empty() {
                continue;
            }
            let parent = self.parent(name.parent().unwrap_or(Path::new("")))?;
            let last = name.file_name().unwrap_or_default();
            if let Some(removed) = last.as_bytes().strip_prefix(WHITEOUT) {
                if last.as_bytes() == OPAQUE {
                    self.empty(&parent, &name)?;
                } else {
                    self.remove(&parent, OsStr::from_bytes(removed), &name)?;
                }
                continue;
            }
            let link = entry.link_name_bytes().map(|bytes| bytes.into_owned());
            match kind {
                EntryType::Directory => self.directory(&parent, last, &name)?,
                EntryType::Symlink => {
                    self.remove(&parent, last, &name)?;
                    let target = OsString::from_vec(link.unwrap_or_default());
                    symlinkat(&*target, &parent, last).map_err(failed(&name, "making the link"))?;
                }
                EntryType::Link => {
                    let target = plain_name(&link.unwrap_or_default())?;
                    let from = self.parent(target.parent().unwrap_or(Path::new("")))?;
                    if target == name {
                        continue;
                    }
                    self.remove(&parent, last, &name)?;
                    let old = target.file_name().unwrap_or_default();
                    linkat(&from, old, &parent, last, AtFlags::empty()).map_err(failed(&name, "linking"))?;
                    continue;
                }
                EntryType::Fifo => {
                    self.remove(&parent, last, &name)?;
                    mknodat(&parent, last, SFlag::S_IFIFO, Mode::empty(), 0).map_err(failed(&name, "making"))?;
                }
                EntryType::Block | EntryType::Char => {
                    self.imported.devices += 1;
                    continue;
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    self.remove(&parent, last, &name)?;
                    self.file(&parent, last, &name, &mut entry, progress)?;
                }
                other => {
                    let what = format!("an entry of kind {:?}, which is not known", other);
                    return Err(Error::malformed(name.display().to_string(), what));
                }
            }
            self.dress(&parent, last, &name, kind, (mode, mtime, uid, gid))?;
        }
        Ok(())
    }

    /// The directory of this path, made if it is not there, as the image itself would lead there: links in it are
    /// followed with the image as their root.
    fn parent(&self, path: &Path) -> Result<OwnedFd, Error> {
        let how = || {
            OpenHow::new()
                .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
        };
        let open =
            |path: &Path| openat2(&self.root, if path.as_os_str().is_empty() { Path::new(".") } else { path }, how());
        match open(path) {
            Err(nix::Error::ENOENT) => {
                let above = self.parent(path.parent().unwrap_or(Path::new("")))?;
                let last = path.file_name().unwrap_or_default();
                mkdirat(&above, last, Mode::from_bits_truncate(0o755)).map_err(failed(path, "making"))?;
                open(path).map_err(failed(path, "opening"))
            }
            other => other.map_err(failed(path, "opening")),
        }
    }

    fn directory(&self, parent: &OwnedFd, last: &OsStr, name: &Path) -> Result<(), Error> {
        match fstatat(parent, last, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) if found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => return Ok(()),
            Ok(_) => self.remove(parent, last, name)?,
            Err(_) => {}
        }
        mkdirat(parent, last, Mode::from_bits_truncate(0o700)).map_err(failed(name, "making"))
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        last: &OsStr,
        name: &Path,
        content: &mut dyn Read,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), Error> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, last, flags, Mode::from_bits_truncate(0o600)).map_err(failed(name, "making"))?;
        let mut file = File::from(fd);
        let mut buffer = vec![0; COPY_LEN];
        loop {
            let len = content.read(&mut buffer).map_err(Error::io(format!("reading \"{}\"", name.display())))?;
            if len == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..len]).map_err(Error::io(format!("writing \"{}\"", name.display())))?;
            self.imported.bytes += len as u64;
            progress(self.imported.bytes);
        }
    }

    /// Owner, mode and time. Set-id bits are left out: no run gets rights from them.
    fn dress(
        &mut self,
        parent: &OwnedFd,
        last: &OsStr,
        name: &Path,
        kind: EntryType,
        (mode, mtime, uid, gid): (u32, i64, u32, u32),
    ) -> Result<(), Error> {
        let doing = || failed(name, "setting owner, mode and time of");
        if self.own {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchownat(parent, last, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(doing())?;
        }
        let mode = Mode::from_bits_truncate(mode & 0o1777);
        if kind == EntryType::Directory {
            self.directories.insert(name.to_owned(), (mode, mtime));
            return Ok(());
        }
        if kind != EntryType::Symlink {
            fchmodat(parent, last, mode, FchmodatFlags::FollowSymlink).map_err(doing())?;
        }
        let time = TimeSpec::new(mtime, 0);
        utimensat(parent, last, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(doing())
    }

    fn remove(&self, parent: &OwnedFd, last: &OsStr, name: &Path) -> Result<(), Error> {
        match unlinkat(parent, last, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
            Err(nix::Error::EISDIR | nix::Error::EPERM) => {
                let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                let inner = openat(parent, last, flags, Mode::empty()).map_err(failed(name, "opening"))?;
                self.empty(&inner, name)?;
                unlinkat(parent, last, UnlinkatFlags::RemoveDir).map_err(failed(name, "removing"))
            }
            Err(errno) => Err(failed(name, "removing")(errno)),
        }
    }

    fn empty(&self, directory: &OwnedFd, name: &Path) -> Result<(), Error> {
        let listed = PathBuf::from(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()));
        let entries = fs::read_dir(listed).map_err(Error::io(format!("listing \"{}\"", name.display())))?;
        for entry in entries {
            let entry = entry.map_err(Error::io(format!("listing \"{}\"", name.display())))?;
            self.remove(directory, &entry.file_name(), name)?;
        }
        Ok(())
    }

    /// Everything was applied.
    ///
    /// # Errors
    /// A mode or time cannot be set.
    pub fn finish(mut self) -> Result<Imported, Error> {
        // Inner ones first: setting one does not touch those above, and may make it unsearchable.
        for (name, (mode, mtime)) in std::mem::take(&mut self.directories).into_iter().rev() {
            // One that a later layer removed is not made again.
            let how = OpenHow::new()
                .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            let Ok(directory) = openat2(&self.root, &name, how) else { continue };
            let time = TimeSpec::new(mtime, 0);
            fchmod(&directory, mode)
                .and_then(|()| futimens(&directory, &time, &time))
                .map_err(failed(&name, "setting mode and time of"))?;
        }
        log::debug!("{}: {} entries", self.path.display(), self.imported.entries);
        Ok(self.imported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_none() {
        assert_eq!(plain_name(b"./usr//bin/").unwrap(), Path::new("usr/bin"));
        assert_eq!(plain_name(b".").unwrap(), Path::new(""));
        for bad in ["/etc/passwd", "../x", "a/../../x", "a/.."] {
            assert!(matches!(plain_name(bad.as_bytes()), Err(Error::Escapes(_))), "{bad}");
        }
    }
}
