//! A file as POSIX wants it, in memory, and random operations on both: whatever is read must be what the model holds.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};

use crate::random::Random;
use crate::sys::{Mapping, copy_file_range};

/// Longest a file of the model grows: some chunks of 128 KiB, and a tail.
const SIZE_MAX: u64 = 1_500_000;
/// Longest single read or write.
const SPAN_MAX: u64 = 300_000;

/// One file on the volume and what it must hold.
pub struct ModelFile {
    path: PathBuf,
    file: Option<File>,
    /// What it must hold.
    pub content: Vec<u8>,
}

impl ModelFile {
    /// A new empty file.
    ///
    /// # Panics
    /// If it cannot be created.
    pub fn create(path: PathBuf) -> Self {
        File::create_new(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        Self { path, file: None, content: Vec::new() }
    }

    fn handle(&mut self) -> &File {
        let path = &self.path;
        self.file.get_or_insert_with(|| {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            opened.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
        })
    }

    fn set_len(&mut self, len: u64) {
        self.handle().set_len(len).expect("truncate");
        self.content.resize(len as usize, 0);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.handle().write_all_at(bytes, offset).expect("write");
        self.put(offset, bytes);
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[offset as usize..end].copy_from_slice(bytes);
    }

    fn write_mapped(&mut self, offset: u64, bytes: &[u8]) {
        let len = self.content.len();
        let mut mapping = Mapping::new(self.handle(), len).expect("mmap");
        mapping.write(offset as usize, bytes);
        assert_eq!(mapping.read(offset as usize, bytes.len()), bytes, "a mapping does not hold what was put into it");
        drop(mapping);
        self.put(offset, bytes);
    }

    fn check_range(&mut self, offset: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        let mut got = 0;
        while got < bytes.len() {
            match self.handle().read_at(&mut bytes[got..], offset + got as u64).expect("read") {
                0 => break,
                more => got += more,
            }
        }
        let from = self.content.len().min(offset as usize);
        let want = &self.content[from..self.content.len().min((offset + len) as usize)];
        expect_equal(&bytes[..got], want, offset, &self.path);
    }

    fn check_mapped(&mut self) {
        let len = self.content.len();
        if len > 0 {
            let bytes = Mapping::new(self.handle(), len).expect("mmap").read(0, len);
            expect_equal(&bytes, &self.content, 0, &self.path);
        }
    }

    /// Every range said to be a hole holds only zeros, and the ranges tile the file.
    fn check_holes(&mut self) {
        let (len, mut at, mut turns) = (self.content.len() as i64, 0, 0);
        while at < len {
            let data = match lseek(self.handle(), at, Whence::SeekData) {
                Ok(data) => data,
                Err(nix::errno::Errno::ENXIO) => len,
                Err(error) => panic!("SEEK_DATA from {at} of {}: {error}", self.path.display()),
            };
            assert!((at..=len).contains(&data), "SEEK_DATA from {at} says {data}, the file has {len} bytes");
            let hole = &self.content[at as usize..data as usize];
            if let Some(wrong) = hole.iter().position(|&byte| byte != 0) {
                panic!(
                    "{}: offset {} is said to be in a hole and holds data",
                    self.path.display(),
                    at as usize + wrong
                );
            }
            at = if data == len { len } else { lseek(self.handle(), data, Whence::SeekHole).expect("SEEK_HOLE") };
            assert!(at > data || data == len, "SEEK_HOLE from {data} says {at}");
            turns += 1;
            assert!(turns < 100_000, "SEEK_DATA and SEEK_HOLE do not get to the end of {}", self.path.display());
        }
    }

    fn punch(&mut self, offset: u64, len: u64) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.fall(flags, offset, len);
        self.zero(offset, len);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let from = self.content.len().min(offset as usize);
        let to = self.content.len().min((offset + len) as usize);
        self.content[from..to].fill(0);
    }

    fn fall(&mut self, flags: FallocateFlags, offset: u64, len: u64) {
        if let Err(error) = fallocate(self.handle(), flags, offset as i64, len as i64) {
            panic!("fallocate {flags:?} of {} at {offset}, {len} bytes: {error}", self.path.display());
        }
    }

