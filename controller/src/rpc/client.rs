//! What people and scripts call.

use super::audit::Asked;
use super::auth::{caller, in_scope};
use super::{bad_request, cache_status, check_protocol, command_status, keep, log_status, read, secrets, submit, view};
use crate::audit::{self, Audit};
use crate::cache::Cache;
use crate::driver::{Change, Handle};
use crate::finalize::Finalizer;
use crate::logs::{Growth, LogStore};
use crate::policy::Denied;
use crate::reload::Allowed;
use crate::secrets::Secrets;
use crate::sweep::SweepHandle;
use crate::trace;
use futures_util::Stream;
use railyard_common::blob::Artifact;
use railyard_common::id::{BuildId, JobName, LeaseId, PipelineName};
use railyard_common::layout;
use railyard_common::path::{Glob, RelPath};
use railyard_common::plan::Plan;
use railyard_common::retention::Keep;
use railyard_common::tier;
use railyard_core::{Build, Farm, Refusal};
use railyard_proto::v1;
use railyard_proto::v1::client_service_server::ClientService;
use railyard_service::clock::Clock;
use railyard_service::convert::{self, ToProto as _};
use railyard_service::{rpc_error, task, telemetry};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

/// Builds that a listing gives if it is not told how many.
const LIST_DEFAULT: usize = 50;
/// Most builds that a listing gives.
const LIST_MAX: usize = 1_000;
/// Builds are listed until they have so many bytes: far below the limit of a message, and little work for the driver.
const LIST_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most patterns in one request for artifacts: each is held against every artifact.
const PATTERNS_MAX: usize = 1_000;
/// Lines that say what an untrusted build does without: a matrix of jobs can leave out thousands of things.
const LEFT_OUT_MAX: usize = 100;
/// How long a URL to an artifact is good.
const ARTIFACT_TTL: Duration = Duration::from_secs(3600);
/// A watcher hears of a build at most this often; in between, changes are put together.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The client service. Watchers and followers are let go at `shutdown`.
#[derive(Clone)]
pub struct Client {
    pub(crate) farm: Handle,
    pub(crate) audit: Audit,
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) farm_name: String,
    /// What pipelines and untrusted builds may have, as it is now.
    pub(crate) allowed: watch::Receiver<Arc<Allowed>>,
    pub(crate) secrets: Secrets,
    /// Publishes what is promoted.
    pub(crate) finalizer: Finalizer,
    /// Deletes what only the cache knows.
    pub(crate) sweep: SweepHandle,
    pub(crate) shutdown: CancellationToken,
}

impl Client {
    /// The plan of a request, within its tier and its pipeline's policy; a line for each thing that was taken out of it.
    pub(super) async fn freeze(&self, checked: &submit::Checked) -> Result<(Plan, Vec<String>), Status> {
        let mut plan = checked.plan(&self.farm, self.clock.now()).await?;
        let mut left_out = checked.forced();
        let allowed = self.allowed.borrow().clone();
        if checked.is_untrusted() {
            left_out.extend(submit::at_most(LEFT_OUT_MAX, tier::confine(&mut plan, allowed.untrusted.pool.as_ref())));
        }
        left_out.extend(allowed.policy.apply(&mut plan).map_err(|denied| denied_status(&denied))?);
        let (plan, without) = secrets::check(&self.secrets, plan).await?;
        left_out.extend(without);
        Ok((plan, left_out))
    }

    /// The root of published paths: what stands in front of every one.
    fn cache_url(&self) -> String {
        let path: RelPath = "x".parse().expect("a letter is a path");
        self.cache.url(&path).trim_end_matches('x').trim_end_matches('/').to_owned()
    }

    async fn view(&self, id: BuildId) -> Result<v1::BuildView, Status> {
        let (now, cache_url, wanted) = (self.clock.now(), self.cache_url(), id.clone());
        let found = self.farm.read(move |farm, live| {
            farm.build(&wanted).map(|build| view::build(farm, live, build, now, &cache_url, true))
        });
        let found = found.await.map_err(command_status)?;
        found.ok_or_else(|| command_status(Refusal::UnknownBuild(id).into()))
    }

