use proptest::prelude::*;

use super::*;
use crate::clock::SeededEntropy;

fn keys() -> VolumeKeys {
    VolumeKeys::new(VolumeId([0x11; 16]), SecretKey::from_bytes([0x22; 32]), SecretKey::from_bytes([0x33; 32]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const SALT: Salt = Salt { domain: 7, epoch: 3, index: 1 };

/// Computed once and pinned: if one of these changes, volumes on disk no longer open.
#[test]
fn every_derivation_is_pinned() {
    let keys = keys();
    let sealer = Sealer::new(&keys);
    let digest = sealer.content_digest(BlockKind::FileData, b"brine");
    let key = sealer.block_key(&SALT, &digest);
    let derived = [
        (
            "superblock mac",
            hex(keys.superblock_mac()),
            "35bbc636ae160a1e13320a342a64ce123b6d71b5512439ea634c1af297c9a065",
        ),
        ("header mac", hex(keys.header_mac()), "b4c4b3e3bed5f96d18a1e9d01b00338ba842a43c8decee444926ff56ad284cd9"),
        ("log", hex(keys.log_key()), "9c0b52cc06e2d2aab6f9d23d84d3a6452b063092ac4372e285b3d0a23a320b6d"),
        ("database", hex(keys.database_key()), "5a2259a2faba16c568d44415f35a82e9663a7757fe50f07a8a36f2ff2d584399"),
        ("name", hex(keys.name_key()), "4b5282b760de7f4545ea4cf5bd11ba51e03f4d0d0eae63f519a7bc5a72d130d2"),
        ("fence mac", hex(keys.fence_mac()), "bee93ca6f85ffd0b9a3f678f1036917001dc27d9e06a388f2eae1e157ccb0864"),
        (
            "checkpoint pointer",
            hex(keys.checkpoint_pointer_key()),
            "6d551763f64fc538f066d0ef53ca05b44195fc63c8f2cefa7b6d551a9fd4ac5d",
        ),
        ("digest", hex(&digest.0), "4b700ba12ec81c267eb235653389a2afe8ee6e4f46623b0039e7b8b2b5a9a685"),
        (
            "digest, other kind",
            hex(&sealer.content_digest(BlockKind::Checkpoint, b"brine").0),
            "72986f7f8a4cf5bb2b5ff527e28fd2ae5568356ec2909a053a81153131ce37cf",
        ),
        ("salt", hex(&SALT.to_bytes()), "0700000000000000030000000100"),
        (
            "salt key",
            hex(sealer.salt_key(&SALT).as_slice()),
            "401009d138619094a34ab177a038f74b9212c6c79a430f95ebb6cfb5fa0dc19f",
        ),
        ("block key", hex(&key.0), "712cb51cab7cd7928ae241ff5f9da9adcc0825018c3a432158bce05f92aaed0e"),
        ("block id", Sealer::block_id(&key).to_string(), "88530ff97c9d39fe8790630b6a855b3d"),
    ];
    for (name, got, want) in derived {
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn sealed_bytes_are_pinned() {
    let sealer = Sealer::new(&keys());
    let key = BlockKey([0x44; 32]);
    let sealed = |kind, codec, plain: &[u8]| {
        let mut out = Vec::new();
        sealer.seal(kind, &key, codec, plain, &mut out);
        hex(&out)
    };
    assert_eq!(
        sealed(BlockKind::FileData, Codec::None, b"brine and salt"),
        "8d26ec565b07cc2436fa62f8c3ca47b05913fca4852739ee4f3a267dd2cd415031a3e0a138bc"
    );
    assert_eq!(
        sealed(BlockKind::Checkpoint, Codec::None, b"brine and salt"),
        "f7c916dcc446795d1d5c6dc2528984b18a75eb1c74043ceffc05ca64c07888e64f71d0452e28"
    );
    assert_eq!(sealed(BlockKind::FileData, Codec::None, b""), "35e6d6a2ae280e1046e2e513abd1067fe5953f2678254bc1");
    assert_eq!(
        sealed(BlockKind::FileData, Codec::Lz4, &[b'a'; 300]),
        "7d4575dff2b3aac62d16b219a810b2212471a6977f23f1af1441426af0a9c81dcf897f7ea0f4a3f45490"
    );
}

#[test]
fn salts_and_kinds_separate_keys() {
    let sealer = Sealer::new(&keys());
    let digest = sealer.content_digest(BlockKind::FileData, b"x");
    let salts = [SALT, Salt { domain: 8, ..SALT }, Salt { epoch: 4, ..SALT }, Salt { index: 2, ..SALT }];
    let all: std::collections::HashSet<_> = salts.iter().map(|salt| sealer.block_key(salt, &digest).0).collect();
    assert_eq!(all.len(), salts.len());
    assert_ne!(digest, sealer.content_digest(BlockKind::Checkpoint, b"x"));
}

#[test]
fn blocks_can_be_packed_one_after_another() {
    let sealer = Sealer::new(&keys());
    let mut out = b"before".to_vec();
    sealer.seal(BlockKind::FileData, &BlockKey([1; 32]), Codec::Lz4, &[7; 5000], &mut out);
    let middle = out.len();
    sealer.seal(BlockKind::FileData, &BlockKey([2; 32]), Codec::None, &[8; 5000], &mut out);
    assert_eq!(&out[..6], b"before");
    assert!(middle < 300, "5000 equal bytes compress");
    assert_eq!(out.len() - middle, Sealer::sealed_len(Codec::None, 5000));
    let (first, second) = out[6..].split_at_mut(middle - 6);
    assert_eq!(sealer.open(BlockKind::FileData, &BlockKey([1; 32]), first).unwrap().plain, &[7; 5000][..]);
    let opened = sealer.open(BlockKind::FileData, &BlockKey([2; 32]), second).unwrap();
    assert_eq!(opened.plain, &[8; 5000][..]);
    assert!(matches!(opened.plain, Cow::Borrowed(_)));
}

#[test]
fn lz4_is_kept_only_if_it_saves_an_eighth() {
    let sealer = Sealer::new(&keys());
    let mut noise = vec![0; 16 << 10];
    crate::clock::Entropy::fill(&SeededEntropy::new(1), &mut noise);
    let kept = |plain: &[u8]| {
        let mut out = Vec::new();
        let codec = sealer.seal(BlockKind::FileData, &BlockKey([1; 32]), Codec::Lz4, plain, &mut out);
        assert!(out.len() <= Sealer::sealed_len(Codec::None, plain.len()));
        codec
    };
    assert_eq!(kept(&noise), Codec::None);
    // A tenth of zeros saves less than an eighth, a fifth saves more.
    noise[..1600].fill(0);
    assert_eq!(kept(&noise), Codec::None);
    noise[..3300].fill(0);
    assert_eq!(kept(&noise), Codec::Lz4);
    for short in [&b""[..], b"a", b"aaaaaaa", b"aaaaaaaa"] {
        assert_eq!(kept(short), Codec::None);
    }
}

#[test]
fn any_flipped_bit_is_refused() {
    let sealer = Sealer::new(&keys());
    for codec in [Codec::None, Codec::Lz4] {
        let mut sealed = Vec::new();
        sealer.seal(BlockKind::FileData, &BlockKey([1; 32]), codec, &[3; 200], &mut sealed);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let result = sealer.open(BlockKind::FileData, &BlockKey([1; 32]), &mut bad);
            assert_eq!(result.unwrap_err(), OpenError::Tag, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(sealer.open(BlockKind::FileData, &BlockKey([1; 32]), &mut sealed.clone()[..len]).is_err());
        }
    }
}

#[test]
fn another_key_kind_or_volume_is_refused() {
    let sealer = Sealer::new(&keys());
    let mut sealed = Vec::new();
    sealer.seal(BlockKind::FileData, &BlockKey([1; 32]), Codec::None, b"x", &mut sealed);
    let open = |sealer: &Sealer, kind, key: u8| {
        sealer.open(kind, &BlockKey([key; 32]), &mut sealed.clone()).map(|opened| opened.codec)
    };
    assert_eq!(open(&sealer, BlockKind::FileData, 1), Ok(Codec::None));
    assert_eq!(open(&sealer, BlockKind::FileData, 2), Err(OpenError::Tag));
    assert_eq!(open(&sealer, BlockKind::Checkpoint, 1), Err(OpenError::Tag));
    let other =
        VolumeKeys::new(VolumeId([9; 16]), SecretKey::from_bytes([0x22; 32]), SecretKey::from_bytes([0x33; 32]));
    assert_eq!(open(&Sealer::new(&other), BlockKind::FileData, 1), Err(OpenError::Tag));
}

/// Seals a body that [`Sealer::seal`] would never make.
fn forge(sealer: &Sealer, body: &[u8]) -> Vec<u8> {
    let mut out = body.to_vec();
    let tag = aead::encrypt(&[1; 32], &NONCE_ZERO, &associated(&sealer.volume, Purpose::FileData), &mut out);
    out.extend_from_slice(&tag);
    out
}

#[test]
fn authentic_nonsense_is_refused() {
    let sealer = Sealer::new(&keys());
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("codec", vec![9, 0, 0, 0, 1, 0, 0, 0, 5]),
        ("reserved bytes", vec![0, 0, 1, 0, 1, 0, 0, 0, 5]),
        ("true length", vec![0, 0, 0, 0, 2, 0, 0, 0, 5]),
        ("true length", vec![0, 0, 0, 0, 0, 0, 0x11, 0, 5]),
        ("padding", vec![0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("padding", vec![0, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1]),
        ("LZ4 payload", vec![1, 0, 0, 0, 1, 0, 0, 0, 5]),
        ("LZ4 payload", vec![1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 5]),
        ("LZ4 payload", vec![1, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 5]),
    ];
    for (what, body) in cases.drain(..) {
        let error = sealer.open(BlockKind::FileData, &BlockKey([1; 32]), &mut forge(&sealer, &body)).unwrap_err();
        assert_eq!(error, OpenError::Form(what));
    }
    let mut long = vec![0; SEALED_LEN_MAX + 1];
    let error = sealer.open(BlockKind::FileData, &BlockKey([1; 32]), &mut long).unwrap_err();
    assert_eq!(error, OpenError::Length(SEALED_LEN_MAX + 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_sealed_opens_again(seed: u64, len in 0usize..70_000, step in 1usize..64, lz4: bool) {
        let sealer = Sealer::new(&keys());
        let mut plain = vec![0; len];
        crate::clock::Entropy::fill(&SeededEntropy::new(seed), &mut plain);
        for at in (0..len).filter(|at| at % 64 >= step) {
            plain[at] = 0;
        }
        let codec = if lz4 { Codec::Lz4 } else { Codec::None };
        let key = sealer.block_key(&SALT, &sealer.content_digest(BlockKind::FileData, &plain));
        let mut sealed = Vec::new();
        let kept = sealer.seal(BlockKind::FileData, &key, codec, &plain, &mut sealed);
        let opened = sealer.open(BlockKind::FileData, &key, &mut sealed).unwrap();
        prop_assert_eq!(opened.codec, kept);
        prop_assert_eq!(&opened.plain[..], &plain[..]);
    }

    /// Hostile bytes behind a right tag: whoever has one key may write what he likes under it.
    #[test]
    fn no_authentic_body_panics(body in proptest::collection::vec(any::<u8>(), 8..600), codec in 0u8..3, len in 0u32..4000) {
        let sealer = Sealer::new(&keys());
        let mut body = body;
        body[0] = codec;
        body[1..4].fill(0);
        body[4..8].copy_from_slice(&len.to_le_bytes());
        let _ = sealer.open(BlockKind::FileData, &BlockKey([1; 32]), &mut forge(&sealer, &body));
    }
}

/// Time this thread spent on a processor, ns: the machine may be busy with other things.
fn cpu_ns() -> f64 {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    line.split(' ').next().unwrap().parse().unwrap()
}

/// Run with `cargo test --release -p brine-store --lib seal -- --ignored --nocapture` for numbers.
#[test]
#[ignore = "a measurement"]
fn speed_of_hash_and_seal() {
    let sealer = Sealer::new(&keys());
    let mut plain = vec![0; 128 << 10];
    crate::clock::Entropy::fill(&SeededEntropy::new(1), &mut plain);
    let rate = |name: &str, work: &mut dyn FnMut()| {
        let rounds = 4096;
        let begin = cpu_ns();
        (0..rounds).for_each(|_| work());
        println!("{name}: {:.2} GB/s", f64::from(rounds) * f64::from(128 << 10) / (cpu_ns() - begin));
    };
    let mut out = Vec::new();
    let key = sealer.block_key(&SALT, &sealer.content_digest(BlockKind::FileData, &plain));
    rate("hash", &mut || {
        std::hint::black_box(sealer.content_digest(BlockKind::FileData, &plain));
    });
    for (name, codec) in [("none", Codec::None), ("lz4 of noise", Codec::Lz4)] {
        rate(&format!("seal, codec {name}"), &mut || {
            out.clear();
            sealer.seal(BlockKind::FileData, &key, codec, &plain, &mut out);
        });
        rate(&format!("hash and seal, codec {name}"), &mut || {
            let key = sealer.block_key(&SALT, &sealer.content_digest(BlockKind::FileData, &plain));
            out.clear();
            sealer.seal(BlockKind::FileData, &key, codec, &plain, &mut out);
        });
    }
    rate("cipher alone", &mut || {
        aead::encrypt(&key.0, &NONCE_ZERO, &[0; 17], &mut plain);
    });
    let mut sealed = Vec::new();
    sealer.seal(BlockKind::FileData, &key, Codec::None, &plain, &mut sealed);
    rate("copy and open", &mut || {
        out.clear();
        out.extend_from_slice(&sealed);
        sealer.open(BlockKind::FileData, &key, &mut out).unwrap();
    });
}
