//! Which hierarchies this machine has, and where in them this daemon may make groups.
//!
//! From the mount table and the process's own membership, never from fixed paths. Groups go below the daemon's own
//! group, so that whatever the daemon is held to holds for its sandboxes as well. In version 2 a group with processes
//! may not have limited children: the daemon moves itself into a leaf if it is alone in its group, else, as root, the
//! tree's root is used, which that rule exempts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::write;

/// Leaf the daemon moves to in a delegated version 2 group.
const OWN_LEAF: &str = "brine-daemon";

/// Kinds of trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Version 2 with the controllers.
    V2,
    /// Version 1 controllers, and a version 2 tree without.
    Hybrid,
    /// Version 1 only.
    V1,
    /// Nothing that can be written to.
    None,
}

impl Backend {
    /// Stable word for reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
            Self::V1 => "v1",
            Self::None => "none",
        }
    }
}

/// A directory in each hierarchy that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Which kind of tree.
    pub backend: Backend,
    /// Version 2: birth, kill, emptiness.
    pub core: Option<PathBuf>,
    /// Memory controller.
    pub memory: Option<PathBuf>,
    /// Process-number controller.
    pub pids: Option<PathBuf>,
    /// Processor controller.
    pub cpu: Option<PathBuf>,
    /// Processor accounting; version 1 only.
    pub cpuacct: Option<PathBuf>,
}

impl Places {
    const NONE: Self = Self { backend: Backend::None, core: None, memory: None, pids: None, cpu: None, cpuacct: None };

    /// Every directory once.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        let places = [&self.core, &self.memory, &self.pids, &self.cpu, &self.cpuacct];
        let mut seen: Vec<&PathBuf> = Vec::new();
        for place in places.into_iter().flatten() {
            if !seen.contains(&place) {
                seen.push(place);
            }
        }
        seen.into_iter()
    }

    fn map(&self, change: impl Fn(&PathBuf) -> Option<PathBuf>) -> Self {
        let apply = |place: &Option<PathBuf>| place.as_ref().and_then(&change);
        Self {
            backend: self.backend,
            core: apply(&self.core),
            memory: apply(&self.memory),
            pids: apply(&self.pids),
            cpu: apply(&self.cpu),
            cpuacct: apply(&self.cpuacct),
        }
    }

    /// The same with `name` below.
    pub(super) fn below(&self, name: &str) -> Self {
        self.map(|place| Some(place.join(name)))
    }

    /// Make `name` below each and use it; what cannot be written to is not used.
    pub(super) fn go_below(&mut self, name: &str) {
        let v2 = self.backend == Backend::V2;
        let made = self.below(name).map(|place| {
            let there = fs::create_dir(place).is_ok() || place.is_dir();
            let writable = there && nix::unistd::access(place, nix::unistd::AccessFlags::W_OK).is_ok();
            writable.then(|| place.clone())
        });
        *self = made;
        if v2 {
            self.keep_enabled();
        }
        if self.all().next().is_none() {
            self.backend = Backend::None;
        }
    }

    /// Version 2: switch the controllers on for children; forget those that cannot be.
    fn keep_enabled(&mut self) {
        let Some(core) = self.core.clone() else { return };
        for (place, name) in [(&mut self.memory, "memory"), (&mut self.pids, "pids"), (&mut self.cpu, "cpu")] {
            if place.is_some() && write(&core, "cgroup.subtree_control", &format!("+{name}")).is_err() {
                *place = None;
            }
        }
    }
}

/// One cgroup mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    /// Which part of the hierarchy is mounted.
    root: PathBuf,
    v2: bool,
    /// Version 1: its controllers.
    controllers: Vec<String>,
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        let v2 = match *back.first()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let controllers = back.get(2)?.split(',').map(str::to_owned).collect();
        Some(Mount { at: front.get(4)?.into(), root: front.get(3)?.into(), v2, controllers })
    };
    mountinfo.lines().filter_map(parse).collect()
}

/// This process's group in the hierarchy of `controller`, or in version 2 (`""`).
fn membership<'a>(membership: &'a str, controller: &str) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// Where the group of this process is seen through a mount.
fn seen_at(mount: &Mount, group: &str) -> PathBuf {
    match Path::new(group).strip_prefix(&mount.root) {
        Ok(rest) => mount.at.join(rest),
        Err(_) => mount.at.clone(),
    }
}

/// What the two files of /proc say, before anything is tried.
fn survey(mountinfo: &str, own: &str) -> Places {
    let mounts = mounts(mountinfo);
    let one = |controller: &str| {
        let mount = mounts.iter().find(|mount| !mount.v2 && mount.controllers.iter().any(|name| name == controller))?;
        Some(seen_at(mount, membership(own, controller)?))
    };
    let core = mounts.iter().find(|mount| mount.v2).map(|mount| seen_at(mount, membership(own, "").unwrap_or("/")));
    let (memory, pids, cpu, cpuacct) = (one("memory"), one("pids"), one("cpu"), one("cpuacct"));
    let some = memory.is_some() || pids.is_some() || cpu.is_some();
    match (core, some) {
        (Some(core), false) => {
            let place = Some(core);
            Places {
                backend: Backend::V2,
                memory: place.clone(),
                pids: place.clone(),
                cpu: place.clone(),
                core: place,
                cpuacct: None,
            }
        }
        (core, true) => {
            let backend = if core.is_some() { Backend::Hybrid } else { Backend::V1 };
            Places { backend, core, memory, pids, cpu, cpuacct }
        }
        (None, false) => Places::NONE,
    }
}

