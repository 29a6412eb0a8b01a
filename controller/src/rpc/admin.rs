//! What operators do with the controller itself.

use super::auth::caller;
use super::command_status;
use crate::driver::Handle;
use crate::journal;
use futures_util::Stream;
use railyard_proto::v1;
use railyard_proto::v1::admin_service_server::AdminService;
use railyard_service::error_chain;
use railyard_service::rpc_error;
use std::pin::Pin;
use tonic::{Code, Request, Response, Status};

/// Bytes in one message: far below its limit.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The admin service.
pub struct Admin {
    farm: Handle,
}

impl Admin {
    /// Serves operators of `farm`.
    pub fn new(farm: Handle) -> Self {
        Self { farm }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupChunk, Status>> + Send>>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let who = caller(&request)?;
        // Between two rounds: nothing of it is not durable.
        let snapshot = self.farm.read(|farm, _| farm.snapshot()).await.map_err(command_status)?;
        let encoded = tokio::task::spawn_blocking(move || journal::encode_snapshot(&snapshot)).await;
        let bytes =
            encoded.map_err(|error| rpc_error::refusal(Code::Internal, rpc_error::INTERNAL, error_chain(&error)))?;
        tracing::info!(by = %who.name, bytes = bytes.len(), "the state is backed up");
        let chunks: Vec<_> =
            bytes.chunks(CHUNK_BYTES).map(|data| Ok(v1::BackupChunk { data: data.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(chunks))))
    }
}
