//! Reed-Solomon over GF(2^8): k data shards to m parity shards, and any lost shard from k others.
//!
//! Promises: systematic (data shards are the message itself), byte-identical with the crate
//! `reed-solomon-erasure` (`galois_8`, field polynomial 0x11D, its Vandermonde construction) on every kernel, so that a
//! volume can move between machines. Kernels are chosen once at run time by what the CPU has; one binary runs on any
//! x86-64. Does not know segments, checksums or which shard is right: a wrong shard in gives wrong bytes out.
//!
//! Every operation is one product of a small matrix with the shards: encoding by the generator's parity rows,
//! reconstruction by rows that give the lost shards, data or parity, straight from the k at hand. Shards nobody asked
//! for are neither computed nor copied.

#![deny(unsafe_code)]

mod kernel;
mod matrix;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod simd_arm;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod simd_x86;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use hashlink::LruCache;
use parking_lot::Mutex;

use crate::geometry::{Geometry, SLOTS_MAX, ShardIndex};
use matrix::{Matrix, Tables};

pub use kernel::Kernel;

/// Most decode matrices kept. A 4+2 plan is about 1/3 KiB and the largest the bound on slots allows (32 lost of 32+32)
/// 42 KiB, so this is at most some 5 MiB; a healing run or an absent member needs a handful of patterns.
const PLANS_MAX: usize = 128;

/// Shards that were lost cannot be computed from those that were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given} usable shards of the {needed} needed; read more shards of this stripe")]
pub struct NotEnough {
    /// Different shards given that have the length asked for and an index within the geometry.
    pub given: usize,
    /// Shards needed, k.
    pub needed: usize,
}

/// Name of the kernel this machine uses: `gfni-avx512`, `gfni-avx2`, `avx2`, `ssse3`, `neon` or `scalar`.
pub fn kernel_name() -> &'static str {
    Kernel::best().name()
}

/// Encodes and reconstructs stripes of one geometry. Cheap to share; make one for each geometry.
pub struct Coder {
    geometry: Geometry,
    engine: kernel::Engine,
    /// k+m rows of k elements; the first k are the identity.
    generator: Matrix,
    /// The generator's last m rows.
    parity: Tables,
    /// Decode matrices by (shards used, shards lost), both as masks of shard indices. Held only to look up or insert.
    plans: Mutex<LruCache<(u64, u64), Arc<Tables>>>,
}

// The plan cache names shards by 64-bit masks.
const _: () = assert!(SLOTS_MAX <= u64::BITS as usize);

impl Coder {
    /// A coder on the fastest kernel of this machine.
    pub fn new(geometry: Geometry) -> Self {
        Self::build(geometry, Kernel::best_engine())
    }

    /// A coder on a kernel of choice, for tests and benchmarks. `None` if this CPU lacks its instructions.
    pub fn with_kernel(geometry: Geometry, kernel: Kernel) -> Option<Self> {
        Some(Self::build(geometry, kernel.engine()?))
    }

    fn build(geometry: Geometry, engine: kernel::Engine) -> Self {
        let generator = Matrix::generator(geometry);
        let parity = Tables::new((geometry.data()..geometry.total()).map(|index| generator.row(index)));
        Self { geometry, engine, generator, parity, plans: Mutex::new(LruCache::new(PLANS_MAX)) }
    }

