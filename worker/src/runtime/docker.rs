//! The Docker engine, over its socket.

use super::body::body;
use super::forms::{local_image, with_tag, writable};
use super::orphans;
use super::{
    ByteStream, ContainerSpec, ContainerState, EngineNetwork, Exit, FoundContainer, FoundVolume, Hearing as _,
    ImageName, LocalImage, NetworkSpec, Output, Runtime, RuntimeError,
};
use crate::blocking::blocking;
use crate::image_move::pack;
use crate::usage::Writable;
use async_trait::async_trait;
use bollard::models::{ContainerConfig, ContainerStateStatusEnum, ImageInspect};
use bollard::query_parameters as query;
use futures_util::{StreamExt as _, TryStreamExt as _};
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
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
pub(super) const REMOVE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

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

/// The Docker engine. Cheap to clone.
#[derive(Clone)]
pub struct Docker {
    pub(super) socket: PathBuf,
    pub(super) short: bollard::Docker,
    pub(super) long: bollard::Docker,
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
        let body = body(spec, entrypoint, self.host_cpu_millis);
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
        self.containers_with(labels).await
    }

    async fn volumes(&self, labels: &[(String, String)]) -> Result<Vec<FoundVolume>, RuntimeError> {
        self.volumes_with(labels).await
    }

    async fn networks(&self, labels: &[(String, String)]) -> Result<Vec<String>, RuntimeError> {
        self.networks_with(labels).await
    }

    async fn remove_network(&self, name: &str) -> Result<(), RuntimeError> {
        self.drop_network(name).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.drop_volume(name).await
    }
}
