//! Cutting the power: a session is recorded, and what the media would hold at chosen moments of it is opened again.
//!
//! The contract that every replay must keep: the volume opens; the tree is as it was after some operation, not before
//! the last one that was acknowledged and not after the last one begun; nothing of it is unreadable; `check` finds no
//! loss. A third of the replays has lost the state directory too, a third any m directories. Some go on: what such a
//! volume shows is synced, more is written, and then the power goes again and m directories with it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use brine_fs::vfs::Vfs;
use brine_store::backing::{Backing, MemBacking};
use brine_store::check::{CheckOptions, CheckProgress, check};

use crate::database::{Files, sys};
use crate::journal::{DiskCall, Event, Journal, Recorded};
use crate::model::{Model, State, difference};
use crate::random::Random;
use crate::workload::{Mix, carry_out, next_op, read_state, sync_all};
use crate::world::{Scratch, Told, World, filesystem};

/// How much is to be proved.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// All chance follows from it, but for the timing of threads.
    pub seed: u64,
    /// Data and parity shards.
    pub geometry: (usize, usize),
    /// Recorded sessions; each but the first of a chain begins with what a crash of the one before left.
    pub sessions: usize,
    /// Sessions of a chain.
    pub chain: usize,
    /// Operations of a session.
    pub ops: usize,
    /// Moments of a session at which the power is cut.
    pub cuts: usize,
    /// Whether some replays go on, and lose power and directories once more.
    pub go_on: bool,
    /// So many directories lie: their syncs do nothing. Nothing may be noticed of as many as may be lost, and anything
    /// of more.
    pub liars: usize,
    /// Whether space is given back in between.
    pub collections: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 0,
            geometry: (4, 2),
            sessions: 20,
            chain: 1,
            ops: 120,
            cuts: 60,
            go_on: false,
            liars: 0,
            collections: false,
        }
    }
}

/// What was proved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Power cuts replayed.
    pub replays: usize,
    /// Of them without the state directory.
    pub without_state: usize,
    /// Of them without m directories.
    pub without_directories: usize,
    /// Of them in which more was written, and the power cut again.
    pub went_on: usize,
    /// Replays in which operations that nobody had synced were lost, as they may be: a proof in which nothing is ever
    /// lost cuts nothing.
    pub lost_something: usize,
    /// Replays that show more than was acknowledged.
    pub kept_more: usize,
    /// Writes and syncs recorded.
    pub events: usize,
    /// Records written past the page cache, each counted in every directory.
    pub direct_writes: usize,
    /// Operations carried out.
    pub ops: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} power cuts in {} operations ({} writes and syncs): {} without state directory, {} without m directories, \
             {} written to again and cut again; {} records past the page cache; {} lost unsynced work, {} kept more than was acknowledged; no violation",
            self.replays,
            self.ops,
            self.events,
            self.without_state,
            self.without_directories,
            self.went_on,
            self.direct_writes,
            self.lost_something,
            self.kept_more
        )
    }
}

impl Summary {
    /// Count another run's, too.
    pub fn add(&mut self, other: &Self) {
        self.replays += other.replays;
        self.without_state += other.without_state;
        self.without_directories += other.without_directories;
        self.went_on += other.went_on;
        self.lost_something += other.lost_something;
        self.kept_more += other.kept_more;
        self.events += other.events;
        self.direct_writes += other.direct_writes;
        self.ops += other.ops;
    }
}

/// A volume before a session, and what it may show: the last is what it shows.
struct Start {
    world: World,
    models: Vec<Model>,
}

/// A session: where it began, what happened, and the tree after each operation.
struct Recording {
    base: World,
    events: Vec<Event>,
    models: Vec<Model>,
    states: Vec<State>,
    /// The operations, to tell of in a failure; the first led to the last state it started with.
    ops: Vec<String>,
    first: usize,
    direct_writes: usize,
}

/// Do it.
///
/// # Panics
/// If the contract is broken, with everything that is known of how.
pub fn prove(plan: &Plan) -> Summary {
    let mut total = Summary::default();
    let random = Random::new(plan.seed);
    let fresh = || Start { world: World::format(plan.geometry.0, plan.geometry.1), models: vec![Model::default()] };
    let mut start = fresh();
    for session in 0..plan.sessions {
        if session % plan.chain == 0 {
            start = fresh();
        }
        let recording = record(start, plan, &random, session);
        let (summary, next) = replay_all(&recording, plan, &random, session);
        total.add(&summary);
        total.direct_writes += recording.direct_writes;
        start = next;
    }
    assert!(plan.sessions < 2 || total.direct_writes > 0, "no record was written past the page cache");
    total
}

