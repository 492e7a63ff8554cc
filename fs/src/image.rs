//! Root images: a container image, or any archive of a root filesystem, as a plain directory of a volume.
//!
//! Layers are applied one after another into a new directory beside the wanted one, which gets its name when all of it
//! is there. The result depends on the image alone, so that images share what they have in common. Nothing an archive
//! holds leads out of that directory: names are checked, and every path is resolved by the kernel with the directory as
//! its root. Knows nothing of volumes: it writes where it is told.

mod layout;
mod tree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use layout::{Layers, Source};
pub use tree::Tree;

/// Why an image was not imported. What was written of it is removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive or the layout is not what it should be.
    #[error("{place}: {what}")]
    Malformed {
        /// Which file or entry.
        place: String,
        /// What is wrong with it.
        what: String,
    },
    /// A name in an archive that leads out of it.
    #[error("entry \"{0}\" leads out of the image; nothing was imported")]
    Escapes(String),
    /// Reading or writing failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    fn malformed(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), what: what.into() }
    }
}

/// What an import has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Layers applied.
    pub layers: usize,
    /// Entries applied.
    pub entries: u64,
    /// Bytes of files written.
    pub bytes: u64,
    /// Device nodes left out: sandboxes have their own.
    pub devices: u64,
}

/// Import `source` as the new directory `target`. `progress` is told the bytes written so far.
///
/// # Errors
/// Why it was not imported; then `target` does not exist.
pub fn import(source: &Path, target: &Path, mut progress: impl FnMut(u64)) -> Result<Imported, Error> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(Error::malformed(target.display().to_string(), "exists already; remove it, or give another name"));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = target.file_name().ok_or_else(|| Error::malformed(target.display().to_string(), "no name"))?;
    let layers = Layers::open(source)?;
    let partial = PathBuf::from(parent).join(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    fs::create_dir(&partial).map_err(Error::io(format!("making {}", partial.display())))?;
    let outcome = apply(&layers, &partial, &mut progress).and_then(|imported| {
        fs::rename(&partial, target).map_err(Error::io(format!("naming {}", target.display())))?;
        Ok(imported)
    });
    if outcome.is_err() {
        // The first error counts; what cannot be removed has a name that says what it is.
        let _ = fs::remove_dir_all(&partial);
    }
    outcome
}

fn apply(layers: &Layers, into: &Path, progress: &mut impl FnMut(u64)) -> Result<Imported, Error> {
    let mut tree = Tree::open(into)?;
    for layer in layers.list() {
        layers.read(layer, |reader| tree.apply(reader, progress))?;
    }
    Ok(Imported { layers: layers.list().len(), ..tree.finish()? })
}

#[cfg(test)]
mod tests;
