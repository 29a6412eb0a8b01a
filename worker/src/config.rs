//! The worker's settings, as they stand in its TOML file.

use crate::disk::DiskConfig;
use crate::join::Files;
use crate::network::NetworkConfig;
use bytesize::ByteSize;
use railyard_common::id::{PoolName, WorkerName};
use railyard_common::platform::PlatformOffer;
use railyard_common::rights::{self, Right};
use railyard_transfer::Settings;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of a worker. What has no default must be given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Where the controller listens, for instance `https://farm.example:7411`.
    pub controller: String,
    /// This worker's name: the name in its certificate. 1 to 63 of a-z, 0-9 and `-`.
    pub name: WorkerName,
    /// The farm's CA certificate (PEM). Default: `pki/ca.pem` in `data_dir`, as joining with a token leaves it.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// This worker's certificate (PEM); the worker renews it in place. Default: `pki/worker.pem` in `data_dir`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// This worker's private key (PEM), readable by the worker only. Default: `pki/worker.key` in `data_dir`.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Directory for job directories and fetched blobs. The worker owns it alone; it should be on a fast, big disk.
    pub data_dir: PathBuf,
    /// `data_dir` as the engine's host sees it. Needed where the worker runs in a container and uses the host's
    /// engine: bind mounts are resolved on the host. Such a worker also needs the host's `/dev` mounted at its own, or it
    /// offers jobs no devices. Default: the same as `data_dir`.
    #[serde(default)]
    pub host_data_dir: Option<PathBuf>,
    /// A directory on a tmpfs, where the secrets of running steps lie; the engine's host must see it at the same path. Default: `/run`,
    /// or `/dev/shm` where that is no tmpfs; none for a worker in a container, which has to name one that is mounted from the host.
    #[serde(default)]
    pub secrets_dir: Option<PathBuf>,
    /// The engine's socket. Default: `/var/run/docker.sock`.
    #[serde(default = "docker_socket")]
    pub docker_socket: PathBuf,
    /// What jobs can run here, as a list of tables with `platform` and `emulated`. Default: the host's own platform,
    /// and the other one as emulated if binfmt runs it through QEMU with the `F` flag, so that it works in containers.
    #[serde(default)]
    pub platforms: Option<Vec<PlatformOffer>>,
    /// Labels that jobs can ask for. Default: none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The pool that this worker works for: it takes the jobs of steps that name the pool, and no others. Without one it
    /// takes the jobs that name none.
    pub pool: Option<PoolName>,
    /// What jobs can use, where it differs from what the host has.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// Jobs may be privileged here, if the operator's policy lets their pipeline. Such a job can do anything to this host; so it may
    /// have everything that `allow` can name. Default: false.
    #[serde(default)]
    pub allow_privileged: bool,
    /// What else jobs may have here, if the operator's policy lets their pipeline: `capabilities:NAME`, `devices:/dev/NAME`,
    /// `host-paths:/PATH` and `host-paths:/PATH:rw`. A `*` may stand at the end of a capability or device. Default: nothing.
    #[serde(default)]
    pub allow: Vec<Right>,
    /// The control group of the engine's that steps' containers are made in: `railyard.slice` where the engine uses systemd for them,
    /// a path such as `/railyard` where it does not. With limits of its own it bounds all steps together. Default: the engine's own.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
    /// Steps that take more of the disk than they reserve (`disk`) are ended. Default: true.
    #[serde(default = "enforce_disk")]
    pub enforce_disk: bool,
    /// At shutdown, how long running jobs may go on before they are stopped and given back. Default: 0.
    #[serde(default)]
    pub drain_grace_secs: u64,
    /// How long a container has between SIGTERM and SIGKILL when a job is cancelled or times out. Default: 5.
    #[serde(default = "stop_grace_secs")]
    pub stop_grace_secs: u64,
    /// How long the engine may be away, for instance to be restarted, before its jobs are given up, those that are about to start a
    /// container as well. With `live-restore` its containers run on meanwhile. Default: 120.
    #[serde(default = "engine_grace_secs")]
    pub engine_grace_secs: u64,
    /// Fetched blobs are kept for other jobs up to this size in all; the least recently used go first, and never one
    /// that a job uses. At most a quarter of what is free at the start; jobs do not get that disk. Default: 10GiB.
    #[serde(default = "blob_cache")]
    pub blob_cache: ByteSize,
    /// Images that this worker has put into the engine stay there for running builds; when a build is over, they are kept for
    /// others up to this size in all, and the least recently used go first, never one that a job uses. At most a quarter of what is
    /// free at the start; jobs do not get that disk. 0: they go with their build. Default: 20GiB.
    #[serde(default = "image_cache")]
    pub image_cache: ByteSize,
    /// When room is made on the disks.
    #[serde(default)]
    pub disk: DiskConfig,
    /// How strongly image layers are compressed for the cache: a zstd level, 1 (fast) to 19 (small). Default: 1.
    #[serde(default = "layer_compression", deserialize_with = "level")]
    pub layer_compression: i32,
    /// What steps with a network cannot reach.
    #[serde(default)]
    pub network: NetworkConfig,
    /// When this host is too busy for more.
    #[serde(default)]
    pub pressure: PressureConfig,
    /// How bytes go to and from the cache.
    #[serde(default)]
    pub transfer: TransferConfig,
    /// How logs travel.
    #[serde(default)]
    pub log: LogConfig,
}

