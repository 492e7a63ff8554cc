//! The exec directory: what an invocation is, what it may touch, the sandbox it runs in, and what is kept of it.
//!
//! Lower modules first; a module uses only those before it. This crate knows no FUSE and no rows: the volume is a
//! directory, and who may run what is decided by the [`service::Host`].

pub mod error;
pub(crate) mod sys;
pub mod scope;
pub mod policy;
pub mod plan;
pub mod invocation;
pub mod run_record;
pub mod protocol;
pub(crate) mod copies;
pub(crate) mod sandbox;
pub mod cgroup;
pub mod spawner;
pub mod ledger;
pub(crate) mod pool;
pub mod sandboxes;
pub mod doctor;
pub mod launcher;
pub mod service;

pub use error::{Error, Result};
pub use invocation::{Caller, Invocation};
pub use ledger::Capacity;
pub use plan::{Identity, Plan, ProgramId, Root, Template, View, ViewAccess};
pub use policy::{Limits, Network, Policy};
pub use pool::PoolBounds;
pub use run_record::{ExitCause, Outcome, RunId, RunRecord, Steps, Usage, Verdict};
pub use sandboxes::{Config, Sandboxes};
pub use scope::{Access, Grant, Scope};
