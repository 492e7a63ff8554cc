use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::*;
use crate::backing::dir::cache::DirectFile;
use crate::backing::ring::Aligned;

/// A fresh directory, removed on drop.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("brine-backing-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ID: SegmentId = SegmentId(0x1234_5678_9abc_def0);

fn opened() -> (TempDir, DirBacking) {
    let temp = TempDir::new();
    let backing = DirBacking::open(temp.path()).unwrap();
    backing.write_file("superblock.0", b"marker").unwrap();
    (temp, backing)
}

fn with_segment() -> (TempDir, DirBacking, PathBuf) {
    let (temp, backing) = opened();
    backing.create_segment(ID, 64 << 20).unwrap();
    write(&backing, 0, &[7; 8192]).unwrap();
    backing.sync_segment(ID).unwrap();
    let path = temp.path().join("segments/f0/123456789abcdef0.seg");
    (temp, backing, path)
}

fn write(backing: &DirBacking, offset: u64, bytes: &[u8]) -> io::Result<()> {
    backing.write_at(ID, offset, &[IoSlice::new(bytes)])
}

#[test]
fn segment_files_lie_where_the_format_says() {
    let (_temp, backing, path) = with_segment();
    assert_eq!(fs::read(&path).unwrap(), [7; 8192]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(backing.list_segments().unwrap(), [(ID, 8192)]);
}

#[test]
fn foreign_files_are_no_segments() {
    let (temp, backing, path) = with_segment();
    let fan_out = path.parent().unwrap();
    for name in ["123456789abcdef1.seg", "123456789ABCDEF0.seg", "f0.seg", "+23456789abcdef0.seg", "x"] {
        fs::write(fan_out.join(name), "x").unwrap();
    }
    fs::create_dir(fan_out.join("00000000000000f0.seg")).unwrap();
    symlink(&path, fan_out.join("11111111111111f0.seg")).unwrap();
    fs::create_dir(temp.path().join("segments/zz")).unwrap();
    assert_eq!(backing.list_segments().unwrap(), [(ID, 8192)]);
}

#[test]
fn symbolic_links_are_refused() {
    let (temp, backing, path) = with_segment();
    let outside = TempDir::new();
    fs::write(outside.path().join("secret"), "secret").unwrap();

    // The last component, for small files and segments.
    symlink(outside.path().join("secret"), temp.path().join("superblock.1")).unwrap();
    assert_eq!(backing.read_file("superblock.1").unwrap_err().raw_os_error(), Some(libc::ELOOP));
    let other = SegmentId(0x1f0);
    symlink(outside.path().join("secret"), path.with_file_name("00000000000001f0.seg")).unwrap();
    assert_eq!(backing.read_at(other, 0, &mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    assert_eq!(backing.write_at(other, 0, &[IoSlice::new(b"x")]).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    assert_eq!(backing.create_segment(other, 4096).unwrap_err().kind(), io::ErrorKind::AlreadyExists);

    // A directory on the way.
    symlink(outside.path(), temp.path().join("fence")).unwrap();
    assert_eq!(backing.read_file("fence/secret").unwrap_err().raw_os_error(), Some(libc::ELOOP));
    backing.create_file_exclusive("fence/1", b"x").unwrap_err();
    backing.write_file("fence/1", b"x").unwrap_err();
    backing.list_files("fence").unwrap_err();
    symlink(outside.path(), temp.path().join("segments/05")).unwrap();
    backing.create_segment(SegmentId(5), 4096).unwrap_err();

    // Writing replaces a link, it does not write through it.
    backing.write_file("superblock.1", b"new").unwrap();
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(backing.read_file("superblock.1").unwrap().unwrap(), b"new");
    let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
}

#[test]
fn a_fifo_under_a_name_of_ours_does_not_hang() {
    let (temp, backing) = opened();
    nix::unistd::mkfifo(&temp.path().join("superblock.1"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(backing.read_file("superblock.1").unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(backing.list_files("").unwrap(), ["superblock.0"]);
}

#[test]
fn a_sync_notices_that_the_segment_was_deleted() {
    let (_temp, backing, path) = with_segment();
    fs::remove_file(path).unwrap();
    write(&backing, 8192, &[1; 512]).unwrap();
    let err = backing.sync_segment(ID).unwrap_err();
    assert!(err.to_string().contains("was deleted or unmounted"), "{err}");
    // And remembers it: the kernel would report nothing the second time.
    assert!(backing.sync_segment(ID).is_err());
    assert!(write(&backing, 8704, &[1; 512]).is_err());
}

#[test]
fn a_sync_notices_that_the_directory_was_deleted() {
    let (temp, backing, path) = with_segment();
    // A hard link keeps the segment's own link count up.
    let elsewhere = TempDir::new();
    fs::hard_link(&path, elsewhere.path().join("kept")).unwrap();
    fs::remove_dir_all(temp.path()).unwrap();
    write(&backing, 8192, &[1; 512]).unwrap();
    let err = backing.sync_segment(ID).unwrap_err();
    assert!(err.to_string().contains("the directory was deleted"), "{err}");
    backing.create_segment(SegmentId(1), 4096).unwrap_err();
    backing.write_file("superblock.0", b"x").unwrap_err();
}

#[test]
fn a_sync_notices_that_the_marker_is_gone() {
    let (temp, backing, _) = with_segment();
    fs::rename(temp.path().join("superblock.0"), temp.path().join("superblock.1")).unwrap();
    backing.sync_segment(ID).unwrap();
    fs::remove_file(temp.path().join("superblock.1")).unwrap();
    let err = backing.sync_segment(ID).unwrap_err();
    assert!(err.to_string().contains("marker"), "{err}");
    // Healing may go on once the marker is back.
    backing.write_file("superblock.0", b"marker").unwrap();
    assert!(backing.sync_segment(ID).is_err());
    backing.reset_segment(ID).unwrap();
    write(&backing, 8192, &[1; 512]).unwrap();
    backing.sync_segment(ID).unwrap();
}

#[test]
fn the_tail_is_preallocated_and_given_back() {
    let (_temp, backing, path) = with_segment();
    let allocated = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let before = allocated(&path);
    if before < cache::PREALLOCATE_STEP {
        eprintln!("no preallocation here: {} bytes allocated", before);
        return;
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    // Ahead of the writer, not behind it, and never beyond the capacity.
    write(&backing, cache::PREALLOCATE_STEP - 512, &[1; 512]).unwrap();
    assert!(allocated(&path) >= 2 * cache::PREALLOCATE_STEP);
    write(&backing, (64 << 20) - 512, &[1; 512]).unwrap();
    assert!(allocated(&path) <= (64 << 20) + (1 << 20));
    backing.finish_segment(ID).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 20);

    backing.create_segment(SegmentId(1), 1 << 30).unwrap();
    backing.write_at(SegmentId(1), 0, &[IoSlice::new(&[1; 4096])]).unwrap();
    backing.finish_segment(SegmentId(1)).unwrap();
    let path = path.parent().unwrap().parent().unwrap().join("01/0000000000000001.seg");
    assert!(allocated(&path) <= 64 << 10, "{} bytes are still allocated", allocated(&path));
}

#[test]
fn finishing_beside_writes_cuts_nothing_off() {
    const WRITES: u64 = 3000;
    let (_temp, backing, path) = with_segment();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                backing.finish_segment(ID).unwrap();
            }
        });
        // At first with zeros ahead, then into what is finished, as healing does.
        (0..WRITES).for_each(|n| write(&backing, 8192 + n * 512, &[n as u8 | 1; 512]).unwrap());
        done.store(true, Ordering::Relaxed);
    });
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len() as u64, 8192 + WRITES * 512);
    for (n, piece) in content[8192..].chunks(512).enumerate() {
        assert!(piece.iter().all(|byte| *byte == n as u8 | 1), "write {n}");
    }
}

#[test]
fn punching_frees_blocks_and_keeps_the_length() {
    let (_temp, backing, path) = with_segment();
    write(&backing, 0, &vec![9; 1 << 20]).unwrap();
    backing.finish_segment(ID).unwrap();
    backing.sync_segment(ID).unwrap();
    let before = fs::metadata(&path).unwrap().blocks();
    match backing.punch(ID, 100, 512 << 10) {
        Err(err) if err.kind() == io::ErrorKind::Unsupported => return,
        result => result.unwrap(),
    }
    assert!(fs::metadata(&path).unwrap().blocks() < before);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 1 << 20);
    assert_eq!(bytes[..100], [9; 100]);
    assert_eq!(bytes[(512 << 10) + 100..][..100], [9; 100]);
    assert_eq!(bytes[256 << 10..][..4096], [0; 4096]);
}

