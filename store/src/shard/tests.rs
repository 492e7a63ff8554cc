use crate::backing::DIRECT_ALIGN;
use proptest::prelude::*;

use super::*;
use crate::geometry::Geometry;
use crate::ids::{BlockId, Generation, Incarnation, MemberId, ShardIndex, Term, VolumeId};
use crate::seal::{Codec, Sealer, TAG_LEN, padme};

const KEY: [u8; 32] = [0x55; 32];

fn header(kind: RecordKind, blocks: usize) -> RecordHeader {
    let is_copy = kind.is_copy();
    RecordHeader {
        kind,
        volume: VolumeId([0x11; 16]),
        segment: SegmentId(9),
        incarnation: Incarnation([0x66; 16]),
        offset: 4096 + 512,
        shard: ShardIndex(1),
        geometry: Geometry::new(4, 2).unwrap(),
        message_len: 16_000,
        shard_len: if is_copy { 16_000 } else { 4032 },
        stripe_tag: [0x77; 32],
        payload_checksum: [0x88; 32],
        blocks: (0..blocks)
            .map(|index| BlockEntry { id: BlockId([index as u8; 16]), offset: index as u32 * 60, len: 60 })
            .collect(),
        commit: kind.is_commit().then_some(CommitHeader {
            term: Term(3),
            generation: Generation(1000),
            part: 1,
            parts: 2,
            ack_set: 0b1_1011,
            copies: 0b11_1011,
            random: [0x99; 32],
        }),
    }
}

fn all() -> Vec<RecordHeader> {
    vec![
        header(RecordKind::Stripe, 1),
        header(RecordKind::Stripe, 4),
        header(RecordKind::Stripe, BLOCKS_PER_STRIPE_MAX),
        header(RecordKind::CommitShard, 0),
        header(RecordKind::CommitCopy, 0),
        header(RecordKind::Footer, 0),
    ]
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        volume: VolumeId([0x11; 16]),
        segment: SegmentId(9),
        incarnation: Incarnation([0x66; 16]),
        geometry: Geometry::new(4, 2).unwrap(),
        slot: ShardIndex(5),
        placement: (0..6u8).map(|slot| (slot != 2).then_some(MemberId([slot + 1; 16]))).collect(),
        capacity: 64 << 20,
        term: Term(3),
        created_generation: Generation(999),
    }
}

/// Computed once and pinned: if one of these changes, records on disk can no longer be read.
#[test]
fn encodings_are_pinned() {
    let of = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..32].to_owned();
    let got: Vec<String> = all().iter().map(|header| of(&header.encode(&KEY))).collect();
    assert_eq!(
        got,
        [
            "306093a7ff0fe45278eca4fef92fd552",
            "73a0f6350fb7bb5409f396352643b878",
            "71e57e51b422af14b104e3f463f98fb9",
            "388f13ade8a946be5f5dc0ddf4414dcb",
            "71ea6cc11d09cd6bcd02e629aed9f3eb",
            "defff186b9c877789baf434df8ceac32"
        ]
    );
    assert_eq!(of(&segment_header().encode(&KEY)), "3c283ee3858993fca8765d3f7d238c02");
    let stripe = header(RecordKind::Stripe, 1).encode(&KEY);
    assert_eq!(&stripe[..16], b"brineREC\x01\x00\x01\x01\x04\x02\x01\x00");
    assert_eq!(stripe[16..28], [0, 1, 0, 0, 0xc0, 0x0f, 0, 0, 0x80, 0x3e, 0, 0]);
}

#[test]
fn header_lengths() {
    let lens: Vec<usize> = all().iter().map(RecordHeader::encoded_len).collect();
    assert_eq!(lens, [256, 320, HEADER_LEN_MAX, 256, 256, 192]);
    assert_eq!(HEADER_LEN_MAX, 6336);
    assert_eq!(record_len(256, 1), 512);
    assert_eq!(record_len(256, 256), 512);
    assert_eq!(record_len(256, 257), 1024);
}

