//! What operators do with the controller itself.

use super::audit::{self, Asked, Outbound};
use super::auth::caller;
use super::{bad_request, command_status, secrets, sweep};
use crate::audit::{Act, Audit, By};
use crate::driver::Handle;
use crate::journal;
use crate::secrets::Secrets;
use crate::sweep::SweepHandle;
use railyard_common::id::SecretName;
use railyard_proto::v1;
use railyard_proto::v1::admin_service_server::AdminService;
use railyard_service::clock::Clock;
use railyard_service::{error_chain, rpc_error};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

/// Bytes in one message: far below its limit.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The admin service, for operators. Who follows the audit is let go at `shutdown`.
pub struct Admin {
    pub(crate) farm: Handle,
    pub(crate) audit: Audit,
    pub(crate) secrets: Secrets,
    pub(crate) sweep: SweepHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupStream = Outbound<v1::BackupChunk>;
    type ShowAuditStream = Outbound<v1::AuditRecord>;
    type RunSweepStream = Outbound<v1::SweepProgress>;

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

    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::SetSecretResponse>, Status> {
        let (at, by) = (self.clock.now(), caller(&request)?.to_string());
        let asked = Asked::new(&self.audit, &request, Act::SecretSet);
        let (request, secrets) = (request.into_inner(), self.secrets.clone());
        let asked = asked.target(&format!("secret:{}", request.name));
        let wanted = secrets::Set::of(request);
        let asked = match &wanted {
            Ok(set) => asked.detail("for", &set.scope()),
            Err(_) => asked,
        };
        let set = async move { wanted?.store(&secrets, at, by).await };
        let replaced = asked.carry_out(set, |entry, replaced| entry.detail("replaced", replaced.to_string())).await?;
        Ok(Response::new(v1::SetSecretResponse { replaced }))
    }

    async fn list_secrets(
        &self,
        _request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        Ok(Response::new(v1::ListSecretsResponse { secrets: secrets::list(&self.secrets).await? }))
    }

    async fn remove_secret(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretResponse>, Status> {
        let asked = Asked::new(&self.audit, &request, Act::SecretRemove);
        let (request, secrets) = (request.into_inner(), self.secrets.clone());
        let name: SecretName = request.name.parse().map_err(bad_request)?;
        let asked = asked.target(&format!("secret:{name}"));
        let remove = async move { secrets::remove(&secrets, name).await };
        asked.carry_out(remove, |entry, ()| entry).await?;
        Ok(Response::new(v1::RemoveSecretResponse {}))
    }

    async fn plan_sweep(&self, request: Request<v1::PlanSweepRequest>) -> Result<Response<v1::SweepPlan>, Status> {
        // It changes nothing: a disk so full that nothing can be recorded is when somebody has to see what would go.
        let asked = Asked::new(&self.audit, &request, Act::SweepPlan).target("cache").urgent();
        let (sweep, request) = (self.sweep.clone(), request.into_inner());
        let plan = async move { sweep::plan(&sweep, request).await };
        Ok(Response::new(asked.carry_out(plan, sweep::tell_plan).await?))
    }

    async fn run_sweep(&self, request: Request<v1::RunSweepRequest>) -> Result<Response<Self::RunSweepStream>, Status> {
        // The sweeper records it, whoever asked.
        let by = By::Somebody(caller(&request)?);
        Ok(Response::new(sweep::run(&self.sweep, by, request.get_ref())?))
    }

    async fn resume_sweep(
        &self,
        request: Request<v1::ResumeSweepRequest>,
    ) -> Result<Response<v1::ResumeSweepResponse>, Status> {
        let by = caller(&request)?.to_string();
        let asked =
            Asked::new(&self.audit, &request, Act::PolicyChange).target("sweep").detail("resumed", "after a restore");
        let sweep = self.sweep.clone();
        let resume = async move { sweep.resume(by).await.map_err(sweep::status) };
        let resumed = asked.carry_out(resume, |entry, _| entry).await?;
        Ok(Response::new(v1::ResumeSweepResponse { resumed }))
    }
}
