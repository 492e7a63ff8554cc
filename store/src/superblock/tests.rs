use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::clock::SeededEntropy;
use crate::ids::BlockKey;
use crate::keyslot::{KdfCost, NewSecret, WRAPPED_CONVERGENCE_LEN};
use crate::record::ChainHash;
use crate::seal::SecretKey;
use crate::shard::Location;
use crate::wire::{TRAILER_LEN, append_trailer};

const VOLUME: VolumeId = VolumeId([0x11; 16]);

fn keys() -> VolumeKeys {
    VolumeKeys::new(VOLUME, SecretKey::from_bytes([0x22; 32]), SecretKey::from_bytes([0x33; 32]))
}

fn member(number: u8, state: MemberState) -> MemberEntry {
    MemberEntry {
        id: MemberId([number; 16]),
        state,
        domain: format!("rack {number}"),
        path: format!("/mnt/disk{number}").into_bytes(),
    }
}

fn pointer(generation: u64) -> CheckpointPointer {
    CheckpointPointer {
        generation: Generation(generation),
        chain: ChainHash([0x44; 32]),
        root: BlockKey([0x55; 32]),
        location: Location { segment: SegmentId(6), stripe: 8192, offset: 0, len: 1000 },
        open_segments: vec![OpenSegment { segment: SegmentId(7), tail: 4096 }],
    }
}

fn superblock() -> Superblock {
    let (keys, entropy) = (keys(), SeededEntropy::new(3));
    let secret = NewSecret::Passphrase(Zeroizing::new(b"brine".to_vec()));
    Superblock {
        features: Features { compat: 0b101, ..Features::default() },
        volume: VOLUME,
        member: MemberId([2; 16]),
        sequence: 41,
        term: Term(3),
        generation: Generation(1000),
        created_ns: -5,
        next_segment: SegmentId(12),
        epoch: 1,
        copies: 2,
        geometry: Geometry::new(2, 1).unwrap(),
        chunk_bits: 17,
        domain: DomainPolicy::Owner,
        codec: Codec::Lz4,
        min_ack: Some(3),
        label: "Gürkchen".into(),
        host: "salt".into(),
        state_dir: b"/var/lib/brine/\xfe".to_vec(),
        wrapped_convergence: WrappedConvergence::wrap(keys.convergence(), keys.volume_key(), VOLUME, &entropy),
        key_slots: vec![KeySlot::create(1, &secret, keys.volume_key(), VOLUME, &entropy, KdfCost::Fast).unwrap()],
        members: vec![
            member(1, MemberState::Active),
            member(2, MemberState::Active),
            member(3, MemberState::Lost),
            member(4, MemberState::Removed),
        ],
        ack_overrides: vec![AckOverride {
            term: Term(3),
            generation: Generation(999),
            part: 0,
            segment: SegmentId(7),
            ack_set: 0b11,
        }],
        checkpoints: vec![pointer(900), pointer(800)],
        behind: Vec::new(),
    }
}

fn resign(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() - TRAILER_LEN);
    append_trailer(bytes, 0, keys().superblock_mac());
}

#[test]
fn a_superblock_is_pinned() {
    let bytes = superblock().encode(&keys()).unwrap();
    assert_eq!(bytes.len(), 875);
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "c9731930693c5c192519c6002e5b17bd46731ba12fcfaa3ada8eed3384a194bd"
    );
}

#[test]
fn segments_that_are_behind_follow_at_the_end() {
    let behind = Superblock { behind: vec![(SegmentId(7), 0b10), (SegmentId(9), 0b100)], ..superblock() };
    let bytes = behind.encode(&keys()).unwrap();
    assert_eq!(bytes.len(), 875 + 2 + 2 * 16);
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "25f5daf6d6933fd019c3aa7135e8b25e65ebcd83b29e9ceeae9ee3ae056a6546"
    );
    assert_eq!(Superblock::decode(&bytes).unwrap().verify(&keys()).unwrap(), behind);
    let many = Superblock { behind: vec![(SegmentId(7), 1); BEHIND_MAX + 1], ..superblock() };
    assert!(many.encode(&keys()).is_err());
}

