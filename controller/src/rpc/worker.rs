//! What workers call. Everything that acts for a job carries its lease, and a stale one is refused.

use super::access::check_offer;
use super::secrets::Giver;
use super::{auth, bad_request, cache_status, check_protocol, command_status, log_status};
use crate::cache::{Begun, Cache, CacheError, Grant, Uploader};
use crate::driver::{CommandError, Handle, Hello, Link, disk_of};
use crate::logs::LogStore;
use crate::sweep::Claims;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use railyard_common::blob::{Blob, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::id::{BootId, BuildId, LeaseId, WorkerName};
use railyard_common::layout;
use railyard_common::order::{Order, OrderImage};
use railyard_common::rights::Right;
use railyard_core::{Act, Said, WorkerOffer};
use railyard_proto::v1;
use railyard_proto::v1::worker_service_server::WorkerService;
use railyard_service::clock::Clock;
use railyard_service::convert::{self, FromProto, LIST_MAX_LEN, ToProto as _};
use railyard_service::tls::Identity;
use railyard_service::{rpc_error, task};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// Messages that wait for a worker to read them: a few for each lease that it can hold.
const LINK_LEN: usize = 256;
/// A stream on which nobody says hello is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often workers send a heartbeat: a sixth of the shortest lease TTL in use would be 20 s for the default of two
/// minutes; ten is the most that an observer should wait, and short leases want two.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A connected worker that was silent for so long no longer keeps another one of its name out: five heartbeats.
const RIVAL_SILENCE: Duration = Duration::from_secs(10);
/// How long a URL to read is good.
const DOWNLOAD_TTL: Duration = Duration::from_secs(3600);
/// Longest text that a worker offers: versions, boot ids and labels are a word or two.
const OFFER_TEXT_MAX_BYTES: usize = 256;
/// Most labels of a worker.
const LABELS_MAX: usize = 100;
/// Most platforms of a worker: there are two, and emulators know some twenty more.
const PLATFORMS_MAX: usize = 64;
/// Parts whose URLs are asked for at once: keeps the answer, some 500 bytes for each, below the limit of one message.
const PARTS_MAX: usize = 1_000;
/// Blobs that the cache is asked about at a time: it is waited for more than the processor.
const TICKETS_AT_A_TIME: usize = 16;
/// Log acks that wait for the worker to read them.
const ACKS_LEN: usize = 16;

/// The worker service. Sessions end at `shutdown`; workers come back to whoever listens next.
#[derive(Clone)]
pub struct Workers {
    pub(crate) farm: Handle,
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) giver: Giver,
    /// Blobs that leases count on.
    pub(crate) claims: Claims,
    pub(crate) farm_name: String,
    pub(crate) shutdown: CancellationToken,
}

impl Workers {
    async fn held_by(&self, act: Act, lease: Option<v1::LeaseId>, worker: &WorkerName) -> Result<LeaseId, Status> {
        let lease = lease_of(lease)?;
        self.farm.check_lease(act, lease, worker).await.map_err(command_status)?;
        Ok(lease)
    }

    /// Who uploads for a lease. Of one that nobody knows any more, nothing is believed.
    async fn uploader(&self, lease: LeaseId) -> Result<Uploader, Status> {
        // A plan is frozen: what it says was durable before the worker had the lease.
        let untrusted = self.farm.look(move |farm, _| farm.is_untrusted(lease)).await.map_err(command_status)?;
        Ok(Uploader { lease, untrusted: untrusted.unwrap_or(true) })
    }

    /// Whether the cache has a blob.
    async fn look(&self, blob: &Blob) -> Result<v1::UploadTicket, Status> {
        let found = self.cache.find(&blob.digest).await.map_err(|error| cache_status(&error))?;
        let (digest, present) = (blob.digest.to_string(), found.is_some());
        Ok(v1::UploadTicket { digest, present, blob: Some(found.unwrap_or(*blob).to_proto()), ..Default::default() })
    }

    /// The lease counts on these from now on, and no sweep takes one of them before it ends.
    pub(super) async fn claim(&self, lease: LeaseId, worker: &WorkerName, blobs: Vec<Digest>) -> Result<(), Status> {
        if blobs.is_empty() {
            return Ok(());
        }
        self.claims.claim(&self.farm, lease, worker, blobs).await.map_err(command_status)
    }

