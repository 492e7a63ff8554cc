//! How many data and parity shards a stripe has.

use std::fmt;

/// k data and m parity shards. Any k of the k+m shards of a stripe give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    data: u8,
    parity: u8,
}

/// Index of a shard in its stripe, and of a slot in its segment: 0..k data, k..k+m parity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex(pub u8);

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Most slots a segment may have (k+m): ack sets and slot lists are 64-bit masks.
pub const SLOTS_MAX: usize = 64;

impl Geometry {
    /// `None` unless `1 <= data`, and `data + parity <= SLOTS_MAX`.
    pub fn new(data: u8, parity: u8) -> Option<Self> {
        let total = usize::from(data) + usize::from(parity);
        (data >= 1 && total <= SLOTS_MAX).then_some(Self { data, parity })
    }

    /// The default for a number of backing directories: 1+0, 1+1, 2+1, 2+2, 3+2, then 4+2.
    pub fn default_for(directories: usize) -> Option<Self> {
        let (data, parity) = match directories {
            0 => return None,
            1 => (1, 0),
            2 => (1, 1),
            3 => (2, 1),
            4 => (2, 2),
            5 => (3, 2),
            _ => (4, 2),
        };
        Self::new(data, parity)
    }

    /// Number of data shards, k.
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// Number of parity shards, m.
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// Number of shards of a stripe and slots of a segment, k+m.
    pub fn total(self) -> usize {
        self.data() + self.parity()
    }

    /// Slots that must sync before a generation is answered: k+1 if m >= 2, else k.
    pub fn min_ack(self) -> usize {
        if self.parity >= 2 { self.data() + 1 } else { self.data() }
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_number_of_directories() {
        let shown: Vec<String> = (1..=8).map(|n| Geometry::default_for(n).unwrap().to_string()).collect();
        assert_eq!(shown, ["1+0", "1+1", "2+1", "2+2", "3+2", "4+2", "4+2", "4+2"]);
        assert!(Geometry::default_for(0).is_none());
        assert!(Geometry::new(0, 2).is_none());
        assert!(Geometry::new(60, 5).is_none());
        assert_eq!(Geometry::new(4, 2).unwrap().min_ack(), 5);
        assert_eq!(Geometry::new(2, 1).unwrap().min_ack(), 2);
    }
}
