//! Which sealed blocks share a stripe, and where in its message each lies. Pure.

/// Sealed blocks up to this length are packed several to a stripe, bytes.
pub const PACKED_LEN_MAX: usize = 32 << 10;
/// A data shard of a packed stripe grows to about this length, bytes.
const PACKED_SHARD_LEN: usize = 32 << 10;
/// Blocks in one packed stripe at most.
const PACKED_BLOCKS_MAX: usize = 128;
/// Shard lengths are multiples of this, which suits the coding kernels, bytes.
const SHARD_ALIGN: usize = 64;

/// One stripe to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Length of each shard, bytes.
    pub shard_len: usize,
    /// Length of the message before it is padded to k shards, bytes.
    pub message_len: usize,
    /// (index of the block, offset in the message), by offset.
    pub blocks: Vec<(usize, usize)>,
}

/// Stripes for blocks of these sealed lengths, in an order that keeps neighbours together. A large block has a stripe
/// of its own. Small ones share stripes; each lies within one data shard unless that would waste a quarter of the space.
pub fn plan(sealed_lens: &[usize], data_shards: usize) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut small = Vec::new();
    let mut small_bytes = 0;
    for (index, &len) in sealed_lens.iter().enumerate() {
        if len > PACKED_LEN_MAX {
            plans.push(contiguous(&[index], sealed_lens, data_shards));
            continue;
        }
        if small.len() == PACKED_BLOCKS_MAX || small_bytes + len > PACKED_SHARD_LEN * data_shards {
            plans.push(packed(&small, sealed_lens, data_shards));
            small.clear();
            small_bytes = 0;
        }
        small.push(index);
        small_bytes += len;
    }
    if !small.is_empty() {
        plans.push(packed(&small, sealed_lens, data_shards));
    }
    plans
}

fn contiguous(indices: &[usize], sealed_lens: &[usize], data_shards: usize) -> Plan {
    let mut at = 0;
    let mut blocks = Vec::with_capacity(indices.len());
    for &index in indices {
        blocks.push((index, at));
        at += sealed_lens[index];
    }
    let shard_len = at.div_ceil(data_shards).next_multiple_of(SHARD_ALIGN);
    Plan { shard_len, message_len: at, blocks }
}

fn packed(indices: &[usize], sealed_lens: &[usize], data_shards: usize) -> Plan {
    let spread = contiguous(indices, sealed_lens, data_shards);
    let longest = indices.iter().map(|&i| sealed_lens[i]).max().unwrap_or(0);
    // First fit by falling length; a shard that is a little longer than the mean usually takes them all.
    let mut by_len = indices.to_vec();
    by_len.sort_by_key(|&i| std::cmp::Reverse(sealed_lens[i]));
    let limit = spread.shard_len + spread.shard_len / 4;
    let mut shard_len = spread.shard_len.max(longest).next_multiple_of(SHARD_ALIGN);
    while shard_len <= limit {
        if let Some(blocks) = first_fit(&by_len, sealed_lens, data_shards, shard_len) {
            let message_len = blocks.last().map_or(0, |&(index, at)| at + sealed_lens[index]);
            return Plan { shard_len, message_len, blocks };
        }
        shard_len += (shard_len / 16).next_multiple_of(SHARD_ALIGN);
    }
    spread
}

fn first_fit(
    by_len: &[usize],
    sealed_lens: &[usize],
    data_shards: usize,
    shard_len: usize,
) -> Option<Vec<(usize, usize)>> {
    let mut used = vec![0; data_shards];
    let mut blocks = Vec::with_capacity(by_len.len());
    for &index in by_len {
        let len = sealed_lens[index];
        let shard = used.iter().position(|&bytes| bytes + len <= shard_len)?;
        blocks.push((index, shard * shard_len + used[shard]));
        used[shard] += len;
    }
    blocks.sort_by_key(|&(_, at)| at);
    Some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lens: &[usize], k: usize) -> Vec<Plan> {
        let plans = plan(lens, k);
        let mut seen = vec![0; lens.len()];
        for plan in &plans {
            assert_eq!(plan.shard_len % SHARD_ALIGN, 0);
            assert!(plan.message_len <= k * plan.shard_len);
            let mut end = 0;
            for &(index, at) in &plan.blocks {
                assert!(at >= end, "blocks overlap");
                end = at + lens[index];
                seen[index] += 1;
            }
            assert_eq!(end, plan.message_len);
        }
        assert!(seen.iter().all(|&n| n == 1), "each block exactly once");
        plans
    }

    #[test]
    fn a_large_block_has_a_stripe_of_its_own() {
        let plans = check(&[131_096, 131_096], 4);
        assert_eq!(plans.len(), 2);
        assert_eq!(plans[0].shard_len, 32_832);
    }

    #[test]
    fn small_blocks_share_stripes_and_lie_within_one_data_shard() {
        let plans = check(&[4120; 100], 4);
        assert!(plans.len() <= 4, "{} stripes", plans.len());
        for plan in &plans {
            for &(_, at) in &plan.blocks {
                assert_eq!(at / plan.shard_len, (at + 4119) / plan.shard_len, "crosses a shard");
            }
        }
        // One or two alone would waste space that way: they are spread over all data shards.
        assert_eq!(check(&[4120], 4)[0].shard_len, 1088);
    }

    #[test]
    fn every_mixture_is_planned_without_overlap_or_much_waste() {
        let mut seed = 9u64;
        for round in 0..300 {
            let lens: Vec<usize> = (0..round % 40)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    24 + (seed >> 40) as usize % 40_000
                })
                .collect();
            for k in 1..6 {
                for plan in check(&lens, k) {
                    assert!(plan.shard_len * k <= plan.message_len * 3 / 2 + k * 128 * SHARD_ALIGN);
                }
            }
        }
    }
}
