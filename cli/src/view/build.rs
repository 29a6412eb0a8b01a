//! Builds, jobs, attempts, artifacts.

use super::words::words;
use super::{phase, some, time};
use jiff::Timestamp;
use railyard_common::id::{BuildId, ChannelName, JobName};
use railyard_common::image_name;
use railyard_common::path::url_path;
use railyard_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

words!(
    /// Where a build stands.
    BuildState {
        Running = "running",
        Finalizing = "finalizing",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
        Unknown = "unknown",
    }
);

words!(
    /// Where a job stands.
    JobState {
        Blocked = "blocked",
        AwaitsApproval = "awaits-approval",
        Queued = "queued",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        TimedOut = "timed-out",
        Cancelled = "cancelled",
        Lost = "lost",
        Skipped = "skipped",
        Unknown = "unknown",
    }
);

impl BuildState {
    /// Nothing will happen any more, unless it is retried.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    fn from_number(number: i32) -> Self {
        match v1::BuildState::try_from(number) {
            Ok(v1::BuildState::Running) => Self::Running,
            Ok(v1::BuildState::Finalizing) => Self::Finalizing,
            Ok(v1::BuildState::Succeeded) => Self::Succeeded,
            Ok(v1::BuildState::Failed) => Self::Failed,
            Ok(v1::BuildState::Cancelled) => Self::Cancelled,
            Ok(v1::BuildState::Unspecified) | Err(_) => Self::Unknown,
        }
    }
}

impl JobState {
    /// Nothing will happen any more, unless it is retried.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Blocked | Self::AwaitsApproval | Self::Queued | Self::Running | Self::Unknown)
    }

    /// It ended badly by itself, not for another's sake.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Lost)
    }

    fn from_number(number: i32) -> Self {
        match v1::JobState::try_from(number) {
            Ok(v1::JobState::Blocked) => Self::Blocked,
            Ok(v1::JobState::AwaitsApproval) => Self::AwaitsApproval,
            Ok(v1::JobState::Queued) => Self::Queued,
            Ok(v1::JobState::Running) => Self::Running,
            Ok(v1::JobState::Succeeded) => Self::Succeeded,
            Ok(v1::JobState::Failed) => Self::Failed,
            Ok(v1::JobState::TimedOut) => Self::TimedOut,
            Ok(v1::JobState::Cancelled) => Self::Cancelled,
            Ok(v1::JobState::Lost) => Self::Lost,
            Ok(v1::JobState::Skipped) => Self::Skipped,
            Ok(v1::JobState::Unspecified) | Err(_) => Self::Unknown,
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub kind: &'static str,
    pub reason: String,
    pub message: String,
    pub exit_code: Option<i32>,
    pub log_tail: Vec<String>,
}

impl From<v1::Outcome> for Outcome {
    fn from(outcome: v1::Outcome) -> Self {
        let kind = match outcome.kind() {
            v1::OutcomeKind::Succeeded => "succeeded",
            v1::OutcomeKind::Failed => "failed",
            v1::OutcomeKind::TimedOut => "timed-out",
            v1::OutcomeKind::Cancelled => "cancelled",
            v1::OutcomeKind::Lost => "lost",
            v1::OutcomeKind::Refused => "refused",
            v1::OutcomeKind::Unspecified => "unknown",
        };
        Self {
            kind,
            reason: outcome.reason,
            message: outcome.message,
            exit_code: outcome.exit_code,
            log_tail: outcome.log_tail,
        }
    }
}

/// One execution of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    pub attempt: u32,
    pub worker: String,
    pub leased_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub phase: Option<&'static str>,
    pub outcome: Option<Outcome>,
}

impl From<v1::AttemptView> for Attempt {
    fn from(view: v1::AttemptView) -> Self {
        Self {
            attempt: view.attempt,
            worker: view.worker,
            leased_at: time(view.leased_at),
            ended_at: time(view.ended_at),
            phase: phase(view.phase),
            outcome: view.outcome.map(Outcome::from),
        }
    }
}

/// An output file of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Artifact {
    pub job: String,
    pub path: String,
    pub size_bytes: u64,
    pub digest: String,
    pub media_type: String,
    /// Below the cache root.
    pub published: Option<String>,
    /// Where the published file can be fetched.
    pub url: Option<String>,
}

