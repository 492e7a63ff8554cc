//! Where the layers of an image are: a plain archive is its own only layer; an OCI layout, as a directory or an archive,
//! and what `docker save` writes, name theirs in JSON files by digest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Error;

/// A JSON file of an image at most, bytes.
const JSON_MAX: u64 = 16 << 20;
/// Image indexes in image indexes at most.
const DEPTH_MAX: usize = 4;

/// What an image was given as.
pub enum Source {
    /// An archive of a root filesystem.
    Plain(PathBuf),
    /// A directory with blobs.
    Directory(PathBuf),
    /// An archive with blobs: their places in it.
    Archive(PathBuf, HashMap<String, (u64, u64)>),
}

/// The layers of an image, the lowest first.
pub struct Layers {
    source: Source,
    /// Paths in the source.
    paths: Vec<String>,
}

impl Layers {
    /// Look what `path` is, and find its layers.
    ///
    /// # Errors
    /// It is no image.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let meta = std::fs::metadata(path).map_err(Error::io(shown.clone()))?;
        let source = if meta.is_dir() { Source::Directory(path.to_owned()) } else { look_into(path)? };
        let paths = match &source {
            Source::Plain(_) => vec![String::new()],
            _ if source.has("manifest.json") && !source.has("index.json") => docker(&source)?,
            _ => {
                let index = source.json("index.json")?;
                oci(&source, &index, 0)?
            }
        };
        Ok(Self { source, paths })
    }

    /// The layers.
    pub fn list(&self) -> &[String] {
        &self.paths
    }

    /// Read one as an archive, and check that its content is what its name says.
    ///
    /// # Errors
    /// What `work` says; the content is damaged.
    pub fn read(&self, layer: &str, work: impl FnOnce(&mut dyn Read) -> Result<(), Error>) -> Result<(), Error> {
        let raw = self.source.open(layer)?;
        let mut hashed = Hashed { inner: raw, hash: Sha256::new() };
        {
            let mut peek = [0; 4];
            let len = read_full(&mut hashed, &mut peek).map_err(Error::io(format!("reading layer {layer}")))?;
            let start = io::Cursor::new(peek[..len].to_vec());
            if peek == [0x28, 0xb5, 0x2f, 0xfd] {
                let what = "compressed with zstd, which is not supported; export the image with gzip";
                return Err(Error::malformed(format!("layer {layer}"), what));
            }
            let mut whole = start.chain(&mut hashed);
            if peek[..2] == [0x1f, 0x8b] {
                work(&mut MultiGzDecoder::new(BufReader::new(whole)))?;
            } else {
                work(&mut whole)?;
            }
        }
        // What follows the archive's end belongs to the blob.
        io::copy(&mut hashed, &mut io::sink()).map_err(Error::io(format!("reading layer {layer}")))?;
        let Some(wanted) = layer.strip_prefix("blobs/sha256/") else { return Ok(()) };
        let found: String = hashed.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == wanted { Ok(()) } else { Err(Error::malformed(format!("layer {layer}"), "its content is damaged")) }
    }
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(out)?;
        self.hash.update(&out[..len]);
        Ok(len)
    }
}

fn read_full(from: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < out.len() {
        match from.read(&mut out[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// Whether an archive holds an image or a root filesystem.
fn look_into(path: &Path) -> Result<Source, Error> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(Error::io(shown.clone()))?;
    let mut start = [0; 2];
    let len = read_full(&mut &file, &mut start).map_err(Error::io(shown.clone()))?;
    if len == 2 && start == [0x1f, 0x8b] {
        return Ok(Source::Plain(path.to_owned()));
    }
    (&file).seek(SeekFrom::Start(0)).map_err(Error::io(shown.clone()))?;
    let mut archive = tar::Archive::new(&file);
    let malformed = |error: io::Error| Error::malformed(shown.clone(), error.to_string());
    let mut places = HashMap::new();
    for entry in archive.entries_with_seek().map_err(malformed)? {
        let entry = entry.map_err(malformed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if entry.header().entry_type().is_file() {
            places.insert(name, (entry.raw_file_position(), entry.size()));
        }
    }
    let is_image = places.contains_key("index.json") || places.contains_key("manifest.json");
    Ok(if is_image { Source::Archive(path.to_owned(), places) } else { Source::Plain(path.to_owned()) })
}

impl Source {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Directory(path) => path.join(name).is_file(),
            Self::Archive(_, places) => places.contains_key(name),
        }
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read>, Error> {
        let missing = || Error::malformed(name.to_owned(), "not in the image");
        match self {
            Self::Plain(path) => Ok(Box::new(File::open(path).map_err(Error::io(path.display().to_string()))?)),
            Self::Directory(path) => {
                check(name)?;
                Ok(Box::new(File::open(path.join(name)).map_err(|_| missing())?))
            }
            Self::Archive(path, places) => {
                let (at, len) = *places.get(name).ok_or_else(missing)?;
                let mut file = File::open(path).map_err(Error::io(path.display().to_string()))?;
                file.seek(SeekFrom::Start(at)).map_err(Error::io(path.display().to_string()))?;
                Ok(Box::new(file.take(len)))
            }
        }
    }

    fn json(&self, name: &str) -> Result<Value, Error> {
        let mut text = Vec::new();
        self.open(name)?.take(JSON_MAX).read_to_end(&mut text).map_err(Error::io(format!("reading {name}")))?;
        serde_json::from_slice(&text).map_err(|error| Error::malformed(name.to_owned(), error.to_string()))
    }
}

/// A path in a layout, which comes from its JSON files.
fn check(name: &str) -> Result<(), Error> {
    let plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain { Ok(()) } else { Err(Error::Escapes(name.to_owned())) }
}

fn docker(source: &Source) -> Result<Vec<String>, Error> {
    let manifest = source.json("manifest.json")?;
    let images = manifest.as_array().map(Vec::as_slice).unwrap_or_default();
    let [image] = images else {
        return Err(Error::malformed("manifest.json", format!("names {} images; save one at a time", images.len())));
    };
    let layers = image.get("Layers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Ok(layers.iter().filter_map(|layer| layer.as_str().map(str::to_owned)).collect())
}

/// The blob a descriptor names.
fn blob(descriptor: &Value) -> Result<String, Error> {
    let digest = descriptor.get("digest").and_then(Value::as_str).unwrap_or_default();
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(format!("blobs/sha256/{hex}"))
        }
        _ => Err(Error::malformed("index.json", format!("digest \"{digest}\" is not known; only sha256 is"))),
    }
}

/// The layers of the manifest that an index names for this machine.
fn oci(source: &Source, index: &Value, depth: usize) -> Result<Vec<String>, Error> {
    let malformed = |what: &str| Error::malformed("index.json", what);
    if let Some(layers) = index.get("layers").and_then(Value::as_array) {
        return layers.iter().map(blob).collect();
    }
    if depth > DEPTH_MAX {
        return Err(malformed("indexes within indexes without end"));
    }
    let manifests = index.get("manifests").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = |manifest: &Value, field: &str| {
        manifest.get("platform").and_then(|platform| platform.get(field)?.as_str()).map(str::to_owned)
    };
    let fits = |manifest: &&Value| {
        platform(manifest, "architecture").is_none_or(|name| name == own)
            && platform(manifest, "os").is_none_or(|name| name == "linux")
    };
    let fitting: Vec<&Value> = manifests.iter().filter(fits).collect();
    match &fitting[..] {
        [] => Err(malformed("no image for this machine in it")),
        [manifest] => oci(source, &source.json(&blob(manifest)?)?, depth + 1),
        _ => Err(malformed("several images in it; export one at a time")),
    }
}