    /// What a follower of the attempt's log waits on; `None` if the attempt has ended.
    async fn growth(&self, lease: LeaseId) -> Result<Option<watch::Receiver<Growth>>, Status> {
        let is_live = || self.farm.read(move |farm, _| farm.holder(lease).is_some());
        if !is_live().await.map_err(command_status)? {
            return Ok(None);
        }
        let growth = self.logs.subscribe(lease);
        // Once more: had it ended before the subscription, nobody would ever tell.
        let live = is_live().await.map_err(command_status)?;
        if !live {
            self.logs.forget(lease);
        }
        Ok(live.then_some(growth))
    }
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ClientService for Client {
    type WatchBuildStream = Outbound<v1::BuildView>;
    type ReadLogStream = Outbound<v1::LogChunk>;

    async fn get_farm(&self, request: Request<v1::GetFarmRequest>) -> Result<Response<v1::GetFarmResponse>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let oldest = railyard_common::OLDEST_CLIENT_PROTOCOL;
        check_protocol("the client", &request.client_version, request.protocol, oldest)?;
        Ok(Response::new(v1::GetFarmResponse {
            farm: self.farm_name.clone(),
            version: railyard_common::VERSION.to_owned(),
            protocol: railyard_common::PROTOCOL,
            cache_url: self.cache_url(),
            identity: format!("{} {}", identity.role.as_str(), identity.name),
        }))
    }

    async fn plan(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let who = caller(&request)?;
        let now = self.clock.now();
        let checked = submit::Checked::new(&who, request.into_inner())?;
        in_scope(&who, checked.pipeline())?;
        let (plan, left_out) = self.freeze(&checked).await?;
        let response = self.farm.read(move |farm, _| v1::PlanResponse {
            pipeline: plan.build.pipeline.to_string(),
            channel: plan.channel().to_string(),
            uses: plan.uses.iter().map(ToString::to_string).collect(),
            jobs: plan.jobs.iter().map(|spec| view::planned(farm, &plan.build.pipeline, spec, now)).collect(),
            warnings: left_out.into_iter().chain(submit::warnings(farm, &plan)).collect(),
        });
        Ok(Response::new(response.await.map_err(command_status)?))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let identity = caller(&request)?;
        let trace = trace::begin(&telemetry::extract(request.metadata()));
        let (asked, client) = (Asked::new(&self.audit, &request, audit::Act::Submit), self.clone());
        let request = request.into_inner();
        let tier = if submit::is_untrusted(&identity, &request) { "untrusted" } else { "" };
        let asked = asked.detail("priority", &request.priority).detail("tier", tier);
        // Until there is a build, this is all that says what was wanted.
        let wanted = asked.detail("version", &request.version).detail("file", &request.file_name);
        let wanted = wanted.detail("channel", &request.channel);
        let submit = async move { client.take_submit(&identity, trace, request).await };
        let done = wanted.carry_out(submit, |entry, done: &v1::SubmitResponse| {
            let entry = entry.target(&done.build);
            let entry = if done.existing { entry.detail("existing", "true") } else { entry };
            if done.superseded.is_empty() { entry } else { entry.detail("superseded", done.superseded.join(" ")) }
        });
        Ok(Response::new(done.await?))
    }

    async fn list_builds(
        &self,
        request: Request<v1::ListBuildsRequest>,
    ) -> Result<Response<v1::ListBuildsResponse>, Status> {
        let who = caller(&request)?;
        let request = request.into_inner();
        let pipeline = Some(request.pipeline).filter(|text| !text.is_empty());
        let pipeline: Option<PipelineName> = pipeline.map(|text| text.parse()).transpose().map_err(bad_request)?;
        if let Some(pipeline) = &pipeline {
            in_scope(&who, pipeline)?;
        }
        let (limits, deleted) = (who.limits, request.deleted);
        let limit = if request.limit == 0 { LIST_DEFAULT } else { (request.limit as usize).min(LIST_MAX) };
        let (now, cache_url) = (self.clock.now(), self.cache_url());
        let builds = self.farm.read(move |farm, live| {
            let wanted = |name: &PipelineName| {
                pipeline.as_ref().is_none_or(|pipeline| pipeline == name) && limits.allow_pipeline(name)
            };
            let mut found: Vec<_> =
                farm.builds().filter(|build| wanted(&build.id().pipeline) && build.is_deleted() == deleted).collect();
            found.sort_by_key(|build| std::cmp::Reverse(build.first_job));
            let views =
                found.into_iter().take(limit).map(|build| view::build(farm, live, build, now, &cache_url, false));
            view::up_to(LIST_MAX_BYTES, views)
        });
        Ok(Response::new(v1::ListBuildsResponse { builds: builds.await.map_err(command_status)? }))
    }

