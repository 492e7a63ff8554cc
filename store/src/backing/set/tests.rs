use super::*;
use crate::backing::{Call, Fault, FaultyBacking, Gate, Health, Hedge, Limits, MemBacking, ReadFault, Rule};

const SEGMENT: SegmentId = SegmentId(77);
const LEN: usize = 4096;

/// Short enough for a test, long enough for a busy machine to answer from memory in.
fn limits() -> Limits {
    Limits {
        hedge_after_min: Duration::from_millis(150),
        hedge_after_max: Duration::from_millis(300),
        sick_after: Duration::from_millis(300),
        read_patience: Duration::from_secs(20),
        ..Limits::default()
    }
}

/// Nobody is ever late.
fn calm() -> Limits {
    let never = Duration::from_secs(1000);
    Limits { hedge_after_min: never, hedge_after_max: never, sick_after: never, ..Limits::default() }
}

struct Fixture {
    set: BackingSet,
    faulty: Vec<Arc<FaultyBacking>>,
}

fn id(number: usize) -> MemberId {
    MemberId([number as u8 + 1; 16])
}

impl Fixture {
    /// Members whose shard at offset 0 is full of their number. Nothing is in memory: every read goes to a thread.
    fn new(count: usize, limits: Limits) -> Self {
        let faulty: Vec<_> = (0..count)
            .map(|number| {
                let faulty = FaultyBacking::new(Arc::new(MemBacking::new(&format!("/member/{number}"), 1 << 24)));
                faulty.write_file("superblock.0", b"marker").unwrap();
                faulty.create_segment(SEGMENT, 1 << 20).unwrap();
                faulty.write_at(SEGMENT, 0, &[IoSlice::new(&[number as u8; LEN])]).unwrap();
                faulty.set_uncached(true);
                Arc::new(faulty)
            })
            .collect();
        let member = |(number, faulty): (usize, &Arc<FaultyBacking>)| {
            let backing: Arc<dyn Backing> = faulty.clone();
            Member::with_limits(id(number), faulty.describe(), Some(backing), Health::Healthy, limits)
        };
        Self { set: BackingSet::new(faulty.iter().enumerate().map(member).collect()), faulty }
    }

    fn wants(&self) -> Vec<ShardRead> {
        let want = |number| ShardRead { member: id(number), segment: SEGMENT, offset: 0, len: LEN };
        (0..self.faulty.len()).map(want).collect()
    }

    /// Read `need` of all shards, accepting the right bytes only.
    fn read(&self, need: usize, hedge: Hedge) -> ReadOutcome {
        let accept = |index: usize, bytes: &[u8]| bytes == [index as u8; LEN];
        let outcome = self.set.read_shards(&self.wants(), ReadPlan { need, first: need, hedge, accept: &accept });
        for (index, bytes) in &outcome.good {
            assert_eq!(bytes[..], [*index as u8; LEN]);
        }
        outcome
    }

    fn hang(&self, number: usize, call: Call) -> Gate {
        let gate = Gate::new();
        self.faulty[number].add(Rule::new(call, Fault::Hang(gate.clone())));
        gate
    }

    fn member(&self, number: usize) -> &Arc<Member> {
        &self.set.members()[number]
    }

    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            std::thread::yield_now();
        }
    }
}

fn good(outcome: &ReadOutcome) -> Vec<usize> {
    let mut indices: Vec<usize> = outcome.good.iter().map(|(index, _)| *index).collect();
    indices.sort_unstable();
    indices
}

