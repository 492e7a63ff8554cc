//! Finding a volume: from any of its directories to all of them, without a key.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::state_dir::state_dir_of;
use crate::backing::{Backing, Directories, RealDirectories};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ids::{Generation, MemberId, VolumeId};
use crate::keyslot::SlotKind;
use crate::superblock::{SUPERBLOCK_FILES, Superblock, SuperblockError, UnverifiedSuperblock, newest_first};

/// A directory that proves to be a member.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) backing: Arc<dyn Backing>,
    pub(super) superblock: UnverifiedSuperblock,
}

impl Found {
    fn unchecked(&self) -> &Superblock {
        self.superblock.unauthenticated()
    }

    pub(super) fn member(&self) -> MemberId {
        self.unchecked().member
    }
}

/// What the directories of one volume say.
pub(super) struct Discovery {
    /// Directories found, one a path.
    pub(super) found: Vec<Found>,
    /// The newest superblock's index in `found`.
    pub(super) newest: usize,
    /// Directories that were expected and are not there, with the reason.
    pub(super) absent: Vec<(MemberId, PathBuf, String)>,
}

impl Discovery {
    /// Look at one more directory; silently nothing if it is no member of this volume.
    pub(super) fn add(&mut self, path: &Path, directories: &dyn Directories) {
        let volume = self.newest().volume;
        if let Ok(found) = look(path, directories)
            && found.unchecked().volume == volume
        {
            self.found.push(found);
        }
    }

    /// The newest superblock, to unlock.
    pub(super) fn newest_unverified(&self) -> &UnverifiedSuperblock {
        &self.found[self.newest].superblock
    }

    /// The newest superblock, its MAC not checked.
    pub(super) fn newest(&self) -> &Superblock {
        self.found[self.newest].unchecked()
    }
}

/// Why a directory is no member.
enum NoMember {
    /// It could not be opened or read.
    Io(io::Error),
    /// It holds no superblock.
    NoMarker,
    /// Its superblocks are damaged.
    Damaged(String),
}

impl NoMember {
    fn text(&self) -> String {
        match self {
            Self::Io(error) => error.to_string(),
            Self::NoMarker => "it holds no superblock (is the disk mounted there?)".into(),
            Self::Damaged(reason) => format!("its superblock is damaged ({reason})"),
        }
    }
}

fn look(path: &Path, directories: &dyn Directories) -> Result<Found, NoMember> {
    let backing = directories.open(path).map_err(NoMember::Io)?;
    let [first, second] = SUPERBLOCK_FILES.map(|name| backing.read_file(name).map_err(NoMember::Io));
    let (first, second) = (first?, second?);
    match newest_first([first.as_deref(), second.as_deref()]) {
        Ok(copies) => match copies.into_iter().next() {
            Some(superblock) => Ok(Found { path: path.to_owned(), backing, superblock }),
            None => Err(NoMember::NoMarker),
        },
        Err(SuperblockError::Missing) => Err(NoMember::NoMarker),
        Err(error) => Err(NoMember::Damaged(error.to_string())),
    }
}

