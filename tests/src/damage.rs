//! Damage done to backing directories, as disks, people and attackers do it.
//!
//! Knows of the format only that superblocks and fences have their names and everything else holds shards.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};

use crate::random::Random;

/// All regular files below `dir`, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (mut files, mut queue) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => queue.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// The segment files of a backing directory, sorted.
pub fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let of_segment = |path: &PathBuf| {
        let relative = path.strip_prefix(dir).unwrap_or(path);
        let first = relative.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned());
        let first = first.unwrap_or_default();
        !first.starts_with("superblock") && !first.starts_with("fence") && !first.starts_with("lost+found")
    };
    files_below(dir).into_iter().filter(of_segment).collect()
}

/// The superblock files of a backing directory.
pub fn superblock_files(dir: &Path) -> Vec<PathBuf> {
    let is_superblock =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("superblock"));
    files_below(dir).into_iter().filter(is_superblock).collect()
}

/// Ranges of `file` that hold data.
pub(crate) fn data_ranges(file: &File) -> Vec<std::ops::Range<u64>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Ok(start) = lseek(file, at, Whence::SeekData) {
        let end = lseek(file, start, Whence::SeekHole).expect("data ends somewhere");
        ranges.push(start as u64..end as u64);
        at = end;
    }
    ranges
}

/// Bytes of a file that hold data: not those of holes, nor what is preallocated. 0 if it is gone.
pub fn data_bytes(path: &Path) -> u64 {
    let ranges = File::open(path).map(|file| data_ranges(&file)).unwrap_or_default();
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Flips one random bit in every `spacing` bytes of data of every segment file, in place; says how many.
///
/// # Panics
/// If a file cannot be changed.
#[track_caller]
pub fn flip_bits(dir: &Path, spacing: u64, random: &mut Random) -> u64 {
    let files = segment_files(dir);
    files.iter().map(|file| flip_bits_in(file, 0, spacing, random)).sum()
}

/// The same in one file, from offset `from`.
///
/// # Panics
/// If the file cannot be changed.
#[track_caller]
pub fn flip_bits_in(path: &Path, from: u64, spacing: u64, random: &mut Random) -> u64 {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open a segment file");
    let mut flipped = 0;
    for range in data_ranges(&file) {
        let mut window = range.start.max(from);
        while window < range.end {
            let at = window + random.below(spacing.min(range.end - window));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read a segment file");
            byte[0] ^= 1 << random.below(8);
            file.write_all_at(&byte, at).expect("write a segment file");
            flipped += 1;
            window += spacing;
        }
    }
    flipped
}

/// Cuts every segment file to `numerator / denominator` of its length.
///
/// # Panics
/// If a file cannot be changed.
#[track_caller]
pub fn truncate_segments(dir: &Path, numerator: u64, denominator: u64) {
    for path in segment_files(dir) {
        let file = OpenOptions::new().write(true).open(&path).expect("open a segment file");
        let len = file.metadata().expect("stat a segment file").len();
        file.set_len(len * numerator / denominator).expect("truncate a segment file");
    }
}

/// Exchanges, in every segment file, the bytes at two offsets with each other, `len` at a time: shards in wrong places.
///
/// # Panics
/// If a file cannot be changed.
#[track_caller]
pub fn swap_offsets(dir: &Path, len: usize, random: &mut Random) {
    for path in segment_files(dir) {
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open a segment file");
        let places: Vec<u64> = data_ranges(&file)
            .into_iter()
            .flat_map(|range| (range.start..range.end.saturating_sub(len as u64)).step_by(len))
            .collect();
        for _ in 0..places.len() / 2 {
            let (a, b) = (*random.choose(&places), *random.choose(&places));
            let (mut at_a, mut at_b) = (vec![0; len], vec![0; len]);
            file.read_exact_at(&mut at_a, a).expect("read a segment file");
            file.read_exact_at(&mut at_b, b).expect("read a segment file");
            file.write_all_at(&at_b, a).expect("write a segment file");
            file.write_all_at(&at_a, b).expect("write a segment file");
        }
    }
}

/// Exchanges the segment files of equal name between two directories; says how many.
///
/// # Panics
/// If a file cannot be renamed.
#[track_caller]
pub fn swap_segments(one: &Path, other: &Path) -> usize {
    let mut swapped = 0;
    for path in segment_files(one) {
        let twin = other.join(path.strip_prefix(one).expect("it lies below"));
        if twin.is_file() {
            let aside = path.with_extension("aside");
            fs::rename(&path, &aside).expect("rename a segment file");
            fs::rename(&twin, &path).expect("rename a segment file");
            fs::rename(&aside, &twin).expect("rename a segment file");
            swapped += 1;
        }
    }
    swapped
}

/// Removes everything in `dir`, leaving the empty directory: what an unmounted disk looks like.
///
/// # Panics
/// If something cannot be removed.
#[track_caller]
pub fn empty_dir(dir: &Path) {
    for entry in fs::read_dir(dir).expect("list a backing directory").flatten() {
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap_or_else(|error| panic!("cannot remove {}: {error}", path.display()));
    }
}

/// Removes a directory that a daemon may be making files in meanwhile.
///
/// # Panics
/// If it cannot be removed.
#[track_caller]
pub fn remove_dir(dir: &Path) {
    for _ in 0..1000 {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            other => return other.unwrap_or_else(|error| panic!("cannot remove {}: {error}", dir.display())),
        }
    }
    panic!("{} is filled as fast as it is emptied", dir.display());
}

/// Copies a tree with holes, owners and times (`cp -a`).
#[track_caller]
pub fn copy_tree(from: &Path, to: &Path) {
    let mut command = std::process::Command::new(crate::program("cp"));
    crate::run(command.args(["-a", "--sparse=always"]).arg(from).arg(to)).expect_success();
}

/// Puts an older copy of a directory (made by [`copy_tree`]) in its place.
///
/// # Panics
/// If the directory cannot be emptied.
#[track_caller]
pub fn put_back(copy: &Path, dir: &Path) {
    empty_dir(dir);
    copy_tree(&copy.join("."), dir);
}

/// Bytes the files below `dir` occupy on disk.
pub fn occupied(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files_below(dir).iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

/// Whether any file below `dir` holds `needle`.
///
/// # Panics
/// If a file cannot be read.
#[track_caller]
pub fn any_file_contains(dir: &Path, needle: &[u8]) -> Option<PathBuf> {
    let first = needle[0];
    files_below(dir).into_iter().find(|path| {
        let file = File::open(path).expect("open a file");
        data_ranges(&file).into_iter().any(|range| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let len = file.read_at(&mut bytes, range.start).expect("read a file");
            bytes.truncate(len);
            bytes.windows(needle.len()).any(|window| window[0] == first && window == needle)
        })
    })
}
