//! The controller's side of the protocol, and the cache, as plainly as the worker can be tested against.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_proto::v1;
use railyard_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use railyard_proto::v1::{controller_message, worker_message};
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::convert::{FromProto as _, ToProto as _, all};
use railyard_service::rpc_error;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// Length of a part: small, so that files have several.
const PART_BYTES: u64 = 256 * 1024;

/// What the test's farm knows, and how it misbehaves.
#[derive(Default)]
pub struct Books {
    pub url: String,
    /// By digest: as stored, and the stored bytes.
    pub blobs: BTreeMap<Digest, (Blob, Bytes)>,
    uploads: BTreeMap<String, (Blob, BTreeMap<usize, Bytes>)>,
    pub logs: BTreeMap<LeaseId, Vec<u8>>,
    pub reports: BTreeMap<LeaseId, v1::ReportRequest>,
    pub phases: BTreeMap<LeaseId, v1::Phase>,
    pub hellos: Vec<v1::Hello>,
    pub held: BTreeSet<LeaseId>,
    pub outbound: Option<mpsc::Sender<Result<v1::ControllerMessage, Status>>>,
    pub draining: bool,
    /// Stored bytes that were PUT, by digest.
    pub sent: BTreeMap<Digest, u64>,
    /// How often each blob was read.
    pub reads: BTreeMap<Digest, u32>,
    /// When each heartbeat came.
    pub beats: Vec<std::time::Duration>,
    /// What the worker last said of its disks.
    pub disk: Option<v1::DiskReport>,
    /// Heartbeats are not answered.
    pub deaf: bool,
    /// Whatever a worker says first is answered with this.
    pub unwelcome: Option<Status>,
    /// So many log streams break off after their first batch.
    pub log_breaks: u32,
    /// Calls for this lease are refused.
    pub stale: BTreeSet<LeaseId>,
    /// Nothing can be sent now.
    pub no_uploads: bool,
    /// The cache has no room for an upload.
    pub is_full: bool,
    /// The secrets of steps; a lease without an entry hears that there is none.
    pub secrets: BTreeMap<LeaseId, Vec<v1::SecretFile>>,
}

/// The farm. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    books: Arc<Mutex<Books>>,
    changes: watch::Sender<u64>,
}

impl Service {
    pub fn new(url: String) -> Self {
        let books = Arc::new(Mutex::new(Books { url, ..Books::default() }));
        Self { books, changes: watch::channel(0).0 }
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Changes the books; whoever waits for them looks again.
    pub fn change<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        let done = change(&mut self.books());
        self.changes.send_modify(|n| *n += 1);
        done
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn router(&self) -> Router {
        let grpc = WorkerServiceServer::new(self.clone()).max_decoding_message_size(16 << 20);
        let bytes = Router::new()
            .route("/up/{id}/{n}", put(put_part))
            .route("/blob/{hex}", get(get_blob))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(self.clone());
        tonic::service::Routes::new(grpc).into_axum_router().merge(bytes)
    }

    fn check(&self, lease: Option<v1::LeaseId>) -> Result<LeaseId, Status> {
        let lease = LeaseId::from_proto(lease.ok_or_else(|| Status::invalid_argument("no lease"))?)?;
        let books = self.books();
        if !books.stale.contains(&lease) && books.held.contains(&lease) {
            return Ok(lease);
        }
        Err(rpc_error::refusal(Code::FailedPrecondition, rpc_error::STALE_LEASE, format!("lease {lease} is over")))
    }
}

async fn put_part(
    State(service): State<Service>,
    Path((id, n)): Path<(String, usize)>,
    body: Bytes,
) -> impl IntoResponse {
    let etag = format!("\"{}\"", Digest::of(&body).hex());
    let known = service.change(|books| books.uploads.get_mut(&id).map(|(_, parts)| parts.insert(n, body)).is_some());
    let status = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
    (status, [("etag", etag)])
}

async fn get_blob(State(service): State<Service>, Path(hex): Path<String>) -> impl IntoResponse {
    let digest = Digest::from_hex(&hex).unwrap();
    service.change(|books| {
        *books.reads.entry(digest).or_default() += 1;
        books.blobs.get(&digest).map(|(_, bytes)| bytes.clone()).ok_or(StatusCode::NOT_FOUND)
    })
}

fn plain(blob: &Blob, stored: &[u8]) -> Vec<u8> {
    match blob.encoding {
        Encoding::Identity => stored.to_vec(),
        Encoding::Zstd => {
            let mut bytes = Vec::new();
            zstd::Decoder::new(stored).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        }
    }
}

impl Books {
    /// The plain bytes of a blob.
    pub fn plain(&self, digest: Digest) -> Vec<u8> {
        let (blob, stored) = &self.blobs[&digest];
        plain(blob, stored)
    }

