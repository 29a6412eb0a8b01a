//! Changing the course of a build: cancel, approve, retry.

use super::client::Client;
use super::{bad_request, command_status, read};
use crate::access::forbidden;
use railyard_common::id::{BuildId, JobId, JobSelector};
use railyard_core::{Build, Command, Event};
use railyard_proto::v1;
use railyard_service::convert::{self, TEXT_MAX_BYTES};
use railyard_service::tls::Identity;
use tonic::Status;

impl Client {
    /// Stops a build or some of its jobs, because `who` wants it.
    pub(super) async fn cancel(
        &self,
        who: &Identity,
        request: v1::CancelRequest,
    ) -> Result<v1::CancelResponse, Status> {
        // It is journaled, and told to every worker of the build.
        convert::at_most("reason", request.reason.len(), TEXT_MAX_BYTES, "bytes")?;
        let jobs = selector("job", &request.job)?;
        let build = read::resolve(&self.farm, who, &request.build).await?;
        self.in_tier(who, &build).await?;
        let by = who.name.clone();
        let reason = match request.reason.as_str() {
            "" => format!("cancelled by {by}"),
            why => format!("{why} (cancelled by {by})"),
        };
        let command = match jobs {
            Some(jobs) => Command::CancelJobs { build, jobs, by, reason },
            None => Command::Cancel { build, by, reason },
        };
        let events = self.farm.decide(command).await.map_err(command_status)?;
        let cancelled = events.into_iter().flat_map(|event| match event {
            Event::JobsCancelled { jobs, .. } => jobs,
            _ => Vec::new(),
        });
        Ok(v1::CancelResponse { jobs: self.names(cancelled.collect()).await? })
    }

    /// Lets jobs go on that wait for approval, or will.
    pub(super) async fn approve(
        &self,
        who: &Identity,
        request: v1::ApproveRequest,
    ) -> Result<v1::ApproveResponse, Status> {
        let jobs = selector("job", &request.job)?;
        let build = read::resolve(&self.farm, who, &request.build).await?;
        let by = who.name.clone();
        let events = self.farm.decide(Command::Approve { build, jobs, by }).await.map_err(command_status)?;
        let approved = events.into_iter().flat_map(|event| match event {
            Event::JobsApproved { jobs, .. } => jobs,
            _ => Vec::new(),
        });
        Ok(v1::ApproveResponse { jobs: self.names(approved.collect()).await? })
    }

    /// Runs again what did not succeed, or one step and what follows it.
    pub(super) async fn retry(&self, who: &Identity, request: v1::RetryRequest) -> Result<v1::RetryResponse, Status> {
        let build = read::resolve(&self.farm, who, &request.build).await?;
        self.in_tier(who, &build).await?;
        let step = Some(request.step).filter(|step| !step.is_empty());
        let step = step.map(|step| step.parse()).transpose().map_err(bad_request)?;
        let events = self.farm.decide(Command::Retry { build, step }).await.map_err(command_status)?;
        let again = events.into_iter().flat_map(|event| match event {
            Event::BuildResumed { jobs, .. } => jobs,
            _ => Vec::new(),
        });
        Ok(v1::RetryResponse { jobs: self.names(again.collect()).await? })
    }

    /// Refuses whoever is limited to untrusted builds, if this is none.
    pub(super) async fn in_tier(&self, who: &Identity, build: &BuildId) -> Result<(), Status> {
        if !who.limits.untrusted {
            return Ok(());
        }
        let wanted = build.clone();
        let untrusted = self.farm.read(move |farm, _| farm.build(&wanted).is_some_and(Build::is_untrusted)).await;
        if untrusted.map_err(command_status)? {
            return Ok(());
        }
        Err(forbidden(format!("{} {} is limited to untrusted builds, and {build} is none", who.role, who.name)))
    }

    async fn names(&self, jobs: Vec<JobId>) -> Result<Vec<String>, Status> {
        let names = self.farm.read(move |farm, _| {
            jobs.iter().filter_map(|id| farm.spec(*id)).map(|spec| spec.name.to_string()).collect()
        });
        names.await.map_err(command_status)
    }
}

/// `STEP[.VARIANT][@PLATFORM]`, or nothing.
fn selector(field: &str, text: &str) -> Result<Option<JobSelector>, Status> {
    Ok(convert::parsed_if_given(field, text)?)
}
