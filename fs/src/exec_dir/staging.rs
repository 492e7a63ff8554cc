//! Staged outputs of runs (X13): what a run writes into granted directories goes to a staging directory of the volume, and
//! gets its names in one step when the program has ended with 0; if something it replaces was changed meanwhile, none.
//!
//! A staging directory has the run's name, in a directory of the volume that is in no listing. The sandbox finds it below
//! `.brine/stage/`, by a random name that is not listed either.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use brine_exec::{Identity, RunId, View, ViewAccess};
use brine_store::Error;
use brine_store::ids::Ino;
use brine_store::volume::{Attr, Base, FileKind, Published, Staged};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::permission::{EXECUTE, WRITE, may};
use super::record::{OUTPUTS_KEPT, RunRow};
use super::runs::Runs;
use crate::control_dir::{Branch, Family, Opening, plain_attr};
use crate::errno::{Errno, Outcome};
use crate::vfs::{Caller, Outdated, Vfs};

/// How long outputs that met a conflict are kept, nanoseconds: a day.
pub const KEPT_NS: i64 = 24 * 3600 * 1_000_000_000;
/// What the directory may be done with: searched by name.
const DIRECTORY_PERM: u16 = 0o711;

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
}

/// All staging directories that are in use.
pub struct Stagings {
    vfs: Weak<Vfs>,
    /// Those of runs that go on, by the name they have below `.brine/stage/`: the run, and the directory.
    names: Mutex<HashMap<String, (String, Ino)>>,
    since_ns: i64,
}

/// The staged outputs of one run. Dropped, they are gone, unless they were kept.
pub struct Staging {
    stagings: Arc<Stagings>,
    base: Base,
    run: String,
    name: String,
    rows: Vec<StagedRow>,
    keep: bool,
}

impl Stagings {
    /// None yet.
    pub fn new(vfs: &Arc<Vfs>, since_ns: i64) -> Arc<Self> {
        Arc::new(Self { vfs: Arc::downgrade(vfs), names: Mutex::default(), since_ns })
    }

    fn vfs(&self) -> Result<Arc<Vfs>, String> {
        self.vfs.upgrade().ok_or_else(|| "the volume is being unmounted".into())
    }

    /// Stage what the views of a run may write to: the views then lead into a new staging directory.
    ///
    /// # Errors
    /// Why it cannot be staged.
    pub fn begin(self: &Arc<Self>, run: RunId, who: &Identity, views: &mut [View]) -> Result<Staging, String> {
        let vfs = self.vfs()?;
        let said = |error: Error| format!("staging its outputs: {error}");
        let base = vfs.staging_base().map_err(said)?;
        let (run, name) = (run.to_string(), RunId::random().to_string());
        // From here on a sweep leaves it alone, and whatever fails takes it away again.
        self.names.lock().insert(name.clone(), (run.clone(), Ino(0)));
        let mut staging = Staging { stagings: Arc::clone(self), base, run, name, rows: Vec::new(), keep: false };
        let directory = vfs.make_staging(&staging.run, who.uid, who.gid).map_err(said)?.ino;
        self.names.lock().insert(staging.name.clone(), (staging.run.clone(), directory));
        let top = Path::new(".brine/stage").join(&staging.name);
        for view in views.iter_mut().filter(|view| view.access == ViewAccess::Write) {
            let shown = view.source.display().to_string();
            let part = staging.rows.len().to_string();
            let attr = view.ino.and_then(|ino| vfs.attr(Ino(ino)).ok()).ok_or_else(|| format!("{shown} is gone"))?;
            if attr.in_exec {
                return Err(format!("{shown} lies in exec/, where outputs cannot be staged"));
            }
            let mut row = StagedRow { path: format!("/{shown}"), part: part.clone(), ..StagedRow::default() };
            if attr.kind == FileKind::Directory {
                vfs.make_layer(directory, &part, attr.ino).map_err(said)?;
                row.directory = attr.ino.0;
                view.access = ViewAccess::Stage(top.join(&part));
            } else {
                let parent = view.source.parent().unwrap_or(Path::new(""));
                row.directory = find(&vfs, parent).ok_or_else(|| format!("{shown} is gone"))?.ino.0;
                let file = view.source.file_name().and_then(|name| name.to_str());
                row.file =
                    Some(file.ok_or_else(|| format!("{shown}: a name that is no text cannot be staged"))?.into());
                vfs.stage_file(directory, &part, staging.base.generation(), attr.ino).map_err(|error| match error {
                    Error::NotFound => {
                        format!("{shown}: a single file is staged from history, which this volume has none of; grant its directory")
                    }
                    error => said(error),
                })?;
                view.source = top.join(&part);
                view.ino = None;
            }
            staging.rows.push(row);
        }
        Ok(staging)
    }

