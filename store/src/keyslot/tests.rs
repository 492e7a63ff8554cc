use proptest::prelude::*;

use super::*;
use crate::clock::SeededEntropy;

const VOLUME: VolumeId = VolumeId([0x11; 16]);

fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
}

fn key_file(bytes: &[u8]) -> Unlock {
    Unlock::KeyFile(Zeroizing::new(bytes.to_vec()))
}

fn slots() -> (Vec<KeySlot>, String, SecretKey) {
    let entropy = SeededEntropy::new(1);
    let key = SecretKey::from_bytes([0x22; 32]);
    let create = |id, secret| KeySlot::create(id, &secret, &key, VOLUME, &entropy, KdfCost::Fast).unwrap();
    let first = create(1, NewSecret::Passphrase(Zeroizing::new(b"open sesame".to_vec())));
    let second = create(2, NewSecret::Passphrase(Zeroizing::new(b"another".to_vec())));
    let third = create(3, NewSecret::KeyFile(Zeroizing::new(vec![9; 64])));
    let (fourth, recovery) = KeySlot::create_recovery(4, &key, VOLUME, &entropy);
    (vec![first, second, third, fourth], recovery.to_text().to_string(), key)
}

#[test]
fn each_secret_opens_its_slot_and_gives_the_volume_key() {
    let (slots, recovery, key) = slots();
    let mangled = recovery.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
    let secrets = [
        passphrase("open sesame"),
        passphrase("another"),
        key_file(&[9; 64]),
        Unlock::RecoveryKey(recovery),
        Unlock::RecoveryKey(mangled),
    ];
    for secret in &secrets {
        assert_eq!(unlock(&slots, VOLUME, secret).unwrap().as_bytes(), key.as_bytes());
    }
}

#[test]
fn failures_are_told_apart() {
    let (slots, recovery, _) = slots();
    let fails = |slots: &[KeySlot], secret: &Unlock| unlock(slots, VOLUME, secret).unwrap_err();
    assert_eq!(fails(&slots, &passphrase("open sesam")), SlotError::Wrong(SlotKind::Passphrase));
    assert_eq!(fails(&slots, &passphrase("")), SlotError::EmptyPassphrase);
    assert_eq!(fails(&slots, &key_file(&[8; 64])), SlotError::Wrong(SlotKind::KeyFile));
    assert_eq!(fails(&slots, &key_file(&[9; 31])), SlotError::KeyFileLen(31));
    assert_eq!(fails(&slots, &key_file(&vec![9; (1 << 20) + 1])), SlotError::KeyFileLen((1 << 20) + 1));
    let error = fails(&slots[..2], &key_file(&[9; 64]));
    assert_eq!(error.to_string(), "this volume has no key file slot; it opens with: passphrase");
    assert_eq!(fails(&[], &passphrase("x")).to_string(), "this volume has no passphrase slot; it opens with: nothing");

    let mut wrong = recovery.clone().into_bytes();
    wrong.swap(0, 1);
    if wrong[0] != wrong[1] {
        let error = fails(&slots, &Unlock::RecoveryKey(String::from_utf8(wrong).unwrap()));
        assert_eq!(error, SlotError::Recovery(RecoveryError::Checksum));
    }
    let error = fails(&slots, &Unlock::RecoveryKey(recovery[..60].into()));
    assert_eq!(error, SlotError::Recovery(RecoveryError::Length(48)));
    let error = fails(&slots, &Unlock::RecoveryKey(recovery.replacen('-', "-U", 1)));
    assert_eq!(error, SlotError::Recovery(RecoveryError::Letter { letter: 'U', group: 2 }));

    // Another volume with the same secret: the key is bound to the volume it belongs to.
    let error = unlock(&slots, VolumeId([0x12; 16]), &passphrase("another")).unwrap_err();
    assert_eq!(error, SlotError::Wrong(SlotKind::Passphrase));
    let mut damaged = slots[2].encode();
    damaged[70] ^= 1;
    let damaged = KeySlot::decode(&damaged).unwrap();
    assert_eq!(fails(&[damaged], &key_file(&[9; 64])), SlotError::Damaged(3));
}

#[test]
fn no_flipped_bit_of_a_slot_goes_unseen() {
    let (slots, _, _) = slots();
    let bytes = slots[2].encode();
    for bit in 0..SLOT_LEN * 8 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        let opened = KeySlot::decode(&bad).and_then(|slot| slot.open(VOLUME, &key_file(&[9; 64])));
        assert!(opened.is_err(), "bit {bit}");
    }
}

