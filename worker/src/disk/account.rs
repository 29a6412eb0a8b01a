//! What there is on the disks of a worker, by kind: what is on record is added up, what is not is counted now and then.

use super::promises::Promises;
use super::reserve::Reserve;
use super::{DiskConfig, FULL_BELOW_BYTES, evict};
use crate::attempt::dirs::DataDir;
use crate::blobs::Stock;
use crate::blocking::blocking;
use crate::config::WorkerConfig;
use crate::runtime::{Runtime, labels};
use crate::usage::{self, Writable};
use crate::workshop::Workshop;
use railyard_common::disk::{DiskReport, FileSystem, Kind, KindUse, Role};
use railyard_common::id::LeaseId;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// For so long it is remembered that a disk was full: a script that fails for that may take a while to end, and the disk has room
/// again by then.
const FULL_REMEMBERED: Duration = Duration::from_secs(60);

/// A directory on each file system that the worker uses.
#[derive(Clone, Debug)]
pub struct Places {
    data: PathBuf,
    engine: PathBuf,
    /// They are on two file systems.
    apart: bool,
}

impl Places {
    /// Of a worker with that directory. The engine's disk, if this worker can see it; else its own, most often the same.
    pub fn of(data: &DataDir, runtime: &dyn Runtime) -> Self {
        let root = data.root();
        let engine = runtime.disk().filter(|dir| dir.exists()).unwrap_or(root);
        let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
        Self { apart: device(root) != device(engine), data: root.to_owned(), engine: engine.to_owned() }
    }

    /// Which file systems there are.
    pub fn roles(&self) -> &'static [Role] {
        if self.apart { &[Role::Data, Role::Engine] } else { &[Role::Data] }
    }

    /// A directory there.
    pub fn dir(&self, role: Role) -> &Path {
        match role {
            Role::Data => &self.data,
            Role::Engine => &self.engine,
        }
    }

    /// Where the engine writes.
    pub fn engine(&self) -> Role {
        if self.apart { Role::Engine } else { Role::Data }
    }
}

/// What is known of the disks. Its owner is [`super::keeper`]; everybody else asks.
pub struct Disks {
    /// Where they are.
    pub places: Places,
    /// What running jobs may still take.
    pub promises: Promises,
    /// For a disk without a byte.
    pub reserve: Reserve,
    /// One makes room at a time.
    pub(super) evicting: tokio::sync::Mutex<()>,
    /// When there is too much.
    pub(super) config: DiskConfig,
    reserved_bytes: u64,
    known: Mutex<Known>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    file_systems: Vec<FileSystem>,
    /// On record.
    kept: Vec<KindUse>,
    /// Counted.
    counted: Vec<KindUse>,
    /// On the clock of the kernel's boot.
    counted_at: Option<Duration>,
    full_at: BTreeMap<Role, Duration>,
}

