//! Help, as text. The manual pages in packaging/man say the same at more length.

use std::io::Write;

use lexopt::{Arg, Parser};
use serde_json::json;

use super::{COMMANDS, Command, args, find, output, suggestion};
use crate::exit_code::{ExitCode, Failure};

const SECRETS: &str = "
A secret is taken from a file, or asked for on the terminal if none is named:
  --passphrase-file FILE   one line (FILE - is standard input)
  --key-file FILE          32 bytes to 1 MiB, anything
  --recovery-key-file FILE what `brine format` showed once";

pub(super) const FORMAT: &str = "\
DIRs are empty directories, one a disk if you can. Their content will be sealed: unreadable without the secret. Without
--passphrase-file or --key-file a passphrase is asked for twice. A recovery key is shown once.

  --data K --parity M    K data shards and M parity shards: any M directories may be lost. Default by the number of
                         directories: 1+0, 1+1, 2+1, 2+2, 3+2, and 4+2 from six on
  --passphrase-file FILE one line (FILE - is standard input)
  --key-file FILE        32 bytes to 1 MiB, anything: `head -c 32 /dev/urandom > FILE`
  --state-dir DIR        where the metadata database lies: on a local disk. Default /var/lib/brine/ID, for ordinary
                         users ~/.local/state/brine/ID. Back it up
  --label TEXT           a name for people, at most 64 bytes
  --copies R             store equal content up to R times (default 1)
  --domain volume|owner  who shares equal content: all, or each owner for himself (default volume)
  --compress none|lz4    default none: compressed lengths tell something about content
  --chunk-size SIZE      4K to 1M, a power of two (default 128K)
  --no-history           keep no former states: no snapshots, and what is deleted is gone
  --kdf default|fast     what guessing a passphrase costs; fast is for tests only
  --json                 print the result as JSON";

pub(super) const MOUNT: &str = "\
Returns when the mount works. A daemon serves it from then on, and a small supervisor starts the daemon again should it
die. SOURCE is any backing directory, or several separated by colons.

  -o OPTIONS  separated by commas, see below
  -f          stay in the foreground, without supervisor; Ctrl-C unmounts
  -r          the same as -o ro
  -v          say what was done
  --take-over, --accept-rollback  the same as -o take_over, -o accept_rollback
  --mount8    exit codes as mount(8) wants them

Options:
  passfile=FILE keyfile=FILE recoveryfile=FILE
                        where the secret is; asked for on the terminal if none is named
  state=DIR             the state directory, if it is not where it was last
  ro rw                 read-only; read-write (the default)
  allow_other           let other users in; permissions are checked by the kernel. Implies domain=owner unless given
  relatime noatime strictatime nodiratime
                        when accesses are noted: as Linux does (default), never, at each read that reaches the daemon;
                        not of directories
  idle=TIME             unmount when nobody has used it for this long, such as 10m
  remount               change ro, rw, suid, dev, exec, atime and their opposites of a volume mounted at MOUNTPOINT
  hedge=adaptive|all|off  ask parity when a disk is late (default), from the start, or only on errors
  min_ack=N             acknowledge only what is durable in N directories, even if some are missing
  cache=SIZE            memory for decoded blocks (default 256M)
  link_max=N            most names of a file and subdirectories of a directory (default 2^31)
  copies=R epoch=N domain=volume|owner compress=none|lz4
                        for new content, in place of what format was told
  use_member=PATH       of two copies of one directory, the true one
  take_over             take the volume from a writer that is stuck, or on the other side of a broken network; that one
                        stops writing when it notices. With state=DIR if it runs on this host
  accept_rollback       go on from an older state where acknowledged generations are gone, or two writers went apart;
                        what came after it is given up. A mount that needs this says which generations
  at=SNAPSHOT|TIME      the volume as it was, read-only: a snapshot's name, 2026-01-31T23:59 (UTC), @SECONDS, or 2h for
                        that long before now. One mount of a volume at a time, this one included
  threads=N             FUSE event threads (default 1)
  launcher=DIR          put the program that starts functions there: see docs/CLI.md
  log=FILE              the daemon's log (default daemon.log in the state directory)
  nosupervise           no supervisor
  suid dev noexec sync dirsync  for the kernel; set-uid programs and devices are off unless asked for
