//! A cache behind a real listener: the embedded one over HTTPS, or S3 over HTTP with s3s-fs as the service.

use crate::store::Store;
use axum::Router;
use railyard_common::blob::{Blob, PartSum, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::id::{JobId, LeaseId};
use railyard_common::path::RelPath;
use railyard_common::time::Millis;
use railyard_controller::cache::{
    self, Begun, Cache, CacheConfig, CacheError, EmbeddedConfig, Grant, S3Config, Uploader,
};
use railyard_service::channel::{Endpoint, http_client};
use railyard_service::clock::{Clock, SystemClock};
use railyard_service::tls::{Authority, Identity, Role, client_config, server_config};
use railyard_service::{listener, task};
use railyard_transfer::{Finished, MoveError, PartLog, PartUrls, Settings, Ticket, Transfer, silent};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The system's clock, put forward by hand.
#[derive(Default)]
pub struct TestClock {
    ahead_millis: AtomicU64,
}

impl TestClock {
    pub fn advance(&self, by: Duration) {
        self.ahead_millis.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Millis {
        SystemClock.now().plus(self.ahead_millis.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    Embedded,
    S3,
}

pub struct Fixture {
    pub backend: Backend,
    pub cache: Arc<dyn Cache>,
    /// As a worker has it: trusts the farm, shows no certificate.
    pub http: reqwest::Client,
    pub transfer: Transfer,
    pub clock: Arc<TestClock>,
    /// Holds `cache` (the embedded cache's directory, or the bucket) and room for the test's files.
    pub dir: TempDir,
    pub router: Option<Router>,
    pub base_url: String,
    pub authority: Option<Authority>,
    pub config: CacheConfig,
    /// The service of S3.
    store: Option<Store>,
    _shutdown: DropGuard,
}

impl Fixture {
    pub async fn open(backend: Backend) -> Self {
        match backend {
            Backend::Embedded => Self::embedded(false, None).await,
            Backend::S3 => Self::s3().await,
        }
    }

    /// The embedded cache, in `root` if one is given.
    pub async fn embedded(public_read: bool, root: Option<&Path>) -> Self {
        Self::listening("https", public_read, root).await
    }

    /// The embedded cache without TLS, which the farm never does: so that a bad network can do more to what passes.
    pub async fn embedded_plain() -> Self {
        Self::listening("http", false, None).await
    }

    async fn listening(scheme: &str, public_read: bool, root: Option<&Path>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", tcp.local_addr().unwrap());
        let cache_dir = root.map_or_else(|| dir.path().join("cache"), Path::to_owned);
        let key_file = Some(dir.path().join("cache.key"));
        let config = CacheConfig::Embedded(EmbeddedConfig { dir: cache_dir, public_read, key_file });
        let opened = Self::opened(config, format!("{url}/cache"), dir).await;
        let (router, stop) = (opened.router.clone().unwrap(), CancellationToken::new());
        if scheme == "http" {
            let serving = axum::serve(tcp, router).into_future();
            let stopped = stop.clone();
            task::spawn("listener", async move { stopped.run_until_cancelled(serving).await });
            return Self { _shutdown: stop.drop_guard(), ..opened };
        }
        let authority = Authority::open_or_create(&opened.dir.path().join("ca"), "test").unwrap();
        let pair = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
        let tls = server_config(&pair, authority.ca_pem()).unwrap();
        let serving = listener::serve(tcp, tls, router, None, listener::ShutOut::nobody(), stop.clone());
        task::spawn("listener", serving);
        let http = http_client(&Endpoint { url, ca_pem: authority.ca_pem().to_owned(), identity: None }).unwrap();
        let transfer = Transfer::new(http.clone(), settings());
        Self { http, transfer, authority: Some(authority), _shutdown: stop.drop_guard(), ..opened }
    }

    pub async fn s3() -> Self {
        Self::s3_with(|_| {}).await
    }

    /// The cache in S3 with other settings.
    pub async fn s3_with(change: impl FnOnce(&mut S3Config)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::start(&dir.path().join("cache")).await;
        let mut config = store.config.clone();
        change(&mut config);
        let base_url = format!("{}/{}", config.endpoint.as_ref().unwrap(), config.bucket);
        Self { store: Some(store), ..Self::opened(CacheConfig::S3(config), base_url, dir).await }
    }

    async fn opened(config: CacheConfig, base_url: String, dir: TempDir) -> Self {
        let clock = Arc::new(TestClock::default());
        let opened = cache::open(&config, &base_url, Arc::clone(&clock) as _).await.unwrap();
        let http = reqwest::Client::new();
        let backend = if opened.router.is_some() { Backend::Embedded } else { Backend::S3 };
        Self {
            backend,
            cache: opened.cache,
            transfer: Transfer::new(http.clone(), settings()),
            http,
            clock,
            dir,
            router: opened.router,
            base_url,
            authority: None,
            config,
            store: None,
            _shutdown: CancellationToken::new().drop_guard(),
        }
    }

    /// The service of a cache in S3.
    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("the cache is in S3")
    }

    /// A client that shows a certificate.
    pub fn http_as(&self, role: Role, name: &str) -> reqwest::Client {
        let authority = self.authority.as_ref().unwrap();
        let pair = authority.issue_client(&Identity::new(role, name).unwrap(), 3600).unwrap();
        let tls = client_config(authority.ca_pem(), Some(&pair)).unwrap();
        reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap()
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub async fn begin(&self, blob: &Blob) -> Ticket {
        self.begin_as(LEASE, blob).await
    }

    pub async fn begin_as(&self, lease: LeaseId, blob: &Blob) -> Ticket {
        match self.cache.begin_upload(Uploader::trusted(lease), blob).await.unwrap() {
            Grant::Send(Begun { upload_id, part_bytes, checksum }) => Ticket { upload_id, part_bytes, checksum },
            Grant::Present(blob) => panic!("{} is there already", blob.digest),
        }
    }

    /// Where a part with these bytes goes.
    pub async fn part_url(&self, blob: &Blob, ticket: &Ticket, number: u32, bytes: &[u8]) -> String {
        let part = self.to_sign(number, bytes);
        self.cache.sign_parts(LEASE, blob, &ticket.upload_id, &[part]).await.unwrap().remove(0)
    }

    /// A part with these bytes.
    pub fn to_sign(&self, number: u32, bytes: &[u8]) -> PartToSign {
        use md5::Digest as _;
        let sum = match self.backend {
            Backend::Embedded => PartSum::Crc32(crc32fast::hash(bytes)),
            Backend::S3 => PartSum::ContentMd5(md5::Md5::digest(bytes).into()),
        };
        PartToSign { number, sum }
    }

    pub fn urls<'a>(&'a self, lease: LeaseId, blob: &'a Blob, upload_id: &'a str) -> Urls<'a> {
        Urls { cache: &*self.cache, lease, blob, upload_id }
    }

    /// The cache as a controller that starts now opens it.
    pub async fn reopen(&self) -> Arc<dyn Cache> {
        cache::open(&self.config, &self.base_url, Arc::clone(&self.clock) as _).await.unwrap().cache
    }

    /// Bytes of parts that belong to no blob yet.
    pub fn staged_bytes(&self) -> u64 {
        let root = self.dir.path().join("cache");
        let dir = if self.backend == Backend::Embedded { root.join("uploads") } else { root };
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        let staged = entries.filter(|entry| {
            self.backend == Backend::Embedded || entry.file_name().to_string_lossy().contains("upload")
        });
        staged.map(|entry| entry.metadata().unwrap().len()).sum()
    }

    pub async fn push(&self, file: &Path, blob: &Blob, ticket: &Ticket) -> Result<Finished, MoveError<CacheError>> {
        self.push_as(LEASE, file, blob, ticket, &PartLog::unkept()).await
    }

    pub async fn push_as(
        &self,
        lease: LeaseId,
        file: &Path,
        blob: &Blob,
        ticket: &Ticket,
        log: &PartLog,
    ) -> Result<Finished, MoveError<CacheError>> {
        let urls = self.urls(lease, blob, &ticket.upload_id);
        self.transfer.push(file, blob, ticket, &urls, log, &silent).await
    }

    pub async fn send(&self, blob: &Blob, file: &Path) -> Finished {
        self.send_as(LEASE, blob, file).await
    }

    pub async fn send_as(&self, lease: LeaseId, blob: &Blob, file: &Path) -> Finished {
        let ticket = self.begin_as(lease, blob).await;
        self.push_as(lease, file, blob, &ticket, &PartLog::unkept()).await.unwrap()
    }

    pub async fn complete(&self, blob: &Blob, upload_id: &str, etags: &[String]) -> Result<(), CacheError> {
        self.cache.complete_upload(Uploader::trusted(LEASE), blob, upload_id, etags).await
    }

    /// Uploads a file as a blob.
    pub async fn upload(&self, blob: &Blob, file: &Path) {
        let sent = self.send(blob, file).await;
        self.complete(blob, &sent.upload_id, &sent.etags).await.unwrap();
    }

    pub async fn upload_bytes(&self, bytes: &[u8]) -> Blob {
        let blob = blob_of(bytes);
        let file = self.file(&blob.digest.hex(), bytes);
        self.upload(&blob, &file).await;
        blob
    }

    pub async fn signed(&self, path: &RelPath) -> String {
        self.cache.sign_get(path, Duration::from_secs(60)).await.unwrap()
    }

    /// Sends bytes to a part's URL as they are, with the checksum of `summed`; returns the status, and the ETag or the body.
    pub async fn put(&self, url: &str, bytes: &[u8], summed: &[u8]) -> (u16, String) {
        let (name, value) = self.sum(summed);
        let request = self.http.put(url).header(name, value).body(bytes.to_vec());
        let answer = request.send().await.unwrap();
        let (status, etag) = (answer.status().as_u16(), answer.headers().get("etag").cloned());
        let body = answer.text().await.unwrap();
        (status, etag.map_or(body, |etag| etag.to_str().unwrap().to_owned()))
    }

    /// The header by which a part's checksum is told.
    pub fn sum(&self, bytes: &[u8]) -> (&'static str, String) {
        self.to_sign(1, bytes).sum.header()
    }
}

/// Whoever uploads in these tests, unless it matters.
pub const LEASE: LeaseId = LeaseId { job: JobId(1), attempt: 1 };
/// Somebody else.
pub const OTHER_LEASE: LeaseId = LeaseId { job: JobId(2), attempt: 1 };

/// As a worker has it from its controller.
pub struct Urls<'a> {
    cache: &'a dyn Cache,
    lease: LeaseId,
    blob: &'a Blob,
    upload_id: &'a str,
}

impl PartUrls for Urls<'_> {
    type Error = CacheError;

    async fn sign(&self, parts: Vec<PartToSign>) -> Result<Vec<String>, CacheError> {
        self.cache.sign_parts(self.lease, self.blob, self.upload_id, &parts).await
    }
}

/// What fails here shall fail soon.
fn settings() -> Settings {
    let backoff = railyard_common::backoff::Backoff { base_millis: 5, max_millis: 20 };
    let (stall_timeout, progress_deadline) = (Duration::from_secs(20), Duration::from_secs(40));
    Settings { stall_timeout, progress_deadline, backoff, ..Settings::default() }
}

pub fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

pub fn blob_of(bytes: &[u8]) -> Blob {
    Blob::plain(Digest::of(bytes), bytes.len() as u64)
}

/// Bytes that do not compress; the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
