//! Containers: they run on their own, whatever becomes of the worker's process.

use super::Host;
use crate::pipelines::End;
use crate::queue::Ms;
use crate::world::{Happening, World};
use railyard_common::id::LeaseId;

/// Between tries to remove a container that the engine does not let go.
const REMOVE_RETRY: Ms = 2_000;

/// A container, until it is removed.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its end, when it has come.
    pub ended: Option<End>,
    /// It may outlive its lease: its worker was dead or stood still, or the engine did not obey.
    pub excused: bool,
    /// Being removed, for as long as that takes.
    pub going: bool,
}

/// Something that an engine does.
pub enum Eng {
    /// A container's main process ends.
    Exit(LeaseId, End),
    /// A container is killed and removed, or not yet.
    Remove(LeaseId),
}

impl World {
    /// The engine has made and started a container.
    pub fn container_starts(&mut self, host: usize, lease: LeaseId, after: Option<(Ms, End)>) {
        let container = Container { ended: None, excused: false, going: false };
        self.check_container(host, lease);
        self.hosts[host].containers.insert(lease, container);
        if let Some((wait, end)) = after {
            let at = self.now + wait;
            self.queue.put(at, Happening::Engine(host, self.hosts[host].boots, Eng::Exit(lease, end)));
        }
    }

    /// Whoever runs there may outlive its lease from now on: nobody can stop it in time.
    pub fn excuse(&mut self, host: usize) {
        self.hosts[host].containers.values_mut().for_each(|container| container.excused = true);
    }

    /// The container is to go, in `wait`.
    pub fn remove_container(&mut self, host: usize, lease: LeaseId, wait: Ms) {
        let Some(container) = self.hosts[host].containers.get_mut(&lease) else { return };
        container.going = true;
        let at = self.now + wait;
        self.queue.put(at, Happening::Engine(host, self.hosts[host].boots, Eng::Remove(lease)));
    }

    /// An engine does something.
    pub fn engine_event(&mut self, host: usize, boot: u32, what: Eng) {
        if self.hosts[host].boots != boot {
            return;
        }
        match what {
            Eng::Exit(lease, end) => {
                let Some(container) = self.hosts[host].containers.get_mut(&lease) else { return };
                if container.ended.is_none() {
                    container.ended = Some(end);
                    self.container_ended(host, lease);
                }
            }
            Eng::Remove(lease) => {
                if self.engine_refuses(host) {
                    if let Some(container) = self.hosts[host].containers.get_mut(&lease) {
                        container.excused = true;
                    }
                    let at = self.now + REMOVE_RETRY;
                    return self.queue.put(at, Happening::Engine(host, boot, Eng::Remove(lease)));
                }
                if self.hosts[host].containers.remove(&lease).is_some() {
                    let now = self.now;
                    self.trace.say(now, || format!("w{host} removes the container of {lease}"));
                    self.container_gone(host, lease);
                }
            }
        }
    }

    /// Whether the engine refuses just now.
    pub fn engine_refuses(&mut self, host: usize) -> bool {
        self.hosts[host].engine_bad_until > self.now || (self.chaos() && self.engine.chance(self.rates.engine))
    }

    /// Whether the host's disk is full.
    pub fn disk_is_full(&self, host: usize) -> bool {
        self.hosts[host].disk_full_until > self.now
    }
}

impl Host {
    /// Whether the container of a lease could still do something.
    pub fn runs(&self, lease: LeaseId) -> bool {
        self.containers.get(&lease).is_some_and(|container| container.ended.is_none() && !container.excused)
    }
}
