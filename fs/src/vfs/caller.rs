//! Who asks, as far as the kernel leaves decisions to the daemon.

use std::fs;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process; 0 if it cannot be seen from here.
    pub pid: u32,
    /// Bits not to give to what is made, unless a default access control list rules. 0 in all other requests.
    pub umask: u16,
}

impl Caller {
    /// Whether the caller keeps set-group-id on a file of group `gid`: a member of the group does, and root. The kernel
    /// tells capabilities to no FUSE daemon, so root alone is taken to have CAP_FSETID.
    pub fn keeps_set_gid(&self, gid: u32) -> bool {
        self.uid == 0 || self.gid == gid || self.supplementary_groups().contains(&gid)
    }

    /// Whether attributes of the `trusted` namespace are shown: root's alone.
    pub fn sees_trusted(&self) -> bool {
        self.uid == 0
    }

    /// From /proc, as no FUSE request carries them; none if the process is gone or not visible.
    fn supplementary_groups(&self) -> Vec<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        groups_of(&status)
    }
}

fn groups_of(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_proc() {
        assert_eq!(groups_of("Name:\tx\nGid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nNStgid:\t9\n"), [4, 24, 1000]);
        assert!(groups_of("Groups:\t\n").is_empty());
        let nobody = Caller { uid: 9, gid: 9, pid: u32::MAX, umask: 0 };
        assert!(nobody.keeps_set_gid(9) && !nobody.keeps_set_gid(10));
    }
}
