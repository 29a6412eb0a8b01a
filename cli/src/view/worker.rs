//! Workers.

use super::words::words;
use super::{Capacity, phase, some, time};
use jiff::{SignedDuration, Timestamp};
use railyard_common::disk::{KindUse, Role};
use railyard_proto::v1;
use railyard_service::convert::FromProto as _;
use serde::Serialize;
use std::collections::BTreeMap;

words!(
    /// Whether a worker gets jobs, and if not, why.
    WorkerState {
        Online = "online",
        Offline = "offline",
        Cordoned = "cordoned",
        Draining = "draining",
        Drained = "drained",
        Retiring = "retiring",
        Retired = "retired",
        Quarantined = "quarantined",
        Stopping = "stopping",
        Unknown = "unknown",
    }
);

impl WorkerState {
    /// What an operator wants goes before how it is.
    fn of(view: &v1::WorkerView) -> Self {
        let busy = !view.jobs.is_empty();
        match view.hold.as_ref().map(v1::Hold::kind) {
            Some(v1::HoldKind::Cordon) => Self::Cordoned,
            Some(v1::HoldKind::Drain) if busy => Self::Draining,
            Some(v1::HoldKind::Drain) => Self::Drained,
            Some(v1::HoldKind::Retire) if busy => Self::Retiring,
            Some(v1::HoldKind::Retire) => Self::Retired,
            Some(v1::HoldKind::Unspecified) => Self::Unknown,
            None if !view.connected => Self::Offline,
            None if view.draining => Self::Stopping,
            None if view.quarantine.is_some() => Self::Quarantined,
            None => Self::Online,
        }
    }
}

/// A platform that a worker offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offer {
    pub platform: String,
    pub emulated: bool,
}

/// A job that a worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningJob {
    pub build: String,
    pub job: String,
    pub attempt: u32,
    pub phase: Option<&'static str>,
}

/// That an operator holds a worker back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hold {
    pub kind: &'static str,
    pub by: String,
    pub why: Option<String>,
    /// It ends by itself then.
    pub until: Option<Timestamp>,
    /// What still runs then is stopped, and runs elsewhere.
    pub stop_at: Option<Timestamp>,
}

impl From<v1::Hold> for Hold {
    fn from(hold: v1::Hold) -> Self {
        let kind = match hold.kind() {
            v1::HoldKind::Cordon => "cordon",
            v1::HoldKind::Drain => "drain",
            v1::HoldKind::Retire => "retire",
            v1::HoldKind::Unspecified => "unknown",
        };
        Self { kind, by: hold.by, why: some(hold.why), until: time(hold.until), stop_at: time(hold.stop_at) }
    }
}

/// That a worker lost several jobs in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quarantine {
    pub losses: u32,
    /// From then on it may try one job.
    pub until: Option<Timestamp>,
}

/// That the worker's host is so short of something that it takes nothing new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pressure {
    /// `memory` or `io`.
    pub of: &'static str,
    /// Of the last ten seconds, in which nothing got on there.
    pub percent: u32,
}

/// A file system that a worker uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// `data`: that of the worker's own directory; `engine`: the engine's, if that is another.
    pub role: &'static str,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    /// What of the worker's could be removed for a job.
    pub evictable_bytes: u64,
    /// With more in use, the worker removes what nobody needs.
    pub high_bytes: u64,
    /// Until so much is in use.
    pub low_bytes: u64,
    /// Never given to jobs.
    pub reserve_bytes: u64,
}

/// What things of one kind take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    pub bytes: u64,
    pub count: u64,
    pub evictable_bytes: u64,
    pub on: &'static str,
}

/// What a worker's disks hold, and how full they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    pub file_systems: Vec<FileSystem>,
    /// By kind: `blobs`, `layers`, `images`, `work`, `containers`, `volumes`, `logs`.
    pub kinds: BTreeMap<&'static str, DiskUse>,
    /// What a job that comes can have.
    pub room_bytes: u64,
    pub counted_at: Option<Timestamp>,
}

