//! Which operation changes which time.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::Suite;
use super::common::file;
use super::sys::{self, Answer};

/// Longer than the clock of any local filesystem ticks.
const TICK: Duration = Duration::from_millis(12);

/// Access, modification, change.
type Times = [(i64, i64); 3];

fn times(path: &Path) -> Option<Times> {
    let stat = sys::lstat(path).ok()?;
    Some([
        (stat.st_atime, stat.st_atime_nsec),
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
    ])
}

/// One operation: what it does in a directory that holds `file`, `dir` and `link`, and the times it changes of the file,
/// of the directory `dir` and of the directory around them, as letters of "mc".
struct Row(&'static str, fn(&Path) -> Answer, &'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    Row("nothing", |_| Ok(()), "", "", ""),
    Row("stat", |d| sys::stat(&d.join("file")).map(drop), "", "", ""),
    Row("open", |d| sys::open(&d.join("file"), libc::O_RDWR, 0).map(drop), "", "", ""),
    Row("chmod", |d| sys::chmod(&d.join("file"), 0o600), "c", "", ""),
    Row("chown", |d| sys::chown(&d.join("file"), 5, 5), "c", "", ""),
    Row("chmod of a directory", |d| sys::chmod(&d.join("dir"), 0o700), "", "c", ""),
    Row("setxattr", |d| sys::setxattr(&d.join("file"), "user.x", b"1", 0, true), "c", "", ""),
    Row("removexattr", |d| sys::removexattr(&d.join("file"), "user.there"), "c", "", ""),
    Row("write", |d| write(&d.join("file"), libc::O_WRONLY), "mc", "", ""),
    Row("append", |d| write(&d.join("file"), libc::O_WRONLY | libc::O_APPEND), "mc", "", ""),
    Row("truncate", |d| sys::truncate(&d.join("file"), 3), "mc", "", ""),
    Row("truncate to the same size", |d| sys::truncate(&d.join("file"), 7), "mc", "", ""),
    Row("truncate to more", |d| sys::truncate(&d.join("file"), 70), "mc", "", ""),
    Row("O_TRUNC", |d| sys::open(&d.join("file"), libc::O_WRONLY | libc::O_TRUNC, 0).map(drop), "mc", "", ""),
    Row("punch", |d| allocate(d, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE), "mc", "", ""),
    Row("link", |d| sys::link(&d.join("file"), &d.join("dir/l")), "c", "mc", ""),
    Row("link beside", |d| sys::link(&d.join("file"), &d.join("l")), "c", "", "mc"),
    Row("unlink one of two", |d| sys::unlink(&d.join("second")), "c", "", "mc"),
    Row("symlink", |d| sys::symlink(Path::new("x"), &d.join("dir/s")), "", "mc", ""),
    Row("create", |d| sys::open(&d.join("dir/new"), libc::O_CREAT, 0o644).map(drop), "", "mc", ""),
    Row("mkdir", |d| sys::mkdir(&d.join("dir/sub2"), 0o755), "", "mc", ""),
    Row("mknod", |d| sys::mknod(&d.join("dir/p"), libc::S_IFIFO | 0o600, 0), "", "mc", ""),
    Row("rmdir", |d| sys::rmdir(&d.join("dir/sub")), "", "mc", ""),
    Row("unlink inside", |d| sys::unlink(&d.join("dir/inside")), "", "mc", ""),
    Row("rename", |d| sys::rename(&d.join("file"), &d.join("file")), "", "", ""),
    Row("rename inside", |d| sys::rename(&d.join("dir/inside"), &d.join("dir/other")), "", "mc", ""),
    Row("rename out", |d| sys::rename(&d.join("dir/inside"), &d.join("out")), "", "mc", "mc"),
    Row("failed unlink", |d| sys::unlink(&d.join("dir/none")).or(Ok(())), "", "", ""),
    Row("failed mkdir", |d| sys::mkdir(&d.join("dir/sub"), 0o755).or(Ok(())), "", "", ""),
    Row("failed link", |d| sys::link(&d.join("file"), &d.join("dir/inside")).or(Ok(())), "", "", ""),
];

fn write(path: &Path, flags: i32) -> Answer {
    sys::write(sys::open(path, flags, 0)?.as_raw_fd(), b"x", None).map(drop)
}

fn allocate(dir: &Path, mode: i32) -> Answer {
    sys::fallocate(sys::open(&dir.join("file"), libc::O_WRONLY, 0)?.as_raw_fd(), mode, 0, 4)
}

pub fn checks(s: &mut Suite) {
    for Row(name, run, of_file, of_dir, of_parent) in ROWS {
        let dir = s.dir();
        sys::mkdir(&dir.join("dir"), 0o755).expect("mkdir");
        sys::mkdir(&dir.join("dir/sub"), 0o755).expect("mkdir");
        file(&dir.join("file"), b"content");
        file(&dir.join("dir/inside"), b"x");
        sys::link(&dir.join("file"), &dir.join("second")).expect("link");
        sys::setxattr(&dir.join("file"), "user.there", b"1", 0, true).expect("setxattr");
        std::thread::sleep(TICK);
        let places = [
            ("the file", dir.join("file"), of_file),
            ("the directory", dir.join("dir"), of_dir),
            ("its parent", dir.clone(), of_parent),
        ];
        let before: Vec<Option<Times>> = places.iter().map(|(_, path, _)| times(path)).collect();
        s.works(name, run(&dir));
        for ((what, path, changed), before) in places.iter().zip(before) {
            let (Some(now), Some(before)) = (times(path), before) else { continue };
            s.is(format!("{name}: mtime of {what} changes"), now[1] != before[1], changed.contains('m'));
            s.is(format!("{name}: ctime of {what} changes"), now[2] != before[2], changed.contains('c'));
            s.holds(format!("{name}: times of {what} do not go back"), now[1] >= before[1] && now[2] >= before[2]);
        }
    }
    let dir = s.dir();
    file(&dir.join("file"), b"content");
    // Relative access times: a read after a change is noted.
    sys::utimens(&dir.join("file"), (1000, 0), (2000, 0), 0).expect("utimens");
    let open = sys::open(&dir.join("file"), libc::O_RDONLY, 0).expect("open");
    sys::read(open.as_raw_fd(), 5, None).expect("read");
    s.holds("a read is noted", times(&dir.join("file")).is_some_and(|times| times[0].0 > 2000));
    let new = dir.join("new");
    file(&new, b"");
    let made = times(&new);
    s.holds("a new file's times are one", made.is_some_and(|times| times[0] == times[1] && times[1] == times[2]));
}
