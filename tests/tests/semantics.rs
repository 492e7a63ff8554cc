//! The clauses of docs/SEMANTICS.md about durability, each with a test of its name, on a real mount; and that every
//! clause names tests that exist. What is promised of crashes at any moment is proved at length by `crash` and by the
//! crate `proofs`; here each promise stands alone, as a reader would try it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use brine_tests::{Builder, TestVolume, content};

/// The daemon dies, and with it the state directory and two backing directories of six; what is left is mounted.
fn lose_all_that_may_be_lost(volume: &mut TestVolume) {
    volume.kill_daemon();
    volume.detach();
    fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
    for n in [1, 4] {
        fs::remove_dir_all(volume.dir(n)).expect("remove a backing directory");
    }
    volume.mount();
}

fn synced(dir: &Path) {
    File::open(dir).and_then(|dir| dir.sync_all()).expect("fsync of a directory");
}

#[test]
fn what_fsync_acknowledged_survives() {
    let mut volume = Builder::new("fsync").directories(6).mount();
    fs::create_dir(volume.path("dir")).expect("mkdir");
    let bytes = content(1, 300_000);
    let mut file = File::create(volume.path("dir/file")).expect("create");
    file.write_all(&bytes).expect("write");
    symlink("file", volume.path("dir/link")).expect("symlink");
    fs::hard_link(volume.path("dir/file"), volume.path("dir/other")).expect("link");
    file.sync_all().expect("fsync");
    lose_all_that_may_be_lost(&mut volume);
    // Everything accepted until then, not that file alone.
    assert_eq!(fs::read(volume.path("dir/file")).expect("read"), bytes);
    assert_eq!(fs::read(volume.path("dir/other")).expect("read"), bytes);
    assert_eq!(fs::read_link(volume.path("dir/link")).expect("readlink"), Path::new("file"));
}

#[test]
fn a_crash_shows_a_prefix() {
    let mut volume = Builder::new("prefix").directories(6).mount();
    for number in 0..1500_u64 {
        fs::write(volume.path(&format!("{number:05}")), content(number, 100)).expect("write");
    }
    volume.kill_daemon();
    volume.detach();
    volume.mount();
    let mut names: Vec<String> = fs::read_dir(volume.mnt())
        .expect("readdir")
        .map(|entry| entry.expect("readdir").file_name().into_string().expect("names are text"))
        .filter(|name| name.len() == 5)
        .collect();
    names.sort();
    for (number, name) in names.iter().enumerate() {
        assert_eq!(*name, format!("{number:05}"), "a file is missing, and later ones are there");
        let bytes = fs::read(volume.path(name)).expect("read");
        let whole = bytes == content(number as u64, 100);
        assert!(whole || bytes.is_empty() && number + 1 == names.len(), "{name} is empty, and later files are there");
    }
}

#[test]
fn rename_over_a_file_is_atomic() {
    let mut volume = Builder::new("rename").directories(6).mount();
    let whole = |bytes: &[u8]| (0..400).any(|n| bytes == content(n, 5000 + n as usize));
    for round in 0..4 {
        for number in 0..400 {
            fs::write(volume.path("new"), content(number, 5000 + number as usize)).expect("write");
            fs::rename(volume.path("new"), volume.path("file")).expect("rename");
        }
        if round == 0 {
            volume.sync();
        }
        volume.kill_daemon();
        volume.detach();
        volume.mount();
        let bytes = fs::read(volume.path("file")).expect("the file is there, old or new");
        assert!(whole(&bytes), "{} bytes, neither an old nor a new content", bytes.len());
    }
}

#[test]
fn close_does_not_sync() {
    let mut volume = Builder::new("close").directories(6).mount();
    fs::write(volume.path("before"), content(1, 5000)).expect("write");
    volume.sync();
    let syncs = |volume: &TestVolume| volume.number(&["generation"]);
    // The timer may commit in between; not every time.
    let unsynced = (0..20).any(|n| {
        let before = syncs(&volume);
        fs::write(volume.path(&format!("closed-{n}")), content(n, 5000)).expect("write and close");
        before == syncs(&volume)
    });
    assert!(unsynced, "each close committed a generation");
    lose_all_that_may_be_lost(&mut volume);
    assert_eq!(fs::read(volume.path("before")).expect("read"), content(1, 5000));
}

#[test]
fn sync_and_syncfs_do_not_reach_a_fuse_filesystems_daemon() {
    let mut volume = Builder::new("syncfs").directories(6).mount();
    fs::write(volume.path("file"), content(1, 200_000)).expect("write");
    // The command does what the system call cannot.
    volume.sync();
    lose_all_that_may_be_lost(&mut volume);
    assert_eq!(fs::read(volume.path("file")).expect("read"), content(1, 200_000));
}

#[test]
fn o_sync_and_o_dsync() {
    let mut volume = Builder::new("o-sync").directories(6).mount();
    for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).custom_flags(flag).open(volume.path(name)).expect("open");
        file.write_all(&content(7, 50_000)).expect("write");
    }
    lose_all_that_may_be_lost(&mut volume);
    for name in ["sync", "dsync"] {
        assert_eq!(fs::read(volume.path(name)).expect("read"), content(7, 50_000), "{name}");
    }
}

