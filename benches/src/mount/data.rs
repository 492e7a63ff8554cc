//! Content that does not compress, is nowhere equal, and can be made again to check what was read.
//!
//! A pool of random bytes is taken a MiB at a time, and each page of 4 KiB begins with a stamp that depends on the
//! content's seed and the page's number: making a MiB costs 256 small writes, so that the maker is not what is measured.

/// Bytes of one write or read of a stream.
pub const BLOCK: usize = 1 << 20;
/// Bytes of a page: of a random read, an overwrite, a small file, an append.
pub const PAGE: usize = 4096;

/// Larger than a processor's caches, so that a write's source comes from memory, as an application's would.
const POOL: usize = 32 << 20;
const STAMP: usize = 16;

/// Random bytes, partly stamped.
pub struct Pool {
    bytes: Vec<u8>,
}

impl Pool {
    /// The same bytes in every run.
    pub fn new() -> Self {
        let mut random = Random::new(0x62_7269_6e65);
        let mut bytes = Vec::with_capacity(POOL);
        while bytes.len() < POOL {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        Self { bytes }
    }

    /// Block `index` of the content named by `seed`: [`BLOCK`] bytes.
    pub fn block(&mut self, seed: u64, index: u64) -> &[u8] {
        const PAGES: u64 = (BLOCK / PAGE) as u64;
        let start = pool_offset(index * PAGES);
        for page in 0..PAGES {
            let at = start + page as usize * PAGE;
            self.bytes[at..at + STAMP].copy_from_slice(&stamp(seed, index * PAGES + page));
        }
        &self.bytes[start..start + BLOCK]
    }

    /// [`BLOCK`] bytes that may be equal to others, for where that does not matter and many threads write.
    pub fn unstamped(&self, index: u64) -> &[u8] {
        let start = pool_offset(index * (BLOCK / PAGE) as u64);
        &self.bytes[start..start + BLOCK]
    }

    /// Page `page` of the content named by `seed`: [`PAGE`] bytes.
    pub fn page(&mut self, seed: u64, page: u64) -> &[u8] {
        let at = pool_offset(page);
        self.bytes[at..at + STAMP].copy_from_slice(&stamp(seed, page));
        &self.bytes[at..at + PAGE]
    }

    /// Whether `bytes` are page `page` of the content named by `seed`.
    pub fn is_page(&self, seed: u64, page: u64, bytes: &[u8]) -> bool {
        let at = pool_offset(page);
        bytes.len() == PAGE
            && bytes[..STAMP] == stamp(seed, page)
            && bytes[STAMP..] == self.bytes[at + STAMP..at + PAGE]
    }
}

fn pool_offset(page: u64) -> usize {
    (page % (POOL / PAGE) as u64) as usize * PAGE
}

fn stamp(seed: u64, page: u64) -> [u8; STAMP] {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ page);
    let mut stamp = [0; STAMP];
    stamp[..8].copy_from_slice(&random.next().to_le_bytes());
    stamp[8..].copy_from_slice(&random.next().to_le_bytes());
    stamp
}

/// SplitMix64: fast, repeatable, and no more than that.
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// `count` different numbers below `limit` in random order; all of them, if there are no more.
    pub fn different(&mut self, count: u64, limit: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..limit).collect();
        let count = count.min(limit) as usize;
        for place in 0..count {
            let other = place + self.below(limit - place as u64) as usize;
            numbers.swap(place, other);
        }
        numbers.truncate(count);
        numbers
    }
}
