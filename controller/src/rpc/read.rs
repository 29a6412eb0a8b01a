//! Finding what a reader names.

use super::auth::in_scope;
use super::{bad_request, command_status};
use crate::driver::Handle;
use crate::logs::LogName;
use railyard_common::build_ref::{BuildRef, Which};
use railyard_common::id::{BuildId, JobSelector, LeaseId};
use railyard_common::image_name;
use railyard_common::time::Millis;
use railyard_core::{Build, Farm, Refusal};
use railyard_service::rpc_error;
use railyard_service::tls::Identity;
use tonic::{Code, Status};

/// `PIPELINE/VERSION`, or `PIPELINE/TAG`, or `PIPELINE` for its newest build, if `who` may know of the pipeline.
pub(super) async fn resolve(farm: &Handle, who: &Identity, text: &str) -> Result<BuildId, Status> {
    if text.contains('/') {
        let id: BuildId = text.parse().map_err(bad_request)?;
        in_scope(who, &id.pipeline)?;
        let found = farm.read(move |farm, _| named(farm, id)).await.map_err(command_status)?;
        return found.map_err(|refusal| command_status(refusal.into()));
    }
    let pipeline = text.parse().map_err(bad_request)?;
    in_scope(who, &pipeline)?;
    let newest = farm.read(move |farm, _| farm.newest(&pipeline).map(|build| build.id().clone())).await;
    newest.map_err(command_status)?.ok_or_else(|| {
        let message = format!(
            "pipeline {text} has no builds, or only untrusted ones, which are to be named in full; `railyard builds` lists those that there are"
        );
        rpc_error::refusal(Code::NotFound, rpc_error::UNKNOWN_BUILD, message)
    })
}

/// The build of that version, or else with that tag; `latest` is always that of the newest success.
fn named(farm: &Farm, id: BuildId) -> Result<BuildId, Refusal> {
    if let Some(build) = farm.build(&id) {
        return if build.is_deleted() { Err(Refusal::BuildDeleted(id)) } else { Ok(id) };
    }
    let reference = BuildRef { pipeline: id.pipeline.clone(), which: Which::Named(id.version.clone()) };
    let tagged = id.version.as_str().parse().ok().and_then(|tag| farm.tagged(&id.pipeline, &tag));
    let found = match tagged {
        None if id.version.as_str() == image_name::LATEST => farm.usable_build(&reference, true).ok(),
        tagged => tagged,
    };
    found.map(|build| build.id().clone()).ok_or(Refusal::UnknownBuild(id))
}

/// The log that a reader means: one job, and an attempt of it.
pub(super) async fn log_name(
    farm: &Handle,
    now: Millis,
    build: BuildId,
    job: &str,
    attempt: u32,
) -> Result<LogName, Status> {
    let selector: JobSelector = job.parse().map_err(bad_request)?;
    let (text, wanted) = (job.to_owned(), build.clone());
    let found = farm.read(move |farm, _| {
        let build = farm.build(&wanted)?;
        Some(choose(farm, now, build, &selector, &text, attempt))
    });
    found.await.map_err(command_status)?.unwrap_or_else(|| Err(command_status(Refusal::UnknownBuild(build).into())))
}

fn choose(
    farm: &Farm,
    now: Millis,
    build: &Build,
    selector: &JobSelector,
    text: &str,
    attempt: u32,
) -> Result<LogName, Status> {
    let found: Vec<_> = build.jobs().zip(&build.plan.jobs).filter(|(_, spec)| selector.matches(&spec.name)).collect();
    let (id, spec) = match found.as_slice() {
        [one] => *one,
        [] => {
            let message = format!("{} has no job {text}; `railyard show {}` lists its jobs", build.id(), build.id());
            return Err(rpc_error::refusal(Code::NotFound, rpc_error::UNKNOWN_JOB, message));
        }
        many => {
            let names: Vec<String> = many.iter().map(|(_, spec)| spec.name.to_string()).collect();
            return Err(bad_request(format!("{text} means several jobs; name one of {}", names.join(", "))));
        }
    };
    let attempts = farm.job(id).map(|job| job.attempts.as_slice()).unwrap_or_default();
    let last = attempts.last().map(|last| last.number);
    let number =
        if attempt == 0 { last } else { attempts.iter().map(|one| one.number).find(|number| *number == attempt) };
    let Some(number) = number else {
        let message = match last {
            None => format!("{} has not started: {}", spec.name, farm.why_waiting(id, now)),
            Some(last) => format!("{} has no attempt {attempt}; its last is {last}", spec.name),
        };
        return Err(rpc_error::refusal(Code::NotFound, rpc_error::NOT_FOUND, message));
    };
    Ok(LogName { lease: LeaseId { job: id, attempt: number }, build: build.id().clone(), job: spec.name.clone() })
}
