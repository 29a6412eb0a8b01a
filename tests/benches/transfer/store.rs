//! The services, each in a process of its own: this binary again.
//!
//! What a worker asks its controller is asked here over a plain port of its own: which parts are to be sent where, and that
//! they are complete. The bytes go where they always go.

use anyhow::Context as _;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use railyard_common::blob::{Blob, PartToSign};
use railyard_common::id::{JobId, LeaseId};
use railyard_common::layout;
use railyard_controller::cache::{self, Cache, CacheConfig, EmbeddedConfig, Grant, S3Config, Uploader};
use railyard_service::clock::SystemClock;
use railyard_service::tls::{Authority, server_config};
use railyard_service::{listener, task};
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Arguments that only this bench gives to itself.
const AS_STORE: &str = "--as-store";
const AS_S3: &str = "--as-s3";
/// What a child prints in front of its address when it listens.
const READY: &str = "ready ";

pub const BUCKET: &str = "builds";
pub const KEY_ID: &str = "AKBENCH";
pub const SECRET: &str = "secret-of-the-store";

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The embedded cache over plain HTTP, which the farm never does: for comparison with tools that do.
    Embedded,
    EmbeddedTls,
    S3,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Embedded, Self::EmbeddedTls, Self::S3];

    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::EmbeddedTls => "embedded-tls",
            Self::S3 => "s3",
        }
    }
}

/// A store that runs.
pub struct Service {
    pub kind: Kind,
    /// Where clients ask.
    pub control: String,
    /// Where its objects lie.
    pub root: PathBuf,
    /// Where the S3 service listens.
    pub endpoint: String,
    /// The CA, if there is TLS.
    pub ca: PathBuf,
    pub pid: u32,
    children: Vec<Child>,
}

impl Service {
    pub fn start(kind: Kind, space: &Path) -> anyhow::Result<Self> {
        let dir = space.join(format!("store-{}", kind.name()));
        let mut children = Vec::new();
        let mut endpoint = String::new();
        if kind == Kind::S3 {
            std::fs::create_dir_all(dir.join("s3").join(BUCKET))?;
            let (child, address) = spawn(&[AS_S3, &dir.join("s3").to_string_lossy()])?;
            children.push(child);
            endpoint = format!("http://{address}");
        }
        let (child, address) = spawn(&[AS_STORE, kind.name(), &dir.to_string_lossy(), &endpoint])?;
        let pid = child.id();
        children.push(child);
        let root = if kind == Kind::S3 { dir.join("s3").join(BUCKET) } else { dir.join("cache") };
        Ok(Self {
            kind,
            control: format!("http://{address}"),
            root,
            endpoint,
            ca: dir.join("ca/ca.pem"),
            pid,
            children,
        })
    }

    /// Removes every object.
    pub fn empty(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name != "uploads") && path.is_dir() {
                std::fs::remove_dir_all(path)?;
            } else if path.is_file() {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It has nothing to lose.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(args: &[&str]) -> anyhow::Result<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?).args(args).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("it has no output")?).lines();
    while let Some(line) = lines.next().transpose()? {
        if let Some(address) = line.strip_prefix(READY) {
            return Ok((child, address.to_owned()));
        }
    }
    anyhow::bail!("a store did not start: {:?}", child.wait()?)
}

/// Runs the service that the command line asks for, if it asks for one.
pub fn is_child() -> anyhow::Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [AS_STORE, kind, dir, endpoint] => {
            let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).context("no such store")?;
            runtime()?.block_on(serve(kind, Path::new(dir), endpoint))?;
        }
        [AS_S3, root] => runtime()?.block_on(serve_s3(Path::new(root)))?,
        _ => return Ok(false),
    }
    Ok(true)
}

