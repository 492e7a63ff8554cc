#![no_main]

use brine_fuzz::{VOLUME, keys, seal};
use brine_store::ids::{Generation, Term};
use brine_store::record::{CommitRecord, ImageIndex};
use brine_store::shard::CommitHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = ImageIndex::decode(data) {
        assert_eq!(index.encode(), data);
    }
    let keys = keys();
    let random = [0x44; 32];
    // The header repeats what the message says, so that the comparison of the two does not hide the rest.
    let number =
        |at: usize| data.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight")));
    let header = CommitHeader {
        term: Term(number(24)),
        generation: Generation(number(32)),
        part: number(48) as u16,
        parts: (number(48) >> 16) as u16,
        ack_set: 1,
        copies: 1,
        random,
    };
    let mut material = keys.log_key().to_vec();
    material.extend_from_slice(&random);
    let key = blake3::derive_key("brine v1 commit record", &material);
    let mut sealed = data.to_vec();
    if sealed.len() >= 24 {
        sealed[8..24].copy_from_slice(&VOLUME.0);
    }
    seal(&key, 3, &mut sealed);
    let original = sealed.clone();
    if let Ok((record, _)) = CommitRecord::open(keys.log_key(), VOLUME, &header, &mut sealed) {
        let mut again = Vec::new();
        record.seal(keys.log_key(), &random, &mut again);
        assert_eq!(again, original);
    }
});
