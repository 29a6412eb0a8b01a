//! What this worker has left behind, in this life or an earlier one, removed. Only what carries its own marks: labels of containers and
//! volumes, names on record, directories below its own.
//!
//! One thing that cannot be removed is no reason not to work: it is told, and tried again. Without an engine there is
//! nothing to do at all.

use crate::blocking::blocking;
use crate::disk::remove_tree;
use crate::runtime::{Runtime, RuntimeError, labels};
use crate::workshop::Workshop;
use railyard_common::id::LeaseId;
use railyard_service::task;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between tries to remove a container that the engine does not let go.
const REMOVE_RETRY: Duration = Duration::from_secs(2);

/// What this worker has left behind and nobody goes on with.
#[derive(Debug)]
pub struct Dead {
    containers: Vec<Left>,
    volumes: Vec<Left>,
    /// Made for settings that this worker has no more.
    networks: Vec<String>,
    dirs: Vec<PathBuf>,
}

/// Something of the engine's with this worker's labels.
#[derive(Debug)]
struct Left {
    name: String,
    /// Whose it was. Without it nobody goes on with it.
    lease: Option<LeaseId>,
}

impl Left {
    fn new(name: String, labels: &HashMap<String, String>) -> Self {
        Self { name, lease: labels.get(labels::LEASE).and_then(|lease| lease.parse().ok()) }
    }
}

/// Finds this worker's containers, volumes and job directories, but for those of the leases in `keep`.
///
/// # Errors
/// [`RuntimeError`] if no engine answers.
pub async fn find(shop: &Workshop, keep: &BTreeSet<LeaseId>) -> Result<Dead, RuntimeError> {
    let own = labels::own(&shop.farm, &shop.config.name);
    let containers = answered("containers", shop.runtime.containers(&own).await)?;
    let volumes = answered("volumes", shop.runtime.volumes(&own).await)?;
    let mut networks = answered("networks", shop.runtime.networks(&own).await)?;
    networks.retain(|name| name != shop.guard.name());
    let (jobs, secrets) = (shop.data.jobs(), shop.secrets.clone());
    let dirs = blocking(move || {
        let mut dirs = entries(&jobs).unwrap_or_else(|error| {
            tracing::warn!(%error, "directories of an earlier life cannot be found");
            Vec::new()
        });
        match secrets.others(&BTreeSet::new()) {
            Ok(others) => dirs.extend(others),
            Err(error) => {
                tracing::warn!(
                    error = railyard_service::error_chain(&error),
                    "secrets of an earlier life cannot be found"
                )
            }
        }
        dirs
    })
    .await;
    let containers = containers.into_iter().map(|found| Left::new(found.id, &found.labels)).collect();
    let volumes = volumes.into_iter().map(|found| Left::new(found.name, &found.labels)).collect();
    Ok(Dead { containers, volumes, networks, dirs }.without(keep))
}

fn answered<T>(what: &str, found: Result<Vec<T>, RuntimeError>) -> Result<Vec<T>, RuntimeError> {
    match found {
        Err(error) if !error.is_unreachable() => {
            tracing::warn!(%error, "{what} of an earlier life cannot be found");
            Ok(Vec::new())
        }
        found => found,
    }
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

impl Dead {
    fn without(mut self, keep: &BTreeSet<LeaseId>) -> Self {
        let is_dead = |lease: Option<LeaseId>| lease.is_none_or(|lease| !keep.contains(&lease));
        self.containers.retain(|left| is_dead(left.lease));
        self.volumes.retain(|left| is_dead(left.lease));
        self.dirs.retain(|dir| is_dead(dir.file_name().and_then(|name| name.to_str()?.parse().ok())));
        self
    }

    /// Removes all of it, containers first.
    ///
    /// # Errors
    /// [`RuntimeError`] if no engine answers.
    pub async fn remove(self, shop: &Workshop) -> Result<(), RuntimeError> {
        for Left { name: container, .. } in self.containers {
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
        for Left { name: volume, .. } in self.volumes {
            match shop.runtime.remove_volume(&volume).await {
                // Most often it has gone with its container, or its container goes later.
                Err(error) if !error.is_unreachable() => {
                    tracing::warn!(volume, %error, "a volume could not be removed; it is tried again");
                }
                removed => removed?,
            }
        }
        for network in self.networks {
            match shop.runtime.remove_network(&network).await {
                // Steps that run on may be in it, or those of another worker with such settings.
                Err(error) if !error.is_unreachable() => tracing::debug!(network, %error, "a network is in use"),
                removed => removed?,
            }
        }
        for dir in self.dirs {
            if let Err(error) = remove_tree(&dir).await {
                tracing::warn!(error = railyard_service::error_chain(&error), "it is tried again");
            }
        }
        Ok(())
    }
}

/// Removes what was left behind while this process runs: what could not be removed when its time was, and what the engine made after
/// nobody waited for it any more.
pub async fn reap(shop: &Workshop) {
    let removed = async {
        // In this order: whatever is begun in between is in the second list, and only what is in the first can go.
        let found = find(shop, &BTreeSet::new()).await?;
        found.without(&shop.disks.promises.leases()).remove(shop).await?;
        images(shop).await
    };
    if let Err(error) = removed.await {
        tracing::debug!(%error, "what was left behind cannot be looked for");
    }
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
