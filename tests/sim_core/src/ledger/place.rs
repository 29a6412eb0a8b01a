//! Where jobs go, and in what order.

use crate::world::World;
use railyard_common::id::{JobId, LeaseId, WorkerName};
use railyard_common::job::Capacity;
use railyard_core::{Farm, JobState};

impl World {
    /// The worker suits the job, and it is the job's turn.
    pub(super) fn before_placement(&mut self, lease: LeaseId, worker: &WorkerName) {
        let farm = &self.ledger.durable;
        let Some(spec) = farm.spec(lease.job) else { return };
        let Some(host) = self.hosts.iter().find(|host| host.name == *worker) else { return };
        if !host.platforms.iter().any(|offer| offer.platform == spec.name.platform) {
            let why = format!("{lease} for {} is granted to {worker}", spec.name.platform);
            return self.breaks("platform-is-offered", why);
        }
        let labelled = spec.labels.iter().all(|(label, value)| host.labels.get(label) == Some(value));
        if spec.pool != host.pool || !labelled {
            return self.breaks("pool-and-labels", format!("{lease} for pool {:?} is granted to {worker}", spec.pool));
        }
        if spec.approval.is_some() && !self.ledger.approved.contains(&lease.job) {
            return self.breaks("approved-first", format!("{lease} is granted and nobody has approved it"));
        }
        if farm.worker(worker).is_none_or(|worker| worker.hold.is_some() || worker.draining || !worker.online) {
            return self.breaks("held-back", format!("{lease} is granted to {worker}, which is held back or gone"));
        }
        self.before_group(lease);
    }

    /// A group runs no more than its limit, and who came first goes first.
    fn before_group(&mut self, lease: LeaseId) {
        let farm = &self.ledger.durable;
        let Some(group) = farm.spec(lease.job).and_then(|spec| spec.concurrency.clone()) else { return };
        let running = farm.live_leases().filter_map(|lease| farm.spec(lease.job)?.concurrency.clone());
        let limits: Vec<u32> = running.filter(|other| other.group == group.group).map(|other| other.limit).collect();
        let smallest = limits.iter().copied().fold(group.limit, u32::min);
        if limits.len() >= smallest as usize {
            let why = format!("{lease} is granted; {} of its group run, and its limit is {smallest}", limits.len());
            return self.breaks("group-limit", why);
        }
        let waiting = self.ledger.groups.get(&group.group).map_or(&[][..], Vec::as_slice);
        let earlier = waiting.iter().take_while(|id| **id != lease.job);
        let passed_over = |id: &&JobId| {
            let could = farm.spec(**id).is_some_and(|spec| {
                farm.workers().any(|worker| worker.is_willing() && worker.offer.objection(spec).is_none())
            });
            is_queued(farm, **id) && could
        };
        if let Some(first) = earlier.copied().find(|id| passed_over(&id)) {
            self.breaks("group-first-come", format!("{lease} is granted before {first}, which came first"));
        }
    }

    /// Which jobs of groups wait, in the order in which they became ready. One that runs again keeps its place.
    pub(super) fn note_groups(&mut self) {
        let farm = &self.ledger.durable;
        for build in farm.builds().filter(|build| !build.is_ended()) {
            for (id, spec) in build.jobs().zip(&build.plan.jobs) {
                let Some(group) = &spec.concurrency else { continue };
                let waiting = self.ledger.groups.entry(group.group.clone()).or_default();
                let Some(job) = farm.job(id) else { continue };
                match job.state {
                    JobState::Queued { .. } if !waiting.contains(&id) => waiting.push(id),
                    JobState::Queued { .. } | JobState::Leased { .. } => {}
                    _ => waiting.retain(|other| *other != id),
                }
            }
        }
    }

    /// What a worker's leases reserve is no more than the host has. Of what is being sent only the disk is reserved.
    pub(super) fn invariant_capacity(&mut self, worker: &WorkerName) {
        let farm = &self.ledger.durable;
        let leases = farm.live_leases().filter(|lease| farm.holder(*lease) == Some(worker));
        let reserved = leases.filter_map(|lease| {
            let all = farm.spec(lease.job)?.run.resources;
            let sending = self.ledger.uploading.contains(&lease);
            Some(if sending { Capacity { disk_bytes: all.disk_bytes, ..Capacity::default() } } else { all })
        });
        let sum = reserved.fold(Capacity::default(), |sum, one| sum.plus(&one));
        let has = self.hosts.iter().find(|host| host.name == *worker).map(|host| host.capacity).unwrap_or_default();
        if !has.fits(&sum) {
            self.breaks("capacity", format!("{worker} has {has:?}; its leases reserve {sum:?}"));
        }
    }

    /// A lease is said to send: its container has ended.
    pub(super) fn after_uploading(&mut self, lease: LeaseId) {
        self.ledger.uploading.insert(lease);
        if self.hosts.iter().any(|host| host.runs(lease)) {
            self.breaks("sending-is-after-running", format!("{lease} is said to send while its container runs"));
        }
    }
}

fn is_queued(farm: &Farm, id: JobId) -> bool {
    farm.job(id).is_some_and(|job| matches!(job.state, JobState::Queued { .. }))
}
