//! Volumes without room.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::volume::detach;
use crate::{Builder, content};

/// Temporary filesystems in memory, one a directory; unmounted when dropped.
pub struct Disks {
    root: PathBuf,
    /// Where they are mounted.
    pub mounts: Vec<PathBuf>,
}

impl Disks {
    /// `count` of them with `mebibytes` MiB each.
    ///
    /// # Panics
    /// If they cannot be mounted.
    #[track_caller]
    pub fn new(name: &str, count: usize, mebibytes: u64) -> Self {
        crate::environment::require_fuse();
        let root = crate::environment::temp_dir(&format!("{name}-disks"));
        let mut disks = Self { root, mounts: Vec::new() };
        for i in 0..count {
            let dir = disks.root.join(format!("disk-{i}"));
            fs::create_dir(&dir).expect("create a mountpoint");
            let options = format!("size={mebibytes}m,mode=700");
            mount(Some("brine-test"), &dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
                .expect("mount a tmpfs");
            disks.mounts.push(dir);
        }
        disks
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.mounts.iter().for_each(|dir| detach(dir));
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A file of a third of what fits is written over again and again, synced each time: what it held before goes in time.
#[track_caller]
pub fn overwritten(rounds: u64) -> String {
    const MIB: u64 = 96;
    let disks = Disks::new("overwritten", 3, MIB);
    let builder = Builder::new("overwritten").directories_at(disks.mounts.clone()).geometry(2, 1);
    let mut volume = builder.mount();
    let len = (2 * MIB / 3) << 20;
    let mut last = Vec::new();
    for round in 0..rounds {
        last = content(round, len as usize);
        let result = File::create(volume.path("stream")).and_then(|mut file| {
            file.write_all(&last)?;
            file.sync_all()
        });
        result.unwrap_or_else(|error| panic!("round {round}: {error}: {:#}", volume.status()));
    }
    volume.remount();
    assert!(fs::read(volume.path("stream")).expect("read") == last, "what was written last is wrong");
    volume.expect_clean();
    format!("{} MiB were written over {rounds} times on 3 x {MIB} MiB (2+1)", len >> 20)
}

/// Disks of `mebibytes` MiB are filled: ENOSPC reaches the writer and nobody else, what was written is right, the
/// volume can be mounted, files can be removed, and then there is room again.
#[track_caller]
pub fn full(mebibytes: u64) -> String {
    let disks = Disks::new("full", 3, mebibytes);
    let builder = Builder::new("full").directories_at(disks.mounts.clone()).geometry(2, 1);
    let mut volume = builder.mount();
    fs::write(volume.path("kept"), content(1, 3 << 20)).expect("write");
    let mut written = Vec::new();
    let mut stopped = None;
    for i in 0..2 * mebibytes {
        let path = volume.path(&format!("fill-{i}"));
        let result = File::create(&path).and_then(|mut file| {
            file.write_all(&content(100 + i, 1 << 20))?;
            file.sync_all()
        });
        match result {
            Ok(()) => written.push(i),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "a full volume must say ENOSPC: {error}");
                stopped = Some(i);
                break;
            }
        }
    }
    let stopped = stopped.unwrap_or_else(|| panic!("{} MiB fit on three disks of {mebibytes} MiB", 2 * mebibytes));
    let df = nix::sys::statvfs::statvfs(volume.mnt()).expect("statvfs");
    let usable = df.blocks() * df.fragment_size();
    assert!(written.len() as u64 * 2 > mebibytes, "only {} MiB fit on 2 x {mebibytes} MiB", written.len());
    let status = volume.status();
    assert_ne!(status["health"], "failed", "a full volume is no failed one: {status:#}");
    let verify = |volume: &crate::TestVolume, when: &str| {
        assert!(fs::read(volume.path("kept")).expect("read") == content(1, 3 << 20), "{when}: a file is wrong");
        for i in &written {
            let path = volume.path(&format!("fill-{i}"));
            if path.exists() {
                assert!(fs::read(path).expect("read") == content(100 + i, 1 << 20), "{when}: file {i} is wrong");
            }
        }
    };
    verify(&volume, "full");
    volume.remount();
    verify(&volume, "full, mounted again");
    fs::rename(volume.path("kept"), volume.path("renamed")).expect("rename on a full volume");
    fs::rename(volume.path("renamed"), volume.path("kept")).expect("rename on a full volume");
    let _ = fs::remove_file(volume.path(&format!("fill-{stopped}")));
    for i in written.iter().take(written.len() * 2 / 3) {
        fs::remove_file(volume.path(&format!("fill-{i}"))).expect("unlink on a full volume");
    }
    volume.sync();
    let wrote = crate::volume::wait_until(Duration::from_secs(40), || {
        let result = File::create(volume.path("again")).and_then(|mut file| {
            file.write_all(&content(7, 2 << 20))?;
            file.sync_all()
        });
        result.is_ok()
    });
    assert!(wrote, "no room 40 s after two thirds were removed: {:#}", volume.status());
    volume.remount();
    verify(&volume, "after removals");
    assert!(fs::read(volume.path("again")).expect("read") == content(7, 2 << 20), "what was written then is wrong");
    volume.expect_clean();
    format!(
        "{} MiB fit on 3 x {mebibytes} MiB (2+1, df says {} MiB), then ENOSPC; removals make room",
        written.len() + 3,
        usable >> 20
    )
}
