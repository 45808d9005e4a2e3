//! The `dft` program: parses the command line, runs a command, sets the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    dft::cli::main()
}
