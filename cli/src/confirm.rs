//! Asks before something that cannot be undone.

use crate::failure::Failure;
use std::io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin};

/// Whether there is somebody to ask; `instead` is what to give where there is nobody.
///
/// # Errors
/// [`Failure::Usage`] if there is not.
pub fn possible(instead: &str) -> Result<(), Failure> {
    match stdin().is_terminal() && stderr().is_terminal() {
        true => Ok(()),
        false => Err(Failure::Usage(format!("there is no terminal to ask on; give {instead}"))),
    }
}

/// Asks; only a plain yes is one.
///
/// # Errors
/// [`Failure::Usage`] if nothing can be read.
pub fn ask(question: &str) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::Usage(format!("cannot ask: {error}"));
    let mut err = stderr().lock();
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).map_err(failed)?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
