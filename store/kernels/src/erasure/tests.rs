//! Every kernel this machine has, against the crate `reed-solomon-erasure` and against the shards that were lost.

use proptest::prelude::*;
use reed_solomon_erasure::galois_8::ReedSolomon;

use super::*;

/// Around every vector width, a page less one, and a shard of a sealed 128 KiB block in 4+2.
const LENGTHS: [usize; 10] = [0, 1, 15, 16, 17, 63, 64, 65, 4095, 32774];

fn geometry(data: usize, parity: usize) -> Geometry {
    Geometry::new(data as u8, parity as u8).unwrap()
}

/// All small geometries, and some whose parity rows take several passes or fill all slots.
fn geometries() -> impl Iterator<Item = Geometry> {
    let small = (1..=8).flat_map(|data| (0..=4).map(move |parity| geometry(data, parity)));
    small.chain([(16, 4), (3, 7), (10, 9), (60, 4), (32, 32)].map(|(data, parity)| geometry(data, parity)))
}

fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Data and parity shards, coded by the crate.
fn stripe(geometry: Geometry, len: usize) -> Vec<Vec<u8>> {
    let mut shards: Vec<Vec<u8>> = (0..geometry.total()).map(|index| bytes(len, index as u64)).collect();
    if geometry.parity() > 0 && len > 0 {
        ReedSolomon::new(geometry.data(), geometry.parity()).unwrap().encode(&mut shards).unwrap();
    }
    shards
}

fn slices(shards: &[Vec<u8>]) -> Vec<&[u8]> {
    shards.iter().map(Vec::as_slice).collect()
}

fn slices_mut(shards: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    shards.iter_mut().map(Vec::as_mut_slice).collect()
}

/// The shards of a mask, with their indices.
fn chosen(shards: &[Vec<u8>], mask: u64) -> Vec<(ShardIndex, &[u8])> {
    ones(mask).map(|index| (ShardIndex(index as u8), shards[index].as_slice())).collect()
}

/// Rebuilds the shards of `want` (a mask) from those of `given`, in descending order, and compares.
fn check_reconstruct(coder: &Coder, shards: &[Vec<u8>], given: u64, want: u64) {
    let mut want: Vec<ShardIndex> = ones(want).map(|index| ShardIndex(index as u8)).collect();
    want.reverse();
    let mut out = vec![vec![0xee; shards[0].len()]; want.len()];
    coder.reconstruct(&chosen(shards, given), &want, &mut slices_mut(&mut out)).unwrap();
    for (index, rebuilt) in want.iter().zip(&out) {
        assert!(*rebuilt == shards[usize::from(index.0)], "{coder:?}: shard {index} from {given:b}");
    }
}

fn all(geometry: Geometry) -> u64 {
    u64::MAX >> (64 - geometry.total())
}

/// Masks of all sets of at most m of the shards.
fn loss_patterns(geometry: Geometry) -> impl Iterator<Item = u64> {
    (0..=all(geometry)).filter(move |mask| mask.count_ones() as usize <= geometry.parity())
}

#[test]
fn parity_is_the_crates_on_every_kernel_geometry_and_length() {
    for geometry in geometries() {
        for kernel in kernels() {
            let coder = Coder::with_kernel(geometry, kernel).unwrap();
            for len in LENGTHS {
                let shards = stripe(geometry, len);
                let (data, expected) = shards.split_at(geometry.data());
                let mut parity = vec![vec![0xee; len]; geometry.parity()];
                coder.encode(&slices(data), &mut slices_mut(&mut parity));
                assert!(parity == expected, "{coder:?}, {len} bytes");
            }
        }
    }
}

#[test]
fn every_loss_up_to_m_is_rebuilt_on_every_kernel() {
    for geometry in geometries().take(8 * 5) {
        // Short lengths take every path of a kernel; the long ones are covered where patterns are few.
        let lengths: &[usize] = if geometry.total() <= 6 { &LENGTHS } else { &LENGTHS[..8] };
        for &len in lengths {
            let shards = stripe(geometry, len);
            for kernel in kernels() {
                let coder = Coder::with_kernel(geometry, kernel).unwrap();
                for lost in loss_patterns(geometry) {
                    check_reconstruct(&coder, &shards, all(geometry) & !lost, lost);
                }
            }
        }
    }
}

#[test]
fn wide_stripes_are_rebuilt_from_any_losses() {
    for (geometry, step) in [(geometry(16, 4), 1), (geometry(10, 9), 5), (geometry(32, 32), 1)] {
        let shards = stripe(geometry, 4095);
        for kernel in kernels() {
            let coder = Coder::with_kernel(geometry, kernel).unwrap();
            for first in (0..geometry.total()).step_by(step) {
                let lost = (0..geometry.parity()).fold(0, |mask, at| mask | 1 << ((first + at) % geometry.total()));
                check_reconstruct(&coder, &shards, all(geometry) & !lost, lost);
            }
        }
    }
}

