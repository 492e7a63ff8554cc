//! History, snapshots and what is restored from them; space given back.

use std::time::Duration;

use brine_tests::scenario::{reclaim, versions};

use crate::Point;

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("gc, usage, retention and salt", reclaim::commands),
        ("versions have no gaps", || versions::versions_have_no_gaps(4, 500)),
        ("a tree is rewound and back", || versions::rewinds_a_whole_tree(20_000)),
        ("a snapshot takes less than 50 ms", || versions::snapshot_is_instant(100_000, Duration::from_millis(50))),
        ("as small as a fresh copy once history is deleted", || reclaim::as_small_as_a_fresh_copy(6)),
        ("the space of 100,000 removed files", || reclaim::removed_files(100_000)),
        ("dead names cost a listing nothing", || versions::dead_names_cost_a_listing_nothing(1_000_000, 20)),
    ]
}
