//! Somebody who uses the farm as it is meant, while it is under attack.

use crate::common::{Controller, until};
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::channel::{self, Endpoint};
use railyard_service::task;
use railyard_service::tls::Role;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Longest that a call may take, a new connection included, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls the farm again and again, each time over a new connection.
pub struct Bystander {
    served: Arc<AtomicUsize>,
    calling: AbortOnDropHandle<String>,
}

impl Bystander {
    pub fn watch(controller: &Controller) -> Self {
        let endpoint = controller.endpoint(Some((Role::Viewer, "bystander")));
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let calling = task::spawn("bystander", async move {
            loop {
                match tokio::time::timeout(PATIENCE, call(&endpoint)).await {
                    Ok(Ok(())) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Ok(Err(status)) => return format!("refused: {status:?}"),
                    Err(_) => return format!("no answer within {PATIENCE:?}"),
                }
            }
        });
        Self { served, calling: AbortOnDropHandle::new(calling) }
    }

    /// Waits until it was served again several times from now on: calls that began while the attack goes on.
    pub async fn is_served(&mut self) {
        let wanted = self.served.load(Ordering::Relaxed) + 3;
        let served = Arc::clone(&self.served);
        let more = until("an answer to a bystander", async || (served.load(Ordering::Relaxed) >= wanted).then_some(()));
        tokio::select! {
            () = more => {}
            ended = &mut self.calling => panic!("a bystander was not served: {ended:?}"),
        }
    }
}

async fn call(endpoint: &Endpoint) -> Result<(), tonic::Status> {
    let mut rpc = ClientServiceClient::new(channel::connect(endpoint).unwrap());
    rpc.list_builds(v1::ListBuildsRequest::default()).await.map(drop)
}
