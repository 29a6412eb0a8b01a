//! A job's container, spelt out.

use super::dirs::JobDir;
use super::fault::Fault;
use crate::config::WorkerConfig;
use crate::inputs::InputMount;
use crate::outputs::WORK_DIR;
use crate::runtime::{ContainerSpec, DeviceMount, FileMount, LocalImage};
use crate::workshop::Workshop;
use railyard_common::job::Device;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_common::rights::{Right, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the script is in the container.
const SCRIPT: &str = "/railyard/script";

/// Where its secrets are, as in other engines' containers.
pub const SECRETS: &str = "/run/secrets";

/// What runs first in a container with secrets in its environment.
const START: &str = "/railyard/start";

/// What runs a script that does not say.
const DEFAULT_INTERPRETER: &str = "#!/bin/sh -e\n";

/// Lets a container remount what is mounted read-only.
const REMOUNTS: &str = "SYS_ADMIN";

/// Refuses what this worker must not or cannot run.
///
/// # Errors
/// [`Fault`]: refused.
pub fn check(config: &WorkerConfig, order: &Order) -> Result<(), Fault> {
    let refuse = |message: String| Err(Fault::ended(OutcomeKind::Refused, Reason::Unsupported, message));
    // The controller has asked its own policy. Whoever has that has not this host yet.
    match Wanted::of(&order.run).required.iter().find(|right| !config.allows(right)) {
        Some(Right::Privileged) => {
            return refuse(format!(
                "the job is privileged, and worker {} does not allow that; set `allow_privileged` there, or use another worker",
                config.name
            ));
        }
        Some(right) => {
            return refuse(format!(
                "the job wants `{right}`, and worker {} does not allow that; add \"{right}\" to `allow` there, or use another worker",
                config.name
            ));
        }
        None => {}
    }
    match order.run.devices.iter().find(|device| !device.optional && !is_there(device)) {
        Some(device) => {
            // In a container, the worker sees its own devices and not those of the engine's host.
            let unseen = config
                .host_data_dir
                .as_ref()
                .map_or("", |_| " (it looks in its own container: mount the host's /dev there, if the host has it)");
            let Device { path, .. } = device;
            refuse(format!("worker {} has no {path}{unseen}; write `{path}?` if the job can do without", config.name))
        }
        None => Ok(()),
    }
}

/// Whether the container could write through a read-only mount.
pub fn can_remount(order: &Order) -> bool {
    let capabilities = ContainerSpec::capabilities_of(&order.run.capabilities);
    order.run.privileged || capabilities.iter().any(|name| name == REMOUNTS || name == "ALL")
}

/// The script as a program.
pub fn script(text: &str) -> String {
    if text.starts_with("#!") { text.to_owned() } else { format!("{DEFAULT_INTERPRETER}{text}") }
}

/// What puts secrets into the environment and becomes the script; `None` if the step wants none there. The container itself is made
/// without them: an engine writes the environment of its containers to the disk, and puts it into images that are made of them.
pub fn start(order: &Order) -> Option<String> {
    let secrets = order.run.secrets.iter();
    let lines: Vec<String> = secrets
        .filter_map(|secret| {
            let (env, file) = (secret.env.as_deref()?, format!("{SECRETS}/{}", secret.name));
            let take = format!("{env}=$(cat {file}) && export {env} || exit 1\n");
            // It may be that there is none.
            Some(if secret.optional { format!("if [ -e {file} ]; then {}; fi\n", take.trim_end()) } else { take })
        })
        .collect();
    (!lines.is_empty()).then(|| format!("#!/bin/sh\n{}exec {SCRIPT}\n", lines.concat()))
}

/// The container's name on the engine. The farm is in it for engines that serve two farms with workers of one name.
pub fn container_name(farm: &str, config: &WorkerConfig, order: &Order) -> String {
    format!("railyard-{farm}-{}-{}", config.name, order.lease)
}

/// Everything that the container is created with.
pub fn container(
    shop: &Workshop,
    dir: &JobDir,
    order: &Order,
    image: &LocalImage,
    inputs: &[InputMount],
    secrets: Option<PathBuf>,
    network: Option<String>,
) -> ContainerSpec {
    let Workshop { farm, config, data, .. } = shop;
    let mount = |source: &Path, target: &str, read_only| FileMount {
        source: data.on_host(source),
        target: target.to_owned(),
        read_only,
    };
    let mut mounts = vec![mount(&dir.work(), WORK_DIR, false), mount(&dir.script(), SCRIPT, true)];
    let starts = start(order).is_some();
    if starts {
        mounts.push(mount(&dir.start(), START, true));
    }
    // The engine's host sees it at the same path.
    let secrets = secrets.map(|source| FileMount { source, target: SECRETS.to_owned(), read_only: true });
    let has_secrets = secrets.is_some();
    mounts.extend(secrets);
    mounts.extend(inputs.iter().map(|input| mount(&input.source, &input.target, true)));
    let run = &order.run;
    mounts.extend(run.host_paths.iter().map(|path| FileMount {
        source: path.source.clone().into(),
        target: path.target.clone(),
        read_only: !path.writable,
    }));
    // What the job can do without it gets where it may.
    let may_have = |device: &&Device| config.allows(&Right::Device(device.path.clone()));
    let devices = run.devices.iter().filter(|device| is_there(device)).filter(may_have);
    let volumes = volumes(image, &mounts);
    ContainerSpec {
        name: container_name(farm, config, order),
        image: image.id.clone(),
        platform: order.job.platform,
        labels: ContainerSpec::labels_of(farm, &config.name, order),
        env: environment(order),
        mounts,
        volumes,
        devices: devices.map(|device| DeviceMount { path: device.path.clone() }).collect(),
        command: vec![if starts { START } else { SCRIPT }.to_owned()],
        work_dir: WORK_DIR.to_owned(),
        cpu_millis: run.resources.cpu_millis,
        memory_bytes: run.resources.memory_bytes,
        privileged: run.privileged,
        capabilities: ContainerSpec::capabilities_of(&run.capabilities),
        network,
        core_dumps: !has_secrets,
        cgroup_parent: config.cgroup_parent.clone(),
        log_bytes: config.log.max.as_u64(),
    }
}

/// Where the image wants volumes and nothing else is mounted.
fn volumes(image: &LocalImage, mounts: &[FileMount]) -> Vec<String> {
    let trimmed = |path: &str| path.trim_end_matches('/').to_owned();
    let taken: BTreeSet<String> = mounts.iter().map(|mount| trimmed(&mount.target)).collect();
    let wanted: BTreeSet<String> = image.volumes().iter().map(|path| trimmed(path)).collect();
    // Whatever else an image may say there is between it and the engine.
    wanted.into_iter().filter(|path| path.starts_with('/') && !taken.contains(path)).collect()
}

fn is_there(device: &Device) -> bool {
    Path::new(&device.path).exists()
}

/// The step's own variables, and those that tell a script where it is. The latter win.
fn environment(order: &Order) -> BTreeMap<String, String> {
    let mut env = order.run.env.clone();
    let own = [
        ("CI", "true".to_owned()),
        ("RAILYARD_PIPELINE", order.build.pipeline.to_string()),
        ("RAILYARD_VERSION", order.build.version.to_string()),
        ("RAILYARD_BUILD", order.build.to_string()),
        ("RAILYARD_STEP", order.job.step.to_string()),
        ("RAILYARD_JOB", order.job.to_string()),
        ("RAILYARD_PLATFORM", order.job.platform.to_string()),
        ("RAILYARD_ARCH", order.job.platform.arch().to_owned()),
        ("RAILYARD_ATTEMPT", order.lease.attempt.to_string()),
    ];
    env.extend(own.map(|(key, value)| (key.to_owned(), value)));
    env
}
