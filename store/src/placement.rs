//! Which members a segment is placed on, and in which roles. Pure: numbers in, slots out.
//!
//! Members of distinct failure domains come first, and within that the more free space a member has the likelier it
//! is chosen, so that members of unequal size fill up together. Roles rotate from segment to segment, so that no
//! member serves parity only. The same input gives the same placement.

use std::collections::BTreeMap;

use crate::geometry::Geometry;
use crate::ids::MemberId;

/// A member that might take a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub id: MemberId,
    /// Bytes that may still be written there.
    pub free_bytes: u64,
    /// Failure domain label. `None` or empty: its device is its domain.
    pub domain: Option<String>,
    /// Identity of the filesystem (`st_dev`).
    pub device: u64,
    /// Whether it may be written at all.
    pub healthy: bool,
}

/// Who holds which slot of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// By shard index; `None` is a vacant slot. Data slots are filled before parity slots.
    pub slots: Vec<Option<MemberId>>,
    /// Distinct failure domains among the occupied slots. Fewer than occupied slots: losing one domain can lose
    /// several shards of a stripe.
    pub domains: usize,
    /// Most slots in one failure domain. More than m: losing that domain loses data.
    pub slots_per_domain_max: usize,
}

impl Placement {
    /// Slots that are not vacant.
    pub fn occupied(&self) -> usize {
        self.slots.iter().flatten().count()
    }
}

/// Fewer healthy members than a segment needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{healthy} healthy backing directories, {needed} are needed to open a segment; bring missing ones back")]
pub struct TooFewMembers {
    /// Members that may be written.
    pub healthy: usize,
    /// Members needed.
    pub needed: usize,
}

/// Place a segment: `geometry.total()` distinct members, or all healthy ones if they are fewer, but at least
/// `min_slots`. `previous` is the placement of the segment opened before, whose roles are rotated on; `seed` settles
/// what is left open (take the segment's id, or random bytes).
pub fn choose(
    members: &[Candidate],
    geometry: Geometry,
    min_slots: usize,
    previous: Option<&Placement>,
    seed: u64,
) -> Result<Placement, TooFewMembers> {
    let healthy: Vec<&Candidate> = members.iter().filter(|member| member.healthy).collect();
    if healthy.len() < min_slots.max(1) {
        return Err(TooFewMembers { healthy: healthy.len(), needed: min_slots.max(1) });
    }
    let chosen = spread(&healthy, geometry.total(), seed);
    let mut per_domain: BTreeMap<Domain<'_>, usize> = BTreeMap::new();
    for member in &chosen {
        *per_domain.entry(Domain::of(member)).or_default() += 1;
    }
    let ids: Vec<MemberId> = chosen.iter().map(|member| member.id).collect();
    let mut slots: Vec<Option<MemberId>> = rotate(&ids, geometry, previous, seed).into_iter().map(Some).collect();
    slots.resize(geometry.total(), None);
    Ok(Placement {
        slots,
        domains: per_domain.len(),
        slots_per_domain_max: per_domain.values().copied().max().unwrap_or(0),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Domain<'a> {
    Label(&'a str),
    Device(u64),
}

impl<'a> Domain<'a> {
    fn of(member: &'a Candidate) -> Self {
        match member.domain.as_deref() {
            Some(label) if !label.is_empty() => Self::Label(label),
            _ => Self::Device(member.device),
        }
    }
}

/// Up to `count` members: one of each domain, then a second of each, and so on; which domains and which members goes
/// by a draw weighted with free space.
fn spread<'a>(healthy: &[&'a Candidate], count: usize, seed: u64) -> Vec<&'a Candidate> {
    let mut domains: BTreeMap<Domain<'a>, Vec<(f64, &'a Candidate)>> = BTreeMap::new();
    for &member in healthy {
        domains.entry(Domain::of(member)).or_default().push((arrival(member, seed), member));
    }
    for members in domains.values_mut() {
        members.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));
    }
    // A domain's first member arrives when the domain does: its chance is that of its members together.
    let mut rounds: Vec<(usize, f64, &Candidate)> = domains
        .into_values()
        .flat_map(|members| members.into_iter().enumerate().map(|(round, (arrival, member))| (round, arrival, member)))
        .collect();
    rounds.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.id.cmp(&b.2.id)));
    rounds.into_iter().take(count).map(|(_, _, member)| member).collect()
}

