//! The metadata database: rows, transactions, conditional writes.

pub mod rows;