#[test]
fn costs_from_disk_are_bounded_before_they_are_spent() {
    let (slots, _, _) = slots();
    for (at, value) in [(8, 0u32), (8, 7), (8, u32::MAX), (8, (1 << 20) + 1), (12, 0), (12, 17), (16, 0), (16, 17)] {
        let mut bytes = slots[0].encode();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = KeySlot::decode(&bytes).unwrap().open(VOLUME, &passphrase("open sesame")).unwrap_err();
        assert!(matches!(error, SlotError::Cost { .. }), "{at} {value}: {error}");
        // The other slots still open.
        let slots = [KeySlot::decode(&bytes).unwrap(), slots[1].clone()];
        assert!(unlock(&slots, VOLUME, &passphrase("another")).is_ok());
    }
}

#[test]
fn slots_of_newer_kinds_are_kept_as_they_are() {
    let mut bytes = [0xab; SLOT_LEN];
    bytes[4] = 77;
    let slot = KeySlot::decode(&bytes).unwrap();
    assert_eq!(slot.kind(), SlotKind::Other(77));
    assert_eq!(slot.encode(), bytes);
    assert!(matches!(unlock(&[slot], VOLUME, &passphrase("x")), Err(SlotError::NoSlot { .. })));
}

#[test]
fn the_convergence_secret_opens_with_its_volume_key_only() {
    let (secret, key) = (SecretKey::from_bytes([3; 32]), SecretKey::from_bytes([4; 32]));
    let wrapped = WrappedConvergence::wrap(&secret, &key, VOLUME, &SeededEntropy::new(2));
    assert_eq!(wrapped.unwrap(&key, VOLUME).unwrap().as_bytes(), secret.as_bytes());
    assert!(wrapped.unwrap(&secret, VOLUME).is_none());
    assert!(wrapped.unwrap(&key, VolumeId([0; 16])).is_none());
    for bit in 0..WRAPPED_CONVERGENCE_LEN * 8 {
        let mut bad = wrapped.clone();
        bad.0[bit / 8] ^= 1 << (bit % 8);
        assert!(bad.unwrap(&key, VOLUME).is_none(), "bit {bit}");
    }
}

/// Computed once and pinned: if one of these changes, slots on disk no longer open.
#[test]
fn encodings_are_pinned() {
    let (slots, recovery, key) = slots();
    let of = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..32].to_owned();
    let got: Vec<String> = slots.iter().map(|slot| of(&slot.encode())).collect();
    assert_eq!(
        got,
        [
            "5b987df52704bb32ce230d63ffb6227b",
            "6c1485a705b374e71f323c984100436a",
            "59298850bf58597f11ea0ff9cb975660",
            "e0eb03ea4622989ef94c9b6e002ac199"
        ]
    );
    assert_eq!(recovery, "9Q0R-DWVC-HXB0-SYXC-FK7Y-KYF2-ZX9B-ATFX-8RWN-HHBX-E7EV-XZ3Q-8WD7-02G1");
    let wrapped = WrappedConvergence::wrap(&SecretKey::from_bytes([3; 32]), &key, VOLUME, &SeededEntropy::new(2));
    assert_eq!(of(&wrapped.0), "c235c1d9931385040df970dbf609d1a7");
}

#[test]
fn the_default_cost_is_within_its_own_bounds() {
    for cost in [KdfCost::Default, KdfCost::Fast] {
        let Cost { memory_kib, passes, lanes } = cost.cost();
        assert_eq!(Cost::checked([memory_kib, passes, lanes]), Ok(cost.cost()));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), SLOT_LEN), text in ".{0,80}") {
        let mut slot = [0; SLOT_LEN];
        slot.copy_from_slice(&bytes);
        if let Ok(decoded) = KeySlot::decode(&slot) {
            prop_assert_eq!(decoded.encode(), slot);
            prop_assert!(decoded.open(VOLUME, &key_file(&[9; 64])).is_err());
        }
        let _ = RecoveryKey::parse(&text);
    }

    #[test]
    fn recovery_keys_round_trip_and_every_wrong_letter_is_seen(seed: u64, at in 0usize..56, other in 0usize..32) {
        let key = RecoveryKey::random(&SeededEntropy::new(seed));
        let text = key.to_text();
        prop_assert_eq!(text.len(), 56 + 13);
        let parsed = RecoveryKey::parse(&text).unwrap();
        prop_assert_eq!(parsed.as_bytes(), key.as_bytes());
        let mut letters = text.as_bytes().to_vec();
        let at = at + at / 4;
        let letter = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[other];
        let same = letters[at] == letter;
        letters[at] = letter;
        let parsed = RecoveryKey::parse(std::str::from_utf8(&letters).unwrap());
        prop_assert_eq!(parsed.is_ok(), same);
    }
}