/// The share of the last ten seconds in which nothing on this host got on, as the kernel tells (`full avg10` of
/// `/proc/pressure`). At this many percent the worker takes nothing new, until it is half of that. Jobs that run go on.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PressureConfig {
    /// For want of memory. 0: whatever it is. Default: 10.
    pub memory_percent: u32,
    /// For want of the disk. 0: whatever it is. Default: 60.
    pub io_percent: u32,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self { memory_percent: 10, io_percent: 60 }
    }
}

/// How bytes go to and from the cache.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// Memory for everything in flight, what is being compressed included, whatever the number and size of the files. It
    /// decides how many processors compress: `xz` takes 117MiB for each at its usual level, and one alone takes more than the
    /// default at levels 8 and 9. Default: 256MiB.
    pub memory: ByteSize,
    /// Streams of one file at a time. Default: 4.
    pub streams: usize,
    /// A connection that moves next to nothing for so long is given up for another. Default: 30.
    pub stall_secs: u64,
    /// A transfer of which nothing new has moved for so long is given up, and its job is lost: longer than the outages of the
    /// store that jobs should wait out. Default: 600.
    pub give_up_secs: u64,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self { memory: ByteSize::mib(256), streams: 4, stall_secs: 30, give_up_secs: 600 }
    }
}

impl TransferConfig {
    /// As the code that moves them wants it.
    pub fn settings(&self) -> Settings {
        Settings {
            parallel_streams: self.streams,
            memory_bytes: self.memory.as_u64(),
            stall_timeout: Duration::from_secs(self.stall_secs.max(1)),
            progress_deadline: Duration::from_secs(self.give_up_secs.max(1)),
            ..Settings::default()
        }
    }
}

/// What jobs can use on this worker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Thousandths of a processor. Default: all processors.
    pub cpu_millis: Option<u32>,
    /// Default: 80 % of the memory, so that the host, the engine and the worker keep the rest.
    pub memory: Option<ByteSize>,
    /// Scratch space. Default: what is free on the disk of `data_dir`, without `disk_reserve`, `blob_cache`
    /// and `image_cache`.
    pub disk: Option<ByteSize>,
    /// Jobs at a time. Default: twice the number of processors.
    pub slots: Option<u32>,
    /// Never given to jobs: room for logs, and for cleaning up on a disk that is nearly full. Default: 2GiB.
    pub disk_reserve: ByteSize,
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self { cpu_millis: None, memory: None, disk: None, slots: None, disk_reserve: ByteSize::gib(2) }
    }
}

/// How logs travel to the controller.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Largest batch; at most 1MiB. Default: 256KiB.
    pub batch: ByteSize,
    /// How long a batch that is not full waits for more. Default: 100.
    pub flush_millis: u64,
    /// Longest log of one attempt; of the rest only the end is kept, and the log says how much is missing.
    /// Default: 1GiB.
    pub max: ByteSize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { batch: ByteSize::kib(256), flush_millis: 100, max: ByteSize::gib(1) }
    }
}

/// Largest log batch that the protocol carries: well below the 4 MiB that gRPC peers decode by default.
pub const LOG_BATCH_MAX_BYTES: u64 = 1024 * 1024;

fn docker_socket() -> PathBuf {
    PathBuf::from("/var/run/docker.sock")
}

fn enforce_disk() -> bool {
    true
}

fn stop_grace_secs() -> u64 {
    5
}

fn engine_grace_secs() -> u64 {
    120
}

fn blob_cache() -> ByteSize {
    ByteSize::gib(10)
}

fn image_cache() -> ByteSize {
    ByteSize::gib(20)
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    match i32::deserialize(from)? {
        level @ 1..=19 => Ok(level),
        level => Err(D::Error::custom(format!("`layer_compression` is 1 to 19, and not {level}"))),
    }
}

fn layer_compression() -> i32 {
    1
}

