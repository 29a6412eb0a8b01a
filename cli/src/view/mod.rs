//! What the farm says, in the form in which verbs print it: the JSON of `-o json`, and what tables are made from.
//!
//! Field names are stable: they are added, never renamed. Times are RFC 3339, sizes and durations carry their unit.
//! States that this client does not know are shown as `unknown`, so that an older client can look at a newer farm.

mod audit;
mod build;
mod gc;
mod secret;
mod token;
mod words;
mod worker;

pub use audit::{AuditCheck, AuditLine, AuditRecord};
#[cfg(test)]
pub use build::Outcome;
pub use build::{Approval, Artifact, Attempt, Build, BuildState, Job, JobState, Pin, Promotion};
pub use gc::{SweepPlan, SweepReport};
pub use secret::Secret;
pub use token::{Token, TokenKind, TokenState};
pub use worker::{Disk, Offer, Worker, WorkerState};
#[cfg(test)]
pub use worker::{DiskUse, FileSystem, Hold, Quarantine, RunningJob};

use jiff::Timestamp;
use railyard_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// A point in time; absent and impossible ones are `None`.
fn time(stamp: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    stamp.and_then(|stamp| Timestamp::new(stamp.seconds, stamp.nanos).ok())
}

/// The text, or `None` for the empty one that the protocol uses for "not there".
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// What a worker has, or a job reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capacity {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub slots: u32,
}

impl From<Option<v1::Capacity>> for Capacity {
    fn from(capacity: Option<v1::Capacity>) -> Self {
        let v1::Capacity { cpu_millis, memory_bytes, disk_bytes, slots } = capacity.unwrap_or_default();
        Self { cpu_millis, memory_bytes, disk_bytes, slots }
    }
}

/// Where an attempt stands.
fn phase(number: i32) -> Option<&'static str> {
    match v1::Phase::try_from(number) {
        Ok(v1::Phase::Fetch) => Some("fetch"),
        Ok(v1::Phase::Run) => Some("run"),
        Ok(v1::Phase::Upload) => Some("upload"),
        Ok(v1::Phase::Unspecified) | Err(_) => None,
    }
}

/// The jobs that a submit would make: `plan`.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub pipeline: String,
    pub channel: Option<String>,
    pub uses: Vec<String>,
    pub jobs: Vec<PlannedJob>,
    pub warnings: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedJob {
    pub name: String,
    pub needs: Vec<String>,
    pub image: String,
    pub resources: Capacity,
    pub outputs: Vec<String>,
    pub workers: Vec<String>,
    pub why: Option<String>,
    pub approval: Option<Approval>,
    pub concurrency: Option<Concurrency>,
    pub pool: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// The jobs of a group run at most so many at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concurrency {
    pub group: String,
    pub limit: u32,
}

impl From<v1::PlanResponse> for Plan {
    fn from(plan: v1::PlanResponse) -> Self {
        Self {
            pipeline: plan.pipeline,
            channel: some(plan.channel),
            uses: plan.uses,
            jobs: plan.jobs.into_iter().map(PlannedJob::from).collect(),
            warnings: plan.warnings,
        }
    }
}

impl From<v1::PlannedJob> for PlannedJob {
    fn from(job: v1::PlannedJob) -> Self {
        Self {
            name: job.name,
            needs: job.needs,
            image: job.image,
            resources: job.resources.into(),
            outputs: job.outputs,
            workers: job.workers,
            why: some(job.why),
            approval: job.approval.map(Approval::from),
            concurrency: job.concurrency.map(|v1::Concurrency { group, limit }| Concurrency { group, limit }),
            pool: some(job.pool),
            labels: job.labels.into_iter().collect(),
        }
    }
}

/// What `submit` says.
#[derive(Debug, Serialize)]
pub struct Submitted {
    pub build: String,
    pub existing: bool,
    pub warnings: Vec<String>,
    /// Older builds that this one has cancelled.
    pub superseded: Vec<String>,
    pub trace_id: Option<String>,
    /// With `--wait`: the build at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Build>,
}
