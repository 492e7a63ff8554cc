//! What every backing must do, run against each of them.

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

use super::dir::tests::TempDir;
use super::*;

const A: SegmentId = SegmentId(0x1_0000_0007);
const B: SegmentId = SegmentId(0x2_0000_0007);

fn write(backing: &dyn Backing, id: SegmentId, offset: u64, bytes: &[u8]) {
    backing.write_at(id, offset, &[IoSlice::new(bytes)]).unwrap();
}

fn read(backing: &dyn Backing, id: SegmentId, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    let got = backing.read_at(id, offset, &mut buf).unwrap();
    buf.truncate(got);
    buf
}

fn segments_are_written_and_read(backing: &dyn Backing) {
    backing.create_segment(A, 1 << 20).unwrap();
    assert_eq!(backing.create_segment(A, 1 << 20).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(read(backing, A, 0, 10).is_empty());

    // Several buffers, empty ones among them, more than one system call takes.
    let pieces: Vec<Vec<u8>> = (0..3000usize).map(|i| vec![i as u8; i % 5]).collect();
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    backing.write_at(A, 1000, &slices).unwrap();
    let whole = pieces.concat();
    assert_eq!(read(backing, A, 1000, whole.len()), whole);

    // A hole before, the end behind.
    assert_eq!(read(backing, A, 0, 1000), vec![0; 1000]);
    assert_eq!(read(backing, A, 1000 + whole.len() as u64 - 3, 100), whole[whole.len() - 3..]);
    assert!(read(backing, A, 1 << 40, 100).is_empty());
    backing.write_at(A, 5, &[]).unwrap();

    let mut buf = vec![0; whole.len()];
    match backing.read_cached(A, 1000, &mut buf) {
        Ok(got) => assert_eq!((got, buf), (whole.len(), whole)),
        Err(err) => assert_eq!(err.kind(), ErrorKind::WouldBlock),
    }
    backing.will_need(A, 0, 4096);
    backing.start_writeback(A, 0, 4096);
    backing.sync_segment(A).unwrap();
    backing.sync_segment(A).unwrap();
    backing.finish_segment(A).unwrap();
    let len = backing.list_segments().unwrap()[0].1;
    assert_eq!(len, 1000 + pieces.concat().len() as u64);
}

fn segments_are_listed_and_removed(backing: &dyn Backing) {
    backing.create_segment(B, 4096).unwrap();
    write(backing, B, 0, &[1; 100]);
    backing.create_segment(SegmentId(3), 4096).unwrap();
    let ids = |backing: &dyn Backing| backing.list_segments().unwrap().iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(backing), [SegmentId(3), A, B]);
    backing.remove_segment(B).unwrap();
    assert_eq!(ids(backing), [SegmentId(3), A]);
    assert_eq!(backing.remove_segment(B).unwrap_err().kind(), ErrorKind::NotFound);
    let mut buf = [0; 8];
    assert_eq!(backing.read_at(B, 0, &mut buf).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(backing.write_at(B, 0, &[IoSlice::new(&buf)]).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(backing.finish_segment(B).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(backing.punch(B, 0, 4096).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(backing.sync_segment(B).unwrap_err().kind(), ErrorKind::NotFound);
    match backing.read_cached(B, 0, &mut buf).unwrap_err().kind() {
        ErrorKind::NotFound | ErrorKind::WouldBlock => {}
        other => panic!("{other}"),
    }
    // A failed sync of what was not there does not outlive a new file (healing makes one under the same id).
    backing.create_segment(B, 4096).unwrap();
    assert!(read(backing, B, 0, 8).is_empty());
    write(backing, B, 0, &[2; 100]);
    backing.sync_segment(B).unwrap();
    backing.remove_segment(B).unwrap();
}

fn punched_ranges_read_as_zeros(backing: &dyn Backing) {
    let id = SegmentId(0xff);
    backing.create_segment(id, 1 << 20).unwrap();
    write(backing, id, 0, &[3; 64 << 10]);
    backing.sync_segment(id).unwrap();
    let whole = backing.allocated(id).unwrap();
    assert!(whole >= 64 << 10, "{whole}");
    match backing.punch(id, 5000, 40_000) {
        Err(err) if err.kind() == ErrorKind::Unsupported => return,
        result => result.unwrap(),
    }
    assert!(backing.allocated(id).unwrap() <= whole - (32 << 10));
    assert_eq!(backing.allocated(SegmentId(0xabc)).unwrap_err().kind(), ErrorKind::NotFound);
    // The file may be longer than what was written, by zeros.
    let bytes = read(backing, id, 0, 1 << 20);
    let (bytes, ahead) = bytes.split_at(64 << 10);
    assert!(ahead.iter().all(|byte| *byte == 0));
    assert!(bytes[..5000].iter().all(|byte| *byte == 3));
    assert!(bytes[45_000..].iter().all(|byte| *byte == 3));
    assert!(bytes[16 << 10..32 << 10].iter().all(|byte| *byte == 0));
    // Less than a block: nothing to do. Past the end: nothing there.
    backing.punch(id, 60_000, 100).unwrap();
    backing.punch(id, 1 << 30, 1 << 20).unwrap();
    assert_eq!(read(backing, id, 60_000, 100), [3; 100]);
    backing.sync_segment(id).unwrap();
}

fn small_files(backing: &dyn Backing) {
    assert_eq!(backing.read_file("superblock.1").unwrap(), None);
    assert_eq!(backing.read_file("fence/0000000000000001").unwrap(), None);
    assert_eq!(backing.list_files("fence").unwrap(), Vec::<String>::new());
    backing.write_file("superblock.1", b"one").unwrap();
    backing.write_file("superblock.1", b"another").unwrap();
    assert_eq!(backing.read_file("superblock.1").unwrap().unwrap(), b"another");

    backing.create_file_exclusive("fence/0000000000000002", b"two").unwrap();
    backing.create_file_exclusive("fence/0000000000000001", b"").unwrap();
    let err = backing.create_file_exclusive("fence/0000000000000002", b"x").unwrap_err();
    assert_eq!(err.kind(), ErrorKind::AlreadyExists);
    assert_eq!(backing.read_file("fence/0000000000000002").unwrap().unwrap(), b"two");
    assert_eq!(backing.read_file("fence/0000000000000001").unwrap().unwrap(), b"");
    assert_eq!(backing.list_files("fence").unwrap(), ["0000000000000001", "0000000000000002"]);
    assert_eq!(backing.list_files("").unwrap(), ["superblock.0", "superblock.1"]);
    backing.remove_file("fence/0000000000000002").unwrap();
    assert_eq!(backing.remove_file("fence/0000000000000002").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(backing.list_files("fence").unwrap(), ["0000000000000001"]);

    let largest = vec![7; SMALL_FILE_LEN_MAX];
    backing.write_file("large", &largest).unwrap();
    assert_eq!(backing.read_file("large").unwrap().unwrap(), largest);
    assert!(backing.write_file("larger", &vec![7; SMALL_FILE_LEN_MAX + 1]).is_err());
    assert_eq!(backing.read_file("larger").unwrap(), None);
    backing.remove_file("large").unwrap();
}

fn names_that_lead_elsewhere_are_refused(backing: &dyn Backing) {
    for name in [
        "",
        "..",
        ".",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/b/c",
        ".hidden",
        "a/.b",
        "a/",
        "segments",
        "segments/00",
        "a\0b",
    ] {
        assert_eq!(backing.read_file(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        assert_eq!(backing.write_file(name, b"").unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        assert_eq!(backing.create_file_exclusive(name, b"").unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        assert_eq!(backing.remove_file(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
    }
    assert_eq!(backing.list_files("..").unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn a_sync_without_the_marker_fails_until_reset(backing: &dyn Backing) {
    backing.write_file("superblock.0", b"marker").unwrap();
    let _ = backing.remove_file("superblock.1");
    write(backing, A, 0, b"x");
    backing.sync_segment(A).unwrap();
    backing.remove_file("superblock.0").unwrap();
    assert_eq!(backing.sync_segment(A).unwrap_err().kind(), ErrorKind::NotFound);
    backing.write_file("superblock.1", b"marker").unwrap();
    backing.sync_segment(A).unwrap_err();
    assert!(backing.write_at(A, 0, &[IoSlice::new(b"y")]).is_err());
    backing.reset_segment(A).unwrap();
    write(backing, A, 0, b"y");
    backing.sync_segment(A).unwrap();
}

fn conforms(backing: &dyn Backing) {
    backing.write_file("superblock.0", b"marker").unwrap();
    backing.lock().unwrap();
    backing.lock().unwrap();
    assert!(backing.list_segments().unwrap().is_empty());
    segments_are_written_and_read(backing);
    segments_are_listed_and_removed(backing);
    punched_ranges_read_as_zeros(backing);
    small_files(backing);
    names_that_lead_elsewhere_are_refused(backing);
    a_sync_without_the_marker_fails_until_reset(backing);
    let space = backing.space().unwrap();
    assert!(space.available_bytes <= space.free_bytes && space.free_bytes <= space.total_bytes);
    assert!(!space.fs_type.is_empty() && space.total_bytes > 0);
}

#[test]
fn a_directory_conforms() {
    let temp = TempDir::new();
    conforms(&DirBacking::open(temp.path()).unwrap());
}

#[test]
fn memory_conforms() {
    conforms(&MemBacking::new("memory", 1 << 30));
}

#[test]
fn without_rules_a_faulty_backing_conforms() {
    conforms(&FaultyBacking::new(Arc::new(MemBacking::new("memory", 1 << 30))));
    let temp = TempDir::new();
    conforms(&FaultyBacking::new(Arc::new(DirBacking::open(temp.path()).unwrap())));
}
