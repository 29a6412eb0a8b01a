//! A build and its states.

use crate::index::PlanIndex;
use crate::kept::Kept;
use railyard_common::id::{BuildId, JobId, JobName};
use railyard_common::plan::Plan;
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// How a build came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every job succeeded.
    Succeeded,
    /// Some did not.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Where a build stands.
///
/// `Running` → (`Cancelling` →) `Finalizing` → `Ended`, and from a failed or cancelled end back to `Running` by a retry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildState {
    /// Some jobs have not ended.
    Running,
    /// Told to stop; running attempts are being stopped.
    Cancelling {
        /// Why, for people.
        reason: String,
    },
    /// Every job has ended; manifest and published paths are being written.
    Finalizing {
        /// How it came out.
        verdict: Verdict,
    },
    /// Over.
    Ended {
        /// How it came out.
        verdict: Verdict,
        /// When.
        at: Millis,
        /// Why its published paths could not be written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

/// Where a build belongs in a trace; all hex, all empty if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// 32 digits.
    pub trace_id: String,
    /// 16 digits: the submitter's span.
    #[serde(default)]
    pub parent_span_id: String,
    /// 16 digits: the build's own span.
    pub span_id: String,
}

/// One run of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// What it runs.
    pub plan: Arc<Plan>,
    /// Its first job; the others follow in the plan's order.
    pub first_job: JobId,
    /// Where it stands.
    pub state: BuildState,
    /// When it was accepted.
    pub submitted_at: Millis,
    /// By whom.
    pub by: String,
    /// Where it belongs in a trace.
    pub trace: Trace,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// A digest of what was asked for; a repeated submit under the same key must have the same. Empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// Jobs that have not ended.
    pub unfinished: usize,
    /// Why it was cancelled, for people, if it was since it last began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<String>,
    /// What was said about keeping it.
    #[serde(default, skip_serializing_if = "Kept::is_empty")]
    pub kept: Kept,
    /// What follows from the plan.
    #[serde(skip)]
    pub(crate) index: Arc<PlanIndex>,
}

impl Build {
    /// Its name.
    pub fn id(&self) -> &BuildId {
        &self.plan.build
    }

    /// Whether nobody has looked at what it builds: nothing that it leaves is read by a release.
    pub fn is_untrusted(&self) -> bool {
        self.plan.untrusted
    }

    /// Its jobs, in the plan's order.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> + use<> {
        (self.first_job.0..).take(self.plan.jobs.len()).map(JobId)
    }

    /// The number of one of its jobs.
    pub fn job_id(&self, name: &JobName) -> Option<JobId> {
        self.index.position(name).map(|index| JobId(self.first_job.0 + index as u64))
    }

    /// The numbers of the jobs at these places of the plan.
    pub(crate) fn ids<'a>(&self, places: &'a [usize]) -> impl Iterator<Item = JobId> + use<'a> {
        let first = self.first_job.0;
        places.iter().map(move |place| JobId(first + *place as u64))
    }

    /// Whether it is over.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, BuildState::Ended { .. })
    }

    /// Whether jobs of it may still be leased.
    pub fn is_running(&self) -> bool {
        matches!(self.state, BuildState::Running)
    }
}
