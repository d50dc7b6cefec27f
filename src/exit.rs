//! Exit status: 0 pass, 1 fail, 2 bad input, 3 inconclusive, 4 halted.

use std::{fmt::Display, process::ExitCode};

/// Prints an error with its next step to standard error: bad input.
pub fn bad_input(error: impl Display) -> ExitCode {
    eprintln!("steadfast: {error}");
    ExitCode::from(2)
}

/// Prints an error that is nobody's input: something failed while working.
pub fn failed(error: impl Display) -> ExitCode {
    eprintln!("steadfast: {error}");
    ExitCode::FAILURE
}
