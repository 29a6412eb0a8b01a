//! What people ask.

use super::controller::endpoint_of;
use super::{Controller, until};
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::channel;
use railyard_service::tls::Role;
use std::collections::HashMap;
use tonic::Status;
use tonic::transport::Channel;

/// A person or a script.
#[derive(Clone)]
pub struct Person {
    pub rpc: ClientServiceClient<Channel>,
}

impl Controller {
    /// Somebody who may do what people may do.
    pub fn operator(&self) -> Person {
        self.person(Role::Operator, "olga")
    }

    pub fn person(&self, role: Role, name: &str) -> Person {
        Person { rpc: ClientServiceClient::new(self.channel(Some((role, name)))) }
    }

    /// Whoever `railyard://…` says.
    pub fn limited(&self, uri: &str) -> Person {
        let endpoint = endpoint_of(&self.config, &self.url, Some(&uri.parse().unwrap()));
        Person { rpc: ClientServiceClient::new(channel::connect(&endpoint).unwrap()) }
    }
}

/// A request to run `pipeline` at `version`.
pub fn submission(pipeline: &str, version: &str) -> v1::SubmitRequest {
    v1::SubmitRequest { pipeline: pipeline.to_owned(), version: version.to_owned(), ..Default::default() }
}

impl Person {
    /// Submits; gives the build's name.
    pub async fn submit(&self, pipeline: &str, version: &str) -> String {
        self.try_submit(submission(pipeline, version)).await.unwrap().build
    }

    pub async fn try_submit(&self, request: v1::SubmitRequest) -> Result<v1::SubmitResponse, Status> {
        Ok(self.rpc.clone().submit(request).await?.into_inner())
    }

    pub async fn build(&self, build: &str) -> v1::BuildView {
        self.try_build(build).await.unwrap()
    }

    pub async fn try_build(&self, build: &str) -> Result<v1::BuildView, Status> {
        Ok(self.rpc.clone().get_build(v1::GetBuildRequest { build: build.to_owned() }).await?.into_inner())
    }

    /// Waits until the build has ended.
    pub async fn ended(&self, build: &str) -> v1::BuildView {
        let is_over =
            |view: &v1::BuildView| !matches!(view.state(), v1::BuildState::Running | v1::BuildState::Finalizing);
        until("the end of the build", async || Some(self.build(build).await).filter(is_over)).await
    }

    /// Waits until one job of the build is as wanted.
    pub async fn job_is(&self, build: &str, job: &str, wanted: v1::JobState) -> v1::JobView {
        let look = async || Some(self.job(build, job).await).filter(|view| view.state() == wanted);
        until("the job's change", look).await
    }

    pub async fn job(&self, build: &str, job: &str) -> v1::JobView {
        let view = self.build(build).await;
        let found = view.jobs.into_iter().find(|view| view.name == job);
        found.unwrap_or_else(|| panic!("{build} has no job {job}"))
    }

    /// The state of every job, by name.
    pub async fn states(&self, build: &str) -> HashMap<String, v1::JobState> {
        let view = self.build(build).await;
        view.jobs.iter().map(|job| (job.name.clone(), job.state())).collect()
    }

    pub async fn cancel(&self, build: &str, reason: &str) -> Result<(), Status> {
        self.cancel_jobs(build, "", reason).await.map(drop)
    }

    /// Cancels some jobs; gives their names.
    pub async fn cancel_jobs(&self, build: &str, job: &str, reason: &str) -> Result<Vec<String>, Status> {
        let (build, job, reason) = (build.to_owned(), job.to_owned(), reason.to_owned());
        Ok(self.rpc.clone().cancel(v1::CancelRequest { build, reason, job }).await?.into_inner().jobs)
    }

    /// Approves; gives the jobs' names.
    pub async fn approve(&self, build: &str, job: &str) -> Result<Vec<String>, Status> {
        let request = v1::ApproveRequest { build: build.to_owned(), job: job.to_owned() };
        Ok(self.rpc.clone().approve(request).await?.into_inner().jobs)
    }

    pub async fn plan(&self, pipeline: &str) -> v1::PlanResponse {
        self.rpc.clone().plan(submission(pipeline, "1")).await.unwrap().into_inner()
    }

    pub async fn hold(&self, request: v1::HoldWorkerRequest) -> Result<v1::WorkerView, Status> {
        Ok(self.rpc.clone().hold_worker(request).await?.into_inner().worker.expect("an answer has the worker"))
    }

    pub async fn release(&self, worker: &str) -> Result<v1::WorkerView, Status> {
        let request = v1::ReleaseWorkerRequest { worker: worker.to_owned() };
        Ok(self.rpc.clone().release_worker(request).await?.into_inner().worker.expect("an answer has the worker"))
    }

    pub async fn worker(&self, name: &str) -> v1::WorkerView {
        let found = self.workers().await.into_iter().find(|worker| worker.name == name);
        found.unwrap_or_else(|| panic!("there is no worker {name}"))
    }

    pub async fn workers(&self) -> Vec<v1::WorkerView> {
        self.rpc.clone().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers
    }

    pub async fn sign(&self, build: &str, paths: &[&str]) -> Result<Vec<v1::SignedArtifact>, Status> {
        let paths = paths.iter().map(ToString::to_string).collect();
        let request = v1::SignArtifactsRequest { build: build.to_owned(), paths };
        Ok(self.rpc.clone().sign_artifacts(request).await?.into_inner().artifacts)
    }
}
