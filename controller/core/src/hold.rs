//! What an operator can do to a worker: no new jobs for now, none any more, never again.

use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a worker is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldKind {
    /// No new jobs; what runs goes on.
    Cordon,
    /// No new jobs; what still runs at the deadline is stopped and runs elsewhere.
    Drain,
    /// As drain, and when nothing of it runs any more the worker is sent away and not taken back.
    Retire,
}

impl HoldKind {
    /// The word for the protocol, tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cordon => "cordoned",
            Self::Drain => "draining",
            Self::Retire => "retired",
        }
    }
}

impl fmt::Display for HoldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An operator's word on a worker. It outlives restarts of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What is wanted.
    pub kind: HoldKind,
    /// By whom.
    pub by: String,
    /// Why, for people; may be empty.
    #[serde(default)]
    pub why: String,
    /// It ends by itself then; `None`: when somebody takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
    /// What still runs then is stopped, and runs elsewhere; `None`: it may take its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_at: Option<Millis>,
}

impl fmt::Display for Hold {
    /// `draining by olga (new disk)`; without the times.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.kind, self.by)?;
        if !self.why.is_empty() {
            write!(f, " ({})", self.why)?;
        }
        Ok(())
    }
}
