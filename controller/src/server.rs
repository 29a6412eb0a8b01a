//! Starting and stopping a controller.

use crate::access::{self, Gate, Guesses};
use crate::audit::{self, Audit};
use crate::cache::{self, Cache};
use crate::config::ControllerConfig;
use crate::driver::{Driver, Handle, Notices};
use crate::finalize::{self, Finalizer};
use crate::index;
use crate::journal::{Journal, SledJournal};
use crate::logs::LogStore;
use crate::policy_change::{self, Part};
use crate::registry;
use crate::reload::{self, Allowed, Reloaded};
use crate::rpc::{AccessControl, Admin, Client, Giver, Validity, Workers, note_refusals};
use crate::secrets::Secrets;
use crate::setup::Pki;
use crate::sweep::{self, Claims, SweepHandle, Sweeper};
use crate::uploads;
use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use futures_util::StreamExt as _;
use http::StatusCode;
use railyard_proto::v1;
use railyard_proto::v1::access_service_server::AccessServiceServer;
use railyard_proto::v1::admin_service_server::AdminServiceServer;
use railyard_proto::v1::client_service_server::ClientServiceServer;
use railyard_proto::v1::worker_service_server::WorkerServiceServer;
use railyard_service::clock::{Clock, SystemClock};
use railyard_service::listener::{self, BadRequests, Listener, Peer, Serving, WrongCertificates};
use railyard_service::tls::Authority;
use railyard_service::{MESSAGE_MAX_BYTES, error_chain, task, telemetry, tls};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The controller listens.
#[derive(Clone, Debug)]
pub struct Ready {
    /// `https://HOST:PORT`
    pub url: String,
    /// The root of the cache, for people.
    pub cache_url: String,
    /// Client settings for this farm.
    pub client_settings: PathBuf,
}

/// What a controller has of the world around it. A simulation brings its own.
pub struct Outside<L> {
    /// Where events are kept.
    pub journal: Box<dyn Journal>,
    /// Where connections come from.
    pub tcp: L,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where the cache's bytes are moved, so that they take no time from the farm. `None`: here.
    pub bulk: Option<tokio::runtime::Handle>,
}

/// Runs a controller until `shutdown`. `ready` hears when it listens.
///
/// # Errors
/// If it cannot start (data directory, journal, certificates, address, cache), or its journal fails for good.
pub async fn run(
    config: ControllerConfig,
    shutdown: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    let data = &config.data_dir;
    std::fs::create_dir_all(data).with_context(|| format!("cannot create the data directory {}", data.display()))?;
    crate::backup::check_finished(data)?;
    // First of all: it keeps a second controller out, before that changes anything here.
    let journal_dir = data.join("journal");
    let journal = tokio::task::spawn_blocking(move || SledJournal::open(&journal_dir)).await??;
    let tcp = TcpListener::bind(config.listen).await;
    let tcp = tcp.with_context(|| format!("cannot listen at {}; is another controller running?", config.listen))?;
    let bulk = bulk_runtime().context("cannot start the threads that move the cache's bytes")?;
    let clock = Arc::new(SystemClock);
    let outside = Outside { journal: Box::new(journal), tcp, clock, bulk: Some(bulk.handle().clone()) };
    let ended = run_in(config, outside, shutdown, ready).await;
    // What is still moved is moved for nobody.
    bulk.shutdown_background();
    ended
}

/// Threads of their own for the cache's bytes. They give way to the farm's: a heartbeat takes microseconds, and must not wait
/// for gigabytes.
fn bulk_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("bulk")
        .on_thread_start(|| {
            // Of the calling thread, as Linux has it. One that must not change it works on as it is.
            let _ = rustix::process::nice(BULK_NICE);
        })
        .enable_all()
        .build()
}

/// How much the threads that move bytes give way: a third of the weight of others, where others want to run at all.
const BULK_NICE: i32 = 5;

