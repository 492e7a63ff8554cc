use super::*;
use crate::backing::MemBacking;

const ID: SegmentId = SegmentId(1);

fn opened() -> FaultyBacking {
    let backing = FaultyBacking::new(Arc::new(MemBacking::new("memory", 1 << 24)));
    backing.write_file("superblock.0", b"marker").unwrap();
    backing.create_segment(ID, 1 << 20).unwrap();
    write(&backing, 0, &[1; 1024]).unwrap();
    backing.sync_segment(ID).unwrap();
    backing
}

fn write(backing: &FaultyBacking, offset: u64, bytes: &[u8]) -> io::Result<()> {
    backing.write_at(ID, offset, &[IoSlice::new(bytes)])
}

fn read(backing: &FaultyBacking, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    let got = backing.read_at(ID, offset, &mut buf)?;
    buf.truncate(got);
    Ok(buf)
}

#[test]
fn rules_strike_the_nth_call_and_calls_are_counted() {
    let backing = opened();
    backing.add(Rule::new(Call::ReadAt, Fault::Errno(libc::EIO)).from_nth(2).times(2));
    let struck: Vec<bool> = (0..5).map(|_| read(&backing, 0, 8).is_err()).collect();
    assert_eq!(struck, [false, true, true, false, false]);
    backing.add(Rule::new(Call::ReadAt, Fault::Errno(libc::EIO)).segment(SegmentId(2)));
    read(&backing, 0, 8).unwrap();
    backing.add(Rule::new(Call::ReadAt, Fault::Errno(libc::EIO)));
    read(&backing, 0, 8).unwrap_err();
    backing.clear();
    read(&backing, 0, 8).unwrap();
    assert_eq!(backing.count(Call::ReadAt), 8);
    assert_eq!((backing.count(Call::WriteAt), backing.count(Call::Punch)), (1, 0));
}

#[test]
fn a_fault_never_strikes_a_cached_read() {
    let backing = opened();
    let mut buf = [0; 8];
    assert_eq!(backing.read_cached(ID, 0, &mut buf).unwrap(), 8);
    backing.add(Rule::new(Call::ReadAt, Fault::Errno(libc::EIO)).from_nth(2).times(1));
    assert_eq!(backing.read_cached(ID, 0, &mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    read(&backing, 0, 8).unwrap();
    read(&backing, 0, 8).unwrap_err();
    assert_eq!(backing.read_cached(ID, 0, &mut buf).unwrap(), 8);
    backing.set_uncached(true);
    assert_eq!(backing.read_cached(ID, 0, &mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn reads_are_flipped_truncated_swapped_and_stale() {
    let backing = opened();
    let once = |fault| backing.add(Rule::new(Call::ReadAt, fault).times(1));
    once(Fault::FlipBit { bit: 9 });
    assert_eq!(read(&backing, 0, 3).unwrap(), [1, 3, 1]);
    once(Fault::FlipBit { bit: 9 + 24 });
    assert_eq!(read(&backing, 0, 3).unwrap(), [1, 3, 1]);
    once(Fault::Truncate { len: 2 });
    assert_eq!(read(&backing, 0, 3).unwrap(), [1, 1]);
    once(Fault::Stale);
    assert_eq!(read(&backing, 0, 3).unwrap(), [0, 0, 0]);
    backing.create_segment(SegmentId(2), 4096).unwrap();
    backing.write_at(SegmentId(2), 100, &[IoSlice::new(&[5; 10])]).unwrap();
    once(Fault::Swapped { segment: SegmentId(2), offset: 100 });
    assert_eq!(read(&backing, 0, 3).unwrap(), [5, 5, 5]);
    assert_eq!(read(&backing, 0, 3).unwrap(), [1, 1, 1]);

    backing.write_file("superblock.0", b"newer").unwrap();
    backing.add(Rule::new(Call::ReadFile, Fault::Stale).times(1));
    assert_eq!(backing.read_file("superblock.0").unwrap().unwrap(), b"marker");
    backing.add(Rule::new(Call::ReadFile, Fault::Truncate { len: 1 }).times(1));
    assert_eq!(backing.read_file("superblock.0").unwrap().unwrap(), b"n");
    assert_eq!(backing.read_file("superblock.0").unwrap().unwrap(), b"newer");
}

#[test]
fn writes_are_torn_lost_and_misplaced() {
    let backing = opened();
    let once = |fault| backing.add(Rule::new(Call::WriteAt, fault).times(1));
    once(Fault::ShortWrite { bytes: 3, errno: libc::ENOSPC });
    assert_eq!(write(&backing, 0, &[2; 8]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(read(&backing, 0, 5).unwrap(), [2, 2, 2, 1, 1]);
    once(Fault::Lost);
    write(&backing, 8, &[3; 8]).unwrap();
    assert_eq!(read(&backing, 8, 2).unwrap(), [1, 1]);
    once(Fault::Misplaced { offset: 20 });
    write(&backing, 8, &[4; 2]).unwrap();
    assert_eq!(read(&backing, 8, 14).unwrap(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 4]);
    backing.add(Rule::new(Call::WriteFile, Fault::Lost).times(1));
    backing.write_file("superblock.0", b"newer").unwrap();
    assert_eq!(backing.read_file("superblock.0").unwrap().unwrap(), b"marker");
}

#[test]
fn a_failed_sync_takes_what_was_not_synced_and_is_remembered() {
    let backing = opened();
    write(&backing, 512, &[2; 1024]).unwrap();
    write(&backing, 600, &[3; 100]).unwrap();
    backing.add(Rule::new(Call::SyncSegment, Fault::DropUnsynced { errno: libc::EIO }).times(1));
    assert_eq!(backing.sync_segment(ID).unwrap_err().raw_os_error(), Some(libc::EIO));
    let bytes = read(&backing, 0, 2048).unwrap();
    assert_eq!(bytes[..1024], [1; 1024]);
    assert_eq!(bytes[1024..], [0; 512]);
    assert!(backing.sync_segment(ID).is_err());
    assert!(write(&backing, 2048, b"x").is_err());
    backing.reset_segment(ID).unwrap();
    write(&backing, 2048, b"x").unwrap();
    backing.sync_segment(ID).unwrap();
    // Synced by now, so not to be dropped.
    backing.add(Rule::new(Call::SyncSegment, Fault::DropUnsynced { errno: libc::EIO }).times(1));
    backing.sync_segment(ID).unwrap_err();
    assert_eq!(read(&backing, 2048, 1).unwrap(), b"x");
}

#[test]
fn a_gate_holds_callers_until_it_is_opened() {
    let backing = Arc::new(opened());
    let gate = Gate::new();
    backing.add(Rule::new(Call::ReadAt, Fault::Hang(gate.clone())));
    let reader = {
        let backing = backing.clone();
        std::thread::spawn(move || read(&backing, 0, 2).unwrap())
    };
    gate.wait_for(1);
    assert!(!reader.is_finished());
    gate.open();
    assert_eq!(reader.join().unwrap(), [1, 1]);
}

#[test]
#[should_panic(expected = "cannot strike")]
fn a_rule_that_could_never_strike_is_refused() {
    let _ = Rule::new(Call::WriteAt, Fault::Stale);
}