impl Disks {
    /// Of a worker with these settings. Looks at nothing yet.
    pub fn new(config: &WorkerConfig, places: Places) -> Self {
        Self {
            reserve: Reserve::new(places.dir(Role::Data)),
            places,
            promises: Promises::default(),
            evicting: tokio::sync::Mutex::default(),
            config: config.disk,
            reserved_bytes: config.capacity.disk_reserve.as_u64(),
            known: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Something has come or gone: it is worth looking again.
    pub fn stir(&self) {
        self.news.notify_one();
    }

    /// Waits for that.
    pub(super) async fn stirred(&self) {
        self.news.notified().await;
    }

    /// What the worker says of its disks now; nothing, if none could be measured.
    pub fn report(&self, now: Duration) -> Option<DiskReport> {
        let known = self.known();
        let beside = |found: &FileSystem| {
            found.free_bytes.saturating_add(found.evictable_bytes).saturating_sub(found.reserve_bytes)
        };
        let room = known.file_systems.iter().map(beside).min()?;
        let age = now.saturating_sub(known.counted_at.unwrap_or(now));
        Some(DiskReport {
            file_systems: known.file_systems.clone(),
            uses: known.kept.iter().chain(&known.counted).copied().collect(),
            room_bytes: room.saturating_sub(self.promises.outstanding_bytes(None)),
            counted_millis_ago: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// One of them that is full, or was a moment ago.
    pub fn full(&self, now: Duration) -> Option<&Path> {
        let known = self.known();
        let full = known.full_at.iter().find(|(_, at)| now.saturating_sub(**at) <= FULL_REMEMBERED);
        full.map(|(role, _)| self.places.dir(*role))
    }

    /// Somebody had no room there.
    pub fn note_full(&self, role: Role, now: Duration) {
        self.known().full_at.insert(role, now);
    }

    /// Whether it is time to count again, after `pause` at least.
    pub(super) fn is_stale(&self, now: Duration, pause: Duration) -> bool {
        self.known().counted_at.is_none_or(|at| now.saturating_sub(at) >= pause)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is a single step; a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at what costs little: how full the file systems are, and what is on record.
pub async fn look(shop: &Workshop) {
    let disks = &shop.disks;
    let blobs = shop.blobs.clone();
    let stock = blocking(move || blobs.stock()).await;
    let (images, engine) = (shop.shelf.things(), disks.places.engine());
    let mut file_systems = Vec::new();
    let mut free_of: BTreeMap<Kind, u64> = BTreeMap::new();
    for role in disks.places.roles() {
        let Some(space) = evict::space(shop, *role) else { continue };
        if space.free_bytes < FULL_BELOW_BYTES {
            disks.note_full(*role, shop.clock.boottime());
        }
        let freeable = evict::freeable(*role, engine, &stock.things, &images);
        let evictable_bytes = freeable.values().sum();
        freeable.into_iter().for_each(|(kind, bytes)| *free_of.entry(kind).or_default() += bytes);
        let (high_bytes, low_bytes) = space.marks(&disks.config);
        file_systems.push(FileSystem {
            role: *role,
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            evictable_bytes,
            high_bytes,
            low_bytes,
            reserve_bytes: disks.reserved_bytes,
        });
    }
    let mut known = disks.known();
    (known.file_systems, known.kept) = (file_systems, kept(shop, &stock, &free_of));
}

/// What is on record.
fn kept(shop: &Workshop, stock: &Stock, free_of: &BTreeMap<Kind, u64>) -> Vec<KindUse> {
    let evictable = |kind: Kind| free_of.get(&kind).copied().unwrap_or_default();
    let kept_file = |kind: Kind| {
        let (count, bytes) = stock.by_kind.get(&kind).copied().unwrap_or_default();
        KindUse { kind, on: Role::Data, count, bytes, evictable_bytes: evictable(kind) }
    };
    vec![
        kept_file(Kind::Blobs),
        kept_file(Kind::Layers),
        KindUse {
            kind: Kind::Images,
            on: shop.disks.places.engine(),
            count: shop.shelf.count() as u64,
            bytes: shop.shelf.bytes(),
            evictable_bytes: evictable(Kind::Images),
        },
    ]
}

/// What of a job was counted.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    count: u64,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        (self.count, self.bytes) = (self.count + 1, self.bytes.saturating_add(bytes));
    }

    fn of(self, kind: Kind, on: Role) -> KindUse {
        KindUse { kind, on, count: self.count, bytes: self.bytes, evictable_bytes: 0 }
    }
}

/// What was counted.
#[derive(Default)]
struct Counted {
    work: Tally,
    logs: Tally,
    roots: Tally,
    volumes: Tally,
    by_lease: BTreeMap<LeaseId, u64>,
}

/// Counts what is on no record: what jobs have written, in their directories and in their containers. Goes through all of their files.
pub async fn count(shop: &Workshop) {
    let containers = containers(shop).await;
    let (data, blobs) = (shop.data.clone(), shop.blobs.clone());
    let counted = blocking(move || {
        let known = blobs.stock().inodes;
        let mut counted = Counted::default();
        jobs(&data).into_iter().for_each(|job| counted.add_job(job, &known));
        containers.into_iter().for_each(|(lease, writable)| counted.add_container(lease, &writable, &known));
        counted
    })
    .await;
    let Counted { work, logs, roots, volumes, by_lease } = counted;
    by_lease.into_iter().for_each(|(lease, bytes)| shop.disks.promises.used(lease, bytes));
    let engine = shop.disks.places.engine();
    let mut known = shop.disks.known();
    known.counted = vec![
        work.of(Kind::Work, Role::Data),
        roots.of(Kind::Containers, engine),
        volumes.of(Kind::Volumes, engine),
        logs.of(Kind::Logs, Role::Data),
    ];
    known.counted_at = Some(shop.clock.boottime());
}

impl Counted {
    fn add_job(&mut self, (lease, dir, log): (Option<LeaseId>, PathBuf, PathBuf), known: &HashSet<(u64, u64)>) {
        let log_bytes = usage::count_below(&[log], &HashSet::new());
        let bytes = usage::count_below(&[dir], known).saturating_sub(log_bytes);
        self.logs.add(log_bytes);
        self.work.add(bytes);
        self.take(lease, bytes);
    }

    fn add_container(&mut self, lease: Option<LeaseId>, writable: &Writable, known: &HashSet<(u64, u64)>) {
        let bytes = usage::count_below(&writable.paths, known);
        self.roots.add(bytes);
        self.take(lease, bytes);
        for volume in &writable.volumes {
            let bytes = usage::count_below(std::slice::from_ref(volume), known);
            self.volumes.add(bytes);
            self.take(lease, bytes);
        }
    }

    fn take(&mut self, lease: Option<LeaseId>, bytes: u64) {
        if let Some(lease) = lease {
            *self.by_lease.entry(lease).or_default() += bytes;
        }
    }
}

/// This worker's containers, and where they write.
async fn containers(shop: &Workshop) -> Vec<(Option<LeaseId>, Writable)> {
    let found = shop.runtime.containers(&labels::own(&shop.farm, &shop.config.name)).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "containers cannot be counted");
        Vec::new()
    });
    let mut containers = Vec::new();
    for container in found {
        let lease = container.labels.get(labels::LEASE).and_then(|lease| lease.parse().ok());
        // One that has gone meanwhile takes nothing.
        if let Ok(Some(writable)) = shop.runtime.writable(&container.id).await {
            containers.push((lease, writable));
        }
    }
    containers
}

/// The directories of jobs, and their logs.
fn jobs(data: &DataDir) -> Vec<(Option<LeaseId>, PathBuf, PathBuf)> {
    let entries = std::fs::read_dir(data.jobs()).into_iter().flatten().flatten();
    let job = |entry: std::fs::DirEntry| {
        let lease = entry.file_name().to_str().and_then(|name| name.parse().ok());
        (lease, entry.path(), entry.path().join("log"))
    };
    entries.map(job).collect()
}