/// The same in a world that is given.
///
/// # Errors
/// As [`run`].
pub async fn run_in<L: Listener>(
    config: ControllerConfig,
    outside: Outside<L>,
    shutdown: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    let (Outside { journal, tcp, clock, bulk }, data) = (outside, &config.data_dir);
    let url = config.url(tcp.local_addr()?);
    let audit = begin_audit(data, &url, clock.clone()).await?;
    policy_change::note(&config, &audit, &Part::ALL).await;
    let pki = Pki::open_or_create(&config)?;
    let opened = cache::open(&config.cache(), &format!("{url}/cache"), clock.clone()).await?;
    let logs = Arc::new(LogStore::open(&data.join("logs"), opened.cache.clone(), config.log_max.as_u64())?);

    let (changed, finalize) = (broadcast::Sender::new(CHANGES_LEN), Arc::new(Notify::new()));
    let (ended, ended_logs) = mpsc::unbounded_channel();
    let (ended_too, ended_uploads) = mpsc::unbounded_channel();
    let (listed, changed_lists) = mpsc::unbounded_channel();
    let wake = finalize.clone();
    let notices = Notices { changed, ended: vec![ended, ended_too], listed: vec![listed], finalize };
    let (driver, farm) = Driver::open(journal, clock.clone(), notices)?;

    let (cache, router) = (opened.cache, opened.router);
    cache.ask_leases(Arc::new(farm.clone()));
    let shut_out = access::shut_out(&farm);
    let claims = Claims::default();
    let finalizer = Finalizer::new(farm.clone(), cache.clone(), clock.clone(), wake, audit.clone());
    let Reloaded { retention, allowed } = reload::watch(&config, &audit, &shutdown)?;
    let sweeper = Sweeper {
        farm: farm.clone(),
        cache: cache.clone(),
        claims: claims.clone(),
        finalizer: finalizer.clone(),
        audit: audit.clone(),
        metrics: sweep::Metrics::new(&telemetry::meter()),
        clock: clock.clone(),
        settings: retention,
    };
    // The driver answers as soon as it runs.
    let (sweep, sweeper) = sweeper.start(shutdown.clone());
    let rooms = Rooms {
        farm: farm.clone(),
        cache: cache.clone(),
        cache_router: router,
        logs: logs.clone(),
        clock: clock.clone(),
        authority: pki.authority(),
        audit: audit.clone(),
        secrets: Secrets::open(data.join("secrets"), config.secret_key_file())?,
        claims,
        sweep,
        finalizer: finalizer.clone(),
        allowed,
    };
    let app = routes(&config, rooms, &shutdown)?;
    let tls = tls::server_config(&pki.server(&config.server_names())?, pki.ca_pem())?;
    pki.operator(&config, &url)?;

    // The driver goes last: what is still asked while connections end gets its answer.
    let driver_stop = CancellationToken::new();
    let driver = task::spawn("driver", driver.run(driver_stop.clone()));
    let sweeping = uploads::start(farm.clone(), cache.clone(), ended_uploads, shutdown.clone());
    let listing = index::start(finalizer.indexer(), changed_lists, shutdown.clone());
    let mut background = finalize::start(finalizer, logs, ended_logs, &shutdown);
    background.extend([sweeping, sweeper, listing]);
    let (wrong_certificates, bad_requests) = (note_wrong_certificates(&audit), note_bad_requests(&audit));
    let serving = Serving { app, bulk, shut_out, wrong_certificates, bad_requests, limits: config.limits.clone() };
    let mut server = task::spawn("listener", listener::serve_within(tcp, tls, serving, shutdown.clone()));
    let cache_url = format!("{url}/cache");
    tracing::info!(%url, data = %data.display(), "the controller listens");
    // Whoever started this may have stopped waiting.
    let _ = ready.send(Ready { url, cache_url, client_settings: data.join("client.toml") });

    let mut driver = driver;
    let (mut driver_ended, mut server_ended, mut background_ended) = (None, None, None);
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = &mut driver => driver_ended = Some(ended),
        // None of these ends before the shutdown, unless something is very wrong.
        ended = &mut server => server_ended = Some(ended),
        Some(ended) = background.next() => background_ended = Some(ended),
    }
    shutdown.cancel();
    match server_ended {
        Some(ended) => ended,
        None => server.await,
    }??;
    while let Some(ended) = background.next().await {
        background_ended = background_ended.filter(Result::is_err).or(Some(ended));
    }
    driver_stop.cancel();
    let ended = match driver_ended {
        Some(ended) => ended,
        None => driver.await,
    };
    end_audit(&audit).await;
    ended?.context("the journal failed")?;
    background_ended.transpose().context("a part of the controller broke down").map(drop)
}

/// Opens the audit, and records the start.
async fn begin_audit(data: &Path, url: &str, clock: Arc<dyn Clock>) -> anyhow::Result<Audit> {
    let audit = Audit::open(&data.join("audit"), clock)?;
    let start = audit::Entry::new(audit::Act::Start).target(url).detail("version", railyard_common::VERSION);
    if let Err(error) = audit.record(start).await {
        // On a full disk it starts all the same, to be looked at; it changes nothing, and says so to whoever asks.
        tracing::error!(error = error_chain(&error), "the start is not recorded yet");
    }
    Ok(audit)
}

/// Who shows a certificate that is worth nothing never gets to a call; it is recorded all the same.
fn note_wrong_certificates(audit: &Audit) -> WrongCertificates {
    let audit = audit.clone();
    WrongCertificates::told_to(move |from, why| {
        let entry = audit::Entry::new(audit::Act::LoginFailure).peer(&Peer::nobody(from)).target("certificate");
        audit.note(entry.refused(why));
    })
}

/// What is no request never gets to a call either.
fn note_bad_requests(audit: &Audit) -> BadRequests {
    let audit = audit.clone();
    BadRequests::told_to(move |from, what, why| {
        audit.note(audit::Entry::new(audit::Act::Refused).peer(from).target(what).refused(why));
    })
}