What mount(8) and fstab pass (defaults, nofail, noauto, _netdev, user, x-..., comment=) is taken and ignored.";

pub(super) const UMOUNT: &str = "\
Everything is durable when it returns. If the mount is in use, says by whom.

  -l, --lazy  take it out of sight at once; the daemon ends when nobody uses it any more";

pub(super) const STATUS: &str = "\
Of a mounted volume all figures; of one that is not mounted what can be known without a key, or all of them if a secret
file is given. Exit code 0 if healthy, 7 if not.

  --json             fields are listed in docs/CLI.md
  --passphrase-file FILE, --key-file FILE, --recovery-key-file FILE
                     open a volume that is not mounted, to see its figures
  --state-dir DIR    where its metadata database lies, if not where it was last";

pub(super) const CHECK: &str = "\
Every shard is read and verified, every block decrypted, every table compared; what is damaged is listed by path. Exit
code 0 if nothing is, 8 otherwise.

  PATH, --path PATH  only what is at and below this path, from the root of the volume or of the file system
  --repair           write bad shards anew
  --json             the report as JSON on standard output, progress as JSON lines on standard error
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const HEAL: &str = "\
Reads every stripe and writes shards that are missing or wrong anew, onto the directories that are present. What it says
was written anew has been read back. Exit code 0 if every stripe is whole, 8 otherwise.

  --json             the report as JSON on standard output, progress as JSON lines on standard error
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const REPLACE: &str = "\
OLD_DIR is a directory of the volume that is missing or failed, by the path it had. NEW_DIR is empty. It is filled as by
`brine heal`; the volume can be used meanwhile.

  --json             the report as JSON on standard output, progress as JSON lines on standard error
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const KEY: &str = "\
list                 which key slots there are, and what opens each; needs no secret
add                  let another secret open the volume, too: a passphrase is asked for twice unless one of these is given
  --new-passphrase-file FILE, --new-key-file FILE
  --new-recovery-key       make a recovery key, and show it once
remove SLOT          let the secret of that slot open it no more; the last one stays

add and remove want a volume that is not mounted, and a secret that opens it. To change a passphrase add the new one, then
remove the slot of the old. Data is not sealed anew: whoever read the volume's key with the old secret, or keeps a copy of
a directory made before, is not shut out.

  --json             as JSON
  --state-dir DIR    if not where it was last";

pub(super) const REBUILD: &str = "\
Makes the metadata database in the state directory anew, from the checkpoints and the commit log in the backing
directories. Of a volume that is not mounted. The database that is there is kept aside. Mounting does the same by itself
where the database is missing, damaged, of another history, or older than what the log goes back to.

  --state-dir DIR    where to make it, if not where it was last
  --accept-rollback  even if the database that is there holds more than the backing directories do
  --json             the result as JSON on standard output, progress as JSON lines on standard error";

pub(super) const FOLLOW: &str = "\
Keeps a second metadata database up to date from the backing directories alone, beside the daemon that has the volume
mounted (on this host or another). Nothing is written to the backing directories. To take over, end it and mount with its
state directory:

  brine mount -o take_over,state=DIR SOURCE MOUNTPOINT

  --state-dir DIR    the second database's own directory; required
  --once             end when everything that is durable now was applied
  --interval SECONDS how long to wait between two looks (default 1)
  --json             each step as a JSON line on standard output";

pub(super) const GC: &str = "\
Space is given back in the background by itself; this does it now and to the end: blocks that no file, former state or
snapshot refers to are freed, segments that are mostly dead rewritten, empty ones deleted. The volume can be used
meanwhile. Exit code 0 if nothing stood in the way, 8 otherwise.

  --dry-run          tell what could be given back, change nothing
  --json             the report as JSON on standard output, progress as JSON lines on standard error
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const RETENTION: &str = "\
A former state is kept while a rule keeps it, or a snapshot, or somebody who reads it. With less than a tenth of the
space free, and beyond the budget, the oldest go first whatever the rules say. The newest state always stays.

