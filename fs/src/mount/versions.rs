//! What a mounted volume answers about past states.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use brine_store::Error;
use brine_store::clock::{Clock, SystemClock};
use brine_store::ids::{Generation, Ino, ROOT_INO, Version};

use brine_store::volume::{
    Destination, Difference, Done, FileKind, GenerationRow, InodeRow, NameSpan, PastReader, Restored, SnapshotRow,
    View, Volume, changes, differences,
};
use serde_json::{Value, json};

use super::service::VolumeService;
use crate::control::VersionsRequest;
use crate::control_dir::is_reserved;
use crate::exit_code::{ExitCode, Failure};
use crate::moment::{Moment, bad_snapshot_name};
use crate::telemetry::timestamp_ns;

/// Most names an answer lists.
const LISTED_MAX: usize = 200_000;

impl VolumeService {
    pub(super) fn versions(&self, request: &VersionsRequest) -> Result<Value, Failure> {
        match request {
            VersionsRequest::Snapshots => {
                let snapshots = self.volume().snapshots()?;
                Ok(json!({ "snapshots": snapshots.iter().map(snapshot_json).collect::<Vec<_>>() }))
            }
            VersionsRequest::CreateSnapshot { name } => self.create_snapshot(name),
            VersionsRequest::DeleteSnapshot { name } => {
                let deleted = self.volume().delete_snapshot(name.as_bytes());
                deleted.map_err(|error| about_snapshot(name, &error))?;
                self.vfs().commit_now()?;
                Ok(json!({ "deleted": name }))
            }
            VersionsRequest::RenameSnapshot { name, new_name } => {
                check_name(new_name)?;
                let renamed = self.volume().rename_snapshot(name.as_bytes(), new_name.as_bytes());
                let row = renamed.map_err(|error| match error {
                    Error::NotFound => about_snapshot(name, &error),
                    _ => about_snapshot(new_name, &error),
                })?;
                self.vfs().commit_now()?;
                Ok(snapshot_json(&row))
            }
            VersionsRequest::Log { path } => self.log(path),
            VersionsRequest::Deleted { path } => self.deleted(path),
            VersionsRequest::Find { path, at } => {
                self.settle()?;
                let found = self.find(path, at)?;
                Ok(json!({
                    "ino": found.row.ino.0,
                    "generation": found.generation.generation.0,
                    "time": timestamp_ns(found.generation.time_ns),
                    "version": found.row.version.0,
                    "kind": kind_name(found.row.kind),
                    "size": found.row.size,
                }))
            }
            VersionsRequest::Restore { path, at, to, if_version } => {
                self.restore(path, at.as_deref(), to.as_deref(), if_version.map(Version))
            }
            VersionsRequest::Write { path, from, if_version } => self.write(path, from, if_version.map(Version)),
            VersionsRequest::Rewind { path, to, dry_run } => self.rewind(path, to, *dry_run),
            VersionsRequest::Diff { path, from, to } => self.diff(path, from, to.as_deref()),
        }
    }

    fn create_snapshot(&self, name: &str) -> Result<Value, Failure> {
        check_name(name)?;
        let named = self.volume().create_snapshot(name.as_bytes());
        let row = named.map_err(|error| about_snapshot(name, &error))?;
        self.vfs().commit_now()?;
        Ok(snapshot_json(&row))
    }

    /// What was accepted so far is a state, too.
    fn settle(&self) -> Result<(), Failure> {
        if self.volume().is_read_only().is_none() {
            self.vfs().commit_now()?;
        }
        Ok(())
    }

