//! `workers`.

use crate::args::WorkersArgs;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, lists};
use crate::view::Worker;
use railyard_proto::v1::ListWorkersRequest;

/// Lists the workers.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn workers(args: &WorkersArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.farm).await?;
    let request = farm.request(ListWorkersRequest {});
    let answer = farm.client().list_workers(request).await.map_err(|status| farm.refused(&status))?;
    let workers: Vec<Worker> = answer.into_inner().workers.into_iter().map(Worker::from).collect();
    if console.is_json() {
        return console.json(&workers);
    }
    if workers.is_empty() {
        console.note("no worker has ever connected; `railyard worker --config FILE` starts one");
        return Ok(());
    }
    console.print(&lists::workers(&workers, console.now()).render(console.out))
}
