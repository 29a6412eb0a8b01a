//! The images that this worker has put into the engine, by build.
//!
//! **Invariant:** every such image has a name below this worker's own prefix, and the name is on record before the
//! engine hears it. So whatever happens, cleanup finds it, and finds nothing of others: other farms, other workers on
//! the same engine, and what people pulled have other names.

mod export;
pub mod make;
mod name;
pub mod prepare;
pub mod save;

use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::keyed::Keyed;
use crate::runtime::{ImageName, Runtime, RuntimeError};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, WorkerName};
use railyard_common::platform::Platform;
use railyard_service::task;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
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
    records: Arc<Mutex<Records>>,
    /// One change of the record at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// One preparation of an image at a time.
    preparing: Keyed<Digest>,
    /// One look at a registry reference at a time: for another platform the engine moves its name.
    pulling: Keyed<String>,
    /// Whoever gives or takes a name is alone with it.
    naming: Keyed<ImageName>,
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
    /// A record that makes no sense counts as empty: what it would have kept is fetched again.
    ///
    /// # Errors
    /// [`DiskError`] if there is one that cannot be read.
    pub fn open(runtime: Arc<dyn Runtime>, farm: &str, worker: &WorkerName, path: &Path) -> Result<Self, DiskError> {
        let records = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "the record of images makes no sense; beginning a new one");
                Records::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Records::default(),
            Err(error) => return Err(DiskError::at("read", path)(error)),
        };
        Ok(Self {
            runtime,
            prefix: name::prefix(farm, worker),
            path: path.to_owned(),
            records: Arc::new(Mutex::new(records)),
            changing: Arc::default(),
            preparing: Keyed::default(),
            pulling: Keyed::default(),
            naming: Keyed::default(),
        })
    }

    /// The name for an image of `build`; `what` is for people, and tells its images apart.
    pub fn name(&self, build: &BuildId, what: &str) -> ImageName {
        name::of(&self.prefix, build, what)
    }

    /// Has the engine make an image of that name, after the name is on record. `making` runs to its end even if nobody
    /// waits for it any more: what the engine was told it may do all the same, and [`Shelf::forget`] waits for that.
    ///
    /// # Errors
    /// [`ShelfError`].
    async fn make<T: Send + 'static>(
        &self,
        build: &BuildId,
        name: &ImageName,
        making: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, ShelfError> {
        let alone = self.naming.lock(name.clone()).await;
        let kept = Kept { build: build.clone(), name: name.clone() };
        self.change(|records| _ = records.kept.insert(kept)).await?;
        let made = task::spawn("make-image", async move {
            let made = making.await;
            drop(alone);
            made
        });
        match made.await {
            Ok(made) => Ok(made?),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is shutting down; nobody waits for the result.
            Err(_) => std::future::pending().await,
        }
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
            let _alone = self.naming.lock(kept.name.clone()).await;
            match self.runtime.untag(&kept.name.to_string()).await {
                Err(error) if error.is_conflict() => tracing::warn!(name = %kept.name, %error, "an image is in use"),
                Err(error) => return Err(error.into()),
                Ok(()) => self.change(move |records| _ = records.kept.remove(&kept)).await?,
            }
        }
        Ok(())
    }

    /// Removes images with this worker's names that are not on record: of an earlier life with another data directory.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn sweep(&self) -> Result<(), RuntimeError> {
        let names = self.runtime.names_below(&self.prefix).await?;
        // Looked up afterwards: a name is on record before an image has it.
        let known: BTreeSet<String> = self.records().kept.iter().map(|kept| kept.name.to_string()).collect();
        for name in names {
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

    async fn remember_root(&self, tarball: Digest, platform: Platform, image: Digest) -> Result<(), DiskError> {
        self.change(move |records| {
            records.roots.retain(|root| root.tarball != tarball || root.platform != platform);
            records.roots.push(Root { tarball, platform, image });
            let spare = records.roots.len().saturating_sub(ROOTS_MAX);
            records.roots.drain(..spare);
        })
        .await
    }

    /// Changes the record, on the disk too. Once begun it is done, even if nobody waits for it any more.
    async fn change(&self, change: impl FnOnce(&mut Records) + Send + 'static) -> Result<(), DiskError> {
        let alone = self.changing.clone().lock_owned().await;
        let (records, path) = (self.records.clone(), self.path.clone());
        blocking(move || {
            let _alone = alone;
            let mut new = lock(&records).clone();
            change(&mut new);
            write(&path, &new).map_err(DiskError::at("write", &path))?;
            *lock(&records) = new;
            Ok(())
        })
        .await
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        lock(&self.records)
    }
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    // Replaced in one step; a panic elsewhere does not spoil it.
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The new file appears whole or not at all, also after a loss of power.
fn write(path: &Path, records: &Records) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(&serde_json::to_vec_pretty(records)?)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
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
