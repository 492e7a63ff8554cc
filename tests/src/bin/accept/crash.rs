//! That crashes and faults lose nothing.

use brine_tests::scenario::crash;

use crate::Point;

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("a daemon that dies is replaced", crash::supervised),
        ("power cuts under load", || crash::power_cuts(25)),
        ("kills with two directories lost", || crash::kill_and_lose(15)),
        ("kills under load", || crash::kills(100)),
    ]
}
