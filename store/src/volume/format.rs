//! Making a volume.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::probe::discover;
use super::state_dir::{claim_state_dir, default_state_dir, make_empty_state_dir};
use super::superblocks::{host_name, write_copies};
use super::{OpenOptions, Volume};
use crate::backing::{Backing, DirBacking, RealDirectories};
use crate::clock::{Clock, Entropy, OsEntropy, SystemClock};
use crate::commit::NothingDirty;
use crate::commit_log::{HEAD_KEY, Head};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ids::{Generation, MemberId, SegmentId, Term, VolumeId};
use crate::keyslot::{KdfCost, KeySlot, NewSecret, Unlock, WrappedConvergence};
use crate::meta::rows::{FileKind, NewNode};
use crate::meta::{Meta, Setup};
use crate::record::ChainHash;
use crate::seal::{Codec, Sealer, SecretKey, VolumeKeys};
use crate::superblock::{DomainPolicy, MemberEntry, MemberState, SUPERBLOCK_FILES, Superblock};

/// How a volume is made.
#[derive(Debug)]
pub struct FormatOptions {
    /// Its backing directories: they exist and are empty (`lost+found` alone is empty).
    pub directories: Vec<PathBuf>,
    /// Shards of a stripe; by the number of directories if not given.
    pub geometry: Option<Geometry>,
    /// What opens it.
    pub secret: NewSecret,
    /// Where the metadata database will lie.
    pub state_dir: Option<PathBuf>,
    /// R: ciphertexts of equal content at most, in a domain and epoch.
    pub copies: u16,
    /// Who shares salts.
    pub domain: DomainPolicy,
    /// How new blocks are compressed.
    pub codec: Codec,
    /// Chunk length as a power of two, 12 to 20.
    pub chunk_bits: u8,
    /// Keep former states. Without, there are no snapshots, and what is deleted is gone.
    pub history: bool,
    /// A name for people, at most 64 bytes.
    pub label: String,
    /// How dear guessing the passphrase is made.
    pub kdf: KdfCost,
}

