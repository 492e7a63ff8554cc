//! The life of one block as a small model, explored state by state: writers, readers, deletion, retention, commits,
//! checkpoints, gc and crashes in every order that fits the bounds. Whatever happens, what a file or a former state
//! names can be read (I-17); leaving out any one of gc's conditions is found out.

use std::collections::{HashSet, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Live,
    Zero,
    Condemned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Row {
    life: Life,
    /// Generation since when.
    since: u8,
    /// Which copy it tells of.
    place: u8,
}

/// What the tables say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Tables {
    /// A file names the block.
    file: bool,
    /// A former state names it.
    past: bool,
    row: Option<Row>,
}

/// A writer between looking the block up and putting its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Shares,
    Appended(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    now: Tables,
    /// As of the last commit: what a crash leaves.
    committed: Tables,
    /// The open generation; the committed one is one less.
    open: u8,
    changed: bool,
    /// Generations of both checkpoints, the older first; 0: none.
    checkpoints: [u8; 2],
    /// Bit n: copy n was appended. Places are never used twice.
    appended: u8,
    /// Bit n: copy n was freed.
    freed: u8,
    writer: Option<Writer>,
    /// Where a reader is reading.
    reader: Option<u8>,
    /// A copy found dead, and the generation that says so.
    plan: Option<(u8, u8)>,
}

/// Conditions that may be left out, to see that each is needed.
#[derive(Clone, Copy, Debug, Default)]
struct Without {
    checkpoints: bool,
    pins: bool,
    recheck_of_duplicates: bool,
}

const GENERATIONS_MAX: u8 = 6;
const PLACES_MAX: u8 = 3;

impl State {
    fn new() -> Self {
        Self {
            now: Tables::default(),
            committed: Tables::default(),
            open: 1,
            changed: false,
            checkpoints: [0, 0],
            appended: 0,
            freed: 0,
            writer: None,
            reader: None,
            plan: None,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Tables, u8)) -> Self {
        let mut next = self.clone();
        change(&mut next.now, self.open);
        next.changed |= next.now != self.now;
        next
    }

    fn is_dead(&self, place: u8) -> bool {
        self.now.row.is_none_or(|row| row.place != place || row.life == Life::Condemned)
    }

