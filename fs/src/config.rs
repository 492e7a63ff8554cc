//! Mount options: `-o` of `brine mount`, as a person or mount(8) gives them.
//!
//! Every option is in one table; one that is in none is refused by name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use brine_store::volume::{Codec, DomainPolicy, Hedge, LINK_MAX};

use crate::exit_code::Failure;
use crate::moment::Moment;
use crate::vfs::Atime;

/// Decoded blocks kept in memory unless `cache=` says otherwise, bytes: enough that a tree of sources stays.
pub const CACHE_BYTES_DEFAULT: u64 = 256 << 20;
/// Smallest cache, bytes: a few blocks for each reader.
pub const CACHE_BYTES_MIN: u64 = 8 << 20;
/// Fewest names a file may be limited to: POSIX promises so many (_POSIX_LINK_MAX).
pub const LINK_MAX_MIN: u64 = 8;
/// Most FUSE event threads.
pub const THREADS_MAX: usize = 64;

/// The file that holds what opens a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFile {
    /// A passphrase.
    Passphrase(PathBuf),
    /// A key file.
    Key(PathBuf),
    /// A recovery key.
    Recovery(PathBuf),
}

/// What `-o` asked for.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What opens the volume; asked on the terminal if none.
    pub secret: Option<SecretFile>,
    /// State directory, if not where it was last.
    pub state: Option<PathBuf>,
    /// Change nothing.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// When accesses are noted.
    pub atime: Atime,
    /// Accesses of directories are not noted.
    pub nodiratime: bool,
    /// Unmount when nobody has used it for this long.
    pub idle: Option<Duration>,
    /// Change the kernel's flags of a mount that is there.
    pub remount: bool,
    /// When parity is asked for.
    pub hedge: Hedge,
    /// Never acknowledge with fewer synced directories.
    pub min_ack: Option<usize>,
    /// Limit of the cache of decoded blocks, bytes.
    pub cache_bytes: u64,
    /// Most names of a file, and subdirectories of a directory, if fewer than the store allows.
    pub link_max: Option<u32>,
    /// R of new blocks.
    pub copies: Option<u16>,
    /// Epoch of new blocks.
    pub epoch: Option<u32>,
    /// Who shares salts.
    pub domain: Option<DomainPolicy>,
    /// How new blocks are compressed.
    pub codec: Option<Codec>,
    /// The true ones of directories that claim to be the same member.
    pub use_member: Vec<PathBuf>,
    /// Take the volume from whoever has it.
    pub take_over: bool,
    /// Go on from an older state where what was acknowledged is gone.
    pub accept_rollback: bool,
    /// Show the tree as it was: a time, or a snapshot's name. Read-only.
    pub at: Option<String>,
    /// FUSE event threads.
    pub threads: usize,
    /// Directory for the program that starts functions, if not in the mount.
    pub launcher: Option<PathBuf>,
    /// Log file, if not `daemon.log` in the state directory.
    pub log: Option<PathBuf>,
    /// Mount again if the daemon dies.
    pub supervise: bool,
    /// Source as mount(8) shows it, if not the source given.
    pub fsname: Option<String>,
    /// Options nobody knows are no error.
    pub sloppy: bool,
    /// Options for the kernel.
    pub kernel: Vec<String>,
    /// What was accepted and has no effect, for a message.
    pub notes: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            secret: None,
            state: None,
            read_only: false,
            allow_other: false,
            atime: Atime::Relative,
            nodiratime: false,
            idle: None,
            remount: false,
            hedge: Hedge::Adaptive,
            min_ack: None,
            cache_bytes: CACHE_BYTES_DEFAULT,
            link_max: None,
            copies: None,
            epoch: None,
            domain: None,
            codec: None,
            use_member: Vec::new(),
            take_over: false,
            accept_rollback: false,
            at: None,
            threads: 1,
            launcher: None,
            log: None,
            supervise: true,
            fsname: None,
            sloppy: false,
            kernel: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// What an option does, and what stands after its `=`.
