#![no_main]

use brine_fuzz::{keys, sign};
use brine_store::fence::FenceRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = FenceRecord::decode(data);
    let keys = keys();
    let mut signed = data.to_vec();
    if signed.len() >= 16 {
        signed[..16].copy_from_slice(b"brineFNC\x01\0\0\0\0\0\0\0");
    }
    sign(&mut signed, keys.fence_mac());
    if let Ok(unverified) = FenceRecord::decode(&signed) {
        let fence = unverified.verify(keys.fence_mac()).expect("just signed");
        assert_eq!(fence.encode(keys.fence_mac()), signed);
    }
});
