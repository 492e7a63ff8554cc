use proptest::prelude::*;

use super::*;
use crate::clock::SeededEntropy;
use crate::ids::{BlockKey, SegmentId};
use crate::shard::Location;

const VOLUME: VolumeId = VolumeId([0x11; 16]);
const KEY: [u8; 32] = [0x22; 32];
const RANDOM: [u8; 32] = [0x33; 32];

fn record() -> CommitRecord {
    CommitRecord {
        volume: VOLUME,
        term: Term(2),
        generation: Generation(10),
        part: 0,
        parts: 1,
        durable_through: Generation(8),
        previous: ChainHash([0x44; 32]),
        rows_digest: Some(RowsDigest { generation: Generation(0), digest: [0x55; 32] }),
        changes: b"some rows".to_vec(),
    }
}

fn header(record: &CommitRecord, random: [u8; 32]) -> CommitHeader {
    let CommitRecord { term, generation, part, parts, .. } = *record;
    CommitHeader { term, generation, part, parts, ack_set: 1, copies: 1, random }
}

fn whole(changes_len: usize) -> GenerationRecord {
    let mut changes = vec![0; changes_len];
    SeededEntropy::new(5).fill(&mut changes);
    GenerationRecord {
        volume: VOLUME,
        term: Term(2),
        generation: Generation(10),
        durable_through: Generation(9),
        previous: ChainHash([0x44; 32]),
        rows_digest: Some(RowsDigest { generation: Generation(9), digest: [0x55; 32] }),
        changes,
    }
}

fn opened(sealed: &[SealedPart]) -> Vec<(CommitRecord, ChainHash)> {
    let of = |part: &SealedPart| {
        let header = CommitHeader {
            term: Term(2),
            generation: Generation(10),
            part: part.part,
            parts: part.parts,
            ack_set: 1,
            copies: 1,
            random: part.random,
        };
        CommitRecord::open(&KEY, VOLUME, &header, &mut part.message.clone()).unwrap()
    };
    sealed.iter().map(of).collect()
}

#[test]
fn a_sealed_record_is_pinned() {
    let mut sealed = Vec::new();
    let chain = record().seal(&KEY, &RANDOM, &mut sealed);
    assert_eq!(sealed.len(), padme(128 + 9) + 16);
    assert_eq!(chain.to_string(), "1f36d794e66cee337a08f5dfcd9d1dc0a0ae77b0828b70c1cdcf6e7843d89bcf");
    let index = ImageIndex {
        level: 1,
        volume: VOLUME,
        generation: Generation(10),
        chain,
        rows_digest: [7; 32],
        entries: vec![ImageEntry {
            key: BlockKey([8; 32]),
            location: Location { segment: SegmentId(9), stripe: 4096, offset: 64, len: 100 },
        }],
    };
    assert_eq!(
        blake3::hash(&index.encode()).to_hex().as_str(),
        "1373754b80525097846265123504cd8edbb9508268ff327ad7732c6a974d23d4"
    );
}

#[test]
fn a_record_round_trips_behind_what_precedes_it() {
    let mut out = b"before".to_vec();
    let chain = record().seal(&KEY, &RANDOM, &mut out);
    assert_eq!(chain, ChainHash::of(&out[6..]));
    let got = CommitRecord::open(&KEY, VOLUME, &header(&record(), RANDOM), &mut out[6..]).unwrap();
    assert_eq!(got, (record(), chain));
}

#[test]
fn other_keys_volumes_headers_and_bytes_are_refused() {
    let mut sealed = Vec::new();
    record().seal(&KEY, &RANDOM, &mut sealed);
    let good = header(&record(), RANDOM);
    let open = |key: &[u8; 32], volume, header: &CommitHeader, sealed: &[u8]| {
        CommitRecord::open(key, volume, header, &mut sealed.to_vec()).map(|_| ()).unwrap_err()
    };
    assert_eq!(open(&[0; 32], VOLUME, &good, &sealed), RecordError::Tag);
    assert_eq!(open(&KEY, VolumeId([0; 16]), &good, &sealed), RecordError::Tag);
    assert_eq!(open(&KEY, VOLUME, &CommitHeader { random: [0; 32], ..good }, &sealed), RecordError::Tag);
    let other = CommitHeader { generation: Generation(11), ..good };
    assert_eq!(open(&KEY, VOLUME, &other, &sealed), RecordError::Form("the header says otherwise"));
    for bit in 0..sealed.len() * 8 {
        let mut bad = sealed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(&KEY, VOLUME, &good, &bad), RecordError::Tag, "bit {bit}");
    }
    for len in 0..sealed.len() {
        open(&KEY, VOLUME, &good, &sealed[..len]);
    }
}

