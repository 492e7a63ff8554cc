//! Claims and look-outs at the backing seam.

use std::sync::Arc;

use super::*;
use crate::backing::{Backing, BackingSet, FENCE_DIR, Health, MemBacking, Member};
use crate::clock::{ManualClock, OsEntropy};
use crate::error::Error;
use crate::ids::MemberId;

const MAC: [u8; 32] = [7; 32];
const VOLUME: VolumeId = VolumeId([1; 16]);

fn disks(count: usize) -> Vec<Arc<MemBacking>> {
    (0..count).map(|n| Arc::new(MemBacking::new(&format!("disk{n}"), 1 << 20))).collect()
}

/// As one host sees the disks: those in `away` are missing.
fn seen(disks: &[Arc<MemBacking>], away: &[usize]) -> Arc<BackingSet> {
    let member = |(n, disk): (usize, &Arc<MemBacking>)| {
        let backing = (!away.contains(&n)).then(|| disk.clone() as Arc<dyn Backing>);
        let health = if away.contains(&n) { Health::Missing { reason: "away".into() } } else { Health::Healthy };
        Member::new(MemberId([n as u8; 16]), format!("disk{n}"), backing, health)
    };
    Arc::new(BackingSet::new(disks.iter().enumerate().map(member).collect()))
}

fn take(set: &BackingSet, host: &str, parity: usize, take_over: bool) -> crate::Result<Term> {
    let (clock, entropy) = (ManualClock::default(), OsEntropy);
    claim(
        set,
        &Claimant {
            volume: VOLUME,
            fence_mac: &MAC,
            host: host.into(),
            state_dir: format!("/state/{host}").into_bytes(),
            parity,
            take_over,
            known: Term(0),
            last_writer: ("first".into(), b"/state/first".to_vec()),
            clock: &clock,
            entropy: &entropy,
        },
    )
}

fn fences(disk: &MemBacking) -> Vec<u64> {
    terms(&disk.list_files(FENCE_DIR).unwrap()).map(|term| term.0).collect()
}

#[test]
fn terms_grow_and_former_fences_go_when_all_members_have_the_new_one() {
    let disks = disks(3);
    assert_eq!(take(&seen(&disks, &[]), "first", 1, false).unwrap(), Term(1));
    assert_eq!(take(&seen(&disks, &[2]), "second", 1, false).unwrap(), Term(2));
    prune(&seen(&disks, &[2]), Term(2));
    assert_eq!(fences(&disks[0]), [1, 2], "a member is away");
    let term = take(&seen(&disks, &[]), "third", 1, false).unwrap();
    assert_eq!(term, Term(3));
    prune(&seen(&disks, &[]), term);
    assert!(disks.iter().all(|disk| fences(disk) == [3]));
    assert_eq!(take(&seen(&disks, &[0, 1]), "fourth", 2, true).unwrap(), Term(4));
}

#[test]
fn a_fence_that_was_only_begun_counts_by_its_name() {
    let disks = disks(3);
    disks[1].create_file_exclusive(&fence_file(Term(9)), b"brin").unwrap();
    assert_eq!(take(&seen(&disks, &[]), "first", 1, false).unwrap(), Term(10));
    let watch = FenceWatch::new(seen(&disks, &[]), VOLUME, MAC, Some(Term(10)), 1);
    watch.check().unwrap();
    disks[0].create_file_exclusive(&fence_file(Term(11)), b"").unwrap();
    // Two of three are asked: whichever they are, a claim that succeeded is in two.
    disks[1].create_file_exclusive(&fence_file(Term(11)), b"").unwrap();
    assert!(matches!(watch.check(), Err(Error::ReadOnly(_))));
    assert_eq!(watch.taken_over(), Some(TakenOver { term: Term(11), by: None }));
}

#[test]
fn a_writer_learns_who_took_the_volume_and_never_writes_again() {
    let disks = disks(6);
    let term = take(&seen(&disks, &[]), "first", 2, false).unwrap();
    // Whichever members either of them sees.
    let watch = FenceWatch::new(seen(&disks, &[0, 1]), VOLUME, MAC, Some(term), 2);
    watch.check().unwrap();
    take(&seen(&disks, &[2, 3]), "second", 2, false).unwrap();
    let told = watch.check().unwrap_err().to_string();
    assert!(told.contains("host second (state directory /state/second) took the volume over with term 2"), "{told}");
    assert!(told.contains("(term 1) has stopped"), "{told}");
    // Even if the fence went away again.
    disks.iter().for_each(|disk| drop(disk.remove_file(&fence_file(Term(2)))));
    assert!(watch.check().is_err() && watch.check_if_due().is_err());
    assert!(FenceWatch::new(seen(&disks, &[]), VOLUME, MAC, None, 2).check().is_ok(), "who only reads has no term");
}

