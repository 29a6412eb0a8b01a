//! A controller in this process.

use railyard_controller::setup::Pki;
use railyard_controller::{ControllerConfig, Ready};
use railyard_service::channel::{self, Endpoint};
use railyard_service::task;
use railyard_service::tls::{Identity, PemPair, Role, client_config};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A running controller; it stops with the test's runtime, or by [`Controller::stop`].
pub struct Controller {
    pub config: ControllerConfig,
    pub url: String,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    dir: Option<tempfile::TempDir>,
}

/// What is left of a stopped controller.
pub struct Stopped {
    pub config: ControllerConfig,
    dir: Option<tempfile::TempDir>,
}

impl Controller {
    /// A new farm.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A new farm with other settings.
    pub async fn start_with(change: impl FnOnce(&mut ControllerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = local(dir.path().join("data"));
        change(&mut config);
        Self::run(config, Some(dir)).await
    }

    /// A farm that exists already.
    pub async fn start_at(data_dir: PathBuf) -> Self {
        Self::run(local(data_dir), None).await
    }

    async fn run(config: ControllerConfig, dir: Option<tempfile::TempDir>) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shutdown = CancellationToken::new();
        let (tx, ready) = oneshot::channel();
        let mut running = task::spawn("controller", railyard_controller::run(config.clone(), shutdown.clone(), tx));
        let ready: Ready = tokio::select! {
            ready = ready => ready.expect("the controller says when it listens"),
            ended = &mut running => panic!("the controller did not start: {ended:?}"),
        };
        Self { config, url: ready.url, shutdown, running, dir }
    }

    /// Tells it to stop, and waits until it has.
    pub async fn stop(self) -> Stopped {
        self.shutdown.cancel();
        super::soon("the controller's stop", self.running).await.unwrap().unwrap();
        Stopped { config: self.config, dir: self.dir }
    }

    /// The port, to find it again there.
    pub fn address(&self) -> SocketAddr {
        self.url.strip_prefix("https://").unwrap().parse().unwrap()
    }

    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// Whoever has this identity.
    pub fn endpoint(&self, identity: Option<(Role, &str)>) -> Endpoint {
        endpoint(&self.config, &self.url, identity)
    }

    /// A connection as whoever has this identity.
    pub fn channel(&self, identity: Option<(Role, &str)>) -> Channel {
        channel::connect(&self.endpoint(identity)).unwrap()
    }

    /// An HTTP client with a person's certificate.
    pub fn browser(&self) -> reqwest::Client {
        let endpoint = self.endpoint(Some((Role::Viewer, "reader")));
        let tls = client_config(&endpoint.ca_pem, endpoint.identity.as_ref()).unwrap();
        reqwest::Client::builder().tls_backend_preconfigured(tls).http1_only().build().unwrap()
    }

    /// An object of the cache, as text.
    pub async fn cached(&self, path: &str) -> Option<String> {
        let answer = self.browser().get(format!("{}/cache/{path}", self.url)).send().await.unwrap();
        match answer.status().as_u16() {
            200 => Some(answer.text().await.unwrap()),
            404 => None,
            other => panic!("{path}: HTTP {other}: {:?}", answer.text().await),
        }
    }

    /// An object of the cache that is JSON.
    pub async fn cached_json(&self, path: &str) -> serde_json::Value {
        let text = self.cached(path).await.unwrap_or_else(|| panic!("{path} is not in the cache"));
        serde_json::from_str(&text).unwrap()
    }
}

impl Stopped {
    /// Starts it again on what it left, at `listen`.
    pub async fn start(self, listen: SocketAddr) -> Controller {
        Controller::run(ControllerConfig { listen, ..self.config }, self.dir).await
    }
}

/// Settings of a controller on a free port of loopback.
pub fn local(data_dir: PathBuf) -> ControllerConfig {
    ControllerConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..ControllerConfig::new(data_dir) }
}

/// The way to the controller at `url` as whoever has this identity.
pub fn endpoint(config: &ControllerConfig, url: &str, identity: Option<(Role, &str)>) -> Endpoint {
    let pki = Pki::open_or_create(config).unwrap();
    let identity = identity.map(|(role, name)| {
        let dir = tempfile::tempdir().unwrap();
        pki.issue(&Identity::new(role, name).unwrap(), dir.path(), name).unwrap();
        PemPair::read(dir.path(), name).unwrap()
    });
    Endpoint { url: url.to_owned(), ca_pem: pki.ca_pem().to_owned(), identity }
}
