//! The images that this worker has put into the engine, by build.
//!
//! **Invariant:** every such image has a name below this worker's own prefix, and the name is on record before the
//! engine hears it. So whatever happens, cleanup finds it, and finds nothing of others: other farms, other workers on
//! the same engine, and what people pulled have other names.

mod name;
pub mod prepare;
pub mod save;

use crate::disk::DiskError;
use crate::keyed::Keyed;
use crate::runtime::{ImageName, Runtime, RuntimeError};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, WorkerName};
use railyard_common::platform::Platform;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Root tarballs whose image is remembered; more than a host builds of at a time.
const ROOTS_MAX: usize = 64;

/// Something about the record of images failed.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The engine.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The images of this worker.
pub struct Shelf {
    runtime: Arc<dyn Runtime>,
    prefix: String,
    path: PathBuf,
    records: Mutex<Records>,
    /// One preparation of an image at a time.
    preparing: Keyed<Digest>,
}

/// What is on record, as it lies on the disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Records {
    kept: BTreeSet<Kept>,
    roots: Vec<Root>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Kept {
    build: BuildId,
    name: ImageName,
}

/// The image that a root tarball gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    tarball: Digest,
    platform: Platform,
    image: Digest,
}

impl Shelf {
    /// Opens the record in file `path`. `farm` tells farms that share an engine apart.
    ///
    /// # Errors
    /// [`DiskError`]; a record that makes no sense is one of them.
    pub fn open(runtime: Arc<dyn Runtime>, farm: &str, worker: &WorkerName, path: &Path) -> Result<Self, DiskError> {
        let records = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| DiskError::at("understand", path)(io::Error::from(error)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Records::default(),
            Err(error) => return Err(DiskError::at("read", path)(error)),
        };
        Ok(Self {
            runtime,
            prefix: name::prefix(farm, worker),
            path: path.to_owned(),
            records: Mutex::new(records),
            preparing: Keyed::default(),
        })
    }

    /// The name for an image of `build`; `what` is for people, and tells its images apart.
    pub fn name(&self, build: &BuildId, what: &str) -> ImageName {
        name::of(&self.prefix, build, what)
    }

    /// Puts a name on record, before it is given to an image.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn record(&self, build: &BuildId, name: &ImageName) -> Result<(), DiskError> {
        let kept = Kept { build: build.clone(), name: name.clone() };
        self.change(|records| records.kept.insert(kept))
    }

    /// Builds with images here.
    pub fn builds(&self) -> Vec<BuildId> {
        let builds: BTreeSet<BuildId> = self.records().kept.iter().map(|kept| kept.build.clone()).collect();
        builds.into_iter().collect()
    }

    /// The build is over: its images go. One that is still in use stays on record for the next time.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub async fn forget(&self, build: &BuildId) -> Result<(), ShelfError> {
        let names: Vec<Kept> = self.records().kept.iter().filter(|kept| kept.build == *build).cloned().collect();
        for kept in names {
            match self.runtime.untag(&kept.name.to_string()).await {
                Err(error) if error.is_conflict() => tracing::warn!(name = %kept.name, %error, "an image is in use"),
                Err(error) => return Err(error.into()),
                Ok(()) => self.change(|records| records.kept.remove(&kept))?,
            }
        }
        Ok(())
    }

    /// Removes images with this worker's names that are not on record: of an earlier life with another data directory.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn sweep(&self) -> Result<(), RuntimeError> {
        let known: BTreeSet<String> = self.records().kept.iter().map(|kept| kept.name.to_string()).collect();
        for name in self.runtime.names_below(&self.prefix).await? {
            if known.contains(&name) {
                continue;
            }
            match self.runtime.untag(&name).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => tracing::info!(name, "removed an image that nobody needs"),
            }
        }
        Ok(())
    }

    fn root(&self, tarball: Digest, platform: Platform) -> Option<Digest> {
        let records = self.records();
        records.roots.iter().find(|root| root.tarball == tarball && root.platform == platform).map(|root| root.image)
    }

    fn remember_root(&self, tarball: Digest, platform: Platform, image: Digest) -> Result<(), DiskError> {
        self.change(|records| {
            records.roots.retain(|root| root.tarball != tarball || root.platform != platform);
            records.roots.push(Root { tarball, platform, image });
            let spare = records.roots.len().saturating_sub(ROOTS_MAX);
            records.roots.drain(..spare);
        })
    }

    /// Changes the record, on the disk too. The new file appears whole or not at all.
    fn change<T>(&self, change: impl FnOnce(&mut Records) -> T) -> Result<(), DiskError> {
        let mut records = self.records();
        let mut new = records.clone();
        change(&mut new);
        let text = serde_json::to_vec_pretty(&new).map_err(|error| DiskError::at("write", &self.path)(error.into()))?;
        let part = self.path.with_extension("part");
        fs::write(&part, text).map_err(DiskError::at("write", &part))?;
        fs::rename(&part, &self.path).map_err(DiskError::at("write", &self.path))?;
        *records = new;
        Ok(())
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Replaced in one step; a panic elsewhere does not spoil it.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Layers that are known to be in the cache, by diff id. A hint: the controller is asked before anything relies on it.
#[derive(Debug, Default)]
pub struct KnownLayers {
    layers: Mutex<BTreeMap<Digest, railyard_common::blob::Blob>>,
}

impl KnownLayers {
    /// These are in the cache.
    pub fn add(&self, layers: impl IntoIterator<Item = railyard_common::blob::Blob>) {
        let mut known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(layers.into_iter().map(|blob| (blob.digest, blob)));
    }

    /// Those of `wanted` that are.
    pub fn of(&self, wanted: &[Digest]) -> Vec<railyard_common::blob::Blob> {
        let known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let unique: BTreeSet<&Digest> = wanted.iter().collect();
        unique.into_iter().filter_map(|digest| known.get(digest).copied()).collect()
    }
}
