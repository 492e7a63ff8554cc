//! The reserved name `.brine` in the root: snapshots and past states will be reached through it.
//!
//! Names in the root that begin so cannot be created today, so that none has to be hidden later.

use brine_store::ids::{Ino, ROOT_INO};

/// What reserved names in the root begin with.
pub const CONTROL_NAME: &[u8] = b".brine";

/// Whether `name` in `parent` is reserved: looked up it does not exist, and it cannot be made.
pub fn is_reserved(parent: Ino, name: &[u8]) -> bool {
    parent == ROOT_INO && name.starts_with(CONTROL_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_reserves() {
        assert!(is_reserved(ROOT_INO, b".brine"));
        assert!(is_reserved(ROOT_INO, b".brine-tmp"));
        assert!(!is_reserved(ROOT_INO, b".brin"));
        assert!(!is_reserved(ROOT_INO, b"x.brine"));
        assert!(!is_reserved(Ino(2), b".brine"));
    }
}