#[test]
fn open_files_are_bounded_but_unsynced_ones_stay_open() {
    let (_temp, backing) = opened();
    for id in 0..100 {
        backing.create_segment(SegmentId(id), 4096).unwrap();
    }
    assert_eq!(backing.cache.lock().open_files(), 64);
    for id in 0..80 {
        backing.write_at(SegmentId(id), 0, &[IoSlice::new(b"unsynced")]).unwrap();
    }
    assert_eq!(backing.cache.lock().open_files(), 80);
    for id in 0..80 {
        backing.sync_segment(SegmentId(id)).unwrap();
    }
    backing.read_at(SegmentId(99), 0, &mut [0]).unwrap();
    assert_eq!(backing.cache.lock().open_files(), 64);
}

#[test]
fn cached_reads_answer_from_memory_or_not_at_all() {
    let (_temp, backing, _) = with_segment();
    let mut buf = [0; 8192];
    match backing.read_cached(ID, 0, &mut buf) {
        Ok(got) => assert_eq!((got, buf), (8192, [7; 8192])),
        Err(err) => assert_eq!(err.kind(), io::ErrorKind::WouldBlock),
    }
    // Not open yet: opening may wait.
    let fresh = DirBacking::open(backing.path.as_path()).unwrap();
    assert_eq!(fresh.read_cached(ID, 0, &mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(fresh.read_at(ID, 0, &mut buf).unwrap(), 8192);
}

#[test]
fn two_handles_cannot_both_have_the_lock() {
    let (temp, backing) = opened();
    backing.lock().unwrap();
    backing.lock().unwrap();
    let other = DirBacking::open(temp.path()).unwrap();
    let err = other.lock().unwrap_err();
    assert!(err.to_string().contains("in use"), "{err}");
    drop(backing);
    other.lock().unwrap();
}

#[test]
fn leftovers_of_a_crash_are_replaced_and_not_listed() {
    let (temp, backing) = opened();
    fs::write(temp.path().join(".superblock.1.tmp"), "half").unwrap();
    assert_eq!(backing.list_files("").unwrap(), ["superblock.0"]);
    backing.write_file("superblock.1", b"whole").unwrap();
    assert_eq!(backing.read_file("superblock.1").unwrap().unwrap(), b"whole");
    assert!(!temp.path().join(".superblock.1.tmp").exists());
}

#[test]
fn oversized_small_files_are_refused_without_reading_them() {
    let (temp, backing) = opened();
    let file = File::create(temp.path().join("superblock.1")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_eq!(backing.read_file("superblock.1").unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn open_names_the_path_it_could_not_open() {
    let err = DirBacking::open(Path::new("/nonexistent/brine")).err().unwrap();
    assert_eq!(err.kind(), io::ErrorKind::NotFound);
    assert!(err.to_string().contains("/nonexistent/brine"), "{err}");
    let temp = TempDir::new();
    fs::write(temp.path().join("file"), "").unwrap();
    DirBacking::open(&temp.path().join("file")).err().unwrap();
}

#[test]
fn zeros_ahead_of_small_writes_meet_no_other_write_and_go_at_the_end() {
    let (_temp, backing, path) = with_segment();
    // A large write that is about to be made lies where zeros would: they go behind it.
    let room = backing.cache.lock().room(ID).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    room.lock().about_to_write(&file, 300_000, 50_000);
    write(&backing, 8192, &[1; 5000]).unwrap();
    file.write_all_at(&[2; 200_000], 100_000).unwrap();
    backing.sync_segment(ID).unwrap();
    let mut expected = vec![7; 8192];
    expected.extend([1; 5000]);
    expected.resize(100_000, 0);
    expected.resize(300_000, 2);
    let content = fs::read(&path).unwrap();
    assert!(content.len() > 300_000, "zeros lie ahead: {}", content.len());
    assert_eq!(content[..300_000], expected);
    assert!(content[300_000..].iter().all(|byte| *byte == 0));
    // The next ones are within.
    let len = content.len();
    (0..10).for_each(|n| write(&backing, 300_000 + n * 5000, &[3; 5000]).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
    backing.finish_segment(ID).unwrap();
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), 350_000);
    assert_eq!((&content[..300_000], &content[300_000..]), (&expected[..], &[3; 50_000][..]));
}

#[test]
fn long_writes_go_past_the_cache_and_leave_no_length_behind() {
    let (_temp, backing, path) = with_segment();
    // Nothing is read ahead.
    let segment = backing.segment(ID, true).unwrap();
    posix_fadvise(&segment.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    let cached = |offset| backing.read_cached(ID, offset, &mut [0; 4096]).is_ok();
    let mut expected = vec![7; 8192];
    expected.extend([6; 128 << 10]);
    write(&backing, 8192, &[6; 128 << 10]).unwrap();
    assert!(cached(8192), "nobody syncs");
    let mut past_cache = 0;
    for round in 0..8u8 {
        expected.resize(expected.len().next_multiple_of(4096), 0);
        // Somebody else syncs.
        (0..2).for_each(|_| backing.note_sync());
        // From several buffers, none of which lies on a page.
        let parts = [vec![round; 100_001], vec![round + 1; 31_071]];
        let bufs: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let at = expected.len() as u64;
        backing.write_at(ID, at, &bufs).unwrap();
        past_cache += usize::from(!cached(at));
        expected.extend(parts.concat());
        // What is short, or no whole pages, goes through it.
        let at = expected.len() as u64;
        write(&backing, at, &[9; 512]).unwrap();
        assert!(cached(at));
        expected.extend([9; 512]);
        write(&backing, at + 512, &[8; 100_000]).unwrap();
        assert!(cached(at + 512));
        expected.extend([8; 100_000]);
    }
    // Where pages beside it are just being written, Linux writes through the cache after all.
    assert!(past_cache >= 4, "{past_cache} of 8");
    backing.sync_segment(ID).unwrap();
    let content = fs::read(&path).unwrap();
    assert!(content.len() > expected.len(), "the file's length runs ahead");
    assert!(content[..expected.len()] == expected && content[expected.len()..].iter().all(|byte| *byte == 0));
    backing.finish_segment(ID).unwrap();
    assert!(fs::read(&path).unwrap() == expected);
    // What comes late gets its place as it comes.
    let late = 4 << 20;
    write(&backing, late, &[5; 64 << 10]).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), late + (64 << 10));
}

/// Where nothing can be preallocated any more, writes go on, and none may be cut off.
#[test]
fn a_file_is_never_lengthened_to_less_than_was_written() {
    let (_temp, backing) = opened();
    backing.create_segment(ID, 64 << 10).unwrap();
    let written: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8 | 1).collect();
    // Beyond what may be preallocated, through the cache.
    write(&backing, 0, &written).unwrap();
    (0..2).for_each(|_| backing.note_sync());
    write(&backing, 1 << 20, &[5; 64 << 10]).unwrap();
    backing.sync_segment(ID).unwrap();
    let mut buf = vec![0; (1 << 20) + (64 << 10)];
    assert_eq!(backing.read_at(ID, 0, &mut buf).unwrap(), buf.len());
    assert!(buf[..1 << 20] == written && buf[1 << 20..].iter().all(|byte| *byte == 5));
}

#[test]
fn zeros_are_not_written_where_a_stream_is_about_to_write() {
    let (_temp, backing, path) = with_segment();
    write(&backing, 8192, &[1; 128 << 10]).unwrap();
    let at = 8192 + (128 << 10);
    let blocks = fs::metadata(&path).unwrap().blocks();
    write(&backing, at, &[2; 4096]).unwrap();
    let room = backing.cache.lock().room(ID).unwrap();
    assert_eq!(room.lock().zeroed(), 0);
    assert_eq!(fs::metadata(&path).unwrap().blocks(), blocks, "what is preallocated is not allocated anew");
    // The stream is over.
    (1..20).for_each(|n| write(&backing, at + n * 4096, &[3; 4096]).unwrap());
    assert!(room.lock().zeroed() > at);
}

/// The answer of a segment that was made ready for direct writes.
fn ready(backing: &DirBacking, offset: u64, len: u64) -> (Arc<File>, bool) {
    match backing.direct(ID, offset, len) {
        Direct::Ready { file, scarce, .. } => (file, scarce),
        Direct::NotYet => panic!("not yet at {offset}"),
        Direct::Never => panic!("never at {offset}: does {} lie on ext4 or xfs?", backing.path.display()),
    }
}

fn not_yet(backing: &DirBacking, offset: u64, len: u64) -> bool {
    matches!(backing.direct(ID, offset, len), Direct::NotYet)
}

#[test]
fn direct_writes_follow_what_was_written_and_leave_the_length_right() {
    let (_temp, backing, path) = with_segment();
    backing.create_file_exclusive("fence/0000000000000001", b"x").unwrap();
    backing.list_files("fence").unwrap();
    assert!(not_yet(&backing, 8192, 4096));
    backing.make_direct(ID).unwrap();
    // Neither over what was written, nor in parts of a page, nor past what is zeros.
    assert!(not_yet(&backing, 4096, 4096) && not_yet(&backing, 8192, 512) && not_yet(&backing, 8704, 4096));
    assert!(not_yet(&backing, 64 << 10, 256 << 10));
    let (file, scarce) = ready(&backing, 8192, 4096);
    assert!(!scarce);
    let page = vec![9; 4096 + 4096];
    let start = page.as_ptr().align_offset(4096);
    file.write_all_at(&page[start..start + 4096], 8192).unwrap();
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Done));
    // A buffered write behind it, and another direct one behind that.
    write(&backing, 12288, &[5; 600]).unwrap();
    let (file, _) = ready(&backing, 16384, 4096);
    file.write_all_at(&page[start..start + 4096], 16384).unwrap();
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Done));
    backing.sync_segment(ID).unwrap();
    let mut wanted = [vec![7; 8192], vec![9; 4096], vec![5; 600], vec![0; 4096 - 600], vec![9; 4096]].concat();
    let mut bytes = vec![1; wanted.len()];
    assert_eq!(backing.read_at(ID, 0, &mut bytes).unwrap(), bytes.len());
    assert!(bytes == wanted);
    // What is large goes further than the zeros; those that follow lie behind it.
    write(&backing, 20480, &vec![3; 1 << 20]).unwrap();
    let end = 20480 + (1 << 20);
    assert!(not_yet(&backing, end, 4096));
    backing.make_direct(ID).unwrap();
    ready(&backing, end, 4096).0.write_all_at(&page[start..start + 4096], end).unwrap();
    backing.finish_segment(ID).unwrap();
    assert!(matches!(backing.direct(ID, end + 4096, 4096), Direct::Never));
    wanted.extend_from_slice(&vec![3; 1 << 20]);
    wanted.extend_from_slice(&[9; 4096]);
    assert!(fs::read(path).unwrap() == wanted);
}

