//! `brine retention`: which former states are kept, and for how long.

use brine_store::retention::{Period, Rules, SnapshotRule, seconds, words};
use lexopt::{Arg, Parser, ValueExt};
use serde_json::Value;

use super::asked::Asked;
use super::check::{inside, perform};
use super::output;
use super::target::resolve;
use crate::control::{Request, RetentionChange, RetentionRequest, rules_of};
use crate::exit_code::{ExitCode, Failure};
use crate::telemetry::printable;

/// One change of the rules.
type Change = Box<dyn Fn(&mut Rules)>;

/// `brine retention show|set|clear ... [DIRECTORY] VOLUME`.
pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let usage = || Failure::usage("give \"show\", \"set\" or \"clear\" first");
    let (set, clear) = match parser.next()? {
        Some(Arg::Value(word)) if word == "show" => (false, false),
        Some(Arg::Value(word)) if word == "set" => (true, false),
        Some(Arg::Value(word)) if word == "clear" => (false, true),
        _ => return Err(usage()),
    };
    let (mut asked, changes) = parse(parser, set)?;
    let path = (asked.paths.len() == 2).then(|| asked.paths.remove(0));
    let [named] = asked.exactly("[DIRECTORY] and one SOURCE or MOUNTPOINT")?;
    if set && changes.is_empty() {
        return Err(Failure::usage("name the rules to set"));
    }
    let target = resolve(&named)?;
    let directory = inside(&target, path.as_deref())?;
    let ask = |change| {
        let ask = RetentionRequest { directory: directory.clone(), change };
        perform(&target, &Request::Retention { ask }, &asked)
    };
    let answer = if clear {
        ask(RetentionChange::Clear)?
    } else if set {
        // A directory without rules begins with those that hold there.
        let now = ask(RetentionChange::None)?;
        let mut rules = rules_of(&now)?;
        if now["own"] == false {
            rules = Rules { snapshots: Vec::new(), budget_percent: Rules::default().budget_percent, ..rules };
        }
        changes.iter().for_each(|change| change(&mut rules));
        rules.check()?;
        ask(RetentionChange::Set(rules))?
    } else {
        ask(RetentionChange::None)?
    };
    if asked.json {
        output::say_json(&answer);
    } else {
        output::say(&show_answer(&answer)?);
    }
    Ok(ExitCode::Success)
}

fn parse(parser: Parser, set: bool) -> Result<(Asked, Vec<Change>), Failure> {
    let mut changes: Vec<Change> = Vec::new();
    let asked = Asked::parse_with(parser, |name, parser| {
        let change = if set { change(name, parser)? } else { None };
        let own = change.is_some();
        changes.extend(change);
        Ok(own)
    })?;
    Ok((asked, changes))
}

/// The change that an option stands for, if it is one of ours.
fn change(name: &str, parser: &mut Parser) -> Result<Option<Change>, Failure> {
    let field: fn(&mut Rules) -> &mut u64 = match name {
        "default" => return Ok(Some(Box::new(|rules| *rules = Rules::default()))),
        "all" => |rules| &mut rules.all_s,
        "minutely" => |rules| &mut rules.minutely_s,
        "hourly" => |rules| &mut rules.hourly_s,
        "daily" => |rules| &mut rules.daily_s,
        "weekly" => |rules| &mut rules.weekly_s,
        "monthly" => |rules| &mut rules.monthly_s,
        "last" => {
            let number: u64 = value(parser, name)?.parse().map_err(|_| Failure::usage("--last: a number of states"))?;
            return Ok(Some(Box::new(move |rules| rules.last = number)));
        }
        "budget" => {
            let text = value(parser, name)?;
            let percent: u8 = text
                .trim_end_matches('%')
                .parse()
                .map_err(|_| Failure::usage(format!("--budget {text}: a percentage, 1 to 90")))?;
            return Ok(Some(Box::new(move |rules| rules.budget_percent = percent)));
        }
        "snapshots" => {
            let text = value(parser, name)?;
            let rule = text.split_once('=').and_then(|(every, keep)| {
                Some(SnapshotRule { every: Period::from_name(every)?, keep: keep.parse().ok()? })
            });
            let Some(rule) = rule else {
                let say = format!("--snapshots {text}: hourly, daily, weekly or monthly, =, and how many are kept");
                return Err(Failure::usage(say));
            };
            return Ok(Some(Box::new(move |rules| {
                rules.snapshots.retain(|other| other.every != rule.every);
                if rule.keep > 0 {
                    rules.snapshots.push(rule.clone());
                    rules.snapshots.sort_by_key(|rule| rule.every);
                }
            })));
        }
        _ => return Ok(None),
    };
    let text = value(parser, name)?;
    let Some(time) = seconds(&text) else {
        return Err(Failure::usage(format!("--{name} {text}: a number with s, m, h, d, w or y, or 0")));
    };
    Ok(Some(Box::new(move |rules| *field(rules) = time)))
}

