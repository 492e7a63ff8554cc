use super::*;
use crate::clock::SeededEntropy;

const ID: SegmentId = SegmentId(9);

fn opened() -> MemBacking {
    let backing = MemBacking::new("memory", 1 << 24);
    backing.write_file("superblock.0", b"marker").unwrap();
    backing.create_segment(ID, 1 << 20).unwrap();
    backing
}

fn write(backing: &MemBacking, offset: u64, bytes: &[u8]) -> io::Result<()> {
    backing.write_at(ID, offset, &[IoSlice::new(bytes)])
}

fn read(backing: &MemBacking) -> Vec<u8> {
    let mut buf = vec![0; 1 << 20];
    let got = backing.read_at(ID, 0, &mut buf).unwrap();
    buf.truncate(got);
    buf
}

#[test]
fn what_was_synced_survives_and_the_rest_is_torn_by_sectors() {
    let (mut lost, mut kept, mut mixed, mut shorter) = (0, 0, 0, 0);
    for seed in 0..64 {
        let backing = opened();
        write(&backing, 0, &[1; 4096]).unwrap();
        backing.sync_segment(ID).unwrap();
        // Over the end of what is synced, and not aligned.
        write(&backing, 3000, &[2; 3000]).unwrap();
        backing.power_cut(&SeededEntropy::new(seed));
        let bytes = read(&backing);
        assert!((4096..=6000).contains(&bytes.len()));
        shorter += usize::from(bytes.len() < 6000);
        assert_eq!(bytes[..3000], [1; 3000]);
        for (number, sector) in bytes.chunks(512).enumerate().skip(6) {
            let new = sector.iter().filter(|byte| **byte == 2).count();
            let base = number * 512;
            let old = if base < 4096 { 1 } else { 0 };
            let all_old = sector.iter().all(|byte| *byte == old);
            assert!(new == sector.len() || all_old, "sector {number} is torn inside");
            kept += usize::from(new > 0);
            lost += usize::from(new == 0);
        }
        let states: BTreeSet<bool> = bytes.chunks(512).skip(6).map(|sector| sector[0] == 2).collect();
        mixed += usize::from(states.len() == 2);
        // What is left is synced now.
        backing.power_cut(&SeededEntropy::new(seed + 1000));
        assert_eq!(read(&backing), bytes);
    }
    assert!(lost > 50 && kept > 50 && mixed > 20 && shorter > 20, "{lost} {kept} {mixed} {shorter}");
}

#[test]
fn one_seed_one_outcome() {
    let backing = opened();
    write(&backing, 0, &[1; 50_000]).unwrap();
    let outcome = |seed| {
        let copy = backing.fork();
        copy.power_cut(&SeededEntropy::new(seed));
        read(&copy)
    };
    assert_eq!(outcome(1), outcome(1));
    assert_ne!(outcome(1), outcome(2));
    assert_eq!(read(&backing), [1; 50_000]);
}

#[test]
fn small_files_are_old_or_new_wherever_the_cut_comes() {
    let mut seen = BTreeSet::new();
    for steps in 0..4 {
        for seed in 0..8 {
            let backing = opened();
            backing.write_file("superblock.0", b"old").unwrap();
            backing.cut_after(steps);
            let result = backing.write_file("superblock.0", b"new");
            assert_eq!(result.is_ok(), steps == 3, "{steps}");
            assert_eq!(backing.is_powered(), steps == 3);
            backing.power_cut(&SeededEntropy::new(seed));
            let content = backing.read_file("superblock.0").unwrap().unwrap();
            assert!(content == b"old" || content == b"new");
            if steps == 3 {
                assert_eq!(content, b"new", "reported as durable");
            }
            seen.insert((steps, content));
        }
    }
    // Before the rename nothing is seen of it; between rename and sync either.
    assert_eq!(seen.iter().filter(|(steps, _)| *steps < 2).count(), 2);
    assert_eq!(seen.iter().filter(|(steps, _)| *steps == 2).count(), 2);
}