/// The table of FORMAT.md section 10: chunk lengths in one stripe, shard length, record length in each of six files.
#[test]
fn worked_sizes() {
    let cases: [(&[usize], usize, u64); 5] = [
        (&[1], 64, 512),
        (&[4096], 1088, 1536),
        (&[4096; 31], 33_984, 35_328),
        (&[128 << 10], 32_832, 33_280),
        (&[37_857], 9_792, 10_240),
    ];
    for (chunks, shard_len, expected) in cases {
        let sealed: usize = chunks.iter().map(|&len| Sealer::sealed_len(Codec::None, len)).sum();
        assert!(sealed <= 4 * shard_len && shard_len % 64 == 0);
        let header_len = RecordHeader::header_len(chunks.len(), RecordKind::Stripe);
        assert_eq!(record_len(header_len, shard_len), expected, "{} chunks of {}", chunks.len(), chunks[0]);
    }
    let sealed: Vec<usize> = [1, 4096, 128 << 10, 37_857].map(|len| Sealer::sealed_len(Codec::None, len)).into();
    assert_eq!(sealed, [25, 4120, 131_096, 38_936]);

    // Commit records: bytes of changes, message, a whole copy, one of four data shards.
    for (changes, message_len, copy, shard) in [(413, 560, 4096, 512), (414, 560, 4096, 512), (4403, 4624, 8192, 1536)]
    {
        assert_eq!(padme(128 + changes) + TAG_LEN, message_len);
        let header_len = RecordHeader::header_len(0, RecordKind::CommitCopy);
        assert_eq!(((header_len + message_len) as u64).next_multiple_of(DIRECT_ALIGN), copy);
        assert_eq!(record_len(header_len, message_len.div_ceil(4).next_multiple_of(64)), shard);
    }
}

#[test]
fn headers_round_trip_and_name_the_wrong_key() {
    for header in all() {
        let mut bytes = header.encode(&KEY);
        assert_eq!(bytes.len(), header.encoded_len());
        bytes.extend_from_slice(b"payload");
        let unverified = RecordHeader::decode(&bytes).unwrap();
        assert_eq!(unverified.unauthenticated(), &header);
        assert_eq!(unverified.clone().verify(&[0; 32]), Err(HeaderError::Mac));
        assert_eq!(unverified.verify(&KEY).unwrap(), header);
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    for header in [header(RecordKind::Stripe, 3), header(RecordKind::CommitCopy, 0)] {
        let bytes = header.encode(&KEY);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(matches!(RecordHeader::decode(&bytes[..len]), Err(HeaderError::Short { .. })), "{len} bytes");
        }
    }
}

#[test]
fn zeros_are_empty_and_newer_formats_are_named() {
    assert_eq!(RecordHeader::decode(&[0; 512]).unwrap_err(), HeaderError::Empty);
    assert_eq!(RecordHeader::decode(&[1; 512]).unwrap_err(), HeaderError::Magic);
    assert_eq!(SegmentHeader::decode(&[0; SEGMENT_HEADER_LEN]).unwrap_err(), HeaderError::Empty);
    let mut bytes = header(RecordKind::Stripe, 1).encode(&KEY);
    bytes[8] = 2;
    assert_eq!(RecordHeader::decode(&bytes).unwrap_err(), HeaderError::Version(2));
}