impl WorkerConfig {
    /// The settings of a worker with every default. `pki` is the directory with `ca.pem`, `NAME.pem` and `NAME.key`.
    pub fn new(controller: impl Into<String>, name: WorkerName, pki: &Path, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            controller: controller.into(),
            ca: Some(pki.join("ca.pem")),
            cert: Some(pki.join(format!("{name}.pem"))),
            key: Some(pki.join(format!("{name}.key"))),
            name,
            data_dir: data_dir.into(),
            host_data_dir: None,
            secrets_dir: None,
            docker_socket: docker_socket(),
            platforms: None,
            labels: BTreeMap::new(),
            pool: None,
            capacity: CapacityConfig::default(),
            allow_privileged: false,
            allow: Vec::new(),
            cgroup_parent: None,
            enforce_disk: enforce_disk(),
            drain_grace_secs: 0,
            stop_grace_secs: stop_grace_secs(),
            engine_grace_secs: engine_grace_secs(),
            blob_cache: blob_cache(),
            image_cache: image_cache(),
            disk: DiskConfig::default(),
            layer_compression: layer_compression(),
            network: NetworkConfig::default(),
            pressure: PressureConfig::default(),
            transfer: TransferConfig::default(),
            log: LogConfig::default(),
        }
    }

    /// Where certificate, key and CA lie.
    pub fn files(&self) -> Files {
        let Files { ca, cert, key } = Files::in_dir(&self.data_dir.join("pki"));
        let or = |given: &Option<PathBuf>, usual| given.clone().unwrap_or(usual);
        Files { ca: or(&self.ca, ca), cert: or(&self.cert, cert), key: or(&self.key, key) }
    }

    /// Whether a job may have that here.
    pub fn allows(&self, right: &Right) -> bool {
        (self.allow_privileged && Right::Privileged.covers(right)) || rights::allows(&self.allow, right)
    }

    /// Time between SIGTERM and SIGKILL.
    pub fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.stop_grace_secs)
    }

    /// How long the engine may be away.
    pub fn engine_grace(&self) -> Duration {
        Duration::from_secs(self.engine_grace_secs)
    }

    /// The largest log batch, within what the protocol carries.
    pub fn log_batch_bytes(&self) -> usize {
        usize::try_from(self.log.batch.as_u64().clamp(1, LOG_BATCH_MAX_BYTES)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Mark;

    const SMALLEST: &str = r#"
        controller = "https://farm.example:7411"
        name = "w1"
        ca = "ca.pem"
        cert = "w1.pem"
        key = "w1.key"
        data_dir = "/var/lib/railyard"
    "#;

    fn parse(text: &str) -> Result<WorkerConfig, String> {
        railyard_service::config::parse(text, Path::new("worker.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let config = parse(SMALLEST).unwrap();
        let built =
            WorkerConfig::new("https://farm.example:7411", "w1".parse().unwrap(), Path::new(""), "/var/lib/railyard");
        assert_eq!(format!("{config:?}"), format!("{built:?}"));
    }

    #[test]
    fn everything_can_be_given() {
        let config = parse(&format!(
            "{SMALLEST}
            host_data_dir = '/srv/railyard'
            cgroup_parent = 'railyard.slice'
            enforce_disk = false
            platforms = [{{ platform = 'linux/arm64', emulated = true }}]
            labels = {{ pool = 'big' }}
            allow_privileged = true
            allow = ['devices:/dev/kvm', 'capabilities:SYS_*', 'host-paths:/srv/ccache:rw']
            capacity = {{ cpu_millis = 4000, memory = '8GiB', disk = '100GiB', slots = 3, disk_reserve = '1GiB' }}
            network = {{ deny = ['host', '10.0.0.0/8'], allow = ['10.0.0.5:3128'], unguarded = 'allow' }}
            disk = {{ high = '90%', low = '700GiB' }}
            pressure = {{ memory_percent = 20, io_percent = 0 }}
            transfer = {{ memory = '64MiB', streams = 2, stall_secs = 5, give_up_secs = 60 }}
            log = {{ batch = '4MiB', flush_millis = 50, max = '10MiB' }}"
        ))
        .unwrap();
        assert_eq!(config.capacity.memory, Some(ByteSize::gib(8)));
        assert_eq!((config.pressure.memory_percent, config.pressure.io_percent), (20, 0));
        assert_eq!((config.disk.high, config.disk.low), (Mark::Percent(90), Mark::Bytes(ByteSize::gib(700))));
        let settings = config.transfer.settings();
        assert_eq!((settings.memory_bytes, settings.parallel_streams), (64 << 20, 2));
        assert_eq!(config.log_batch_bytes() as u64, LOG_BATCH_MAX_BYTES);
    }

    #[test]
    fn a_misspelt_setting_is_an_error() {
        let error = parse(&format!("{SMALLEST}\nallow_priviliged = true")).unwrap_err();
        assert!(error.contains("allow_priviliged"), "{error}");
        let error = parse(&format!("{SMALLEST}\ndisk = {{ high = '110%' }}")).unwrap_err();
        assert!(error.contains("neither a share"), "{error}");
        for level in [-1, 0, 20] {
            let error = parse(&format!("{SMALLEST}\nlayer_compression = {level}")).unwrap_err();
            assert!(error.contains(&format!("is 1 to 19, and not {level}")), "{error}");
        }
        assert_eq!(parse(&format!("{SMALLEST}\nlayer_compression = 19")).unwrap().layer_compression, 19);
        assert!(parse(&SMALLEST.replace("\"w1\"", "\"W 1\"")).unwrap_err().contains("worker name"));
    }
}
