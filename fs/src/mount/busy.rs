//! Who uses a mount: processes with files, programs or working directories on it, as far as this user may look.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::mount_table::Mount;

/// Users named in a message at most.
const USERS_MAX: usize = 8;

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Process id.
    pub pid: u32,
    /// Name of its program.
    pub name: String,
    /// What it has there: "working directory /mnt/a", "open file /mnt/b".
    pub what: String,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {}, {})", self.name, self.pid, self.what)
    }
}

/// Processes that use `mount`, a few of them.
pub fn users_of(mount: &Mount) -> Vec<User> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| user(pid, mount)).take(USERS_MAX).collect()
}

fn user(pid: u32, mount: &Mount) -> Option<User> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let what = linked(&proc, mount).or_else(|| open_file(&proc, mount)).or_else(|| mapped(&proc, mount))?;
    let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
    Some(User { pid, name: name.trim().to_owned(), what })
}

/// Whether a link in /proc leads onto the mount. The text is compared: following it would ask the mount.
fn leads_to(link: &Path, mount: &Mount) -> Option<PathBuf> {
    fs::read_link(link).ok().filter(|target| target.starts_with(&mount.point))
}

fn linked(proc: &Path, mount: &Mount) -> Option<String> {
    let links = [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")];
    links.iter().find_map(|(link, word)| Some(format!("{word} {}", leads_to(&proc.join(link), mount)?.display())))
}

fn open_file(proc: &Path, mount: &Mount) -> Option<String> {
    let open = fs::read_dir(proc.join("fd")).ok()?.flatten();
    open.map(|entry| entry.file_name()).find_map(|number| is_on(proc, &number, mount))
}

/// The mount's number in fdinfo also finds files that were removed, or opened before another mount covered them.
fn is_on(proc: &Path, number: &OsString, mount: &Mount) -> Option<String> {
    let info = fs::read_to_string(proc.join("fdinfo").join(number)).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok())?;
    (id == mount.id).then(|| {
        let path = fs::read_link(proc.join("fd").join(number)).unwrap_or_default();
        format!("open file {}", path.display())
    })
}

fn mapped(proc: &Path, mount: &Mount) -> Option<String> {
    // "major:minor" in hexadecimal, two digits at least.
    let (major, minor) = mount.device.split_once(':')?;
    let device = format!("{:02x}:{:02x}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    let maps = fs::read_to_string(proc.join("maps")).ok()?;
    let line = maps.lines().find(|line| line.split(' ').nth(3) == Some(device.as_str()))?;
    Some(format!("mapped file {}", line.split_whitespace().nth(5).unwrap_or("?")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount_table;

    #[test]
    fn a_process_is_found_by_its_open_file() {
        let dir = std::env::temp_dir();
        let _file = fs::File::create(dir.join(format!("brine-busy-{}", std::process::id()))).unwrap();
        let mount = mount_table::holding(&dir).unwrap().unwrap();
        let own = PathBuf::from(format!("/proc/{}", std::process::id()));
        let found = open_file(&own, &mount);
        fs::remove_file(dir.join(format!("brine-busy-{}", std::process::id()))).unwrap();
        assert!(found.is_some_and(|what| what.starts_with("open file /")));
        let proc = mount_table::at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(linked(&own, &proc), None);
    }
}