    /// The geometry it was made for.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Computes all parity shards. Whatever `parity` held is overwritten.
    ///
    /// # Panics
    /// Unless there are k data and m parity slices, all of one length (which may be 0).
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!(data.len(), self.geometry.data(), "encode {}: number of data shards", self.geometry);
        assert_eq!(parity.len(), self.geometry.parity(), "encode {}: number of parity shards", self.geometry);
        if let [only] = data {
            // k=1: every row of the generator is 1.
            parity.iter_mut().for_each(|copy| copy.copy_from_slice(only));
            return;
        }
        self.engine.multiply(&self.parity, data, parity);
    }

    /// Writes into `out[i]` the shard `want[i]`, data or parity, from any k different `shards`.
    ///
    /// A wanted shard that is among `shards` is copied, which needs no k shards. Of more than k, the k with the lowest
    /// indices are used. A shard given twice counts once (the first is used); one whose index is outside the geometry
    /// or whose length is not that of `out` does not count, since both may come from damaged bytes.
    ///
    /// # Errors
    /// [`NotEnough`]; `out` is then untouched.
    ///
    /// # Panics
    /// Unless `want` and `out` are equally many, `want` names different shards of this geometry, and the slices of
    /// `out` have one length.
    pub fn reconstruct(
        &self,
        shards: &[(ShardIndex, &[u8])],
        want: &[ShardIndex],
        out: &mut [&mut [u8]],
    ) -> Result<(), NotEnough> {
        assert_eq!(want.len(), out.len(), "reconstruct: shards wanted and slices to write them to");
        let Some(len) = out.first().map(|slice| slice.len()) else { return Ok(()) };
        assert!(out.iter().all(|slice| slice.len() == len), "reconstruct: slices of different length");
        let wanted = self.mask_of(want);

        let mut given = [None; SLOTS_MAX];
        for &(index, bytes) in shards {
            let index = usize::from(index.0);
            if index < self.geometry.total() && bytes.len() == len && given[index].is_none() {
                given[index] = Some(bytes);
            }
        }
        let needed = self.geometry.data();
        let mut sources: [&[u8]; SLOTS_MAX] = [&[]; SLOTS_MAX];
        let (mut have, mut used, mut lost) = (0, 0u64, wanted);
        for (index, bytes) in given.iter().enumerate() {
            let Some(bytes) = bytes else { continue };
            lost &= !(1 << index);
            if have < needed {
                sources[have] = bytes;
                have += 1;
                used |= 1 << index;
            }
        }
        if lost != 0 && have < needed {
            return Err(NotEnough { given: have, needed });
        }

        let mut targets: Vec<(usize, &mut [u8])> = Vec::with_capacity(lost.count_ones() as usize);
        for (index, slice) in want.iter().zip(out.iter_mut()) {
            match given[usize::from(index.0)] {
                Some(bytes) => slice.copy_from_slice(bytes),
                None => targets.push((usize::from(index.0), slice)),
            }
        }
        if targets.is_empty() {
            return Ok(());
        }
        if needed == 1 {
            targets.iter_mut().for_each(|(_, copy)| copy.copy_from_slice(sources[0]));
            return Ok(());
        }
        // Plans hold their rows in ascending order of shard, whatever the order of `want`.
        targets.sort_unstable_by_key(|(index, _)| *index);
        let mut targets: Vec<&mut [u8]> = targets.into_iter().map(|(_, slice)| slice).collect();
        self.engine.multiply(&self.plan(used, lost), &sources[..needed], &mut targets);
        Ok(())
    }

    /// The mask of shards that `want` names; panics where `reconstruct` says so.
    fn mask_of(&self, want: &[ShardIndex]) -> u64 {
        want.iter().fold(0, |mask, index| {
            let total = self.geometry.total();
            assert!(usize::from(index.0) < total, "reconstruct: shard {index} of {total}");
            let bit = 1u64 << index.0;
            assert!(mask & bit == 0, "reconstruct: shard {index} wanted twice");
            mask | bit
        })
    }

    /// Rows that give the shards `lost` from the k shards `used`, both in ascending order.
    fn plan(&self, used: u64, lost: u64) -> Arc<Tables> {
        if let Some(plan) = self.plans.lock().get(&(used, lost)) {
            return plan.clone();
        }
        // Not under the lock: two threads may compute the same plan, neither waits for the other.
        let decode = self.generator.select(ones(used)).inverse();
        let rows: Vec<Vec<u8>> = ones(lost).map(|index| decode.multiply_row(self.generator.row(index))).collect();
        let plan = Arc::new(Tables::new(rows.iter().map(Vec::as_slice)));
        self.plans.lock().insert((used, lost), plan.clone());
        plan
    }
}

impl fmt::Debug for Coder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coder({}, {})", self.geometry, self.engine.kernel().name())
    }
}

/// Positions of the ones of a mask, ascending.
fn ones(mask: u64) -> impl Iterator<Item = usize> {
    (0..SLOTS_MAX).filter(move |index| mask >> index & 1 == 1)
}
