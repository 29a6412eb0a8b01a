//! What the controller orders a worker to do: a job with its image and inputs resolved to blobs.

use crate::blob::{Artifact, Image};
use crate::id::{BuildId, JobName, LeaseId};
use crate::job::RunSpec;
use std::sync::Arc;

/// The root file system of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderImage {
    /// A registry reference; a local image of that name is used if there is one.
    Registry(String),
    /// An earlier job's image, through the cache.
    Image(Image),
    /// A root tarball (plain, gzip or zstd by its content), through the cache.
    Import(Artifact),
}

/// An artifact of an earlier job, mounted read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputArtifact {
    /// Where the file appears in the container, absolute.
    pub mount_path: String,
    /// The file.
    pub artifact: Artifact,
}

/// Run this, under this lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The right to run it.
    pub lease: LeaseId,
    /// The build that it is for.
    pub build: BuildId,
    /// The job's name in that build.
    pub job: JobName,
    /// How long the lease lives without an acknowledged heartbeat.
    pub ttl_millis: u32,
    /// The root file system.
    pub image: OrderImage,
    /// What is mounted.
    pub inputs: Vec<InputArtifact>,
    /// What happens in the container.
    pub run: Arc<RunSpec>,
    /// W3C traceparent of the job's span, or empty.
    pub traceparent: String,
}
