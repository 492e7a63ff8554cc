use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::*;

/// A directory of a test, removed at its end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brine-image-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn import(&self, source: &Path, name: &str) -> Result<Imported, Error> {
        import(source, &self.0.join(name), |_| {})
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// (kind, name, content or link target, mode)
type Entry<'a> = (EntryType, &'a str, &'a str, u32);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, content, mode) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        // Names that the crate itself refuses to write are what is tested.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(*mode);
        header.set_mtime(1_000_000);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        let is_file = *kind == FILE;
        if !is_file && !content.is_empty() {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_size(if is_file { content.len() as u64 } else { 0 });
        header.set_cksum();
        builder.append(&header, if is_file { content.as_bytes() } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A layout with these layers; its blobs are named after `digests_of`.
fn layout(at: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(at.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(at.join("blobs/sha256").join(&digest), bytes).unwrap();
        format!("{{\"digest\":\"sha256:{digest}\"}}")
    };
    let descriptors: Vec<String> = layers.iter().map(|layer| put(layer)).collect();
    let manifest = put(format!("{{\"layers\":[{}]}}", descriptors.join(",")).as_bytes());
    fs::write(at.join("index.json"), format!("{{\"manifests\":[{manifest}]}}")).unwrap();
}

#[test]
fn layers_are_laid_over_each_other() {
    let temp = Temp::new("layers");
    let one = archive(&[
        (DIR, "usr/", "", 0o755),
        (DIR, "usr/bin/", "", 0o555),
        (FILE, "usr/bin/tool", "old", 0o4755),
        (EntryType::Symlink, "bin", "/usr/bin", 0o777),
        (FILE, "gone", "x", 0o644),
        (FILE, "dir/a", "a", 0o644),
        (FILE, "dir/b", "b", 0o644),
        (EntryType::Char, "dev/null", "", 0o666),
    ]);
    let two = archive(&[
        (FILE, ".wh.gone", "", 0),
        (FILE, "dir/.wh..wh..opq", "", 0),
        (FILE, "dir/c", "c", 0o600),
        (FILE, "bin/tool", "new", 0o755),
        (EntryType::Link, "bin/again", "bin/tool", 0o755),
    ]);
    layout(&temp.0.join("layout"), &[gzip(&one), two]);
    let imported = temp.import(&temp.0.join("layout"), "image").unwrap();
    assert_eq!((imported.layers, imported.devices), (2, 1));
    let at = |path: &str| temp.0.join("image").join(path);
    assert_eq!(fs::read_to_string(at("usr/bin/tool")).unwrap(), "new", "through the image's own link");
    assert_eq!(fs::metadata(at("usr/bin/again")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(at("usr/bin/tool")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(at("usr/bin")).unwrap().permissions().mode() & 0o777, 0o555);
    assert_eq!(fs::metadata(at("usr")).unwrap().mtime(), 1_000_000);
    assert!(!at("gone").exists() && !at("dir/a").exists() && !at("dev/null").exists());
    assert_eq!(fs::read_to_string(at("dir/c")).unwrap(), "c");
    // So that it can be removed by an ordinary user, too.
    fs::set_permissions(at("usr/bin"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn names_that_lead_out_of_the_image_are_refused_and_nothing_stays() {
    let temp = Temp::new("slip");
    let outside = temp.0.join("outside");
    fs::create_dir(&outside).unwrap();
    let out = outside.to_str().unwrap();
    let bad: [&[Entry<'_>]; 5] = [
        &[(FILE, "../evil", "x", 0o644)],
        &[(FILE, "/etc/evil", "x", 0o644)],
        &[(FILE, "a/../../evil", "x", 0o644)],
        &[(FILE, "fine", "x", 0o644), (EntryType::Link, "evil", "../outside/f", 0o644)],
        &[(EntryType::Link, "evil", "/etc/passwd", 0o644)],
    ];
    for (index, entries) in bad.iter().enumerate() {
        let tar = temp.0.join("bad.tar");
        fs::write(&tar, archive(entries)).unwrap();
        assert!(matches!(temp.import(&tar, "image"), Err(Error::Escapes(_))), "case {index}");
        assert!(!temp.0.join("image").exists());
    }
    // A link that leads out is kept as it is; writing through it stays inside.
    let tar = temp.0.join("link.tar");
    fs::write(&tar, archive(&[(EntryType::Symlink, "way", out, 0o777), (FILE, "way/evil", "x", 0o644)])).unwrap();
    let _ = temp.import(&tar, "image");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let left: Vec<_> = fs::read_dir(&temp.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}

#[test]
fn archives_of_layouts_and_of_docker_are_found_out() {
    let temp = Temp::new("archives");
    let layer = archive(&[(FILE, "hello", "world", 0o644)]);
    layout(&temp.0.join("layout"), &[gzip(&layer)]);
    let mut packed = Builder::new(File::create(temp.0.join("oci.tar")).unwrap());
    packed.append_dir_all(".", temp.0.join("layout")).unwrap();
    packed.finish().unwrap();
    temp.import(&temp.0.join("oci.tar"), "one").unwrap();

    let mut docker = Builder::new(Vec::new());
    for (name, bytes) in [("manifest.json", &b"[{\"Layers\":[\"l/layer.tar\"]}]"[..]), ("l/layer.tar", &layer)] {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        docker.append_data(&mut header, name, bytes).unwrap();
    }
    fs::write(temp.0.join("docker.tar"), docker.into_inner().unwrap()).unwrap();
    temp.import(&temp.0.join("docker.tar"), "two").unwrap();

    fs::write(temp.0.join("plain.tar.gz"), gzip(&layer)).unwrap();
    temp.import(&temp.0.join("plain.tar.gz"), "three").unwrap();
    for name in ["one", "two", "three"] {
        assert_eq!(fs::read_to_string(temp.0.join(name).join("hello")).unwrap(), "world", "{name}");
    }
    assert!(temp.import(&temp.0.join("plain.tar.gz"), "three").is_err(), "it exists");
}

#[test]
fn damaged_and_strange_images_are_refused() {
    let temp = Temp::new("damaged");
    let at = temp.0.join("layout");
    layout(&at, &[archive(&[(FILE, "hello", "world", 0o644)])]);
    for blob in fs::read_dir(at.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap().path();
        let text = fs::read(&blob).unwrap();
        if text.starts_with(b"hello") {
            fs::write(&blob, [&text[..], b"more"].concat()).unwrap();
        }
    }
    assert!(temp.import(&at, "image").unwrap_err().to_string().contains("damaged"));
    fs::write(at.join("index.json"), "{\"manifests\":[{\"digest\":\"sha256:../../etc/passwd\"}]}").unwrap();
    assert!(temp.import(&at, "image").is_err());
    fs::write(temp.0.join("text"), "no archive at all, but long enough to look like a header of one".repeat(20))
        .unwrap();
    assert!(temp.import(&temp.0.join("text"), "image").is_err());
    assert!(temp.import(&temp.0.join("missing"), "image").is_err());
    assert!(!temp.0.join("image").exists());
}