    /// Puts a blob into the cache.
    pub fn add(&mut self, bytes: &[u8]) -> Blob {
        let blob = Blob::plain(Digest::of(bytes), bytes.len() as u64);
        self.blobs.insert(blob.digest, (blob, Bytes::copy_from_slice(bytes)));
        blob
    }

    fn complete(&mut self, finished: v1::FinishedUpload) -> Result<(), Status> {
        let (blob, parts) =
            self.uploads.remove(&finished.upload_id).ok_or_else(|| Status::internal("no such upload"))?;
        let stored: Vec<u8> = parts.into_values().flatten().collect();
        if finished.blob != Some(blob.to_proto()) || stored.len() as u64 != blob.stored_bytes {
            return Err(Status::internal("not what was promised"));
        }
        let bytes = plain(&blob, &stored);
        if Digest::of(&bytes) != blob.digest || bytes.len() as u64 != blob.size_bytes {
            return Err(Status::internal("wrong digest"));
        }
        self.sent.insert(blob.digest, blob.stored_bytes);
        self.blobs.insert(blob.digest, (blob, stored.into()));
        Ok(())
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl WorkerService for Service {
    type SessionStream = Answers<v1::ControllerMessage>;
    type AppendLogStream = Answers<v1::LogAck>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|message| message.kind);
        let Some(worker_message::Kind::Hello(hello)) = first else { return Err(Status::invalid_argument("no hello")) };
        let (outbound, answers) = mpsc::channel(64);
        self.change(|books| {
            if let Some(status) = &books.unwelcome {
                return Err(status.clone());
            }
            let told: Vec<LeaseId> = hello.held.iter().map(|lease| LeaseId::from_proto(*lease).unwrap()).collect();
            let held: Vec<LeaseId> = told.into_iter().filter(|lease| books.held.contains(lease)).collect();
            let welcome = v1::Welcome {
                farm: "test".into(),
                protocol: railyard_common::PROTOCOL,
                heartbeat_millis: 200,
                held: all(&held),
                ..Default::default()
            };
            // Before anybody else can send: it must come first.
            outbound.try_send(Ok(message(controller_message::Kind::Welcome(welcome)))).unwrap();
            books.disk.clone_from(&hello.disk);
            books.hellos.push(hello);
            books.outbound = Some(outbound.clone());
            Ok(())
        })?;
        let service = self.clone();
        railyard_service::task::spawn("session", async move {
            while let Ok(Some(message)) = inbound.message().await {
                service.hear(message.kind, &outbound);
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn prepare_upload(
        &self,
        request: Request<v1::PrepareUploadRequest>,
    ) -> Result<Response<v1::PrepareUploadResponse>, Status> {
        let request = request.into_inner();
        self.check(request.lease)?;
        if self.books().no_uploads {
            return Err(Status::unavailable("the test wants it so"));
        }
        if self.books().is_full {
            return Err(rpc_error::refusal(Code::Unavailable, rpc_error::CACHE, "the cache's disk is full"));
        }
        let tickets = self.change(|books| {
            let blobs = request.blobs.into_iter().map(|blob| Blob::from_proto(blob).unwrap());
            let look_only = request.look_only;
            blobs.map(|blob| if look_only { books.look(&blob) } else { books.ticket(&blob) }).collect()
        });
        Ok(Response::new(v1::PrepareUploadResponse { tickets }))
    }

    async fn sign_parts(
        &self,
        request: Request<v1::SignPartsRequest>,
    ) -> Result<Response<v1::SignPartsResponse>, Status> {
        let request = request.into_inner();
        self.check(request.lease)?;
        let books = self.books();
        let urls = request
            .parts
            .iter()
            .map(|part| format!("{}/up/{}/{}", books.url, request.upload_id, part.number))
            .collect();
        Ok(Response::new(v1::SignPartsResponse { urls }))
    }

    async fn prepare_download(
        &self,
        request: Request<v1::PrepareDownloadRequest>,
    ) -> Result<Response<v1::PrepareDownloadResponse>, Status> {
        let request = request.into_inner();
        self.check(request.lease)?;
        let books = self.books();
        let url = |blob: v1::Blob| format!("{}/blob/{}", books.url, blob.digest.trim_start_matches("sha256:"));
        Ok(Response::new(v1::PrepareDownloadResponse { urls: request.blobs.into_iter().map(url).collect() }))
    }

    async fn fetch_secrets(
        &self,
        request: Request<v1::FetchSecretsRequest>,
    ) -> Result<Response<v1::FetchSecretsResponse>, Status> {
        let lease = self.check(request.into_inner().lease)?;
        let none = || rpc_error::refusal(Code::FailedPrecondition, rpc_error::SECRET, "there is none of that name");
        let secrets = self.books().secrets.get(&lease).cloned().ok_or_else(none)?;
        Ok(Response::new(v1::FetchSecretsResponse { secrets }))
    }

    async fn append_log(
        &self,
        request: Request<Streaming<v1::LogBatch>>,
    ) -> Result<Response<Self::AppendLogStream>, Status> {
        let mut inbound = request.into_inner();
        let (acks, answers) = mpsc::channel(64);
        let service = self.clone();
        railyard_service::task::spawn("log", async move {
            while let Ok(Some(batch)) = inbound.message().await {
                let ack = service.append(batch);
                let broken = ack.is_err();
                if acks.send(ack).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let report = request.into_inner();
        let lease = self.check(report.lease)?;
        self.change(|books| {
            let have = books.logs.get(&lease).map_or(0, Vec::len) as u64;
            assert_eq!(have, report.log_bytes, "the log comes before the report");
            for finished in report.uploads.clone() {
                books.complete(finished)?;
            }
            books.held.remove(&lease);
            books.reports.insert(lease, report);
            Ok::<_, Status>(())
        })?;
        Ok(Response::new(v1::ReportResponse {}))
    }
}

impl Service {
    fn hear(&self, kind: Option<worker_message::Kind>, outbound: &mpsc::Sender<Result<v1::ControllerMessage, Status>>) {
        let ack = self.change(|books| match kind {
            Some(worker_message::Kind::Heartbeat(beat)) => {
                books.beats.push(SystemClock.monotonic());
                books.disk = beat.disk;
                let mut lost = Vec::new();
                for status in &beat.leases {
                    let lease = LeaseId::from_proto(status.lease.unwrap()).unwrap();
                    books.phases.insert(lease, status.phase());
                    if !books.held.contains(&lease) {
                        lost.push(lease);
                    }
                }
                (!books.deaf).then(|| v1::HeartbeatAck { sequence: beat.sequence, lost: all(&lost) })
            }
            Some(worker_message::Kind::Draining(_)) => {
                books.draining = true;
                None
            }
            _ => None,
        });
        if let Some(ack) = ack {
            // A worker that is gone needs no answer.
            let _ = outbound.try_send(Ok(message(controller_message::Kind::HeartbeatAck(ack))));
        }
    }

    fn append(&self, batch: v1::LogBatch) -> Result<v1::LogAck, Status> {
        let lease = self.check(batch.lease)?;
        self.change(|books| {
            let log = books.logs.entry(lease).or_default();
            let offset = usize::try_from(batch.offset).unwrap();
            let Some(known) = log.len().checked_sub(offset) else {
                return Err(rpc_error::refusal(Code::FailedPrecondition, rpc_error::LOG_GAP, "a gap"));
            };
            let overlap = known.min(batch.data.len());
            assert_eq!(&log[offset..offset + overlap], &batch.data[..overlap], "what is sent again is the same");
            log.extend_from_slice(&batch.data[overlap..]);
            let durable_offset = log.len() as u64;
            if books.log_breaks > 0 {
                books.log_breaks -= 1;
                return Err(Status::unavailable("broken off after it was written"));
            }
            Ok(v1::LogAck { durable_offset })
        })
    }
}

impl Books {
    fn look(&self, blob: &Blob) -> v1::UploadTicket {
        let found = self.blobs.get(&blob.digest).map(|(stored, _)| stored.to_proto());
        v1::UploadTicket {
            digest: blob.digest.to_string(),
            present: found.is_some(),
            blob: found,
            ..Default::default()
        }
    }

    fn ticket(&mut self, blob: &Blob) -> v1::UploadTicket {
        let digest = blob.digest.to_string();
        if let Some((stored, _)) = self.blobs.get(&blob.digest) {
            return v1::UploadTicket { digest, present: true, blob: Some(stored.to_proto()), ..Default::default() };
        }
        let upload_id = format!("u{}", self.uploads.len() + 1000 * self.reports.len());
        self.uploads.insert(upload_id.clone(), (*blob, BTreeMap::new()));
        v1::UploadTicket { digest, upload_id, part_bytes: PART_BYTES, ..Default::default() }
    }
}

pub fn message(kind: controller_message::Kind) -> v1::ControllerMessage {
    v1::ControllerMessage { kind: Some(kind) }
}