    fn log(&self, path: &Path) -> Result<Value, Failure> {
        self.settle()?;
        let states = self.volume().past(|past| {
            let spans = spans_of(past, path)?;
            let mut states = Vec::new();
            let mut before: Option<InodeRow> = None;
            for (index, span) in spans.iter().enumerate() {
                states_within(past, span, &mut before, &mut states)?;
                let followed = spans.get(index + 1).is_some_and(|next| Some(next.since) == span.until);
                if let Some(until) = span.until.filter(|_| !followed) {
                    let row = past.kept_within(until, None)?;
                    let time_ns = row.filter(|row| row.generation == until).map(|row| row.time_ns);
                    let time_ns = time_ns.or(before.as_ref().map(|row| row.ctime_ns)).unwrap_or(0);
                    before = None;
                    states.push(json!({
                        "generation": until.0,
                        "time": timestamp_ns(time_ns),
                        "time_ns": time_ns,
                        "ino": span.ino.0,
                        "what": ["deleted"],
                    }));
                }
            }
            states.reverse();
            Ok(states)
        })?;
        if states.is_empty() {
            let text = format!("{} was never there, as far as states are kept", path.display());
            return Err(Failure::new(ExitCode::NotFound, text));
        }
        Ok(json!({ "path": path.to_string_lossy(), "states": states }))
    }

    fn deleted(&self, path: &Path) -> Result<Value, Failure> {
        self.settle()?;
        let deleted = self.volume().past(|past| {
            let directory = spans_of(past, path)?.last().map(|span| span.ino).ok_or(Error::NotFound)?;
            let mut names = Vec::new();
            for span in past.deleted_names(directory)? {
                let until = span.until.unwrap_or(Generation(u64::MAX >> 1));
                // Names whose states were forgotten cannot be brought back.
                let Some(last) = last_kept(past, span.ino, span.since, until)? else { continue };
                let Some(row) = past.inode(span.ino, last.generation)? else { continue };
                names.push(json!({
                    "name": String::from_utf8_lossy(&span.name),
                    "kind": kind_name(span.kind),
                    "ino": span.ino.0,
                    "size": row.size,
                    "generation": last.generation.0,
                    "time": timestamp_ns(last.time_ns),
                    "time_ns": last.time_ns,
                }));
            }
            Ok(names)
        });
        let deleted = deleted.map_err(|error| about_path(path, &error))?;
        Ok(json!({ "path": path.to_string_lossy(), "deleted": deleted }))
    }

    fn generation(&self, at: &str) -> Result<GenerationRow, Failure> {
        generation_of(self.volume(), at)
    }

