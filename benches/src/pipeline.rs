//! What one core does with a chunk on its way to shards and back, stage by stage: median GB/s, in cache.
//!
//! Timed with the thread's CPU clock, so that waiting for a processor does not count; shared caches and memory
//! bandwidth do. Bytes are those of the chunk (GB = 1e9), also where a stage writes more (parity) or touches less.
//! A new stage is one closure: see [`stages`].

use std::fmt::Write;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use brine_store::erasure::{Coder, Kernel, kernel_name};
use brine_store::geometry::Geometry;
use brine_store::ids::{Incarnation, SegmentId, ShardIndex, VolumeId};
use brine_store::seal::{BlockKind, Codec, Salt, Sealer, SecretKey, VolumeKeys};
use brine_store::shard::{BlockEntry, RecordHeader, RecordKind, payload_checksum};
use nix::time::{ClockId, clock_gettime};
use reed_solomon_erasure::galois_8::ReedSolomon;

const HELP: &str = "\
bench-pipeline: speed of one core, stage by stage

  --chunk BYTES      chunk length (default 131072)
  --geometry K+M     data and parity shards (default 4+2)
  --samples N        samples a stage, of which the median is shown (default 9)
  --only TEXT        only stages whose name contains TEXT
  --json             print JSON instead of a table
";

/// CPU time of one sample: thousands of clock ticks, and short enough for 20 stages to end within seconds.
const SAMPLE: Duration = Duration::from_millis(20);

struct Options {
    chunk_len: usize,
    geometry: Geometry,
    samples: usize,
    only: String,
    json: bool,
}

impl Options {
    /// `None`: help was asked for.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            chunk_len: 128 * 1024,
            geometry: Geometry::default_for(6).ok_or("no default geometry")?,
            samples: 9,
            only: String::new(),
            json: false,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("chunk") => options.chunk_len = parser.value()?.parse()?,
                Long("geometry") => options.geometry = parser.value()?.parse_with(parse_geometry)?,
                Long("samples") => options.samples = parser.value()?.parse()?,
                Long("only") => options.only = parser.value()?.string()?,
                Long("json") => options.json = true,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(argument.unexpected()),
            }
        }
        if options.chunk_len == 0 || options.samples == 0 {
            return Err("--chunk and --samples must be at least 1".into());
        }
        Ok(Some(options))
    }
}

fn parse_geometry(text: &str) -> Result<Geometry, &'static str> {
    let numbers = text.split_once('+').and_then(|(data, parity)| Some((data.parse().ok()?, parity.parse().ok()?)));
    numbers.and_then(|(data, parity)| Geometry::new(data, parity)).ok_or("a geometry is K+M, for example 4+2")
}

/// Something that is done with one chunk, again and again.
struct Stage {
    name: String,
    run: Box<dyn FnMut()>,
}

