//! What a step's container is made with: its limits, and what it may not do.

use super::forms::{device_mapping, mount, volume};
use super::{ContainerSpec, engine_log};
use bollard::models::{ContainerCreateBody, HostConfig, ResourcesUlimits};
use railyard_service::process::NO_CORE_BYTES;

/// Processes in one container: plenty for a parallel compile, far from what a host can bear.
const PIDS_MAX: i64 = 8192;

/// When the whole host runs out of memory, a step goes before anything else on it.
const OOM_SCORE_ADJ: i64 = 800;

/// A step's share of busy processors for each that it reserves, and the most that it gets. The worker, the engine and everybody
/// else on the host have 1024.
const SHARES_PER_CPU: i64 = 128;
const SHARES_MAX: i64 = 512;

/// The least that the kernel takes.
const SHARES_MIN: i64 = 2;

fn cpu_shares(cpu_millis: u32) -> i64 {
    (i64::from(cpu_millis) * SHARES_PER_CPU / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

/// What the engine is asked to make. It refuses more processors than the host has.
pub(super) fn body(spec: &ContainerSpec, entrypoint: Vec<String>, host_cpu_millis: u32) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        user: Some("0:0".to_owned()),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        entrypoint: Some(entrypoint),
        // Empty, not missing: missing would be the image's own command behind our program.
        cmd: Some(Vec::new()),
        working_dir: Some(spec.work_dir.clone()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        host_config: Some(host_config(spec, host_cpu_millis)),
        ..Default::default()
    }
}

fn host_config(spec: &ContainerSpec, host_cpu_millis: u32) -> HostConfig {
    let memory = match spec.memory_bytes {
        0 => None,
        bytes => Some(i64::try_from(bytes).unwrap_or(i64::MAX)),
    };
    let cpu_millis = spec.cpu_millis.min(host_cpu_millis);
    HostConfig {
        nano_cpus: (cpu_millis > 0).then(|| i64::from(cpu_millis) * 1_000_000),
        cpu_shares: Some(cpu_shares(cpu_millis)),
        memory,
        memory_swap: memory,
        oom_score_adj: Some(OOM_SCORE_ADJ),
        cgroup_parent: spec.cgroup_parent.clone(),
        pids_limit: Some(PIDS_MAX),
        ulimits: (!spec.core_dumps).then(|| vec![no_core()]),
        init: Some(true),
        mounts: Some(
            spec.mounts.iter().map(mount).chain(spec.volumes.iter().map(|at| volume(at, &spec.labels))).collect(),
        ),
        devices: Some(spec.devices.iter().map(|device| device_mapping(&device.path)).collect()),
        network_mode: Some(spec.network.as_deref().unwrap_or("none").to_owned()),
        // The worker reads the output as it is written. This is for a worker, or an engine, that comes back.
        log_config: Some(engine_log::driver(spec.log_bytes)),
        privileged: Some(spec.privileged),
        cap_drop: (!spec.privileged).then(|| vec!["ALL".to_owned()]),
        cap_add: (!spec.privileged).then(|| spec.capabilities.clone()),
        // What is privileged could undo it, and image builds that need privilege need sudo as well.
        security_opt: (!spec.privileged).then(|| vec!["no-new-privileges".to_owned()]),
        ..Default::default()
    }
}

/// No memory of what crashes goes into a file, or to whatever takes core dumps on the host.
fn no_core() -> ResourcesUlimits {
    let bytes = Some(i64::from(NO_CORE_BYTES));
    ResourcesUlimits { name: Some("core".to_owned()), soft: bytes, hard: bytes }
}
