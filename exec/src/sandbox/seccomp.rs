//! The system call filter: the policy of [`rules`] made into a BPF program.
//!
//! Promises: another architecture's call kills; a call newer than those judged answers ENOSYS; a call with a rule is
//! answered as the rule says; everything else is allowed. Arguments are compared as the kernel reads them: 32 bits
//! wide where it truncates, so that high bits smuggle nothing past (CVE-2019-10063). The program is a search tree:
//! a call passes some eight comparisons, and calls without a rule are remembered by the kernel as allowed.

mod rules;

use libc::sock_filter;

pub(crate) use rules::{KNOWN_MAX, RULES, Rule, Test};

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const NR_AT: u32 = 0;
const ARCH_AT: u32 = 4;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// If the comparison holds skip nothing, else the next `skip` steps.
fn unless(code: u16, k: u32, skip: u8) -> sock_filter {
    sock_filter { code, jt: 0, jf: skip, k }
}

/// The whole program. It is made once and shared by all sandboxes.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut rules: Vec<&Rule> = RULES.iter().collect();
    rules.sort_by_key(|rule| rule.number);
    let mut out = vec![
        step(LOAD, ARCH_AT),
        sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: ARCH },
        step(RETURN, KILL_PROCESS),
        step(LOAD, NR_AT),
        // The x32 calls of x86-64 have bit 30 set and end here too.
        unless(JUMP_GREATER, KNOWN_MAX, 1),
        step(RETURN, ERRNO | libc::ENOSYS as u32),
    ];
    out.extend(search(&rules));
    out
}

fn search(rules: &[&Rule]) -> Vec<sock_filter> {
    match rules {
        [] => vec![step(RETURN, ALLOW)],
        [rule] => {
            let answer = answer(rule);
            let mut out =
                vec![sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: rule.number as u32 }, step(RETURN, ALLOW)];
            out.extend(answer);
            out
        }
        _ => {
            let (low, high) = rules.split_at(rules.len() / 2);
            let below = search(low);
            // Conditional jumps reach 255 steps; this one may be longer.
            let mut out = vec![unless(JUMP_AT_LEAST, high[0].number as u32, 1), step(JUMP, below.len() as u32)];
            out.extend(below);
            out.extend(search(high));
            out
        }
    }
}

/// What follows once the call's number is known.
fn answer(rule: &Rule) -> Vec<sock_filter> {
    let refuse = step(RETURN, ERRNO | rule.errno as u32);
    let allow = step(RETURN, ALLOW);
    // Low half of an argument: both architectures are little-endian.
    let load = |argument: u32| step(LOAD, 16 + 8 * argument);
    match rule.test {
        Test::Always => vec![refuse],
        Test::In(argument, values) => {
            let mut out = vec![load(argument)];
            out.extend(values.iter().flat_map(|value| [unless(JUMP_EQUAL, *value, 1), refuse]));
            out.push(allow);
            out
        }
        Test::NotIn(argument, values) => {
            let mut out = vec![load(argument)];
            out.extend(values.iter().flat_map(|value| [unless(JUMP_EQUAL, *value, 1), allow]));
            out.push(refuse);
            out
        }
        Test::AnyBit(argument, mask) => vec![load(argument), unless(JUMP_ANY_BIT, mask, 1), refuse, allow],
    }
}

#[cfg(test)]
mod tests;
