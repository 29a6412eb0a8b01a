//! A worker, as the farm sees it.

use railyard_common::id::{BootId, LeaseId, WorkerName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerOffer {
    /// Its name: that of its certificate.
    pub name: WorkerName,
    /// This start of its process.
    pub boot: BootId,
    /// Its software.
    pub version: String,
    /// What it can run.
    pub platforms: Vec<PlatformOffer>,
    /// What it has.
    pub capacity: Capacity,
    /// For people and for placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Jobs may be privileged there.
    #[serde(default)]
    pub allows_privileged: bool,
}

impl WorkerOffer {
    /// How it offers a platform: `Some(emulated)`, or not at all.
    pub fn offers(&self, platform: Platform) -> Option<bool> {
        self.platforms.iter().find(|offer| offer.platform == platform).map(|offer| offer.emulated)
    }

    /// Why it could never run `spec`, even when idle.
    pub fn objection(&self, spec: &JobSpec) -> Option<String> {
        let needs = &spec.run.resources;
        if self.offers(spec.name.platform).is_none() {
            return Some(format!("{} does not offer {}", self.name, spec.name.platform));
        }
        if spec.run.privileged && !self.allows_privileged {
            return Some(format!("{} does not allow privileged jobs", self.name));
        }
        let shortages = shortages(needs, &self.capacity);
        (!shortages.is_empty()).then(|| format!("needs {}; {} has {}", shortages[0].0, self.name, shortages[0].1))
    }
}

/// What is wanted and what is there, for each kind of resource that does not suffice.
pub(crate) fn shortages(wanted: &Capacity, there: &Capacity) -> Vec<(String, String)> {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    let cpus = |millis: u32| format!("{} cpu", f64::from(millis) / 1000.0);
    let mut short = Vec::new();
    if wanted.cpu_millis > there.cpu_millis {
        short.push((cpus(wanted.cpu_millis), cpus(there.cpu_millis)));
    }
    if wanted.memory_bytes > there.memory_bytes {
        short.push((format!("{} memory", gib(wanted.memory_bytes)), gib(there.memory_bytes)));
    }
    if wanted.disk_bytes > there.disk_bytes {
        short.push((format!("{} disk", gib(wanted.disk_bytes)), gib(there.disk_bytes)));
    }
    if wanted.slots > there.slots {
        short.push((format!("{} slot", wanted.slots), there.slots.to_string()));
    }
    short
}

/// A worker that has said hello at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// What it said last.
    pub offer: WorkerOffer,
    /// Whether its stream is open.
    pub online: bool,
    /// Whether it takes no new leases.
    pub draining: bool,
    /// When its stream last opened or closed.
    pub changed_at: Millis,
    /// What its leases reserve.
    pub reserved: Capacity,
    /// Its live leases.
    pub leases: BTreeSet<LeaseId>,
}

impl Worker {
    /// What is left to lease.
    pub fn free(&self) -> Capacity {
        self.offer.capacity.minus(&self.reserved)
    }

    /// Whether it takes leases now.
    pub fn takes_leases(&self) -> bool {
        self.online && !self.draining
    }
}