pub(super) fn path_of_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// From any directories of a volume to all that can be found.
pub(super) fn discover(sources: &[PathBuf], directories: &dyn Directories) -> Result<Discovery> {
    let mut found: Vec<Found> = Vec::new();
    let mut problems = Vec::new();
    for source in sources {
        let path = directories.canonical(source);
        if found.iter().any(|f| f.path == path) {
            continue;
        }
        match look(&path, directories) {
            Ok(member) => found.push(member),
            Err(no) => problems.push((path, no)),
        }
    }
    let Some(first) = found.first() else {
        let reasons: Vec<String> =
            problems.iter().map(|(path, no)| format!("{}: {}", path.display(), no.text())).collect();
        return Err(Error::NotAVolume(format!(
            "no brine volume found: {}. Name a directory that `brine format` was given.",
            reasons.join("; ")
        )));
    };
    let volume = first.unchecked().volume;
    if let Some(other) = found.iter().find(|f| f.unchecked().volume != volume) {
        return Err(Error::Refused(format!(
            "{} belongs to volume {volume} and {} to volume {}; name directories of one volume only",
            first.path.display(),
            other.path.display(),
            other.unchecked().volume
        )));
    }
    // A copy that was away may know older paths: look where any of them says, the newest first.
    let mut absent = Vec::new();
    loop {
        let newest = newest_of(&found);
        let members = found[newest].unchecked().members.clone();
        absent.clear();
        let before = found.len();
        for member in &members {
            if found.iter().any(|f| f.member() == member.id) {
                continue;
            }
            let path = path_of_bytes(&member.path);
            let reason = match look(&path, directories) {
                Ok(f) if f.unchecked().volume == volume && f.member() == member.id => {
                    found.push(f);
                    continue;
                }
                Ok(f) if f.unchecked().volume != volume => {
                    format!("the directory there belongs to another volume ({})", f.unchecked().volume)
                }
                Ok(f) => {
                    let id = f.member();
                    // Perhaps a copy of a directory that is there, too: whoever opens the volume must see both.
                    if !found.iter().any(|other| other.path == f.path) {
                        found.push(f);
                    }
                    format!("the directory there is member {id} of the volume, not this one")
                }
                Err(no) => no.text(),
            };
            absent.push((member.id, path, reason));
        }
        if found.len() == before || newest_of(&found) == newest {
            return Ok(Discovery { found, newest, absent });
        }
    }
}

fn newest_of(found: &[Found]) -> usize {
    (0..found.len()).max_by_key(|&i| found[i].unchecked().age()).unwrap_or(0)
}

/// What can be known of a volume without a key.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Identity.
    pub volume: VolumeId,
    /// Label; may be empty.
    pub label: String,
    /// Shards of a stripe.
    pub geometry: Geometry,
    /// Its directories.
    pub members: Vec<ProbeMember>,
    /// Its key slots, and what opens each.
    pub key_slots: Vec<(u32, SlotKind)>,
    /// Where its metadata database is expected.
    pub state_dir: PathBuf,
    /// The last generation the superblocks tell of.
    pub generation: Generation,
    /// The process that has it open on this host, if any.
    pub holder: Option<u32>,
}

/// One directory of a probed volume.
#[derive(Clone, Debug)]
pub struct ProbeMember {
    /// Identity.
    pub id: MemberId,
    /// Path, the last known one if it is absent.
    pub path: PathBuf,
    /// Why it is absent, if it is.
    pub present: Result<(), String>,
}

/// What can be known without a key: identity, geometry, which directories are present.
pub fn probe(sources: &[PathBuf]) -> Result<Probe> {
    let discovery = discover(sources, &RealDirectories)?;
    let newest = discovery.newest();
    let members = newest
        .members
        .iter()
        .map(|member| {
            let found = discovery.found.iter().find(|f| f.member() == member.id);
            let absent = discovery.absent.iter().find(|(id, _, _)| *id == member.id);
            ProbeMember {
                id: member.id,
                path: found.map_or_else(|| path_of_bytes(&member.path), |f| f.path.clone()),
                present: match (found, absent) {
                    (Some(_), _) => Ok(()),
                    (None, Some((_, _, reason))) => Err(reason.clone()),
                    (None, None) => Err("not found".into()),
                },
            }
        })
        .collect();
    let state_dir = state_dir_of(None, newest);
    let holder = crate::lock::LocalLock::holder(&state_dir);
    Ok(Probe {
        volume: newest.volume,
        label: newest.label.clone(),
        geometry: newest.geometry,
        members,
        key_slots: newest.key_slots.iter().map(|slot| (slot.id(), slot.kind())).collect(),
        holder,
        state_dir,
        generation: newest.generation,
    })
}