    /// How to send a blob for a lease, if the cache lacks it.
    async fn ticket(&self, by: Uploader, blob: &Blob, gone: &[String]) -> Result<v1::UploadTicket, Status> {
        let failed = |error: CacheError| cache_status(&error);
        let digest = blob.digest.to_string();
        let mut grant = self.cache.begin_upload(by, blob).await.map_err(failed)?;
        if let Grant::Send(begun) = &grant
            && gone.contains(&begun.upload_id)
        {
            self.cache.abort_upload(by.lease, blob, &begun.upload_id).await.map_err(failed)?;
            grant = self.cache.begin_upload(by, blob).await.map_err(failed)?;
        }
        Ok(match grant {
            Grant::Present(present) => {
                v1::UploadTicket { digest, present: true, blob: Some(present.to_proto()), ..Default::default() }
            }
            Grant::Send(Begun { upload_id, part_bytes, checksum }) => v1::UploadTicket {
                digest,
                present: false,
                blob: Some(blob.to_proto()),
                upload_id,
                part_bytes,
                checksum: checksum.to_proto().into(),
            },
        })
    }

    async fn welcome(
        &self,
        mut hello: v1::Hello,
        worker: WorkerName,
        identity: &Identity,
        link: Link,
    ) -> Result<u64, Status> {
        if hello.worker != worker.as_str() {
            let message =
                format!("the certificate is {worker}'s, the hello says {}; set `name` to {worker}", hello.worker);
            return Err(rpc_error::refusal(Code::PermissionDenied, rpc_error::FORBIDDEN, message));
        }
        let oldest = railyard_common::OLDEST_WORKER_PROTOCOL;
        check_protocol(&format!("worker {worker}"), &hello.version, hello.protocol, oldest)?;
        let held = convert::list("held", std::mem::take(&mut hello.held))?;
        convert::at_most("builds", hello.builds.len(), LIST_MAX_LEN, "entries")?;
        let builds = hello.builds.iter().map(|build| convert::parsed("builds", build));
        let builds = builds.collect::<Result<Vec<BuildId>, _>>()?;
        let said = said_of(&hello)?;
        let disk = disk_of(hello.disk.as_ref());
        let offer = Box::new(offer_of(hello, worker)?);
        check_offer(identity, &offer)?;
        self.check_name(&offer).await?;
        let welcome = v1::Welcome {
            farm: self.farm_name.clone(),
            version: railyard_common::VERSION.to_owned(),
            protocol: railyard_common::PROTOCOL,
            heartbeat_millis: HEARTBEAT.as_millis() as u32,
            ..Default::default()
        };
        self.farm.attach(Hello { offer, held, builds, said, disk }, welcome, link).await.map_err(command_status)
    }

    /// Two workers of one name would take the session, and with it each other's jobs, from each other for ever. The one
    /// that is connected and speaks keeps it. A worker whose process was killed comes back at once: the kernel closes the
    /// old stream; one whose host went down has not been heard for a while.
    async fn check_name(&self, offer: &WorkerOffer) -> Result<(), Status> {
        let (name, boot) = (offer.name.clone(), offer.boot.clone());
        let heard_at = self.farm.read(move |farm, live| {
            let other = farm.worker(&name).is_some_and(|known| known.offer.boot != boot);
            (other && live.session(&name).is_some()).then(|| live.last_seen(&name)).flatten()
        });
        let Some(heard_at) = heard_at.await.map_err(command_status)? else { return Ok(()) };
        let silent = Duration::from_millis(self.clock.now().since(heard_at));
        if silent >= RIVAL_SILENCE {
            return Ok(());
        }
        let message = format!(
            "another worker named {} is connected and was heard {} s ago; give one of the two another name and certificate, or stop it",
            offer.name,
            silent.as_secs()
        );
        tracing::warn!(worker = %offer.name, "two workers have one name; the second is refused");
        Err(rpc_error::refusal(Code::AlreadyExists, rpc_error::NAME_TAKEN, message))
    }

    /// A session from its welcome to its end; gives what the worker has said wrong, if that was the end.
    async fn serve(
        &self,
        worker: WorkerName,
        session: u64,
        link: Link,
        mut inbound: Streaming<v1::WorkerMessage>,
    ) -> Option<Status> {
        tracing::info!(%worker, session, "worker connected");
        let ended = tokio::select! {
            biased;
            ended = listen(&self.farm, &worker, session, &mut inbound) => ended,
            () = link.cut.cancelled() => Ended::for_us("another session of it began, it was retired, or it did not read its messages"),
            () = self.shutdown.cancelled() => Ended::for_us("the controller is stopping"),
            () = link.messages.closed() => Ended::for_us("its stream was closed"),
        };
        let (why, wrong) = match ended {
            Ended::ForUs(why) => (why, None),
            Ended::Wrong(status) => (status.message().to_owned(), Some(status)),
        };
        tracing::info!(%worker, session, %why, "worker disconnected");
        self.farm.detach(worker, session).await;
        wrong
    }
}

