use super::*;

/// What the kernel would do, for the steps the program uses.
fn judge(number: u32, arch: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let program = program();
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = program[at];
        let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        at += 1;
        match step.code {
            LOAD => accumulator = u32::from_le_bytes(data[step.k as usize..][..4].try_into().unwrap()),
            JUMP => at += step.k as usize,
            JUMP_EQUAL => at += jump(accumulator == step.k),
            JUMP_GREATER => at += jump(accumulator > step.k),
            JUMP_AT_LEAST => at += jump(accumulator >= step.k),
            JUMP_ANY_BIT => at += jump(accumulator & step.k != 0),
            RETURN => return step.k,
            other => panic!("step {other:#x}"),
        }
    }
}

fn here(number: i64, arguments: [u64; 6]) -> u32 {
    judge(number as u32, ARCH, arguments)
}

fn refused(errno: i32) -> u32 {
    ERRNO | errno as u32
}

#[test]
fn every_rule_is_found_and_everything_else_is_allowed() {
    for number in 0..=KNOWN_MAX {
        let rule = RULES.iter().find(|rule| rule.number == i64::from(number));
        let expected = match rule {
            None => ALLOW,
            Some(Rule { test: Test::Always, errno, .. }) => refused(*errno),
            Some(_) => continue,
        };
        assert_eq!(judge(number, ARCH, [0; 6]), expected, "call {number}");
    }
    assert_eq!(RULES.len(), RULES.iter().map(|rule| rule.number).collect::<std::collections::BTreeSet<_>>().len());
}

#[test]
fn other_architectures_die_and_newer_calls_do_not_exist() {
    assert_eq!(judge(0, 0x4000_0003, [0; 6]), KILL_PROCESS, "i386");
    assert_eq!(judge(KNOWN_MAX + 1, ARCH, [0; 6]), refused(libc::ENOSYS));
    assert_eq!(judge(0x4000_0000, ARCH, [0; 6]), refused(libc::ENOSYS), "x32");
}

#[test]
fn arguments_are_compared_as_the_kernel_reads_them() {
    for command in [0x5412_u64, 0x5412 | 1 << 32, 0x541c, 0x541c | 0xffff << 32] {
        assert_eq!(here(libc::SYS_ioctl, [0, command, 0, 0, 0, 0]), refused(libc::EPERM), "{command:#x}");
    }
    assert_eq!(here(libc::SYS_ioctl, [0, 0x5401, 0, 0, 0, 0]), ALLOW, "TCGETS");
    assert_eq!(here(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), refused(libc::EPERM));
    let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FS;
    assert_eq!(here(libc::SYS_clone, [thread as u64, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(here(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0, 0, 0, 0]), refused(libc::EAFNOSUPPORT));
    assert_eq!(here(libc::SYS_socket, [libc::AF_UNIX as u64 | 1 << 40, 1, 0, 0, 0, 0]), ALLOW, "an int to the kernel");
    assert_eq!(here(libc::SYS_personality, [0x0400_0000, 0, 0, 0, 0, 0]), refused(libc::EPERM));
}

#[test]
fn the_kernel_takes_it() {
    assert!(program().len() < 4096, "{} steps", program().len());
}
