//! `brine quota`: how much directories may hold.

use std::path::PathBuf;

use lexopt::{Arg, Parser};
use serde_json::Value;

use super::args;
use super::output::{bytes, grouped};
use super::snapshot::{answer, text};
use super::versions::place;
use crate::config::size;
use crate::control::{NewLimit, QuotaRequest, Request};
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::printable;

/// `brine quota set|show|list|remove ...`.
pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut json, mut words, mut limits) = (false, Vec::new(), (None, None));
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            Arg::Long("bytes") => limits.0 = Some(limit(&mut parser, "--bytes", size)?),
            Arg::Long("inodes") => limits.1 = Some(limit(&mut parser, "--inodes", |word| word.parse().ok())?),
            other => args::positional(other, &mut words)?,
        }
    }
    let verb = if words.is_empty() { PathBuf::new() } else { words.remove(0) };
    let verb = verb.to_str().unwrap_or_default().to_owned();
    if verb != "set" && limits != (None, None) {
        return Err(Failure::usage("--bytes and --inodes belong to `brine quota set`"));
    }
    let what = if verb == "list" { "one MOUNTPOINT" } else { "one DIR" };
    match verb.as_str() {
        "set" if limits == (None, None) => return Err(Failure::usage("give --bytes, --inodes or both")),
        "set" | "show" | "list" | "remove" => {}
        _ => return Err(Failure::usage("give set, show, list or remove")),
    }
    let [path] = args::exactly(words, what)?;
    let place = place(&path)?;
    let (inside, live) = (place.inside, place.live);
    let ask = |request| live.ask_long(&Request::Quota { ask: request }, |_| {});
    match verb.as_str() {
        "set" => {
            let quota = ask(QuotaRequest::Set { path: inside, bytes: limits.0, inodes: limits.1 })?;
            answer(json, &quota, || line(&quota));
        }
        "show" => {
            let shown = ask(QuotaRequest::Show { path: inside })?;
            answer(json, &shown, || lines(&shown, "no quota holds here"));
        }
        "list" => {
            let listed = ask(QuotaRequest::List)?;
            answer(json, &listed, || lines(&listed, "no directory has a quota"));
        }
        _ => {
            let removed = ask(QuotaRequest::Remove { path: inside })?;
            answer(json, &removed, || format!("{} has no quota any more", printable(&text(&removed["removed"]))));
        }
    }
    Ok(ExitCode::Success)
}

fn limit(parser: &mut Parser, option: &str, read: impl Fn(&str) -> Option<u64>) -> Result<NewLimit, Failure> {
    let word = args::word(parser)?;
    if word == "none" {
        return Ok(NewLimit::None);
    }
    // The largest number stands for no limit where quotas are stored.
    let number = read(&word).filter(|number| *number < u64::MAX);
    number.map(NewLimit::AtMost).ok_or_else(|| {
        Failure::usage(format!("{option} {word}: give a number (of bytes perhaps with K, M, G or T), or none"))
    })
}

fn lines(quotas: &Value, none: &str) -> String {
    let rows = quotas["quotas"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() { none.to_owned() } else { rows.iter().map(line).collect::<Vec<_>>().join("\n") }
}

fn line(quota: &Value) -> String {
    let number = |name: &str| quota[name].as_u64();
    let bytes_limit = number("bytes_limit").map_or("any number".to_owned(), bytes);
    let inodes_limit = number("inodes_limit").map_or("any number".to_owned(), grouped);
    let counting = if quota["state"] == "counting" { "; still being counted, not enforced yet" } else { "" };
    format!(
        "{}: {} of {bytes_limit}, {} of {inodes_limit} inodes{counting}",
        printable(&text(&quota["directory"])),
        bytes(number("bytes").unwrap_or(0)),
        grouped(number("inodes").unwrap_or(0)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_others_refused() {
        let read = |word: &str| limit(&mut Parser::from_args([word]), "--bytes", size);
        // A first word is taken as the value.
        assert_eq!(read("none").unwrap(), NewLimit::None);
        assert_eq!(read("4096").unwrap(), NewLimit::AtMost(4096));
        assert_eq!(read("3M").unwrap(), NewLimit::AtMost(3 << 20));
        for wrong in ["", "-1", "many", "18446744073709551615"] {
            assert_eq!(read(wrong).unwrap_err().code(), ExitCode::Usage, "{wrong}");
        }
        for words in [&["set", "/d"][..], &["frob", "/d"], &["show", "--bytes", "1", "/d"], &["list"], &[]] {
            assert_eq!(run(Parser::from_args(words)).unwrap_err().code(), ExitCode::Usage, "{words:?}");
        }
    }
}
