//! What all attempts of a worker share.

use crate::attempt::dirs::DataDir;
use crate::blobs::Blobs;
use crate::config::WorkerConfig;
use crate::disk::{Disks, Space};
use crate::images::{KnownLayers, Shelf};
use crate::network::Guard;
use crate::runtime::Runtime;
use crate::secrets::SecretsDir;
use crate::uplink::Uplink;
use railyard_service::clock::Clock;
use railyard_transfer::{Press, Transfer};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What all attempts of a worker share.
pub struct Workshop {
    /// The settings.
    pub config: WorkerConfig,
    /// Tells farms that share an engine apart: a fingerprint of the farm's CA.
    pub farm: String,
    /// Where everything lies.
    pub data: DataDir,
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// The controller.
    pub uplink: Uplink,
    /// The way to and from the cache.
    pub transfer: Transfer,
    /// Compresses outputs.
    pub press: Press,
    /// Fetched blobs.
    pub blobs: Blobs,
    /// The network of steps.
    pub guard: Guard,
    /// Secrets of running steps.
    pub secrets: SecretsDir,
    /// Images in the engine.
    pub shelf: Shelf,
    /// Layers in the cache.
    pub layers: KnownLayers,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The disks.
    pub disks: Disks,
    /// Measures the file system of a directory.
    pub space: fn(&Path) -> io::Result<Space>,
    /// Where the kernel tells of pressure on the host.
    pub pressure_dir: PathBuf,
}

impl Workshop {
    /// What can still be written to the file system of a directory.
    ///
    /// # Errors
    /// If the file system cannot be asked.
    pub fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        (self.space)(path).map(|space| space.free_bytes)
    }
}
