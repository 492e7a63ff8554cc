//! What is said over the sockets of one invocation, and its bytes.
//!
//! Four talks, all of them frames (see [`frame`]) over stream sockets, all integers little-endian:
//!
//! | who | says | descriptors |
//! | --- | --- | --- |
//! | launcher -> daemon, on `exec.sock` | [`Request`], once | none; or the function, O_PATH, instead of a ticket |
//! | daemon -> launcher | `Accepted` (run id), once | the connection to the run's init |
//! | daemon -> launcher | [`Ended`], the last word: after `Accepted`, or instead of it | none |
//! | launcher -> init, on that connection | [`Streams`], once | standard descriptors that are open, in order |
//! | process of a run -> daemon, over its credential | [`Request`] as above, or `Open` (an absolute path), once | none |
//! | daemon -> that process | `Opened`, or [`Ended`] | the file, read-only |
//! | launcher -> init | `Signal` (one byte), `Window` ([`Window`]) | none |
//!
//! A run's credential is descriptor 3, which takes connections as `Call` frames with their other end, and a listening
//! socket in its sandbox, at `.brine/exec.sock` of the mount. Both hear processes of that run only.
//!
//! The launcher keeps its connection to the daemon open for its life: its end there kills the run. The init says
//! nothing to the launcher; how the run ended comes from the daemon, after everything the run held was revoked.
//! Decoders take any bytes, allocate no more than they were given, and never panic. `launcher/` writes the same bytes
//! without this crate.

pub(crate) mod bytes;
pub mod frame;
mod request;

pub use frame::{Frame, Kind};
pub use request::{Ended, REQUEST_BYTES_MAX, Request, Streams, Ticket, Window};
