//! `build.json`, `builds.json` and `latest.json`: what scripts read. Times are RFC 3339, sizes bytes.

use railyard_common::blob::{Artifact, Image};
use railyard_common::id::{BuildId, JobName, Version, WorkerName};
use railyard_common::job::ImageSource;
use railyard_common::manifest::SCHEMA_VERSION;
use railyard_common::outcome::Outcome;
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_core::{Build, Farm, Job, JobState, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `build.json`: everything that is known of a build that has ended.
#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    schema_version: u32,
    build: BuildId,
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

/// A point in time as `2026-11-21T09:30:00.120Z`: always with three digits, so that text is ordered as time is.
fn rfc3339(at: Millis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| at.to_string(), |time| format!("{time:.3}"))
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
            verdict,
            error: None,
            submitted_at: rfc3339(build.submitted_at),
            submitted_by: build.by.clone(),
            priority: build.priority,
            untrusted: build.is_untrusted(),
            cancel_reason: build.cancel_reason.clone(),
            params: build.plan.params.clone(),
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

/// `builds.json`: a pipeline's builds, newest first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct BuildIndex {
    schema_version: u32,
    builds: Vec<IndexEntry>,
}

/// One build of `builds.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct IndexEntry {
    version: Version,
    verdict: Verdict,
    submitted_at: String,
    platforms: Vec<railyard_common::platform::Platform>,
}

impl IndexEntry {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self {
            version: manifest.build.version.clone(),
            verdict: manifest.verdict,
            submitted_at: manifest.submitted_at.clone(),
            platforms: manifest.platforms.clone(),
        }
    }
}

impl BuildIndex {
    /// The index with `entry` in its place.
    pub(super) fn with(old: Option<Self>, entry: IndexEntry, max: usize) -> Self {
        let mut builds = old.map(|old| old.builds).unwrap_or_default();
        builds.retain(|known| known.version != entry.version);
        builds.push(entry);
        builds.sort_by(|a, b| b.submitted_at.cmp(&a.submitted_at));
        builds.truncate(max);
        Self { schema_version: SCHEMA_VERSION, builds }
    }
}

/// `latest.json`: a pipeline's newest success.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Latest {
    schema_version: u32,
    version: Version,
    submitted_at: String,
}

impl Latest {
    /// The newer of what stands and `manifest`: builds may end in another order than they began.
    pub(super) fn newer(old: Option<Self>, manifest: &Manifest) -> Self {
        match old {
            Some(old) if old.submitted_at > manifest.submitted_at => old,
            _ => Self {
                schema_version: SCHEMA_VERSION,
                version: manifest.build.version.clone(),
                submitted_at: manifest.submitted_at.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ordered_as_text() {
        let times = [0, 1_000, 1_100, 1_110, 1_111, 2_000].map(|millis| rfc3339(Millis(millis)));
        assert_eq!(times[2], "1970-01-01T00:00:01.100Z");
        assert!(times.is_sorted(), "{times:?}");
    }
}
