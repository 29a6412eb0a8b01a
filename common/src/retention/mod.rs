//! What is kept of which build, and why: a pure function from rules, facts and the time.
//!
//! **Invariant:** what [`Why::is_binding`] protects is kept whole, whatever the rules say.

mod decide;
mod policy;
#[cfg(test)]
mod tests;
mod why;

pub use decide::{BlobFact, BuildFact, BuildStage, Decision, FileFact, Held, decide, held};
pub use policy::{Age, BadRule, Copies, Policy, Releases, Rule};
pub use why::Why;

use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What stays of a build, least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Nothing: it is deleted.
    Nothing,
    /// Its manifest and its logs.
    Manifest,
    /// Those, and the files that it published.
    Published,
    /// Everything.
    #[default]
    All,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "nothing",
            Self::Manifest => "manifest",
            Self::Published => "published",
            Self::All => "all",
        })
    }
}

/// A reason why retention must keep a build, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// When it was set.
    pub at: Millis,
    /// By whom.
    pub by: String,
    /// Why, for people.
    pub why: String,
    /// From then on it means nothing; `None`: until somebody takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
}

impl Pin {
    /// Whether it holds.
    pub fn holds(&self, now: Millis) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}
