//! Which instructions multiply: detected once, the same bytes from all of them.

use std::sync::OnceLock;

use reed_solomon_erasure::galois_8::{mul_slice, mul_slice_xor};

use super::matrix::Tables;
#[cfg(target_arch = "aarch64")]
use super::simd_arm;
#[cfg(target_arch = "x86_64")]
use super::simd_x86;

/// A way to multiply shards by a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// x86-64: GF2P8AFFINEQB on 64 bytes at a time.
    GfniAvx512,
    /// x86-64: GF2P8AFFINEQB on 32 bytes at a time.
    GfniAvx2,
    /// x86-64: two table look-ups (PSHUFB), 32 bytes at a time.
    Avx2,
    /// x86-64: two table look-ups (PSHUFB), 16 bytes at a time.
    Ssse3,
    /// aarch64: two table look-ups (TBL), 16 bytes at a time.
    Neon,
    /// Any machine: one table look-up a byte, from the crate `reed-solomon-erasure`.
    Scalar,
}

impl Kernel {
    /// All kernels, faster ones first.
    pub const ALL: [Self; 6] = [Self::GfniAvx512, Self::GfniAvx2, Self::Avx2, Self::Ssse3, Self::Neon, Self::Scalar];

    /// Name as shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Self::GfniAvx512 => "gfni-avx512",
            Self::GfniAvx2 => "gfni-avx2",
            Self::Avx2 => "avx2",
            Self::Ssse3 => "ssse3",
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        }
    }

    /// Whether this CPU (and its operating system) has the instructions.
    pub fn is_available(self) -> bool {
        self.engine().is_some()
    }

    /// The fastest one available here.
    pub fn best() -> Self {
        Self::best_engine().kernel()
    }

    pub(super) fn best_engine() -> Engine {
        static BEST: OnceLock<Engine> = OnceLock::new();
        *BEST.get_or_init(|| Self::ALL.into_iter().find_map(Self::engine).unwrap_or(Engine::Scalar))
    }

    pub(super) fn engine(self) -> Option<Engine> {
        match self {
            Self::Scalar => Some(Engine::Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx512 | Self::GfniAvx2 | Self::Avx2 | Self::Ssse3 => {
                simd_x86::Detected::new(self).map(Engine::X86)
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => simd_arm::Detected::new().map(Engine::Neon),
            #[allow(unreachable_patterns)] // kernels of other architectures
            _ => None,
        }
    }
}

/// A kernel that was found to be available.
#[derive(Clone, Copy, Debug)]
pub(super) enum Engine {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    X86(simd_x86::Detected),
    #[cfg(target_arch = "aarch64")]
    Neon(simd_arm::Detected),
}

impl Engine {
    pub(super) fn kernel(self) -> Kernel {
        match self {
            Self::Scalar => Kernel::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::X86(detected) => detected.kernel(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Kernel::Neon,
        }
    }

    /// `outputs[r] = sum over c of tables[r][c] * sources[c]`, byte by byte.
    ///
    /// Panics unless there are as many sources and outputs as the table has columns and rows, all of one length.
    pub(super) fn multiply(self, tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let Some(len) = outputs.first().map(|output| output.len()) else {
            return;
        };
        assert_eq!((outputs.len(), sources.len()), (tables.rows, tables.columns), "shards and matrix do not fit");
        assert!(sources.iter().all(|source| source.len() == len), "source shards of another length than {len} bytes");
        assert!(outputs.iter().all(|output| output.len() == len), "output shards of another length than {len} bytes");
        match self {
            Self::Scalar => multiply_scalar(tables, sources, outputs),
            #[cfg(target_arch = "x86_64")]
            Self::X86(detected) if len >= detected.width() => detected.multiply(tables, sources, outputs),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(detected) if len >= simd_arm::WIDTH => detected.multiply(tables, sources, outputs),
            // Shards shorter than one vector.
            #[allow(unreachable_patterns)]
            _ => multiply_scalar(tables, sources, outputs),
        }
    }
}

/// Bytes of each shard taken at a time: a run of all sources of a common geometry stays in a 32 KiB L1 cache while all
/// outputs are made from it.
const SCALAR_RUN_LEN: usize = 2048;

fn multiply_scalar(tables: &Tables, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let len = outputs[0].len();
    for from in (0..len).step_by(SCALAR_RUN_LEN) {
        let run = from..len.min(from + SCALAR_RUN_LEN);
        for (row, output) in outputs.iter_mut().enumerate() {
            let output = &mut output[run.clone()];
            for (column, source) in sources.iter().enumerate() {
                let element = tables.elements[column * tables.rows + row];
                let product = if column == 0 { mul_slice } else { mul_slice_xor };
                product(element, &source[run.clone()], output);
            }
        }
    }
}
