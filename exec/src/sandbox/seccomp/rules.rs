//! The policy: which calls are answered how, and why. Judged against the calls of Linux up to [`KNOWN_MAX`].
//!
//! A program in a sandbox has no capabilities, so that most of these calls would fail anyway: the filter keeps the code
//! behind them out of reach, in which the kernel's holes were. ENOSYS where programs have a fallback for it.

use libc::{self as call, EAFNOSUPPORT, ENOSYS, EPERM};

/// Highest call judged: mseal. Newer ones are answered ENOSYS until somebody judged them.
pub(crate) const KNOWN_MAX: u32 = 462;

/// When a rule refuses; arguments are counted from 0 and compared in their low 32 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Test {
    /// Whatever the arguments are.
    Always,
    /// If the argument is one of these.
    In(u32, &'static [u32]),
    /// If the argument is none of these.
    NotIn(u32, &'static [u32]),
    /// If the argument has any of these bits.
    AnyBit(u32, u32),
}

/// One rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// Number of the call.
    pub number: i64,
    /// When it is refused.
    pub test: Test,
    /// With which error.
    pub errno: i32,
}

const fn refuse(number: i64) -> Rule {
    Rule { number, test: Test::Always, errno: EPERM }
}

const fn absent(number: i64) -> Rule {
    Rule { number, test: Test::Always, errno: ENOSYS }
}

const fn when(number: i64, test: Test, errno: i32) -> Rule {
    Rule { number, test, errno }
}

/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u32 =
    0x80 | 0x2_0000 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;
/// Types push input into a terminal, or reach the console: TIOCSTI, TIOCLINUX, and TIOCSETD loads line disciplines.
const TERMINAL_TRICKS: &[u32] = &[0x5412, 0x541c, 0x5423];
/// AF_UNIX, AF_INET, AF_INET6. Netlink and packet sockets are where user namespaces broke (CVE-2020-14386, 2024-1086).
const FAMILIES: &[u32] = &[1, 2, 10];
/// PER_LINUX, PER_LINUX32, with and without ADDR_NO_RANDOMIZE's safe neighbour UNAME26, and "tell me".
const PERSONALITIES: &[u32] = &[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// All rules, by theme. Order does not matter: the filter sorts them.
pub(crate) const RULES: &[Rule] = &[
    // -- namespaces and mounts: the view is made before the program starts and stays as it is (CVE-2022-0185, 2023-0386)
    when(call::SYS_clone, Test::AnyBit(0, NEW_NAMESPACES), EPERM),
    // Its flags are in memory, where a filter cannot look; C libraries fall back to clone.
    absent(call::SYS_clone3),
    refuse(call::SYS_unshare),
    refuse(call::SYS_setns),
    refuse(call::SYS_mount),
    refuse(call::SYS_umount2),
    refuse(call::SYS_pivot_root),
    refuse(call::SYS_chroot),
    refuse(call::SYS_open_tree),
    refuse(call::SYS_move_mount),
    refuse(call::SYS_fsopen),
    refuse(call::SYS_fsconfig),
    refuse(call::SYS_fsmount),
    refuse(call::SYS_fspick),
    refuse(call::SYS_mount_setattr),
    refuse(457), // statmount
    refuse(458), // listmount
    refuse(call::SYS_quotactl),
    refuse(call::SYS_quotactl_fd),
    // -- files by handle escape every view
    refuse(call::SYS_open_by_handle_at),
    refuse(call::SYS_name_to_handle_at),
    refuse(call::SYS_fanotify_init),
    refuse(call::SYS_fanotify_mark),
    // -- terminals: CVE-2017-5226, CVE-2019-10063 (high bits), CVE-2023-28100
    when(call::SYS_ioctl, Test::In(1, TERMINAL_TRICKS), EPERM),
    refuse(call::SYS_vhangup),
    // -- other processes
    refuse(call::SYS_ptrace),
    refuse(call::SYS_process_vm_readv),
    refuse(call::SYS_process_vm_writev),
    refuse(call::SYS_process_madvise),
    refuse(call::SYS_process_mrelease),
    refuse(call::SYS_kcmp),
    refuse(call::SYS_pidfd_getfd),
    // -- kernel keyrings are not in a namespace
    refuse(call::SYS_keyctl),
    refuse(call::SYS_add_key),
    refuse(call::SYS_request_key),
    // -- large and young attack surface
    absent(call::SYS_io_uring_setup),
    absent(call::SYS_io_uring_enter),
    absent(call::SYS_io_uring_register),
    refuse(call::SYS_bpf),
    refuse(call::SYS_perf_event_open),
    refuse(call::SYS_userfaultfd),
    when(call::SYS_socket, Test::NotIn(0, FAMILIES), EAFNOSUPPORT),
    when(call::SYS_socketpair, Test::NotIn(0, FAMILIES), EAFNOSUPPORT),
    when(call::SYS_personality, Test::NotIn(0, PERSONALITIES), EPERM),
    // -- memory placement across nodes
    refuse(call::SYS_move_pages),
    refuse(call::SYS_migrate_pages),
    refuse(call::SYS_mbind),
    refuse(call::SYS_set_mempolicy),
    refuse(call::SYS_set_mempolicy_home_node),
    // -- the machine
    refuse(call::SYS_kexec_load),
    refuse(call::SYS_kexec_file_load),
    refuse(call::SYS_init_module),
    refuse(call::SYS_finit_module),
    refuse(call::SYS_delete_module),
    refuse(call::SYS_reboot),
    refuse(call::SYS_swapon),
    refuse(call::SYS_swapoff),
    refuse(call::SYS_acct),
    refuse(call::SYS_syslog),
    refuse(call::SYS_sethostname),
    refuse(call::SYS_setdomainname),
    refuse(call::SYS_settimeofday),
    refuse(call::SYS_clock_settime),
    refuse(call::SYS_adjtimex),
    refuse(call::SYS_clock_adjtime),
    refuse(460), // lsm_set_self_attr
    #[cfg(target_arch = "x86_64")]
    refuse(call::SYS_iopl),
    #[cfg(target_arch = "x86_64")]
    refuse(call::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    refuse(call::SYS_modify_ldt),
    #[cfg(target_arch = "x86_64")]
    absent(call::SYS_uselib),
    #[cfg(target_arch = "x86_64")]
    absent(call::SYS_ustat),
    #[cfg(target_arch = "x86_64")]
    absent(call::SYS_sysfs),
    #[cfg(target_arch = "x86_64")]
    absent(call::SYS__sysctl),
    #[cfg(target_arch = "x86_64")]
    absent(call::SYS_lookup_dcookie),
    // fork and vfork cannot make namespaces and are left alone.
];
