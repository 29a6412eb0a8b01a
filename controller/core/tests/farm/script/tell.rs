//! Events and states in a line each, for people.

use crate::common::GIB;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, JobId, LeaseId};
use railyard_common::job::Capacity;
use railyard_common::order::OrderImage;
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_core::{Build, BuildState, Event, Farm, JobState, Next, Worker, WorkerOffer};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// An event, at the time when it happened.
pub fn event(event: &Event, farm: &Farm) -> String {
    let text = match event {
        Event::BuildAccepted { plan, by, key, priority, .. } => {
            let key = key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
            let priority = if *priority == Priority::default() { String::new() } else { format!(", {priority}") };
            format!("build-accepted {} from {by}{key}{priority}", plan.build)
        }
        Event::JobLeased { lease, worker, .. } => format!("job-leased {lease} {} to {worker}", name(farm, lease.job)),
        Event::AttemptEnded { lease, outcome, next, at, .. } => {
            let mut text = format!("attempt-ended {lease} {}: {}", name(farm, lease.job), outcome.kind);
            let _ = write!(text, " ({})", outcome.reason);
            if let Next::Again { not_before } = next {
                let _ = write!(text, ", again in {} s", not_before.since(*at) as f64 / 1000.0);
            }
            if !outcome.message.is_empty() {
                let _ = write!(text, "; {}", outcome.message);
            }
            text
        }
        Event::JobUploading { lease, .. } => format!("job-uploading {lease} {}", name(farm, lease.job)),
        Event::JobsApproved { build, jobs, by, .. } => format!("jobs-approved {build} {} by {by}", ids(jobs)),
        Event::JobsCancelled { build, jobs, by, reason, .. } => {
            format!("jobs-cancelled {build} {} by {by}: {reason}", ids(jobs))
        }
        Event::WorkerHeld { worker, hold, at } => {
            let span = |until: Option<Millis>| until.map(|until| until.since(*at) / 1000);
            let until = span(hold.until).map(|secs| format!(", for {secs} s")).unwrap_or_default();
            let stop = span(hold.stop_at).map(|secs| format!(", its jobs for {secs} s")).unwrap_or_default();
            format!("worker-held {worker}: {hold}{until}{stop}")
        }
        Event::WorkerReleased { worker, by, .. } if by.is_empty() => {
            format!("worker-released {worker}: its time is over")
        }
        Event::WorkerReleased { worker, by, .. } => format!("worker-released {worker} by {by}"),
        Event::TokenMade { token, .. } => format!("token-made {} for {} by {}", token.id, token.identity, token.by),
        Event::TokenUsed { id, .. } => format!("token-used {id}"),
        Event::TokenDropped { id, by, .. } => format!("token-dropped {id} by {by}"),
        Event::IdentityRevoked { who, by, why, .. } => format!("identity-revoked {who} by {by}: {why}"),
        Event::WorkerForgotten { worker, .. } => format!("worker-forgotten {worker}"),
        Event::BuildCancelled { build, by, reason, .. } => format!("build-cancelled {build} by {by}: {reason}"),
        Event::BuildResumed { build, jobs, .. } if jobs.is_empty() => format!("build-resumed {build}: its manifest"),
        Event::BuildResumed { build, jobs, .. } => {
            format!("build-resumed {build}: {}", ids(jobs))
        }
        Event::BuildEnded { build, error: None, .. } => format!("build-ended {build}"),
        Event::BuildEnded { build, error: Some(error), .. } => format!("build-ended {build}: {error}"),
        Event::WorkerOnline { offer, .. } => format!("worker-online {}, boot {}", self::offer(offer), offer.boot.0),
        Event::WorkerOffline { worker, .. } => format!("worker-offline {worker}"),
        Event::WorkerDraining { worker, .. } => format!("worker-draining {worker}"),
        Event::BuildPinned { build, name, pin, at } => {
            let until = pin.until.map(|until| format!(", for {} s", until.since(*at) / 1000)).unwrap_or_default();
            format!("build-pinned {build} {name} by {}: {}{until}", pin.by, pin.why)
        }
        Event::BuildUnpinned { build, names, by, .. } => {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            format!("build-unpinned {build} {} by {by}", names.join(" "))
        }
        Event::BuildTagged { build, tag, by, .. } => format!("build-tagged {build} {tag} by {by}"),
        Event::BuildUntagged { build, tag, by, .. } => format!("build-untagged {build} {tag} by {by}"),
        Event::PromotionBegun { build, promotion, fresh, .. } => {
            format!(
                "promotion-begun {build} to {}: {} files, {} new",
                promotion.channel,
                promotion.paths.len(),
                fresh.len()
            )
        }
        Event::PromotionFailed { build, why, .. } => format!("promotion-failed {build}: {why}"),
        Event::PromotionForgotten { build, .. } => format!("promotion-forgotten {build}"),
        Event::BuildPromoted { build, promotion, .. } => {
            format!("build-promoted {build} to {} by {}", promotion.channel, promotion.by)
        }
        Event::BuildsReduced { builds, by, .. } => {
            let told: Vec<String> =
                builds.iter().map(|one| format!("{} to {} ({})", one.build, one.keep, one.why)).collect();
            format!("builds-reduced {} by {by}", told.join(", "))
        }
        Event::BuildsSwept { builds, .. } => {
            format!("builds-swept {}", builds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
        Event::BuildsForgotten { builds, .. } => {
            format!("builds-forgotten {}", builds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
        Event::BlobsClaimed { lease, blobs, .. } => format!("blobs-claimed {lease}: {}", blobs.len()),
        Event::SweepResumed { by, .. } => format!("sweep-resumed by {by}"),
        Event::ControllerRestored { .. } => "controller-restored".to_owned(),
        Event::ControllerStarted { .. } => "controller-started".to_owned(),
    };
    format!("  {text}\n")
}

fn ids(jobs: &[JobId]) -> String {
    jobs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The states of builds and jobs as they were told last.
#[derive(Default)]
pub struct Changes {
    jobs: BTreeMap<JobId, String>,
    builds: BTreeMap<BuildId, String>,
}

impl Changes {
    /// What has changed since the last call, a line each.
    pub fn since_last(&mut self, farm: &Farm) -> String {
        let mut told = String::new();
        self.builds.retain(|build, _| farm.build(build).is_some());
        for build in farm.builds() {
            for id in build.jobs() {
                let is = job_state(farm, id);
                let was = self.jobs.insert(id, is.clone());
                tell_change(&mut told, &format!("{id} {}", name(farm, id)), was, &is);
            }
            let is = build_state(build);
            let was = self.builds.insert(build.id().clone(), is.clone());
            tell_change(&mut told, &build.id().to_string(), was, &is);
        }
        told
    }
}

fn tell_change(told: &mut String, what: &str, was: Option<String>, is: &str) {
    let _ = match was {
        Some(was) if was == is => Ok(()),
        Some(was) => writeln!(told, "      {what}: {was} -> {is}"),
        None => writeln!(told, "      {what}: {is}"),
    };
}

/// What each job that waits is waiting for.
pub fn why(farm: &Farm, build: &BuildId, now: Millis) -> String {
    let Some(build) = farm.build(build) else { return "  no such build\n".to_owned() };
    let mut told = String::new();
    for id in build.jobs() {
        let why = farm.why_waiting(id, now);
        if !why.is_empty() {
            let _ = writeln!(told, "  {id} {}: {why}", name(farm, id));
        }
    }
    if told.is_empty() { "  nothing waits\n".to_owned() } else { told }
}

/// What the worker of a lease is told to run.
pub fn order(farm: &Farm, lease: LeaseId) -> String {
    let order = match farm.order(lease) {
        Ok(order) => order,
        Err(why) => return format!("  no order: {why}\n"),
    };
    let image = match &order.image {
        OrderImage::Registry(reference) => format!("registry image {reference}"),
        OrderImage::Image(image) => {
            format!("image {:.19}, {} layer", image.config.digest.to_string(), image.layers.len())
        }
        OrderImage::Import(artifact) => format!("import of {}", artifact.path),
    };
    let mut told = format!("  {} of {}, lease {} ms, {image}\n", order.job, order.build, order.ttl_millis);
    for input in &order.inputs {
        let _ = writeln!(told, "      {} at {}", input.artifact.path, input.mount_path);
    }
    told
}

/// The blobs that a sweep leaves alone, when what goes with a reduction stays for `grace_millis`.
pub fn must_stay(farm: &Farm, now: Millis, grace_millis: u64, names: &BTreeMap<Digest, String>) -> String {
    let marks = farm.marks(now, grace_millis);
    let mut called: Vec<String> =
        marks.iter().map(|blob| names.get(blob).cloned().unwrap_or_else(|| blob.to_string())).collect();
    called.sort();
    format!("  {}\n", if called.is_empty() { "nothing".to_owned() } else { called.join(" ") })
}

/// Everything, as a table.
pub fn show(farm: &Farm, now: Millis) -> String {
    let mut told = format!("  it is {}\n", clock(now));
    for build in farm.builds() {
        let _ = writeln!(told, "  build {}: {}, {} to go", build.id(), build_state(build), build.unfinished);
        for id in build.jobs() {
            let attempts = farm.job(id).map_or(0, |job| job.attempts.len());
            let (name, state) = (name(farm, id), job_state(farm, id));
            let _ = writeln!(told, "      {:<4}{name:<28}{state}, attempts {attempts}", id.to_string());
        }
    }
    farm.workers().for_each(|worker| told.push_str(&worker_row(farm, worker, now)));
    told
}

fn worker_row(farm: &Farm, worker: &Worker, now: Millis) -> String {
    let presence = match (worker.online, worker.draining, &worker.hold) {
        (false, ..) => "offline".to_owned(),
        (true, _, Some(hold)) => hold.to_string(),
        (true, true, None) => "draining".to_owned(),
        (true, false, None) if worker.is_quarantined(now) => format!("in quarantine ({} losses)", worker.losses),
        (true, false, None) if farm.pressure(&worker.offer.name).is_some() => "under pressure".to_owned(),
        (true, false, None) => "online".to_owned(),
    };
    let held: Vec<String> = worker.leases.iter().map(ToString::to_string).collect();
    let held = if held.is_empty() { "nothing".to_owned() } else { held.join(" ") };
    format!("  worker {} {presence}, free {}, holds {held}\n", worker.offer.name, capacity(&farm.available(worker)))
}

/// Time since the beginning.
pub fn clock(now: Millis) -> String {
    let (secs, millis) = (now.0 / 1000, now.0 % 1000);
    let fraction = if millis > 0 { format!(".{millis:03}") } else { String::new() };
    format!("{:02}:{:02}:{:02}{fraction}", secs / 3600, secs / 60 % 60, secs % 60)
}

fn name(farm: &Farm, id: JobId) -> String {
    farm.spec(id).map_or_else(|| "?".to_owned(), |spec| spec.name.to_string())
}

fn offer(offer: &WorkerOffer) -> String {
    let platforms = offer.platforms.iter().map(|offer| match offer.emulated {
        true => format!("{} (emulated)", offer.platform),
        false => offer.platform.to_string(),
    });
    let platforms = platforms.collect::<Vec<_>>().join(" ");
    let pool = offer.pool.as_ref().map(|pool| format!(", pool {pool}")).unwrap_or_default();
    let labels: String = offer.labels.iter().map(|(label, value)| format!(", {label}={value}")).collect();
    format!("{}: {platforms}, {}{pool}{labels}", offer.name, capacity(&offer.capacity))
}

fn capacity(capacity: &Capacity) -> String {
    let Capacity { cpu_millis, memory_bytes, disk_bytes, slots } = capacity;
    let slots = if *slots == 1 { "1 slot".to_owned() } else { format!("{slots} slots") };
    format!("{} cpu, {} GiB mem, {} GiB disk, {slots}", cpu_millis / 1000, memory_bytes / GIB, disk_bytes / GIB)
}

fn build_state(build: &Build) -> String {
    match &build.state {
        BuildState::Running => "running".to_owned(),
        BuildState::Cancelling { reason } => format!("cancelling ({reason})"),
        BuildState::Finalizing { verdict } => format!("finalizing, {verdict}"),
        BuildState::Ended { verdict, error: None, .. } => format!("ended, {verdict}"),
        BuildState::Ended { verdict, error: Some(error), .. } => format!("ended, {verdict} ({error})"),
    }
}

fn job_state(farm: &Farm, id: JobId) -> String {
    match farm.job(id).map(|job| &job.state) {
        None => "missing".to_owned(),
        Some(JobState::Blocked { needs }) => format!("blocked by {needs}"),
        Some(JobState::AwaitsApproval { .. }) => "awaits approval".to_owned(),
        Some(JobState::Queued { .. }) => "queued".to_owned(),
        Some(JobState::Leased { worker }) => format!("leased by {worker}"),
        Some(JobState::Succeeded(_)) => "succeeded".to_owned(),
        Some(JobState::Ended { kind, .. }) => kind.to_string(),
        Some(JobState::Skipped { because }) => format!("skipped because of {because}"),
    }
}
