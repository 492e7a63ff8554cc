//! Kills of the daemon, and power cuts of the disks, under load: everything synced is there, nothing is half there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::command::shell;
use crate::environment::is_mounted;
use crate::fault_dir::{Fault, FaultDir};
use crate::volume::{Daemon, wait_until};
use crate::{Builder, Random, TestVolume, content, seed};

/// A content that says by itself whether it is whole: seed and length, then bytes that follow from them.
fn stamped(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + len);
    bytes.extend_from_slice(&seed.to_le_bytes());
    bytes.extend_from_slice(&(len as u64).to_le_bytes());
    bytes.extend_from_slice(&content(seed, len));
    bytes
}

/// The seed of a whole stamped content.
fn stamp_of(bytes: &[u8]) -> Option<u64> {
    let seed = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let len = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes.len() as u64 == 16 + len && bytes[16..] == content(seed, len as usize)).then_some(seed)
}

/// What the writers were promised: for each file the stamp last synced; `None`: its removal was.
#[derive(Default)]
struct Promises(Mutex<BTreeMap<PathBuf, Option<u64>>>);

impl Promises {
    fn note(&self, path: &Path, stamp: Option<u64>) {
        self.0.lock().expect("promises lock").insert(path.to_path_buf(), stamp);
    }

    fn len(&self) -> usize {
        self.0.lock().expect("promises lock").len()
    }

    /// Every promise is kept, by what was synced or anything written later, which is whole too.
    #[track_caller]
    fn check(&self, root: &Path, when: &str) {
        for (path, stamp) in &*self.0.lock().expect("promises lock") {
            let full = root.join(path);
            match (stamp, fs::read(&full)) {
                (Some(stamp), Ok(bytes)) => match stamp_of(&bytes) {
                    // Stamps of one file grow.
                    Some(found) if found >= *stamp => {}
                    Some(found) => panic!("{when}: {} is at {found}, {stamp} was synced", path.display()),
                    None => panic!("{when}: {} is torn: {} bytes; {stamp} was synced", path.display(), bytes.len()),
                },
                (Some(stamp), Err(error)) => panic!("{when}: {}: {error}; {stamp} was synced", path.display()),
                (None, Ok(bytes)) => {
                    // Written again after the synced removal, perhaps not wholly yet.
                    assert!(
                        bytes.is_empty() || stamp_of(&bytes).is_some(),
                        "{when}: {} came back torn",
                        path.display()
                    );
                }
                (None, Err(error)) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{when}: {}", path.display())
                }
            }
        }
    }
}

/// One writer: replaces, rewrites and removes its files, each time synced, until the mount dies under it.
fn write_until_death(
    root: &Path,
    writer: u64,
    random: &mut Random,
    stamps: &mut u64,
    promises: &Promises,
    stop: &AtomicBool,
) {
    let step = |random: &mut Random, stamp: u64| -> std::io::Result<()> {
        let name = PathBuf::from(format!("w{writer}-{}", random.below(8)));
        let path = root.join(&name);
        let len = *random.choose(&[0, 100, 1500, 5000, 60_000, 131_072, 400_000]) + random.below(50) as usize;
        match random.below(8) {
            0 => {
                // From here on it may be gone: another writer's sync may make the removal durable before ours does.
                promises.note(&name, None);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => File::open(root)?.sync_all()?,
                }
            }
            1 => {
                // Unsynced noise, which may or may not survive, but never in others' place.
                fs::write(root.join(format!("w{writer}-noise")), content(stamp, len))?;
            }
            _ => {
                let temp = root.join(format!("w{writer}-tmp"));
                let mut file = File::create(&temp)?;
                file.write_all(&stamped(stamp, len))?;
                file.sync_all()?;
                fs::rename(&temp, &path)?;
                File::open(root)?.sync_all()?;
                promises.note(&name, Some(stamp));
            }
        }
        Ok(())
    };
    while !stop.load(Ordering::Relaxed) {
        *stamps += 1;
        if step(random, *stamps).is_err() {
            return;
        }
    }
}

/// Kills the daemon while `writers` write, and says how many files have promises.
#[track_caller]
fn kill_under_load(volume: &mut TestVolume, round: u64, random: &mut Random, promises: &Promises, after: Duration) {
    let (root, stop) = (volume.mnt().to_path_buf(), AtomicBool::new(false));
    let daemon: Daemon = volume.daemon().expect("it is mounted").clone();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (root, stop) = (&root, &stop);
            let mut random = Random::new(random.next_u64());
            let mut stamps = (round + 1) << 32;
            scope.spawn(move || write_until_death(root, writer, &mut random, &mut stamps, promises, stop));
        }
        std::thread::sleep(after);
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
        assert!(daemon.wait_gone(Duration::from_secs(20)), "the daemon survived SIGKILL");
    });
    volume.kill_daemon();
}

/// Mounts after a kill: either that works as it is, or the message names the exact command that makes it work.
#[track_caller]
pub(super) fn mount_after_kill(volume: &mut TestVolume) {
    let usable =
        wait_until(Duration::from_millis(500), || is_mounted(volume.mnt()) && fs::read_dir(volume.mnt()).is_ok());
    if usable {
        // A supervisor mounted it again; take it over by a clean unmount.
        let finished = crate::run(crate::volume::brine_command(&["umount"]).arg(volume.mnt()));
        finished.expect_success();
    }
    let finished = volume.try_mount(&[]);
    if finished.success() {
        return;
    }
    println!("mounting after a kill: {finished}");
    let text = finished.text();
    let mnt = volume.mnt().display().to_string();
    let commands = text.split(['`', '\'', '"', '\n']).map(str::trim).filter(|part| part.contains(&mnt));
    let ends =
        |command: &&str| ["umount", "fusermount3 -u", "brine umount"].iter().any(|word| command.starts_with(word));
    let named = commands.into_iter().find(ends);
    let command = named.unwrap_or_else(|| panic!("mounting after a kill names no exact command to go on: {finished}"));
    let command = command.replace("brine ", &format!("{} ", crate::environment::brine().display()));
    shell(Path::new("/"), &command).expect_success();
    volume.mount();
}

