#![no_main]

use brine_fuzz::{keys, sign};
use brine_store::shard::{SEGMENT_HEADER_LEN, SegmentHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = SegmentHeader::decode(data);
    let keys = keys();
    let mut signed = data.to_vec();
    signed.resize(SEGMENT_HEADER_LEN - 32, 0);
    signed[..10].copy_from_slice(b"brineSEG\x01\0");
    sign(&mut signed, keys.header_mac());
    if let Ok(unverified) = SegmentHeader::decode(&signed) {
        let header = unverified.verify(keys.header_mac()).expect("just signed");
        assert_eq!(header.encode(keys.header_mac()), signed);
    }
});
