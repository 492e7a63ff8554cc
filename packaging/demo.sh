#!/usr/bin/env bash
# A volume over six directories, two of which are deleted while it is mounted. Started by `./run demo`.
#
# Everything happens in one temporary directory, which is gone afterwards however this ends. BRINE_DEMO_DIR names
# another place for it than target/, BRINE_DEMO_PROGRAM a brine program other than the one built here.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

# Most of what is copied in, KiB: enough to be real, little enough to be quick.
SOURCES_KIB_MAX=102400

if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' PLAIN=$'\e[0m'; else BOLD='' DIM='' PLAIN=''; fi
explain() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
# Show a command, then run it.
show() {
    printf '%s$ %s%s\n' "$DIM" "$*" "$PLAIN"
    "$@"
}
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

REPOSITORY=$PWD
BRINE=${BRINE_DEMO_PROGRAM:-}
if [ -z "$BRINE" ]; then
    explain "Building the release program (the first time takes some minutes)"
    show cargo build --release --quiet --package brine-fs
    BRINE=$(realpath "${CARGO_TARGET_DIR:-target}")/release/brine
fi
brine() { "$BRINE" "$@"; }

mkdir -p "${BRINE_DEMO_DIR:-target}"
WORK=$(mktemp -d "$(readlink -f "${BRINE_DEMO_DIR:-target}")/demo-XXXXXX")
cleanup() {
    local code=$?
    trap - EXIT INT TERM HUP
    cd /
    if grep -q " $WORK/mnt " /proc/self/mountinfo; then
        brine umount "$WORK/mnt" 2>/dev/null || brine umount --lazy "$WORK/mnt" || true
    fi
    if [ $code -ne 0 ] && [ -f "$WORK/state/daemon.log" ]; then
        printf '\ndemo: failed; the end of the log was:\n' >&2
        tail -n 20 "$WORK/state/daemon.log" >&2
    fi
    rm -rf --one-file-system "$WORK"
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

cd "$WORK"
mkdir disk1 disk2 disk3 disk4 disk5 disk6 mnt tree
head -c 32 /dev/urandom >key
chmod 600 key

explain "1. Six directories become one volume. Think of six disks; here they are plain directories in $WORK"
show brine format disk1 disk2 disk3 disk4 disk5 disk6 --key-file key --state-dir state --label demo

explain "2. It is mounted like any filesystem"
show brine mount disk1 mnt -o keyfile=key

explain "3. A real source tree goes in: this repository, and the sources of the libraries it uses"
if git -C "$REPOSITORY" rev-parse --git-dir >/dev/null 2>&1; then
    (cd "$REPOSITORY" && git ls-files -z | xargs -0 cp -a --no-preserve=ownership --parents -t "$WORK/tree")
else
    (cd "$REPOSITORY" && find . -name target -prune -o -type f -print0 | xargs -0 cp -a --no-preserve=ownership --parents -t "$WORK/tree")
fi
registry=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -mindepth 1 -maxdepth 1 -type d 2>/dev/null | head -n 1 || true)
if [ -n "$registry" ]; then
    mkdir tree/libraries
    total=0
    for library in "$registry"/*/; do
        size=$(du -sk "$library" | cut -f1)
        [ $((total + size)) -le $SOURCES_KIB_MAX ] || continue
        cp -a --no-preserve=ownership "$library" tree/libraries/
        total=$((total + size))
    done
fi
show cp -a tree mnt/
printf '%s files, %s\n' "$(find mnt/tree -type f | wc -l)" "$(du -sh --apparent-size mnt/tree | cut -f1)"
(cd tree && find . -type f -print0 | sort -z | xargs -0 sha256sum) >manifest
printf 'Checksums of all %s files are noted.\n' "$(wc -l <manifest)"
show brine sync mnt

verify() {
    printf '%s$ (cd mnt/tree && sha256sum --check --quiet manifest)%s\n' "$DIM" "$PLAIN"
    (cd mnt/tree && sha256sum --check --quiet "$WORK/manifest") || fail "a file is not what it was"
    printf 'All %s files are what they were.\n' "$(wc -l <manifest)"
}
# Health is told by the exit code as well; here any is right.
status() { show brine status "$1" || true; }

explain "4. Nothing in the directories can be read: no name, no content"
name=$(basename "$(find tree -name '*.rs' | head -n 1)")
if grep -rqF -e "$name" -e 'fn main' disk1 disk2 disk3 disk4 disk5 disk6 state/*.db*; then
    fail "a name or content was found in the directories"
fi
printf 'Neither the name %s nor the words "fn main" occur in any of them.\n' "$name"

explain "5. Two of the six directories are deleted, with the volume mounted"
show rm -rf disk2 disk5
verify
explain "   Also from a cold start: unmounted, and mounted again with what is left"
show brine umount mnt
show brine mount disk1 mnt -o keyfile=key
verify
status mnt

explain "6. New, empty directories take the place of the lost ones"
mkdir new2 new5
show brine replace "$WORK/disk2" new2 mnt || printf 'Not whole yet: disk5 is still missing.\n'
show brine replace "$WORK/disk5" new5 mnt
explain "   Everything is read and verified, redundancy included"
show brine check mnt
status mnt

explain "7. Now two others may go: the new ones carry their part"
show brine umount mnt
show rm -rf disk1 disk3
show brine mount new2 mnt -o keyfile=key
verify
show brine umount mnt

explain "Done. $WORK is removed."