/// Records the end, and closes the audit.
async fn end_audit(audit: &Audit) {
    if let Err(error) = audit.close(audit::Entry::new(audit::Act::Stop)).await {
        tracing::error!(error = error_chain(&error), "the stop is not recorded");
    }
}

/// Largest message to a service that everybody may call: the name of a service or of a message.
const PUBLIC_MESSAGE_MAX_BYTES: usize = 64 * 1024;

/// Largest message to the service that gives out certificates and tokens, to nobody known as well: a token for thousands of pipelines.
const ACCESS_MESSAGE_MAX_BYTES: usize = 256 * 1024;

/// Changed builds that a slow watcher may be behind before it reads everything again.
const CHANGES_LEN: usize = 4_096;

/// What the routes lead to.
struct Rooms {
    farm: Handle,
    cache: Arc<dyn Cache>,
    /// Of a cache that is served here.
    cache_router: Option<Router>,
    logs: Arc<LogStore>,
    clock: Arc<dyn Clock>,
    authority: Arc<Authority>,
    audit: Audit,
    secrets: Secrets,
    claims: Claims,
    sweep: SweepHandle,
    finalizer: Finalizer,
    allowed: watch::Receiver<Arc<Allowed>>,
}

fn routes(config: &ControllerConfig, rooms: Rooms, shutdown: &CancellationToken) -> anyhow::Result<Router> {
    let Rooms { farm, cache, cache_router, logs, clock, authority, audit, secrets, claims, sweep, finalizer, allowed } =
        rooms;
    let guesses = Arc::new(Guesses::default());
    let validity =
        Validity { worker_secs: config.worker_certificate_secs, person_secs: config.person_certificate_secs };
    let gate = Gate::new(&farm, clock.clone(), guesses.clone(), audit.clone());
    let access = AccessControl::new(farm.clone(), authority, clock.clone(), guesses, audit.clone(), validity)?;
    let access = AccessServiceServer::new(access).max_decoding_message_size(ACCESS_MESSAGE_MAX_BYTES);
    let client = Client {
        farm: farm.clone(),
        audit: audit.clone(),
        cache: cache.clone(),
        logs: logs.clone(),
        clock: clock.clone(),
        farm_name: config.farm.clone(),
        allowed,
        secrets: secrets.clone(),
        finalizer,
        sweep: sweep.clone(),
        shutdown: shutdown.clone(),
    };
    let admin = AdminServiceServer::new(Admin {
        farm: farm.clone(),
        audit: audit.clone(),
        secrets: secrets.clone(),
        sweep,
        clock: clock.clone(),
        shutdown: shutdown.clone(),
    })
    .max_decoding_message_size(MESSAGE_MAX_BYTES);
    let giver = Giver::new(secrets, audit.clone());
    let probes = probes(farm.clone(), audit.clone());
    let registry = registry::router(farm.clone(), cache.clone(), config.cache().is_public());
    let farm_name = config.farm.clone();
    let workers = Workers { farm, cache, logs, clock, giver, claims, farm_name, shutdown: shutdown.clone() };
    let client = ClientServiceServer::new(client)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let workers = WorkerServiceServer::new(workers)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    // These two are for everybody, and what is asked of them is short.
    let health_service = health_service.max_decoding_message_size(PUBLIC_MESSAGE_MAX_BYTES);
    task::spawn("health", tell_health(health, shutdown.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?
        .max_decoding_message_size(PUBLIC_MESSAGE_MAX_BYTES);
    let grpc = Routes::new(client).add_service(workers).add_service(admin).add_service(access);
    let grpc = grpc.add_service(health_service).add_service(reflection);
    let mut app = grpc.prepare().into_axum_router().merge(probes).merge(registry);
    if let Some(cache) = cache_router {
        app = app.merge(cache);
    }
    let app = app.layer(axum::middleware::from_fn_with_state(gate, access::gate));
    Ok(app.layer(axum::middleware::from_fn_with_state(audit, note_refusals)))
}

/// Whether the process lives, and whether it would take new work.
fn probes(farm: Handle, audit: Audit) -> Router {
    let ready = move || async move {
        let farm = farm.ready().map_err(|why| why.to_string());
        match farm.and_then(|()| audit.ready().map_err(|why| why.to_string())) {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    };
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

/// Says that the services serve; at the end, that they do not, and lets go of those who watch.
async fn tell_health(mut health: HealthReporter, shutdown: CancellationToken) {
    health.set_serving::<ClientServiceServer<Client>>().await;
    health.set_serving::<WorkerServiceServer<Workers>>().await;
    health.set_serving::<AdminServiceServer<Admin>>().await;
    health.set_serving::<AccessServiceServer<AccessControl>>().await;
    shutdown.cancelled().await;
    let services = [
        "",
        ClientServiceServer::<Client>::NAME,
        WorkerServiceServer::<Workers>::NAME,
        AdminServiceServer::<Admin>::NAME,
        AccessServiceServer::<AccessControl>::NAME,
    ];
    for service in services {
        health.set_service_status(service, ServingStatus::NotServing).await;
        health.clear_service_status(service).await;
    }
}