#[test]
fn directories_of_one_ext4_are_flushed_together_and_others_are_not() {
    let (_temp, backing, _path) = with_segment();
    backing.make_direct(ID).unwrap();
    let Direct::Ready { flush, file, .. } = backing.direct(ID, 8192, 4096) else { panic!("not ready") };
    // Linux 6.1 and later tell whether writes go past the cache.
    let together = backing.fs_type == "ext4" && sys::is_direct(file.as_fd());
    assert_eq!(flush.as_ref().map(|flush| flush.device), together.then_some(backing.device));
    // Of what has no direct writes at all it is never said.
    let (pipe, _writer) = io::pipe().unwrap();
    assert!(!sys::is_direct(pipe.as_fd()));
}

/// An ext4 of a test's own, on a loop device.
struct Disk(TempDir);

impl Disk {
    fn new(features: &str) -> Self {
        let temp = TempDir::new();
        let image = temp.path().join("image");
        File::create_new(&image).unwrap().set_len(256 << 20).unwrap();
        fs::create_dir(temp.path().join("mnt")).unwrap();
        let mnt = temp.path().join("mnt");
        let (image, mnt) = (image.as_os_str(), mnt.as_os_str());
        for (program, arguments) in [
            ("mkfs.ext4", [&["-q", "-O", features].map(OsStr::new)[..], &[image]].concat()),
            ("mount", [&["-o", "loop"].map(OsStr::new)[..], &[image, mnt]].concat()),
        ] {
            let done =
                Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{program} of an image (root and loop devices are needed): {said}");
        }
        Self(temp)
    }

