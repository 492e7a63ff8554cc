//! Directories that are lost, and shards that are wrong: read around, told, healed.

use super::*;

#[test]
fn any_two_of_six_directories_may_go_while_the_volume_is_open() {
    let content = noise(5, 1_500_000);
    let small: Vec<Vec<u8>> = (0..50).map(|n| noise(100 + n, 3000 + n as usize * 37)).collect();
    for (first, second) in [(0, 1), (2, 5), (3, 4), (4, 5)] {
        let scratch = Scratch::new(&format!("lose{first}{second}"));
        scratch.format(6, 1);
        let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
        write(&volume, "large", &content);
        for (n, bytes) in small.iter().enumerate() {
            write(&volume, &format!("s{n}"), bytes);
        }
        volume.commit(&NothingDirty).unwrap();
        std::fs::remove_dir_all(scratch.0.join(format!("d{first}"))).unwrap();
        std::fs::remove_dir_all(scratch.0.join(format!("d{second}"))).unwrap();
        assert_eq!(read(&volume, "large").unwrap(), content);
        for (n, bytes) in small.iter().enumerate() {
            assert_eq!(&read(&volume, &format!("s{n}")).unwrap(), bytes);
        }
        // Writing goes on with the directories that are left.
        write(&volume, "after", &content[..300_000]);
        volume.commit(&NothingDirty).unwrap();
        assert_eq!(read(&volume, "after").unwrap(), &content[..300_000]);
        volume.close(&NothingDirty).unwrap();
        let volume = scratch.open_with(OpenOptions {
            sources: vec![scratch.0.join(if first == 0 { "d2" } else { "d0" })],
            ..scratch.options()
        });
        assert_eq!(read(&volume, "large").unwrap(), content);
        assert_eq!(read(&volume, "after").unwrap(), &content[..300_000]);
        assert_eq!(volume.status().unwrap().health, "critical");
        volume.close(&NothingDirty).unwrap();
    }
}

#[test]
fn damaged_shards_are_read_around_counted_and_healed() {
    let scratch = Scratch::new("damage");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let content = noise(6, 2_000_000);
    write(&volume, "large", &content);
    volume.commit(&NothingDirty).unwrap();
    // Flip bytes all over one directory, cut another short.
    for file in segment_files(&scratch.0.join("d1")) {
        let mut bytes = std::fs::read(&file).unwrap();
        for at in (5000..bytes.len()).step_by(9000) {
            bytes[at] ^= 0x40;
        }
        std::fs::write(&file, bytes).unwrap();
    }
    // A directory that holds data, not parity: what a read meets.
    let open = volume.blocks().segments().open_tails()[0].0;
    let holder = volume.blocks().segment_info(open).unwrap().slots[0].unwrap();
    let holder = volume.set.get(&holder).unwrap().path().to_path_buf();
    for file in segment_files(&holder) {
        std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(40_000).unwrap();
    }
    assert_eq!(read(&volume, "large").unwrap(), content);
    let status = volume.status().unwrap();
    assert!(status.damage.shards_bad > 0);
    assert_eq!(status.damage.blocks_lost, 0);
    assert!(status.damage.recent.iter().any(|event| event.path == "/large"), "{:?}", status.damage.recent);
    let report = heal(&volume, &Silent).unwrap();
    assert!(report.healed, "{report:?}");
    healthy(&volume);
    volume.close(&NothingDirty).unwrap();
}

#[test]
fn beyond_parity_only_the_files_concerned_fail() {
    let scratch = Scratch::new("beyond");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let (first, second) = (noise(7, 400_000), noise(8, 400_000));
    write(&volume, "first", &first);
    volume.commit(&NothingDirty).unwrap();
    // The files are longer, by zeros.
    let (_, until) = volume.blocks().segments().open_tails()[0];
    write(&volume, "second", &second);
    volume.commit(&NothingDirty).unwrap();
    for n in 0..3 {
        let file = &segment_files(&scratch.0.join(format!("d{n}")))[0];
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(until).unwrap();
    }
    assert_eq!(read(&volume, "first").unwrap(), first);
    assert!(matches!(read(&volume, "second"), Err(Error::BlockLost { good: 3, needed: 4, .. })));
    let report = check(&volume, &CheckOptions::default(), &Silent).unwrap();
    assert!(!report.healthy);
    assert_eq!(
        report.damaged.iter().filter(|d| !d.recoverable).map(|d| d.path.as_str()).collect::<Vec<_>>(),
        ["/second"]
    );
    drop(volume);
}

#[test]
fn a_lost_directory_is_replaced_and_healed() {
    let scratch = Scratch::new("replace");
    scratch.format(6, 1);
    let volume = scratch.open_with(OpenOptions { cache_bytes: 0, ..scratch.options() });
    let content = noise(9, 3_000_000);
    write(&volume, "large", &content);
    volume.commit(&NothingDirty).unwrap();
    std::fs::remove_dir_all(scratch.0.join("d2")).unwrap();
    let new = scratch.0.join("new");
    std::fs::create_dir(&new).unwrap();
    assert!(replace(&volume, &scratch.0.join("d1"), &new).is_err(), "a healthy one is not replaced");
    replace(&volume, &scratch.0.join("d2"), &new).unwrap();
    let report = heal(&volume, &Silent).unwrap();
    assert!(report.healed && report.shards_repaired > 0, "{report:?}");
    assert_eq!(volume.status().unwrap().health, "healthy");
    volume.close(&NothingDirty).unwrap();
    let volume = scratch.open();
    assert!(volume.warnings().is_empty(), "{:?}", volume.warnings());
    assert!(check(&volume, &CheckOptions::default(), &Silent).unwrap().healthy);
    volume.close(&NothingDirty).unwrap();
}
