use super::*;

fn plan() -> Plan {
    let identity = Identity { uid: 1000, gid: 1000, groups: vec![27] };
    Plan::new(
        identity,
        View { source: "exec/report".into(), ino: None, at: "/mnt/exec/report".into(), access: ViewAccess::Read },
    )
}

#[test]
fn a_plan_says_what_it_will_do() {
    let text = plan().to_string();
    for line in ["capabilities none", "program exec/report at /mnt/exec/report", "network none", "root host"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn what_cannot_be_built_is_refused_before_anything_is_done() {
    plan().check().unwrap();
    let bad: [fn(&mut Plan); 11] = [
        |plan| plan.program.at = "relative".into(),
        |plan| plan.program.at = "/mnt/../etc/passwd".into(),
        |plan| plan.program.at = "/".into(),
        |plan| plan.program.at = "/proc/self".into(),
        |plan| plan.program.source = "/etc/passwd".into(),
        |plan| plan.program.source = "exec/../../etc".into(),
        |plan| plan.directory = "/proc/self/fd/../../..".into(),
        |plan| plan.argv = vec!["x".repeat(7 << 20).into()],
        |plan| plan.argv.clear(),
        |plan| plan.limits.memory_bytes = 1,
        |plan| plan.limits.pids = 0,
    ];
    for (index, spoil) in bad.iter().enumerate() {
        let mut plan = plan();
        spoil(&mut plan);
        assert!(matches!(plan.check(), Err(Error::Refused(_))), "case {index}");
    }
}

#[test]
fn templates_that_differ_have_different_digests() {
    let one = plan().template;
    assert_eq!(one.digest(), one.clone().digest());
    for other in [
        Template { network: Network::Host, ..one.clone() },
        Template { scratch_bytes: 1, ..one.clone() },
        Template { root: Root::Image("images/a".into()), ..one.clone() },
    ] {
        assert_ne!(one.digest(), other.digest());
    }
}