impl Disk {
    fn of(report: v1::DiskReport, said_at: Option<Timestamp>) -> Self {
        // What a newer controller says and this client does not know is left out.
        let report = railyard_common::disk::DiskReport::from_proto(report).unwrap_or_default();
        let role = |role: Role| match role {
            Role::Data => "data",
            Role::Engine => "engine",
        };
        let file_systems = report.file_systems.iter().map(|found| FileSystem {
            role: role(found.role),
            total_bytes: found.total_bytes,
            used_bytes: found.total_bytes.saturating_sub(found.free_bytes),
            free_bytes: found.free_bytes,
            evictable_bytes: found.evictable_bytes,
            high_bytes: found.high_bytes,
            low_bytes: found.low_bytes,
            reserve_bytes: found.reserve_bytes,
        });
        let used = |found: &KindUse| DiskUse {
            bytes: found.bytes,
            count: found.count,
            evictable_bytes: found.evictable_bytes,
            on: role(found.on),
        };
        let age = i64::try_from(report.counted_millis_ago).unwrap_or(i64::MAX);
        Self {
            file_systems: file_systems.collect(),
            kinds: report.uses.iter().map(|found| (found.kind.as_str(), used(found))).collect(),
            room_bytes: report.room_bytes,
            counted_at: said_at.and_then(|at| at.checked_sub(SignedDuration::from_millis(age)).ok()),
        }
    }

    /// The one that is fullest.
    pub fn fullest(&self) -> Option<&FileSystem> {
        let share = |found: &&FileSystem| u128::from(found.used_bytes) * 1000 / u128::from(found.total_bytes.max(1));
        self.file_systems.iter().max_by_key(share)
    }
}

/// A daemon on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Worker {
    pub name: String,
    pub state: WorkerState,
    pub connected: bool,
    pub hold: Option<Hold>,
    pub quarantine: Option<Quarantine>,
    pub pressure: Option<Pressure>,
    pub pool: Option<String>,
    pub platforms: Vec<Offer>,
    pub capacity: Capacity,
    pub reserved: Capacity,
    /// As it last measured.
    pub free_disk_bytes: Option<u64>,
    pub disk: Option<Disk>,
    pub jobs: Vec<RunningJob>,
    pub version: Option<String>,
    pub last_seen_at: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
    pub allows_privileged: bool,
}

impl From<v1::WorkerView> for Worker {
    fn from(view: v1::WorkerView) -> Self {
        let state = WorkerState::of(&view);
        let offer = |offer: v1::PlatformOffer| Offer { platform: offer.platform, emulated: offer.emulated };
        let running = |job: v1::WorkerJob| RunningJob {
            build: job.build,
            job: job.job,
            attempt: job.lease.map_or(0, |lease| lease.attempt),
            phase: phase(job.phase),
        };
        let quarantine = |said: v1::Quarantine| Quarantine { losses: said.losses, until: time(said.until) };
        let pressure = |said: v1::Pressure| {
            let of = match said.scarce() {
                v1::Scarce::Unspecified => return None,
                v1::Scarce::Memory => "memory",
                v1::Scarce::Io => "io",
            };
            Some(Pressure { of, percent: said.percent })
        };
        let said_at = time(view.last_seen_at);
        Self {
            name: view.name,
            state,
            connected: view.connected,
            hold: view.hold.map(Hold::from),
            quarantine: view.quarantine.map(quarantine),
            pressure: view.pressure.and_then(pressure),
            pool: some(view.pool),
            platforms: view.platforms.into_iter().map(offer).collect(),
            capacity: view.capacity.into(),
            reserved: view.reserved.into(),
            free_disk_bytes: Some(view.free_disk_bytes).filter(|bytes| *bytes > 0),
            disk: view.disk.map(|report| Disk::of(report, said_at)),
            jobs: view.jobs.into_iter().map(running).collect(),
            version: some(view.version),
            last_seen_at: said_at,
            labels: view.labels.into_iter().collect(),
            allows_privileged: view.allows_privileged,
        }
    }
}
