//! The farm's state as readers see it.

use prost::Message as _;
use railyard_common::blob::Artifact;
use railyard_common::id::{JobId, LeaseId, PinName, PipelineName};
use railyard_common::identity::Limits;
use railyard_common::job::{ImageSource, JobSpec};
use railyard_common::outcome::OutcomeKind;
use railyard_common::retention::Pin;
use railyard_common::time::Millis;
use railyard_core::{
    Approval, Attempt, Build, BuildState, Farm, Hold, HoldKind, Job, JobState, Live, Phase, Pressure, Promotion,
    Scarce, Verdict, Worker,
};
use railyard_proto::v1;
use railyard_service::convert::{ToProto as _, timestamp};

/// The first of `views`, as long as they are no more than `max_bytes` together; always the first one.
pub(super) fn up_to(max_bytes: usize, views: impl Iterator<Item = v1::BuildView>) -> Vec<v1::BuildView> {
    let (mut bytes, mut taken) = (0, Vec::new());
    for view in views {
        bytes += view.encoded_len();
        if bytes > max_bytes && !taken.is_empty() {
            break;
        }
        taken.push(view);
    }
    taken
}

/// A build with everything of it, or, without `detail`, without artifacts and images, why its jobs wait, and what its
/// attempts' outcomes say at length.
pub(super) fn build(
    farm: &Farm,
    live: &Live,
    build: &Build,
    now: Millis,
    cache_url: &str,
    detail: bool,
) -> v1::BuildView {
    let (state, ended_at, error) = match &build.state {
        BuildState::Running | BuildState::Cancelling { .. } => (v1::BuildState::Running, None, None),
        BuildState::Finalizing { .. } => (v1::BuildState::Finalizing, None, None),
        BuildState::Ended { verdict, at, error } => (verdict_state(*verdict), Some(*at), error.clone()),
    };
    let error = error.or_else(|| live.finalize_error(build.id()).map(str::to_owned)).unwrap_or_default();
    v1::BuildView {
        build: build.id().to_string(),
        state: state.into(),
        submitted_at: Some(timestamp(build.submitted_at)),
        ended_at: ended_at.map(timestamp),
        submitted_by: build.by.clone(),
        params: build.plan.params.clone().into_iter().collect(),
        jobs: build.jobs().filter_map(|id| job(farm, live, id, now, detail)).collect(),
        cache_url: cache_url.to_owned(),
        trace_id: build.trace.trace_id.clone(),
        finalize_error: error,
        cancel_reason: build.cancel_reason.clone().unwrap_or_default(),
        priority: build.priority.to_string(),
        untrusted: build.is_untrusted(),
        channel: build.channel().to_string(),
        uses: build.plan.uses.iter().map(ToString::to_string).collect(),
        tags: build.kept.tags.iter().map(ToString::to_string).collect(),
        pins: build.kept.pins.iter().filter(|(_, held)| held.holds(now)).map(|(name, held)| pin(name, held)).collect(),
        promotions: build.kept.promotions.iter().map(|one| promotion(one, detail)).collect(),
        promoting: build.kept.promoting.as_ref().map(|one| one.promotion.channel.to_string()).unwrap_or_default(),
        keep: build.keep().to_string(),
        reduced: build.kept.reduced.as_ref().map(|reduced| v1::Reduced {
            by: reduced.by.clone(),
            why: reduced.why.clone(),
            at: Some(timestamp(reduced.at)),
        }),
    }
}

/// A reason to keep a build.
pub(super) fn pin(name: &PinName, pin: &Pin) -> v1::Pin {
    v1::Pin {
        name: name.to_string(),
        by: pin.by.clone(),
        why: pin.why.clone(),
        at: Some(timestamp(pin.at)),
        until: pin.until.map(timestamp),
    }
}

/// How it came into a channel; with `detail`, what was published for that.
pub(super) fn promotion(promotion: &Promotion, detail: bool) -> v1::Promotion {
    let paths = promotion.paths.keys().filter(|_| detail);
    v1::Promotion {
        channel: promotion.channel.to_string(),
        by: promotion.by.clone(),
        at: Some(timestamp(promotion.at)),
        paths: paths.map(ToString::to_string).collect(),
    }
}

/// Where they are published is told when they are.
fn artifacts(artifacts: &[Artifact], is_published: bool) -> Vec<v1::Artifact> {
    let told = artifacts.iter().map(|artifact| {
        let published = artifact.published.clone().filter(|_| is_published);
        Artifact { published, ..artifact.clone() }.to_proto()
    });
    told.collect()
}

