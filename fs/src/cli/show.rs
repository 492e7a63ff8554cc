//! A status as people read it: one screen, the health word first.

use serde_json::Value;

use super::output::{bytes, duration, grouped, plural};
use crate::telemetry::printable;

fn number(value: &Value, path: &[&str]) -> Option<u64> {
    path.iter().try_fold(value, |value, key| value.get(key))?.as_u64()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// One line.
pub(super) fn line(status: &Value) -> String {
    let label = printable(text(status, "label"));
    let used = number(status, &["space", "logical_bytes"]).map(bytes).unwrap_or_default();
    let volume: String = text(status, "volume").chars().take(8).collect();
    format!(
        "{:<9}  {volume}  {label:<16}  {used:>10}  {}",
        text(status, "health"),
        printable(text(status, "mountpoint"))
    )
}

/// One screen.
pub(super) fn screen(status: &Value) -> String {
    let mut lines = vec![headline(status)];
    lines.extend(strings(&status["health_reason"]).map(|reason| format!("  ! {reason}")));
    lines.push(place(status));
    lines.push(String::new());
    lines.extend(directories(status));
    let space = space(status);
    if !space.is_empty() {
        lines.push(String::new());
        lines.extend(space);
    }
    lines.extend(damage(status));
    if let Some(why) = status["exec"]["unable"].as_str() {
        lines.push(format!("\nNothing can be run in exec/: {}", printable(why)));
    }
    // What is still so was said above.
    let reasons: Vec<String> = strings(&status["health_reason"]).collect();
    let warnings = strings(&status["warnings"]).filter(|warning| !reasons.contains(warning));
    let warnings: Vec<String> = warnings.map(|warning| format!("  {warning}")).collect();
    if !warnings.is_empty() {
        lines.push("\nWhen it was opened".to_owned());
        lines.extend(warnings);
    }
    lines.join("\n")
}

fn strings(value: &Value) -> impl Iterator<Item = String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(printable)
}

fn headline(status: &Value) -> String {
    let label = printable(text(status, "label"));
    let named = if label.is_empty() { String::new() } else { format!(" \"{label}\"") };
    let losses = number(status, &["tolerated_losses"]).map_or(String::new(), |losses| match losses {
        0 => "; no further directory may be lost".to_owned(),
        1 => "; one more directory may be lost".to_owned(),
        more => format!("; {more} more directories may be lost"),
    });
    format!("{}: volume{named} {}{losses}", text(status, "health").to_uppercase(), text(status, "volume"))
}

fn place(status: &Value) -> String {
    let generation = number(status, &["generation"]).unwrap_or_default();
    if status["mounted"] == true {
        let pid = number(status, &["pid"]).unwrap_or_default();
        let up = number(status, &["uptime_s"]).map_or(String::new(), |up| format!(" for {}", duration(up)));
        let mode = if status["read_only"].is_string() { ", read-only" } else { "" };
        let at = status["at"]["time"].as_str().map_or(String::new(), |time| format!(", as of {time}"));
        return format!(
            "  mounted at {}{mode}{at}{up} by process {pid}; generation {generation}",
            printable(text(status, "mountpoint"))
        );
    }
    let who = number(status, &["in_use_by_pid"]).map_or(String::new(), |pid| format!(", in use by process {pid}"));
    format!("  not mounted{who}; generation {generation}")
}