    fn mnt(&self) -> PathBuf {
        self.0.path().join("mnt")
    }

    /// Flushes of its cache that the disk has done.
    fn flushes(&self) -> u64 {
        let device = fs::metadata(self.mnt()).unwrap().dev();
        let stat = format!("/sys/dev/block/{}:{}/stat", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        fs::read_to_string(stat).unwrap().split_whitespace().nth(15).unwrap().parse().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.mnt(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_flush_reaches_the_disk_though_nothing_waits_to_be_written_with_a_journal_and_without() {
    for journal in ["has_journal", "^has_journal"] {
        let disk = Disk::new(journal);
        let backing = DirBacking::open(&disk.mnt()).unwrap();
        backing.write_file("superblock.0", b"marker").unwrap();
        backing.create_segment(ID, 64 << 20).unwrap();
        write(&backing, 0, &[7; 8192]).unwrap();
        backing.make_direct(ID).unwrap();
        let Direct::Ready { flush: Some(flush), .. } = backing.direct(ID, 8192, 4096) else {
            panic!("{journal}: no flush for several: is this Linux older than 6.1, or without a journal than 6.6?")
        };
        // Whatever its marker became meanwhile.
        backing.write_file("superblock.0", b"another").unwrap();
        flush.file.sync_data().unwrap();
        let before = disk.flushes();
        (0..50).for_each(|_| flush.file.sync_data().unwrap());
        let flushes = disk.flushes() - before;
        assert!(flushes >= 50, "{journal}: {flushes} flushes of 50");
    }
}

#[test]
fn more_zeros_lie_ahead_of_longer_records() {
    let (_temp, backing, _path) = with_segment();
    let mut offset = 8192;
    for (len, expected) in [(4096, 32), (32 << 10, 32), (256 << 10, 8)] {
        // Once it is known how long they are.
        not_yet(&backing, offset + (1 << 30), len);
        backing.make_direct(ID).unwrap();
        let mut written = 0;
        loop {
            let (_file, scarce) = ready(&backing, offset, len);
            offset += len;
            if scarce {
                break;
            }
            written += 1;
        }
        assert_eq!(written, expected, "of {len} bytes");
    }
}

/// Zeros are written without holding up direct writes, and must not meet any other.
#[test]
fn what_is_written_while_zeros_are_made_stays() {
    let (_temp, backing, path) = with_segment();
    let done = AtomicBool::new(false);
    let mut expected = vec![7; 8192];
    let mut directly = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                backing.make_direct(ID).unwrap();
            }
        });
        for round in 0..2000 {
            let byte = round as u8 | 1;
            if round % 16 == 0 {
                // Past what is ready.
                let bytes = vec![byte; 300_700 + round % 37 * 2000];
                write(&backing, expected.len() as u64, &bytes).unwrap();
                expected.extend(bytes);
                continue;
            }
            expected.resize(expected.len().next_multiple_of(4096), 0);
            let at = expected.len() as u64;
            let mut direct = backing.direct(ID, at, 4096);
            // On a machine as busy as it likes, one write in sixteen goes directly.
            while round % 16 == 8 && matches!(direct, Direct::NotYet) {
                std::thread::yield_now();
                direct = backing.direct(ID, at, 4096);
            }
            match direct {
                Direct::Ready { file, .. } => {
                    let bytes = Aligned::gather([[byte; 4096].as_slice()].into_iter());
                    file.write_all_at(bytes.bytes(), at).unwrap();
                    directly += 1;
                }
                Direct::NotYet => write(&backing, at, &[byte; 4096]).unwrap(),
                Direct::Never => panic!("never: does {} lie on ext4 or xfs?", backing.path.display()),
            }
            expected.resize(expected.len() + 4096, byte);
        }
        done.store(true, Ordering::Relaxed);
    });
    let content = fs::read(&path).unwrap();
    assert!(content[..expected.len()] == expected && content[expected.len()..].iter().all(|byte| *byte == 0));
    assert!(directly >= 2000 / 16, "{directly} were written directly");
}

