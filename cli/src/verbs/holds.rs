//! `cordon`, `drain`, `retire` and `uncordon`: whether a worker gets jobs.

use super::watch::interrupts;
use super::workers::list;
use crate::args::{CordonArgs, DrainArgs, HoldArgs, PatienceArgs, RetireArgs, UncordonArgs};
use crate::failure::{Exit, Failure};
use crate::farm::Farm;
use crate::patience::Patience;
use crate::render::{Console, workers};
use crate::view::Worker;
use railyard_proto::v1::{HoldKind, HoldWorkerRequest, ReleaseWorkerRequest, WorkerView};
use std::collections::BTreeSet;
use std::time::Duration;

/// How often the farm is asked whether a worker is empty: people hear of it at once, and the farm does not notice.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// No new jobs.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn cordon(args: &CordonArgs, console: &Console) -> Result<(), Failure> {
    let request = HoldWorkerRequest { for_secs: secs(args.term.term), ..request(&args.hold, HoldKind::Cordon) };
    hold(&args.hold, request, None, console).await
}

/// No new jobs, and a deadline for those that run.
///
/// # Errors
/// [`Failure::Farm`]; [`Failure::Failed`] if somebody takes it back while we wait; [`Failure::Told`] after Ctrl-C.
pub async fn drain(args: &DrainArgs, console: &Console) -> Result<(), Failure> {
    let request = HoldWorkerRequest { for_secs: secs(args.term.term), ..request(&args.hold, HoldKind::Drain) };
    hold(&args.hold, request, Some(args.patience), console).await
}

/// The same, for good.
///
/// # Errors
/// As [`drain`].
pub async fn retire(args: &RetireArgs, console: &Console) -> Result<(), Failure> {
    hold(&args.hold, request(&args.hold, HoldKind::Retire), Some(args.patience), console).await
}

/// Jobs again.
///
/// # Errors
/// [`Failure::Farm`], also if nothing holds it back.
pub async fn uncordon(args: &UncordonArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let request = farm.request(ReleaseWorkerRequest { worker: args.worker.to_string() });
    let answer = farm.client().release_worker(request).await.map_err(|status| farm.refused(&status))?;
    let worker = Worker::from(answer.into_inner().worker.unwrap_or_default());
    if console.is_json() {
        return console.json(&worker);
    }
    let then = if worker.connected { "" } else { " when it is connected" };
    console.print(&format!("{} gets jobs again{then}\n", args.worker))
}

fn secs(duration: Option<Duration>) -> u64 {
    duration.map_or(0, |duration| duration.as_secs())
}

fn request(args: &HoldArgs, kind: HoldKind) -> HoldWorkerRequest {
    HoldWorkerRequest {
        worker: args.worker.to_string(),
        kind: kind.into(),
        why: args.why.clone(),
        ..HoldWorkerRequest::default()
    }
}

async fn hold(
    args: &HoldArgs,
    mut request: HoldWorkerRequest,
    patience: Option<PatienceArgs>,
    console: &Console,
) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    request.stop_after_secs = patience.and_then(|patience| patience.deadline).map(|deadline| deadline.as_secs());
    let answer = farm.client().hold_worker(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let mut worker = Worker::from(answer.into_inner().worker.unwrap_or_default());
    if patience.is_some_and(|patience| patience.wait) {
        worker = until_empty(&farm, worker, console).await?;
    }
    if console.is_json() {
        return console.json(&worker);
    }
    console.print(&format!("{}\n", workers::sentence(&worker, console.now())))
}

/// Waits until nothing runs there any more; says on stderr what does.
async fn until_empty(farm: &Farm, mut worker: Worker, console: &Console) -> Result<Worker, Failure> {
    let mut told = BTreeSet::new();
    let mut patience = Patience::default();
    let say = |line: &str| console.note(line);
    let mut interrupt = interrupts()?;
    loop {
        if worker.hold.is_none() {
            return Err(Failure::Failed(format!("nothing holds {} back any more: it gets jobs again", worker.name)));
        }
        if worker.jobs.is_empty() {
            return Ok(worker);
        }
        let running: BTreeSet<String> = worker.jobs.iter().map(|job| format!("{} {}", job.build, job.job)).collect();
        if running != told {
            console.note(&workers::still_running(&worker));
            told = running;
        }
        tokio::select! {
            biased;
            _ = interrupt.recv() => {
                let name = &worker.name;
                console.note(&format!("{name} gets no new jobs all the same; `railyard uncordon {name}` takes it back"));
                return Err(Failure::Told(Exit::Interrupted));
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        match list(farm).await {
            Ok(workers) => {
                patience.restored(&say);
                worker = find(workers, &worker.name)?;
            }
            Err(status) => patience.lost(farm, &status, &say).await?,
        }
    }
}

fn find(workers: Vec<WorkerView>, name: &str) -> Result<Worker, Failure> {
    let found = workers.into_iter().find(|worker| worker.name == name).map(Worker::from);
    found.ok_or_else(|| Failure::Farm(format!("the farm does not know the worker {name} any more")))
}
