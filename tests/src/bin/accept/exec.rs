//! Functions in sandboxes.

use std::time::Duration;

use brine_tests::scenario::functions;

use crate::{Point, runs};

/// Every point, cheap ones first.
pub fn points() -> Vec<Point> {
    vec![
        ("fifty functions at once", || functions::burst(50)),
        ("figures beside a plain run", || functions::latency(runs(2000), Duration::from_millis(20))),
        ("figures in a loop without pause", || functions::latency(runs(2000), Duration::ZERO)),
        ("callers and daemons killed at any moment", || functions::kills(runs(200))),
        ("ten thousand mixed runs leave nothing", || functions::soak(runs(10_000))),
    ]
}
