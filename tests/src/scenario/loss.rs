//! Directories that are gone, and the state directory.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::damage::{copy_tree, data_ranges, remove_dir, segment_files};
use crate::manifest::{hash_file, write_sample_tree};
use crate::{Builder, Manifest, TestVolume, content, run};

/// Copies a sample of about `mebibytes` MiB onto the volume with `cp -a` and returns what it holds.
#[track_caller]
pub fn fill(volume: &TestVolume, mebibytes: u64) -> Manifest {
    let sample = volume.root().join("sample");
    if !sample.exists() {
        write_sample_tree(&sample, 11, mebibytes);
    }
    let mut command = std::process::Command::new(crate::program("cp"));
    run(command.arg("-a").arg(&sample).arg(volume.path("tree"))).expect_success();
    Manifest::of(&sample)
}

/// Compares the tree that [`fill`] wrote.
#[track_caller]
pub fn verify(volume: &TestVolume, expected: &Manifest, when: &str) {
    expected.expect_same(&Manifest::of(&volume.path("tree")), when);
}

/// The state of a volume that is not mounted, kept beside it so that one volume can be broken several times.
pub struct Kept {
    copies: Vec<(PathBuf, PathBuf)>,
}

impl Kept {
    /// Copies the backing directories and the state directory.
    #[track_caller]
    pub fn of(volume: &TestVolume) -> Self {
        let aside = volume.root().join(format!("kept-{}", fs::read_dir(volume.root()).map_or(0, Iterator::count)));
        fs::create_dir(&aside).expect("create a directory for copies");
        let mut copies = Vec::new();
        for dir in volume.dirs().iter().map(PathBuf::as_path).chain([volume.state_dir()]) {
            let copy = aside.join(dir.file_name().expect("it has a name"));
            copy_tree(dir, &copy);
            copies.push((copy, dir.to_path_buf()));
        }
        Self { copies }
    }

    /// Puts everything back as it was.
    #[track_caller]
    pub fn put_back(&self) {
        for i in 0..self.copies.len() {
            self.put_back_one(i);
        }
    }

    /// Puts back one backing directory, or after them the state directory.
    #[track_caller]
    pub fn put_back_one(&self, i: usize) {
        let (copy, dir) = &self.copies[i];
        let _ = fs::remove_dir_all(dir);
        copy_tree(copy, dir);
    }

    /// The copy of backing directory `i`.
    pub fn copy(&self, i: usize) -> &PathBuf {
        &self.copies[i].0
    }
}

/// A volume of six directories loses each of these sets of directories while mounted; every file stays readable, at
/// once and with empty caches.
#[track_caller]
pub fn lost_directories(sets: &[&[usize]], mebibytes: u64) -> String {
    let mut volume = Builder::new("lost-directories").lifetime(std::time::Duration::from_secs(1200)).mount();
    let expected = fill(&volume, mebibytes);
    verify(&volume, &expected, "right after copying");
    volume.remount();
    verify(&volume, &expected, "after mounting again");
    volume.umount();
    let kept = Kept::of(&volume);
    for lost in sets {
        volume.mount();
        for &i in *lost {
            remove_dir(volume.dir(i));
        }
        verify(&volume, &expected, &format!("mounted, after directories {lost:?} were deleted"));
        volume.remount();
        verify(&volume, &expected, &format!("mounted again without directories {lost:?}"));
        let status = volume.status();
        assert_ne!(status["health"], "healthy", "directories {lost:?} are gone: {status:#}");
        let written = content(5, 700_000);
        fs::write(volume.path("written while degraded"), &written).expect("write to a degraded volume");
        volume.remount();
        let read = fs::read(volume.path("written while degraded")).expect("read what was written while degraded");
        assert_eq!(blake3::hash(&read), blake3::hash(&written), "what was written while degraded is wrong");
        volume.umount();
        kept.put_back();
    }
    format!("{} entries readable without any of {} sets of directories", expected.len(), sets.len())
}

