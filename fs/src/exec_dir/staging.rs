//! Staged outputs of runs (X13): what a run writes into granted directories goes to a staging directory of the volume, and
//! gets its names in one step when the program has ended with 0; if something it replaces was changed meanwhile, none.
//!
//! A staging directory has the run's name, in a directory of the volume that is in no listing. In it each granted path has a
//! directory, its part, which the sandbox finds below `.brine/stage/` by a random name that is not listed either. That of a
//! file's part can be learnt (/proc/PID/mountinfo), so that it leads to the staged file only, for its caller only. What
//! else somebody may do to a part changes nothing but what their own rights do: inodes are noted, and everything is
//! published with the rights of the run's identity.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Weak};

use brine_exec::{Identity, RunId, View, ViewAccess};
use brine_store::Error;
use brine_store::ids::{Ino, Version};
use brine_store::volume::{Attr, Base, FileKind, Published, Staged, StagedWhat};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::grant::Scout;
use super::permission::{EXECUTE, WRITE, permits, who};
use super::record::RunRow;
use super::runs::Runs;
use crate::control_dir::{Branch, Family, Opening, plain_attr};
use crate::errno::{Errno, Outcome};
use crate::vfs::{Caller, Outdated, Vfs};

/// How long outputs that met a conflict are kept, nanoseconds: a day.
pub const KEPT_NS: i64 = 24 * 3600 * 1_000_000_000;
/// What the directory may be done with: searched by name.
const DIRECTORY_PERM: u16 = 0o711;
/// The name of a staged file in the directory of its part.
const COPY: &str = "file";

/// One staged grant, as kept in the run's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StagedRow {
    /// The granted path, from the root of the volume.
    pub path: String,
    /// The directory's inode; of a file its directory's.
    pub directory: u64,
    /// The file's name; none: a directory was granted.
    pub file: Option<String>,
    /// Its name in the staging directory.
    pub part: String,
    /// The inode of that.
    pub part_ino: u64,
    /// The inode of what was staged: the upper layer, or the copy of the file.
    pub staged: u64,
    /// The copy's version before the run.
    pub version: u64,
    /// The file's inode.
    pub of: u64,
}

/// What is in use.
#[derive(Default)]
struct InUse {
    /// Runs whose staging directories are not to be swept.
    runs: HashSet<String>,
    /// The directories of parts, by the names they have below `.brine/stage/`.
    names: HashMap<String, Ino>,
}

/// All staging directories that are in use.
pub struct Stagings {
    vfs: Weak<Vfs>,
    in_use: Mutex<InUse>,
    since_ns: i64,
}

/// The staged outputs of one run. Dropped, they are gone, unless they were kept.
pub struct Staging {
    stagings: Arc<Stagings>,
    base: Base,
    run: String,
    who: Identity,
    names: Vec<String>,
    rows: Vec<StagedRow>,
    keep: bool,
}

impl Stagings {
    /// None yet.
    pub fn new(vfs: &Arc<Vfs>, since_ns: i64) -> Arc<Self> {
        Arc::new(Self { vfs: Arc::downgrade(vfs), in_use: Mutex::default(), since_ns })
    }

    fn vfs(&self) -> Result<Arc<Vfs>, String> {
        self.vfs.upgrade().ok_or_else(|| "the volume is being unmounted".into())
    }

