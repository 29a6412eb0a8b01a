//! All of a build's published paths or none: what a build is about to place is written down first, so that it can be
//! taken back, also by a process that comes after this one.
//!
//! **Invariant:** only a path at which there was nothing when it was written down is ever taken back, and only while it
//! has the bytes of this build, and no other build that ended well has published it.

use super::{Failure, Finalizer};
use crate::cache::{CacheError, PutMode};
use crate::document::json;
use railyard_common::blob::Blob;
use railyard_common::id::BuildId;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_core::Farm;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// `placing.json`, beside the build's manifest while it is being written out.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Placing {
    paths: BTreeMap<RelPath, Blob>,
}

impl Finalizer {
    /// The paths at which there is nothing. Most conflicts are found so before anything is placed.
    pub(super) async fn look(&self, paths: &BTreeMap<RelPath, Blob>) -> Result<BTreeSet<RelPath>, Failure> {
        if let Some((path, below)) = file_and_directory(paths) {
            let why = format!("{path} would be a file and, because of {below}, a directory");
            return Err(Failure::ForGood(why));
        }
        let mut fresh = BTreeSet::new();
        for (path, blob) in paths {
            // What is there already is either the same, from an earlier try, or a conflict.
            match self.cache.get_stream(path).await? {
                Some(_) => self.cache.publish(blob, path).await?,
                None => _ = fresh.insert(path.clone()),
            }
        }
        Ok(fresh)
    }

    /// Publishes what is not there yet, and writes the sums of all.
    pub(super) async fn place(
        &self,
        id: &BuildId,
        paths: &BTreeMap<RelPath, Blob>,
        fresh: &BTreeSet<RelPath>,
    ) -> Result<(), Failure> {
        for (path, blob) in paths.iter().filter(|(path, _)| fresh.contains(*path)) {
            self.cache.publish(blob, path).await?;
        }
        self.write_sums(id, paths).await
    }

    /// Writes down that the build will place these. What an earlier try wrote down stays.
    pub(super) async fn begin_placing(
        &self,
        id: &BuildId,
        paths: &BTreeMap<RelPath, Blob>,
        fresh: &BTreeSet<RelPath>,
    ) -> Result<(), Failure> {
        if fresh.is_empty() {
            return Ok(());
        }
        let old = self.placing(id).await?;
        let mut new = Placing { paths: old.paths.clone() };
        new.paths
            .extend(paths.iter().filter(|(path, _)| fresh.contains(*path)).map(|(path, blob)| (path.clone(), *blob)));
        if new != old {
            self.cache.put(&layout::placing(id), json(&new), PutMode::Overwrite).await?;
        }
        Ok(())
    }

    /// All of them are there, and stay.
    pub(super) async fn end_placing(&self, id: &BuildId) -> Result<(), Failure> {
        Ok(self.cache.delete(&layout::placing(id)).await?)
    }

    /// Takes back what a build had placed that nobody knows: its publishing was cut off, and the backup that was restored is of before
    /// it. What the manifests in the cache say is `published` stays.
    ///
    /// # Errors
    /// What stands in the way, for people. All of it can be done again.
    pub(crate) async fn take_back_unknown(&self, id: &BuildId, published: &BTreeSet<RelPath>) -> Result<(), String> {
        match self.take_back(id, published).await {
            // It says nothing, and nobody will ever write it anew.
            Err(Failure::ForGood(why)) => {
                tracing::warn!(build = %id, why, "what a build of nobody was about to publish is not known, and stays");
                Ok(())
            }
            taken => taken.map_err(|failure| format!("what {id} was about to publish cannot be removed: {failure}")),
        }
    }

    /// The build will not be published: what it has placed goes again, from the sums as well. What is `published` by others stays.
    pub(super) async fn take_back(&self, id: &BuildId, published: &BTreeSet<RelPath>) -> Result<(), Failure> {
        // A promotion may be about to count on what is there.
        let _placing = self.placing.lock().await;
        let paths = self.placing(id).await?.paths;
        if paths.is_empty() {
            return Ok(());
        }
        // While this one was waiting for its next try, another build may have published the same bytes there.
        let (asked, own) = (paths.keys().cloned().collect(), id.clone());
        let Ok(others) = self.farm.read(move |farm, _| published_by_others(farm, &own, &asked)).await else {
            // The controller stops; its successor does this.
            return Ok(());
        };
        let mut placed = BTreeSet::new();
        let own = paths.into_iter().filter(|(path, _)| !others.contains(path) && !published.contains(path));
        for (path, blob) in own {
            if self.has(&path, &blob).await? {
                placed.insert(path);
            }
        }
        self.remove_sums(id, &placed).await?;
        for path in &placed {
            self.cache.delete(path).await?;
        }
        let count = placed.len();
        tracing::warn!(build = %id, paths = count, "the build is not published; what it had placed was removed again");
        self.end_placing(id).await
    }