#[test]
fn umount() {
    let mut volume = Builder::new("umount").directories(6).mount();
    fs::write(volume.path("file"), content(3, 400_000)).expect("write");
    synced(volume.mnt());
    fs::write(volume.path("unsynced"), content(4, 400_000)).expect("write");
    volume.umount();
    fs::remove_dir_all(volume.state_dir()).expect("remove the state directory");
    for n in [0, 3] {
        fs::remove_dir_all(volume.dir(n)).expect("remove a backing directory");
    }
    let source = volume.dir(1).to_path_buf();
    let options = volume.base_options();
    volume.try_mount_of(&source, &options).expect_success();
    assert_eq!(fs::read(volume.path("file")).expect("read"), content(3, 400_000));
    assert_eq!(fs::read(volume.path("unsynced")).expect("read"), content(4, 400_000));
}

/// Files of the repository that hold tests or code, with their text.
fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut queue: Vec<PathBuf> = ["store", "exec", "fs", "mount-helper", "tests"].map(|c| root.join(c)).into();
    while let Some(path) = queue.pop() {
        if path.is_dir() {
            if !path.ends_with("target") {
                queue.extend(fs::read_dir(&path).expect("list sources").map(|e| e.expect("list sources").path()));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("read a source");
            found.push((path, text));
        }
    }
    found
}

/// Whether there is a test of this name: a suite, a module of tests, or a function in one.
fn exists(name: &str, sources: &[(PathBuf, String)]) -> bool {
    // Of programs and directories named beside tests only that they are there is known.
    if name.contains(' ') || name.contains('/') {
        return true;
    }
    let parts: Vec<&str> = name.split("::").collect();
    let last = parts[parts.len() - 1];
    if parts.len() == 1 {
        let function = format!("fn {last}(");
        let is_test = |path: &Path, text: &str| {
            path.ends_with(format!("tests/{last}.rs")) || text.contains("#[test]") && text.contains(&function)
        };
        return sources.iter().any(|(path, text)| is_test(path, text));
    }
    let place = parts[..parts.len() - 1].join("/");
    let module = |path: &Path, text: &str| {
        let path = path.to_string_lossy();
        path.contains(&format!("{place}/{last}"))
            || path.ends_with(&format!("{place}.rs")) && text.contains("mod tests")
    };
    let function = format!("fn {last}(");
    let within = |path: &Path, text: &str| {
        let first = parts[0];
        path.to_string_lossy().contains(first) && text.contains(&function) && text.contains("#[test]")
    };
    sources
        .iter()
        .any(|(path, text)| if last == "tests" { module(path, text) } else { module(path, text) || within(path, text) })
}

#[test]
fn every_clause_of_semantics_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/SEMANTICS.md")).expect("read docs/SEMANTICS.md");
    let sources = sources(&root);
    let promises = page.split("## Not there yet").next().expect("there are promises");
    let (mut clauses, mut open): (Vec<String>, bool) = (Vec::new(), false);
    for line in promises.lines() {
        let is_clause = line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        match clauses.last_mut() {
            _ if is_clause => {
                clauses.push(line.to_owned());
                open = true;
            }
            Some(clause) if open => clause.extend([" ", line.trim()]),
            _ => {}
        }
        // A clause is a paragraph.
        open &= !line.trim().is_empty();
    }
    assert!(clauses.len() > 12, "the clauses were not found: {clauses:?}");
    let mut wrong = Vec::new();
    let mut numbers = std::collections::HashSet::new();
    for clause in &clauses {
        if !numbers.insert(clause.split_once('.').expect("a number").0) {
            wrong.push(format!("a number that another clause has: {clause}"));
        }
        let Some((_, tests)) = clause.split_once("*Tests:*") else {
            wrong.push(format!("names no tests: {clause}"));
            continue;
        };
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        wrong.extend(
            names.iter().filter(|name| !exists(name, &sources)).map(|name| format!("{name} is no test: {clause}")),
        );
        if names.is_empty() {
            wrong.push(format!("names no tests: {clause}"));
        }
    }
    assert!(wrong.is_empty(), "docs/SEMANTICS.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_option_of_exec_commands_is_in_the_manual() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/CLI.md")).expect("read docs/CLI.md");
    let table = page.split("## Options of `brine exec`").nth(1).and_then(|rest| rest.split("\n## ").next());
    let table = table.expect("the section is there");
    let mut options = Vec::new();
    for source in ["policy", "run", "runs"] {
        let text = fs::read_to_string(root.join(format!("fs/src/cli/exec/{source}.rs"))).expect("read the source");
        options.extend(text.split("Long(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
    assert!(options.len() > 30, "{options:?}");
    let missing: Vec<&String> = options.iter().filter(|option| !table.contains(&format!("`--{option}"))).collect();
    assert!(missing.is_empty(), "not in docs/CLI.md: {missing:?}");
}
