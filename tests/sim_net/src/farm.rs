//! The hosts of a simulation.

use crate::engine::SimEngine;
use crate::journal::MemoryJournal;
use crate::net::{CONTROLLER, HostClock, PORT, SimClock, SimListener, connect};
use crate::scenario::{Planted, Scenario, Skew};
use crate::truth::Truth;
use bytesize::ByteSize;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_controller::setup::Pki;
use railyard_controller::{ControllerConfig, Outside};
use railyard_service::channel::{ChannelError, Endpoint, http_client};
use railyard_service::clock::Clock;
use railyard_service::tls::{Identity, PemPair, Role};
use railyard_worker::WorkerConfig;
use railyard_worker::disk::Space;
use railyard_worker::network::peer::Denied;
use railyard_worker::uplink::Jitter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

/// Names that have a certificate: hosts of workers.
const WORKERS_MAX: usize = 8;

/// A worker's disk; none of it is ever used.
const DISK: ByteSize = ByteSize::gib(100);

/// Far beyond what the margin of a lease allows for.
const HALF_SPEED_PPM: i64 = -500_000;

/// Where files of simulations lie: in memory, where the machine has such a place, since they are synced a lot.
const FAST_DIR: &str = "/dev/shm";

/// One farm's keys for all simulations of a process: making them takes longer than many a simulation.
struct Keys {
    dir: TempDir,
    person: Endpoint,
    http: reqwest::Client,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| make_keys().expect("a temporary directory can be written"));

fn make_keys() -> anyhow::Result<Keys> {
    // Another simulation of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = fast_dir()?;
    let pki = Pki::open_or_create(&config(dir.path()))?;
    for n in 1..=WORKERS_MAX {
        let name = format!("w{n}");
        pki.issue(&Identity::new(Role::Worker, &name)?, dir.path(), &name)?;
    }
    pki.issue(&Identity::new(Role::Operator, "people")?, dir.path(), "people")?;
    let identity = Some(PemPair::read(dir.path(), "people")?);
    let person = Endpoint { url: url(), ca_pem: pki.ca_pem().to_owned(), identity };
    let http = http_client(&person)?;
    Ok(Keys { dir, person, http })
}

fn fast_dir() -> std::io::Result<TempDir> {
    if Path::new(FAST_DIR).is_dir() { tempfile::tempdir_in(FAST_DIR) } else { tempfile::tempdir() }
}

fn url() -> String {
    format!("https://{CONTROLLER}:{PORT}")
}

fn config(data_dir: &Path) -> ControllerConfig {
    ControllerConfig { public_url: Some(url()), ..ControllerConfig::new(data_dir.to_owned()) }
}

/// How people reach the controller.
pub fn person() -> Endpoint {
    KEYS.person.clone()
}

/// What the hosts of a simulation share.
pub struct Farm {
    /// What really happens.
    pub truth: Truth,
    /// What the controller has promised.
    pub journal: MemoryJournal,
    clock: Arc<SimClock>,
    dir: TempDir,
    seed: u64,
    clocks: BTreeMap<String, Skew>,
    planted: Option<Planted>,
}

