//! The Docker engine, over its socket.

use super::engine_log::{self, Lines};
use super::forms::{chunk, device_mapping, local_image, mount, volume, with_tag, writable};
use super::orphans;
use super::watch::attribute;
use super::{
    ByteStream, ContainerSpec, ContainerState, EngineNetwork, Exit, FoundContainer, FoundVolume, Hearing, ImageName,
    LocalImage, NetworkSpec, Output, Runtime, RuntimeError,
};
use crate::blocking::blocking;
use crate::image_move::pack;
use crate::usage::Writable;
use async_trait::async_trait;
use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerStateStatusEnum, ExecConfig, HostConfig, ImageInspect,
    ResourcesUlimits,
};
use bollard::query_parameters as query;
use futures_util::{StreamExt as _, TryStreamExt as _};
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use railyard_service::process::NO_CORE_BYTES;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the engine may take to answer a short question.
const ANSWER_TIMEOUT_SECS: u64 = 120;

/// How long it may take to begin to answer what moves gigabytes: commit, export, load, pull.
const LONG_ANSWER_TIMEOUT_SECS: u64 = 6 * 3600;

/// How long a pull may be without any progress. Unpacking a layer and checking its digest are silent; the biggest layers take
/// minutes.
const PULL_SILENCE: Duration = Duration::from_secs(10 * 60);

/// How long it may take to remove a container: the file system of a big one takes minutes.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How long it may take to kill a container, beyond its grace.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What an engine gives for the version of a containerd that does not answer.
const NO_CONTAINERD: &str = "N/A";

/// The storage driver that the worker can read.
const OVERLAY: &str = "overlay2";

/// Security options of engines whose containers have other users than the host.
const MAPS_USERS: [&str; 2] = ["name=userns", "name=rootless"];

/// What most images have, and scripts without a `#!` line need.
const SHELL: &str = "/bin/sh";

/// Starts a command with both its outputs in one pipe: through two, the engine mixes up what came first. Images without a
/// shell do without.
const MERGE_OUTPUT: [&str; 4] = [SHELL, "-c", "exec \"$@\" 2>&1", "railyard"];

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

/// The Docker engine. Cheap to clone.
#[derive(Clone)]
pub struct Docker {
    pub(super) socket: PathBuf,
    pub(super) short: bollard::Docker,
    long: bollard::Docker,
    /// Docker refuses a limit above what the host has.
    host_cpu_millis: u32,
    /// Where it keeps images and containers.
    disk: Option<PathBuf>,
    /// It keeps every container's changes in a directory of the kernel's overlay, as the host's root sees it.
    overlays: bool,
    /// The layers of images, by id. They never change.
    chains: Arc<Mutex<HashMap<String, Vec<Digest>>>>,
    pull_silence: Duration,
}

impl Docker {
    /// Uses the engine at `socket`. Does not speak to it yet, except to ask for its size.
    ///
    /// # Errors
    /// [`RuntimeError::Unreachable`] if none answers.
    pub async fn connect(socket: &Path) -> Result<Self, RuntimeError> {
        let unreachable = |error: bollard::errors::Error| RuntimeError::from_engine(socket, "connect", error);
        let path = socket.to_string_lossy();
        let open = |timeout| bollard::Docker::connect_with_unix(&path, timeout, bollard::API_DEFAULT_VERSION);
        let short = open(ANSWER_TIMEOUT_SECS).map_err(unreachable)?;
        let long = open(LONG_ANSWER_TIMEOUT_SECS).map_err(unreachable)?;
        let info = short.info().await.map_err(unreachable)?;
        let cpus = info.ncpu.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        // Without root, or with other users than the host's, the files there have owners of another world.
        let apart = |option: &String| MAPS_USERS.iter().any(|name| option.contains(name));
        let overlays = info.driver.as_deref() == Some(OVERLAY)
            && !info.security_options.unwrap_or_default().iter().any(apart)
            && pack::can_pack();
        let disk = info.docker_root_dir.map(PathBuf::from);
        let (socket, host_cpu_millis) = (socket.to_owned(), cpus.saturating_mul(1000));
        let chains = Arc::default();
        Ok(Self { socket, short, long, host_cpu_millis, disk, overlays, chains, pull_silence: PULL_SILENCE })
    }

