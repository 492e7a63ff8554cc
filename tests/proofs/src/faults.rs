//! Every call of a backing directory fails once, in every way it can, and a workload goes on.
//!
//! A fixed scenario is run once to count the calls of each kind in each of its phases; then once for each call site,
//! each fault, and one, m and m+1 directories that have it at once. What may come of it: success; an errno, after which
//! things go on; a volume that is read-only; a mount that is refused, with nothing lost. Never a wrong byte, never the
//! loss of what was acknowledged, never a state that was not accepted: that is looked at after each run, with the power
//! cut and the faults gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use brine_fs::vfs::Vfs;
use brine_store::backing::{Backing, Call, Fault, FaultyBacking, MemBacking, Rule};
use brine_store::gc::GcOptions;
use brine_store::ids::SegmentId;
use brine_store::reseal::reseal;
use brine_store::retention::Rules;

use crate::model::{Model, State, difference};
use crate::random::Random;
use crate::workload::{Op, carry_out, carry_out_told, read_state};
use crate::world::{NO_COMMITS, Scratch, World, filesystem, steady_filesystem};

/// Where in the flow a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "told by their names")]
pub enum Phase {
    Open,
    Write,
    Sync,
    Checkpoint,
    Read,
    Overwrite,
    Gc,
    Reseal,
    Close,
}

/// Phases in order.
pub const PHASES: [Phase; 9] = [
    Phase::Open,
    Phase::Write,
    Phase::Sync,
    Phase::Checkpoint,
    Phase::Read,
    Phase::Overwrite,
    Phase::Gc,
    Phase::Reseal,
    Phase::Close,
];

/// What faults strike while: the work of users, or what goes on behind it, which is done only then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Opening to closing.
    Front,
    /// Collection and resealing.
    Behind,
}

impl Part {
    /// Whether faults strike in a phase.
    pub fn has(self, phase: Phase) -> bool {
        (self == Self::Behind) == matches!(phase, Phase::Gc | Phase::Reseal)
    }

    /// Whether a phase is gone through.
    fn goes_through(self, phase: Phase) -> bool {
        self == Self::Behind || self.has(phase)
    }
}

/// Kinds of calls.
pub const CALLS: [Call; 16] = [
    Call::CreateSegment,
    Call::WriteAt,
    Call::ReadAt,
    Call::SyncSegment,
    Call::ResetSegment,
    Call::FinishSegment,
    Call::Punch,
    Call::RemoveSegment,
    Call::ListSegments,
    Call::ReadFile,
    Call::WriteFile,
    Call::CreateFile,
    Call::ListFiles,
    Call::RemoveFile,
    Call::Space,
    Call::Lock,
];

/// Errnos that every call fails with.
const ERRNOS: [(&str, i32); 6] = [
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("ENOENT", libc::ENOENT),
    ("EDQUOT", libc::EDQUOT),
    ("EROFS", libc::EROFS),
    ("ESTALE", libc::ESTALE),
];

/// What can go wrong with a call of this kind besides an errno; `lies` are faults that no error tells of.
fn faults_of(call: Call, full: bool) -> Vec<(String, Fault, bool)> {
    let errnos = if full { &ERRNOS[..] } else { &ERRNOS[..3] };
    let mut faults: Vec<(String, Fault, bool)> =
        errnos.iter().map(|(name, errno)| ((*name).to_owned(), Fault::Errno(*errno), false)).collect();
    let mut add = |name: &str, fault, lies| faults.push((name.to_owned(), fault, lies));
    match call {
        Call::WriteAt => {
            add("short write, EIO", Fault::ShortWrite { bytes: 700, errno: libc::EIO }, false);
            add("short write, ENOSPC", Fault::ShortWrite { bytes: 100, errno: libc::ENOSPC }, false);
            add("lost write", Fault::Lost, true);
            add("misplaced write", Fault::Misplaced { offset: 1 << 20 }, true);
        }
        Call::SyncSegment => {
            add("failed sync, unsynced dropped", Fault::DropUnsynced { errno: libc::EIO }, false);
            add("lying sync", Fault::Lost, true);
        }
        Call::ReadAt => {
            add("flipped bit", Fault::FlipBit { bit: 4001 }, true);
            add("short read", Fault::Truncate { len: 100 }, true);
            add("stale read", Fault::Stale, true);
            add("read of another place", Fault::Swapped { segment: SegmentId(1), offset: 4096 }, true);
        }
        Call::ReadFile => {
            add("flipped bit", Fault::FlipBit { bit: 4001 }, true);
            add("short read", Fault::Truncate { len: 100 }, true);
        }
        _ => {}
    }
    faults
}

