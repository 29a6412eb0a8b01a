//! A job, its states and its attempts.

use crate::index::PlanIndex;
use railyard_common::blob::{Artifact, Image};
use railyard_common::id::{BuildId, JobId, JobName, LeaseId, WorkerName};
use railyard_common::job::JobSpec;
use railyard_common::outcome::{Outcome, OutcomeKind};
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a successful attempt left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// Its output files.
    pub artifacts: Vec<Artifact>,
    /// Its image, if it commits one.
    pub image: Option<Image>,
}

/// Where a job stands.
///
/// `Blocked` → (`AwaitsApproval` →) `Queued` → `Leased` → (`Queued` again | an end). A retry takes an end back to one of the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Needs have not succeeded yet.
    Blocked {
        /// How many.
        needs: usize,
    },
    /// Everything that it needs has succeeded, and somebody has to approve it.
    AwaitsApproval {
        /// Since when.
        since: Millis,
    },
    /// Waits for a worker.
    Queued {
        /// Since when.
        since: Millis,
        /// No attempt before this: backoff.
        not_before: Millis,
    },
    /// A worker has the lease of the last attempt.
    Leased {
        /// Who.
        worker: WorkerName,
    },
    /// It ended well.
    Succeeded(JobResult),
    /// It ended otherwise, as its last attempt did: failed, timed out, cancelled, lost or refused.
    Ended {
        /// How.
        kind: OutcomeKind,
        /// When.
        at: Millis,
    },
    /// It cannot run: this need of it did not succeed.
    Skipped {
        /// The need.
        because: JobName,
    },
}

/// One execution of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1, never reused.
    pub number: u32,
    /// Who ran it.
    pub worker: WorkerName,
    /// When the lease began.
    pub leased_at: Millis,
    /// Its container has ended, and what it left is on its way: of what it reserved, only the disk is still in use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uploading: bool,
    /// Its end, if it has ended.
    pub end: Option<AttemptEnd>,
}

/// How and when an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// When.
    pub at: Millis,
    /// How.
    pub outcome: Outcome,
    /// Length of its log.
    pub log_bytes: u64,
}

/// Who approved a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// When.
    pub at: Millis,
    /// Who.
    pub by: String,
}

/// One step for one platform in one build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The build that it is part of.
    pub build: BuildId,
    /// Its place in the plan.
    pub index: usize,
    /// Where it stands.
    pub state: JobState,
    /// Every execution so far.
    pub attempts: Vec<Attempt>,
    /// Attempts the farm lost, since the last submit or retry.
    pub lost: u32,
    /// Attempts the step failed, since the last submit or retry.
    pub failed: u32,
    /// Steps on the longest way from here to the end of the plan, itself included.
    pub path_len: u32,
    /// When it first became ready to be leased, since the last submit or retry; its age counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Millis>,
    /// Its number in the order in which the farm's jobs became ready.
    #[serde(default)]
    pub ticket: u64,
    /// Who approved it, if that is needed and was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// Why it was cancelled on its own, for people, since the last submit or retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<String>,
    /// What follows from its build's plan.
    #[serde(skip)]
    pub(crate) home: Arc<PlanIndex>,
}

impl Job {
    /// What it is to do.
    pub(crate) fn spec(&self) -> Option<&JobSpec> {
        self.home.plan.as_ref()?.jobs.get(self.index)
    }

    /// The numbers of the jobs at these places of its build's plan; its own number is `id`.
    pub(crate) fn siblings<'a>(&self, id: JobId, places: &'a [usize]) -> impl Iterator<Item = JobId> + use<'a> {
        let first = id.0.saturating_sub(self.index as u64);
        places.iter().map(move |place| JobId(first + *place as u64))
    }

    /// The lease that is live, if one is.
    pub fn live_lease(&self, id: JobId) -> Option<LeaseId> {
        match self.state {
            JobState::Leased { .. } => self.attempts.last().map(|last| LeaseId { job: id, attempt: last.number }),
            _ => None,
        }
    }

    /// Whether nothing has been leased of it yet, and it is not over.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, JobState::Blocked { .. } | JobState::AwaitsApproval { .. } | JobState::Queued { .. })
    }

    /// Whether it is over.
    pub fn is_terminal(&self) -> bool {
        matches!(self.state, JobState::Succeeded(_) | JobState::Ended { .. } | JobState::Skipped { .. })
    }

    /// What it left, if it succeeded.
    pub fn result(&self) -> Option<&JobResult> {
        match &self.state {
            JobState::Succeeded(result) => Some(result),
            _ => None,
        }
    }
}
