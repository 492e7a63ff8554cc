//! The `brine` program: a table of commands, and one place where failures are shown.

mod args;
mod asked;
mod check;
mod doctor;
mod exec;
mod follow;
mod format;
mod help;
mod image;
mod key;
mod mount;
mod output;
mod prompt;
mod quota;
mod rebuild;
mod retention;
mod secret;
mod show;
mod snapshot;
mod space;
mod status;
mod sync;
mod target;
mod umount;
mod versions;

use std::ffi::OsString;

use lexopt::Parser;

use crate::config::distance;
use crate::exit_code::{ExitCode, Failure};

/// One command.
struct Command {
    name: &'static str,
    /// Its arguments, as help shows them.
    arguments: &'static str,
    /// One line.
    summary: &'static str,
    /// Options and what else to know.
    details: &'static str,
    run: fn(Parser) -> Result<ExitCode, Failure>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "format",
        arguments: "DIR... [options]",
        summary: "make a volume over empty directories",
        details: help::FORMAT,
        run: format::run,
    },
    Command {
        name: "mount",
        arguments: "SOURCE MOUNTPOINT [-o OPTIONS] [-f]",
        summary: "mount a volume; SOURCE is any of its directories",
        details: help::MOUNT,
        run: mount::run,
    },
    Command {
        name: "umount",
        arguments: "MOUNTPOINT [--lazy]",
        summary: "unmount; returns when everything is durable and the daemon has ended",
        details: help::UMOUNT,
        run: umount::run,
    },
    Command {
        name: "status",
        arguments: "[--json] [SOURCE|MOUNTPOINT]",
        summary: "health, directories, space and damage; without argument of all mounted volumes",
        details: help::STATUS,
        run: status::run,
    },
    Command {
        name: "check",
        arguments: "[--json] [PATH] SOURCE|MOUNTPOINT",
        summary: "read and verify everything, or what is at and below PATH",
        details: help::CHECK,
        run: check::run_check,
    },
    Command {
        name: "heal",
        arguments: "[--json] SOURCE|MOUNTPOINT",
        summary: "rebuild what is missing or wrong in the directories",
        details: help::HEAL,
        run: check::run_heal,
    },
    Command {
        name: "replace",
        arguments: "[--json] OLD_DIR NEW_DIR SOURCE|MOUNTPOINT",
        summary: "give a lost directory's place to an empty one, and fill it",
        details: help::REPLACE,
        run: check::run_replace,
    },
    Command {
        name: "key",
        arguments: "list|add|remove [SLOT] [--json] SOURCE",
        summary: "the secrets that open the volume: list them, add one, take one away",
        details: help::KEY,
        run: key::run,
    },
    Command {
        name: "rebuild",
        arguments: "SOURCE",
        summary: "make the metadata database anew from the backing directories",
        details: help::REBUILD,
        run: rebuild::run,
    },
    Command {
        name: "follow",
        arguments: "--state-dir DIR SOURCE",
        summary: "keep a second metadata database, which can take over",
        details: help::FOLLOW,
        run: follow::run,
    },
    Command {
        name: "gc",
        arguments: "[--dry-run] [--json] SOURCE|MOUNTPOINT",
        summary: "give back the space of what nothing refers to, now",
        details: help::GC,
        run: space::run_gc,
    },
    Command {
        name: "retention",
        arguments: "show|set|clear [rules] [--json] [DIRECTORY] SOURCE|MOUNTPOINT",
        summary: "which former states are kept, and for how long",
        details: help::RETENTION,
        run: retention::run,
    },
    Command {
        name: "usage",
        arguments: "[--json] [PATH] SOURCE|MOUNTPOINT",
        summary: "what takes the space: files, history, redundancy, and what can be given back",
        details: help::USAGE,
        run: space::run_usage,
    },
    Command {
        name: "quota",
        arguments: "set|show|list|remove DIR [--bytes N] [--inodes N] [--json]",
        summary: "how much a directory may hold with everything below it",
        details: help::QUOTA,
        run: quota::run,
    },
    Command {
        name: "salt",
        arguments: "show|rotate|reseal [--json] SOURCE|MOUNTPOINT",
        summary: "salt epochs: which blocks are of, a new one, sealing old ones anew",
        details: help::SALT,
        run: space::run_salt,
    },
    Command {
        name: "sync",
        arguments: "MOUNTPOINT",
        summary: "make everything written so far durable",
        details: help::SYNC,
        run: sync::run,
    },
    Command {
        name: "snapshot",
        arguments: "create|list|delete|rename|diff [NAME...] MOUNTPOINT [--json]",
        summary: "name the present state, which is then kept; list, delete, rename, compare",
        details: help::SNAPSHOT,
        run: snapshot::run,
    },
    Command {
        name: "log",
        arguments: "[--deleted] PATH [--json]",
        summary: "the states of a file or directory; what was deleted in a directory",
        details: help::LOG,
        run: versions::run_log,
    },
    Command {
        name: "cat",
        arguments: "PATH@V",
        summary: "a file as it was",
        details: help::STATES,
        run: versions::run_cat,
    },
    Command {
        name: "diff",
        arguments: "PATH@V [V] [--json]",
        summary: "what changed since a state, or between two",
        details: help::STATES,
        run: versions::run_diff,
    },
    Command {
        name: "write",
        arguments: "[--if-version V] [--json] PATH",
        summary: "give a file what standard input holds, as one new version, if nobody changed it meanwhile",
        details: help::WRITE,
        run: versions::run_write,
    },
    Command {
        name: "restore",
        arguments: "PATH[@V] [--to NEW_PATH|--if-version V] [--json]",
        summary: "bring a file or directory back as it was",
        details: help::RESTORE,
        run: versions::run_restore,
    },
    Command {
        name: "rewind",
        arguments: "DIR|MOUNTPOINT --to TIME|SNAPSHOT [--dry-run] [--json]",
        summary: "make a directory, or the whole volume, what it was",
        details: help::REWIND,
        run: versions::run_rewind,
    },
    Command {
        name: "exec",
        arguments: "policy|ps|kill|log ...",
        summary: "what functions may do, and their runs",
        details: help::EXEC,
        run: exec::run,
    },
    Command {
        name: "image",
        arguments: "import SOURCE DIRECTORY [--json]",
        summary: "a container image as a plain directory",
        details: help::IMAGE,
        run: image::run,
    },
    Command {
        name: "doctor",
        arguments: "[--json]",
        summary: "look whether this machine can mount brine volumes",
        details: help::DOCTOR,
        run: doctor::run,
    },
    Command { name: "help", arguments: "[COMMAND]", summary: "this text, or a command's", details: "", run: help::run },
    Command { name: "version", arguments: "[--json]", summary: "the version", details: "", run: help::version },
];

