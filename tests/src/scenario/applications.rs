//! Applications that find fault with a filesystem: databases, archivers, and programs made to.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command::{Finished, program, run, run_for, shell};
use crate::environment::{STRANGER, temp_dir};
use crate::{Builder, TestVolume};

/// Longest any of them may take.
const PATIENCE: Duration = Duration::from_secs(1800);

fn script(directory: &Path, text: &str) -> Finished {
    run_for(Command::new("sh").args(["-eu", "-c", text]).current_dir(directory), PATIENCE).expect_success()
}

/// git: clone, repack, fsck of a repository with `files` files.
pub fn git_clone(volume: &mut TestVolume, files: u32) -> String {
    program("git");
    let text = format!(
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
         git init -q origin; cd origin; git config gc.auto 0
         i=0; while [ $i -lt {files} ]; do i=$((i+1)); mkdir -p d$((i%50)); echo \"content $i\" >d$((i%50))/f$i; done
         git add -A; git commit -qm all; cd ..
         git clone -q --no-local origin clone; git clone -q --no-hardlinks origin second
         cd clone; git repack -adq; git fsck --strict --no-progress; test -z \"$(git status --porcelain)\"
         git ls-files | wc -l"
    );
    let listed = script(volume.mnt(), &text).stdout.trim().to_owned();
    volume.remount();
    script(&volume.path("clone"), "git fsck --strict --no-progress; test -z \"$(git status --porcelain)\"");
    format!("{listed} files cloned twice, repacked, checked, also after mounting anew")
}

/// rsync -aHAX twice: the second time nothing is transferred.
pub fn rsync(volume: &mut TestVolume) -> String {
    let sample = temp_dir("rsync-from");
    make_rich_tree(&sample, 300);
    let copy = |volume: &TestVolume| {
        let mut command = Command::new(program("rsync"));
        command.args(["-aHAX", "--itemize-changes"]).arg(sample.join("")).arg(volume.path("rsync"));
        run_for(&mut command, PATIENCE).expect_success().stdout
    };
    let first = copy(volume).lines().count();
    assert_eq!(copy(volume), "", "a second rsync transferred something");
    volume.remount();
    assert_eq!(copy(volume), "", "an rsync after mounting anew transferred something");
    let _ = std::fs::remove_dir_all(&sample);
    format!("{first} items with links, lists and attributes, then none")
}

/// tar with attributes and access control lists, there and back.
pub fn tar(volume: &mut TestVolume) -> String {
    make_rich_tree(&volume.path("tree"), 100);
    let flags = "--acls --xattrs --xattrs-include='*' --format=posix";
    let text = format!(
        "tar {flags} -cf tree.tar tree; mkdir back; tar {flags} -C back -xpf tree.tar
         list() {{ (cd \"$1\"; getfacl -R . 2>&1; getfattr -R -d -m - . 2>&1); }}
         list tree >list; list back/tree >backlist"
    );
    script(volume.mnt(), &text);
    let read = |name: &str| std::fs::read_to_string(volume.path(name)).expect("a list");
    let (one, two) = (read("list"), read("backlist"));
    assert!(
        one.contains("user:") && one.contains("default:") && one.contains("user.mark="),
        "nothing to compare: {one}"
    );
    assert_eq!(one, two, "lists or attributes were lost on the way");
    format!("{} lines of lists and attributes came back", one.lines().count())
}

/// Files, directories, hard and symbolic links, a fifo, attributes, access control lists.
fn make_rich_tree(root: &Path, count: u32) {
    for needed in ["setfacl", "setfattr", "getfacl"] {
        program(needed);
    }
    std::fs::create_dir_all(root).expect("mkdir");
    let text = format!(
        "i=0; while [ $i -lt {count} ]; do i=$((i+1)); d=d$((i%10)); mkdir -p $d
             head -c $((i*i%50000)) /dev/zero | tr '\\0' x >$d/f$i
             case $((i%7)) in
                 0) ln $d/f$i $d/hard$i;; 1) ln -s f$i $d/soft$i;; 2) setfattr -n user.mark -v $i $d/f$i;;
                 3) setfacl -m u:{STRANGER}:rw,g:77:r $d/f$i;; 4) chmod 640 $d/f$i;; 5) mkfifo $d/p$i;; 6) chown $i:$i $d/f$i;;
             esac
         done
         setfacl -d -m u:{STRANGER}:rwx d1; setfattr -n trusted.x -v y d2/f2"
    );
    shell(root, &text).expect_success();
}

