//! Which variables of a caller's environment a run gets: by name, from a list. What changes how programs are loaded is
//! on no list.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};
use parking_lot::Mutex;

/// Passed on from every caller.
const PASSED: [&str; 6] = ["LANG", "LANGUAGE", "TZ", "TERM", "COLUMNS", "LINES"];
/// Names that begin so are passed on from every caller.
const PASSED_PREFIX: &[u8] = b"LC_";
/// Never passed on, whatever a policy says: they make the loader or the C library run or read something else.
const NEVER: [&str; 9] = [
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "GETCONF_DIR",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "NLSPATH",
    "RES_OPTIONS",
    "TZDIR",
];

/// How long a user is taken to have the name found last. A directory service may take as long to answer as a run.
const NAME_LIFE: Duration = Duration::from_secs(10);
/// Users whose names are remembered.
const NAMES_MAX: usize = 256;

/// Names of users, remembered for [`NAME_LIFE`].
#[derive(Default)]
pub struct UserNames(Mutex<HashMap<u32, (Option<String>, Instant)>>);

impl UserNames {
    /// Of user `uid`, if it has one.
    pub fn name(&self, uid: u32) -> Option<String> {
        if let Some((name, found)) = self.0.lock().get(&uid)
            && found.elapsed() < NAME_LIFE
        {
            return name.clone();
        }
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        let mut names = self.0.lock();
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(uid, (name.clone(), Instant::now()));
        name
    }
}

/// Whether a policy may name this variable; says why not.
///
/// # Errors
/// The reason.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) || name.as_bytes()[0].is_ascii_digit() {
        return Err("no name of a variable");
    }
    if name.starts_with("LD_") || NEVER.contains(&name) {
        return Err("never passed on: it changes what the loader or the C library runs");
    }
    if SET.contains(&name) {
        return Err("set for every run");
    }
    Ok(())
}

/// Set for every run, whatever the caller has.
const SET: [&str; 3] = ["PATH", "HOME", "USER"];

/// What a run gets: `defaults`, then what is passed on of the caller's `given`. Of a name given twice the first counts,
/// as getenv(3) has it.
pub fn filtered(
    defaults: Vec<(OsString, OsString)>,
    given: Vec<(OsString, OsString)>,
    granted: &[String],
    user: Option<&str>,
) -> Vec<(OsString, OsString)> {
    let mut out = defaults;
    if let Some(user) = user {
        out.push(("USER".into(), user.into()));
    }
    for (name, value) in given {
        if passes(&name, granted) && out.iter().all(|(taken, _)| *taken != name) {
            out.push((name, value));
        }
    }
    out
}

fn passes(name: &OsStr, granted: &[String]) -> bool {
    let Some(text) = name.to_str() else { return false };
    let listed = PASSED.contains(&text)
        || name.as_bytes().starts_with(PASSED_PREFIX)
        || granted.iter().any(|granted| granted == text);
    listed && check_name(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_pass_by_name_and_those_of_the_loader_never() {
        let given = [
            ("LANG", "C"),
            ("LC_ALL", "C.UTF-8"),
            ("SECRET", "x"),
            ("LD_PRELOAD", "evil.so"),
            ("GLIBC_TUNABLES", "x"),
            ("WANTED", "1"),
            ("WANTED", "2"),
            ("PATH", "/evil"),
            ("", "nameless"),
        ];
        let given = given.map(|(name, value)| (OsString::from(name), OsString::from(value))).to_vec();
        let granted = ["WANTED", "LD_PRELOAD", "GLIBC_TUNABLES", "PATH"].map(str::to_owned);
        let out = filtered(vec![("PATH".into(), "/usr/bin".into())], given, &granted, Some("ann"));
        let shown: Vec<String> = out.iter().map(|(n, v)| format!("{}={}", n.display(), v.display())).collect();
        assert_eq!(shown, ["PATH=/usr/bin", "USER=ann", "LANG=C", "LC_ALL=C.UTF-8", "WANTED=1"]);
    }

    #[test]
    fn policies_cannot_name_what_is_never_passed_on() {
        for bad in ["", "A=B", "1A", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "HOME", "Ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("DATABASE_URL").unwrap();
    }
}
