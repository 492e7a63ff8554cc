//! What can go wrong in a run, as a sentence for the one who started it.

use std::error::Error;
use std::fmt::{self, Display};

/// What was being done, and why it did not work.
#[derive(Debug)]
pub struct Failure(String);

/// Result of every step of a run.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure that has no deeper cause.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Error for Failure {}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// `what` completes "cannot ...".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Failure(format!("cannot {}: {cause}", what())))
    }
}
