//! The worker: takes leased jobs from a controller and runs each as a container.
//!
//! Reading order: [`session`] (what is held and until when; pure), [`link`] (the stream), [`daemon`] (the one owner that
//! joins them), [`attempt`] (one job from its order to its report), and what an attempt uses: [`inputs`], [`images`],
//! [`runtime`], [`outputs`], [`log`], [`uplink`].
//!
//! **Invariant:** whatever happens to a job, its container, its directory and, when its build is over, its images go;
//! and a container never runs longer than its lease.

pub mod adopt;
pub mod attempt;
pub mod blobs;
mod blocking;
pub mod cleanup;
pub mod config;
mod daemon;
pub mod disk;
pub mod fuzz;
pub mod host;
pub mod image_move;
pub mod images;
pub mod inputs;
pub mod join;
pub mod keyed;
pub mod link;
pub mod log;
pub mod network;
pub mod outputs;
pub mod pressure;
pub mod renewal;
pub mod runtime;
pub mod secrets;
pub mod session;
pub mod uplink;
pub mod usage;
pub mod workshop;

pub use config::WorkerConfig;

use anyhow::Context as _;
use attempt::dirs::DataDir;
use attempt::record::Left;
use railyard_common::digest::Digest;
use railyard_common::identity::{Limits, PoolLimit};
use railyard_service::channel::{self, ChannelError, Endpoint};
use railyard_service::clock::{Clock, SystemClock};
use railyard_service::task;
use railyard_service::tls::{self, PemPair};
use railyard_transfer::{Memory, Press, Transfer};
use renewal::{Credentials, Renewal};
use runtime::Runtime;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use uplink::Jitter;
use workshop::Workshop;

/// Hex digits of the farm's fingerprint in names and labels: enough to tell the farms of one engine apart.
const FARM_LEN: usize = 12;

/// What a worker has of the world around it. A simulation brings its own.
pub struct Outside {
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Makes the way to the controller.
    pub channel: fn(&Endpoint) -> Result<Channel, ChannelError>,
    /// Makes the way to and from the cache.
    pub http: fn(&Endpoint) -> Result<reqwest::Client, ChannelError>,
    /// Spreads the tries of a crowd of workers.
    pub jitter: Jitter,
    /// Measures the file system of a directory.
    pub space: fn(&Path) -> io::Result<disk::Space>,
    /// Where the kernel tells of pressure on the host.
    pub pressure_dir: PathBuf,
}

/// Runs a worker until `shutdown`, with the engine that its settings name.
///
/// # Errors
/// If the settings cannot work, no engine answers or it filters no system calls, the data directory is another worker's, or the controller refuses
/// this worker. A controller that cannot be reached is no error: it is tried for ever.
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    host::protect();
    let engine = runtime::Docker::connect(&config.docker_socket).await.context("a worker needs a container engine")?;
    engine.filters_calls().await.context("a worker needs a container engine")??;
    run_with(config, Arc::new(engine), shutdown).await
}

/// The same with another engine.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: WorkerConfig,
    runtime: Arc<dyn Runtime>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock);
    let (channel, http) = (channel::connect, channel::http_client);
    run_in(
        config,
        Outside {
            runtime,
            clock,
            channel,
            http,
            jitter: Jitter::random(),
            space: disk::Space::of,
            pressure_dir: PathBuf::from(pressure::PROC_PRESSURE),
        },
        shutdown,
    )
    .await
}

/// The same in a world that is given.
///
/// # Errors
/// As [`run`].
pub async fn run_in(config: WorkerConfig, outside: Outside, shutdown: CancellationToken) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir, config.host_data_dir.as_deref())?;
    let _lock = lock(&data.lock())?;
    if (outside.space)(data.root()).is_ok_and(|space| space.free_bytes < disk::FULL_BELOW_BYTES) {
        // What this start has to write finds room.
        disk::reserve::Reserve::new(data.root()).give();
    }
    let (shop, renewal) = open(config, data, outside)?;
    let shop = Arc::new(shop);
    let _renewing = AbortOnDropHandle::new(task::spawn("renewal", renewal.run()));
    let left = adopt::find(&shop);
    // Before anything else: whatever runs there without a lease must stop.
    tidy(&shop, &left).await?;
    guard(&shop).await;
    keep_secrets(&shop).await;
    // So that the first hello has something to tell.
    disk::account::look(&shop).await;
    let (daemon, events) = daemon::Daemon::new(shop.clone(), left.is_empty())?;
    let _keeping = AbortOnDropHandle::new(task::spawn("disks", disk::keeper::keep(shop)));
    Ok(daemon.run(left, events, shutdown).await?)
}

/// Keeps steps with a network where they belong; says so loudly where that cannot be.
async fn guard(shop: &Workshop) {
    let Err(error) = shop.guard.ensure(&*shop.runtime).await else { return };
    let error = railyard_service::error_chain(&error);
    match shop.guard.unguarded() {
        network::Unguarded::Refuse => {
            tracing::error!(error, "steps with a network are refused: nothing would keep them away from this host");
        }
        network::Unguarded::Allow => {
            tracing::warn!(error, "nothing keeps steps with a network away from this host; the settings allow that");
        }
    }
}

