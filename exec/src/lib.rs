//! The exec directory: what an invocation is, what it may touch, and what is kept of it.
//!
//! These are the types the design fixes. Sandboxes are not built yet: the filesystem treats `exec/` as an ordinary
//! directory, and nothing here pretends to run anything.

pub mod invocation;
pub mod policy;
pub mod run_record;
pub mod scope;

pub use invocation::{Caller, Invocation};
pub use policy::{Limits, Network, Policy};
pub use run_record::{ExitCause, RunRecord, Usage};
pub use scope::{Access, Grant, Scope};
