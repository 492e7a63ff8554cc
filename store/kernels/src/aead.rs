//! AES-256-GCM-SIV in place (RFC 8452). The one place that calls the cipher.

use aes_gcm_siv::aead::inout::InOutBuf;
use aes_gcm_siv::{AeadInOut, Aes256GcmSiv, KeyInit, Nonce, Tag};

/// Length of the tag that follows every sealed message, bytes.
pub const TAG_LEN: usize = 16;

/// Nonce of messages whose key is used for one message only (or for equal ones: SIV then reveals equality only).
pub const NONCE_ZERO: [u8; 12] = [0; 12];

/// Encrypts `buffer` in place and returns its tag.
pub fn encrypt(key: &[u8; 32], nonce: &[u8; 12], associated: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
    let cipher = Aes256GcmSiv::new(key.into());
    cipher
        .encrypt_inout_detached(&Nonce::from(*nonce), associated, InOutBuf::from(buffer))
        .expect("the cipher refuses only messages over 64 GiB, and every caller bounds its own far below")
        .into()
}

/// Decrypts `buffer` in place if the tag is right; else leaves ciphertext in it and returns false.
#[must_use]
pub fn decrypt(key: &[u8; 32], nonce: &[u8; 12], associated: &[u8], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
    let cipher = Aes256GcmSiv::new(key.into());
    cipher.decrypt_inout_detached(&Nonce::from(*nonce), associated, InOutBuf::from(buffer), &Tag::from(*tag)).is_ok()
}
