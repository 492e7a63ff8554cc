//! The arithmetic that runs over every byte: the cipher and the erasure code. Pure; part of the storage engine, which
//! shows it under its own names.
//!
//! A crate of its own for one reason: generic code of the cipher and the coder is compiled where it is used, and here
//! it is optimised in every profile, while the rest of the engine builds quickly for tests.

pub mod aead; // AES-256-GCM-SIV in place
pub mod erasure; // Reed-Solomon over GF(2^8), kernels chosen at run time
pub mod geometry; // k data and m parity shards
