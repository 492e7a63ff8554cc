//! What the commands on one volume are asked in common, and how they open it for themselves.
//!
//! Knows nothing of what a command does, nor of daemons.

use std::path::PathBuf;

use brine_store::volume::{OpenOptions, Unlock};
use lexopt::{Arg, Parser};

use super::args;
use super::secret::SecretArgs;
use crate::config::CACHE_BYTES_MIN;
use crate::exit_code::Failure;
use crate::mount::{Secret, harden};
use crate::telemetry;

/// A command line.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) json: bool,
    pub(super) secret: SecretArgs,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) paths: Vec<PathBuf>,
}

impl Asked {
    pub(super) fn parse(parser: Parser) -> Result<Self, Failure> {
        Self::parse_with(parser, |_, _| Ok(false))
    }

    /// `own` takes an option of the command's own; false if the name is none of them.
    pub(super) fn parse_with(
        mut parser: Parser,
        mut own: impl FnMut(&str, &mut Parser) -> Result<bool, Failure>,
    ) -> Result<Self, Failure> {
        let mut asked = Self::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Long("json") => asked.json = true,
                Arg::Long("state-dir") => {
                    asked.state_dir = Some(args::absolute(&args::path(&mut parser, "--state-dir")?));
                }
                Arg::Long(name) => {
                    let name = name.to_owned();
                    if !own(&name, &mut parser)? && !asked.secret.take(&name, &mut parser)? {
                        return Err(Failure::usage(format!("unknown option --{name}")));
                    }
                }
                other => args::positional(other, &mut asked.paths)?,
            }
        }
        Ok(asked)
    }

    /// Exactly `N` names, in their order.
    pub(super) fn exactly<const N: usize>(&mut self, names: &str) -> Result<[PathBuf; N], Failure> {
        args::exactly(std::mem::take(&mut self.paths), names)
    }

    /// What opens a volume in this process, which keeps it to itself from now on.
    pub(super) fn unlock(&self, volume: &str) -> Result<Secret, Failure> {
        harden();
        telemetry::log_to_terminal();
        self.secret.unlock(volume)
    }

    /// How this process opens a volume.
    pub(super) fn open_options(&self, sources: Vec<PathBuf>, unlock: Unlock, read_only: bool) -> OpenOptions {
        OpenOptions {
            state_dir: self.state_dir.clone(),
            read_only,
            // Everything is read once.
            cache_bytes: CACHE_BYTES_MIN,
            ..OpenOptions::new(sources, unlock)
        }
    }
}