/// How many directories have the fault at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// One.
    One,
    /// As many as may be lost.
    Parity,
    /// One more.
    Beyond,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Every operation succeeded.
    Success,
    /// Some operation failed with this errno, and later ones went on as if nothing had been.
    Errno(i32),
    /// Some operation failed, and from then on nothing could be changed.
    ReadOnly,
    /// The volume was not opened; nothing of it was harmed.
    Refused,
    /// Closing told of the error.
    CloseFailed,
    /// Every operation succeeded; gc or resealing told of the error, and what it could not do is left for the next one.
    Told,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Errno(libc::EIO) => f.write_str("EIO, then on"),
            Self::Errno(libc::ENOSPC) => f.write_str("ENOSPC, then on"),
            Self::Errno(errno) => write!(f, "errno {errno}, then on"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Refused => f.write_str("mount refused"),
            Self::CloseFailed => f.write_str("unmount tells"),
            Self::Told => f.write_str("the command tells"),
        }
    }
}

/// Outcomes by phase, call, and number of directories, each with the faults that led there.
pub type Table = BTreeMap<(Phase, &'static str), BTreeMap<Extent, BTreeMap<Outcome, BTreeSet<String>>>>;

/// The name of a call, as in the table.
fn name_of(call: Call) -> &'static str {
    match call {
        Call::CreateSegment => "create_segment",
        Call::WriteAt => "write_at",
        Call::DirectWrite => "direct write",
        Call::ReadAt => "read_at",
        Call::SyncSegment => "sync_segment",
        Call::ResetSegment => "reset_segment",
        Call::FinishSegment => "finish_segment",
        Call::Punch => "punch",
        Call::RemoveSegment => "remove_segment",
        Call::ListSegments => "list_segments",
        Call::ReadFile => "read_file",
        Call::WriteFile => "write_file",
        Call::CreateFile => "create_file_exclusive",
        Call::ListFiles => "list_files",
        Call::RemoveFile => "remove_file",
        Call::Space => "space",
        Call::Lock => "lock",
    }
}

/// A fault and where it strikes.
#[derive(Clone, Debug)]
struct Strike {
    phase: Phase,
    call: Call,
    nth: u64,
    fault: Fault,
    directories: usize,
}

/// A volume with some files, closed, and the model of it.
struct Before {
    world: World,
    model: Model,
}

fn write(path: &str, offset: u64, len: usize, seed: u64) -> Op {
    Op::Write { path: path.into(), offset, len, seed }
}

fn create(path: &str) -> Op {
    Op::Create { path: path.into() }
}

/// What each phase does.
fn ops_of(phase: Phase) -> Vec<Op> {
    let path = |path: &str| path.to_owned();
    match phase {
        Phase::Open | Phase::Read | Phase::Close => vec![],
        Phase::Write => vec![
            create("new"),
            write("new", 0, 1_200_000, 11),
            create("small"),
            write("small", 0, 900, 12),
            Op::Mkdir { path: path("made") },
            create("made/inside"),
            write("made/inside", 0, 40_000, 13),
        ],
        Phase::Sync => vec![Op::Sync { path: path("new") }],
        Phase::Checkpoint => vec![Op::Checkpoint],
        // Half of an old file dies, a new one wholly.
        Phase::Gc => vec![write("old", 0, 150_000, 16), Op::Unlink { path: path("made/inside") }, Op::SyncAll],
        Phase::Reseal => vec![write("old", 400_000, 1000, 17)],
        Phase::Overwrite => vec![
            write("old", 100_000, 250_000, 14),
            Op::Rename { from: path("small"), to: path("replaced") },
            Op::SyncAll,
            Op::Unlink { path: path("gone") },
            write("new", 1_200_000, 5000, 15),
            Op::SyncAll,
        ],
    }
}