fn value(parser: &mut Parser, name: &str) -> Result<String, Failure> {
    parser.value()?.string().map_err(|_| Failure::usage(format!("--{name}: not text")))
}

fn show_answer(answer: &Value) -> Result<String, Failure> {
    let rules = rules_of(answer)?;
    if let Some(path) = answer["path"].as_str() {
        let whose = if answer["own"] == true { "its own rules" } else { "the rules of what is above it" };
        return Ok(format!("{}: {whose}\n{}", printable(path), times(&rules).join("\n")));
    }
    let mut text = show(&rules);
    for of in answer["directories"].as_array().into_iter().flatten() {
        let path = of["path"].as_str().map_or_else(|| format!("a removed directory, inode {}", of["ino"]), printable);
        text.push_str(&format!("\n{path}: {}", times(&rules_of(of)?).join(", ")));
    }
    Ok(text)
}

fn show(rules: &Rules) -> String {
    let mut lines = times(rules);
    for rule in &rules.snapshots {
        lines.push(format!("a snapshot {}, the last {} of them", rule.every.name(), rule.keep));
    }
    lines.push(format!("history takes at most {} % of the usable space", rules.budget_percent));
    lines.join("\n")
}

/// What is kept, and for how long.
fn times(rules: &Rules) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, time) in [
        ("every state", rules.all_s),
        ("the last of each minute", rules.minutely_s),
        ("the last of each hour", rules.hourly_s),
        ("the last of each day", rules.daily_s),
        ("the last of each week", rules.weekly_s),
        ("the last of each 30 days", rules.monthly_s),
    ] {
        if time > 0 {
            lines.push(format!("{what:<26} for {}", words(time)));
        }
    }
    if rules.last > 0 {
        lines.push(format!("the newest {} states whatever their age", rules.last));
    }
    if lines.is_empty() {
        lines.push("no former states".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(words: &[&str]) -> Result<Rules, Failure> {
        let (_, changes) = parse(Parser::from_args(words), true)?;
        let mut rules = Rules::default();
        changes.iter().for_each(|change| change(&mut rules));
        rules.check()?;
        Ok(rules)
    }

    #[test]
    fn rules_are_read_from_options() {
        let rules =
            changed(&["--all", "1h", "--minutely=2h", "--hourly", "3d", "--daily", "4w", "--last", "7", "/v"]).unwrap();
        assert_eq!((rules.all_s, rules.minutely_s, rules.hourly_s), (3600, 7200, 259_200));
        assert_eq!((rules.daily_s, rules.last, rules.budget_percent), (2_419_200, 7, 20));
        let rules = changed(&["--budget", "30%", "--snapshots", "daily=7", "--snapshots", "hourly=24", "/v"]).unwrap();
        assert_eq!(rules.budget_percent, 30);
        assert_eq!(rules.snapshots[0], SnapshotRule { every: Period::Hourly, keep: 24 });
        assert!(changed(&["--snapshots", "daily=7", "--snapshots", "daily=0", "/v"]).unwrap().snapshots.is_empty());
        assert_eq!(changed(&["--all", "1s", "--default", "/v"]).unwrap(), Rules::default());
    }

    #[test]
    fn wrong_and_contradicting_rules_are_refused() {
        for words in
            [&["--all", "soon"][..], &["--budget", "x"], &["--snapshots", "often=3"], &["--last", "-1"], &["--frob"]]
        {
            assert_eq!(changed(words).unwrap_err().code(), ExitCode::Usage, "{words:?}");
        }
        let failure = changed(&["--hourly", "30m"]).unwrap_err();
        assert_eq!(failure.code(), ExitCode::Refused);
        assert!(failure.message().contains("keeps nothing"), "{failure}");
        assert!(parse(Parser::from_args(["--all", "1h", "/v"]), false).is_err(), "show takes no rules");
    }
}
