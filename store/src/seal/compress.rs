//! Codecs: what may shorten a chunk before it is sealed.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use super::pad::padme;

/// How a chunk is stored inside its seal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    #[default]
    None = 0,
    /// LZ4 block format, after four bytes that hold its length.
    Lz4 = 1,
}

impl Codec {
    /// The codec with this number on disk.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// Bytes before the LZ4 block: its length, for padding follows it and the block does not mark its own end.
pub(crate) const LZ4_HEAD_LEN: usize = 4;

/// Appends the LZ4 payload of `plain` to `out`, unpadded, if that saves an eighth of what would be stored; else leaves
/// `out` as it was and returns false.
pub(crate) fn try_lz4(plain: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.resize(start + LZ4_HEAD_LEN + get_maximum_output_size(plain.len()), 0);
    let written = compress_into(plain, &mut out[start + LZ4_HEAD_LEN..]).unwrap_or(usize::MAX);
    let plain_stored = padme(plain.len());
    let kept = padme(LZ4_HEAD_LEN.saturating_add(written)) <= plain_stored - plain_stored / 8 && plain_stored >= 8;
    if kept {
        out[start..start + LZ4_HEAD_LEN].copy_from_slice(&(written as u32).to_le_bytes());
        out.truncate(start + LZ4_HEAD_LEN + written);
    } else {
        out.truncate(start);
    }
    kept
}

/// The chunk of `true_len` bytes in a padded LZ4 payload; `None` if the payload is not one that [`try_lz4`] makes.
pub(crate) fn open_lz4(padded: &[u8], true_len: usize) -> Option<Vec<u8>> {
    let (head, rest) = padded.split_first_chunk::<LZ4_HEAD_LEN>()?;
    let len = u32::from_le_bytes(*head) as usize;
    let (block, zeros) = rest.split_at_checked(len)?;
    if padme(LZ4_HEAD_LEN + len) != padded.len() || zeros.iter().any(|&byte| byte != 0) {
        return None;
    }
    let mut plain = vec![0; true_len];
    (decompress_into(block, &mut plain).ok()? == true_len).then_some(plain)
}
