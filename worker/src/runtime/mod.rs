//! What runs containers, as narrowly as the worker needs it.
//!
//! **Invariant:** the worker touches only containers that carry its own labels and images below its own names.

mod body;
mod docker;
mod engine_log;
mod error;
mod forms;
pub mod fuzz;
mod hearing;
mod labelled;
mod nameless;
mod network;
mod orphans;
mod seccomp;
mod spec;
mod watch;

pub use docker::Docker;
pub use error::RuntimeError;
pub use seccomp::Unfiltered;
pub use spec::{ContainerSpec, DeviceMount, EngineNetwork, FileMount, NetworkSpec, labels};

use crate::usage::Writable;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of an archive.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// An image that the engine has.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalImage {
    /// The engine's name for it: the digest of its configuration.
    pub id: String,
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// When it was made, as the engine writes it.
    pub created: String,
    /// Layers by diff id, base first.
    pub layers: Vec<Digest>,
    /// The part of its configuration that containers inherit: environment, command, user, …
    pub config: serde_json::Value,
    /// What all its layers take on the engine's disk.
    pub size_bytes: u64,
}

impl LocalImage {
    /// Where its containers have volumes.
    pub fn volumes(&self) -> Vec<String> {
        let volumes = self.config.get("Volumes").and_then(serde_json::Value::as_object);
        volumes.map(|volumes| volumes.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether jobs of `platform` can use it.
    pub fn is_for(&self, platform: Platform) -> bool {
        self.os == "linux" && self.architecture == platform.arch()
    }
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What its process returned; 128 and more for a signal.
    pub code: i64,
    /// The kernel killed something in it for want of memory.
    pub oom_killed: bool,
}

/// A container, as the engine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// It was made, and never started.
    Created,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

/// One of the engine's own containers, by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundContainer {
    /// The engine's name for it.
    pub id: String,
    /// All of its labels.
    pub labels: HashMap<String, String>,
}

/// One of the engine's own volumes, by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVolume {
    /// The engine's name for it.
    pub name: String,
    /// All of its labels.
    pub labels: HashMap<String, String>,
}

/// Where a container writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output; everything, if the container's image has a shell.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Some of what a container writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where.
    pub source: Source,
    /// What.
    pub bytes: Bytes,
}

/// What a container writes, standard output and standard error together; in order, if its image has a shell.
/// Ends when the container has ended and everything was read.
pub type Output = BoxStream<'static, Result<Chunk, RuntimeError>>;

/// What an engine tells of a container that runs, and whether it can have missed some of it.
#[async_trait]
pub trait Hearing: Send + Sync + 'static {
    /// What a running container writes from now on, as it is written.
    async fn attach(&self, container: &str) -> Result<Output, RuntimeError>;

    /// What a container has written from its first byte on, and what it writes from now on. As the engine wrote it down:
    /// in whole lines, or parts of very long ones; each [`Chunk`] is one such message.
    async fn log(&self, container: &str) -> Result<Output, RuntimeError>;

    /// Leaves something with a running container by which the engine knows itself until it is restarted, whatever runs on then.
    async fn leave_mark(&self, container: &str) -> Result<String, RuntimeError>;

    /// Whether the engine has not been restarted since that mark was left with the container; since its start, without a mark.
    /// An engine that cannot tell any more says no.
    async fn remembers(&self, container: &str, mark: Option<&str>) -> Result<bool, RuntimeError>;
}

/// A container engine.
#[async_trait]
pub trait Runtime: Hearing {
    /// Where the engine keeps images and containers, if it says so.
    fn disk(&self) -> Option<&Path>;

    /// The engine answers, and can run containers; its version.
    async fn ping(&self) -> Result<String, RuntimeError>;

    /// The image of that name or id, if the engine has it.
    async fn image(&self, reference: &str) -> Result<Option<LocalImage>, RuntimeError>;

    /// Pulls an image from its registry.
    async fn pull(&self, reference: &str, platform: Platform) -> Result<(), RuntimeError>;

    /// Gives an image one more name.
    async fn tag(&self, image: &str, name: &ImageName) -> Result<(), RuntimeError>;

    /// Takes a name (or an id without names) from an image, and removes the image with its last one. Nothing there is fine.
    async fn untag(&self, reference: &str) -> Result<(), RuntimeError>;

    /// Every image name that begins with `prefix`.
    async fn names_below(&self, prefix: &str) -> Result<Vec<String>, RuntimeError>;

    /// The layers of every image that the engine has.
    async fn layer_chains(&self) -> Result<Vec<Vec<Digest>>, RuntimeError>;

    /// An archive of the image, as `docker save` writes it.
    async fn export(&self, reference: &str) -> Result<ByteStream, RuntimeError>;

    /// Takes in an archive as `docker load` does; layers that the engine has may be missing from it.
    async fn load(&self, archive: ByteStream) -> Result<(), RuntimeError>;

    /// Makes sure of a network for containers whose packets pass one bridge of that name. `None`: this engine has no such thing,
    /// and its own network needs no rules of ours.
    async fn network(&self, _spec: &NetworkSpec) -> Result<Option<EngineNetwork>, RuntimeError> {
        Ok(None)
    }

    /// Makes a container; does not start it.
    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;

    /// Starts it. What it writes comes from the first byte, as it is written. One that runs already is fine, but what it
    /// wrote before is not in the output then.
    async fn start(&self, container: &str) -> Result<Output, RuntimeError>;

    /// How the container is; `None` if there is none.
    async fn state(&self, container: &str) -> Result<Option<ContainerState>, RuntimeError>;

    /// Waits until it does not run, and says how it ended.
    async fn exit(&self, container: &str) -> Result<Exit, RuntimeError>;

    /// Whether containers run on when the engine is restarted.
    async fn is_live_restore(&self) -> Result<bool, RuntimeError>;

    /// SIGTERM, and SIGKILL after `grace`. Returns when it does not run any more, or with an error
    /// when an engine hangs. One that does not run is fine.
    async fn stop(&self, container: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Where the engine keeps what a container has changed, if this process can read that as the kernel's overlay has written it.
    async fn overlay(&self, _container: &str) -> Result<Option<PathBuf>, RuntimeError> {
        Ok(None)
    }

    /// Where a container writes on the host, as far as this process can see that, besides what is mounted from there. `None`: nothing
    /// of that can be counted.
    async fn writable(&self, _container: &str) -> Result<Option<Writable>, RuntimeError> {
        Ok(None)
    }

    /// Makes an image of that name of the container's file system.
    async fn commit(&self, container: &str, name: &ImageName) -> Result<(), RuntimeError>;

    /// Removes a container, running or not, with its anonymous volumes. Nothing there is fine.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError>;

    /// All containers, running or not, with every one of these labels.
    async fn containers(&self, labels: &[(String, String)]) -> Result<Vec<FoundContainer>, RuntimeError>;

    /// All volumes with every one of these labels.
    async fn volumes(&self, _labels: &[(String, String)]) -> Result<Vec<FoundVolume>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Removes a volume that no container has. Nothing there is fine.
    async fn remove_volume(&self, _name: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// The names of all networks with every one of these labels.
    async fn networks(&self, _labels: &[(String, String)]) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Removes a network that no container is in. Nothing there is fine.
    async fn remove_network(&self, _name: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
}

/// A local image name, `repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ImageName {
    /// Before the colon.
    pub repository: String,
    /// Behind it.
    pub tag: String,
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}
