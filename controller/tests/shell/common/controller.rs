//! A controller in this process.

use super::{Backend, Ground};
use crate::store::Store;
use railyard_controller::cache::CacheConfig;
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
    /// The test's own, if it has another.
    ground: Option<Ground>,
}

/// What is left of a stopped controller.
pub struct Stopped {
    pub config: ControllerConfig,
    ground: Option<Ground>,
}

impl Controller {
    /// A new farm.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A new farm with other settings.
    pub async fn start_with(change: impl FnOnce(&mut ControllerConfig)) -> Self {
        Self::start_on_with(Backend::Embedded, change).await
    }

    /// A new farm with its cache there.
    pub async fn start_on(backend: Backend) -> Self {
        Self::start_on_with(backend, |_| {}).await
    }

    /// A new farm with its cache there, and with other settings.
    pub async fn start_on_with(backend: Backend, change: impl FnOnce(&mut ControllerConfig)) -> Self {
        let ground = Ground::of(backend).await;
        let mut config = ground.config();
        change(&mut config);
        Self::run(config, Some(ground)).await
    }

    /// A farm that exists already.
    pub async fn start_at(data_dir: PathBuf, cache: Option<CacheConfig>) -> Self {
        Self::start_as(ControllerConfig { cache, ..local(data_dir) }).await
    }

    /// A farm with these settings.
    pub async fn start_as(config: ControllerConfig) -> Self {
        Self::run(config, None).await
    }

    async fn run(config: ControllerConfig, ground: Option<Ground>) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shutdown = CancellationToken::new();
        let (tx, ready) = oneshot::channel();
        let mut running = task::spawn("controller", railyard_controller::run(config.clone(), shutdown.clone(), tx));
        let ready: Ready = tokio::select! {
            ready = ready => ready.expect("the controller says when it listens"),
            ended = &mut running => panic!("the controller did not start: {ended:?}"),
        };
        Self { config, url: ready.url, shutdown, running, ground }
    }

    /// Tells it to stop, and waits until it has.
    pub async fn stop(self) -> Stopped {
        self.shutdown.cancel();
        super::soon("the controller's stop", self.running).await.unwrap().unwrap();
        Stopped { config: self.config, ground: self.ground }
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

    /// The service of a cache in S3.
    pub fn store(&self) -> Option<&Store> {
        self.ground.as_ref()?.store.as_ref()
    }

    /// Where signed URLs lead.
    pub fn store_url(&self) -> String {
        let s3 = |store: &Store| format!("{}/{}/", store.config.endpoint.as_deref().unwrap(), store.config.bucket);
        self.store().map_or_else(|| format!("{}/cache/", self.url), s3)
    }

    /// The cache's objects, as files.
    pub fn objects(&self) -> PathBuf {
        self.store().map_or_else(|| self.data_dir().join("cache"), |store| store.bucket.clone())
    }

    /// An object of the cache, as text.
    pub async fn cached(&self, path: &str) -> Option<String> {
        if self.store().is_some() {
            return std::fs::read_to_string(self.objects().join(path)).ok();
        }
        let url = format!("{}/cache/{}", self.url, path.replace(' ', "%20"));
        let answer = self.browser().get(url).send().await.unwrap();
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

    /// Waits for lines of the audit that have all of these words; what is refused is written a moment after it is told.
    pub async fn audited(&self, words: &[&str]) -> usize {
        // Seen only if it fails.
        println!("waiting for a line of the audit with {words:?}");
        super::until("the line of the audit", async || Some(self.audit_lines(words)).filter(|&lines| lines > 0)).await
    }

    /// Lines of the audit that have all of these words.
    pub fn audit_lines(&self, words: &[&str]) -> usize {
        let dir = std::fs::read_dir(self.data_dir().join("audit")).unwrap();
        let files = dir.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
        let text: String = files.collect();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

impl Stopped {
    /// Starts it again on what it left, at `listen`.
    pub async fn start(self, listen: SocketAddr) -> Controller {
        Controller::run(ControllerConfig { listen, ..self.config }, self.ground).await
    }
}

/// Settings of a controller on a free port of loopback.
pub fn local(data_dir: PathBuf) -> ControllerConfig {
    ControllerConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..ControllerConfig::new(data_dir) }
}

/// The way to the controller at `url` as whoever has this identity.
pub fn endpoint(config: &ControllerConfig, url: &str, identity: Option<(Role, &str)>) -> Endpoint {
    endpoint_of(config, url, identity.map(|(role, name)| Identity::new(role, name).unwrap()).as_ref())
}

/// The same for whoever is limited.
pub fn endpoint_of(config: &ControllerConfig, url: &str, identity: Option<&Identity>) -> Endpoint {
    let pki = Pki::open_or_create(config).unwrap();
    let identity = identity.map(|identity| {
        let dir = tempfile::tempdir().unwrap();
        pki.issue(identity, dir.path(), &identity.name).unwrap();
        PemPair::read(dir.path(), &identity.name).unwrap()
    });
    Endpoint { url: url.to_owned(), ca_pem: pki.ca_pem().to_owned(), identity }
}
