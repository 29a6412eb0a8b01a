//! Symbolic plans and offers made concrete.

use crate::chance::action::{Offer, Step};
use crate::common::{GIB, job_spec};
use railyard_common::id::{BootId, JobName, PoolName, StepName, WorkerName};
use railyard_common::job::{Capacity, Concurrency};
use railyard_common::plan::Plan;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_core::WorkerOffer;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A worker's name.
pub fn worker_name(worker: usize) -> WorkerName {
    format!("w{worker}").parse().expect("a worker's name")
}

/// What it says of itself.
pub fn worker_offer(name: WorkerName, boot: BootId, offer: &Offer) -> WorkerOffer {
    let platforms = [(offer.amd, Platform::LinuxAmd64), (offer.arm, Platform::LinuxArm64)];
    let platforms = platforms.into_iter().filter(|(offered, _)| *offered);
    WorkerOffer {
        name,
        boot,
        version: "0.1.0".to_owned(),
        platforms: platforms.map(|(_, platform)| PlatformOffer { platform, emulated: offer.emulated }).collect(),
        capacity: Capacity {
            cpu_millis: offer.cpu * 1000,
            memory_bytes: offer.gib * GIB,
            disk_bytes: offer.gib * GIB,
            slots: offer.slots,
        },
        labels: offer.label.then(|| ("kvm".to_owned(), "yes".to_owned())).into_iter().collect(),
        pool: offer.pool.then(pool),
        allows_privileged: offer.privileged,
        allows: Vec::new(),
    }
}

/// A plan whose steps need only steps before them.
pub fn plan(version: u8, steps: &[Step], supersede: bool) -> Plan {
    let name = |n: usize| JobName {
        step: format!("s{n}").parse::<StepName>().expect("a step's name"),
        variant: None,
        platform: if steps[n].arm { Platform::LinuxArm64 } else { Platform::LinuxAmd64 },
    };
    let jobs = steps.iter().enumerate().map(|(n, step)| {
        let mut spec = job_spec(name(n));
        spec.needs = (0..n).filter(|need| step.needs >> need & 1 == 1).map(name).collect();
        (spec.retries, spec.lease_ttl_secs) = (step.retries, step.ttl_secs);
        Arc::make_mut(&mut spec.run).privileged = step.privileged;
        spec.approval = step.approval.then(|| "go?".to_owned());
        spec.concurrency = step.group.map(|(one, limit)| {
            let group = if one { "one" } else { "other" };
            Concurrency { group: group.parse().expect("a group's name"), limit }
        });
        spec.pool = step.pool.then(pool);
        spec.labels = step.label.then(|| ("kvm".to_owned(), "yes".to_owned())).into_iter().collect();
        let (memory_bytes, disk_bytes) = (step.gib * GIB, step.gib * GIB);
        Arc::make_mut(&mut spec.run).resources =
            Capacity { cpu_millis: step.cpu * 1000, memory_bytes, disk_bytes, slots: 1 };
        spec
    });
    Plan {
        build: format!("chance/{version}").parse().expect("a build's name"),
        params: BTreeMap::new(),
        platforms: Platform::ALL.to_vec(),
        untrusted: false,
        channel: None,
        supersede: supersede.then(|| "main".parse().expect("a group's name")),
        uses: Vec::new(),
        jobs: jobs.collect(),
    }
}

fn pool() -> PoolName {
    "special".parse().expect("a pool's name")
}
