//! Kernels for x86-64. `unsafe` for instructions beyond the baseline and for vector loads and stores.
//!
//! One loop for all of them: a step takes two vectors of every source, each loaded once, and adds their products to up
//! to four outputs held in registers. Shards that are no multiple of a vector end with a vector that overlaps the one
//! before: outputs depend on sources alone, so writing some bytes twice writes the same bytes.

use std::arch::x86_64::*;

use super::kernel::Kernel;
use super::matrix::Tables;

/// Outputs computed together: four, times two vectors, leave room for sources and tables in 16 registers.
const ROWS_MAX: usize = 4;

/// Bytes of all sources taken at a time when there are more outputs than [`ROWS_MAX`], so that the second pass finds
/// them in a 32 KiB L1 cache.
const RUN_BYTES: usize = 24 * 1024;

/// A kernel whose instructions this CPU has. Only [`Detected::new`] makes one: that is what `multiply` relies on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detected(Kernel);

impl Detected {
    /// `None` if the CPU or the operating system lacks the instructions, or `kernel` is not for x86-64.
    pub(super) fn new(kernel: Kernel) -> Option<Self> {
        let available = match kernel {
            Kernel::GfniAvx512 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512f"),
            Kernel::GfniAvx2 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            Kernel::Avx2 => is_x86_feature_detected!("avx2"),
            Kernel::Ssse3 => is_x86_feature_detected!("ssse3"),
            Kernel::Neon | Kernel::Scalar => false,
        };
        available.then_some(Self(kernel))
    }

    pub(super) fn kernel(self) -> Kernel {
        self.0
    }

    /// Bytes of a vector, and the shortest shard [`Self::multiply`] takes.
    pub(super) fn width(self) -> usize {
        match self.0 {
            Kernel::GfniAvx512 => GfniAvx512::WIDTH,
            Kernel::GfniAvx2 => GfniAvx2::WIDTH,
            Kernel::Avx2 => Avx2::WIDTH,
            _ => Ssse3::WIDTH,
        }
    }

    /// `outputs[r] = sum over c of tables[r][c] * sources[c]`.
    ///
    /// Panics unless sources and outputs fit the tables and all have one length of at least [`Self::width`].
    pub(super) fn multiply(self, tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let len = outputs.first().map_or(0, |output| output.len());
        assert!(len >= self.width());
        assert!(outputs.len() == tables.rows && sources.len() == tables.columns);
        assert!(sources.iter().all(|source| source.len() == len) && outputs.iter().all(|output| output.len() == len));
        // SAFETY: `new` found the instructions of `self.0` before making this value, and the asserts above are the
        // other precondition of the four functions: numbers of shards as the tables say, all `len >= WIDTH` bytes long.
        unsafe {
            match self.0 {
                Kernel::GfniAvx512 => gfni_avx512(tables, sources, outputs, len),
                Kernel::GfniAvx2 => gfni_avx2(tables, sources, outputs, len),
                Kernel::Avx2 => avx2(tables, sources, outputs, len),
                _ => ssse3(tables, sources, outputs, len),
            }
        }
    }
}

/// What an instruction set does with vectors. Inlined into one of the four functions below that enable it.
///
/// Safety of every function: the CPU has the instructions of the implementing type.
trait Lanes: Copy {
    /// Bytes of a vector.
    const WIDTH: usize;
    /// One element of the matrix as it lies in [`Tables`].
    type Element;
    /// An element in registers.
    type Factor: Copy;
    /// Source bytes, ready to be multiplied by any element.
    type Source: Copy;

    fn elements(tables: &Tables) -> &[Self::Element];
    unsafe fn factor(element: &Self::Element) -> Self::Factor;
    /// Also: `from` is readable for `WIDTH` bytes, at any alignment.
    unsafe fn load(from: *const u8) -> Self::Source;
    /// Also: `to` is writable for `WIDTH` bytes, at any alignment.
    unsafe fn store(self, to: *mut u8);
    unsafe fn zero() -> Self;
    unsafe fn add_product(self, factor: Self::Factor, source: Self::Source) -> Self;
}

/// All outputs from all sources.
///
/// # Safety
/// The CPU has the instructions of `L`; there are `tables.columns` sources and `tables.rows` outputs, each `len` bytes
/// long, and `len >= L::WIDTH`.
#[inline(always)]
unsafe fn all_rows<L: Lanes>(tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
    let run_len = if tables.rows <= ROWS_MAX { len } else { (RUN_BYTES / tables.columns).next_multiple_of(512) };
    let mut from = 0;
    while from < len {
        let to = len.min(from.saturating_add(run_len));
        for row in (0..tables.rows).step_by(ROWS_MAX) {
            // SAFETY: this function's own preconditions; `from < to <= len`, and the arms take no more rows than are
            // left from `row` on.
            unsafe {
                match tables.rows - row {
                    1 => some_rows::<L, 1>(tables, sources, outputs, row, from, to),
                    2 => some_rows::<L, 2>(tables, sources, outputs, row, from, to),
                    3 => some_rows::<L, 3>(tables, sources, outputs, row, from, to),
                    _ => some_rows::<L, ROWS_MAX>(tables, sources, outputs, row, from, to),
                }
            }
        }
        from = to;
    }
}

