//! `brine format`.

use std::path::PathBuf;

use brine_store::geometry::Geometry;
use brine_store::volume::{Codec, DomainPolicy, FormatOptions, Formatted, KdfCost, format};
use lexopt::{Arg, Parser};
use serde_json::json;

use super::secret::SecretArgs;
use super::{args, output};
use crate::config::{CODECS, DOMAINS, codec, domain, size};
use crate::exit_code::{ExitCode, Failure};
use crate::mount::harden;
use crate::telemetry;

/// Chunk length of a new volume, as a power of two, unless asked otherwise: 128 KiB, as much as the kernel reads at once.
const CHUNK_BITS: u8 = 17;

struct Asked {
    directories: Vec<PathBuf>,
    data: Option<u8>,
    parity: Option<u8>,
    secret: SecretArgs,
    state_dir: Option<PathBuf>,
    label: String,
    copies: u16,
    domain: DomainPolicy,
    codec: Codec,
    chunk_bits: u8,
    history: bool,
    kdf: KdfCost,
    json: bool,
}

pub(super) fn run(parser: Parser) -> Result<ExitCode, Failure> {
    let asked = parse(parser)?;
    harden();
    telemetry::log_to_terminal();
    let geometry = geometry(&asked)?;
    let json = asked.json;
    for directory in &asked.directories {
        // Before a passphrase is asked for.
        if !directory.is_dir() {
            let shown = directory.display();
            return Err(Failure::new(
                ExitCode::NotFound,
                format!("{shown}: no such directory (make it first: `mkdir -p {shown}`)"),
            ));
        }
    }
    let options = FormatOptions {
        directories: asked.directories,
        geometry,
        secret: asked.secret.for_new_slot()?,
        state_dir: asked.state_dir.map(|path| args::absolute(&path)),
        copies: asked.copies,
        domain: asked.domain,
        codec: asked.codec,
        chunk_bits: asked.chunk_bits,
        history: asked.history,
        label: asked.label,
        kdf: asked.kdf,
    };
    let formatted = format(&options)?;
    if json {
        output::say_json(&json!({
            "volume": formatted.volume.to_string(),
            "label": options.label,
            "geometry": { "data": formatted.geometry.data(), "parity": formatted.geometry.parity() },
            "directories": formatted.directories.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
            "state_dir": formatted.state_dir.to_string_lossy(),
            "recovery_key": formatted.recovery_key.as_str(),
            "warnings": formatted.warnings,
        }));
    } else {
        show(&formatted, &options.label);
    }
    Ok(ExitCode::Success)
}

fn parse(mut parser: Parser) -> Result<Asked, Failure> {
    let mut asked = Asked {
        directories: Vec::new(),
        data: None,
        parity: None,
        secret: SecretArgs::default(),
        state_dir: None,
        label: String::new(),
        copies: 1,
        domain: DomainPolicy::Volume,
        codec: Codec::None,
        chunk_bits: CHUNK_BITS,
        history: true,
        kdf: KdfCost::Default,
        json: false,
    };
    while let Some(argument) = parser.next()? {
        let Arg::Long(name) = argument else {
            args::positional(argument, &mut asked.directories)?;
            continue;
        };
        let name = name.to_owned();
        match name.as_str() {
            "data" => asked.data = Some(args::count(&mut parser, "--data", 1, 64)? as u8),
            "parity" => asked.parity = Some(args::count(&mut parser, "--parity", 0, 63)? as u8),
            "state-dir" => asked.state_dir = Some(args::path(&mut parser, "--state-dir")?),
            "label" => asked.label = args::word(&mut parser)?,
            "copies" => asked.copies = args::count(&mut parser, "--copies", 1, 65_535)? as u16,
            "domain" => asked.domain = choice(&mut parser, "--domain", domain, DOMAINS)?,
            "compress" => asked.codec = choice(&mut parser, "--compress", codec, CODECS)?,
            "no-history" => asked.history = false,
            "chunk-size" => asked.chunk_bits = choice(&mut parser, "--chunk-size", chunk_bits, CHUNK_SIZES)?,
            "kdf" => asked.kdf = choice(&mut parser, "--kdf", kdf, "default or fast")?,
            "json" => asked.json = true,
            other => {
                if !asked.secret.take(other, &mut parser)? {
                    return Err(Failure::usage(format!("unknown option --{other}")));
                }
            }
        }
    }
    if asked.directories.is_empty() {
        return Err(Failure::usage("give the directories the volume is made of, one a disk if you can"));
    }
    Ok(asked)
}

/// Allowed values of `--chunk-size`.
const CHUNK_SIZES: &str = "a power of two from 4K to 1M";

