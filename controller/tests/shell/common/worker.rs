//! A worker that speaks the protocol and runs nothing: the test says what its jobs do.

use super::heard::{Heard, Said};
use super::transfers::{Sent, artifact};
use super::{Controller, soon};
use railyard_proto::v1;
use railyard_proto::v1::controller_message::Kind;
use railyard_proto::v1::worker_message::Kind as Say;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::channel::{self, Endpoint};
use railyard_service::tls::Role;
use std::collections::VecDeque;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// One session of a worker, and its other calls.
pub struct Worker {
    pub rpc: WorkerServiceClient<Heard>,
    said: Said,
    pub http: reqwest::Client,
    pub welcome: v1::Welcome,
    to: mpsc::Sender<v1::WorkerMessage>,
    from: Streaming<v1::ControllerMessage>,
    /// Messages that came while another was waited for.
    passed_over: VecDeque<Kind>,
    sequence: u64,
    /// What its heartbeats say of its host.
    pub pressure: Option<v1::Pressure>,
    /// What it says of its disks.
    pub disk: Option<v1::DiskReport>,
}

/// What a worker of that name says first.
pub fn hello(name: &str) -> v1::Hello {
    v1::Hello {
        worker: name.to_owned(),
        boot_id: "boot-1".to_owned(),
        version: railyard_common::VERSION.to_owned(),
        protocol: railyard_common::PROTOCOL,
        platforms: vec![v1::PlatformOffer { platform: "linux/amd64".to_owned(), emulated: false }],
        capacity: Some(v1::Capacity { cpu_millis: 64_000, memory_bytes: 1 << 40, disk_bytes: 1 << 44, slots: 8 }),
        ..Default::default()
    }
}

impl Controller {
    /// A worker that holds nothing.
    pub async fn worker(&self, name: &str) -> Worker {
        self.worker_saying(hello(name)).await
    }

    /// A worker that says this hello.
    pub async fn worker_saying(&self, hello: v1::Hello) -> Worker {
        let name = hello.worker.clone();
        self.try_worker(&name, hello).await.unwrap()
    }

    /// The worker whose certificate says `name` says this hello.
    pub async fn try_worker(&self, name: &str, hello: v1::Hello) -> Result<Worker, Status> {
        Worker::connect(&self.endpoint(Some((Role::Worker, name))), hello).await
    }
}

impl Worker {
    pub async fn connect(endpoint: &Endpoint, hello: v1::Hello) -> Result<Self, Status> {
        let heard = Heard::new(channel::connect(endpoint).unwrap());
        let (said, rpc) = (heard.said(), WorkerServiceClient::new(heard));
        let http = channel::http_client(endpoint).unwrap();
        let (to, outbound) = mpsc::channel(16);
        to.send(v1::WorkerMessage { kind: Some(Say::Hello(hello)) }).await.unwrap();
        let from = soon("the session", rpc.clone().session(ReceiverStream::new(outbound))).await?.into_inner();
        let welcome = v1::Welcome::default();
        let mut worker = Self {
            rpc,
            said,
            http,
            welcome,
            to,
            from,
            passed_over: VecDeque::new(),
            sequence: 0,
            pressure: None,
            disk: None,
        };
        worker.welcome = match worker.next().await {
            Some(Kind::Welcome(welcome)) => welcome,
            other => panic!("the first message is not the welcome but {other:?}"),
        };
        Ok(worker)
    }

    /// All that the controller has said to it.
    pub fn rpc_said(&self) -> Said {
        self.said.clone()
    }

    /// The next message; `None` when the controller has closed the stream.
    pub async fn next(&mut self) -> Option<Kind> {
        let message = soon("a message of the controller", self.from.message()).await;
        // A connection that is cut and a stream that is closed are the same to a worker.
        message.ok().flatten().map(|message| message.kind.expect("a message of a known kind"))
    }

    /// The first message, old or new, for which `pick` gives something.
    async fn pick<T>(&mut self, mut pick: impl FnMut(&Kind) -> Option<T>) -> T {
        if let Some(at) = self.passed_over.iter().position(|kind| pick(kind).is_some()) {
            return self.passed_over.remove(at).as_ref().and_then(pick).unwrap();
        }
        loop {
            let kind = self.next().await.expect("the controller closed the session");
            match pick(&kind) {
                Some(picked) => return picked,
                None => self.passed_over.push_back(kind),
            }
        }
    }