    async fn get_build(&self, request: Request<v1::GetBuildRequest>) -> Result<Response<v1::BuildView>, Status> {
        let who = caller(&request)?;
        let id = read::resolve(&self.farm, &who, &request.into_inner().build).await?;
        Ok(Response::new(self.view(id).await?))
    }

    async fn watch_build(
        &self,
        request: Request<v1::GetBuildRequest>,
    ) -> Result<Response<Self::WatchBuildStream>, Status> {
        let who = caller(&request)?;
        // Listens before it looks: a change in between is seen twice rather than not at all.
        let changes = self.farm.changes();
        let id = read::resolve(&self.farm, &who, &request.into_inner().build).await?;
        let (tx, rx) = mpsc::channel(1);
        let watcher = Watcher { farm: self.farm.clone(), clock: self.clock.clone(), cache_url: self.cache_url(), id };
        let shutdown = self.shutdown.clone();
        task::spawn("build watcher", async move { shutdown.run_until_cancelled(watcher.run(changes, tx)).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn read_log(&self, request: Request<v1::ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        let who = caller(&request)?;
        let request = request.into_inner();
        let build = read::resolve(&self.farm, &who, &request.build).await?;
        let name = read::log_name(&self.farm, self.clock.now(), build, &request.job, request.attempt).await?;
        let growth = if request.follow { self.growth(name.lease).await? } else { None };
        let chunks = ReceiverStream::new(self.logs.read(name, request.offset, growth));
        let chunks = futures_util::StreamExt::take_until(chunks, self.shutdown.clone().cancelled_owned());
        let stream = chunks
            .map(|chunk| chunk.map(|(offset, data)| v1::LogChunk { offset, data }).map_err(|error| log_status(&error)));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn sign_artifacts(
        &self,
        request: Request<v1::SignArtifactsRequest>,
    ) -> Result<Response<v1::SignArtifactsResponse>, Status> {
        let who = caller(&request)?;
        let request = request.into_inner();
        let id = read::resolve(&self.farm, &who, &request.build).await?;
        convert::at_most("paths", request.paths.len(), PATTERNS_MAX, "entries")?;
        let globs = request.paths.iter().map(|text| text.parse::<Glob>()).collect::<Result<Vec<_>, _>>();
        let matchers: Vec<_> = globs.map_err(bad_request)?.iter().map(Glob::matcher).collect();
        let found = self.farm.read(move |farm, _| {
            let build = farm.build(&id);
            (build.map(Build::keep), build.is_some_and(Build::is_published), artifacts_of(farm, &id))
        });
        let (keep, is_published, found) = found.await.map_err(command_status)?;
        let mut artifacts = Vec::new();
        let mut unmatched: BTreeSet<usize> = (0..matchers.len()).collect();
        for (job, artifact) in found {
            let path = artifact.path.as_str();
            let names = [path.to_owned(), artifact.path.file_name().to_owned(), format!("{job}/{path}")];
            let published = artifact.published.as_ref().map(|path| path.as_str().to_owned());
            let named = |n: &usize| names.iter().chain(&published).any(|name| matchers[*n].is_match(name));
            let its: Vec<usize> = (0..matchers.len()).filter(named).collect();
            if !matchers.is_empty() && its.is_empty() {
                continue;
            }
            unmatched.retain(|n| !its.contains(n));
            let url = self.cache.sign_get(&layout::blob(&artifact.blob), ARTIFACT_TTL).await;
            let url = url.map_err(|error| cache_status(&error))?;
            let artifact = Artifact { published: artifact.published.filter(|_| is_published), ..artifact };
            artifacts.push(v1::SignedArtifact { job: job.to_string(), artifact: Some(artifact.to_proto()), url });
        }
        if !unmatched.is_empty() {
            let nothing: Vec<&str> = unmatched.iter().map(|n| request.paths[*n].as_str()).collect();
            let (paths, build) = (nothing.join(", "), &request.build);
            let message = match keep {
                Some(keep) if keep != Keep::All => {
                    format!(
                        "nothing that is left of {build} matches {paths}; `railyard show {build}` tells what is kept"
                    )
                }
                _ => format!("no artifact matches {paths}; `railyard artifacts {build}` lists them"),
            };
            return Err(rpc_error::refusal(Code::NotFound, rpc_error::NOT_FOUND, message));
        }
        Ok(Response::new(v1::SignArtifactsResponse { artifacts }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let who = caller(&request)?;
        let (asked, client) = (Asked::new(&self.audit, &request, audit::Act::Cancel), self.clone());
        let request = request.into_inner();
        let asked = asked.target(&request.build).detail("job", &request.job).detail("why", &request.reason);
        let cancel = async move { client.cancel(&who, request).await };
        let done = asked.carry_out(cancel, |entry, done: &v1::CancelResponse| jobs(entry, &done.jobs));
        Ok(Response::new(done.await?))
    }

    async fn approve(&self, request: Request<v1::ApproveRequest>) -> Result<Response<v1::ApproveResponse>, Status> {
        let who = caller(&request)?;
        let (asked, client) = (Asked::new(&self.audit, &request, audit::Act::Approve), self.clone());
        let request = request.into_inner();
        let asked = asked.target(&request.build).detail("job", &request.job);
        let approve = async move { client.approve(&who, request).await };
        let done = asked.carry_out(approve, |entry, done: &v1::ApproveResponse| jobs(entry, &done.jobs));
        Ok(Response::new(done.await?))
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::RetryResponse>, Status> {
        let who = caller(&request)?;
        let (asked, client) = (Asked::new(&self.audit, &request, audit::Act::Retry), self.clone());
        let request = request.into_inner();
        let asked = asked.target(&request.build).detail("step", &request.step);
        let retry = async move { client.retry(&who, request).await };
        let done = asked.carry_out(retry, |entry, done: &v1::RetryResponse| jobs(entry, &done.jobs));
        Ok(Response::new(done.await?))
    }

    async fn hold_worker(
        &self,
        request: Request<v1::HoldWorkerRequest>,
    ) -> Result<Response<v1::HoldWorkerResponse>, Status> {
        let by = caller(&request)?.name;
        let act = match request.get_ref().kind() {
            v1::HoldKind::Cordon | v1::HoldKind::Unspecified => audit::Act::Cordon,
            v1::HoldKind::Drain => audit::Act::Drain,
            v1::HoldKind::Retire => audit::Act::Retire,
        };
        let (asked, client) = (Asked::new(&self.audit, &request, act), self.clone());
        let request = request.into_inner();
        let asked = asked.target(&request.worker).detail("why", &request.why);
        let hold = async move { client.hold(by, request).await };
        let worker = asked.carry_out(hold, |entry, _| entry).await?;
        Ok(Response::new(v1::HoldWorkerResponse { worker: Some(worker) }))
    }

    async fn release_worker(
        &self,
        request: Request<v1::ReleaseWorkerRequest>,
    ) -> Result<Response<v1::ReleaseWorkerResponse>, Status> {
        let by = caller(&request)?.name;
        let (asked, client) = (Asked::new(&self.audit, &request, audit::Act::Uncordon), self.clone());
        let request = request.into_inner();
        let asked = asked.target(&request.worker);
        let release = async move { client.release(by, request).await };
        let worker = asked.carry_out(release, |entry, _| entry).await?;
        Ok(Response::new(v1::ReleaseWorkerResponse { worker: Some(worker) }))
    }

    async fn pin_build(&self, request: Request<v1::PinBuildRequest>) -> Result<Response<v1::PinBuildResponse>, Status> {
        keep::pin(self, request).await.map(Response::new)
    }

    async fn unpin_build(
        &self,
        request: Request<v1::UnpinBuildRequest>,
    ) -> Result<Response<v1::UnpinBuildResponse>, Status> {
        keep::unpin(self, request).await.map(Response::new)
    }

    async fn tag_build(&self, request: Request<v1::TagBuildRequest>) -> Result<Response<v1::TagBuildResponse>, Status> {
        keep::tag(self, request).await.map(Response::new)
    }

    async fn promote_build(
        &self,
        request: Request<v1::PromoteBuildRequest>,
    ) -> Result<Response<v1::PromoteBuildResponse>, Status> {
        keep::promote(self, request).await.map(Response::new)
    }

    async fn untag_build(
        &self,
        request: Request<v1::UntagBuildRequest>,
    ) -> Result<Response<v1::UntagBuildResponse>, Status> {
        keep::untag(self, request).await.map(Response::new)
    }

    async fn delete_build(
        &self,
        request: Request<v1::DeleteBuildRequest>,
    ) -> Result<Response<v1::DeleteBuildResponse>, Status> {
        keep::delete(self, request).await.map(Response::new)
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let limits = caller(&request)?.limits;
        let workers = self
            .farm
            .read(move |farm, live| farm.workers().map(|worker| view::worker(farm, live, worker, &limits)).collect());
        Ok(Response::new(v1::ListWorkersResponse { workers: workers.await.map_err(command_status)? }))
    }
}

/// What the operator's policy does not allow, for the one who asked.
pub(super) fn denied_status(denied: &Denied) -> Status {
    rpc_error::refusal(Code::PermissionDenied, rpc_error::POLICY, denied.to_string())
}

/// What a record says of the jobs that it is about: how many, and their names as far as they fit.
fn jobs(entry: audit::Entry, names: &[String]) -> audit::Entry {
    entry.detail("count", names.len().to_string()).detail("jobs", names.join(" "))
}

fn artifacts_of(farm: &Farm, id: &BuildId) -> Vec<(JobName, Artifact)> {
    let Some(build) = farm.build(id) else { return Vec::new() };
    let jobs = build.jobs().zip(&build.plan.jobs);
    let results = jobs.filter_map(|(id, spec)| Some((spec.name.clone(), farm.job(id)?.result()?.artifacts.clone())));
    let (keep, publishes) = (build.keep(), build.publishes());
    let is_there = move |artifact: &Artifact| match keep {
        Keep::All => true,
        Keep::Published => publishes && artifact.published.is_some(),
        Keep::Manifest | Keep::Nothing => false,
    };
    let there = results.flat_map(|(name, artifacts)| {
        artifacts.into_iter().filter(is_there).map(move |artifact| (name.clone(), artifact))
    });
    there.collect()
}

/// Sends a build to one reader whenever it changes, until it has ended.
struct Watcher {
    farm: Handle,
    clock: Arc<dyn Clock>,
    cache_url: String,
    id: BuildId,
}

impl Watcher {
    async fn run(
        self,
        mut changes: tokio::sync::broadcast::Receiver<Change>,
        tx: mpsc::Sender<Result<v1::BuildView, Status>>,
    ) {
        let mut last = None;
        loop {
            let (id, now, url) = (self.id.clone(), self.clock.now(), self.cache_url.clone());
            let view = self.farm.read(move |farm, live| {
                farm.build(&id).map(|build| (build.is_ended(), view::build(farm, live, build, now, &url, true)))
            });
            let Ok(Some((ended, view))) = view.await else { return };
            if last.as_ref() != Some(&view) {
                if tx.send(Ok(view.clone())).await.is_err() {
                    return;
                }
                last = Some(view);
            }
            if ended || !self.changed(&mut changes, &tx).await {
                return;
            }
        }
    }

    /// Waits for the next change; `false` when nobody reads any more, or nothing can change any more.
    async fn changed(
        &self,
        changes: &mut tokio::sync::broadcast::Receiver<Change>,
        tx: &mpsc::Sender<Result<v1::BuildView, Status>>,
    ) -> bool {
        use tokio::sync::broadcast::error::RecvError;
        loop {
            tokio::select! {
                biased;
                () = tx.closed() => return false,
                change = changes.recv() => match change {
                    Ok(Change::Build(build)) if build != self.id => {}
                    // What was missed may have been ours.
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        tokio::time::sleep(WATCH_INTERVAL).await;
                        return true;
                    }
                    Err(RecvError::Closed) => return false,
                }
            }
        }
    }
}
