//! What of the volume exists for a run: paths its policy grants, and files its arguments name. Everything is cut to
//! what the caller may reach; symbolic links are not followed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use brine_exec::plan::LAUNCHER;
use brine_exec::{Identity, View, ViewAccess};
use brine_store::ids::{Ino, ROOT_INO, Version};
use brine_store::volume::{Attr, FileKind};

use super::permission::{EXECUTE, READ, permits};
use super::policy::FunctionPolicy;
use crate::control_dir::is_reserved;
use crate::vfs::Vfs;

/// Where a run finds its credential, beside the launcher, from the root of the volume.
pub const CREDENTIAL: &str = ".brine/exec.sock";
/// Arguments that grant reading a file at most.
const ARGUMENTS_MAX: usize = 256;

/// A file or directory that a run may read, and its state when the run began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Path from the root of the volume.
    pub path: PathBuf,
    /// Its inode.
    pub ino: Ino,
    /// Its version then.
    pub version: Version,
}

/// What a run is granted.
#[derive(Debug, Default)]
pub struct Grants {
    /// For the sandbox.
    pub views: Vec<View>,
    /// For the record.
    pub inputs: Vec<Input>,
    /// Below these a run may open files by asking.
    pub open: Vec<PathBuf>,
    /// Arguments that name something of the volume and were not granted.
    pub withheld: Vec<PathBuf>,
}

/// The volume as a caller sees it.
pub struct Scout<'a> {
    /// The volume.
    pub vfs: &'a Vfs,
    /// Where it is mounted.
    pub mountpoint: &'a Path,
    /// Who calls.
    pub who: &'a Identity,
    /// What the run that calls was granted, if a run does: arguments grant nothing beyond.
    pub within: Option<&'a [PathBuf]>,
}

impl Scout<'_> {
    /// `path`, named from `directory`, as it is from the root of the volume, if it lies in it. Only the text is looked at:
    /// no links are followed later, so `..` means what it says.
    pub fn inside(&self, directory: &Path, path: &Path) -> Option<PathBuf> {
        let mut absolute = PathBuf::from("/");
        for part in directory.join(path).components() {
            match part {
                Component::Normal(name) => absolute.push(name),
                Component::ParentDir => drop(absolute.pop()),
                _ => {}
            }
        }
        absolute.strip_prefix(self.mountpoint).ok().map(Path::to_owned)
    }

    /// What `inside` names, if the caller can reach it without symbolic links.
    pub fn find(&self, inside: &Path) -> Option<Attr> {
        self.find_in(inside).map(|(_, attr)| attr)
    }

    /// The same with the directory it is in; the root is in itself.
    pub fn find_in(&self, inside: &Path) -> Option<(Ino, Attr)> {
        let (mut directory, mut at) = (ROOT_INO, None::<Attr>);
        for part in inside.components() {
            let Component::Normal(name) = part else { return None };
            if let Some(found) = at {
                if found.kind != FileKind::Directory {
                    return None;
                }
                directory = found.ino;
            }
            if !permits(self.vfs, self.who, directory, EXECUTE) || is_reserved(directory, name.as_bytes()) {
                return None;
            }
            at = Some(self.vfs.volume().lookup(directory, name.as_bytes()).ok()?);
        }
        // What is buffered of it counts.
        let attr = self.vfs.attr(at.map_or(ROOT_INO, |found| found.ino)).ok()?;
        Some((directory, attr))
    }

    fn view(&self, inside: &Path, attr: &Attr, access: ViewAccess) -> View {
        View { source: inside.to_owned(), ino: Some(attr.ino.0), at: self.mountpoint.join(inside), access }
    }

    /// Everything a run is granted. `arguments` are those after the function's name.
    ///
    /// # Errors
    /// A path of the policy that the caller cannot reach, or that is not there.
    pub fn grants(&self, policy: &FunctionPolicy, directory: &Path, arguments: &[OsString]) -> Result<Grants, PathBuf> {
        let mut grants = Grants::default();
        let granted = policy.read.iter().map(|path| (path, ViewAccess::Read));
        for (path, access) in granted.chain(policy.write.iter().map(|path| (path, ViewAccess::Write))) {
            let inside = PathBuf::from(path.trim_start_matches('/'));
            let attr = self.find(&inside).ok_or_else(|| self.mountpoint.join(&inside))?;
            if !matches!(attr.kind, FileKind::File | FileKind::Directory) {
                return Err(self.mountpoint.join(&inside));
            }
            grants.views.push(self.view(&inside, &attr, access.clone()));
            grants.inputs.push(Input { path: inside, ino: attr.ino, version: attr.version });
        }
        for path in &policy.open {
            let inside = PathBuf::from(path.trim_start_matches('/'));
            self.find(&inside).ok_or_else(|| self.mountpoint.join(&inside))?;
            grants.open.push(inside);
        }
        for path in &policy.call {
            let inside = PathBuf::from(path.trim_start_matches('/'));
            let attr = self.find(&inside).ok_or_else(|| self.mountpoint.join(&inside))?;
            grants.views.push(self.view(&inside, &attr, ViewAccess::Read));
        }
        if !policy.call.is_empty() {
            let source = PathBuf::from(LAUNCHER);
            // Where interpreter lines say it is.
            let at = self.vfs.exec().launcher().unwrap_or_else(|| self.mountpoint.join(&source));
            grants.views.push(View { source, ino: None, at, access: ViewAccess::Read });
        }
        // Outer ones first, so that inner ones are laid over them.
        grants.views.sort_by(|one, other| one.at.cmp(&other.at));
        for argument in arguments {
            self.argument(policy, directory, Path::new(argument), &mut grants);
        }
        Ok(grants)
    }

    fn argument(&self, policy: &FunctionPolicy, directory: &Path, argument: &Path, grants: &mut Grants) {
        if argument.as_os_str().is_empty() {
            return;
        }
        let Some(inside) = self.inside(directory, argument).filter(|inside| !inside.as_os_str().is_empty()) else {
            return;
        };
        let at = self.mountpoint.join(&inside);
        if grants.views.iter().any(|view| at.starts_with(&view.at)) {
            return;
        }
        let Some(attr) = self.find(&inside) else { return };
        let reachable = self.within.is_none_or(|granted| granted.iter().any(|path| inside.starts_with(path)));
        let readable = reachable && attr.kind == FileKind::File && permits(self.vfs, self.who, attr.ino, READ);
        if policy.args && readable && grants.inputs.len() < ARGUMENTS_MAX + policy.read.len() + policy.write.len() {
            grants.views.push(self.view(&inside, &attr, ViewAccess::Read));
            grants.inputs.push(Input { path: inside, ino: attr.ino, version: attr.version });
        } else {
            grants.withheld.push(at);
        }
    }
}