/// When this member arrives in a race of exponential clocks with its free space as rate. Taking the first arrivals is
/// a weighted draw without replacement (Efraimidis and Spirakis, 2006).
fn arrival(member: &Candidate, seed: u64) -> f64 {
    // 53 bits, the precision of f64, in the open interval (0, 1): neither logarithm nor quotient can be infinite.
    let uniform = ((hash(b"draw", seed, member.id) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln() / member.free_bytes.max(1) as f64
}

/// The order of roles: members of the previous segment move on by m slots, so that each is parity equally often; new
/// ones take what is left, in an order of their own.
fn rotate(chosen: &[MemberId], geometry: Geometry, previous: Option<&Placement>, seed: u64) -> Vec<MemberId> {
    let mut order: Vec<MemberId> = Vec::new();
    if let Some(previous) = previous.filter(|previous| !previous.slots.is_empty()) {
        let mut slots = previous.slots.clone();
        let by = geometry.parity().max(1) % slots.len();
        slots.rotate_right(by);
        order.extend(slots.into_iter().flatten().filter(|id| chosen.contains(id)));
    }
    let mut new: Vec<MemberId> = chosen.iter().filter(|id| !order.contains(id)).copied().collect();
    new.sort_by_key(|id| (hash(b"role", seed, *id), *id));
    for id in new {
        let at = hash(b"slot", seed, id) % (order.len() as u64 + 1);
        order.insert(at as usize, id);
    }
    order
}

fn hash(purpose: &[u8; 4], seed: u64, id: MemberId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose).update(&seed.to_le_bytes()).update(&id.0);
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u8, free_bytes: u64, device: u64) -> Candidate {
        Candidate { id: MemberId([number; 16]), free_bytes, domain: None, device, healthy: true }
    }

    fn labelled(number: u8, label: &str) -> Candidate {
        Candidate { domain: Some(label.into()), ..member(number, 1 << 40, 7) }
    }

    fn members(count: u8) -> Vec<Candidate> {
        (0..count).map(|number| member(number, 1 << 40, u64::from(number))).collect()
    }

    fn geometry(data: u8, parity: u8) -> Geometry {
        Geometry::new(data, parity).unwrap()
    }

    fn place(members: &[Candidate], data: u8, parity: u8, seed: u64) -> Placement {
        let placement = choose(members, geometry(data, parity), 1, None, seed).unwrap();
        let mut ids: Vec<_> = placement.slots.iter().flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), placement.occupied(), "a member holds two slots");
        assert_eq!(placement.slots.len(), usize::from(data + parity));
        placement
    }

    #[test]
    fn the_same_input_gives_the_same_placement() {
        let members = members(9);
        let mut reversed = members.clone();
        reversed.reverse();
        for seed in 0..50 {
            assert_eq!(place(&members, 4, 2, seed), place(&reversed, 4, 2, seed));
        }
        assert!((1..50).any(|seed| place(&members, 4, 2, seed) != place(&members, 4, 2, 0)));
    }

    #[test]
    fn only_healthy_members_and_never_fewer_than_asked() {
        let mut members = members(6);
        members[2].healthy = false;
        for seed in 0..50 {
            let placement = place(&members, 4, 2, seed);
            assert_eq!(placement.occupied(), 5);
            assert!(!placement.slots.contains(&Some(members[2].id)));
            assert_eq!(placement.slots[5], None, "the vacant slot is a parity slot");
        }
        members[0].healthy = false;
        assert_eq!(choose(&members, geometry(4, 2), 5, None, 0).unwrap_err(), TooFewMembers { healthy: 4, needed: 5 });
        assert!(choose(&members, geometry(4, 2), 4, None, 0).is_ok());
        assert!(choose(&[], geometry(1, 0), 0, None, 0).is_err());
    }

    #[test]
    fn domains_first() {
        // Three hosts with three, two and one disks: 2+1 fits with one shard a host.
        let hosts = ["a", "a", "a", "b", "b", "c"];
        let members: Vec<_> = (0..).zip(hosts).map(|(number, host)| labelled(number, host)).collect();
        for seed in 0..100 {
            let placement = place(&members, 2, 1, seed);
            assert_eq!((placement.domains, placement.slots_per_domain_max), (3, 1));
            // 3+2: a and b twice, c once.
            let placement = place(&members, 3, 2, seed);
            assert_eq!((placement.domains, placement.slots_per_domain_max), (3, 2));
        }
    }

    #[test]
    fn devices_are_domains_only_without_labels() {
        let same_device: Vec<_> = (0..3).map(|number| member(number, 1 << 30, 1)).collect();
        let placement = place(&same_device, 2, 1, 0);
        assert_eq!((placement.domains, placement.slots_per_domain_max), (1, 3));
        let labels: Vec<_> = (0..3).map(|number| labelled(number, &format!("disk{number}"))).collect();
        assert_eq!(place(&labels, 2, 1, 0).domains, 3);
        let mut empty_label = members(3);
        empty_label.iter_mut().for_each(|member| member.domain = Some(String::new()));
        assert_eq!(place(&empty_label, 2, 1, 0).domains, 3);
    }

    #[test]
    fn free_space_is_used_up_evenly() {
        // Seven members, two of them four times as large; the segments that fit are placed until little is left.
        let sizes = [100u64, 100, 100, 100, 100, 400, 400];
        let mut members: Vec<_> = (0..).zip(sizes).map(|(n, size)| member(n, size << 20, u64::from(n))).collect();
        let mut previous = None;
        for seed in 0..300 {
            let placement = choose(&members, geometry(2, 1), 3, previous.as_ref(), seed).unwrap();
            for id in placement.slots.iter().flatten() {
                members[usize::from(id.0[0])].free_bytes -= 1 << 20;
            }
            previous = Some(placement);
        }
        for (member, size) in members.iter().zip(sizes) {
            let used = 1.0 - member.free_bytes as f64 / (size << 20) as f64;
            assert!((0.5..0.9).contains(&used), "member {} of size {size} is {used:.2} full", member.id);
        }
    }

    #[test]
    fn a_full_member_is_the_last_choice() {
        let mut members = members(4);
        members[1].free_bytes = 0;
        for seed in 0..200 {
            assert!(!place(&members, 2, 1, seed).slots.contains(&Some(members[1].id)));
        }
        assert_eq!(place(&members, 2, 2, 0).occupied(), 4);
    }

    #[test]
    fn roles_rotate_with_all_members_in_use() {
        let members = members(6);
        let mut parity_turns = BTreeMap::new();
        let mut previous: Option<Placement> = None;
        for seed in 0..30 {
            let placement = choose(&members, geometry(4, 2), 5, previous.as_ref(), seed).unwrap();
            for id in placement.slots[4..].iter().flatten() {
                *parity_turns.entry(*id).or_insert(0) += 1;
            }
            previous = Some(placement);
        }
        assert_eq!(parity_turns.into_values().collect::<Vec<_>>(), [10; 6]);
    }

    #[test]
    fn roles_spread_with_more_members_than_slots() {
        let members = members(9);
        let (mut data, mut parity) = (BTreeMap::new(), BTreeMap::new());
        let mut previous: Option<Placement> = None;
        for seed in 0..900 {
            let placement = choose(&members, geometry(4, 2), 5, previous.as_ref(), seed).unwrap();
            for (slot, id) in placement.slots.iter().enumerate() {
                *if slot < 4 { &mut data } else { &mut parity }.entry(id.unwrap()).or_insert(0u32) += 1;
            }
            previous = Some(placement);
        }
        assert!(data.values().all(|turns| (320..480).contains(turns)), "{data:?}");
        assert!(parity.values().all(|turns| (150..250).contains(turns)), "{parity:?}");
    }

    #[test]
    fn a_previous_placement_of_another_shape_does_no_harm() {
        let members = members(5);
        for slots in [vec![], vec![None; 3], vec![Some(members[3].id)], vec![Some(MemberId([99; 16])); 7]] {
            let previous = Placement { slots, domains: 0, slots_per_domain_max: 0 };
            let placement = choose(&members, geometry(3, 2), 4, Some(&previous), 1).unwrap();
            assert_eq!(placement.occupied(), 5);
        }
        let one = choose(&members[..1], geometry(1, 0), 1, None, 1).unwrap();
        let again = choose(&members[..1], geometry(1, 0), 1, Some(&one), 2).unwrap();
        assert_eq!(one.slots, again.slots);
    }
}
