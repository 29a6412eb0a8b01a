//! What a job's container looks like.

use crate::network::peer::Network;
use railyard_common::id::WorkerName;
use railyard_common::order::Order;
use railyard_common::platform::Platform;
use railyard_common::rights::DEFAULT_CAPABILITIES;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Labels of the worker's containers. Cleanup finds them by these and touches nothing else.
pub mod labels {
    /// Which farm: a fingerprint of its CA, so that two farms on one engine do not meet.
    pub const FARM: &str = "railyard.farm";
    /// Which worker.
    pub const WORKER: &str = "railyard.worker";
    /// Which lease.
    pub const LEASE: &str = "railyard.lease";
    /// On a network for steps: its bridge.
    pub const NETWORK: &str = "railyard.network";
    /// Which build, for people.
    pub const BUILD: &str = "railyard.build";
    /// Which job, for people.
    pub const JOB: &str = "railyard.job";

    /// What everything of a worker carries.
    pub fn own(farm: &str, worker: &railyard_common::id::WorkerName) -> [(String, String); 2] {
        [(FARM.to_owned(), farm.to_owned()), (WORKER.to_owned(), worker.to_string())]
    }
}

/// A file or directory of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMount {
    /// On the engine's host.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// The container cannot write there.
    pub read_only: bool,
}

/// A network for steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name on the engine.
    pub name: String,
    /// The name of its bridge on the engine's host.
    pub bridge: String,
    /// Of whoever makes it.
    pub labels: Vec<(String, String)>,
}

/// Such a network, as the engine has made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineNetwork {
    /// The addresses of its containers.
    pub subnets: Vec<Network>,
    /// The engine's process, if this one can see it.
    pub pid: Option<i32>,
}

/// A device of the host in the container, at the same path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMount {
    /// Absolute, below `/dev`.
    pub path: String,
}

/// Everything that a container is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name on the engine.
    pub name: String,
    /// An image that the engine has: a name or an id.
    pub image: String,
    /// Which platform's image that is.
    pub platform: Platform,
    /// See [`labels`].
    pub labels: BTreeMap<String, String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Bind mounts.
    pub mounts: Vec<FileMount>,
    /// Where its image wants volumes. They carry the container's labels, and go with it.
    pub volumes: Vec<String>,
    /// Devices.
    pub devices: Vec<DeviceMount>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it starts.
    pub work_dir: String,
    /// Thousandths of a processor; 0: no limit.
    pub cpu_millis: u32,
    /// 0: no limit. Swap is no way around it.
    pub memory_bytes: u64,
    /// Every capability and device of the host.
    pub privileged: bool,
    /// What is kept of the capabilities, without `CAP_`.
    pub capabilities: Vec<String>,
    /// The engine's network that it is in; `None`: no network at all.
    pub network: Option<String>,
    /// What crashes in it may leave its memory in a file, or to whatever takes core dumps on the host.
    pub core_dumps: bool,
    /// The control group that its own is made in; `None`: the engine's usual one.
    pub cgroup_parent: Option<String>,
    /// How much of its output the engine keeps, at least.
    pub log_bytes: u64,
}

impl ContainerSpec {
    /// The capabilities that a step names: `default` is replaced by what everybody may have, `CAP_` may be left out.
    pub fn capabilities_of(named: &[String]) -> Vec<String> {
        let mut capabilities: Vec<String> = named
            .iter()
            .flat_map(|name| match name.as_str() {
                "default" => DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
                other => {
                    let upper = other.to_ascii_uppercase();
                    vec![upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()]
                }
            })
            .collect();
        capabilities.sort();
        capabilities.dedup();
        capabilities
    }

    /// The labels of a job's container.
    pub fn labels_of(farm: &str, worker: &WorkerName, order: &Order) -> BTreeMap<String, String> {
        let pairs = [
            (labels::FARM, farm.to_owned()),
            (labels::WORKER, worker.to_string()),
            (labels::LEASE, order.lease.to_string()),
            (labels::BUILD, order.build.to_string()),
            (labels::JOB, order.job.to_string()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_spelt_out_and_cap_may_be_left_out() {
        let named = ["default", "CAP_SYS_ADMIN", "net_admin", "CHOWN"].map(str::to_owned);
        let capabilities = ContainerSpec::capabilities_of(&named);
        assert_eq!(capabilities.len(), 15);
        assert!(!capabilities.contains(&"NET_RAW".to_owned()), "with it, steps could pretend to be each other");
        assert!(capabilities.contains(&"SYS_ADMIN".to_owned()) && capabilities.contains(&"NET_ADMIN".to_owned()));
        assert!(ContainerSpec::capabilities_of(&[]).is_empty());
    }
}
