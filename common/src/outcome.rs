//! How an attempt ended. Types, so that nobody has to match on a message.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Whose fault it was, if anybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeKind {
    /// The step ended well.
    Succeeded,
    /// The step's own fault. Retried only from the step's budget; poisons dependents.
    Failed,
    /// Wall clock or silence. Treated like `Failed`.
    TimedOut,
    /// Somebody cancelled it. Never retried.
    Cancelled,
    /// The farm's fault. Retried elsewhere from the farm's budget.
    Lost,
    /// The worker would not start it; another may.
    Refused,
}

impl OutcomeKind {
    /// The word for logs, tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why, in one stable word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It ended well.
    Done,
    /// The script ended with a non-zero code.
    ExitCode,
    /// The script was killed by a signal.
    Signal,
    /// The kernel killed it: the step's memory limit.
    Oom,
    /// It took more of the disk than it reserves.
    DiskLimit,
    /// A required output matched nothing.
    OutputMissing,
    /// An output is not a plain file inside the work directory.
    OutputBad,
    /// The image cannot be had.
    ImageMissing,
    /// An input named an artifact that is not there.
    InputMissing,
    /// A secret that it cannot do without is not there for it, or cannot be opened.
    SecretMissing,
    /// Ran longer than its timeout.
    WallClock,
    /// Wrote nothing for longer than its silence timeout.
    Silence,
    /// The engine failed or went away.
    Engine,
    /// The worker's disk is full.
    DiskFull,
    /// Bytes did not get to or from the cache.
    Transfer,
    /// The lease expired: no word from the worker.
    WorkerGone,
    /// The worker came back without the lease.
    WorkerRestarted,
    /// An operator drained the worker, and the job was not done in time.
    Drained,
    /// The worker cannot run such a job.
    Unsupported,
    /// Cancelled by a person or a newer build.
    Cancelled,
}

impl Reason {
    const ALL: [Reason; 20] = [
        Self::Done,
        Self::ExitCode,
        Self::Signal,
        Self::Oom,
        Self::DiskLimit,
        Self::OutputMissing,
        Self::OutputBad,
        Self::ImageMissing,
        Self::InputMissing,
        Self::SecretMissing,
        Self::WallClock,
        Self::Silence,
        Self::Engine,
        Self::DiskFull,
        Self::Transfer,
        Self::WorkerGone,
        Self::WorkerRestarted,
        Self::Drained,
        Self::Unsupported,
        Self::Cancelled,
    ];

    /// The word for the protocol, logs, tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::ExitCode => "exit-code",
            Self::Signal => "signal",
            Self::Oom => "oom",
            Self::DiskLimit => "disk-limit",
            Self::OutputMissing => "output-missing",
            Self::OutputBad => "output-bad",
            Self::ImageMissing => "image-missing",
            Self::InputMissing => "input-missing",
            Self::SecretMissing => "secret-missing",
            Self::WallClock => "wall-clock",
            Self::Silence => "silence",
            Self::Engine => "engine",
            Self::DiskFull => "disk-full",
            Self::Transfer => "transfer",
            Self::WorkerGone => "worker-gone",
            Self::WorkerRestarted => "worker-restarted",
            Self::Drained => "drained",
            Self::Unsupported => "unsupported",
            Self::Cancelled => "cancelled",
        }
    }

    /// The reason of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Most lines of log that an outcome carries.
pub const LOG_TAIL_LINES: usize = 20;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whose fault.
    pub kind: OutcomeKind,
    /// In one word.
    pub reason: Reason,
    /// What was wrong, where, and what to do. Empty for a success.
    #[serde(default)]
    pub message: String,
    /// The script's exit code, where it ran to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last lines of the log, at most [`LOG_TAIL_LINES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
}

impl Outcome {
    /// It ended well.
    pub fn succeeded() -> Self {
        Self {
            kind: OutcomeKind::Succeeded,
            reason: Reason::Done,
            message: String::new(),
            exit_code: Some(0),
            log_tail: Vec::new(),
        }
    }

    /// It did not, and this is why.
    pub fn new(kind: OutcomeKind, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, reason, message: message.into(), exit_code: None, log_tail: Vec::new() }
    }
}
