//! Errors as people read them.

use std::error::Error;

/// An error and its causes on one line: `cannot read x: permission denied`. For the one place that logs or answers.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
