//! What is said over the sockets of one invocation, and its bytes.
//!
//! Four talks, all of them frames (see [`frame`]) over stream sockets, all integers little-endian:
//!
//! | who | says | descriptors |
//! | --- | --- | --- |
//! | launcher -> daemon, on `exec.sock` | `Ask` ([`Request`]), once | one end of a connection, for the run's init |
//! | `brine exec run` -> daemon, there | [`Request`], once | the function, O_PATH, instead of a ticket |
//! | daemon -> `brine exec run` | `Accepted` (run id), once | a connection to the run's init |
//! | daemon -> both | [`Ended`], the last word | none |
//! | either -> init, on that connection | [`Streams`], once | standard descriptors that are open, in order |
//! | process of a run -> daemon, over its credential | as a launcher, or `Open` (an absolute path), once | as there, or none |
//! | daemon -> that process | `Opened`, or [`Ended`] | the file, read-only |
//! | launcher -> init | `Signal` (one byte), `Window` ([`Window`]) | none |
//!
//! A run's credential is descriptor 3, which takes connections as `Call` frames with their other end, and a listening
//! socket in its sandbox, at `.brine/exec.sock` of the mount. Both hear processes of that run only.
//!
//! A launcher sends its standard descriptors into the connection before it asks: nobody waits for it to be woken. They
//! lie there until the init takes them, or the daemon lets go of the connection.
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