/// The whole program.
pub fn main() -> std::process::ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let mount8 = arguments.iter().any(|argument| argument == "--mount8");
    let code = match dispatch(&arguments[1.min(arguments.len())..]) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(&failure, json);
            failure.code()
        }
    };
    std::process::ExitCode::from(if mount8 { code.for_mount8() } else { code.number() })
}

fn dispatch(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let Some((first, rest)) = arguments.split_first() else {
        help::overview_to(&mut std::io::stderr());
        return Ok(ExitCode::Usage);
    };
    let name = first.to_string_lossy();
    let name = match name.as_ref() {
        "--help" | "-h" => "help",
        "--version" | "-V" => "version",
        // Started by `mount`, with what they need on standard input.
        "serve" => return Ok(crate::mount::serve_command()),
        "supervise" => return Ok(crate::mount::supervise_command()),
        other => other,
    };
    let Some(command) = find(name) else {
        // How mount.fuse3 runs programs for the type fuse.NAME.
        if name.contains('/') && rest.len() >= 2 {
            return mount::run(Parser::from_args(arguments));
        }
        return Err(Failure::usage(format!("there is no command \"{name}\"{}", suggestion(name))));
    };
    // Up to "--", after which everything is a name.
    let options = rest.iter().take_while(|argument| *argument != "--");
    if name != "help" && options.into_iter().any(|argument| argument == "--help" || argument == "-h") {
        help::of(command);
        return Ok(ExitCode::Success);
    }
    (command.run)(Parser::from_args(rest)).map_err(|failure| {
        if failure.code() == ExitCode::Usage && !failure.message().contains("`brine help") {
            return Failure::usage(format!("{name}: {} (`brine help {name}`)", failure.message()));
        }
        failure
    })
}

fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

fn suggestion(name: &str) -> String {
    let known = COMMANDS.iter().map(|command| (distance(name, command.name), command.name)).min();
    match known {
        Some((far, near)) if far <= 2 => format!("; did you mean `brine {near}`?"),
        _ => "; `brine help` lists them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dispatch_words(words: &[&str]) -> Result<ExitCode, Failure> {
        dispatch(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn commands_are_unique_and_documented() {
        let manual = include_str!("../../packaging/man/brine.1");
        let contract = include_str!("../../docs/CLI.md");
        for (index, command) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[index + 1..].iter().all(|other| other.name != command.name));
            assert!(manual.contains(&format!("brine {}", command.name)), "brine.1 lacks {}", command.name);
            assert!(contract.contains(&format!("`brine {}", command.name)), "CLI.md lacks {}", command.name);
        }
    }

    #[test]
    fn every_mount_option_is_documented() {
        let help = help::MOUNT;
        let manual = include_str!("../../packaging/man/mount.brine.8");
        for name in ["passfile", "keyfile", "recoveryfile", "state", "ro", "allow_other", "noatime", "hedge", "min_ack"]
        {
            assert!(help.contains(name) && manual.contains(name), "{name}");
        }
        for name in [
            "cache",
            "copies",
            "epoch",
            "domain",
            "compress",
            "use_member",
            "take_over",
            "at=",
            "threads",
            "log",
            "nosupervise",
        ] {
            assert!(help.contains(name) && manual.contains(name), "{name}");
        }
    }

    #[test]
    fn the_contract_lists_every_mount_option() {
        let contract = include_str!("../../docs/CLI.md");
        let section = contract.split("## Mount options").nth(1).and_then(|rest| rest.split("\n## ").next());
        let section = section.expect("a section of mount options");
        for name in crate::config::names() {
            let listed = [format!("`{name}`"), format!("`{name}=")].iter().any(|form| section.contains(form.as_str()));
            assert!(listed, "docs/CLI.md lacks mount option {name}");
        }
    }

    #[test]
    fn wrong_commands_are_refused_with_a_next_step() {
        let failure = dispatch_words(&["statsu"]).unwrap_err();
        assert_eq!(failure.code(), ExitCode::Usage);
        assert!(failure.message().ends_with("did you mean `brine status`?"));
        assert!(dispatch_words(&["frobnicate"]).unwrap_err().message().contains("`brine help`"));
        let failure = dispatch_words(&["umount", "--frobnicate"]).unwrap_err();
        assert!(failure.message().contains("--frobnicate") && failure.message().contains("`brine help umount`"));
        for command in ["format", "mount", "umount", "check", "heal", "replace", "rebuild", "follow", "sync"] {
            let failure = dispatch_words(&[command]).unwrap_err();
            assert_eq!(failure.code(), ExitCode::Usage, "{command}: {failure}");
        }
    }
}
