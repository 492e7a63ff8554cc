//! Little-endian fields, and the trailer that ends every structure on disk.
//!
//! Promises: reading never panics and never allocates by a number that was read without checking it against the
//! bytes at hand. FORMAT.md section 2 draws the trailer.

use crate::ids::VolumeId;

/// The bytes end before the field does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short;

/// Takes fields off the front of a slice.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been taken yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Short> {
        self.array().map(i64::from_le_bytes)
    }
}

/// Appends fields; the counterpart of [`Reader`].
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Length of the trailer: a 16-byte MAC, then a 16-byte checksum.
pub(crate) const TRAILER_LEN: usize = 32;

/// What the trailer said: the checksum held, the MAC waits for a key.
#[derive(Clone, Debug)]
pub(crate) struct Trailer {
    digest: [u8; 32],
    mac: [u8; 16],
}

/// The MAC is taken over the digest, so that the bytes themselves need not be kept until there is a key.
fn mac_of(key: &[u8; 32], digest: &[u8; 32]) -> [u8; 16] {
    first16(&blake3::keyed_hash(key, digest))
}

/// The checksum covers the MAC too: a scrub without key must see a flipped bit there, or the MAC would later accuse a
/// sound shard.
fn checksum_of(digest: &[u8; 32], mac: &[u8; 16]) -> [u8; 16] {
    first16(&blake3::Hasher::new().update(digest).update(mac).finalize())
}

fn first16(hash: &blake3::Hash) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash.as_bytes()[..16]);
    out
}

/// Appends the trailer over `out[from..]`.
pub(crate) fn append_trailer(out: &mut Vec<u8>, from: usize, key: &[u8; 32]) {
    let digest = *blake3::hash(&out[from..]).as_bytes();
    let mac = mac_of(key, &digest);
    let checksum = checksum_of(&digest, &mac);
    out.put(&mac);
    out.put(&checksum);
}

/// Checks the checksum of `bytes`, which end with a trailer. `None`: too short, or the checksum does not hold.
pub(crate) fn check_trailer(bytes: &[u8]) -> Option<(&[u8], Trailer)> {
    let (body, tail) = bytes.split_last_chunk::<TRAILER_LEN>()?;
    let (mac, checksum) = tail.split_first_chunk::<16>()?;
    let digest = *blake3::hash(body).as_bytes();
    (checksum_of(&digest, mac) == *checksum).then_some((body, Trailer { digest, mac: *mac }))
}

impl Trailer {
    /// Whether the MAC was made with `key`. Constant time.
    pub(crate) fn verify(&self, key: &[u8; 32]) -> bool {
        equal16(&mac_of(key, &self.digest), &self.mac)
    }
}

/// Constant-time comparison.
fn equal16(left: &[u8; 16], right: &[u8; 16]) -> bool {
    let difference = left.iter().zip(right).fold(0u8, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// What a sealed message is, the last byte of its associated data: no message opens as one of another purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Purpose {
    FileData = 1,
    Checkpoint = 2,
    CommitRecord = 3,
    KeySlot = 4,
    ConvergenceSecret = 5,
    CheckpointPointer = 6,
}

/// Associated data of everything sealed: volume id, purpose.
pub(crate) fn associated(volume: &VolumeId, purpose: Purpose) -> [u8; 17] {
    let mut out = [0; 17];
    out[..16].copy_from_slice(&volume.0);
    out[16] = purpose as u8;
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_refuses_to_read_past_the_end() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u16(), Ok(0x0201));
        assert_eq!(reader.u16(), Err(Short));
        assert_eq!(reader.u8(), Ok(3), "a failed read takes nothing");
        assert!(reader.rest().is_empty());
    }

    #[test]
    fn the_trailer_sees_every_flipped_bit_and_the_wrong_key() {
        let mut bytes = b"whatever precedes it".to_vec();
        append_trailer(&mut bytes, 0, &[1; 32]);
        let (body, trailer) = check_trailer(&bytes).unwrap();
        assert_eq!(body, b"whatever precedes it");
        assert!(trailer.verify(&[1; 32]));
        assert!(!trailer.verify(&[2; 32]));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check_trailer(&bad).is_none(), "bit {bit}");
        }
        assert!(check_trailer(&bytes[..31]).is_none());
    }
}
