//! How far ahead of a reader to read: the window of one open file.
//!
//! The kernel reads ahead too, but only 128 KiB (1 MiB where we may raise it), too little to keep several backing
//! directories busy. A reader that goes on where it stopped gets a window that doubles from [`WINDOW_MIN`] to the
//! limit; one that jumps gets none.

/// First window of a sequential reader, bytes: what one round trip to several directories can hide.
pub const WINDOW_MIN: u64 = 512 << 10;

/// Reads that start this far from the expected place still count as sequential, bytes: the kernel's own read-ahead
/// requests overtake each other.
const SLACK: u64 = 1 << 20;

/// The state of one reader.
#[derive(Debug, Default)]
pub struct Readahead {
    /// Where the next read of a sequential reader starts.
    next: u64,
    /// End of what was asked for ahead.
    asked: u64,
    /// Bytes to stay ahead; 0 while the reader has not proved sequential.
    window: u64,
}

impl Readahead {
    /// Note a read of `len` bytes at `offset` and say which bytes `start..end` to read ahead, within `size`.
    pub fn advance(&mut self, offset: u64, len: u64, size: u64, window_max: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(len);
        let sequential = offset <= self.next.saturating_add(SLACK) && end.saturating_add(SLACK) >= self.next;
        // A first read at the start of a file tells nothing yet: most files are read in one request.
        let proven = sequential && self.next > 0;
        if !sequential {
            *self = Self { next: end, asked: end, window: 0 };
            return None;
        }
        self.next = self.next.max(end);
        self.asked = self.asked.max(self.next);
        if !proven || window_max == 0 {
            return None;
        }
        self.window = (self.window * 2).clamp(WINDOW_MIN.min(window_max), window_max);
        let target = self.next.saturating_add(self.window).min(size);
        // Ask in halves of the window, not chunk by chunk: each request costs a look-up.
        if target <= self.asked || (target < size && target - self.asked < self.window / 2) {
            return None;
        }
        let start = self.asked;
        self.asked = target;
        Some((start, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn a_stream_is_asked_for_once_and_to_its_end() {
        let (mut ahead, size, max) = (Readahead::default(), 64 << 20, 8 << 20);
        let (mut covered, mut largest) = (0, 0);
        for offset in (0..size).step_by(128 << 10) {
            if let Some((start, end)) = ahead.advance(offset, 128 * KIB, size, max) {
                assert!(start >= covered && end <= size, "asked twice or past the end");
                assert!(start >= offset, "asked behind the reader");
                largest = largest.max(end - start);
                covered = end;
            }
        }
        assert_eq!(covered, size);
        assert!(largest >= max / 2 && largest <= max);
    }

    #[test]
    fn jumps_ask_for_nothing() {
        let mut ahead = Readahead::default();
        for step in [70u64, 3, 900, 41, 512, 7] {
            assert_eq!(ahead.advance(step << 22, 4 * KIB, 1 << 40, 8 << 20), None);
        }
    }

    #[test]
    fn overtaking_requests_stay_sequential() {
        let mut ahead = Readahead::default();
        ahead.advance(0, 128 * KIB, 1 << 30, 8 << 20);
        assert!(ahead.advance(256 * KIB, 128 * KIB, 1 << 30, 8 << 20).is_some());
        ahead.advance(128 * KIB, 128 * KIB, 1 << 30, 8 << 20);
        assert!(ahead.window > 0);
    }
}
