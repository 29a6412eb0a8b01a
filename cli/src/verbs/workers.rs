//! `workers`.

use crate::args::WorkersArgs;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, workers as render};
use crate::view::Worker;
use railyard_proto::v1::{ListWorkersRequest, WorkerView};
use tonic::Status;

/// Lists the workers.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn workers(args: &WorkersArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let workers = list(&farm).await.map_err(|status| farm.refused(&status))?;
    let workers: Vec<Worker> = workers.into_iter().map(Worker::from).collect();
    if console.is_json() {
        return console.json(&workers);
    }
    if workers.is_empty() {
        console.note("no worker has ever connected; `railyard worker --config FILE` starts one");
        return Ok(());
    }
    let table = match args.disk {
        true => render::disks(&workers, console.now()),
        false => render::workers(&workers, console.now()),
    };
    console.print(&table.render(console.out))
}

/// Every worker, as the farm says it.
///
/// # Errors
/// The call's.
pub async fn list(farm: &Farm) -> Result<Vec<WorkerView>, Status> {
    Ok(farm.client().list_workers(farm.request(ListWorkersRequest {})).await?.into_inner().workers)
}