#[test]
fn what_contradicts_itself_is_not_written() {
    let broken: [fn(&mut RecordHeader); 12] = [
        |header| header.offset += 1,
        |header| header.shard = ShardIndex(6),
        |header| header.shard_len = 3999,
        |header| header.shard_len = 0,
        |header| header.blocks.clear(),
        |header| header.blocks[1].offset -= 1,
        |header| header.blocks[2].len = 20_000,
        |header| header.blocks[2].len = 16,
        |header| header.commit = self::header(RecordKind::CommitCopy, 0).commit,
        |header| header.kind = RecordKind::Footer,
        |header| header.kind = RecordKind::CommitShard,
        |header| header.message_len = u32::MAX,
    ];
    for (index, breaks) in broken.iter().enumerate() {
        let mut header = header(RecordKind::Stripe, 3);
        breaks(&mut header);
        assert!(std::panic::catch_unwind(|| header.encode(&KEY)).is_err(), "case {index}");
    }
    let commits: [fn(&mut CommitHeader); 4] = [
        |commit| commit.part = 2,
        |commit| commit.ack_set |= 1 << 6,
        |commit| commit.ack_set |= 0b100,
        |commit| commit.copies &= !0b10,
    ];
    for (index, breaks) in commits.iter().enumerate() {
        let mut header = header(RecordKind::CommitCopy, 0);
        breaks(header.commit.as_mut().unwrap());
        assert!(std::panic::catch_unwind(|| header.encode(&KEY)).is_err(), "commit case {index}");
    }
}

#[test]
fn the_quick_look_finds_the_payload_of_this_record_only() {
    let header = header(RecordKind::Stripe, 3);
    let mut bytes = header.encode(&KEY);
    let start = bytes.len();
    bytes.resize(start + header.shard_len as usize, 7);
    let found =
        |bytes: &[u8], offset, shard, life: u8| quick_check(bytes, Incarnation([life; 16]), offset, ShardIndex(shard));
    assert_eq!(found(&bytes, header.offset, 1, 0x66), Some(start..bytes.len()));
    assert_eq!(found(&bytes[..bytes.len() - 1], header.offset, 1, 0x66), None);
    assert_eq!(found(&bytes, header.offset + 512, 1, 0x66), None);
    assert_eq!(found(&bytes, header.offset, 2, 0x66), None);
    assert_eq!(found(&bytes, header.offset, 1, 0x67), None);
    bytes[0] ^= 1;
    assert_eq!(found(&bytes, header.offset, 1, 0x66), None);
    assert_eq!(found(&[], 0, 0, 0), None);
}

#[test]
fn stripe_tags_depend_on_every_tag_and_their_order() {
    let (a, b) = ([1u8; 40], [2u8; 40]);
    let tag = |messages: &[&[u8]]| stripe_tag(messages.iter().copied());
    assert_ne!(tag(&[&a, &b]), tag(&[&b, &a]));
    assert_ne!(tag(&[&a]), tag(&[&a, &a]));
    assert_eq!(tag(&[&a]), *blake3::hash(&[1; 16]).as_bytes());
}

#[test]
fn segment_headers_round_trip_and_refuse() {
    let header = segment_header();
    let bytes = header.encode(&KEY);
    assert_eq!(bytes.len(), SEGMENT_HEADER_LEN);
    let unverified = SegmentHeader::decode(&bytes).unwrap();
    assert_eq!(unverified.unauthenticated(), &header);
    assert_eq!(unverified.clone().verify(&[0; 32]), Err(HeaderError::Mac));
    assert_eq!(unverified.verify(&KEY).unwrap(), header);
    for bit in (0..bytes.len() * 8).step_by(7) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
    }
    let broken: [fn(&mut SegmentHeader); 5] = [
        |header| header.slot = ShardIndex(2),
        |header| header.slot = ShardIndex(6),
        |header| header.placement.push(None),
        |header| header.placement[0] = header.placement[1],
        |header| header.capacity = 100,
    ];
    for (index, breaks) in broken.iter().enumerate() {
        let mut header = header.clone();
        breaks(&mut header);
        assert!(std::panic::catch_unwind(|| header.encode(&KEY)).is_err(), "case {index}");
    }
}

#[test]
fn footers_round_trip_and_refuse() {
    let entry = |offset, kind| FooterEntry { offset, record_len: 1024, kind, tag_prefix: [5; 8] };
    let footer = Footer { entries: vec![entry(4096, RecordKind::Stripe), entry(8192, RecordKind::CommitCopy)] };
    let bytes = footer.encode();
    assert_eq!(bytes.len(), 8 + 2 * 24);
    assert_eq!(Footer::decode(&bytes).unwrap(), footer);
    assert_eq!(Footer::decode(&Footer::default().encode()).unwrap(), Footer::default());
    for len in 0..bytes.len() {
        assert!(Footer::decode(&bytes[..len]).is_err());
    }
    // A count that promises more than there is must not be allocated for.
    let mut lying = bytes;
    lying[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Footer::decode(&lying), Err(HeaderError::Field("number of entries")));
    let overlapping = Footer { entries: vec![entry(4096, RecordKind::Stripe), entry(4608, RecordKind::Stripe)] };
    assert!(std::panic::catch_unwind(|| overlapping.encode()).is_err());
}