fn bad(outcome: &ReadOutcome) -> Vec<(usize, &'static str)> {
    let name = |fault: &ReadFault| match fault {
        ReadFault::Missing => "missing",
        ReadFault::Io(_) => "io",
        ReadFault::Rejected => "rejected",
        ReadFault::Late => "late",
    };
    let mut all: Vec<_> = outcome.bad.iter().map(|(index, fault)| (*index, name(fault))).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_healthy_set_is_asked_for_no_more_than_needed() {
    for cached in [true, false] {
        let fixture = Fixture::new(6, calm());
        fixture.faulty.iter().for_each(|faulty| faulty.set_uncached(!cached));
        let outcome = fixture.read(4, Hedge::Adaptive);
        assert_eq!((good(&outcome), bad(&outcome)), (vec![0, 1, 2, 3], vec![]));
        let asked: Vec<u64> = fixture.faulty.iter().map(|faulty| faulty.count(Call::ReadAt)).collect();
        assert_eq!(asked, [1, 1, 1, 1, 0, 0]);
        let stats = fixture.member(0).stats();
        assert_eq!((stats.reads, stats.read_bytes, stats.reads_cached), (1, LEN as u64, u64::from(cached)));
    }
}

#[test]
fn whatever_fails_is_replaced() {
    let mut fixture = Fixture::new(8, calm());
    fixture.faulty[0].add(Rule::new(Call::ReadAt, Fault::Errno(libc::EIO)));
    fixture.faulty[1].add(Rule::new(Call::ReadAt, Fault::FlipBit { bit: 77 }));
    fixture.faulty[2].remove_segment(SEGMENT).unwrap();
    fixture.set.mark_missing(&id(3), "unplugged");
    fixture.faulty[4].add(Rule::new(Call::ReadAt, Fault::Truncate { len: 0 }));
    let all = [(0, "io"), (1, "rejected"), (2, "missing"), (3, "missing"), (4, "missing")];
    for hedge in [Hedge::Adaptive, Hedge::Off] {
        let outcome = fixture.read(3, hedge);
        assert_eq!(good(&outcome), [5, 6, 7], "{hedge:?}");
        assert_eq!(bad(&outcome), all, "{hedge:?}");
    }
    let stats = |number: usize| fixture.member(number).stats();
    assert_eq!((stats(0).read_errors, stats(1).rejected, stats(2).absent, stats(4).absent), (2, 2, 2, 2));
    // Asked all at once, the good may be there before the bad are known.
    let outcome = fixture.read(3, Hedge::All);
    assert_eq!(good(&outcome), [5, 6, 7]);
    assert!(bad(&outcome).iter().all(|fault| all.contains(fault)));

    // One more is too many: what there is comes back, with the reasons for the rest.
    fixture.set.mark_missing(&id(5), "unplugged");
    let outcome = fixture.read(3, Hedge::Adaptive);
    assert_eq!((good(&outcome).len(), bad(&outcome).len()), (2, 6));

    // A member nobody knows.
    fixture.faulty.truncate(0);
    let want = ShardRead { member: id(99), segment: SEGMENT, offset: 0, len: 1 };
    let plan = ReadPlan { need: 1, first: 1, hedge: Hedge::Adaptive, accept: &|_, _| true };
    assert_eq!(bad(&fixture.set.read_shards(&[want], plan)), [(0, "missing")]);
    assert!(fixture.set.read_shards(&[], plan).good.is_empty());
}

#[test]
fn a_hanging_directory_costs_one_hedge_not_the_read() {
    let fixture = Fixture::new(6, limits());
    let gate = fixture.hang(1, Call::ReadAt);
    let outcome = fixture.read(4, Hedge::Adaptive);
    assert_eq!((good(&outcome), bad(&outcome)), (vec![0, 2, 3, 4], vec![(1, "late")]));
    assert_eq!(fixture.member(1).stats().late, 1);

    // Two more hang, all at once: one shard too few, and it comes when a gate opens.
    let others = [fixture.hang(2, Call::ReadAt), fixture.hang(3, Call::ReadAt)];
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| fixture.read(4, Hedge::Adaptive));
        others[0].wait_for(1);
        others[1].wait_for(1);
        others[0].open();
        let outcome = reading.join().unwrap();
        assert_eq!(good(&outcome), [0, 2, 4, 5]);
    });
    gate.open();
    others[1].open();
}

#[test]
fn asking_for_all_takes_whoever_answers() {
    let fixture = Fixture::new(6, calm());
    let gates = [fixture.hang(0, Call::ReadAt), fixture.hang(1, Call::ReadAt)];
    let outcome = fixture.read(4, Hedge::All);
    // Nobody had to become late for this.
    assert_eq!((good(&outcome), bad(&outcome)), (vec![2, 3, 4, 5], vec![]));
    gates.iter().for_each(Gate::open);
}

#[test]
fn without_hedging_the_reader_waits() {
    let fixture = Fixture::new(3, calm());
    let gate = fixture.hang(0, Call::ReadAt);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| fixture.read(2, Hedge::Off));
        gate.wait_for(1);
        fixture.wait_until("the other shard", || fixture.faulty[1].count(Call::ReadAt) == 1);
        gate.open();
        assert_eq!(good(&reading.join().unwrap()), [0, 1]);
    });
    assert_eq!(fixture.faulty[2].count(Call::ReadAt), 0);
}

#[test]
fn patience_ends_even_without_hedging() {
    let limits = Limits { read_patience: Duration::from_millis(300), ..limits() };
    let fixture = Fixture::new(3, limits);
    let gate = fixture.hang(0, Call::ReadAt);
    let outcome = fixture.read(2, Hedge::Off);
    assert_eq!((good(&outcome), bad(&outcome)), (vec![1, 2], vec![(0, "late")]));
    let rest: Vec<Gate> = (1..3).map(|number| fixture.hang(number, Call::ReadAt)).collect();
    let outcome = fixture.read(2, Hedge::Adaptive);
    assert_eq!((good(&outcome), bad(&outcome).len()), (vec![], 3));
    gate.open();
    rest.iter().for_each(Gate::open);
}