    /// Stage what the views of a run may write to: the views then lead into new staging directories. `scout` sees the volume
    /// as the caller does, who granted them; `who` is the identity the run has.
    ///
    /// # Errors
    /// Why it cannot be staged.
    pub fn begin(
        self: &Arc<Self>,
        run: RunId,
        scout: &Scout<'_>,
        who: &Identity,
        views: &mut [View],
    ) -> Result<Staging, String> {
        let vfs = self.vfs()?;
        let said = |error: Error| format!("staging its outputs: {error}");
        let base = vfs.staging_base().map_err(said)?;
        let run = run.to_string();
        // From here on a sweep leaves it alone, and whatever fails takes it away again.
        self.in_use.lock().runs.insert(run.clone());
        let (stagings, who) = (Arc::clone(self), who.clone());
        let mut staging = Staging { stagings, base, run, who, names: Vec::new(), rows: Vec::new(), keep: false };
        let directory = vfs.make_staging(&staging.run).map_err(said)?.ino;
        for view in views.iter_mut().filter(|view| view.access == ViewAccess::Write) {
            let shown = view.source.display().to_string();
            let gone = || format!("{shown} was replaced or moved while the run was being prepared; run it again");
            let part = staging.rows.len().to_string();
            let attr = view.ino.and_then(|ino| vfs.attr(Ino(ino)).ok()).ok_or_else(gone)?;
            if attr.in_exec {
                return Err(format!("{shown} lies in exec/, where outputs cannot be staged"));
            }
            let part_ino = vfs.make_part(directory, &part, staging.who.uid).map_err(said)?;
            let mut row = StagedRow { path: format!("/{shown}"), part, part_ino: part_ino.0, ..StagedRow::default() };
            let name = RunId::random().to_string();
            let top = Path::new(".brine/stage").join(&name);
            if attr.kind == FileKind::Directory {
                row.staged = vfs.make_layer(part_ino, attr.ino, (staging.who.uid, staging.who.gid)).map_err(said)?.0;
                row.directory = attr.ino.0;
                view.access = ViewAccess::Stage(top);
            } else {
                let file = view.source.file_name().and_then(|name| name.to_str());
                let file = file.ok_or_else(|| {
                    format!("{shown}: a file whose name is no text cannot be staged; grant its directory")
                })?;
                // As of after the base: what is renamed from now on is a conflict.
                let parent = scout.find(view.source.parent().unwrap_or(Path::new(""))).ok_or_else(gone)?;
                let there = vfs.volume().lookup(parent.ino, file.as_bytes());
                if !there.is_ok_and(|there| there.ino == attr.ino) {
                    return Err(gone());
                }
                let may_replace = parent.perm & 0o1000 == 0 || [0, parent.uid, attr.uid].contains(&staging.who.uid);
                if !permits(&vfs, &staging.who, parent.ino, WRITE | EXECUTE) || !may_replace {
                    let uid = staging.who.uid;
                    return Err(format!(
                        "{shown}: user {uid} may not replace files in its directory, which publishing a staged file does"
                    ));
                }
                let copy = vfs.stage_file(part_ino, COPY, staging.base.generation(), attr.ino).map_err(|error| match error {
                    Error::NotFound => {
                        format!("{shown}: a single file is staged from history, which this volume has none of; grant its directory")
                    }
                    error => said(error),
                })?;
                (row.directory, row.of, row.file) = (parent.ino.0, attr.ino.0, Some(file.into()));
                (row.staged, row.version) = (copy.ino.0, copy.version.0);
                view.source = top.join(COPY);
                view.ino = Some(copy.ino.0);
            }
            self.in_use.lock().names.insert(name.clone(), part_ino);
            staging.names.push(name);
            staging.rows.push(row);
        }
        Ok(staging)
    }

    /// Publish outputs that were kept, whatever was changed meanwhile, on behalf of `scout`'s user.
    ///
    /// # Errors
    /// Why not.
    pub fn publish_kept(&self, row: &RunRow, scout: &Scout<'_>) -> Result<(), String> {
        let vfs = self.vfs()?;
        for staged in &row.staged {
            let path = Path::new(staged.path.trim_start_matches('/'));
            let place = if staged.file.is_some() { path.parent().unwrap_or(Path::new("")) } else { path };
            if scout.find(place).is_none_or(|attr| attr.ino.0 != staged.directory) {
                let (place, uid) = (place.display(), scout.who.uid);
                return Err(format!(
                    "the granted directory /{place} is not there any more, or user {uid} cannot reach it: move it back, or run \
                     the function again"
                ));
            }
        }
        let staged: Vec<Staged> = row.staged.iter().map(staged).collect();
        match vfs.publish(None, &staged, who(scout.who)).map_err(|error| error.to_string())? {
            Published::Done(_) => {}
            Published::Conflict(paths) => return Err(format!("not published: {}", listed(&paths))),
        }
        self.discard(&row.id);
        Ok(())
    }

    fn discard(&self, run: &str) {
        let Some(vfs) = self.vfs.upgrade() else { return };
        if let Err(error) = vfs.discard_staging(run) {
            log::warn!("staged outputs of run {run}: {error}; the next mount tries again");
        }
    }

