//! History, snapshots and what is restored from them.

use brine_tests::scenario::reclaim;

use crate::Point;

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("gc, usage, retention and salt", reclaim::commands),
        ("the space of 100,000 removed files", || reclaim::removed_files(100_000)),
    ]
}
