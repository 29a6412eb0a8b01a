//! A worker, as the farm sees it.

use crate::hold::{Hold, HoldKind};
use crate::queue::Shape;
use railyard_common::backoff::Backoff;
use railyard_common::id::{BootId, LeaseId, PoolName, WorkerName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::planted::{self, Bug};
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::rights::{self, Right, Wanted};
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// After so many losses in a row a worker is in quarantine. One can be anybody's, two a coincidence.
pub const QUARANTINE_AFTER: u32 = 3;

/// How long a worker in quarantine waits for its next try, which is one job.
pub const QUARANTINE_BACKOFF: Backoff = Backoff { base_millis: 60_000, max_millis: 1_800_000 };

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
    /// The pool that it works for; without one, it takes the jobs that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Jobs may be privileged there.
    #[serde(default)]
    pub allows_privileged: bool,
    /// What else they may have there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allows: Vec<Right>,
}

impl WorkerOffer {
    /// How it offers a platform: `Some(emulated)`, or not at all.
    pub fn offers(&self, platform: Platform) -> Option<bool> {
        self.platforms.iter().find(|offer| offer.platform == platform).map(|offer| offer.emulated)
    }

    /// Whether its settings let a step have that.
    fn allows(&self, right: &Right) -> bool {
        (self.allows_privileged && Right::Privileged.covers(right)) || rights::allows(&self.allows, right)
    }

    /// Whether it could run `spec` when idle: [`WorkerOffer::objection`] without the words.
    pub fn suits(&self, spec: &JobSpec) -> bool {
        self.capacity.fits(&spec.run.resources)
            && self.admits(spec.name.platform, spec.pool.as_ref(), &Wanted::of(&spec.run).required, &spec.labels)
    }

    /// Whether it could run jobs of this shape when idle.
    pub(crate) fn suits_shape(&self, shape: &Shape) -> bool {
        self.capacity.fits(&shape.resources)
            && self.admits(shape.platform, shape.pool.as_ref(), &shape.rights, &shape.labels)
    }

    fn admits(
        &self,
        platform: Platform,
        pool: Option<&PoolName>,
        rights: &[Right],
        labels: &BTreeMap<String, String>,
    ) -> bool {
        (self.offers(platform).is_some() || planted::is(Bug::PlatformIgnored))
            && (self.pool.as_ref() == pool || planted::is(Bug::PoolIgnored))
            && rights.iter().all(|right| self.allows(right))
            && labels.iter().all(|(label, value)| self.labels.get(label) == Some(value))
    }

    /// Why it could never run `spec`, even when idle.
    pub fn objection(&self, spec: &JobSpec) -> Option<String> {
        let name = &self.name;
        if self.offers(spec.name.platform).is_none() {
            return Some(format!("{name} does not offer {}", spec.name.platform));
        }
        match (&spec.pool, &self.pool) {
            (Some(wanted), Some(pool)) if wanted != pool => {
                return Some(format!("needs pool {wanted}; {name} is in pool {pool}"));
            }
            (Some(wanted), None) => return Some(format!("needs pool {wanted}; {name} is in none")),
            (None, Some(pool)) => return Some(format!("{name} takes only jobs for pool {pool}")),
            _ => {}
        }
        if let Some(right) = Wanted::of(&spec.run).required.iter().find(|right| !self.allows(right)) {
            return Some(match right {
                Right::Privileged => format!("{name} does not allow privileged jobs"),
                right => format!("{name} does not allow {right}"),
            });
        }
        let missing = spec.labels.iter().find(|(label, value)| self.labels.get(*label) != Some(value));
        if let Some((label, value)) = missing {
            return Some(match self.labels.get(label) {
                Some(other) => format!("needs label {label}={value}; {name} has {label}={other}"),
                None => format!("needs label {label}={value}; {name} has no such label"),
            });
        }
        let shortages = shortages(&spec.run.resources, &self.capacity);
        (!shortages.is_empty()).then(|| format!("needs {}; {name} has {}", shortages[0].0, shortages[0].1))
    }
}

/// What is wanted and what is there, for each kind of resource that does not suffice.
pub(crate) fn shortages(wanted: &Capacity, there: &Capacity) -> Vec<(String, String)> {
    let size = |bytes: u64| match bytes {
        0x4000_0000.. => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        _ => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
    };
    let cpus = |millis: u32| format!("{} cpu", f64::from(millis) / 1000.0);
    let mut short = Vec::new();
    if wanted.cpu_millis > there.cpu_millis {
        short.push((cpus(wanted.cpu_millis), cpus(there.cpu_millis)));
    }
    if wanted.memory_bytes > there.memory_bytes {
        short.push((format!("{} memory", size(wanted.memory_bytes)), size(there.memory_bytes)));
    }
    if wanted.disk_bytes > there.disk_bytes {
        short.push((format!("{} disk", size(wanted.disk_bytes)), size(there.disk_bytes)));
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
    /// Whether it said that it takes no new leases, for its process ends.
    pub draining: bool,
    /// When its stream last opened or closed.
    pub changed_at: Millis,
    /// What its leases reserve.
    pub reserved: Capacity,
    /// Its live leases.
    pub leases: BTreeSet<LeaseId>,
    /// What an operator wants of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Losses since it last ended a job in any other way. What was leased before a loss does not count a second time.
    #[serde(default)]
    pub losses: u32,
    /// When the last of them was.
    #[serde(default)]
    pub last_loss_at: Millis,
}

impl Worker {
    /// One that has just said hello for the first time.
    pub(crate) fn new(offer: WorkerOffer, at: Millis) -> Self {
        Self {
            offer,
            online: true,
            draining: false,
            changed_at: at,
            reserved: Capacity::default(),
            leases: BTreeSet::new(),
            hold: None,
            losses: 0,
            last_loss_at: Millis(0),
        }
    }

    /// What is left to lease.
    pub fn free(&self) -> Capacity {
        self.offer.capacity.minus(&self.reserved)
    }

    /// Until when it is in quarantine; then it may try one job.
    pub fn quarantined_until(&self) -> Option<Millis> {
        let beyond = (self.losses + 1).checked_sub(QUARANTINE_AFTER).filter(|beyond| *beyond > 0)?;
        Some(self.last_loss_at.plus(QUARANTINE_BACKOFF.delay_millis(beyond)))
    }

    /// Whether nobody holds it back: neither itself, nor an operator.
    pub fn is_willing(&self) -> bool {
        self.online && !self.draining && (self.hold.is_none() || planted::is(Bug::HoldIgnored))
    }

    /// Whether it takes a lease now.
    pub fn takes_leases(&self, now: Millis) -> bool {
        self.is_willing() && !self.is_quarantined(now)
    }

    /// Whether it was told to go for good, and has nothing left to do.
    pub fn is_retired(&self) -> bool {
        self.leases.is_empty() && self.hold.as_ref().is_some_and(|hold| hold.kind == HoldKind::Retire)
    }

    /// Whether its losses keep it from taking a lease now. Its probe is one job at a time.
    pub fn is_quarantined(&self, now: Millis) -> bool {
        self.quarantined_until().is_some_and(|until| {
            // A clock that was put back must not make the quarantine last.
            let over = until <= now || until > now.plus(QUARANTINE_BACKOFF.max_millis);
            !over || !self.leases.is_empty()
        })
    }

    /// How many leases it may take now.
    pub(crate) fn slots_to_give(&self) -> u32 {
        if self.quarantined_until().is_some() { 1 } else { u32::MAX }
    }
}
