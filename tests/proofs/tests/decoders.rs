//! Short, deterministic fuzzing of the decoders of what lies in backing directories: what a real volume wrote, changed at
//! random, with sound checksums around it, so that what is behind them is reached. None may panic, and what a decoder
//! accepts must be what the encoder writes. `fuzz/` has the same for cargo-fuzz, without an end.

use brine_proofs::random::Random;
use brine_proofs::world::World;
use brine_store::backing::Backing;
use brine_store::clock::Entropy;
use brine_store::fence::FenceRecord;
use brine_store::ids::{SegmentId, VolumeId};
use brine_store::meta::codec::{decode_changes, encode_changes};
use brine_store::record::ImageIndex;
use brine_store::seal::{SecretKey, VolumeKeys};
use brine_store::shard::{Footer, RecordHeader, SEGMENT_HEADER_LEN, SegmentHeader};
use brine_store::superblock::Superblock;

const ROUNDS: u64 = 20_000;
const TRAILER: usize = 32;

fn keys() -> VolumeKeys {
    VolumeKeys::new(VolumeId([0x11; 16]), SecretKey::from_bytes([0x22; 32]), SecretKey::from_bytes([0x33; 32]))
}

/// Appends the trailer of FORMAT.md section 2.
fn sign(body: &mut Vec<u8>, mac_key: &[u8; 32]) {
    let digest = *blake3::hash(body).as_bytes();
    let mac = blake3::keyed_hash(mac_key, &digest).as_bytes()[..16].to_vec();
    let checksum = blake3::Hasher::new().update(&digest).update(&mac).finalize();
    body.extend_from_slice(&mac);
    body.extend_from_slice(&checksum.as_bytes()[..16]);
}

/// A few bytes changed, moved, cut off or put in; often numbers at the edges of what they may be.
fn mutate(bytes: &mut Vec<u8>, random: &Random) {
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.index(bytes.len());
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = *random.choose(&[0, 1, 2, 0x7f, 0x80, 0xff]),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            4 => {
                let number = random.choose(&[0_u64, 1, 0xff, 0xffff, 0xffff_ffff, u64::MAX, 1 << 40]).to_le_bytes();
                let len = number.len().min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&number[..len]);
            }
            5 => {
                let part = bytes[at..(at + 16).min(bytes.len())].to_vec();
                let to = random.index(bytes.len());
                bytes.splice(to..to, part);
            }
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

/// The first file of the volume's first segment.
fn segment() -> Vec<u8> {
    let world = World::format(4, 2);
    let (id, len): (SegmentId, u64) = world.disks[0].list_segments().expect("list")[0];
    let mut bytes = vec![0; len as usize];
    world.disks[0].read_at(id, 0, &mut bytes).expect("read");
    bytes
}

/// Decode `ROUNDS` changed bodies, and say how many were accepted: some must be, or nothing is reached.
fn fuzz(name: &str, body: &[u8], mac_key: &[u8; 32], mut accepts: impl FnMut(&[u8]) -> bool) {
    let random = Random::new(7);
    let mut signed = body.to_vec();
    sign(&mut signed, mac_key);
    assert!(accepts(&signed), "{name}: the unchanged one is refused");
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let mut bytes = body.to_vec();
        mutate(&mut bytes, &random);
        sign(&mut bytes, mac_key);
        accepted += u64::from(accepts(&bytes));
    }
    println!("{name}: {accepted} of {ROUNDS} accepted");
    assert!(accepted > 0 && accepted < ROUNDS, "{name}: {accepted} of {ROUNDS} accepted");
}

#[test]
fn segment_headers() {
    let keys = keys();
    fuzz("segment header", &segment()[..SEGMENT_HEADER_LEN - TRAILER], keys.header_mac(), |bytes| {
        let Ok(unverified) = SegmentHeader::decode(bytes) else { return false };
        let header = unverified.verify(keys.header_mac()).expect("just signed");
        assert_eq!(header.encode(keys.header_mac()), bytes);
        true
    });
}

#[test]
fn record_headers() {
    let (keys, segment) = (keys(), segment());
    let record = &segment[SEGMENT_HEADER_LEN..];
    let len = u32::from_le_bytes(record[16..20].try_into().expect("four bytes")) as usize;
    fuzz("record header", &record[..len - TRAILER], keys.header_mac(), |bytes| {
        let Ok(unverified) = RecordHeader::decode(bytes) else { return false };
        let header = unverified.verify(keys.header_mac()).expect("just signed");
        assert_eq!(header.encode(keys.header_mac()), bytes);
        true
    });
}

#[test]
fn superblocks() {
    let keys = keys();
    let file = World::format(4, 2).disks[0].read_file("superblock.0").expect("read").expect("it is there");
    fuzz("superblock", &file[..file.len() - TRAILER], keys.superblock_mac(), |bytes| {
        let Ok(unverified) = Superblock::decode(bytes) else { return false };
        // It may still be refused: its secrets were sealed with other keys than these.
        let _ = unverified.verify(&keys);
        true
    });
}

#[test]
fn fences() {
    let (keys, world) = (keys(), World::format(4, 2));
    let name = world.disks[0].list_files("fence").expect("list").into_iter().next().expect("a fence");
    let file = world.disks[0].read_file(&format!("fence/{name}")).expect("read").expect("it is there");
    fuzz("fence", &file[..file.len() - TRAILER], keys.fence_mac(), |bytes| {
        let Ok(unverified) = FenceRecord::decode(bytes) else { return false };
        let fence = unverified.verify(keys.fence_mac()).expect("just signed");
        assert_eq!(fence.encode(keys.fence_mac()), bytes);
        true
    });
}

#[test]
fn row_changes_checkpoint_indexes_and_footers() {
    let random = Random::new(9);
    let (mut changes, mut indexes) = (0, 0);
    for _ in 0..20 * ROUNDS {
        let mut bytes = vec![0; 2 + random.index(90)];
        random.fill(&mut bytes);
        // Small numbers are what tags, kinds and lengths are.
        bytes.iter_mut().filter(|byte| **byte % 3 > 0).for_each(|byte| *byte %= 24);
        bytes[..2].copy_from_slice(&[1, 0]);
        if let Ok(decoded) = decode_changes(&bytes) {
            changes += usize::from(!decoded.is_empty());
            assert_eq!(decode_changes(&encode_changes(&decoded)).expect("just encoded"), decoded);
        }
        if let Ok(footer) = Footer::decode(&bytes) {
            assert_eq!(footer.encode(), bytes);
        }
        let mut index = b"brineIMG\x01\0".to_vec();
        index.extend_from_slice(&bytes);
        mutate(&mut index, &random);
        if let Ok(decoded) = ImageIndex::decode(&index) {
            indexes += 1;
            assert_eq!(decoded.encode(), index);
        }
    }
    println!("{changes} changes and {indexes} indexes accepted");
    assert!(changes > 0, "no row change was ever accepted: nothing is reached");
}