#[test]
fn of_writers_that_claim_at_once_one_has_the_highest_term() {
    for _ in 0..20 {
        let disks = disks(4);
        let claimed: Vec<_> = std::thread::scope(|scope| {
            let claim = |host: &'static str| {
                let set = seen(&disks, &[]);
                scope.spawn(move || take(&set, host, 2, false).map(|term| (term, set)))
            };
            ["a", "b", "c"].map(claim).into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won: Vec<_> = claimed.into_iter().flatten().collect();
        let on =
            won.iter().filter(|(term, set)| FenceWatch::new(set.clone(), VOLUME, MAC, Some(*term), 2).check().is_ok());
        // None if each was overtaken while it claimed by one that gave up: nobody writes then.
        assert!(on.count() <= 1);
        for (at, (term, _)) in won.iter().enumerate() {
            assert!(won[at + 1..].iter().all(|(other, _)| other != term), "two writers have term {term}");
        }
    }
}

#[test]
fn where_the_missing_members_could_serve_another_writer_only_the_last_one_goes_on() {
    let disks = disks(4);
    take(&seen(&disks, &[]), "first", 2, false).unwrap();
    let refused = take(&seen(&disks, &[0, 1]), "second", 2, false).unwrap_err().to_string();
    assert!(refused.contains("host first, state directory /state/first"), "{refused}");
    assert!(refused.contains("brine mount -o take_over"), "{refused}");
    assert_eq!(fences(&disks[2]), [1], "nothing was written");
    assert_eq!(take(&seen(&disks, &[0, 1]), "first", 2, false).unwrap(), Term(2));
    assert_eq!(take(&seen(&disks, &[0, 1]), "second", 2, true).unwrap(), Term(3));
    // The one left over on the other side does not know of it, and is not the last there.
    assert_eq!(take(&seen(&disks, &[2, 3]), "first", 2, false).unwrap(), Term(2));
    // Three of four meet any other three.
    assert_eq!(take(&seen(&disks, &[3]), "second", 1, false).unwrap(), Term(4));
    // Without any fence the superblocks say who was last.
    let fresh = super::tests::disks(4);
    assert!(take(&seen(&fresh, &[0, 1]), "second", 2, false).is_err());
    assert!(take(&seen(&fresh, &[0, 1]), "first", 2, false).is_ok());
}

#[test]
fn too_few_members_take_no_fence_and_tell_nothing() {
    let disks = disks(4);
    let claimed = take(&seen(&disks, &[0, 1]), "first", 1, true);
    assert!(matches!(claimed, Err(Error::TooFewMembers { healthy: 2, needed: 3 })), "{claimed:?}");
    let watch = FenceWatch::new(seen(&disks, &[0]), VOLUME, MAC, Some(Term(5)), 1);
    watch.check().unwrap();
    let break_down = |disk: &MemBacking| {
        disk.cut_after(0);
        assert!(disk.write_file("any", b"").is_err() && !disk.is_powered());
    };
    break_down(&disks[1]);
    watch.check().unwrap();
    break_down(&disks[2]);
    assert!(matches!(watch.check(), Err(Error::TooFewMembers { healthy: 1, needed: 2 })));
}

#[test]
fn a_claim_that_power_cuts_short_leaves_a_term_that_is_not_used_again() {
    let entropy = crate::clock::SeededEntropy::new(3);
    for cut in 0..40 {
        let disks = disks(3);
        take(&seen(&disks, &[]), "first", 1, false).unwrap();
        disks[cut % 3].cut_after(cut as u64 / 3);
        let cut_short = take(&seen(&disks, &[]), "second", 1, false);
        disks.iter().for_each(|disk| disk.power_cut(&entropy));
        let next = take(&seen(&disks, &[]), "third", 1, false).unwrap();
        assert!(cut_short.is_ok_and(|term| term < next) || next >= Term(2));
        assert!(disks.iter().all(|disk| fences(disk).contains(&next.0)));
    }
}