    /// Publish outputs that were kept, whatever was changed meanwhile, on behalf of `who`.
    ///
    /// # Errors
    /// Why not.
    pub fn publish_kept(&self, row: &RunRow, who: &Identity) -> Result<(), String> {
        let vfs = self.vfs()?;
        let allowed = |attr: &Attr| may(who, attr, WRITE | EXECUTE);
        let parts = parts(&vfs, &row.id, &row.staged).map_err(|error| error.to_string())?;
        match vfs.publish(None, &parts, &allowed).map_err(|error| error.to_string())? {
            Published::Done(_) => {}
            Published::Conflict(_) => return Err("a granted directory is not there any more".into()),
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
            if self.names.lock().values().any(|(active, _)| *active == run) {
                continue;
            }
            let kept = runs.named(&run).into_iter().next().is_some_and(|row| {
                row.outputs == OUTPUTS_KEPT && row.ended_ns.is_some_and(|ended| now_ns.saturating_sub(ended) < KEPT_NS)
            });
            if !kept {
                self.discard(&run);
            }
        }
    }
}

fn find(vfs: &Vfs, inside: &Path) -> Option<Attr> {
    let mut at = vfs.attr(brine_store::ids::ROOT_INO).ok()?;
    for part in inside.components() {
        at = vfs.volume().lookup(at.ino, part.as_os_str().as_encoded_bytes()).ok()?;
    }
    Some(at)
}

fn parts(vfs: &Vfs, run: &str, rows: &[StagedRow]) -> brine_store::Result<Vec<Staged>> {
    let staged = |path: &str| vfs.volume().find_staged(run.as_bytes(), path);
    let part = |row: &StagedRow| {
        Ok(match &row.file {
            None => Staged::Tree { upper: staged(&format!("{}/upper", row.part))?.ino, target: Ino(row.directory) },
            Some(file) => Staged::File {
                from: (staged("")?.ino, row.part.clone().into_bytes()),
                to: (Ino(row.directory), file.clone().into_bytes()),
            },
        })
    };
    rows.iter().map(part).collect()
}

impl Staging {
    /// For the run's record.
    pub fn rows(&self) -> &[StagedRow] {
        &self.rows
    }

    /// Publish everything in one step, if what it replaces is as it was when the run began.
    ///
    /// # Errors
    /// Why nothing was published, for the caller of the run; the outputs are kept. True: because something was changed.
    pub fn publish(mut self) -> Result<(), (bool, String)> {
        let outcome = self.try_publish();
        self.keep = outcome.is_err();
        outcome
    }

    fn try_publish(&self) -> Result<(), (bool, String)> {
        let kept = format!("its outputs are kept for a day: `brine exec publish {}`", &self.run[..12]);
        let failed = |why: String| (false, format!("its outputs could not be published: {why}; {kept}"));
        let vfs = self.stagings.vfs().map_err(&failed)?;
        let parts = parts(&vfs, &self.run, &self.rows).map_err(|error| failed(error.to_string()))?;
        match vfs.publish(Some(&self.base), &parts, &|_| true).map_err(|error| failed(error.to_string()))? {
            Published::Done(_) => Ok(()),
            Published::Conflict(paths) => {
                let paths: Vec<PathBuf> =
                    paths.iter().map(|path| PathBuf::from(String::from_utf8_lossy(path).into_owned())).collect();
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                let what = "somebody else changed what it would replace";
                Err((true, format!("not published: {what} ({}); {kept}", paths.join(", "))))
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            self.stagings.discard(&self.run);
        }
        self.stagings.names.lock().remove(&self.name);
        if let Some(vfs) = self.stagings.vfs.upgrade() {
            vfs.tell_kernel(Outdated::Name(Family::Stage.top(), self.name.as_bytes()));
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
        let (_, ino) = self.names.lock().get(name).cloned().ok_or(Errno::NOT_FOUND)?;
        let vfs = self.vfs.upgrade().ok_or(Errno::IO)?;
        vfs.volume().attr(ino).map_err(|_| Errno::NOT_FOUND)
    }

    fn open(&self, _caller: Caller, _ino: Ino, _flags: i32) -> Outcome<Opening> {
        Err(Errno(libc::EISDIR))
    }
}
