//! What an earlier life of this worker left behind, removed. Only what carries this worker's own marks.

use crate::disk::{DiskError, remove_tree};
use crate::images::ShelfError;
use crate::runtime::labels;
use crate::workshop::Workshop;

/// Removes this worker's containers and job directories.
///
/// # Errors
/// [`ShelfError`] if the engine or the disk fails; what could be removed before is removed.
pub async fn jobs(shop: &Workshop) -> Result<(), ShelfError> {
    let own = [(labels::FARM, shop.farm.as_str()), (labels::WORKER, shop.config.name.as_str())];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    for container in shop.runtime.containers(&own).await? {
        tracing::info!(container, "removing a container of an earlier life");
        shop.runtime.remove(&container).await?;
    }
    let jobs = shop.data.jobs();
    let mut entries = tokio::fs::read_dir(&jobs).await.map_err(DiskError::at("read", &jobs))?;
    while let Some(entry) = entries.next_entry().await.map_err(DiskError::at("read", &jobs))? {
        remove_tree(&entry.path()).await?;
    }
    Ok(())
}

/// Removes images that no build on record keeps.
///
/// # Errors
/// [`ShelfError`].
pub async fn images(shop: &Workshop) -> Result<(), ShelfError> {
    Ok(shop.shelf.sweep().await?)
}