#[test]
fn a_superblock_unlocks_and_verifies() {
    let bytes = superblock().encode(&keys()).unwrap();
    let unverified = Superblock::decode(&bytes).unwrap();
    assert_eq!(unverified.unauthenticated().label, "Gürkchen");
    assert!(unverified.unauthenticated().checkpoints.is_empty());
    let wrong = Unlock::Passphrase(Zeroizing::new(b"salt".to_vec()));
    assert!(unverified.unlock(&wrong).is_err());
    let keys = unverified.unlock(&Unlock::Passphrase(Zeroizing::new(b"brine".to_vec()))).unwrap();
    assert_eq!(keys.convergence().as_bytes(), &[0x33; 32]);
    assert_eq!(unverified.clone().verify(&keys).unwrap(), superblock());
    let others = VolumeKeys::new(VOLUME, SecretKey::from_bytes([0; 32]), SecretKey::from_bytes([0x33; 32]));
    assert_eq!(unverified.verify(&others), Err(SuperblockError::Mac));
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let bytes = superblock().encode(&keys()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(Superblock::decode(&bad), Err(SuperblockError::Damaged(_))), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(Superblock::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn key_and_content_of_a_checkpoint_are_not_in_clear() {
    let bytes = superblock().encode(&keys()).unwrap();
    assert!(!bytes.windows(16).any(|window| window == [0x55; 16] || window == [0x44; 16]));
}

#[test]
fn versions_and_features_decide_who_may_open() {
    let encoded = |change: fn(&mut Superblock)| {
        let mut superblock = superblock();
        change(&mut superblock);
        superblock.encode(&keys()).unwrap()
    };
    let incompatible = encoded(|superblock| superblock.features.incompat = 0b1000);
    assert_eq!(Superblock::decode(&incompatible).unwrap_err(), SuperblockError::Features(0b1000));
    let read_only = encoded(|superblock| superblock.features.ro_compat = 4);
    let reason = Superblock::decode(&read_only).unwrap().unauthenticated().read_only_reason().unwrap();
    assert!(reason.contains("0x4"), "{reason}");
    assert_eq!(superblock().read_only_reason(), None);

    let mut newer = superblock().encode(&keys()).unwrap();
    newer[8] = 2;
    resign(&mut newer);
    assert!(Superblock::decode(&newer).is_ok(), "a newer format that still suits this reader");
    newer[10] = 2;
    resign(&mut newer);
    assert_eq!(Superblock::decode(&newer).unwrap_err(), SuperblockError::Version { needs: 2 });
    // An older sound copy beside it must not be taken for the volume's state.
    let old = superblock().encode(&keys()).unwrap();
    assert_eq!(newest_first([Some(&old), Some(&newer)]).unwrap_err(), SuperblockError::Version { needs: 2 });
    assert_eq!(newest_first([Some(&incompatible), None]).unwrap_err(), SuperblockError::Features(0b1000));
}

#[test]
fn of_two_copies_the_newer_sound_one_counts() {
    let numbered = |sequence| Superblock { sequence, ..superblock() }.encode(&keys()).unwrap();
    let sequences = |copies: [Option<&[u8]>; 2]| -> Vec<u64> {
        newest_first(copies).unwrap().iter().map(|copy| copy.unauthenticated().sequence).collect()
    };
    let (old, new) = (numbered(41), numbered(42));
    assert_eq!(sequences([Some(&new), Some(&old)]), [42, 41]);
    assert_eq!(sequences([Some(&old), Some(&new)]), [42, 41]);
    assert_eq!(sequences([Some(&new[..100]), Some(&old)]), [41]);
    assert_eq!(sequences([None, Some(&old)]), [41]);
    assert_eq!(newest_first([None, None]).unwrap_err(), SuperblockError::Missing);
    assert!(matches!(newest_first([Some(&new[..100]), None]), Err(SuperblockError::Damaged(_))));
    assert_eq!((Superblock::file_of(41), Superblock::file_of(42)), ("superblock.1", "superblock.0"));
}

#[test]
fn what_is_out_of_bounds_is_not_written() {
    let broken: [fn(&mut Superblock); 14] = [
        |superblock| superblock.label = "x".repeat(65),
        |superblock| superblock.label = "a\nb".into(),
        |superblock| superblock.host = "x".repeat(256),
        |superblock| superblock.state_dir = vec![b'x'; 4097],
        |superblock| superblock.copies = 0,
        |superblock| superblock.chunk_bits = 11,
        |superblock| superblock.chunk_bits = 21,
        |superblock| superblock.min_ack = Some(4),
        |superblock| superblock.min_ack = Some(0),
        |superblock| superblock.member = MemberId([9; 16]),
        |superblock| superblock.members[1].id = superblock.members[0].id,
        |superblock| superblock.key_slots = vec![superblock.key_slots[0].clone(); 33],
        |superblock| superblock.checkpoints = vec![superblock.checkpoints[0].clone(); 3],
        |superblock| superblock.members[0].path = vec![b'x'; 4097],
    ];
    for (index, breaks) in broken.iter().enumerate() {
        let mut superblock = superblock();
        breaks(&mut superblock);
        assert!(superblock.encode(&keys()).is_err(), "case {index}");
    }
    let mut long = superblock();
    long.members.extend(
        (0..80).map(|number| MemberEntry { path: vec![b'x'; 4096], ..member(100 + number, MemberState::Active) }),
    );
    assert!(matches!(long.encode(&keys()), Err(SuperblockError::TooLong(_))));
}

#[test]
fn the_largest_lists_fit() {
    let mut full = superblock();
    full.key_slots = vec![full.key_slots[0].clone(); 32];
    full.ack_overrides = vec![full.ack_overrides[0]; ACK_OVERRIDES_MAX];
    full.checkpoints[0].open_segments = vec![OpenSegment { segment: SegmentId(1), tail: 2 }; OPEN_SEGMENTS_MAX];
    full.members = (0..MEMBERS_MAX as u64)
        .map(|number| MemberEntry {
            id: MemberId(u128::from(number).to_le_bytes()),
            path: vec![b'x'; 100],
            ..member(1, MemberState::Active)
        })
        .collect();
    full.member = full.members[7].id;
    let bytes = full.encode(&keys()).unwrap();
    assert_eq!(Superblock::decode(&bytes).unwrap().verify(&keys()).unwrap(), full);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        let mut bytes = bytes;
        let _ = Superblock::decode(&bytes);
        if bytes.len() > 8 {
            bytes[..8].copy_from_slice(b"brineSBK");
            let _ = Superblock::decode(&bytes);
        }
    }

    #[test]
    fn no_signed_mutation_panics(edits in proptest::collection::vec((0usize..875, any::<u8>()), 0..5)) {
        let mut bytes = superblock().encode(&keys()).unwrap();
        let len = bytes.len() - TRAILER_LEN;
        for (at, value) in edits {
            bytes[at % len] = value;
        }
        resign(&mut bytes);
        if let Ok(unverified) = Superblock::decode(&bytes)
            && let Ok(superblock) = unverified.verify(&keys())
            // A newer format may carry more than this version writes back.
            && bytes[8..10] == FORMAT.to_le_bytes()
            && bytes[10..12] == FORMAT.to_le_bytes()
        {
            prop_assert_eq!(superblock.encode(&keys()).unwrap(), bytes);
        }
    }

    #[test]
    fn random_tails_do_not_panic(tail in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = superblock().encode(&keys()).unwrap();
        bytes.truncate(128);
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&[0; WRAPPED_CONVERGENCE_LEN]);
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&tail);
        let len = (bytes.len() + TRAILER_LEN) as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        append_trailer(&mut bytes, 0, keys().superblock_mac());
        let _ = Superblock::decode(&bytes);
    }
}