/// What only lies in m+1 damaged places cannot be read; everything else can, and nothing is ever wrong.
#[track_caller]
pub fn beyond_parity() -> String {
    let mut volume = Builder::new("beyond-parity").mount();
    let (good, bad, later) = (content(1, 3_000_000), content(2, 4_000_000), content(3, 3_000_000));
    write_synced(&volume, "good", &good);
    write_synced(&volume, "small", b"inline");
    let before = ends_of_data(&volume);
    write_synced(&volume, "bad", &bad);
    let after = ends_of_data(&volume);
    for round in 0..3 {
        write_synced(&volume, &format!("later-{round}"), &later[round * 1_000_000..(round + 1) * 1_000_000]);
    }
    volume.umount();
    // The last part is left alone: there lie the commit records that made the file known.
    let mut damaged = 0;
    for dir in 0..3 {
        for (path, end) in &after[dir] {
            let start = before[dir].iter().find(|(p, _)| p == path).map_or(4096, |(_, end)| *end);
            let end = end.saturating_sub(128 << 10);
            if start < end {
                let file = OpenOptions::new().write(true).open(path).expect("open a segment file");
                file.write_all_at(&vec![0x5a; (end - start) as usize], start).expect("damage a segment file");
                damaged += end - start;
            }
        }
    }
    assert!(damaged > 1 << 20, "the bytes of the file to be damaged were not found: {before:?} {after:?}");
    volume.mount();
    let error = fs::read(volume.path("bad")).expect_err("a file that lost more than its parity was read");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "a lost block must be EIO: {error}");
    for (name, want) in [("good", &good[..]), ("small", b"inline"), ("later-2", &later[2_000_000..])] {
        let read = fs::read(volume.path(name)).unwrap_or_else(|error| panic!("{name} was not concerned: {error}"));
        assert_eq!(blake3::hash(&read), blake3::hash(want), "{name} is wrong");
    }
    assert!(volume.number(&["damage", "blocks_lost"]) > 0, "lost blocks are not counted");
    let report = volume.check();
    let damaged_paths: Vec<String> = report["damaged"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .filter(|item| item["recoverable"] == false)
        .map(|item| item["path"].as_str().unwrap_or_default().trim_start_matches('/').to_owned())
        .collect();
    assert!(damaged_paths.iter().any(|path| path == "bad"), "check does not name the lost file: {report:#}");
    assert!(damaged_paths.iter().all(|path| path == "bad"), "check names files that are not lost: {report:#}");
    fs::remove_file(volume.path("bad")).expect("a lost file can be removed");
    fs::write(volume.path("bad"), &bad).expect("a lost file can be written again");
    volume.remount();
    let read = fs::read(volume.path("bad")).expect("read what was written again");
    assert_eq!(blake3::hash(&read), blake3::hash(&bad), "what was written again is wrong");
    "only the file concerned is EIO, named by check, and can be written again".into()
}

#[track_caller]
fn write_synced(volume: &TestVolume, name: &str, bytes: &[u8]) {
    let mut file = File::create(volume.path(name)).expect("create a file");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("write a file");
}

/// For each directory, each segment file and where its data ends.
fn ends_of_data(volume: &TestVolume) -> Vec<Vec<(PathBuf, u64)>> {
    let end = |path: PathBuf| {
        let file = File::open(&path).expect("open a segment file");
        (path, data_ranges(&file).last().map_or(0, |range| range.end))
    };
    volume.dirs().iter().map(|dir| segment_files(dir).into_iter().map(end).collect()).collect()
}

/// The state directory is deleted, with m backing directories: everything synced comes back from the rest.
#[track_caller]
pub fn lost_state_directory(lost: &[usize], mebibytes: u64) -> String {
    let mut volume = Builder::new("lost-state").mount();
    let expected = fill(&volume, mebibytes);
    volume.umount();
    fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
    for &i in lost {
        remove_dir(volume.dir(i));
    }
    volume.mount();
    verify(&volume, &expected, "rebuilt without the state directory");
    fs::write(volume.path("afterwards"), content(9, 300_000)).expect("write to a rebuilt volume");
    // Again without a clean unmount: the log alone has what came after the last image.
    let file = File::open(volume.path("afterwards")).expect("open a file");
    file.sync_all().expect("fsync");
    drop(file);
    volume.kill_daemon();
    volume.detach();
    fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
    volume.mount();
    verify(&volume, &expected, "rebuilt a second time");
    let hash = hash_file(&volume.path("afterwards")).expect("read what was synced before the kill");
    assert_eq!(hash, blake3::hash(&content(9, 300_000)), "what was synced before the kill is wrong");
    format!("{} entries rebuilt without the state directory and directories {lost:?}", expected.len())
}

/// Directories disappear, `pause` after each other, under writers who sync: nobody sees an error, all is there.
#[track_caller]
pub fn lost_under_writers(lost: &[usize], directories: usize, pause: Duration) -> String {
    let builder = Builder::new("lost-under-writers").directories(directories);
    let mut volume = builder.mount();
    let (stop, errors) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let written: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let (volume, stop, errors) = (&volume, &stop, &errors);
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let result = File::create(volume.path(&format!("w{writer}-{count}"))).and_then(|mut file| {
                            file.write_all(&content(writer << 32 | count, 250_000))?;
                            if count % 3 == 0 { file.sync_all() } else { Ok(()) }
                        });
                        if let Err(error) = result {
                            errors.lock().expect("errors lock").push(format!("writer {writer}, file {count}: {error}"));
                            break;
                        }
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(400));
        for &i in lost {
            std::thread::sleep(pause);
            remove_dir(volume.dir(i));
        }
        std::thread::sleep(Duration::from_millis(1000));
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    let errors = errors.into_inner().expect("errors lock");
    assert!(errors.is_empty(), "losing directories {lost:?} of {directories} reached writers: {errors:?}");
    for when in ["at once", "after mounting again"] {
        for (writer, &count) in (0u64..).zip(&written) {
            for number in 0..count {
                let path = volume.path(&format!("w{writer}-{number}"));
                let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{when}: {}: {error}", path.display()));
                assert!(bytes == content(writer << 32 | number, 250_000), "{when}: {} is wrong", path.display());
            }
        }
        volume.remount();
    }
    format!("{} files written while directories {lost:?} of {directories} disappeared", written.iter().sum::<u64>())
}