enum Effect {
    /// Sets something; takes no value.
    Flag(fn(&mut MountOptions)),
    /// Sets something from a path.
    Path(fn(&mut MountOptions, PathBuf)),
    /// Sets something from a word; the error says what is allowed.
    Word(fn(&mut MountOptions, &str) -> Result<(), &'static str>),
    /// Handed to the kernel as it is.
    Kernel,
    /// For mount(8), systemd or nobody: no effect here. With or without a value.
    Ignored,
    /// Refused, with the reason.
    Refused(&'static str),
}

const TABLE: &[(&str, Effect)] = &[
    ("passfile", Effect::Path(|o, path| o.secret = Some(SecretFile::Passphrase(path)))),
    ("keyfile", Effect::Path(|o, path| o.secret = Some(SecretFile::Key(path)))),
    ("recoveryfile", Effect::Path(|o, path| o.secret = Some(SecretFile::Recovery(path)))),
    ("state", Effect::Path(|o, path| o.state = Some(path))),
    ("ro", Effect::Flag(|o| o.read_only = true)),
    ("rw", Effect::Flag(|o| o.read_only = false)),
    ("allow_other", Effect::Flag(|o| o.allow_other = true)),
    ("noatime", Effect::Flag(|o| o.atime = Atime::Off)),
    ("atime", Effect::Flag(|o| o.atime = Atime::Relative)),
    ("relatime", Effect::Flag(|o| o.atime = Atime::Relative)),
    ("strictatime", Effect::Flag(|o| o.atime = Atime::Always)),
    ("nodiratime", Effect::Flag(|o| o.nodiratime = true)),
    ("diratime", Effect::Flag(|o| o.nodiratime = false)),
    ("idle", Effect::Word(|o, word| duration(word).map(|time| o.idle = Some(time)).ok_or(DURATIONS))),
    ("remount", Effect::Flag(|o| o.remount = true)),
    ("hedge", Effect::Word(hedge)),
    ("min_ack", Effect::Word(|o, word| number(word, 1, 64).map(|n| o.min_ack = Some(n as usize)).ok_or("1 to 64"))),
    ("cache", Effect::Word(cache)),
    ("link_max", Effect::Word(link_max)),
    ("copies", Effect::Word(|o, word| number(word, 1, 65_535).map(|n| o.copies = Some(n as u16)).ok_or("1 to 65535"))),
    (
        "epoch",
        Effect::Word(|o, word| number(word, 0, u32::MAX.into()).map(|n| o.epoch = Some(n as u32)).ok_or("a number")),
    ),
    ("domain", Effect::Word(|o, word| domain(word).map(|d| o.domain = Some(d)).ok_or(DOMAINS))),
    ("compress", Effect::Word(|o, word| codec(word).map(|c| o.codec = Some(c)).ok_or(CODECS))),
    ("use_member", Effect::Path(|o, path| o.use_member.push(path))),
    ("take_over", Effect::Flag(|o| o.take_over = true)),
    ("accept_rollback", Effect::Flag(|o| o.accept_rollback = true)),
    ("at", Effect::Word(at)),
    ("threads", Effect::Word(threads)),
    ("launcher", Effect::Path(|o, path| o.launcher = Some(path))),
    ("log", Effect::Path(|o, path| o.log = Some(path))),
    ("supervise", Effect::Flag(|o| o.supervise = true)),
    ("nosupervise", Effect::Flag(|o| o.supervise = false)),
    (
        "fsname",
        Effect::Word(|o, word| {
            o.fsname = Some(word.to_owned());
            Ok(())
        }),
    ),
    // What mount.brine makes of mount(8)'s -s.
    ("sloppy", Effect::Flag(|o| o.sloppy = true)),
    // For the kernel. FUSE mounts are nosuid and nodev unless told otherwise.
    ("exec", Effect::Kernel),
    ("noexec", Effect::Kernel),
    ("suid", Effect::Kernel),
    ("nosuid", Effect::Kernel),
    ("dev", Effect::Kernel),
    ("nodev", Effect::Kernel),
    ("sync", Effect::Kernel),
    ("dirsync", Effect::Kernel),
    // What mount(8), fstab and systemd pass along.
    ("defaults", Effect::Ignored),
    ("auto", Effect::Ignored),
    ("noauto", Effect::Ignored),
    ("nofail", Effect::Ignored),
    ("_netdev", Effect::Ignored),
    ("user", Effect::Ignored),
    ("nouser", Effect::Ignored),
    ("users", Effect::Ignored),
    ("owner", Effect::Ignored),
    ("group", Effect::Ignored),
    ("comment", Effect::Ignored),
    ("async", Effect::Ignored),
    ("silent", Effect::Ignored),
    ("loud", Effect::Ignored),
    ("norelatime", Effect::Ignored),
    ("nostrictatime", Effect::Ignored),
    ("lazytime", Effect::Ignored),
    ("nolazytime", Effect::Ignored),
    // What other FUSE filesystems take, and what is so here anyway.
    ("default_permissions", Effect::Ignored),
    ("auto_unmount", Effect::Ignored),
    ("nonempty", Effect::Ignored),
    ("subtype", Effect::Ignored),
    ("allow_root", Effect::Refused("use allow_other")),
    ("bind", Effect::Refused("bind mounts are made by mount(8) alone, without -t brine")),
    ("password", Effect::Refused("a secret on the command line can be read by all users; use passfile=FILE")),
    ("passphrase", Effect::Refused("a secret on the command line can be read by all users; use passfile=FILE")),
    ("uid", Effect::Refused("brine stores an owner for each file; use chown")),
    ("gid", Effect::Refused("brine stores a group for each file; use chgrp")),
    ("umask", Effect::Refused("brine stores permissions for each file; use chmod")),
];

/// Allowed values of `domain`.
pub const DOMAINS: &str = "volume or owner";
/// Allowed values of `compress`.
pub const CODECS: &str = "none or lz4";

/// A dedup domain by its name.
pub fn domain(word: &str) -> Option<DomainPolicy> {
    match word {
        "volume" => Some(DomainPolicy::Volume),
        "owner" => Some(DomainPolicy::Owner),
        _ => None,
    }
}

/// A compression by its name.
pub fn codec(word: &str) -> Option<Codec> {
    match word {
        "none" => Some(Codec::None),
        "lz4" => Some(Codec::Lz4),
        _ => None,
    }
}

/// Allowed values of `idle`.
pub const DURATIONS: &str = "a time from 1s up, such as 30s, 10m or 2h";

/// A time: digits, and s, m, h or d.
pub fn duration(word: &str) -> Option<Duration> {
    let end = word.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(word.len());
    let (digits, unit) = word.split_at(end);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number(digits, 1, u64::from(u32::MAX)).map(|count| Duration::from_secs(count * seconds))
}

/// A decimal number within bounds.
pub fn number(word: &str, min: u64, max: u64) -> Option<u64> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| word.parse().ok())?.filter(|value| (min..=max).contains(value))
}

