//! Simulated workers: the protocol over a connection of their own, with mutual TLS, and nothing behind it.

use anyhow::Context as _;
use railyard_common::id::WorkerName;
use railyard_common::job::Capacity;
use railyard_common::outcome::Outcome;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_proto::v1::{controller_message, worker_message};
use railyard_service::channel::{self, Endpoint};
use railyard_service::convert::{ToProto as _, all};
use railyard_service::task;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// What a simulated worker does with an order, beside reporting success at once.
pub type OnOrder = Arc<dyn Fn(&v1::LeaseOrder) + Send + Sync>;
/// What it does when a report was taken.
pub type OnReported = Arc<dyn Fn() + Send + Sync>;

/// What all simulated workers of a measurement have in common.
#[derive(Clone)]
pub struct Crew {
    pub capacity: Capacity,
    pub on_order: OnOrder,
    pub on_reported: OnReported,
    pub stop: CancellationToken,
}

impl Crew {
    /// Workers that are only there.
    pub fn idle(capacity: Capacity) -> Self {
        Self { capacity, on_order: Arc::new(|_| ()), on_reported: Arc::new(|| ()), stop: CancellationToken::new() }
    }

    /// Connects one; returns when it was welcomed. It works until the crew is told to stop.
    pub async fn connect(&self, endpoint: &Endpoint, name: &WorkerName) -> anyhow::Result<()> {
        let mut client = WorkerServiceClient::new(channel::connect(endpoint)?);
        let (outbound, queue) = mpsc::channel(16);
        outbound.send(v1::WorkerMessage { kind: Some(worker_message::Kind::Hello(self.hello(name))) }).await?;
        let mut inbound = client.session(ReceiverStream::new(queue)).await?.into_inner();
        let welcome = match inbound.message().await?.and_then(|message| message.kind) {
            Some(controller_message::Kind::Welcome(welcome)) => welcome,
            other => anyhow::bail!("{name} was not welcomed: {other:?}"),
        };
        let worker = Worker { crew: self.clone(), client, outbound, heartbeat: welcome.heartbeat_millis };
        let stop = self.stop.clone();
        task::spawn("simulated worker", async move { stop.run_until_cancelled(worker.work(inbound)).await });
        Ok(())
    }

    fn hello(&self, name: &WorkerName) -> v1::Hello {
        let platforms = Platform::ALL.map(|platform| PlatformOffer { platform, emulated: false });
        v1::Hello {
            worker: name.to_string(),
            boot_id: "b1".to_owned(),
            version: railyard_common::VERSION.to_owned(),
            protocol: railyard_common::PROTOCOL,
            platforms: all(&platforms),
            capacity: Some(self.capacity.to_proto()),
            ..Default::default()
        }
    }
}

struct Worker {
    crew: Crew,
    client: WorkerServiceClient<Channel>,
    outbound: mpsc::Sender<v1::WorkerMessage>,
    heartbeat: u32,
}

impl Worker {
    async fn work(self, mut inbound: tonic::Streaming<v1::ControllerMessage>) {
        let mut beats = tokio::time::interval(Duration::from_millis(self.heartbeat.into()));
        let mut sequence = 0;
        loop {
            tokio::select! {
                biased;
                heard = inbound.message() => match heard {
                    Ok(Some(message)) => self.hear(message),
                    // The controller is going.
                    Ok(None) | Err(_) => return,
                },
                _ = beats.tick() => {
                    sequence += 1;
                    let beat = v1::Heartbeat { sequence, leases: Vec::new(), ..Default::default() };
                    let message = v1::WorkerMessage { kind: Some(worker_message::Kind::Heartbeat(beat)) };
                    if self.outbound.send(message).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn hear(&self, message: v1::ControllerMessage) {
        let Some(controller_message::Kind::Lease(order)) = message.kind else { return };
        (self.crew.on_order)(&order);
        let (mut client, on_reported) = (self.client.clone(), self.crew.on_reported.clone());
        task::spawn("simulated attempt", async move {
            let outcome = Some(Outcome::succeeded().to_proto());
            let report = v1::ReportRequest { lease: order.lease, outcome, log_bytes: 0, ..Default::default() };
            match client.report(report).await {
                Ok(_) => on_reported(),
                Err(status) => eprintln!("a report was refused: {status}"),
            }
        });
    }
}

/// Somebody who submits.
pub struct Submitter(ClientServiceClient<Channel>);

impl Submitter {
    pub fn new(endpoint: &Endpoint) -> anyhow::Result<Self> {
        Ok(Self(ClientServiceClient::new(channel::connect(endpoint)?)))
    }

    /// Submits a pipeline; returns the build's name.
    pub async fn submit(&mut self, pipeline: &str, version: &str) -> anyhow::Result<String> {
        let request = v1::SubmitRequest {
            pipeline: pipeline.to_owned(),
            file_name: "bench.yaml".to_owned(),
            version: version.to_owned(),
            idempotency_key: version.to_owned(),
            ..Default::default()
        };
        Ok(self.0.submit(request).await?.into_inner().build)
    }

    /// Waits until the build has ended well.
    pub async fn ended(&mut self, build: &str) -> anyhow::Result<()> {
        let request = v1::GetBuildRequest { build: build.to_owned() };
        let mut views = self.0.watch_build(request).await?.into_inner();
        while let Some(view) = views.message().await? {
            match view.state() {
                v1::BuildState::Succeeded => return Ok(()),
                v1::BuildState::Failed | v1::BuildState::Cancelled => {
                    anyhow::bail!("{build} is {:?}: {:?}", view.state(), view.jobs)
                }
                _ => {}
            }
        }
        Err(anyhow::Error::msg("the controller went away")).context(build.to_owned())
    }
}

/// A runtime for the bench's side of the wire.
pub fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?)
}
