//! What the targets share: sound checksums, MACs and seals around hostile bytes, so that the fuzzer gets past them.

use aes_gcm_siv::aead::inout::InOutBuf;
use aes_gcm_siv::{AeadInOut, Aes256GcmSiv, KeyInit, Nonce};
use brine_store::ids::VolumeId;
use brine_store::seal::{SecretKey, VolumeKeys};

/// The volume all targets play.
pub const VOLUME: VolumeId = VolumeId([0x11; 16]);

/// Its keys.
pub fn keys() -> VolumeKeys {
    VolumeKeys::new(VOLUME, SecretKey::from_bytes([0x22; 32]), SecretKey::from_bytes([0x33; 32]))
}

/// Appends the trailer of FORMAT.md section 2.
pub fn sign(body: &mut Vec<u8>, mac_key: &[u8; 32]) {
    let digest = *blake3::hash(body).as_bytes();
    let keyed = blake3::keyed_hash(mac_key, &digest);
    let mac = &keyed.as_bytes()[..16];
    let checksum = blake3::Hasher::new().update(&digest).update(mac).finalize();
    body.extend_from_slice(mac);
    body.extend_from_slice(&checksum.as_bytes()[..16]);
}

/// Seals under a key, with nonce zero and the volume's associated data for this purpose.
pub fn seal(key: &[u8; 32], purpose: u8, body: &mut Vec<u8>) {
    let mut associated = [0; 17];
    associated[..16].copy_from_slice(&VOLUME.0);
    associated[16] = purpose;
    let tag = Aes256GcmSiv::new(key.into())
        .encrypt_inout_detached(&Nonce::default(), &associated, InOutBuf::from(&mut body[..]))
        .expect("short enough");
    body.extend_from_slice(&tag);
}