DIRECTORY, a path in the volume (or on its mount, then without MOUNTPOINT), has rules of its own for itself and what is
below it, instead of those above it. They keep more than these, and are refused if they would keep less.

  show               the rules; of the volume also those of its directories
  clear              take a directory's rules away: what only they kept goes
  set                what is not named stays as it is. TIME is a number with s, m, h, d, w or y; 0 turns a rule off.
  --all TIME         keep every state for so long (10m)
  --minutely TIME    then the last of each minute (1h)
  --hourly TIME      then the last of each hour (1d)
  --daily TIME, --weekly TIME, --monthly TIME
                     then the last of each day, week, 30 days (0)
  --last N           the newest N states, whatever their age (0)
  --budget PERCENT   of the usable space that history may take (20); the volume's only, as are snapshots
  --snapshots hourly|daily|weekly|monthly=N
                     make a snapshot every so often, keep the last N; N 0 ends that
  --default          begin with the defaults, given in brackets above
  --json             the rules as JSON
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const QUOTA: &str = "\
Writers within are told EDQUOT when DIR and all below it hold as much as they may, root too; `df DIR` shows the quota. A
file counts as much as `du` says of it. What is in DIR already is counted first. Moves and links into DIR and out of it
are refused as between filesystems, so that programs copy. Quotas within quotas count in both.

  set DIR      --bytes N, --inodes N: the most it may hold; `none` lifts a limit, the one not named stays
  show DIR     the quotas that DIR counts in, innermost first
  list DIR     all of the volume; any path on it, such as the mountpoint
  remove DIR   from now on DIR counts only in what is around it
  --json       fields are listed in docs/CLI.md";

pub(super) const SALT: &str = "\
Equal content is stored once within a salt epoch. In a new epoch nothing that is written shares a block, or shows by its
block's name that it is equal, with what was written before. Old blocks stay readable; they go as files are rewritten.

  show               the epoch of new blocks, and blocks in use by epoch
  rotate             begin a new epoch
  reseal             seal what files hold anew under the present epoch; they can be used meanwhile, former states keep
                     the old blocks
  --json             fields are listed in docs/CLI.md; progress as JSON lines on standard error
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const USAGE: &str = "\
Of each entry of a directory (the root, or PATH): sizes of its files, what they take sealed, and what removing it would
give back, in that order. Of the volume: history, snapshots, redundancy, what can be given back.

  PATH               from the root of the volume or of the file system
  --json             fields are listed in docs/CLI.md
  --state-dir DIR    of a volume that is not mounted, if not where it was last";

pub(super) const SYNC: &str = "Returns when everything written so far, by anybody, would survive a power cut.";

pub(super) const SNAPSHOT: &str = "\
A snapshot costs the same whatever the volume holds, and is kept until it is deleted. Its tree is MOUNTPOINT/.brine/
snapshots/NAME, read-only, for every program; that of a time is MOUNTPOINT/.brine/at/TIME.

  create NAME MOUNTPOINT           name the present state
  list MOUNTPOINT                  times and names
  delete NAME MOUNTPOINT           give a name up; what only it kept may be forgotten
  rename NAME NEW_NAME MOUNTPOINT  a name holds no slash and does not read as a version or a time
  diff OLD NEW MOUNTPOINT          names that differ between two
  --json                           the answer as JSON; fields are listed in docs/CLI.md";

pub(super) const LOG: &str = "\
The newest first: time, version (INODE:VERSION of what had the name before), size, and what changed.

  --deleted  names that were deleted in a directory, with their last state; `brine restore PATH` brings one back
  --json     the answer as JSON; fields are listed in docs/CLI.md";

pub(super) const STATES: &str = "\
V is a version as `brine log` shows it (7, or 12:7), a time (2026-01-31, 2026-01-31T23:59:59Z, 10m ago as 10m; without a
zone UTC), or the name of a snapshot. `brine diff` shows files with diff(1) and directories as a list of names; without a
second V it compares with the present.

  --json     the answer as JSON (`brine diff`)";

pub(super) const WRITE: &str = "\
The whole of standard input becomes the content of the file PATH, in one step, as one version that is kept and durable
when this returns. Owner and mode stay. Until then the new content lies in a file beside it.

  --if-version V  only if the file is of this version, as `brine log` and this command tell it; else nothing is changed
                  and the exit code is 15: read the file again, decide anew, try again
  --json          the answer as JSON";

pub(super) const RESTORE: &str = "\
The state becomes a new version of the file, with the content, owner, mode, times and attributes it had; blocks are
shared. What is deleted is made anew, a directory with everything in it; without V it is the state before it was deleted.

  V              a version as `brine log` shows it, a time, or the name of a snapshot
  --to NEW_PATH  bring it back under another name, which must be free
  --if-version V only over a file of this version; else nothing is changed and the exit code is 15
  --json         the answer as JSON";