    /// Waits until the controller ends the session.
    pub async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The next order.
    pub async fn order(&mut self) -> v1::LeaseOrder {
        let order = |kind: &Kind| match kind {
            Kind::Lease(order) => Some(order.clone()),
            _ => None,
        };
        self.pick(order).await
    }

    /// The next order to stop something, and why.
    pub async fn cancel(&mut self) -> v1::CancelLease {
        let cancel = |kind: &Kind| match kind {
            Kind::Cancel(cancel) => Some(cancel.clone()),
            _ => None,
        };
        self.pick(cancel).await
    }

    /// The news that a build is over.
    pub async fn build_over(&mut self) -> String {
        let over = |kind: &Kind| match kind {
            Kind::BuildOver(over) => Some(over.build.clone()),
            _ => None,
        };
        self.pick(over).await
    }

    /// Sends a heartbeat for these leases; gives the ack.
    pub async fn beat(&mut self, leases: &[v1::LeaseId], phase: v1::Phase) -> v1::HeartbeatAck {
        self.sequence += 1;
        let status = |lease: &v1::LeaseId| v1::LeaseStatus { lease: Some(*lease), phase: phase.into() };
        let beat = v1::Heartbeat {
            sequence: self.sequence,
            leases: leases.iter().map(status).collect(),
            free_disk_bytes: 1 << 40,
            disk: self.disk.clone(),
            pressure: self.pressure,
        };
        self.say(Say::Heartbeat(beat)).await;
        let sequence = self.sequence;
        let ack = |kind: &Kind| match kind {
            Kind::HeartbeatAck(ack) if ack.sequence == sequence => Some(ack.clone()),
            _ => None,
        };
        self.pick(ack).await
    }

    pub async fn say(&self, kind: Say) {
        self.to.send(v1::WorkerMessage { kind: Some(kind) }).await.expect("the session is open");
    }

    pub async fn try_report(&self, request: v1::ReportRequest) -> Result<(), Status> {
        soon("the report's answer", self.rpc.clone().report(request)).await.map(drop)
    }

    /// Reports that the job ended well and left nothing.
    pub async fn succeed(&self, lease: v1::LeaseId) {
        self.try_report(report(lease, succeeded())).await.unwrap();
    }

    /// Uploads files and reports them as what the job left.
    pub async fn succeed_with(&self, lease: v1::LeaseId, files: &[(&str, &[u8])]) {
        let mut request = report(lease, succeeded());
        for (path, bytes) in files {
            let sent = self.upload(lease, bytes).await;
            request.artifacts.push(artifact(path, &sent.blob));
            request.uploads.extend(sent.upload);
        }
        self.try_report(request).await.unwrap();
    }

    /// Uploads an image and gives it, with the uploads that its report must name.
    pub async fn image(
        &self,
        lease: v1::LeaseId,
        config: &[u8],
        layers: &[&[u8]],
    ) -> (v1::Image, Vec<v1::FinishedUpload>) {
        let Sent { blob, upload } = self.upload(lease, config).await;
        let (mut image, mut uploads) = (v1::Image { config: Some(blob), layers: Vec::new() }, Vec::from_iter(upload));
        for layer in layers {
            let Sent { blob, upload } = self.upload(lease, layer).await;
            image.layers.push(blob);
            uploads.extend(upload);
        }
        (image, uploads)
    }
}

/// The lease of an order.
pub fn lease(order: &v1::LeaseOrder) -> v1::LeaseId {
    order.lease.expect("an order has a lease")
}

pub fn report(lease: v1::LeaseId, outcome: v1::Outcome) -> v1::ReportRequest {
    v1::ReportRequest { lease: Some(lease), outcome: Some(outcome), ..Default::default() }
}

pub fn succeeded() -> v1::Outcome {
    v1::Outcome { exit_code: Some(0), ..outcome(v1::OutcomeKind::Succeeded, "done", "") }
}

pub fn failed(message: &str) -> v1::Outcome {
    v1::Outcome { exit_code: Some(1), ..outcome(v1::OutcomeKind::Failed, "exit-code", message) }
}

pub fn cancelled(message: &str) -> v1::Outcome {
    outcome(v1::OutcomeKind::Cancelled, "cancelled", message)
}

fn outcome(kind: v1::OutcomeKind, reason: &str, message: &str) -> v1::Outcome {
    v1::Outcome { kind: kind.into(), reason: reason.to_owned(), message: message.to_owned(), ..Default::default() }
}
