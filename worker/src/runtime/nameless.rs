//! Images that have lost their name and are still there.
//!
//! The engine takes the name away first and removes the image afterwards. If it fails in between, for instance because it
//! is just going down, no name leads to the image any more: whoever tries again is told that there is nothing to remove.

use super::RuntimeError;
use super::docker::Docker;
use bollard::query_parameters as query;
use railyard_service::task;
use std::time::Duration;

/// Between tries: an engine needs seconds to come back.
const PAUSE: Duration = Duration::from_secs(2);

/// After so many it is left to whoever looks after the engine, with a warning.
const TRIES: u32 = 150;

impl Docker {
    /// Removes image `id` as soon as the engine does it, unless it has a name.
    pub(super) fn remove_nameless(&self, id: String) {
        let engine = self.clone();
        task::spawn("remove-nameless", async move {
            for _ in 0..TRIES {
                match engine.try_remove_nameless(&id).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(id, %error, "an image without a name could still not be removed"),
                }
                tokio::time::sleep(PAUSE).await;
            }
            tracing::warn!(id, "an image without a name could not be removed; `docker image prune` does");
        });
    }

    async fn try_remove_nameless(&self, id: &str) -> Result<(), RuntimeError> {
        let doing = format!("remove image {id}");
        let Some(found) = self.inspect(id).await? else { return Ok(()) };
        let named = |names: Option<Vec<String>>| names.is_some_and(|names| !names.is_empty());
        // By its id the engine would remove an image with its last name too.
        if named(found.repo_tags) || named(found.repo_digests) {
            return Ok(());
        }
        let options = query::RemoveImageOptionsBuilder::default().force(false).noprune(false).build();
        match self.short.remove_image(id, Some(options), None).await.map_err(self.error(&doing)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