#[test]
fn shards_at_any_alignment() {
    let geometry = geometry(4, 3);
    for kernel in kernels() {
        let coder = Coder::with_kernel(geometry, kernel).unwrap();
        for shift in 0..64 {
            let len = 200;
            let shards = stripe(geometry, len);
            let shifted: Vec<Vec<u8>> = shards.iter().map(|shard| [vec![0; shift], shard.clone()].concat()).collect();
            let data: Vec<&[u8]> = shifted[..4].iter().map(|shard| &shard[shift..]).collect();
            let mut out = vec![vec![0xee; shift + len + 64]; 3];
            let mut parity: Vec<&mut [u8]> = out.iter_mut().map(|out| &mut out[shift..shift + len]).collect();
            coder.encode(&data, &mut parity);
            for (out, expected) in out.iter().zip(&shards[4..]) {
                assert_eq!(&out[shift..shift + len], expected, "{coder:?}, shifted by {shift}");
                let outside = out[..shift].iter().chain(&out[shift + len..]);
                assert!(outside.copied().all(|byte| byte == 0xee), "{coder:?} wrote outside the shard");
            }
        }
    }
}

/// The bytes on disk depend on these numbers: another crate version, or another construction, must not change them.
#[test]
fn the_generators_are_fixed() {
    let rows = |data, parity| {
        let generator = Matrix::generator(geometry(data, parity));
        (data..data + parity).flat_map(|row| generator.row(row).to_vec()).collect::<Vec<u8>>()
    };
    assert_eq!(rows(1, 2), [1, 1]);
    assert_eq!(rows(2, 1), [3, 2]);
    assert_eq!(rows(2, 2), [3, 2, 2, 3]);
    assert_eq!(rows(3, 2), [1, 1, 1, 15, 8, 6]);
    assert_eq!(rows(4, 2), [27, 28, 18, 20, 28, 27, 20, 18]);
    assert_eq!(rows(8, 4)[..16], [26, 132, 186, 51, 231, 16, 198, 39, 132, 26, 51, 186, 16, 231, 39, 198]);
}

#[test]
fn given_shards_are_copied_and_others_left_alone() {
    let geometry = geometry(4, 2);
    let coder = Coder::new(geometry);
    let shards = stripe(geometry, 100);
    // Wanted: one that is given, a lost data shard, a lost parity shard, in no order.
    check_reconstruct(&coder, &shards, 0b01_1011, 0b10_0110);
    // Only what is given is wanted: fewer than k shards do.
    check_reconstruct(&coder, &shards, 0b00_0010, 0b00_0010);
    // Nothing wanted.
    assert_eq!(coder.reconstruct(&[], &[], &mut []), Ok(()));
}

#[test]
fn too_few_shards_leave_the_output_untouched() {
    let geometry = geometry(4, 2);
    let coder = Coder::new(geometry);
    let shards = stripe(geometry, 100);
    let mut given = chosen(&shards, 0b01_0110);
    given.push(given[0]); // a shard twice
    given.push((ShardIndex(6), &shards[5])); // an index outside the geometry
    given.push((ShardIndex(3), &shards[3][1..])); // a shard that was cut short
    let mut out = vec![vec![0xee; 100]; 2];
    let result = coder.reconstruct(&given, &[ShardIndex(1), ShardIndex(0)], &mut slices_mut(&mut out));
    assert_eq!(result, Err(NotEnough { given: 3, needed: 4 }));
    assert!(out.concat().iter().all(|&byte| byte == 0xee));
    assert!(result.unwrap_err().to_string().contains("3 usable shards of the 4 needed"));
}

#[test]
#[should_panic(expected = "wanted twice")]
fn a_shard_wanted_twice_is_a_mistake_of_the_caller() {
    let mut out = [vec![0; 3], vec![0; 3]];
    let _ = Coder::new(geometry(2, 1)).reconstruct(&[], &[ShardIndex(1); 2], &mut slices_mut(&mut out));
}

#[test]
#[should_panic(expected = "another length")]
fn data_shards_of_different_length_are_refused() {
    let mut parity = [vec![0; 64]];
    Coder::new(geometry(2, 1)).encode(&[&[0; 64], &[0; 63]], &mut slices_mut(&mut parity));
}

#[test]
fn plans_are_bounded_and_shared() {
    let geometry = geometry(8, 4);
    let coder = Coder::new(geometry);
    let shards = stripe(geometry, 65);
    for lost in loss_patterns(geometry) {
        check_reconstruct(&coder, &shards, all(geometry) & !lost, lost);
    }
    assert_eq!(coder.plans.lock().len(), PLANS_MAX);
    assert!(Arc::ptr_eq(&coder.plan(0xff0, 0x00f), &coder.plan(0xff0, 0x00f)));
}

#[test]
fn the_best_kernel_is_available_and_used() {
    assert!(Kernel::best().is_available());
    assert!(Kernel::Scalar.is_available());
    assert_eq!(kernel_name(), Kernel::best().name());
    assert_eq!(format!("{:?}", Coder::new(geometry(4, 2))), format!("Coder(4+2, {})", kernel_name()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any k shards, in any order, give any wanted ones, on any kernel.
    #[test]
    fn any_k_shards_give_all(
        (data, parity, len) in (1usize..=20, 0usize..=12, 1usize..700),
        order in any::<u64>(),
        want in any::<u64>(),
    ) {
        let geometry = geometry(data, parity);
        let shards = stripe(geometry, len);
        let mut indices: Vec<usize> = (0..geometry.total()).collect();
        indices.sort_by_key(|index| blake3::hash(&(order ^ *index as u64).to_le_bytes()).as_bytes()[..8].to_vec());
        let given = indices[..data].iter().fold(0, |mask, index| mask | 1u64 << index);
        for kernel in kernels() {
            let coder = Coder::with_kernel(geometry, kernel).unwrap();
            check_reconstruct(&coder, &shards, given, want & all(geometry));
        }
    }
}