impl Farm {
    /// A farm on which nothing has happened yet.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn new(scenario: &Scenario) -> anyhow::Result<Self> {
        let (truth, dir) = (Truth::default(), fast_dir()?);
        let pki = dir.path().join(CONTROLLER).join("pki");
        std::fs::create_dir_all(&pki)?;
        for file in ["ca.pem", "ca.key", "operator.pem", "operator.key"] {
            let from = KEYS.dir.path().join("pki").join(file);
            if from.exists() {
                std::fs::copy(from, pki.join(file))?;
            }
        }
        let (journal, clock) = (MemoryJournal::new(truth.clone()), Arc::default());
        let (seed, clocks, planted) = (scenario.seed, scenario.clocks.clone(), scenario.planted);
        Ok(Self { journal, truth, clock, dir, seed, clocks, planted })
    }

    /// The controller's host. What its process keeps on disk and in its journal survives a crash.
    pub fn add_controller(&self, sim: &mut Sim<'_>) {
        let config = config(&self.dir.path().join(CONTROLLER));
        let (journal, clock) = (self.journal.clone(), self.clock_of(CONTROLLER));
        sim.host(CONTROLLER, move || {
            let (config, journal, clock) = (config.clone(), Box::new(journal.clone()), clock.clone());
            async move {
                let tcp = SimListener::bind().await?;
                let (ready, _) = oneshot::channel();
                let outside = Outside { journal, tcp, clock, bulk: None };
                Ok(railyard_controller::run_in(config, outside, CancellationToken::new(), ready).await?)
            }
        });
    }

    /// A host with an engine and a worker of that name.
    pub fn add_worker(&self, sim: &mut Sim<'_>, host: &str, name: &str) {
        let config = self.worker_config(host, name);
        let (truth, seed, planted) = (self.truth.clone(), self.seed, self.planted);
        let (clock, host) = (self.clock_of(host), host.to_owned());
        let on = host.clone();
        sim.host(on, move || {
            let life = truth.lock().worker_up(&host);
            let outside = railyard_worker::Outside {
                runtime: Arc::new(SimEngine::new(truth.clone(), &host, life, planted == Some(Planted::DeafEngine))),
                clock: clock.clone(),
                channel: connect,
                http: shared_http,
                jitter: Jitter::seeded(seed ^ life.rotate_left(32)),
                // What else goes on on this machine's disk has no say.
                space: |_| Ok(Space { total_bytes: DISK.as_u64(), free_bytes: DISK.as_u64() }),
                pressure_dir: PathBuf::from("nothing tells of pressure here"),
            };
            let running = railyard_worker::run_in(config.clone(), outside, CancellationToken::new());
            async move { Ok(running.await?) }
        });
    }

    fn clock_of(&self, host: &str) -> Arc<dyn Clock> {
        let drawn = self.clocks.get(host).copied().unwrap_or_default();
        let skew = match self.planted {
            Some(Planted::SlowClock) if host != CONTROLLER => Skew { rate_ppm: HALF_SPEED_PPM, ..drawn },
            _ => drawn,
        };
        Arc::new(HostClock::new(self.clock.clone(), skew))
    }

    fn worker_config(&self, host: &str, name: &str) -> WorkerConfig {
        let name = name.parse().expect("a host's name is a worker's");
        let mut config = WorkerConfig::new(url(), name, KEYS.dir.path(), self.worker_dir(host));
        config.platforms = Some(vec![PlatformOffer { platform: Platform::LinuxAmd64, emulated: false }]);
        config.capacity.cpu_millis = Some(2_000);
        config.capacity.memory = Some(ByteSize::gib(8));
        config.capacity.disk = Some(DISK);
        config.capacity.slots = Some(2);
        // Its name is one of the simulated network, which the system does not know.
        config.network.deny.retain(|denied| *denied != Denied::Controller);
        config
    }

    fn worker_dir(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    /// The host's next boot is another one than that which its worker has on record for its attempts.
    pub fn forget_boot(&self, host: &str) {
        for lease in self.job_dirs(host) {
            let record = self.worker_dir(host).join("jobs").join(lease).join("state.json");
            let Ok(text) = std::fs::read_to_string(&record) else { continue };
            let Ok(mut state) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
            state["kernel_boot"] = "an earlier one".into();
            // It was written there a moment ago.
            std::fs::write(&record, state.to_string()).expect("a record can be replaced");
        }
    }

    /// Directories of attempts that are still there.
    pub fn job_dirs(&self, host: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.worker_dir(host).join("jobs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Nothing is sent or fetched here, and loading the system's certificates for each worker takes time.
fn shared_http(_: &Endpoint) -> Result<reqwest::Client, ChannelError> {
    Ok(KEYS.http.clone())
}
