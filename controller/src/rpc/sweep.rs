//! What operators ask of the sweep.

use super::{bad_request, command_status};
use crate::audit::{By, Entry};
use crate::sweep::{Progress, Report, Shown, SweepError, SweepHandle};
use futures_util::{StreamExt as _, stream};
use railyard_common::digest::Digest;
use railyard_core::sweep::{Decided, GoneKind, SweepPlan};
use railyard_proto::v1;
use railyard_service::convert;
use railyard_service::{error_chain, rpc_error, task};
use tokio::sync::{oneshot, watch};
use tonic::{Code, Status};

use super::audit::Outbound;

/// Objects that a plan lists.
const OBJECTS_MAX: usize = 10_000;

/// The plan, as it stands now.
pub(super) async fn plan(sweep: &SweepHandle, request: v1::PlanSweepRequest) -> Result<v1::SweepPlan, Status> {
    let Shown { plan, stop } = sweep.plan().await.map_err(status)?;
    let stopped = stop.map(|stop| stop.to_string()).unwrap_or_default();
    Ok(told(&plan, stopped, request.objects))
}

/// The plan's record with what would go; a sweep that carries it out names it by the same digest.
pub(super) fn tell_plan(entry: Entry, plan: &v1::SweepPlan) -> Entry {
    let (objects, bytes) =
        plan.gone.iter().fold((0, 0), |(objects, bytes), kind| (objects + kind.objects, bytes + kind.bytes));
    let entry = entry.detail("plan", plan.digest.clone());
    let entry = entry.detail("objects", objects.to_string()).detail("bytes", bytes.to_string());
    // A plan may be shown and yet not be carried out.
    if plan.stopped.is_empty() { entry } else { entry.detail("stopped", plan.stopped.clone()) }
}

/// Begins a sweep; what comes of it is a stream.
pub(super) fn run(
    sweep: &SweepHandle,
    by: By,
    request: &v1::RunSweepRequest,
) -> Result<Outbound<v1::SweepProgress>, Status> {
    let digest: Option<Digest> = Some(request.digest.as_str())
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(bad_request))
        .transpose()?;
    let (progress, mut seen) = watch::channel(Progress::default());
    let (ended, mut end) = oneshot::channel();
    let sweep = sweep.clone();
    // In a task of its own: whoever hangs up does not stop it.
    task::spawn("asked sweep", async move {
        let _ = ended.send(sweep.run(digest, by, progress).await);
    });
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    task::spawn("sweep watcher", async move {
        loop {
            let next = tokio::select! {
                biased;
                done = &mut end => {
                    let last = match done {
                        Ok(Ok(report)) => Ok(last(report)),
                        Ok(Err(error)) => Err(status(error)),
                        Err(_) => Err(command_status(crate::driver::CommandError::Stopping)),
                    };
                    // Whoever asked may be gone.
                    let _ = tx.send(last).await;
                    return;
                }
                Ok(()) = seen.changed() => message(*seen.borrow_and_update()),
                () = tx.closed() => return,
            };
            if tx.send(Ok(next)).await.is_err() {
                return;
            }
        }
    });
    Ok(stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|next| (next, rx)) }).boxed())
}

pub(super) fn status(error: SweepError) -> Status {
    let message = error_chain(&error);
    match error {
        SweepError::Farm(error) => command_status(error),
        SweepError::Cache(_) | SweepError::Audit(_) | SweepError::Left(_) => {
            rpc_error::refusal(Code::Unavailable, rpc_error::BUSY, message)
        }
        SweepError::UnknownPlan(_) => rpc_error::refusal(Code::NotFound, rpc_error::NOT_FOUND, message),
        SweepError::Stopped(_) | SweepError::Outdated(_) => {
            rpc_error::refusal(Code::FailedPrecondition, rpc_error::SWEEP_STOPPED, message)
        }
    }
}

fn told(plan: &SweepPlan, stopped: String, objects: bool) -> v1::SweepPlan {
    let count = |kind: &str, of: &dyn Fn(GoneKind) -> bool| {
        let gone = plan.gone.iter().filter(|gone| of(gone.kind));
        let (objects, bytes) = gone.fold((0, 0), |(objects, bytes), gone| (objects + 1, bytes + gone.bytes));
        v1::SweepCount { kind: kind.to_owned(), objects, bytes }
    };
    // A published file is another name of a blob, or a copy that the service made; it is counted by its own length.
    let published = plan.reduced.iter().flat_map(|one| &one.paths);
    let (names, bytes) = published.fold((0, 0), |(names, bytes), (_, blob)| (names + 1, bytes + blob.size_bytes));
    let shown = if objects { OBJECTS_MAX } else { 0 };
    v1::SweepPlan {
        digest: plan.digest.to_string(),
        at: Some(convert::timestamp(plan.at)),
        stopped,
        builds: plan.builds.iter().map(build).collect(),
        gone: vec![
            count("blobs", &|kind| matches!(kind, GoneKind::Blob(_))),
            count("logs", &|kind| kind == GoneKind::Log),
            count("records", &|kind| kind == GoneKind::Record),
            v1::SweepCount { kind: "published".to_owned(), objects: names, bytes },
        ],
        listed_objects: plan.listed.0,
        listed_bytes: plan.listed.1,
        foreign_objects: plan.foreign,
        objects: plan
            .gone
            .iter()
            .take(shown)
            .map(|gone| v1::SweptObject { path: gone.path.to_string(), bytes: gone.bytes })
            .collect(),
        more_objects: plan.gone.len().saturating_sub(shown) as u64 * u64::from(objects),
    }
}

fn build(one: &Decided) -> v1::PlannedBuild {
    v1::PlannedBuild {
        build: one.build.to_string(),
        channel: one.channel.to_string(),
        now: one.now.to_string(),
        keep: one.keep.to_string(),
        why: one.why.iter().map(ToString::to_string).collect(),
        bytes: one.bytes,
        frees_bytes: one.frees,
    }
}

fn message(progress: Progress) -> v1::SweepProgress {
    v1::SweepProgress {
        done_objects: progress.done,
        all_objects: progress.of,
        done_bytes: progress.bytes,
        report: None,
    }
}

fn last(report: Report) -> v1::SweepProgress {
    v1::SweepProgress {
        done_objects: report.deleted,
        all_objects: report.deleted + report.left + report.failures,
        done_bytes: report.bytes,
        report: Some(v1::SweepReport {
            digest: report.plan.to_string(),
            reduced: report.reduced,
            forgotten: report.forgotten,
            unpublished: report.unpublished,
            deleted_objects: report.deleted,
            deleted_bytes: report.bytes,
            left: report.left,
            failures: report.failures,
            first_failure: report.first_failure.unwrap_or_default(),
        }),
    }
}