    /// The inode that a path was at a moment, and a kept generation in which it was so.
    fn find(&self, path: &Path, at: &str) -> Result<Found, Failure> {
        if let Moment::Version { ino, version } = Moment::parse(at, SystemClock.now_ns()) {
            let found = self.volume().past(|past| find_version(past, path, ino.map(Ino), Version(version)))?;
            return found.ok_or_else(|| {
                let text =
                    format!("{} has no version {at} that is kept; `brine log` lists those that are", path.display());
                Failure::new(ExitCode::NotFound, text)
            });
        }
        let generation = self.generation(at);
        // Rules of a directory may have kept a later state of it.
        if let Moment::Time(time_ns) = Moment::parse(at, SystemClock.now_ns()) {
            let whole = generation.as_ref().map_or(Generation(0), |row| row.generation);
            let below = self.volume().past(|past| past.find_below(path.as_os_str().as_bytes(), time_ns, whole))?;
            if let Some((row, generation)) = below {
                return Ok(Found { row, generation });
            }
        }
        let generation = generation?;
        let found = self.volume().past(|past| past.find(path.as_os_str().as_bytes(), generation.generation));
        match found {
            Ok(row) => Ok(Found { row, generation }),
            Err(Error::NotFound | Error::NotADirectory) => {
                let text = format!("{} was not there at {}", path.display(), timestamp_ns(generation.time_ns));
                Err(Failure::new(ExitCode::NotFound, text))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The last state of a path before it was deleted.
    fn last_before_deletion(&self, path: &Path) -> Result<Found, Failure> {
        let found = self.volume().past(|past| {
            let Some(span) = spans_of(past, path)?.pop() else { return Ok(None) };
            let Some(until) = span.until else { return Err(Error::Exists) };
            let Some(generation) = last_kept(past, span.ino, span.since, until)? else { return Ok(None) };
            Ok(past.inode(span.ino, generation.generation)?.map(|row| Found { row, generation }))
        });
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(about_path(path, &Error::NotFound)),
            Err(Error::Exists) => Err(Failure::usage(format!(
                "{} is there; say which state: PATH@VERSION, PATH@TIME or PATH@SNAPSHOT (`brine log` lists them)",
                path.display()
            ))),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, path: &Path, from: &Path, version: Option<Version>) -> Result<Value, Failure> {
        let (parent, name) = self.place(path)?;
        let (from_parent, from_name) = self.place(from)?;
        let target = self.volume().lookup(parent, &name).map_err(|error| about_path(path, &error))?.ino;
        let written = self.vfs().take_content(target, version, (from_parent, &from_name));
        let attr = written.map_err(|error| match (error, version) {
            (Error::Conflict(_), Some(version)) => self.conflict(path, version),
            (error, _) => about_path(path, &error),
        })?;
        Ok(json!({ "path": path.to_string_lossy(), "ino": attr.ino.0, "version": attr.version.0, "size": attr.size }))
    }

    /// What to say when a path is not of the version that was asked for.
    fn conflict(&self, path: &Path, wanted: Version) -> Failure {
        let now = self.live(&names_of(path)).and_then(|ino| self.volume().attr(ino));
        let is = now.map_or("is not there".to_owned(), |attr| format!("is of version {}", attr.version.0));
        let text =
            format!("{} {is}, not {}; nothing was changed. Read it again and decide anew", path.display(), wanted.0);
        Failure::new(ExitCode::Conflict, text)
    }

    fn restore(
        &self,
        path: &Path,
        at: Option<&str>,
        to: Option<&Path>,
        version: Option<Version>,
    ) -> Result<Value, Failure> {
        self.settle()?;
        let found = match at {
            Some(at) => self.find(path, at)?,
            None => self.last_before_deletion(path)?,
        };
        let as_path = to.unwrap_or(path);
        let (parent, name) = self.place(as_path)?;
        let destination = Destination { parent, name: &name, replace: to.is_none(), version };
        let restored = self.vfs().restore(found.generation.generation, found.row.ino, destination);
        let restored = restored.map_err(|error| match error {
            Error::Conflict(_) => self.conflict(as_path, version.unwrap_or(Version(0))),
            Error::Exists if to.is_some() => {
                Failure::new(ExitCode::Refused, format!("{} exists; choose another name", as_path.display()))
            }
            Error::Exists if found.row.kind == FileKind::Directory => Failure::new(
                ExitCode::Refused,
                format!(
                    "{} exists; `brine rewind` makes a directory what it was, `--to NEW_PATH` brings it back beside it",
                    as_path.display()
                ),
            ),
            Error::Exists => Failure::new(
                ExitCode::Refused,
                format!(
                    "{} is a {} now and was a {}; move it away, or bring it back with `--to NEW_PATH`",
                    as_path.display(),
                    self.volume().lookup(parent, &name).map_or("thing", |attr| kind_name(attr.kind)),
                    kind_name(found.row.kind)
                ),
            ),
            error => about_path(as_path, &error),
        })?;
        let attr = self.volume().lookup(parent, &name)?;
        Ok(json!({
            "path": as_path.to_string_lossy(),
            "ino": attr.ino.0,
            "version": attr.version.0,
            "size": attr.size,
            "from": { "ino": found.row.ino.0, "version": found.row.version.0,
                "generation": found.generation.generation.0, "time": timestamp_ns(found.generation.time_ns) },
            "names": restored.actions.len(),
        }))
    }

    /// The living directory and the name of a path.
    fn place(&self, path: &Path) -> Result<(Ino, Vec<u8>), Failure> {
        let mut names = names_of(path);
        let Some(name) = names.pop() else {
            return Err(Failure::usage("the root always exists; `brine rewind` makes it what it was"));
        };
        let parent = self.live(&names).map_err(|error| match error {
            Error::NotFound | Error::NotADirectory => Failure::new(
                ExitCode::NotFound,
                format!("the directory of {} is gone; restore it first, or give `--to NEW_PATH`", path.display()),
            ),
            error => error.into(),
        })?;
        if is_reserved(parent, &name) {
            return Err(Failure::usage(format!("{}: names in the root that begin so are brine's", path.display())));
        }
        Ok((parent, name))
    }

    /// The inode that names from the root lead to now.
    pub(super) fn live(&self, names: &[Vec<u8>]) -> Result<Ino, Error> {
        names.iter().try_fold(ROOT_INO, |at, name| self.volume().lookup(at, name).map(|attr| attr.ino))
    }

    fn rewind(&self, path: &Path, to: &str, dry_run: bool) -> Result<Value, Failure> {
        self.settle()?;
        let target = self.live(&names_of(path)).map_err(|error| about_path(path, &error))?;
        let kind = self.volume().attr(target)?.kind;
        let Found { row: source, generation } = self.find(path, to)?;
        if kind != FileKind::Directory || source.kind != FileKind::Directory {
            let text = format!("{} is no directory, or was none; `brine restore` brings files back", path.display());
            return Err(Failure::new(ExitCode::Refused, text));
        }
        if dry_run {
            let trial = self.vfs().rewind(generation.generation, source.ino, target, true)?;
            return Ok(rewind_json(path, &generation, &trial, None));
        }
        // What is there now stays reachable whatever is forgotten.
        let undo = format!("before-rewind-{}", timestamp_ns(SystemClock.now_ns()).replace([':', '.'], ""));
        self.create_snapshot(&undo)?;
        let rewound = self.vfs().rewind(generation.generation, source.ino, target, false);
        if !matches!(&rewound, Ok(restored) if !restored.actions.is_empty()) {
            self.volume().delete_snapshot(undo.as_bytes())?;
            self.vfs().commit_now()?;
        }
        let rewound = rewound.map_err(|error| about_path(path, &error))?;
        let undo = (!rewound.actions.is_empty()).then_some(undo);
        Ok(rewind_json(path, &generation, &rewound, undo))
    }

    fn view_of(&self, found: &Found) -> Result<View, Failure> {
        Ok(self.volume().view_of(found.generation.generation, found.row.ino)?)
    }

    fn diff(&self, path: &Path, from: &str, to: Option<&str>) -> Result<Value, Failure> {
        self.settle()?;
        let old = self.find(path, from)?;
        let new = match to {
            Some(to) => self.find(path, to)?,
            None => {
                let committed = self.volume().committed();
                let found = self.volume().past(|past| {
                    let row = past.find(path.as_os_str().as_bytes(), committed)?;
                    let generation = past.generation(committed)?.ok_or(Error::NotFound)?;
                    Ok(Found { row, generation })
                });
                found.map_err(|error| about_path(path, &error))?
            }
        };
        let state = |found: &Found| {
            json!({
                "ino": found.row.ino.0,
                "version": found.row.version.0,
                "generation": found.generation.generation.0,
                "time": timestamp_ns(found.generation.time_ns),
            })
        };
        let directories = [&old, &new].map(|found| found.row.kind == FileKind::Directory);
        let mut answer = json!({ "path": path.to_string_lossy(), "from": state(&old), "to": state(&new) });
        match directories {
            [true, true] => {
                let mut listed = Vec::new();
                let mut found = 0usize;
                let (older, newer) = (self.view_of(&old)?, self.view_of(&new)?);
                differences((&older, old.row.ino), (&newer, new.row.ino), &mut |path, kind, difference| {
                    found += 1;
                    if found <= LISTED_MAX {
                        listed.push(difference_json(path, kind, difference));
                    }
                    Ok(())
                })?;
                answer["differences"] = listed.into();
                answer["count"] = found.into();
            }
            [false, false] => answer["what"] = changes(&old.row, &new.row).into(),
            _ => {
                let text = format!("{} was a directory at one of the two and not at the other", path.display());
                return Err(Failure::new(ExitCode::Refused, text));
            }
        }
        Ok(answer)
    }
}

/// The generation that a text names.
pub(super) fn generation_of(volume: &Volume, at: &str) -> Result<GenerationRow, Failure> {
    let now_ns = SystemClock.now_ns();
    match Moment::parse(at, now_ns) {
        Moment::Time(time_ns) if time_ns > now_ns => {
            Err(Failure::new(ExitCode::NotFound, format!("{at} is still to come")))
        }
        Moment::Time(time_ns) => volume.generation_at(time_ns).map_err(|error| match error {
            Error::NotFound => nothing_from(volume, time_ns),
            error => error.into(),
        }),
        Moment::Snapshot(name) => {
            let row = volume.snapshot(name.as_bytes()).map_err(|error| about_snapshot(&name, &error))?;
            // The state closed a moment after it was named.
            let closed = volume.past(|past| past.generation(row.generation))?;
            Ok(closed.unwrap_or(GenerationRow { generation: row.generation, time_ns: row.time_ns }))
        }
        Moment::Version { .. } => {
            Err(Failure::usage(format!("\"{at}\" is a version of a file; a tree is named by a time or a snapshot")))
        }
    }
}

fn nothing_from(volume: &Volume, time_ns: i64) -> Failure {
    let oldest = volume.past(|past| past.oldest()).ok().flatten();
    let oldest = oldest.map(|row| format!("; the oldest is of {}", timestamp_ns(row.time_ns))).unwrap_or_default();
    Failure::new(ExitCode::NotFound, format!("no state is kept from {} or before{oldest}", timestamp_ns(time_ns)))
}

/// A state of a path.
struct Found {
    row: InodeRow,
    /// A kept generation in which it was so.
    generation: GenerationRow,
}

pub(super) fn names_of(path: &Path) -> Vec<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect()
}

/// Everything that a path has stood for, oldest first. Directories above it are those that have, or had last, their
/// names.
fn spans_of(past: &PastReader<'_>, path: &Path) -> Result<Vec<NameSpan>, Error> {
    let root =
        NameSpan { name: Box::default(), ino: ROOT_INO, kind: FileKind::Directory, since: Generation(0), until: None };
    let mut spans = vec![root];
    for name in names_of(path) {
        let Some(directory) = spans.iter().rev().find(|span| span.kind == FileKind::Directory) else {
            return Ok(Vec::new());
        };
        spans = past.name_spans(directory.ino, &name)?;
    }
    Ok(spans)
}

/// The states of an inode while it had a name.
fn states_within(
    past: &PastReader<'_>,
    span: &NameSpan,
    before: &mut Option<InodeRow>,
    states: &mut Vec<Value>,
) -> Result<(), Error> {
    for (row, until) in past.states(span.ino)? {
        let from = row.since.max(span.since);
        let to = match (until, span.until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if to.is_some_and(|to| from >= to) {
            continue;
        }
        let what = match before {
            None => vec!["created"],
            Some(old) if old.ino != row.ino => vec!["replaced"],
            Some(old) => changes(old, &row),
        };
        let same_version = before.as_ref().is_some_and(|old| (old.ino, old.version) == (row.ino, row.version));
        if !same_version {
            let time_ns = past.kept_within(from, to)?.map_or(row.ctime_ns, |kept| kept.time_ns);
            states.push(json!({
                "version": row.version.0,
                "ino": row.ino.0,
                "generation": from.0,
                "time": timestamp_ns(time_ns),
                "time_ns": time_ns,
                "kind": kind_name(row.kind),
                "size": row.size,
                "mode": format!("{:04o}", row.perm),
                "what": what,
            }));
        }
        *before = Some(row);
    }
    Ok(())
}

/// The last state of an inode that is kept from `since` on and before `until`: as part of a whole, or for a directory it
/// was in.
fn last_kept(
    past: &PastReader<'_>,
    ino: Ino,
    since: Generation,
    until: Generation,
) -> Result<Option<GenerationRow>, Error> {
    let whole = past.last_kept_within(since, until)?;
    let below = past.kept_around(ino, since, Some(until))?.pop();
    Ok(whole.into_iter().chain(below).max_by_key(|row| row.generation))
}

/// A version of what has, or had, a path: of the inode that was named, else of the latest that has such a version.
fn find_version(
    past: &PastReader<'_>,
    path: &Path,
    ino: Option<Ino>,
    version: Version,
) -> Result<Option<Found>, Error> {
    for span in spans_of(past, path)?.into_iter().rev().filter(|span| ino.is_none_or(|ino| ino == span.ino)) {
        for (row, until) in past.states(span.ino)? {
            if row.version != version {
                continue;
            }
            let mut kept = past.kept_within(row.since, until)?;
            if kept.is_none() {
                kept = past.kept_around(row.ino, row.since, until)?.pop();
            }
            if let Some(generation) = kept {
                return Ok(Some(Found { row, generation }));
            }
        }
    }
    Ok(None)
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}

fn difference_json(path: &[u8], kind: FileKind, difference: &Difference) -> Value {
    let what = match difference {
        Difference::Created => vec!["created"],
        Difference::Deleted => vec!["deleted"],
        Difference::Replaced => vec!["replaced"],
        Difference::Changed(what) => what.clone(),
    };
    json!({ "path": String::from_utf8_lossy(path), "kind": kind_name(kind), "what": what })
}

fn rewind_json(path: &Path, to: &GenerationRow, restored: &Restored, undo: Option<String>) -> Value {
    let count = |done: Done| restored.actions.iter().filter(|(_, what)| *what == done).count();
    let actions: Vec<Value> = restored
        .actions
        .iter()
        .take(LISTED_MAX)
        .map(|(path, done)| json!({ "path": String::from_utf8_lossy(path), "what": done }))
        .collect();
    json!({
        "path": path.to_string_lossy(),
        "generation": to.generation.0,
        "time": timestamp_ns(to.time_ns),
        "created": count(Done::Created),
        "changed": count(Done::Changed),
        "moved": count(Done::Moved),
        "removed": count(Done::Removed),
        "actions": actions,
        "undo": undo,
    })
}

fn snapshot_json(row: &SnapshotRow) -> Value {
    json!({
        "name": String::from_utf8_lossy(&row.name),
        "generation": row.generation.0,
        "time": timestamp_ns(row.time_ns),
        "time_ns": row.time_ns,
    })
}

fn check_name(name: &str) -> Result<(), Failure> {
    match bad_snapshot_name(name) {
        None => Ok(()),
        Some(reason) => Err(Failure::usage(format!("\"{name}\" cannot name a snapshot: {reason}"))),
    }
}

fn about_snapshot(name: &str, error: &Error) -> Failure {
    let text = match error {
        Error::NotFound => format!("there is no snapshot \"{name}\"; `brine snapshot list` shows them"),
        Error::Exists => format!("there is a snapshot \"{name}\" already; choose another name, or delete that one"),
        other => format!("snapshot \"{name}\": {other}"),
    };
    Failure::new(ExitCode::from(error), text)
}

fn about_path(path: &Path, error: &Error) -> Failure {
    let text = match error {
        Error::NotFound => format!("{} is not there, and no state of it is kept", path.display()),
        other => format!("{}: {other}", path.display()),
    };
    Failure::new(ExitCode::from(error), text)
}
