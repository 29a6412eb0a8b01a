//! A farm for one test: certificates, the service, and a worker that is started with the test's settings.

use crate::engine;
use crate::faulty::{Faults, Faulty};
use crate::service::{Books, Service, message};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::order::Order;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_proto::v1;
use railyard_proto::v1::controller_message;
use railyard_service::convert::{FromProto as _, ToProto as _};
use railyard_service::tls::{Authority, Identity, Role, server_config};
use railyard_service::{listener, task};
use railyard_worker::WorkerConfig;
use railyard_worker::network::peer::Allowed;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Farm {
    pub service: Service,
    pub dir: TempDir,
    /// The worker's name for this farm in labels and images.
    pub id: String,
    url: String,
    stopped: CancellationToken,
}

pub struct Worker {
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

/// What a job ended with.
pub struct Ended {
    pub outcome: Outcome,
    pub report: v1::ReportRequest,
    pub log: String,
}

impl Farm {
    pub async fn start() -> Self {
        // Another test in this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path(), "test").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}", tcp.local_addr().unwrap().port());
        let pair = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
        let identity = Identity::new(Role::Worker, "w1").unwrap();
        authority.issue_client(&identity, 3600).unwrap().write(dir.path(), "w1").unwrap();
        let service = Service::new(url.clone());
        let stopped = CancellationToken::new();
        let tls = server_config(&pair, authority.ca_pem()).unwrap();
        task::spawn(
            "farm",
            listener::serve(tcp, tls, service.router(), None, listener::ShutOut::nobody(), stopped.clone()),
        );
        let id = Digest::of(authority.ca_pem().as_bytes()).hex()[..12].to_owned();
        Self { service, dir, id, url, stopped }
    }

    pub fn config(&self) -> WorkerConfig {
        let mut config = WorkerConfig::new(&self.url, "w1".parse().unwrap(), self.dir.path(), self.data_dir());
        config.stop_grace_secs = 1;
        // Nothing stays on the machine's engine.
        config.image_cache = bytesize::ByteSize::b(0);
        // How full this machine's disks are has no say.
        (config.disk.high, config.disk.low) = ("100%".parse().unwrap(), "100%".parse().unwrap());
        // Registries of tests are here.
        config.network.allow = vec![Allowed::try_from("127.0.0.1".to_owned()).unwrap()];
        config
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A worker with the default settings, connected.
    pub async fn worker(&self) -> Worker {
        self.worker_with(self.config()).await
    }

    pub async fn worker_with(&self, config: WorkerConfig) -> Worker {
        engine::runtime().await;
        let before = self.service.books().hellos.len();
        let worker = Self::launch(config);
        self.until("the worker says hello", |books| (books.hellos.len() > before).then_some(())).await;
        worker
    }

    /// A worker whose engine has faults, connected.
    pub async fn faulty_worker(&self, config: WorkerConfig, faults: Faults) -> Worker {
        let engine = Arc::new(Faulty { engine: engine::runtime().await, faults });
        let before = self.service.books().hellos.len();
        let shutdown = CancellationToken::new();
        let running = task::spawn("worker", railyard_worker::run_with(config, engine, shutdown.clone()));
        self.until("the worker says hello", |books| (books.hellos.len() > before).then_some(())).await;
        Worker { running, shutdown }
    }

    pub fn launch(config: WorkerConfig) -> Worker {
        let shutdown = CancellationToken::new();
        Worker { running: task::spawn("worker", railyard_worker::run(config, shutdown.clone())), shutdown }
    }

    /// Waits until `seen` finds what it looks for in the books.
    pub async fn until<T>(&self, what: &str, seen: impl Fn(&Books) -> Option<T>) -> T {
        let mut changes = self.service.changes();
        let found = async {
            loop {
                if let Some(found) = seen(&self.service.books()) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => {
                let books = self.service.books();
                let logs: Vec<_> = books.logs.iter().map(|(job, log)| (job, String::from_utf8_lossy(log))).collect();
                panic!("waited in vain until {what}; held {:?}, phases {:?}, logs {logs:?}", books.held, books.phases);
            }
        }
    }

    pub async fn tell(&self, kind: controller_message::Kind) {
        let outbound = self.service.books().outbound.clone().expect("a worker is connected");
        outbound.send(Ok(message(kind))).await.expect("the worker is connected");
    }

    /// Leases the job to the worker.
    pub async fn send(&self, order: &Order) {
        self.service.change(|books| books.held.insert(order.lease));
        self.tell(controller_message::Kind::Lease(order.to_proto())).await;
    }

    /// Waits for the report.
    pub async fn ended(&self, lease: LeaseId) -> Ended {
        let report = self.until("the job is reported", |books| books.reports.get(&lease).cloned()).await;
        let outcome = Outcome::from_proto(report.outcome.clone().unwrap()).unwrap();
        let log = self.log(lease);
        Ended { outcome, report, log }
    }

    pub fn log(&self, lease: LeaseId) -> String {
        String::from_utf8_lossy(self.service.books().logs.get(&lease).map_or(&[][..], Vec::as_slice)).into_owned()
    }

    /// Waits until the log has `text`.
    pub async fn logged(&self, lease: LeaseId, text: &str) {
        let text = text.as_bytes().to_vec();
        let has = |log: &Vec<u8>| log.windows(text.len()).any(|window| window == text);
        self.until("the job writes a line", |books| books.logs.get(&lease).is_some_and(has).then_some(())).await;
    }

    /// Runs a job to its end.
    pub async fn run(&self, order: &Order) -> Ended {
        self.send(order).await;
        self.ended(order.lease).await
    }

    /// Nothing is left of any job: no container, no directory.
    pub async fn assert_no_leftovers(&self) {
        assert_eq!(engine::containers_of(&self.id).await, Vec::<String>::new());
        let jobs: Vec<_> =
            std::fs::read_dir(self.data_dir().join("jobs")).unwrap().map(|dir| dir.unwrap().path()).collect();
        assert_eq!(jobs, Vec::<PathBuf>::new());
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

impl Worker {
    /// Stops the worker, and waits until it has.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.ended().await.unwrap();
    }

    pub fn begin_stop(&self) {
        self.shutdown.cancel();
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.running).await.expect("the worker ends").unwrap()
    }

    /// Ends the worker like a crash: nothing is cleaned up.
    pub async fn crash(self) {
        self.running.abort();
        // Aborted, so an error; it only matters that it is over.
        let _ = self.running.await;
    }
}

impl Ended {
    /// It ended like that, and the message says so.
    #[track_caller]
    pub fn expect(&self, kind: OutcomeKind, reason: Reason, message: &str) {
        let outcome = &self.outcome;
        assert_eq!((outcome.kind, outcome.reason), (kind, reason), "{outcome:?}\n{}", self.log);
        assert!(outcome.message.contains(message), "{message:?} is not in {:?}", outcome.message);
    }

    #[track_caller]
    pub fn expect_success(&self) {
        assert_eq!(self.outcome.kind, OutcomeKind::Succeeded, "{:?}\n{}", self.outcome, self.log);
    }
}
