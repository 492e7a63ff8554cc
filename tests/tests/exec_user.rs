//! Everything by an ordinary user: he formats, mounts by the set-uid fusermount3, and runs functions in user namespaces.
//!
//! On machines where only root may open /dev/fuse he could not; so each test has mount and process namespaces of its own,
//! in which everybody may, and in which he has a name. Whatever a test leaves ends with them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use brine_tests::command::Finished;
use brine_tests::environment::{brine, require_fuse, temp_dir};
use brine_tests::{program, run};

const USER: u32 = 61_234;

/// By root, in the namespaces of the test.
const WORLD: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$R/world"
cd "$R/world"
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
(cat /etc/passwd; echo "brine-user:x:$U:$U::$R/home:/bin/sh") > passwd
mount --bind passwd /etc/passwd
echo user_allow_other > fuse.conf
mount --bind fuse.conf /etc/fuse.conf
touch brine
mount --bind "$BRINE" brine
set +e
"#;

/// Before every script, root's and the user's.
const TOOLS: &str = r#"
as() { local uid=$1; shift; setpriv --reuid $uid --regid $uid --clear-groups env -i "PATH=$R/world:$PATH" "HOME=$R/home" "R=$R" "U=$U" "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
is() { [ "$1" = "$2" ] || fail "$3: it is <$1> and not <$2>"; }
has() { case $1 in *"$2"*) ;; *) fail "$3: no <$2> in <$1>" ;; esac; }
"#;