/// Run operations on the volume, entering everything into a journal.
fn record(start: Start, plan: &Plan, random: &Random, session: usize) -> Recording {
    let Start { world, mut models } = start;
    let base = world.fork();
    let first = models.len() - 1;
    let context = |what: &str| format!("session {session}, seed {}: {what}", plan.seed);
    let scratch = Scratch::new();
    let state_dir = scratch.path().join("state");
    world.put_files(&state_dir);
    let journal = Journal::new();
    let watch = sys::watch(&state_dir, journal.clone());
    // Every other session, and the only one of every other seed, writes short records past the page cache.
    let beside = Scratch::new();
    let directly = plan.seed.wrapping_add(session as u64) % 2 == 1;
    let recorded = |n: usize, disk| {
        let path = beside.path().join(n.to_string());
        let file =
            || File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("make a file");
        Some(Arc::new(Recorded::new(disk, n, journal.clone(), directly.then(file))) as Arc<dyn Backing>)
    };
    let volume = world.open(&state_dir, recorded).unwrap_or_else(|error| panic!("{}", context(&error.to_string())));
    let interval = Duration::from_millis(*random.choose(&[4, 30, 1000]));
    let (vfs, told) = filesystem(volume, interval).expect("start threads");
    let mix = Mix { sync_every: *random.choose(&[4, 9, 25]), collections: plan.collections, ..Mix::default() };
    let mut ops = Vec::new();
    for _ in 0..plan.ops {
        let model = models.last().expect("there is a state");
        let op = next_op(model, random, &mix);
        let number = models.len();
        journal.note(Event::Begun(number));
        let found = carry_out(&vfs, &op).map_err(|errno| errno.0);
        let mut next = model.clone();
        let expected = next.apply(&op);
        assert_eq!(found, expected, "{}", context(&format!("{op:?}; reported: {:?}", told.lock())));
        if op.acknowledges() && found.is_ok() {
            journal.note(Event::Acknowledged(number - 1));
        }
        ops.push(format!("{op:?}"));
        models.push(next);
    }
    let seen = read_state(&vfs).unwrap_or_else(|what| panic!("{}", context(&what)));
    let expected = models.last().expect("there is a state").state();
    assert!(
        seen == expected,
        "{}\n{}",
        context("the open volume differs from the model"),
        difference(&expected, &seen)
    );
    if random.one_in(2) {
        let closed = vfs.close();
        assert!(closed.is_ok(), "{}", context(&format!("closing: {closed:?}")));
        journal.note(Event::Acknowledged(models.len() - 1));
    }
    let (events, direct_writes) = (journal.close(), journal.direct_writes());
    abandon(&world, &vfs);
    drop(watch);
    let states = models.iter().map(Model::state).collect();
    Recording { base, events, models, states, ops, first, direct_writes }
}

/// End what works on a volume, letting it write nothing more.
fn abandon(world: &World, vfs: &Arc<Vfs>) {
    world.disks.iter().for_each(|disk| disk.cut_after(0));
    let _ = vfs.close();
}

/// The media at a moment of a recording.
struct Cursor {
    disks: Vec<MemBacking>,
    files: Files,
    begun: usize,
    acknowledged: usize,
    at: usize,
    liars: usize,
}

impl Cursor {
    fn advance(&mut self, recording: &Recording, to: usize) {
        for event in &recording.events[self.at..to] {
            match event {
                Event::Disk(n, DiskCall::Sync(_)) if *n < self.liars => {}
                Event::Disk(n, call) => call.apply(&self.disks[*n]),
                Event::Database(call) => self.files.apply(call),
                Event::Begun(number) => self.begun = *number,
                Event::Acknowledged(number) => self.acknowledged = self.acknowledged.max(*number),
            }
        }
        self.at = to;
    }

    /// What the power cut leaves; the next event may have happened in part.
    fn cut(&self, recording: &Recording, random: &Random) -> World {
        let disks: Vec<MemBacking> = self.disks.iter().map(MemBacking::fork).collect();
        let mut files = self.files.clone();
        match recording.events.get(self.at) {
            Some(Event::Disk(n, call)) if random.one_in(2) => {
                disks[*n].cut_after(random.below(4));
                call.apply(&disks[*n]);
            }
            // A write that was on its way may be there in part; a sync that was not answered says nothing.
            Some(Event::Database(call @ crate::database::FileCall::Write(..))) if random.one_in(2) => files.apply(call),
            _ => {}
        }
        disks.iter().for_each(|disk| disk.power_cut(random));
        let (paths, geometry) = (recording.base.paths.clone(), recording.base.geometry);
        World { disks, paths, geometry, files: files.cut(random), steady: false }
    }
}

