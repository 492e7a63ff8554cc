//! The launcher's program, built from `launcher/` and embedded here.

/// A static ELF for this machine. The filesystem serves it as `.brine/launcher`.
pub static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/launcher"));
/// Name of the daemon's socket in the directory the launcher is in.
pub const SOCKET_NAME: &str = "exec.sock";
