//! What must not be seen: names and contents in backing directories, keys on the process.

use std::fs;
use std::path::Path;

use crate::damage::{any_file_contains, files_below};
use crate::volume::PASSPHRASE;
use crate::{Builder, Secret, content};

/// Neither backing directories nor the state directory hold a name, a piece of content or a bare hash of it, also with
/// small files, links and attributes; two volumes share no block of equal content.
#[track_caller]
pub fn nothing_readable() -> String {
    const NAME: &str = "a-telling-file-name";
    const TEXT: &[u8] = b"a telling sentence that nobody else may read";
    let mut volumes = [0, 1].map(|i| Builder::new(&format!("secret-{i}")).directories(3).geometry(2, 1).mount());
    let bytes = content(77, 300_000);
    let run = b"repeated telling text. ".repeat(20_000);
    for volume in &mut volumes {
        fs::write(volume.path(NAME), TEXT).expect("write");
        fs::create_dir(volume.path("a-telling-directory")).expect("mkdir");
        fs::write(volume.path("a-telling-directory/large"), &bytes).expect("write");
        fs::write(volume.path("run"), &run).expect("write");
        std::os::unix::fs::symlink("a-telling-target", volume.path("link")).expect("symlink");
        crate::sys::set_xattr(&volume.path("run"), "user.telling-attribute", b"a-telling-value", 0).expect("setxattr");
        volume.umount();
    }
    let hash = blake3::hash(&bytes[..131_072]);
    let needles: [&[u8]; 11] = [
        NAME.as_bytes(),
        &TEXT[..20],
        b"telling-directory",
        b"telling-target",
        b"telling-attribute",
        b"a-telling-value",
        b"repeated telling",
        &bytes[1000..1032],
        &bytes[200_000..200_032],
        &hash.as_bytes()[..16],
        b"SQLite format 3",
    ];
    for volume in &volumes {
        for dir in volume.dirs().iter().map(|dir| dir.as_path()).chain([volume.state_dir()]) {
            for needle in &needles {
                let found = any_file_contains(dir, needle);
                let shown = String::from_utf8_lossy(needle);
                assert!(found.is_none(), "{} holds {shown:?} in clear", found.unwrap_or_default().display());
            }
            for file in files_below(dir) {
                let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                assert!(!name.contains("telling") && !hash.to_hex().contains(name.as_str()), "{}", file.display());
            }
        }
    }
    let [one, two] = &volumes;
    let shared = (0..3).find_map(|i| shared_run(one.dir(i), two.dir(i)));
    assert!(shared.is_none(), "two volumes with equal content share bytes: {shared:?}");
    "no name, content, attribute or bare hash in six directories and two databases; two volumes share nothing".into()
}

/// 32 bytes, neither all equal nor of the format itself, that both directories' segment files hold.
fn shared_run(one: &Path, two: &Path) -> Option<String> {
    let blocks = |dir: &Path| -> std::collections::HashSet<[u8; 32]> {
        let mut blocks = std::collections::HashSet::new();
        for file in crate::damage::segment_files(dir) {
            let bytes = fs::read(&file).expect("read a segment file");
            for block in bytes.chunks_exact(32) {
                let block: [u8; 32] = block.try_into().expect("32 bytes");
                let distinct: std::collections::BTreeSet<u8> = block.iter().copied().collect();
                if distinct.len() >= 24 {
                    blocks.insert(block);
                }
            }
        }
        blocks
    };
    let (ones, twos) = (blocks(one), blocks(two));
    ones.intersection(&twos).next().map(|block| format!("{block:02x?}"))
}

/// The daemon's command line and environment hold no passphrase and no key, its memory is not readable by dumps, and
/// what lies in the state directory is for root only.
#[track_caller]
pub fn no_key_on_the_process() -> String {
    use std::os::unix::fs::MetadataExt;
    let volume = Builder::new("process").directories(3).geometry(2, 1).secret(Secret::Passphrase).mount();
    let pid = volume.daemon().expect("it is mounted").pid;
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("read the daemon's /proc");
        let found = bytes.windows(PASSPHRASE.len()).any(|window| window == PASSPHRASE.as_bytes());
        assert!(!found, "/proc/{pid}/{file} holds the passphrase");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("read the daemon's limits");
    let no_core = limits
        .lines()
        .any(|line| line.starts_with("Max core file size") && line.split_whitespace().nth(4) == Some("0"));
    // PR_SET_DUMPABLE 0 shows as coredump_filter being owned by root whatever the user; as root only the limit shows.
    assert!(no_core, "a core of the daemon could hold keys: {limits}");
    let mode = fs::metadata(volume.state_dir()).expect("stat").mode() & 0o777;
    assert_eq!(mode & 0o077, 0, "the state directory is open to others: {mode:o}");
    for dir in volume.dirs() {
        for file in files_below(dir) {
            let mode = fs::metadata(&file).expect("stat").mode() & 0o777;
            assert_eq!(mode & 0o022, 0, "{} can be written by others: {mode:o}", file.display());
        }
    }
    "no passphrase on the command line or in the environment, no core, state directory closed".into()
}
