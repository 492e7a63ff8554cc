//! How much room a directory has, and which kind of filesystem it lies on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Room in a backing directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the filesystem, bytes.
    pub total_bytes: u64,
    /// Free bytes, those reserved for root included.
    pub free_bytes: u64,
    /// Free bytes that may be used.
    pub available_bytes: u64,
    /// Identity of the filesystem (`st_dev`): directories with one value share their room and their fate.
    pub device: u64,
    /// The filesystem's name, as in /proc/self/mountinfo where that knows it ("ext4", "fuse.sshfs"), else by magic.
    pub fs_type: String,
}

/// `f_type` values of statfs(2), from linux/magic.h and the filesystems' own sources.
const MAGIC_NAMES: &[(u64, &str)] = &[
    (0x0000_ef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlay"),
    (0x0000_4d44, "vfat"),
    (0x2011_bab0, "exfat"),
    (0x5346_544e, "ntfs"),
    (0x7366_746e, "ntfs3"),
    (0x6573_5546, "fuse"),
    (0x0000_6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0000_517b, "smbfs"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "ceph"),
    (0x0bd0_0bd0, "lustre"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "afs"),
    (0x7375_7245, "coda"),
    (0x0000_564c, "ncpfs"),
];

/// Names of filesystems whose files lie on another machine.
const NETWORK_NAMES: &[&str] = &[
    "nfs",
    "nfs4",
    "cifs",
    "smb2",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "lustre",
    "afs",
    "coda",
    "ncpfs",
    "glusterfs",
    "beegfs",
    "orangefs",
    "pvfs2",
];

/// What fuse mounts of networks call themselves, after "fuse.".
const NETWORK_FUSE_NAMES: &[&str] = &[
    "sshfs",
    "glusterfs",
    "ceph",
    "ceph-fuse",
    "s3fs",
    "rclone",
    "gcsfuse",
    "goofys",
    "davfs",
    "curlftpfs",
    "juicefs",
    "nfs",
    "smbnetfs",
    "mount-s3",
    "seaweedfs",
    "weed",
];

/// Whether `path` lies on a network filesystem, and which: its name, or `None` for a local one. By statfs magic and by
/// the type in /proc/self/mountinfo (which tells fuse filesystems apart). `path` must exist.
pub fn is_network_fs(path: &Path) -> io::Result<Option<String>> {
    let magic = nix::sys::statfs::statfs(path)?.filesystem_type().0 as u64;
    let device = fs::metadata(path)?.dev();
    let whole = path.canonicalize()?;
    let name = fs_type_name(magic, device, Some(&whole));
    let by_magic = name_of_magic(magic).filter(|name| is_network_name(name)).map(str::to_owned);
    Ok(Some(name).filter(|name| is_network_name(name)).or(by_magic))
}

/// The filesystem's name, from mountinfo if it knows the device or the path, else by magic, else the magic in hex.
pub(super) fn fs_type_name(magic: u64, device: u64, path: Option<&Path>) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_type(&table, device, path)
        .or_else(|| name_of_magic(magic).map(str::to_owned))
        .unwrap_or_else(|| format!("{:#x}", magic & 0xffff_ffff))
}

fn name_of_magic(magic: u64) -> Option<&'static str> {
    // Some architectures sign-extend the 32-bit magic.
    MAGIC_NAMES.iter().find(|(value, _)| *value == magic & 0xffff_ffff).map(|(_, name)| *name)
}

fn is_network_name(name: &str) -> bool {
    NETWORK_NAMES.contains(&name) || name.strip_prefix("fuse.").is_some_and(|tail| NETWORK_FUSE_NAMES.contains(&tail))
}

/// The type in a mountinfo table (proc(5)) of the mount with this device number, else of the deepest mount above
/// `path`: btrfs gives its subvolumes device numbers that the table does not show.
fn mount_type(table: &str, device: u64, path: Option<&Path>) -> Option<String> {
    let wanted = format!("{}:{}", libc::major(device), libc::minor(device));
    let mut deepest: Option<(usize, String)> = None;
    for line in table.lines() {
        let Some((mount, tail)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ');
        let (Some(numbers), Some(point), Some(name)) = (fields.nth(2), fields.nth(1), tail.split(' ').next()) else {
            continue;
        };
        if numbers == wanted {
            return Some(name.to_owned());
        }
        let point = PathBuf::from(unescape(point));
        let depth = point.components().count();
        // Of mounts stacked on one point the last listed is the visible one.
        let covers = path.is_some_and(|path| path.starts_with(&point));
        if covers && deepest.as_ref().is_none_or(|(best, _)| depth >= *best) {
            deepest = Some((depth, name.to_owned()));
        }
    }
    deepest.map(|(_, name)| name)
}

/// mountinfo writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.map_or('\\', char::from));
        rest = &rest[at + if code.is_some() { 4 } else { 1 }..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        40 21 0:45 / /mnt/far\\040away rw - fuse.sshfs host:/data rw\n\
        41 21 0:46 /sub /srv/tree rw master:3 - btrfs /dev/vdb rw\n\
        42 41 0:47 / /srv/tree/nfs rw - nfs4 host:/x rw\n\
        broken line\n";

    #[test]
    fn mountinfo_by_device_then_by_path() {
        let dev = |major, minor| libc::makedev(major, minor);
        let at = |path| mount_type(TABLE, dev(0, 99), Some(Path::new(path)));
        assert_eq!(mount_type(TABLE, dev(254, 0), None).as_deref(), Some("ext4"));
        assert_eq!(mount_type(TABLE, dev(0, 45), None).as_deref(), Some("fuse.sshfs"));
        assert_eq!(at("/srv/tree/vol").as_deref(), Some("btrfs"));
        assert_eq!(at("/srv/tree/nfs/vol").as_deref(), Some("nfs4"));
        assert_eq!(at("/mnt/far away/vol").as_deref(), Some("fuse.sshfs"));
        assert_eq!(at("/home").as_deref(), Some("ext4"));
        assert_eq!(mount_type(TABLE, dev(0, 99), None), None);
    }

    #[test]
    fn network_names_and_magics() {
        for name in ["nfs4", "cifs", "9p", "ceph", "fuse.sshfs"] {
            assert!(is_network_name(name), "{name}");
        }
        for name in ["ext4", "fuse", "fuse.mergerfs", "btrfs", "tmpfs"] {
            assert!(!is_network_name(name), "{name}");
        }
        assert_eq!(name_of_magic(0xffff_ffff_ff53_4d42), Some("cifs"));
        assert_eq!(fs_type_name(0x1234_5678, u64::MAX, None), "0x12345678");
    }

    #[test]
    fn escapes_of_mountinfo() {
        assert_eq!(unescape("a\\040b\\134c\\"), "a b\\c\\");
        assert_eq!(unescape("\\é\\04"), "\\é\\04");
    }

    #[test]
    fn the_temporary_directory_is_local() {
        assert_eq!(is_network_fs(&std::env::temp_dir()).unwrap(), None);
    }
}