fn prepare(geometry: (usize, usize)) -> Before {
    let world = World::format_steady(geometry.0, geometry.1);
    let mut model = Model::default();
    let scratch = Scratch::new();
    let state_dir = scratch.path().join("state");
    world.put_files(&state_dir);
    let there = |_, disk| Some(Arc::new(disk) as Arc<dyn Backing>);
    let volume = world.open(&state_dir, there).expect("open");
    let (vfs, _) = steady_filesystem(volume).expect("start threads");
    // So that gc has something to do.
    let nothing = Rules { all_s: 0, minutely_s: 0, hourly_s: 0, ..Rules::default() };
    vfs.volume().set_retention_rules(&nothing).expect("set rules");
    for op in [
        create("old"),
        write("old", 0, 500_000, 1),
        create("replaced"),
        write("replaced", 0, 3000, 2),
        create("gone"),
        write("gone", 0, 140_000, 3),
        Op::SyncAll,
    ] {
        carry_out(&vfs, &op).expect("prepare");
        model.apply(&op).expect("prepare");
    }
    vfs.close().expect("close");
    let files = crate::database::Files::load(&state_dir).whole();
    Before { world: World { files, ..world }, model }
}

/// What was seen in one run.
struct Seen {
    outcome: Outcome,
    /// Calls of each kind in each phase, of the first directory.
    counts: BTreeMap<(Phase, usize), u64>,
}