impl Artifact {
    /// Of that job; `cache_url` is the root for published paths.
    pub fn new(job: &str, artifact: v1::Artifact, cache_url: &str) -> Self {
        let blob = artifact.blob.unwrap_or_default();
        let published = some(artifact.published);
        let url = published
            .as_ref()
            .filter(|_| !cache_url.is_empty())
            .map(|path| format!("{}/{}", cache_url.trim_end_matches('/'), url_path(path)));
        Self {
            job: job.to_owned(),
            path: artifact.path,
            size_bytes: blob.size_bytes,
            digest: blob.digest,
            media_type: artifact.media_type,
            published,
            url,
        }
    }
}

/// That somebody has to approve a job, and who did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// What there is to approve, if the pipeline says.
    pub what: Option<String>,
    pub approved_by: Option<String>,
    pub approved_at: Option<Timestamp>,
}

impl From<v1::Approval> for Approval {
    fn from(approval: v1::Approval) -> Self {
        Self {
            what: some(approval.what),
            approved_by: some(approval.approved_by),
            approved_at: time(approval.approved_at),
        }
    }
}

/// One step for one platform in a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    pub job_id: u64,
    pub name: String,
    pub state: JobState,
    pub why: Option<String>,
    /// Why it was cancelled on its own.
    pub cancel_reason: Option<String>,
    pub approval: Option<Approval>,
    pub needs: Vec<String>,
    pub queued_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub attempts: Vec<Attempt>,
    pub artifacts: Vec<Artifact>,
    /// Engine id of the image that it left.
    pub image: Option<String>,
    /// What to pull that image by, from the controller's registry.
    pub image_reference: Option<String>,
}

impl Job {
    /// Its newest attempt.
    pub fn last(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// How the newest attempt that ended did so.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.attempts.iter().rev().find_map(|attempt| attempt.outcome.as_ref())
    }

    fn new(view: v1::JobView, cache_url: &str) -> Self {
        let artifacts = view.artifacts.into_iter().map(|one| Artifact::new(&view.name, one, cache_url)).collect();
        Self {
            job_id: view.job,
            state: JobState::from_number(view.state),
            why: some(view.why),
            cancel_reason: some(view.cancel_reason),
            approval: view.approval.map(Approval::from),
            needs: view.needs,
            queued_at: time(view.queued_at),
            ended_at: time(view.ended_at),
            attempts: view.attempts.into_iter().map(Attempt::from).collect(),
            artifacts,
            image: view.image.and_then(|image| image.config).map(|config| config.digest),
            image_reference: None,
            name: view.name,
        }
    }
}

/// A reason to keep a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    pub name: String,
    pub by: String,
    pub why: String,
    pub at: Option<Timestamp>,
    /// Until somebody takes it back, if there is none.
    pub until: Option<Timestamp>,
}

impl From<v1::Pin> for Pin {
    fn from(pin: v1::Pin) -> Self {
        Self { name: pin.name, by: pin.by, why: pin.why, at: time(pin.at), until: time(pin.until) }
    }
}

/// A build was put into a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promotion {
    pub channel: String,
    pub by: String,
    pub at: Option<Timestamp>,
    /// What was published for that.
    pub paths: Vec<String>,
}

impl From<v1::Promotion> for Promotion {
    fn from(one: v1::Promotion) -> Self {
        Self { channel: one.channel, by: one.by, at: time(one.at), paths: one.paths }
    }
}

/// Only a part of a build is kept, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reduced {
    pub by: String,
    pub why: String,
    pub at: Option<Timestamp>,
}

impl From<v1::Reduced> for Reduced {
    fn from(reduced: v1::Reduced) -> Self {
        Self { by: reduced.by, why: reduced.why, at: time(reduced.at) }
    }
}

/// One run of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Build {
    pub build: String,
    pub state: BuildState,
    pub priority: Option<String>,
    /// Nobody has looked at what it builds.
    pub untrusted: bool,
    /// The channel that it is for; `None`: the controller is too old to tell.
    pub channel: Option<String>,
    /// Other builds that it takes images and artifacts from.
    pub uses: Vec<String>,
    /// Names that people gave it.
    pub tags: Vec<String>,
    /// Why retention must keep it.
    pub pins: Vec<Pin>,
    /// Channels that it was put into, oldest first.
    pub promotions: Vec<Promotion>,
    /// The channel that it is on its way to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoting: Option<String>,
    /// all, published, manifest or nothing; `None`: the controller is too old to tell.
    pub keep: Option<String>,
    /// Who left only that of it.
    pub reduced: Option<Reduced>,
    pub submitted_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub submitted_by: Option<String>,
    pub params: BTreeMap<String, String>,
    pub cache_url: Option<String>,
    pub trace_id: Option<String>,
    pub finalize_error: Option<String>,
    pub cancel_reason: Option<String>,
    pub jobs: Vec<Job>,
}

