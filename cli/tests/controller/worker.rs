//! A worker that speaks the protocol and runs nothing: the test says what its jobs come to.

use crate::place::{Place, exits};
use futures_util::stream;
use railyard_proto::v1;
use railyard_proto::v1::controller_message::Kind;
use railyard_proto::v1::worker_message::Kind as Say;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::channel::{self, Endpoint};
use railyard_service::tls::PemPair;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// Longest wait for anything that should happen at once; far above what a busy machine needs.
const LIMIT: Duration = Duration::from_secs(30);

/// One session of a worker.
pub struct Worker {
    runtime: Runtime,
    rpc: WorkerServiceClient<Channel>,
    /// Messages of the controller; it hangs up when the stream has ended.
    heard: std_mpsc::Receiver<Kind>,
    /// Held, for the stream ends with it.
    _to: mpsc::Sender<v1::WorkerMessage>,
}

/// What it says first.
pub fn hello(name: &str) -> v1::Hello {
    v1::Hello {
        worker: name.to_owned(),
        boot_id: "boot-1".to_owned(),
        version: railyard_common::VERSION.to_owned(),
        protocol: railyard_common::PROTOCOL,
        platforms: vec![v1::PlatformOffer { platform: "linux/amd64".to_owned(), emulated: false }],
        capacity: Some(v1::Capacity { cpu_millis: 8_000, memory_bytes: 1 << 40, disk_bytes: 12 << 30, slots: 4 }),
        ..v1::Hello::default()
    }
}

impl Worker {
    /// Connects to the controller of `place`, with a certificate that it issues.
    pub fn connect(place: &Place, hello: v1::Hello) -> Result<Self, tonic::Status> {
        let name = hello.worker.clone();
        exits(&place.run(&["controller", "cert", "worker", &name, "--data", "railyard-data", "--out", &name]), 0);
        let settings = std::fs::read_to_string(place.path("railyard-data/client.toml")).expect("client settings");
        let url = settings.lines().find_map(|line| line.strip_prefix("url = \"")?.strip_suffix('"'));
        let endpoint = Endpoint {
            url: url.expect("the settings name the controller").to_owned(),
            ca_pem: std::fs::read_to_string(place.path("railyard-data/pki/ca.pem")).expect("a CA"),
            identity: Some(PemPair::read(&place.path(&name), &name).expect("a certificate")),
        };
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Runtime::new().expect("a runtime");
        let (to, outbound) = mpsc::channel(4);
        let (tx, heard) = std_mpsc::channel();
        let rpc = runtime.block_on(async {
            let rpc = WorkerServiceClient::new(channel::connect(&endpoint).expect("a channel"));
            to.send(v1::WorkerMessage { kind: Some(Say::Hello(hello)) }).await.expect("an open stream");
            let outbound = stream::unfold(outbound, |mut from| async { from.recv().await.map(|said| (said, from)) });
            let mut inbound = rpc.clone().session(outbound).await?.into_inner();
            railyard_service::task::spawn("worker", async move {
                while let Ok(Some(message)) = inbound.message().await {
                    if message.kind.is_some_and(|kind| tx.send(kind).is_err()) {
                        return;
                    }
                }
            });
            Ok::<_, tonic::Status>(rpc)
        })?;
        Ok(Self { runtime, rpc, heard, _to: to })
    }

    /// The next order.
    pub fn order(&self) -> v1::LeaseOrder {
        loop {
            if let Kind::Lease(order) = self.heard.recv_timeout(LIMIT).expect("an order") {
                return order;
            }
        }
    }

    /// The next order to stop something.
    pub fn cancel(&self) -> v1::CancelLease {
        loop {
            if let Kind::Cancel(cancel) = self.heard.recv_timeout(LIMIT).expect("a cancel") {
                return cancel;
            }
        }
    }

    /// Waits until the controller ends the session.
    pub fn closed(&self) {
        loop {
            match self.heard.recv_timeout(LIMIT) {
                Ok(_) => {}
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
                Err(std_mpsc::RecvTimeoutError::Timeout) => panic!("the session is still open"),
            }
        }
    }

    /// Reports how the job of an order ended.
    pub fn report(&self, order: &v1::LeaseOrder, kind: v1::OutcomeKind) {
        let outcome = v1::Outcome { kind: kind.into(), reason: "done".to_owned(), ..v1::Outcome::default() };
        let report = v1::ReportRequest { lease: order.lease, outcome: Some(outcome), ..v1::ReportRequest::default() };
        self.runtime.block_on(self.rpc.clone().report(report)).expect("an accepted report");
    }
}
