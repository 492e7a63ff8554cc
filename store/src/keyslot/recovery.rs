//! Recovery keys: 256 random bits in letters a person can copy by hand.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use crate::clock::Entropy;
use crate::seal::{SecretKey, derive};

/// Crockford's base 32: no I, L, O, U; those that look like 1 and 0 are read as such.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// 32 bytes of key and 3 of checksum: 280 bits are 56 letters exactly.
const LETTERS: usize = 56;
const CHECKSUM_LEN: usize = 3;
const GROUP: usize = 4;

/// A secret of 256 random bits that opens a slot.
pub struct RecoveryKey(SecretKey);

/// How a recovery key was mistyped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Too many letters or too few.
    #[error("a recovery key has {LETTERS} letters and digits in 14 groups of 4; {0} were given")]
    Length(usize),
    /// A letter that no recovery key has.
    #[error("'{letter}' (group {group}) does not occur in recovery keys")]
    Letter {
        /// The letter.
        letter: char,
        /// In which group of four, from 1.
        group: usize,
    },
    /// Letters changed or exchanged.
    #[error("the recovery key's checksum is wrong: some of its letters were mistyped or exchanged")]
    Checksum,
}

impl RecoveryKey {
    /// A new one.
    pub(super) fn random(entropy: &dyn Entropy) -> Self {
        Self(SecretKey::random(entropy))
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// As it is shown to the user: 14 groups of 4 letters with dashes between.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 32 + CHECKSUM_LEN]);
        bytes[..32].copy_from_slice(self.as_bytes());
        bytes[32..].copy_from_slice(&checksum(&self.0));
        let mut text = Zeroizing::new(String::with_capacity(LETTERS + LETTERS / GROUP));
        for (index, letter) in (0..LETTERS).map(|index| (index, ALPHABET[five_bits(&bytes[..], index)])) {
            if index > 0 && index.is_multiple_of(GROUP) {
                text.push('-');
            }
            text.push(char::from(letter));
        }
        text
    }

    /// Reads what [`RecoveryKey::to_text`] shows, in any case, with dashes and spaces anywhere or nowhere.
    pub fn parse(text: &str) -> Result<Self, RecoveryError> {
        let mut bytes = Zeroizing::new([0u8; 32 + CHECKSUM_LEN]);
        let mut count = 0;
        for letter in text.chars().filter(|letter| !letter.is_whitespace() && *letter != '-') {
            let value = value_of(letter).ok_or(RecoveryError::Letter { letter, group: count / GROUP + 1 })?;
            if count < LETTERS {
                put_five_bits(&mut bytes[..], count, value);
            }
            count += 1;
        }
        if count != LETTERS {
            return Err(RecoveryError::Length(count));
        }
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[..32]);
        let secret = SecretKey::from_bytes(key);
        key.zeroize();
        if checksum(&secret) != bytes[32..] { Err(RecoveryError::Checksum) } else { Ok(Self(secret)) }
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

/// Catches all but one mistyped key in 16 million.
fn checksum(key: &SecretKey) -> [u8; CHECKSUM_LEN] {
    let mut out = [0; CHECKSUM_LEN];
    out.copy_from_slice(&derive("brine v1 recovery checksum", &[key.as_bytes()]).as_bytes()[..CHECKSUM_LEN]);
    out
}

fn value_of(letter: char) -> Option<u8> {
    let letter = match letter.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    ALPHABET.iter().position(|&known| char::from(known) == letter).map(|value| value as u8)
}

/// The bits 5 * index.. of `bytes`, most significant first.
fn five_bits(bytes: &[u8], index: usize) -> usize {
    (0..5).fold(0, |value, bit| {
        let at = index * 5 + bit;
        value << 1 | usize::from(bytes[at / 8] >> (7 - at % 8) & 1)
    })
}

fn put_five_bits(bytes: &mut [u8], index: usize, value: u8) {
    for bit in 0..5 {
        let at = index * 5 + bit;
        bytes[at / 8] |= (value >> (4 - bit) & 1) << (7 - at % 8);
    }
}