/// Gives hostile bytes a sound checksum, so that the checks behind it are reached.
fn signed(mut body: Vec<u8>, magic: &[u8; 8], len: usize) -> Vec<u8> {
    body.resize(len - crate::wire::TRAILER_LEN, 0);
    body[..8].copy_from_slice(magic);
    body[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    crate::wire::append_trailer(&mut body, 0, &KEY);
    body
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = RecordHeader::decode(&bytes);
        let _ = SegmentHeader::decode(&bytes);
        let _ = Footer::decode(&bytes);
        let _ = quick_check(&bytes, Incarnation([0; 16]), 0, ShardIndex(0));
    }

    #[test]
    fn no_signed_record_header_panics(body in proptest::collection::vec(any::<u8>(), 160..160 + 72), kind in 0u8..6, blocks in 0u16..8, wide: bool) {
        let mut body = body;
        body[10] = kind;
        body[14..16].copy_from_slice(&blocks.to_le_bytes());
        if !wide {
            // Small numbers get past more checks than random ones.
            for at in [11, 12, 13, 20, 21, 24, 25] { body[at] &= 7; }
            for at in [22, 23, 26, 27, 28, 29, 30, 31] { body[at] = 0; }
            body[40..42].fill(0);
        }
        let len = if kind == 2 || kind == 3 { 256 } else { RecordHeader::header_len(usize::from(blocks), RecordKind::Stripe) };
        body[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        let bytes = signed(body, b"brineREC", len);
        if let Ok(unverified) = RecordHeader::decode(&bytes) {
            let header = unverified.verify(&KEY).unwrap();
            prop_assert_eq!(header.encode(&KEY), bytes);
        }
    }

    #[test]
    fn no_mutated_record_header_panics(index in 0usize..6, edits in proptest::collection::vec((0usize..256, any::<u8>()), 0..4)) {
        let mut bytes = all()[index].encode(&KEY);
        bytes.truncate(bytes.len() - crate::wire::TRAILER_LEN);
        let len = bytes.len();
        for (at, value) in edits {
            bytes[at % len] = value;
        }
        crate::wire::append_trailer(&mut bytes, 0, &KEY);
        if let Ok(unverified) = RecordHeader::decode(&bytes) {
            prop_assert_eq!(unverified.verify(&KEY).unwrap().encode(&KEY), bytes);
        }
    }

    #[test]
    fn no_mutated_segment_header_panics(edits in proptest::collection::vec((0usize..220, any::<u8>()), 0..4)) {
        let mut bytes = segment_header().encode(&KEY);
        for (at, value) in edits {
            bytes[at] = value;
        }
        let bytes = signed(bytes, b"brineSEG", SEGMENT_HEADER_LEN);
        if let Ok(unverified) = SegmentHeader::decode(&bytes) {
            prop_assert_eq!(unverified.verify(&KEY).unwrap().encode(&KEY), bytes);
        }
    }

    #[test]
    fn no_mutated_footer_panics(edits in proptest::collection::vec((0usize..56, any::<u8>()), 0..4)) {
        let entry = |offset| FooterEntry { offset, record_len: 1024, kind: RecordKind::Stripe, tag_prefix: [5; 8] };
        let mut bytes = Footer { entries: vec![entry(4096), entry(8192)] }.encode();
        for (at, value) in edits {
            bytes[at] = value;
        }
        if let Ok(footer) = Footer::decode(&bytes) {
            prop_assert_eq!(footer.encode(), bytes);
        }
    }
}