    /// Takes away what a build has published, from the sums as well: every path at which its bytes still lie. Returns how many those were.
    ///
    /// # Errors
    /// What stands in the way, for people. All of it can be done again.
    pub(crate) async fn unpublish(
        &self,
        id: &BuildId,
        paths: &[(RelPath, Blob)],
        grace_millis: u64,
    ) -> Result<u64, String> {
        // Whoever publishes the same bytes there either is seen here, or finds nothing there.
        let _placing = self.placing.lock().await;
        self.remove(id, paths, grace_millis).await
    }

    /// The same for whoever holds `placing`.
    pub(super) async fn remove(
        &self,
        id: &BuildId,
        paths: &[(RelPath, Blob)],
        grace_millis: u64,
    ) -> Result<u64, String> {
        let failed = |failure: Failure| format!("what {id} had published cannot be removed: {failure}");
        let (asked, now) = (paths.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), self.clock.now());
        let in_use = self.farm.read(move |farm, _| {
            let in_use = farm.paths_in_use(now, grace_millis);
            asked.into_iter().filter_map(|path| Some((in_use.get(&path).copied()?, path))).collect::<Vec<_>>()
        });
        let in_use = in_use.await.map_err(|error| error.to_string())?;
        if let Some((_, path)) = in_use.iter().find(|(is_settled, _)| !is_settled) {
            return Err(format!("{path}, which {id} had published, may be published again just now"));
        }
        let in_use: BTreeSet<RelPath> = in_use.into_iter().map(|(_, path)| path).collect();
        let mut own = BTreeSet::new();
        for (path, blob) in paths.iter().filter(|(path, _)| !in_use.contains(path)) {
            if self.has(path, blob).await.map_err(failed)? {
                own.insert(path.clone());
            }
        }
        self.remove_sums(id, &own).await.map_err(failed)?;
        for path in &own {
            self.cache.delete(path).await.map_err(|error| failed(error.into()))?;
        }
        Ok(own.len() as u64)
    }

    /// Whether a path has these bytes.
    async fn has(&self, path: &RelPath, blob: &Blob) -> Result<bool, Failure> {
        if self.cache.get_stream(path).await?.is_none() {
            return Ok(false);
        }
        // Nothing is written where something is: this says whether it is the same.
        match self.cache.publish(blob, path).await {
            Ok(()) => Ok(true),
            Err(CacheError::Conflict { .. }) => Ok(false),
            // The blob is lost, and what lies at the path may be the last of it.
            Err(CacheError::NoBlob { .. }) => Ok(self.digest_at(path).await? == Some(blob.digest)),
            Err(error) => Err(error.into()),
        }
    }

    async fn placing(&self, id: &BuildId) -> Result<Placing, Failure> {
        let Some((bytes, _)) = self.cache.get(&layout::placing(id)).await? else { return Ok(Placing::default()) };
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::ForGood(format!("{} cannot be read ({error}); remove it", layout::placing(id))))
    }
}

/// Those of the paths that another build which ended well has published, or is publishing for a promotion. No untrusted build has
/// published anything.
pub(super) fn published_by_others(farm: &Farm, own: &BuildId, paths: &BTreeSet<RelPath>) -> BTreeSet<RelPath> {
    let others = farm.builds().filter(|build| build.id() != own && build.is_success());
    let published = others.flat_map(|build| farm.published(build)).map(|(path, _)| path);
    published.filter(|path| paths.contains(*path)).cloned().collect()
}

/// A path at which one file would be published, and one that another would have below it.
fn file_and_directory<T>(paths: &BTreeMap<RelPath, T>) -> Option<(&RelPath, &RelPath)> {
    paths.keys().find_map(|below| {
        let mut parents = below.as_str().match_indices('/').map(|(at, _)| &below.as_str()[..at]);
        let file = parents.find_map(|parent| paths.get_key_value(&parent.parse::<RelPath>().ok()?))?;
        Some((file.0, below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_be_a_file_and_a_directory() {
        let paths: Vec<RelPath> = ["a/b", "a/b-c", "a/b/c/d", "e"].iter().map(|path| path.parse().unwrap()).collect();
        let all: BTreeMap<RelPath, ()> = paths.iter().map(|path| (path.clone(), ())).collect();
        assert_eq!(file_and_directory(&all), Some((&paths[0], &paths[2])));
        let fine: BTreeMap<RelPath, ()> = paths[1..].iter().map(|path| (path.clone(), ())).collect();
        assert_eq!(file_and_directory(&fine), None);
    }
}