/// Run the scenario with a fault, or none, and look at what is left.
fn run(before: &Before, part: Part, strike: Option<&Strike>) -> Result<Seen, String> {
    let world = before.world.fork();
    let faulty: Vec<Arc<FaultyBacking>> =
        world.disks.iter().map(|disk| Arc::new(FaultyBacking::new(Arc::new(disk.reopen())))).collect();
    faulty.iter().for_each(|disk| disk.set_uncached(true));
    let scratch = Scratch::new();
    let state_dir = scratch.path().join("state");
    world.put_files(&state_dir);
    let arm = |phase: Phase| {
        if let Some(strike) = strike.filter(|strike| strike.phase == phase) {
            for disk in &faulty[..strike.directories] {
                disk.add(Rule::new(strike.call, strike.fault.clone()).from_nth(strike.nth).times(1));
            }
        }
    };
    let mut counts = BTreeMap::new();
    let mut counted = [0; CALLS.len()];
    let mut count = |phase: Phase| {
        for (n, call) in CALLS.iter().enumerate() {
            let now = faulty[0].count(*call);
            counts.insert((phase, n), now - counted[n]);
            counted[n] = now;
        }
    };

    let mut states: Vec<State> = vec![before.model.state()];
    let mut model = before.model.clone();
    let mut acknowledged = 0;
    let mut errnos: Vec<i32> = Vec::new();
    let mut last = Ok(());
    let (mut close_failed, mut told_by_command) = (false, false);
    arm(Phase::Open);
    let opened = world.open(&state_dir, |n, _| Some(faulty[n].clone() as Arc<dyn Backing>));
    count(Phase::Open);
    let refused = opened.is_err();
    if let Ok(volume) = opened {
        let (vfs, told) = steady_filesystem(volume).map_err(|error| error.to_string())?;
        for phase in PHASES[1..].iter().filter(|phase| part.goes_through(**phase)) {
            arm(*phase);
            for op in ops_of(*phase) {
                let (accepted, found) = carry_out_told(&vfs, &op);
                let found = found.map_err(|errno| errno.0);
                last = found;
                if accepted {
                    model.apply(&op).map_err(|errno| format!("{op:?} is accepted, the model says {errno}"))?;
                    states.push(model.state());
                }
                match found {
                    Ok(()) if op.acknowledges() => acknowledged = states.len() - 1,
                    Ok(()) => {}
                    // What was refused because something before it was: the model must refuse it as well.
                    Err(errno) if errno == libc::ENOENT && model.clone().apply(&op) == Err(errno) => {}
                    Err(errno) => errnos.push(errno),
                }
            }
            match phase {
                Phase::Read => match read_state(&vfs) {
                    Ok(state) if state == model.state() => {}
                    Ok(state) => {
                        return Err(format!(
                            "the open volume shows what was not written:\n{}",
                            difference(&model.state(), &state)
                        ));
                    }
                    Err(what) if what.ends_with("errno 5") => errnos.push(libc::EIO),
                    Err(what) => return Err(format!("{what}; reported: {:?}", told.lock())),
                },
                Phase::Gc | Phase::Reseal => match command(&vfs, *phase) {
                    // Both begin with a commit of everything, or end with one.
                    Ok(problems) => {
                        acknowledged = states.len() - 1;
                        told_by_command |= problems;
                    }
                    Err(_) => told_by_command = true,
                },
                Phase::Close => match vfs.close() {
                    Ok(()) => acknowledged = states.len() - 1,
                    Err(_) => close_failed = true,
                },
                _ => {}
            }
            count(*phase);
        }
        drop_all(&vfs, &world);
    }
    let outcome = match (refused, errnos.first()) {
        (true, _) => Outcome::Refused,
        (_, Some(_)) if errnos.contains(&libc::EROFS) || last.is_err() => Outcome::ReadOnly,
        (_, Some(errno)) => Outcome::Errno(*errno),
        _ if close_failed => Outcome::CloseFailed,
        _ if told_by_command => Outcome::Told,
        _ => Outcome::Success,
    };
    if let Some(errno) = errnos.iter().find(|errno| ![libc::EIO, libc::ENOSPC, libc::EROFS].contains(errno)) {
        return Err(format!("an operation failed with errno {errno}, which says nothing a program understands"));
    }
    look(&world, &states, acknowledged)?;
    Ok(Seen { outcome, counts })
}

/// What an operator runs in this phase. True if it told of problems it went on from.
fn command(vfs: &Arc<Vfs>, phase: Phase) -> brine_store::Result<bool> {
    if phase == Phase::Gc {
        let report = vfs.gc(GcOptions::default(), &|_, _, _| true)?;
        return Ok(!report.problems.is_empty());
    }
    vfs.volume().rotate_epoch()?;
    let report = reseal(vfs.volume(), &|_, _, _| true)?;
    vfs.commit_now()?;
    Ok(!report.complete)
}

fn drop_all(vfs: &Arc<Vfs>, world: &World) {
    // Once more, in case closing failed: nothing is to be written after the power is gone.
    world.disks.iter().for_each(|disk| disk.cut_after(0));
    let _ = vfs.close();
}

/// The faults are gone, and the power was: what is there must be a state that was accepted, and what was acknowledged.
fn look(world: &World, states: &[State], acknowledged: usize) -> Result<(), String> {
    let random = Random::new(states.len() as u64);
    for lost_state in [false, true] {
        let disks: Vec<MemBacking> = world.disks.iter().map(MemBacking::fork).collect();
        disks.iter().for_each(|disk| disk.power_cut(&random));
        let files = if lost_state { BTreeMap::new() } else { world.files.clone() };
        let after = World { disks, paths: world.paths.clone(), geometry: world.geometry, files, steady: false };
        let scratch = Scratch::new();
        let state_dir = scratch.path().join("state");
        after.put_files(&state_dir);
        let volume = after
            .open(&state_dir, |_, disk| Some(Arc::new(disk) as Arc<dyn Backing>))
            .map_err(|error| format!("afterwards, without faults, it does not open: {error}"))?;
        let (vfs, told) = filesystem(volume, NO_COMMITS).map_err(|error| error.to_string())?;
        let state = read_state(&vfs)
            .map_err(|what| format!("afterwards {what}; {:?}; {:?}", vfs.volume().warnings(), told.lock()))?;
        let found = states[acknowledged..].contains(&state);
        let warnings = vfs.volume().warnings();
        drop_all(&vfs, &after);
        if !found {
            let differs = difference(&states[acknowledged], &state);
            return Err(format!("what was acknowledged is not there afterwards; {warnings:?}\n{differs}"));
        }
    }
    Ok(())
}

