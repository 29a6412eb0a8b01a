//! Workers.

use super::{Capacity, phase, some, time};
use jiff::Timestamp;
use railyard_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

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

/// A daemon on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Worker {
    pub name: String,
    pub connected: bool,
    pub platforms: Vec<Offer>,
    pub capacity: Capacity,
    pub reserved: Capacity,
    pub jobs: Vec<RunningJob>,
    pub version: Option<String>,
    pub last_seen_at: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
}

impl From<v1::WorkerView> for Worker {
    fn from(view: v1::WorkerView) -> Self {
        let offer = |offer: v1::PlatformOffer| Offer { platform: offer.platform, emulated: offer.emulated };
        let running = |job: v1::WorkerJob| RunningJob {
            build: job.build,
            job: job.job,
            attempt: job.lease.map_or(0, |lease| lease.attempt),
            phase: phase(job.phase),
        };
        Self {
            name: view.name,
            connected: view.connected,
            platforms: view.platforms.into_iter().map(offer).collect(),
            capacity: view.capacity.into(),
            reserved: view.reserved.into(),
            jobs: view.jobs.into_iter().map(running).collect(),
            version: some(view.version),
            last_seen_at: time(view.last_seen_at),
            labels: view.labels.into_iter().collect(),
        }
    }
}
