#![no_main]

use brine_store::meta::codec::{decode_changes, encode_changes};
use brine_store::record::ImageIndex;
use libfuzzer_sys::fuzz_target;

// What the blocks of a checkpoint hold once they are opened: an index, or rows as changes.
fuzz_target!(|data: &[u8]| {
    let mut index = data.to_vec();
    if index.len() >= 12 {
        index[..10].copy_from_slice(b"brineIMG\x01\0");
    }
    if let Ok(decoded) = ImageIndex::decode(&index) {
        assert_eq!(decoded.encode(), index);
    }
    let mut changes = data.to_vec();
    if changes.len() >= 2 {
        changes[..2].copy_from_slice(&[1, 0]);
    }
    if let Ok(decoded) = decode_changes(&changes) {
        let again = decode_changes(&encode_changes(&decoded)).expect("just encoded");
        assert_eq!(again, decoded);
    }
});