impl From<v1::BuildView> for Build {
    fn from(view: v1::BuildView) -> Self {
        let jobs = view.jobs.into_iter().map(|job| Job::new(job, &view.cache_url)).collect();
        Self {
            build: view.build,
            state: BuildState::from_number(view.state),
            priority: some(view.priority),
            untrusted: view.untrusted,
            channel: some(view.channel),
            uses: view.uses,
            tags: view.tags,
            pins: view.pins.into_iter().map(Pin::from).collect(),
            promotions: view.promotions.into_iter().map(Promotion::from).collect(),
            promoting: some(view.promoting),
            keep: some(view.keep),
            reduced: view.reduced.map(Reduced::from),
            submitted_at: time(view.submitted_at),
            ended_at: time(view.ended_at),
            submitted_by: some(view.submitted_by),
            params: view.params.into_iter().collect(),
            cache_url: some(view.cache_url),
            trace_id: some(view.trace_id),
            finalize_error: some(view.finalize_error),
            cancel_reason: some(view.cancel_reason),
            jobs,
        }
    }
}

impl Build {
    /// How urgent it is, if that is not the usual of its tier.
    pub fn unusual_priority(&self) -> Option<&str> {
        let usual = if self.untrusted { "change" } else { "manual" };
        self.priority.as_deref().filter(|priority| *priority != usual)
    }

    /// The channel, unless it goes without saying.
    pub fn unusual_channel(&self) -> Option<&str> {
        self.channel.as_deref().filter(|channel| *channel != ChannelName::usual().as_str())
    }

    /// The word on builds that are not trusted.
    pub fn tier(&self) -> Option<&'static str> {
        self.untrusted.then_some("untrusted")
    }

    /// Jobs in that state.
    pub fn count(&self, state: JobState) -> usize {
        self.jobs.iter().filter(|job| job.state == state).count()
    }

    /// Says what the images can be pulled by from the controller at `url`.
    pub fn name_images(&mut self, url: &str) {
        let host = url.split_once("://").map_or(url, |(_, host)| host).trim_end_matches('/');
        let Ok(build) = self.build.parse::<BuildId>() else { return };
        for job in self.jobs.iter_mut().filter(|job| job.image.is_some()) {
            let reference = |name: JobName| format!("{host}/{}", image_name::reference(&build, &name));
            job.image_reference = job.name.parse().ok().map(reference);
        }
    }

    /// All artifacts, in the order of the jobs.
    pub fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        self.jobs.iter().flat_map(|job| &job.artifacts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_artifacts_can_be_given_to_curl() {
        let artifact = v1::Artifact { published: "mini/a b#1?/ü%41.txt".to_owned(), ..Default::default() };
        let listed = Artifact::new("a@linux/amd64", artifact, "https://farm.example:7411/cache/");
        assert_eq!(listed.url.unwrap(), "https://farm.example:7411/cache/mini/a%20b%231%3F/%C3%BC%2541.txt");
        assert_eq!(listed.published.unwrap(), "mini/a b#1?/ü%41.txt");
    }

    #[test]
    fn images_are_named_as_the_registry_names_them() {
        let job = |name: &str, image: bool| v1::JobView {
            name: name.to_owned(),
            image: image.then(|| v1::Image { config: Some(v1::Blob::default()), layers: Vec::new() }),
            ..Default::default()
        };
        let jobs =
            vec![job("sdk@linux/amd64", true), job("vms.qcow2@linux/arm64", true), job("test@linux/amd64", false)];
        let mut build = Build::from(v1::BuildView { build: "mini/1.0+x".to_owned(), jobs, ..Default::default() });
        build.name_images("https://farm.example:7411/");
        let named: Vec<_> = build.jobs.iter().map(|job| job.image_reference.as_deref()).collect();
        let want = [Some("farm.example:7411/mini/sdk:1.0_x"), Some("farm.example:7411/mini/vms.qcow2:1.0_x"), None];
        assert_eq!(named, want);
    }
}
