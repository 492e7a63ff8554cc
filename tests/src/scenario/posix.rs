//! Suites that tell a filesystem that behaves from one that does not, on brine and on a disk of this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::statfs::{EXT4_SUPER_MAGIC, statfs};

use crate::command::{program, run, run_for};
use crate::environment::{temp_dir, tool};
use crate::{Builder, TestVolume, conformance};

/// A suite of this kind takes seconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// Most names of a file where pjdfstest looks for EMLINK: it does so only below 65535, and brine's own limit takes days to
/// reach. Not what pathconf(3) tells of a filesystem that the C library does not know (127).
const LINK_MAX: u32 = 1000;
/// Gives pjdfstest an answer to pathconf(_PC_LINK_MAX), which the C library has for no FUSE filesystem.
const LINK_MAX_SOURCE: &str = include_str!("link_max.c");

fn mounted(name: &str, more: &str) -> TestVolume {
    let options = format!("allow_other,suid,dev{more}");
    Builder::new(name).directories(3).geometry(2, 1).option(&options).lifetime(PATIENCE * 2).mount()
}

/// A directory of this machine, removed when dropped.
struct Here(PathBuf);

impl Here {
    fn new(name: &str) -> Self {
        Self(temp_dir(name))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        // Only temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Our own checks, on both.
pub fn conformance() -> String {
    let volume = mounted("conformance", "");
    let here = Here::new("conformance-here");
    let (brine, disk) = (conformance::run(volume.mnt(), ""), conformance::run(&here.0, ""));
    assert!(disk.failures.is_empty(), "checks that fail on a disk are wrong:\n{}", disk.failures.join("\n"));
    assert!(brine.failures.is_empty(), "{} checks, of which fail:\n{}", brine.checks, brine.failures.join("\n"));
    assert_eq!(brine.checks, disk.checks, "not the same checks");
    assert!(brine.checks >= 1000, "only {} checks", brine.checks);
    volume.expect_clean();
    format!("checks {}, failures brine {}, disk {}", brine.checks, brine.failures.len(), disk.failures.len())
}

/// The cases of pjdfstest that were skipped, and how many passed. Panics if one failed.
fn pjdfstest_in(directory: &Path) -> (BTreeSet<String>, usize) {
    let config = temp_dir("pjc");
    let file = config.join("config.toml");
    let text = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\
         [settings]\nnaptime = 0.02\nallow_remount = false\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    fs::write(&file, text).expect("write the configuration");
    let (source, library) = (config.join("link_max.c"), config.join("link_max.so"));
    fs::write(&source, LINK_MAX_SOURCE).expect("write the library's source");
    run(Command::new(program("cc"))
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(&source))
    .expect_success();
    let mut command = Command::new(tool("pjdfstest"));
    command.env("LD_PRELOAD", &library).env("FUSE_LINK_MAX", LINK_MAX.to_string());
    command.arg("-c").arg(&file).arg("-p").arg(directory);
    // A second filesystem, for what must not cross.
    command.arg("-s").arg("/dev/shm");
    let finished = run_for(&mut command, PATIENCE);
    let _ = fs::remove_dir_all(&config);
    let finished = finished.expect_success();
    let of = |word: &str| -> BTreeSet<String> {
        let cases = finished.stdout.lines().filter(|line| line.contains("::") && line.trim_end().ends_with(word));
        cases.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    assert!(finished.stdout.contains("Summary: 0 failed"), "{}", finished.stdout);
    (of("skipped"), of("ok").len())
}

/// pjdfstest, all of it, on both. Short names: paths of sockets have 107 bytes at most.
pub fn pjdfstest() -> String {
    let volume = mounted("pj", &format!(",link_max={LINK_MAX}"));
    let here = Here::new("pj");
    let (skipped, passed) = pjdfstest_in(volume.mnt());
    let (skipped_here, passed_here) = pjdfstest_in(&here.0);
    // Of few filesystems the C library knows a limit, and of fewer one that can be reached.
    if statfs(&here.0).expect("statfs").filesystem_type() == EXT4_SUPER_MAGIC {
        assert_eq!(skipped, skipped_here, "not the same cases are skipped on brine (left) and on a disk (right)");
    }
    let more: Vec<&String> = skipped.difference(&skipped_here).collect();
    assert!(more.is_empty(), "skipped on brine and not on a disk: {more:?}");
    assert!(passed >= 380, "only {passed} cases passed");
    volume.expect_clean();
    let (count, count_here) = (skipped.len(), skipped_here.len());
    format!("brine {passed} passed, {count} skipped; disk {passed_here} passed, {count_here} skipped; none failed")
}

/// How often fsx does what.
const WEIGHTS: &str = "\
[weights]
close_open = 1.0
invalidate = 1.0
mapread = 10.0
mapwrite = 10.0
read = 10.0
write = 10.0
truncate = 5.0
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 5.0
punch_hole = 5.0
sendfile = 5.0
posix_fadvise = 2.0
copy_file_range = 10.0
";

/// After how many operations fsx 0.3.2 gave up over a mistake of its own: now and then it allocates no bytes, which is
/// EINVAL by POSIX, and takes that for a filesystem that cannot allocate. It does so on every filesystem.
fn ended_by_itself(text: &str) -> Option<u64> {
    let last = text.lines().rev().find(|line| line.contains("[ERROR fsx]"))?;
    let (steps, what) = last.split("[ERROR fsx]").nth(1)?.trim().split_once(' ')?;
    let nothing = what.trim_start().starts_with("POSIX_FALLOCATE") && last.contains(" 0x0 bytes");
    (nothing && text.contains("does not support posix_fallocate")).then(|| steps.parse().ok())?
}

/// fsx: random operations of every kind it knows, all read back after each, `operations` on each of `files` files at once.
pub fn fsx(files: u64, operations: u64) -> String {
    // It outlives the patience with the programs.
    let volume = Builder::new("fsx").directories(3).geometry(2, 1).lifetime(PATIENCE * 5).mount();
    let seed = crate::seed("fsx");
    let config = volume.root().join("fsx.toml");
    fs::write(&config, WEIGHTS).expect("write the configuration");
    let run_one = &|number: u64| {
        let mut left = operations;
        for round in 0.. {
            let file = volume.path(&format!("fsx{number}-{round}"));
            let seed = seed.wrapping_add(number + files * round) & 0x7fff_ffff;
            let mut command = Command::new(tool("fsx"));
            command.arg("-N").arg(left.to_string()).arg("-S").arg(seed.to_string());
            command.arg("-f").arg(&config).arg(&file);
            let finished = run_for(&mut command, PATIENCE * 4);
            match ended_by_itself(&finished.text()) {
                Some(done) if !finished.success() && done < left => left -= done,
                _ if finished.success() => return finished,
                _ => {
                    // At once, and of each: what it found may look right by the time the others have ended.
                    let good = fs::read(format!("{}.fsxgood", file.display())).ok();
                    let held = fs::read(&file).ok();
                    let differs =
                        held.iter().zip(&good).find_map(|(held, good)| held.iter().zip(good).position(|(a, b)| a != b));
                    eprintln!("fsx on file {number}: {}; first difference now: {differs:?}", finished.text());
                    return finished;
                }
            }
        }
        unreachable!("it runs until it succeeds or fails")
    };
    let finished: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..files).map(|number| scope.spawn(move || run_one(number))).collect();
        running.into_iter().map(|one| one.join().expect("a thread that runs fsx")).collect()
    });
    finished.into_iter().for_each(|one| drop(one.expect_success()));
    volume.expect_clean();
    format!("{operations} operations on each of {files} files, seed {seed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fsx_got_wrong_itself_is_told_apart() {
        let text = |size: &str, what: &str| {
            format!(
                "{what}\n[ERROR fsx] LOG DUMP\n[ERROR fsx] 130342 POSIX_FALLOCATE  0x2810 =>  0x280f ({size} bytes)\n"
            )
        };
        let own = "Test file system does not support posix_fallocate.";
        assert_eq!(ended_by_itself(&text("    0x0", own)), Some(130_342));
        assert_eq!(ended_by_itself(&text("   0x10", own)), None);
        assert_eq!(ended_by_itself(&text("    0x0", "miscompare")), None);
        assert_eq!(ended_by_itself("miscompare"), None);
    }
}