pub(super) const REWIND: &str = "\
Everything below the directory becomes what it was: in one step, sharing blocks. What did not change is not touched. The
state before is kept as a snapshot, whose name is told: rewinding to it undoes it.

  --to X     a time or the name of a snapshot
  --dry-run  only tell what would be done
  --json     the answer as JSON";
pub(super) const EXEC: &str = "\
A function is an executable file in exec/ of a volume. Running it runs it in a sandbox of its own, which sees of the
volume the program itself, its standard streams, files that whole arguments name and the caller may read, and what its
policy grants. Root and who mounted the volume see all runs, others their own.

  brine exec policy FUNCTION [options]   show or change what it may do; its owner and root only
    --read PATH, --write PATH   paths that exist for every run; relative ones from the function's directory
    --stage on|off     what is written to --write paths appears in one step when the program ends with 0, or not at all
    --memory N, --scratch N, --cpus N, --pids N, --timeout T, --cpu-time T, --concurrency N   limits
               (memory, unless given: a 96th of the machine's, 128M to 1G)
    --net none|host    network               --env NAME     pass this variable on
    --root DIR|host    root directory        --args none|read   whether arguments grant reading
    --call FUNCTION    a function that runs may invoke
    --open PATH        files below it can be opened by asking for them (docs/CLI.md), and are not shown
    --uid UID          whom runs of root are run as
    --best-effort on|off   start even where a limit cannot be enforced
    --no-read, --no-write, --no-env, --no-call, --no-open   empty the list      --reset  no policy
    --resume           the program was changed by another user and is fine
  brine exec run [--result-fd N] FUNCTION [ARG...]   as running the file, without the kernel's exec
  brine exec ps [--json]              runs that go on
  brine exec kill RUN                 end one; the beginning of its name is enough
  brine exec publish RUN              publish staged outputs that met somebody else's changes, over these
  brine exec log [--json] [-n N] [RUN]   records of runs, the newest first

  --at PATH   on which volume, if not that of the working directory or the only one";

pub(super) const IMAGE: &str = "\
SOURCE is an archive of a root filesystem (.tar, .tar.gz), an OCI layout as a directory or archive, or what `docker save`
writes, with one image for this machine. DIRECTORY is made, on a brine volume or anywhere, when all of it is there.
Device nodes and set-id bits are left out. Use it with `brine exec policy --root`.

  --json  the result as JSON";

pub(super) const DOCTOR: &str = "\
Looks at the kernel, /dev/fuse, fusermount3 and limits, and names the step for what is missing.

  --json  the findings as JSON";

/// All commands.
pub(super) fn overview_to(out: &mut impl Write) {
    let mut text = String::from(
        "brine: a POSIX filesystem over several directories: encrypted, deduplicated, readable with any M of them lost\n\n",
    );
    for command in COMMANDS {
        text += &format!("  brine {:<9} {}\n", command.name, command.summary);
    }
    text += "\n`brine help COMMAND` says more. Exit codes and JSON: docs/CLI.md.";
    let _ = writeln!(out, "{text}");
}

/// One command.
pub(super) fn of(command: &Command) {
    output::say(&format!("brine {} {}\n  {}", command.name, command.arguments, command.summary));
    if !command.details.is_empty() {
        output::say(&format!("\n{}", command.details));
    }
    if matches!(command.name, "check" | "heal" | "replace" | "key" | "gc" | "usage" | "retention" | "salt") {
        output::say(SECRETS);
    }
}

/// `brine help`.
pub(super) fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut names = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => {}
            other => args::positional(other, &mut names)?,
        }
    }
    for name in &names {
        let name = name.to_string_lossy();
        match find(&name) {
            Some(command) => of(command),
            None => return Err(Failure::usage(format!("there is no command \"{name}\"{}", suggestion(&name)))),
        }
    }
    if names.is_empty() {
        overview_to(&mut std::io::stdout());
    }
    Ok(ExitCode::Success)
}

/// `brine version`.
pub(super) fn version(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut as_json = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => as_json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    if as_json {
        output::say_json(&json!({ "version": version }));
    } else {
        output::say(&format!("brine {version}"));
    }
    Ok(ExitCode::Success)
}
