//! Every call of a backing directory fails once, in every way it can: nothing acknowledged is lost, no byte is wrong.
//! The table of outcomes stands in docs/TESTING.md; `BRINE_WRITE_TABLE=1` tries every errno and writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use brine_proofs::faults::{PHASES, Part, enumerate, markdown};

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

fn phase_of(row: &str) -> &str {
    row.split(' ').next().unwrap_or_default()
}

fn prove(part: Part) {
    let (table, runs) = enumerate((4, 2), part, false).unwrap_or_else(|what| panic!("{what}"));
    println!("{runs} runs");
    let measured = markdown(&table);
    println!("{measured}");
    let text = std::fs::read_to_string(page()).expect("read docs/TESTING.md");
    let (_, rest) = text.split_once(BEGIN).expect("docs/TESTING.md has the table's beginning");
    let (written, _) = rest.split_once(END).expect("docs/TESTING.md has the table's end");
    // That nothing was lost is asserted for each run. With one directory the outcome is promised, too; with more, timing
    // decides between clean ones (which sync was under way), and whether a call happens in a phase at all.
    let (mut written, measured) = (cells(written), cells(&measured));
    let phases = PHASES.iter().filter(|phase| part.has(**phase)).map(|phase| format!("{phase:?}").to_lowercase());
    let phases: BTreeSet<String> = phases.collect();
    written.retain(|row, _| phases.contains(phase_of(row)));
    let mut news = Vec::new();
    for (row, outcomes) in &measured {
        let Some(known) = written.get(row) else {
            assert!(outcomes[0].iter().all(|outcome| outcome == "success"), "{row}: {outcomes:?} and not in the page");
            news.push(row);
            continue;
        };
        let (found, known) = (&outcomes[0], &known[0]);
        assert!(found.is_subset(known), "{row}: docs/TESTING.md says {known:?} of one directory, found {found:?}");
        if outcomes.iter().zip(&written[row]).any(|(found, known)| !found.is_subset(known)) {
            news.push(row);
        }
    }
    println!("rows that show more than docs/TESTING.md has (BRINE_WRITE_TABLE=1 writes it anew): {news:?}");
    assert!(news.len() <= 5, "docs/TESTING.md is out of date: {news:?}; BRINE_WRITE_TABLE=1");
    let stale: Vec<&String> = written.keys().filter(|row| !measured.contains_key(*row)).collect();
    assert!(stale.len() <= 3, "docs/TESTING.md has rows that do not occur any more: {stale:?}; BRINE_WRITE_TABLE=1");
}

#[test]
fn every_backing_call_fails_once_in_every_way() {
    if std::env::var_os("BRINE_WRITE_TABLE").is_some() {
        let mut measured = String::new();
        for part in [Part::Front, Part::Behind] {
            let (table, runs) = enumerate((4, 2), part, true).unwrap_or_else(|what| panic!("{what}"));
            println!("{runs} runs");
            let rows = markdown(&table);
            let heading = if part == Part::Front { 0 } else { 2 };
            measured.extend(rows.split_inclusive('\n').skip(heading));
        }
        let text = std::fs::read_to_string(page()).expect("read docs/TESTING.md");
        let (head, rest) = text.split_once(BEGIN).expect("docs/TESTING.md has the table's beginning");
        let (_, tail) = rest.split_once(END).expect("docs/TESTING.md has the table's end");
        std::fs::write(page(), format!("{head}{BEGIN}{measured}{END}{tail}")).expect("write docs/TESTING.md");
        return;
    }
    prove(Part::Front);
}

#[test]
fn every_backing_call_fails_once_while_space_is_given_back_and_salts_change() {
    prove(Part::Behind);
}
