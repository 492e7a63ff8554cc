//! The salt: what besides plaintext and secret makes a block key.

/// Equal content under equal salts is stored once. Not a secret; readers never need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt {
    /// Who shares salts: 0 for the volume, else a number the domain policy assigns (an owner, a subtree).
    pub domain: u64,
    /// The period in which this salt is used for new blocks.
    pub epoch: u32,
    /// Which of the R copies of equal content, 0..R.
    pub index: u16,
}

impl Salt {
    /// Encoded length, bytes.
    pub const LEN: usize = 14;

    /// Domain, epoch and index, little-endian, in this order.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.domain.to_le_bytes());
        out[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        out[12..].copy_from_slice(&self.index.to_le_bytes());
        out
    }
}