#[test]
fn a_member_that_hangs_falls_sick_is_asked_last_and_recovers() {
    let fixture = Fixture::new(3, limits());
    let gate = fixture.hang(0, Call::ReadAt);
    let outcome = fixture.read(2, Hedge::Adaptive);
    assert_eq!(bad(&outcome), [(0, "late")]);
    fixture.wait_until("sickness", || fixture.member(0).health() == Health::Sick);
    assert!(!fixture.member(0).is_healthy());
    assert_eq!(fixture.set.healthy().count(), 2);

    let asked = fixture.faulty[0].count(Call::ReadAt);
    let outcome = fixture.read(2, Hedge::Adaptive);
    assert_eq!((good(&outcome), bad(&outcome)), (vec![1, 2], vec![]));
    assert_eq!(fixture.faulty[0].count(Call::ReadAt), asked, "asked last, so not at all");

    // A member that is sick is written to no more, at once and not after a wait.
    let err = fixture.set.write_record(&id(0), SEGMENT, 0, &[IoSlice::new(b"x")]).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    let results = fixture.set.sync_all(&[(id(0), SEGMENT)], &Wait::all(Duration::from_secs(20)));
    assert_eq!(results[0].2.as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);

    // The call that hung returns too late to count, but the probe after it does not.
    fixture.faulty[0].clear();
    gate.open();
    fixture.wait_until("recovery", || fixture.member(0).health() == Health::Healthy);
    assert_eq!(good(&fixture.read(2, Hedge::Adaptive)), [0, 1]);
}

#[test]
fn a_sick_member_occupies_its_own_threads_only_and_the_rest_is_refused() {
    let limits = Limits { queue_max: 3, threads_max: 2, sick_after: Duration::from_secs(1000), ..limits() };
    let fixture = Fixture::new(2, limits);
    let gate = fixture.hang(0, Call::ReadAt);
    let mut refused = 0;
    for round in 0..12 {
        let outcome = fixture.read(1, Hedge::Adaptive);
        assert_eq!(good(&outcome), [1], "round {round}");
        assert_eq!(bad(&outcome), [(0, "late")]);
        refused = round + 1 - fixture.faulty[0].count(Call::ReadAt);
    }
    assert_eq!(fixture.faulty[0].count(Call::ReadAt), 2, "two threads hang, nobody else");
    assert_eq!(refused, 10);
    assert_eq!(fixture.member(0).stats().late, 12);
    // What was queued for readers long gone is not read any more.
    gate.open();
    fixture.faulty[0].clear();
    let results = fixture.set.sync_all(&[(id(0), SEGMENT)], &Wait::all(Duration::from_secs(20)));
    results[0].2.as_ref().unwrap();
    assert_eq!(fixture.faulty[0].count(Call::ReadAt), 2);
}

#[test]
fn a_failed_member_is_read_after_the_healthy_and_not_written() {
    let fixture = Fixture::new(3, calm());
    assert!(fixture.set.mark_failed(&id(0), "sync of segment 77 failed"));
    assert_eq!(good(&fixture.read(2, Hedge::Adaptive)), [1, 2]);
    assert_eq!(good(&fixture.read(3, Hedge::Adaptive)), [0, 1, 2]);
    let err = fixture.set.write_record(&id(0), SEGMENT, 0, &[IoSlice::new(b"x")]).unwrap_err();
    assert!(err.to_string().contains("sync of segment 77 failed"), "{err}");
    assert!(fixture.set.restore(&id(0), None));
    fixture.set.write_record(&id(0), SEGMENT, 0, &[IoSlice::new(&[0; 4])]).unwrap();
    let stats = fixture.member(0).stats();
    assert_eq!((stats.writes, stats.write_bytes, stats.write_errors), (1, 4, 0));
    assert!(!fixture.set.mark_failed(&id(9), "") && !fixture.set.mark_missing(&id(9), ""));
}