/// A size in bytes: digits, and K, M, G or T (powers of 1024), with or without B or iB.
pub fn size(word: &str) -> Option<u64> {
    let end = word.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(word.len());
    let (digits, unit) = word.split_at(end);
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number(digits, 0, u64::MAX >> shift).map(|value| value << shift)
}

fn hedge(options: &mut MountOptions, word: &str) -> Result<(), &'static str> {
    options.hedge = match word {
        "adaptive" => Hedge::Adaptive,
        "all" => Hedge::All,
        "off" => Hedge::Off,
        _ => return Err("adaptive, all or off"),
    };
    Ok(())
}

fn cache(options: &mut MountOptions, word: &str) -> Result<(), &'static str> {
    options.cache_bytes =
        size(word).filter(|bytes| *bytes >= CACHE_BYTES_MIN).ok_or("a size from 8M up, such as 512M")?;
    Ok(())
}

fn link_max(options: &mut MountOptions, word: &str) -> Result<(), &'static str> {
    options.link_max = Some(number(word, LINK_MAX_MIN, LINK_MAX.into()).ok_or("8 to 2147483648")? as u32);
    Ok(())
}

fn at(options: &mut MountOptions, word: &str) -> Result<(), &'static str> {
    if word.is_empty() || matches!(Moment::parse(word, 0), Moment::Version { .. }) {
        return Err("the name of a snapshot or a time, such as 2026-01-31T23:59 or 2h");
    }
    options.at = Some(word.to_owned());
    Ok(())
}

fn threads(options: &mut MountOptions, word: &str) -> Result<(), &'static str> {
    options.threads = number(word, 1, THREADS_MAX as u64).ok_or("1 to 64")? as usize;
    Ok(())
}

impl MountOptions {
    /// Read the arguments of all `-o`, the later ones winning. Relative paths are taken from `base`.
    ///
    /// # Errors
    /// Names the option that is unknown, or whose value is wrong.
    pub fn parse<S: AsRef<OsStr>>(arguments: &[S], base: &Path) -> Result<Self, Failure> {
        let mut options = Self::default();
        for argument in arguments {
            for option in split(argument.as_ref()) {
                options.apply(&option, base)?;
            }
        }
        if options.allow_other && options.domain.is_none() {
            // Who shares a domain can test guesses about the others' content.
            options.domain = Some(DomainPolicy::Owner);
        }
        // Whatever `rw` says: mount(8) passes it on its own.
        options.read_only |= options.at.is_some();
        Ok(options)
    }

