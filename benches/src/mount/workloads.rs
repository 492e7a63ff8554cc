//! The workloads, grouped by the files they share. Each step is timed without what prepares and checks it.

mod append;
mod files;
mod stream;
mod tree;

use crate::data::Pool;
use crate::failure::Result;
use crate::metrics::{Sample, Stopwatch};
use crate::options::Options;
use crate::place::Place;
use crate::sides::Side;

/// What a step works with.
pub struct Stage<'a> {
    pub side: &'a mut dyn Side,
    pub place: &'a Place,
    pub options: &'a Options,
    pub pool: &'a mut Pool,
    /// From 0; also names what is written, so that no repeat writes what an earlier one did.
    pub repeat: usize,
}

impl Stage<'_> {
    /// Nothing of this side's is cached afterwards, neither in its daemon nor (as root) in the kernel.
    fn cool_down(&mut self) -> Result<()> {
        self.side.unmount()?;
        self.place.drop_caches()?;
        self.side.mount()
    }

    fn start(&self) -> Stopwatch {
        Stopwatch::start(self.side.pid())
    }

    /// Names content that no other repeat or `kind` of workload has.
    fn seed(&self, kind: u64) -> u64 {
        kind << 32 | self.repeat as u64
    }
}

/// One step.
pub struct Workload {
    pub name: &'static str,
    /// Steps of the same family without which there is nothing to work on.
    pub needs: &'static [&'static str],
    /// Whether the side of six plain directories takes part.
    pub on_six: bool,
    pub run: fn(&mut Stage<'_>) -> Result<Vec<Sample>>,
}

impl Workload {
    /// Whether that side takes part.
    pub fn suits(&self, side: &dyn Side) -> bool {
        self.on_six || side.name() != "six"
    }
}

/// Steps that share files, in order.
pub struct Family {
    pub name: &'static str,
    pub workloads: &'static [Workload],
    /// Makes what all sides use, before a repeat.
    pub prepare: fn(&Place, &Options, usize) -> Result<()>,
    /// Takes away from a side what a repeat left.
    pub clean: fn(&mut dyn Side, usize) -> Result<()>,
}

impl Family {
    /// Whether any of it is to be shown.
    pub fn is_wanted(&self, options: &Options) -> bool {
        self.workloads.iter().any(|workload| options.shows(workload.name))
    }

    /// Whether a step is to be shown, or needed by one that is.
    pub fn runs(&self, workload: &Workload, options: &Options) -> bool {
        options.shows(workload.name)
            || self.workloads.iter().any(|other| options.shows(other.name) && other.needs.contains(&workload.name))
    }
}

/// All of them, in order.
pub static FAMILIES: [&Family; 4] = [&stream::FAMILY, &files::FAMILY, &tree::FAMILY, &append::FAMILY];

/// Names of all steps.
pub fn names() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.workloads).map(|workload| workload.name).collect()
}

fn nothing_to_prepare(_: &Place, _: &Options, _: usize) -> Result<()> {
    Ok(())
}
