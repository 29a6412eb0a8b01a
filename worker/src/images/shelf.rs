//! The images that this worker has put into the engine: for running builds, and as long as there is room for those to come.
//!
//! **Invariant:** every such image has a name below this worker's own prefix, and the name is on record before the
//! engine hears it. So whatever happens, cleanup finds it, and finds nothing of others: other farms, other workers on
//! the same engine, and what people pulled have other names. What a job uses is never removed.

use super::name;
use super::records::{Layers, Records};
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::disk::policy::Thing;
use crate::disk::uses::Uses;
use crate::keyed::Keyed;
use crate::runtime::{ImageName, Runtime, RuntimeError};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, WorkerName};
use railyard_common::platform::Platform;
use railyard_service::task;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    shared: Arc<Shared>,
    /// One preparation of an image at a time.
    pub(super) preparing: Keyed<Digest>,
    /// One look at a registry reference at a time: for another platform the engine moves its name.
    pub(super) pulling: Keyed<String>,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    prefix: String,
    path: PathBuf,
    limit_bytes: AtomicU64,
    uses: Arc<Uses>,
    records: Mutex<Records>,
    /// How many jobs use an image.
    users: Mutex<BTreeMap<ImageName, usize>>,
    /// One change of the record at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Whoever gives or takes a name is alone with it.
    naming: Keyed<ImageName>,
    /// One who makes room is enough.
    trimming: tokio::sync::Mutex<()>,
}

/// A job uses images of these names, if there are any. They are not removed while this is held.
pub struct InUse {
    shared: Arc<Shared>,
    names: Vec<ImageName>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut users = lock(&self.shared.users);
        for name in &self.names {
            if let Some(count) = users.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    users.remove(name);
                }
            }
        }
    }
}