fn chunk_bits(word: &str) -> Option<u8> {
    let bytes = size(word).filter(|bytes| bytes.is_power_of_two())?;
    u8::try_from(bytes.trailing_zeros()).ok().filter(|bits| (12..=20).contains(bits))
}

fn kdf(word: &str) -> Option<KdfCost> {
    match word {
        "default" => Some(KdfCost::Default),
        "fast" => Some(KdfCost::Fast),
        _ => None,
    }
}

fn choice<T>(parser: &mut Parser, option: &str, read: fn(&str) -> Option<T>, allowed: &str) -> Result<T, Failure> {
    let word = args::word(parser)?;
    read(&word).ok_or_else(|| Failure::usage(format!("{option} {word}: give {allowed}")))
}

fn geometry(asked: &Asked) -> Result<Option<Geometry>, Failure> {
    match (asked.data, asked.parity) {
        (None, None) => Ok(None),
        (Some(data), Some(parity)) => Geometry::new(data, parity)
            .map(Some)
            .ok_or_else(|| Failure::usage(format!("--data {data} --parity {parity}: at most 64 shards in all"))),
        _ => Err(Failure::usage(
            "--data and --parity are given together: how many shards carry data, how many may be lost",
        )),
    }
}

fn show(formatted: &Formatted, label: &str) {
    let geometry = formatted.geometry;
    let named = if label.is_empty() { String::new() } else { format!(" \"{label}\"") };
    output::say(&format!("Made volume{named} {}", formatted.volume));
    let survives = match geometry.parity() {
        0 => "the loss of any one loses data".to_owned(),
        1 => "any one of them may be lost".to_owned(),
        parity => format!("any {parity} of them may be lost"),
    };
    output::say(&format!("  {} directories, {geometry}: {survives}", formatted.directories.len()));
    for path in &formatted.directories {
        output::say(&format!("    {}", path.display()));
    }
    output::say(&format!("  metadata database in {}", formatted.state_dir.display()));
    for warning in &formatted.warnings {
        output::warn(warning);
    }
    output::say(&format!(
        "\nRecovery key, shown this once and stored nowhere. It opens the volume if your secret is lost:\n\n  {}\n\n\
         Write it down and keep it apart from these disks.\n",
        formatted.recovery_key.as_str()
    ));
    if let Some(first) = formatted.directories.first() {
        output::say(&format!("Next: `brine mount {} MOUNTPOINT`", first.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Asked, Failure> {
        parse(Parser::from_args(words))
    }

    #[test]
    fn options_are_understood() {
        let asked = parsed(&[
            "/a",
            "--data",
            "4",
            "--parity=2",
            "/b",
            "--label",
            "photos",
            "--copies",
            "3",
            "--domain",
            "owner",
            "--compress",
            "lz4",
            "--chunk-size",
            "1M",
            "--state-dir",
            "/s",
            "--kdf",
            "fast",
            "--json",
            "--",
            "--c",
        ])
        .unwrap();
        assert_eq!(asked.directories, [PathBuf::from("/a"), "/b".into(), "--c".into()]);
        assert_eq!(geometry(&asked).unwrap(), Geometry::new(4, 2));
        assert_eq!((asked.label.as_str(), asked.copies, asked.chunk_bits, asked.json), ("photos", 3, 20, true));
        assert!(asked.domain == DomainPolicy::Owner && asked.codec == Codec::Lz4 && asked.kdf == KdfCost::Fast);
        assert_eq!(parsed(&["/a"]).unwrap().chunk_bits, 17);
    }

    #[test]
    fn wrong_options_say_what_is_allowed() {
        let complaint = |words: &[&str]| parsed(words).map(|_| ()).unwrap_err().message().to_owned();
        assert!(complaint(&[]).contains("directories"));
        assert!(complaint(&["/a", "--chunk-size", "3000"]).contains(CHUNK_SIZES));
        assert!(complaint(&["/a", "--chunk-size", "2M"]).contains(CHUNK_SIZES));
        assert!(complaint(&["/a", "--domain", "group"]).contains(DOMAINS));
        assert!(complaint(&["/a", "--copies", "0"]).contains("1 to 65535"));
        assert!(complaint(&["/a", "--frobnicate"]).contains("--frobnicate"));
        assert!(complaint(&["/a", "--key-file", "k", "--passphrase-file", "p"]).contains("one of"));
        assert!(complaint(&["/a", "--key-file", ""]).contains("empty"));
        assert!(geometry(&parsed(&["/a", "--data", "4"]).unwrap()).unwrap_err().message().contains("together"));
        assert!(geometry(&parsed(&["/a", "--data", "64", "--parity", "1"]).unwrap()).is_err());
    }
}
