//! What people see: tables, colours, durations, progress.
//!
//! **Invariant:** only [`Console`] writes to stdout. Results go to stdout, everything about how it is going to stderr, so that
//! a pipe gets results only.

pub mod ansi;
pub mod audit;
pub mod build;
pub mod changes;
pub mod gc;
pub mod graph;
pub mod human;
pub mod keep;
pub mod lists;
pub mod log;
pub mod progress;
pub mod style;
pub mod table;
pub mod workers;

use crate::args::Format;
use crate::failure::Failure;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use railyard_service::clock::{Clock as _, SystemClock};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use style::{Style, Tone};

/// Where a verb writes, and how.
#[derive(Clone, Debug)]
pub struct Console {
    /// What `-o` says.
    pub format: Format,
    /// How stdout is written to.
    pub out: Style,
    /// How stderr is written to.
    pub err: Style,
    /// Whose wall clock people look at.
    pub zone: TimeZone,
}

impl Console {
    /// Of this process.
    pub fn new(format: Format) -> Self {
        let env = |name: &str| std::env::var(name).ok();
        Self {
            format,
            out: Style::of(std::io::stdout().is_terminal(), &env),
            err: Style::of(std::io::stderr().is_terminal(), &env),
            zone: TimeZone::system(),
        }
    }

    /// Whether programs read the result.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let millis = i64::try_from(SystemClock.now().0).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }

    /// Writes text to stdout.
    ///
    /// # Errors
    /// [`Failure::OutputClosed`] when nobody reads any more.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        self.write(text.as_bytes())
    }

    /// Writes bytes to stdout, at once.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }

    /// Writes one JSON document to stdout, for people's eyes too.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::local("write JSON", error))?;
        self.print(&format!("{text}\n"))
    }

    /// Writes one JSON document on one line to stdout: for streams of them.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::local("write JSON", error))?;
        self.print(&format!("{text}\n"))
    }

    /// Tells something on stderr. That stderr is gone is no reason to stop.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Warns on stderr.
    pub fn warn(&self, text: &str) {
        self.note(&format!("{}: {text}", self.err.paint(Tone::Bad, "warning")));
    }

    /// A point in time on the reader's clock: `2026-11-21 12:01:03`.
    pub fn date(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// The same without the day.
    pub fn time(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone()).strftime("%H:%M:%S").to_string()
    }
}
