//! Padding that hides most of a length.

/// Padmé: the length to which `len` bytes are padded. A function of the length alone, never more than 12 % longer, and
/// the identity on powers of two. It leaves O(log log len) bits of the length visible instead of O(log len).
///
/// Source: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", 2019,
/// algorithm 1.
pub const fn padme(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    // Of the exponent + 1 significant bits all but the first ilog2(exponent) + 1 after the top one are rounded away.
    let kept = if exponent == 0 { 0 } else { exponent.ilog2() + 1 };
    let mask = (1usize << exponent.saturating_sub(kept)) - 1;
    match len.checked_add(mask) {
        Some(sum) => sum & !mask,
        None => len,
    }
}

#[cfg(test)]
mod tests {
    use super::padme;

    #[test]
    fn known_lengths() {
        // From the published algorithm, by hand: 9 = 0b1001, exponent 3, 2 bits kept, rounded up to a multiple of 2.
        let pairs = [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 3),
            (8, 8),
            (9, 10),
            (100, 104),
            (1000, 1024),
            (4097, 4352),
            (131_073, 135_168),
        ];
        for (len, padded) in pairs {
            assert_eq!(padme(len), padded, "{len}");
        }
    }

    #[test]
    fn powers_of_two_stay_and_nothing_grows_by_more_than_an_eighth() {
        for bits in 0..=24 {
            assert_eq!(padme(1 << bits), 1 << bits);
        }
        let mut before = 0;
        for len in 0..300_000usize {
            let padded = padme(len);
            assert!(padded >= len && padded >= before, "{len}");
            assert!((padded - len) * 100 <= len * 12, "{len} -> {padded}");
            assert_eq!(padme(padded), padded, "{len}");
            before = padded;
        }
        assert_eq!(padme(usize::MAX), usize::MAX);
    }
}