impl Shelf {
    /// Opens the record in file `path`. `farm` tells farms that share an engine apart. There is no limit yet.
    ///
    /// # Errors
    /// [`DiskError`] if there is a record that cannot be read.
    pub fn open(
        runtime: Arc<dyn Runtime>,
        farm: &str,
        worker: &WorkerName,
        path: &Path,
        uses: Arc<Uses>,
    ) -> Result<Self, DiskError> {
        let records = Records::read(path).map_err(DiskError::at("read", path))?;
        uses.seen(records.last_use());
        let shared = Shared {
            runtime,
            prefix: name::prefix(farm, worker),
            path: path.to_owned(),
            limit_bytes: AtomicU64::new(u64::MAX),
            uses,
            records: Mutex::new(records),
            users: Mutex::default(),
            changing: Arc::default(),
            naming: Keyed::default(),
            trimming: tokio::sync::Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), preparing: Keyed::default(), pulling: Keyed::default() })
    }

    /// Images of builds that are over are kept up to so many bytes in all, when somebody next looks.
    pub fn limit(&self, limit_bytes: u64) {
        self.shared.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// What all images take together, as far as is known.
    pub fn bytes(&self) -> u64 {
        lock(&self.shared.records).bytes()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.shared.records).count()
    }

    /// What could be removed, and what could not.
    pub fn things(&self) -> Vec<Thing<ImageName>> {
        let used: BTreeSet<ImageName> = lock(&self.shared.users).keys().cloned().collect();
        lock(&self.shared.records).things(|name| used.contains(name))
    }

    /// The name for an image of `build`; `what` is for people, and tells its images apart.
    pub fn name(&self, build: &BuildId, what: &str) -> ImageName {
        name::of(&self.shared.prefix, build, what)
    }

    /// A job uses images of these names, or will in a moment.
    pub(super) fn hold(&self, names: Vec<ImageName>) -> InUse {
        let mut users = lock(&self.shared.users);
        for name in &names {
            *users.entry(name.clone()).or_default() += 1;
        }
        drop(users);
        InUse { shared: self.shared.clone(), names }
    }

    /// The same, once whoever takes these names away just now has done so: what is there then stays.
    pub(super) async fn hold_what_is_there(&self, names: Vec<ImageName>) -> InUse {
        let in_use = self.hold(names);
        for name in &in_use.names {
            drop(self.shared.naming.lock(name.clone()).await);
        }
        in_use
    }

    /// Has the engine make an image of that name, after the name is on record. `making` runs to its end even if nobody
    /// waits for it any more: what the engine was told it may do all the same, and whoever takes the name waits for that.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub(super) async fn make<T: Send + 'static>(
        &self,
        build: &BuildId,
        name: &ImageName,
        layers: Layers,
        making: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, ShelfError> {
        let alone = self.shared.naming.lock(name.clone()).await;
        let (build, named) = (build.clone(), name.clone());
        let used_at = self.shared.uses.next();
        self.shared.change(move |records| records.keep(build, named, layers, used_at)).await?;
        let made = task::spawn("make-image", async move {
            let made = making.await;
            drop(alone);
            made
        });
        let made = match made.await {
            Ok(made) => made?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is shutting down; nobody waits for the result.
            Err(_) => std::future::pending().await,
        };
        if self.shared.is_over() {
            let shared = self.shared.clone();
            // The job need not wait for that.
            task::spawn("trim-images", async move {
                if let Err(error) = shared.trim().await {
                    tracing::warn!(%error, "images of builds that are over could not be removed");
                }
            });
        }
        Ok(made)
    }

    /// A build uses one that it has made before.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(super) async fn touch(&self, name: &ImageName) -> Result<(), DiskError> {
        let (name, used_at) = (name.clone(), self.shared.uses.next());
        self.shared.change(move |records| records.touch(&name, used_at)).await
    }

    /// Takes the name from the engine's image, and from the record. One that is in use keeps it: `false`.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub async fn remove(&self, name: &ImageName) -> Result<bool, ShelfError> {
        self.shared.remove(name).await
    }

    /// Builds with images here that are not over.
    pub fn builds(&self) -> Vec<BuildId> {
        lock(&self.shared.records).builds().into_iter().cloned().collect()
    }

    /// The build is over: its images stay only as long as there is room. `false` if something must go and is still in use.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub async fn forget(&self, build: &BuildId) -> Result<bool, ShelfError> {
        let over = build.clone();
        self.shared.change(move |records| records.end(&over)).await?;
        self.shared.trim().await
    }

    /// Removes images with this worker's names that are not on record: of an earlier life with another data directory; and what
    /// is over the limit, which may be another one than it was.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn sweep(&self) -> Result<(), RuntimeError> {
        let names = self.shared.runtime.names_below(&self.shared.prefix).await?;
        // Looked up afterwards: a name is on record before an image has it.
        let known = lock(&self.shared.records).names();
        for name in names {
            if known.contains(&name) {
                continue;
            }
            match self.shared.runtime.untag(&name).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => tracing::info!(name, "removed an image that nobody needs"),
            }
        }
        match self.shared.trim().await {
            Ok(_) => Ok(()),
            Err(ShelfError::Runtime(error)) => Err(error),
            Err(ShelfError::Disk(error)) => {
                tracing::warn!(error = railyard_service::error_chain(&error), "the record of images cannot be written");
                Ok(())
            }
        }
    }

    pub(super) fn root(&self, tarball: Digest, platform: Platform) -> Option<Digest> {
        lock(&self.shared.records).root(tarball, platform)
    }

    pub(super) async fn remember_root(
        &self,
        tarball: Digest,
        platform: Platform,
        image: Digest,
    ) -> Result<(), DiskError> {
        self.shared.change(move |records| records.remember_root(tarball, platform, image)).await
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        lock(&self.records).is_over(self.limit_bytes.load(Ordering::Relaxed))
    }

    fn is_used(&self, name: &ImageName) -> bool {
        lock(&self.users).contains_key(name)
    }

    /// Removes images of builds that are over, until the rest is within the limit. `false` if some that must go are in use.
    async fn trim(self: &Arc<Self>) -> Result<bool, ShelfError> {
        let _one = self.trimming.lock().await;
        let mut stuck = BTreeSet::new();
        while self.is_over() {
            let stays = |name: &ImageName| stuck.contains(name) || self.is_used(name);
            let Some(next) = lock(&self.records).next_to_go(stays) else { break };
            if !self.remove(&next).await? {
                stuck.insert(next);
            }
        }
        Ok(!self.is_over())
    }

    /// Takes the name from the engine's image, unless it is in use.
    async fn remove(self: &Arc<Self>, name: &ImageName) -> Result<bool, ShelfError> {
        let _alone = self.naming.lock(name.clone()).await;
        if self.is_used(name) {
            return Ok(false);
        }
        match self.runtime.untag(&name.to_string()).await {
            Err(error) if error.is_conflict() => {
                tracing::warn!(%name, %error, "an image is in use");
                Ok(false)
            }
            Err(error) => Err(error.into()),
            Ok(()) => {
                let gone = name.clone();
                self.change(move |records| records.drop(&gone)).await?;
                Ok(true)
            }
        }
    }

    /// Changes the record, on the disk too. Once begun it is done, even if nobody waits for it any more.
    async fn change(self: &Arc<Self>, change: impl FnOnce(&mut Records) + Send + 'static) -> Result<(), DiskError> {
        let alone = self.changing.clone().lock_owned().await;
        let shared = self.clone();
        blocking(move || {
            let _alone = alone;
            let mut new = lock(&shared.records).clone();
            change(&mut new);
            new.write(&shared.path).map_err(DiskError::at("write", &shared.path))?;
            *lock(&shared.records) = new;
            Ok(())
        })
        .await
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single step; a panic elsewhere does not spoil it.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