    fn apply(&mut self, option: &OsStr, base: &Path) -> Result<(), Failure> {
        let bytes = option.as_bytes();
        let (key, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        let key = String::from_utf8_lossy(key);
        if key == "X-mount.idmap" {
            let text = "ids are not mapped: the kernel then tells the daemon of few requests who asks; use chown";
            return Err(Failure::usage(format!("mount option {key}: {text}")));
        }
        if key.starts_with("x-") || key.starts_with("X-") {
            return Ok(());
        }
        let Some((_, effect)) = TABLE.iter().find(|(name, _)| *name == key) else {
            if self.sloppy {
                self.notes.push(format!("mount option {key} is unknown and has no effect"));
                return Ok(());
            }
            let hint = nearest(&key).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            return Err(Failure::usage(format!(
                "unknown mount option \"{key}\"{hint} (`brine help mount` lists them)"
            )));
        };
        let wrong = |allowed: &str| {
            Failure::usage(format!(
                "mount option {key}={}: the value must be {allowed}",
                value.unwrap_or_default().display()
            ))
        };
        match effect {
            Effect::Ignored => {}
            Effect::Refused(reason) => return Err(Failure::usage(format!("mount option {key}: {reason}"))),
            Effect::Flag(_) | Effect::Kernel if value.is_some() => {
                return Err(Failure::usage(format!("mount option {key} takes no value")));
            }
            Effect::Flag(set) => set(self),
            Effect::Kernel => self.kernel.push(key.into_owned()),
            Effect::Path(set) => match value {
                Some(path) if !path.is_empty() => set(self, base.join(path)),
                _ => return Err(Failure::usage(format!("mount option {key} needs a path: {key}=PATH"))),
            },
            Effect::Word(set) => {
                let word = value.and_then(OsStr::to_str).ok_or_else(|| wrong("given, as in NAME=VALUE"))?;
                set(self, word).map_err(wrong)?;
            }
        }
        Ok(())
    }
}

/// Names of all options, for help and completion.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// Cut at commas. A backslash protects the next character, double quotes (as in fstab) all between them.
fn split(argument: &OsStr) -> Vec<OsString> {
    split_at(argument, b',', true).into_iter().filter(|option| !option.is_empty()).collect()
}

/// Cut at a separator that no backslash protects, and if `quotes` no double quotes either.
pub fn split_at(text: &OsStr, separator: u8, quotes: bool) -> Vec<OsString> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    let mut bytes = text.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        let last = parts.len() - 1;
        match byte {
            b'\\' => match bytes.next() {
                Some(next) if next == separator || next == b'\\' || (quotes && next == b'"') => parts[last].push(next),
                Some(next) => parts[last].extend([b'\\', next]),
                None => parts[last].push(b'\\'),
            },
            b'"' if quotes => quoted = !quoted,
            _ if byte == separator && !quoted => parts.push(Vec::new()),
            _ => parts[last].push(byte),
        }
    }
    parts.into_iter().map(OsString::from_vec).collect()
}