fn directories(status: &Value) -> Vec<String> {
    let geometry = match (number(status, &["geometry", "data"]), number(status, &["geometry", "parity"])) {
        (Some(data), Some(parity)) => format!(", {data}+{parity} shards"),
        _ => String::new(),
    };
    let synced = number(status, &["min_ack"]).map_or(String::new(), |n| format!(", {n} synced before fsync answers"));
    let geometry = format!("{geometry}{synced}");
    let rows: Vec<&Value> = status["directories"].as_array().into_iter().flatten().collect();
    let width = rows.iter().map(|row| printable(text(row, "path")).chars().count()).max().unwrap_or(0).clamp(9, 60);
    let reasons: Vec<String> = strings(&status["health_reason"]).collect();
    let live = rows.iter().any(|row| row["total_bytes"].is_u64());
    let mut lines = vec![format!("Directories ({}{geometry})", rows.len())];
    if live {
        lines.push(format!(
            "  {:<width$}  {:<9}  {:>10}  {:>10}  {:>7}  {:>5}",
            "", "state", "free", "of", "errors", "late"
        ));
    }
    for row in rows {
        let (path, state) = (printable(text(row, "path")), text(row, "state"));
        let reason = printable(text(row, "reason"));
        let mut line = format!("  {path:<width$}  {state:<9}");
        if live && state != "missing" {
            let figure = |key| number(row, &[key]).unwrap_or_default();
            let errors = figure("read_errors") + figure("write_errors") + figure("rejected_shards");
            line += &format!(
                "  {:>10}  {:>10}  {errors:>7}  {:>5}",
                bytes(figure("free_bytes")),
                bytes(figure("total_bytes")),
                figure("late_reads")
            );
        }
        // Said above, if it is why the volume is not healthy.
        if !reason.is_empty() && !reasons.iter().any(|said| said.contains(&path) && said.contains(&reason)) {
            line += &format!("  {reason}");
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn space(status: &Value) -> Vec<String> {
    let figure = |key| number(status, &["space", key]);
    let Some(logical) = figure("logical_bytes") else { return Vec::new() };
    let part = |key| bytes(figure(key).unwrap_or_default());
    let files = plural(figure("files").unwrap_or_default(), "inode", "inodes");
    let mut lines = vec![
        "Space".to_owned(),
        format!("  content     {:>10}  in {files}", bytes(logical)),
        format!("  stored once {:>10}  {}", part("unique_bytes"), dedup(status)),
        format!("  on disk     {:>10}  {}", part("raw_bytes"), redundancy(status)),
        format!(
            "  still fits  {:>10}  {} of {} free on disk",
            part("usable_free_bytes"),
            part("raw_free_bytes"),
            part("raw_total_bytes")
        ),
    ];
    if figure("reclaimable_bytes").unwrap_or_default() > 0 {
        lines.push(format!("  deleted     {:>10}  kept on disk until space is reclaimed", part("reclaimable_bytes")));
    }
    if let Some(epoch) = number(status, &["salt", "epoch"]).filter(|epoch| *epoch > 0) {
        let (left, drained) = (number(status, &["salt", "left_bytes"]), number(status, &["salt", "drained"]));
        let drained = plural(drained.unwrap_or_default(), "epoch", "epochs");
        lines.push(format!(
            "  old salts   {:>10}  of epochs before {epoch}; {drained} drained",
            bytes(left.unwrap_or_default())
        ));
    }
    if let Some(unsynced) = number(status, &["unsynced_bytes"]).filter(|unsynced| *unsynced > 0) {
        lines.push(format!("  in memory   {:>10}  written and not durable yet", bytes(unsynced)));
    }
    lines
}

fn dedup(status: &Value) -> String {
    let ratio = status["dedup"]["ratio"].as_f64().unwrap_or(1.0);
    let hits = number(status, &["dedup", "hits"]).unwrap_or_default();
    let seen = if hits > 0 { format!(", {} since it was mounted", plural(hits, "hit", "hits")) } else { String::new() };
    format!("deduplication {ratio:.2}x{seen}")
}

fn redundancy(status: &Value) -> String {
    status["redundancy"]["factor"].as_f64().map_or(String::new(), |factor| format!("redundancy {factor:.2}x"))
}

fn damage(status: &Value) -> Vec<String> {
    let figure = |key| number(status, &["damage", key]).unwrap_or_default();
    let (bad, repaired, lost) = (figure("shards_bad"), figure("shards_repaired"), figure("blocks_lost"));
    if bad == 0 && lost == 0 {
        return Vec::new();
    }
    let mut lines = vec![
        String::new(),
        "Damage met since it was mounted".to_owned(),
        format!("  {} missing or wrong, {} written anew", plural(bad, "shard", "shards"), grouped(repaired)),
    ];
    if lost > 0 {
        lines.push(format!("  {} could not be read", plural(lost, "block", "blocks")));
    }
    const RECENT: usize = 8;
    let recent = status["damage"]["recent"].as_array().map(Vec::as_slice).unwrap_or_default();
    for item in recent.iter().rev().take(RECENT) {
        let path = printable(text(item, "path"));
        let path = if path.is_empty() { "(no file known)".to_owned() } else { path };
        lines.push(format!("  {path}: {}", printable(text(item, "what"))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mounted() -> Value {
        json!({
            "volume": "0123456789abcdef0123456789abcdef", "label": "photos", "generation": 7, "health": "degraded",
            "health_reason": ["directory /b is missing: gone"], "geometry": { "data": 1, "parity": 1 },
            "tolerated_losses": 0, "min_ack": 1, "mounted": true, "mountpoint": "/mnt", "pid": 42, "uptime_s": 61,
            "directories": [
                { "path": "/a", "state": "healthy", "reason": "", "total_bytes": 2048, "free_bytes": 1024,
                  "read_errors": 1, "write_errors": 2, "rejected_shards": 3, "late_reads": 4 },
                { "path": "/b\u{1b}[2J", "state": "missing", "reason": "gone", "total_bytes": 0 },
            ],
            "space": { "logical_bytes": 4096, "unique_bytes": 2048, "raw_bytes": 4096, "usable_free_bytes": 512,
                       "raw_free_bytes": 1024, "raw_total_bytes": 2048, "files": 3, "reclaimable_bytes": 0 },
            "dedup": { "ratio": 2.0, "hits": 1 }, "redundancy": { "factor": 2.0 },
            "damage": { "shards_bad": 2, "shards_repaired": 1, "blocks_lost": 0,
                        "recent": [{ "path": "/x", "block": "ab", "what": "bad", "recoverable": true }] },
        })
    }

    #[test]
    fn a_screen_begins_with_the_health_and_fits() {
        let screen = screen(&mounted());
        assert!(screen.starts_with("DEGRADED: volume \"photos\" 0123"), "{screen}");
        assert!(screen.contains("no further directory may be lost"));
        assert!(screen.contains("Directories (2, 1+1 shards, 1 synced before fsync answers)"), "{screen}");
        assert!(screen.contains("  ! directory /b is missing: gone"));
        assert!(screen.contains("mounted at /mnt for 1:01 by process 42; generation 7"));
        assert!(screen.contains("deduplication 2.00x, 1 hit since"));
        assert!(screen.contains("/x: bad"));
        assert!(!screen.contains('\u{1b}'));
        assert!(screen.lines().count() <= 24, "{screen}");
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let bare = json!({
            "volume": "01", "label": "", "health": "healthy", "generation": 1, "mounted": false,
            "directories": [{ "path": "/a", "state": "healthy", "reason": "" }], "tolerated_losses": 1,
        });
        let screen = screen(&bare);
        assert_eq!(
            screen,
            "HEALTHY: volume 01; one more directory may be lost\n  not mounted; generation 1\n\nDirectories (1)\n  /a         healthy"
        );
        assert!(line(&mounted()).contains("photos"));
        assert!(!super::screen(&json!({})).is_empty());
    }
}
