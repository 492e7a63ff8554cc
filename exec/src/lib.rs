//! The exec directory: what an invocation is, what it may touch, the sandbox it runs in, and what is kept of it.
//!
//! Lower modules first; a module uses only those before it. This crate knows no FUSE and no rows: the volume is a
//! directory, and who may run what is decided by the [`service::Host`].

pub mod error;
pub mod scope;
pub mod policy;
pub mod plan;
pub mod invocation;
pub mod run_record;
pub mod protocol;
pub mod sandbox;
pub mod service;

pub use error::{Error, Result};
pub use invocation::{Caller, Invocation};
pub use plan::{Identity, Plan, Root, Template, View, ViewAccess};
pub use policy::{Limits, Network, Policy};
pub use run_record::{ExitCause, Outcome, RunId, RunRecord, Steps, Usage, Verdict};
pub use scope::{Access, Grant, Scope};