/// PostgreSQL with fsync on: a database is made, used by several clients, stopped at once, recovered, checked.
pub fn postgres(volume: &mut TestVolume, seconds: u32) -> String {
    let bin = postgres_programs();
    let bin = bin.display();
    let text = format!(
        "mkdir pg; chown postgres pg; chmod 700 pg; D=$PWD/pg/data; S=$(mktemp -d); chown postgres $S
         as() {{ runuser -u postgres -- \"$@\"; }}
         as {bin}/initdb -D $D -A trust --data-checksums >/dev/null
         start() {{ as {bin}/pg_ctl -D $D -w -o \"-k $S -c listen_addresses='' -c fsync=on\" -l $S/log start >/dev/null; }}
         start; trap 'as {bin}/pg_ctl -D $D -m immediate stop >/dev/null 2>&1 || true' EXIT
         as {bin}/pgbench -h $S -i -s 2 -q postgres >/dev/null 2>&1
         as {bin}/pgbench -h $S -c 4 -j 2 -T {seconds} postgres 2>/dev/null | grep -E 'processed|tps'
         as {bin}/pg_ctl -D $D -m immediate stop >/dev/null; start
         test \"$(as psql -h $S -Atc 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)' postgres)\" = t
         as {bin}/pg_ctl -D $D -w stop >/dev/null; trap - EXIT
         as {bin}/pg_checksums -D $D --check | grep -i 'bad checksums'"
    );
    let finished = script(volume.mnt(), &text);
    assert!(finished.stdout.contains("Bad checksums:  0"), "{finished}");
    let seen: Vec<&str> = finished.stdout.lines().map(str::trim).collect();
    format!("sums agree after an immediate stop; {}", seen.join("; "))
}

/// Debian keeps the server's programs by version.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    found.sort();
    found.pop().filter(|bin| bin.join("initdb").is_file()).expect("initdb is missing: Debian package postgresql")
}

/// fio: random and sequential writes, mapped and direct, each verified.
pub fn fio(volume: &mut TestVolume, mebibytes: u32) -> String {
    program("fio");
    let mut seen = Vec::new();
    for (name, more) in [
        ("random", "--rw=randrw --bsrange=512-128k --ioengine=psync"),
        ("sequential", "--rw=write --bs=1m --ioengine=libaio --iodepth=8 --end_fsync=1"),
        ("mapped", "--rw=randwrite --bs=4k --ioengine=mmap"),
        ("direct", "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16"),
        ("synced", "--rw=randwrite --bs=8k --fsync=16 --ioengine=psync"),
    ] {
        let text = format!(
            "fio --name={name} --size={mebibytes}m --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse \
             --randseed=7 {more} >/dev/null"
        );
        script(volume.mnt(), &text);
        seen.push(name);
    }
    format!("{mebibytes} MiB each, verified: {}", seen.join(", "))
}

/// stress-ng's filesystem stressors, with their own checks.
pub fn stress(volume: &mut TestVolume, seconds: u32) -> String {
    program("stress-ng");
    let stressors = [
        "access",
        "chdir",
        "chmod",
        "chown",
        "copy-file",
        "dentry",
        "dir",
        "dirdeep",
        "dirmany",
        "fallocate",
        "fcntl",
        "fiemap",
        "filename",
        "flock",
        "fpunch",
        "fstat",
        "getdent",
        "hdd",
        "inotify",
        "iomix",
        "lease",
        "link",
        "locka",
        "lockf",
        "lockofd",
        "metamix",
        "mknod",
        "open",
        "readahead",
        "rename",
        "seal",
        "seek",
        "symlink",
        "sync-file",
        "touch",
        "unlink",
        "utime",
        "verity",
        "xattr",
    ];
    let (mut run, mut skipped) = (0, Vec::new());
    for stressor in stressors {
        let text = format!("stress-ng --temp-path . --{stressor} 2 --timeout {seconds}s --verify --hdd-bytes 32m 2>&1");
        let finished = run_for(Command::new("sh").args(["-c", &text]).current_dir(volume.mnt()), PATIENCE);
        match finished.code() {
            Some(0) => run += 1,
            // Not known to this version, or not offered by this kind of filesystem.
            Some(3..=4) => skipped.push(stressor),
            _ if finished.text().contains("unrecognized option") => skipped.push(stressor),
            _ => panic!("stress-ng --{stressor}: {finished}"),
        }
    }
    assert!(run >= 25, "only {run} stressors ran; skipped {skipped:?}");
    format!("{run} stressors, {seconds} s each; not offered: {}", skipped.join(", "))
}

/// dbench: the load of a file server.
pub fn dbench(volume: &mut TestVolume, seconds: u32) -> String {
    program("dbench");
    let out = script(volume.mnt(), &format!("mkdir dbench; dbench -D dbench -t {seconds} 4")).stdout;
    let line = out.lines().rfind(|line| line.contains("Throughput")).expect("dbench tells its throughput");
    line.trim().to_owned()
}

/// A copy of 10 GiB shares its blocks.
pub fn large_copy(gibibytes: u64) -> String {
    let volume = Builder::new("copy").directories(3).geometry(2, 1).lifetime(PATIENCE).mount();
    let piece = crate::content(5, 1 << 20);
    let source = std::fs::File::create_new(volume.path("source")).expect("create");
    for at in 0..gibibytes << 10 {
        std::os::unix::fs::FileExt::write_all_at(&source, &piece, at << 20).expect("write");
    }
    source.sync_all().expect("fsync");
    let before = volume.number(&["space", "stored_bytes"]);
    let started = Instant::now();
    run(Command::new(program("cp")).arg(volume.path("source")).arg(volume.path("copy"))).expect_success();
    let took = started.elapsed();
    run(Command::new(program("cmp")).args(["-n", "268435456"]).arg(volume.path("source")).arg(volume.path("copy")))
        .expect_success();
    volume.sync();
    assert_eq!(volume.number(&["space", "stored_bytes"]), before, "a copy stored something");
    volume.expect_clean();
    format!("{gibibytes} GiB copied in {:.2} s, nothing stored", took.as_secs_f64())
}
