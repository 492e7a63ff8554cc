//! What a tree holds, for comparing it before and after: kinds, permissions, owners, times, contents.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// "file", "directory", "symlink" or "special".
    pub kind: &'static str,
    /// Permission bits, 0o7777.
    pub perm: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes; 0 for directories, whose size says nothing.
    pub size: u64,
    /// Modification time, nanoseconds since 1970; 0 for directories.
    pub mtime_ns: i128,
    /// BLAKE3 of the content or link target; the error's text if it cannot be read.
    pub hash: Result<blake3::Hash, String>,
}

/// All entries below a directory, by relative path.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Manifest(pub BTreeMap<PathBuf, Entry>);

impl Manifest {
    /// Reads everything below `root`. Entries that cannot be read are in it with their error.
    ///
    /// # Panics
    /// If a directory cannot be listed.
    #[track_caller]
    pub fn of(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut queue = vec![PathBuf::new()];
        while let Some(relative) = queue.pop() {
            let dir = root.join(&relative);
            let list = fs::read_dir(&dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
            for item in list {
                let name = item.unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display())).file_name();
                let path = relative.join(name);
                let entry = entry(&root.join(&path));
                if entry.kind == "directory" {
                    queue.push(path.clone());
                }
                entries.insert(path, entry);
            }
        }
        Self(entries)
    }

    /// Without the times of symlinks, which not every program keeps.
    pub fn without_link_times(mut self) -> Self {
        self.0.values_mut().filter(|entry| entry.kind == "symlink").for_each(|entry| entry.mtime_ns = 0);
        self
    }

    /// Paths whose content cannot be read.
    pub fn unreadable(&self) -> Vec<&Path> {
        self.0.iter().filter(|(_, entry)| entry.hash.is_err()).map(|(path, _)| path.as_path()).collect()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Differences, one sentence each, at most twenty.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, mine) in &self.0 {
            match other.0.get(path) {
                None => found.push(format!("{} is missing", path.display())),
                Some(theirs) if theirs != mine => found.push(format!("{}: {mine:?} became {theirs:?}", path.display())),
                Some(_) => {}
            }
        }
        found.extend(other.0.keys().filter(|p| !self.0.contains_key(*p)).map(|p| format!("{} is new", p.display())));
        found.truncate(20);
        found
    }

    /// Panics with the differences if there are any.
    #[track_caller]
    pub fn expect_same(&self, other: &Self, what: &str) {
        let differences = self.differences(other);
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }
}

#[track_caller]
fn entry(path: &Path) -> Entry {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("cannot stat {}: {error}", path.display()));
    let kind = meta.file_type();
    let (name, hash) = if kind.is_dir() {
        ("directory", Ok(blake3::hash(b"")))
    } else if kind.is_symlink() {
        ("symlink", fs::read_link(path).map(|target| blake3::hash(target.as_os_str().as_bytes())))
    } else if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        ("special", Ok(blake3::hash(&meta.rdev().to_le_bytes())))
    } else {
        ("file", hash_file(path))
    };
    let directory = kind.is_dir();
    Entry {
        kind: name,
        perm: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        size: if directory { 0 } else { meta.len() },
        mtime_ns: if directory { 0 } else { i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()) },
        hash: hash.map_err(|error| error.to_string()),
    }
}

/// BLAKE3 of a file's content.
pub fn hash_file(path: &Path) -> std::io::Result<blake3::Hash> {
    let (mut file, mut hasher) = (fs::File::open(path)?, blake3::Hasher::new());
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            len => hasher.update(&buffer[..len]),
        };
    }
}

/// Writes a tree of every kind of entry with sizes around all limits; about `mebibytes` MiB of file content.
///
/// # Panics
/// If it cannot be written.
#[track_caller]
pub fn write_sample_tree(root: &Path, seed: u64, mebibytes: u64) {
    let mut random = crate::Random::new(seed);
    let sizes = [0, 1, 511, 512, 2047, 2048, 2049, 4095, 4096, 4097, 65535, 131_071, 131_072, 131_073, 300_000];
    fs::create_dir_all(root).expect("create the sample's root");
    let mut left = mebibytes << 20;
    for number in 0.. {
        let size = match number {
            n if n < sizes.len() => sizes[n],
            _ if left == 0 => break,
            n if n % 5 == 0 => left.min(random.range(1 << 20, 4 << 20)),
            _ => left.min(random.range(1, 200_000)),
        };
        left = left.saturating_sub(size);
        let dir = root.join(format!("dir-{}", number % 7)).join(format!("sub-{}", number % 3));
        fs::create_dir_all(&dir).expect("create a directory of the sample");
        let path = dir.join(format!("file-{number}"));
        fs::write(&path, random.bytes(size as usize)).expect("write a file of the sample");
        if number % 11 == 3 {
            std::os::unix::fs::symlink(format!("file-{number}"), dir.join(format!("link-{number}"))).expect("symlink");
        }
    }
    fs::create_dir(root.join("empty")).expect("create a directory of the sample");
    fs::write(root.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"name").expect("write a file of the sample");
    fs::write(root.join("\u{e9}t\u{e9} \n\t'\""), b"name").expect("write a file of the sample");
}
