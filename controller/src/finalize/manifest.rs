//! `build.json`: what scripts read of one build.

use crate::document::{SCHEMA_VERSION, rfc3339};
use railyard_common::blob::{Artifact, Image};
use railyard_common::id::{BuildId, ChannelName, JobName, WorkerName};
use railyard_common::job::ImageSource;
use railyard_common::outcome::Outcome;
use railyard_common::priority::Priority;
use railyard_core::{Build, Farm, Job, JobState, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

/// `build.json`: everything that is known of a build that has ended.
#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    schema_version: u32,
    build: BuildId,
    channel: ChannelName,
    pub(super) verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    submitted_at: String,
    submitted_by: String,
    priority: Priority,
    /// Nobody had looked at what it builds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) untrusted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_reason: Option<String>,
    params: BTreeMap<String, String>,
    /// Other builds that it took images and artifacts from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    uses: Vec<BuildId>,
    platforms: Vec<railyard_common::platform::Platform>,
    trace_id: String,
    software: String,
    pub(super) jobs: Vec<ManifestJob>,
}

/// One job of `build.json`.
#[derive(Debug, Serialize)]
pub(super) struct ManifestJob {
    name: JobName,
    state: String,
    needs: Vec<JobName>,
    image_source: ImageSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Image>,
    pub(super) artifacts: Vec<Artifact>,
    attempts: Vec<ManifestAttempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved: Option<ManifestApproval>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_reason: Option<String>,
}

/// Who let a job of `build.json` go on.
#[derive(Debug, Serialize)]
struct ManifestApproval {
    by: String,
    at: String,
}

/// One attempt of `build.json`.
#[derive(Debug, Serialize)]
struct ManifestAttempt {
    attempt: u32,
    worker: WorkerName,
    leased_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    log_bytes: u64,
}

impl Manifest {
    pub(super) fn of(farm: &Farm, build: &Build, verdict: Verdict) -> Self {
        let jobs = build.jobs().zip(&build.plan.jobs).filter_map(|(id, spec)| {
            let job = farm.job(id)?;
            let result = job.result().cloned().unwrap_or_default();
            Some(ManifestJob {
                name: spec.name.clone(),
                state: state_word(job).to_owned(),
                needs: spec.needs.clone(),
                image_source: spec.image.clone(),
                image: result.image,
                artifacts: result.artifacts,
                attempts: job.attempts.iter().map(ManifestAttempt::of).collect(),
                approved: job
                    .approval
                    .as_ref()
                    .map(|given| ManifestApproval { by: given.by.clone(), at: rfc3339(given.at) }),
                cancel_reason: job.cancelled.clone(),
            })
        });
        Self {
            schema_version: SCHEMA_VERSION,
            build: build.id().clone(),
            channel: build.channel().clone(),
            verdict,
            error: None,
            submitted_at: rfc3339(build.submitted_at),
            submitted_by: build.by.clone(),
            priority: build.priority,
            untrusted: build.is_untrusted(),
            cancel_reason: build.cancel_reason.clone(),
            params: build.plan.params.clone(),
            uses: build.plan.uses.clone(),
            platforms: build.plan.platforms.clone(),
            trace_id: build.trace.trace_id.clone(),
            software: format!("railyard {}", railyard_common::VERSION),
            jobs: jobs.collect(),
        }
    }

    /// The build's paths cannot be published.
    pub(super) fn fail(&mut self, why: &str) {
        self.verdict = Verdict::Failed;
        self.error = Some(why.to_owned());
        self.jobs.iter_mut().flat_map(|job| &mut job.artifacts).for_each(|artifact| artifact.published = None);
    }
}

impl ManifestAttempt {
    fn of(attempt: &railyard_core::Attempt) -> Self {
        let end = attempt.end.as_ref();
        Self {
            attempt: attempt.number,
            worker: attempt.worker.clone(),
            leased_at: rfc3339(attempt.leased_at),
            ended_at: end.map(|end| rfc3339(end.at)),
            outcome: end.map(|end| end.outcome.clone()),
            log_bytes: end.map_or(0, |end| end.log_bytes),
        }
    }
}

fn state_word(job: &Job) -> &'static str {
    match &job.state {
        JobState::Blocked { .. } => "blocked",
        JobState::AwaitsApproval { .. } => "awaits-approval",
        JobState::Queued { .. } => "queued",
        JobState::Leased { .. } => "running",
        JobState::Succeeded(_) => "succeeded",
        JobState::Ended { kind, .. } => kind.as_str(),
        JobState::Skipped { .. } => "skipped",
    }
}