pub(super) fn lease_of(lease: Option<v1::LeaseId>) -> Result<LeaseId, Status> {
    let lease = lease.ok_or_else(|| bad_request("the call names no lease"))?;
    Ok(LeaseId::from_proto(lease)?)
}

/// What a session begins with, from any message.
pub(super) fn fuzz_hello(message: v1::WorkerMessage) -> Result<(), Status> {
    let Some(v1::worker_message::Kind::Hello(mut hello)) = message.kind else {
        return Err(bad_request("the first message of a session is a hello"));
    };
    let name = hello.worker.parse().map_err(bad_request)?;
    convert::list::<_, LeaseId>("held", std::mem::take(&mut hello.held))?;
    said_of(&hello)?;
    offer_of(hello, name).map(drop)
}

/// When the hello was said; workers of before do not tell.
fn said_of(hello: &v1::Hello) -> Result<Option<Said>, Status> {
    convert::at_most("host_boot", hello.host_boot.len(), OFFER_TEXT_MAX_BYTES, "bytes")?;
    let said = Said { host_boot: hello.host_boot.clone(), uptime_millis: hello.uptime_millis };
    Ok(Some(said).filter(|said| !said.host_boot.is_empty()))
}

fn offer_of(hello: v1::Hello, name: WorkerName) -> Result<WorkerOffer, Status> {
    // What a worker offers is journaled at each of its hellos.
    convert::at_most("boot_id", hello.boot_id.len(), OFFER_TEXT_MAX_BYTES, "bytes")?;
    convert::at_most("version", hello.version.len(), OFFER_TEXT_MAX_BYTES, "bytes")?;
    convert::at_most("platforms", hello.platforms.len(), PLATFORMS_MAX, "entries")?;
    convert::at_most("labels", hello.labels.len(), LABELS_MAX, "entries")?;
    for text in hello.labels.iter().flat_map(|(name, value)| [name, value]) {
        convert::at_most("labels", text.len(), OFFER_TEXT_MAX_BYTES, "bytes")?;
    }
    convert::at_most("allows", hello.allows.len(), LABELS_MAX, "entries")?;
    let mut allows = Vec::with_capacity(hello.allows.len());
    for text in &hello.allows {
        convert::at_most("allows", text.len(), OFFER_TEXT_MAX_BYTES, "bytes")?;
        // One that a newer worker knows and this controller does not is nothing that a job here could want.
        allows.extend(text.parse::<Right>());
    }
    Ok(WorkerOffer {
        name,
        boot: BootId(hello.boot_id),
        version: hello.version,
        platforms: convert::list("platforms", hello.platforms)?,
        capacity: convert::required("capacity", hello.capacity)?,
        labels: hello.labels.into_iter().collect(),
        pool: convert::parsed_if_given("pool", &hello.pool)?,
        allows_privileged: hello.allows_privileged,
        allows,
    })
}

