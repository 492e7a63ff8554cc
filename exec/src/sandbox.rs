//! How a sandbox is made and what runs in it: everything here happens in the spawner's children.

pub mod sys;