    fn drop_cache(&mut self) {
        self.handle().sync_all().expect("fsync");
        posix_fadvise(self.handle(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    }

    /// Compares all of it.
    ///
    /// # Panics
    /// If anything differs.
    pub fn check_all(&mut self) {
        let len = self.handle().metadata().expect("stat").len();
        assert_eq!(len, self.content.len() as u64, "{} has another length", self.path.display());
        self.check_range(0, len + 10);
    }

    /// Closes it; the next use opens it again.
    pub fn close(&mut self) {
        self.file = None;
    }
}

#[track_caller]
fn expect_equal(got: &[u8], want: &[u8], offset: u64, path: &Path) {
    if got == want {
        return;
    }
    let first = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
    let wrong = got.iter().zip(want).filter(|(a, b)| a != b).count();
    let zeros = got.iter().zip(want).filter(|(a, b)| a != b && **a == 0).count();
    panic!(
        "{}: {} bytes read at {offset} where {} were expected; first difference at {}, {wrong} bytes differ ({zeros} read as zero)",
        path.display(),
        got.len(),
        want.len(),
        offset + first as u64,
    );
}

/// Random operations on a few files, with `again` called now and then while no file is open (to remount, say).
pub struct Model {
    files: Vec<ModelFile>,
    random: Random,
    step: u64,
}

impl Model {
    /// `count` new files in `dir`.
    pub fn new(dir: &Path, count: usize, seed: u64) -> Self {
        let files = (0..count).map(|i| ModelFile::create(dir.join(format!("model-{i}")))).collect();
        Self { files, random: Random::new(seed), step: 0 }
    }

    /// Does `steps` operations.
    ///
    /// # Panics
    /// If anything read is not what it must be; the step is printed.
    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step += 1;
            let which = self.random.below(self.files.len() as u64) as usize;
            let step = Step { step: self.step, file: which };
            self.operate(which);
            step.passed();
        }
    }

    /// Closes all files.
    pub fn close(&mut self) {
        self.files.iter_mut().for_each(ModelFile::close);
    }

    /// Compares all files.
    ///
    /// # Panics
    /// If anything differs.
    pub fn check_all(&mut self) {
        self.files.iter_mut().for_each(ModelFile::check_all);
    }

    fn operate(&mut self, which: usize) {
        let other = self.random.below(self.files.len() as u64) as usize;
        let (random, file) = (&mut self.random, &mut self.files[which]);
        let size = file.content.len() as u64;
        // Small ones and those at chunk and page limits are as frequent as any.
        let len = match random.below(4) {
            0 => random.range(1, 600),
            1 => *random.choose(&[4096, 8192, 65536, 131_072, 262_144]),
            _ => random.range(1, SPAN_MAX),
        };
        let offset = match random.below(4) {
            0 => 131_072 * random.below(10),
            1 => size.min(SIZE_MAX - SPAN_MAX),
            _ => random.below((size + size / 4 + 1).min(SIZE_MAX - SPAN_MAX)),
        };
        match random.below(26) {
            0..=5 => {
                let bytes = random.bytes(len as usize);
                file.write(offset, &bytes);
            }
            6 => file.write(offset, &vec![0; len as usize]),
            7 => {
                let byte = random.next_u64() as u8;
                file.write(offset, &[byte]);
            }
            8..=12 => file.check_range(offset, len),
            13 => file.set_len(random.below(SIZE_MAX)),
            14 => file.set_len(size.saturating_sub(random.below(200_000))),
            15 if size > 0 => {
                let at = random.below(size);
                let bytes = random.bytes(len.min(size - at) as usize);
                file.write_mapped(at, &bytes);
            }
            16 => file.check_mapped(),
            17 => file.handle().sync_data().expect("fdatasync"),
            18 => file.drop_cache(),
            19 => file.close(),
            20 => file.punch(offset, len),
            21 => {
                file.fall(FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len);
                file.zero(offset, len);
            }
            22 => {
                file.fall(FallocateFlags::empty(), offset, len);
                let end = (offset + len) as usize;
                file.content.resize(file.content.len().max(end), 0);
            }
            23 => file.check_holes(),
            24 if other != which => self.copy(which, other, offset, len),
            _ => file.check_all(),
        }
    }

    fn copy(&mut self, from: usize, to: usize, offset: u64, len: u64) {
        let target = self.random.below(SIZE_MAX - SPAN_MAX);
        // Whole chunks as often as odd places.
        let aligned = self.random.one_in(2);
        let (offset, target) = if aligned { (offset & !131_071, target & !131_071) } else { (offset, target) };
        let (mut at, mut to_at, mut left) = (offset as i64, target as i64, len as usize);
        while left > 0 {
            let source = self.files[from].handle().try_clone().expect("duplicate a descriptor");
            let result = copy_file_range(&source, &mut at, self.files[to].handle(), &mut to_at, left);
            match result.expect("copy_file_range") {
                0 => break,
                copied => left -= copied,
            }
        }
        let source = &self.files[from].content;
        let start = source.len().min(offset as usize);
        let end = source.len().min((offset + len) as usize);
        let bytes = source[start..end].to_vec();
        assert_eq!(len as usize - left, bytes.len(), "copy_file_range stopped early");
        if !bytes.is_empty() {
            self.files[to].put(target, &bytes);
        }
    }
}

/// Prints where it was if the step panics.
struct Step {
    step: u64,
    file: usize,
}

impl Step {
    fn passed(self) {
        drop(self);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the model failed in step {} on file {}", self.step, self.file);
        }
    }
}
