//! Colours, where they are wanted.

use crate::view::{BuildState, JobState};
use std::borrow::Cow;

/// What a piece of text is, not how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Heading,
    Good,
    Bad,
    Busy,
    Faint,
}

impl From<JobState> for Tone {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Succeeded => Self::Good,
            JobState::Failed | JobState::TimedOut | JobState::Lost => Self::Bad,
            JobState::Running => Self::Busy,
            JobState::Blocked | JobState::Skipped | JobState::Cancelled => Self::Faint,
            JobState::AwaitsApproval | JobState::Queued | JobState::Unknown => Self::Plain,
        }
    }
}

impl From<BuildState> for Tone {
    fn from(state: BuildState) -> Self {
        match state {
            BuildState::Succeeded => Self::Good,
            BuildState::Failed => Self::Bad,
            BuildState::Running | BuildState::Finalizing => Self::Busy,
            BuildState::Cancelled => Self::Faint,
            BuildState::Unknown => Self::Plain,
        }
    }
}

/// How text is written to one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// A person looks at it through a terminal.
    pub terminal: bool,
    /// Colours are welcome.
    pub colour: bool,
}

impl Style {
    /// For a pipe or file.
    #[cfg(test)]
    pub const PLAIN: Self = Self { terminal: false, colour: false };

    /// For a stream that is or is not a terminal. `NO_COLOR` (any value but the empty one) and `TERM=dumb` forbid colours.
    pub fn of(terminal: bool, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let forbidden = env("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env("TERM").is_some_and(|term| term == "dumb");
        Self { terminal, colour: terminal && !forbidden && !dumb }
    }

    /// The text in that tone.
    pub fn paint<'a>(self, tone: Tone, text: &'a str) -> Cow<'a, str> {
        let code = match tone {
            Tone::Plain => return Cow::Borrowed(text),
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Busy => "36",
            Tone::Faint => "2",
        };
        if self.colour && !text.is_empty() {
            Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m"))
        } else {
            Cow::Borrowed(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(terminal: bool, env: &[(&str, &str)]) -> Style {
        let env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Style::of(terminal, &|name| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert!(style(true, &[]).colour);
        assert!(style(true, &[("NO_COLOR", "")]).colour);
        assert!(!style(true, &[("NO_COLOR", "1")]).colour);
        assert!(!style(true, &[("TERM", "dumb")]).colour);
        assert!(!style(false, &[]).colour);
        assert_eq!(Style::PLAIN.paint(Tone::Bad, "x"), "x");
        assert_eq!(style(true, &[]).paint(Tone::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