#[test]
fn exclusive_files_exist_once_reported() {
    let mut seen = BTreeSet::new();
    for steps in 0..=4 {
        for seed in 0..32 {
            let backing = opened();
            backing.cut_after(steps);
            let result = backing.create_file_exclusive("fence/1", b"claim");
            backing.power_cut(&SeededEntropy::new(seed));
            let left = backing.read_file("fence/1").unwrap();
            if result.is_ok() {
                assert_eq!(left.as_deref(), Some(&b"claim"[..]));
            }
            seen.insert((steps, left.map(|bytes| bytes.len())));
        }
    }
    let after = |steps| seen.iter().filter(|(at, _)| *at == steps).map(|(_, len)| *len).collect::<Vec<_>>();
    assert_eq!(after(0), [None]);
    assert_eq!(after(1), [None, Some(0)]);
    assert!(after(2).len() > 3, "torn content: {:?}", after(2));
    assert_eq!(after(3), [None, Some(5)]);
    assert_eq!(after(4), [Some(5)]);
}

#[test]
fn names_not_synced_may_vanish_or_come_back() {
    let outcomes = |prepare: &dyn Fn(&MemBacking)| -> BTreeSet<bool> {
        (0..32)
            .map(|seed| {
                let backing = opened();
                prepare(&backing);
                backing.power_cut(&SeededEntropy::new(seed));
                backing.list_segments().unwrap().iter().any(|(id, _)| *id == SegmentId(0x109))
            })
            .collect()
    };
    let created = |backing: &MemBacking| backing.create_segment(SegmentId(0x109), 4096);
    assert_eq!(outcomes(&|backing| created(backing).unwrap()), BTreeSet::from([true]));
    let cut_inside = |backing: &MemBacking| {
        backing.cut_after(1);
        created(backing).unwrap_err();
    };
    assert_eq!(outcomes(&cut_inside), BTreeSet::from([false, true]));
    let removed = |backing: &MemBacking| {
        created(backing).unwrap();
        backing.remove_segment(SegmentId(0x109)).unwrap();
    };
    assert_eq!(outcomes(&removed), BTreeSet::from([false, true]));
    // The next file made in the same fan-out directory syncs the removal too.
    let removed_for_good = |backing: &MemBacking| {
        removed(backing);
        backing.create_segment(SegmentId(0x209), 4096).unwrap();
    };
    assert_eq!(outcomes(&removed_for_good), BTreeSet::from([false]));
}

#[test]
fn without_power_nothing_works_and_nothing_changes() {
    let backing = opened();
    let steps = backing.steps();
    backing.cut_after(0);
    assert_eq!(write(&backing, 0, &[1; 100]).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(backing.read_file("superblock.0").unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(backing.list_segments().is_err() && backing.lock().is_err() && backing.sync_segment(ID).is_err());
    assert_eq!(backing.steps(), steps);
    backing.power_cut(&SeededEntropy::new(1));
    assert!(read(&backing).is_empty());
}

#[test]
fn room_is_limited_and_punching_gives_it_back() {
    let backing = MemBacking::new("memory", 64 << 10);
    backing.write_file("superblock.0", b"m").unwrap();
    backing.create_segment(ID, 1 << 20).unwrap();
    write(&backing, 0, &[1; 48 << 10]).unwrap();
    let err = write(&backing, 48 << 10, &[1; 48 << 10]).unwrap_err();
    assert_eq!(err.raw_os_error(), Some(libc::ENOSPC));
    backing.punch(ID, 0, 40 << 10).unwrap();
    write(&backing, 48 << 10, &[1; 48 << 10]).unwrap();
    assert_eq!(write(&backing, u64::MAX - 5, b"x").unwrap_err().raw_os_error(), Some(libc::EFBIG));
    backing.remove_segment(ID).unwrap();
    assert!(backing.space().unwrap().free_bytes > 60 << 10);
}

#[test]
fn handles_share_the_directory_but_not_the_lock() {
    let backing = opened();
    backing.lock().unwrap();
    let other = backing.reopen();
    assert!(other.lock().unwrap_err().to_string().contains("in use"));
    assert_eq!(other.read_file("superblock.0").unwrap().unwrap(), b"marker");
    drop(backing);
    other.lock().unwrap();
    // A crash lets go of every lock.
    other.power_cut(&SeededEntropy::new(1));
    other.reopen().lock().unwrap();
}

#[test]
fn corruption_is_silent_and_lasts() {
    let backing = opened();
    write(&backing, 0, &[1; 100]).unwrap();
    assert!(backing.corrupt(ID, 10, &[9; 5]));
    assert!(!backing.corrupt(ID, 98, &[9; 5]) && !backing.corrupt(SegmentId(1), 0, &[9]));
    assert_eq!(read(&backing)[8..17], [1, 1, 9, 9, 9, 9, 9, 1, 1]);
    backing.wipe();
    assert!(backing.list_segments().unwrap().is_empty() && backing.read_file("superblock.0").unwrap().is_none());
}
