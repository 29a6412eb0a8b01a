//! What is wrong with a pipeline file, and where.

use super::limits::DIAGNOSTICS_MAX;
use super::suggest::did_you_mean;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One problem of a pipeline file. `Display` gives `file:line:column: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// As the caller named it.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl std::error::Error for Diagnostic {}

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: u32,
    pub column: u32,
}

impl Position {
    /// Where the file begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// The problems found so far.
#[derive(Debug)]
pub(super) struct Problems {
    file: String,
    found: Vec<Diagnostic>,
    /// Found but not kept, because there were too many.
    dropped: usize,
}

/// Most problems that are kept: far more than are shown, so that the order by line is right for all ordinary files.
const KEPT_MAX: usize = 10 * DIAGNOSTICS_MAX;

/// Longest message or help: a quoted text is cut long before, so this only stops what nobody would read.
const MESSAGE_MAX_CHARS: usize = 1000;

impl Problems {
    pub fn new(file: &str) -> Self {
        Self { file: printable(file, MESSAGE_MAX_CHARS), found: Vec::new(), dropped: 0 }
    }

    pub fn add(&mut self, at: Position, message: impl AsRef<str>) {
        self.push(at, message.as_ref(), None);
    }

    pub fn add_help(&mut self, at: Position, message: impl AsRef<str>, help: impl AsRef<str>) {
        self.push(at, message.as_ref(), Some(help.as_ref()));
    }

    /// A name that is none of `known`, with the nearest one as help. `kind` names them, in the plural.
    pub fn add_unknown(&mut self, at: Position, message: impl AsRef<str>, name: &str, kind: &str, known: &[&str]) {
        // Comparing names is the one slow thing here, so not for problems that nobody will see.
        let help = (self.found.len() < KEPT_MAX).then(|| did_you_mean(name, kind, known));
        self.push(at, message.as_ref(), help.as_deref());
    }

    fn push(&mut self, at: Position, message: &str, help: Option<&str>) {
        if self.found.len() >= KEPT_MAX {
            self.dropped += 1;
        } else {
            self.found.push(Diagnostic {
                file: self.file.clone(),
                line: at.line,
                column: at.column,
                message: printable(message, MESSAGE_MAX_CHARS),
                help: help.map(|help| printable(help, MESSAGE_MAX_CHARS)),
            });
        }
    }

    /// How many so far.
    pub fn len(&self) -> usize {
        self.found.len() + self.dropped
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// By line, each once, at most [`DIAGNOSTICS_MAX`] and then a line that counts the rest.
    pub fn into_list(mut self) -> Vec<Diagnostic> {
        self.found.sort();
        self.found.dedup();
        let rest = self.found.len().saturating_sub(DIAGNOSTICS_MAX) + self.dropped;
        if rest > 0 {
            self.found.truncate(DIAGNOSTICS_MAX);
            if let Some(last) = self.found.last().cloned() {
                self.found.push(Diagnostic { message: format!("{rest} more problems follow"), help: None, ..last });
            }
        }
        self.found
    }
}

/// `text` without control characters, so that a file cannot write to the terminal of whoever checks it, and not too long.
fn printable(text: &str, max_chars: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_chars));
    for (count, c) in text.chars().enumerate() {
        if count == max_chars {
            out.push('…');
            break;
        }
        // Bidirectional controls reorder what is shown after them.
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Longest text that a message quotes in full.
const QUOTE_MAX_CHARS: usize = 80;

/// `text` in backticks, for a message.
pub(super) fn quote(text: &str) -> String {
    format!("`{}`", printable(text, QUOTE_MAX_CHARS))
}

/// `a`, `b` and `c`; long lists end in a count.
pub(super) fn quote_list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    join(items, "and")
}

/// `a`, `b` or `c`.
pub(super) fn quote_choice<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    join(items, "or")
}

fn join<T: AsRef<str>>(items: impl IntoIterator<Item = T>, last: &str) -> String {
    const SHOWN: usize = 50;
    let all: Vec<String> = items.into_iter().map(|item| quote(item.as_ref())).collect();
    match all.len() {
        0 => "none".to_owned(),
        1 => all[0].clone(),
        n if n > SHOWN => format!("{} {last} {} more", all[..SHOWN].join(", "), n - SHOWN),
        n => format!("{} {last} {}", all[..n - 1].join(", "), all[n - 1]),
    }
}