/// The moments at which to cut: half of them before or after something became durable, half anywhere.
fn moments(recording: &Recording, random: &Random, count: usize) -> Vec<usize> {
    let len = recording.events.len();
    let boundaries: Vec<usize> = recording
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| match event {
            Event::Disk(_, call) => call.is_boundary(),
            Event::Database(call) => matches!(call, crate::database::FileCall::Sync(_)),
            Event::Begun(_) => false,
            Event::Acknowledged(_) => true,
        })
        .flat_map(|(at, _)| [at, at + 1])
        .collect();
    let pick = |n: usize| match n % 2 {
        0 if !boundaries.is_empty() => *random.choose(&boundaries),
        _ => random.index(len + 1),
    };
    let mut moments: Vec<usize> = (0..count).map(pick).collect();
    moments.sort_unstable();
    moments
}

/// What is lost with the power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    StateDirectory,
    Directories,
}

fn replay_all(recording: &Recording, plan: &Plan, random: &Random, session: usize) -> (Summary, Start) {
    let mut summary = Summary { events: recording.events.len(), ops: plan.ops, ..Summary::default() };
    let mut cursor = Cursor {
        disks: recording.base.disks.iter().map(MemBacking::fork).collect(),
        files: Files::of(&recording.base.files),
        begun: recording.first,
        acknowledged: 0,
        at: 0,
        liars: plan.liars,
    };
    let moments = moments(recording, random, plan.cuts);
    let chosen = random.index(moments.len());
    let mut next = None;
    for (n, moment) in moments.iter().enumerate() {
        cursor.advance(recording, *moment);
        let world = cursor.cut(recording, random);
        let loss = [Loss::Nothing, Loss::StateDirectory, Loss::Directories][n % 3];
        let kept = (n == chosen).then(|| world.fork());
        let replay = Replay { recording, cursor: &cursor, loss, world, random, go_on: plan.go_on };
        match replay.run(&mut summary) {
            Ok(found) => {
                if let Some(world) = kept {
                    // With every directory there it may show more than with some lost, never less.
                    let found = if loss == Loss::Directories { None } else { Some(found) };
                    next = found.map(|found| (world, cursor.acknowledged, found));
                }
            }
            Err(what) => panic!("{}", replay_failure(recording, &cursor, plan, session, loss, &what)),
        }
    }
    let start = match next {
        Some((world, from, found)) => Start { world, models: recording.models[from..=found].to_vec() },
        None => Start { world: World::format(plan.geometry.0, plan.geometry.1), models: vec![Model::default()] },
    };
    (summary, start)
}

/// One power cut, opened again.
struct Replay<'a> {
    recording: &'a Recording,
    cursor: &'a Cursor,
    loss: Loss,
    world: World,
    random: &'a Random,
    go_on: bool,
}

impl Replay<'_> {
    /// The number of the state that is found, or how the contract is broken.
    fn run(self, summary: &mut Summary) -> Result<usize, String> {
        summary.replays += 1;
        let mut world = self.world;
        let parity = world.geometry.parity();
        let mut lost = BTreeSet::new();
        match self.loss {
            Loss::Nothing => {}
            Loss::StateDirectory => summary.without_state += 1,
            Loss::Directories => {
                summary.without_directories += 1;
                lost = some_of(world.disks.len(), parity - self.cursor.liars.min(parity), self.random);
            }
        }
        if self.loss == Loss::StateDirectory || self.loss == Loss::Directories && self.random.one_in(2) {
            world.files.clear();
        }
        let (acknowledged, begun) = (self.cursor.acknowledged, self.cursor.begun);
        let opened = Opened::new(&world, &lost)?;
        let state = read_state(&opened.vfs).map_err(|what| format!("{what}; {}", opened.words()))?;
        let found = (acknowledged..=begun).rev().find(|n| self.recording.states[*n] == state);
        let found = found.ok_or_else(|| {
            let before = (0..acknowledged).rev().find(|n| self.recording.states[*n] == state);
            let what = match before {
                Some(n) => format!("it is as after operation {n}, and {acknowledged} was acknowledged"),
                None => "it is as after no operation".into(),
            };
            let (low, high) = (&self.recording.states[acknowledged], &self.recording.states[begun]);
            format!(
                "{what}; {}\nbeside what was acknowledged:\n{}\nbeside what was begun last:\n{}",
                opened.words(),
                difference(low, &state),
                difference(high, &state)
            )
        })?;
        summary.lost_something += usize::from(self.recording.states[begun] != state);
        summary.kept_more += usize::from(self.recording.states[acknowledged] != state);
        opened.check()?;
        if self.go_on && self.random.one_in(3) {
            summary.went_on += 1;
            go_on(&mut world, opened, &lost, self.recording.models[found].clone(), self.random)?;
        } else {
            opened.end(&world);
        }
        Ok(found)
    }
}

/// So many different numbers below `of`.
fn some_of(of: usize, count: usize, random: &Random) -> BTreeSet<usize> {
    let mut some = BTreeSet::new();
    while some.len() < count {
        some.insert(random.index(of));
    }
    some
}

