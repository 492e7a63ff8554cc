#![no_main]

use brine_fuzz::{keys, sign};
use brine_store::superblock::{Superblock, newest_first};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = newest_first([Some(data), None]);
    let keys = keys();
    let mut signed = data.to_vec();
    if signed.len() >= 16 {
        signed[..8].copy_from_slice(b"brineSBK");
        let len = (signed.len() + 32) as u32;
        signed[12..16].copy_from_slice(&len.to_le_bytes());
    }
    sign(&mut signed, keys.superblock_mac());
    if let Ok(unverified) = Superblock::decode(&signed)
        && let Ok(superblock) = unverified.verify(&keys)
        && signed[8..12] == [1, 0, 1, 0]
    {
        assert_eq!(superblock.encode(&keys).expect("what decodes can be written"), signed);
    }
});