async fn serve(kind: Kind, dir: &Path, endpoint: &str) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock);
    let tcp = TcpListener::bind("127.0.0.1:0").await?;
    let address = tcp.local_addr()?;
    let scheme = if kind == Kind::EmbeddedTls { "https" } else { "http" };
    let config = match kind {
        Kind::S3 => {
            std::fs::create_dir_all(dir)?;
            let keys = dir.join("credentials");
            std::fs::write(&keys, format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"))?;
            CacheConfig::S3(serde_json::from_value::<S3Config>(serde_json::json!({
                "bucket": BUCKET, "endpoint": endpoint, "allow_http": true, "path_style": true, "credentials_file": keys,
            }))?)
        }
        _ => CacheConfig::Embedded(EmbeddedConfig { dir: dir.join("cache"), public_read: true, key_file: None }),
    };
    let url = format!("{scheme}://{address}/cache");
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("url"), &url)?;
    let opened = cache::open(&config, &url, clock).await?;
    if let Some(router) = opened.router {
        if kind == Kind::EmbeddedTls {
            let authority = Authority::open_or_create(&dir.join("ca"), "bench")?;
            let tls = server_config(&authority.issue_server(&["127.0.0.1".to_owned()])?, authority.ca_pem())?;
            task::spawn(
                "listener",
                listener::serve(tcp, tls, router, None, listener::ShutOut::nobody(), CancellationToken::new()),
            );
        } else {
            task::spawn("listener", async move { axum::serve(tcp, router).await });
        }
    }
    let control = TcpListener::bind("127.0.0.1:0").await?;
    println!("{READY}{}", control.local_addr()?);
    Ok(axum::serve(control, Router::new().route("/", post(answer)).with_state(opened.cache)).await?)
}

async fn serve_s3(root: &Path) -> anyhow::Result<()> {
    let tcp = TcpListener::bind("127.0.0.1:0").await?;
    let files = s3s_fs::FileSystem::new(root).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut builder = s3s::service::S3ServiceBuilder::new(files);
    builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET));
    let service = builder.build();
    println!("{READY}{}", tcp.local_addr()?);
    loop {
        let (stream, _) = tcp.accept().await?;
        let service = service.clone();
        task::spawn("connection", async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is the client's to notice.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Whoever asks.
const LEASE: LeaseId = LeaseId { job: JobId(1), attempt: 1 };

/// What a client asks.
#[derive(Serialize, Deserialize)]
pub enum Ask {
    Begin { blob: Blob },
    Sign { blob: Blob, upload_id: String, parts: Vec<PartToSign> },
    Complete { blob: Blob, upload_id: String, etags: Vec<String> },
    Find { blob: Blob },
}

/// The answer.
#[derive(Serialize, Deserialize)]
pub enum Answer {
    Present { blob: Blob },
    Send { upload_id: String, part_bytes: u64, is_crc32: bool },
    Urls { urls: Vec<String> },
    Done,
}

async fn answer(State(cache): State<Arc<dyn Cache>>, Json(ask): Json<Ask>) -> Result<Json<Answer>, String> {
    let failed = |error: cache::CacheError| railyard_service::error_chain(&error);
    Ok(Json(match ask {
        Ask::Begin { blob } => match cache.begin_upload(Uploader::trusted(LEASE), &blob).await.map_err(failed)? {
            Grant::Present(blob) => Answer::Present { blob },
            Grant::Send(begun) => Answer::Send {
                upload_id: begun.upload_id,
                part_bytes: begun.part_bytes,
                is_crc32: begun.checksum == railyard_common::blob::PartChecksum::Crc32,
            },
        },
        Ask::Sign { blob, upload_id, parts } => {
            Answer::Urls { urls: cache.sign_parts(LEASE, &blob, &upload_id, &parts).await.map_err(failed)? }
        }
        Ask::Complete { blob, upload_id, etags } => {
            cache.complete_upload(Uploader::trusted(LEASE), &blob, &upload_id, &etags).await.map_err(failed)?;
            Answer::Done
        }
        Ask::Find { blob } => {
            let Some(found) = cache.find(&blob.digest).await.map_err(failed)? else { return Ok(Json(Answer::Done)) };
            let url = cache.sign_get(&layout::blob(&found), Duration::from_secs(600)).await.map_err(failed)?;
            Answer::Urls { urls: vec![url, serde_json::to_string(&found).map_err(|error| error.to_string())?] }
        }
    }))
}
