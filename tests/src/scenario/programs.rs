//! Programs people use, on the mount. Each is given a mounted volume with room.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::command::{program, run, shell};
use crate::manifest::write_sample_tree;
use crate::{Finished, Manifest, TestVolume};

/// `cp -a` there and back keeps content, permissions, owners and times.
#[track_caller]
pub fn cp(volume: &mut TestVolume, mebibytes: u64) -> String {
    let (sample, back) = (volume.root().join("cp-sample"), volume.root().join("cp-back"));
    write_sample_tree(&sample, 21, mebibytes);
    let expected = Manifest::of(&sample);
    run(Command::new(program("cp")).arg("-a").arg(&sample).arg(volume.path("cp"))).expect_success();
    volume.remount();
    expected.expect_same(&Manifest::of(&volume.path("cp")), "after cp -a");
    run(Command::new(program("cp")).arg("-a").arg(volume.path("cp")).arg(&back)).expect_success();
    expected.expect_same(&Manifest::of(&back), "after cp -a back");
    format!("{} entries", expected.len())
}

/// `rsync -a` twice: the second time nothing is transferred, also after mounting anew.
#[track_caller]
pub fn rsync(volume: &mut TestVolume, mebibytes: u64) -> String {
    let sample = volume.root().join("rsync-sample");
    write_sample_tree(&sample, 22, mebibytes);
    let once = |volume: &TestVolume| -> Finished {
        let mut command = Command::new(program("rsync"));
        command.args(["-aHX", "--itemize-changes"]).arg(sample.join("")).arg(volume.path("rsync"));
        run(&mut command).expect_success()
    };
    once(volume);
    let untimed = |root: &Path| Manifest::of(root).without_link_times();
    untimed(&sample).expect_same(&untimed(&volume.path("rsync")), "after rsync");
    assert_eq!(once(volume).stdout, "", "a second rsync transferred something");
    volume.remount();
    assert_eq!(once(volume).stdout, "", "a second rsync after mounting again transferred something");
    fs::write(sample.join("dir-0/sub-0/file-0"), b"changed").expect("change the sample");
    let third = once(volume);
    assert_eq!(third.stdout.lines().count(), 1, "a changed file should be all that is transferred: {third}");
    "the second run transfers nothing, the third one file".into()
}

/// A tar archive made from the mount, unpacked on it, and compared by tar itself.
#[track_caller]
pub fn tar(volume: &mut TestVolume, mebibytes: u64) -> String {
    program("tar");
    let sample = volume.root().join("tar-sample");
    write_sample_tree(&sample, 23, mebibytes);
    let script = format!(
        "tar --format=posix -C '{}' -cf sample.tar . && mkdir tar && tar -C tar -xpf sample.tar && tar -C tar -df sample.tar && tar -C tar -cf - . | tar -tf - | wc -l",
        sample.display()
    );
    let finished = shell(volume.mnt(), &script).expect_success();
    Manifest::of(&sample).expect_same(&Manifest::of(&volume.path("tar")), "after tar");
    format!("{} entries archived, unpacked, compared", finished.stdout.trim())
}

/// A git repository lives on the mount: `commits` commits, gc, fsck, clone.
#[track_caller]
pub fn git(volume: &mut TestVolume, commits: u32) -> String {
    program("git");
    let script = format!(
        "export HOME='{}' GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
         unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE || true
         git init -q repo; cd repo; git config gc.auto 0
         i=0; while [ $i -lt {commits} ]; do
             i=$((i+1)); mkdir -p dir-$((i%5)); seq $i $((i*40)) >dir-$((i%5))/file-$i; echo $i >>common
             git add -A; git commit -qm \"commit $i\"
         done
         git checkout -qb side HEAD~3; echo side >side; git add side; git commit -qm side
         git checkout -q -; git merge -q --no-edit side
         test -z \"$(git status --porcelain)\"",
        volume.root().display()
    );
    shell(volume.mnt(), &script).expect_success();
    volume.remount();
    let home = volume.root().display();
    let script = format!(
        "export HOME='{home}' GIT_CONFIG_NOSYSTEM=1
         cd repo; test -z \"$(git status --porcelain)\"; git fsck --full --strict
         git gc -q --prune=now; git fsck --full --strict; cd ..
         git clone -q --no-hardlinks repo clone; git clone -q --local repo linked
         cd clone; git fsck --full; test \"$(git rev-parse HEAD)\" = \"$(git -C ../repo rev-parse HEAD)\"
         diff -r --exclude=.git . ../repo; git rev-list --count HEAD"
    );
    let finished = shell(volume.mnt(), &script).expect_success();
    format!("{} commits, merged, packed, checked, cloned", finished.stdout.trim().lines().last().unwrap_or("?"))
}

