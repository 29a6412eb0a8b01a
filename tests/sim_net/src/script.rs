//! What a simulated container does, as its step's script says: `#!sim lines=8 every=250 exit=0`.

use std::time::Duration;

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Lines that it writes.
    pub lines: u32,
    /// Bytes in each besides what tells which it is.
    pub width: usize,
    /// Between two lines, in milliseconds.
    pub every_millis: u64,
    /// What it returns; `None` if it never ends by itself.
    pub exit: Option<i64>,
}

impl Script {
    /// The first line of a step's script.
    pub fn text(&self) -> String {
        let exit = self.exit.map_or_else(|| "never".to_owned(), |code| code.to_string());
        format!("#!sim lines={} width={} every={} exit={exit}", self.lines, self.width, self.every_millis)
    }

    /// Reads what [`Script::text`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        let mut script = Self { lines: 0, width: 0, every_millis: 0, exit: None };
        for word in text.lines().next()?.strip_prefix("#!sim ")?.split(' ') {
            match word.split_once('=')? {
                ("lines", n) => script.lines = n.parse().ok()?,
                ("width", n) => script.width = n.parse().ok()?,
                ("every", n) => script.every_millis = n.parse().ok()?,
                ("exit", "never") => script.exit = None,
                ("exit", code) => script.exit = Some(code.parse().ok()?),
                _ => return None,
            }
        }
        Some(script)
    }

    /// When line `index` (from 0) is written, after the start.
    pub fn line_at(&self, index: u32) -> Duration {
        Duration::from_millis(self.every_millis * u64::from(index + 1))
    }

    /// When it ends by itself, after the start.
    pub fn ends_after(&self) -> Option<Duration> {
        // A moment after the last line, so that the end never stands between a line and its newline.
        self.exit.map(|_| Duration::from_millis(self.every_millis * u64::from(self.lines) + 10))
    }

    /// Line `index` of the attempt's output.
    pub fn line(&self, lease: &str, index: u32) -> String {
        format!("{lease} says line {index}: {}\n", "=".repeat(self.width))
    }

    /// Everything that an attempt has written after having run for so long.
    pub fn output(&self, lease: &str, ran: Duration) -> String {
        (0..self.lines).filter(|index| self.line_at(*index) <= ran).map(|index| self.line(lease, index)).collect()
    }
}