#[test]
fn missing_and_duplicate_members_are_neither_read_nor_written() {
    let fixture = Fixture::new(2, calm());
    let duplicate: Arc<dyn Backing> = fixture.faulty[0].clone();
    let set = BackingSet::new(vec![
        Member::new(id(0), "/duplicate", Some(duplicate), Health::Duplicate),
        Member::new(id(1), "/missing", None, Health::Missing { reason: "no such directory".into() }),
    ]);
    let before = fixture.faulty[0].count(Call::ReadAt);
    let plan = ReadPlan { need: 1, first: 1, hedge: Hedge::All, accept: &|_, _| true };
    assert_eq!(bad(&set.read_shards(&fixture.wants(), plan)), [(0, "missing"), (1, "missing")]);
    assert_eq!(fixture.faulty[0].count(Call::ReadAt), before);
    set.write_record(&id(0), SEGMENT, 0, &[]).unwrap_err();
    let err = set.write_record(&id(1), SEGMENT, 0, &[]).unwrap_err();
    assert_eq!(err.to_string(), "/missing is missing: no such directory");
    assert!(!set.restore(&id(1), None));
    assert!(set.restore(&id(1), Some(fixture.faulty[1].clone())));
    assert_eq!(good(&set.read_shards(&fixture.wants(), plan)), [1]);
}

#[test]
fn syncs_run_in_parallel_and_one_that_hangs_is_given_up() {
    let fixture = Fixture::new(3, limits());
    // All three have to be in the call at once for any to return.
    let gates: Vec<Gate> = (0..3).map(|number| fixture.hang(number, Call::SyncSegment)).collect();
    let files: Vec<_> = (0..3).map(|number| (id(number), SEGMENT)).collect();
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| fixture.set.sync_all(&files, &Wait::all(Duration::from_secs(20))));
        gates.iter().for_each(|gate| gate.wait_for(1));
        gates.iter().for_each(Gate::open);
        let results = syncing.join().unwrap();
        assert!(results.iter().zip(&files).all(|(done, file)| (done.0, done.1) == *file && done.2.is_ok()));
    });

    fixture.faulty.iter().for_each(|faulty| faulty.clear());
    let gate = fixture.hang(1, Call::SyncSegment);
    fixture.faulty[2].add(Rule::new(Call::SyncSegment, Fault::Errno(libc::EIO)));
    let results = fixture.set.sync_all(&files, &Wait::all(Duration::from_millis(100)));
    let kinds: Vec<_> = results.iter().map(|(.., result)| result.as_ref().err().map(io::Error::kind)).collect();
    assert_eq!(kinds[..2], [None, Some(io::ErrorKind::TimedOut)]);
    assert_eq!(results[2].2.as_ref().unwrap_err().raw_os_error(), Some(libc::EIO));
    // Sick by the patience of the caller, until a probe has found it well.
    assert_eq!(fixture.member(1).stats().sync_errors, 1);
    assert_eq!(fixture.member(2).stats().sync_errors, 1);
    gate.open();
    fixture.wait_until("recovery", || fixture.member(1).is_healthy());
}

#[test]
fn writes_in_parallel_leave_a_hanging_directory_behind() {
    let fixture = Fixture::new(3, limits());
    let gate = fixture.hang(2, Call::WriteAt);
    fixture.faulty[1].add(Rule::new(Call::WriteAt, Fault::Errno(libc::ENOSPC)));
    let bufs = vec![vec![8; 10].into(), vec![9; 10].into()];
    let writes: Vec<_> = (0..4)
        .map(|number| ShardWrite { member: id(number), segment: SEGMENT, offset: 8192, bufs: bufs.clone() })
        .collect();
    let results = fixture.set.write_shards(&writes, false, &Wait::all(Duration::from_millis(100)));
    results[0].as_ref().unwrap();
    assert_eq!(results[1].as_ref().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(results[2].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(results[3].as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
    let mut buf = [0; 20];
    assert_eq!(fixture.faulty[0].read_at(SEGMENT, 8192, &mut buf).unwrap(), 20);
    assert_eq!(buf[..], [[8; 10], [9; 10]].concat());
    gate.open();
}

#[test]
fn whoever_is_late_is_waited_for_while_there_are_too_few_others() {
    let fixture = Fixture::new(3, calm());
    let gates: Vec<Gate> = (1..3).map(|number| fixture.hang(number, Call::SyncSegment)).collect();
    let files: Vec<_> = (0..3).map(|number| (id(number), SEGMENT)).collect();
    let enough = |good: &[bool]| good.iter().filter(|good| **good).count() >= 2;
    let wait = Wait { patience: Duration::ZERO, enough: &enough, limit: Duration::from_secs(100) };
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| fixture.set.sync_all(&files, &wait));
        gates.iter().for_each(|gate| gate.wait_for(1));
        gates[0].open();
        let done: Vec<bool> = syncing.join().unwrap().iter().map(|(.., result)| result.is_ok()).collect();
        assert_eq!(done, [true, true, false], "two are enough, one alone is not");
    });
    gates[1].open();
}