/// The places of this process, ready for children.
pub(super) fn of_this_process() -> io::Result<Places> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let places = survey(&mountinfo, &own);
    if places.backend != Backend::V2 {
        return Ok(places);
    }
    let root = mounts(&mountinfo).into_iter().find(|mount| mount.v2).map(|mount| mount.at);
    Ok(usable_v2(places, root))
}

/// A version 2 place whose children can be limited: the own group, else the tree's root.
fn usable_v2(places: Places, root: Option<PathBuf>) -> Places {
    let Some(own) = places.core.clone() else { return places };
    if own.file_name().is_some_and(|name| name == OWN_LEAF)
        && let Some(parent) = own.parent()
    {
        // A daemon started by one that moved already.
        return places.map(|_| Some(parent.to_owned()));
    }
    if enable(&own) {
        return places;
    }
    if is_alone(&own) && enter_leaf(&own).is_ok() && enable(&own) {
        return places;
    }
    match root {
        Some(root) if root != own && enable(&root) => places.map(|_| Some(root.clone())),
        // Groups can be made, if at all, but not limited.
        _ => Places { memory: None, pids: None, cpu: None, ..places },
    }
}

fn enable(place: &Path) -> bool {
    ["memory", "pids", "cpu"].iter().all(|name| write(place, "cgroup.subtree_control", &format!("+{name}")).is_ok())
}

/// Only this process and its parent (a supervisor) are in the group.
fn is_alone(place: &Path) -> bool {
    let ours = [std::process::id(), nix::unistd::getppid().as_raw() as u32];
    fs::read_to_string(place.join("cgroup.procs"))
        .is_ok_and(|list| list.lines().all(|line| line.parse().is_ok_and(|pid: u32| ours.contains(&pid))))
}

fn enter_leaf(place: &Path) -> io::Result<()> {
    let leaf = place.join(OWN_LEAF);
    if !leaf.is_dir() {
        fs::create_dir(&leaf)?;
    }
    for pid in fs::read_to_string(place.join("cgroup.procs"))?.lines() {
        write(&leaf, "cgroup.procs", pid)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
36 32 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
37 32 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
39 32 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
43 32 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
44 32 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
45 32 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_machine_is_limited_by_version_1_and_killed_by_version_2() {
        let places = survey(HYBRID, "4:memory:/api/x\n8:pids:/\n2:cpuacct:/\n1:cpu:/\n0::/\n");
        assert_eq!(places.backend, Backend::Hybrid);
        assert_eq!(places.core.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(places.memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/api/x")));
        assert_eq!(places.all().count(), 5);
    }

    #[test]
    fn version_2_and_version_1_alone_and_nothing() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let places = survey(v2, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/brine.scope\n");
        assert_eq!(places.backend, Backend::V2);
        assert!(places.memory.as_ref().unwrap().ends_with("app.slice/brine.scope"));
        assert_eq!(places.all().count(), 1, "one tree");

        let v1: String =
            HYBRID.lines().filter(|line| !line.contains("cgroup2")).map(|line| format!("{line}\n")).collect();
        assert_eq!(survey(&v1, "4:memory:/\n8:pids:/\n1:cpu:/\n2:cpuacct:/\n").backend, Backend::V1);
        // Two controllers in one mount, as most distributions had it.
        let joint = "36 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let places = survey(joint, "3:cpu,cpuacct:/a\n");
        assert_eq!(places.cpu, places.cpuacct);
        assert_eq!(survey("22 1 0:2 / / rw - ext4 /dev/vda rw\n", "").backend, Backend::None);
    }

    #[test]
    fn a_container_that_sees_part_of_a_tree_uses_that_part() {
        let mountinfo = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let places = survey(mountinfo, "0::/docker/abc/x\n");
        assert_eq!(places.core.as_deref(), Some(Path::new("/sys/fs/cgroup/x")));
    }

    /// A recorded version 2 tree: files take what is written; nothing is proved about a kernel.
    #[test]
    fn a_delegated_version_2_group_is_entered_by_a_leaf() {
        let top = std::env::temp_dir().join(format!("brine-v2-{}", std::process::id()));
        let own = top.join("brine.scope");
        fs::create_dir_all(&own).unwrap();
        for file in ["cgroup.procs", "cgroup.subtree_control"] {
            fs::write(own.join(file), "").unwrap();
        }
        let place = Some(own.clone());
        let places = Places {
            backend: Backend::V2,
            memory: place.clone(),
            pids: place.clone(),
            cpu: place.clone(),
            core: place,
            cpuacct: None,
        };
        assert_eq!(usable_v2(places.clone(), None), places);
        assert!(is_alone(&own));
        fs::write(own.join("cgroup.procs"), "1\n").unwrap();
        assert!(!is_alone(&own), "somebody else's processes are not moved");
        // Started again below the leaf: groups go beside it, not below.
        let leaf = own.join(OWN_LEAF);
        assert_eq!(usable_v2(places.map(|_| Some(leaf.clone())), None), places);
        fs::remove_dir_all(&top).unwrap();
    }
}