fn verdict_state(verdict: Verdict) -> v1::BuildState {
    match verdict {
        Verdict::Succeeded => v1::BuildState::Succeeded,
        Verdict::Failed => v1::BuildState::Failed,
        Verdict::Cancelled => v1::BuildState::Cancelled,
    }
}

fn job(farm: &Farm, live: &Live, id: JobId, now: Millis, detail: bool) -> Option<v1::JobView> {
    let (job, spec) = farm.job(id).zip(farm.spec(id))?;
    let is_published = farm.build(&job.build).is_some_and(Build::is_published);
    let result = job.result().filter(|_| detail);
    let queued_at = match job.state {
        JobState::Queued { since, .. } => Some(since),
        _ => None,
    };
    Some(v1::JobView {
        job: id.0,
        name: spec.name.to_string(),
        state: job_state(job).into(),
        why: if detail { farm.why_waiting(id, now) } else { String::new() },
        needs: spec.needs.iter().map(ToString::to_string).collect(),
        attempts: job.attempts.iter().map(|one| attempt(live, id, one, detail)).collect(),
        artifacts: result.map(|result| artifacts(&result.artifacts, is_published)).unwrap_or_default(),
        image: result.and_then(|result| result.image.as_ref()).map(|image| image.to_proto()),
        queued_at: queued_at.map(timestamp),
        ended_at: ended_at(job).map(timestamp),
        approval: spec.approval.as_ref().filter(|_| detail).map(|what| approval(what, job.approval.as_ref())),
        cancel_reason: job.cancelled.clone().filter(|_| detail).unwrap_or_default(),
    })
}

/// When a job ended: with its last attempt, or when it was cancelled.
fn ended_at(job: &Job) -> Option<Millis> {
    let last = job.attempts.last().and_then(|attempt| attempt.end.as_ref()).map(|end| end.at);
    match job.state {
        JobState::Ended { at, .. } => Some(at),
        _ => last.filter(|_| job.is_terminal()),
    }
}

fn approval(what: &str, given: Option<&Approval>) -> v1::Approval {
    v1::Approval {
        what: what.to_owned(),
        approved_by: given.map(|given| given.by.clone()).unwrap_or_default(),
        approved_at: given.map(|given| timestamp(given.at)),
    }
}

/// A job of a plan: where it could run now, and what it would wait for.
pub(super) fn planned(farm: &Farm, pipeline: &PipelineName, spec: &JobSpec, now: Millis) -> v1::PlannedJob {
    let able = farm.workers().filter(|worker| farm.could_take(worker, spec, now));
    v1::PlannedJob {
        name: spec.name.to_string(),
        needs: spec.needs.iter().map(ToString::to_string).collect(),
        image: image_source(&spec.image),
        resources: Some(spec.run.resources.to_proto()),
        outputs: spec.run.outputs.iter().map(|output| format!("{}{}", output.glob, output.compress.suffix())).collect(),
        workers: able.map(|worker| worker.offer.name.to_string()).collect(),
        why: farm.why_it_would_wait(pipeline, spec, now).unwrap_or_default(),
        approval: spec.approval.as_ref().map(|what| approval(what, None)),
        concurrency: spec
            .concurrency
            .as_ref()
            .map(|said| v1::Concurrency { group: said.group.to_string(), limit: said.limit }),
        pool: spec.pool.as_ref().map(ToString::to_string).unwrap_or_default(),
        labels: spec.labels.clone().into_iter().collect(),
    }
}

fn job_state(job: &Job) -> v1::JobState {
    match &job.state {
        JobState::Blocked { .. } => v1::JobState::Blocked,
        JobState::AwaitsApproval { .. } => v1::JobState::AwaitsApproval,
        JobState::Queued { .. } => v1::JobState::Queued,
        JobState::Leased { .. } => v1::JobState::Running,
        JobState::Succeeded(_) => v1::JobState::Succeeded,
        JobState::Skipped { .. } => v1::JobState::Skipped,
        JobState::Ended { kind, .. } => match kind {
            OutcomeKind::Succeeded => v1::JobState::Succeeded,
            OutcomeKind::Failed => v1::JobState::Failed,
            OutcomeKind::TimedOut => v1::JobState::TimedOut,
            OutcomeKind::Cancelled => v1::JobState::Cancelled,
            OutcomeKind::Lost | OutcomeKind::Refused => v1::JobState::Lost,
        },
    }
}