#[test]
fn long_generations_are_cut_into_a_chain_of_parts() {
    let whole = whole(2 * CHANGES_LEN_MAX + 1);
    let sealed = whole.seal(&KEY, &SeededEntropy::new(1)).unwrap();
    assert_eq!(sealed.len(), 3);
    assert!(sealed.iter().all(|part| part.message.len() <= 16 << 20));
    let parts = opened(&sealed);
    assert_eq!(parts[1].0.previous, sealed[0].chain);
    let (joined, chain) = GenerationRecord::join(parts.clone()).unwrap();
    assert_eq!(chain, sealed[2].chain);
    assert!(joined == whole);

    let fails = |parts: Vec<(CommitRecord, ChainHash)>| assert!(GenerationRecord::join(parts).is_err());
    fails(vec![]);
    fails(parts[..2].to_vec());
    fails(parts[1..].to_vec());
    fails(vec![parts[0].clone(), parts[2].clone(), parts[1].clone()]);
    fails(vec![parts[0].clone(), parts[1].clone(), parts[1].clone()]);
    let mut unchained = parts;
    unchained[1].1 = ChainHash([0; 32]);
    fails(unchained);
}

#[test]
fn an_empty_generation_is_one_part() {
    let sealed = whole(0).seal(&KEY, &SeededEntropy::new(1)).unwrap();
    assert_eq!(sealed.len(), 1);
    assert_eq!(GenerationRecord::join(opened(&sealed)).unwrap().0, whole(0));
}

#[test]
fn the_longest_message_keeps_its_length_when_padded() {
    assert_eq!(padme(PLAIN_LEN_MAX), PLAIN_LEN_MAX);
}

#[test]
fn what_contradicts_itself_is_not_written() {
    let broken: [fn(&mut CommitRecord); 4] = [
        |record| record.part = 1,
        |record| (record.part, record.parts) = (1, 2),
        |record| record.durable_through = record.generation,
        |record| record.parts = PARTS_MAX + 1,
    ];
    for (index, breaks) in broken.iter().enumerate() {
        let mut record = record();
        breaks(&mut record);
        let sealing = std::panic::catch_unwind(|| record.seal(&KEY, &RANDOM, &mut Vec::new()));
        assert!(sealing.is_err(), "case {index}");
    }
}

#[test]
fn image_indexes_round_trip_and_refuse() {
    let entry = |index: u64| ImageEntry {
        key: BlockKey([index as u8; 32]),
        location: Location { segment: SegmentId(index), stripe: index << 12, offset: 0, len: 100 },
    };
    let index = ImageIndex {
        level: 0,
        volume: VOLUME,
        generation: Generation(3),
        chain: ChainHash([1; 32]),
        rows_digest: [2; 32],
        entries: (0..IMAGE_ENTRIES_MAX as u64).map(entry).collect(),
    };
    let bytes = index.encode();
    assert!(bytes.len() <= CHUNK);
    assert!(ImageIndex::decode(&bytes).unwrap() == index);
    for len in [0, 7, 8, 103, 104, bytes.len() - 1] {
        assert!(ImageIndex::decode(&bytes[..len]).is_err());
    }
    let mut lying = bytes;
    lying[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(ImageIndex::decode(&lying), Err(RecordError::Form("number of entries")));
}

const CHUNK: usize = crate::seal::CHUNK_LEN_MAX;

/// Seals a body that [`CommitRecord::seal`] would never make.
fn forge(mut body: Vec<u8>) -> Vec<u8> {
    let key = message_key(&KEY, &RANDOM);
    let tag = encrypt(key.as_bytes(), &NONCE_ZERO, &associated(&VOLUME, Purpose::CommitRecord), &mut body);
    body.extend_from_slice(&tag);
    body
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        let _ = ImageIndex::decode(&bytes);
        let _ = CommitRecord::open(&KEY, VOLUME, &header(&record(), RANDOM), &mut bytes);
    }

    #[test]
    fn no_authentic_mutation_panics(edits in proptest::collection::vec((0usize..144, any::<u8>()), 0..4)) {
        let mut sealed = Vec::new();
        record().seal(&KEY, &RANDOM, &mut sealed);
        let len = sealed.len() - TAG_LEN;
        let (body, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().unwrap();
        let key = message_key(&KEY, &RANDOM);
        prop_assert!(decrypt(key.as_bytes(), &NONCE_ZERO, &associated(&VOLUME, Purpose::CommitRecord), body, tag));
        for (at, value) in edits {
            sealed[at % len] = value;
        }
        let forged = forge(sealed[..len].to_vec());
        let opened = CommitRecord::open(&KEY, VOLUME, &header(&record(), RANDOM), &mut forged.clone());
        if let Ok((record, _)) = opened {
            let mut again = Vec::new();
            record.seal(&KEY, &RANDOM, &mut again);
            prop_assert_eq!(again, forged);
        }
    }

    #[test]
    fn image_indexes_survive_mutation(edits in proptest::collection::vec((0usize..216, any::<u8>()), 0..4)) {
        let location = Location { segment: SegmentId(1), stripe: 4096, offset: 0, len: 100 };
        let entries = vec![ImageEntry { key: BlockKey([1; 32]), location }; 2];
        let mut bytes = ImageIndex { level: 0, volume: VOLUME, generation: Generation(3), chain: ChainHash::START, rows_digest: [2; 32], entries }.encode();
        for (at, value) in edits {
            bytes[at] = value;
        }
        if let Ok(index) = ImageIndex::decode(&bytes) {
            prop_assert_eq!(index.encode(), bytes);
        }
    }
}