    /// Gives up a pull that is without progress for so long, instead of ten minutes.
    #[must_use]
    pub fn with_pull_silence(self, limit: Duration) -> Self {
        Self { pull_silence: limit, ..self }
    }

    /// What the engine says of an image.
    pub(super) async fn inspect(&self, reference: &str) -> Result<Option<ImageInspect>, RuntimeError> {
        let doing = format!("inspect image {reference}");
        match self.short.inspect_image(reference).await.map_err(self.error(&doing)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn error<'a>(&'a self, doing: &'a str) -> impl Fn(bollard::errors::Error) -> RuntimeError + 'a {
        move |error| RuntimeError::from_engine(&self.socket, doing, error)
    }

    async fn create_with(&self, spec: &ContainerSpec, entrypoint: Vec<String>) -> Result<(), RuntimeError> {
        let options =
            query::CreateContainerOptionsBuilder::default().name(&spec.name).platform(spec.platform.as_str()).build();
        let doing = format!("create container {}", spec.name);
        let body = self.body(spec, entrypoint);
        self.short.create_container(Some(options), body).await.map_err(self.error(&doing))?;
        Ok(())
    }

    /// Whether the container has a shell. Asked of the engine, because only it knows the files of an image.
    async fn has_shell(&self, container: &str) -> Result<bool, RuntimeError> {
        let options = query::ContainerArchiveInfoOptionsBuilder::default().path(SHELL).build();
        let doing = format!("look into container {container}");
        match self.short.get_container_archive_info(container, Some(options)).await.map_err(self.error(&doing)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn body(&self, spec: &ContainerSpec, entrypoint: Vec<String>) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(spec.image.clone()),
            user: Some("0:0".to_owned()),
            env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
            entrypoint: Some(entrypoint),
            // Empty, not missing: missing would be the image's own command behind our program.
            cmd: Some(Vec::new()),
            working_dir: Some(spec.work_dir.clone()),
            labels: Some(spec.labels.clone().into_iter().collect()),
            host_config: Some(self.host_config(spec)),
            ..Default::default()
        }
    }

    fn host_config(&self, spec: &ContainerSpec) -> HostConfig {
        let memory = match spec.memory_bytes {
            0 => None,
            bytes => Some(i64::try_from(bytes).unwrap_or(i64::MAX)),
        };
        let cpu_millis = spec.cpu_millis.min(self.host_cpu_millis);
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

    /// The id of a container that the engine has not started, as far as it knows.
    async fn never_started(&self, container: &str) -> Result<Option<String>, RuntimeError> {
        let doing = format!("inspect container {container}");
        match self.short.inspect_container(container, None).await.map_err(self.error(&doing)) {
            Ok(found) => {
                let status = found.state.and_then(|state| state.status);
                Ok(found.id.filter(|_| status == Some(ContainerStateStatusEnum::CREATED)))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// No memory of what crashes goes into a file, or to whatever takes core dumps on the host.
fn no_core() -> ResourcesUlimits {
    let bytes = Some(i64::from(NO_CORE_BYTES));
    ResourcesUlimits { name: Some("core".to_owned()), soft: bytes, hard: bytes }
}

#[async_trait]
impl Hearing for Docker {
    async fn attach(&self, container: &str) -> Result<Output, RuntimeError> {
        let options = query::AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let doing = format!("attach to container {container}");
        let attached = self.short.attach_container(container, Some(options)).await.map_err(self.error(&doing))?;
        let socket = self.socket.clone();
        Ok(attached
            .output
            .map_ok(chunk)
            .map_err(move |error| RuntimeError::from_engine(&socket, "read a container's output", error))
            .boxed())
    }

    async fn log(&self, container: &str) -> Result<Output, RuntimeError> {
        let options = query::LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).timestamps(true);
        let socket = self.socket.clone();
        let messages = self
            .long
            .logs(container, Some(options.build()))
            .map_ok(chunk)
            .map_err(move |error| RuntimeError::from_engine(&socket, "read a container's log", error));
        Ok(Lines::new(messages.boxed()).into_output())
    }

    async fn leave_mark(&self, container: &str) -> Result<String, RuntimeError> {
        // A command that is never started: the engine keeps it in its memory and nowhere else.
        let never = ExecConfig { cmd: Some(vec!["true".to_owned()]), ..ExecConfig::default() };
        let doing = format!("leave a mark with container {container}");
        Ok(self.short.create_exec(container, never).await.map_err(self.error(&doing))?.id)
    }

    async fn remembers(&self, container: &str, mark: Option<&str>) -> Result<bool, RuntimeError> {
        if let Some(mark) = mark {
            match self.short.inspect_exec(mark).await.map_err(self.error("look at a mark")) {
                Ok(_) => return Ok(true),
                // It goes with the end of the container as well. The event that it was left stays longer.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let events = self.past_events(container).await?;
        Ok(events.iter().any(|event| match mark {
            Some(mark) => attribute(event, "execID") == Some(mark),
            None => event.action.as_deref() == Some("start"),
        }))
    }
}

#[async_trait]
impl Runtime for Docker {
    fn disk(&self) -> Option<&Path> {
        self.disk.as_deref()
    }

    async fn ping(&self) -> Result<String, RuntimeError> {
        let info = self.short.info().await.map_err(self.error("tell about itself"))?;
        if info.containerd_commit.and_then(|commit| commit.id).as_deref() == Some(NO_CONTAINERD) {
            let why = "its containerd does not answer".to_owned();
            return Err(RuntimeError::Unreachable { socket: self.socket.clone(), why });
        }
        Ok(info.server_version.unwrap_or_default())
    }

    async fn image(&self, reference: &str) -> Result<Option<LocalImage>, RuntimeError> {
        Ok(self.inspect(reference).await?.and_then(local_image))
    }

    async fn pull(&self, reference: &str, platform: Platform) -> Result<(), RuntimeError> {
        let options = query::CreateImageOptionsBuilder::default()
            .from_image(&with_tag(reference))
            .platform(platform.as_str())
            .build();
        let doing = format!("pull image {reference}");
        let mut steps = self.long.create_image(Some(options), None, None);
        loop {
            match tokio::time::timeout(self.pull_silence, steps.next()).await {
                Ok(Some(step)) => drop(step.map_err(self.error(&doing))?),
                Ok(None) => return Ok(()),
                // Whoever goes away makes the engine stop it.
                Err(_) => {
                    let message = format!("no progress for {} s", self.pull_silence.as_secs());
                    return Err(RuntimeError::Refused { doing, status: None, message });
                }
            }
        }
    }

    async fn tag(&self, image: &str, name: &ImageName) -> Result<(), RuntimeError> {
        let options = query::TagImageOptionsBuilder::default().repo(&name.repository).tag(&name.tag).build();
        let doing = format!("name image {image} {name}");
        self.short.tag_image(image, Some(options)).await.map_err(self.error(&doing))
    }

    async fn untag(&self, reference: &str) -> Result<(), RuntimeError> {
        let doing = format!("remove image {reference}");
        let Some(image) = self.inspect(reference).await? else { return Ok(()) };
        let options = query::RemoveImageOptionsBuilder::default().force(false).noprune(false).build();
        match self.short.remove_image(reference, Some(options), None).await.map_err(self.error(&doing)) {
            Err(error) if error.is_conflict() => Err(error),
            Err(error) if !error.is_not_found() => {
                image.id.into_iter().for_each(|id| self.remove_nameless(id));
                Err(error)
            }
            _ => Ok(()),
        }
    }

    async fn names_below(&self, prefix: &str) -> Result<Vec<String>, RuntimeError> {
        let images =
            self.short.list_images(None::<query::ListImagesOptions>).await.map_err(self.error("list images"))?;
        let names = images.into_iter().flat_map(|image| image.repo_tags);
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    async fn layer_chains(&self) -> Result<Vec<Vec<Digest>>, RuntimeError> {
        let options = query::ListImagesOptionsBuilder::default().all(true).build();
        let images = self.short.list_images(Some(options)).await.map_err(self.error("list images"))?;
        let mut known = std::mem::take(&mut *self.chains.lock().unwrap_or_else(PoisonError::into_inner));
        let mut chains = HashMap::with_capacity(images.len());
        for image in images {
            let chain = match known.remove(&image.id) {
                Some(chain) => Some(chain),
                // One that was removed meanwhile is no loss.
                None => self.image(&image.id).await?.map(|image| image.layers),
            };
            chains.extend(chain.map(|chain| (image.id, chain)));
        }
        let all = chains.values().cloned().collect();
        *self.chains.lock().unwrap_or_else(PoisonError::into_inner) = chains;
        Ok(all)
    }

    async fn export(&self, reference: &str) -> Result<ByteStream, RuntimeError> {
        let (socket, doing) = (self.socket.clone(), format!("export image {reference}"));
        let broken = move |error| std::io::Error::other(RuntimeError::from_engine(&socket, &doing, error));
        Ok(self.long.export_image(reference).map_err(broken).boxed())
    }

    async fn load(&self, archive: ByteStream) -> Result<(), RuntimeError> {
        let options = query::ImportImageOptionsBuilder::default().quiet(true).build();
        let steps = self.long.import_image_stream(options, archive, None);
        steps.map_err(self.error("load an image")).try_for_each(|_| async { Ok(()) }).await
    }

    async fn network(&self, spec: &NetworkSpec) -> Result<Option<EngineNetwork>, RuntimeError> {
        self.ensure_network(spec).await.map(Some)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let merged = MERGE_OUTPUT.iter().map(|word| (*word).to_owned()).chain(spec.command.iter().cloned());
        self.create_with(spec, merged.collect()).await?;
        if self.has_shell(&spec.name).await? {
            return Ok(());
        }
        self.remove(&spec.name).await?;
        self.create_with(spec, spec.command.clone()).await
    }

    async fn start(&self, container: &str) -> Result<Output, RuntimeError> {
        let doing = format!("start container {container}");
        // Attached before the start, or the first lines would be lost.
        let output = self.attach(container).await?;
        match self.short.start_container(container, None).await.map_err(self.error(&doing)) {
            Err(RuntimeError::Refused { status: Some(304), .. }) | Ok(()) => Ok(output),
            Err(error) => Err(error),
        }
    }

    async fn state(&self, container: &str) -> Result<Option<ContainerState>, RuntimeError> {
        let doing = format!("inspect container {container}");
        let inspect = match self.short.inspect_container(container, None).await.map_err(self.error(&doing)) {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let state = inspect.state.unwrap_or_default();
        Ok(Some(match state.status {
            _ if state.running == Some(true) => ContainerState::Running,
            Some(ContainerStateStatusEnum::CREATED) => ContainerState::Created,
            _ => ContainerState::Ended,
        }))
    }

    async fn exit(&self, container: &str) -> Result<Exit, RuntimeError> {
        self.wait(container).await
    }

    async fn is_live_restore(&self) -> Result<bool, RuntimeError> {
        let info = self.short.info().await.map_err(self.error("tell about itself"))?;
        Ok(info.live_restore_enabled == Some(true))
    }

    async fn stop(&self, container: &str, grace: Duration) -> Result<(), RuntimeError> {
        let doing = format!("stop container {container}");
        let secs = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = query::StopContainerOptionsBuilder::default().t(secs).build();
        // The answer comes when it is over.
        let client = self.short.clone().with_timeout(grace.saturating_add(KILL_TIMEOUT));
        match client.stop_container(container, Some(options)).await.map_err(self.error(&doing)) {
            Err(RuntimeError::Refused { status: Some(304 | 404), .. }) => Ok(()),
            other => other,
        }
    }

    async fn overlay(&self, container: &str) -> Result<Option<PathBuf>, RuntimeError> {
        if !self.overlays {
            return Ok(None);
        }
        let doing = format!("inspect container {container}");
        let found = self.short.inspect_container(container, None).await.map_err(self.error(&doing))?;
        let driver = found.graph_driver.filter(|driver| driver.name == OVERLAY);
        let upper = driver.and_then(|mut driver| driver.data.remove("UpperDir")).map(PathBuf::from);
        // The name of the directory is a random one: what is there under it is the engine's, in whatever container this runs.
        Ok(upper.filter(|dir| dir.is_dir()))
    }

    async fn writable(&self, container: &str) -> Result<Option<Writable>, RuntimeError> {
        let doing = format!("inspect container {container}");
        let found = self.short.inspect_container(container, None).await.map_err(self.error(&doing))?;
        Ok(Some(writable(found)))
    }

    async fn commit(&self, container: &str, name: &ImageName) -> Result<(), RuntimeError> {
        let options = query::CommitContainerOptionsBuilder::default()
            .container(container)
            .repo(&name.repository)
            .tag(&name.tag)
            .pause(true)
            .build();
        let doing = format!("commit container {container}");
        self.long.commit_container(options, ContainerConfig::default()).await.map_err(self.error(&doing))?;
        Ok(())
    }

    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        let forgotten = self.never_started(container).await?;
        let doing = format!("remove container {container}");
        let options = query::RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let client = self.short.clone().with_timeout(REMOVE_TIMEOUT);
        match client.remove_container(container, Some(options)).await.map_err(self.error(&doing)) {
            // 409: somebody removes it already.
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
        if let Some(id) = forgotten {
            blocking(move || orphans::end(&id)).await;
        }
        Ok(())
    }

    async fn containers(&self, labels: &[(String, String)]) -> Result<Vec<FoundContainer>, RuntimeError> {
        let labels = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let filters: HashMap<String, Vec<String>> = HashMap::from([("label".to_owned(), labels)]);
        let options = query::ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.short.list_containers(Some(options)).await.map_err(self.error("list containers"))?;
        let found =
            found.into_iter().filter_map(|container| Some((container.id?, container.labels.unwrap_or_default())));
        Ok(found.map(|(id, labels)| FoundContainer { id, labels }).collect())
    }

    async fn volumes(&self, labels: &[(String, String)]) -> Result<Vec<FoundVolume>, RuntimeError> {
        let labels = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let filters: HashMap<String, Vec<String>> = HashMap::from([("label".to_owned(), labels)]);
        let options = query::ListVolumesOptionsBuilder::default().filters(&filters).build();
        let found = self.short.list_volumes(Some(options)).await.map_err(self.error("list volumes"))?;
        let found = found.volumes.unwrap_or_default().into_iter();
        Ok(found.map(|volume| FoundVolume { name: volume.name, labels: volume.labels }).collect())
    }

    async fn networks(&self, labels: &[(String, String)]) -> Result<Vec<String>, RuntimeError> {
        self.networks_with(labels).await
    }

    async fn remove_network(&self, name: &str) -> Result<(), RuntimeError> {
        self.drop_network(name).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let doing = format!("remove volume {name}");
        let client = self.short.clone().with_timeout(REMOVE_TIMEOUT);
        let options = None::<query::RemoveVolumeOptions>;
        match client.remove_volume(name, options).await.map_err(self.error(&doing)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
