//! Which bytes of a chunk are known: sorted, disjoint, non-touching ranges.

/// A set of byte offsets within one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// Add `start..end`, joining what it overlaps or touches.
    pub fn insert(&mut self, start: u32, end: u32) {
        if start >= end {
            return;
        }
        // The common writer appends, or fills a chunk at once.
        if let Some(last) = self.0.last_mut()
            && start >= last.0
            && start <= last.1
        {
            last.1 = last.1.max(end);
            return;
        }
        let first = self.0.partition_point(|range| range.1 < start);
        let past = self.0.partition_point(|range| range.0 <= end);
        if first == past {
            self.0.insert(first, (start, end));
            return;
        }
        let joined = (start.min(self.0[first].0), end.max(self.0[past - 1].1));
        self.0.splice(first..past, [joined]);
    }

    /// Whether every byte of `start..end` is in the set.
    pub fn covers(&self, start: u32, end: u32) -> bool {
        start >= end || self.0.iter().any(|range| range.0 <= start && end <= range.1)
    }

    /// Remove everything at or past `end`.
    pub fn crop(&mut self, end: u32) {
        self.0.retain_mut(|range| {
            range.1 = range.1.min(end);
            range.0 < range.1
        });
    }

    /// The parts of `start..end` in the set, in order.
    pub fn within(&self, start: u32, end: u32) -> impl Iterator<Item = (u32, u32)> {
        let first = self.0.partition_point(|range| range.1 <= start);
        self.0[first..]
            .iter()
            .map(move |range| (range.0.max(start), range.1.min(end)))
            .take_while(|range| range.0 < range.1)
    }

    /// The parts of `start..end` not in the set, in order.
    pub fn gaps(&self, start: u32, end: u32) -> Vec<(u32, u32)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for (from, to) in self.within(start, end) {
            if at < from {
                gaps.push((at, from));
            }
            at = to;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_set_of_bytes() {
        // xorshift: reproducible without a dependency.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % u64::from(below)) as u32
        };
        let (mut ranges, mut model) = (Ranges::default(), [false; 64]);
        for step in 0..20_000 {
            let (a, b) = (random(65), random(65));
            let (start, end) = (a.min(b), a.max(b));
            if step % 7 == 0 {
                ranges.crop(end);
                model[end as usize..].fill(false);
            } else if end - start < 12 {
                ranges.insert(start, end);
                model[start as usize..end as usize].fill(true);
            }
            let all = ranges.within(0, 64).collect::<Vec<_>>();
            assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].0), "{all:?}");
            let mut seen = [false; 64];
            all.iter().for_each(|range| seen[range.0 as usize..range.1 as usize].fill(true));
            assert_eq!(seen, model);
            let mut missing = [true; 64];
            ranges.gaps(0, 64).iter().for_each(|gap| missing[gap.0 as usize..gap.1 as usize].fill(false));
            assert_eq!(missing, model);
            assert_eq!(ranges.covers(start, end), model[start as usize..end as usize].iter().all(|known| *known));
        }
    }
}