/// `rounds` kills under load. After each: everything synced is there; `check` is clean at the end of every third.
#[track_caller]
pub fn kills(rounds: u64) -> String {
    let seed = seed("kills");
    let mut random = Random::new(seed);
    let mut volume = Builder::new("kills").lifetime(Duration::from_secs(120 + rounds * 30)).mount();
    let promises = Promises::default();
    for round in 0..rounds {
        let after = Duration::from_millis(random.range(50, 1500));
        kill_under_load(&mut volume, round, &mut random, &promises, after);
        if round % 4 == 3 {
            // The database is only a cache of the log.
            volume.detach();
            fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
        }
        mount_after_kill(&mut volume);
        promises.check(volume.mnt(), &format!("after kill {round}, seed {seed}"));
        if round % 3 == 2 || round + 1 == rounds {
            volume.expect_clean();
        }
    }
    assert!(promises.len() > 0, "nothing was synced in {rounds} rounds");
    format!("{rounds} kills, {} files with synced content, all right; seed {seed}", promises.len())
}

/// `rounds` power cuts of all six directories under load: what was not synced there is lost, torn or kept by chance.
#[track_caller]
pub fn power_cuts(rounds: u64) -> String {
    power_cuts_on(rounds, Fault::None)
}

/// The same on disks that have this fault all the time.
#[track_caller]
pub fn power_cuts_on(rounds: u64, fault: Fault) -> String {
    let seed = seed("power cuts");
    let mut random = Random::new(seed);
    let root = crate::environment::temp_dir("power-cuts-dirs");
    let faults: Vec<FaultDir> = (0..6).map(|i| FaultDir::new(&root, &format!("fault-{i}"))).collect();
    let dirs = faults.iter().map(|fault| fault.path().to_path_buf()).collect();
    let builder = Builder::new("power-cuts").directories_at(dirs).lifetime(Duration::from_secs(120 + rounds * 60));
    let mut volume = builder.mount();
    let promises = Promises::default();
    for round in 0..rounds {
        faults.iter().for_each(FaultDir::record);
        faults.iter().for_each(|dir| dir.set(fault));
        let after = Duration::from_millis(random.range(300, 2500));
        kill_under_load(&mut volume, round, &mut random, &promises, after);
        volume.detach();
        faults.iter().for_each(|fault| fault.cut_power(&mut random));
        // The disk of the state directory may come back with less, or not at all.
        if round % 2 == 0 {
            fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
        }
        mount_after_kill(&mut volume);
        promises.check(volume.mnt(), &format!("after power cut {round}, seed {seed}"));
        volume.expect_clean();
    }
    let files = promises.len();
    drop(volume);
    drop(faults);
    let _ = fs::remove_dir_all(&root);
    format!("{rounds} power cuts, {files} files with synced content, all right; seed {seed}")
}

/// Directories are lost at the moment of the kill: m of them never come back.
#[track_caller]
pub fn kill_and_lose(rounds: u64) -> String {
    let seed = seed("kill and lose");
    let mut random = Random::new(seed);
    let mut twice = 0;
    for round in 0..rounds {
        let mut volume = Builder::new("kill-and-lose").mount();
        let promises = Promises::default();
        let after = Duration::from_millis(random.range(200, 1500));
        kill_under_load(&mut volume, round, &mut random, &promises, after);
        volume.detach();
        let first = random.below(6) as usize;
        let second = (first + 1 + random.below(5) as usize) % 6;
        let mut lost = vec![first, second];
        lost.truncate(super::kills::tolerated_losses(&volume));
        twice += usize::from(lost.len() == 2);
        for i in lost {
            fs::remove_dir_all(volume.dir(i)).expect("remove a backing directory");
        }
        if round % 2 == 1 {
            fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
        }
        mount_after_kill(&mut volume);
        let when = format!("after a kill and the loss of directories {first} and {second}, seed {seed}");
        promises.check(volume.mnt(), &when);
    }
    assert!(twice > 0, "never were two losses tolerated; seed {seed}");
    format!("{rounds} kills, {twice} times with two directories lost at once; seed {seed}")
}

/// The supervisor mounts again when the daemon dies, and goes away with a clean unmount.
#[track_caller]
pub fn supervised() -> String {
    let mut volume = Builder::new("supervised").supervised().mount();
    fs::write(volume.path("file"), content(1, 500_000)).expect("write");
    volume.sync();
    for kill in 0..2 {
        volume.kill_daemon();
        let started = std::time::Instant::now();
        let back = wait_until(Duration::from_secs(20), || {
            fs::read(volume.path("file")).is_ok_and(|bytes| bytes == content(1, 500_000))
        });
        assert!(back, "kill {kill}: not mounted again within 20 s");
        println!("kill {kill}: usable again after {:.1?}", started.elapsed());
        volume.adopt();
        fs::write(volume.path(&format!("after-{kill}")), b"text").expect("write after the daemon was replaced");
    }
    volume.umount();
    assert!(!is_mounted(volume.mnt()), "mounted again after a clean unmount");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!is_mounted(volume.mnt()), "mounted again after a clean unmount");
    "two kills, each time usable again by itself, gone after umount".into()
}
