//! Sweeps: what they would do, and what they did.

use super::{some, time};
use jiff::Timestamp;
use railyard_proto::v1;
use serde::Serialize;

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SweepPlan {
    pub digest: String,
    pub at: Option<Timestamp>,
    /// Why it may not be carried out.
    pub stopped: Option<String>,
    /// Newest first.
    pub builds: Vec<PlannedBuild>,
    pub gone: Vec<SweepCount>,
    pub listed_objects: u64,
    pub listed_bytes: u64,
    pub foreign_objects: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<SweptObject>,
    #[serde(skip_serializing_if = "is_zero")]
    pub more_objects: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A build, and what the rules say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedBuild {
    pub build: String,
    pub channel: String,
    pub now: String,
    pub keep: String,
    pub why: Vec<String>,
    pub bytes: u64,
    pub frees_bytes: u64,
}

/// Objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SweepCount {
    pub kind: String,
    pub objects: u64,
    pub bytes: u64,
}

/// An object that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SweptObject {
    pub path: String,
    pub bytes: u64,
}

/// What a sweep did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    pub digest: String,
    pub reduced: u64,
    pub forgotten: u64,
    pub unpublished: u64,
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
    pub left: u64,
    pub failures: u64,
    pub first_failure: Option<String>,
}

impl From<v1::SweepPlan> for SweepPlan {
    fn from(plan: v1::SweepPlan) -> Self {
        let build = |one: v1::PlannedBuild| PlannedBuild {
            build: one.build,
            channel: one.channel,
            now: one.now,
            keep: one.keep,
            why: one.why,
            bytes: one.bytes,
            frees_bytes: one.frees_bytes,
        };
        let count = |one: v1::SweepCount| SweepCount { kind: one.kind, objects: one.objects, bytes: one.bytes };
        Self {
            digest: plan.digest,
            at: time(plan.at),
            stopped: some(plan.stopped),
            builds: plan.builds.into_iter().map(build).collect(),
            gone: plan.gone.into_iter().map(count).collect(),
            listed_objects: plan.listed_objects,
            listed_bytes: plan.listed_bytes,
            foreign_objects: plan.foreign_objects,
            objects: plan.objects.into_iter().map(|one| SweptObject { path: one.path, bytes: one.bytes }).collect(),
            more_objects: plan.more_objects,
        }
    }
}

impl From<v1::SweepReport> for SweepReport {
    fn from(report: v1::SweepReport) -> Self {
        Self {
            digest: report.digest,
            reduced: report.reduced,
            forgotten: report.forgotten,
            unpublished: report.unpublished,
            deleted_objects: report.deleted_objects,
            deleted_bytes: report.deleted_bytes,
            left: report.left,
            failures: report.failures,
            first_failure: some(report.first_failure),
        }
    }
}
