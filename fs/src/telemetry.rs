//! Where messages go: the terminal of a command, or the log file of a daemon.
//!
//! One line a message, bytes that could steer a terminal escaped, and a bound on the file's length.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// A log file longer than this is set aside as `NAME.1`, bytes. Two of them fit on any state disk.
const LOG_LEN_MAX: u64 = 4 << 20;

enum Sink {
    /// Standard error, for people: `brine: warning: ...`.
    Terminal,
    /// A file that is appended to, with times.
    File(Mutex<LogFile>),
}

struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    fn write(&mut self, line: &str) {
        if self.len > LOG_LEN_MAX {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            if std::fs::rename(&self.path, aside).is_ok()
                && let Ok(fresh) = append(&self.path)
            {
                self.file = fresh;
            }
            // Also when that failed: try again after as much has been written, not with every line.
            self.len = 0;
        }
        // A log that cannot be written has nowhere to say so.
        let _ = self.file.write_all(line.as_bytes());
        self.len += line.len() as u64;
    }
}

/// Open a log file for appending; made with mode 600, links are not followed.
///
/// # Errors
/// What the system says.
pub fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let limit = match self {
            // The FUSE library warns of what is usual, such as a mount that was taken away from outside.
            _ if metadata.target().starts_with("fuser") => Level::Error,
            Self::Terminal => Level::Warn,
            Self::File(_) => Level::Info,
        };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = printable(&record.args().to_string());
        match self {
            Self::Terminal => {
                let _ = writeln!(io::stderr(), "brine: {}: {text}", level_word(record.level()));
            }
            Self::File(file) => {
                let line = format!("{} {} {text}\n", timestamp(SystemTime::now()), level_word(record.level()));
                if let Ok(mut file) = file.lock() {
                    file.write(&line);
                }
            }
        }
    }

    fn flush(&self) {}
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// Messages of a command go to standard error.
pub fn log_to_terminal() {
    install(Sink::Terminal);
}

/// Messages of a daemon go to a file, if they do not go anywhere yet.
///
/// # Errors
/// What the system says when the file cannot be opened.
pub fn log_to_file(path: &Path) -> io::Result<()> {
    if log::max_level() == LevelFilter::Off {
        install(Sink::File(Mutex::new(LogFile::open(path)?)));
    }
    Ok(())
}

fn install(sink: Sink) {
    // Lives as long as the process. A second logger in one process is a test's; the first stays.
    if log::set_logger(Box::leak(Box::new(sink))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// A panic is logged, with where it happened, before the thread ends.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::force_capture();
        log::error!("thread {} panicked: {info}", thread.name().unwrap_or("?"));
        backtrace.to_string().lines().for_each(|line| log::error!("  {line}"));
    }));
}

/// Text without line ends and control characters.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.trim_end().chars() {
        if letter.is_control() { out.extend(letter.escape_default()) } else { out.push(letter) }
    }
    out
}

/// "2026-01-31T23:59:59.123Z".
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z", second % 60, since.subsec_millis())
}

/// [`timestamp`] of nanoseconds since 1970; times before that become it.
pub fn timestamp_ns(ns: i64) -> String {
    timestamp(UNIX_EPOCH + std::time::Duration::from_nanos(ns.max(0) as u64))
}

/// Year, month and day of a number of days since 1970-01-01, by the Gregorian calendar.
///
/// After Howard Hinnant, "chrono-compatible low-level date algorithms": years begin in March, so that the leap day is
/// the last day of one.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_written_as_people_read_them() {
        let at = |seconds, ms| timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(ms));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_767_225_599, 999), "2025-12-31T23:59:59.999Z");
        assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_message_is_one_line_and_steers_no_terminal() {
        assert_eq!(printable("a\nb\x1b[2J\n"), "a\\nb\\u{1b}[2J");
    }

    #[test]
    fn a_long_log_is_set_aside() {
        let dir = std::env::temp_dir().join(format!("brine-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("daemon.log");
        let mut log = LogFile::open(&path).unwrap();
        log.len = LOG_LEN_MAX + 1;
        log.write("first\n");
        log.write("second\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\nsecond\n");
        assert!(dir.join("daemon.log.1").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