/// A volume that was made.
#[derive(Debug)]
pub struct Formatted {
    /// Its identity.
    pub volume: VolumeId,
    /// Shards of a stripe.
    pub geometry: Geometry,
    /// Its directories, as absolute paths.
    pub directories: Vec<PathBuf>,
    /// Where the metadata database lies.
    pub state_dir: PathBuf,
    /// Opens the volume if the secret is lost. Shown once, stored nowhere.
    pub recovery_key: zeroize::Zeroizing<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Make a volume over empty directories.
pub fn format(options: &FormatOptions) -> Result<Formatted> {
    format_with(options, &OsEntropy)
}

/// [`format`], with every random number from `entropy`: for proofs that make the same volume twice. Nobody's data is safe
/// in a volume whose keys can be guessed.
pub fn format_with(options: &FormatOptions, entropy: &dyn Entropy) -> Result<Formatted> {
    let geometry = choose_geometry(options)?;
    check_options(options)?;
    let mut warnings = Vec::new();
    let (directories, backings) = check_directories(options, &mut warnings)?;
    if geometry.parity() == 0 {
        warnings.push("no parity: the loss of any directory loses data".into());
    }

    let mut volume = VolumeId::default();
    entropy.fill(&mut volume.0);
    let state_dir = options.state_dir.clone().unwrap_or_else(|| default_state_dir(volume));
    let state_dir = make_empty_state_dir(&state_dir)?;
    if let Some(directory) = directories.iter().find(|directory| state_dir.starts_with(directory)) {
        let _ = std::fs::remove_dir(&state_dir);
        return Err(Error::Refused(format!(
            "the state directory {} lies in the backing directory {}; give one elsewhere with --state-dir",
            state_dir.display(),
            directory.display()
        )));
    }
    claim_state_dir(&state_dir, volume)?;

    let volume_key = SecretKey::random(entropy);
    let convergence = SecretKey::random(entropy);
    let slot = KeySlot::create(0, &options.secret, &volume_key, volume, entropy, options.kdf)
        .map_err(|error| Error::Unlock(error.to_string()))?;
    let (recovery_slot, recovery_key) = KeySlot::create_recovery(1, &volume_key, volume, entropy);
    let wrapped_convergence = WrappedConvergence::wrap(&convergence, &volume_key, volume, entropy);
    let keys = VolumeKeys::new(volume, volume_key, convergence);

    let members: Vec<MemberEntry> = directories
        .iter()
        .map(|path| {
            let mut id = MemberId::default();
            entropy.fill(&mut id.0);
            MemberEntry {
                id,
                path: path.as_os_str().as_bytes().to_vec(),
                domain: String::new(),
                state: MemberState::Active,
            }
        })
        .collect();
    let now = SystemClock.now_ns();
    let superblock = Superblock {
        volume,
        member: MemberId::default(),
        label: options.label.clone(),
        geometry,
        chunk_bits: options.chunk_bits,
        copies: options.copies,
        domain: options.domain,
        codec: options.codec,
        epoch: 0,
        created_ns: now,
        sequence: 1,
        term: Term(0),
        generation: Generation(0),
        min_ack: None,
        members,
        ack_overrides: Vec::new(),
        behind: Vec::new(),
        checkpoints: Vec::new(),
        key_slots: vec![slot, recovery_slot],
        wrapped_convergence,
        host: host_name(),
        state_dir: state_dir.as_os_str().as_bytes().to_vec(),
        next_segment: SegmentId(1),
        features: Default::default(),
    };

    // The database first: a directory that carries a superblock belongs to a volume that can be mounted.
    let setup = Setup { volume, name_key: *keys.name_key(), clock: Arc::new(SystemClock), block_id: Sealer::block_id };
    let root = NewNode {
        kind: FileKind::Directory,
        perm: 0o755,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        target: None,
    };
    let meta = Meta::create(&state_dir, keys.database_key(), &setup, &root, options.chunk_bits)?;
    // Before the first row is recorded: what replay begins with.
    meta.with(|txn| txn.set_history(options.history))?;
    meta.commit_generation()?;
    meta.with(|txn| {
        txn.put_local(HEAD_KEY, &Head { generation: meta_generation(txn), chain: ChainHash::START }.encode())
    })?;
    meta.close()?;
    for (path, (member, backing)) in directories.iter().zip(superblock.members.iter().zip(&backings)) {
        let own = Superblock { member: member.id, ..superblock.clone() };
        write_copies(backing.as_ref(), &own, &keys).map_err(|source| Error::Backing {
            directory: path.clone(),
            operation: "writing the superblock".into(),
            source,
        })?;
    }
    // The first checkpoint: from now on the backing directories alone are enough.
    let options = OpenOptions {
        state_dir: Some(state_dir.clone()),
        cache_bytes: 0,
        ..OpenOptions::new(directories.clone(), Unlock::KeyFile(zeroize::Zeroizing::default()))
    };
    let made = Volume::open_unlocked(options, discover(&directories, &RealDirectories)?, &RealDirectories, keys)?;
    made.checkpoint()?;
    made.close(&NothingDirty)?;
    Ok(Formatted { volume, geometry, directories, state_dir, recovery_key: recovery_key.to_text(), warnings })
}

/// The generation committed last, inside an operation.
fn meta_generation(txn: &crate::meta::Txn<'_>) -> Generation {
    Generation(txn.generation().0 - 1)
}

fn choose_geometry(options: &FormatOptions) -> Result<Geometry> {
    let count = options.directories.len();
    let geometry = match options.geometry {
        Some(geometry) => geometry,
        None => Geometry::default_for(count)
            .ok_or_else(|| Error::Refused("give at least one directory to format".into()))?,
    };
    if geometry.total() > count {
        return Err(Error::Refused(format!(
            "{geometry} needs {} directories and {count} were given; give more, or fewer shards (--data, --parity)",
            geometry.total()
        )));
    }
    Ok(geometry)
}

fn check_options(options: &FormatOptions) -> Result<()> {
    if !(12..=20).contains(&options.chunk_bits) {
        return Err(Error::Refused("the chunk size must be a power of two from 4 KiB to 1 MiB".into()));
    }
    if options.copies == 0 {
        return Err(Error::Refused("--copies must be at least 1".into()));
    }
    if options.label.len() > crate::superblock::LABEL_LEN_MAX {
        return Err(Error::Refused(format!(
            "the label is longer than {} bytes; choose a shorter one",
            crate::superblock::LABEL_LEN_MAX
        )));
    }
    Ok(())
}

type Directories = (Vec<PathBuf>, Vec<Arc<dyn Backing>>);

fn check_directories(options: &FormatOptions, warnings: &mut Vec<String>) -> Result<Directories> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut devices: Vec<(u64, PathBuf)> = Vec::new();
    let mut backings: Vec<Arc<dyn Backing>> = Vec::new();
    for directory in &options.directories {
        let path = std::fs::canonicalize(directory).map_err(|source| {
            let next = if source.kind() == std::io::ErrorKind::NotFound { " (make it first: mkdir)" } else { "" };
            Error::io(format!("{}{next}", directory.display()), source)
        })?;
        if path.as_os_str().as_bytes().len() > crate::superblock::PATH_LEN_MAX {
            return Err(Error::Refused(format!("{}: the path is too long", path.display())));
        }
        if paths.contains(&path) {
            return Err(Error::Refused(format!("{} is given twice", path.display())));
        }
        if let Some(outer) = paths.iter().find(|other| path.starts_with(other) || other.starts_with(&path)) {
            return Err(Error::Refused(format!(
                "{} and {} lie within each other; backing directories must be apart",
                outer.display(),
                path.display()
            )));
        }
        check_empty(&path)?;
        let device = std::fs::metadata(&path).map_err(|source| Error::io(path.display().to_string(), source))?.dev();
        if let Some((_, other)) = devices.iter().find(|(other, _)| *other == device) {
            warnings.push(format!(
                "{} and {} are on one filesystem: losing it loses both",
                other.display(),
                path.display()
            ));
        }
        devices.push((device, path.clone()));
        let backing =
            DirBacking::open(&path).map_err(|source| Error::io(format!("opening {}", path.display()), source))?;
        backings.push(Arc::new(backing));
        paths.push(path);
    }
    // One line, not one a pair.
    if warnings.len() > 1 {
        let count = devices.len();
        let mut distinct: Vec<u64> = devices.iter().map(|(device, _)| *device).collect();
        distinct.sort_unstable();
        distinct.dedup();
        warnings.clear();
        warnings.push(format!(
            "the {count} directories are on {}: a disk that fails takes all its directories with it",
            if distinct.len() == 1 { "one filesystem".into() } else { format!("{} filesystems", distinct.len()) }
        ));
    }
    Ok((paths, backings))
}

pub(super) fn check_empty(path: &Path) -> Result<()> {
    let entries = std::fs::read_dir(path).map_err(|source| Error::io(path.display().to_string(), source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::io(path.display().to_string(), source))?;
        let name = entry.file_name();
        if SUPERBLOCK_FILES.iter().any(|file| name == *file) {
            return Err(Error::Refused(format!(
                "{} belongs to a brine volume already (`brine status {}`); remove its content yourself if it is not wanted",
                path.display(),
                path.display()
            )));
        }
        if name != "lost+found" {
            return Err(Error::Refused(format!(
                "{} is not empty (it holds {}); give empty directories",
                path.display(),
                name.display()
            )));
        }
    }
    Ok(())
}
