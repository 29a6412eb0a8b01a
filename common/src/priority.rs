//! How urgent a build is.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The class of a build; the later ones go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// A change that somebody proposes: many, and each can wait.
    Change,
    /// By the clock: nightly builds.
    Schedule,
    /// Somebody waits for it.
    #[default]
    Manual,
    /// Goes to users. Never superseded.
    Release,
}

/// The text is not a priority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a priority: expected release, manual, schedule or change")]
pub struct BadPriority(pub String);

impl Priority {
    /// Every class, the least urgent first.
    pub const ALL: [Priority; 4] = [Self::Change, Self::Schedule, Self::Manual, Self::Release];

    /// The word for the protocol, tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Schedule => "schedule",
            Self::Manual => "manual",
            Self::Release => "release",
        }
    }

    /// This class raised by `steps`, at most to the most urgent one.
    pub fn raised(self, steps: u64) -> Self {
        let index = (self as u64).saturating_add(steps).min(Self::ALL.len() as u64 - 1);
        Self::ALL[usize::try_from(index).unwrap_or(Self::ALL.len() - 1)]
    }
}

impl FromStr for Priority {
    type Err = BadPriority;

    fn from_str(text: &str) -> Result<Self, BadPriority> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == text).ok_or_else(|| BadPriority(text.to_owned()))
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_order() {
        for priority in Priority::ALL {
            assert_eq!(priority.as_str().parse(), Ok(priority));
        }
        assert!(Priority::Release > Priority::Manual && Priority::Schedule > Priority::Change);
        assert_eq!(Priority::Change.raised(2), Priority::Manual);
        assert_eq!(Priority::Schedule.raised(u64::MAX), Priority::Release);
        assert_eq!("urgent".parse::<Priority>(), Err(BadPriority("urgent".to_owned())));
    }
}
