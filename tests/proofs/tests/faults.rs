//! Every call of a backing directory fails once, in every way it can: nothing acknowledged is lost, no byte is wrong.
//! The table of outcomes stands in docs/TESTING.md; `BRINE_WRITE_TABLE=1` tries every errno and writes it anew.

use std::path::PathBuf;

use brine_proofs::faults::{PHASES, Part, enumerate, markdown};

const BEGIN: &str = "<!-- table of outcomes: begin -->\n";
const END: &str = "<!-- table of outcomes: end -->";

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/TESTING.md")
}

/// The rows of a table for the phases of a part, in order.
fn rows_of(table: &str, part: Part) -> Vec<&str> {
    let phases: Vec<String> =
        PHASES.iter().filter(|phase| part.has(**phase)).map(|phase| format!("| {phase:?} |").to_lowercase()).collect();
    table.lines().filter(|line| phases.iter().any(|phase| line.starts_with(phase.as_str()))).collect()
}

fn prove(part: Part) {
    let (table, runs) = enumerate((4, 2), part, false).unwrap_or_else(|what| panic!("{what}"));
    println!("{runs} runs");
    let measured = markdown(&table);
    let text = std::fs::read_to_string(page()).expect("read docs/TESTING.md");
    let (_, rest) = text.split_once(BEGIN).expect("docs/TESTING.md has the table's beginning");
    let (written, _) = rest.split_once(END).expect("docs/TESTING.md has the table's end");
    // Nothing is done behind and nobody is ever late, so that equal faults have equal outcomes, in as many directories as
    // may be: each cell is a promise.
    let (written, measured) = (rows_of(written, part), rows_of(&measured, part));
    let other = |of: &[&str], than: &[&str]| {
        of.iter().filter(|row| !than.contains(row)).fold(String::new(), |all, row| all + row + "\n")
    };
    let (news, stale) = (other(&measured, &written), other(&written, &measured));
    assert!(
        news.is_empty() && stale.is_empty(),
        "docs/TESTING.md says\n{stale}and what happens is\n{news}BRINE_WRITE_TABLE=1 writes it anew"
    );
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
