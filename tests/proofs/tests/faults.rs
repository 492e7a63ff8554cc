//! Every call of a backing directory fails once, in every way it can: nothing acknowledged is lost, no byte is wrong.
//! The table of outcomes stands in docs/TESTING.md; `BRINE_WRITE_TABLE=1` tries every errno and writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use brine_proofs::faults::{enumerate, markdown};

const BEGIN: &str = "<!-- table of outcomes: begin -->\n";
const END: &str = "<!-- table of outcomes: end -->";

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/TESTING.md")
}

/// Outcomes of each cell of a table, by row.
fn cells(table: &str) -> BTreeMap<String, Vec<BTreeSet<String>>> {
    let rows = table.lines().skip(2).filter(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let outcomes = cells[2..].iter().map(|cell| cell.split("; ").map(str::to_owned).collect()).collect();
        (format!("{} {}", cells[0], cells[1]), outcomes)
    })
    .collect()
}

#[test]
fn every_backing_call_fails_once_in_every_way() {
    let rewrite = std::env::var_os("BRINE_WRITE_TABLE").is_some();
    let (table, runs) = enumerate((4, 2), rewrite).unwrap_or_else(|what| panic!("{what}"));
    println!("{runs} runs");
    let measured = markdown(&table);
    let text = std::fs::read_to_string(page()).expect("read docs/TESTING.md");
    let (head, rest) = text.split_once(BEGIN).expect("docs/TESTING.md has the table's beginning");
    let (written, tail) = rest.split_once(END).expect("docs/TESTING.md has the table's end");
    if rewrite {
        std::fs::write(page(), format!("{head}{BEGIN}{measured}{END}{tail}")).expect("write docs/TESTING.md");
        return;
    }
    // That nothing was lost is asserted for each run. Nothing depends on time, so the outcome is promised, too: with fewer
    // errnos than the page was written with there may be fewer kinds of it, never others.
    let (written, measured) = (cells(written), cells(&measured));
    let rows = |table: &BTreeMap<String, Vec<BTreeSet<String>>>| table.keys().cloned().collect::<Vec<_>>();
    assert_eq!(rows(&measured), rows(&written), "docs/TESTING.md has other rows; BRINE_WRITE_TABLE=1");
    for (row, outcomes) in &measured {
        for (found, known) in outcomes.iter().zip(&written[row]) {
            assert!(found.is_subset(known), "{row}: docs/TESTING.md says {known:?}, found {found:?}");
        }
    }
}