/// What was not written, or not synced, is not there durably, though it reads as zeros.
#[test]
fn zeros_that_could_not_be_written_are_not_taken_for_written() {
    let (_temp, backing, path) = with_segment();
    backing.make_direct(ID).unwrap();
    let (_file, _) = ready(&backing, 8192, 4096);
    let segment = backing.segment(ID, true).unwrap();
    let flush = segment.direct.lock().as_ref().unwrap().flush.clone();
    // Opened so that writing fails.
    *segment.direct.lock() = Some(DirectFile { file: Arc::new(File::open(&path).unwrap()), flush });
    not_yet(&backing, 12288 + (1 << 30), 64 << 10);
    backing.make_direct(ID).unwrap_err();
    for _ in 0..2 {
        assert!(matches!(backing.direct(ID, 12288, 4096), Direct::Never));
        backing.make_direct(ID).unwrap();
    }
    // Nobody is held up for it, and its length is right at the end.
    *segment.direct.lock() = None;
    write(&backing, 12288, &[5; 1 << 20]).unwrap();
    backing.sync_segment(ID).unwrap();
    backing.finish_segment(ID).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 12288 + (1 << 20));
}

#[test]
fn the_end_of_a_direct_write_tells_what_became_of_file_and_marker() {
    let (temp, backing, path) = with_segment();
    backing.make_direct(ID).unwrap();
    assert_eq!(backing.changes(), None, "nobody listed the fences yet");
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Unsure));
    backing.create_file_exclusive("fence/0000000000000001", b"x").unwrap();
    backing.list_files("fence").unwrap();
    backing.sync_segment(ID).unwrap();
    let (_file, _) = ready(&backing, 8192, 4096);
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Done));
    // Names came: a sync looks, and finds all in place.
    let before = backing.changes().unwrap();
    fs::write(temp.path().join("foreign"), b"").unwrap();
    assert!(backing.changes().unwrap() > before);
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Unsure));
    backing.sync_segment(ID).unwrap();
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Done));
    // So do fences of another, whoever makes them.
    let before = backing.changes().unwrap();
    fs::write(temp.path().join("fence/0000000000000002"), b"y").unwrap();
    assert!(backing.changes().unwrap() > before);
    backing.sync_segment(ID).unwrap();
    // The marker went.
    fs::remove_file(temp.path().join("superblock.0")).unwrap();
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Unsure));
    assert!(backing.sync_segment(ID).is_err());
    assert!(matches!(backing.direct(ID, 12288, 4096), Direct::Never));
    fs::write(temp.path().join("superblock.0"), b"marker").unwrap();
    backing.reset_segment(ID).unwrap();
    // The file went.
    backing.make_direct(ID).unwrap();
    fs::remove_file(path).unwrap();
    assert!(matches!(backing.end_direct(ID, Ok(())), DirectEnd::Unsure));
    assert!(backing.sync_segment(ID).is_err());
}

#[test]
fn a_direct_write_that_fails_is_a_sync_that_failed_and_one_that_is_refused_is_not() {
    let (_temp, backing, _path) = with_segment();
    backing.make_direct(ID).unwrap();
    let error = |errno| Err(io::Error::from_raw_os_error(errno));
    assert!(matches!(backing.end_direct(ID, error(libc::EINVAL)), DirectEnd::Refused));
    assert!(matches!(backing.direct(ID, 8192, 4096), Direct::Never));
    write(&backing, 8192, &[1; 4096]).unwrap();
    backing.sync_segment(ID).unwrap();
    assert!(matches!(backing.end_direct(ID, error(libc::EIO)), DirectEnd::Failed(_)));
    assert!(write(&backing, 12288, &[1; 512]).is_err() && backing.sync_segment(ID).is_err());
}

#[test]
fn a_directory_that_is_opened_anew_is_not_taken_for_one_that_did_not_change() {
    let (temp, backing) = opened();
    backing.create_file_exclusive("fence/0000000000000001", b"x").unwrap();
    backing.list_files("fence").unwrap();
    let again = DirBacking::open(temp.path()).unwrap();
    again.list_files("fence").unwrap();
    assert_ne!(backing.changes().unwrap(), again.changes().unwrap());
}