    /// What is named and cannot be read.
    fn lost(&self) -> Option<&'static str> {
        for (tables, which) in [(&self.now, "the open state"), (&self.committed, "the committed state")] {
            if !tables.file && !tables.past {
                continue;
            }
            match tables.row {
                None => return Some("a block that is named has no row"),
                Some(row) if row.life == Life::Condemned => return Some("a block that is named is condemned"),
                Some(row) if self.freed >> row.place & 1 == 1 => return Some(which),
                Some(_) => {}
            }
        }
        self.reader.is_some_and(|place| self.freed >> place & 1 == 1).then_some("a reader reads what is freed")
    }

    fn next(&self, without: Without) -> Vec<Self> {
        let mut out = Vec::new();
        let committed = self.open - 1;
        let usable = |row: &Row| row.life != Life::Condemned;

        // A writer looks the block up: shares it, or appends a copy.
        if self.writer.is_none() && !self.now.file {
            if self.now.row.as_ref().is_some_and(usable) {
                out.push(Self { writer: Some(Writer::Shares), ..self.clone() });
            } else if self.appended < (1 << PLACES_MAX) - 1 {
                let place = self.appended.trailing_ones() as u8;
                let appended = self.appended | 1 << place;
                out.push(Self { writer: Some(Writer::Appended(place)), appended, ..self.clone() });
            }
        }
        // It puts its rows.
        match self.writer {
            Some(Writer::Shares) => {
                let there = self.now.row.as_ref().is_some_and(usable);
                let mut next = self.change(|tables, open| {
                    if there || without.recheck_of_duplicates {
                        tables.file = true;
                        if let Some(row) = &mut tables.row
                            && row.life == Life::Zero
                        {
                            *row = Row { life: Life::Live, since: open, ..*row };
                        }
                    }
                });
                next.writer = None;
                out.push(next);
            }
            Some(Writer::Appended(place)) => {
                let mut next = self.change(|tables, open| {
                    tables.file = true;
                    tables.row = Some(Row { life: Life::Live, since: open, place });
                });
                next.writer = None;
                out.push(next);
            }
            None => {}
        }
        // A reader looks the place up, and is done later.
        match (self.reader, self.now.row) {
            (None, Some(row)) if self.now.file || self.now.past => {
                out.push(Self { reader: Some(row.place), ..self.clone() });
            }
            (Some(_), _) => out.push(Self { reader: None, ..self.clone() }),
            _ => {}
        }
        // The file is removed, with and without history; retention forgets.
        if self.now.file {
            out.push(self.change(|tables, _| tables.file = false));
            out.push(self.change(|tables, _| (tables.file, tables.past) = (false, true)));
        }
        if self.now.past {
            out.push(self.change(|tables, _| tables.past = false));
        }
        // A commit folds references.
        if self.changed && self.open < GENERATIONS_MAX {
            let mut next = self.change(|tables, open| {
                if let Some(row) = &mut tables.row
                    && row.life == Life::Live
                    && !tables.file
                    && !tables.past
                {
                    *row = Row { life: Life::Zero, since: open, ..*row };
                }
            });
            next.committed = next.now;
            next.open += 1;
            next.changed = false;
            out.push(next);
        }
        // A checkpoint of the committed state is published.
        if committed > self.checkpoints[1] {
            out.push(Self { checkpoints: [self.checkpoints[1], committed], ..self.clone() });
        }
        // gc condemns, plans, frees, forgets the row.
        if let Some(row) = self.now.row
            && row.life == Life::Zero
            && row.since <= committed
            && !self.now.file
            && !self.now.past
        {
            out.push(self.change(|tables, open| tables.row = Some(Row { life: Life::Condemned, since: open, ..row })));
        }
        let quiet = self.writer.is_none() && self.reader.is_none();
        if self.plan.is_none() && (quiet || without.pins) {
            for place in (0..PLACES_MAX).filter(|place| (self.appended & !self.freed) >> place & 1 == 1) {
                if self.is_dead(place) {
                    let noted = if self.changed { self.open } else { committed };
                    out.push(Self { plan: Some((place, noted)), ..self.clone() });
                }
            }
        }
        if let Some((place, noted)) = self.plan
            && (self.checkpoints[0] >= noted || without.checkpoints)
        {
            out.push(Self { plan: None, freed: self.freed | 1 << place, ..self.clone() });
        }
        if let Some(row) = self.now.row
            && row.life == Life::Condemned
            && row.since <= self.checkpoints[0]
        {
            out.push(self.change(|tables, _| tables.row = None));
        }
        // A crash: what was not committed is gone, and all that only memory held.
        let crashed =
            Self { now: self.committed, changed: false, writer: None, reader: None, plan: None, ..self.clone() };
        if crashed != *self {
            out.push(crashed);
        }
        out
    }
}

/// Explore everything; the first state in which something is lost, and how many states there are.
fn explore(without: Without) -> (Option<(State, &'static str)>, usize) {
    let first = State::new();
    let mut seen = HashSet::from([first.clone()]);
    let mut open = VecDeque::from([first]);
    while let Some(state) = open.pop_front() {
        if let Some(what) = state.lost() {
            return (Some((state, what)), seen.len());
        }
        for next in state.next(without) {
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    (None, seen.len())
}

#[test]
fn nothing_that_is_named_is_ever_freed() {
    let (lost, states) = explore(Without::default());
    assert_eq!(lost, None);
    assert!(states > 5_000, "{states} states: the bounds are too narrow to say anything");
}

#[test]
fn each_condition_of_gc_is_needed() {
    for without in [
        Without { checkpoints: true, ..Without::default() },
        Without { pins: true, ..Without::default() },
        Without { recheck_of_duplicates: true, ..Without::default() },
    ] {
        assert!(explore(without).0.is_some(), "{without:?} makes no difference");
    }
}
