//! The `brine` program; all of it is in the library.

fn main() -> std::process::ExitCode {
    // Does not return in the process that makes sandboxes, which is a copy of this program.
    brine_exec::spawner::enter();
    brine_fs::cli::main()
}
