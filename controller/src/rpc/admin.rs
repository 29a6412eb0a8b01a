//! What operators do with the controller itself.

use super::audit::{self, Asked, Outbound};
use super::auth::caller;
use super::command_status;
use crate::audit::{Act, Audit};
use crate::driver::Handle;
use crate::journal;
use railyard_proto::v1;
use railyard_proto::v1::admin_service_server::AdminService;
use railyard_service::error_chain;
use railyard_service::rpc_error;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

/// Bytes in one message: far below its limit.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The admin service.
pub struct Admin {
    farm: Handle,
    audit: Audit,
    shutdown: CancellationToken,
}

impl Admin {
    /// Serves operators of `farm`. Who follows the audit is let go at `shutdown`.
    pub fn new(farm: Handle, audit: Audit, shutdown: CancellationToken) -> Self {
        Self { farm, audit, shutdown }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupStream = Outbound<v1::BackupChunk>;
    type ShowAuditStream = Outbound<v1::AuditRecord>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let who = caller(&request)?;
        let asked = Asked::new(&self.audit, &request, Act::Backup);
        let farm = self.farm.clone();
        let encode = async move {
            // Between two rounds: nothing of it is not durable.
            let snapshot = farm.read(|farm, _| farm.snapshot()).await.map_err(command_status)?;
            let encoded = tokio::task::spawn_blocking(move || journal::encode_snapshot(&snapshot)).await;
            encoded.map_err(|error| rpc_error::refusal(Code::Internal, rpc_error::INTERNAL, error_chain(&error)))
        };
        let bytes = asked.carry_out(encode, |entry, bytes| entry.detail("bytes", bytes.len().to_string())).await?;
        tracing::info!(by = %who.name, bytes = bytes.len(), "the state is backed up");
        let chunks: Vec<_> =
            bytes.chunks(CHUNK_BYTES).map(|data| Ok(v1::BackupChunk { data: data.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(chunks))))
    }

    async fn show_audit(
        &self,
        request: Request<v1::ShowAuditRequest>,
    ) -> Result<Response<Self::ShowAuditStream>, Status> {
        let records = audit::show(&self.audit, request.into_inner(), &self.shutdown).await?;
        Ok(Response::new(records))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        Ok(Response::new(audit::verify(&self.audit, request.into_inner()).await?))
    }
}