/// Bytes `from..to` of the `R` outputs from `row` on.
///
/// # Safety
/// As [`all_rows`]; besides, `row + R <= tables.rows`, `from < to`, and no source or output is shorter than `to` bytes or than `L::WIDTH`.
#[inline(always)]
unsafe fn some_rows<L: Lanes, const R: usize>(
    tables: &Tables,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    row: usize,
    from: usize,
    to: usize,
) {
    let mut at = from;
    while to - at >= 2 * L::WIDTH {
        // SAFETY: two vectors from `at` end at or before `to`.
        unsafe { step::<L, R, 2>(tables, sources, outputs, row, at) };
        at += 2 * L::WIDTH;
    }
    while at < to {
        // The last vector ends at `to` and may overlap the one before; `to >= WIDTH`, since runs are longer than a
        // vector and the last one ends where the shards do.
        let last = at.min(to - L::WIDTH);
        // SAFETY: one vector from `last` ends at or before `to`.
        unsafe { step::<L, R, 1>(tables, sources, outputs, row, last) };
        at = last + L::WIDTH;
    }
}

/// `V` vectors from byte `at` of the `R` outputs from `row` on.
///
/// # Safety
/// The CPU has the instructions of `L`; there are `tables.columns` sources and at least `row + R` outputs, all of at
/// least `at + V * L::WIDTH` bytes; `row + R <= tables.rows`.
#[inline(always)]
unsafe fn step<L: Lanes, const R: usize, const V: usize>(
    tables: &Tables,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    row: usize,
    at: usize,
) {
    // SAFETY: each access lies within the preconditions: `at + v * WIDTH + WIDTH <= at + V * WIDTH` bytes of a source or
    // output, and element `column * rows + row + r` with `column < columns` and `row + r < rows` of a table that has
    // `columns * rows`. Sources and outputs do not overlap, being `&` and `&mut`.
    unsafe {
        let elements = L::elements(tables).as_ptr().add(row);
        let mut sums = [[L::zero(); V]; R];
        for (column, source) in sources.iter().enumerate() {
            let from = source.as_ptr().add(at);
            let mut vectors = [L::load(from); V];
            for (v, vector) in vectors.iter_mut().enumerate().skip(1) {
                *vector = L::load(from.add(v * L::WIDTH));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = L::factor(&*elements.add(column * tables.rows + r));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = sum.add_product(factor, vector);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let to = outputs.get_unchecked_mut(row + r).as_mut_ptr().add(at);
            for (v, sum) in sums.into_iter().enumerate() {
                sum.store(to.add(v * L::WIDTH));
            }
        }
    }
}

/// [`all_rows`] with 64-byte vectors and GF2P8AFFINEQB.
///
/// # Safety
/// As [`all_rows`] for [`GfniAvx512`].
#[target_feature(enable = "gfni,avx512f")]
unsafe fn gfni_avx512(tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
    // SAFETY: this function's own preconditions.
    unsafe { all_rows::<GfniAvx512>(tables, sources, outputs, len) }
}

/// [`all_rows`] with 32-byte vectors and GF2P8AFFINEQB.
///
/// # Safety
/// As [`all_rows`] for [`GfniAvx2`].
#[target_feature(enable = "gfni,avx2")]
unsafe fn gfni_avx2(tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
    // SAFETY: this function's own preconditions.
    unsafe { all_rows::<GfniAvx2>(tables, sources, outputs, len) }
}

/// [`all_rows`] with 32-byte vectors and PSHUFB.
///
/// # Safety
/// As [`all_rows`] for [`Avx2`].
#[target_feature(enable = "avx2")]
unsafe fn avx2(tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
    // SAFETY: this function's own preconditions.
    unsafe { all_rows::<Avx2>(tables, sources, outputs, len) }
}

/// [`all_rows`] with 16-byte vectors and PSHUFB.
///
/// # Safety
/// As [`all_rows`] for [`Ssse3`].
#[target_feature(enable = "ssse3")]
unsafe fn ssse3(tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
    // SAFETY: this function's own preconditions.
    unsafe { all_rows::<Ssse3>(tables, sources, outputs, len) }
}

/// 64 bytes.
#[derive(Clone, Copy)]
struct GfniAvx512(__m512i);

impl Lanes for GfniAvx512 {
    const WIDTH: usize = 64;
    type Element = u64;
    type Factor = __m512i;
    type Source = __m512i;

    #[inline(always)]
    fn elements(tables: &Tables) -> &[u64] {
        &tables.bit_matrices
    }

    #[inline(always)]
    unsafe fn factor(element: &u64) -> __m512i {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { _mm512_set1_epi64(*element as i64) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: the CPU has the instructions (the trait's precondition), `from` is readable for 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has the instructions (the trait's precondition), `to` is writable for 64 bytes.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    unsafe fn add_product(self, factor: __m512i, source: __m512i) -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { Self(_mm512_xor_si512(self.0, _mm512_gf2p8affine_epi64_epi8::<0>(source, factor))) }
    }
}

/// 32 bytes.
#[derive(Clone, Copy)]
struct GfniAvx2(__m256i);

impl Lanes for GfniAvx2 {
    const WIDTH: usize = 32;
    type Element = u64;
    type Factor = __m256i;
    type Source = __m256i;

    #[inline(always)]
    fn elements(tables: &Tables) -> &[u64] {
        &tables.bit_matrices
    }

    #[inline(always)]
    unsafe fn factor(element: &u64) -> __m256i {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { _mm256_set1_epi64x(*element as i64) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: the CPU has the instructions (the trait's precondition), `from` is readable for 32 bytes.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has the instructions (the trait's precondition), `to` is writable for 32 bytes.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn add_product(self, factor: __m256i, source: __m256i) -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { Self(_mm256_xor_si256(self.0, _mm256_gf2p8affine_epi64_epi8::<0>(source, factor))) }
    }
}

/// 32 bytes; sources are split into the low and the high half of every byte.
#[derive(Clone, Copy)]
struct Avx2(__m256i);

impl Lanes for Avx2 {
    const WIDTH: usize = 32;
    type Element = [u8; 32];
    type Factor = (__m256i, __m256i);
    type Source = (__m256i, __m256i);

    #[inline(always)]
    fn elements(tables: &Tables) -> &[[u8; 32]] {
        &tables.nibbles
    }

    #[inline(always)]
    unsafe fn factor(element: &[u8; 32]) -> (__m256i, __m256i) {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe {
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(element.as_ptr().cast())),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(element.as_ptr().add(16).cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> (__m256i, __m256i) {
        // SAFETY: the CPU has the instructions (the trait's precondition), `from` is readable for 32 bytes.
        unsafe {
            let bytes = _mm256_loadu_si256(from.cast());
            let low_half = _mm256_set1_epi8(0x0f);
            (_mm256_and_si256(bytes, low_half), _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), low_half))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has the instructions (the trait's precondition), `to` is writable for 32 bytes.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn add_product(self, factor: (__m256i, __m256i), source: (__m256i, __m256i)) -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe {
            let low = _mm256_shuffle_epi8(factor.0, source.0);
            let high = _mm256_shuffle_epi8(factor.1, source.1);
            Self(_mm256_xor_si256(self.0, _mm256_xor_si256(low, high)))
        }
    }
}

/// 16 bytes; sources are split into the low and the high half of every byte.
#[derive(Clone, Copy)]
struct Ssse3(__m128i);

impl Lanes for Ssse3 {
    const WIDTH: usize = 16;
    type Element = [u8; 32];
    type Factor = (__m128i, __m128i);
    type Source = (__m128i, __m128i);

    #[inline(always)]
    fn elements(tables: &Tables) -> &[[u8; 32]] {
        &tables.nibbles
    }

    #[inline(always)]
    unsafe fn factor(element: &[u8; 32]) -> (__m128i, __m128i) {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { (_mm_loadu_si128(element.as_ptr().cast()), _mm_loadu_si128(element.as_ptr().add(16).cast())) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> (__m128i, __m128i) {
        // SAFETY: the CPU has the instructions (the trait's precondition), `from` is readable for 16 bytes.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let low_half = _mm_set1_epi8(0x0f);
            (_mm_and_si128(bytes, low_half), _mm_and_si128(_mm_srli_epi64::<4>(bytes), low_half))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has the instructions (the trait's precondition), `to` is writable for 16 bytes.
        unsafe { _mm_storeu_si128(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe { Self(_mm_setzero_si128()) }
    }

    #[inline(always)]
    unsafe fn add_product(self, factor: (__m128i, __m128i), source: (__m128i, __m128i)) -> Self {
        // SAFETY: the CPU has the instructions (the trait's precondition).
        unsafe {
            let low = _mm_shuffle_epi8(factor.0, source.0);
            let high = _mm_shuffle_epi8(factor.1, source.1);
            Self(_mm_xor_si128(self.0, _mm_xor_si128(low, high)))
        }
    }
}
