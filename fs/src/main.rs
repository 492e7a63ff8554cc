//! The `brine` program; all of it is in the library.

fn main() -> std::process::ExitCode {
    brine_fs::cli::main()
}
