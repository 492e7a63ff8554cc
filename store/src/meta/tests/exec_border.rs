//! The border of the exec directory: all names of a file lie on one side of it.

use super::model::name_of;
use super::*;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    name_of(&result.unwrap_err())
}

#[test]
fn executable_files_and_directories_do_not_cross_the_border() {
    let (_dir, meta) = fresh("exec-border");
    let plain = RenameFlags::default();
    let swap = RenameFlags { exchange: true, ..plain };
    meta.with(|txn| {
        let exec = txn.create(ROOT_INO, EXEC_NAME, &ROOT)?;
        let below = txn.create(exec.ino, b"below", &ROOT)?;
        let other = txn.create(ROOT_INO, b"other", &ROOT)?;
        assert!(exec.in_exec && below.in_exec && !other.in_exec);
        let function = txn.create(below.ino, b"f", &file(0o755))?;
        let program = txn.create(other.ino, b"p", &file(0o700))?;
        let text = txn.create(other.ino, b"t", &file(0o644))?;
        assert!(function.in_exec && !program.in_exec);

        assert_eq!(errno(txn.rename(below.ino, b"f", ROOT_INO, b"f", plain)), "EXDEV");
        assert_eq!(errno(txn.rename(other.ino, b"p", exec.ino, b"p", plain)), "EXDEV");
        assert_eq!(errno(txn.rename(other.ino, b"t", below.ino, b"f", swap)), "EXDEV");
        assert_eq!(errno(txn.link(function.ino, ROOT_INO, b"f")), "EXDEV");
        assert_eq!(errno(txn.link(program.ino, exec.ino, b"p")), "EXDEV");
        assert_eq!(errno(txn.link(text.ino, exec.ino, b"t")), "EXDEV");
        assert_eq!(errno(txn.rename(ROOT_INO, b"other", exec.ino, b"other", plain)), "EXDEV");
        assert_eq!(errno(txn.rename(exec.ino, b"below", ROOT_INO, b"below", plain)), "EXDEV");
        assert_eq!(errno(txn.rename(ROOT_INO, b"exec", ROOT_INO, b"moved", plain)), "EXDEV");

        // Within one side everything goes, and what cannot be run crosses.
        txn.link(function.ino, exec.ino, b"again")?;
        txn.rename(below.ino, b"f", exec.ino, b"f", plain)?;
        txn.rename(other.ino, b"t", exec.ino, b"t", plain)?;
        assert!(txn.attr(text.ino)?.in_exec);
        txn.link(text.ino, exec.ino, b"t2")?;
        assert_eq!(errno(txn.rename(exec.ino, b"t", other.ino, b"t", plain)), "EXDEV", "its other name would stay");
        txn.unlink(exec.ino, b"t2")?;
        txn.rename(exec.ino, b"t", other.ino, b"t", plain)?;
        assert!(!txn.attr(text.ino)?.in_exec);
        Ok(())
    })
    .unwrap();
}

#[test]
fn only_a_new_directory_becomes_the_exec_directory() {
    let (_dir, meta) = fresh("exec-place");
    meta.with(|txn| {
        let plain = txn.create(ROOT_INO, b"plain", &ROOT)?;
        assert_eq!(errno(txn.rename(ROOT_INO, b"plain", ROOT_INO, EXEC_NAME, RenameFlags::default())), "EXDEV");
        assert!(!txn.create(plain.ino, EXEC_NAME, &ROOT)?.in_exec, "only in the root");
        txn.create(ROOT_INO, EXEC_NAME, &ROOT)?;
        txn.rmdir(ROOT_INO, EXEC_NAME)?;
        assert!(txn.create(ROOT_INO, EXEC_NAME, &ROOT)?.in_exec);
        Ok(())
    })
    .unwrap();
}