/// A known option at most two edits away.
fn nearest(key: &str) -> Option<&'static str> {
    names()
        .map(|name| (distance(key, name), name))
        .filter(|(far, name)| *far <= 2 && *far < name.len() / 2)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance, in bytes.
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit_code::ExitCode;

    fn parse(text: &str) -> Result<MountOptions, Failure> {
        MountOptions::parse(&[text], Path::new("/base"))
    }

    fn complaint(text: &str) -> String {
        let failure = parse(text).unwrap_err();
        assert_eq!(failure.code(), ExitCode::Usage);
        failure.message().to_owned()
    }

    #[test]
    fn everything_that_can_be_set_is_set() {
        let o = parse(
            "passfile=p,state=/s,ro,allow_other,noatime,hedge=all,min_ack=5,cache=1G,copies=3,epoch=7,domain=volume,\
             compress=lz4,use_member=/a,use_member=b,threads=4,launcher=x,log=l,nosupervise,fsname=x,suid,noexec",
        )
        .unwrap();
        assert_eq!(o.secret, Some(SecretFile::Passphrase("/base/p".into())));
        assert_eq!(o.state, Some("/s".into()));
        assert!(o.read_only && o.allow_other && o.atime == Atime::Off && !o.supervise);
        assert!(matches!(o.hedge, Hedge::All));
        assert_eq!((o.min_ack, o.cache_bytes, o.copies, o.epoch, o.threads), (Some(5), 1 << 30, Some(3), Some(7), 4));
        assert!(matches!(o.domain, Some(DomainPolicy::Volume)) && matches!(o.codec, Some(Codec::Lz4)));
        assert_eq!(o.use_member, [PathBuf::from("/a"), "/base/b".into()]);
        assert_eq!((o.log, o.launcher), (Some("/base/l".into()), Some("/base/x".into())));
        assert_eq!(o.kernel, ["suid", "noexec"]);
    }

    #[test]
    fn what_mount_and_fstab_pass_is_taken() {
        let o =
            parse("rw,defaults,noauto,nofail,_netdev,user=me,x-systemd.automount,x-gvfs-show,comment=hi,relatime,,")
                .unwrap();
        assert!(!o.read_only && o.kernel.is_empty() && o.notes.is_empty());
        let o = parse("strictatime,nodiratime,idle=10m").unwrap();
        assert!(o.atime == Atime::Always && o.nodiratime && o.notes.is_empty());
        assert_eq!(o.idle, Some(Duration::from_secs(600)));
        assert!(parse("strictatime,relatime,remount").is_ok_and(|o| o.atime == Atime::Relative && o.remount));
    }

    #[test]
    fn unknown_options_are_noted_if_mount_says_so() {
        let o = MountOptions::parse(&["sloppy", "fancy=1,ro"], Path::new("/")).unwrap();
        assert!(o.read_only && o.notes[0].contains("fancy"));
        assert!(MountOptions::parse(&["sloppy", "hedge=1"], Path::new("/")).is_err());
    }

    #[test]
    fn later_options_win() {
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(MountOptions::parse(&["rw", "ro"], Path::new("/")).unwrap().read_only);
    }

    #[test]
    fn past_states_are_read_only_and_named_by_a_time_or_a_snapshot() {
        let o = parse(r"at=before\,after,rw").unwrap();
        assert!(o.read_only && o.at.as_deref() == Some("before,after"));
        assert!(parse("rw,at=2026-01-31T23:59:59+01:00").unwrap().read_only);
        for version in ["at=7", "at=12:7", "at="] {
            assert!(complaint(version).contains("snapshot"), "{version}");
        }
    }

    #[test]
    fn other_users_do_not_share_salts_unless_asked() {
        assert!(parse("ro").unwrap().domain.is_none());
        assert!(matches!(parse("allow_other").unwrap().domain, Some(DomainPolicy::Owner)));
        assert!(matches!(parse("domain=volume,allow_other").unwrap().domain, Some(DomainPolicy::Volume)));
    }

    #[test]
    fn wrong_options_are_named() {
        assert!(complaint("ro,alow_other").contains("\"alow_other\"; did you mean allow_other?"));
        assert!(complaint("frobnicate=1").starts_with("unknown mount option \"frobnicate\" ("));
        assert!(complaint("hedge=some").contains("hedge=some: the value must be adaptive, all or off"));
        assert!(complaint("threads=0").contains("1 to 64"));
        assert!(complaint("cache=1").contains("8M"));
        assert!(complaint("link_max=7").contains("8 to"));
        assert!(complaint("keyfile").contains("keyfile=PATH"));
        assert!(complaint("ro=1").contains("takes no value"));
        assert!(complaint("idle=soon").contains("such as 30s, 10m or 2h"));
        assert!(complaint("idle=0").contains("from 1s up"));
        assert!(!complaint("passphrase=secret").contains("secret,"));
    }

    #[test]
    fn a_secret_given_by_mistake_is_not_repeated() {
        assert!(!complaint("passphrase=hunter2").contains("hunter2"));
        assert!(!complaint("password=hunter2").contains("hunter2"));
    }

    #[test]
    fn commas_can_be_protected() {
        assert_eq!(parse(r"state=/a\,b,ro").unwrap().state, Some("/a,b".into()));
        let quoted = parse("state=\"/a,b\",ro").unwrap();
        assert!(quoted.read_only);
        assert_eq!(quoted.state, Some("/a,b".into()));
        assert_eq!(split_at(OsStr::new(r"/a:/b\:c:"), b':', false), ["/a", "/b:c", ""]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4096"), Some(4096));
        assert_eq!(size("128K"), Some(128 << 10));
        assert_eq!(size("1MiB"), Some(1 << 20));
        assert_eq!(size("2gb"), Some(2 << 30));
        for wrong in ["", "K", "-1", "1X", "1.5G", "99999999999T", "+1"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("ro", "ro"), 0);
    }

    #[test]
    fn the_table_names_nothing_twice() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let before = all.len();
        all.dedup();
        assert_eq!(before, all.len());
    }
}