    /// Remove what nobody will publish: outputs of runs that a killed daemon left, and those kept long enough.
    pub fn sweep(&self, runs: &Runs, now_ns: i64) {
        let Some(vfs) = self.vfs.upgrade() else { return };
        if vfs.volume().is_read_only().is_some() {
            return;
        }
        for entry in vfs.volume().stagings().unwrap_or_default() {
            let run = String::from_utf8_lossy(&entry.name).into_owned();
            if self.in_use.lock().runs.contains(&run) {
                continue;
            }
            let kept = runs.named(&run).into_iter().next().is_some_and(|row| row.keeps_outputs(now_ns));
            if !kept {
                self.discard(&run);
            }
        }
    }
}

fn staged(row: &StagedRow) -> Staged {
    let (ino, directory) = (Ino(row.staged), Ino(row.directory));
    let what = match &row.file {
        None => StagedWhat::Tree { upper: ino, target: directory },
        Some(file) => StagedWhat::File {
            copy: (COPY.into(), ino, Version(row.version)),
            to: (directory, file.clone().into_bytes()),
            of: Ino(row.of),
        },
    };
    Staged { path: row.path.clone().into_bytes(), part: Ino(row.part_ino), what }
}

fn listed(paths: &[Vec<u8>]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| String::from_utf8_lossy(path)).collect();
    paths.join(", ")
}

impl Staging {
    /// For the run's record.
    pub fn rows(&self) -> &[StagedRow] {
        &self.rows
    }

    /// Publish everything in one step, if what it replaces is as it was when the run began. Until this is dropped no sweep
    /// takes what is kept, so that its record can be written before.
    ///
    /// # Errors
    /// Why nothing was published, for the caller of the run; the outputs are kept. True: because something was changed.
    pub fn publish(&mut self) -> Result<(), (bool, String)> {
        let outcome = self.try_publish();
        self.keep = outcome.is_err();
        outcome
    }

    fn try_publish(&self) -> Result<(), (bool, String)> {
        let kept = format!("its outputs are kept for a day: `brine exec publish {}`", &self.run[..12]);
        let failed = |why: String| (false, format!("its outputs could not be published: {why}; {kept}"));
        let vfs = self.stagings.vfs().map_err(&failed)?;
        let staged: Vec<Staged> = self.rows.iter().map(staged).collect();
        match vfs.publish(Some(&self.base), &staged, who(&self.who)).map_err(|error| failed(error.to_string()))? {
            Published::Done(_) => Ok(()),
            Published::Conflict(paths) => {
                let what = "somebody else changed what it would replace";
                Err((true, format!("not published: {what} ({}); {kept}", listed(&paths))))
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            self.stagings.discard(&self.run);
        }
        let mut in_use = self.stagings.in_use.lock();
        in_use.runs.remove(&self.run);
        self.names.iter().for_each(|name| {
            in_use.names.remove(name);
        });
        drop(in_use);
        if let Some(vfs) = self.stagings.vfs.upgrade() {
            self.names.iter().for_each(|name| vfs.tell_kernel(Outdated::Name(Family::Stage.top(), name.as_bytes())));
        }
    }
}

impl Branch for Stagings {
    fn family(&self) -> Family {
        Family::Stage
    }

    fn attr(&self, ino: Ino) -> Outcome<Attr> {
        if ino == Family::Stage.top() {
            return Ok(plain_attr(ino, FileKind::Directory, DIRECTORY_PERM, 0, self.since_ns));
        }
        Err(Errno::STALE)
    }

    /// A live inode.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome<Attr> {
        if parent != Family::Stage.top() {
            return Err(Errno(libc::ENOTDIR));
        }
        let name = std::str::from_utf8(name).map_err(|_| Errno::NOT_FOUND)?;
        let ino = self.in_use.lock().names.get(name).copied().ok_or(Errno::NOT_FOUND)?;
        let vfs = self.vfs.upgrade().ok_or(Errno::IO)?;
        vfs.volume().attr(ino).map_err(|_| Errno::NOT_FOUND)
    }

    fn open(&self, _caller: Caller, _ino: Ino, _flags: i32) -> Outcome<Opening> {
        Err(Errno(libc::EISDIR))
    }
}