/// A volume that was opened again.
struct Opened {
    vfs: Arc<Vfs>,
    told: Told,
    scratch: Scratch,
}

struct Silent;

impl CheckProgress for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

impl Opened {
    fn new(world: &World, lost: &BTreeSet<usize>) -> Result<Self, String> {
        let scratch = Scratch::new();
        let state_dir = scratch.path().join("state");
        world.put_files(&state_dir);
        let there = |n, disk| (!lost.contains(&n)).then(|| Arc::new(disk) as Arc<dyn Backing>);
        let volume = world.open(&state_dir, there).map_err(|error| format!("it does not open: {error}"))?;
        if let Some(reason) = volume.is_read_only() {
            return Err(format!("it opens read-only: {reason}"));
        }
        let (vfs, told) = filesystem(volume, Duration::from_secs(1)).map_err(|error| error.to_string())?;
        Ok(Self { vfs, told, scratch })
    }

    /// What it said of itself.
    fn words(&self) -> String {
        format!("warnings: {:?}; reported: {:?}", self.vfs.volume().warnings(), self.told.lock())
    }

    fn check(&self) -> Result<(), String> {
        let report = check(self.vfs.volume(), &CheckOptions::default(), &Silent).map_err(|e| format!("check: {e}"))?;
        let lost = report.blocks_lost > 0 || !report.tables.is_empty() || report.damaged.iter().any(|d| !d.recoverable);
        if lost { Err(format!("check finds damage: {report:?}; {}", self.words())) } else { Ok(()) }
    }

    fn end(self, world: &World) {
        abandon(world, &self.vfs);
        drop(self.scratch);
    }
}

/// What the volume shows is synced, a little more is written and synced; then the power goes again, the state directory
/// with it, and as many directories as may be lost in all.
fn go_on(
    world: &mut World,
    opened: Opened,
    lost: &BTreeSet<usize>,
    mut model: Model,
    random: &Random,
) -> Result<(), String> {
    let mix = Mix { sync_every: 6, write_max: 20_000, checkpoints: true, collections: false };
    for n in 0..random.below(8) {
        let op = next_op(&model, random, &mix);
        let found = carry_out(&opened.vfs, &op).map_err(|errno| errno.0);
        let expected = model.apply(&op);
        if found != expected {
            let words = opened.words();
            return Err(format!("going on, operation {n}: {op:?} gives {found:?}, not {expected:?}; {words}"));
        }
    }
    sync_all(&opened.vfs).map_err(|errno| format!("going on, sync: errno {}; {}", errno.0, opened.words()))?;
    // What the disks hold now, as the power goes; the threads that are ended afterwards write to others.
    let disks: Vec<MemBacking> = world.disks.iter().map(MemBacking::fork).collect();
    opened.end(world);
    disks.iter().for_each(|disk| disk.power_cut(random));
    world.disks = disks;
    world.files.clear();
    let lost = if lost.is_empty() { some_of(world.disks.len(), world.geometry.parity(), random) } else { lost.clone() };
    let again = Opened::new(world, &lost).map_err(|what| format!("after the second cut, without {lost:?}: {what}"))?;
    let state = read_state(&again.vfs).map_err(|what| format!("after the second cut: {what}; {}", again.words()))?;
    let expected = model.state();
    if state != expected {
        let what = difference(&expected, &state);
        return Err(format!("after the second cut, without {lost:?}, synced work is lost; {}\n{what}", again.words()));
    }
    again.end(world);
    Ok(())
}

/// Everything that is known of a failure.
fn replay_failure(
    recording: &Recording,
    cursor: &Cursor,
    plan: &Plan,
    session: usize,
    loss: Loss,
    what: &str,
) -> String {
    let from = cursor.at.saturating_sub(25);
    let to = (cursor.at + 3).min(recording.events.len());
    let show = |(n, event): (usize, &Event)| {
        let mut text = format!("{event:?}");
        if let Some((head, _)) = text.split_once(", [") {
            text = format!("{head}, ..bytes");
        }
        format!("  {}{text}", if from + n == cursor.at { "cut before: " } else { "" })
    };
    let events: Vec<String> = recording.events[from..to].iter().enumerate().map(show).collect();
    let first = cursor.acknowledged.saturating_sub(recording.first);
    let last = (cursor.begun.saturating_sub(recording.first)).min(recording.ops.len());
    let ops: Vec<String> =
        (first..last).map(|n| format!("  {}: {}", n + recording.first + 1, recording.ops[n])).collect();
    format!(
        "power cut at event {} of {}, session {session}, {loss:?} lost, {plan:?}: {what}\nstates {} to {} may be seen. \
         Operations that may be lost:\n{}\nevents:\n{}",
        cursor.at,
        recording.events.len(),
        cursor.acknowledged,
        cursor.begun,
        ops.join("\n"),
        events.join("\n")
    )
}