/// A crate without dependencies is built and run on the mount, twice: the second build does nothing.
#[track_caller]
pub fn cargo(volume: &mut TestVolume) -> String {
    program("cargo");
    let dir = volume.path("crate");
    fs::create_dir_all(dir.join("src")).expect("mkdir");
    fs::write(
        dir.join("Cargo.toml"),
        "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )
    .expect("write");
    fs::write(
        dir.join("src/lib.rs"),
        "pub fn twice(n: u32) -> u32 { 2 * n }\n#[test]\nfn doubles() { assert_eq!(twice(2), 4) }\n",
    )
    .expect("write");
    fs::write(dir.join("src/main.rs"), "fn main() { println!(\"{}\", tiny::twice(21)); }\n").expect("write");
    let clean =
        "unset CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR RUSTFLAGS RUSTC_WRAPPER CARGO_BUILD_RUSTC_WRAPPER || true;";
    shell(&dir, &format!("{clean} cargo run --offline -q")).expect_success().says(&["42"]);
    shell(&dir, &format!("{clean} cargo test --offline -q")).expect_success();
    volume.remount();
    let again = shell(&dir, &format!("{clean} cargo build --offline -v")).expect_success();
    assert!(!again.text().contains("Compiling"), "times or contents changed, cargo builds again: {again}");
    "built, run, tested, found fresh after mounting again".into()
}

/// SQLite in both journal modes: concurrent writers, integrity check, also after mounting anew.
#[track_caller]
pub fn sqlite(volume: &mut TestVolume, rows: u32) -> String {
    program("sqlite3");
    for mode in ["wal", "delete"] {
        let script = format!(
            "sqlite3 {mode}.db 'PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, who INT, v TEXT); CREATE INDEX i ON t(v);' >/dev/null
             writer() {{
                 n=0; while [ $n -lt 10 ]; do n=$((n+1))
                     sqlite3 -cmd '.timeout 60000' {mode}.db \"BEGIN IMMEDIATE;
                         WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<{rows})
                         INSERT INTO t(who,v) SELECT $1, hex(randomblob(40)) FROM c; UPDATE t SET v=v||'x' WHERE id%97=$n; COMMIT;\" || exit 1
                 done
             }}
             writer 1 & a=$!; writer 2 & b=$!; wait $a; wait $b
             test \"$(sqlite3 {mode}.db 'PRAGMA integrity_check')\" = ok
             test \"$(sqlite3 {mode}.db 'SELECT count(*) FROM t')\" = $(({rows}*20))"
        );
        shell(volume.mnt(), &script).expect_success();
    }
    volume.remount();
    for mode in ["wal", "delete"] {
        let script = format!(
            "test \"$(sqlite3 {mode}.db 'PRAGMA integrity_check')\" = ok; sqlite3 {mode}.db 'DELETE FROM t WHERE id%2=0; VACUUM;'
             test \"$(sqlite3 {mode}.db 'PRAGMA integrity_check; SELECT count(*) FROM t')\" = \"ok
$(({rows}*10))\""
        );
        shell(volume.mnt(), &script).expect_success();
    }
    format!("{} rows in each journal mode, integrity ok", rows * 20)
}

/// Saves as editors do: backup by rename, new file, fsync, rename over; then as `sed -i` does.
///
/// # Panics
/// If what is read is not the last save.
#[track_caller]
pub fn editors(volume: &mut TestVolume, saves: u32) -> String {
    let dir = volume.path("edited");
    fs::create_dir(&dir).expect("mkdir");
    fs::write(dir.join("text"), "0").expect("write");
    for save in 1..=saves {
        let text = format!("{save}").repeat(1 + save as usize * 37);
        save_with_backup(&dir, text.as_bytes()).expect("save with a backup");
        assert_eq!(fs::read_to_string(dir.join("text")).expect("read"), text);
        save_by_rename(&dir, text.as_bytes()).expect("save by rename");
        assert_eq!(fs::read_to_string(dir.join("text")).expect("read"), text);
    }
    shell(&dir, "printf 'one\\ntwo\\n' >lines; sed -i s/two/three/ lines; test \"$(cat lines)\" = 'one\nthree'")
        .expect_success();
    volume.remount();
    let last = format!("{saves}").repeat(1 + saves as usize * 37);
    assert_eq!(fs::read_to_string(dir.join("text")).expect("read"), last);
    let names = fs::read_dir(&dir).expect("readdir").count();
    assert_eq!(names, 2, "temporary names were left");
    format!("{saves} saves of each kind")
}

/// `vim` with 'backupcopy=no': the old file becomes the backup, a new one takes its name.
fn save_with_backup(dir: &Path, text: &[u8]) -> std::io::Result<()> {
    fs::rename(dir.join("text"), dir.join("text~"))?;
    let mut file = File::create_new(dir.join("text"))?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::remove_file(dir.join("text~"))
}

/// Everyone else: write beside it, sync, rename over it, sync the directory.
fn save_by_rename(dir: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(dir.join(".text.tmp"))?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(dir.join(".text.tmp"), dir.join("text"))?;
    File::open(dir)?.sync_all()
}