/// Every blob that an order names: what its worker may fetch.
fn blobs_of(order: &Order) -> BTreeSet<Digest> {
    let image: Vec<&Blob> = match &order.image {
        OrderImage::Registry(_) => Vec::new(),
        OrderImage::Image(image) => std::iter::once(&image.config).chain(&image.layers).collect(),
        OrderImage::Import(artifact) => vec![&artifact.blob],
    };
    let inputs = order.inputs.iter().map(|input| &input.artifact.blob);
    image.into_iter().chain(inputs).map(|blob| blob.digest).collect()
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerService for Workers {
    type SessionStream = Outbound<v1::ControllerMessage>;
    type AppendLogStream = Outbound<v1::LogAck>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (worker, identity) = (auth::worker(&request)?, auth::caller(&request)?);
        let mut inbound = request.into_inner();
        let first = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Err(command_status(CommandError::Stopping)),
            first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()) => first,
        };
        let late = |_| {
            let message = format!("no hello came within {} s of the session's begin", HELLO_TIMEOUT.as_secs());
            rpc_error::refusal(Code::DeadlineExceeded, rpc_error::TOO_SLOW, message)
        };
        let first = first.map_err(late)??;
        let Some(v1::worker_message::Kind::Hello(hello)) = first.and_then(|message| message.kind) else {
            return Err(bad_request("the first message of a session is a hello"));
        };
        let (messages, outbound) = mpsc::channel(LINK_LEN);
        let (tell, told) = oneshot::channel();
        let link = Link { messages, cut: CancellationToken::new() };
        // In a task of its own from here on: a worker that hangs up now must still be taken off the list.
        let (service, (answer, welcomed)) = (self.clone(), oneshot::channel());
        task::spawn("worker session", async move {
            match service.welcome(hello, worker.clone(), &identity, link.clone()).await {
                Ok(session) => {
                    // Whoever hung up does not want the answer, and closed the stream.
                    let _ = answer.send(Ok(()));
                    if let Some(wrong) = service.serve(worker, session, link, inbound).await {
                        // The last that it hears, if it listens.
                        let _ = tell.send(wrong);
                    }
                }
                Err(refusal) => drop(answer.send(Err(refusal))),
            }
        });
        welcomed.await.unwrap_or_else(|_| Err(command_status(CommandError::Stopping)))?;
        let wrong = stream::once(told).filter_map(|told| std::future::ready(told.ok().map(Err)));
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound).map(Ok).chain(wrong))))
    }

    async fn prepare_upload(
        &self,
        request: Request<v1::PrepareUploadRequest>,
    ) -> Result<Response<v1::PrepareUploadResponse>, Status> {
        let worker = auth::worker(&request)?;
        let request = request.into_inner();
        let lease = self.held_by(Act::Upload, request.lease, &worker).await?;
        convert::at_most("gone_upload_ids", request.gone_upload_ids.len(), LIST_MAX_LEN, "entries")?;
        let blobs = convert::list::<_, Blob>("blobs", request.blobs)?;
        // Before anybody is told that the cache has one of them: the sweep must leave it then.
        self.claim(lease, &worker, blobs.iter().map(|blob| blob.digest).collect()).await?;
        if request.look_only {
            let looks: Vec<_> = blobs.iter().map(|blob| self.look(blob)).collect();
            let tickets = stream::iter(looks).buffered(TICKETS_AT_A_TIME).try_collect().await?;
            return Ok(Response::new(v1::PrepareUploadResponse { tickets }));
        }
        // Futures, not a stream that makes them: the borrows of a closure would keep this from being sent.
        let by = self.uploader(lease).await?;
        let tickets: Vec<_> = blobs.iter().map(|blob| self.ticket(by, blob, &request.gone_upload_ids)).collect();
        let tickets = stream::iter(tickets).buffered(TICKETS_AT_A_TIME).try_collect().await?;
        // The lease may have ended meanwhile, and with it its uploads: these came too late for that.
        if let Err(stale) = self.farm.check_lease(Act::Upload, lease, &worker).await {
            self.cache.end_uploads(lease).await.map_err(|error| cache_status(&error))?;
            return Err(command_status(stale));
        }
        Ok(Response::new(v1::PrepareUploadResponse { tickets }))
    }

    async fn sign_parts(
        &self,
        request: Request<v1::SignPartsRequest>,
    ) -> Result<Response<v1::SignPartsResponse>, Status> {
        let worker = auth::worker(&request)?;
        let request = request.into_inner();
        let lease = self.held_by(Act::Upload, request.lease, &worker).await?;
        convert::at_most("parts", request.parts.len(), PARTS_MAX, "entries")?;
        let blob: Blob = convert::required("blob", request.blob)?;
        let parts: Vec<PartToSign> = convert::list("parts", request.parts)?;
        let urls = self.cache.sign_parts(lease, &blob, &request.upload_id, &parts).await;
        Ok(Response::new(v1::SignPartsResponse { urls: urls.map_err(|error| cache_status(&error))? }))
    }

    async fn prepare_download(
        &self,
        request: Request<v1::PrepareDownloadRequest>,
    ) -> Result<Response<v1::PrepareDownloadResponse>, Status> {
        let worker = auth::worker(&request)?;
        let request = request.into_inner();
        let lease = self.held_by(Act::Download, request.lease, &worker).await?;
        let blobs: Vec<Blob> = convert::list("blobs", request.blobs)?;
        let allowed =
            self.farm.read(move |farm, _| farm.order(lease).map(|order| blobs_of(&order)).unwrap_or_default());
        let allowed = allowed.await.map_err(command_status)?;
        if let Some(strange) = blobs.iter().find(|blob| !allowed.contains(&blob.digest)) {
            let message = format!("{} is no input of lease {lease}", strange.digest);
            return Err(rpc_error::refusal(Code::PermissionDenied, rpc_error::FORBIDDEN, message));
        }
        let mut urls = Vec::new();
        for blob in blobs {
            let path = layout::blob(&blob);
            urls.push(self.cache.sign_get_for(lease, &path, DOWNLOAD_TTL).await.map_err(|error| cache_status(&error))?);
        }
        Ok(Response::new(v1::PrepareDownloadResponse { urls }))
    }

    async fn fetch_secrets(
        &self,
        request: Request<v1::FetchSecretsRequest>,
    ) -> Result<Response<v1::FetchSecretsResponse>, Status> {
        let worker = auth::worker(&request)?;
        // Only to start a step: what is fetched for one that has ended is of use to nobody.
        let lease = self.held_by(Act::Download, request.get_ref().lease, &worker).await?;
        Ok(Response::new(self.giver.give(&request, &self.farm, lease).await?))
    }

    async fn append_log(
        &self,
        request: Request<Streaming<v1::LogBatch>>,
    ) -> Result<Response<Self::AppendLogStream>, Status> {
        let worker = auth::worker(&request)?;
        let mut inbound = request.into_inner();
        let (farm, logs, shutdown) = (self.farm.clone(), self.logs.clone(), self.shutdown.clone());
        let (acks, outbound) = mpsc::channel(ACKS_LEN);
        let stream = async move {
            while let Some(batch) = inbound.next().await {
                let ack = match batch {
                    Ok(batch) => append(&farm, &logs, &worker, batch).await,
                    Err(status) => Err(status),
                };
                let failed = ack.is_err();
                if acks.send(ack).await.is_err() || failed {
                    return;
                }
            }
        };
        task::spawn("log stream", async move { shutdown.run_until_cancelled(stream).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let worker = auth::worker(&request)?;
        let (service, request) = (self.clone(), request.into_inner());
        // In a task of its own: an upload that is being completed is checked, whether or not the worker still listens.
        let settled = task::spawn("report", async move { service.take_report(worker, request).await });
        settled.await.unwrap_or_else(|_| Err(command_status(CommandError::Stopping)))?;
        Ok(Response::new(v1::ReportResponse {}))
    }
}

/// Why a session ended.
enum Ended {
    /// For the log.
    ForUs(String),
    /// The worker sent what makes no sense, and is told so.
    Wrong(Status),
}

impl Ended {
    fn for_us(why: &str) -> Self {
        Self::ForUs(why.to_owned())
    }
}

/// Takes a worker's messages until its stream ends; says why it did.
async fn listen(farm: &Handle, worker: &WorkerName, session: u64, inbound: &mut Streaming<v1::WorkerMessage>) -> Ended {
    use v1::worker_message::Kind;
    loop {
        let handled = match inbound.message().await {
            Ok(Some(v1::WorkerMessage { kind: Some(Kind::Heartbeat(beat)) })) => {
                if let Err(bad) = convert::at_most("leases", beat.leases.len(), LIST_MAX_LEN, "entries") {
                    return Ended::Wrong(bad.into());
                }
                farm.beat(worker.clone(), session, beat).await
            }
            Ok(Some(v1::WorkerMessage { kind: Some(Kind::Draining(_)) })) => {
                farm.draining(worker.clone(), session).await
            }
            Ok(Some(v1::WorkerMessage { kind: Some(Kind::Hello(_)) })) => {
                return Ended::Wrong(bad_request("a session has one hello, and this is the second"));
            }
            // A kind that a newer worker knows and this controller does not.
            Ok(Some(v1::WorkerMessage { kind: None })) => Ok(()),
            Ok(None) => return Ended::for_us("it closed its stream"),
            // Of a connection that broke nobody hears that.
            Err(status) => return Ended::Wrong(status),
        };
        if let Err(error) = handled {
            return Ended::ForUs(error.to_string());
        }
    }
}

async fn append(
    farm: &Handle,
    logs: &LogStore,
    worker: &WorkerName,
    batch: v1::LogBatch,
) -> Result<v1::LogAck, Status> {
    let lease = lease_of(batch.lease)?;
    farm.check_lease(Act::Log, lease, worker).await.map_err(command_status)?;
    let log = logs.writer(lease).await;
    // Once more: while this waited for its turn the attempt may have ended, and its log with it.
    if let Err(stale) = farm.check_lease(Act::Log, lease, worker).await {
        drop(log);
        logs.forget(lease);
        return Err(command_status(stale));
    }
    let durable_offset = log.append(batch.offset, batch.data).await.map_err(|error| log_status(&error))?;
    Ok(v1::LogAck { durable_offset })
}
