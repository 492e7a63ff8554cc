//! The kernel for aarch64. `unsafe` for vector loads and stores.
//!
//! Kept to the plainest loop that uses TBL: it has been compiled and run only against a model of the instructions it
//! uses, not on such a CPU; the tests that compare it with the scalar kernel run wherever it is available.

use std::arch::aarch64::*;

use super::matrix::Tables;

/// Bytes of a vector, and the shortest shard [`Detected::multiply`] takes.
pub(super) const WIDTH: usize = 16;

/// Proof that this CPU has NEON. Only [`Detected::new`] makes one: that is what `multiply` relies on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detected(());

impl Detected {
    /// `None` if the CPU lacks NEON.
    pub(super) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// `outputs[r] = sum over c of tables[r][c] * sources[c]`.
    ///
    /// Panics unless sources and outputs fit the tables and all have one length of at least [`WIDTH`].
    pub(super) fn multiply(self, tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let len = outputs.first().map_or(0, |output| output.len());
        assert!(len >= WIDTH);
        assert!(outputs.len() == tables.rows && sources.len() == tables.columns);
        assert!(sources.iter().all(|source| source.len() == len) && outputs.iter().all(|output| output.len() == len));
        for step in (0..len).step_by(WIDTH) {
            // The last vector ends with the shard and may overlap the one before: the same bytes are written twice.
            let at = step.min(len - WIDTH);
            for (row, output) in outputs.iter_mut().enumerate() {
                // SAFETY: `self` proves NEON; `at + WIDTH <= len`, the length of every source and of `output`; `row` is
                // less than `tables.rows` and there are `tables.columns` sources.
                unsafe { vector(tables, row, sources, output, at) };
            }
        }
    }
}

/// `WIDTH` bytes from `at` of the output `row`.
///
/// # Safety
/// The CPU has NEON; `row < tables.rows`; there are `tables.columns` sources; they and `output` have at least
/// `at + WIDTH` bytes.
#[target_feature(enable = "neon")]
unsafe fn vector(tables: &Tables, row: usize, sources: &[&[u8]], output: &mut [u8], at: usize) {
    // SAFETY: loads and stores of 16 bytes at `at`, within the preconditions, and of the two halves of a 32-byte table.
    unsafe {
        let mut sum = vdupq_n_u8(0);
        for (column, source) in sources.iter().enumerate() {
            let products = tables.nibbles[column * tables.rows + row].as_ptr();
            let bytes = vld1q_u8(source.as_ptr().add(at));
            let low = vqtbl1q_u8(vld1q_u8(products), vandq_u8(bytes, vdupq_n_u8(0x0f)));
            let high = vqtbl1q_u8(vld1q_u8(products.add(16)), vshrq_n_u8::<4>(bytes));
            sum = veorq_u8(sum, veorq_u8(low, high));
        }
        vst1q_u8(output.as_mut_ptr().add(at), sum);
    }
}