fn attempt(live: &Live, job: JobId, attempt: &Attempt, detail: bool) -> v1::AttemptView {
    let outcome = attempt.end.as_ref().map(|end| match detail {
        true => end.outcome.to_proto(),
        false => v1::Outcome {
            kind: end.outcome.kind.to_proto().into(),
            reason: end.outcome.reason.as_str().to_owned(),
            exit_code: end.outcome.exit_code,
            ..Default::default()
        },
    });
    let phase = match attempt.end {
        Some(_) => v1::Phase::Unspecified,
        None => phase(live, LeaseId { job, attempt: attempt.number }),
    };
    v1::AttemptView {
        attempt: attempt.number,
        worker: attempt.worker.to_string(),
        leased_at: Some(timestamp(attempt.leased_at)),
        ended_at: attempt.end.as_ref().map(|end| timestamp(end.at)),
        outcome,
        phase: phase.into(),
    }
}

fn phase(live: &Live, lease: LeaseId) -> v1::Phase {
    match live.phase(lease) {
        None => v1::Phase::Unspecified,
        Some(Phase::Fetch) => v1::Phase::Fetch,
        Some(Phase::Run) => v1::Phase::Run,
        Some(Phase::Upload) => v1::Phase::Upload,
    }
}

/// A worker, with those of its jobs that somebody within `limits` may see.
pub(super) fn worker(farm: &Farm, live: &Live, worker: &Worker, limits: &Limits) -> v1::WorkerView {
    let job_of = |lease: &LeaseId| {
        let (job, spec) = farm.job(lease.job).zip(farm.spec(lease.job))?;
        if !limits.allow_pipeline(&job.build.pipeline) {
            return None;
        }
        let (build, name) = (job.build.to_string(), spec.name.to_string());
        Some(v1::WorkerJob { lease: Some(lease.to_proto()), build, job: name, phase: phase(live, *lease).into() })
    };
    let offer = &worker.offer;
    v1::WorkerView {
        name: offer.name.to_string(),
        connected: worker.online,
        platforms: offer.platforms.iter().map(|platform| platform.to_proto()).collect(),
        capacity: Some(offer.capacity.to_proto()),
        reserved: Some(worker.reserved.to_proto()),
        jobs: worker.leases.iter().filter_map(job_of).collect(),
        version: offer.version.clone(),
        last_seen_at: Some(timestamp(live.last_seen(&offer.name).unwrap_or(worker.changed_at))),
        labels: offer.labels.clone().into_iter().collect(),
        pool: offer.pool.as_ref().map(ToString::to_string).unwrap_or_default(),
        hold: worker.hold.as_ref().map(hold),
        quarantine: worker
            .quarantined_until()
            .map(|until| v1::Quarantine { losses: worker.losses, until: Some(timestamp(until)) }),
        draining: worker.draining,
        free_disk_bytes: live.free_disk_bytes(&offer.name).filter(|_| worker.online).unwrap_or_default(),
        retired: worker.is_retired(),
        allows_privileged: offer.allows_privileged,
        pressure: farm.pressure(&offer.name).filter(|_| worker.online).map(pressure),
        disk: live.disk(&offer.name).filter(|_| worker.online).map(|disk| disk.to_proto()),
    }
}

fn pressure(pressure: Pressure) -> v1::Pressure {
    let scarce = match pressure.scarce {
        Scarce::Memory => v1::Scarce::Memory,
        Scarce::Io => v1::Scarce::Io,
    };
    v1::Pressure { scarce: scarce.into(), percent: pressure.percent }
}

fn hold(hold: &Hold) -> v1::Hold {
    let kind = match hold.kind {
        HoldKind::Cordon => v1::HoldKind::Cordon,
        HoldKind::Drain => v1::HoldKind::Drain,
        HoldKind::Retire => v1::HoldKind::Retire,
    };
    v1::Hold {
        kind: kind.into(),
        by: hold.by.clone(),
        why: hold.why.clone(),
        until: hold.until.map(timestamp),
        stop_at: hold.stop_at.map(timestamp),
    }
}

/// Where an image comes from, for people.
fn image_source(source: &ImageSource) -> String {
    match source {
        ImageSource::Registry(reference) => reference.clone(),
        ImageSource::Job(job) => format!("image of {job}"),
        ImageSource::Build { build, job } => format!("image of {job} of {build}"),
        ImageSource::Import { build: None, job, artifact } => format!("{artifact} of {job}"),
        ImageSource::Import { build: Some(build), job, artifact } => format!("{artifact} of {job} of {build}"),
    }
}