/// Strike the first and the last call of each kind in each phase; with every errno if `full`, else with those that lead to different outcomes.
/// Tells the outcomes, and the number of runs.
///
/// # Errors
/// Every run that broke the contract, a paragraph each.
pub fn enumerate(geometry: (usize, usize), part: Part, full: bool) -> Result<(Table, usize), String> {
    let before = prepare(geometry);
    let clean = run(&before, part, None)?;
    if clean.outcome != Outcome::Success {
        return Err(format!("without any fault: {}", clean.outcome));
    }
    let freed = [Call::Punch, Call::RemoveSegment].map(|call| CALLS.iter().position(|it| *it == call));
    let freed = freed.iter().flatten().any(|n| clean.counts.get(&(Phase::Gc, *n)).is_some_and(|count| *count > 0));
    if part == Part::Behind && !freed {
        return Err("gc frees nothing, so nothing is proved of it".into());
    }
    let mut table = Table::new();
    let mut failures = Vec::new();
    let mut runs = 0;
    for ((phase, n), count) in clean.counts.iter().filter(|((phase, _), count)| part.has(*phase) && **count > 0) {
        let call = CALLS[*n];
        for nth in BTreeSet::from([1, *count]) {
            for (name, fault, lies) in faults_of(call, full) {
                for extent in [Extent::One, Extent::Parity, Extent::Beyond] {
                    let directories = match extent {
                        Extent::One => 1,
                        Extent::Parity => geometry.1,
                        Extent::Beyond => geometry.1 + 1,
                    };
                    // More directories that lie than may be lost: no filesystem can know.
                    if lies && extent == Extent::Beyond || extent == Extent::Parity && geometry.1 < 2 {
                        continue;
                    }
                    let strike = Strike { phase: *phase, call, nth, fault: fault.clone(), directories };
                    runs += 1;
                    match run(&before, part, Some(&strike)) {
                        Ok(seen) => {
                            let row = table.entry((*phase, name_of(call))).or_default();
                            let cell = row.entry(extent).or_default();
                            cell.entry(seen.outcome).or_default().insert(name.clone());
                        }
                        Err(what) => failures.push(format!("{strike:?}: {what}")),
                    }
                }
            }
        }
    }
    if failures.is_empty() {
        Ok((table, runs))
    } else {
        Err(format!("{} of {runs} runs broke the contract:\n\n{}", failures.len(), failures.join("\n\n")))
    }
}

/// The table as Markdown.
pub fn markdown(table: &Table) -> String {
    let mut out =
        String::from("| while | call | one directory | m directories | m+1 directories |\n|---|---|---|---|---|\n");
    for ((phase, call), row) in table {
        let cell = |extent| row.get(&extent).map_or_else(|| "-".to_owned(), cell_text);
        let (one, parity, beyond) = (cell(Extent::One), cell(Extent::Parity), cell(Extent::Beyond));
        out.push_str(&format!(
            "| {} | `{call}` | {one} | {parity} | {beyond} |\n",
            format!("{phase:?}").to_lowercase()
        ));
    }
    out
}

fn cell_text(cell: &BTreeMap<Outcome, BTreeSet<String>>) -> String {
    let outcomes: Vec<String> = cell.keys().map(ToString::to_string).collect();
    outcomes.join("; ")
}