impl Stage {
    fn new(name: impl Into<String>, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// GB/s of one stage.
struct Speed {
    name: String,
    median: f64,
    best: f64,
    worst: f64,
}

/// All stages, in the order of the data's way. A stage owns what it works on and does one chunk a call.
fn stages(options: &Options) -> Vec<Stage> {
    let chunk = noise(options.chunk_len);
    let shards = stripe(&chunk, options.geometry);
    let hash = Stage::new("hash, blake3", move || {
        black_box(blake3::hash(black_box(&chunk)));
    });
    let mut stages = vec![hash];
    stages.extend(seal_stages(options));
    stages.extend(encode_stages(options.geometry, &shards));
    stages.extend(reconstruct_stages(options.geometry, &shards));
    stages
}

/// What a chunk goes through when it is written (with coding, checksums and headers, too), known already, or read.
fn seal_stages(options: &Options) -> Vec<Stage> {
    let keys = VolumeKeys::new(VolumeId([1; 16]), SecretKey::from_bytes([2; 32]), SecretKey::from_bytes([3; 32]));
    let header_mac = *keys.header_mac();
    let sealer = Arc::new(Sealer::new(&keys));
    let salt = Salt { domain: 0, epoch: 0, index: 0 };
    let chunk = Arc::new(noise(options.chunk_len));
    let geometry = options.geometry;

    let (known_sealer, known_chunk) = (sealer.clone(), chunk.clone());
    let known = Stage::new("duplicate (digest, key, id)", move || {
        let digest = known_sealer.content_digest(BlockKind::FileData, black_box(&known_chunk));
        black_box(Sealer::block_id(&known_sealer.block_key(&salt, &digest)));
    });

    let (seal_sealer, seal_chunk) = (sealer.clone(), chunk.clone());
    let mut sealed = Vec::new();
    let seal = Stage::new("seal (digest, key, AES-256-GCM-SIV)", move || {
        sealed.clear();
        let digest = seal_sealer.content_digest(BlockKind::FileData, black_box(&seal_chunk));
        let key = seal_sealer.block_key(&salt, &digest);
        seal_sealer.seal(BlockKind::FileData, &key, Codec::None, &seal_chunk, &mut sealed);
        black_box(&sealed);
    });

    let (write_sealer, write_chunk) = (sealer.clone(), chunk.clone());
    let coder = Coder::new(geometry);
    let mut shards = Vec::new();
    let write = Stage::new("write (seal, code, shard checksums, headers)", move || {
        shards.clear();
        let digest = write_sealer.content_digest(BlockKind::FileData, black_box(&write_chunk));
        let key = write_sealer.block_key(&salt, &digest);
        write_sealer.seal(BlockKind::FileData, &key, Codec::None, &write_chunk, &mut shards);
        let sealed_len = shards.len();
        let shard_len = sealed_len.div_ceil(geometry.data()).next_multiple_of(64);
        shards.resize(shard_len * geometry.total(), 0);
        let (data, parity) = shards.split_at_mut(shard_len * geometry.data());
        let data: Vec<&[u8]> = data.chunks_exact(shard_len).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(shard_len).collect();
        coder.encode(&data, &mut parity);
        for (index, shard) in shards.chunks_exact(shard_len).enumerate() {
            let header = RecordHeader {
                kind: RecordKind::Stripe,
                volume: VolumeId([1; 16]),
                segment: SegmentId(1),
                incarnation: Incarnation([4; 16]),
                offset: 4096,
                shard: ShardIndex(index as u8),
                geometry,
                message_len: sealed_len as u32,
                shard_len: shard_len as u32,
                stripe_tag: [5; 32],
                payload_checksum: payload_checksum(shard),
                blocks: vec![BlockEntry { id: Sealer::block_id(&key), offset: 0, len: sealed_len as u32 }],
                commit: None,
            };
            black_box(header.encode(&header_mac));
        }
    });

    let digest = sealer.content_digest(BlockKind::FileData, &chunk);
    let key = sealer.block_key(&salt, &digest);
    let mut stored = Vec::new();
    sealer.seal(BlockKind::FileData, &key, Codec::None, &chunk, &mut stored);
    let mut buffer = Vec::new();
    let open = Stage::new("open (copy, AES-256-GCM-SIV)", move || {
        buffer.clear();
        buffer.extend_from_slice(black_box(&stored));
        black_box(sealer.open(BlockKind::FileData, &key, &mut buffer).expect("what was sealed opens").plain.len());
    });
    vec![known, seal, write, open]
}

fn encode_stages(geometry: Geometry, shards: &[Vec<u8>]) -> Vec<Stage> {
    let k = geometry.data();
    let mut stages = Vec::new();
    // The crate refuses m=0, for which there is nothing to compute.
    let Ok(reference) = ReedSolomon::new(k, geometry.parity()) else { return stages };
    for kernel in Kernel::ALL {
        let Some(coder) = Coder::with_kernel(geometry, kernel) else { continue };
        let mut shards = shards.to_vec();
        stages.push(Stage::new(format!("encode, {}", kernel.name()), move || {
            with_split(black_box(&mut shards), k, |data, parity| coder.encode(data, parity));
        }));
    }
    let mut shards = shards.to_vec();
    stages.push(Stage::new("encode, reed-solomon-erasure", move || {
        with_split(black_box(&mut shards), k, |data, parity| {
            reference.encode_sep(data, parity).expect("shards of this geometry");
        });
    }));
    stages
}

/// The first one and the first two data shards, from the k shards after them.
fn reconstruct_stages(geometry: Geometry, shards: &[Vec<u8>]) -> Vec<Stage> {
    let k = geometry.data();
    let mut stages = Vec::new();
    for lost in 1..=geometry.parity().min(k).min(2) {
        let mut kernels = vec![Kernel::best(), Kernel::Scalar];
        kernels.dedup();
        for kernel in kernels {
            let Some(coder) = Coder::with_kernel(geometry, kernel) else { continue };
            let shards = shards.to_vec();
            let mut out = vec![vec![0; shards[0].len()]; lost];
            let want: Vec<ShardIndex> = (0..lost).map(|index| ShardIndex(index as u8)).collect();
            stages.push(Stage::new(format!("reconstruct {lost} data, {}", kernel.name()), move || {
                let given = black_box(&shards).iter().enumerate().skip(lost).take(k);
                let given: Vec<(ShardIndex, &[u8])> =
                    given.map(|(index, shard)| (ShardIndex(index as u8), shard.as_slice())).collect();
                let mut out: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
                coder.reconstruct(&given, &want, &mut out).expect("k shards are given");
                black_box(out);
            }));
        }
        let Ok(reference) = ReedSolomon::new(k, geometry.parity()) else { continue };
        let mut shards = shards.to_vec();
        stages.push(Stage::new(format!("reconstruct {lost} data, reed-solomon-erasure"), move || {
            let shards = black_box(&mut shards).iter_mut().enumerate();
            let mut shards: Vec<(&mut [u8], bool)> =
                shards.map(|(index, shard)| (shard.as_mut_slice(), index >= lost)).collect();
            reference.reconstruct_data(&mut shards).expect("k shards are given");
        }));
    }
    stages
}

/// The chunk cut into k data shards, the last ones padded, and their m parity shards.
fn stripe(chunk: &[u8], geometry: Geometry) -> Vec<Vec<u8>> {
    let shard_len = chunk.len().div_ceil(geometry.data());
    let mut shards: Vec<Vec<u8>> = chunk.chunks(shard_len).map(<[u8]>::to_vec).collect();
    shards.resize(geometry.total(), Vec::new());
    shards.iter_mut().for_each(|shard| shard.resize(shard_len, 0));
    with_split(&mut shards, geometry.data(), |data, parity| Coder::new(geometry).encode(data, parity));
    shards
}

/// Calls `f` with data and parity shards as slices.
fn with_split(shards: &mut [Vec<u8>], data: usize, f: impl FnOnce(&[&[u8]], &mut [&mut [u8]])) {
    let (data, parity) = shards.split_at_mut(data);
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    f(&data, &mut parity);
}

/// Bytes that neither compress nor repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// CPU time this thread has used.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has a CPU clock for each thread");
    Duration::from(now)
}

/// CPU time of `calls` calls.
fn time(stage: &mut Stage, calls: u32) -> Duration {
    let start = cpu_time();
    (0..calls).for_each(|_| (stage.run)());
    cpu_time() - start
}

fn measure(mut stage: Stage, options: &Options) -> Speed {
    // Warms up as it finds how many calls make a sample.
    let mut calls = 1;
    let calls = loop {
        let taken = time(&mut stage, calls);
        if taken >= SAMPLE {
            break calls;
        }
        let estimate = SAMPLE.as_secs_f64() / taken.as_secs_f64().max(1e-9) * f64::from(calls) * 1.1;
        calls = (estimate as u32).clamp(calls + 1, calls.saturating_mul(100));
    };
    let bytes = f64::from(calls) * options.chunk_len as f64;
    let mut samples: Vec<f64> =
        (0..options.samples).map(|_| bytes / time(&mut stage, calls).as_secs_f64() / 1e9).collect();
    samples.sort_unstable_by(f64::total_cmp);
    Speed { name: stage.name, median: samples[samples.len() / 2], best: samples[samples.len() - 1], worst: samples[0] }
}

fn as_table(options: &Options, speeds: &[Speed]) -> String {
    let mut out = format!(
        "chunk {} bytes, geometry {}, kernel {}; GB/s of one core, median of {} (worst .. best)\n",
        options.chunk_len,
        options.geometry,
        kernel_name(),
        options.samples,
    );
    for Speed { name, median, best, worst } in speeds {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<44} {median:>8.2}  ({worst:.2} .. {best:.2})");
    }
    out
}

fn as_json(options: &Options, speeds: &[Speed]) -> String {
    let round = |speed: f64| (speed * 1000.0).round() / 1000.0;
    let stages: Vec<serde_json::Value> = speeds
        .iter()
        .map(|speed| {
            serde_json::json!({
                "stage": speed.name,
                "median_gb_s": round(speed.median),
                "worst_gb_s": round(speed.worst),
                "best_gb_s": round(speed.best),
            })
        })
        .collect();
    let report = serde_json::json!({
        "chunk_bytes": options.chunk_len,
        "geometry": options.geometry.to_string(),
        "kernel": kernel_name(),
        "samples": options.samples,
        "stages": stages,
    });
    format!("{report:#}\n")
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bench-pipeline: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    let chosen = stages(&options).into_iter().filter(|stage| stage.name.contains(&options.only));
    let speeds: Vec<Speed> = chosen.map(|stage| measure(stage, &options)).collect();
    print!("{}", if options.json { as_json(&options, &speeds) } else { as_table(&options, &speeds) });
    ExitCode::SUCCESS
}
