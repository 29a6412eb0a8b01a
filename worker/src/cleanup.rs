//! What an earlier life of this worker left behind, removed. Only what carries this worker's own marks.
//!
//! One thing that cannot be removed is no reason not to work: it is told, and tried again. Without an engine there is
//! nothing to do at all.

use crate::blocking::blocking;
use crate::disk::remove_tree;
use crate::runtime::{Runtime, RuntimeError, labels};
use crate::workshop::Workshop;
use railyard_common::id::LeaseId;
use railyard_service::task;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between tries to remove a container that the engine does not let go.
const REMOVE_RETRY: Duration = Duration::from_secs(2);

/// What an earlier life left behind and nobody goes on with.
#[derive(Debug)]
pub struct Dead {
    containers: Vec<String>,
    dirs: Vec<PathBuf>,
}

/// Finds this worker's containers and job directories, but for those of the leases in `keep`.
///
/// # Errors
/// [`RuntimeError`] if no engine answers.
pub async fn find(shop: &Workshop, keep: &BTreeSet<LeaseId>) -> Result<Dead, RuntimeError> {
    let own = [(labels::FARM, shop.farm.as_str()), (labels::WORKER, shop.config.name.as_str())];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let found = match shop.runtime.containers(&own).await {
        Err(error) if !error.is_unreachable() => {
            tracing::warn!(%error, "containers of an earlier life cannot be found");
            Vec::new()
        }
        found => found?,
    };
    let kept: BTreeSet<String> = keep.iter().map(ToString::to_string).collect();
    let dead = found.into_iter().filter(|found| !found.labels.get(labels::LEASE).is_some_and(|of| kept.contains(of)));
    let mut dirs = directories(&shop.data.jobs(), &kept).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "directories of an earlier life cannot be found");
        Vec::new()
    });
    let (secrets, keep) = (shop.secrets.clone(), keep.clone());
    match blocking(move || secrets.others(&keep)).await {
        Ok(others) => dirs.extend(others),
        Err(error) => {
            tracing::warn!(error = railyard_service::error_chain(&error), "secrets of an earlier life cannot be found")
        }
    }
    Ok(Dead { containers: dead.map(|found| found.id).collect(), dirs })
}

impl Dead {
    /// Removes all of it, containers first.
    ///
    /// # Errors
    /// [`RuntimeError`] if no engine answers.
    pub async fn remove(self, shop: &Workshop) -> Result<(), RuntimeError> {
        for container in self.containers {
            tracing::info!(container, "removing a container of an earlier life");
            match shop.runtime.remove(&container).await {
                Err(error) if !error.is_unreachable() => {
                    tracing::warn!(container, %error, "a container could not be removed; trying on");
                    let runtime = shop.runtime.clone();
                    task::spawn("remove-container", async move { remove_until_gone(&*runtime, &container).await });
                }
                removed => removed?,
            }
        }
        for dir in self.dirs {
            if let Err(error) = remove_tree(&dir).await {
                tracing::warn!(error = railyard_service::error_chain(&error), "the next start tries again");
            }
        }
        Ok(())
    }
}

async fn directories(jobs: &Path, kept: &BTreeSet<String>) -> io::Result<Vec<PathBuf>> {
    let (jobs, kept) = (jobs.to_owned(), kept.clone());
    let find = move || {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(jobs)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    };
    blocking(find).await
}

/// Removes images that no build on record keeps.
///
/// # Errors
/// [`RuntimeError`] if no engine answers.
pub async fn images(shop: &Workshop) -> Result<(), RuntimeError> {
    match shop.shelf.sweep().await {
        Err(error) if !error.is_unreachable() => {
            tracing::warn!(%error, "images of an earlier life cannot be removed; the next start tries again");
            Ok(())
        }
        swept => swept,
    }
}

/// Removes a container, as soon as the engine lets it go.
pub async fn remove_until_gone(runtime: &dyn Runtime, container: &str) {
    while let Err(error) = runtime.remove(container).await {
        tracing::debug!(container, %error, "a container could still not be removed");
        tokio::time::sleep(REMOVE_RETRY).await;
    }
}