/// By the user: a volume, mounted.
const MOUNTED: &str = r#"
cd ~ && mkdir d0 d1 mnt && head -c 64 /dev/urandom > key && chmod 600 key
brine format --data 1 --parity 1 --key-file key --kdf fast d0 d1 > format.log 2>&1 || fail "$(cat format.log)"
brine mount d0 mnt -o "keyfile=$HOME/key${OPTIONS:-}" || fail mount
function_of() { { echo '#!/bin/sh'; cat; } > mnt/exec/$1; chmod 755 mnt/exec/$1; [ $# = 1 ] || brine exec policy mnt/exec/"$@" || fail policy; }
cause() { brine exec log -n 1 --at mnt | head -1; }
"#;

struct World(PathBuf);

impl World {
    fn new(name: &str) -> Self {
        require_fuse();
        let root = temp_dir(name);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::create_dir(root.join("world")).expect("mkdir");
        let world = Self(root);
        world.home();
        world
    }

    fn home(&self) {
        let home = self.0.join("home");
        fs::create_dir(&home).expect("mkdir");
        chown(home, Some(USER), Some(USER)).expect("chown");
    }

    /// Have root run a script there.
    fn run(&self, script: &str) -> Finished {
        let mut command = Command::new(program("unshare"));
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"]);
        command.arg(format!("{WORLD}{TOOLS}{script}"));
        run(command.env("R", &self.0).env("U", USER.to_string()).env("BRINE", brine()))
    }

    /// Write `$R/script`: the user's, with a volume of his.
    fn put(&self, script: &str) {
        fs::write(self.0.join("script"), format!("{TOOLS}{MOUNTED}{script}")).expect("write");
    }

    /// Have the user run one.
    fn run_as_user(&self, script: &str) -> Finished {
        self.put(script);
        self.run("as $U bash \"$R/script\"")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn functions_of_an_ordinary_user_run_in_sandboxes() {
    let world = World::new("user-functions");
    // The canary: what a script asserts can fail.
    world.run("as $U false || fail canary").expect_refusal().says(&["FAILED: canary"]);
    world.run_as_user("is 1 2 canary").expect_refusal().says(&["it is <1> and not <2>"]);
    fs::remove_dir_all(world.0.join("home")).expect("remove");
    world.home();
    let script = r#"
# What this machine cannot hold to is not run without a word.
function_of f <<'END'
id -u; id -g; grep CapEff /proc/self/status | tr -d '\t'
cat; cat "$1"; ls "$2" /etc/shadow 2>&1 | grep -c 'No such file'; exit 7
END
if [ "$(brine status --json mnt | grep -c '"unenforceable": \[\]')" = 0 ]; then
    said=$(mnt/exec/f 2>&1); is $? 126 "a limit that is not enforced"
    has "$said" "cannot enforce" "a limit that is not enforced"
    has "$(cause)" refused "its record"
    has "$(brine doctor)" "no control group can be made here" doctor
fi
brine exec policy mnt/exec/f --best-effort on
# Identity, streams, codes; what is not granted is not there.
echo granted > mnt/granted
said=$(echo typed | mnt/exec/f mnt/granted "$HOME/key"); is $? 7 "its code"
is "$(echo $said)" "$U $U CapEff:0000000000000000 typed granted 2" "what it sees"
has "$(cause)" "exited 7" "its record"
said=$(echo typed | brine exec run mnt/exec/f mnt/granted "$HOME/key"); is $? 7 "its code, by command: $said"
# It writes where it may, as its user; staged too.
mkdir mnt/dir
function_of w --best-effort on --write ../dir <<'END'
echo plain > ../dir/plain; echo no > ../granted
END
(cd mnt/exec && ./w) 2> /dev/null # below /tmp, which is its own, it may write anything, and nobody sees it
is "$(cat mnt/granted)" granted "what it was not granted"
is "$(stat -c '%u %s' mnt/dir/plain)" "$U 6" "what it wrote"
function_of s --best-effort on --write ../dir --stage on <<'END'
echo staged > ../dir/staged; rm ../dir/plain
END
(cd mnt/exec && ./s) || fail "staged outputs"
is "$(echo $(ls mnt/dir) $(cat mnt/dir/*))" "staged staged" "what was published"
# What ran once is run from memory, also by the callee of another.
function_of where --best-effort on <<'END'
stat -c '%d %u' "$0"
END
first=$(mnt/exec/where); second=$(mnt/exec/where)
[ "$first" != "$second" ] || fail "no copy is run: $first"
is "${first#* } ${second#* }" "$U $U" "the owner of the program"
is "$(mnt/exec/where)" "$second" "the third run"
function_of asks --best-effort on --call where <<'END'
./where
END
(cd mnt/exec; is "$(./asks)" "$second" "a nested run") || exit 1
# Functions invoke functions.
function_of nest --best-effort on --call f <<'END'
echo x | ./f /dev/null /; exit $?
END
(cd mnt/exec && ./nest > /dev/null); is $? 7 "a nested run"
# A bomb is bounded, by resource limits if by nothing else.
function_of bomb --best-effort on --memory 32M --scratch 1M --timeout 20s <<'END'
x=x; while :; do x=$x$x; done
END
mnt/exec/bomb 2> /dev/null && fail "it had all the memory it wanted"
# Runs are listed, killed, and keep the mount busy; umount names their callers.
function_of stay --best-effort on <<'END'
echo ready; sleep 1000
END
mkfifo line; mnt/exec/stay > line & caller=$!
read word < line; is "$word" ready "the run"
has "$(brine exec ps --at mnt)" /exec/stay "its line"
said=$(brine umount mnt 2>&1); is $? 6 "busy"; has "$said" $caller "it is named"
fusermount3 -u mnt 2> /dev/null && fail "it was busy"
kill -9 $caller; wait $caller 2> /dev/null
until [ -z "$(brine exec ps --at mnt | grep stay)" ]; do sleep 0.05; done
# With idle sandboxes it is not, and the daemon goes with the mount; its supervisor too.
mnt/exec/f < /dev/null > /dev/null
records=$(brine exec log -n 1000 --at mnt | wc -l)
fusermount3 -u mnt || fail "idle sandboxes keep the mount"
begun=$(date +%s%3N)
while pgrep -x 'brine|brine-spawner|brine-init' > /dev/null; do sleep 0.02; done
[ $(($(date +%s%3N) - begun)) -lt 2000 ] || fail "the daemon stays: $(($(date +%s%3N) - begun)) ms"
brine mount d0 mnt -o keyfile=$HOME/key || fail "mounting again"
is "$(brine exec log -n 1000 --at mnt | wc -l)" $records "records, that all of it was durable"
brine umount mnt
"#;
    world.run_as_user(script).expect_success();
}

#[test]
fn functions_of_an_ordinary_user_run_again_after_his_daemon_was_killed() {
    let world = World::new("user-killed");
    let script = r#"
function_of f --best-effort on <<'END'
echo ready; read x
END
echo | mnt/exec/f > /dev/null || fail "it runs"
mkfifo line hold; mnt/exec/f < hold > line & exec 9> hold; read word < line
daemon=$(brine status --json mnt | sed -n 's/^ *"pid": \([0-9]*\),$/\1/p')
brine sync mnt
kill -9 $daemon
for attempt in $(seq 200); do
    [ "$(echo | mnt/exec/f 2> /dev/null)" = ready ] && break
    [ $attempt -lt 200 ] || fail "nothing runs"
    sleep 0.1
done
has "$(brine exec log -n 5 --at mnt)" lost "what was running"
[ "$(pgrep -cx brine-spawner)" = 1 ] || fail "sandboxes of the killed daemon stay"
brine umount mnt
"#;
    world.run_as_user(script).expect_success();
}

#[test]
fn a_machine_without_user_namespaces_says_so_and_all_else_works() {
    let world = World::new("user-namespaces");
    let script = r#"
echo content > mnt/file
function_of f --best-effort on <<'END'
echo hello
END
for start in mnt/exec/f "brine exec run mnt/exec/f"; do
    said=$($start 2>&1); is $? 125 "a run by $start"
    has "$said" "no user namespace may be made" "a run by $start"
    has "$said" "brine doctor" "a run by $start"
    has "$(cause)" sandbox "its record"
done
has "$(brine status mnt)" "Nothing can be run in exec/" "brine status"
has "$(brine doctor)" "user namespaces are switched off" "brine doctor"
is "$(cat mnt/file mnt/exec/f | wc -l)" 3 "files"
# Without mounting anew, they run when they can.
touch "$R/home/ask"
until [ -e "$R/home/done" ]; do sleep 0.02; done
is "$(mnt/exec/f)" hello "when there are namespaces"
has "$(brine status mnt)$(cause)" "exited 0" "its record"
case $(brine status mnt) in *"Nothing can be run"*) fail "it still says that nothing can be run" ;; esac
brine umount mnt
"#;
    world.put(script);
    // In a user namespace, in which the number of those below is this one's root's to say.
    let wrapped = r#"
unshare --user --mount sleep 1000 & holder=$!
while [ "$(readlink /proc/$holder/ns/user)" = "$(readlink /proc/self/ns/user)" ]; do sleep 0.02; done
echo 0 0 65536 > /proc/$holder/uid_map; echo 0 0 65536 > /proc/$holder/gid_map
nsenter --target $holder --user --mount bash -c '
    echo 0 > /proc/sys/user/max_user_namespaces || exit 1
    (until [ -e "$R/home/ask" ]; do sleep 0.02; done; echo 1000 > /proc/sys/user/max_user_namespaces; touch "$R/home/done") &
    setpriv --reuid $U --regid $U --clear-groups env -i "PATH=$R/world:$PATH" "HOME=$R/home" "R=$R" "U=$U" bash "$R/script"'
"#;
    world.run(wrapped).expect_success();
}

#[test]
fn others_do_not_run_functions_on_an_ordinary_users_mount() {
    let world = World::new("user-others");
    let script = r#"
as $U env OPTIONS=,allow_other bash -c ". $R/script" || fail "mounting for all"
mnt=$R/home/mnt
said=$(as 61235 $mnt/exec/f 2>&1); is $? 126 "somebody else's run, $said"
has "$said" "only the user who mounted this volume can run functions on it" "somebody else's run"
said=$(as 61235 brine exec run $mnt/exec/f 2>&1) && fail "somebody else's run by command"
has "$said" "only the user who mounted this volume can run functions on it" "somebody else's run by command"
said=$($mnt/exec/f 2>&1); is $? 126 "root's run, $said"
has "$said" "only root's mounts can run functions for other users" "root's run"
has "$(as $U brine exec log -n 1 --at $mnt)" refused "its record"
is "$(as $U $mnt/exec/f)" hello "his own"
is "$(as 61235 cat $mnt/exec/f | wc -l)" 2 "others read it as any file"
as $U brine umount $mnt
"#;
    let make = "function_of f --best-effort on <<'END'\necho hello\nEND\n";
    world.put(make);
    world.run(script).expect_success();
}

/// By root: a group in each hierarchy that limits something is the user's, and the script's processes are in it. In version
/// 2 only a daemon that is alone in its group can limit others below it, so this is for machines with version 1.
const DELEGATED: &str = r#"
groups=
for tree in $(awk '{ for (at = 7; at < NF && $at != "-"; at++); if ($(at + 1) == "cgroup2") print $5; \
    if ($(at + 1) == "cgroup" && $(at + 3) ~ /(^|,)(memory|pids|cpu|cpuacct)(,|$)/) print $5 }' /proc/self/mountinfo); do
    for controller in cpu memory pids; do echo +$controller > $tree/cgroup.subtree_control; done 2> /dev/null
    group=$tree/brine-test-$N
    mkdir $group && groups="$groups $group" || exit 1
    for file in "" /cgroup.procs /cgroup.threads /cgroup.subtree_control /tasks; do
        [ ! -e $group$file ] || chown $U $group$file
    done
    echo $$ > $group/cgroup.procs || exit 1
done
leave() {
    for group in $groups; do
        echo $$ > ${group%/*}/cgroup.procs
        for process in $(cat $group/cgroup.procs); do kill -9 $process; done
        find $group -depth -type d -exec rmdir {} \;
    done
}
trap leave EXIT
"#;

#[test]
fn with_control_groups_of_his_own_an_ordinary_users_limits_are_enforced() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    if !mounts.lines().any(|line| line.contains(" - cgroup ") && line.contains("memory")) {
        eprintln!("skipped: no control groups of version 1");
        return;
    }
    let world = World::new("user-limits");
    world.put(
        r#"
has "$(brine doctor)" "memory, processes and processor by control groups" doctor
function_of f <<'END'
echo hello
END
is "$(mnt/exec/f)" hello "a run, without best effort"
function_of greedy --memory 32M --scratch 1M <<'END'
x=x; while :; do x=$x$x; done
END
said=$(bash -c 'mnt/exec/greedy; exit $?' 2>&1); is $? 137 "a greedy run"
has "$said" "more than its 32 MiB of memory" "a greedy run"
has "$(cause)" memory "its record"
function_of forks --memory 64M --pids 16 <<'END'
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 5 & done; wait
END
mnt/exec/forks 2> /dev/null && fail "it had more processes than it may"
has "$(cause)" pids "its record"
brine umount mnt || fail "umount"
for path in $(awk -F: '{ print $3 }' /proc/self/cgroup); do
    left=$(find /sys/fs/cgroup -path "*$path/brine-*" -type d 2> /dev/null)
    [ "$path" = / ] || is "$left" "" "groups that are left"
done
"#,
    );
    world.run(&format!("N={}\n{DELEGATED}as $U bash \"$R/script\"", std::process::id())).expect_success();
}

#[test]
fn a_launcher_that_cannot_be_run_where_it_would_be_is_put_elsewhere() {
    let world = World::new("user-launcher");
    world.put(
        r#"
function_of f --best-effort on <<'END'
echo hello
END
is "$(mnt/exec/f)" hello "a run; the mount itself is not noexec"
brine umount mnt
mkdir "a blank"
# Neither the mountpoint nor the state directory can be on an interpreter line or hold a program.
said=$(brine mount d0 "a blank" -o "keyfile=$HOME/key" 2>&1) || fail "$said"
has "$said" "mounted noexec; mount with -o launcher=DIR" "mount"
"a blank/exec/f" 2> /dev/null && fail "it ran"
is "$(wc -l < "a blank/exec/f")" 2 "as a file"
brine umount "a blank"
said=$(brine mount d0 "a blank" -o "keyfile=$HOME/key,launcher=$R/place" 2>&1) || fail "$said"
is "$said" "" "mount with launcher="
is "$("a blank/exec/f")" hello "a run"
brine umount "a blank"
is "$(ls "$R/place")" "" "what is left"
"#,
    );
    let script = r#"
mount -t tmpfs -o noexec,uid=$U,mode=755,size=512m tmpfs "$R/home" || exit 1
mkdir "$R/place" && chown $U "$R/place" || exit 1
as $U bash "$R/script""#;
    world.run(script).expect_success();
}
