#![no_main]

use brine_fuzz::{keys, sign};
use brine_store::ids::{Incarnation, ShardIndex};
use brine_store::shard::{Footer, RecordHeader, quick_check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = RecordHeader::decode(data);
    let _ = quick_check(data, Incarnation::default(), 4096, ShardIndex(0));
    if let Ok(footer) = Footer::decode(data) {
        assert_eq!(footer.encode(), data);
    }
    let keys = keys();
    let mut signed = data.to_vec();
    signed.resize((signed.len() + 32).next_multiple_of(64) - 32, 0);
    if signed.len() < 64 {
        return;
    }
    signed[..10].copy_from_slice(b"brineREC\x01\0");
    let len = (signed.len() + 32) as u32;
    signed[16..20].copy_from_slice(&len.to_le_bytes());
    sign(&mut signed, keys.header_mac());
    if let Ok(unverified) = RecordHeader::decode(&signed) {
        let header = unverified.verify(keys.header_mac()).expect("just signed");
        assert_eq!(header.encode(keys.header_mac()), signed);
    }
});
