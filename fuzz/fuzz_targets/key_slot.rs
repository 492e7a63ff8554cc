#![no_main]

use brine_fuzz::VOLUME;
use brine_store::keyslot::{KeySlot, RecoveryKey, SLOT_LEN, SlotKind, Unlock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = RecoveryKey::parse(text);
    }
    let Some(bytes) = data.first_chunk::<SLOT_LEN>() else { return };
    if let Ok(slot) = KeySlot::decode(bytes) {
        assert_eq!(&slot.encode(), bytes);
        // Passphrase slots cost what they say, within bounds: too slow to fuzz.
        if slot.kind() != SlotKind::Passphrase {
            assert!(slot.open(VOLUME, &Unlock::KeyFile(vec![9; 64].into())).is_err());
        }
    }
});