/// Says loudly where the secrets of steps could not be kept.
async fn keep_secrets(shop: &Workshop) {
    let secrets = shop.secrets.clone();
    if let Err(error) = blocking::blocking(move || secrets.check()).await {
        let error = railyard_service::error_chain(&error);
        tracing::error!(error, "steps with secrets are refused: this worker cannot keep them");
    }
}

/// Removes what nobody will go on with. What is gone on with may have little time left, and is not kept waiting for that.
async fn tidy(shop: &Arc<Workshop>, left: &[Left]) -> anyhow::Result<()> {
    let keep = left.iter().map(|left| left.order.lease).collect();
    // Found before there can be new jobs, which are none of it.
    let dead = cleanup::find(shop, &keep).await.context("cannot find what an earlier start left")?;
    let tidying = {
        let shop = shop.clone();
        task::spawn("tidy", async move {
            dead.remove(&shop).await.context("cannot clean up what an earlier start left")?;
            cleanup::images(&shop).await.context("cannot clean up images that an earlier start left")
        })
    };
    match left.iter().filter_map(adopt::fence_at).min() {
        None => tidying.await?,
        Some(until) => {
            let time = until.saturating_sub(shop.clock.boottime());
            // One that is late goes on by itself.
            tokio::time::timeout(time, tidying).await.unwrap_or(Ok(Ok(())))?
        }
    }
}

fn open(mut config: WorkerConfig, data: DataDir, outside: Outside) -> anyhow::Result<(Workshop, Renewal)> {
    let Outside { runtime, clock, channel, http, jitter, space, pressure_dir } = outside;
    let files = config.files();
    let ca_pem = read(&files.ca)?;
    let identity = PemPair { cert_pem: read(&files.cert)?, key_pem: read(&files.key)? };
    keep_within(&tls::identity_of_pem(&identity.cert_pem)?.limits, &mut config)?;
    let farm = Digest::of(ca_pem.as_bytes()).hex()[..FARM_LEN].to_owned();
    let endpoint = Endpoint { url: config.controller.clone(), ca_pem, identity: Some(identity) };
    let memory = Memory::new(config.transfer.memory.as_u64());
    let transfer = Transfer::within(http(&endpoint)?, config.transfer.settings(), memory.clone());
    let press = Press::new(memory);
    let credentials = Credentials::new(endpoint);
    let dial = credentials.clone();
    let uplink = uplink::Uplink::new(
        move || channel(&dial.now()),
        jitter.clone(),
        config.transfer.settings().progress_deadline,
    )?;
    let renewal = Renewal { files, credentials, channel, uplink: uplink.clone(), jitter };
    let uses = Arc::new(disk::uses::Uses::new(clock.clone()));
    let blobs = blobs::Blobs::open(&data.blobs(), u64::MAX, uses.clone())?;
    let shelf = images::Shelf::open(runtime.clone(), &farm, &config.name, &data.images(), uses)?;
    let places = disk::Places::of(&data, &*runtime);
    let base = host::measure(space, &places, blobs.kept_bytes(), shelf.bytes()).context("cannot measure the disks")?;
    blobs.limit(base.blob_cache_bytes(&config));
    shelf.limit(base.image_cache_bytes(&config));
    let disks = disk::Disks::new(&config, places);
    let layers = images::KnownLayers::default();
    let guard = network::Guard::new(&config.network, network::Controller::of(&config.controller))
        .labelled(runtime::labels::own(&farm, &config.name));
    let secrets = secrets::SecretsDir::new(&config, &farm);
    let shop = Workshop {
        config,
        farm,
        data,
        runtime,
        uplink,
        transfer,
        press,
        blobs,
        guard,
        secrets,
        shelf,
        layers,
        clock,
        disks,
        space,
        pressure_dir,
    };
    Ok((shop, renewal))
}

/// Offers no more than the certificate allows: the token that it came for named platforms and a pool.
fn keep_within(limits: &Limits, config: &mut WorkerConfig) -> anyhow::Result<()> {
    if !limits.platforms.is_empty() {
        let mut platforms = host::platforms(config);
        platforms.retain(|offer| limits.platforms.contains(&offer.platform));
        let wanted: Vec<&str> = limits.platforms.iter().map(|platform| platform.as_str()).collect();
        anyhow::ensure!(
            !platforms.is_empty(),
            "this host runs nothing for {}, which is all that it may offer",
            wanted.join(", ")
        );
        config.platforms = Some(platforms);
    }
    if let (PoolLimit::Only(pool), None) = (&limits.pool, &config.pool) {
        config.pool = Some(pool.clone());
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Held while the worker lives; the kernel lets go of it however that ends.
fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let why = || format!("{} is locked: another worker uses this data directory", path.display());
    file.try_lock().with_context(why)?;
    Ok(file)
}
